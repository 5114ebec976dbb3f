//! Uses a renewed certificate of the public listener without a restart.
//!
//! Guarantees: a pair that cannot be used leaves the old one in use, and the log says so once for each content of the files.
//! Not responsible for: reading the files (`tls/server.rs`).

use std::time::Duration;

use super::file_watch::FileWatch;
use crate::tasks::CancellationToken;
use crate::tls::{CertificateExpiry, ServerTls};

/// How often the files are looked at. A change takes effect after two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a certificate that ends soon is reported.
const REMIND_AFTER_LOOKS: u32 = 24 * 3600;

/// Watches the files until the cancellation.
pub(super) async fn run(tls: ServerTls, stop: CancellationToken) -> Result<(), String> {
    let mut watch = FileWatch::default();
    watch.follow(tls.paths());
    let mut looks = 0_u32;
    loop {
        if looks.is_multiple_of(REMIND_AFTER_LOOKS) {
            remind(tls.expiry());
        }
        looks = looks.wrapping_add(1);
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        if !watch.look().await {
            continue;
        }
        match tls.reload() {
            Ok(false) => {}
            Ok(true) => {
                let expiry = tls.expiry();
                let until = expiry.as_ref().map(CertificateExpiry::day);
                tracing::info!(until, "ingress.tls: a new certificate is in use");
                remind(expiry);
            }
            Err(problem) => {
                let reason = problem.to_string();
                tracing::error!(
                    reason,
                    "ingress.tls: the files cannot be used, so the old certificate stays"
                );
            }
        }
    }
}

fn remind(expiry: Option<CertificateExpiry>) {
    let Some(expiry) = expiry.filter(|expiry| expiry.is_near(crate::clock::machine())) else { return };
    let (subject, until) = (&expiry.subject, expiry.day());
    if expiry.not_after < crate::clock::machine() {
        tracing::error!(subject, until, "ingress.tls.cert_file has expired: callers refuse it");
    } else {
        tracing::warn!(subject, until, "renew ingress.tls.cert_file");
    }
}
