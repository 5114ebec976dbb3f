//! `causeway dead replay`: shows the plan, asks for confirmation, publishes with a progress bar, and waits for the
//! outcomes.
//!
//! `--json` prints only `{"plan": P, "replayed", "taken_out", "outcomes": {"delivered", "died_again", "answered",
//! "nothing_to_send", "on_the_way"}, "interrupted", "error"}` (see `dead_letters/json.rs` for `P`).
//!
//! Guarantees: the output reports the completed work even after an error or a signal. The first SIGINT or SIGTERM
//! stops the replay after the messages that are being published; a second one ends the process at once.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::super::{CliFailure, confirm, operator, output};
use super::which::FilterArgs;
use crate::app;
use crate::config::Settings;
use crate::conversation::Directory;
use crate::dead_letters::outcome::{self, ReplayOutcomes};
use crate::dead_letters::replay::{self, ReplayAction, ReplayPlan, ReplayResult};
use crate::dead_letters::{DeadLetterFilter, filter, json};
use crate::queue::Queue;
use crate::tasks::{self, CancellationToken};
use crate::telemetry::{self, Act, Ending, audit};

/// The exit code that a shell shows for a process ended by SIGINT.
const INTERRUPTED: i32 = 130;

#[derive(Debug, clap::Args)]
pub(super) struct ReplayArgs {
    #[command(flatten)]
    which: FilterArgs,
    /// Show the plan, then exit
    #[arg(long)]
    dry_run: bool,
    /// Maximum messages per second, for example 20 or 20/s
    #[arg(long, value_name = "N/s", value_parser = filter::rate)]
    rate: Option<f64>,
    /// Maximum time to wait for the outcomes, for example 60s or 5m; 0 does not wait
    #[arg(long, value_name = "TIME", value_parser = filter::wait, default_value = "60s")]
    wait: Duration,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: ReplayArgs, queue: &Queue, settings: &Settings) -> Result<(), CliFailure> {
    let filter = args.which.clone().filter(queue, settings).await?;
    let directory = app::open_directory(settings).await?;
    let done = plan_and_replay(&args, queue, &filter, &directory).await;
    directory.close().await;
    done
}

async fn plan_and_replay(
    args: &ReplayArgs,
    queue: &Queue,
    filter: &DeadLetterFilter,
    directory: &Directory,
) -> Result<(), CliFailure> {
    let plan = replay::plan(queue, filter, directory).await?;
    let (to_replay, to_clear) = (plan.to_replay(), plan.to_clear());
    let nothing_to_do = args.dry_run || to_replay + to_clear == 0;
    match (args.json, plan.steps().is_empty()) {
        (true, _) if nothing_to_do => return Ok(output::json(&json!({ "plan": json::plan(&plan) }))?),
        (true, _) => {}
        (false, true) => return Ok(output::line("no dead letters")?),
        (false, false) => output::line(describe(&plan))?,
    }
    if nothing_to_do {
        return Ok(());
    }
    let question = format!("Replay {}?", output::counted(to_replay, "message"));
    if !confirm::agreed(&question, args.yes).await? {
        return Ok(output::line("nothing was replayed")?);
    }
    let by = operator::here();
    audit(Act::Replay, &by, filter.for_audit(), to_replay + to_clear, Ending::Started);
    let stop = CancellationToken::default();
    let signals = tasks::spawn(stop_on_signal(stop.clone()));
    let bar = bar(to_replay + to_clear);
    let replayed = replay::run(queue, filter, &plan, args.rate, &stop, |replay_counts| {
        bar.set_position(replay_counts.replayed + replay_counts.cleared);
    });
    let mut replayed = replayed.await;
    bar.finish_and_clear();
    let outcomes = wait(queue, directory, &mut replayed, args.wait, &stop).await;
    signals.abort();
    let (done, told) =
        (replayed.replay_counts.replayed + replayed.replay_counts.cleared, outcomes.describe());
    let trouble = replayed.trouble.as_ref().map(ToString::to_string);
    let ending = match &trouble {
        Some(trouble) => Ending::Failed(trouble),
        None if stop.is_cancelled() => Ending::Interrupted,
        None => Ending::Done(Some(&told)),
    };
    audit(Act::Replay, &by, filter.for_audit(), done, ending);
    let report = ReplayReport { plan: &plan, replayed, outcomes, interrupted: stop.is_cancelled() };
    if args.json { report.json() } else { report.text(args.wait) }
}

async fn wait(
    queue: &Queue,
    directory: &Directory,
    replayed: &mut ReplayResult,
    limit: Duration,
    stop: &CancellationToken,
) -> ReplayOutcomes {
    let messages = std::mem::take(&mut replayed.messages);
    let bar = bar(messages.len() as u64);
    let seen = |outcomes: ReplayOutcomes| bar.set_position(outcomes.settled());
    let outcomes = outcome::wait(queue, directory, messages, limit, stop, seen).await;
    bar.finish_and_clear();
    outcomes
}

/// Stops the replay at the first signal and ends the process at the second one.
#[expect(clippy::disallowed_methods, reason = "a second signal ends the process wherever it is")]
async fn stop_on_signal(stop: CancellationToken) {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    for is_first in [true, false] {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if is_first {
            stop.cancel();
        } else {
            telemetry::flush_logs();
            std::process::exit(INTERRUPTED)
        }
    }
}

/// The final report.
struct ReplayReport<'a> {
    plan: &'a ReplayPlan,
    replayed: ReplayResult,
    outcomes: ReplayOutcomes,
    interrupted: bool,
}

impl ReplayReport<'_> {
    fn json(self) -> Result<(), CliFailure> {
        let Self { plan, replayed: ReplayResult { replay_counts, trouble, .. }, outcomes, interrupted } =
            self;
        output::json(&json!({
            "plan": json::plan(plan),
            "replayed": replay_counts.replayed,
            "taken_out": replay_counts.cleared,
            "outcomes": json::outcomes(&outcomes),
            "interrupted": interrupted,
            "error": trouble.as_ref().map(ToString::to_string),
        }))?;
        if interrupted || trouble.is_some() { Err(CliFailure::Told) } else { Ok(()) }
    }

    fn text(self, wait: Duration) -> Result<(), CliFailure> {
        let Self { plan, replayed: ReplayResult { replay_counts, trouble, .. }, outcomes, interrupted } =
            self;
        let cleared = match replay_counts.cleared {
            0 => String::new(),
            cleared => format!(", took {} that needed none out", output::counted(cleared, "dead letter")),
        };
        let of = output::counted(plan.to_replay(), "message");
        let mut told =
            format!("replayed {} of {of}{cleared}: {}", replay_counts.replayed, outcomes.describe());
        let rest = "the remaining ones are still in the queue: run it again to continue";
        if let Some(error) = trouble {
            return Err(anyhow::Error::from(error)
                .context(format!("{told}; then it stopped; {rest}"))
                .into());
        }
        if interrupted {
            return Err(anyhow::anyhow!("{told}; interrupted; {rest}").into());
        }
        if outcomes.on_the_way > 0 {
            let hint = if wait.is_zero() {
                "not waited for (--wait)".to_owned()
            } else {
                format!("no outcome within {}: use a longer --wait", humantime::format_duration(wait))
            };
            told.push_str(&format!(" ({hint}; `causeway dead list` shows what dies again)"));
        }
        Ok(output::line(told)?)
    }
}

/// The plan as a table: action, number of messages, and reason.
fn describe(plan: &ReplayPlan) -> String {
    let row = |(which, counts): ((ReplayAction, _, _), (u64, usize))| {
        let (fate, destination, reason) = which;
        let what = match fate {
            ReplayAction::Replay => "replay".to_owned(),
            ReplayAction::Delivered | ReplayAction::Superseded => format!("take out: {fate}"),
            ReplayAction::Unreadable => "leave: cannot be read (--reason unreadable replays it)".to_owned(),
            ReplayAction::OtherPayload => "leave: another request was delivered under its key".to_owned(),
            ReplayAction::Over => "leave: its chat has ended (--id replays it)".to_owned(),
        };
        let cell = |value: &dyn std::fmt::Display| value.to_string();
        vec![what, cell(&destination), cell(&reason), counts.0.to_string(), counts.1.to_string()]
    };
    let rows: Vec<Vec<String>> = plan.summary().into_iter().map(row).collect();
    output::table(&["PLAN", "DESTINATION", "REASON", "COUNT", "LANES"], &rows, &[3, 4])
}

/// A progress bar on standard error, shown only on a terminal.
pub(super) fn bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {per_sec} {eta}");
    // An invalid template only makes the bar look plain; the replay goes on.
    style.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letters::replay::KnownOutcomes;
    use crate::dead_letters::{Answer, DeadLetterKey, DeadLetterSummary};
    use crate::message::{DeadReason, Destination, Kind, LaneKey, MessageId};

    #[test]
    fn the_plan_says_what_happens_to_each() {
        let entry = |reason| DeadLetterSummary {
            destination: Destination::ServiceNow,
            key: DeadLetterKey { id: MessageId::fresh(), died_at: crate::clock::now() },
            kind: Kind::HandoffMessage,
            lane: LaneKey::parse("c-1").unwrap(),
            reason,
            answer: Answer::NotSent,
            accepted_at: crate::clock::now(),
            replays: 0,
            digest: None,
        };
        let entries =
            vec![entry(DeadReason::Expired), entry(DeadReason::Unreadable), entry(DeadReason::Expired)];
        let known = KnownOutcomes { delivered: [entries[2].key].into(), ..KnownOutcomes::default() };
        let text = describe(&ReplayPlan::new(entries, &DeadLetterFilter::default(), &known));
        assert!(text.contains("replay"), "{text}");
        assert!(text.contains("take out: already delivered"), "{text}");
        assert!(text.contains("leave: cannot be read"), "{text}");
        assert!(text.contains(Destination::ServiceNow.as_str()), "{text}");
    }
}
