//! One attempt to reach the broker.
//!
//! Guarantees: every host of the URL and every address of a host is tried. An address that does not answer within
//! [`STAGGER`] no longer delays the next one. An attempt that is given up leaves no thread and no socket. lapin's
//! `connect` has no time limit of its own, but its thread ends when the socket is shut down.
//! Not responsible for: trying again (`connections.rs`).

use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use lapin::tcp::{AsyncTcpStream, RustlsConnector};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{RabbitError, RabbitSettings, within};
use crate::queue::QueueError;
use crate::tls::{self, TlsFault, TlsFiles, TlsPeer};

/// The time limit for one TCP connection, and for the addresses of one name.
pub(super) const TCP_TIMEOUT: Duration = Duration::from_secs(3);
/// The time limit for one address: TCP, TLS and login. The login is slow if the broker asks a directory service.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// After this time the next address is tried, in parallel with this one.
const STAGGER: Duration = Duration::from_secs(3);
/// lapin reserves 64 frames of this size for each connection: half of the default size saves 4 MiB for each of two
/// connections. The largest headers, the history of a dead letter, must fit into one frame (`wire.rs`).
const FRAME_BYTES: u32 = 64 * 1024;

/// A host of the URL with one of its addresses.
pub(super) struct BrokerAddress {
    pub(super) uri: AMQPUri,
    pub(super) address: SocketAddr,
}

/// Connects to the first address that answers. `last` is the address of the last connection; it is tried first, and
/// replaced by the address that answered. Errors never contain the password of the URL.
pub(super) async fn connect(
    settings: &RabbitSettings,
    purpose: &str,
    last: &Mutex<Option<SocketAddr>>,
) -> Result<Connection, RabbitError> {
    let (mut addresses, mut failures) = addresses(settings).await;
    let known = *last.lock().unwrap_or_else(PoisonError::into_inner);
    // The sort is stable: all others keep the order of the URL.
    addresses.sort_by_key(|one| Some(one.address) != known);
    let role = settings.usage.as_str();
    let name = format!("causeway {role} {purpose} {}", settings.worker);
    let mut waiting = addresses.into_iter();
    let mut attempts = FuturesUnordered::new();
    loop {
        if let Some(BrokerAddress { uri, address }) = waiting.next() {
            let name = &name;
            attempts.push(async move {
                (place(&uri, address), address, login(uri, address, name, &settings.tls).await)
            });
        }
        let next = tokio::select! {
            next = attempts.next() => next,
            () = tokio::time::sleep(STAGGER), if waiting.len() > 0 => continue,
        };
        match next {
            Some((_, address, Ok(connection))) => {
                *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
                return Ok(connection);
            }
            Some((place, _, Err(reason))) => failures.push(format!("{place}: {reason}")),
            None => return Err(RabbitError::Fatal(QueueError::Unavailable(failures.join("; ")))),
        }
    }
}

/// All addresses of all hosts, in the order of the URL, and the hosts without an address.
pub(super) async fn addresses(settings: &RabbitSettings) -> (Vec<BrokerAddress>, Vec<String>) {
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for (uri, addresses) in join_all(uris(settings).into_iter().map(resolve)).await {
        match addresses {
            Ok(addresses) => {
                found
                    .extend(addresses.into_iter().map(|address| BrokerAddress { uri: uri.clone(), address }));
            }
            Err(reason) => failures.push(format!("{}: {reason}", uri.authority.host)),
        }
    }
    (found, failures)
}

fn uris(settings: &RabbitSettings) -> Vec<AMQPUri> {
    let heartbeat = u16::try_from(settings.heartbeat.as_secs()).unwrap_or(u16::MAX).max(1);
    let mut uris = settings.url.hosts();
    for uri in &mut uris {
        uri.query.heartbeat = Some(heartbeat);
        uri.query.frame_max = uri.query.frame_max.or(Some(FRAME_BYTES));
    }
    uris
}

async fn resolve(uri: AMQPUri) -> (AMQPUri, Result<Vec<SocketAddr>, String>) {
    let asked = tokio::net::lookup_host((uri.authority.host.as_str(), uri.authority.port));
    let addresses = match tokio::time::timeout(TCP_TIMEOUT, asked).await {
        Ok(Ok(addresses)) => Ok(addresses.collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("the name server did not answer within {TCP_TIMEOUT:?}")),
    };
    (uri, addresses)
}

/// The address as in the URL, with the address of a name.
fn place(uri: &AMQPUri, address: SocketAddr) -> String {
    let host = &uri.authority.host;
    if *host == address.ip().to_string() {
        return address.to_string();
    }
    format!("{host}:{} ({})", address.port(), address.ip())
}

async fn login(
    uri: AMQPUri,
    address: SocketAddr,
    name: &str,
    files: &TlsFiles,
) -> Result<Connection, String> {
    let (scheme, host) = (uri.scheme.clone(), uri.authority.host.clone());
    let reason = match within(CONNECT_TIMEOUT, pin!(open(uri, address, name, files))).await {
        Ok(connection) => return Ok(connection),
        Err(RabbitError::Silent(limit)) => format!("nothing speaks AMQP there within {limit:?}"),
        Err(RabbitError::Lapin(error)) => match error.kind() {
            lapin::ErrorKind::IOError(inner) if scheme == AMQPScheme::AMQPS => match tls::fault_of(inner) {
                Some((_, detail)) => return Err(format!("TLS failed: {detail}")),
                None => return Err(error.to_string()),
            },
            lapin::ErrorKind::ProtocolError(_) => return Err(error.to_string()),
            _ => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    if scheme == AMQPScheme::AMQP && speaks_tls(address, &host).await {
        return Err("the address speaks TLS: it needs amqps://".to_owned());
    }
    Err(reason)
}

/// Connects over TCP and TLS, then logs in.
async fn open(uri: AMQPUri, address: SocketAddr, name: &str, files: &TlsFiles) -> lapin::Result<Connection> {
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let runtime = lapin::runtime::default_runtime()?;
    let open = AsyncTcpStream::connect(&runtime, address);
    let stream = match tokio::time::timeout(TCP_TIMEOUT, open).await {
        Ok(stream) => stream?,
        Err(_) => return Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    };
    let abort = match &stream {
        AsyncTcpStream::Plain(socket) => ShutdownOnDrop(Some(socket.get_ref().as_fd().try_clone_to_owned()?)),
        _ => ShutdownOnDrop(None),
    };
    let stream = match uri.scheme {
        AMQPScheme::AMQP => stream,
        // The files are read for each connection, so a renewed certificate needs no restart.
        AMQPScheme::AMQPS => {
            let connector = RustlsConnector::from(client_config(files)?);
            stream.into_rustls(&connector, &uri.authority.host).await?
        }
    };
    let stream = Mutex::new(Some(stream));
    let open = async move |_: AMQPUri, _| {
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        stream.ok_or_else(|| lapin::Error::from(std::io::Error::from(std::io::ErrorKind::ConnectionAborted)))
    };
    let connection = Connection::connector(uri, runtime, open, properties).await?;
    abort.disarm();
    Ok(connection)
}

fn client_config(files: &TlsFiles) -> std::io::Result<rustls::ClientConfig> {
    // Another library may have chosen the provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tls::config(files, TlsPeer::Broker).map_err(|problem| std::io::Error::other(problem.to_string()))
}

/// A TLS connection without a login.
pub(super) async fn handshake(
    address: SocketAddr,
    host: &str,
    files: &TlsFiles,
) -> std::io::Result<TlsStream<TcpStream>> {
    let connector = TlsConnector::from(Arc::new(client_config(files)?));
    let name = ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
    connector.connect(name, TcpStream::connect(address).await?).await
}

/// Whether a TLS server answers at this address. Its certificate does not matter.
pub(super) async fn speaks_tls(address: SocketAddr, host: &str) -> bool {
    let files = TlsFiles::default();
    let tried = handshake(address, host, &files);
    match tokio::time::timeout(TCP_TIMEOUT, tried).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => tls::fault_of(&error).is_some_and(|(fault, _)| fault != TlsFault::NotTls),
        Err(_) => false,
    }
}

/// A second handle of a socket. Dropping it ends the connection: lapin's thread reads the end and stops.
struct ShutdownOnDrop(Option<std::os::fd::OwnedFd>);

impl ShutdownOnDrop {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for ShutdownOnDrop {
    fn drop(&mut self) {
        if let Some(socket) = self.0.take() {
            // An error means that the connection has already ended.
            let _ = std::net::TcpStream::from(socket).shutdown(Shutdown::Both);
        }
    }
}
