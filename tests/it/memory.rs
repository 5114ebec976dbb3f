//! Promise: memory is bounded by bytes: no backlog, body or list takes a process beyond the 256 MiB of the shipped limits.
//!
//! Each test reads the peak of the resident memory that Linux notes for the process (`VmHWM`), so that a short peak counts, too.
#![expect(clippy::unwrap_used, reason = "a test that finds the unexpected has failed")]

use causeway::sandbox::{FaultRule, Operation, Side};
use serde_json::{Value, json};

use super::harness::http;
use super::harness::relay::{PATIENCE, Plan, Relay};
use super::harness::wait::eventually;

/// Below the 256 MiB of docker-compose.yml and of the Kubernetes manifests. A process that kept each body of the backlog once would come
/// to more.
const LIMIT: u64 = 230 << 20;
const MIB: usize = 1 << 20;

fn assert_small(relay: &Relay) {
    for process in &relay.processes {
        let peak = process.running.memory_peak();
        assert!(peak < LIMIT, "{} MiB", peak >> 20);
    }
}

/// Posts `groups` conversations of `each` callbacks with bodies of `bytes`.
async fn post(relay: &Relay, groups: usize, each: usize, bytes: usize) {
    let text = "x".repeat(bytes);
    for n in 0..each {
        for group in 0..groups {
            relay.callback(&format!("g-{group}"), &text, &format!("{group}-{n}")).await.id();
        }
    }
}

async fn all_delivered(relay: &Relay, count: usize) {
    relay.metric_is("causeway_queue_messages", &[("destination", "xo")], |waiting| waiting == 0.0).await;
    let taken: usize = relay.called_back().values().map(Vec::len).sum();
    assert_eq!(taken, count);
}

async fn backlog(mut relay: Relay, groups: usize, each: usize, bytes: usize) {
    let down = FaultRule::new(Side::Xo).operation(Operation::Callback).status(503);
    let down = relay.sandbox.script().fail(down);
    post(&relay, groups, each, bytes).await;
    assert_small(&relay);
    assert_eq!(relay.stop().await, [Some(0)]);
    relay.processes[0].restart();
    relay.ready().await;
    let count = groups * each;
    relay.metric_is("causeway_queue_messages", &[("destination", "xo")], |n| n >= count as f64).await;
    assert!(relay.sandbox.script().remove(down));
    all_delivered(&relay, count).await;
    assert_small(&relay);
}

on_every_engine! {
    async fn a_backlog_of_large_bodies_survives_a_restart(bench: Bench) {
        backlog(Plan::on(&bench).start().await, 50, 3, MIB).await;
    }

    async fn a_list_of_large_dead_letters_stays_small(bench: Bench) {
        let relay = Plan::on(&bench).set("admin.token", "admin-token").start().await;
        relay.sandbox.script().fail(FaultRule::new(Side::Xo).operation(Operation::Callback).status(400));
        post(&relay, 30, 1, 2 * MIB - 1024).await;
        let url = format!("{}/dead-letters?limit=1", relay.processes[0].admin_url());
        let list = eventually("30 dead letters", PATIENCE, async || {
            let answer = http::client().get(&url).bearer_auth("admin-token").send().await.unwrap();
            let list: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
            if list["matching"] == 30 { Ok(list) } else { Err(list.to_string()) }
        })
        .await;
        assert_eq!(list["dead_letters"].as_array().map(Vec::len), Some(1));
        assert_small(&relay);
    }
}

/// JSON as a tree costs 110 times its size.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_many_small_values_stays_small() {
    let bench = super::harness::matrix::Engine::Embedded.bench().unwrap();
    let relay = Plan::on(&bench).start().await;
    let values = vec![json!({"": 0}); 2 * MIB / 8 - 100];
    let body = json!({"group": "g", "sys_id": "1", "formatted_message": "x", "more": values}).to_string();
    assert!(body.len() < 2 * MIB);
    for url in ["v1/callbacks/servicenow", "v1/handoffs"] {
        let url = format!("{}/{url}", relay.processes[0].public_url());
        let client = http::client();
        let posts = (0..8).map(|_| {
            let request = client.post(&url).header("content-type", "application/json");
            request
                .header("x-causeway-token", "callback-token")
                .bearer_auth("handoffs-token")
                .body(body.clone())
                .send()
        });
        for answer in futures_util::future::join_all(posts).await {
            assert!(answer.unwrap().status().as_u16() < 500);
        }
    }
    assert_small(&relay);
}

/// A signature can only be checked once the body is there; so an unproven sender may send little.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_with_a_made_up_signature_stay_small() {
    let bench = super::harness::matrix::Engine::Embedded.bench().unwrap();
    let relay = Plan::on(&bench).set("ingress.servicenow.hmac_secret", "signing-secret").start().await;
    let url = format!("{}/v1/callbacks/servicenow", relay.processes[0].public_url());
    let at = causeway::clock::now().as_second();
    let client = http::client();
    let posts = (0..100).map(|_| {
        let request = client.post(&url).header("content-type", "application/json");
        let signature = format!("t={at},v1=bWFkZSB1cA==");
        request.header("x-causeway-signature", signature).body(vec![b'x'; 2 * MIB]).send()
    });
    for answer in futures_util::future::join_all(posts).await {
        // A refusal closes the connection, which the client may see before the answer.
        assert!(answer.map_or(401, |answer| answer.status().as_u16()) >= 400);
    }
    assert_small(&relay);
}
