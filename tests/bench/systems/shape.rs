//! What is posted and what the destination answers, for each road that a message can take.
//!
//! *Relay*: ServiceNow's callback, posted on to XO's Callback URL as it is. *To agent*: a message of the handoff API, written into a
//! chat of ServiceNow. *To bot*: ServiceNow's callback of such a chat, posted to the events URL. *To BotKit*: the same for a user whom
//! XO's bot handed over, posted to XO's BotKit API.
//! Guarantees: the name of a message is in each body, and the destination finds it however the system wrote the body.
//! Not responsible for: times and counts (`ledger.rs`).

use std::net::SocketAddr;

use causeway::sandbox::BotSettings;
use causeway::sandbox::botkit::token;
use serde_json::json;

use super::ledger::Ledger;
use super::rows::Rows;
use super::wire::find;

/// The road of the messages of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Relay,
    ToAgent,
    ToBot,
    ToBotKit,
    /// The handover of a bot's user, which opens a chat. It is not measured.
    Transfer,
}

/// The token of the doors of Causeway.
pub(crate) const TOKEN: &str = "bench";
/// The text that pads a message.
pub(crate) const TEXT: &str = "Have you tried turning it off and on again? ";

impl Shape {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::ToAgent => "to agent",
            Self::ToBot => "to bot",
            Self::ToBotKit => "to BotKit",
            Self::Transfer => "transfer",
        }
    }

    /// The path of Causeway's door.
    pub(crate) fn path(self) -> String {
        match self {
            Self::Relay | Self::ToBot | Self::ToBotKit => "/v1/callbacks/servicenow?token=bench".to_owned(),
            Self::ToAgent => "/v1/handoffs".to_owned(),
            Self::Transfer => format!("/sdk/bots/{}/on_agent_transfer", BotSettings::default().bot_id),
        }
    }

    /// The line of the credential in a request.
    pub(crate) fn credential(self) -> String {
        let bot = BotSettings::default();
        if self != Self::Transfer {
            return format!("authorization: Bearer {TOKEN}");
        }
        let now = causeway::clock::now().as_second();
        let claims = json!({ "appId": bot.app_id, "iat": now, "exp": now + 600 });
        format!("token: {}", token(bot.algorithm, &claims, &bot.client_secret))
    }

    /// Whether the message is an agent's, so that ServiceNow shows a row.
    pub(crate) const fn has_row(self) -> bool {
        matches!(self, Self::ToBot | Self::ToBotKit)
    }

    /// The shape of the requests that open the chats of this road.
    pub(crate) const fn opening(self) -> Self {
        match self {
            Self::ToBotKit => Self::Transfer,
            _ => Self::ToAgent,
        }
    }

    /// The body of a message, padded to a length. The first message of a conversation opens its chat. XO's calls go to `sink`.
    pub(crate) fn body(self, ledger: &Ledger, message: u32, length: usize, sink: SocketAddr) -> Vec<u8> {
        let (nonce, conversation) = (ledger.nonce, ledger.conversation(message));
        let name = format!("#{nonce:08x}{message:08x} ");
        let (head, tail) = match self {
            Self::Transfer => {
                let head = transfer(&format!("u-{nonce:x}-{conversation:x}"), message, sink);
                (format!(r#"{head}"message":"{name}"#), r#""}"#)
            }
            Self::Relay | Self::ToBot | Self::ToBotKit => {
                let group = group(nonce, conversation);
                let name = if self == Self::Relay { "" } else { name.as_str() };
                let head = format!(
                    r#"{{"group":"{group}","sys_id":"{nonce:08x}{message:08x}0123456789abcdef","sys_created_by":"beth.anglin","last_message":"","formatted_message":"{name}"#,
                );
                (head, r#""}"#)
            }
            Self::ToAgent if ledger.is_first(message) => {
                let head = format!(
                    r#"{{"type":"start","conversation_id":"c-{nonce:x}-{conversation:x}","user":{{"id":"u-{conversation:x}","name":"Ada"}},"message":"{name}"#,
                );
                (head, r#""}"#)
            }
            Self::ToAgent => {
                let head = format!(
                    r#"{{"type":"message","conversation_id":"c-{nonce:x}-{conversation:x}","message":"{name}"#
                );
                (head, r#""}"#)
            }
        };
        let mut body = head.into_bytes();
        let padding = length.saturating_sub(body.len() + tail.len()).max(1);
        body.extend(TEXT.as_bytes().iter().cycle().take(padding));
        body.extend(tail.as_bytes());
        body
    }
}

/// The beginning of an event of XO, without the words of the user.
fn transfer(user: &str, number: u32, sink: SocketAddr) -> String {
    let bot = BotSettings::default().bot_id;
    let base = format!("http://{sink}/api/botsdk/stream/{bot}");
    let event = json!({
        "requestId": number, "botId": bot, "componentId": "default", "baseUrl": base,
        "sendUserMessageUrl": format!("{base}/sendUserMessage"),
        "sendBotMessageUrl": format!("{base}/sendBotMessage"),
        "channel": {"type": "rtm", "from": user, "channelInfos": {"from": user, "type": "rtm"}},
        "context": {"session": {"UserContext": {"_id": user, "firstName": "Ada"},
            "BotUserSession": {"conversationSessionId": user}}},
    });
    let mut text = event.to_string();
    text.pop();
    text.push(',');
    text
}

/// The chat that the destination opens for a conversation.
fn group(nonce: u32, conversation: u32) -> String {
    format!("{conversation:08x}{nonce:08x}c0ffee00c0ffee00")
}

/// The nonce and the number of the message in a body: in its `sys_id`, else behind a `#` in its text.
pub(crate) fn named(body: &[u8]) -> Option<(u32, u32)> {
    let value = match find(body, br#""sys_id""#) {
        Some(key) => key + 8 + body.get(key + 8..)?.iter().position(|byte| *byte == b'"')? + 1,
        None => body.iter().position(|byte| *byte == b'#')? + 1,
    };
    let digits = |from: usize| {
        let digits = std::str::from_utf8(body.get(value + from..value + from + 8)?).ok()?;
        u32::from_str_radix(digits, 16).ok()
    };
    Some((digits(0)?, digits(8)?))
}

/// The answer of ServiceNow's API, or of a server that needs no answer. `head`: the request line and the headers.
pub(crate) fn answer(head: &[u8], body: &[u8], rows: &Rows) -> String {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let is = |part: &[u8]| find(line, part).is_some();
    let content = match named(body) {
        _ if line.starts_with(b"GET ") => read(line, rows),
        Some((nonce, message)) if is(b"/sessions ") => {
            format!(r#"{{"result":{}}}"#, session(nonce, message))
        }
        Some((nonce, message)) if is(b"/messages ") => {
            format!(r#"{{"result":{{"sys_id":"{nonce:08x}{message:08x}fedcba9876543210"}}}}"#)
        }
        _ => "{}".to_owned(),
    };
    let length = content.len();
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{content}")
}

/// A chat that an agent has accepted.
fn session(nonce: u32, conversation: u32) -> String {
    let group = group(nonce, conversation);
    format!(
        r#"{{"group":"{group}","sys_id":"{group}","number":"CHAT{conversation:07}","state":2,"position":1,"assigned_to":"beth.anglin"}}"#
    )
}

/// The answer to a reading: the messages or the state of one chat. The tables and the lists of queues show nothing, as for a user
/// without the role.
fn read(line: &[u8], rows: &Rows) -> String {
    let path = std::str::from_utf8(line).unwrap_or_default();
    let chat = |before: &str| {
        let names = path.split_once(before)?.1;
        let digits = |from: usize| u32::from_str_radix(names.get(from..from + 8)?, 16).ok();
        Some((digits(8)?, digits(0)?))
    };
    if let Some((nonce, conversation)) = chat("/connect/conversations/") {
        let before = path.split_once("before=").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
        return rows.page(nonce, conversation, before);
    }
    match chat("group_id=") {
        Some((nonce, conversation)) => format!(r#"{{"result":[{}]}}"#, session(nonce, conversation)),
        None => r#"{"result":[]}"#.to_owned(),
    }
}
