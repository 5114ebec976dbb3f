//! `causeway dead replay`: shows the plan, asks, carries it out under a progress bar.

use indicatif::{ProgressBar, ProgressStyle};

use super::super::{Failure, ask, output};
use super::Which;
use crate::app;
use crate::config::Settings;
use crate::dead::replay::{self, Fate, Plan, Tally};
use crate::dead::{Filter, asked};
use crate::queue::Queue;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,
    /// Show the plan and end
    #[arg(long)]
    dry_run: bool,
    /// At most so many messages in a second, as 20 or 20/s
    #[arg(long, value_name = "N/s", value_parser = asked::rate)]
    rate: Option<f64>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(super) async fn run(args: Args, queue: &Queue, settings: &Settings) -> Result<(), Failure> {
    let filter = Filter::from(args.which);
    let directory = app::open_directory(settings).await?;
    let plan = replay::plan(queue, &filter, &directory).await;
    directory.close().await;
    let plan = plan?;
    if plan.steps().is_empty() {
        return Ok(output::line("no dead letters")?);
    }
    output::line(describe(&plan))?;
    let (to_replay, to_clear) = (plan.to_replay(), plan.to_clear());
    if args.dry_run || to_replay + to_clear == 0 {
        return Ok(());
    }
    let question = format!("Replay {}?", output::counted(to_replay, "message"));
    if !ask::agreed(&question, args.yes).await? {
        return Ok(output::line("nothing was replayed")?);
    }
    let bar = bar(to_replay + to_clear);
    let mut last = Tally::default();
    let done = replay::run(queue, &filter, &plan, args.rate, |tally| {
        last = tally;
        bar.set_position(tally.replayed + tally.cleared);
    })
    .await;
    bar.finish_and_clear();
    let told = format!("replayed {} of {}", last.replayed, output::counted(to_replay, "message"));
    match done {
        Ok(tally) => {
            let cleared = match tally.cleared {
                0 => String::new(),
                cleared => format!(", took {} that needed none out", output::counted(cleared, "dead letter")),
            };
            Ok(output::line(format_args!("{told}{cleared}"))?)
        }
        Err(error) => {
            let error = anyhow::Error::from(error);
            Err(error
                .context(format!("{told}, then stopped; the rest is where it was: run it again to go on"))
                .into())
        }
    }
}

/// The plan as a table: what is done with how many, and why.
fn describe(plan: &Plan) -> String {
    let row = |(which, counts): ((Fate, _, _), (u64, usize))| {
        let (fate, destination, reason) = which;
        let what = match fate {
            Fate::Replay => "replay".to_owned(),
            Fate::Delivered | Fate::Superseded => format!("take out: {fate}"),
            Fate::Unreadable => "leave: cannot be read (--reason unreadable replays it)".to_owned(),
            Fate::Over => "leave: its chat has ended (--id replays it)".to_owned(),
        };
        let cell = |value: &dyn std::fmt::Display| value.to_string();
        vec![what, cell(&destination), cell(&reason), counts.0.to_string(), counts.1.to_string()]
    };
    let rows: Vec<Vec<String>> = plan.summary().into_iter().map(row).collect();
    output::table(&["PLAN", "DESTINATION", "REASON", "COUNT", "LANES"], &rows, &[3, 4])
}

/// On standard error, and only on a terminal.
pub(super) fn bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {per_sec} {eta}");
    // The template is right or the bar looks plain; either way the work goes on.
    style.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead::replay::Known;
    use crate::dead::{Entry, Key};
    use crate::message::{DeadReason, Destination, Kind, LaneKey, MessageId};

    #[test]
    fn the_plan_says_what_happens_to_each() {
        let entry = |reason| Entry {
            destination: Destination::ServiceNow,
            key: Key { id: MessageId::fresh(), died_at: crate::clock::now() },
            kind: Kind::HandoffMessage,
            lane: LaneKey::parse("c-1").unwrap(),
            reason,
            accepted_at: crate::clock::now(),
        };
        let entries =
            vec![entry(DeadReason::Expired), entry(DeadReason::Unreadable), entry(DeadReason::Expired)];
        let known = Known { delivered: [entries[2].key.id].into(), ..Known::default() };
        let text = describe(&Plan::new(entries, &Filter::default(), &known));
        assert!(text.contains("replay"), "{text}");
        assert!(text.contains("take out: already delivered"), "{text}");
        assert!(text.contains("leave: cannot be read"), "{text}");
        assert!(text.contains(Destination::ServiceNow.as_str()), "{text}");
    }
}
