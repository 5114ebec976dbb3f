//! A message as AMQP properties, headers and body, and back.
//!
//! The body is not changed. All other fields are properties or headers, so that an operator can read a message in the
//! management page. Guarantees: every later version can read the output of [`encode`]. An unreadable message keeps its raw
//! bytes and gets a reason. `priority` and `expiration` stay unset: both would let messages overtake others.

use std::borrow::Cow;

use bytes::Bytes;
use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde::{Deserialize, Serialize};

use crate::message::{
    AttemptHistory, DeadLetter, DeadReason, Destination, Kind, LaneKey, Message, MessageId, PayloadDigest,
    RequestId, Trace, TraceParent,
};

/// The smallest `frame_max` of a broker that lapin can use.
pub(super) const FRAME_BYTES_MIN: usize = 8192;
/// Everything in the header frame of a dead letter except its record: the frame, the properties, and the headers of the
/// message. The longest texts are the lane, the request id and `traceparent`.
const OTHER_BYTES_MAX: usize = 1536;
const VERSION: i64 = 1;
const H_VERSION: &str = "x-causeway-version";
const H_LANE: &str = "x-causeway-lane";
const H_ACCEPTED: &str = "x-causeway-accepted-at-ms";
const H_REPLAYS: &str = "x-causeway-replays";
const H_DIGEST: &str = "x-causeway-digest";
const H_DEAD: &str = "x-causeway-dead";
const H_TRACE_PARENT: &str = "traceparent";

/// The fields that a dead letter adds to its message.
#[derive(Serialize, Deserialize)]
struct DeathRecord {
    reason: DeadReason,
    detail: String,
    died_at: Timestamp,
    #[serde(default)]
    story: AttemptHistory,
}

pub(super) fn encode(message: &Message) -> BasicProperties {
    properties(message, headers(message))
}

/// `frame` is the largest frame of the connection. AMQP does not split the headers of a message: a larger header would end
/// the connection with all its channels, again and again.
pub(super) fn encode_dead(dead: &DeadLetter, frame: usize) -> BasicProperties {
    let mut headers = headers(&dead.message);
    let json = death_json(dead, frame.max(FRAME_BYTES_MIN).saturating_sub(OTHER_BYTES_MAX));
    headers.insert(H_DEAD.into(), AMQPValue::LongString(json.into()));
    properties(&dead.message, headers)
}

/// Encodes the record of the death in at most this number of bytes. Attempts in the middle are left out first, then the
/// texts of the other attempts, then the end of the detail.
fn death_json(dead: &DeadLetter, limit: usize) -> String {
    let mut death = DeathRecord {
        reason: dead.reason,
        detail: dead.detail.clone(),
        died_at: dead.died_at,
        story: dead.story.clone(),
    };
    loop {
        let json = serde_json::to_string(&death).unwrap_or_default();
        let (length, chars) = (json.len(), death.detail.chars().count());
        if length <= limit || (!death.story.shorten() && chars == 0) {
            return json;
        }
        if death.story.is_shortest() {
            death.detail = death.detail.chars().take(chars / 2).collect();
        }
    }
}

fn properties(message: &Message, headers: FieldTable) -> BasicProperties {
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_content_type("application/json".into())
        .with_message_id(ShortString::from(message.id.to_string()))
        .with_type(message.kind.as_str().into())
        .with_app_id("causeway".into())
        .with_headers(headers);
    // A property costs less than a header.
    match &message.trace.request_id {
        Some(id) => properties.with_correlation_id(ShortString::from(&**id)),
        None => properties,
    }
}

fn headers(message: &Message) -> FieldTable {
    let mut headers = FieldTable::default();
    headers.insert(H_VERSION.into(), AMQPValue::LongLongInt(VERSION));
    headers.insert(H_LANE.into(), AMQPValue::LongString(message.lane.as_str().into()));
    headers.insert(H_ACCEPTED.into(), AMQPValue::LongLongInt(message.accepted_at.as_millisecond()));
    // An absent header means 0: most messages are never replayed, and every header costs both sides time.
    if message.replays > 0 {
        headers.insert(H_REPLAYS.into(), AMQPValue::LongLongInt(i64::from(message.replays)));
    }
    if let Some(digest) = message.digest {
        headers.insert(H_DIGEST.into(), AMQPValue::LongString(digest.to_string().into()));
    }
    if let Some(parent) = &message.trace.parent {
        headers.insert(H_TRACE_PARENT.into(), AMQPValue::LongString(parent.as_str().into()));
    }
    headers
}

/// Decodes a delivery. An unreadable message gets a lane of its own, keeps its raw bytes, and comes with the reason.
pub(super) fn decode(delivery: &mut Delivery, destination: Destination) -> (Message, Option<String>) {
    let body = Bytes::from(std::mem::take(&mut delivery.data));
    let unreadable = |body| Message { trace: trace(&delivery.properties), ..unreadable(destination, body) };
    match read(&delivery.properties, destination, body.clone()) {
        Ok(message) if message.kind.fits(destination) => (message, None),
        Ok(message) => {
            let reason = format!("a {} does not belong in a queue of {destination}", message.kind);
            (unreadable(body), Some(reason))
        }
        Err(reason) => (unreadable(body), Some(reason)),
    }
}

/// Decodes a dead letter. A letter without our header was dead-lettered by the broker, or is unreadable.
pub(super) fn decode_dead(delivery: &mut Delivery, destination: Destination) -> DeadLetter {
    let death = header_text(&delivery.properties, H_DEAD)
        .and_then(|json| serde_json::from_str::<DeathRecord>(&json).ok());
    let (message, trouble) = decode(delivery, destination);
    match death {
        Some(death) => DeadLetter {
            message,
            reason: death.reason,
            detail: death.detail,
            died_at: death.died_at,
            story: death.story,
        },
        None => {
            let (reason, detail) = match trouble {
                Some(trouble) => (DeadReason::Unreadable, trouble),
                None => (
                    DeadReason::Exhausted,
                    "dead-lettered by the broker (delivery limit), not by a worker".into(),
                ),
            };
            DeadLetter::new(message, reason, detail, AttemptHistory::default())
        }
    }
}

fn unreadable(destination: Destination, body: Bytes) -> Message {
    let id = MessageId::fresh();
    Message::new(id, Kind::of_unreadable(destination), destination, LaneKey::alone(id), body)
}

fn read(properties: &BasicProperties, destination: Destination, body: Bytes) -> Result<Message, String> {
    let version = header_number(properties, H_VERSION).ok_or("no version header")?;
    if version > VERSION {
        return Err(format!("version {version} is newer than this program, which reads up to {VERSION}"));
    }
    let id = properties.message_id().as_ref().ok_or("no message id")?;
    let kind = properties.kind().as_ref().ok_or("no type")?;
    let lane = header_text(properties, H_LANE).ok_or("no lane header")?;
    let accepted = header_number(properties, H_ACCEPTED).ok_or("no time of acceptance")?;
    // Most messages have only these three headers, and each look-up costs.
    let has_more = properties.headers().as_ref().is_some_and(|headers| headers.inner().len() > 3);
    let replays = if has_more { header_number(properties, H_REPLAYS) } else { None };
    let digest = if has_more { header_text(properties, H_DIGEST) } else { None };
    Ok(Message {
        id: MessageId::parse(id.as_str()).map_err(|problem| format!("message id {problem}"))?,
        kind: Kind::parse(kind.as_str())
            .ok_or_else(|| format!("its type {:?} is unknown to this program", kind.as_str()))?,
        destination,
        lane: LaneKey::parse(&lane).map_err(|problem| format!("lane {problem}"))?,
        accepted_at: Timestamp::from_millisecond(accepted).map_err(|_| "impossible time of acceptance")?,
        replays: replays.and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
        digest: digest.and_then(|digest| PayloadDigest::parse(&digest)),
        trace: trace(properties),
        body,
    })
}

/// The ids of the cause. An invalid id is ignored.
fn trace(properties: &BasicProperties) -> Trace {
    Trace {
        request_id: properties.correlation_id().as_ref().and_then(|id| RequestId::parse(id.as_str())),
        parent: header_text(properties, H_TRACE_PARENT).and_then(|parent| TraceParent::parse(&parent)),
    }
}

fn header<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a AMQPValue> {
    properties.headers().as_ref()?.inner().get(name)
}

fn header_text<'a>(properties: &'a BasicProperties, name: &str) -> Option<Cow<'a, str>> {
    match header(properties, name)? {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes())),
        AMQPValue::ShortString(text) => Some(text.as_str().into()),
        _ => None,
    }
}

fn header_number(properties: &BasicProperties, name: &str) -> Option<i64> {
    match *header(properties, name)? {
        AMQPValue::LongLongInt(n) => Some(n),
        AMQPValue::LongInt(n) => Some(i64::from(n)),
        AMQPValue::LongUInt(n) => Some(i64::from(n)),
        AMQPValue::ShortInt(n) => Some(i64::from(n)),
        AMQPValue::ShortShortInt(n) => Some(i64::from(n)),
        _ => None,
    }
}

/// How often the broker delivered the message before, as quorum queues count; at least 1 if the broker says "redelivered".
pub(super) fn redeliveries(delivery: &Delivery) -> u32 {
    let counted = header_number(&delivery.properties, "x-delivery-count").unwrap_or(0);
    u32::try_from(counted).unwrap_or(u32::MAX).max(u32::from(delivery.redelivered))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(properties: BasicProperties, data: &[u8]) -> Delivery {
        let mut delivery = Delivery::mock(1, "in".into(), "xo.0".into(), false, data.to_vec());
        delivery.properties = properties;
        delivery
    }

    fn message() -> Message {
        Message::new(
            MessageId::fresh(),
            Kind::CallbackMessage,
            Destination::Xo,
            LaneKey::parse("g-1").unwrap(),
            "{}",
        )
    }

    #[test]
    fn a_message_reads_back_as_it_was() {
        let message = message();
        let mut delivery = delivery(encode(&message), &message.body);
        assert_eq!(decode(&mut delivery, Destination::Xo), (message, None));
    }

    #[test]
    fn how_often_it_was_replayed_travels_with_it() {
        for replays in [0, 3] {
            let message = Message { replays, ..message() };
            let mut delivery = delivery(encode(&message), &message.body);
            assert_eq!(decode(&mut delivery, Destination::Xo).0.replays, replays);
        }
    }

    #[test]
    fn the_digest_travels_with_it() {
        let message = message().with_digest();
        let mut delivery = delivery(encode(&message), &message.body);
        assert_eq!(decode(&mut delivery, Destination::Xo).0.digest, Some(PayloadDigest::of(b"{}")));
    }

    #[test]
    fn the_ids_of_the_cause_travel_with_it() {
        let parent = TraceParent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let trace = Trace { request_id: RequestId::parse("r-1"), parent };
        let message = Message { trace: trace.clone(), ..message() };
        let properties = encode(&message);
        assert_eq!(properties.correlation_id().as_ref().map(ShortString::as_str), Some("r-1"));
        let mut readable = delivery(properties.clone(), &message.body);
        assert_eq!(decode(&mut readable, Destination::Xo), (message, None));
        let mut unreadable = delivery(properties.with_type("of.tomorrow".into()), b"{}");
        let (held_back, trouble) = decode(&mut unreadable, Destination::Xo);
        assert_eq!((held_back.trace, trouble.is_some()), (trace, true));
    }

    #[test]
    fn a_foreign_id_is_ignored() {
        let mut headers = headers(&message());
        headers.insert(H_TRACE_PARENT.into(), AMQPValue::LongString("00-abc".into()));
        let properties = properties(&message(), headers).with_correlation_id("a b".into());
        let mut delivery = delivery(properties, b"{}");
        let (message, trouble) = decode(&mut delivery, Destination::Xo);
        assert_eq!((message.trace, trouble), (Trace::default(), None));
    }

    #[test]
    fn a_dead_letter_reads_back_as_it_was() {
        let dead = DeadLetter::new(message(), DeadReason::Expired, "too late", AttemptHistory::default());
        let mut delivery = delivery(encode_dead(&dead, FRAME_BYTES_MIN), &dead.message.body);
        assert_eq!(decode_dead(&mut delivery, Destination::Xo), dead);
    }

    #[test]
    fn an_unreadable_message_keeps_its_bytes() {
        let mut foreign = delivery(BasicProperties::default(), b"\xff\x00 not ours");
        let (message, trouble) = decode(&mut foreign, Destination::ServiceNow);
        assert_eq!(&message.body[..], b"\xff\x00 not ours");
        assert_eq!(message.destination, Destination::ServiceNow);
        assert_eq!(trouble.unwrap(), "no version header");
    }

    #[test]
    fn a_message_in_the_wrong_queue_is_not_sent_there() {
        let message = message();
        let mut delivery = delivery(encode(&message), &message.body);
        let (_, trouble) = decode(&mut delivery, Destination::ServiceNow);
        assert!(trouble.unwrap().contains("does not belong"));
    }
}
