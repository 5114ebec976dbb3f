//! The link to one file: a token that names the file and is signed with HMAC-SHA256.
//!
//! Guarantees: the same file of the same message always has the same link, so a repeated message is recognised. A link
//! that was changed, or was signed with another secret, is refused. Signatures are compared in constant time.
//!
//! Not responsible for: fetching the file (`server.rs`).

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use url::Url;

use crate::live::Live;
use crate::message::ConversationId;

/// The longest token, in bytes. Some chat windows break longer links.
const TOKEN_BYTES_MAX: usize = 4096;
/// The purpose that a derived secret is bound to.
const PURPOSE: &str = "causeway files v1";

/// The location of a file.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileSource {
    /// A `sys_attachment` at ServiceNow.
    #[serde(rename = "a")]
    Attachment(String),
    /// A file of a Virtual Agent chat, by the token in its address.
    #[serde(rename = "m")]
    Media(String),
    /// A file at XO: the bot id and the address.
    #[serde(rename = "x")]
    Xo(String, String),
}

/// The address is omitted, because it can be a secret.
impl std::fmt::Debug for FileSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Attachment(_) => "Attachment",
            Self::Media(_) => "Media",
            Self::Xo(..) => "Xo",
        })
    }
}

/// The content of a link.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkedFile {
    /// The conversation that the file belongs to.
    #[serde(rename = "c")]
    pub conversation: ConversationId,
    /// The location of the file.
    #[serde(rename = "s")]
    pub source: FileSource,
    /// The name under which a browser saves the file.
    #[serde(rename = "n")]
    pub name: String,
}

impl std::fmt::Debug for LinkedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkedFile").field("conversation", &self.conversation).finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
struct SignedLink {
    #[serde(flatten)]
    file: LinkedFile,
    /// The Unix time at which the link expires.
    #[serde(rename = "e")]
    ends: i64,
}

/// The reason why a link is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkProblem {
    /// The signature is not ours.
    Forged,
    /// The link has expired.
    Expired,
}

/// Creates and verifies links.
#[derive(Clone)]
pub struct FileLinks {
    public_url: Option<Url>,
    secret: Live<SecretString>,
    expires: Duration,
}

impl std::fmt::Debug for FileLinks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileLinks").finish_non_exhaustive()
    }
}

impl FileLinks {
    /// Creates the signer. `public_url`: the address at which users and ServiceNow reach the route. Without an address
    /// no link is created.
    pub fn new(public_url: Option<Url>, secret: SecretString, expires: Duration) -> Self {
        Self { public_url, secret: secret.into(), expires }
    }

    /// Signs and verifies links with this secret from now on. Older links end.
    pub fn replace_secret(&self, secret: SecretString) {
        self.secret.set(secret);
    }

    /// A secret derived from another secret, so that the worker and the route share it without a setting.
    pub fn derived_secret(from: &SecretString) -> SecretString {
        SecretString::from(BASE64.encode(mac(from, PURPOSE)))
    }

    /// Whether links are created.
    pub const fn are_made(&self) -> bool {
        self.public_url.is_some()
    }

    /// The link to a file of a message that was accepted at `at`; `None` if there is no public address, or the link
    /// would be too long.
    pub fn link(&self, file: &LinkedFile, at: Timestamp) -> Option<String> {
        let base = self.public_url.as_ref()?.as_str().trim_end_matches('/');
        let token = self.token(file, at)?;
        Some(format!("{base}/v1/files/{token}"))
    }

    fn token(&self, file: &LinkedFile, at: Timestamp) -> Option<String> {
        let life = i64::try_from(self.expires.as_secs()).unwrap_or(i64::MAX);
        let signed = SignedLink { file: file.clone(), ends: at.as_second().saturating_add(life) };
        let body = BASE64.encode(serde_json::to_vec(&signed).ok()?);
        let token = format!("{body}.{}", BASE64.encode(mac(&self.secret.get(), &body)));
        (token.len() <= TOKEN_BYTES_MAX).then_some(token)
    }

    /// The file that a token names.
    pub fn open(&self, token: &str, now: Timestamp) -> Result<LinkedFile, LinkProblem> {
        let (body, given) = token.split_once('.').ok_or(LinkProblem::Forged)?;
        let given = BASE64.decode(given).map_err(|_| LinkProblem::Forged)?;
        let mac = Hmac::<Sha256>::new_from_slice(self.secret.get().expose_secret().as_bytes());
        let mac = mac.map_err(|_| LinkProblem::Forged)?.chain_update(body);
        mac.verify_slice(&given).map_err(|_| LinkProblem::Forged)?;
        let body = BASE64.decode(body).map_err(|_| LinkProblem::Forged)?;
        let signed: SignedLink = serde_json::from_slice(&body).map_err(|_| LinkProblem::Forged)?;
        if now.as_second() >= signed.ends { Err(LinkProblem::Expired) } else { Ok(signed.file) }
    }
}

fn mac(secret: &SecretString, text: &str) -> Vec<u8> {
    match Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes()) {
        Ok(mac) => mac.chain_update(text).finalize().into_bytes().to_vec(),
        // HMAC accepts keys of every length.
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(secret: &str) -> FileLinks {
        let url = Url::parse("https://causeway.example/").unwrap();
        FileLinks::new(Some(url), secret.to_owned().into(), Duration::from_secs(3600))
    }

    fn file(sys_id: &str) -> LinkedFile {
        let conversation = ConversationId::parse("st-1:u-1:rtm").unwrap();
        LinkedFile {
            conversation,
            source: FileSource::Attachment(sys_id.to_owned()),
            name: "a.png".to_owned(),
        }
    }

    #[test]
    fn a_link_opens_its_file_and_no_other() {
        let at: Timestamp = "2026-11-28T10:00:00Z".parse().unwrap();
        let later = |seconds: i64| Timestamp::from_second(at.as_second() + seconds).unwrap();
        let links = links("s3cret");
        let link = links.link(&file("a1"), at).unwrap();
        assert_eq!(Some(link.clone()), links.link(&file("a1"), at), "the same message has the same link");
        let token = link.strip_prefix("https://causeway.example/v1/files/").unwrap();
        assert_eq!(links.open(token, later(3599)), Ok(file("a1")));
        assert_eq!(links.open(token, later(3600)), Err(LinkProblem::Expired));
        let (body, mac) = token.split_once('.').unwrap();
        let other = links.token(&file("a2"), at).unwrap();
        let (other_body, _) = other.split_once('.').unwrap();
        for forged in [
            format!("{other_body}.{mac}"),
            format!("{body}."),
            body.to_owned(),
            String::new(),
            ".".to_owned(),
            format!("{body}.{}", BASE64.encode([0; 32])),
            format!("{body}.{mac}x"),
        ] {
            assert_eq!(links.open(&forged, at), Err(LinkProblem::Forged), "{forged}");
        }
        let foreign = super::tests::links("another");
        assert_eq!(foreign.open(token, at), Err(LinkProblem::Forged));
        let nowhere = FileLinks::new(None, "s".to_owned().into(), Duration::from_secs(1));
        assert_eq!(nowhere.link(&file("a1"), at), None);
        let long = LinkedFile { source: FileSource::Xo("st-1".into(), "x".repeat(5_000)), ..file("a1") };
        assert_eq!(links.link(&long, at), None, "rather the name than a link that no window shows whole");
    }
}
