//! The route that says whether a queue of ServiceNow takes chats, so that a bot can offer a handoff or not.
//!
//! Guarantees: an answer is at most [`AvailabilitySettings::kept`] old while ServiceNow answers, and at most
//! [`STALE_MAX`] old while ServiceNow is slow or away. Each queue has at most one call in flight, and all queues together
//! have at most [`CALLS_MAX`]. A value that ServiceNow does not report is null.
//! Not responsible for: the call to ServiceNow ([`AskQueue`]; `app/availability.rs` makes it).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::{IngressState, handoffs};
use crate::clock;
use crate::http_server::problem::{self, ApiError, FieldError};
use crate::tasks;

/// The largest age of an answer that replaces a missing newer one.
const STALE_MAX: Duration = Duration::from_secs(60);
/// How long a request waits for a new answer if an older one may replace it.
const STALE_AFTER: Duration = Duration::from_millis(500);
/// How long a request waits for the first answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The time limit of one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after a failed call of a queue.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// The limit of calls in flight, for all queues together.
const CALLS_MAX: usize = 4;
/// The limit of queues whose answers are kept: a caller can ask for any id. The oldest answer leaves first.
const QUEUES_MAX: usize = 256;
/// The longest Queue ID in bytes.
const QUEUE_ID_MAX: usize = 256;

/// What ServiceNow reports about a queue. `None`: ServiceNow does not report the value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueFacts {
    /// The name of the queue.
    pub name: Option<String>,
    /// Whether the queue takes new chats now.
    pub open: Option<bool>,
    /// ServiceNow's text for the average wait, such as `2 Minutes`.
    pub wait: Option<String>,
    /// The number of waiting users.
    pub waiting: Option<u32>,
    /// ServiceNow's text for the user while the queue is closed.
    pub reason: Option<String>,
}

/// Why there are no facts about a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AskError {
    /// ServiceNow has no such queue, or does not show the queue to Causeway's user.
    UnknownQueue,
    /// ServiceNow did not answer, or its answer says nothing about the queue.
    Away,
}

/// Asks ServiceNow about the queue of this id.
pub type AskQueue = Arc<dyn Fn(String) -> BoxFuture<'static, Result<QueueFacts, AskError>> + Send + Sync>;

/// The settings of the route.
#[derive(Debug, Clone)]
pub struct AvailabilitySettings {
    /// How long an answer is used again.
    pub kept: Duration,
    /// The queue of a request without `queue`.
    pub queue_id: Option<String>,
}

/// The answers about all queues.
pub struct QueueAvailability {
    settings: AvailabilitySettings,
    ask: AskQueue,
    calls: Semaphore,
    queues: Mutex<HashMap<String, QueueSlot>>,
}

/// The last results of one queue.
#[derive(Debug, Default)]
struct QueueSlot {
    answer: Option<CheckedQueue>,
    failed: Option<Instant>,
    /// The call in flight. The channel closes when the call has ended.
    asking: Option<watch::Receiver<()>>,
}

/// What a request finds in the cache.
enum CacheState {
    Done(Result<CheckedQueue, AskError>),
    /// A call is in flight. `stale`: the older answer, if it is not too old.
    Asking {
        stale: Option<CheckedQueue>,
        call: watch::Receiver<()>,
    },
}

impl QueueSlot {
    /// The time of the last result.
    fn last(&self) -> Option<Instant> {
        self.answer.as_ref().map(|answer| answer.since).max(self.failed)
    }
}

/// An answer of ServiceNow and its time. `facts` is `None` if the queue is unknown.
#[derive(Debug, Clone)]
struct CheckedQueue {
    facts: Option<QueueFacts>,
    at: Timestamp,
    since: Instant,
}

impl CheckedQueue {
    fn is_within(&self, age: Duration) -> bool {
        self.since.elapsed() < age
    }
}

impl std::fmt::Debug for QueueAvailability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueueAvailability").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl QueueAvailability {
    /// Creates the cache. `ask` makes the calls.
    pub fn new(settings: AvailabilitySettings, ask: AskQueue) -> Arc<Self> {
        Arc::new(Self { settings, ask, calls: Semaphore::new(CALLS_MAX), queues: Mutex::default() })
    }

    fn queues(&self) -> MutexGuard<'_, HashMap<String, QueueSlot>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest answer about a queue. Asks ServiceNow if the kept answer is too old.
    async fn check(self: &Arc<Self>, queue: &str) -> Result<CheckedQueue, AskError> {
        let (stale, mut call) = match self.kept_or_asked(queue) {
            CacheState::Done(done) => return done,
            CacheState::Asking { stale, call } => (stale, call),
        };
        let patience = if stale.is_some() { STALE_AFTER } else { ANSWER_TIMEOUT };
        // The sender never sends: an error means that the call has ended.
        let ended = tokio::time::timeout(patience, call.changed()).await.is_ok();
        if ended
            && let Some(slot) = self.queues().get(queue)
            && slot.failed.is_none()
            && let Some(fresh) = &slot.answer
        {
            return Ok(fresh.clone());
        }
        stale.ok_or(AskError::Away)
    }

    /// Returns the kept answer if it is new enough. Otherwise starts a call, unless one is in flight, and returns the
    /// older answer and the call.
    fn kept_or_asked(self: &Arc<Self>, queue: &str) -> CacheState {
        let mut queues = self.queues();
        if !queues.contains_key(queue) && queues.len() >= QUEUES_MAX {
            let idle = queues.iter().filter(|(_, slot)| slot.asking.is_none());
            let oldest = idle.min_by_key(|(_, slot)| slot.last()).map(|(id, _)| id.clone());
            let Some(oldest) = oldest else { return CacheState::Done(Err(AskError::Away)) };
            queues.remove(&oldest);
        }
        let slot = queues.entry(queue.to_owned()).or_default();
        let stale = slot.answer.clone().filter(|answer| answer.is_within(STALE_MAX));
        if let Some(fresh) = stale.as_ref().filter(|answer| answer.is_within(self.settings.kept)) {
            return CacheState::Done(Ok(fresh.clone()));
        }
        if let Some(call) = slot.asking.clone() {
            return CacheState::Asking { stale, call };
        }
        if slot.failed.is_some_and(|at| at.elapsed() < RETRY_PAUSE) {
            return CacheState::Done(stale.ok_or(AskError::Away));
        }
        let (ending, call) = watch::channel(());
        slot.asking = Some(call.clone());
        drop(queues);
        let (this, queue) = (Arc::clone(self), queue.to_owned());
        // The call goes on if its caller disconnects: other requests wait for the same call.
        drop(tasks::spawn(async move {
            let done = tokio::time::timeout(CALL_TIMEOUT, this.ask(&queue)).await;
            this.note(&queue, done.unwrap_or(Err(AskError::Away)));
            drop(ending);
        }));
        CacheState::Asking { stale, call }
    }

    async fn ask(&self, queue: &str) -> Result<QueueFacts, AskError> {
        let _permit = self.calls.acquire().await.map_err(|_| AskError::Away)?;
        (self.ask)(queue.to_owned()).await
    }

    fn note(&self, queue: &str, done: Result<QueueFacts, AskError>) {
        let mut queues = self.queues();
        let Some(slot) = queues.get_mut(queue) else { return };
        slot.asking = None;
        let facts = match done {
            Ok(facts) => Some(facts),
            Err(AskError::UnknownQueue) => None,
            Err(AskError::Away) => {
                slot.failed = Some(Instant::now());
                return;
            }
        };
        slot.failed = None;
        slot.answer = Some(CheckedQueue { facts, at: clock::now(), since: Instant::now() });
    }
}

/// Answers with the availability of one queue.
pub(super) async fn answer(state: &Arc<IngressState>, request: &mut Request) -> Result<Response, ApiError> {
    handoffs::admit(state, request.headers())?;
    let availability = state.availability.as_ref().ok_or(ApiError::NoServiceNowLogin)?;
    let queue = queue_of(request.uri().query().unwrap_or_default(), &availability.settings)?;
    let checked = availability.check(&queue).await.map_err(|error| match error {
        AskError::UnknownQueue => ApiError::UnknownQueue,
        AskError::Away => ApiError::ServiceNowAway,
    })?;
    let facts = checked.facts.ok_or(ApiError::UnknownQueue)?;
    Ok(problem::found(&json!({
        "queue": queue,
        "name": facts.name,
        "open": facts.open,
        "wait": facts.wait,
        "waiting": facts.waiting,
        "reason": facts.reason,
        "checked_at": checked.at,
    })))
}

/// The queue of a request: the parameter `queue`, or the queue of the settings.
fn queue_of(query: &str, settings: &AvailabilitySettings) -> Result<String, ApiError> {
    let wrong = |reason: &str| {
        ApiError::Invalid(vec![FieldError { field: "queue".to_owned(), reason: reason.to_owned() }])
    };
    let given = url::form_urlencoded::parse(query.as_bytes());
    let mut given = given.filter(|(name, _)| name == "queue").map(|(_, value)| value.into_owned());
    match (given.next(), given.next()) {
        (Some(_), Some(_)) => Err(wrong("is given twice: ask for one queue")),
        (Some(queue), None) if is_id(&queue) => Ok(queue),
        (Some(_), None) => {
            Err(wrong("is not a Queue ID: give the sys_id of a queue (letters, digits, -, _ and .)"))
        }
        (None, _) => settings
            .queue_id
            .clone()
            .ok_or_else(|| wrong("is missing: give the sys_id of a queue, or set servicenow.queue_id")),
    }
}

/// The id becomes a part of a URL and of a query.
fn is_id(queue: &str) -> bool {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    (1..=QUEUE_ID_MAX).contains(&queue.len())
        && queue.chars().all(plain)
        && queue.chars().any(|letter| letter != '.')
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt;

    use super::*;

    const KEPT: Duration = Duration::from_secs(10);

    /// A cache whose n-th call ends as the script says; `None`: the call never ends.
    fn scripted(
        script: Vec<Option<Result<QueueFacts, AskError>>>,
    ) -> (Arc<QueueAvailability>, Arc<AtomicUsize>) {
        let calls = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&calls);
        let ask: AskQueue = Arc::new(move |_| {
            let next = script.get(count.fetch_add(1, Ordering::SeqCst)).cloned().flatten();
            async move {
                match next {
                    Some(done) => done,
                    None => std::future::pending().await,
                }
            }
            .boxed()
        });
        let settings = AvailabilitySettings { kept: KEPT, queue_id: None };
        (QueueAvailability::new(settings, ask), calls)
    }

    fn open(wait: &str) -> Option<Result<QueueFacts, AskError>> {
        let wait = Some(wait.to_owned());
        Some(Ok(QueueFacts { open: Some(true), wait, ..QueueFacts::default() }))
    }

    async fn wait_of(cache: &Arc<QueueAvailability>) -> Result<Option<String>, AskError> {
        cache.check("q").await.map(|checked| checked.facts.and_then(|facts| facts.wait))
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_kept_and_then_asked_again() {
        let (cache, calls) = scripted(vec![open("one"), open("two")]);
        for _ in 0..3 {
            assert_eq!(wait_of(&cache).await, Ok(Some("one".into())));
        }
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        tokio::time::advance(KEPT).await;
        assert_eq!(wait_of(&cache).await, Ok(Some("two".into())));
        assert_eq!(calls.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_at_the_same_time_make_one_call() {
        let (cache, calls) = scripted(vec![open("one")]);
        let done = futures_util::future::join_all((0..20).map(|_| wait_of(&cache))).await;
        assert!(done.iter().all(|wait| *wait == Ok(Some("one".into()))), "{done:?}");
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_answer_replaces_a_slow_one_for_a_bounded_time() {
        let (cache, calls) = scripted(vec![open("one"), None, None, None, None, None, None, None]);
        assert_eq!(wait_of(&cache).await, Ok(Some("one".into())));
        tokio::time::advance(KEPT).await;
        assert_eq!(wait_of(&cache).await, Ok(Some("one".into())));
        assert_eq!(calls.load(Ordering::SeqCst), 2);
        tokio::time::advance(STALE_MAX).await;
        assert_eq!(wait_of(&cache).await, Err(AskError::Away));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_followed_by_a_pause() {
        let (cache, calls) = scripted(vec![Some(Err(AskError::Away)), open("two")]);
        assert_eq!(wait_of(&cache).await, Err(AskError::Away));
        assert_eq!(wait_of(&cache).await, Err(AskError::Away));
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        tokio::time::advance(RETRY_PAUSE).await;
        assert_eq!(wait_of(&cache).await, Ok(Some("two".into())));
    }

    #[tokio::test(start_paused = true)]
    async fn any_number_of_ids_takes_a_bounded_memory() {
        let (cache, _) = scripted(vec![Some(Err(AskError::UnknownQueue)); 2 * QUEUES_MAX]);
        for n in 0..2 * QUEUES_MAX {
            let _ = cache.check(&format!("q-{n}")).await;
        }
        assert_eq!(cache.queues().len(), QUEUES_MAX);
    }

    #[test]
    fn a_queue_id_cannot_leave_its_place_in_the_address() {
        for wrong in ["", ".", "..", "a/b", "a^b", "a=b", "a b", "ü", "a%2fb"] {
            assert!(!is_id(wrong), "{wrong}");
        }
        assert!(is_id("5f1c4ac4c0a8010e01d3e7a1a5b0c111") && is_id("q.1-a_b"));
        assert!(!is_id(&"a".repeat(QUEUE_ID_MAX + 1)));
    }
}
