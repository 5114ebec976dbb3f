//! `/oauth_token.do`: tokens for a registered client, by refresh token or by client credentials.
//!
//! As documented, the body is a form; JSON gets an error without an explanation. While a token is valid, the same
//! token is issued again with the remaining seconds. The password grant is not available, because a user for web
//! services only has no such login.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::workspace::record_id;
use crate::sandbox::settings::{OAuthClient, OAuthSwitches};
use crate::sandbox::state::SandboxState;

#[derive(Debug)]
pub(crate) struct IssuedTokens {
    client: OAuthClient,
    book: Mutex<TokenBook>,
}

#[derive(Debug)]
struct TokenBook {
    access: Option<(String, Instant)>,
    refresh: String,
}

impl IssuedTokens {
    pub(crate) fn new(client: OAuthClient) -> Self {
        let refresh = client.refresh_token.clone();
        Self { client, book: Mutex::new(TokenBook { access: None, refresh }) }
    }

    /// Invalidates every access token.
    pub(crate) fn revoke(&self) {
        self.book().access = None;
    }

    /// Whether the request has a valid token.
    pub(crate) fn fits(&self, headers: &HeaderMap) -> bool {
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let shown = shown.and_then(|value| value.split_once(' '));
        let Some((_, shown)) = shown.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) else {
            return false;
        };
        self.book().access.as_ref().is_some_and(|(token, end)| token == shown && Instant::now() < *end)
    }

    fn book(&self) -> MutexGuard<'_, TokenBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grant(&self, asked: &[(String, String)], switches: OAuthSwitches) -> Result<Value, &'static str> {
        let field = |name: &str| asked.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let known = field("client_id") == Some(&self.client.client_id)
            && field("client_secret") == Some(&self.client.client_secret);
        if !known {
            return Err("access_denied");
        }
        let mut book = self.book();
        let by_refresh = match field("grant_type") {
            Some("refresh_token") => {
                if switches.refuse_refresh || field("refresh_token") != Some(&book.refresh) {
                    return Err("access_denied");
                }
                true
            }
            Some("client_credentials") if switches.client_credentials => false,
            _ => return Err("unsupported_grant_type"),
        };
        if by_refresh && switches.rotate {
            book.refresh = record_id();
        }
        let now = Instant::now();
        let (token, end) = match book.access.clone().filter(|(_, end)| now < *end) {
            Some(held) => held,
            None => (record_id() + &record_id(), now + Duration::from_secs(switches.token_life)),
        };
        book.access = Some((token.clone(), end));
        let mut answer = json!({
            "access_token": token, "token_type": "Bearer", "scope": "useraccount",
            "expires_in": end.duration_since(now).as_secs(),
        });
        if by_refresh {
            answer["refresh_token"] = json!(book.refresh);
        }
        Ok(answer)
    }
}

pub(crate) fn router() -> Router<Arc<SandboxState>> {
    Router::new().route("/oauth_token.do", post(token))
}

async fn token(State(world): State<Arc<SandboxState>>, headers: HeaderMap, body: String) -> Response {
    let media = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let switches = world.workspace().switches.oauth;
    if !media.starts_with("application/x-www-form-urlencoded") {
        return refused("invalid_request", switches);
    }
    let asked: Vec<(String, String)> = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    match world.tokens.grant(&asked, switches) {
        Ok(granted) => Json(granted).into_response(),
        Err(why) => refused(why, switches),
    }
}

fn refused(why: &str, switches: OAuthSwitches) -> Response {
    let (status, error) = match (switches.standard_refusal, why) {
        (false, _) => (StatusCode::UNAUTHORIZED, "server_error"),
        (true, "access_denied") => (StatusCode::BAD_REQUEST, "invalid_grant"),
        (true, why) => (StatusCode::BAD_REQUEST, why),
    };
    (status, Json(json!({ "error_description": why, "error": error }))).into_response()
}
