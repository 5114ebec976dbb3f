//! Tests `causeway trace`: an operator follows one message or one conversation beside a running process.

use causeway::sandbox::{CallbackSettings, FaultRule, Operation, Side};
use serde_json::Value;

use crate::harness::binary::{Causeway, Finished};
use crate::harness::matrix::{Bench, Engine};
use crate::harness::relay::{PATIENCE, Plan, Relay};

const ADMIN_TOKEN: &str = "a-long-admin-token";

async fn trace(relay: &Relay, args: &[&str]) -> Finished {
    let args: Vec<&str> = std::iter::once("trace").chain(args.iter().copied()).collect();
    relay.verb(&args).run(PATIENCE).await
}

async fn course(relay: &Relay, name: &str) -> Value {
    let shown = trace(relay, &[name, "--json"]).await;
    assert_eq!(shown.code, Some(0), "{}{}", shown.stdout, shown.stderr);
    serde_json::from_str(&shown.stdout).unwrap()
}

/// The course as a process tells it over its admin API, asked from a folder without a deployment.
fn elsewhere(folder: &tempfile::TempDir, relay: &Relay, args: &[&str]) -> Causeway {
    let nowhere = folder.path().join("data").display().to_string();
    let admin = relay.processes[0].admin_url();
    Causeway::new(["trace", "--admin", &admin]).args(args).set("data_dir", nowhere)
}

/// The events of a kind of message as `event destination`, in order.
fn events(course: &Value, kind: &str) -> Vec<String> {
    let all = course["events"].as_array().unwrap().iter().filter(|event| event["kind"] == kind);
    all.map(|event| {
        format!("{} {}", event["event"].as_str().unwrap(), event["destination"].as_str().unwrap())
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_where_a_message_went() {
    let bench: Bench = Engine::Embedded.bench().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let plan =
        Plan::on(&bench).set("servicenow.poll_waiting", "200ms").set("servicenow.poll_active", "200ms");
    let relay = plan.set("admin.token", ADMIN_TOKEN).start().await;
    let url = format!("{}/v1/callbacks/servicenow?token=callback-token", relay.processes[0].public_url());
    relay.sandbox.set_callback(Some(CallbackSettings::to(url)));
    let group = relay.open("c-1").await;
    relay.sandbox.agent_accept(&group).await.unwrap();
    relay.reaches("c-1", "active").await;
    relay.say("c-1", "private words").await;
    relay.sandbox.agent_says(&group, "private answer").await.unwrap();
    let refused = FaultRule::new(Side::ServiceNow).operation(Operation::Message).times(1).status(400);
    relay
        .metric_is("causeway_delivery_latency_seconds_count", &[("kind", "handoff.message")], |n| n == 1.0)
        .await;
    relay
        .metric_is("causeway_delivery_latency_seconds_count", &[("kind", "callback.message")], |n| n >= 1.0)
        .await;
    relay.sandbox.script().fail(refused);
    let dead = relay.say("c-1", "private refusal").await;
    relay.dead_letters_at_least(1).await;

    let number = relay.conversation("c-1").await.body["servicenow"]["number"].as_str().unwrap().to_owned();
    let by_id = course(&relay, "c-1").await;
    assert_eq!(by_id["conversations"][0]["group"], group);
    assert_eq!(events(&by_id, "handoff.start"), ["accepted servicenow", "delivered servicenow"]);
    let sent = events(&by_id, "handoff.message");
    let expected = ["accepted", "delivered", "accepted", "attempt", "dead_lettered"];
    assert_eq!(sent, expected.map(|event| format!("{event} servicenow")));
    let heard = events(&by_id, "callback.message");
    assert!(heard.iter().filter(|event| *event == "delivered events").count() >= 1, "{heard:?}");
    let all = by_id["events"].as_array().unwrap();
    assert!(
        all.is_sorted_by_key(|event| event["at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap()),
        "{all:#?}"
    );
    let died = all.iter().find(|event| event["event"] == "dead_lettered").unwrap();
    assert_eq!(
        (&died["reason"], &died["attempts"], &died["status"]),
        (&"rejected".into(), &1.into(), &400.into())
    );
    assert!(died["request_id"].is_string(), "{died}");
    for name in [group.as_str(), number.as_str()] {
        assert_eq!(course(&relay, name).await["events"], by_id["events"], "{name}");
    }

    // A process elsewhere is asked over its admin API alone, and it tells the same.
    for name in ["c-1", number.as_str(), dead.as_str()] {
        let far =
            elsewhere(&folder, &relay, &[name, "--json"]).set("admin.token", ADMIN_TOKEN).run(PATIENCE).await;
        assert_eq!(far.code, Some(0), "{}{}", far.stdout, far.stderr);
        let far: Value = serde_json::from_str(&far.stdout).unwrap();
        assert_eq!(far, course(&relay, name).await, "{name}");
    }
    let file = folder.path().join("token");
    std::fs::write(&file, format!("{ADMIN_TOKEN}\n")).unwrap();
    let with_file = ["c-1", "--token-file", file.to_str().unwrap()];
    let far = elsewhere(&folder, &relay, &with_file).run(PATIENCE).await;
    assert_eq!(far.stdout, trace(&relay, &["c-1"]).await.stdout, "{}", far.stderr);
    for (token, words) in [("", "the admin API needs a token"), ("wrong", "has another token")] {
        let refused = elsewhere(&folder, &relay, &["c-1"]).set("admin.token", token).run(PATIENCE).await;
        assert!(refused.code == Some(1) && refused.stderr.contains(words), "{}", refused.stderr);
    }
    assert!(!folder.path().join("data").exists(), "nothing is created");

    let one = course(&relay, &dead).await;
    assert_eq!(
        events(&one, "handoff.message"),
        ["accepted", "attempt", "dead_lettered"].map(|e| format!("{e} servicenow"))
    );
    assert_eq!(one["events"].as_array().unwrap().len(), 3);

    let table = trace(&relay, &["c-1"]).await;
    assert!(table.stdout.lines().all(|line| line.chars().count() <= 80), "{}", table.stdout);
    assert!(table.stdout.contains(&dead) && table.stdout.contains("rejected"), "{}", table.stdout);
    for shown in [table.stdout, by_id.to_string()] {
        assert!(!shown.contains("private"), "{shown}");
    }
    let unknown = trace(&relay, &["c-unknown"]).await;
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.stderr.contains("nothing is known under \"c-unknown\""), "{}", unknown.stderr);
}

/// The pure callback relay has no directory, and its dead letters are still found.
#[tokio::test]
async fn without_a_directory_the_dead_letters_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    let run = crate::harness::binary::Causeway::new(["trace", "g-1"])
        .set("data_dir", folder.path().display().to_string())
        .set("xo.callback_url", "http://127.0.0.1:9/callback")
        .run(PATIENCE)
        .await;
    assert_eq!(run.code, Some(1), "{}{}", run.stdout, run.stderr);
    assert!(run.stderr.contains("nothing is known under \"g-1\""), "{}", run.stderr);
}
