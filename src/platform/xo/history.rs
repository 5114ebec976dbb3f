//! The messages between a bot and its user: `getMessages` of XO's BotKit API.
//!
//! Guarantees: the oldest message comes first. A template is given as the text that its user read, never as JSON.
//! XO's marker texts are left out. The credential goes to allowed hosts only. An unreadable message is skipped.
//! Not responsible for: when the history is requested (`bridge/to_agent/transcript.rs`).
//! Source: `src/platform/xo/FACTS.md`.

use std::time::Duration;

use reqwest::Method;
use reqwest::header::{ACCEPT, HeaderValue};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::botkit::signed;
use super::{Xo, template};
use crate::message::ReplyHandle;
use crate::message::handoff::Attachment;
use crate::platform::error::{AnswerKind, CallError, NoAnswer, NoAnswerKind, SentState};
use crate::platform::http::{HttpCall, HttpReply};

/// Texts with which XO marks the course of a dialog. They are not part of the conversation.
const MARKERS: &[&str] = &["INITIAL DIALOG", "#session_closed"];

/// One message of the conversation with the bot. No `Debug`: it holds chat text.
pub struct HistoryEntry {
    /// The author is the user. Otherwise the author is the bot.
    pub from_user: bool,
    /// The readable text. May be empty if there are files.
    pub text: String,
    /// Files that came with it.
    pub files: Vec<Attachment>,
    /// The time, as XO writes it.
    pub at: Option<String>,
}

impl std::fmt::Debug for HistoryEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spoken").finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct HistoryPage {
    #[serde(default)]
    messages: Vec<Box<RawValue>>,
}

impl Xo {
    /// The newest `most` messages between the user of this handle and their bot, oldest first. Takes at most
    /// `budget`.
    pub async fn history(
        &self,
        handle: &ReplyHandle,
        most: usize,
        budget: Duration,
    ) -> Result<Vec<HistoryEntry>, CallError> {
        let asked = tokio::time::timeout(budget, self.ask_history(handle, most)).await;
        let reply = asked.map_err(|_| {
            let (sent, detail) = (SentState::Maybe, String::new());
            CallError::NoAnswer(NoAnswer { sent, kind: NoAnswerKind::Timeout, detail })
        })??;
        if !reply.status.is_success() {
            let (status, retry_after) = (reply.status.as_u16(), reply.retry_after());
            return Err(CallError::answered(status, retry_after, AnswerKind::of_status(status)));
        }
        let body = reply.body?;
        let history: HistoryPage =
            serde_json::from_slice(&body).map_err(|_| CallError::bad_body("no list of messages"))?;
        Ok(in_order(history.messages.iter().map(|raw| raw.get()), most))
    }

    /// A refused token is replaced once, because it may have expired on the way.
    async fn ask_history(&self, handle: &ReplyHandle, most: usize) -> Result<HttpReply, CallError> {
        let bot = self.bot(handle).ok_or_else(|| CallError::refused_here("its bot is not configured"))?;
        let user = handle.user().ok_or_else(|| CallError::refused_here("its user is not named"))?;
        let address = format!("{}/getMessages", handle.base_url.trim_end_matches('/'));
        let url = self.settings.get().allowed_hosts.admit(&address);
        let mut url = url.map_err(|why| CallError::refused_here(format!("its baseUrl {why}")))?;
        let limit = most.to_string();
        url.query_pairs_mut().extend_pairs([("skip", "0"), ("limit", limit.as_str()), ("userId", user)]);
        let ask = async || {
            let mut headers = signed(&bot)?;
            headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
            let call = HttpCall { method: Method::GET, url: url.clone(), headers, body: None };
            Ok::<_, CallError>(self.http.call(call).await?)
        };
        let reply = ask().await?;
        if AnswerKind::of_status(reply.status.as_u16()) == AnswerKind::Credentials {
            ask().await
        } else {
            Ok(reply)
        }
    }
}

/// Sorts oldest first. XO sends newest first. The times decide if each message has one.
fn in_order<'a>(messages: impl DoubleEndedIterator<Item = &'a str>, most: usize) -> Vec<HistoryEntry> {
    let mut spoken: Vec<HistoryEntry> =
        messages.rev().filter_map(|raw| spoken(&serde_json::from_str(raw).ok()?)).collect();
    let time = |spoken: &HistoryEntry| spoken.at.as_deref().and_then(|at| at.parse::<jiff::Timestamp>().ok());
    if spoken.iter().all(|spoken| time(spoken).is_some()) {
        spoken.sort_by_key(time);
    }
    spoken.split_off(spoken.len().saturating_sub(most))
}

fn spoken(message: &Value) -> Option<HistoryEntry> {
    let components = || message.get("components").and_then(Value::as_array).into_iter().flatten();
    let texts = components()
        .filter_map(|component| component.pointer("/data/text"))
        .chain(message.get("text"))
        // Teams: the text of a card is in an attachment.
        .chain(message.pointer("/attachments/0/content"));
    let mut words: Vec<String> = texts.filter_map(words).collect();
    words.dedup();
    let text = words.join("\n");
    if MARKERS.contains(&text.trim()) {
        return None;
    }
    let lists = components()
        .filter_map(|component| component.pointer("/data/attachments"))
        .chain(message.get("attachments"))
        .chain(message.pointer("/channels/0/attachments"));
    let mut files: Vec<Attachment> = Vec::new();
    for file in lists.filter_map(Value::as_array).flatten().filter_map(Attachment::of_xo) {
        if !files.contains(&file) {
            files.push(file);
        }
    }
    if text.trim().is_empty() && files.is_empty() {
        return None;
    }
    let from_user = message.get("type").and_then(Value::as_str) == Some("incoming");
    let at = message.get("createdOn").and_then(Value::as_str).map(str::to_owned);
    Some(HistoryEntry { from_user, text, files, at })
}

fn words(text: &Value) -> Option<String> {
    let words = match text {
        Value::String(text) => template::readable(text),
        Value::Object(_) => template::words(text),
        _ => None,
    };
    words.filter(|words| !words.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(messages: &[Value]) -> Vec<(bool, String)> {
        let raw: Vec<String> = messages.iter().map(Value::to_string).collect();
        let spoken = in_order(raw.iter().map(String::as_str), 20);
        spoken.into_iter().map(|spoken| (spoken.from_user, spoken.text)).collect()
    }

    fn item(kind: &str, text: &Value, at: &str) -> Value {
        json!({"_id": "ms-1", "type": kind, "createdOn": at, "components": [{"cT": "text", "data": {"text": text}}]})
    }

    /// `src/platform/xo/FACTS.md`: newest first; `text` of a bot template is JSON with its text at `payload.text` and
    /// titles at `payload.buttons[].title`; the marker texts.
    #[test]
    fn the_oldest_comes_first_and_templates_are_words() {
        let template = json!({"type": "template", "payload": {"template_type": "button", "text": "Shall I?",
            "buttons": [{"title": "Yes", "payload": "y"}, {"title": "No"}]}});
        let messages = [
            item("outgoing", &json!("#session_closed"), "2026-11-28T07:00:04.000Z"),
            item("outgoing", &json!(template.to_string()), "2026-11-28T07:00:03.000Z"),
            item("incoming", &json!("hello"), "2026-11-28T07:00:02.000Z"),
            item("incoming", &json!("INITIAL DIALOG"), "2026-11-28T07:00:01.000Z"),
        ];
        let oldest_first = [(true, "hello".to_owned()), (false, "Shall I? [Yes] [No]".to_owned())];
        assert_eq!(read(&messages), oldest_first);
        // An XO that answers oldest first, and one that sends no times.
        let mut reversed = messages.to_vec();
        reversed.reverse();
        assert_eq!(read(&reversed), oldest_first);
        let timeless: Vec<Value> = messages
            .iter()
            .map(|item| json!({"type": item["type"], "components": item["components"]}))
            .collect();
        assert_eq!(read(&timeless), oldest_first);
    }

    /// `src/platform/xo/FACTS.md`: Teams `{text}`, or `attachments[0].content.text|body[].text`.
    #[test]
    fn teams_and_files_are_read() {
        let card = json!({"type": "outgoing", "attachments": [{"contentType": "application/vnd.microsoft.card.adaptive",
            "content": {"body": [{"type": "TextBlock", "text": "Pick one"}, {"type": "TextBlock", "text": "please"}]}}]});
        let plain = json!({"type": "incoming", "text": "hi from Teams"});
        assert_eq!(
            read(&[card, plain]),
            [(true, "hi from Teams".to_owned()), (false, "Pick one please".to_owned())]
        );
        let file = json!({"type": "incoming", "components": [{"cT": "attachment", "data": {"attachments": [
            {"fileName": "crack.png", "url": {"fileUrl": "https://x/crack.png"}}]}}],
            "channels": [{"attachments": [{"fileName": "crack.png", "fileUrl": "https://x/crack.png"}]}]});
        let found = spoken(&file).unwrap();
        assert_eq!((found.text.as_str(), found.files.len()), ("", 1));
    }

    #[test]
    fn an_unreadable_entry_hides_no_other_entry() {
        let messages = [
            json!(7),
            json!({"type": "incoming", "components": "none"}),
            item("incoming", &json!("hi"), "soon"),
            json!({}),
        ];
        assert_eq!(read(&messages), [(true, "hi".to_owned())]);
        let raw: Vec<String> =
            (0..50).map(|n| item("incoming", &json!(format!("{n}")), "").to_string()).collect();
        let newest = in_order(raw.iter().map(String::as_str), 20);
        assert_eq!((newest.len(), newest[19].text.as_str()), (20, "0"), "the newest stay");
    }
}
