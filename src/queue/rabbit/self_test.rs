//! Checks for operators before they rely on a broker: its version, and whether its exchanges route messages.
//!
//! Guarantees: no message enters a queue of Causeway. The probe messages go to a temporary queue that is deleted after the
//! check; in any other queue they would expire. lapin does not show the server properties of the broker, so this file reads
//! the first frame itself.
//! Not responsible for: judging the results (`cli/check.rs`).

use std::net::SocketAddr;

use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::connect::BrokerAddress;
use super::names::Exchange;
use super::topology::{ANSWER_TIMEOUT, code};
use super::{RabbitError, RabbitQueue, RabbitSettings, connect, rights, within};
use crate::queue::QueueError;
use crate::tls::{self, TlsFault, TlsFiles};

/// The largest first frame that is read. A broker sends little before the login.
const GREETING_MAX: u32 = 16 * 1024;
const METHOD_FRAME: u8 = 1;
/// A running majority records a change within milliseconds; a broker under load may take a second.
const COMMIT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(8);

/// The reason why a broker did not greet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GreetingError {
    /// The reason for a person.
    pub reason: String,
    /// The fault if TLS was the reason.
    pub tls: Option<TlsFault>,
}

/// The version that the broker reports, such as `4.3.6`; `None` if the broker reports none. The first address that
/// greets counts.
pub async fn version(settings: &RabbitSettings) -> Result<Option<String>, GreetingError> {
    let (addresses, mut failures) = connect::addresses(settings).await;
    let mut fault = None;
    for BrokerAddress { uri, address } in addresses {
        let place = format!("{}:{}", uri.authority.host, address.port());
        match tokio::time::timeout(2 * connect::TCP_TIMEOUT, greeting(&uri, address, &settings.tls)).await {
            Ok(Ok(frame)) => return Ok(property(&frame, b"version")),
            Ok(Err(error)) => {
                failures.push(format!("{place}: {}", error.reason));
                fault = fault.or(error.tls);
            }
            Err(_) => failures.push(format!("{place}: nothing speaks AMQP there")),
        }
    }
    let reason = if failures.is_empty() { "the host has no address".to_owned() } else { failures.join("; ") };
    Err(GreetingError { reason, tls: fault })
}

/// The server properties of `connection.start`, the first frame of a broker. A fault says whether the other scheme would
/// have been right.
async fn greeting(uri: &AMQPUri, address: SocketAddr, files: &TlsFiles) -> Result<Vec<u8>, GreetingError> {
    let host = &uri.authority.host;
    if uri.scheme == AMQPScheme::AMQP {
        let error = match plain(address).await {
            Ok(frame) => return Ok(frame),
            Err(error) => error,
        };
        let is_refused = error.kind() == std::io::ErrorKind::ConnectionRefused;
        if !is_refused && connect::speaks_tls(address, host).await {
            let reason = "the address speaks TLS".to_owned();
            return Err(GreetingError { reason, tls: Some(TlsFault::TlsNeeded) });
        }
        return Err(GreetingError { reason: error.to_string(), tls: None });
    }
    let answer = match connect::handshake(address, host, files).await {
        Ok(mut stream) => first_frame(&mut stream).await,
        Err(error) => Err(error),
    };
    let error = match answer {
        Ok(frame) => return Ok(frame),
        Err(error) => error,
    };
    match tls::handshake_fault(&error) {
        // RabbitMQ closes a connection that begins with TLS on its plain port, sometimes without an answer.
        Some((TlsFault::NotTls | TlsFault::Other, _)) if plain(address).await.is_ok() => {
            let reason = "the address speaks AMQP without TLS".to_owned();
            Err(GreetingError { reason, tls: Some(TlsFault::NotTls) })
        }
        Some((fault, detail)) => {
            Err(GreetingError { reason: format!("TLS failed: {detail}"), tls: Some(fault) })
        }
        None => Err(GreetingError { reason: error.to_string(), tls: None }),
    }
}

async fn plain(address: SocketAddr) -> std::io::Result<Vec<u8>> {
    first_frame(&mut TcpStream::connect(address).await?).await
}

async fn first_frame(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<Vec<u8>> {
    stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
    stream.flush().await?;
    // Frame type, channel and frame length; class, method and protocol version; then the length of the table.
    let mut head = [0; 17];
    stream.read_exact(&mut head).await?;
    if head[0] != METHOD_FRAME {
        return Err(std::io::Error::other("the answer is not AMQP"));
    }
    let length = u32::from_be_bytes([head[13], head[14], head[15], head[16]]).min(GREETING_MAX);
    let mut table = vec![0; usize::try_from(length).unwrap_or(0)];
    stream.read_exact(&mut table).await?;
    Ok(table)
}

/// A text value of an AMQP table. The search ends at the first value that is not a text, a table or a boolean.
fn property(mut table: &[u8], wanted: &[u8]) -> Option<String> {
    while let Some((length, rest)) = table.split_first() {
        let (name, rest) = rest.split_at_checked(usize::from(*length))?;
        let (kind, rest) = rest.split_first()?;
        if *kind == b't' {
            table = rest.get(1..)?;
            continue;
        }
        if !matches!(kind, b'S' | b'F') {
            return None;
        }
        let (size, rest) = rest.split_first_chunk::<4>()?;
        let (value, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*size)).ok()?)?;
        if name == wanted && *kind == b'S' {
            return String::from_utf8(value.to_vec()).ok();
        }
        table = rest;
    }
    None
}

impl RabbitQueue {
    /// Sends one message through each exchange to a temporary queue, and checks that both arrive. Returns `false` if the
    /// user may publish but not make a temporary queue, or not bind a queue to the exchanges.
    pub(in crate::queue) async fn routes(&self) -> Result<bool, QueueError> {
        let connection = self.connections.publishing();
        let connection =
            connection.ok_or_else(|| QueueError::Unavailable("no connection to the broker".into()))?;
        let exchanges =
            [Exchange::Messages, Exchange::DeadLetters].map(|exchange| self.names().exchange(exchange));
        for exchange in &exchanges {
            if let Some(reason) = rights::refusal(&connection, exchange).await? {
                let reason = format!("{reason}: the user needs the right to write to {}", self.names().any());
                return Err(QueueError::Refused(reason));
            }
        }
        let channel = within(ANSWER_TIMEOUT, connection.create_channel()).await?;
        let routed = match temporary(&channel).await {
            Ok(queue) => through(&channel, queue, &exchanges).await,
            Err(RabbitError::Lapin(error)) if code(&error) == Some(403) => Ok(false),
            Err(error) => Err(error.into()),
        };
        // If the broker has closed the channel, this call fails without harm.
        let _ = within(ANSWER_TIMEOUT, channel.close(200, "looked".into())).await;
        routed
    }
}

impl RabbitQueue {
    /// Takes a message from the queue of unroutable messages, which is normally empty, and gives it back. A quorum queue
    /// answers only after a majority of its nodes has recorded this. The broker may close the connection later if no
    /// majority runs, so only a tool may ask. `None` if the user may not read the queue.
    pub(in crate::queue) async fn commits(&self) -> Result<Option<bool>, QueueError> {
        let connection = self.connections.publishing();
        let connection =
            connection.ok_or_else(|| QueueError::Unavailable("no connection to the broker".into()))?;
        let channel = within(ANSWER_TIMEOUT, connection.create_channel()).await?;
        let get = channel.basic_get(self.names().unroutable().into(), BasicGetOptions { no_ack: false });
        let committed = match within(COMMIT_TIMEOUT, get).await {
            Ok(_) => Some(true),
            Err(RabbitError::Silent(_)) => return Ok(Some(false)),
            Err(RabbitError::Lapin(error)) if matches!(code(&error), Some(403 | 404)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Closing the channel gives the message back.
        within(ANSWER_TIMEOUT, channel.close(200, "asked".into())).await?;
        Ok(committed)
    }
}

/// Makes the temporary queue.
async fn temporary(channel: &Channel) -> Result<ShortString, RabbitError> {
    let own = QueueDeclareOptions::exclusive().auto_delete();
    within(ANSWER_TIMEOUT, channel.confirm_select(ConfirmSelectOptions::default())).await?;
    let declare = channel.queue_declare("".into(), own, FieldTable::default());
    Ok(within(ANSWER_TIMEOUT, declare).await?.name().clone())
}

async fn through(channel: &Channel, queue: ShortString, exchanges: &[String; 2]) -> Result<bool, QueueError> {
    let key = format!("check.{}", uuid::Uuid::new_v4().simple());
    for exchange in exchanges {
        let bind = channel.queue_bind(
            queue.clone(),
            exchange.as_str().into(),
            key.as_str().into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        match within(ANSWER_TIMEOUT, bind).await {
            // A binding needs the right to read the exchange. The broker has closed the channel, and the queue goes with the
            // connection.
            Err(RabbitError::Lapin(error)) if code(&error) == Some(403) => return Ok(false),
            bound => bound?,
        }
        send(channel, exchange, &key).await?;
    }
    let delete = channel.queue_delete(queue, QueueDeleteOptions::default());
    let arrived = within(ANSWER_TIMEOUT, delete).await?;
    if arrived == 2 { Ok(true) } else { Err(unroutable(&format!("{arrived} of 2 messages arrived"))) }
}

async fn send(channel: &Channel, exchange: &str, key: &str) -> Result<(), QueueError> {
    let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let brief = BasicProperties::default().with_expiration("30000".into());
    let confirmed = within(ANSWER_TIMEOUT, async {
        channel.basic_publish(exchange.into(), key.into(), mandatory, b"check", brief).await?.await
    });
    match confirmed.await {
        Ok(Confirmation::Ack(None)) => Ok(()),
        Ok(_) => Err(unroutable(&format!("the exchange {exchange} returned or refused a message"))),
        Err(RabbitError::Silent(limit)) => {
            Err(unroutable(&format!("the exchange {exchange} confirmed no message within {limit:?}")))
        }
        Err(error) => Err(unroutable(&format!("publishing to the exchange {exchange} failed: {error}"))),
    }
}

fn unroutable(why: &str) -> QueueError {
    QueueError::Mismatch(why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found_among_the_properties() {
        let mut table = Vec::new();
        let mut put = |name: &str, kind: u8, value: &[u8]| {
            table.push(u8::try_from(name.len()).unwrap());
            table.extend(name.as_bytes());
            table.push(kind);
            if kind != b't' {
                table.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
            }
            table.extend(value);
        };
        put("capabilities", b'F', b"\x07versiont\x01");
        put("flag", b't', &[1]);
        put("product", b'S', b"RabbitMQ");
        put("version", b'S', b"4.3.6");
        assert_eq!(property(&table, b"version").as_deref(), Some("4.3.6"));
        assert_eq!(property(&table, b"platform"), None);
        for cut in 0..table.len() {
            // A truncated frame must not panic.
            let _ = property(&table[..cut], b"version");
        }
    }
}
