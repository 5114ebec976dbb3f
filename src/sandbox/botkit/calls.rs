//! XO's side of the BotKit calls. Each call is checked against the requests of public BotKit servers: the token, the
//! `requestId`, the payload. XO's answers are not documented; switches define them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State as Extract};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::state::{BotKitCall, BotKitInner, SessionHandle};
use super::switches::{ClearOfLapsed, RepeatedCall, SkippedTurn, WantsContext};
use super::token;
use super::turns::{self, ShownText};
use crate::sandbox::fault_gate::CallEffect;
use crate::sandbox::state::SandboxState;

/// Maximum difference between a caller's clock and XO's clock, in seconds.
const LEEWAY: f64 = 5.0;
/// The longest word that XO accepts for its bot, in characters.
const WORD_CHARS_MAX: usize = 1_200;
/// The payload classes of public BotKit servers.
const CLASSES: [&str; 8] = [
    "OnMessagePayload",
    "OnAgentTransferPayload",
    "OnEventPayload",
    "OnAlertPayload",
    "OnHookPayload",
    "OnVariableUpdatePayload",
    "OnClientEventPayload",
    "OnclientEventPayload",
];

/// The status and the reason of a refused call.
#[derive(Debug)]
pub(super) struct RefusedCall(StatusCode, String);

impl RefusedCall {
    pub(super) fn new(status: StatusCode, why: &str) -> Self {
        Self(status, why.to_owned())
    }
}

impl IntoResponse for RefusedCall {
    fn into_response(self) -> Response {
        let error = json!({ "errors": [{ "msg": self.1, "code": self.0.as_u16() }] });
        (self.0, Json(error)).into_response()
    }
}

/// `POST {baseUrl}/{call}/{requestId}`
pub(super) async fn call(
    Extract(world): Extract<Arc<SandboxState>>,
    Path((bot, call, handle)): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match take(&world, &bot, &call, &handle, &headers, &body) {
        Ok(answer) => answer,
        Err(refused) if world.botkit.switches().answers_json => refused.into_response(),
        Err(RefusedCall(status, _)) => (status, "Refused").into_response(),
    }
}

fn take(
    world: &Arc<SandboxState>,
    bot: &str,
    call: &str,
    request_id: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Response, RefusedCall> {
    log_in(world, bot, headers)?;
    let body: Value = serde_json::from_slice(body).map_err(|_| bad("the body is not JSON"))?;
    let mut state = world.botkit.lock();
    let switches = state.switches;
    let answered =
        |user: &str| CallEffect::on(success(switches.ok_status, switches.answers_json), user, None);
    let known = state.handle(bot, request_id).cloned();
    let handle = match known {
        Some(handle) if state.is_live(&handle) => handle,
        Some(handle) if call == "clearAgentSession" => match switches.clear_of_lapsed {
            ClearOfLapsed::Refused => return Err(gone(&state)),
            ClearOfLapsed::Taken => handle,
            ClearOfLapsed::Pretended => return Ok(answered(&handle.key.user)),
        },
        _ => return Err(gone(&state)),
    };
    complete(&state, &handle, request_id, &body)?;
    let note = BotKitCall {
        call: call.to_owned(),
        text: ShownText::read(&body).map(|shown| shown.text).filter(|_| call.starts_with("send")),
    };
    let event = handle.event.and_then(|number| state.event(number));
    let repeated = call != "extendcallid" && event.is_some_and(|event| event.calls.contains(&note));
    let user = handle.key.user.clone();
    if repeated && switches.repeated_call == RepeatedCall::Refused {
        return Err(bad("this call was made before"));
    }
    if !(repeated && switches.repeated_call == RepeatedCall::Ignored) {
        act(world, &mut state, call, request_id, &handle, &body)?;
    }
    if let Some(event) = handle.event.and_then(|number| state.event(number)) {
        event.calls.push(note);
    }
    drop(state);
    world.botkit.notify();
    turns::go_on(world, &handle.key);
    Ok(answered(&user))
}

fn success(status: u16, json: bool) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    if json { (status, Json(json!({ "status": "ok" }))).into_response() } else { status.into_response() }
}

fn gone(state: &BotKitInner) -> RefusedCall {
    let status = StatusCode::from_u16(state.switches.lapsed_status).unwrap_or(StatusCode::NOT_FOUND);
    RefusedCall::new(status, "the request id is not known or has lapsed")
}

/// Performs the call, and ends the wait of its event.
fn act(
    world: &SandboxState,
    state: &mut BotKitInner,
    call: &str,
    request_id: &str,
    handle: &SessionHandle,
    body: &Value,
) -> Result<(), RefusedCall> {
    let key = &handle.key;
    let event = handle.event.and_then(|number| state.event(number)).cloned();
    let event_name = event.as_ref().map(|event| event.event.clone()).unwrap_or_default();
    let ends = |state: &mut BotKitInner| handle.event.and_then(|number| state.end_wait(number, call));
    match call {
        "sendUserMessage" | "sendAlertMessage" => {
            let shown = shown(state, body)?;
            ends(state);
            if let Some(shown) = shown {
                turns::user_reads(state, key, shown, request_id, &event_name);
            }
        }
        "sendBotMessage" => {
            let words = words_for_bot(state, body)?;
            ends(state);
            let connects = body.pointer("/channel/botEvent").is_some();
            turns::bot_reads(world, state, key, words, connects);
        }
        "skipBotMessage" | "skipUserMessage" => {
            if let Some(event) = ends(state).filter(|_| state.switches.skipped == SkippedTurn::PassedOn) {
                turns::passes_on(world, state, &event, false);
            }
        }
        "startAgentSession" => {
            let session = state.session(key);
            session.agent_session = true;
            session.agent_sessions += 1;
        }
        "clearAgentSession" => {
            let session = state.session(key);
            (session.agent_transfer, session.agent_session) = (false, false);
            session.clears += 1;
        }
        "extendcallid" => {
            let idle = Duration::from_millis(state.switches.extend_idle_ms);
            let alive = state.session(key).active_at.elapsed() < idle;
            if let Some(live) = state.handle(&key.bot, request_id).filter(|_| alive) {
                live.fresh_at = Instant::now();
            }
        }
        "sendBotEvent" => state.session(key).client_events.push(body.clone()),
        "sendFeedbackMessage" => {
            let feedback = feedback(body)?.clone();
            state.session(key).feedback.push(feedback);
            ends(state);
        }
        "clearConversationSession" => turns::close_session(state, key, false),
        "resetBot" => {
            let session = state.session(key);
            session.stalled = false;
            session.steps.clear();
        }
        "serviceCallback" => drop(ends(state)),
        _ => return Err(RefusedCall::new(StatusCode::NOT_FOUND, "there is no such call")),
    }
    Ok(())
}

/// The text for the bot, if the bot may read it.
fn words_for_bot<'a>(state: &BotKitInner, body: &'a Value) -> Result<Option<&'a str>, RefusedCall> {
    let words = body.get("message").and_then(Value::as_str);
    let most = state.switches.bot_text_chars_max;
    let long_word = |words: &str| words.split_whitespace().any(|word| word.chars().count() > WORD_CHARS_MAX);
    if words.is_some_and(|words| most > 0 && (words.chars().count() > most || long_word(words))) {
        return Err(bad("the message is too long"));
    }
    Ok(words)
}

fn feedback(body: &Value) -> Result<&Value, RefusedCall> {
    let feedback = body.get("feedbackData").unwrap_or(&Value::Null);
    if ["name", "score"].iter().any(|field| feedback.get(field).is_none_or(Value::is_null)) {
        return Err(bad("feedbackData.name or feedbackData.score is missing"));
    }
    Ok(feedback)
}

/// The message for the user; `None` for a template without text, which only the client shows.
fn shown(state: &BotKitInner, body: &Value) -> Result<Option<ShownText>, RefusedCall> {
    let shown = ShownText::read(body);
    if shown.is_none() && body.get("overrideMessagePayload").is_none() {
        return Err(bad("there is no message"));
    }
    let most = state.switches.text_chars_max;
    match shown {
        Some(shown) if most > 0 && shown.text.chars().count() > most => Err(bad("the message is too long")),
        shown => Ok(shown),
    }
}

pub(super) fn bad(why: &str) -> RefusedCall {
    RefusedCall::new(StatusCode::BAD_REQUEST, why)
}

/// Checks the `auth` token: its algorithm, its signature, its app and its expiry.
pub(super) fn log_in(world: &SandboxState, bot: &str, headers: &HeaderMap) -> Result<(), RefusedCall> {
    let refused = |why: &str| RefusedCall::new(StatusCode::UNAUTHORIZED, why);
    let known = world.settings.bots.iter().find(|known| known.bot_id == bot);
    let known = known.ok_or_else(|| refused("there is no such bot"))?;
    let given = headers.get("auth").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let claims = token::claims(given, known.algorithm, &known.client_secret)
        .ok_or_else(|| refused("the token is not signed"))?;
    if claims.get("appId").and_then(Value::as_str) != Some(known.app_id.as_str()) {
        return Err(refused("the token is for another app"));
    }
    let now = crate::clock::now().as_duration().as_secs_f64();
    match claims.get("exp").and_then(Value::as_f64) {
        Some(exp) if now < exp + LEEWAY => Ok(()),
        _ => Err(refused("the token has expired")),
    }
}

/// Whether the body returns the required fields of the event.
fn complete(
    state: &BotKitInner,
    handle: &SessionHandle,
    request_id: &str,
    body: &Value,
) -> Result<(), RefusedCall> {
    let text = |field: &str| body.get(field).and_then(Value::as_str);
    if text("requestId") != Some(request_id) {
        return Err(bad("requestId is missing or wrong"));
    }
    if state.switches.wants_class && !text("__payloadClass").is_some_and(|class| CLASSES.contains(&class)) {
        return Err(bad("__payloadClass is missing or wrong"));
    }
    if body.get("channel").is_none_or(|channel| !channel.is_object()) {
        return Err(bad("channel is missing"));
    }
    let at = |path: &str| body.pointer(path).filter(|value| !value.is_null());
    let enough = match state.switches.wants_context {
        WantsContext::None => true,
        WantsContext::Trimmed => {
            at("/context/session/UserContext/_id").is_some()
                && at("/context/session/BotUserSession/conversationSessionId").is_some()
        }
        WantsContext::Full => body.get("context") == Some(&*handle.context),
    };
    if enough { Ok(()) } else { Err(bad("the context is incomplete")) }
}
