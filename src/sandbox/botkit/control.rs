//! The controls of the simulated users over HTTP, for people and for tests in other processes.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::channel::ChannelKind;
use super::files::UserFile;
use super::state::PostedEvent;
use super::user::BotUser;
use crate::sandbox::control::{problem, wrong};
use crate::sandbox::state::SandboxState;

type Shared = State<Arc<SandboxState>>;

pub(in crate::sandbox) fn router() -> Router<Arc<SandboxState>> {
    Router::new()
        .route("/sandbox/events", get(events))
        .route("/sandbox/users/{user}", get(user))
        .route("/sandbox/users/{user}/{deed}", post(act))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventFilter {
    user: Option<String>,
    waiting: Option<bool>,
    repeated: Option<bool>,
}

async fn events(State(world): Shared, Query(filter): Query<EventFilter>) -> Response {
    let state = world.botkit.lock();
    let fits = |event: &&PostedEvent| {
        filter.user.as_ref().is_none_or(|user| *user == event.user)
            && filter.waiting.is_none_or(|waiting| waiting == event.waiting)
            && filter.repeated.is_none_or(|repeated| repeated != event.repeated_calls().is_empty())
    };
    let shown: Vec<&PostedEvent> = state.events().filter(fits).collect();
    Json(json!({ "events": shown })).into_response()
}

/// The actions and messages of one user. Each session is one bot on one channel.
async fn user(State(world): Shared, Path(user): Path<String>) -> Response {
    let state = world.botkit.lock();
    let sessions: Vec<Value> = state
        .sessions()
        .filter(|(key, _)| key.user == user)
        .map(|(key, session)| {
            let waiting: Vec<&PostedEvent> =
                state.events().filter(|event| event.waiting && event.key == *key).collect();
            json!({
                "bot": key.bot, "channel": key.channel.type_name(), "session_id": session.id,
                "agent_transfer": session.agent_transfer, "agent_session": session.agent_session,
                "agent_sessions": session.agent_sessions, "clears": session.clears,
                "read": session.heard, "bot_read": session.bot_read, "waiting": waiting,
            })
        })
        .collect();
    if sessions.is_empty() {
        return problem(StatusCode::NOT_FOUND, "there is no such user yet");
    }
    Json(json!({ "sessions": sessions })).into_response()
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct UserAction {
    text: Option<String>,
    channel: Option<String>,
    bot: Option<String>,
    name: Option<String>,
}

async fn act(State(world): Shared, Path((user, action)): Path<(String, String)>, body: Bytes) -> Response {
    let said: UserAction = match serde_json::from_slice(if body.is_empty() { b"{}" } else { &body }) {
        Ok(said) => said,
        Err(error) => return wrong(&format!("not an action of a user: {error}; see GET /sandbox")),
    };
    let user = match player(&world, &user, &said) {
        Ok(user) => user,
        Err(mistake) => return wrong(&mistake),
    };
    let text = said.text.as_deref();
    let answer = match (action.as_str(), text) {
        ("say", Some(text)) => user.says(text).await,
        ("transfer", Some(text)) => user.transfers(text).await,
        ("alert", Some(text)) => user.alert(text).await,
        ("say" | "transfer" | "alert", None) => return wrong("text: it is missing"),
        ("file", words) => {
            let name = said.name.as_deref().unwrap_or("note.txt");
            user.sends_file(&UserFile::new(name, "text/plain", "A file of the sandbox.\n"), words).await
        }
        ("connect", _) => user.connects().await,
        ("end", _) => user.ends_in_widget().await,
        ("type", _) => user.types().await,
        ("lapse", _) => {
            user.handles_lapse();
            return StatusCode::NO_CONTENT.into_response();
        }
        ("expire", _) => {
            user.session_expires();
            return StatusCode::NO_CONTENT.into_response();
        }
        (other, _) => {
            let known = "say, file, connect, type, end, transfer, alert, lapse or expire";
            return wrong(&format!("{other}: a user can {known}"));
        }
    };
    Json(json!({ "status": answer.status, "body": answer.body })).into_response()
}

fn player(world: &Arc<SandboxState>, user: &str, said: &UserAction) -> Result<BotUser, String> {
    let ingress_url = world.botkit.lock().ingress_url.clone();
    let ingress_url =
        ingress_url.ok_or("this sandbox does not know where its BotKit server is: see --botkit-url")?;
    let home = world.settings.public_url.as_deref().unwrap_or(&world.url);
    let mut player = BotUser::new(world, home, &ingress_url, user);
    if let Some(name) = &said.bot {
        let bot = world.settings.bots.iter().find(|bot| bot.bot_id == *name);
        player = player.at(bot.ok_or_else(|| format!("bot: {name} is not a bot of this sandbox"))?);
    }
    if let Some(name) = &said.channel {
        let known = ChannelKind::parse(name);
        let channel = known.ok_or_else(|| format!("channel: {name} is not one of rtm, whatsapp, msteams"))?;
        player = player.on_channel(channel);
    }
    Ok(player)
}
