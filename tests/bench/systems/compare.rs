//! Compares all systems in interleaved rounds, so that a busy minute of the machine affects all systems.

use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

use super::catalogue::{Role, System, target};
use super::jobs::{Bench, Flow, Half, Kill, Stage};
use super::options::CompareArgs;
use super::{machine, plot, report, say};

/// The results of one system in one round.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Outcome {
    pub(crate) round: usize,
    pub(crate) delay_ms: u64,
    pub(crate) system: String,
    pub(crate) through: Option<Flow>,
    pub(crate) half: Option<Half>,
    pub(crate) fill: Option<Flow>,
    pub(crate) drain: Option<Flow>,
    pub(crate) kill: Option<Kill>,
    pub(crate) trouble: Vec<String>,
}

/// The data for a report.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) machine: Vec<String>,
    pub(crate) shape: String,
    /// The name, the description, and why it is missing, if it is.
    pub(crate) systems: Vec<(String, String, Option<String>)>,
    pub(crate) outcomes: Vec<Outcome>,
}

pub(crate) async fn run(args: CompareArgs) -> anyhow::Result<()> {
    let mut bench = super::bench(&args.broker, &args.shape, args.window()).await?;
    let systems: Vec<System> = args
        .systems
        .iter()
        .map(|name| System::find(name).with_context(|| format!("there is no system {name:?}")))
        .collect::<Result<_, _>>()?;
    let about = |system: &System| (system.name.to_owned(), system.versions(), system.absent());
    let mut results = Results {
        machine: machine::facts(&bench.broker).await?,
        shape: shape(&args),
        systems: systems.iter().map(about).collect(),
        outcomes: Vec::new(),
    };
    for round in 1..=args.rounds() {
        for delay in &args.delays {
            bench.delay = Duration::from_millis(*delay);
            for system in systems.iter().filter(|system| system.absent().is_none()) {
                let outcome = one(&bench, *system, &args, round, *delay).await;
                say(&report::line(&outcome));
                results.outcomes.push(outcome);
                write(&results)?;
            }
        }
    }
    say(&report::markdown(&results));
    say(&format!("written to {}", target().display()));
    Ok(())
}

fn write(results: &Results) -> anyhow::Result<()> {
    std::fs::write(target().join("results.json"), serde_json::to_vec_pretty(results)?)?;
    std::fs::write(target().join("results.md"), report::markdown(results))?;
    std::fs::write(target().join("results.svg"), plot::svg(results))?;
    Ok(())
}

fn shape(args: &CompareArgs) -> String {
    let shape = &args.shape;
    let settings: Vec<String> =
        shape.settings.iter().map(|(key, value)| format!("; {key} = {value}")).collect();
    format!(
        "{} round(s), {} s for each measurement; messages of {} bytes in {} conversations, {} connections in, 64 requests \
         out at once; at most {} messages on their way in the closed loop{}",
        args.rounds(),
        args.window().as_secs(),
        shape.body,
        shape.conversations,
        shape.connections,
        shape.outstanding,
        settings.concat()
    )
}

async fn one(bench: &Bench, system: System, args: &CompareArgs, round: usize, delay_ms: u64) -> Outcome {
    let mut outcome = Outcome { round, delay_ms, system: system.name.to_owned(), ..Outcome::default() };
    if args.wants("through") || args.wants("half") || args.wants("kill") {
        let done = through(bench, system, args, &mut outcome).await;
        note(&mut outcome, "through", done);
    }
    // The job for the queue alone uses a destination that answers at once.
    if args.wants("drain") && delay_ms == 0 {
        let done = drain(bench, system, &mut outcome).await;
        note(&mut outcome, "drain", done);
    }
    if let Some(through) = outcome.through.filter(|_| args.wants("kill") && delay_ms == 0) {
        let done = kill(bench, system, through.rate / 2.0, &mut outcome).await;
        note(&mut outcome, "kill", done);
    }
    outcome
}

fn note(outcome: &mut Outcome, job: &str, done: anyhow::Result<()>) {
    if let Err(error) = done {
        outcome.trouble.push(format!("{job}: {error:#}"));
    }
}

async fn through(
    bench: &Bench,
    system: System,
    args: &CompareArgs,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let mut stage = bench.stage(system).await?;
    stage.start(Role::Whole).await?;
    let through = stage.through().await?;
    outcome.through = Some(through);
    if args.wants("half") {
        outcome.half = Some(stage.steady(through.rate / 2.0).await?);
    }
    stage.leave().await
}

async fn drain(bench: &Bench, system: System, outcome: &mut Outcome) -> anyhow::Result<()> {
    let mut stage = bench.stage(system).await?;
    let (fill, ledger) = stage.fill(usize::try_from(bench.window.as_secs())? * 30_000).await?;
    outcome.fill = Some(fill);
    outcome.drain = Some(stage.drain(&ledger).await?);
    stage.leave().await
}

async fn kill(bench: &Bench, system: System, rate: f64, outcome: &mut Outcome) -> anyhow::Result<()> {
    let mut stage: Stage<'_> = bench.stage(system).await?;
    outcome.kill = Some(stage.kill(rate).await?);
    stage.leave().await
}
