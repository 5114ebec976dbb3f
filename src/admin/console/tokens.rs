//! The tokens of the admin API and of the console, each with a name and a role.
//!
//! Guarantees: every token is compared, in constant time. An empty token is never accepted.
//! Not responsible for: the settings (`config/`), the sessions of browsers (`session.rs`).

use axum::http::HeaderMap;
use secrecy::{ExposeSecret, SecretString};

use crate::http_server::credentials;
use crate::http_server::problem::ApiError;
use crate::message::named;

named! {
    /// What the holder of a token may do.
    AdminRole {
        /// See the state, the lists, the courses and the histories, without texts.
        View = "view",
        /// Everything: also replay, discard, edit, and see and export texts.
        Act = "act",
    }
}

/// A token with its name, which the audit log shows.
#[derive(Debug, Clone)]
pub struct AdminToken {
    /// The name.
    pub name: String,
    /// The secret.
    pub token: SecretString,
    /// The right of the holder.
    pub role: AdminRole,
}

impl AdminToken {
    /// Refuses an act that the role does not allow.
    pub(super) fn may_act(&self) -> Result<(), ApiError> {
        match self.role {
            AdminRole::Act => Ok(()),
            AdminRole::View => Err(ApiError::NeedsRole(AdminRole::Act.as_str())),
        }
    }
}

/// The token that equals the given text.
pub(super) fn holder<'a>(tokens: &'a [AdminToken], given: &str) -> Option<&'a AdminToken> {
    let is_given = |token: &AdminToken| {
        let ours = token.token.expose_secret().as_bytes();
        credentials::same(ours, given.as_bytes()) & !ours.is_empty()
    };
    tokens.iter().fold(None, |found, token| if is_given(token) { Some(token) } else { found })
}

/// The token of `Authorization: Bearer <token>`.
pub(super) fn bearer<'a>(tokens: &'a [AdminToken], headers: &HeaderMap) -> Option<&'a AdminToken> {
    holder(tokens, credentials::authorization(headers, "bearer")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_a_name_and_a_role() {
        let token = |name: &str, token: &str, role| AdminToken {
            name: name.to_owned(),
            token: SecretString::from(token),
            role,
        };
        let tokens = [
            token("admin", "one", AdminRole::Act),
            token("ada", "two", AdminRole::View),
            token("nobody", "", AdminRole::Act),
        ];
        let name = |given: &str| holder(&tokens, given).map(|token| token.name.as_str());
        assert_eq!(
            (name("one"), name("two"), name(""), name("tw")),
            (Some("admin"), Some("ada"), None, None)
        );
        assert!(tokens[0].may_act().is_ok());
        assert!(matches!(tokens[1].may_act(), Err(ApiError::NeedsRole("act"))));
        let headers =
            HeaderMap::from_iter([(axum::http::header::AUTHORIZATION, "Bearer two".parse().unwrap())]);
        assert_eq!(bearer(&tokens, &headers).map(|token| token.role), Some(AdminRole::View));
        assert!(!format!("{tokens:?}").contains("two"), "a token is not printed");
    }
}
