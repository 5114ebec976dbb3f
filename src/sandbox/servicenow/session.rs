//! Login, required headers and session cookies of the instance. One session runs one transaction at a time. If too
//! many calls wait, ServiceNow answers 202 and may never run the call. The sandbox never runs it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use tokio::sync::Semaphore;

use super::shapes;
use super::workspace::record_id;
use crate::sandbox::settings::{BasicLogin, SandboxSettings};
use crate::sandbox::state::SandboxState;

/// Maximum number of sessions. The oldest sessions are forgotten first; their cookies then open new sessions.
const MOST_SESSIONS: usize = 20_000;
const SESSION_COOKIE: &str = "JSESSIONID";

#[derive(Debug)]
pub(crate) struct SandboxSessions {
    most_waiting: usize,
    known: Mutex<KnownSessions>,
}

#[derive(Debug, Default)]
struct KnownSessions {
    by_cookie: HashMap<String, Arc<SandboxSession>>,
    oldest: VecDeque<String>,
}

#[derive(Debug)]
struct SandboxSession {
    slot: Semaphore,
    waiting: AtomicUsize,
    rotated: AtomicBool,
}

impl SandboxSessions {
    pub(crate) fn new(most_waiting: usize) -> Self {
        Self { most_waiting, known: Mutex::default() }
    }

    /// Returns the session that the cookies name, or a new one, and the cookies to set.
    fn enter(&self, headers: &HeaderMap) -> (Arc<SandboxSession>, Vec<String>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = cookie_value(headers).and_then(|id| known.by_cookie.get(&id).cloned());
        if let Some(session) = found {
            if session.rotated.swap(true, Ordering::Relaxed) {
                return (session, Vec::new());
            }
            // The session id changes once after the login, against session fixation. The old id stays valid.
            let cookie = known.name(session.clone());
            return (session, vec![cookie]);
        }
        let session = Arc::new(SandboxSession {
            slot: Semaphore::new(1),
            waiting: AtomicUsize::new(0),
            rotated: AtomicBool::new(false),
        });
        let cookies = vec![
            known.name(session.clone()),
            format!("glide_user_route=glide.{}; Max-Age=2147483647; Path=/; HttpOnly", record_id()),
            format!("glide_session_store={}; Max-Age=1800; Path=/; HttpOnly", record_id().to_uppercase()),
        ];
        (session, cookies)
    }
}

impl KnownSessions {
    fn name(&mut self, session: Arc<SandboxSession>) -> String {
        let id = record_id().to_uppercase();
        self.by_cookie.insert(id.clone(), session);
        self.oldest.push_back(id.clone());
        if self.oldest.len() > MOST_SESSIONS
            && let Some(oldest) = self.oldest.pop_front()
        {
            self.by_cookie.remove(&oldest);
        }
        format!("{SESSION_COOKIE}={id}; Path=/; HttpOnly")
    }
}

fn cookie_value(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    cookies
        .flat_map(|line| cookie::Cookie::split_parse(line.to_owned()).flatten())
        .find(|cookie| cookie.name() == SESSION_COOKIE)
        .map(|cookie| cookie.value().to_owned())
}

/// The login and session middleware for every path of the instance.
pub(crate) async fn session_layer(
    State(world): State<Arc<SandboxState>>,
    request: Request,
    next: Next,
) -> Response {
    let switches = world.workspace().switches;
    if !world.tokens.fits(request.headers())
        && let Some(refusal) = refuse_login(&world.settings, switches.basic, request.headers())
    {
        return refusal;
    }
    let path = request.uri().path();
    if switches.plugin_missing && path.starts_with("/api/now/connect") {
        return shapes::no_such_resource(path);
    }
    if switches.virtual_agent.missing && path.starts_with("/api/sn_va_as_service") {
        return shapes::no_such_resource(path);
    }
    // The Attachment API accepts the content type of the file (`src/platform/servicenow/FACTS.md`).
    let takes_files = path == super::files::UPLOAD;
    if let Some(refusal) = refuse_headers(request.method(), request.headers(), takes_files) {
        return refusal;
    }
    let (session, cookies) = world.sessions.enter(request.headers());
    let mut response = in_turn(&world, &session, request, next).await;
    for cookie in cookies {
        if let Ok(value) = HeaderValue::from_str(&cookie) {
            response.headers_mut().append(header::SET_COOKIE, value);
        }
    }
    response
}

async fn in_turn(world: &SandboxState, session: &SandboxSession, request: Request, next: Next) -> Response {
    let slot = if let Ok(slot) = session.slot.try_acquire() {
        slot
    } else {
        if session.waiting.fetch_add(1, Ordering::Relaxed) >= world.sessions.most_waiting {
            session.waiting.fetch_sub(1, Ordering::Relaxed);
            return StatusCode::ACCEPTED.into_response();
        }
        let slot = session.slot.acquire().await;
        session.waiting.fetch_sub(1, Ordering::Relaxed);
        let Ok(slot) = slot else { return StatusCode::ACCEPTED.into_response() };
        slot
    };
    if !world.settings.transaction_time.is_zero() {
        tokio::time::sleep(world.settings.transaction_time).await;
    }
    let response = next.run(request).await;
    drop(slot);
    response
}

fn refuse_login(settings: &SandboxSettings, basic: BasicLogin, headers: &HeaderMap) -> Option<Response> {
    let expected = BASE64.encode(format!("{}:{}", settings.username, settings.password));
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let right = given
        .and_then(|value| value.split_once(' '))
        .is_some_and(|(scheme, proof)| scheme.eq_ignore_ascii_case("basic") && proof == expected);
    match basic {
        BasicLogin::Allowed if right => None,
        BasicLogin::MfaMissing if right => {
            let mut response = shapes::unauthenticated();
            response.headers_mut().insert("X-MFA_TOKEN", HeaderValue::from_static("invalid"));
            Some(response)
        }
        _ => Some(shapes::unauthenticated()),
    }
}

fn refuse_headers(method: &Method, headers: &HeaderMap, takes_files: bool) -> Option<Response> {
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or_default());
    let json = |value: &str| value.contains("application/json") || value.contains("*/*");
    let Some(accept) = text(header::ACCEPT) else {
        return Some(shapes::error(StatusCode::BAD_REQUEST, "Accept header is missing", None));
    };
    if !json(accept) {
        return Some(shapes::error(
            StatusCode::NOT_ACCEPTABLE,
            "Requested response type is not supported",
            None,
        ));
    }
    if method == Method::GET || method == Method::DELETE {
        return None;
    }
    match text(header::CONTENT_TYPE) {
        None => Some(shapes::error(StatusCode::BAD_REQUEST, "Content-Type header is missing", None)),
        Some(value) if !takes_files && !value.contains("application/json") => Some(shapes::error(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "Unsupported media type",
            Some("Media type is not supported"),
        )),
        Some(_) => None,
    }
}
