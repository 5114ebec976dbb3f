//! Reads the certificates and the private key that the settings name.
//!
//! Guarantees: each reason names the file and the action to take. No reason contains a part of a private key.
//! Not responsible for: the certificates of a remote side (`mod.rs`).

use std::path::Path;

use jiff::Timestamp;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The longest part of a certificate that an error repeats.
const NAME_MAX: usize = 100;

/// A certificate and its key, which prove our identity.
pub(crate) struct ClientIdentity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

/// The names and the period of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CertificateFacts {
    pub(crate) subject: String,
    pub(crate) issuer: String,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
}

impl CertificateFacts {
    /// `None` if the certificate is unreadable.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let time = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
        Some(Self {
            subject: short(&parsed.subject().to_string()),
            issuer: short(&parsed.issuer().to_string()),
            not_before: time(parsed.validity().not_before)?,
            not_after: time(parsed.validity().not_after)?,
        })
    }
}

/// One line without control characters, of limited length: the remote side chooses its names.
fn short(name: &str) -> String {
    let name: String = name.chars().filter(|c| !c.is_control()).take(NAME_MAX).collect();
    if name.is_empty() { "a certificate without a name".to_owned() } else { name }
}

/// Reads certificate authorities in PEM. Fails if every certificate has expired.
pub(crate) fn authorities(path: &Path, now: Timestamp) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = certificates(path)?;
    let (expired, valid): (Vec<_>, Vec<_>) = found.iter().partition(|(_, facts)| facts.not_after < now);
    if let (Some((_, newest)), true) =
        (expired.iter().max_by_key(|(_, facts)| facts.not_after), valid.is_empty())
    {
        return Err(format!(
            "{}: every certificate has expired, the last one on {} ({}): get the current ones from their issuer",
            path.display(),
            day(newest.not_after),
            newest.subject
        ));
    }
    Ok(found.into_iter().map(|(certificate, _)| certificate).collect())
}

/// Reads a certificate with its chain, and its private key, both in PEM. One file may hold both. With `now` the certificate
/// must be valid at this time.
pub(crate) fn identity(
    certificate: &Path,
    key: &Path,
    now: Option<Timestamp>,
) -> Result<ClientIdentity, IdentityProblem> {
    let chain = certificates(certificate).map_err(IdentityProblem::Certificate)?;
    let path = certificate.display();
    if let (Some((_, facts)), Some(now)) = (chain.first(), now) {
        let wrong = if facts.not_after < now {
            Some(format!("has expired on {}: renew it", day(facts.not_after)))
        } else if facts.not_before > now {
            Some(format!("is not valid before {}: check the clock of this machine", day(facts.not_before)))
        } else {
            None
        };
        if let Some(wrong) = wrong {
            return Err(IdentityProblem::Certificate(format!(
                "{path}: the certificate ({}) {wrong}",
                facts.subject
            )));
        }
    }
    let key_der = private_key(key).map_err(IdentityProblem::Key)?;
    let chain: Vec<_> = chain.into_iter().map(|(certificate, _)| certificate).collect();
    let provider = rustls::crypto::ring::default_provider();
    match rustls::sign::CertifiedKey::from_der(chain.clone(), key_der.clone_key(), &provider) {
        Ok(_) => Ok(ClientIdentity { chain, key: key_der }),
        Err(rustls::Error::InconsistentKeys(_)) => Err(IdentityProblem::Key(format!(
            "{}: the key does not belong to the first certificate of {path}",
            key.display()
        ))),
        Err(_) => Err(IdentityProblem::Key(format!("{}: this kind of key is not supported", key.display()))),
    }
}

/// The facts of the first certificate of a file.
pub(crate) fn facts(path: &Path) -> Option<CertificateFacts> {
    certificates(path).ok()?.into_iter().next().map(|(_, facts)| facts)
}

/// The file that is wrong, and the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum IdentityProblem {
    Certificate(String),
    Key(String),
}

/// The certificates of a PEM file, in order. Other sections are skipped.
fn certificates(path: &Path) -> Result<Vec<(CertificateDer<'static>, CertificateFacts)>, String> {
    let bytes = read(path)?;
    let mut found = Vec::new();
    for (number, certificate) in (1..).zip(CertificateDer::pem_slice_iter(&bytes)) {
        let certificate = certificate.map_err(|_| format!("{}: is damaged PEM", path.display()))?;
        let facts = CertificateFacts::of(&certificate)
            .ok_or_else(|| format!("{}: certificate {number} is unreadable", path.display()))?;
        found.push((certificate, facts));
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let hint = if CertificateFacts::of(&CertificateDer::from(bytes.as_slice())).is_some() {
        "it is in DER: convert it with openssl x509 -inform der"
    } else {
        "PEM begins with -----BEGIN CERTIFICATE-----"
    };
    Err(format!("{} contains no certificate: {hint}", path.display()))
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    const ENCRYPTED: &[&[u8]] = &[b"BEGIN ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED"];
    let bytes = read(path)?;
    let contains = |words: &&[u8]| bytes.windows(words.len()).any(|part| part == *words);
    if ENCRYPTED.iter().any(contains) {
        return Err(format!("{}: the key is encrypted: store it without a passphrase", path.display()));
    }
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| {
        format!("{} contains no private key: PEM begins with -----BEGIN PRIVATE KEY-----", path.display())
    })
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// A date without its time.
pub(crate) fn day(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d").to_string()
}
