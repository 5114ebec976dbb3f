//! Executes the schedule of faults and records when each fault began and ended.
//!
//! Not responsible for: the kind and time of faults (`plan.rs`), which repeats a fault explains (`verdict.rs`).

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;

use super::history::Happened;
use super::load::POISON;
use super::plan::{Mishap, Planned};
use super::stage::Stage;
use crate::message::Destination;
use crate::sandbox::{Operation, RetryAfter, Rule, Side};

/// A faulty platform fails this share of the requests, so that the other requests still succeed.
const SHARE: f64 = 0.3;
/// Number of hanging requests. Each one occupies one of the concurrent calls until the caller's timeout.
const HANGING: u64 = 5;
const SLOW: Duration = Duration::from_millis(400);

/// A kill of a worker. `watch` is the number under which the witness looks for the next arrivals.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kill {
    pub(super) fault: Happened,
    pub(super) watch: usize,
}

/// The faults made so far.
#[derive(Debug, Default)]
pub(super) struct Diary {
    pub(super) happened: Vec<Happened>,
    pub(super) kills: Vec<Kill>,
}

/// Makes every planned fault. Ends when the last fault is over.
pub(super) async fn carry_out(
    stage: &Stage,
    planned: &[Planned],
    begin: Instant,
    diary: &Mutex<Diary>,
) -> anyhow::Result<()> {
    let mut faults: FuturesUnordered<_> = planned
        .iter()
        .map(|fault| async move {
            tokio::time::sleep_until(begin + fault.at).await;
            commit(stage, *fault, diary).await.with_context(|| format!("making the fault {}", fault.mishap))
        })
        .collect();
    while let Some(done) = faults.next().await {
        done?;
    }
    Ok(())
}

/// Makes the destinations reject the messages of poisoned conversations. Returns the numbers of the rules, for their
/// removal.
pub(super) fn poison(stage: &Stage) -> Vec<u64> {
    let said = [(Side::ServiceNow, Operation::Message), (Side::Xo, Operation::Callback)];
    said.map(|(side, operation)| {
        let rule = Rule::new(side).operation(operation).conversation(POISON).status(500);
        stage.sandbox.script().fail(rule)
    })
    .to_vec()
}

async fn commit(stage: &Stage, fault: Planned, diary: &Mutex<Diary>) -> anyhow::Result<()> {
    let witness = &stage.witness;
    let from = witness.now();
    let mut happened =
        Happened { mishap: fault.mishap, from, until: from, worker: fault.worker, side: fault.side };
    let mut watch = None;
    match fault.mishap {
        Mishap::KillIngress => stage.ingress().kill(fault.lasts, || happened.until = witness.now()).await?,
        Mishap::KillWorker => {
            let gone = || {
                (happened.until, watch) = (witness.now(), Some(witness.watch()));
            };
            stage.worker(fault.worker)?.kill(fault.lasts, gone).await?;
        }
        Mishap::FullDisk => {
            let full = || happened.from = witness.now();
            let room = || happened.until = witness.now();
            stage.worker(fault.worker)?.fill_disk(fault.lasts, full, room).await?;
        }
        Mishap::StopBroker | Mishap::KillBroker => {
            let how = if fault.mishap == Mishap::KillBroker { "kill" } else { "stop" };
            stage.broker()?.take_away(how, fault.lasts, || happened.from = witness.now()).await?;
            happened.until = witness.now();
        }
        _ => {
            lasting(stage, fault).await?;
            happened.until = witness.now();
        }
    }
    let mut diary = diary.lock().unwrap_or_else(PoisonError::into_inner);
    diary.kills.extend(watch.map(|watch| Kill { fault: happened, watch }));
    diary.happened.push(happened);
    Ok(())
}

async fn lasting(stage: &Stage, fault: Planned) -> anyhow::Result<()> {
    let side = match fault.side {
        Destination::ServiceNow => Side::ServiceNow,
        _ => Side::Xo,
    };
    let some = Rule::new(side).probability(SHARE, fault.seed);
    let rule = match fault.mishap {
        Mishap::Busy => some.status(503),
        Mishap::TooMany => some.too_many(RetryAfter::Seconds(1)),
        Mishap::GatewayTimeout => some.status(504),
        Mishap::Hang => some.times(HANGING).hang(),
        Mishap::Cut => some.cut(),
        Mishap::CutAfter => some.after().cut(),
        Mishap::Html => some.html_page(),
        Mishap::Slow => some.delay(SLOW),
        Mishap::FreezeWorker => return stage.worker(fault.worker)?.freeze(fault.lasts).await,
        _ => return wire(stage, fault).await,
    };
    let number = stage.sandbox.script().fail(rule);
    tokio::time::sleep(fault.lasts).await;
    stage.sandbox.script().remove(number);
    Ok(())
}

/// Breaks a network connection between two parts.
async fn wire(stage: &Stage, fault: Planned) -> anyhow::Result<()> {
    let proxy = match fault.mishap {
        Mishap::CutCallers | Mishap::HoleCallers => &stage.wires.callers,
        Mishap::CutIngressBroker | Mishap::HoleIngressBroker => stage.wires.broker(0)?,
        Mishap::CutWorkerBroker | Mishap::HoleWorkerBroker => stage.wires.broker(1 + fault.worker)?,
        _ => match fault.side {
            Destination::ServiceNow => &stage.wires.servicenow,
            _ => &stage.wires.xo,
        },
    };
    match fault.mishap {
        Mishap::CutCallers | Mishap::CutIngressBroker | Mishap::CutWorkerBroker | Mishap::CutPlatform => {
            proxy.cut();
            return Ok(());
        }
        Mishap::DownPlatform => proxy.refuse(),
        _ => proxy.black_hole(),
    }
    tokio::time::sleep(fault.lasts).await;
    proxy.heal();
    Ok(())
}
