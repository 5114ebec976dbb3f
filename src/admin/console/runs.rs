//! Replays of the console: they run in the background, and report their progress.
//!
//! Guarantees: the newest replay of this process is remembered until the process ends.
//! Not responsible for: the plan and the order (`dead_letters/replay.rs`), waiting for outcomes (`dead_letters/outcome.rs`).

use std::sync::PoisonError;
use std::time::Duration;

use jiff::Timestamp;

use super::{AdminConsole, ConsoleParts, ConsoleTurn, plan};
use crate::dead_letters::DeadLetterFilter;
use crate::dead_letters::outcome::{self, ReplayOutcomes};
use crate::dead_letters::replay::{self, ReplayCounts, ReplayPlan};
use crate::http_server::problem::ApiError;
use crate::tasks::{self, CancellationToken};
use crate::telemetry::{Act, Ending, Operator, audit};

/// Why a replay ended early.
const STOPPED: &str = "an operator stopped it";

/// The progress of the newest replay.
#[derive(Debug, Clone)]
pub(super) struct ReplayRun {
    pub(super) to_replay: u64,
    pub(super) to_clear: u64,
    pub(super) replay_counts: ReplayCounts,
    pub(super) began: Timestamp,
    /// All messages of the plan are published, so the dead letters can be read again.
    pub(super) published: bool,
    /// The outcomes of the published messages.
    pub(super) outcomes: ReplayOutcomes,
    /// Stops the replay.
    pub(super) stop: CancellationToken,
    /// The time at which it ended, and the error if it stopped early.
    pub(super) ended: Option<(Timestamp, Option<String>)>,
}

impl ReplayRun {
    fn of(plan: &ReplayPlan) -> Self {
        Self { to_replay: plan.to_replay(), to_clear: plan.to_clear(), ..Self::new() }
    }

    /// A replay whose messages are published already.
    pub(super) fn published_now(count: u64) -> Self {
        let replay_counts = ReplayCounts { replayed: count, ..ReplayCounts::default() };
        Self { to_replay: count, replay_counts, published: true, ..Self::new() }
    }

    fn new() -> Self {
        Self {
            to_replay: 0,
            to_clear: 0,
            replay_counts: ReplayCounts::default(),
            began: crate::clock::now(),
            published: false,
            outcomes: ReplayOutcomes::default(),
            stop: CancellationToken::default(),
            ended: None,
        }
    }
}

impl AdminConsole {
    /// Plans and starts a replay. [`Self::progress`] reports its progress. `wait`: the time limit for the outcomes of
    /// the messages.
    pub(super) async fn replay(
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
        self.remember(&run);
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
        let ConsoleTurn { parts, turn } = turn_guard;
        let ConsoleParts { queue, directory } = &parts;
        let (stop, began) = (run.stop, run.began);
        let told = |replay_counts| self.note(began, |run| run.replay_counts = replay_counts);
        let replayed = replay::run(queue, filter, plan, rate, &stop, told).await;
        // Other sessions may read the dead letters while this replay waits for outcomes.
        drop(turn);
        self.note(began, |run| run.published = true);
        let told = |outcomes| self.note(began, |run| run.outcomes = outcomes);
        let outcomes = outcome::wait(queue, directory, replayed.messages, wait, &stop, told).await;
        parts.end().await;
        let done = replayed.replay_counts.replayed + replayed.replay_counts.cleared;
        let stopped = stop.is_cancelled() && done < run.to_replay + run.to_clear;
        let trouble = replayed.trouble.map(|error| error.to_string());
        let trouble = trouble.or_else(|| stopped.then(|| STOPPED.to_owned()));
        let told = outcomes.describe();
        let ending = match &trouble {
            _ if stopped => Ending::Interrupted,
            Some(trouble) => Ending::Failed(trouble),
            None => Ending::Done(Some(&told)),
        };
        audit(Act::Replay, by, filter.for_audit(), done, ending);
        self.finish(began, outcomes, trouble);
    }

    pub(super) fn finish(&self, began: Timestamp, outcomes: ReplayOutcomes, trouble: Option<String>) {
        self.note(began, |run| {
            run.outcomes = outcomes;
            run.ended = Some((crate::clock::now(), trouble));
        });
    }

    pub(super) fn remember(&self, run: &ReplayRun) {
        *self.run.lock().unwrap_or_else(PoisonError::into_inner) = Some(run.clone());
    }

    /// Stops the running replay. The messages that are published already take their course.
    pub(super) fn stop(&self, by: &Operator) {
        let Some(run) = self.progress().filter(|run| run.ended.is_none()) else { return };
        audit(Act::Stop, by, "the running replay", run.replay_counts.replayed, Ending::Done(None));
        run.stop.cancel();
    }

    pub(super) fn progress(&self) -> Option<ReplayRun> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the state of the replay that began at `began`, unless a newer replay has replaced it.
    pub(super) fn note(&self, began: Timestamp, change: impl FnOnce(&mut ReplayRun)) {
        let mut newest = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = newest.as_mut().filter(|run| run.began == began) {
            change(run);
        }
    }
}
