//! What is posted and what the destination answers, for each road that a message can take.
//!
//! *Relay*: ServiceNow's callback, posted on to XO's Callback URL as it is. *To agent*: a message of the handoff API, written into a
//! chat of ServiceNow. *To bot*: ServiceNow's callback of such a chat, told at the events URL.
//! Guarantees: the name of a message is in each body, and the destination finds it however the system wrote the body.
//! Not responsible for: times and counts (`ledger.rs`).

use super::ledger::Ledger;
use super::wire::find;

/// The road of the messages of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Relay,
    ToAgent,
    ToBot,
}

/// The token of the doors of Causeway.
pub(crate) const TOKEN: &str = "bench";

impl Shape {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::ToAgent => "to agent",
            Self::ToBot => "to bot",
        }
    }

    /// The path of Causeway's door.
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Relay | Self::ToBot => "/v1/callbacks/servicenow?token=bench",
            Self::ToAgent => "/v1/handoffs",
        }
    }

    /// The body of a message, padded to a length. The first message of a conversation opens its chat.
    pub(crate) fn body(self, ledger: &Ledger, message: u32, length: usize) -> Vec<u8> {
        let (nonce, conversation) = (ledger.nonce, ledger.conversation(message));
        let name = format!("#{nonce:08x}{message:08x} ");
        let (head, tail) = match self {
            Self::Relay | Self::ToBot => {
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
        body.extend(b"Have you tried turning it off and on again? ".iter().cycle().take(padding));
        body.extend(tail.as_bytes());
        body
    }
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
pub(crate) fn answer(head: &[u8], body: &[u8]) -> String {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let is = |part: &[u8]| find(line, part).is_some();
    let content = match named(body) {
        _ if line.starts_with(b"GET ") => r#"{"result":[]}"#.to_owned(),
        Some((nonce, message)) if is(b"/sessions ") => {
            let group = group(nonce, message);
            format!(
                r#"{{"result":{{"group":"{group}","sys_id":"{group}","number":"CHAT{message:07}","state":2,"position":1}}}}"#
            )
        }
        Some((nonce, message)) if is(b"/messages ") => {
            format!(r#"{{"result":{{"sys_id":"{nonce:08x}{message:08x}fedcba9876543210"}}}}"#)
        }
        _ => "{}".to_owned(),
    };
    let length = content.len();
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{content}")
}
