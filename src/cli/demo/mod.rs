//! `causeway demo`: runs the whole relay in one process, with the sandbox on both sides. It plays a conversation with
//! a bot and two handoffs through an outage, a dead letter and a replay.
//!
//! Guarantees: the demo reads no settings and uses only loopback. Every printed event has happened (`witness.rs`
//! reads the sandbox's ledger and the metrics). The exit code is 0 only if no message was lost or overtaken. The demo
//! always ends and leaves no file.

mod account;
mod play;
mod scrape;
mod stage;
mod timeline;
mod witness;

use std::pin::pin;
use std::time::Duration;

use super::output::{self, Paint};
use super::{Failure, sandbox};
use crate::telemetry::{LogSettings, start_logging};
use account::Account;
use play::Play;
use stage::Stage;
use timeline::Timeline;
use witness::Witness;

/// Time limit in addition to the pauses, which grow at low speeds. It is far more than a slow machine needs.
const LIMIT: Duration = Duration::from_secs(120);
/// Sum of all pauses at speed 1 in seconds, rounded up.
const PAUSES: f64 = 30.0;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
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

pub(super) async fn run(args: &Args, paint: Paint) -> Result<(), Failure> {
    start_logging(&LogSettings {
        format: None,
        level: format!("causeway::audit=off,{}", args.log),
        conversation_ids: true,
    });
    let mut signal = pin!(sandbox::stopped());
    let mut stage = tokio::select! {
        stage = Box::pin(Stage::set()) => stage?,
        heard = &mut signal => return Err(interrupted(heard)),
    };
    let ended = tokio::select! {
        played = Box::pin(perform(args, &stage.front, paint)) => played,
        failure = stage.relay.failure() => Err(failure.into()),
        heard = &mut signal => Err(interrupted(heard)),
    };
    let ended = match ended {
        Ok(()) if args.keep => tokio::select! {
            failure = stage.relay.failure() => Err(failure.into()),
            heard = &mut signal => heard.map_err(Failure::from),
        },
        ended => ended,
    };
    let struck = stage.strike().await;
    ended?;
    Ok(struck?)
}

fn interrupted(heard: std::io::Result<()>) -> Failure {
    match heard {
        Ok(()) => anyhow::anyhow!("the demo was interrupted before its end").into(),
        Err(error) => error.into(),
    }
}

/// Plays the scenario, prints the events, and prints the summary.
async fn perform(args: &Args, front: &stage::Front, paint: Paint) -> Result<(), Failure> {
    let timeline = Timeline::begin(paint);
    timeline.paragraph(
        "Causeway in one process: ingress, worker, embedded queue, and a sandbox that plays ServiceNow and XO with \
         its bot. Lines marked >, ! or + were observed in the sandbox or in Causeway's metrics.",
    )?;
    let witness = Witness::new(front, &timeline);
    let mut play = Play::new(front, &timeline, &witness, args.speed);
    let limit = LIMIT + Duration::from_secs_f64(PAUSES / args.speed);
    let played = tokio::select! {
        played = tokio::time::timeout(limit, Box::pin(play.perform())) => played,
        error = witness.follow() => return Err(error.into()),
    };
    let Ok(played) = played else {
        return Err(anyhow::anyhow!("the demo did not end within {limit:?}: try --log info").into());
    };
    played?;
    witness.catch_up()?;
    let account = Account::draw(&play, front).await?;
    timeline.heading("Result")?;
    timeline.text(account.table())?;
    timeline.paragraph(
        "\np50 and p99: from accepted (or replayed) until the other side answered. The time of the outage is included.\n",
    )?;
    if !account.balances() {
        timeline.text(paint.red(&account.broken()))?;
        return Err(Failure::Told);
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
fn invite(front: &stage::Front, paint: Paint) -> std::io::Result<()> {
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
