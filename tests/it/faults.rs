//! Tests that accepted messages survive every crash and arrive in order. Each test has whole processes, its own broker,
//! and one fault at a time under a steady load.

use std::net::SocketAddr;
use std::time::Duration;

use causeway::sandbox::{FaultRule, Operation, Side};
use tokio::time::Instant;

use super::harness::broker::Broker;
use super::harness::load::Load;
use super::harness::matrix::{Bench, Engine};
use super::harness::postgres::Database;
use super::harness::proxy::Proxy;
use super::harness::relay::{Plan, Relay};
use super::harness::wait::eventually;

const LINES: usize = 6;
const SOON: Duration = Duration::from_secs(60);

/// A private broker, and a bench for the files of the processes.
fn stage() -> Option<(Broker, Bench)> {
    Some((Broker::private()?, Engine::Embedded.bench()?))
}

/// Detects a silent peer as fast as the settings allow.
fn plan(bench: &Bench, url: String) -> Plan {
    Plan::on(bench)
        .set("queue.url", url)
        .set("queue.heartbeat", "2s")
        .set("queue.publish_timeout", "2s")
        .set("delivery.xo.timeout", "1500ms")
        .set("delivery.servicenow.timeout", "1500ms")
        .set("delivery.retry.max", "1s")
}

/// Deliveries take a moment, so a fault always finds some in flight. Some deliveries fail.
fn rough(relay: &Relay) {
    let script = relay.sandbox.script();
    let callback = || FaultRule::new(Side::Xo).operation(Operation::Callback);
    script.fail(callback().probability(0.03, 7).status(503));
    script.fail(callback().delay(Duration::from_millis(15)));
}

/// A quorum queue younger than about one second loses confirmed messages when its broker is killed.
async fn old_enough(born: Instant) {
    eventually("the queues to be of age", SOON, async || match born.elapsed() {
        age if age > Duration::from_secs(3) => Ok(()),
        age => Err(format!("{age:?}")),
    })
    .await;
}

fn through(proxy: SocketAddr) -> String {
    format!("amqp://guest:guest@{proxy}/%2f")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ: tests/run starts it"]
async fn a_broker_that_stops_is_answered_with_503_and_heals_without_a_restart() {
    let Some((mut broker, bench)) = stage() else { return };
    let mut relay = plan(&bench, broker.url()).set("ingress.spool", "off").start().await;
    rough(&relay);
    let load = Load::start(&relay, LINES);
    load.takes(100).await;
    broker.stop_app().await;
    assert_eq!(load.is_refused(503).await.as_deref(), Some("2"), "Retry-After");
    assert!(relay.processes[0].running.is_running());
    broker.start_app().await;
    load.takes(100).await;
    load.all_arrive(&relay.sandbox).await;
    assert_eq!(relay.stop().await, [Some(0)]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ: tests/run starts it"]
async fn a_broker_that_is_killed_loses_nothing_that_was_accepted() {
    let Some((mut broker, bench)) = stage() else { return };
    let mut relay = plan(&bench, broker.url()).start().await;
    old_enough(Instant::now()).await;
    rough(&relay);
    let load = Load::bounded(&relay, LINES);
    load.takes(100).await;
    broker.kill9().await;
    // The callbacks go to the spool meanwhile.
    load.takes(40).await;
    broker.restart().await;
    load.takes(60).await;
    assert_eq!(load.refusal_count(), 0);
    load.all_arrive(&relay.sandbox).await;
    assert_eq!(relay.stop().await, [Some(0)]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ: tests/run starts it"]
async fn workers_that_are_killed_again_and_again_lose_nothing() {
    let Some((broker, bench)) = stage() else { return };
    let mut relay = plan(&bench, broker.url()).apart(2).start().await;
    rough(&relay);
    let load = Load::start(&relay, LINES);
    for kill in 0..5 {
        load.takes(60).await;
        let victim = &mut relay.processes[1 + kill % 2];
        victim.running.kill9();
        load.takes(20).await;
        victim.restart();
        relay.ready().await;
    }
    load.all_arrive(&relay.sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ: tests/run starts it"]
async fn connections_that_are_cut_lose_nothing() {
    let Some((broker, bench)) = stage() else { return };
    let proxy = Proxy::start(broker.amqp()).await;
    let mut relay = plan(&bench, broker.url()).apart(1).start().await;
    relay.add_with("worker", &[("queue.url", through(proxy.addr()))]).await;
    rough(&relay);
    let load = Load::start(&relay, LINES);
    for _ in 0..5 {
        load.takes(60).await;
        proxy.cut();
    }
    load.takes(60).await;
    load.all_arrive(&relay.sandbox).await;
    relay.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ: tests/run starts it"]
async fn a_worker_that_falls_into_a_black_hole_is_replaced_and_comes_back() {
    let Some((broker, bench)) = stage() else { return };
    let proxy = Proxy::start(broker.amqp()).await;
    let mut relay = plan(&bench, broker.url()).apart(1).start().await;
    relay.add_with("worker", &[("queue.url", through(proxy.addr()))]).await;
    rough(&relay);
    let load = Load::start(&relay, LINES);
    load.takes(100).await;
    proxy.black_hole();
    load.takes(60).await;
    // Includes the unacked messages of the lost worker.
    load.arrives(&relay.sandbox).await;
    proxy.heal().await;
    load.takes(100).await;
    load.all_arrive(&relay.sandbox).await;
    relay.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ: tests/run starts it"]
async fn a_worker_that_freezes_is_replaced_and_harms_nothing_when_it_thaws() {
    let Some((broker, bench)) = stage() else { return };
    // With SQLite, a process that freezes in a write would keep the file locked.
    let database = Database::create().await;
    let relay = plan(&bench, broker.url()).set("directory.url", database.url()).apart(2).start().await;
    rough(&relay);
    let load = Load::start(&relay, LINES);
    load.takes(100).await;
    relay.processes[2].running.sigstop();
    load.takes(60).await;
    // Includes the unacked messages of the lost worker.
    load.arrives(&relay.sandbox).await;
    relay.processes[2].running.sigcont();
    load.takes(100).await;
    load.all_arrive(&relay.sandbox).await;
    relay.ready().await;
}
