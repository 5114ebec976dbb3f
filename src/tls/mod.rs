//! TLS of the listeners (`server.rs`), and TLS toward the platforms, the broker and the database: the trusted certificate authorities, our own certificate, and the
//! reason of a failure.
//!
//! Guarantees: the authorities of the system are always trusted, those of the settings in addition. A server without a
//! trusted, valid certificate for its name is refused. The reason names the certificate, except for PostgreSQL, whose client
//! verifies by itself. Not responsible for: reading files (`certificates.rs`).

mod certificates;
mod peers;
mod server;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError,
    RootCertStore, SignatureScheme,
};

use certificates::{CertificateFacts, IdentityProblem, day};
pub(crate) use peers::look_at_postgres;
pub use peers::{PeerCertificate, TlsPeer, seen};
pub use server::{ServerTls, ServerTlsFiles};

/// The files for TLS that the settings name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate authorities in PEM, trusted in addition to the system's authorities.
    pub authorities: Vec<PathBuf>,
    /// Our own certificate with its chain, and its key. One file may hold both.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// A file that cannot be used. Each value is the reason, with the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsFileProblem {
    /// A file of [`TlsFiles::authorities`].
    Authorities(String),
    /// The certificate of [`TlsFiles::client`].
    ClientCertificate(String),
    /// The key of [`TlsFiles::client`].
    ClientKey(String),
}

impl fmt::Display for TlsFileProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Authorities(reason) | Self::ClientCertificate(reason) | Self::ClientKey(reason) => {
                f.write_str(reason)
            }
        }
    }
}

/// What a failed handshake says if the remote side closed the connection.
pub const CLOSED: &str = "the remote side closed the connection during the handshake";

/// The reason why TLS failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsFault {
    /// No trusted authority issued the certificate.
    UnknownIssuer,
    /// The certificate is too old.
    Expired,
    /// The certificate is not valid yet.
    NotYetValid,
    /// The certificate is for other names.
    WrongName,
    /// The remote side does not speak TLS.
    NotTls,
    /// The remote side speaks TLS, and the settings ask for a connection without TLS.
    TlsNeeded,
    /// The remote side wants a client certificate, or another one.
    ClientCertificate,
    /// Anything else.
    Other,
}

/// A fault of a certificate with its description. rustls carries it inside its own error.
#[derive(Debug)]
struct CertificateFault {
    fault: TlsFault,
    detail: String,
}

impl fmt::Display for CertificateFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for CertificateFault {}

/// The expiry of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateExpiry {
    /// The name in the certificate.
    pub subject: String,
    /// The end of its validity.
    pub not_after: Timestamp,
}

impl CertificateExpiry {
    /// A certificate that expires within this time is reported.
    const WARNING: jiff::SignedDuration = jiff::SignedDuration::from_hours(30 * 24);

    /// Whether the certificate must be renewed soon.
    pub fn is_near(&self, now: Timestamp) -> bool {
        self.not_after.duration_since(now) < Self::WARNING
    }

    /// The last day of its validity.
    pub fn day(&self) -> String {
        day(self.not_after)
    }
}

impl TlsFiles {
    /// The expiry of the client certificate. `None` without a client certificate, or if the file is unreadable.
    pub fn client_expiry(&self) -> Option<CertificateExpiry> {
        let facts = certificates::facts(&self.client.as_ref()?.0)?;
        Some(CertificateExpiry { subject: facts.subject, not_after: facts.not_after })
    }

    /// Reads every file. Returns all problems.
    pub fn check(&self) -> Vec<TlsFileProblem> {
        let now = crate::clock::machine();
        let authorities =
            self.authorities.iter().filter_map(|path| certificates::authorities(path, now).err());
        let mut problems: Vec<_> = authorities.map(TlsFileProblem::Authorities).collect();
        if let Some((certificate, key)) = &self.client {
            problems
                .extend(certificates::identity(certificate, key, Some(now)).err().map(TlsFileProblem::from));
        }
        problems
    }
}

impl From<IdentityProblem> for TlsFileProblem {
    fn from(problem: IdentityProblem) -> Self {
        match problem {
            IdentityProblem::Certificate(reason) => Self::ClientCertificate(reason),
            IdentityProblem::Key(reason) => Self::ClientKey(reason),
        }
    }
}

/// The configuration of the connections of a client to this peer. TLS sessions are resumed between connections that share
/// it.
pub fn config(files: &TlsFiles, peer: TlsPeer) -> Result<ClientConfig, TlsFileProblem> {
    let now = crate::clock::machine();
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(system.certs);
    for path in &files.authorities {
        let found = certificates::authorities(path, now).map_err(TlsFileProblem::Authorities)?;
        roots.add_parsable_certificates(found);
    }
    if roots.is_empty() {
        // A machine without CA certificates can still run the demo over plain loopback HTTP.
        tracing::warn!("no CA certificates found: every https call will fail");
    }
    let roots = Arc::new(roots);
    let builder = ClientConfig::builder();
    // The verifier refuses an empty list. Without the verifier, each certificate is refused anyway.
    let verifier = WebPkiServerVerifier::builder(Arc::clone(&roots)).build().ok();
    let builder = match verifier {
        Some(inner) => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(NamingVerifier { inner, peer }))
        }
        None => builder.with_root_certificates(roots),
    };
    match &files.client {
        Some((certificate, key)) => {
            let identity = certificates::identity(certificate, key, Some(now))?;
            let failed = |error: Error| TlsFileProblem::ClientKey(format!("{}: {error}", key.display()));
            builder.with_client_auth_cert(identity.chain, identity.key).map_err(failed)
        }
        None => Ok(builder.with_no_client_auth()),
    }
}

/// The usual verifier, with errors that name the certificate. It records each certificate that it accepts.
#[derive(Debug)]
struct NamingVerifier {
    inner: Arc<WebPkiServerVerifier>,
    peer: TlsPeer,
}

impl ServerCertVerifier for NamingVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        if verified.is_ok() {
            peers::saw(self.peer, server_name, end_entity);
        }
        verified.map_err(|error| match error {
            Error::InvalidCertificate(error) => {
                let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).collect();
                let fault = named(&error, &chain, now);
                Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(fault))))
            }
            other => other,
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Describes a refused certificate. `chain` begins with the server's own one.
fn named(error: &CertificateError, chain: &[&CertificateDer<'_>], now: UnixTime) -> CertificateFault {
    let facts: Vec<_> = chain.iter().filter_map(|certificate| CertificateFacts::of(certificate)).collect();
    let now = i64::try_from(now.as_secs()).ok().and_then(|now| Timestamp::from_second(now).ok());
    let outdated = facts.iter().find(|facts| now.is_some_and(|now| facts.not_after < now));
    let early = facts.iter().find(|facts| now.is_some_and(|now| facts.not_before > now));
    let subject = facts.first().map_or("name unknown", |facts| facts.subject.as_str());
    let (fault, detail) = match (error, outdated, early) {
        (CertificateError::Expired | CertificateError::ExpiredContext { .. }, outdated, _) => {
            let which = outdated.map_or_else(
                || format!("the certificate ({subject}) has expired"),
                |facts| {
                    format!("the certificate ({}) has expired on {}", facts.subject, day(facts.not_after))
                },
            );
            (TlsFault::Expired, which)
        }
        (CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }, _, early) => {
            let from = early.map(|facts| format!(" before {}", day(facts.not_before))).unwrap_or_default();
            (TlsFault::NotYetValid, format!("the certificate ({subject}) is not valid{from}"))
        }
        (CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }, ..) => {
            (TlsFault::WrongName, wrong_name(error, subject))
        }
        (CertificateError::UnknownIssuer | CertificateError::BadSignature, ..) => {
            let words = match facts.last() {
                Some(last) => {
                    format!(
                        "the certificate ({subject}) is issued by ({}), which is not trusted",
                        last.issuer
                    )
                }
                None => "the certificate is issued by an authority that is not trusted".to_owned(),
            };
            (TlsFault::UnknownIssuer, words)
        }
        (other, ..) => (TlsFault::Other, format!("the certificate ({subject}) is not acceptable: {other}")),
    };
    CertificateFault { fault, detail }
}

fn wrong_name(error: &CertificateError, subject: &str) -> String {
    let CertificateError::NotValidForNameContext { expected, presented } = error else {
        return format!("the certificate ({subject}) is for another name");
    };
    // rustls writes a name as DnsName("a.example").
    let bare = |name: &String| name.split('"').nth(1).unwrap_or(name).to_owned();
    let clean = |name: &String| bare(name).chars().filter(|c| !c.is_control()).take(100).collect::<String>();
    let names: Vec<_> = presented.iter().take(5).map(clean).collect();
    let names = if names.is_empty() { "no name".to_owned() } else { names.join(", ") };
    format!("the certificate ({subject}) is for {names}, not for {}", expected.to_str())
}

/// Finds the fault in an error of a connection. `None` if TLS did not cause the error.
pub fn fault_of(error: &io::Error) -> Option<(TlsFault, String)> {
    error.get_ref()?.downcast_ref::<Error>().map(fault)
}

/// As [`fault_of`], for an error of a handshake: the remote side may have closed the connection.
pub fn handshake_fault(error: &io::Error) -> Option<(TlsFault, String)> {
    let is_end = matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset);
    fault_of(error).or_else(|| is_end.then(|| (TlsFault::Other, CLOSED.to_owned())))
}

/// Finds the fault in an error of rustls, with a description for an operator.
pub fn fault(error: &Error) -> (TlsFault, String) {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            match inner.downcast_ref::<CertificateFault>() {
                Some(found) => (found.fault, found.detail.clone()),
                None => (TlsFault::Other, "the certificate is not acceptable".to_owned()),
            }
        }
        // A client with its own verifier does not show the certificate.
        Error::InvalidCertificate(error) => {
            let fault = named(error, &[], UnixTime::now());
            (fault.fault, fault.detail)
        }
        Error::InvalidMessage(_) => (TlsFault::NotTls, "the answer is not TLS".to_owned()),
        Error::AlertReceived(
            alert @ (AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied),
        ) => {
            (TlsFault::ClientCertificate, format!("the client certificate is refused or missing ({alert:?})"))
        }
        Error::AlertReceived(alert) => (TlsFault::Other, format!("refused by the remote side ({alert:?})")),
        other => (TlsFault::Other, other.to_string()),
    }
}
