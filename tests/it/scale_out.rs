//! Tests that workers can join, leave, crash and freeze while messages flow. The partitions follow the rendezvous hash,
//! no message is lost, and no message overtakes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use causeway::message::Destination;
use causeway::queue::PartitionId;
use causeway::queue::partition::rendezvous_weight;
use causeway::sandbox::{FaultRule, LedgerEntry, Operation, Side};
use url::Url;

use super::harness::load::Load;
use super::harness::matrix::Bench;
use super::harness::postgres::Database;
use super::harness::proxy::Proxy;
use super::harness::relay::{Plan, Relay};
use super::harness::wait::eventually;

const LINES: usize = 8;
const PARTITIONS: u16 = 16;
const FREEZES: usize = 1;
const SOON: Duration = Duration::from_secs(60);
/// A worker that returns gets its partitions after half a minute; the rest is a margin for a busy machine.
const AGAIN: Duration = Duration::from_secs(120);

on_every_rabbit! {
    async fn workers_share_the_partitions_as_they_come_and_go(bench: Bench) {
        let mut relay =
            Plan::on(&bench).set("queue.partitions", PARTITIONS.to_string()).apart(1).start().await;
        let moment = FaultRule::new(Side::Xo).operation(Operation::Callback).delay(Duration::from_millis(10));
        relay.sandbox.script().fail(moment);
        shared_by(&relay, &bench, 1).await;
        let load = Load::bounded(&relay, LINES);
        load.takes(50).await;
        for workers in 2..=3 {
            relay.add("worker").await;
            shared_by(&relay, &bench, workers).await;
            load.takes(50).await;
        }
        // One worker stops in an orderly way, the other is killed.
        relay.processes[2].running.sigterm();
        assert_eq!(relay.processes[2].running.exit(SOON).await.code(), Some(0));
        relay.processes.remove(2);
        shared_by(&relay, &bench, 2).await;
        load.takes(50).await;
        relay.processes[2].running.kill9();
        relay.processes.remove(2);
        shared_by(&relay, &bench, 1).await;
        load.takes(50).await;
        load.all_arrive(&relay.sandbox).await;
    }

    // The broker moves a partition only when its owner holds no unacked message. If a conversation fails without end,
    // this never happens.
    async fn a_failing_conversation_does_not_keep_a_newcomer_out(bench: Bench) {
        let plan = Plan::on(&bench).set("queue.partitions", PARTITIONS.to_string());
        let mut relay = plan.set("delivery.hold", "10min").set("delivery.retry.max", "1s").apart(1).start().await;
        // The failing conversations are few, and their messages alternate with many successful ones, so this is not an
        // outage.
        let stuck: Vec<String> = (0..6).map(|n| format!("stuck-{n}")).collect();
        for name in &stuck {
            relay.sandbox.script().fail(FaultRule::new(Side::Xo).conversation(name.as_str()));
        }
        let load = Load::bounded(&relay, LINES);
        load.takes(20).await;
        relay.callbacks(&stuck, 2, 1).await;
        relay.add("worker").await;
        shared_by(&relay, &bench, 2).await;
        load.takes(20).await;
        load.all_arrive(&relay.sandbox).await;
        assert!(stuck.iter().all(|name| !relay.called_back().contains_key(name)), "they fail all the while");
    }

    // A worker that cannot reach XO releases its partitions. When its breaker probes again, the other worker owns every
    // partition, so that this worker receives no message to probe with.
    async fn a_worker_that_could_not_reach_xo_gets_its_share_again(bench: Bench) {
        let plan = Plan::on(&bench).set("queue.partitions", PARTITIONS.to_string());
        let mut relay = plan.set("delivery.retry.max", "1s").apart(1).start().await;
        let url: Url = relay.sandbox.xo_callback_url().parse().unwrap();
        let proxy = Proxy::start(url.socket_addrs(|| None).unwrap()[0]).await;
        let own_way = format!("http://{}{}", proxy.addr(), url.path());
        relay.add_with("worker", &[("xo.callback_url", own_way)]).await;
        shared_by(&relay, &bench, 2).await;
        let load = Load::bounded(&relay, LINES);
        proxy.refuse().await;
        let state = async |relay: &Relay| {
            relay.metric_of(&relay.processes[2], "causeway_breaker_state", &[("destination", "xo")]).await
        };
        eventually("the breaker of the one to trip", SOON, async || match state(&relay).await? {
            0.0 => Err("it passes".into()),
            _ => Ok(()),
        })
        .await;
        eventually("the other one to own all partitions of XO", SOON, async || {
            let owners = owners(&bench)?;
            let of_xo = owners.iter().filter(|(queue, _)| queue.starts_with("causeway.w.xo."));
            let names: BTreeSet<&String> = of_xo.map(|(_, (owner, _))| owner).collect();
            if names.len() == 1 { Ok(()) } else { Err(format!("{names:?}")) }
        })
        .await;
        load.takes(40).await;
        proxy.heal().await;
        shared_by(&relay, &bench, 2).await;
        load.all_arrive(&relay.sandbox).await;
    }

    // A frozen worker does no harm because of three time limits. A request starts only within one heartbeat after the
    // broker's last answer (`delivery/gate.rs`, and again in `platform/http.rs` when all input is ready). The timeout
    // of a request is shorter than a heartbeat. The broker gives a worker up after two heartbeats at the earliest. A
    // worker that wakes up finds its lease expired and starts nothing. One case remains: the freeze may come between
    // the last check of the lease and the first byte of a request, at most once for each conversation. The request is
    // sent after the freeze, although the other worker has delivered its message. It is therefore a repeat: never the
    // first of its kind, never two in a row.
    async fn a_frozen_worker_that_wakes_up_harms_nothing(bench: Bench) {
        // With SQLite, a process that freezes in a write would keep the file locked.
        let database = Database::create().await;
        let plan = Plan::on(&bench).set("queue.heartbeat", "2s").set("delivery.retry.max", "1s");
        let plan = plan.set("directory.url", database.url());
        let plan = plan.set("delivery.xo.timeout", "1500ms").set("delivery.servicenow.timeout", "1500ms");
        // The number of partitions is high enough that the hash gives every worker some.
        let mut relay = plan.set("queue.partitions", PARTITIONS.to_string()).apart(1).start().await;
        // The URL is marked, so that the ledger shows which worker made the call.
        let signed = format!("{}?from=frozen", relay.sandbox.xo_callback_url());
        relay.add_with("worker", &[("xo.callback_url", signed)]).await;
        relay.sandbox.script().fail(FaultRule::new(Side::Xo).operation(Operation::Callback).delay(Duration::from_millis(15)));
        let load = Load::bounded(&relay, 2 * LINES);
        by_the_frozen_one(&relay, 20).await;
        for _ in 0..FREEZES {
            relay.processes[2].running.sigstop();
            load.takes(40).await;
            // Includes the messages of the frozen worker, which the broker has given up.
            load.arrives(&relay.sandbox).await;
            relay.processes[2].running.sigcont();
            let before = effects_of_the_frozen_one(&relay);
            by_the_frozen_one(&relay, before + 20).await;
        }
        let ledger = relay.sandbox.ledger().xo_callbacks();
        load.all_arrive(&relay.sandbox).await;
        for (group, entries) in ledger {
            no_late_effect(&group, &entries);
        }
    }

    async fn a_worker_that_freezes_on_its_way_to_a_call_does_not_make_it_on_waking(bench: Bench) {
        let database = Database::create().await;
        let heartbeat = Duration::from_secs(2);
        let plan = Plan::on(&bench).set("queue.heartbeat", "2s").set("directory.url", database.url());
        let plan = plan.set("delivery.xo.timeout", "1500ms").set("delivery.servicenow.timeout", "1500ms");
        // Only messages make calls to ServiceNow.
        let plan = plan.set("servicenow.poll_waiting", "10min").set("servicenow.poll_active", "10min");
        let vhost = bench.vhost().unwrap();
        let proxy = Proxy::start(vhost.broker()).await;
        let mut relay = plan.apart(0).start().await;
        relay.add_with("worker", &[("queue.url", vhost.url_through(proxy.addr()))]).await;
        let group = relay.open("c-1").await;
        let said = relay.said(&group).len();
        // After the gate the worker reads the directory, and waits there.
        let mut lock = database.lock("conversations").await;
        relay.say("c-1", "once").await;
        lock.keeps_waiting("SELECT % FROM conversations WHERE id = $1").await;
        let to_servicenow = [("destination", "servicenow")];
        relay.metric_is("causeway_in_flight", &to_servicenow, |count| count == 1.0).await;
        relay.processes[1].running.sigstop();
        let frozen = Instant::now();
        lock.release().await;
        // The lease has expired and is not renewed after the freeze, and the query to the directory has not timed out.
        proxy.black_hole();
        eventually("its lease to be over", 2 * heartbeat, async || match frozen.elapsed() {
            passed if passed > heartbeat + heartbeat / 4 => Ok(()),
            passed => Err(format!("{passed:?}")),
        })
        .await;
        relay.processes[1].running.sigcont();
        relay.metric_is("causeway_in_flight", &to_servicenow, |count| count == 0.0).await;
        assert_eq!(relay.said(&group).len(), said);
        proxy.heal().await;
        relay.say("c-1", "what comes after it").await;
        relay.until("both to be delivered", |relay| match relay.said(&group) {
            all if all.len() > said + 1 => Ok(()),
            all => Err(format!("{all:?}")),
        })
        .await;
        assert_eq!(relay.said(&group)[said..], ["once", "what comes after it"]);
    }
}

fn is_of_the_frozen_one(entry: &LedgerEntry) -> bool {
    entry.path.ends_with("from=frozen")
}

fn effects_of_the_frozen_one(relay: &Relay) -> usize {
    let is_effect = |entry: &LedgerEntry| {
        (entry.side, entry.operation) == (Side::Xo, Operation::Callback) && entry.effect.is_some()
    };
    // Counted without a copy of the ledger, which would starve the processes under test.
    relay.sandbox.ledger().count(|entry| !entry.outbound && is_effect(entry) && is_of_the_frozen_one(entry))
}

async fn by_the_frozen_one(relay: &Relay, count: usize) {
    eventually("the other worker to have its share", AGAIN, async || {
        match effects_of_the_frozen_one(relay) {
            enough if enough >= count => Ok(()),
            few => Err(format!("{few} of {count}")),
        }
    })
    .await;
}

/// An effect after another worker's effect of the same or a later message must be a repeat, and at most one for each
/// freeze.
fn no_late_effect(group: &str, entries: &[LedgerEntry]) {
    let number = |entry: &LedgerEntry| entry.text.as_deref().and_then(|text| text.parse::<usize>().ok());
    let (mut newest_of_the_other, mut seen, mut late) = (None, BTreeSet::new(), Vec::new());
    for entry in entries {
        let first = seen.insert(number(entry));
        if !is_of_the_frozen_one(entry) {
            newest_of_the_other = newest_of_the_other.max(number(entry));
        } else if number(entry) <= newest_of_the_other {
            assert!(!first, "{group}: {:?} first after {newest_of_the_other:?}", number(entry));
            late.push(number(entry));
        }
    }
    assert!(late.len() <= FREEZES, "{group}: {late:?} came late");
}

/// The destinations of the harness's settings.
const DESTINATIONS: [Destination; 4] =
    [Destination::ServiceNow, Destination::Xo, Destination::Events, Destination::Callbacks];

/// Waits until this many workers exist, the preferred worker consumes each partition, and the workers' metrics say the
/// same.
async fn shared_by(relay: &Relay, bench: &Bench, workers: usize) {
    eventually(&format!("{workers} workers to share the partitions"), SOON, async || {
        let owners = owners(bench)?;
        let names: BTreeSet<&String> = owners.values().flat_map(|(_, all)| all).collect();
        if names.len() != workers {
            return Err(format!("{} workers consume", names.len()));
        }
        let mut expected: BTreeMap<&String, usize> = names.iter().map(|name| (*name, 0)).collect();
        for destination in DESTINATIONS {
            for partition in PartitionId::all(destination, PARTITIONS) {
                let best = names.iter().copied().max_by_key(|name| rendezvous_weight(name, partition));
                let best = best.ok_or("nobody consumes")?;
                let owner = owners.get(&format!("causeway.w.{partition}")).map(|(owner, _)| owner);
                if owner != Some(best) {
                    return Err(format!("{partition} is borrowed by {owner:?}, and should be by {best}"));
                }
                *expected.entry(best).or_default() += 1;
            }
        }
        let mut owned = Vec::new();
        for process in &relay.processes[1..] {
            owned.push(relay.metric_of(process, "causeway_partitions_owned", &[]).await? as usize);
        }
        let mut expected: Vec<usize> = expected.into_values().collect();
        expected.sort_unstable();
        owned.sort_unstable();
        if owned == expected { Ok(()) } else { Err(format!("they say {owned:?}, and should {expected:?}")) }
    })
    .await;
}

/// The consumer of each queue and the waiting consumers, by the names in their tags.
fn owners(bench: &Bench) -> Result<BTreeMap<String, (String, BTreeSet<String>)>, String> {
    let mut owners: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
    for consumer in bench.vhost().ok_or("no broker")?.consumers() {
        let queue = consumer["queue"]["name"].as_str().unwrap_or_default();
        let tag = consumer["consumer_tag"].as_str().unwrap_or_default();
        let Some((worker, _)) = tag.rsplit_once('-').filter(|_| queue.starts_with("causeway.w.")) else {
            continue;
        };
        let (owner, all) = owners.entry(queue.to_owned()).or_default();
        all.insert(worker.to_owned());
        if consumer["activity_status"] == "single_active" {
            worker.clone_into(owner);
        }
    }
    Ok(owners)
}
