//! Sessions of the admin console: a signed cookie for a browser that has sent the token once.
//!
//! Guarantees: a cookie holds no secret and expires. The cookie and the form token are signed with `admin.token`, so
//! a change of `admin.token` ends all sessions. A form token is valid only for its session. No state is stored, so
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

use crate::http_server::credentials;

const COOKIE_NAME: &str = "causeway_desk";
/// The lifetime of a session, long enough for a night on call.
const LIFE: Duration = Duration::from_secs(12 * 3600);

/// A browser that has logged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConsoleSession(String);

impl ConsoleSession {
    /// Starts a session if the given token is correct.
    pub(super) fn begin(token: &SecretString, given: &str, now: Timestamp) -> Option<Self> {
        let ours = credentials::usable(Some(token))?;
        credentials::same(ours.as_bytes(), given.as_bytes()).then(|| {
            let until = now.as_second().saturating_add_unsigned(LIFE.as_secs());
            let about = format!("{until}.{}", uuid::Uuid::new_v4().simple());
            let seal = seal(token, "session", &about);
            Self(format!("{about}.{seal}"))
        })
    }

    /// The session of a request, if its cookie is valid and has not expired.
    pub(super) fn of(token: &SecretString, headers: &HeaderMap, now: Timestamp) -> Option<Self> {
        credentials::usable(Some(token))?;
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut ours =
            cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let (_, value) = ours.find(|(name, _)| *name == COOKIE_NAME)?;
        let (about, given) = value.rsplit_once('.')?;
        let until: i64 = about.split_once('.')?.0.parse().ok()?;
        let holds = credentials::same(seal(token, "session", about).as_bytes(), given.as_bytes());
        (holds && now.as_second() < until).then(|| Self(value.to_owned()))
    }

    /// The form token of this session.
    pub(super) fn form_token(&self, token: &SecretString) -> String {
        seal(token, "form", &self.0)
    }

    /// Whether a form comes from a page of this session.
    pub(super) fn sent(&self, token: &SecretString, given: &str) -> bool {
        credentials::same(self.form_token(token).as_bytes(), given.as_bytes())
    }

    /// The value for `Set-Cookie`.
    pub(super) fn cookie(&self) -> String {
        format!("{COOKIE_NAME}={}; Path=/desk; HttpOnly; SameSite=Strict; Max-Age={}", self.0, LIFE.as_secs())
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

    fn now(second: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + second).unwrap()
    }

    fn headers(cookie: &str) -> HeaderMap {
        HeaderMap::from_iter([(COOKIE, cookie.parse().unwrap())])
    }

    #[test]
    fn a_session_is_for_who_had_the_token_and_ends() {
        let token = SecretString::from("secret");
        assert_eq!(ConsoleSession::begin(&token, "secre", now(0)), None);
        assert_eq!(ConsoleSession::begin(&SecretString::from(""), "", now(0)), None);
        let session = ConsoleSession::begin(&token, "secret", now(0)).unwrap();
        assert!(!session.cookie().contains("secret"));
        let sent = format!("other=1; {}", session.cookie().split(';').next().unwrap());
        assert_eq!(ConsoleSession::of(&token, &headers(&sent), now(60)), Some(session));
        assert_eq!(ConsoleSession::of(&token, &headers(&sent), now(12 * 3600)), None, "it is over");
        assert_eq!(ConsoleSession::of(&SecretString::from("changed"), &headers(&sent), now(60)), None);
        let longer = sent.replace("179", "279");
        assert_eq!(ConsoleSession::of(&token, &headers(&longer), now(60)), None, "nobody makes it longer");
        for wrong in ["causeway_desk=", "causeway_desk=..", "causeway_desk=9999999999.x.", "x"] {
            assert_eq!(ConsoleSession::of(&token, &headers(wrong), now(60)), None, "{wrong}");
        }
    }

    #[test]
    fn a_form_counts_for_its_session_alone() {
        let token = SecretString::from("secret");
        let [one, other] = [(); 2].map(|()| ConsoleSession::begin(&token, "secret", now(0)).unwrap());
        assert!(one.sent(&token, &one.form_token(&token)));
        assert!(!other.sent(&token, &one.form_token(&token)));
        assert!(!one.sent(&token, ""));
    }
}
