//! TLS of a listener: the certificate of this server, and the authorities of client certificates.
//!
//! Guarantees: a new certificate is used for new connections only if certificate and key are readable, belong together and are
//! valid now. Otherwise the old ones stay, so a renewal never leaves a gap. A start accepts a certificate that has expired,
//! because a process that does not start delivers nothing. A client certificate is optional in the handshake, but one that is
//! sent must be valid. Failed handshakes are logged at most once a minute.
//! Not responsible for: the time limit of a handshake (`http_server/server.rs`), which route demands a client certificate.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::certificates::{self, CertificateFacts};
use super::{CertificateExpiry, TlsFileProblem};
use crate::live::Live;

/// The pause between two log lines about failed handshakes.
const LOG_PAUSE: Duration = Duration::from_secs(60);

/// The files of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTlsFiles {
    /// The certificate of this server, followed by its chain, in PEM.
    pub certificate: PathBuf,
    /// Its private key in PEM.
    pub key: PathBuf,
    /// The authorities that issue client certificates. Without them no client certificate is asked for.
    pub client_authorities: Option<PathBuf>,
}

impl ServerTlsFiles {
    /// Whether the files can be used, whatever the period of the certificate.
    pub fn check(&self) -> Result<(), TlsFileProblem> {
        read(self, None).map(drop)
    }

    /// The expiry of the certificate; `None` if the file is unreadable.
    pub fn expiry(&self) -> Option<CertificateExpiry> {
        let facts = certificates::facts(&self.certificate)?;
        Some(CertificateExpiry { subject: facts.subject, not_after: facts.not_after })
    }
}

/// The certificates in use.
struct ServerIdentity {
    config: Arc<ServerConfig>,
    certificate: CertificateDer<'static>,
}

/// The failed handshakes since the last log line.
#[derive(Debug, Default)]
struct FailedHandshakes {
    count: u64,
    logged: Option<Instant>,
}

/// TLS of one listener. Clones share the certificates.
#[derive(Clone)]
pub struct ServerTls {
    files: ServerTlsFiles,
    identity: Live<ServerIdentity>,
    failed: Arc<Mutex<FailedHandshakes>>,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Reads the files.
    pub fn open(files: ServerTlsFiles) -> Result<Self, TlsFileProblem> {
        let identity = read(&files, None)?.into();
        Ok(Self { files, identity, failed: Arc::default() })
    }

    /// Reads the files again. Returns whether the certificate is another one. An error changes nothing.
    pub fn reload(&self) -> Result<bool, TlsFileProblem> {
        let identity = read(&self.files, Some(crate::clock::machine()))?;
        let is_new = identity.certificate != self.identity.get().certificate;
        self.identity.set(identity);
        Ok(is_new)
    }

    /// The files, to be watched.
    pub fn paths(&self) -> BTreeSet<PathBuf> {
        let ServerTlsFiles { certificate, key, client_authorities } = self.files.clone();
        [certificate, key].into_iter().chain(client_authorities).collect()
    }

    /// The expiry of the certificate in use.
    pub fn expiry(&self) -> Option<CertificateExpiry> {
        let facts = CertificateFacts::of(&self.identity.get().certificate)?;
        Some(CertificateExpiry { subject: facts.subject, not_after: facts.not_after })
    }

    /// The side of the server in one handshake.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.identity.get().config))
    }

    /// Counts a handshake that failed, and logs the reason from time to time.
    pub(crate) fn note_failure(&self, error: &io::Error) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.count += 1;
        if failed.logged.is_some_and(|at| at.elapsed() < LOG_PAUSE) {
            return;
        }
        let reason = super::handshake_fault(error).map_or_else(|| error.to_string(), |(_, reason)| reason);
        tracing::warn!(reason, failed = failed.count, "TLS handshake with a caller failed");
        *failed = FailedHandshakes { count: 0, logged: Some(Instant::now()) };
    }
}

/// Reads the files. With `now` the certificate must be valid at this time.
fn read(files: &ServerTlsFiles, now: Option<Timestamp>) -> Result<ServerIdentity, TlsFileProblem> {
    // The call fails only if a provider is already installed. That provider is sufficient.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let identity = certificates::identity(&files.certificate, &files.key, now)?;
    let builder = ServerConfig::builder();
    let builder = match &files.client_authorities {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let unusable = |reason: String| TlsFileProblem::Authorities(reason);
            let found = certificates::authorities(path, crate::clock::machine()).map_err(unusable)?;
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(found);
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build();
            let verifier = verifier.map_err(|error| unusable(format!("{}: {error}", path.display())))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let no_certificate =
        || TlsFileProblem::ClientCertificate(format!("{} is empty", files.certificate.display()));
    let certificate = identity.chain.first().cloned().ok_or_else(no_certificate)?;
    let failed =
        |error: rustls::Error| TlsFileProblem::ClientKey(format!("{}: {error}", files.key.display()));
    let mut config = builder.with_single_cert(identity.chain, identity.key).map_err(failed)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(ServerIdentity { config: Arc::new(config), certificate })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn write(files: &ServerTlsFiles, years: std::ops::Range<i32>, own_key: bool) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(years.start, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.end, 1, 1);
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        std::fs::write(&files.certificate, params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(&files.key, if own_key { &key } else { &other }.serialize_pem()).unwrap();
    }

    #[test]
    fn only_a_pair_that_is_valid_now_replaces_the_one_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let files =
            ServerTlsFiles { certificate: at("tls.crt"), key: at("tls.key"), client_authorities: None };
        write(&files, 2000..2001, true);
        let tls = ServerTls::open(files.clone()).unwrap();
        assert!(tls.expiry().unwrap().not_after < crate::clock::machine(), "a start accepts an expired one");
        let in_use = || tls.identity.get().certificate.clone();
        let first = in_use();
        for (years, own_key, says) in [
            (2000..2001, true, "has expired"),
            (2090..2091, true, "not valid before"),
            (2020..2090, false, "belong"),
        ] {
            write(&files, years, own_key);
            let reason = tls.reload().unwrap_err().to_string();
            assert!(reason.contains(says), "{reason}");
            assert_eq!(in_use(), first);
        }
        write(&files, 2020..2090, true);
        assert_eq!(tls.reload(), Ok(true));
        assert_ne!(in_use(), first);
        assert_eq!(tls.reload(), Ok(false));
        std::fs::write(&files.certificate, "").unwrap();
        assert!(tls.reload().is_err());
        assert!(tls.expiry().is_some());
    }
}
