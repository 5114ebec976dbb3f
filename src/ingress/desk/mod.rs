//! The dead-letter desk over HTTP: what `causeway dead` does, for a program (`api`) and in a browser (`page`).
//!
//! Guarantees: the work itself is [`crate::dead`]'s, the same as on the command line; one visit at a time in this process,
//! and a visitor elsewhere is answered with 409; what was begun is finished when its caller hangs up; a replay runs on its
//! own and tells how far it is; message text is shown only where it was asked for, and who did what is logged without it.
//! Leaves to others: who may come in (`session`), opening queue and directory (`app.rs`).

mod api;
mod asked;
mod page;
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

use super::problem::Refusal;
use crate::conversation::Directory;
use crate::dead::outcome::{self, Outcomes};
use crate::dead::replay::{self, Plan, Tally};
use crate::dead::{self, DeskError, Filter, Found};
use crate::queue::Queue;
use crate::tasks::{self, Stop};

/// Two tabs of one browser wait for each other; a long replay is not waited for.
const TURN_PATIENCE: Duration = Duration::from_secs(10);
/// Lines of an export on their way to a reader.
const EXPORT_AHEAD: usize = 16;

/// What a visit needs.
#[derive(Debug)]
pub struct DeskParts {
    /// Opened as an operator opens it.
    pub queue: Queue,
    /// Knows what was delivered since, and which chats have ended.
    pub directory: Directory,
}

type Open = Arc<dyn Fn() -> BoxFuture<'static, Result<DeskParts, DeskError>> + Send + Sync>;

/// The desk. Cheap to clone.
#[derive(Clone)]
pub struct Desk {
    token: SecretString,
    open: Open,
    turn: Arc<tokio::sync::Mutex<()>>,
    run: Arc<Mutex<Option<Run>>>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

/// How far the newest replay is.
#[derive(Debug, Clone)]
struct Run {
    to_replay: u64,
    to_clear: u64,
    tally: Tally,
    began: Timestamp,
    /// All that is to be published is published: the dead letters can be read again.
    published: bool,
    /// What became of those that were published.
    outcomes: Outcomes,
    /// When it ended, and why, where it stopped before its end.
    ended: Option<(Timestamp, Option<String>)>,
}

impl Run {
    fn of(plan: &Plan) -> Self {
        Self {
            to_replay: plan.to_replay(),
            to_clear: plan.to_clear(),
            tally: Tally::default(),
            began: crate::clock::now(),
            published: false,
            outcomes: Outcomes::default(),
            ended: None,
        }
    }
}

/// A visit in its turn.
struct Visit {
    parts: DeskParts,
    turn: OwnedMutexGuard<()>,
}

impl Visit {
    async fn end(self) {
        self.parts.directory.close().await;
        self.parts.queue.close().await;
        drop(self.turn);
    }
}

impl Desk {
    /// A desk for whoever has the token; every visit opens its parts anew.
    pub fn new(token: SecretString, open: Open) -> Self {
        Self { token, open, turn: Arc::default(), run: Arc::default() }
    }

    async fn visit(&self) -> Result<Visit, Refusal> {
        if self.progress().is_some_and(|run| !run.published) {
            return Err(Refusal::Busy("a replay is running: wait until it is done".to_owned()));
        }
        let turn = tokio::time::timeout(TURN_PATIENCE, Arc::clone(&self.turn).lock_owned()).await;
        let busy =
            |_| Refusal::Busy("another visit to the dead letters is under way: wait for it".to_owned());
        let turn = turn.map_err(busy)?;
        Ok(Visit { parts: (self.open)().await?, turn })
    }

    /// All that is meant, the first of them whole. Reads beside a replay, if the engine can do that.
    async fn find(&self, filter: &Filter, limit: usize) -> Result<Found, Refusal> {
        let parts = (self.open)().await?;
        let found = dead::find(&parts.queue, filter, limit).await;
        parts.directory.close().await;
        parts.queue.close().await;
        Ok(found?)
    }

    async fn plan(&self, filter: &Filter) -> Result<Plan, Refusal> {
        let visit = self.visit().await?;
        let plan = replay::plan(&visit.parts.queue, filter, &visit.parts.directory).await;
        visit.end().await;
        Ok(plan?)
    }

    /// Plans and begins; [`Self::progress`] tells the rest. `wait`: how long to wait for what becomes of the messages.
    async fn replay(&self, filter: Filter, rate: Option<f64>, wait: Duration) -> Result<Plan, Refusal> {
        let visit = self.visit().await?;
        let plan = match replay::plan(&visit.parts.queue, &filter, &visit.parts.directory).await {
            Ok(plan) => plan,
            Err(error) => {
                visit.end().await;
                return Err(error.into());
            }
        };
        let run = Run::of(&plan);
        tracing::info!(
            to_replay = run.to_replay,
            to_clear = run.to_clear,
            "a replay of dead letters was started in the console"
        );
        *self.run.lock().unwrap_or_else(PoisonError::into_inner) = Some(run.clone());
        let (desk, planned) = (self.clone(), plan.clone());
        drop(tasks::spawn(async move { desk.carry_out(run, visit, &filter, &planned, rate, wait).await }));
        Ok(plan)
    }

    async fn carry_out(
        &self,
        run: Run,
        visit: Visit,
        filter: &Filter,
        plan: &Plan,
        rate: Option<f64>,
        wait: Duration,
    ) {
        let Visit { parts: DeskParts { queue, directory }, turn } = visit;
        let (stop, began) = (Stop::default(), run.began);
        let told = |tally| self.note(began, |run| run.tally = tally);
        let replayed = replay::run(&queue, filter, plan, rate, &stop, told).await;
        // Others may read the dead letters while this one waits for news.
        drop(turn);
        self.note(began, |run| run.published = true);
        let told = |outcomes| self.note(began, |run| run.outcomes = outcomes);
        let outcomes = outcome::wait(&queue, &directory, replayed.messages, wait, &stop, told).await;
        directory.close().await;
        queue.close().await;
        let trouble = replayed.trouble.map(|error| error.to_string());
        tracing::info!(
            trouble,
            outcomes = outcomes.told(),
            "the replay that was started in the console has ended"
        );
        self.note(began, |run| {
            run.outcomes = outcomes;
            run.ended = Some((crate::clock::now(), trouble));
        });
    }

    fn progress(&self) -> Option<Run> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what is known of the run that began then, unless a newer one has taken its place.
    fn note(&self, began: Timestamp, change: impl FnOnce(&mut Run)) {
        let mut newest = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = newest.as_mut().filter(|run| run.began == began) {
            change(run);
        }
    }

    /// Removes all that is meant, if they are as many as were confirmed.
    async fn discard(&self, filter: &Filter, confirmed: u64) -> Result<u64, Refusal> {
        let visit = self.visit().await?;
        let gone = discard(&visit.parts.queue, filter, confirmed).await;
        visit.end().await;
        let gone = gone?;
        tracing::info!(gone, "dead letters were discarded at the desk");
        Ok(gone)
    }

    /// All that is meant, with their texts, a line each.
    async fn export(&self, filter: Filter) -> Result<Body, Refusal> {
        let visit = self.visit().await?;
        tracing::info!("dead letters are exported at the desk");
        let (lines, taken) = mpsc::channel::<Result<Bytes, DeskError>>(EXPORT_AHEAD);
        drop(tasks::spawn(async move {
            dead::export(&visit.parts.queue, &filter, lines).await;
            visit.end().await;
        }));
        let next = async |mut taken: mpsc::Receiver<_>| taken.recv().await.map(|line| (line, taken));
        Ok(Body::from_stream(futures_util::stream::unfold(taken, next)))
    }
}

async fn discard(queue: &Queue, filter: &Filter, confirmed: u64) -> Result<u64, Refusal> {
    let meant = dead::list(queue, filter).await?;
    let found = meant.len() as u64;
    if found != confirmed {
        return Err(Refusal::Recounted { confirmed, found });
    }
    let doomed = meant.iter().map(|entry| entry.key).collect();
    Ok(dead::discard(queue, filter, &doomed, |_| {}).await?)
}

/// The routes of the desk; without one they say what to set.
pub(super) fn router(desk: Option<Desk>) -> Router {
    let Some(desk) = desk else {
        let off = async || Refusal::NotEnabled("admin.token").into_response(&super::request_id(None));
        let paths = ["/dead-letters", "/dead-letters/{*rest}", "/desk", "/desk/{*rest}"];
        return paths.iter().fold(Router::new(), |router, path| router.route(path, any(off)));
    };
    let api = any(async |State(desk): State<Desk>, request: Request| {
        to_the_end(async move { api::answer(&desk, request).await }).await
    });
    let page = any(async |State(desk): State<Desk>, request: Request| {
        to_the_end(async move { page::answer(&desk, request).await }).await
    });
    Router::new()
        .route("/dead-letters", api.clone())
        .route("/dead-letters/{*rest}", api)
        .route("/desk", page.clone())
        .route("/desk/{*rest}", page)
        .with_state(desk)
}

/// A caller who hangs up stops nothing half-way, and leaves nobody a visit that is never ended.
async fn to_the_end(work: impl Future<Output = Response> + Send + 'static) -> Response {
    tasks::spawn(work).await.unwrap_or_else(|_| {
        Refusal::Busy("the work was given up: look at the log".to_owned())
            .into_response(&super::request_id(None))
    })
}
