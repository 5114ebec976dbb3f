//! Promise: workers join and leave while messages flow; the partitions follow them, nothing is lost, nothing overtakes.

use std::time::Duration;

use causeway::sandbox::{Operation, Rule, Side};

use super::harness::load::Load;
use super::harness::relay::{Plan, Relay};
use super::harness::wait::eventually;

const LINES: usize = 8;
const PARTITIONS: usize = 16;
const SOON: Duration = Duration::from_secs(60);

on_every_rabbit! {
    async fn workers_share_the_partitions_as_they_come_and_go(bench: Bench) {
        let mut relay =
            Plan::on(&bench).set("queue.partitions", PARTITIONS.to_string()).apart(1).start().await;
        let moment = Rule::new(Side::Xo).operation(Operation::Callback).delay(Duration::from_millis(10));
        relay.sandbox.script().fail(moment);
        shared_by(&relay, 1).await;
        let load = Load::start(&relay, LINES);
        load.takes(50).await;
        for workers in 2..=3 {
            relay.add("worker").await;
            shared_by(&relay, workers).await;
            load.takes(50).await;
        }
        // One leaves in good order, one does not.
        relay.processes[2].running.sigterm();
        assert_eq!(relay.processes[2].running.exit(SOON).await.code(), Some(0));
        relay.processes.remove(2);
        shared_by(&relay, 2).await;
        load.takes(50).await;
        relay.processes[2].running.kill9();
        relay.processes.remove(2);
        shared_by(&relay, 1).await;
        load.takes(50).await;
        load.all_arrive(&relay.sandbox).await;
    }
}

/// Each partition of each destination is owned by exactly one worker, and none is idle. With 16 partitions a worker among
/// three has none of a destination in one case of 650.
async fn shared_by(relay: &Relay, workers: usize) {
    eventually(&format!("{workers} workers to share the partitions"), SOON, async || {
        let mut owned = Vec::new();
        for process in &relay.processes[1..] {
            let here = relay.metric_of(process, "causeway_partitions_owned", &[]).await?;
            owned.push(here as usize);
        }
        let right = owned.len() == workers
            && owned.iter().sum::<usize>() == 2 * PARTITIONS
            && owned.iter().all(|owned| *owned > 0);
        if right { Ok(()) } else { Err(format!("{owned:?}")) }
    })
    .await;
}
