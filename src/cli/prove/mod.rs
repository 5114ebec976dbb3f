//! `causeway prove`: sends numbered messages through a deployment of real processes while a seeded schedule breaks
//! the deployment, then prints a report.
//!
//! Guarantees: the exit code is 0 only if no message was lost or overtaken and every repeat has a reason. The report
//! comes from the callers' answers and the sandbox's ledger, not from Causeway. Every process that the run started
//! ends with the run.

mod broker;
mod checker;
mod environment;
mod fault_plan;
mod generator;
mod history;
mod nemesis;
mod observer;
mod phases;
mod processes;
mod proxy;
mod report;
mod run;

use std::time::Duration;

use clap::builder::TypedValueParser;
use rand::RngExt;
use url::Url;

use super::output::{self, AnsiPaint};
use super::{CliFailure, sandbox};
use crate::config::parse_rate;
use environment::ProveEnvironment;
use fault_plan::FaultKind;

/// The token of all listeners of a run. It protects nothing: all data is generated, and the run is short.
const TOKEN: &str = "prove";

/// Runs a deployment of its own: `serve` on the embedded engine, or with --queue-url an ingress and workers on that
/// RabbitMQ. The sandbox simulates both platforms and records what arrives. The settings of this machine are not
/// read.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct ProveArgs {
    /// Seed of the fault schedule; default: a random one, which is printed
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Number of messages; determines the duration
    #[arg(long, value_name = "N", conflicts_with = "duration")]
    messages: Option<u64>,
    /// How long messages are sent; the final wait for quiet is added
    #[arg(long, value_name = "TIME", default_value = "45s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Messages per second, for both directions together, sent independent of their outcome
    #[arg(long, value_name = "N/s", default_value = "150/s", value_parser = rate)]
    rate: f64,
    /// Concurrent conversations, half in each direction
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(4..=20_000))]
    conversations: u32,
    /// Share of conversations that their destination rejects
    #[arg(long, value_name = "SHARE", default_value = "1%", value_parser = share)]
    poisoned: f64,
    /// Number of worker processes, with --queue-url
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16).map(usize::from))]
    workers: usize,
    /// Kinds of faults, separated by commas, or none; default: all kinds that are possible here
    #[arg(long, value_name = "LIST", value_parser = kinds)]
    faults: Option<FaultKinds>,
    /// Time between two faults, after the first worker kills, which are made alone to be timed
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = humantime::parse_duration)]
    fault_every: Duration,
    /// RabbitMQ, as amqp://user:password@host:5672/vhost. The vhost must be empty: all its messages go to the sandbox
    #[arg(long, value_name = "URL", value_parser = amqp, hide_env_values = true)]
    queue_url: Option<Url>,
    /// Command that controls the broker. Its last argument is stop, kill (-9) or start. It may return from start
    /// before the broker is up
    #[arg(long, value_name = "CMD", requires = "queue_url")]
    broker_ctl: Option<String>,
    /// PostgreSQL for the conversations: postgres://…; default: SQLite in the run's own folder
    #[arg(long, value_name = "URL")]
    directory_url: Option<String>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Do not stop at the first overtaken message
    #[arg(long)]
    keep_going: bool,
    /// Log level of the processes. The logs are in the run's folder, which is kept if a guarantee is broken
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: String,
    /// Stop waiting for quiet after this time without progress; messages still in flight then count as lost
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = humantime::parse_duration)]
    give_up_after: Duration,
    /// Switch the spool of the ingress off, so that a run without its broker must fail
    #[arg(long, hide = true)]
    no_spool: bool,
    /// Make the destination accept a message without keeping it, so that the run must fail
    #[arg(long, hide = true)]
    swallow_one: bool,
}

const AFTER_HELP: &str = "\
A run has four parts at the same rate: warming up, clean, with poisoned conversations, with poisoned conversations and
faults. Then everything is repaired, and the run waits until every accepted message is delivered or a dead letter.

Faults: kill-ingress, kill-worker, freeze-worker, cut-callers, hole-callers, cut-ingress-broker, hole-ingress-broker,
cut-worker-broker, hole-worker-broker, cut-platform, hole-platform, down-platform, 503, 429, 504, hang, cut, cut-after,
html, slow; on the embedded engine also full-disk; with --broker-ctl also stop-broker, kill-broker. cut: connections are
reset; hole: they stay open and nothing moves; down: refused; cut-after: closed after the platform did what was asked;
full-disk: every write to a file fails.

Examples:
  causeway prove
  causeway prove --seed 7 --duration 10m --rate 200/s
  causeway prove --queue-url amqp://guest:guest@localhost:5672/prove --workers 3 --messages 1000000 --rate 400/s
  causeway prove --queue-url amqp://… --broker-ctl ./broker.sh

Exit codes: 0 every guarantee was kept, 1 one was broken (its history is printed), 2 usage.";

/// The kinds of faults that `--faults` names.
#[derive(Debug, Clone)]
struct FaultKinds(Vec<FaultKind>);

fn kinds(text: &str) -> Result<FaultKinds, String> {
    if text == "none" {
        return Ok(FaultKinds(Vec::new()));
    }
    let read = |name: &str| {
        let known = || FaultKind::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", ");
        FaultKind::parse(name.trim()).ok_or_else(|| format!("{name:?} is none of: none, {}", known()))
    };
    text.split(',').map(read).collect::<Result<_, _>>().map(FaultKinds)
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = parse_rate(text).filter(|rate| (1.0..=100_000.0).contains(rate));
    rate.ok_or_else(|| "must be a number of messages per second, as 150 or 150/s".to_owned())
}

/// A share: `1%` or `0.01`.
fn share(text: &str) -> Result<f64, String> {
    let share = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map(|percent| percent / 100.0),
        None => text.parse(),
    };
    share
        .ok()
        .filter(|share| (0.0..=0.5).contains(share))
        .ok_or_else(|| "must be from 0% to 50%, as 1% or 0.01".to_owned())
}

fn amqp(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).ok().filter(|url| url.scheme() == "amqp" && url.has_host());
    url.ok_or_else(|| {
        "must be amqp://user:password@host:port/vhost (no TLS: the run puts a proxy in between)".to_owned()
    })
}

impl ProveArgs {
    /// The kinds of faults for this run. An impossible kind is an error only if `--faults` names it.
    fn kinds(&self, scope: fault_plan::FaultScope) -> Result<Vec<FaultKind>, CliFailure> {
        let Some(FaultKinds(asked)) = &self.faults else {
            return Ok(FaultKind::ALL.iter().copied().filter(|kind| kind.possible(scope)).collect());
        };
        match asked.iter().find(|kind| !kind.possible(scope)) {
            Some(kind) => {
                let need = match kind {
                    FaultKind::FullDisk if scope.broker => "a run without --queue-url",
                    FaultKind::FullDisk => "Linux",
                    _ if scope.broker => "--broker-ctl",
                    _ => "--queue-url",
                };
                Err(CliFailure::Usage(format!("--faults: {kind} needs {need}")))
            }
            None => Ok(asked.clone()),
        }
    }

    fn span(&self) -> Duration {
        self.messages.map_or(self.duration, |messages| Duration::from_secs_f64(messages as f64 / self.rate))
    }
}

pub(super) async fn run(args: ProveArgs, paint: AnsiPaint) -> Result<(), CliFailure> {
    if args.span() < Duration::from_secs(5) {
        return Err(CliFailure::Usage("--duration: a run of less than 5 s proves nothing".to_owned()));
    }
    let seed = args.seed.unwrap_or_else(|| rand::rng().random_range(1..1_000_000));
    let mut signal = std::pin::pin!(sandbox::stopped());
    let environment = tokio::select! {
        environment = Box::pin(ProveEnvironment::set(&args, std::time::Instant::now())) => environment?,
        _ = &mut signal => return Err(interrupted()),
    };
    let ended = tokio::select! {
        ended = Box::pin(run::play(&args, seed, &environment)) => ended,
        _ = &mut signal => Err(interrupted()),
    };
    environment.end().await;
    let report = ended?;
    if args.json {
        output::json(&report)?;
    } else {
        report::print(&report, paint)?;
    }
    if report.kept() {
        return Ok(());
    }
    let folder = environment.folder.keep();
    tracing::warn!("what the processes logged stays in {}", folder.display());
    if !args.json {
        output::line(format_args!("What the processes logged is in {}", folder.display()))?;
    }
    Err(CliFailure::Told)
}

fn interrupted() -> CliFailure {
    anyhow::anyhow!("interrupted before the end").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_kinds_are_read_as_people_write_them() {
        assert_eq!((share("1%"), share("0.25"), share("0")), (Ok(0.01), Ok(0.25), Ok(0.0)));
        assert!(share("51%").is_err() && share("-1").is_err() && share("x").is_err());
        assert_eq!(kinds("503, kill-worker").unwrap().0, [FaultKind::Busy, FaultKind::KillWorker]);
        assert!(kinds("none").unwrap().0.is_empty());
        assert!(kinds("earthquake").unwrap_err().contains("kill-worker"));
    }

    #[test]
    fn the_help_names_every_fault() {
        for kind in FaultKind::ALL {
            assert!(AFTER_HELP.contains(kind.as_str()), "{kind}");
        }
    }
}
