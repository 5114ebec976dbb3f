//! The calls of the BotKit API: texts to the user, the agent session, the life of a reply handle, the transcript.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::user::Heard;
use super::{Board, ROOTS, token, words};
use crate::sandbox::gate::{Effect, gate};
use crate::sandbox::settings::WantsContext;
use crate::sandbox::world::World;

/// How far a caller's clock may be from XO's, in seconds.
const LEEWAY: f64 = 5.0;

type Shared = State<Arc<World>>;

pub(in crate::sandbox) fn router(world: &Arc<World>) -> Router<Arc<World>> {
    let routes = ROOTS.iter().fold(Router::new(), |router, root| {
        router
            .route(&format!("{root}{{bot}}/getMessages"), get(history))
            .route(&format!("{root}{{bot}}/{{call}}/{{handle}}"), post(call))
    });
    routes.layer(from_fn_with_state(world.clone(), gate))
}

/// Why a call is refused.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let error = json!({ "errors": [{ "msg": self.1, "code": self.0.as_u16() }] });
        (self.0, Json(error)).into_response()
    }
}

async fn call(
    State(world): Shared,
    Path((bot, call, handle)): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match take(&world, &bot, &call, handle, &headers, &body) {
        Ok(answer) => answer,
        Err(refused) if world.switchboard.switches().answers_json => refused.into_response(),
        Err(Refused(status, _)) => (status, "Refused").into_response(),
    }
}

fn take(
    world: &World,
    bot: &str,
    call: &str,
    handle: String,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Response, Refused> {
    log_in(world, bot, headers)?;
    let body: Value = serde_json::from_slice(body).map_err(|_| bad("the body is not JSON"))?;
    let mut board = world.switchboard.board();
    let lapsed = StatusCode::from_u16(board.switches.lapsed_status).unwrap_or(StatusCode::NOT_FOUND);
    let gone = || Refused(lapsed, "the request id is not known or has lapsed".to_owned());
    let found = board.live(bot, &handle).ok_or_else(gone)?.clone();
    complete(&board, &found.context, &handle, &body)?;
    let user = found.user;
    match call {
        "sendUserMessage" => {
            let text =
                words(&body).filter(|text| !text.is_empty()).ok_or_else(|| bad("there is no message"))?;
            let most = board.switches.text_chars_max;
            if most > 0 && text.chars().count() > most {
                return Err(bad("the message is too long"));
            }
            let as_agent = body.get("overrideMessagePayload").is_some();
            let person = board.user(&user);
            let with_agent = person.with_agent;
            person.heard.push(Heard { text, as_agent, with_agent, handle });
        }
        "sendBotMessage" => {}
        "startAgentSession" => board.user(&user).sessions += 1,
        "clearAgentSession" => {
            let person = board.user(&user);
            person.with_agent = false;
            person.clears += 1;
        }
        "extendcallid" => {
            if let Some(live) = board.live(bot, &handle) {
                live.fresh_at = Instant::now();
            }
        }
        _ => return Err(Refused(StatusCode::NOT_FOUND, "there is no such call".to_owned())),
    }
    let answer = if board.switches.answers_json {
        Json(json!({ "status": "ok" })).into_response()
    } else {
        StatusCode::OK.into_response()
    };
    Ok(Effect::on(answer, &user, None))
}

#[derive(Deserialize)]
struct Page {
    #[serde(rename = "userId")]
    user: String,
    limit: Option<usize>,
}

/// Newest first.
async fn history(
    State(world): Shared,
    Path(bot): Path<String>,
    Query(page): Query<Page>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    log_in(&world, &bot, &headers)?;
    let mut board = world.switchboard.board();
    let heard = board.user(&page.user).heard.iter().rev().take(page.limit.unwrap_or(20));
    let messages: Vec<Value> =
        heard.map(|heard| json!({ "type": "outgoing", "message": heard.text })).collect();
    Ok(Json(json!({ "messages": messages })).into_response())
}

fn bad(why: &str) -> Refused {
    Refused(StatusCode::BAD_REQUEST, why.to_owned())
}

fn log_in(world: &World, bot: &str, headers: &HeaderMap) -> Result<(), Refused> {
    let refused = |why: &str| Refused(StatusCode::UNAUTHORIZED, why.to_owned());
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

/// Whether the body brings back what the event had.
fn complete(board: &Board, sent: &Value, handle: &str, body: &Value) -> Result<(), Refused> {
    let is = |field: &str, wanted: &str| body.get(field).and_then(Value::as_str) == Some(wanted);
    if !is("requestId", handle) || !is("__payloadClass", "OnMessagePayload") {
        return Err(bad("requestId or __payloadClass is missing or wrong"));
    }
    if body.get("channel").is_none_or(|channel| !channel.is_object()) {
        return Err(bad("channel is missing"));
    }
    let at = |path: &str| body.pointer(path).filter(|value| !value.is_null());
    let enough = match board.switches.wants_context {
        WantsContext::None => true,
        WantsContext::Trimmed => {
            at("/context/session/UserContext/_id").is_some()
                && at("/context/session/BotUserSession/conversationSessionId").is_some()
        }
        WantsContext::Full => body.get("context") == Some(sent),
    };
    if enough { Ok(()) } else { Err(bad("the context is incomplete")) }
}
