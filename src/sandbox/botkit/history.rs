//! `getMessages`: the messages of the user and the bot, in the shape that XO returns to a BotKit server.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::calls::{RefusedCall, log_in};
use super::state::HistoryMessage;
use crate::sandbox::state::SandboxState;

#[derive(Debug, Deserialize)]
pub(super) struct HistoryQuery {
    #[serde(rename = "userId")]
    user: String,
    #[serde(rename = "channelType")]
    channel: Option<String>,
    skip: Option<usize>,
    limit: Option<usize>,
}

/// `GET {baseUrl}/getMessages`: newest message first.
pub(super) async fn history(
    State(world): State<Arc<SandboxState>>,
    Path(bot): Path<String>,
    Query(page): Query<HistoryQuery>,
    headers: HeaderMap,
) -> Result<Response, RefusedCall> {
    log_in(&world, &bot, &headers)?;
    let state = world.botkit.lock();
    let of_user = state.sessions().filter(|(key, _)| {
        key.bot == bot
            && key.user == page.user
            && page.channel.as_deref().is_none_or(|channel| channel == key.channel.type_name())
    });
    let mut messages: Vec<(&'static str, &HistoryMessage)> = of_user
        .flat_map(|(key, session)| session.history.iter().map(|message| (key.channel.type_name(), message)))
        .collect();
    messages.sort_by_key(|(_, message)| message.at);
    let total = messages.len();
    let (skip, limit) = (page.skip.unwrap_or(0), page.limit.unwrap_or(20));
    let mut shown: Vec<Value> = messages
        .iter()
        .rev()
        .skip(skip)
        .take(limit)
        .map(|(channel, message)| item(channel, message))
        .collect();
    if state.switches.oldest_first {
        shown.reverse();
    }
    let more = total > skip + shown.len();
    Ok(Json(json!({ "total": total, "moreAvailable": more, "messages": shown })).into_response())
}

fn item(channel: &str, message: &HistoryMessage) -> Value {
    let mut data = json!({ "text": message.text });
    if !message.attachments.is_empty() {
        data["attachments"] = json!(message.attachments);
    }
    json!({
        "_id": message.id,
        "type": if message.incoming { "incoming" } else { "outgoing" },
        "status": "delivered",
        "createdOn": message.at.to_string(),
        "channels": [{ "type": channel }],
        "components": [{ "cT": "text", "data": data }],
    })
}
