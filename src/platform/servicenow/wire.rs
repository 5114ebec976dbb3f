//! The JSON of Connect Support and its types, parsed as ServiceNow's own client does.
//!
//! Guarantees: unknown fields are ignored. A number can be a number or text. An absent value can be null, missing or
//! empty text. Only a 2xx with JSON that has a `result` is success.
//! Not responsible for: the calls (`connect_support.rs`, `readback.rs`).
//! Sources: `tests/fixtures/servicenow/SOURCES.md`.

use reqwest::StatusCode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use url::Url;

use super::{ChatState, QueueEntry, QueueState};
use crate::message::callback::is_set;
use crate::message::{PlatformWords, json, rich_text};
use crate::platform::error::{AnswerKind, CallError, ErrorAnswer, NotReady, SECOND_FACTOR};
use crate::platform::http::{HttpReply, MediaType};

/// The longest sentence in characters that is relayed to a user.
const SENTENCE_CHARS_MAX: usize = 1000;

/// Reads the `result` of an answer. `sent_text` is the chat text of the call, which is redacted from errors.
pub(super) fn read<T: DeserializeOwned>(
    reply: HttpReply,
    sent_text: &str,
    instance: &Url,
) -> Result<T, CallError> {
    let reply = answered(reply, sent_text, instance)?;
    match reply.media() {
        MediaType::Other | MediaType::Html => Err(CallError::bad_body("success without JSON")),
        MediaType::Json => {
            #[derive(Deserialize)]
            struct ResultWrapper<T> {
                result: T,
            }
            let body = reply.body?;
            let wrapped = serde_json::from_slice::<ResultWrapper<T>>(&body);
            // serde's message may quote the answer, which holds chat text.
            Ok(wrapped.map_err(|_| CallError::bad_body("JSON without the documented `result`"))?.result)
        }
    }
}

/// Accepts an answer with a success status that is not a web page.
pub(super) fn answered(reply: HttpReply, sent_text: &str, instance: &Url) -> Result<HttpReply, CallError> {
    if reply.status == StatusCode::ACCEPTED {
        return Err(not_ready(&reply, NotReady::Accepted));
    }
    if !reply.status.is_success() {
        return Err(refusal(&reply, sent_text, instance));
    }
    if reply.media() == MediaType::Html {
        return Err(not_ready(&reply, NotReady::Html));
    }
    Ok(reply)
}

fn not_ready(reply: &HttpReply, how: NotReady) -> CallError {
    let (status, retry_after) = (reply.status.as_u16(), reply.retry_after());
    let (kind, detail, said) = (AnswerKind::NotReady(how), String::new(), PlatformWords::default());
    CallError::Answer(ErrorAnswer { status, retry_after, kind, detail, said })
}

fn refusal(reply: &HttpReply, sent_text: &str, instance: &Url) -> CallError {
    let body: Value = reply.body.as_ref().ok().and_then(|body| json::bounded(body).ok()).unwrap_or_default();
    let status = reply.status.as_u16();
    let sentence = body.get("result").and_then(Value::as_str);
    let kind = match sentence {
        Some(sentence) if matches!(status, 403 | 503) => AnswerKind::Business(readable(sentence, instance)),
        _ => AnswerKind::of_status(status),
    };
    let said = [&body["error"]["message"], &body["error"], &body["result"]["error"]];
    let said = said.into_iter().find_map(Value::as_str).or(sentence).unwrap_or_default();
    // The password is correct. The usual text would make the operator look for a wrong password.
    let detail = if reply.headers.contains_key("x-mfa_token") { SECOND_FACTOR } else { "" }.to_owned();
    let (retry_after, said) = (reply.retry_after(), PlatformWords::new(said, sent_text));
    CallError::Answer(ErrorAnswer { status, retry_after, kind, detail, said })
}

/// A queue's "Not available" text may hold HTML with links. The result is plain text with the addresses of the links.
fn readable(sentence: &str, instance: &Url) -> String {
    let words = rich_text::html_text(sentence, Some(instance));
    words.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(SENTENCE_CHARS_MAX).collect()
}

/// A `chat_queue_entry`.
#[derive(Deserialize)]
pub(super) struct WireEntry {
    #[serde(default, deserialize_with = "text")]
    sys_id: Option<String>,
    #[serde(default, deserialize_with = "text")]
    group: Option<String>,
    #[serde(default, deserialize_with = "text")]
    queue: Option<String>,
    #[serde(default, deserialize_with = "text")]
    number: Option<String>,
    #[serde(default, deserialize_with = "number")]
    position: Option<i64>,
    #[serde(default, deserialize_with = "number")]
    state: Option<i64>,
    #[serde(default, deserialize_with = "text")]
    average_wait_time: Option<String>,
    #[serde(default, deserialize_with = "text")]
    wait_time: Option<String>,
    #[serde(default, deserialize_with = "text")]
    assigned_to: Option<String>,
    #[serde(default, deserialize_with = "text")]
    pub(super) short_description: Option<String>,
}

impl WireEntry {
    /// Converts the entry. `None` without a group, because the group is needed to write into the conversation.
    pub(super) fn parse(self) -> Option<QueueEntry> {
        Some(QueueEntry {
            group: self.group?,
            sys_id: self.sys_id.unwrap_or_default(),
            number: self.number,
            queue: self.queue,
            position: self.position.and_then(|position| u32::try_from(position).ok()),
            wait: self.average_wait_time.or(self.wait_time),
            assigned_to: self.assigned_to,
            state: self.state.map(ChatState::from),
        })
    }
}

/// An element of a sessions list: a conversation with a nested `queueEntry`, or the entry itself.
#[derive(Deserialize)]
pub(super) struct WireSession {
    #[serde(rename = "queueEntry")]
    nested: Option<WireEntry>,
    #[serde(flatten)]
    flat: WireEntry,
}

impl WireSession {
    pub(super) fn entry(self) -> WireEntry {
        match self.nested {
            // The sys_id of the conversation is the group.
            Some(entry) => WireEntry { group: entry.group.or(self.flat.group).or(self.flat.sys_id), ..entry },
            None => self.flat,
        }
    }
}

/// A list. Some lists with one element arrive as the element itself.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany<T> {
    Many(Vec<T>),
    One(T),
}

impl<T> OneOrMany<T> {
    pub(super) fn into_vec(self) -> Vec<T> {
        match self {
            Self::Many(many) => many,
            Self::One(one) => vec![one],
        }
    }
}

/// A `chat_queue`.
#[derive(Deserialize)]
pub(super) struct WireQueue {
    #[serde(default, deserialize_with = "text")]
    sys_id: Option<String>,
    #[serde(default, deserialize_with = "text")]
    name: Option<String>,
    #[serde(default, deserialize_with = "text")]
    average_wait_time: Option<String>,
    #[serde(default, deserialize_with = "number")]
    waiting_count: Option<i64>,
    #[serde(default, deserialize_with = "text")]
    not_available: Option<String>,
    #[serde(default, deserialize_with = "text")]
    escalate_to: Option<String>,
}

impl WireQueue {
    pub(super) fn parse(self, instance: &Url) -> Option<QueueState> {
        Some(QueueState {
            sys_id: self.sys_id?,
            name: self.name,
            wait: self.average_wait_time,
            waiting: self.waiting_count.and_then(|count| u32::try_from(count).ok()),
            not_available: self.not_available.map(|sentence| readable(&sentence, instance)),
            escalates_to: self.escalate_to,
        })
    }
}

/// A `live_message`.
#[derive(Deserialize)]
pub(super) struct WireMessage {
    #[serde(default, deserialize_with = "text")]
    pub(super) sys_id: Option<String>,
    #[serde(default, deserialize_with = "text")]
    pub(super) created_by: Option<String>,
    #[serde(default, deserialize_with = "text")]
    pub(super) created_on: Option<String>,
    #[serde(default, deserialize_with = "text")]
    pub(super) timestamp: Option<String>,
    #[serde(default, deserialize_with = "text")]
    pub(super) formatted_message: Option<String>,
    #[serde(default, deserialize_with = "text")]
    pub(super) message: Option<String>,
    /// Visible to agents only.
    #[serde(default, deserialize_with = "truth")]
    pub(super) internal: bool,
    #[serde(default, deserialize_with = "truth")]
    pub(super) private_message: bool,
    #[serde(default, deserialize_with = "files")]
    pub(super) attachments: Vec<WireFile>,
}

/// A file of a `live_message`.
#[derive(Deserialize)]
pub(super) struct WireFile {
    #[serde(default, deserialize_with = "text")]
    pub(super) sys_id: Option<String>,
    #[serde(default, deserialize_with = "text")]
    pub(super) file_name: Option<String>,
    #[serde(default, deserialize_with = "text")]
    pub(super) content_type: Option<String>,
    /// Absent if the instance does not state it.
    #[serde(default)]
    pub(super) can_read: Option<Value>,
}

/// A list of files. Elements that are not files are skipped.
fn files<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<WireFile>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let entries = value.as_array().into_iter().flatten();
    Ok(entries.filter_map(|entry| WireFile::deserialize(entry).ok()).collect())
}

/// Text, a number, or a reference as an object. Empty text gives `None`.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let value = value.get("value").unwrap_or(&value);
    Ok(match value {
        Value::String(text) => Some(text.clone()).filter(|text| !text.is_empty()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    })
}

/// True unless the value is clearly false, as at the ingress.
fn truth<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(is_set(Some(&Value::deserialize(deserializer)?)))
}

/// A number, or a number written as text. Any other value gives `None`.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    Ok(text(deserializer)?.and_then(|text| text.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(json: &str) -> WireEntry {
        serde_json::from_str::<WireSession>(json).unwrap().entry()
    }

    #[test]
    fn numbers_come_in_many_coats() {
        for (json, position, state) in [
            (r#"{"group":"g","position":3,"state":"1"}"#, Some(3), Some(ChatState::Waiting)),
            (r#"{"group":"g","position":"3","state":2}"#, Some(3), Some(ChatState::InProgress)),
            (r#"{"group":"g","position":"","state":null}"#, None, None),
            (r#"{"group":"g","position":-1,"state":"x"}"#, None, None),
            (
                r#"{"group":"g","state":{"value":"7","display_value":"Closed"}}"#,
                None,
                Some(ChatState::ClosedByClient),
            ),
            (r#"{"group":"g","state":99,"brand_new":[1,{}]}"#, None, Some(ChatState::Other(99))),
        ] {
            let meaning = entry(json).parse().unwrap();
            assert_eq!((meaning.position, meaning.state), (position, state), "{json}");
        }
    }

    #[test]
    fn a_session_is_nested_or_flat() {
        let nested = r#"{"sys_id":"conv","name":"n","queueEntry":{"sys_id":"e","state":1}}"#;
        let meaning = entry(nested).parse().unwrap();
        assert_eq!((meaning.group.as_str(), meaning.sys_id.as_str()), ("conv", "e"));
        let meaning = entry(r#"{"sys_id":"e","group":"g","state":1}"#).parse().unwrap();
        assert_eq!((meaning.group.as_str(), meaning.sys_id.as_str()), ("g", "e"));
        let meaning = entry(r#"{"sys_id":"e","group":"g","queueEntry":null}"#).parse().unwrap();
        assert_eq!(meaning.group, "g");
    }

    #[test]
    fn a_sentence_loses_its_tags_and_nothing_else() {
        let readable = |sentence| readable(sentence, &Url::parse("https://acme.service-now.com").unwrap());
        assert_eq!(readable("<p>Sorry, <b>closed</b>.<br/>a < b &amp; c</p>"), "Sorry, closed. a < b & c");
        assert_eq!(readable("See <a href='/sp'>here</a>."), "See here (https://acme.service-now.com/sp).");
        assert_eq!(readable("open <"), "open <");
    }
}
