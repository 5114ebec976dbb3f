//! `causeway demo`: runs the whole relay in one process, with the sandbox on both sides. It plays a conversation with
//! a bot and two handoffs through an outage, a dead letter and a replay.
//!
//! Guarantees: the demo reads no settings and uses only loopback. Every printed event has happened (`observer.rs`
//! reads the sandbox's ledger and the metrics). The exit code is 0 only if no message was lost or overtaken. The demo
//! always ends and leaves no file.

mod environment;
mod metrics_scrape;
mod observer;
mod scenario;
mod summary;
mod timeline;

use std::pin::pin;
use std::time::Duration;

use super::output::{self, AnsiPaint};
use super::{CliFailure, sandbox};
use crate::telemetry::{LogSettings, start_logging};
use environment::DemoEnvironment;
use observer::DemoObserver;
use scenario::DemoScenario;
use summary::DemoSummary;
use timeline::DemoTimeline;

/// Time limit in addition to the pauses, which grow at low speeds. It is far more than a slow machine needs.
const LIMIT: Duration = Duration::from_secs(120);
/// Sum of all pauses at speed 1 in seconds, rounded up.
const PAUSES: f64 = 30.0;

#[derive(Debug, clap::Args)]
pub(super) struct DemoArgs {
    /// Speed: 2 is twice as fast as a person, 0.5 half as fast
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR", value_parser = speed)]
    speed: f64,
    /// Keep Causeway running afterwards, and print addresses and curl commands
    #[arg(long)]
    keep: bool,
    /// Log level on standard error: error, warn, info, debug or trace
    #[arg(long, default_value = "error", value_name = "LEVEL")]
    log: String,
}

fn speed(text: &str) -> Result<f64, String> {
    let speed = text.parse::<f64>().ok().filter(|speed| (0.1..=1000.0).contains(speed));
    speed.ok_or_else(|| "must be a number from 0.1 to 1000".to_owned())
}

pub(super) async fn run(args: &DemoArgs, paint: AnsiPaint) -> Result<(), CliFailure> {
    start_logging(&LogSettings {
        format: None,
        level: format!("causeway::audit=off,{}", args.log),
        conversation_ids: true,
    });
    let mut signal = pin!(sandbox::stopped());
    let mut environment = tokio::select! {
        environment = Box::pin(DemoEnvironment::set()) => environment?,
        heard = &mut signal => return Err(interrupted(heard)),
    };
    let ended = tokio::select! {
        played = Box::pin(perform(args, &environment.front, paint)) => played,
        failure = environment.relay.failure() => Err(failure.into()),
        heard = &mut signal => Err(interrupted(heard)),
    };
    let ended = match ended {
        Ok(()) if args.keep => tokio::select! {
            failure = environment.relay.failure() => Err(failure.into()),
            heard = &mut signal => heard.map_err(CliFailure::from),
        },
        ended => ended,
    };
    let struck = environment.tear_down().await;
    ended?;
    Ok(struck?)
}

fn interrupted(heard: std::io::Result<()>) -> CliFailure {
    match heard {
        Ok(()) => anyhow::anyhow!("the demo was interrupted before its end").into(),
        Err(error) => error.into(),
    }
}

/// Plays the scenario, prints the events, and prints the summary.
async fn perform(
    args: &DemoArgs,
    front: &environment::DemoClient,
    paint: AnsiPaint,
) -> Result<(), CliFailure> {
    let timeline = DemoTimeline::begin(paint);
    timeline.paragraph(
        "Causeway in one process: ingress, worker, embedded queue, and a sandbox that plays ServiceNow and XO with \
         its bot. Lines marked >, ! or + were observed in the sandbox or in Causeway's metrics.",
    )?;
    let observer = DemoObserver::new(front, &timeline);
    let mut scenario = DemoScenario::new(front, &timeline, &observer, args.speed);
    let limit = LIMIT + Duration::from_secs_f64(PAUSES / args.speed);
    let played = tokio::select! {
        played = tokio::time::timeout(limit, Box::pin(scenario.perform())) => played,
        error = observer.follow() => return Err(error.into()),
    };
    let Ok(played) = played else {
        return Err(anyhow::anyhow!("the demo did not end within {limit:?}: try --log info").into());
    };
    played?;
    observer.catch_up()?;
    let summary = DemoSummary::draw(&scenario, front).await?;
    timeline.heading("Result")?;
    timeline.text(summary.table())?;
    timeline.paragraph(
        "\np50 and p99: from accepted (or replayed) until the other side answered. The time of the outage is included.\n",
    )?;
    if !summary.balances() {
        timeline.text(paint.red(&summary.broken()))?;
        return Err(CliFailure::Told);
    }
    let took = timeline.elapsed().as_secs_f64();
    let verdict = format!("Nothing was lost, nothing was overtaken. It took {took:.1} s.");
    timeline.text(paint.green(&verdict))?;
    if args.keep {
        invite(front, paint)?
    }
    Ok(())
}

/// Prints commands to try while Causeway keeps running.
fn invite(front: &environment::DemoClient, paint: AnsiPaint) -> std::io::Result<()> {
    let heading = paint.bold("Causeway stays up until Ctrl-C. In another terminal:");
    output::line(format_args!("\n{heading}\n\n{}", front.invitation()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_is_a_number_that_ends() {
        assert_eq!(speed("20"), Ok(20.0));
        for wrong in ["0", "-1", "nan", "inf", "fast", ""] {
            assert!(speed(wrong).is_err(), "{wrong}");
        }
    }
}
