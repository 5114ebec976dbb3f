//! Compares the credentials of callers.
//!
//! Guarantees: each comparison takes the same time for all inputs, including inputs of different length, because
//! digests are compared instead of secrets. An empty secret is never accepted.
//! Not responsible for: the credentials that a route takes (the routes).

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::secrets::AcceptedSecrets;

/// `Authorization: Bearer <token>` with one of the accepted tokens.
pub(crate) fn bearer_of(tokens: &AcceptedSecrets, headers: &HeaderMap) -> bool {
    authorization(headers, "bearer").is_some_and(|given| holds(tokens, given.as_bytes()))
}

/// Whether `given` is one of the accepted values. All values are compared.
pub(crate) fn holds(accepted: &AcceptedSecrets, given: &[u8]) -> bool {
    let given = Sha256::digest(given);
    let is_given = |secret: &str| bool::from(Sha256::digest(secret).as_slice().ct_eq(given.as_slice()));
    accepted.usable().fold(false, |known, secret| known | is_given(secret))
}

/// The secret if it is set and not empty.
pub(crate) fn usable(secret: Option<&SecretString>) -> Option<&str> {
    secret.map(ExposeSecret::expose_secret).filter(|secret| !secret.is_empty())
}

/// The value of `Authorization` if its scheme is `wanted`.
pub(crate) fn authorization<'a>(headers: &'a HeaderMap, wanted: &str) -> Option<&'a str> {
    let (scheme, given) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case(wanted).then(|| given.trim())
}

/// Compares two texts in constant time.
pub(crate) fn same_text(ours: &str, given: &str) -> bool {
    same(ours.as_bytes(), given.as_bytes())
}

/// Compares two values in constant time.
pub(crate) fn same(ours: &[u8], given: &[u8]) -> bool {
    Sha256::digest(ours).as_slice().ct_eq(Sha256::digest(given).as_slice()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(authorization: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, authorization.parse().unwrap())])
    }

    #[test]
    fn a_bearer_has_a_next_value() {
        let next = |current: &str, next: &str| AcceptedSecrets {
            current: Some(current.into()),
            next: Some(next.into()),
        };
        assert!(bearer_of(&next("old", "new"), &headers("Bearer new")));
        assert!(!bearer_of(&next("old", ""), &headers("Bearer ")));
    }

    #[test]
    fn the_bearer_is_compared_whole() {
        let token = AcceptedSecrets { current: Some("secret".into()), next: None };
        assert!(bearer_of(&token, &headers("bearer secret")));
        assert!(!bearer_of(&token, &headers("Bearer secre")));
        assert!(!bearer_of(&token, &headers("secret")));
        assert!(!bearer_of(&token, &HeaderMap::new()));
    }
}
