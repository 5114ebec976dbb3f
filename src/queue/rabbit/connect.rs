//! One attempt to reach the broker.
//!
//! lapin's `connect` has no timeout of its own, and abandoning it leaks a thread and a socket. So a plain TCP connection
//! with the protocol header probes the port first. lapin connects only if a broker answers the probe.

use std::time::Duration;

use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties};
use secrecy::ExposeSecret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{RabbitError, RabbitSettings, within};
use crate::queue::QueueError;

pub(super) const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// lapin reserves 64 frames of this size for each connection: half of the default size saves 4 MiB for each of two
/// connections. The largest headers, the history of a dead letter, must fit into one frame and are far smaller.
const FRAME_BYTES: u32 = 64 * 1024;

/// Connects to the broker. Errors never contain the password of the URL.
pub(super) async fn connect(settings: &RabbitSettings, purpose: &str) -> Result<Connection, RabbitError> {
    let uri = address(settings)?;
    probe(&uri).await.map_err(|reason| RabbitError::Fatal(QueueError::Unavailable(reason)))?;
    let name = format!("causeway {purpose} {}", settings.worker);
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    within(CONNECT_TIMEOUT, Connection::connect_uri(uri, properties)).await
}

pub(super) fn address(settings: &RabbitSettings) -> Result<AMQPUri, RabbitError> {
    // The parser's error may repeat the URL, so it is not shown.
    let mut uri: AMQPUri = settings.url.expose_secret().parse().map_err(|_| {
        RabbitError::Fatal(QueueError::Mismatch(
            "queue.url is not an AMQP URL: amqp://user:password@host:5672/%2f".into(),
        ))
    })?;
    if uri.vhost.is_empty() {
        uri.vhost = "/".into();
    }
    let seconds = u16::try_from(settings.heartbeat.as_secs()).unwrap_or(u16::MAX).max(1);
    uri.query.heartbeat = Some(seconds);
    uri.query.frame_max = uri.query.frame_max.or(Some(FRAME_BYTES));
    Ok(uri)
}

async fn probe(uri: &AMQPUri) -> Result<(), String> {
    let target = (uri.authority.host.as_str(), uri.authority.port);
    let place = format!("{}:{}", target.0, target.1);
    let asked = async {
        let mut stream = TcpStream::connect(target).await?;
        if uri.scheme == AMQPScheme::AMQP {
            stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
            stream.read_exact(&mut [0; 1]).await?;
        }
        Ok::<(), std::io::Error>(())
    };
    match tokio::time::timeout(PROBE_TIMEOUT, asked).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("{place}: {error}")),
        Err(_) => Err(format!("{place}: nothing speaks AMQP there within {PROBE_TIMEOUT:?}")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::message::{Destination, Destinations};
    use crate::queue::QueueTuning;
    use crate::queue::rabbit::RabbitUse;

    fn vhost(url: &str) -> String {
        let tuning = QueueTuning {
            destinations: Destinations::new([Destination::ServiceNow, Destination::Xo]),
            partitions: 1,
            prefetch: 1,
            publish_timeout: Duration::from_secs(5),
        };
        let (heartbeat, worker) = (Duration::from_secs(7), String::new());
        let usage = RabbitUse::Publish;
        let settings = RabbitSettings { url: url.into(), heartbeat, tuning, usage, worker };
        let uri = address(&settings).unwrap();
        assert_eq!(uri.query.heartbeat, Some(7), "ours, not the server's minute");
        uri.vhost
    }

    #[test]
    fn no_vhost_is_the_default_one() {
        for url in ["amqp://u:p@host:5672", "amqp://u:p@host:5672/", "amqp://u:p@host:5672/%2f"] {
            assert_eq!(vhost(url), "/", "{url}");
        }
        assert_eq!(vhost("amqp://u:p@host:5672/causeway"), "causeway");
    }
}
