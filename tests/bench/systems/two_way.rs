//! Two-way conversations: what a message costs whose road needs the directory of conversations.
//!
//! *To agent*: `POST /v1/handoffs` → queue → ServiceNow's chat. *To bot*: ServiceNow's callback → queue → directory → queue → row at
//! ServiceNow → events URL. *To BotKit*: the same, to XO's BotKit API. Beside Causeway stands a bare two-way loop (HTTP in, confirm, consume, one select and one insert in PostgreSQL, HTTP out,
//! ack), and the same on other libraries. The destination answers at once.
//! Guarantees: the chats are open before anything is measured. Measures and reports, asserts nothing about time.
//! Not responsible for: the callback relay (`compare.rs`).

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use causeway::sandbox::BotSettings;

use super::catalogue::{IN_FLIGHT, Role, System, target};
use super::driver::until;
use super::jobs::{Bench, Flow, Half, Stage};
use super::load::Pace;
use super::options::TwoWayArgs;
use super::postgres::Postgres;
use super::report::spread;
use super::shape::{Shape, TOKEN};
use super::{machine, say};

/// The time limit for opening all chats, for filling and for draining.
const LIMIT: Duration = Duration::from_secs(300);
/// The messages that are drained, for each second of a measurement.
const DRAINED: usize = 2_000;
const ROADS: [Shape; 3] = [Shape::ToAgent, Shape::ToBot, Shape::ToBotKit];
/// A name with this suffix keeps the directory in a file.
const SQLITE: &str = "-sqlite";

/// The results of one system on one road in one round.
#[derive(Debug, Clone, Default)]
struct Outcome {
    name: String,
    shape: &'static str,
    through: Flow,
    half: Half,
    drain: Flow,
    /// Commits of PostgreSQL for each message that was drained.
    commits: f64,
}

pub(crate) async fn run(args: TwoWayArgs) -> anyhow::Result<()> {
    let mut bench = super::bench(&args.broker, &args.shape, Duration::from_secs(args.seconds)).await?;
    bench.postgres = Some(Postgres::new(&args.postgres)?);
    let bot = BotSettings::default();
    let own = [
        ("servicenow.host_url", format!("http://{}", bench.driver.sink_address)),
        ("servicenow.username", "bench".to_owned()),
        ("servicenow.password", "bench".to_owned()),
        ("servicenow.queue_id", "5f1c4ac4c0a8010e01d3e7a1a5b0c111".to_owned()),
        ("handoffs.events_url", format!("http://{}/events", bench.driver.sink_address)),
        ("ingress.handoffs.token", TOKEN.to_owned()),
        ("xo.bot_id", bot.bot_id),
        ("xo.app_id", bot.app_id),
        ("xo.client_secret", bot.client_secret),
        ("xo.allowed_hosts", bench.driver.sink_address.to_string()),
        ("delivery.bots.concurrency", IN_FLIGHT.to_string()),
        ("delivery.servicenow.concurrency", IN_FLIGHT.to_string()),
        ("delivery.events.concurrency", IN_FLIGHT.to_string()),
    ];
    let own = own.map(|(key, value)| (key.to_owned(), value));
    bench.settings = own.into_iter().chain(args.shape.settings.clone()).collect();
    let mut outcomes = Vec::new();
    for round in 1..=args.rounds {
        for shape in ROADS {
            let measured = args.systems.iter().filter(|name| shape != Shape::ToBotKit || is_ours(name));
            for name in measured {
                match one(&bench, name, shape).await {
                    Ok(outcome) => {
                        say(&format!("round {round}: {}", outcome.line()));
                        outcomes.push(outcome);
                    }
                    Err(error) => say(&format!("round {round}: {name}, {}: {error:#}", shape.name())),
                }
            }
        }
    }
    let table = table(&outcomes, &args, &machine::facts(&bench.broker).await?);
    say(&table);
    std::fs::write(target().join("two-way.md"), &table)?;
    say(&format!("written to {}", target().join("two-way.md").display()));
    Ok(())
}

/// The other systems post each message to one address, so the road to BotKit is their road to the bot.
fn is_ours(name: &str) -> bool {
    let base = name.strip_suffix(SQLITE).unwrap_or(name);
    System::find(base).is_some_and(|system| system.is_causeway())
}

async fn one(bench: &Bench, name: &str, shape: Shape) -> anyhow::Result<Outcome> {
    let (base, in_a_file) = name.strip_suffix(SQLITE).map_or((name, false), |base| (base, true));
    let system = System::find(base).with_context(|| format!("there is no system {base:?}"))?;
    if let Some(reason) = system.absent() {
        anyhow::bail!("{reason}");
    }
    let postgres = bench.postgres.as_ref().context("no PostgreSQL")?;
    let mut stage = bench.stage(system).await?;
    let database = stage.name().to_owned();
    if !in_a_file && base != "embedded" {
        let url = postgres.fresh(&database).await?;
        if system.is_causeway() {
            stage.place.settings.push(("directory.url".to_owned(), url.clone()));
        }
        stage.place.postgres = Some(url);
    }
    let measured = measure(bench, &mut stage, system.is_causeway(), shape, postgres).await;
    stage.leave().await?;
    postgres.forget(&database).await?;
    Ok(Outcome { name: name.to_owned(), shape: shape.name(), ..measured? })
}

async fn measure(
    bench: &Bench,
    stage: &mut Stage<'_>,
    is_causeway: bool,
    shape: Shape,
    postgres: &Postgres,
) -> anyhow::Result<Outcome> {
    stage.nonce = Some(bench.next_nonce());
    stage.start(Role::Whole).await?;
    if is_causeway {
        stage.shape = shape.opening();
        open_chats(bench, stage).await?;
    }
    stage.shape = shape;
    // The first message of an agent also reads the state of the chat and announces the agent.
    let first = if shape.has_row() { bench.conversations } else { 0 };
    let through = stage.through_after(first).await?;
    let half = stage.steady(through.rate / 2.0).await?;
    stage.stop().await;
    let (_, ledger) = stage.fill_within(usize::try_from(bench.window.as_secs())? * DRAINED, LIMIT).await?;
    let has_database = stage.place.postgres.is_some();
    let before = if has_database { postgres.commits(stage.name()).await? } else { 0 };
    // A message to the bot passes two queues. Only at the end has each message passed both.
    let drain = stage.drain_within(&ledger, LIMIT).await?;
    let left = stage.settled(&ledger).await;
    ensure!(left == 0, "{left} messages were lost");
    stage.stop().await;
    let after = if has_database { postgres.commits(stage.name()).await? } else { 0 };
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let commits = (after - before) as f64 / ledger.counts().accepted.max(1) as f64;
    Ok(Outcome { through, half, drain, commits, ..Outcome::default() })
}

/// Starts a handoff for each conversation and waits until all chats are open.
async fn open_chats(bench: &Bench, stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let ledger = stage.ledger(bench.conversations as usize);
    let posting = stage.post(&ledger, Pace::Closed(bench.outstanding));
    let open = until(LIMIT, || ledger.counts().arrived >= u64::from(bench.conversations)).await;
    posting.end().await;
    ensure!(open, "the chats do not open: {:?}", ledger.counts());
    Ok(())
}

impl Outcome {
    fn line(&self) -> String {
        let Self { name, shape, through, half, drain, commits } = self;
        format!(
            "{name:>15}, {shape}: through {:.0}/s, drained {:.0}/s at {:.3} + {:.3} + {:.3} CPU s/1,000 (system, broker, PostgreSQL), \
             {commits:.2} commits; at half {:.0}/s p50 {:.1} p99 {:.1} ms",
            through.rate,
            drain.rate,
            drain.cpu,
            drain.broker_cpu,
            drain.postgres_cpu,
            half.flow.rate,
            half.whole.p50,
            half.whole.p99
        )
    }
}

/// Medians over the rounds, with their spread.
fn table(outcomes: &[Outcome], args: &TwoWayArgs, facts: &[String]) -> String {
    let mut text = format!(
        "{}\n\n{} round(s), {} s for each measurement; {} open chats, messages of {} bytes. CPU: seconds for 1,000 messages while \
         draining, of the system, the broker and PostgreSQL.\n\n| road | system | through/s | drained/s | CPU | commits | p50 ms at half | p99 ms at half |\n|---|---|---|---|---|---|---|---|\n",
        facts.join("\n"),
        args.rounds,
        args.seconds,
        args.shape.conversations,
        args.shape.body
    );
    for shape in ROADS {
        for name in &args.systems {
            let rounds: Vec<_> =
                outcomes.iter().filter(|it| &it.name == name && it.shape == shape.name()).collect();
            if rounds.is_empty() {
                continue;
            }
            let shown = |value: fn(&Outcome) -> f64, digits: usize| {
                let mut values: Vec<f64> = rounds.iter().map(|it| value(it)).collect();
                values.sort_by(f64::total_cmp);
                spread(&values).map_or_else(String::new, |(median, least, most)| {
                    format!("{median:.digits$} ({least:.digits$}–{most:.digits$})")
                })
            };
            let _ = writeln!(
                text,
                "| {} | {name} | {} | {} | {} + {} + {} | {} | {} | {} |",
                shape.name(),
                shown(|it| it.through.rate, 0),
                shown(|it| it.drain.rate, 0),
                shown(|it| it.drain.cpu, 3),
                shown(|it| it.drain.broker_cpu, 3),
                shown(|it| it.drain.postgres_cpu, 3),
                shown(|it| it.commits, 2),
                shown(|it| it.half.whole.p50, 1),
                shown(|it| it.half.whole.p99, 1)
            );
        }
    }
    text
}
