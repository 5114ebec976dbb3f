//! Watches the certificates of the servers and our own ones, for the metrics, the log, `check` and `status`.
//!
//! Guarantees: a certificate that expires within [`WARNING`] is logged at level WARN once, and again each day. If a peer has
//! several hosts, the metric shows the certificate that expires first. The watch never ends the process.
//! Not responsible for: how a certificate becomes known (`tls/peers.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret;
use tokio::time::Instant;
use url::Url;

use crate::clock;
use crate::config::{DirectoryConfig, Settings};
use crate::conversation::Directory;
use crate::tasks::CancellationToken;
use crate::telemetry::Metrics;
use crate::tls::{self, CertificateExpiry, TlsFiles, TlsPeer};

/// A certificate that expires within this time needs a person, as in the alert `CausewayCertificateExpires`.
const WARNING: SignedDuration = SignedDuration::from_hours(14 * 24);
const EVERY: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_secs(3600);
const REMIND_EVERY: Duration = Duration::from_secs(24 * 3600);

/// A certificate with its use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownCertificate {
    /// What the connections lead to.
    pub peer: TlsPeer,
    /// The host that showed the certificate. `None` for our own certificate.
    pub host: Option<String>,
    /// The subject and the expiry.
    pub expiry: CertificateExpiry,
}

impl KnownCertificate {
    /// The label `kind`.
    pub const fn kind(&self) -> &'static str {
        if self.host.is_some() { "server" } else { "client" }
    }

    /// Whether a person should renew the certificate now.
    pub fn expires_soon(&self) -> bool {
        expires_soon(self.expiry.not_after)
    }
}

fn expires_soon(at: Timestamp) -> bool {
    at.duration_since(clock::machine()) < WARNING
}

/// The certificates that this process knows: those that it has seen, and those of the settings.
pub fn certificates(settings: &Settings) -> Vec<KnownCertificate> {
    let server = |seen: tls::PeerCertificate| KnownCertificate {
        peer: seen.peer,
        host: Some(seen.host),
        expiry: seen.expiry,
    };
    let directory = directory_identity(settings);
    let own = [
        (TlsPeer::ServiceNow, &settings.network.servicenow.tls),
        (TlsPeer::Broker, &settings.queue.tls),
        (TlsPeer::Directory, &directory),
    ];
    let client = |(peer, files): (TlsPeer, &TlsFiles)| {
        Some(KnownCertificate { peer, host: None, expiry: files.client_expiry()? })
    };
    tls::seen().into_iter().map(server).chain(own.into_iter().filter_map(client)).collect()
}

/// The settings keep the client certificate for PostgreSQL in the URL.
fn directory_identity(settings: &Settings) -> TlsFiles {
    let DirectoryConfig::Postgres(url) = &settings.directory else { return TlsFiles::default() };
    let url = Url::parse(url.get().expose_secret()).ok();
    let path = url.and_then(|url| {
        let found = url.query_pairs().find(|(name, _)| name == "sslcert");
        found.map(|(_, path)| PathBuf::from(path.into_owned()))
    });
    TlsFiles { client: path.map(|path| (path.clone(), path)), ..TlsFiles::default() }
}

/// Shows the certificates again and again.
pub(super) async fn watch(
    settings: Arc<Settings>,
    directory: Option<Directory>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<(), String> {
    let (mut shown, mut told) = (BTreeSet::new(), BTreeMap::new());
    let mut looked: Option<Instant> = None;
    loop {
        if let Some(directory) = &directory
            && looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY)
        {
            looked = Some(Instant::now());
            directory.look_at_certificate().await;
        }
        let known = certificates(&settings);
        show(&known, &mut shown, &metrics);
        tell(&known, &mut told);
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

type Labels = [String; 3];

fn show(known: &[KnownCertificate], shown: &mut BTreeSet<Labels>, metrics: &Metrics) {
    let mut first: BTreeMap<(TlsPeer, &str), &CertificateExpiry> = BTreeMap::new();
    for one in known {
        let earliest = first.entry((one.peer, one.kind())).or_insert(&one.expiry);
        if one.expiry.not_after < earliest.not_after {
            *earliest = &one.expiry;
        }
    }
    let mut now = BTreeSet::new();
    for ((peer, kind), expiry) in first {
        let labels = [peer.as_str().to_owned(), kind.to_owned(), expiry.subject.clone()];
        let seconds = expiry.not_after.as_second();
        metrics.certificate_expiry.with_label_values(&labels).set(seconds);
        now.insert(labels);
    }
    for gone in shown.difference(&now) {
        // A series that does not exist needs no removal.
        let _ = metrics.certificate_expiry.remove_label_values(gone);
    }
    *shown = now;
}

fn tell(known: &[KnownCertificate], told: &mut BTreeMap<String, Instant>) {
    for one in known.iter().filter(|one| one.expires_soon()) {
        let (peer, host) = (one.peer.as_str(), one.host.as_deref().unwrap_or("our own"));
        let (subject, until) = (&one.expiry.subject, one.expiry.day());
        let key = format!("{peer} {host} {until}");
        if told.get(&key).is_none_or(|at| at.elapsed() >= REMIND_EVERY) {
            tracing::warn!(peer, host, subject, until, "a certificate expires soon: renew it");
            told.insert(key, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(peer: TlsPeer, host: Option<&str>, days: i64) -> KnownCertificate {
        let not_after = clock::machine() + SignedDuration::from_hours(days * 24);
        let expiry = CertificateExpiry { subject: format!("CN={days}"), not_after };
        KnownCertificate { peer, host: host.map(str::to_owned), expiry }
    }

    #[test]
    fn two_weeks_are_soon() {
        assert!(known(TlsPeer::Xo, None, 13).expires_soon());
        assert!(known(TlsPeer::Xo, None, -1).expires_soon());
        assert!(!known(TlsPeer::Xo, None, 15).expires_soon());
    }

    #[test]
    fn the_first_to_expire_is_shown_and_an_old_one_goes() {
        let metrics = Metrics::new("none").unwrap();
        let mut shown = BTreeSet::new();
        let hosts = [
            known(TlsPeer::Xo, Some("a"), 40),
            known(TlsPeer::Xo, Some("b"), 30),
            known(TlsPeer::Xo, None, 20),
        ];
        show(&hosts, &mut shown, &metrics);
        let labels = |kind: &str, subject: &str| ["xo".to_owned(), kind.to_owned(), subject.to_owned()];
        assert_eq!(shown, [labels("server", "CN=30"), labels("client", "CN=20")].into());
        show(&hosts[..1], &mut shown, &metrics);
        assert_eq!(shown, [labels("server", "CN=40")].into());
        let text = metrics.render().unwrap();
        assert!(text.contains("CN=40") && !text.contains("CN=30"), "{text}");
    }
}
