//! The admin console: dead letters as an API (`api`) and in a browser (`pages`), conversations in a browser.
//!
//! Guarantees: the work is done by [`crate::dead_letters`], as on the command line. Only one session at a time runs in this
//! process. If another process reads the dead-letter queue, the answer is 409. A request that has begun is finished
//! even if its caller disconnects. A replay runs in the background and reports its progress. Message texts are shown
//! only on request. Each act is written to the audit log without texts.
//! Not responsible for: authentication (`session`), opening the queue and the directory (`app.rs`).

mod api;
mod pages;
mod query;
mod session;
mod view;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use secrecy::SecretString;
use tokio::sync::{OwnedMutexGuard, mpsc};

use crate::conversation::{Conversation, ConversationState, Directory, DirectoryError, ListFilter};
use crate::dead_letters::outcome::{self, ReplayOutcomes};
use crate::dead_letters::replay::{self, ReplayCounts, ReplayPlan};
use crate::dead_letters::{self, DeadLetterError, DeadLetterFilter, SearchResult};
use crate::http_server::problem::ApiError;
use crate::http_server::request_id::request_id;
use crate::http_server::server::PeerAddress;
use crate::live::Live;
use crate::message::ConversationId;
use crate::queue::Queue;
use crate::tasks::{self, CancellationToken};
use crate::telemetry::{Act, Ending, Operator, audit};

/// The time limit for waiting until another session ends, such as that of a second browser tab. A request does not wait
/// for a replay.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);
/// The name of the operator in the audit log: the setting with the token.
const OPERATOR: &str = "admin.token";
/// The maximum number of export lines that are read ahead of the client.
const EXPORT_AHEAD: usize = 16;

/// The components that a session needs.
#[derive(Debug)]
pub struct ConsoleParts {
    /// The queue, opened for an operator.
    pub queue: Queue,
    /// The directory, which has the records of later deliveries and ended chats.
    pub directory: Directory,
}

type Open<T> = Arc<dyn Fn() -> BoxFuture<'static, Result<T, DeadLetterError>> + Send + Sync>;

/// Opens what a session needs.
#[derive(Clone)]
pub struct ConsoleOpeners {
    /// Opens the queue and the directory.
    pub parts: Open<ConsoleParts>,
    /// Opens the directory alone, which works without the broker.
    pub directory: Open<Directory>,
}

impl std::fmt::Debug for ConsoleOpeners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsoleOpeners").finish_non_exhaustive()
    }
}

/// The admin console. Cheap to clone.
#[derive(Clone)]
pub struct AdminConsole {
    token: Live<SecretString>,
    /// The place of the deployment, for a person.
    place: Arc<str>,
    open: ConsoleOpeners,
    turn: Arc<tokio::sync::Mutex<()>>,
    run: Arc<Mutex<Option<ReplayRun>>>,
}

impl std::fmt::Debug for AdminConsole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminConsole").finish_non_exhaustive()
    }
}

/// The progress of the newest replay.
#[derive(Debug, Clone)]
struct ReplayRun {
    to_replay: u64,
    to_clear: u64,
    replay_counts: ReplayCounts,
    began: Timestamp,
    /// All messages of the plan are published, so the dead letters can be read again.
    published: bool,
    /// The outcomes of the published messages.
    outcomes: ReplayOutcomes,
    /// The time at which it ended, and the error if it stopped early.
    ended: Option<(Timestamp, Option<String>)>,
}

impl ReplayRun {
    fn of(plan: &ReplayPlan) -> Self {
        Self {
            to_replay: plan.to_replay(),
            to_clear: plan.to_clear(),
            replay_counts: ReplayCounts::default(),
            began: crate::clock::now(),
            published: false,
            outcomes: ReplayOutcomes::default(),
            ended: None,
        }
    }
}

/// An exclusive session.
struct ConsoleTurn {
    parts: ConsoleParts,
    turn: OwnedMutexGuard<()>,
}

impl ConsoleTurn {
    async fn end(self) {
        self.parts.directory.close().await;
        self.parts.queue.close().await;
        drop(self.turn);
    }
}

impl AdminConsole {
    /// Creates the admin console. Each session opens its components anew.
    pub fn new(token: SecretString, place: &str, open: ConsoleOpeners) -> Self {
        Self { token: token.into(), place: place.into(), open, turn: Arc::default(), run: Arc::default() }
    }

    /// Accepts this token from now on, and no longer the old one. Sessions of the old token end.
    pub fn replace_token(&self, token: SecretString) {
        self.token.set(token);
    }

    async fn take_turn(&self) -> Result<ConsoleTurn, ApiError> {
        if self.progress().is_some_and(|run| !run.published) {
            return Err(ApiError::Busy("a replay is running: wait until it is done".to_owned()));
        }
        let turn = tokio::time::timeout(TURN_TIMEOUT, Arc::clone(&self.turn).lock_owned()).await;
        let busy =
            |_| ApiError::Busy("another session is reading the dead letters: wait until it ends".to_owned());
        let turn = turn.map_err(busy)?;
        Ok(ConsoleTurn { parts: (self.open.parts)().await?, turn })
    }

    /// Finds all matching dead letters, with the details of the first `limit`. Works during a replay if the engine
    /// supports it.
    async fn find(&self, filter: &DeadLetterFilter, limit: usize) -> Result<SearchResult, ApiError> {
        let parts = (self.open.parts)().await?;
        let found = match named(filter, &parts).await {
            Ok(filter) => dead_letters::find(&parts.queue, &filter, limit).await,
            Err(error) => Err(error),
        };
        parts.directory.close().await;
        parts.queue.close().await;
        Ok(found?)
    }

    /// The conversations with the newest change.
    async fn newest_conversations(
        &self,
        state: Option<ConversationState>,
        limit: u32,
    ) -> Result<Vec<Conversation>, ApiError> {
        let directory = (self.open.directory)().await?;
        let found = directory.list(&ListFilter { state, limit }).await;
        directory.close().await;
        Ok(found?)
    }

    /// The conversations with this id, group or CHAT number.
    async fn conversations_named(&self, name: &str) -> Result<Vec<Conversation>, ApiError> {
        let directory = (self.open.directory)().await?;
        let found = conversations_named(&directory, name).await;
        directory.close().await;
        Ok(found?)
    }

    async fn plan(&self, filter: &DeadLetterFilter) -> Result<ReplayPlan, ApiError> {
        let turn_guard = self.take_turn().await?;
        let plan = plan(filter, &turn_guard.parts).await.map(|(plan, _)| plan);
        turn_guard.end().await;
        Ok(plan?)
    }

    /// Plans and starts a replay. [`Self::progress`] reports its progress. `wait`: the time limit for the outcomes of
    /// the messages.
    async fn replay(
        &self,
        filter: DeadLetterFilter,
        rate: Option<f64>,
        wait: Duration,
        by: Operator,
    ) -> Result<ReplayPlan, ApiError> {
        let turn_guard = self.take_turn().await?;
        let (plan, filter) = match plan(&filter, &turn_guard.parts).await {
            Ok(planned) => planned,
            Err(error) => {
                turn_guard.end().await;
                return Err(error.into());
            }
        };
        let run = ReplayRun::of(&plan);
        let meant = run.to_replay + run.to_clear;
        audit(Act::Replay, &by, filter.for_audit(), meant, Ending::Started);
        *self.run.lock().unwrap_or_else(PoisonError::into_inner) = Some(run.clone());
        let (console, planned) = (self.clone(), plan.clone());
        drop(tasks::spawn(async move {
            console.carry_out(run, turn_guard, &filter, &planned, (rate, wait), &by).await
        }));
        Ok(plan)
    }

    async fn carry_out(
        &self,
        run: ReplayRun,
        turn_guard: ConsoleTurn,
        filter: &DeadLetterFilter,
        plan: &ReplayPlan,
        (rate, wait): (Option<f64>, Duration),
        by: &Operator,
    ) {
        let ConsoleTurn { parts: ConsoleParts { queue, directory }, turn } = turn_guard;
        let (stop, began) = (CancellationToken::default(), run.began);
        let told = |replay_counts| self.note(began, |run| run.replay_counts = replay_counts);
        let replayed = replay::run(&queue, filter, plan, rate, &stop, told).await;
        // Other sessions may read the dead letters while this replay waits for outcomes.
        drop(turn);
        self.note(began, |run| run.published = true);
        let told = |outcomes| self.note(began, |run| run.outcomes = outcomes);
        let outcomes = outcome::wait(&queue, &directory, replayed.messages, wait, &stop, told).await;
        directory.close().await;
        queue.close().await;
        let done = replayed.replay_counts.replayed + replayed.replay_counts.cleared;
        let trouble = replayed.trouble.map(|error| error.to_string());
        let told = outcomes.describe();
        let ending = trouble.as_deref().map_or(Ending::Done(Some(&told)), Ending::Failed);
        audit(Act::Replay, by, filter.for_audit(), done, ending);
        self.note(began, |run| {
            run.outcomes = outcomes;
            run.ended = Some((crate::clock::now(), trouble));
        });
    }

    fn progress(&self) -> Option<ReplayRun> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the state of the replay that began at `began`, unless a newer replay has replaced it.
    fn note(&self, began: Timestamp, change: impl FnOnce(&mut ReplayRun)) {
        let mut newest = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = newest.as_mut().filter(|run| run.began == began) {
            change(run);
        }
    }

    /// Removes all matching dead letters, if their number equals the confirmed number.
    async fn discard(
        &self,
        filter: &DeadLetterFilter,
        confirmed: u64,
        by: &Operator,
    ) -> Result<u64, ApiError> {
        let turn_guard = self.take_turn().await?;
        let mut gone = 0;
        let done = discard(&turn_guard.parts, filter, confirmed, &mut gone).await;
        turn_guard.end().await;
        let ending =
            done.as_ref().map_or_else(|refusal| Ending::Failed(refusal.slug()), |()| Ending::Done(None));
        audit(Act::Discard, by, filter.for_audit(), gone, ending);
        done.map(|()| gone)
    }

    /// Exports all matching dead letters with their texts, one on each line.
    async fn export(&self, filter: DeadLetterFilter, by: Operator) -> Result<Body, ApiError> {
        let turn_guard = self.take_turn().await?;
        let filter = match named(&filter, &turn_guard.parts).await {
            Ok(filter) => filter,
            Err(error) => {
                turn_guard.end().await;
                return Err(error.into());
            }
        };
        let (lines, taken) = mpsc::channel::<Result<Bytes, DeadLetterError>>(EXPORT_AHEAD);
        drop(tasks::spawn(async move {
            let exported = dead_letters::export(&turn_guard.parts.queue, &filter, lines).await;
            turn_guard.end().await;
            let ending = if exported.complete { Ending::Done(None) } else { Ending::Interrupted };
            audit(Act::Export, &by, filter.for_audit(), exported.letters, ending);
        }));
        let next = async |mut taken: mpsc::Receiver<_>| taken.recv().await.map(|line| (line, taken));
        Ok(Body::from_stream(futures_util::stream::unfold(taken, next)))
    }
}

async fn conversations_named(directory: &Directory, name: &str) -> Result<Vec<Conversation>, DirectoryError> {
    let mut found = Vec::new();
    for name in directory.names(name).await? {
        if let Ok(id) = ConversationId::parse(&name) {
            found.extend(directory.find(&id).await?);
        }
    }
    Ok(found)
}

/// The operator of a request.
fn operator(request: &Request) -> Operator {
    Operator::with_token(OPERATOR, request.extensions().get::<PeerAddress>().map(|peer| peer.0))
}

/// The filter with all names of its conversation.
async fn named(filter: &DeadLetterFilter, parts: &ConsoleParts) -> Result<DeadLetterFilter, DeadLetterError> {
    let mut filter = filter.clone();
    filter.find_names(&parts.directory).await?;
    Ok(filter)
}

async fn plan(
    filter: &DeadLetterFilter,
    parts: &ConsoleParts,
) -> Result<(ReplayPlan, DeadLetterFilter), DeadLetterError> {
    let filter = named(filter, parts).await?;
    Ok((replay::plan(&parts.queue, &filter, &parts.directory).await?, filter))
}

async fn discard(
    parts: &ConsoleParts,
    filter: &DeadLetterFilter,
    confirmed: u64,
    gone: &mut u64,
) -> Result<(), ApiError> {
    let (queue, filter) = (&parts.queue, &named(filter, parts).await?);
    let meant = dead_letters::list(queue, filter).await?;
    let found = meant.len() as u64;
    if found != confirmed {
        return Err(ApiError::Recounted { confirmed, found });
    }
    let selected = meant.iter().map(|entry| entry.key).collect();
    dead_letters::discard(queue, filter, &selected, |count| *gone = count).await?;
    Ok(())
}

/// The routes of the admin console. Without a console they answer which setting enables it.
pub(super) fn router(console: Option<AdminConsole>) -> Router {
    let Some(console) = console else {
        let off = async || ApiError::NotEnabled("admin.token").into_response(&request_id(None));
        let paths = ["/dead-letters", "/dead-letters/{*rest}", "/desk", "/desk/{*rest}"];
        return paths.iter().fold(Router::new(), |router, path| router.route(path, any(off)));
    };
    let api = any(async |State(console): State<AdminConsole>, request: Request| {
        let id = request_id(Some(request.headers()));
        run_to_completion(&id, async move { api::answer(&console, request).await }).await
    });
    let page = any(async |State(console): State<AdminConsole>, request: Request| {
        let id = request_id(Some(request.headers()));
        run_to_completion(&id, async move { pages::answer(&console, request).await }).await
    });
    Router::new()
        .route("/dead-letters", api.clone())
        .route("/dead-letters/{*rest}", api)
        .route("/desk", page.clone())
        .route("/desk/{*rest}", page)
        .with_state(console)
}

/// Finishes the work even if the caller disconnects, so that no action stops half-way and no session stays open.
async fn run_to_completion(id: &str, work: impl Future<Output = Response> + Send + 'static) -> Response {
    tasks::spawn(work).await.unwrap_or_else(|_| {
        tracing::error!(request_id = id, "a request of the admin console ended with a panic");
        ApiError::Panicked.into_response(id)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_fault_of_ours_and_not_a_busy_console() {
        let response = run_to_completion("r-1", async { panic!("as planned") }).await;
        assert_eq!(response.status(), 500);
        let body = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem["type"], "urn:causeway:problem:internal_error");
        assert_eq!(problem["request_id"], "r-1");
    }
}
