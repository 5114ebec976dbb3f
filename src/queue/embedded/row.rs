//! Reads rows of the file as messages and dead letters.
//!
//! Guarantees: every row gives an entry. An unreadable row keeps its raw body and gets a reason. Such a row comes
//! from a newer version of this program or from a manual change.

use std::borrow::Cow;

use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::Row;

use super::stream::{SequenceNumber, StreamNumbers};
use crate::message::{
    AttemptHistory, DeadLetter, DeadReason, Destination, Kind, LaneKey, Message, MessageId, PayloadDigest,
    RequestId, Trace, TraceParent,
};

/// An entry and its position.
#[derive(Debug)]
pub(super) struct StoredRow<T> {
    pub(super) seq: SequenceNumber,
    pub(super) entry: T,
    /// The reason if the entry is unreadable.
    pub(super) unreadable: Option<String>,
}

/// Reads `seq, id, kind, lane, accepted_at, replays, digest, body, request_id, traceparent`.
pub(super) fn message(row: &Row<'_>, numbers: &StreamNumbers) -> rusqlite::Result<StoredRow<Message>> {
    let seq = SequenceNumber(row.get(0)?);
    let body = Bytes::from(row.get::<_, Vec<u8>>(7)?);
    let replays = u32::try_from(row.get::<_, i64>(5)?).unwrap_or_default();
    let digest = optional(row, 6)?.and_then(PayloadDigest::parse);
    let trace = Trace {
        request_id: optional(row, 8)?.and_then(RequestId::parse),
        parent: optional(row, 9)?.and_then(TraceParent::parse),
    };
    let accepted = row.get(4)?;
    let destination = numbers.destination(seq.stream()).unwrap_or(Destination::ServiceNow);
    let (id, kind, lane) = (&text(row, 1)?, &text(row, 2)?, &text(row, 3)?);
    Ok(match meant(id, kind, lane, accepted, destination) {
        Ok((id, kind, lane, accepted_at)) => {
            let entry = Message { id, kind, destination, lane, accepted_at, replays, digest, trace, body };
            StoredRow { seq, entry, unreadable: None }
        }
        Err(why) => {
            let id =
                MessageId::parse(id).unwrap_or_else(|_| MessageId::derived("embedded", &seq.0.to_string()));
            let kind = Kind::of_unreadable(destination);
            let lane = LaneKey::parse(lane).unwrap_or_else(|_| LaneKey::alone(id));
            let accepted_at = Timestamp::from_millisecond(accepted).unwrap_or_default();
            StoredRow {
                seq,
                entry: Message { id, kind, destination, lane, accepted_at, replays, digest, trace, body },
                unreadable: Some(why),
            }
        }
    })
}

/// A column that may be NULL. Bytes that are not UTF-8 count as NULL.
fn optional<'a>(row: &'a Row<'_>, column: usize) -> rusqlite::Result<Option<&'a str>> {
    Ok(row.get_ref(column)?.as_bytes_or_null()?.and_then(|bytes| std::str::from_utf8(bytes).ok()))
}

/// A column that should be UTF-8. Other bytes are replaced, so that the text can be shown.
fn text<'a>(row: &'a Row<'_>, column: usize) -> rusqlite::Result<Cow<'a, str>> {
    Ok(String::from_utf8_lossy(row.get_ref(column)?.as_bytes()?))
}

fn meant(
    id: &str,
    kind: &str,
    lane: &str,
    accepted: i64,
    destination: Destination,
) -> Result<(MessageId, Kind, LaneKey, Timestamp), String> {
    let known = Kind::parse(kind).ok_or_else(|| format!("this version knows no kind {kind:?}"))?;
    if !known.fits(destination) {
        return Err(format!("a {known} does not belong into a queue of {destination}"));
    }
    Ok((
        MessageId::parse(id).map_err(|problem| format!("the stored id {problem}"))?,
        known,
        LaneKey::parse(lane).map_err(|problem| format!("the stored lane {problem}"))?,
        Timestamp::from_millisecond(accepted).map_err(|_| "the stored time is invalid".to_owned())?,
    ))
}

/// Reads what [`message`] reads, then `reason, detail, died_at, story`.
pub(super) fn dead_letter(row: &Row<'_>, numbers: &StreamNumbers) -> rusqlite::Result<StoredRow<DeadLetter>> {
    let StoredRow { seq, entry, unreadable } = message(row, numbers)?;
    let reason_text = text(row, 10)?;
    let reason = DeadReason::parse(&reason_text);
    let story = serde_json::from_str::<AttemptHistory>(&text(row, 13)?);
    let unreadable = unreadable
        .or_else(|| reason.is_none().then(|| format!("this version knows no reason {reason_text:?}")))
        .or_else(|| story.is_err().then(|| "the stored history cannot be read".to_owned()));
    let dead = DeadLetter {
        message: entry,
        reason: reason.filter(|_| unreadable.is_none()).unwrap_or(DeadReason::Unreadable),
        detail: match &unreadable {
            Some(why) => format!("{why}; its detail was: {}", text(row, 11)?),
            None => text(row, 11)?.into_owned(),
        },
        died_at: Timestamp::from_millisecond(row.get(12)?).unwrap_or_default(),
        story: story.unwrap_or_default(),
    };
    Ok(StoredRow { seq, entry: dead, unreadable })
}
