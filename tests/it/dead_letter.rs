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
        let asked = said(&relay, &["dead", "discard", "--dry-run", "--id", second]).await;
        assert!(asked.contains("rejected") && asked.ends_with("would remove 1 dead letter\n"), "{asked}");
        assert_eq!(field(&shown(&relay, &[]).await, "id"), field(&all, "id"), "a dry run removes nothing");
        let gone = relay.tool(["dead", "discard", "--yes", "--id", second]).run(PATIENCE).await;
        assert!(gone.stdout.contains("removed 1 dead letter"), "{}{}", gone.stdout, gone.stderr);
        let left: Vec<String> = field(&all, "id").into_iter().filter(|id| id != second).collect();
        assert_eq!(field(&shown(&relay, &[]).await, "id"), left);
    }
}

on_every_engine! {
    async fn a_conversation_is_found_in_both_directions_by_each_of_its_names(bench: Bench) {
        // The callback of this test has no row at ServiceNow.
        let plan = Plan::on(&bench).set("admin.token", "admin-token").set("servicenow.read_back", "gaps");
        let relay = plan.start().await;
        let (group, _) = (relay.open("c-1").await, relay.open("c-2").await);
        let number = relay.conversation("c-1").await.body["servicenow"]["number"].as_str().unwrap().to_owned();
        relay.sandbox.script().fail(FaultRule::new(Side::ServiceNow).operation(Operation::Message).status(400));
        relay.sandbox.script().fail(FaultRule::new(Side::Events).status(400));
        relay.say("c-1", "from the user").await;
        relay.say("c-2", "from another user").await;
        relay.callback(&group, "from the agent", "sys-1").await.id();
        unreadable(&relay).await;
        relay.dead_letters_at_least(4).await;

        let small = number.to_lowercase();
        for name in ["c-1", &group, &number, &small] {
            let listed = json_of(&relay, &["dead", "list", "--json", "--conversation", name]).await;
            let letters = listed["dead_letters"].as_array().unwrap();
            let mut kinds = field(letters, "kind");
            kinds.sort();
            assert!(kinds.contains(&"callback.message".to_owned()), "{name}: {listed:#}");
            assert!(kinds.contains(&"handoff.message".to_owned()), "{name}: {listed:#}");
            assert!(!letters.iter().any(|letter| letter["conversation_id"] == "c-2"), "{name}: {listed:#}");
            let url = format!("{}/dead-letters?conversation={name}", relay.processes[0].admin_url());
            let answer = http::client().get(url).bearer_auth("admin-token").send().await.unwrap();
            let found: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
            assert_eq!(found["matching"], letters.len(), "{found:#}");
        }
        assert_eq!(said(&relay, &["dead", "list", "--conversation", "c-3"]).await, "no dead letters\n");

        // Several reasons, ids and shortened ids.
        let all = json_of(&relay, &["dead", "list", "--json"]).await;
        let letters = all["dead_letters"].as_array().unwrap();
        let two = json_of(&relay, &["dead", "list", "--json", "--reason", "rejected", "--reason", "unreadable"]).await;
        assert_eq!(two["total"], letters.len(), "{all:#}");
        let users: Vec<Value> = letters.iter().filter(|one| one["kind"] == "handoff.message").cloned().collect();
        let ids = field(&users, "id");
        assert_eq!(ids.len(), 2, "{all:#}");
        let ends = format!("{},{}", &ids[0][28..], ids[1]);
        let some = json_of(&relay, &["dead", "list", "--json", "--id", &ends]).await;
        assert_eq!(field(some["dead_letters"].as_array().unwrap(), "id"), ids);
        let text = said(&relay, &["dead", "show", &ids[0][28..]]).await;
        assert!(text.starts_with(&ids[0]), "{text}");
        let none = relay.verb(&["dead", "show", "00000000"]).run(PATIENCE).await;
        assert!(none.code == Some(2) && none.stderr.contains("no dead letter"), "{}", none.stderr);
        let never = relay.verb(&["dead", "list", "--since", "1h", "--until", "2h"]).run(PATIENCE).await;
        assert!(never.code == Some(2) && never.stderr.contains("--since"), "{}", never.stderr);
    }
}

on_every_engine! {
    async fn an_export_is_imported_once_and_unchanged(bench: Bench) {
        let relay = Plan::on(&bench).start().await;
        let group = relay.open("c-1").await;
        relay.sandbox.script().fail(FaultRule::new(Side::ServiceNow).operation(Operation::Message).status(400));
        let keyed = json!({"type": "message", "conversation_id": "c-1", "message": "secret words 1"});
        relay.try_handoff(&keyed, Some("key-1")).await.unwrap().id();
        relay.dead_letters_at_least(1).await;
        relay.say("c-1", "secret words 2").await;
        relay.dead_letters_at_least(2).await;
        unreadable(&relay).await;
        let exported = relay.dead_letters_at_least(3).await;
        assert!(exported.iter().any(|letter| letter["digest"].is_string()), "{exported:#?}");
        let file = bench.folder().join("dead.jsonl");
        let file = file.to_str().unwrap();
        said(&relay, &["dead", "export", "--yes", "--output", file]).await;

        assert_eq!(said(&relay, &["dead", "import", file]).await, "imported 0 dead letters, 3 already there\n");
        assert_eq!(relay.dead_letters().await, exported);
        said(&relay, &["dead", "discard", "--yes"]).await;
        let asked = said(&relay, &["dead", "import", "--dry-run", file]).await;
        assert_eq!(asked, "would import 3 dead letters, 0 already there\n");
        assert_eq!(relay.dead_letters().await, Vec::<Value>::new());

        // One faulty line keeps all others out.
        let text = std::fs::read_to_string(file).unwrap();
        let faulty = bench.folder().join("faulty.jsonl");
        std::fs::write(&faulty, text.replacen("\"rejected\"", "\"boredom\"", 1)).unwrap();
        let refused = relay.verb(&["dead", "import", faulty.to_str().unwrap()]).run(PATIENCE).await;
        assert_eq!(refused.code, Some(1), "{}", refused.stdout);
        assert!(refused.stderr.contains("line 1: reason: must be one of"), "{}", refused.stderr);
        assert!(!refused.stderr.contains("secret words"), "{}", refused.stderr);
        std::fs::write(&faulty, text.replacen("\"servicenow\"", "\"bot:unknown\"", 1)).unwrap();
        let refused = relay.verb(&["dead", "import", faulty.to_str().unwrap()]).run(PATIENCE).await;
        assert!(refused.code == Some(1) && refused.stderr.contains("line 1: "), "{}", refused.stderr);
        assert_eq!(relay.dead_letters().await, Vec::<Value>::new());

        let done = json_of(&relay, &["dead", "import", "--json", file]).await;
        assert_eq!(done, json!({"imported": 3, "already_there": 0, "dry_run": false}));
        assert_eq!(relay.dead_letters().await, exported);
        said(&relay, &["dead", "import", file]).await;
        assert_eq!(relay.dead_letters().await, exported);
        relay.sandbox.script().clear();
        let replayed = said(&relay, &["dead", "replay", "--yes", "--reason", "rejected"]).await;
        assert!(replayed.contains("replayed 2 of 2 messages: delivered 2, died again 0"), "{replayed}");
        assert_eq!(relay.said(&group)[1..], ["secret words 1", "secret words 2"]);
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
