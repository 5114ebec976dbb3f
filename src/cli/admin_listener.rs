//! Requests to the admin listener of a running process: plain HTTP over one connection, without redirects and retries.
//!
//! Guarantees: an answer or an error comes within the time limit, usually four seconds. An answer above 8 MiB is cut.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;

const TIMEOUT: Duration = Duration::from_secs(4);
const ANSWER_MAX: u64 = 8 << 20;

/// The URL of the listener on this machine. An unspecified listen address becomes the loopback address.
pub(super) fn local(listen: SocketAddr) -> anyhow::Result<Url> {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    Ok(Url::parse(&format!("http://{}", SocketAddr::new(ip, listen.port())))?)
}

/// Parses the address of a listener: `http://host:port` or `host:port`.
pub(super) fn address(text: &str) -> Result<Url, String> {
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url = Url::parse(&full).ok().filter(|url| url.scheme() == "http" && url.host_str().is_some());
    url.ok_or_else(|| "must be the address of an admin listener, as http://127.0.0.1:9464".to_owned())
}

/// The URL of a path of the listener, for example `/readyz`.
pub(super) fn path(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}{path}", base.path().trim_end_matches('/')));
    url
}

/// The status and the body of the answer. `token`: sent as a bearer token.
pub(super) async fn get(url: &Url, token: Option<&SecretString>) -> anyhow::Result<(u16, String)> {
    get_within(url, token, TIMEOUT).await
}

/// [`get`] with another time limit.
pub(super) async fn get_within(
    url: &Url,
    token: Option<&SecretString>,
    limit: Duration,
) -> anyhow::Result<(u16, String)> {
    let answer = tokio::time::timeout(limit, request(url, token)).await;
    answer.with_context(|| format!("{} did not answer within {limit:?}", place(url)))?
}

/// The listener and the path. The query is left out, because it may name a conversation.
fn place(url: &Url) -> &str {
    &url[..url::Position::AfterPath]
}

async fn request(url: &Url, token: Option<&SecretString>) -> anyhow::Result<(u16, String)> {
    if url.scheme() != "http" {
        bail!("{} does not begin with http://: the admin listener speaks plain HTTP", place(url));
    }
    let host = url.host_str().context("the address names no host")?;
    let port = url.port_or_known_default().unwrap_or(80);
    // A URL has brackets around an IPv6 address; a socket address has none.
    let dial = host.trim_start_matches('[').trim_end_matches(']');
    let mut stream =
        TcpStream::connect((dial, port)).await.with_context(|| format!("cannot connect to {host}:{port}"))?;
    let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let bearer =
        token.map(|token| format!("authorization: Bearer {}\r\n", token.expose_secret())).unwrap_or_default();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\n{bearer}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).await?;
    read_answer(&String::from_utf8_lossy(&answer)).context("the answer is not HTTP")
}

fn read_answer(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
    Some((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_every_address_is_asked_on_this_machine() {
        let url = |listen: &str| path(&local(listen.parse().unwrap()).unwrap(), "/readyz").to_string();
        assert_eq!(url("0.0.0.0:9464"), "http://127.0.0.1:9464/readyz");
        assert_eq!(url("[::]:9464"), "http://[::1]:9464/readyz");
        assert_eq!(url("10.1.2.3:1"), "http://10.1.2.3:1/readyz");
    }

    #[test]
    fn an_address_may_lack_the_scheme_and_have_a_path() {
        for (text, url) in [
            ("worker-1:9464", "http://worker-1:9464/metrics"),
            ("http://10.0.0.1:9464/", "http://10.0.0.1:9464/metrics"),
            ("http://proxy/causeway/", "http://proxy/causeway/metrics"),
        ] {
            assert_eq!(path(&address(text).unwrap(), "/metrics").as_str(), url);
        }
        for wrong in ["https://10.0.0.1:9464", "", "amqp://broker", "http://"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_answer_is_a_status_and_a_body() {
        assert_eq!(
            read_answer("HTTP/1.1 503 No\r\na: b\r\n\r\nbroker away"),
            Some((503, "broker away".into()))
        );
        assert_eq!(read_answer("SSH-2.0-OpenSSH"), None);
    }
}
