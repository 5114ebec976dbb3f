//! Sessions of the admin console: a signed cookie for a browser that has sent the token once.
//!
//! Guarantees: a cookie holds no secret and expires. The cookie and the form token are signed with the token of the user, so
//! a change of the token ends the sessions of the token. A form token is valid only for its session. No state is stored, so
//! any process with the same token accepts the session.
//!
//! The cookie is `HttpOnly` and `SameSite=Strict`. It is not `Secure`, because the console uses plain HTTP on
//! loopback.

use std::time::Duration;

use axum::http::HeaderMap;
use axum::http::header::COOKIE;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use super::tokens::{self, AdminToken};
use crate::http_server::credentials;

const COOKIE_NAME: &str = "causeway_desk";
/// The lifetime of a session, long enough for a night on call.
const LIFE: Duration = Duration::from_secs(12 * 3600);

/// A browser that has logged in with a token.
#[derive(Debug, Clone)]
pub(super) struct ConsoleSession {
    value: String,
    token: AdminToken,
}

impl ConsoleSession {
    /// Starts a session if the given text is one of the tokens.
    pub(super) fn begin(tokens: &[AdminToken], given: &str, now: Timestamp) -> Option<Self> {
        let token = tokens::holder(tokens, given)?.clone();
        let until = now.as_second().saturating_add_unsigned(LIFE.as_secs());
        let about = format!("{until}.{}", uuid::Uuid::new_v4().simple());
        let seal = seal(&token.token, "session", &about);
        Some(Self { value: format!("{about}.{seal}"), token })
    }

    /// The session of a request, if its cookie is signed with one of the tokens and has not expired.
    pub(super) fn of(tokens: &[AdminToken], headers: &HeaderMap, now: Timestamp) -> Option<Self> {
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut ours =
            cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let (_, value) = ours.find(|(name, _)| *name == COOKIE_NAME)?;
        let (about, given) = value.rsplit_once('.')?;
        let until: i64 = about.split_once('.')?.0.parse().ok()?;
        let has_signed = |token: &&AdminToken| {
            let is_set = credentials::usable(Some(&token.token)).is_some();
            is_set && credentials::same_text(&seal(&token.token, "session", about), given)
        };
        let token = tokens.iter().find(has_signed)?.clone();
        (now.as_second() < until).then(|| Self { value: value.to_owned(), token })
    }

    /// The token of the user.
    pub(super) const fn token(&self) -> &AdminToken {
        &self.token
    }

    /// The form token of this session.
    pub(super) fn form_token(&self) -> String {
        seal(&self.token.token, "form", &self.value)
    }

    /// Whether a form comes from a page of this session.
    pub(super) fn sent(&self, given: &str) -> bool {
        credentials::same_text(&self.form_token(), given)
    }

    /// The value for `Set-Cookie`.
    pub(super) fn cookie(&self) -> String {
        let (value, life) = (&self.value, LIFE.as_secs());
        format!("{COOKIE_NAME}={value}; Path=/desk; HttpOnly; SameSite=Strict; Max-Age={life}")
    }

    /// The value for `Set-Cookie` that deletes the cookie.
    pub(super) fn no_cookie() -> String {
        format!("{COOKIE_NAME}=; Path=/desk; HttpOnly; SameSite=Strict; Max-Age=0")
    }
}

fn seal(token: &SecretString, what: &str, about: &str) -> String {
    // HMAC accepts a key of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(token.expose_secret().as_bytes()) else {
        return String::new();
    };
    mac.update(format!("causeway desk {what} {about}").as_bytes());
    URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::AdminRole;

    fn now(second: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + second).unwrap()
    }

    fn headers(cookie: &str) -> HeaderMap {
        HeaderMap::from_iter([(COOKIE, cookie.parse().unwrap())])
    }

    fn tokens(secrets: &[&str]) -> Vec<AdminToken> {
        let token = |secret: &&str| AdminToken {
            name: format!("name of {secret}"),
            token: SecretString::from(*secret),
            role: AdminRole::View,
        };
        secrets.iter().map(token).collect()
    }

    #[test]
    fn a_session_needs_the_token_and_ends() {
        let ours = tokens(&["other", "secret", ""]);
        assert!(ConsoleSession::begin(&ours, "secre", now(0)).is_none());
        assert!(ConsoleSession::begin(&ours, "", now(0)).is_none());
        let session = ConsoleSession::begin(&ours, "secret", now(0)).unwrap();
        assert!(!session.cookie().contains("secret"));
        let sent = format!("other=1; {}", session.cookie().split(';').next().unwrap());
        let of = |tokens: &[AdminToken], cookie: &str, second| {
            let session = ConsoleSession::of(tokens, &headers(cookie), now(second));
            session.map(|session| session.token().name.clone())
        };
        assert_eq!(of(&ours, &sent, 60).as_deref(), Some("name of secret"));
        assert_eq!(of(&ours, &sent, 12 * 3600), None, "it is over");
        assert_eq!(of(&tokens(&["other", "changed", ""]), &sent, 60), None);
        assert_eq!(of(&ours, &sent.replace("179", "279"), 60), None, "nobody makes it longer");
        for wrong in ["causeway_desk=", "causeway_desk=..", "causeway_desk=9999999999.x.", "x"] {
            assert_eq!(of(&ours, wrong, 60), None, "{wrong}");
        }
    }

    #[test]
    fn a_form_counts_for_its_session_alone() {
        let ours = tokens(&["secret"]);
        let [one, other] = [(); 2].map(|()| ConsoleSession::begin(&ours, "secret", now(0)).unwrap());
        assert!(one.sent(&one.form_token()));
        assert!(!other.sent(&one.form_token()));
        assert!(!one.sent(""));
    }
}
