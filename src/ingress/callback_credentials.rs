//! Authenticates ServiceNow's callbacks: HTTP Basic, token (header or URL), HMAC signature, bearer token.
//!
//! Guarantees: all configured methods are tried before the verdict. Comparisons are those of
//! `http_server/credentials.rs`.
//! Not responsible for: refusing to start without a credential (`config/`).

use axum::http::HeaderMap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use sha2::Sha256;

use super::CallbackAuth;
use crate::http_server::credentials::{authorization, bearer_of, holds, same};
use crate::http_server::secrets::AcceptedSecrets;

/// The tolerated difference between a signature's time and ours, in seconds.
const SIGNATURE_TOLERANCE: i64 = 300;

/// The verdict on the head of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AuthResult {
    /// A credential is valid.
    Authorised,
    /// The signature decides after the body is read.
    AfterBody(HmacSignature),
    /// No credential is valid.
    Refused,
}

/// Checks the head of a callback. One valid credential is sufficient.
pub(super) fn callback(
    auth: &CallbackAuth,
    headers: &HeaderMap,
    query: Option<&str>,
    now: Timestamp,
) -> AuthResult {
    if !auth.is_guarded() {
        return if auth.allow_unauthenticated { AuthResult::Authorised } else { AuthResult::Refused };
    }
    let known = basic(auth, headers)
        | token_in_header(auth, headers)
        | bearer_of(&auth.token, headers)
        | token_in_url(auth, query);
    if known {
        return AuthResult::Authorised;
    }
    let signature = headers.get("x-causeway-signature").and_then(|value| value.to_str().ok());
    match signature.and_then(HmacSignature::parse) {
        Some(signature) if auth.hmac_secret.is_set() && signature.is_recent(now) => {
            AuthResult::AfterBody(signature)
        }
        _ => AuthResult::Refused,
    }
}

fn basic(auth: &CallbackAuth, headers: &HeaderMap) -> bool {
    let given = authorization(headers, "basic").and_then(|given| STANDARD.decode(given).ok());
    let (Some(username), given) = (&auth.username, given.unwrap_or_default()) else { return false };
    let is_pair = |password: &str| same(format!("{username}:{password}").as_bytes(), &given);
    auth.password.usable().fold(false, |known, password| known | is_pair(password))
}

fn token_in_header(auth: &CallbackAuth, headers: &HeaderMap) -> bool {
    headers.get("x-causeway-token").is_some_and(|given| holds(&auth.token, given.as_bytes()))
}

/// Kore's stock rule can only be given a URL. A plus sign in the URL may stand for itself, if a secret was pasted
/// without encoding.
fn token_in_url(auth: &CallbackAuth, query: Option<&str>) -> bool {
    let query = query.unwrap_or_default();
    let is_in = |query: &str| {
        let pairs = url::form_urlencoded::parse(query.as_bytes());
        pairs
            .filter(|(key, _)| key == "token")
            .fold(false, |known, (_, given)| known | holds(&auth.token, given.as_bytes()))
    };
    is_in(query) | (query.contains('+') && is_in(&query.replace('+', "%2B")))
}

/// `t=<unix seconds>,v1=<base64 of HMAC-SHA256("<t>.<raw body>")>`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HmacSignature {
    at: i64,
    /// Several digests while a secret is being changed.
    digests: Vec<Vec<u8>>,
}

impl HmacSignature {
    fn parse(header: &str) -> Option<Self> {
        let mut at = None;
        let mut digests = Vec::new();
        for part in header.split(',') {
            match part.trim().split_once('=')? {
                // Only the canonical form of a number is accepted, because the signature covers the number as
                // written.
                ("t", time) if at.is_none() => {
                    at = Some(time.parse::<i64>().ok().filter(|at| at.to_string() == time)?);
                }
                ("v1", digest) if digests.len() < 4 => digests.push(STANDARD.decode(digest).ok()?),
                ("t" | "v1", _) => return None,
                // An element of a later version of the scheme.
                _ => {}
            }
        }
        at.filter(|_| !digests.is_empty()).map(|at| Self { at, digests })
    }

    fn is_recent(&self, now: Timestamp) -> bool {
        now.as_second().abs_diff(self.at) <= SIGNATURE_TOLERANCE.unsigned_abs()
    }

    /// Whether `body` was signed with one of the secrets.
    pub(super) fn holds(&self, secrets: &AcceptedSecrets, body: &[u8]) -> bool {
        secrets.usable().fold(false, |known, secret| known | self.is_by(secret, body))
    }

    fn is_by(&self, secret: &str, body: &[u8]) -> bool {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else { return false };
        mac.update(format!("{}.", self.at).as_bytes());
        mac.update(body);
        let ours = mac.finalize().into_bytes();
        self.digests.iter().fold(false, |known, given| known | same(&ours, given))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_790_000_000;

    fn now() -> Timestamp {
        Timestamp::from_second(NOW).unwrap()
    }

    fn auth() -> CallbackAuth {
        CallbackAuth {
            username: Some("snow".into()),
            password: "p:ss".into(),
            token: "t0+ken/".into(),
            hmac_secret: "shared".into(),
            ..CallbackAuth::default()
        }
    }

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(axum::http::HeaderName::from_static(name), value.parse().unwrap())])
    }

    fn signed(at: i64, body: &str) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(b"shared").unwrap();
        mac.update(format!("{at}.{body}").as_bytes());
        format!("t={at},v1={}", STANDARD.encode(mac.finalize().into_bytes()))
    }

    #[test]
    fn each_configured_credential_is_accepted() {
        let basic = |pair: &str| headers("authorization", &format!("basic {}", STANDARD.encode(pair)));
        let none = HeaderMap::new();
        let cases: [(&str, HeaderMap, Option<&str>, bool); 12] = [
            ("nothing", none.clone(), None, false),
            ("basic", basic("snow:p:ss"), None, true),
            ("wrong password", basic("snow:p"), None, false),
            ("not base64", headers("authorization", "Basic %%%"), None, false),
            ("header", headers("x-causeway-token", "t0+ken/"), None, true),
            ("wrong header", headers("x-causeway-token", "t0+ken"), None, false),
            ("url, escaped", none.clone(), Some("a=b&token=t0%2Bken%2F"), true),
            ("url, as pasted", none.clone(), Some("token=t0+ken/"), true),
            ("wrong url", none.clone(), Some("token=other"), false),
            ("empty url", none.clone(), Some("token="), false),
            ("bearer", headers("authorization", "Bearer t0+ken/"), None, true),
            ("wrong bearer", headers("authorization", "Bearer t0+ken"), None, false),
        ];
        for (name, headers, query, welcome) in cases {
            let verdict = callback(&auth(), &headers, query, now());
            assert_eq!(verdict, if welcome { AuthResult::Authorised } else { AuthResult::Refused }, "{name}");
        }
    }

    #[test]
    fn a_route_without_credentials_needs_the_setting() {
        let closed = CallbackAuth { token: "".into(), ..CallbackAuth::default() };
        assert_eq!(
            callback(&closed, &headers("x-causeway-token", ""), Some("token="), now()),
            AuthResult::Refused
        );
        let open = CallbackAuth { allow_unauthenticated: true, ..closed };
        assert_eq!(callback(&open, &HeaderMap::new(), None, now()), AuthResult::Authorised);
        let guarded = CallbackAuth { allow_unauthenticated: true, ..auth() };
        assert_eq!(callback(&guarded, &HeaderMap::new(), None, now()), AuthResult::Refused);
    }

    #[test]
    fn a_signature_counts_for_its_body_and_its_time() {
        let verdict = |header: &str| callback(&auth(), &headers("x-causeway-signature", header), None, now());
        for at in [NOW - 300, NOW, NOW + 300] {
            let AuthResult::AfterBody(signature) = verdict(&signed(at, "{}")) else { panic!("{at}") };
            let auth = auth();
            assert!(signature.holds(&auth.hmac_secret, b"{}"));
            assert!(!signature.holds(&auth.hmac_secret, b"{ }"));
            assert!(!signature.holds(&"other".into(), b"{}"));
            assert!(!signature.holds(&AcceptedSecrets::default(), b"{}"));
        }
        for at in [NOW - 301, NOW + 301, i64::MIN, i64::MAX] {
            assert_eq!(verdict(&signed(at, "{}")), AuthResult::Refused, "{at}");
        }
        for header in [
            "",
            "t=1",
            "v1=aaaa",
            "t=x,v1=aaaa",
            "t=+1790000000,v1=aaaa",
            "t=1790000000,v1=%",
            "t=1,t=1,v1=aaaa",
        ] {
            assert_eq!(verdict(header), AuthResult::Refused, "{header}");
        }
    }

    #[test]
    fn a_second_digest_lets_a_secret_be_changed() {
        let header = format!("{},v1=b2xk,v2=later", signed(NOW, "{}"));
        assert!(HmacSignature::parse(&header).unwrap().holds(&"shared".into(), b"{}"));
    }

    #[test]
    fn each_credential_has_a_next_value() {
        let next = |current: &str, next: &str| AcceptedSecrets {
            current: Some(current.into()),
            next: Some(next.into()),
        };
        let auth = CallbackAuth {
            username: Some("snow".into()),
            password: next("old", "new"),
            token: next("old", "new"),
            hmac_secret: next("old", "shared"),
            ..CallbackAuth::default()
        };
        for word in ["old", "new"] {
            let basic = format!("Basic {}", STANDARD.encode(format!("snow:{word}")));
            for headers in [
                headers("authorization", &basic),
                headers("authorization", &format!("Bearer {word}")),
                headers("x-causeway-token", word),
            ] {
                assert_eq!(callback(&auth, &headers, None, now()), AuthResult::Authorised, "{word}");
            }
            assert_eq!(
                callback(&auth, &HeaderMap::new(), Some(&format!("token={word}")), now()),
                AuthResult::Authorised
            );
        }
        let head = headers("x-causeway-signature", &signed(NOW, "{}"));
        let AuthResult::AfterBody(signature) = callback(&auth, &head, None, now()) else { panic!("refused") };
        assert!(signature.holds(&auth.hmac_secret, b"{}"));
        // The next value alone is a credential, too.
        let only_next = CallbackAuth {
            token: AcceptedSecrets { current: None, next: Some("new".into()) },
            ..CallbackAuth::default()
        };
        assert_eq!(
            callback(&only_next, &headers("x-causeway-token", "new"), None, now()),
            AuthResult::Authorised
        );
    }
}
