//! The payloads of XO's events, as a BotKit server receives them.

use std::sync::Arc;

use serde_json::{Value, json};

use super::ROOT;
use super::channel::{ChannelParts, ChannelShape, channel};
use super::state::{BotConnection, BotKitInner, SessionKey};

/// The parts of one event.
#[derive(Debug, Default)]
pub(super) struct EventParts<'a> {
    /// The text; `None`: the key `message` is absent.
    pub(super) words: Option<&'a str>,
    pub(super) is_transfer: bool,
    /// Whether the event has a new message id. XO gives each user message a new id. A bot message keeps the id of the
    /// user's message.
    pub(super) names_message: bool,
}

/// Builds the event and its reply handle.
pub(super) fn event(
    state: &mut BotKitInner,
    key: &SessionKey,
    connection: &BotConnection,
    parts: &EventParts<'_>,
) -> Value {
    let switches = state.switches;
    let number = state.number();
    let request_id = format!("{}-{number}", crate::clock::now().as_millisecond());
    let session = state.session(key);
    if parts.names_message {
        session.message_id = format!("ms-{}-{number}", key.user);
    }
    let session = session.clone();
    let fresh = || {
        let mut fresh = context(key, &session.id, number, parts.words, switches.context_bytes);
        merge(&mut fresh, &connection.context);
        fresh
    };
    let stale = switches.stale_context
        && session.with_agent()
        && !parts.is_transfer
        && !session.transferred.is_null();
    let context = if stale { session.transferred.clone() } else { fresh() };
    if parts.is_transfer {
        state.session(key).transferred = context.clone();
    }
    let shape =
        connection.shape.unwrap_or(if parts.is_transfer { ChannelShape::Nested } else { ChannelShape::Flat });
    let (transfer_flag, session_flag) = session.flags(switches.agent_flags);
    let mut event = addresses(connection, key, &request_id);
    event["channel"] = channel(&ChannelParts {
        kind: key.channel,
        shape,
        user: &key.user,
        bot: &key.bot,
        session: &session.id,
        message_id: &session.message_id,
        words: parts.words,
    });
    event["context"] = context.clone();
    event["metaInfo"] = json!({});
    event["metaTags"] = json!({ "userMetaTags": [], "sessionMetaTags": [], "messageMetaTags": [] });
    event["agent_transfer"] = json!(transfer_flag);
    if let Some(flag) = session_flag {
        event["agent_session"] = json!(flag);
    }
    if let Some(words) = parts.words {
        event["message"] = json!(words);
    }
    if parts.is_transfer {
        // A transfer has neither text nor flags at the top level. Its text is in the channel and in the context.
        merge(&mut event, &json!({ "message": null, "agent_transfer": null, "agent_session": null }));
        event["callbackUrl"] = address(connection, key, "serviceCallback", &request_id);
    }
    state.add_handle(request_id, key, Arc::new(context));
    event
}

/// A reply URL of this event.
pub(super) fn address(connection: &BotConnection, key: &SessionKey, call: &str, request_id: &str) -> Value {
    json!(format!("{}{ROOT}{}/{call}/{request_id}", connection.xo, key.bot))
}

fn addresses(connection: &BotConnection, key: &SessionKey, request_id: &str) -> Value {
    let base = format!("{}{ROOT}{}", connection.xo, key.bot);
    let at = |call: &str| address(connection, key, call, request_id);
    json!({
        "requestId": request_id,
        "botId": key.bot,
        "componentId": "default",
        "sendUserMessageUrl": at("sendUserMessage"),
        "sendBotMessageUrl": at("sendBotMessage"),
        "skipUserMessageUrl": at("skipUserMessage"),
        "skipBotMessageUrl": at("skipBotMessage"),
        "sendAlertMessageUrl": at("sendAlertMessage"),
        "sendFeedbackMessageUrl": at("sendFeedbackMessage"),
        "resetBotUrl": at("resetBot"),
        "clearConversationSessionUrl": at("clearConversationSession"),
        "baseUrl": base,
    })
}

fn context(key: &SessionKey, session: &str, number: u64, last_words: Option<&str>, size: usize) -> Value {
    let channel = key.channel.type_name();
    let mut payload = json!({ "clientMessageId": number });
    if let Some(words) = last_words {
        payload["message"] = json!({ "body": words });
    }
    json!({
        "bot": "Help", "botid": key.bot, "intent": "TalkToAgent", "currentLanguage": "en",
        "entities": { "filler": "x".repeat(size) },
        "userInputs": { "originalInput": { "sentence": last_words.unwrap_or_default() } },
        "history": [
            { "type": "dialog", "nodeId": "intent0", "state": "processing", "nodeName": "Help" },
            { "dialogState": "transferredToAgent" },
        ],
        "session": {
            "UserContext": key.channel.user_context(&key.user),
            "BotUserSession": {
                "conversationSessionId": session,
                "channels": [{ "type": channel, "client": "websdk" }],
                "lastMessage": { "channel": channel, "messagePayload": payload },
            },
            "opts": { "userId": key.user, "streamId": key.bot },
        },
    })
}

/// Merges `more` into `base`, object by object. A null removes a key.
pub(super) fn merge(base: &mut Value, more: &Value) {
    match (base, more) {
        (Value::Object(base), Value::Object(more)) => {
            for (key, value) in more {
                if value.is_null() {
                    base.remove(key);
                } else {
                    merge(base.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
        }
        (_, Value::Null) => {}
        (base, more) => *base = more.clone(),
    }
}
