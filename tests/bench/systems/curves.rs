//! Measures Causeway alone with growing sizes: the cost of a message by number of conversations, partitions and
//! workers, size of the body, depth of the queue, and number of dead letters. A cost that grows with the number of
//! conversations or with the depth of the queue is a defect.
//!
//! Not responsible for: how the jobs work (`jobs.rs`).

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Serialize;

use super::catalogue::{Role, System, target};
use super::driver::until;
use super::jobs::{Bench, Flow, Half, Stage};
use super::options::{CurvesArgs, ShapeArgs};
use super::{curve_plot, machine, say};

/// The curves, their sizes, and the unit of a size.
const CURVES: &[(&str, &[u32], &str)] = &[
    ("conversations", &[100, 1_000, 10_000, 100_000, 1_000_000], "conversations, each seen once before"),
    ("partitions", &[1, 2, 4, 8, 16, 32, 64], "queue.partitions"),
    ("workers", &[1, 2, 4], "worker processes beside one ingress"),
    ("body", &[200, 1_024, 8_192, 65_536, 1_048_576], "bytes of a message"),
    ("depth", &[10_000, 100_000, 1_000_000], "messages queued before the worker starts"),
    ("dead", &[100, 1_000, 10_000, 100_000], "dead letters"),
];

/// One size of one curve on one engine.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Point {
    pub(crate) curve: &'static str,
    pub(crate) engine: String,
    pub(crate) size: u32,
    pub(crate) through: Option<Flow>,
    pub(crate) half: Option<Half>,
    pub(crate) fill: Option<Flow>,
    pub(crate) drain: Option<Flow>,
    pub(crate) verbs: Vec<VerbCost>,
    pub(crate) trouble: Option<String>,
}

/// The cost of a verb of the command line.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct VerbCost {
    pub(crate) verb: &'static str,
    pub(crate) seconds: f64,
    pub(crate) cpu: f64,
    pub(crate) megabytes: f64,
}

pub(crate) async fn run(args: CurvesArgs) -> anyhow::Result<()> {
    let window = Duration::from_secs(args.seconds);
    let mut bench = super::bench(&args.broker, &plain(), window).await?;
    let facts = machine::facts(&bench.broker).await?;
    let mut points: Vec<Point> = Vec::new();
    for name in &args.curves {
        let (curve, sizes, _) = CURVES
            .iter()
            .find(|(curve, ..)| curve == name)
            .with_context(|| format!("there is no curve {name:?}"))?;
        for engine in &args.engines {
            let system = System::find(engine).with_context(|| format!("there is no engine {engine:?}"))?;
            for size in sizes.iter().filter(|size| **size <= args.most || *curve == "body") {
                if *curve == "workers" && !system.comes_apart() {
                    continue;
                }
                let mut point = Point { curve, engine: engine.clone(), size: *size, ..Point::default() };
                shape(&mut bench, curve, *size);
                let measured = measure(&bench, system, &mut point).await;
                point.trouble = measured.err().map(|error| format!("{error:#}"));
                bench.driver.sink.refuse(false);
                say(&line(&point));
                points.push(point);
                std::fs::write(target().join("curves.json"), serde_json::to_vec_pretty(&points)?)?;
                std::fs::write(target().join("curves.md"), markdown(&facts, &points))?;
                std::fs::write(target().join("curves.svg"), curve_plot::svg(&points))?;
            }
        }
    }
    say(&markdown(&facts, &points));
    say(&format!("written to {}", target().display()));
    Ok(())
}

fn plain() -> ShapeArgs {
    ShapeArgs { conversations: 10_240, connections: 128, outstanding: 512, body: 300, settings: Vec::new() }
}

/// The usual setup, except for the one size.
fn shape(bench: &mut Bench, curve: &str, size: u32) {
    let plain = plain();
    (bench.body, bench.outstanding, bench.settings) = (plain.body, plain.outstanding, plain.settings);
    (bench.connections, bench.conversations) = (plain.connections, plain.conversations);
    match curve {
        "conversations" => {
            bench.connections = plain.connections.min(size);
            bench.conversations = size.next_multiple_of(bench.connections);
        }
        "partitions" => bench.settings.push(("queue.partitions".into(), size.to_string())),
        "body" => {
            bench.body = size as usize;
            // Messages in transit stay below 64 MiB.
            bench.outstanding = plain.outstanding.min((64 << 20) / size as usize);
        }
        _ => {}
    }
}

async fn measure(bench: &Bench, system: System, point: &mut Point) -> anyhow::Result<()> {
    let mut stage = bench.stage(system).await?;
    match point.curve {
        "depth" => depth(&mut stage, point).await?,
        "dead" => dead(bench, &mut stage, point).await?,
        "workers" => {
            stage.start(Role::Front).await?;
            for worker in 0..point.size as usize {
                stage.place.worker = worker;
                stage.start(Role::Worker).await?;
            }
            flows(&mut stage, point, 0).await?;
        }
        curve => {
            stage.start(Role::Whole).await?;
            flows(&mut stage, point, if curve == "conversations" { point.size } else { 0 }).await?;
        }
    }
    stage.leave().await
}

async fn flows(stage: &mut Stage<'_>, point: &mut Point, first: u32) -> anyhow::Result<()> {
    let through = stage.through_after(first).await?;
    point.through = Some(through);
    point.half = Some(stage.steady(through.rate / 2.0).await?);
    Ok(())
}

async fn depth(stage: &mut Stage<'_>, point: &mut Point) -> anyhow::Result<()> {
    let (fill, ledger) = stage.fill_within(point.size as usize, patience(point.size)).await?;
    point.fill = Some(fill);
    point.drain = Some(stage.drain(&ledger).await?);
    Ok(())
}

/// Five hundred a second, which is less than the slowest machine reaches.
fn patience(messages: u32) -> Duration {
    Duration::from_secs(60 + u64::from(messages) / 500)
}

async fn dead(bench: &Bench, stage: &mut Stage<'_>, point: &mut Point) -> anyhow::Result<()> {
    bench.driver.sink.refuse(true);
    let (_, ledger) = stage.fill_within(point.size as usize, patience(point.size)).await?;
    stage.start(Role::Worker).await?;
    let goal = ledger.counts().accepted;
    let refused = until(patience(point.size), || ledger.counts().arrived >= goal).await;
    ensure!(refused, "{:?} of {goal} were tried", ledger.counts());
    // Ends only when the last dead letter is on disk.
    stage.stop().await;
    bench.driver.sink.refuse(false);
    let verbs: &[(&str, &[&str])] = &[
        ("list", &["dead", "list", "--json"]),
        ("filter", &["dead", "show", "--json", "--reason", "rejected", "--limit", "20"]),
        ("replay", &["dead", "replay", "--yes"]),
    ];
    for (verb, args) in verbs {
        let (seconds, used) = stage.verb(args).await?;
        point.verbs.push(VerbCost { verb, seconds, cpu: used.cpu, megabytes: used.megabytes });
    }
    stage.start(Role::Worker).await?;
    let again = until(patience(point.size), || ledger.counts().repeated >= goal).await;
    ensure!(again, "{:?} of {goal} came back", ledger.counts());
    Ok(())
}

fn line(point: &Point) -> String {
    let mut line = format!("{:>14} {:>9} {:>8}: ", point.curve, point.engine, point.size);
    for (name, flow) in [("through", point.through), ("accepted", point.fill), ("drained", point.drain)] {
        if let Some(flow) = flow {
            let _ = write!(
                line,
                "{name} {:.0}/s, {:.3} s CPU/1000, {:.0} MB; ",
                flow.rate, flow.cpu, flow.megabytes
            );
        }
    }
    if let Some(half) = point.half {
        let _ = write!(line, "at half p50 {:.1} p99 {:.1} ms", half.whole.p50, half.whole.p99);
    }
    for cost in &point.verbs {
        let _ = write!(line, "{} {:.2} s, {:.0} MB; ", cost.verb, cost.seconds, cost.megabytes);
    }
    if let Some(trouble) = &point.trouble {
        let _ = write!(line, "{trouble}");
    }
    line
}

fn markdown(facts: &[String], points: &[Point]) -> String {
    let mut page = String::from("# What a message costs as things grow\n\n");
    for fact in facts {
        let _ = writeln!(page, "- {fact}");
    }
    for (curve, _, about) in CURVES {
        let of: Vec<&Point> = points.iter().filter(|point| point.curve == *curve).collect();
        if of.is_empty() {
            continue;
        }
        let _ = writeln!(page, "\n## {curve}: {about}\n");
        page.push_str(match *curve {
            "depth" => "| engine | size | accepted/s | CPU s/1,000 | broker | MB of the ingress | drained/s | CPU s/1,000 | broker | MB of the worker | others |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
            "dead" => "| engine | size | list s | MB | filter s | MB | replay s | CPU s | MB |\n|---|---|---|---|---|---|---|---|---|\n",
            _ => "| engine | size | through/s | CPU s/1,000 | broker | MB | at half: post→deliver p50 ms | p99 | CPU s/1,000 | MB | others |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
        });
        for point in of {
            let _ = writeln!(page, "| {} | {} | {} |", point.engine, point.size, cells(point).join(" | "));
        }
    }
    page
}

fn cells(point: &Point) -> Vec<String> {
    if let Some(trouble) = &point.trouble {
        return vec![trouble.clone()];
    }
    let flow = |flow: Option<Flow>| {
        let flow = flow.unwrap_or_default();
        let (rate, megabytes) = (format!("{:.0}", flow.rate), format!("{:.0}", flow.megabytes));
        vec![rate, format!("{:.3}", flow.cpu), format!("{:.3}", flow.broker_cpu), megabytes]
    };
    match point.curve {
        "depth" => {
            let others = point.drain.map_or(f64::NAN, |flow| flow.others);
            [flow(point.fill), flow(point.drain), vec![format!("{others:.1}")]].concat()
        }
        "dead" => {
            let mut cells = Vec::new();
            for cost in &point.verbs {
                cells.push(format!("{:.2}", cost.seconds));
                if cost.verb == "replay" {
                    cells.push(format!("{:.2}", cost.cpu));
                }
                cells.push(format!("{:.0}", cost.megabytes));
            }
            cells
        }
        _ => {
            let Half { flow: at, whole, .. } = point.half.unwrap_or_default();
            let mut cells = flow(point.through);
            cells.extend([format!("{:.1}", whole.p50), format!("{:.1}", whole.p99)]);
            cells.extend([format!("{:.3}", at.cpu), format!("{:.0}", at.megabytes)]);
            cells.push(format!("{:.1}", point.through.map_or(f64::NAN, |flow| flow.others)));
            cells
        }
    }
}
