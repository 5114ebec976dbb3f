//! Who may post: Basic, token (header or URL), HMAC signature, bearer.
//!
//! Guarantees: every comparison takes the same time whatever differs, the length included, since digests are compared
//! and not the secrets; every configured way is tried before the verdict. An empty secret opens nothing.
//! Leaves to others: refusing to start without any credential (`config/`).

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::ServiceNowDoor;

/// How far a signature's time may be from ours, in seconds.
const SIGNATURE_TOLERANCE: i64 = 300;

/// What the head of a request says about its sender.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A credential holds.
    Welcome,
    /// The signature decides, once the body is there.
    AfterBody(Signature),
    /// Nothing holds.
    Refused,
}

/// Looks at the head of a callback; one credential that holds is enough.
pub(super) fn callback(
    door: &ServiceNowDoor,
    headers: &HeaderMap,
    query: Option<&str>,
    now: Timestamp,
) -> Verdict {
    if !door.is_guarded() {
        return if door.allow_unauthenticated { Verdict::Welcome } else { Verdict::Refused };
    }
    let known = basic(door, headers) | token_in_header(door, headers) | token_in_url(door, query);
    if known {
        return Verdict::Welcome;
    }
    let signature = headers.get("x-causeway-signature").and_then(|value| value.to_str().ok());
    match signature.and_then(Signature::parse) {
        Some(signature) if usable(door.hmac_secret.as_ref()).is_some() && signature.is_recent(now) => {
            Verdict::AfterBody(signature)
        }
        _ => Verdict::Refused,
    }
}

/// `Authorization: Bearer <token>`.
pub(super) fn bearer(token: &SecretString, headers: &HeaderMap) -> bool {
    let given = authorization(headers, "bearer").unwrap_or_default();
    usable(Some(token)).is_some_and(|token| same(token.as_bytes(), given.as_bytes()))
}

/// The secret, where it is one.
pub(super) fn usable(secret: Option<&SecretString>) -> Option<&str> {
    secret.map(ExposeSecret::expose_secret).filter(|secret| !secret.is_empty())
}

fn basic(door: &ServiceNowDoor, headers: &HeaderMap) -> bool {
    let given = authorization(headers, "basic").and_then(|given| STANDARD.decode(given).ok());
    let (Some(username), Some(password)) = (&door.username, usable(door.password.as_ref())) else {
        return false;
    };
    same(format!("{username}:{password}").as_bytes(), &given.unwrap_or_default())
}

fn token_in_header(door: &ServiceNowDoor, headers: &HeaderMap) -> bool {
    let (Some(token), Some(given)) = (usable(door.token.as_ref()), headers.get("x-causeway-token")) else {
        return false;
    };
    same(token.as_bytes(), given.as_bytes())
}

/// Kore's stock rule can only be given a URL. Whoever pastes a secret with a plus sign into it means a plus sign.
fn token_in_url(door: &ServiceNowDoor, query: Option<&str>) -> bool {
    let Some(token) = usable(door.token.as_ref()) else { return false };
    let query = query.unwrap_or_default();
    let holds = |query: &str| {
        let pairs = url::form_urlencoded::parse(query.as_bytes());
        pairs
            .filter(|(key, _)| key == "token")
            .fold(false, |known, (_, given)| known | same(token.as_bytes(), given.as_bytes()))
    };
    holds(query) | (query.contains('+') && holds(&query.replace('+', "%2B")))
}

fn authorization<'a>(headers: &'a HeaderMap, wanted: &str) -> Option<&'a str> {
    let (scheme, given) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case(wanted).then(|| given.trim())
}

/// Whether two texts are one, in a time that tells nothing.
pub(super) fn same_text(ours: &str, given: &str) -> bool {
    same(ours.as_bytes(), given.as_bytes())
}

/// Whether two values are the same, in a time that tells nothing.
pub(super) fn same(ours: &[u8], given: &[u8]) -> bool {
    Sha256::digest(ours).as_slice().ct_eq(Sha256::digest(given).as_slice()).into()
}

/// `t=<unix seconds>,v1=<base64 of HMAC-SHA256("<t>.<raw body>")>`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Signature {
    at: i64,
    /// More than one while a secret is being changed.
    digests: Vec<Vec<u8>>,
}

impl Signature {
    fn parse(header: &str) -> Option<Self> {
        let mut at = None;
        let mut digests = Vec::new();
        for part in header.split(',') {
            match part.trim().split_once('=')? {
                // Only the plain form of a number: what is signed is the number as written.
                ("t", time) if at.is_none() => {
                    at = Some(time.parse::<i64>().ok().filter(|at| at.to_string() == time)?);
                }
                ("v1", digest) if digests.len() < 4 => digests.push(STANDARD.decode(digest).ok()?),
                ("t" | "v1", _) => return None,
                // A later version of the scheme.
                _ => {}
            }
        }
        at.filter(|_| !digests.is_empty()).map(|at| Self { at, digests })
    }

    fn is_recent(&self, now: Timestamp) -> bool {
        now.as_second().abs_diff(self.at) <= SIGNATURE_TOLERANCE.unsigned_abs()
    }

    /// Whether `body` was signed with `secret`.
    pub(super) fn holds(&self, secret: Option<&SecretString>, body: &[u8]) -> bool {
        let Some(secret) = usable(secret) else { return false };
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

    fn door() -> ServiceNowDoor {
        ServiceNowDoor {
            username: Some("snow".into()),
            password: Some("p:ss".into()),
            token: Some("t0+ken/".into()),
            hmac_secret: Some("shared".into()),
            ..ServiceNowDoor::default()
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
    fn each_configured_way_opens_the_door() {
        let basic = |pair: &str| headers("authorization", &format!("basic {}", STANDARD.encode(pair)));
        let none = HeaderMap::new();
        let cases: [(&str, HeaderMap, Option<&str>, bool); 11] = [
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
            ("bearer is not asked for", headers("authorization", "Bearer t0+ken/"), None, false),
        ];
        for (name, headers, query, welcome) in cases {
            let verdict = callback(&door(), &headers, query, now());
            assert_eq!(verdict, if welcome { Verdict::Welcome } else { Verdict::Refused }, "{name}");
        }
    }

    #[test]
    fn an_unguarded_door_is_open_only_on_purpose() {
        let closed = ServiceNowDoor { token: Some("".into()), ..ServiceNowDoor::default() };
        assert_eq!(
            callback(&closed, &headers("x-causeway-token", ""), Some("token="), now()),
            Verdict::Refused
        );
        let open = ServiceNowDoor { allow_unauthenticated: true, ..closed };
        assert_eq!(callback(&open, &HeaderMap::new(), None, now()), Verdict::Welcome);
        let guarded = ServiceNowDoor { allow_unauthenticated: true, ..door() };
        assert_eq!(callback(&guarded, &HeaderMap::new(), None, now()), Verdict::Refused);
    }

    #[test]
    fn a_signature_counts_for_its_body_and_its_time() {
        let verdict = |header: &str| callback(&door(), &headers("x-causeway-signature", header), None, now());
        for at in [NOW - 300, NOW, NOW + 300] {
            let Verdict::AfterBody(signature) = verdict(&signed(at, "{}")) else { panic!("{at}") };
            let door = door();
            assert!(signature.holds(door.hmac_secret.as_ref(), b"{}"));
            assert!(!signature.holds(door.hmac_secret.as_ref(), b"{ }"));
            assert!(!signature.holds(Some(&"other".into()), b"{}"));
            assert!(!signature.holds(None, b"{}"));
        }
        for at in [NOW - 301, NOW + 301, i64::MIN, i64::MAX] {
            assert_eq!(verdict(&signed(at, "{}")), Verdict::Refused, "{at}");
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
            assert_eq!(verdict(header), Verdict::Refused, "{header}");
        }
    }

    #[test]
    fn a_second_digest_lets_a_secret_be_changed() {
        let header = format!("{},v1=b2xk,v2=later", signed(NOW, "{}"));
        assert!(Signature::parse(&header).unwrap().holds(Some(&"shared".into()), b"{}"));
    }

    #[test]
    fn the_bearer_is_compared_whole() {
        let token = SecretString::from("secret");
        assert!(bearer(&token, &headers("authorization", "bearer secret")));
        assert!(!bearer(&token, &headers("authorization", "Bearer secre")));
        assert!(!bearer(&token, &headers("authorization", "secret")));
        assert!(!bearer(&token, &HeaderMap::new()));
        assert!(!bearer(&SecretString::from(""), &headers("authorization", "Bearer ")));
    }
}
