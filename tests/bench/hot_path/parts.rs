//! Each pure part of the hot path as a closure that runs it once, after its preparation.

use std::hint::black_box;
use std::time::Duration;

use axum::http::HeaderMap;
use causeway::delivery::backoff::{Backoff, RetrySettings};
use causeway::delivery::classify::{Operation, classify};
use causeway::ingress::CallbackAuth;
use causeway::message::{Callback, Destination, Kind, LaneKey, Message, MessageId, Outcome, PlatformWords};
use causeway::platform::{AnswerKind, CallError, ErrorAnswer};
use causeway::queue::PartitionId;
use jiff::Timestamp;
use lapin::message::Delivery;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::callback_fields::CallbackFields;
use super::policy::RetryContext;
use super::{callback_credentials, lenient, wire};

type Part = Box<dyn FnMut()>;

/// A callback as our own Business Rule posts it.
const CALLBACK: &[u8] = br#"{"group":"0a1b2c3d4e5f60718293a4b5c6d7e8f9","sys_id":"9f8e7d6c5b4a39281706f5e4d3c2b1a0","sys_created_by":"beth.anglin","last_message":"","formatted_message":"Have you tried turning it off and on again? Then please tell me the number on the label below the machine."}"#;
/// A callback as the stock Business Rule posts it when an agent uses a quotation mark.
const BROKEN: &[u8] = br#"{"group":"0a1b2c3d4e5f60718293a4b5c6d7e8f9","formatted_message":"Press the key named "Esc" and tell me what you see.","sys_created_by":"beth.anglin","last_message":undefined,"sys_id":"9f8e7d6c5b4a39281706f5e4d3c2b1a0"}"#;
const GROUP: &str = "0a1b2c3d4e5f60718293a4b5c6d7e8f9";

/// The order in which a message passes the parts.
pub(crate) fn all() -> Vec<(&'static str, Part)> {
    let lane = LaneKey::parse(GROUP).unwrap_or_else(|_| LaneKey::alone(MessageId::derived("bench", GROUP)));
    let id = MessageId::derived("servicenow", GROUP);
    let message = Message::new(id, Kind::CallbackMessage, Destination::Xo, lane.clone(), CALLBACK);
    vec![
        ("ingress: look at a sender", look()),
        ("ingress: read a callback", part(|| CallbackFields::strict(black_box(CALLBACK)))),
        ("ingress: repair a callback", part(|| lenient::repair(black_box(BROKEN)))),
        ("message: id of an event", part(|| MessageId::derived("servicenow", black_box(GROUP)))),
        ("queue: partition of a lane", part(move || PartitionId::of(Destination::Xo, black_box(&lane), 8))),
        ("wire: message to properties", encode(message.clone())),
        ("wire: delivery to message", decode(&message)),
        ("delivery: read a callback", part(|| serde_json::from_slice::<Callback>(black_box(CALLBACK)).ok())),
        ("delivery: classify an answer", classify_busy()),
        ("delivery: next backoff", next_backoff()),
        ("worker: verdict on an outcome", verdict()),
    ]
}

fn part<T>(mut once: impl FnMut() -> T + 'static) -> Part {
    Box::new(move || {
        black_box(once());
    })
}

/// A sender with the token in the URL, as in Kore's stock rule.
fn look() -> Part {
    let door = CallbackAuth { token: "0a1b2c3d4e5f60718293a4b5".into(), ..CallbackAuth::default() };
    let (headers, now) = (HeaderMap::new(), Timestamp::UNIX_EPOCH);
    part(move || {
        callback_credentials::callback(
            &door,
            &headers,
            black_box(Some("token=0a1b2c3d4e5f60718293a4b5")),
            now,
        )
    })
}

fn encode(message: Message) -> Part {
    part(move || wire::encode(black_box(&message)))
}

/// Includes a copy of the body, because reading consumes the body.
fn decode(message: &Message) -> Part {
    let mut delivery = Delivery::mock(1, "in".into(), "xo.0".into(), false, Vec::new());
    delivery.properties = wire::encode(message);
    part(move || {
        delivery.data = CALLBACK.to_vec();
        wire::decode(black_box(&mut delivery), Destination::Xo)
    })
}

fn classify_busy() -> Part {
    let retry_after = Some(Duration::from_secs(1));
    let (kind, detail, said) = (AnswerKind::Temporary, String::new(), PlatformWords::default());
    let answer = ErrorAnswer { status: 503, retry_after, kind, detail, said };
    let error = CallError::Answer(answer);
    part(move || classify(black_box(&error), Operation::Callback))
}

/// The backoff is at its limit, so that each step is the same.
fn next_backoff() -> Part {
    let settings = RetrySettings { initial: Duration::from_secs(30), ..RetrySettings::default() };
    let (mut backoff, mut dice) = (Backoff::new(&settings), StdRng::seed_from_u64(7));
    part(move || backoff.next(&mut dice))
}

fn verdict() -> Part {
    let standing = RetryContext {
        kind: Kind::CallbackMessage,
        age: Duration::from_millis(20),
        deadline: Duration::from_secs(900),
        held: Duration::ZERO,
        hold: Duration::from_secs(60),
        backoff: Duration::from_millis(250),
    };
    part(move || black_box(&standing).decide(black_box(&Outcome::Delivered)))
}
