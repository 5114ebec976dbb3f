//! The generator: callers that send numbered messages in many conversations, in both directions.
//!
//! Guarantees: the load is an open loop. The rate determines when a message is due. The latency counts from that
//! time, not from the first post. A caller repeats a post under the same key until the message is accepted. Only then
//! it posts the next message of the conversation, because unaccepted messages have no defined order.
//! Not responsible for: the arrivals (`observer.rs`).

use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use reqwest::Method;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde_json::json;
use tokio::time::Instant;
use url::Url;

use super::TOKEN;
use super::observer::HistoryObserver;
use crate::message::Destination;
use crate::platform::HttpClient;
use crate::platform::http::HttpCall;

/// Messages of one handoff: the start, the texts, the end.
pub(super) const HANDOFF_LENGTH: usize = 12;
/// Callbacks of one chat.
const CALLBACKS: usize = 20;
/// The text of a poisoned conversation. The rule that rejects the conversation looks for it.
pub(super) const POISON: &str = "poison";

/// Pause between two posts of the same message.
const AGAIN: Duration = Duration::from_millis(100);
const AGAIN_MOST: Duration = Duration::from_secs(1);

/// The schedule of one caller.
#[derive(Debug, Clone)]
pub(super) struct LoadStream {
    pub(super) destination: Destination,
    /// When the first message is due, and the time between two messages.
    pub(super) first: Instant,
    pub(super) every: Duration,
    /// Messages due from this time on are not sent.
    pub(super) until: Instant,
    /// The time in which conversations of this caller are poisoned.
    pub(super) poisoned: Option<(Instant, Instant)>,
}

/// The state that all callers share.
#[derive(Debug, Clone)]
pub(super) struct LoadGenerator {
    pub(super) observer: HistoryObserver,
    pub(super) http: HttpClient,
    pub(super) handoffs: Url,
    pub(super) callbacks: Url,
}

/// The current conversation of a caller.
#[derive(Debug)]
struct LoadChat {
    number: usize,
    name: String,
    poisoned: bool,
}

impl LoadGenerator {
    /// Sends all messages of a schedule. Ends early on `stop`.
    pub(super) async fn speak(self, line: LoadStream, stop: crate::tasks::CancellationToken) {
        let (mut due, mut talk) = (line.first, None::<LoadChat>);
        while due < line.until && !stop.is_cancelled() {
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = stop.cancelled() => return,
            }
            let poisoned = line.poisoned.is_some_and(|(from, to)| (from..to).contains(&due));
            let current = match talk.take().filter(|talk| talk.poisoned == poisoned) {
                Some(talk) => talk,
                None => {
                    let (number, name) = self.observer.open(line.destination, poisoned);
                    LoadChat { number, name, poisoned }
                }
            };
            let n = self.observer.due(current.number, self.observer.at(due.into_std()));
            self.say(line.destination, &current, n, &stop).await;
            let length = if line.destination == Destination::Xo { CALLBACKS } else { HANDOFF_LENGTH };
            talk = Some(current).filter(|_| n + 1 < length);
            due += line.every;
        }
    }

    async fn say(
        &self,
        destination: Destination,
        talk: &LoadChat,
        n: usize,
        stop: &crate::tasks::CancellationToken,
    ) {
        let (url, headers, body) = match destination {
            Destination::ServiceNow => self.handoff(talk, n),
            _ => self.callback(talk, n),
        };
        let mut pause = AGAIN;
        loop {
            self.observer.posted(talk.number, n);
            let (headers, body) = (headers.clone(), Some(body.clone()));
            let call = HttpCall { method: Method::POST, url: url.clone(), headers, body };
            match self.http.call(call).await.map(|reply| reply.status) {
                Ok(status) if status.is_success() => return self.observer.accepted(talk.number, n),
                Ok(status) if status.is_client_error() && !matches!(status.as_u16(), 408 | 425 | 429) => {
                    return self.observer.refused(talk.number, n, status.as_u16());
                }
                Ok(status) if status.is_server_error() => self.observer.turned_away(talk.number, n),
                Ok(_) | Err(_) => {}
            }
            if stop.is_cancelled() {
                return;
            }
            let drawn = rand::rng().random_range(0.5..1.0);
            tokio::time::sleep(pause.mul_f64(drawn)).await;
            pause = (pause * 2).min(AGAIN_MOST);
        }
    }

    fn handoff(&self, talk: &LoadChat, n: usize) -> (Url, HeaderMap, Bytes) {
        let name = &talk.name;
        let body = match n {
            0 => json!({ "type": "start", "conversation_id": name, "message": format!("{name} {n}") }),
            n if n + 1 == HANDOFF_LENGTH => {
                json!({ "type": "end", "conversation_id": name, "reason": "user" })
            }
            _ => json!({ "type": "message", "conversation_id": name, "message": words(talk, n) }),
        };
        let mut headers = json_headers();
        put(&mut headers, "idempotency-key", &format!("{name}-{n}"));
        put(&mut headers, AUTHORIZATION.as_str(), &format!("Bearer {TOKEN}"));
        (self.handoffs.clone(), headers, Bytes::from(body.to_string()))
    }

    fn callback(&self, talk: &LoadChat, n: usize) -> (Url, HeaderMap, Bytes) {
        let body = json!({
            "group": talk.name,
            "formatted_message": words(talk, n),
            "sys_created_by": "beth.anglin",
            "last_message": "",
            "sys_id": format!("{}-{n}", talk.name),
        });
        let mut headers = json_headers();
        put(&mut headers, "x-causeway-token", TOKEN);
        (self.callbacks.clone(), headers, Bytes::from(body.to_string()))
    }
}

fn words(talk: &LoadChat, n: usize) -> String {
    let poison = if talk.poisoned { POISON } else { "well" };
    format!("{} {n} {poison}", talk.name)
}

fn json_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers
}

fn put(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}
