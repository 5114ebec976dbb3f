//! `causeway healthcheck`: asks the admin listener of a running process whether the process is ready. A container
//! then needs no other tool for its health check. The request is plain HTTP over one connection, without redirects
//! and retries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;

use super::{CliFailure, SettingFiles, output};
use crate::config::RunPurpose;

const TIMEOUT: Duration = Duration::from_secs(4);
const ANSWER_MAX: u64 = 64 * 1024;

#[derive(Debug, clap::Args)]
pub(super) struct HealthcheckArgs {
    /// URL to ask instead of /readyz at admin.listen, for example http://127.0.0.1:9464/livez
    #[arg(long)]
    url: Option<Url>,
}

pub(super) async fn run(args: &HealthcheckArgs, sources: &SettingFiles) -> Result<(), CliFailure> {
    let url = match &args.url {
        Some(url) => url.clone(),
        None => readyz(sources.settings(RunPurpose::Admin)?.admin_listen)?,
    };
    let asked = tokio::time::timeout(TIMEOUT, ask(&url)).await;
    let (status, body) = asked.with_context(|| format!("{url} did not answer within {TIMEOUT:?}"))??;
    let said = output::harmless(body.trim());
    if status == 200 {
        output::line(if said.is_empty() { "ready" } else { &said })?;
        return Ok(());
    }
    Err(anyhow::anyhow!("{url} answered {status}: {said}").into())
}

/// The URL of `/readyz` on this machine. An unspecified listen address becomes the loopback address.
fn readyz(listen: SocketAddr) -> anyhow::Result<Url> {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    Ok(Url::parse(&format!("http://{}/readyz", SocketAddr::new(ip, listen.port())))?)
}

async fn ask(url: &Url) -> anyhow::Result<(u16, String)> {
    if url.scheme() != "http" {
        bail!("{url} does not begin with http://: the admin listener speaks plain HTTP");
    }
    let host = url.host_str().context("the address names no host")?;
    let port = url.port_or_known_default().unwrap_or(80);
    // A URL has brackets around an IPv6 address; a socket address has none.
    let dial = host.trim_start_matches('[').trim_end_matches(']');
    let mut stream =
        TcpStream::connect((dial, port)).await.with_context(|| format!("cannot connect to {host}:{port}"))?;
    let request = format!("GET {} HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n\r\n", url.path());
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
        let url = |listen: &str| readyz(listen.parse().unwrap()).unwrap().to_string();
        assert_eq!(url("0.0.0.0:9464"), "http://127.0.0.1:9464/readyz");
        assert_eq!(url("[::]:9464"), "http://[::1]:9464/readyz");
        assert_eq!(url("10.1.2.3:1"), "http://10.1.2.3:1/readyz");
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
