//! The part of RabbitMQ's management API that tests need.
//!
//! The calls block and use one connection each, so they also work in `Drop` and across the runtimes of many tests.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use base64::Engine;
use serde_json::Value;

/// Makes a call. `Err` holds the answer if it is not 2xx, or the error of the connection.
pub(super) fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> Result<Value, String> {
    let answer =
        exchange(address, method, path, body).map_err(|error| format!("{method} {path}: {error}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).unwrap_or("no status");
    if !status.starts_with('2') {
        return Err(format!("{method} {path}: {status} {body}"));
    }
    if body.is_empty() {
        Ok(Value::Null)
    } else {
        serde_json::from_str(body).map_err(|error| error.to_string())
    }
}

fn exchange(address: SocketAddr, method: &str, path: &str, body: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let credentials = base64::engine::general_purpose::STANDARD.encode("guest:guest");
    // HTTP/1.0: the answer is not chunked, and ends with the connection.
    let request = format!(
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\nAuthorization: Basic {credentials}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
