//! Tests TLS on the public listener with a real client: renewal without a gap, callers that do not shake hands, client
//! certificates.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::harness::authority::Authority;
use super::harness::matrix::Engine;
use super::harness::relay::{Plan, Relay};
use super::harness::wait::eventually;

const NAME: &str = "causeway.test";
const IN_TIME: Duration = Duration::from_secs(20);

async fn tcp(relay: &Relay) -> TcpStream {
    let address = relay.processes[0].public_url().replace("http://", "");
    TcpStream::connect(address).await.unwrap()
}

async fn shake(relay: &Relay, config: rustls::ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(NAME).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp(relay).await).await
}

fn request(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: {NAME}\r\ncontent-type: application/json\r\nx-causeway-token: callback-token\r\n\
         authorization: Bearer handoffs-token\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

const CALLBACK: &str =
    r#"{"group":"g-1","formatted_message":"hi","sys_created_by":"beth","last_message":""}"#;
const START: &str = r#"{"type":"start","conversation_id":"c-1","message":"hi"}"#;

/// The status of the answer on a connection that stays open.
async fn status<S>(stream: &mut S, request: &str) -> u16
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let count = stream.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[9..count.min(12)]).parse().unwrap()
}

fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn the_public_listener_speaks_tls_and_renews_its_certificate_without_a_gap() {
    let bench = Engine::Embedded.bench().unwrap();
    let (ours, theirs) = (Authority::new(), Authority::new());
    let [certificate, key] = ours.server_files(bench.folder(), NAME, 2020..2090);
    let client_ca = theirs.write(bench.folder(), "client-ca.pem");
    let plan = Plan::on(&bench)
        .set("ingress.tls.cert_file", certificate.as_str())
        .set("ingress.tls.key_file", key.as_str())
        .set("ingress.tls.client_ca_file", client_ca);
    let mut relay = plan.start().await;
    // The client trusts the authority of the server, and its certificate is of another authority.
    let config = |certified: bool| {
        let mut config = ours.client_config(false);
        if certified {
            config.client_auth_cert_resolver = theirs.client_config(true).client_auth_cert_resolver.clone();
        }
        config
    };

    // Callers that never shake hands delay nobody.
    let mut silent = Vec::new();
    for number in 0..100 {
        let mut stream = tcp(&relay).await;
        if number % 2 == 0 {
            stream.write_all(&[0x16, 0x03, 0x01]).await.unwrap();
        }
        silent.push(stream);
    }
    let mut first = shake(&relay, config(true)).await.unwrap();
    assert_eq!(status(&mut first, &request("/v1/callbacks/servicenow", CALLBACK)).await, 202);

    // Without a client certificate only the callbacks are refused.
    let mut bare = shake(&relay, config(false)).await.unwrap();
    assert_eq!(status(&mut bare, &request("/v1/callbacks/servicenow", CALLBACK)).await, 401);
    let mut bare = shake(&relay, config(false)).await.unwrap();
    assert_eq!(status(&mut bare, &request("/v1/handoffs", START)).await, 202);
    // In TLS 1.3 the client learns only from the first answer that its certificate was refused.
    let stranger = Authority::new();
    let mut foreign = config(false);
    foreign.client_auth_cert_resolver = stranger.client_config(true).client_auth_cert_resolver.clone();
    let refused = match shake(&relay, foreign).await {
        Err(_) => true,
        Ok(mut stream) => stream.read(&mut [0; 16]).await.map_or(true, |count| count == 0),
    };
    assert!(refused, "a certificate of a foreign authority");

    let mut plain = tcp(&relay).await;
    let mut answer = String::new();
    plain.write_all(request("/v1/handoffs", START).as_bytes()).await.unwrap();
    let _ = plain.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("https://"), "{answer}");

    // A key of another certificate, then an expired pair: the old one stays.
    let (old_key, old) = (std::fs::read(&key).unwrap(), shown(&first));
    ours.server_files(bench.folder(), NAME, 2020..2080);
    std::fs::write(&key, &old_key).unwrap();
    relay.processes[0].running.line("does not belong", IN_TIME).await;
    assert_eq!(shown(&shake(&relay, config(true)).await.unwrap()), old);
    ours.server_files(bench.folder(), NAME, 2000..2001);
    relay.processes[0].running.line("has expired on 2001-01-01", IN_TIME).await;
    assert_eq!(shown(&shake(&relay, config(true)).await.unwrap()), old);

    ours.server_files(bench.folder(), NAME, 2020..2070);
    eventually("the new certificate", IN_TIME, async || {
        let found = shown(&shake(&relay, config(true)).await.map_err(|error| error.to_string())?);
        if found == old { Err("the old one".to_owned()) } else { Ok(()) }
    })
    .await;
    let again = request("/v1/callbacks/servicenow", CALLBACK);
    assert_eq!(status(&mut first, &again).await, 202, "a connection of before goes on");
    drop(silent);
    assert_eq!(relay.stop().await, [Some(0)]);
}
