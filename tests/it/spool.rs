//! Tests that ServiceNow and XO, which never repeat a refused request, are not refused while the broker is away: the
//! ingress keeps their messages on its disk and publishes them in order when the broker is back.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::json;

use crate::harness::load::Load;
use crate::harness::matrix::Bench;
use crate::harness::proxy::Proxy;
use crate::harness::relay::{Plan, Relay};
use crate::harness::wait::eventually;

const LINES: usize = 6;
const SOON: Duration = Duration::from_secs(30);

/// An ingress that reaches the broker through a proxy, and a worker that reaches the broker directly.
async fn relay(bench: &Bench, settings: &[(&str, &str)]) -> (Relay, Proxy) {
    let vhost = bench.vhost().expect("a broker");
    let proxy = Proxy::start(vhost.broker()).await;
    let plan = Plan::on(bench).set("queue.url", vhost.url_through(proxy.addr()));
    let plan = plan.set("queue.publish_timeout", "1s");
    let plan = settings.iter().fold(plan, |plan, (key, value)| plan.set(key, *value));
    let mut relay = plan.apart(0).start().await;
    relay.add_with("worker", &[("queue.url", vhost.url())]).await;
    (relay, proxy)
}

async fn spooled(relay: &Relay, right: impl Fn(f64) -> bool) {
    relay.metric_is("causeway_spool_messages", &[], right).await;
}

/// The texts of a group at XO, in the order of arrival.
fn arrived(relay: &Relay, group: &str) -> Vec<String> {
    let all = relay.called_back();
    all.get(group).cloned().unwrap_or_default()
}

async fn arrive(relay: &Relay, group: &str, texts: &[String]) {
    relay
        .until("all to arrive in order", |relay| match arrived(relay, group) {
            all if all == texts => Ok(()),
            some => Err(format!("{some:?}")),
        })
        .await;
}

/// Posts callbacks of one group, one after another, and returns their texts.
async fn posts(relay: &Relay, group: &str, numbers: std::ops::Range<usize>) -> Vec<String> {
    let mut texts = Vec::new();
    for n in numbers {
        texts.push(format!("text {n}"));
        relay.callback(group, &texts[texts.len() - 1], &format!("{group}-{n}")).await.id();
    }
    texts
}

on_every_rabbit! {
    async fn a_spool_is_handed_to_another_ingress(bench: Bench) {
        let (mut relay, proxy) = relay(&bench, &[]).await;
        proxy.refuse().await;
        let texts = posts(&relay, "g-1", 0..5).await;
        spooled(&relay, |messages| messages == 5.0).await;
        let (file, other) = (bench.folder().join("spool.export"), bench.folder().join("other"));
        let (file, other) = (file.to_str().unwrap(), other.to_str().unwrap());
        let refused = relay.tool(["spool", "export", file]).run(SOON).await;
        assert!(refused.code == Some(1) && refused.stderr.contains("stop it first"), "{}", refused.stderr);
        relay.processes[0].running.kill9();
        let exported = relay.tool(["spool", "export", file]).run(SOON).await;
        assert!(exported.stdout.contains("exported 5 messages"), "{}{}", exported.stdout, exported.stderr);
        let imported = relay.tool(["spool", "import", file]).set("data_dir", other).run(SOON).await;
        assert!(imported.stdout.contains("imported 5 messages"), "{}{}", imported.stdout, imported.stderr);
        for (run, act) in [(&exported, "export"), (&imported, "import")] {
            let is_audited = run.stderr.contains("causeway::audit") && run.stderr.contains(act);
            assert!(is_audited && run.stderr.contains("spool.export"), "{}", run.stderr);
        }
        relay.processes[0].set("data_dir", other);
        relay.processes[0].set("queue.url", &bench.vhost().unwrap().url());
        relay.processes[0].restart();
        arrive(&relay, "g-1", &texts).await;
    }

    async fn no_callback_is_refused_during_an_outage_of_the_broker(bench: Bench) {
        let (relay, proxy) = relay(&bench, &[]).await;
        let load = Load::bounded(&relay, LINES);
        load.takes(40).await;
        for _ in 0..2 {
            proxy.refuse().await;
            load.takes(60).await;
            spooled(&relay, |messages| messages > 0.0).await;
            // A load balancer that takes the ingress out of service would refuse the callbacks.
            relay.ready().await;
            proxy.heal().await;
            load.takes(60).await;
            spooled(&relay, |messages| messages == 0.0).await;
        }
        load.takes(20).await;
        assert_eq!(load.refusal_count(), 0);
        load.all_arrive(&relay.sandbox).await;
        relay.metric_is("causeway_spool_oldest_age_seconds", &[], |age| age == 0.0).await;
    }

    // The connection stays open and the broker does not answer. Only the first message waits for the time limit of a
    // publish.
    async fn a_broker_that_is_silent_is_away(bench: Bench) {
        let (relay, proxy) = relay(&bench, &[("queue.publish_timeout", "2s"), ("queue.heartbeat", "30s")]).await;
        let mut texts = posts(&relay, "g-1", 0..3).await;
        proxy.black_hole();
        texts.extend(posts(&relay, "g-1", 3..4).await);
        let began = Instant::now();
        texts.extend(posts(&relay, "g-1", 4..20).await);
        posts(&relay, "g-2", 0..1).await;
        assert!(began.elapsed() < Duration::from_secs(2), "none of them waits for the broker: {:?}", began.elapsed());
        proxy.heal().await;
        texts.extend(posts(&relay, "g-1", 20..30).await);
        arrive(&relay, "g-1", &texts).await;
        spooled(&relay, |messages| messages == 0.0).await;
    }

    async fn a_crash_or_a_stop_loses_nothing_that_was_spooled(bench: Bench) {
        let (mut relay, proxy) = relay(&bench, &[]).await;
        let mut texts = posts(&relay, "g-1", 0..2).await;
        proxy.refuse().await;
        texts.extend(posts(&relay, "g-1", 2..6).await);
        relay.processes[0].running.kill9();
        relay.processes[0].restart();
        // The ingress starts without the broker, and messages go behind those of its earlier life.
        relay.ready().await;
        texts.extend(posts(&relay, "g-1", 6..9).await);
        relay.processes[0].running.sigterm();
        assert_eq!(relay.processes[0].running.exit(SOON).await.code(), Some(0));
        relay.processes[0].restart();
        relay.ready().await;
        spooled(&relay, |messages| messages == 7.0).await;
        proxy.heal().await;
        texts.extend(posts(&relay, "g-1", 9..12).await);
        arrive(&relay, "g-1", &texts).await;
        spooled(&relay, |messages| messages == 0.0).await;
    }

    async fn a_full_spool_refuses_and_keeps_what_it_has(bench: Bench) {
        let (relay, proxy) = relay(&bench, &[("ingress.spool_max", "4 KiB")]).await;
        proxy.refuse().await;
        let mut texts = Vec::new();
        let refused = loop {
            let text = format!("text {}", texts.len());
            let answer = relay.callback("g-1", &text, &format!("m-{}", texts.len())).await;
            if answer.status != StatusCode::ACCEPTED {
                break answer;
            }
            texts.push(text);
        };
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!((2..20).contains(&texts.len()), "{texts:?}");
        proxy.heal().await;
        arrive(&relay, "g-1", &texts).await;
    }

    async fn callers_of_the_handoff_api_are_told_to_repeat_unless_all_are_spooled(bench: Bench) {
        let (relay, proxy) = relay(&bench, &[]).await;
        proxy.refuse().await;
        // The ingress finds out with the first message.
        posts(&relay, "g-1", 0..1).await;
        let start = json!({"type": "start", "conversation_id": "c-1", "message": "hello"});
        assert_eq!(relay.handoff(start.clone()).await.status, StatusCode::SERVICE_UNAVAILABLE);
        let (relay, proxy) = self::relay(&bench, &[("ingress.spool", "all")]).await;
        proxy.refuse().await;
        relay.handoff(start).await.id();
        assert_eq!(relay.sandbox.groups().len(), 0);
        proxy.heal().await;
        relay.reaches("c-1", "waiting").await;
    }

    // The ingress itself dead-letters a callback that it cannot read.
    async fn a_dead_letter_is_spooled_too(bench: Bench) {
        let (relay, proxy) = relay(&bench, &[]).await;
        proxy.refuse().await;
        let url = format!("{}/v1/callbacks/servicenow", relay.processes[0].public_url());
        let post = crate::harness::http::client().post(url).header("x-causeway-token", "callback-token");
        let answer = post.header("content-type", "application/json").body("{\"group\": ").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        spooled(&relay, |messages| messages == 1.0).await;
        proxy.heal().await;
        spooled(&relay, |messages| messages == 0.0).await;
        let dead = relay.dead_letters_at_least(1).await;
        assert_eq!((dead.len(), &dead[0]["reason"]), (1, &json!("unreadable")), "{dead:?}");
    }

    async fn two_ingresses_of_one_folder_have_a_spool_each(bench: Bench) {
        let (mut relay, proxy) = relay(&bench, &[]).await;
        relay.add("ingress").await;
        proxy.refuse().await;
        let texts = posts(&relay, "g-1", 0..3).await;
        relay.processes.swap(0, 2);
        let others = posts(&relay, "g-2", 0..4).await;
        spooled(&relay, |messages| messages == 7.0).await;
        proxy.heal().await;
        arrive(&relay, "g-1", &texts).await;
        arrive(&relay, "g-2", &others).await;
    }

    async fn the_other_ingress_publishes_the_spool_of_one_that_is_gone(bench: Bench) {
        let (mut relay, proxy) = relay(&bench, &[]).await;
        relay.add("ingress").await;
        proxy.refuse().await;
        let texts = posts(&relay, "g-1", 0..3).await;
        relay.processes[0].running.kill9();
        relay.processes.remove(0);
        proxy.heal().await;
        arrive(&relay, "g-1", &texts).await;
        spooled(&relay, |messages| messages == 0.0).await;
    }

    async fn without_a_spool_everybody_is_refused(bench: Bench) {
        let (relay, proxy) = relay(&bench, &[("ingress.spool", "off")]).await;
        proxy.refuse().await;
        eventually("a refusal", SOON, async || match relay.callback("g-1", "a text", "m-1").await.status {
            StatusCode::SERVICE_UNAVAILABLE => Ok(()),
            other => Err(other.to_string()),
        })
        .await;
    }
}
