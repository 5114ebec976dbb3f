//! The certificates by which TLS connections of this process live, so that an operator knows their expiry before they fail.
//!
//! Guarantees: each certificate of a server is taken from a handshake of this process that succeeded, so no connection is
//! opened for it. PostgreSQL's client shows no certificate, so [`look_at_postgres`] reads that one with a handshake of its own. A
//! certificate that was renewed is known after the next full handshake; a resumed session shows none. A certificate that
//! was not seen for [`FORGOTTEN_AFTER`] is left out.
//! Not responsible for: the reaction (`app/certificates.rs`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::CertificateExpiry;
use super::certificates::CertificateFacts;

/// A session may be resumed for a week, and shows no certificate then.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(8 * 24 * 3600);
/// The most certificates that are kept. A deployment has a handful of hosts.
const KEPT_MAX: usize = 64;
/// The request for TLS that begins a connection to PostgreSQL.
const POSTGRES_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// What a TLS connection leads to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsPeer {
    /// ServiceNow.
    ServiceNow,
    /// The Callback URL and the bots.
    Xo,
    /// `handoffs.events_url`
    Events,
    /// RabbitMQ.
    Broker,
    /// The management API of RabbitMQ.
    Management,
    /// PostgreSQL.
    Directory,
    /// A peer whose certificate is not watched.
    #[default]
    Other,
}

impl TlsPeer {
    /// The value of the label `peer`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ServiceNow => "servicenow",
            Self::Xo => "xo",
            Self::Events => "events",
            Self::Broker => "broker",
            Self::Management => "management",
            Self::Directory => "directory",
            Self::Other => "other",
        }
    }
}

/// A certificate of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The server.
    pub peer: TlsPeer,
    /// The name or the address of the server.
    pub host: String,
    /// The subject and the expiry.
    pub expiry: CertificateExpiry,
}

type SeenCertificates = BTreeMap<(TlsPeer, String), (CertificateExpiry, Instant)>;

static SEEN: Mutex<SeenCertificates> = Mutex::new(BTreeMap::new());

/// Records the certificate of a handshake that succeeded.
pub(super) fn saw(peer: TlsPeer, host: &ServerName<'_>, certificate: &CertificateDer<'_>) {
    if peer == TlsPeer::Other {
        return;
    }
    let Some(facts) = CertificateFacts::of(certificate) else { return };
    let expiry = CertificateExpiry { subject: facts.subject, not_after: facts.not_after };
    record((peer, host.to_str().into_owned()), expiry);
}

fn record(key: (TlsPeer, String), expiry: CertificateExpiry) {
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if seen.len() >= KEPT_MAX && !seen.contains_key(&key) {
        let oldest = seen.iter().min_by_key(|(_, (_, at))| *at).map(|(key, _)| key.clone());
        oldest.map(|key| seen.remove(&key));
    }
    seen.insert(key, (expiry, Instant::now()));
}

/// The certificates that this process has seen.
pub fn seen() -> Vec<PeerCertificate> {
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    seen.retain(|_, (_, at)| at.elapsed() < FORGOTTEN_AFTER);
    let known = |((peer, host), (expiry, _)): (&(TlsPeer, String), &(CertificateExpiry, Instant))| {
        PeerCertificate { peer: *peer, host: host.clone(), expiry: expiry.clone() }
    };
    seen.iter().map(known).collect()
}

/// Reads the certificate of a PostgreSQL server, if the server offers TLS. The certificate is not verified, and nothing is
/// sent.
pub(crate) async fn look_at_postgres(host: &str, port: u16) -> std::io::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut stream = TcpStream::connect((host, port)).await?;
    stream.write_all(&POSTGRES_REQUEST).await?;
    if stream.read_u8().await? != b'S' {
        return Ok(());
    }
    let verifier = Arc::new(ReadingVerifier { peer: TlsPeer::Directory });
    let config = ClientConfig::builder().dangerous().with_custom_certificate_verifier(verifier);
    let name = ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
    let connector = TlsConnector::from(Arc::new(config.with_no_client_auth()));
    let mut stream = connector.connect(name, stream).await?;
    stream.shutdown().await
}

/// Accepts each certificate and records it.
#[derive(Debug)]
struct ReadingVerifier {
    peer: TlsPeer,
}

impl ServerCertVerifier for ReadingVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        saw(self.peer, server_name, end_entity);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
