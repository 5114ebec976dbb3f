//! The admin console: dead letters and courses as an API (`api`) and in a browser (`pages`); the state of the deployment and
//! conversations in a browser.
//!
//! Guarantees: the work is done by [`crate::dead_letters`], as on the command line. Only one session at a time runs in this
//! process. If another process reads the dead-letter queue, the answer is 409. A request that has begun is finished
//! even if its caller disconnects. A replay runs in the background and reports its progress. Message texts are shown
//! only on request. Each act is written to the audit log without texts.
//! Not responsible for: authentication (`session`), opening the queue and the directory (`app.rs`).

mod api;
mod edit;
mod overview;
mod pages;
mod query;
mod runs;
mod session;
mod tokens;
mod view;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use overview::CountedReasons;
use runs::ReplayRun;
pub use tokens::{AdminRole, AdminToken};
use tokio::sync::{OwnedMutexGuard, mpsc};

use super::{AdminState, Readiness};
use crate::conversation::{Conversation, ConversationState, Directory, DirectoryError, ListFilter};
use crate::course::{Course, CourseReader, DEAD_LETTERS_MISSING};
use crate::dead_letters::brief::{self, BriefPage};
use crate::dead_letters::replay::{self, ReplayPlan};
use crate::dead_letters::{self, DeadLetterError, DeadLetterFilter, SearchResult};
use crate::http_server::problem::ApiError;
use crate::http_server::request_id::request_id;
use crate::http_server::server::PeerAddress;
use crate::live::Live;
use crate::message::ConversationId;
use crate::queue::Queue;
use crate::tasks;
use crate::telemetry::{Act, Ending, Metrics, Operator, audit};

/// The time limit for waiting until another session ends, such as that of a second browser tab. A request does not wait
/// for a replay.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum number of export lines that are read ahead of the client.
const EXPORT_AHEAD: usize = 16;

/// The components that a session needs.
#[derive(Debug)]
struct ConsoleParts {
    queue: Queue,
    /// It has the records of later deliveries and ended chats.
    directory: Directory,
}

type Open<T> = Arc<dyn Fn() -> BoxFuture<'static, Result<T, DeadLetterError>> + Send + Sync>;

/// Opens what a session needs.
#[derive(Clone)]
pub struct ConsoleOpeners {
    /// Opens the queue for an operator.
    pub queue: Open<Queue>,
    /// Opens the directory alone, which works without the broker.
    pub directory: Open<Directory>,
}

impl std::fmt::Debug for ConsoleOpeners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsoleOpeners").finish_non_exhaustive()
    }
}

impl ConsoleOpeners {
    async fn parts(&self) -> Result<ConsoleParts, DeadLetterError> {
        let queue = (self.queue)().await?;
        match (self.directory)().await {
            Ok(directory) => Ok(ConsoleParts { queue, directory }),
            Err(error) => {
                queue.close().await;
                Err(error)
            }
        }
    }
}

/// The admin console. Cheap to clone.
#[derive(Clone)]
pub struct AdminConsole {
    tokens: Live<Vec<AdminToken>>,
    facts: Arc<ConsoleFacts>,
    /// The queue of this process, which only counts for the console.
    queue: Queue,
    open: ConsoleOpeners,
    turn: Arc<tokio::sync::Mutex<()>>,
    run: Arc<Mutex<Option<ReplayRun>>>,
    counted: Arc<Mutex<Option<CountedReasons>>>,
}

/// The settings that the pages show.
#[derive(Debug)]
pub struct ConsoleFacts {
    /// The place of the deployment: a folder, or host and vhost of the broker.
    pub place: String,
    /// The address of the admin listener.
    pub address: String,
    /// The partitions of each destination.
    pub partitions: u16,
    /// Whether the messages of dead letters may be edited.
    pub edit: bool,
    /// The age at which a waiting message is half-way to its deadline.
    pub late: Duration,
}

/// The console, with the parts of the process that it shows.
#[derive(Clone)]
struct ConsoleSite {
    console: AdminConsole,
    metrics: Arc<Metrics>,
    ready: Readiness,
}

impl std::fmt::Debug for AdminConsole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminConsole").finish_non_exhaustive()
    }
}

/// An exclusive session.
struct ConsoleTurn {
    parts: ConsoleParts,
    turn: OwnedMutexGuard<()>,
}

impl ConsoleParts {
    async fn end(self) {
        self.directory.close().await;
        self.queue.close().await;
    }
}

impl ConsoleTurn {
    async fn end(self) {
        self.parts.end().await;
        drop(self.turn);
    }

    /// Lets other sessions change dead letters, and keeps the components.
    fn give_turn_back(self) -> ConsoleParts {
        drop(self.turn);
        self.parts
    }
}

impl AdminConsole {
    /// Creates the admin console. Each session opens its components anew.
    pub fn new(tokens: Vec<AdminToken>, facts: ConsoleFacts, queue: Queue, open: ConsoleOpeners) -> Self {
        let (turn, run, counted) = (Arc::default(), Arc::default(), Arc::default());
        Self { tokens: tokens.into(), facts: Arc::new(facts), queue, open, turn, run, counted }
    }

    /// Accepts these tokens from now on, and no others. Sessions of a token that is gone end.
    pub fn replace_tokens(&self, tokens: Vec<AdminToken>) {
        self.tokens.set(tokens);
    }

    async fn take_turn(&self) -> Result<ConsoleTurn, ApiError> {
        if self.progress().is_some_and(|run| !run.published) {
            return Err(ApiError::Busy("a replay is running: wait until it is done".to_owned()));
        }
        let turn = tokio::time::timeout(TURN_TIMEOUT, Arc::clone(&self.turn).lock_owned()).await;
        let busy =
            |_| ApiError::Busy("another session is reading the dead letters: wait until it ends".to_owned());
        let turn = turn.map_err(busy)?;
        Ok(ConsoleTurn { parts: self.open.parts().await?, turn })
    }

    /// Finds all matching dead letters, with the details of the first `limit`. Works during a replay if the engine
    /// supports it.
    async fn find(&self, filter: &DeadLetterFilter, limit: usize) -> Result<SearchResult, ApiError> {
        let parts = self.open.parts().await?;
        let found = match named(filter, &parts).await {
            Ok(filter) => dead_letters::find(&parts.queue, &filter, limit).await,
            Err(error) => Err(error),
        };
        parts.end().await;
        Ok(found?)
    }

    /// Finds all matching dead letters, and the lines at these positions of the list.
    async fn list(
        &self,
        filter: &DeadLetterFilter,
        positions: Range<usize>,
        newest_first: bool,
    ) -> Result<BriefPage, ApiError> {
        let parts = self.open.parts().await?;
        let found = match named(filter, &parts).await {
            Ok(filter) => brief::page(&parts.queue, &filter, positions, newest_first).await,
            Err(error) => Err(error),
        };
        parts.end().await;
        let found = found?;
        if *filter == DeadLetterFilter::default() {
            let counted = CountedReasons::of(&found.entries);
            *self.counted.lock().unwrap_or_else(PoisonError::into_inner) = Some(counted);
        }
        Ok(found)
    }

    /// The reasons of all dead letters when they were last listed.
    fn counted(&self) -> Option<CountedReasons> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner).clone()
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

    /// The course of a message or of a conversation. Without the broker the course lacks the attempts of dead letters.
    async fn course(&self, name: &str) -> Result<Course, ApiError> {
        let mut reader = CourseReader::new(name);
        self.read_directory(&mut reader).await?;
        let dead_letters = async {
            let queue = (self.open.queue)().await?;
            let read = reader.read_dead_letters(&queue).await;
            queue.close().await;
            read
        };
        let incomplete = dead_letters.await.err().map(|error| {
            // The answer does not contain the cause, so the log does.
            tracing::warn!(%error, "could not read the dead-letter queue");
            DEAD_LETTERS_MISSING.to_owned()
        });
        Ok(Course { incomplete, ..reader.course() })
    }

    /// The course of a message or of a conversation as the directory knows it, without the attempts of dead letters.
    async fn course_of_directory(&self, name: &str) -> Result<Course, ApiError> {
        let mut reader = CourseReader::new(name);
        self.read_directory(&mut reader).await?;
        Ok(reader.course())
    }

    async fn read_directory(&self, reader: &mut CourseReader) -> Result<(), ApiError> {
        let directory = (self.open.directory)().await?;
        let read = reader.read_directory(&directory).await;
        directory.close().await;
        Ok(read?)
    }

    async fn plan(&self, filter: &DeadLetterFilter) -> Result<ReplayPlan, ApiError> {
        let turn_guard = self.take_turn().await?;
        let plan = plan(filter, &turn_guard.parts).await.map(|(plan, _)| plan);
        turn_guard.end().await;
        Ok(plan?)
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
fn operator(token: &AdminToken, request: &Request) -> Operator {
    Operator::with_token(&token.name, request.extensions().get::<PeerAddress>().map(|peer| peer.0))
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
pub(super) fn router(state: &AdminState) -> Router {
    let Some(console) = state.console.clone() else {
        let off = async || ApiError::NotEnabled("admin.token").into_response(&request_id(None));
        let paths = ["/dead-letters", "/dead-letters/{*rest}", "/trace", "/desk", "/desk/{*rest}"];
        return paths.iter().fold(Router::new(), |router, path| router.route(path, any(off)));
    };
    let site = ConsoleSite { console, metrics: state.metrics.clone(), ready: state.ready.clone() };
    let api = any(async |State(site): State<ConsoleSite>, request: Request| {
        let id = request_id(Some(request.headers()));
        run_to_completion(&id, async move { api::answer(&site.console, request).await }).await
    });
    let page = any(async |State(site): State<ConsoleSite>, request: Request| {
        let id = request_id(Some(request.headers()));
        run_to_completion(&id, async move { pages::answer(&site, request).await }).await
    });
    Router::new()
        .route("/dead-letters", api.clone())
        .route("/dead-letters/{*rest}", api.clone())
        .route("/trace", api)
        .route("/desk", page.clone())
        .route("/desk/{*rest}", page)
        .with_state(site)
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
