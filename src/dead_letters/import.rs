//! Reads a dead letter back from the JSON that `causeway dead export` writes.
//!
//! Guarantees: an exported dead letter comes back with its id, times, history and bytes. A line that is not exactly such a
//! dead letter is refused with all its faults. A fault names the field and never repeats a value, because a value may be a
//! user's text.
//! Not responsible for: the file (`cli/dead/import.rs`), the form of the export (`json.rs`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::filter;
use crate::message::{
    AttemptHistory, AttemptRecord, DeadLetter, Kind, LaneKey, Message, MessageId, PayloadDigest,
    PlatformWords, RequestId, Trace, TraceParent,
};

/// A field that is missing or wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FieldFault {
    /// The name of the field, such as `story[2].at`; `line` for the line as a whole.
    pub(crate) field: String,
    pub(crate) reason: String,
}

/// The dead letter of one line of an export.
pub(crate) fn letter(line: &[u8]) -> Result<DeadLetter, Vec<FieldFault>> {
    let fault = |reason: String| vec![FieldFault { field: "line".to_owned(), reason }];
    let value: Value = serde_json::from_slice(line)
        .map_err(|error| fault(format!("is not JSON: an error in column {}", error.column())))?;
    let Value::Object(map) = value else { return Err(fault("must be one JSON object".to_owned())) };
    let mut fields = Fields { map, prefix: String::new(), faults: Vec::new() };
    let found = read(&mut fields);
    let faults = fields.end();
    match found {
        Some(dead) if faults.is_empty() => Ok(dead),
        _ => Err(faults),
    }
}

fn read(fields: &mut Fields) -> Option<DeadLetter> {
    let id = fields.needs("id", |value| filter::id(text(value)?));
    let kind = fields.needs("kind", kind);
    let destination = fields.needs("destination", |value| filter::destination(text(value)?));
    let lane =
        fields.needs("lane", |value| LaneKey::parse(text(value)?).map_err(|problem| problem.to_string()));
    let reason = fields.needs("reason", |value| filter::reason(text(value)?));
    let detail = fields.needs("detail", |value| text(value).map(str::to_owned));
    let accepted_at = fields.needs("accepted_at", time);
    let died_at = fields.needs("died_at", time);
    let replays = fields.needs("replays", number);
    let digest = fields.may_have("digest", |value| {
        PayloadDigest::parse(text(value)?).ok_or_else(|| "must be 32 hexadecimal digits".to_owned())
    });
    let request_id = fields.may_have("request_id", |value| {
        RequestId::parse(text(value)?).ok_or_else(|| "must be a request id".to_owned())
    });
    let parent = fields.may_have("traceparent", |value| {
        TraceParent::parse(text(value)?).ok_or_else(|| "must be a traceparent".to_owned())
    });
    // The export derives this field from the body.
    let _ = fields
        .may_have("conversation_id", |value| if value.is_null() { Ok(()) } else { text(value).map(drop) });
    let story = story(fields);
    let body = body(fields);
    if let (Some(kind), Some(destination)) = (kind, destination)
        && !Kind::fits(kind, destination)
    {
        fields.fault("kind", "does not go to this destination");
    }
    let (id, kind, destination): (MessageId, _, _) = (id?, kind?, destination?);
    let message = Message {
        accepted_at: accepted_at?,
        replays: replays?,
        digest,
        trace: Trace { request_id, parent },
        ..Message::new(id, kind, destination, lane?, body?)
    };
    Some(DeadLetter { message, reason: reason?, detail: detail?, died_at: died_at?, story: story? })
}

fn story(fields: &mut Fields) -> Option<AttemptHistory> {
    let count = fields.needs("attempts", number);
    let list = fields.needs("story", |value| match value {
        Value::Array(list) => Ok(list.clone()),
        _ => Err("must be a list".to_owned()),
    })?;
    let mut attempts = Vec::new();
    let kept = list.len();
    for (index, value) in list.into_iter().enumerate() {
        let Value::Object(map) = value else {
            fields.fault(&format!("story[{index}]"), "must be one JSON object");
            continue;
        };
        let mut inner = Fields { map, prefix: format!("story[{index}]."), faults: Vec::new() };
        attempts.extend(attempt(&mut inner));
        fields.faults.extend(inner.end());
    }
    let is_whole = attempts.len() == kept;
    let restored = AttemptHistory::restored(attempts, count?);
    if is_whole && restored.is_none() {
        fields.fault("attempts", "does not fit the number of attempts in story");
    }
    restored
}

fn attempt(fields: &mut Fields) -> Option<AttemptRecord> {
    let at = fields.needs("at", time);
    let outcome = fields.needs("outcome", |value| text(value).map(str::to_owned));
    let error = fields.needs("error", |value| text(value).map(str::to_owned));
    let status = fields.may_have("status", |value| {
        u16::try_from(number(value)?).map_err(|_| "must be an HTTP status".to_owned())
    });
    let said = fields.may_have("platform_words", |value| Ok(PlatformWords::new(text(value)?, "")));
    Some(AttemptRecord { at: at?, status, outcome: outcome?, error: error?, said: said.unwrap_or_default() })
}

/// The bytes of the message, which `body_bytes` counts.
fn body(fields: &mut Fields) -> Option<Bytes> {
    let plain = fields.may_have("body", |value| Ok(Bytes::copy_from_slice(text(value)?.as_bytes())));
    let encoded = fields.may_have("body_base64", |value| {
        STANDARD.decode(text(value)?).map(Bytes::from).map_err(|_| "must be Base64".to_owned())
    });
    let bytes = fields.needs("body_bytes", number)?;
    let body = match (plain, encoded) {
        (Some(body), None) | (None, Some(body)) => body,
        (Some(_), Some(_)) => {
            fields.fault("body_base64", "cannot be there together with body");
            return None;
        }
        (None, None) => {
            let named = |fault: &FieldFault| fault.field.starts_with("body");
            if !fields.faults.iter().any(named) {
                fields.fault("body", "is missing: `causeway dead export` writes it");
            }
            return None;
        }
    };
    if u64::try_from(body.len()).ok() != Some(u64::from(bytes)) {
        fields.fault("body_bytes", &format!("is not the length of the body, {}", body.len()));
        return None;
    }
    Some(body)
}

/// The fields of one JSON object that are not read yet, and the faults so far.
struct Fields {
    map: Map<String, Value>,
    prefix: String,
    faults: Vec<FieldFault>,
}

impl Fields {
    fn fault(&mut self, field: &str, reason: &str) {
        let field = format!("{}{field}", self.prefix);
        self.faults.push(FieldFault { field, reason: reason.to_owned() });
    }

    fn needs<T>(&mut self, name: &str, read: impl FnOnce(&Value) -> Result<T, String>) -> Option<T> {
        if !self.map.contains_key(name) {
            self.fault(name, "is missing");
        }
        self.may_have(name, read)
    }

    fn may_have<T>(&mut self, name: &str, read: impl FnOnce(&Value) -> Result<T, String>) -> Option<T> {
        match read(&self.map.remove(name)?) {
            Ok(found) => Some(found),
            Err(reason) => {
                self.fault(name, &reason);
                None
            }
        }
    }

    /// All faults. An unknown field is a fault, because it may be a misspelled one.
    fn end(mut self) -> Vec<FieldFault> {
        for name in std::mem::take(&mut self.map).keys() {
            self.fault(name, "is not a field of a dead letter");
        }
        self.faults
    }
}

fn text(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| "must be a text".to_owned())
}

fn number(value: &Value) -> Result<u32, String> {
    let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
    number.ok_or_else(|| "must be a number, 0 or more".to_owned())
}

fn time(value: &Value) -> Result<Timestamp, String> {
    let time = text(value)?.parse::<Timestamp>().ok();
    // The queue stores milliseconds.
    let time = time.and_then(|time| Timestamp::from_millisecond(time.as_millisecond()).ok());
    time.ok_or_else(|| "must be a time as 2026-11-22T10:00:00Z".to_owned())
}

fn kind(value: &Value) -> Result<Kind, String> {
    let names = || Kind::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", ");
    Kind::parse(text(value)?).ok_or_else(|| format!("must be one of: {}", names()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letters::json;
    use crate::message::{DeadReason, Destination};

    fn dead(body: &'static [u8], attempts: u32) -> DeadLetter {
        let lane = LaneKey::parse("c-1").unwrap();
        let (kind, destination) = (Kind::HandoffMessage, Destination::ServiceNow);
        let message = Message::new(MessageId::fresh(), kind, destination, lane, body).with_digest();
        let mut story = AttemptHistory::default();
        for attempt in 0..attempts {
            story.add(AttemptRecord {
                at: crate::clock::now(),
                status: (attempt % 2 == 0).then_some(503),
                outcome: "retry".into(),
                error: "refused (status 503)".into(),
                said: PlatformWords::new("come back later", ""),
            });
        }
        let request_id = RequestId::parse("r-1");
        let parent = TraceParent::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        assert!(request_id.is_some() && parent.is_some());
        let message = Message { replays: 2, trace: Trace { request_id, parent }, ..message };
        DeadLetter::new(message, DeadReason::Rejected, "no", story)
    }

    #[test]
    fn an_export_can_be_imported() {
        for one in [dead(b"{}", 0), dead(&[0xff, 0x00], 3), dead("wörter".as_bytes(), 70), dead(b"", 25)] {
            let line = json::letter(&one, true).to_string();
            assert_eq!(letter(line.as_bytes()).unwrap(), one);
        }
    }

    #[test]
    fn each_fault_names_its_field_and_no_value() {
        let good = json::letter(&dead(b"{}", 2), true);
        let with = |field: &str, value: Value| {
            let mut changed = good.clone();
            match field.strip_prefix("story.") {
                Some(inner) => changed["story"][1][inner] = value,
                None => changed[field] = value,
            }
            changed
        };
        let secret = || Value::from("secret words");
        for (document, field) in [
            (with("id", secret()), "id"),
            (with("kind", secret()), "kind"),
            (with("kind", "callback.message".into()), "kind"),
            (with("destination", secret()), "destination"),
            (with("lane", "".into()), "lane"),
            (with("reason", secret()), "reason"),
            (with("detail", 3.into()), "detail"),
            (with("accepted_at", secret()), "accepted_at"),
            (with("died_at", Value::Null), "died_at"),
            (with("replays", (-1).into()), "replays"),
            (with("digest", secret()), "digest"),
            (with("request_id", secret()), "request_id"),
            (with("traceparent", secret()), "traceparent"),
            (with("attempts", 1.into()), "attempts"),
            (with("story", secret()), "story"),
            (with("story.at", secret()), "story[1].at"),
            (with("story.status", 70_000.into()), "story[1].status"),
            (with("story.mood", secret()), "story[1].mood"),
            (with("body", 3.into()), "body"),
            (with("body", "{} ".into()), "body_bytes"),
            (with("body_base64", "e30=".into()), "body_base64"),
            (with("colour", secret()), "colour"),
        ] {
            let faults = letter(document.to_string().as_bytes()).unwrap_err();
            assert_eq!(
                faults.iter().map(|fault| fault.field.as_str()).collect::<Vec<_>>(),
                [field],
                "{faults:?}"
            );
            assert!(!faults[0].reason.contains("secret"), "{faults:?}");
        }
        let shown = json::letter(&dead(b"{}", 0), false).to_string();
        assert_eq!(letter(shown.as_bytes()).unwrap_err()[0].field, "body");
        for text in ["", "[]", "{", "\u{1}"] {
            assert_eq!(letter(text.as_bytes()).unwrap_err()[0].field, "line");
        }
        assert!(letter(b"{}").unwrap_err().len() > 10, "all faults are told at once");
    }
}
