//! Reads agents' messages of many Virtual Agent chats over the Table API, because ServiceNow never repeats a callback that
//! was lost.
//!
//! Guarantees: only rows of the given conversations are returned, because an instance drops an invalid part of a query and
//! answers with rows of other chats. Only rows that an agent wrote to the requester are returned. No text is requested,
//! except for the rows that the caller names. A payload that is neither plain text nor a known control has no text.
//! Not responsible for: which rows were relayed already, and whether a row's payload is the text of its callback
//! (`bridge/conversation_rows/knowledge.rs`).
//! Source: `FACTS.md`, the table `sys_cs_message`.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::ServiceNow;
use super::controls::{Controls, some};
use super::table::TableRow;
use super::virtual_agent_callback::ItemMeaning;
use crate::message::callback::is_set;
use crate::message::json;
use crate::platform::error::CallError;

const MESSAGES: &str = "sys_cs_message";
const ROW_FIELDS: &[&str] = &[
    "sys_id",
    "conversation",
    "direction",
    "is_agent",
    "q_data_message_type",
    "message_type",
    "visibility_type",
    "send_time",
    "sys_created_on",
    "sequence",
];
/// The fields that tell kinds of messages apart. Their values are not documented.
const KIND_FIELDS: [&str; 3] = ["q_data_message_type", "message_type", "visibility_type"];
const PLACE_FIELDS: &[&str] = &["sys_id", "conversation", "sys_created_on"];
const TEXT_FIELDS: &[&str] = &["sys_id", "payload"];
/// The limit of rows of one answer.
const ROWS_MAX: usize = 1000;
/// The limit of answers for one reading.
const PAGES_MAX: u64 = 10;

/// A message of an agent, without its text. Rows are ordered as they were written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AgentRow {
    /// When the message was sent, to the second.
    pub written: Timestamp,
    /// Orders messages of one second, if the instance shows this field.
    pub sequence: u64,
    /// sys_id of the `sys_cs_message`, which is the `messageId` of a callback.
    pub sys_id: String,
    /// sys_id of the `sys_cs_conversation`.
    pub conversation: String,
    /// When the row was created, to the second.
    pub created: Timestamp,
    /// The values of the fields that tell kinds of messages apart.
    pub kind: String,
}

/// The rows of a reading.
#[derive(Debug, Default)]
pub struct AgentRows {
    /// In the order in which they were written.
    pub rows: Vec<AgentRow>,
    /// The number of requests.
    pub requests: u64,
}

/// The conversation of a known message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowPlace {
    /// sys_id of the `sys_cs_conversation`.
    pub conversation: String,
    /// When the message was created, to the second.
    pub created: Timestamp,
}

/// The content of a row.
#[derive(Clone, PartialEq, Eq)]
pub struct RowText {
    /// The item that the callback of the message would have.
    pub part: Value,
    /// The text as a person reads it.
    pub text: String,
}

/// What the user may read of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowAccess {
    /// No row of an agent.
    None,
    /// Rows, but not their payload.
    WithoutText,
    /// Rows with their payload.
    Full,
}

impl std::fmt::Debug for RowText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowText").finish_non_exhaustive()
    }
}

impl ServiceNow {
    /// The maximum number of rows whose texts are read with one request.
    pub const TEXTS_MAX: usize = 20;

    /// Returns the conversations of these messages. A message without a readable row is left out.
    pub async fn places_of(&self, messages: &[&str]) -> Result<HashMap<String, RowPlace>, CallError> {
        let query = format!("sys_idIN{}", messages.join(","));
        let rows = self.rows(MESSAGES, &query, PLACE_FIELDS, messages.len()).await?;
        let places = rows.into_iter().filter_map(|mut row| {
            let created = time_of(&row, "sys_created_on")?;
            let conversation = row.remove("conversation").filter(|id| is_sys_id(id))?;
            let sys_id = row.remove("sys_id").filter(|id| messages.contains(&id.as_str()))?;
            Some((sys_id, RowPlace { conversation, created }))
        });
        Ok(places.collect())
    }

    /// Returns the messages that agents wrote in these conversations since a time of the instance's clock.
    pub async fn agent_rows(&self, conversations: &[&str], from: Timestamp) -> Result<AgentRows, CallError> {
        let (mut found, mut from, mut seen) = (AgentRows::default(), from, HashSet::new());
        while found.requests < PAGES_MAX {
            let query = format!(
                "conversationIN{}^direction=outbound^is_agent=true^sys_created_on>={}^ORDERBYsys_created_on^ORDERBYsys_id",
                conversations.join(","),
                from.strftime("%Y-%m-%d %H:%M:%S")
            );
            let page = self.rows(MESSAGES, &query, ROW_FIELDS, ROWS_MAX).await?;
            found.requests += 1;
            let (is_full, known) = (page.len() >= ROWS_MAX, seen.len());
            for row in page {
                from = time_of(&row, "sys_created_on").map_or(from, |created| created.max(from));
                let Some(row) = agent_row(row) else { continue };
                if conversations.contains(&row.conversation.as_str()) && seen.insert(row.sys_id.clone()) {
                    found.rows.push(row);
                }
            }
            // The next page begins with the last second of this page. A page without a new row would come again.
            if !is_full || seen.len() == known {
                break;
            }
        }
        found.rows.sort();
        Ok(found)
    }

    /// Returns the contents of rows: `None` for a row whose payload is not readable. A row that the instance does not show
    /// is left out.
    pub async fn row_texts(&self, rows: &[&str]) -> Result<HashMap<String, Option<RowText>>, CallError> {
        let query = format!("sys_idIN{}", rows.join(","));
        let answer = self.rows(MESSAGES, &query, TEXT_FIELDS, rows.len()).await?;
        let controls = Controls { instance: Some(self.instance()) };
        let texts = answer.into_iter().filter_map(|mut row| {
            let sys_id = row.remove("sys_id").filter(|id| rows.contains(&id.as_str()))?;
            Some((sys_id, row.get("payload").and_then(|payload| text_of(payload, controls))))
        });
        Ok(texts.collect())
    }

    /// Tests with one row of an agent what the user may read of the table.
    pub async fn agent_row_access(&self) -> Result<RowAccess, CallError> {
        let fields = [PLACE_FIELDS, &["payload"]].concat();
        let rows = self.rows(MESSAGES, "direction=outbound^is_agent=true", &fields, 1).await?;
        let shows =
            |field: &str| rows.first().is_some_and(|row| row.get(field).is_some_and(|it| !it.is_empty()));
        Ok(match (shows("conversation"), shows("payload")) {
            (true, true) => RowAccess::Full,
            (true, false) => RowAccess::WithoutText,
            (false, _) => RowAccess::None,
        })
    }
}

/// Whether a text can be a sys_id. Any other text must not become a part of a query.
pub(crate) fn is_sys_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// A row of an agent's message to the requester. The query is not trusted.
fn agent_row(mut row: TableRow) -> Option<AgentRow> {
    let is_agent = row.get("is_agent").is_some_and(|flag| is_set(Some(&json!(flag))));
    if !is_agent || row.get("direction").map(String::as_str) != Some("outbound") {
        return None;
    }
    let created = time_of(&row, "sys_created_on")?;
    let kind = KIND_FIELDS.map(|field| row.get(field).map_or("", String::as_str)).join("/");
    Some(AgentRow {
        written: time_of(&row, "send_time").unwrap_or(created),
        sequence: row.get("sequence").and_then(|number| number.parse().ok()).unwrap_or(0),
        sys_id: row.remove("sys_id").filter(|id| is_sys_id(id))?,
        conversation: row.remove("conversation").filter(|id| is_sys_id(id))?,
        created,
        kind,
    })
}

/// A time of the Table API: UTC, to the second.
fn time_of(row: &TableRow, field: &str) -> Option<Timestamp> {
    let time = DateTime::strptime("%Y-%m-%d %H:%M:%S", row.get(field)?).ok()?;
    TimeZone::UTC.to_timestamp(time).ok()
}

/// Reads a payload. Its form is not documented: public programs read it as the plain text of an agent, or as the JSON of a
/// control. Everything else has no text.
fn text_of(payload: &str, controls: Controls<'_>) -> Option<RowText> {
    let trimmed = payload.trim();
    let part = match json::bounded(trimmed.as_bytes()) {
        Ok(Value::Object(mut fields)) => {
            let shows_nothing = ["value", "label", "text"].iter().all(|key| some(fields.get(*key)).is_none());
            if shows_nothing && let Some(plain) = fields.remove("plainTextMessage") {
                fields.insert("value".to_owned(), plain);
            }
            Value::Object(fields)
        }
        Ok(Value::Array(_)) => return None,
        // An object that is cut off, or another encoding.
        Err(_) if trimmed.starts_with('{') => return None,
        _ if trimmed.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) => return None,
        _ => json!({ "uiType": "OutputText", "group": "DefaultText", "maskType": "NONE", "value": payload }),
    };
    match controls.parse(&some(part.get("uiType"))?, &part) {
        ItemMeaning::Text(text) => Some(RowText { part, text }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(payload: &str) -> Option<String> {
        text_of(payload, Controls { instance: None }).map(|found| found.text)
    }

    /// FACTS.md: two public integrations read the payload of an agent's message as plain text, others as the JSON of a control.
    #[test]
    fn a_payload_is_plain_text_or_a_control() {
        for (payload, read) in [
            ("Have you tried water?", Some("Have you tried water?")),
            ("two\nlines", Some("two\nlines")),
            ("[1] is the first page", Some("[1] is the first page")),
            ("42", Some("42")),
            (r#"{"uiType":"OutputText","value":"Water?"}"#, Some("Water?")),
            (r#"{"uiType":"OutputText","plainTextMessage":"Water?"}"#, Some("Water?")),
            (r#"{"uiType":"OutputText","value":"Water?","plainTextMessage":"no"}"#, Some("Water?")),
            (
                r#"{"uiType":"OutputImage","value":"https://a.example/i.png"}"#,
                Some("https://a.example/i.png"),
            ),
            // Nothing that a person wrote.
            ("", None),
            ("  ", None),
            (r#"{"uiType":"ActionMsg","actionType":"System","message":"Beth has entered"}"#, None),
            (r#"{"uiType":"NewControl","value":"?"}"#, None),
            (r#"{"value":"no type"}"#, None),
            (r#"{"uiType":"OutputText"}"#, None),
            (r#"{"uiType":"OutputText","value":"cut"#, None),
            (r#"[{"uiType":"OutputText","value":"a list"}]"#, None),
            ("H4sI\u{0}\u{8b}", None),
        ] {
            assert_eq!(text(payload).as_deref(), read, "{payload}");
        }
    }

    fn row(changes: &[(&str, &str)]) -> Option<AgentRow> {
        let id = "0123456789abcdef0123456789abcdef";
        let fields = [
            ("sys_id", id),
            ("conversation", id),
            ("direction", "outbound"),
            ("is_agent", "true"),
            ("q_data_message_type", "systemTextMessage"),
            ("sys_created_on", "2026-11-29 10:00:00"),
            ("send_time", "2026-11-29 10:00:01"),
            ("sequence", "7"),
        ];
        let fields =
            fields.iter().chain(changes).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        agent_row(fields.collect())
    }

    #[test]
    fn only_rows_of_agents_to_the_requester_count() {
        let good = row(&[]).unwrap();
        assert_eq!((good.kind.as_str(), good.sequence), ("systemTextMessage//", 7));
        assert_eq!(good.written.to_string(), "2026-11-29T10:00:01Z");
        for change in [
            ("is_agent", "false"),
            ("is_agent", ""),
            ("direction", "inbound"),
            ("sys_created_on", "29.11.2026 10:00"),
            ("sys_id", "1^ORsys_idISNOTEMPTY"),
            ("conversation", ""),
        ] {
            assert!(row(&[change]).is_none(), "{change:?}");
        }
        assert_eq!(row(&[("send_time", "")]).unwrap().written, good.created);
    }

    #[test]
    fn rows_are_in_the_order_in_which_they_were_written() {
        let first = row(&[("sequence", "8"), ("send_time", "2026-11-29 10:00:00")]).unwrap();
        let second = row(&[("sequence", "9"), ("sys_id", "a123456789abcdef0123456789abcdef")]).unwrap();
        let third = row(&[("sequence", "10")]).unwrap();
        let mut rows = [third.clone(), second.clone(), first.clone()];
        rows.sort();
        assert_eq!(rows, [first, second, third]);
    }
}
