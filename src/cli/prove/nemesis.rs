//! Executes the schedule of faults and records when each fault began and ended.
//!
//! Not responsible for: the kind and time of faults (`fault_plan.rs`), which repeats a fault explains (`checker.rs`).

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;

use super::environment::ProveEnvironment;
use super::fault_plan::{FaultKind, PlannedFault};
use super::generator::POISON;
use super::history::FaultRecord;
use crate::message::Destination;
use crate::sandbox::{FaultRule, Operation, RetryAfter, Side};

/// A faulty platform fails this share of the requests, so that the other requests still succeed.
const SHARE: f64 = 0.3;
/// Number of hanging requests. Each one occupies one of the concurrent calls until the caller's timeout.
const HANGING: u64 = 5;
const SLOW: Duration = Duration::from_millis(400);

/// A kill of a worker. `watch` is the number under which the witness looks for the next arrivals.
#[derive(Debug, Clone, Copy)]
pub(super) struct WorkerKill {
    pub(super) fault: FaultRecord,
    pub(super) watch: usize,
}

/// The faults made so far.
#[derive(Debug, Default)]
pub(super) struct FaultLog {
    pub(super) happened: Vec<FaultRecord>,
    pub(super) kills: Vec<WorkerKill>,
}

/// Makes every planned fault. Ends when the last fault is over.
pub(super) async fn carry_out(
    environment: &ProveEnvironment,
    planned: &[PlannedFault],
    begin: Instant,
    fault_log: &Mutex<FaultLog>,
) -> anyhow::Result<()> {
    let mut faults: FuturesUnordered<_> = planned
        .iter()
        .map(|fault| async move {
            tokio::time::sleep_until(begin + fault.at).await;
            commit(environment, *fault, fault_log)
                .await
                .with_context(|| format!("making the fault {}", fault.fault_kind))
        })
        .collect();
    while let Some(done) = faults.next().await {
        done?;
    }
    Ok(())
}

/// Makes the destinations reject the messages of poisoned conversations. Returns the numbers of the rules, for their
/// removal.
pub(super) fn poison(environment: &ProveEnvironment) -> Vec<u64> {
    let said = [(Side::ServiceNow, Operation::Message), (Side::Xo, Operation::Callback)];
    said.map(|(side, operation)| {
        let rule = FaultRule::new(side).operation(operation).conversation(POISON).status(500);
        environment.sandbox.script().fail(rule)
    })
    .to_vec()
}

async fn commit(
    environment: &ProveEnvironment,
    fault: PlannedFault,
    fault_log: &Mutex<FaultLog>,
) -> anyhow::Result<()> {
    let observer = &environment.observer;
    let from = observer.now();
    let mut happened = FaultRecord {
        fault_kind: fault.fault_kind,
        from,
        until: from,
        worker: fault.worker,
        side: fault.side,
    };
    let mut watch = None;
    match fault.fault_kind {
        FaultKind::KillIngress => {
            environment.ingress().kill(fault.lasts, || happened.until = observer.now()).await?
        }
        FaultKind::KillWorker => {
            let gone = || {
                (happened.until, watch) = (observer.now(), Some(observer.watch()));
            };
            environment.worker(fault.worker)?.kill(fault.lasts, gone).await?;
        }
        FaultKind::FullDisk => {
            let full = || happened.from = observer.now();
            let room = || happened.until = observer.now();
            environment.worker(fault.worker)?.fill_disk(fault.lasts, full, room).await?;
        }
        FaultKind::StopBroker | FaultKind::KillBroker => {
            let how = if fault.fault_kind == FaultKind::KillBroker { "kill" } else { "stop" };
            environment.broker()?.take_away(how, fault.lasts, || happened.from = observer.now()).await?;
            happened.until = observer.now();
        }
        _ => {
            lasting(environment, fault).await?;
            happened.until = observer.now();
        }
    }
    let mut fault_log = fault_log.lock().unwrap_or_else(PoisonError::into_inner);
    fault_log.kills.extend(watch.map(|watch| WorkerKill { fault: happened, watch }));
    fault_log.happened.push(happened);
    Ok(())
}

async fn lasting(environment: &ProveEnvironment, fault: PlannedFault) -> anyhow::Result<()> {
    let side = match fault.side {
        Destination::ServiceNow => Side::ServiceNow,
        _ => Side::Xo,
    };
    let some = FaultRule::new(side).probability(SHARE, fault.seed);
    let rule = match fault.fault_kind {
        FaultKind::Busy => some.status(503),
        FaultKind::TooMany => some.too_many(RetryAfter::Seconds(1)),
        FaultKind::GatewayTimeout => some.status(504),
        FaultKind::Hang => some.times(HANGING).hang(),
        FaultKind::Cut => some.cut(),
        FaultKind::CutAfter => some.after().cut(),
        FaultKind::Html => some.html_page(),
        FaultKind::Slow => some.delay(SLOW),
        FaultKind::FreezeWorker => return environment.worker(fault.worker)?.freeze(fault.lasts).await,
        _ => return wire(environment, fault).await,
    };
    let number = environment.sandbox.script().fail(rule);
    tokio::time::sleep(fault.lasts).await;
    environment.sandbox.script().remove(number);
    Ok(())
}

/// Breaks a network connection between two parts.
async fn wire(environment: &ProveEnvironment, fault: PlannedFault) -> anyhow::Result<()> {
    let proxy = match fault.fault_kind {
        FaultKind::CutCallers | FaultKind::HoleCallers => &environment.wires.callers,
        FaultKind::CutIngressBroker | FaultKind::HoleIngressBroker => environment.wires.broker(0)?,
        FaultKind::CutWorkerBroker | FaultKind::HoleWorkerBroker => {
            environment.wires.broker(1 + fault.worker)?
        }
        _ => match fault.side {
            Destination::ServiceNow => &environment.wires.servicenow,
            _ => &environment.wires.xo,
        },
    };
    match fault.fault_kind {
        FaultKind::CutCallers
        | FaultKind::CutIngressBroker
        | FaultKind::CutWorkerBroker
        | FaultKind::CutPlatform => {
            proxy.cut();
            return Ok(());
        }
        FaultKind::DownPlatform => proxy.refuse(),
        _ => proxy.black_hole(),
    }
    tokio::time::sleep(fault.lasts).await;
    proxy.heal();
    Ok(())
}
