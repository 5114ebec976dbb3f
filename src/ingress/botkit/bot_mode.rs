//! Events of a user in bot mode: all messages between user and bot go through Causeway, and XO waits until they are
//! passed on.
//!
//! The bot stays silent if an event is only acknowledged (`src/platform/xo/FACTS.md`).
//! Guarantees: each event becomes one message on the queue before it is acknowledged. The body of the message is the
//! body that Kore's BotKit posts back (its keys, in the received spelling), so a worker posts it byte for byte. A
//! repeat of the same post is the same message. Two posts that differ in any way are two messages. The directory is
//! not read.
//! Not responsible for: the call (`bridge/to_bot/bot_turn.rs`), users who are with an agent (`mod.rs`).

use serde_json::value::RawValue;

use super::event::{EventPayload, digest};
use crate::http_server::problem::ApiError;
use crate::message::{Kind, LaneKey, Message, MessageId, bot_turn};

/// The BotKit class of an event, with the keys that the class writes.
struct PayloadClass {
    name: &'static str,
    keys: &'static [&'static str],
    acks: bool,
}

const MESSAGE: PayloadClass = PayloadClass {
    name: "OnMessagePayload",
    keys: &[
        "/skipUserMessageUrl",
        "/skipBotMessageUrl",
        "/getBotVariableUrl",
        "/context",
        "/channel",
        "/message",
        "/agent_transfer",
        "/baseUrl",
        "/isTemplate",
        "/metaInfo",
        "/formattedMessage",
        "/overrideMessagePayload",
        "/metaTags",
        "/messageObject",
        "/sendFeedbackMessageUrl",
    ],
    acks: true,
};
const ALERT: PayloadClass = PayloadClass {
    name: "OnAlertPayload",
    keys: &[
        "/sendAlertMessageUrl",
        "/skipUserMessageUrl",
        "/skipBotMessageUrl",
        "/getBotVariableUrl",
        "/context",
        "/channel",
        "/baseUrl",
        "/isTemplate",
        "/message",
        "/metaInfo",
        "/formattedMessage",
        "/overrideMessagePayload",
        "/metaTags",
        "/messageObject",
        "/sendFeedbackMessageUrl",
    ],
    acks: false,
};
const CLIENT_EVENT: PayloadClass = PayloadClass {
    name: "OnclientEventPayload",
    keys: &[
        "/sendBotEventUrl",
        "/getBotVariableUrl",
        "/context",
        "/channel",
        "/agent_transfer",
        "/baseUrl",
        "/metaInfo",
        "/preDefinedEvent",
        "/customEvent",
    ],
    acks: true,
};

const MISSING: &str =
    "sendBotMessageUrl and sendUserMessageUrl, or baseUrl and requestId: needed to pass messages on";

/// Converts an event of a user in bot mode to a message. `None` if XO does not wait for a call.
pub(super) fn message(payload: &EventPayload<'_>, kind: Kind) -> Result<Option<BotTurnMessage>, ApiError> {
    let class = match kind {
        Kind::BotAlert if payload.at("/sendAlertMessageUrl").is_none() => return Ok(None),
        Kind::BotClientEvent if payload.at("/sendBotEventUrl").is_none() => return Ok(None),
        Kind::BotAlert => ALERT,
        Kind::BotClientEvent => CLIENT_EVENT,
        _ => MESSAGE,
    };
    let text = match kind {
        Kind::BotUserMessage if payload.is_without_words() => payload.file_names().map(|names| json(&names)),
        _ => None,
    };
    let body = body(payload, &class, &TurnChanges { text, skips: false })?;
    Ok(Some(BotTurnMessage::new(payload, kind, body)))
}

/// The bot's message to a user who is with an agent. XO continues without showing it.
pub(super) fn skipped(payload: &EventPayload<'_>) -> Result<BotTurnMessage, ApiError> {
    let body = body(payload, &MESSAGE, &TurnChanges { text: Some(json("")), skips: true })?;
    Ok(BotTurnMessage::new(payload, Kind::BotBotMessage, body))
}

/// A message of bot mode without its destination.
pub(super) struct BotTurnMessage {
    id: MessageId,
    kind: Kind,
    lane: LaneKey,
    body: Vec<u8>,
}

impl BotTurnMessage {
    fn new(payload: &EventPayload<'_>, kind: Kind, body: Vec<u8>) -> Self {
        let id = MessageId::derived_from("botkit-turn", &[kind.as_str(), &digest(&[payload.json()])]);
        // Without a requestId two equal posts count as two messages.
        let id = if payload.request_id().is_some() { id } else { MessageId::fresh() };
        // A bot that never hands users over may not send a user id. Each of its events then gets a lane of its own.
        let lane = payload.conversation().map_or_else(|_| LaneKey::alone(id), |of| bot_turn::lane(kind, &of));
        Self { id, kind, lane, body }
    }

    pub(super) fn into_message(self, destination: crate::message::Destination) -> Message {
        Message::new(self.id, self.kind, destination, self.lane, self.body)
    }
}

/// The changes to the received body.
struct TurnChanges {
    /// The JSON of a different `message`.
    text: Option<String>,
    /// The message is not shown, because it is empty.
    skips: bool,
}

/// The body that BotKit posts back. Keys that the class does not know, and keys that were not received, are left out.
fn body(
    payload: &EventPayload<'_>,
    class: &PayloadClass,
    changes: &TurnChanges,
) -> Result<Vec<u8>, ApiError> {
    let mut body = PayloadWriter::new(class.name);
    let request = payload.raw_at("/requestId");
    // BotKit also generates an id if the request has none.
    let request_name = request.map_or_else(|| json(&unnamed()), |value| value.get().to_owned());
    body.write("requestId", &request_name);
    body.write("botId", &json(&payload.route.bot_id));
    body.write("componentId", &json(&payload.route.component_id));
    for operation in ["sendUserMessage", "sendBotMessage"] {
        let address = payload.address(operation);
        match address {
            Some(address) => body.write(&format!("{operation}Url"), &address),
            None if class.name == MESSAGE.name => return Err(ApiError::Insufficient(MISSING)),
            None => {}
        }
    }
    for path in class.keys {
        let key = path.trim_start_matches('/');
        let value = payload.raw_at(path).map(RawValue::get);
        match (key, value) {
            ("message", _) if changes.text.is_some() => {
                body.write(key, changes.text.as_deref().unwrap_or_default());
            }
            ("overrideMessagePayload", _) if changes.skips => {}
            ("agent_transfer", None) => body.write(key, "false"),
            (_, Some(value)) => body.write(key, value),
            (_, None) => {}
        }
    }
    if class.acks {
        body.write("ackMessage", "true");
    }
    Ok(body.finish())
}

/// Writes a JSON object key by key.
struct PayloadWriter(Vec<u8>);

impl PayloadWriter {
    fn new(class: &str) -> Self {
        Self(format!(r#"{{"__payloadClass":{}"#, json(class)).into_bytes())
    }

    /// Adds a key. `value` must be JSON.
    fn write(&mut self, key: &str, value: &str) {
        self.0.extend_from_slice(b",");
        self.0.extend_from_slice(json(key).as_bytes());
        self.0.extend_from_slice(b":");
        self.0.extend_from_slice(value.as_bytes());
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.push(b'}');
        self.0
    }
}

fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn unnamed() -> String {
    MessageId::fresh().to_string().replace('-', "")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{BotKitEvent, BotKitRoute};
    use super::*;

    const BASE: &str = "https://platform.kore.ai/api/botsdk/stream/st-1";

    fn route() -> BotKitRoute {
        BotKitRoute { bot_id: "st-1".into(), component_id: "default".into(), event: BotKitEvent::UserMessage }
    }

    fn turn(json: &str, kind: Kind) -> BotTurnMessage {
        let route = route();
        let payload = EventPayload::read(&route, json.as_bytes()).ok().unwrap();
        message(&payload, kind).ok().unwrap().unwrap()
    }

    fn event(more: &str) -> String {
        let rest = if more.is_empty() { String::new() } else { format!(", {more}") };
        format!(
            r#"{{"requestId": 1501244156289, "baseUrl": "{BASE}", "channel": {{"from": "u-1", "type": "rtm"}}{rest}}}"#
        )
    }

    fn posted(json: &str, kind: Kind) -> Value {
        serde_json::from_slice(&turn(json, kind).body).unwrap()
    }

    #[test]
    fn the_body_has_botkits_keys_and_the_values_that_came() {
        let json = event(
            r#""message": "héllo é", "context": {"n": 1.50, "big": 12345678901234567890123}, "metaInfo": null,
               "resetBotUrl": "https://platform.kore.ai/reset", "clearConversationSessionUrl": "x", "mine": 1,
               "agent_transfer": false, "overrideMessagePayload": {"isTemplate": true, "body": "{\"type\":\"template\"}"}"#,
        );
        let turn = turn(&json, Kind::BotBotMessage);
        let text = String::from_utf8(turn.body).unwrap();
        // The text as it was received, not as a serializer would write it.
        for kept in [
            r#""context":{"n": 1.50, "big": 12345678901234567890123}"#,
            r#""message":"héllo é""#,
            r#""requestId":1501244156289"#,
        ] {
            assert!(text.contains(kept), "{kept} is not in {text}");
        }
        let value: Value = serde_json::from_str(&text).unwrap();
        let keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = vec![
            "__payloadClass",
            "ackMessage",
            "agent_transfer",
            "baseUrl",
            "botId",
            "channel",
            "componentId",
            "context",
            "message",
            "metaInfo",
            "overrideMessagePayload",
            "requestId",
            "sendBotMessageUrl",
            "sendUserMessageUrl",
        ];
        expected.sort_unstable();
        let mut keys = keys;
        keys.sort_unstable();
        assert_eq!(keys, expected);
        assert_eq!(value["__payloadClass"], "OnMessagePayload");
        assert_eq!(value["sendBotMessageUrl"], format!("{BASE}/sendBotMessage/1501244156289"));
    }

    #[test]
    fn a_file_without_words_is_named() {
        let file = event(
            r#""channel": {"from": "u-1", "type": "rtm", "attachments": [{"fileName": "../a/b\\crack.png", "fileUrl": "https://f/x"}, {"fileName": "two.pdf"}]}"#,
        );
        assert_eq!(posted(&file, Kind::BotUserMessage)["message"], "crack.png, two.pdf");
        let spoken =
            event(r#""message": "look", "channel": {"from": "u-1", "attachments": [{"fileName": "a.png"}]}"#);
        assert_eq!(posted(&spoken, Kind::BotUserMessage)["message"], "look");
        let connected = event(r#""channel": {"from": "u-1", "botEvent": "ON_CONNECT_EVENT"}"#);
        assert_eq!(posted(&connected, Kind::BotUserMessage).get("message"), None);
    }

    #[test]
    fn a_repeat_is_the_same_message_and_nothing_else_is() {
        let id = |json: &str, kind| turn(json, kind).id;
        let yes = event(r#""message": "yes""#);
        assert_eq!(id(&yes, Kind::BotUserMessage), id(&yes, Kind::BotUserMessage));
        assert_ne!(id(&yes, Kind::BotUserMessage), id(&yes, Kind::BotBotMessage));
        assert_ne!(id(&yes, Kind::BotUserMessage), id(&event(r#""message": "no""#), Kind::BotUserMessage));
        let later = yes.replace("1501244156289", "1501244156290");
        assert_ne!(id(&yes, Kind::BotUserMessage), id(&later, Kind::BotUserMessage));
        let unnamed = format!(
            r#"{{"sendBotMessageUrl": "{BASE}/sendBotMessage/1", "sendUserMessageUrl": "{BASE}/x", "message": "yes"}}"#
        );
        assert_ne!(id(&unnamed, Kind::BotUserMessage), id(&unnamed, Kind::BotUserMessage));
    }

    #[test]
    fn alerts_and_client_events_have_their_own_class() {
        let alert = event(&format!(
            r#""message": "rain", "agent_transfer": false, "sendAlertMessageUrl": "{BASE}/sendAlertMessage/1""#
        ));
        let alert = posted(&alert, Kind::BotAlert);
        assert_eq!((&alert["__payloadClass"], &alert["message"]), (&json!("OnAlertPayload"), &json!("rain")));
        assert_eq!((alert.get("ackMessage"), alert.get("agent_transfer")), (None, None));
        let typing = event(&format!(
            r#""preDefinedEvent": {{"type": "TYPING_STARTED"}}, "sendBotEventUrl": "{BASE}/sendBotEvent/1""#
        ));
        let typing = posted(&typing, Kind::BotClientEvent);
        assert_eq!(typing["preDefinedEvent"], json!({"type": "TYPING_STARTED"}));
        let route = route();
        let without = event(r#""message": "rain""#);
        let payload = EventPayload::read(&route, without.as_bytes()).ok().unwrap();
        assert!(message(&payload, Kind::BotAlert).ok().unwrap().is_none());
    }

    #[test]
    fn without_an_address_nothing_is_taken() {
        let route = route();
        let json = r#"{"requestId": 1, "message": "hi", "channel": {"from": "u-1"}}"#;
        let payload = EventPayload::read(&route, json.as_bytes()).ok().unwrap();
        let refusal = message(&payload, Kind::BotUserMessage).err().unwrap();
        assert!(refusal.to_string().contains("sendBotMessageUrl"), "{refusal}");
    }

    #[test]
    fn a_skipped_turn_has_no_text() {
        let route = route();
        let json = event(
            r#""message": "from the bot", "overrideMessagePayload": {"body": "x"}, "agent_transfer": true"#,
        );
        let payload = EventPayload::read(&route, json.as_bytes()).ok().unwrap();
        let body: Value = serde_json::from_slice(&skipped(&payload).ok().unwrap().body).unwrap();
        assert_eq!((&body["message"], body.get("overrideMessagePayload")), (&json!(""), None));
    }
}
