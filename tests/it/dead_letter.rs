//! Tests that a dead letter keeps its history, can be read without a change, and is removed only by a command.

use std::time::Duration;

use causeway::sandbox::{FaultRule, Operation, Side};
use serde_json::{Value, json};

use crate::harness::http;
use crate::harness::matrix::Engine;
use crate::harness::proxy::Proxy;
use crate::harness::relay::{PATIENCE, Plan, Relay};

async fn shown(relay: &Relay, filter: &[&str]) -> Vec<Value> {
    let mut args = vec!["dead", "show", "--json", "--limit", "0"];
    args.extend(filter);
    let run = match *args.as_slice() {
        [a, b, c, d, e] => relay.tool([a, b, c, d, e]),
        [a, b, c, d, e, f, g] => relay.tool([a, b, c, d, e, f, g]),
        [a, b, c, d, e, f, g, h, i] => relay.tool([a, b, c, d, e, f, g, h, i]),
        _ => panic!("{args:?}"),
    };
    let run = run.run(PATIENCE).await;
    assert_eq!(run.code, Some(0), "{}{}", run.stdout, run.stderr);
    let mut document: Value = serde_json::from_str(&run.stdout).unwrap();
    let letters = document["dead_letters"].as_array_mut().unwrap().drain(..).collect::<Vec<_>>();
    assert_eq!(document["matching"], letters.len());
    letters
}

fn field(letters: &[Value], name: &str) -> Vec<String> {
    letters.iter().map(|letter| letter[name].as_str().unwrap_or_default().to_owned()).collect()
}

async fn unreadable(relay: &Relay) {
    let url = format!("{}/v1/callbacks/servicenow?token=callback-token", relay.processes[0].public_url());
    let request = http::client().post(url).header("content-type", "application/json").body("no json at all");
    assert_eq!(request.send().await.unwrap().status(), 202);
}

async fn json_of(relay: &Relay, args: &[&str]) -> Value {
    serde_json::from_str(&said(relay, args).await).unwrap()
}

/// The output of a command that must succeed.
async fn said(relay: &Relay, args: &[&str]) -> String {
    let run = relay.verb(args).run(PATIENCE).await;
    assert_eq!(run.code, Some(0), "{args:?} {}{}", run.stdout, run.stderr);
    run.stdout
}

on_every_engine! {
    async fn the_list_has_a_line_for_each_and_the_count_has_the_answers(bench: Bench) {
        let relay = Plan::on(&bench).start().await;
        assert_eq!(said(&relay, &["dead", "list"]).await, "no dead letters\n");
        assert_eq!(said(&relay, &["dead", "count"]).await, "no dead letters\n");
        let group = relay.open("会話-1").await;
        relay.sandbox.script().fail(FaultRule::new(Side::ServiceNow).operation(Operation::Message).status(400));
        relay.say("会話-1", "secret words 1").await;
        relay.dead_letters_at_least(1).await;
        unreadable(&relay).await;
        relay.dead_letters_at_least(2).await;
        relay.say("会話-1", "secret words 2").await;
        let all = relay.dead_letters_at_least(3).await;

        let listed = json_of(&relay, &["dead", "list", "--json"]).await;
        let letters = listed["dead_letters"].as_array().unwrap();
        assert_eq!(field(letters, "reason"), ["rejected", "unreadable", "rejected"], "newest last: {listed:#}");
        assert_eq!(listed["total"], 3);
        let died = field(letters, "died_at");
        assert!(died.is_sorted() && died[0] < died[2], "{died:?}");
        let first = all.iter().find(|letter| letter["id"] == letters[0]["id"]).unwrap();
        assert_eq!(letters[0], json!({
            "id": first["id"], "destination": "servicenow", "kind": "handoff.message", "conversation_id": "会話-1",
            "group": null, "reason": "rejected", "detail": first["detail"], "died_at": first["died_at"], "attempts": 1,
        }));
        let newest = json_of(&relay, &["dead", "list", "--json", "--limit", "1"]).await;
        assert_eq!((&newest["dead_letters"][0], &newest["total"]), (&letters[2], &json!(3)));

        let text = said(&relay, &["dead", "list"]).await;
        assert_eq!(text.lines().count(), 4, "{text}");
        let last = text.lines().last().unwrap();
        let id = letters[2]["id"].as_str().unwrap();
        assert!(last.contains(&id[28..]) && last.contains("rejected") && last.ends_with("会話-1"), "{text}");
        assert!(!text.contains("secret words") && !text.contains(&group), "{text}");

        let text = said(&relay, &["dead", "count"]).await;
        let counted: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().take(5).collect()).collect();
        assert!(counted.contains(&vec!["servicenow", "rejected", "400", "2", "1"]), "{text}");
        assert!(text.contains("unreadable  not sent"), "{text}");
        let counted = json_of(&relay, &["dead", "count", "--json", "--reason", "rejected"]).await;
        assert_eq!(counted["groups"][0]["answers"], json!([{"answer": "400", "count": 2}]), "{counted}");
    }

    async fn looking_changes_nothing_and_filters_hold(bench: Bench) {
        let relay = Plan::on(&bench).start().await;
        relay.open("c-1").await;
        let refuse = FaultRule::new(Side::ServiceNow).operation(Operation::Message).status(400);
        relay.sandbox.script().fail(refuse);
        for text in ["secret words 1", "secret words 2", "secret words 3"] {
            relay.say("c-1", text).await;
        }
        relay.dead_letters_at_least(3).await;
        relay.say("c-none", "to nobody").await;
        relay.dead_letters_at_least(4).await;
        unreadable(&relay).await;
        relay.dead_letters_at_least(5).await;

        let all = shown(&relay, &[]).await;
        assert_eq!(field(&all, "reason").iter().filter(|reason| *reason == "rejected").count(), 3);
        let refused = shown(&relay, &["--reason", "rejected"]).await;
        assert_eq!(field(&refused, "lane"), ["c-1"; 3]);
        for letter in &refused {
            assert_eq!((&letter["story"][0]["status"], &letter["attempts"]), (&400.into(), &1.into()), "{letter}");
            assert!(!letter.to_string().contains("secret words"), "{letter}");
        }
        assert_eq!(shown(&relay, &["--conversation", "c-none"]).await.len(), 1);
        assert_eq!(field(&shown(&relay, &["--destination", "xo"]).await, "reason"), ["unreadable"]);
        assert_eq!(shown(&relay, &["--destination", "xo", "--reason", "rejected"]).await.len(), 0);
        let second = refused[1]["id"].as_str().unwrap();
        assert_eq!(field(&shown(&relay, &["--id", second]).await, "id"), [second]);
        let moment = refused[1]["died_at"].as_str().unwrap();
        let since = shown(&relay, &["--since", moment, "--reason", "rejected"]).await;
        let until = shown(&relay, &["--until", moment, "--reason", "rejected"]).await;
        assert_eq!((field(&since, "id"), field(&until, "id")), (field(&refused[1..], "id"), field(&refused[..1], "id")));

        // These reads and exports have changed nothing.
        let exported = relay.dead_letters().await;
        assert_eq!(shown(&relay, &[]).await, all);
        assert_eq!(field(&exported, "id"), field(&all, "id"));
        let counted = json_of(&relay, &["dead", "count", "--json"]).await;
        assert_eq!(counted["dead_letters"], 5, "{counted}");
        relay.metric_is("causeway_dead_letter_messages", &[], |count| count == 5.0).await;

        let asked = relay.tool(["dead", "discard", "--id", second]).run(PATIENCE).await;
        assert_eq!(asked.code, Some(2), "without a terminal nothing is assumed");
        let gone = relay.tool(["dead", "discard", "--yes", "--id", second]).run(PATIENCE).await;
        assert!(gone.stdout.contains("removed 1 dead letter"), "{}{}", gone.stdout, gone.stderr);
        let left: Vec<String> = field(&all, "id").into_iter().filter(|id| id != second).collect();
        assert_eq!(field(&shown(&relay, &[]).await, "id"), left);
    }
}

on_every_rabbit! {
    async fn an_operator_far_from_the_broker_sees_the_dead_letters(bench: Bench) {
        let relay = Plan::on(&bench).start().await;
        unreadable(&relay).await;
        relay.dead_letters_at_least(1).await;
        let vhost = bench.vhost().unwrap();
        let proxy = Proxy::start(vhost.broker()).await;
        // A query for each queue would take longer than a command waits for the broker.
        proxy.delay(Duration::from_millis(100));
        let list = relay.tool(["dead", "list", "--json"]).set("queue.url", vhost.url_through(proxy.addr()));
        let list = list.run(PATIENCE).await;
        assert_eq!(list.code, Some(0), "{}{}", list.stdout, list.stderr);
        let listed: Value = serde_json::from_str(&list.stdout).unwrap();
        assert_eq!(listed["total"], 1, "{listed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_story_tells_every_attempt() {
    let bench = Engine::Embedded.bench().unwrap();
    let relay = Plan::on(&bench).set("delivery.deadline.message", "3s").start().await;
    relay.open("c-1").await;
    let stumble = FaultRule::new(Side::ServiceNow).operation(Operation::Message).status(500);
    relay.sandbox.script().fail(stumble);
    relay.say("c-1", "never").await;
    let dead = relay.dead_letters_at_least(1).await.remove(0);
    assert_eq!(dead["reason"], "expired", "{dead}");
    let story = dead["story"].as_array().unwrap();
    assert!(story.len() >= 2 && dead["attempts"] == story.len(), "{dead}");
    let mut before = None;
    for attempt in story {
        assert_eq!((&attempt["status"], &attempt["outcome"]), (&500.into(), &"retry".into()));
        let at: jiff::Timestamp = attempt["at"].as_str().unwrap().parse().unwrap();
        assert!(before.replace(at).is_none_or(|before| before < at));
    }
}
