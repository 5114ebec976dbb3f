//! Tests that `causeway status` shows each part of a deployment, that the exit code says whether the deployment needs a person,
//! and that a part that does not answer hides no other part.

use causeway::sandbox::{FaultRule, Operation, Side};
use serde_json::{Value, json};

use crate::harness::binary::{Causeway, Finished};
use crate::harness::matrix::Engine;
use crate::harness::relay::{PATIENCE, Plan, Relay};
use crate::harness::wait::eventually;

/// The verb with the address of the newest process.
fn status(relay: &Relay, args: &[&str]) -> Causeway {
    let admin = relay.processes.last().unwrap().admin_url();
    relay.verb(&["status"]).args(args).set("admin.listen", admin.trim_start_matches("http://"))
}

async fn json_of(verb: Causeway) -> (Option<i32>, Value) {
    let Finished { code, stdout, stderr } = verb.run(PATIENCE).await;
    let document = serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}"));
    (code, document)
}

/// Waits until the status is right, and returns it.
async fn until(relay: &Relay, what: &str, right: impl Fn(&Value) -> bool) -> (Option<i32>, Value) {
    eventually(what, PATIENCE, async || {
        let (code, shown) = json_of(status(relay, &["--json"])).await;
        if right(&shown) { Ok((code, shown)) } else { Err(format!("{code:?} {shown:#}")) }
    })
    .await
}

fn problems(shown: &Value) -> String {
    let sentences = shown["needs_attention"].as_array().unwrap().iter();
    sentences.map(|one| one.as_str().unwrap()).collect::<Vec<_>>().join("\n")
}

fn servicenow(shown: &Value) -> &Value {
    let mut all = shown["destinations"].as_array().unwrap().iter();
    all.find(|one| one["destination"] == "servicenow").unwrap()
}

on_every_engine! {
    async fn it_shows_each_part_and_each_problem(bench: Bench) {
        let mut relay = Plan::on(&bench).set("admin.token", "a-long-admin-token").start().await;
        relay.open("c-1").await;
        let is_known = |shown: &Value| servicenow(shown)["breaker"] == "passing";
        let (code, shown) = until(&relay, "no problem", |shown| problems(shown).is_empty() && is_known(shown)).await;
        assert_eq!(code, Some(0), "{shown:#}");
        let is_rabbit = bench.engine() != Engine::Embedded;
        assert_eq!(shown["engine"], if is_rabbit { "rabbitmq" } else { "embedded" });
        assert!(!shown["deployment"].as_str().unwrap().contains('@'), "no credentials: {shown:#}");
        assert_eq!((&shown["process"]["state"], &shown["queue"]["workers"]), (&json!("ready"), &json!(1)));
        let one = servicenow(&shown);
        assert_eq!((&one["breaker"], &one["partitions"], &one["consumed"]), (&json!("passing"), &json!(8), &json!(8)));
        assert_eq!((&one["waiting"], &one["in_flight"], &one["dead_letters"]), (&json!(0), &json!(0), &json!(0)));
        assert_eq!(shown["directory"]["conversations"]["waiting"], 1, "{shown:#}");
        assert_eq!(shown["dead_letters"], json!({"total": 0, "by_reason": {}, "error": null}));

        relay.sandbox.script().fail(FaultRule::new(Side::ServiceNow).operation(Operation::Message).status(400));
        relay.say("c-1", "secret words").await;
        relay.dead_letters_at_least(1).await;
        let (code, shown) = until(&relay, "a dead letter", |shown| shown["dead_letters"]["total"] == 1).await;
        assert_eq!(code, Some(1));
        assert_eq!(shown["dead_letters"]["by_reason"], json!({"rejected": 1}), "{shown:#}");
        assert_eq!(servicenow(&shown)["dead_letters"], 1);
        assert!(problems(&shown).contains("1 dead letter"), "{shown:#}");

        // A process elsewhere is asked over its admin listener alone.
        let admin = relay.processes[0].admin_url();
        let elsewhere = || {
            let nowhere = bench.folder().join("nothing").display().to_string();
            Causeway::new(["status", "--json", "--admin", &admin]).set("data_dir", nowhere)
        };
        let shown = eventually("the gauges of the process", PATIENCE, async || {
            let (code, shown) = json_of(elsewhere().set("admin.token", "a-long-admin-token")).await;
            let right = code == Some(1) && shown["dead_letters"]["by_reason"] == json!({"rejected": 1});
            if right { Ok(shown) } else { Err(format!("{code:?} {shown:#}")) }
        })
        .await;
        assert_eq!((&shown["process"]["state"], &shown["engine"]), (&json!("ready"), &json!(if is_rabbit { "rabbitmq" } else { "embedded" })));
        assert_eq!((&servicenow(&shown)["breaker"], &servicenow(&shown)["consumed"]), (&json!("passing"), &json!(8)));
        assert_eq!(shown["directory"]["conversations"]["waiting"], 1, "{shown:#}");
        let (_, shown) = json_of(elsewhere()).await;
        assert_eq!((&shown["dead_letters"]["total"], &shown["dead_letters"]["by_reason"]), (&json!(1), &Value::Null));
        assert!(!bench.folder().join("nothing").exists(), "nothing is created");

        // The page fits, and one broken part hides no other part.
        let page = status(&relay, &[]).set("directory.url", "postgres://causeway@127.0.0.1:1/none").run(PATIENCE).await;
        assert_eq!(page.code, Some(1));
        for words in ["ready at", "PostgreSQL: cannot be asked", "rejected 1", "servicenow", "Needs a person:"] {
            assert!(page.stdout.contains(words), "{words}: {}{}", page.stdout, page.stderr);
        }
        let table = page.stdout.lines().skip_while(|line| !line.starts_with("DESTINATION"));
        assert!(table.take_while(|line| !line.is_empty()).all(|line| line.chars().count() <= 80), "{}", page.stdout);

        relay.stop().await;
        let (code, shown) = until(&relay, "the end", |shown| shown["process"]["state"] == "not_reachable").await;
        assert_eq!(code, Some(1));
        let words = if is_rabbit { "no worker runs" } else { "not running" };
        assert!(problems(&shown).contains(words), "{shown:#}");
        assert_eq!(shown["dead_letters"]["by_reason"], json!({"rejected": 1}), "{shown:#}");
    }

    async fn it_shows_a_tripped_breaker(bench: Bench) {
        let relay = Plan::on(&bench).start().await;
        let names: Vec<String> = (0..4).map(|n| format!("c-{n}")).collect();
        for name in &names {
            relay.open(name).await;
        }
        relay.sandbox.script().fail(FaultRule::new(Side::ServiceNow).status(503));
        relay.messages(&names, 1, 4).await;
        // A probing worker holds the messages of one partition for a moment; they do not count as waiting.
        let tripped = |shown: &Value| {
            let waits = servicenow(shown)["waiting"].as_u64().is_some_and(|waiting| waiting >= 4);
            waits && problems(shown).contains("the breaker of servicenow is ")
        };
        let (code, shown) = until(&relay, "a tripped breaker", tripped).await;
        assert_eq!(code, Some(1));
        assert!(["tripped", "probing"].contains(&servicenow(&shown)["breaker"].as_str().unwrap()), "{shown:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_shown_again_until_ctrl_c() {
    let bench = Engine::Embedded.bench().unwrap();
    let relay = Plan::on(&bench).start().await;
    let mut watch = status(&relay, &["--watch", "--json"]).spawn();
    eventually("two rounds", PATIENCE, async || match watch.stdout().lines().count() {
        0 | 1 => Err(format!("{}{}", watch.stdout(), watch.stderr())),
        _ => Ok(()),
    })
    .await;
    watch.sigint();
    assert_eq!(watch.exit(PATIENCE).await.code(), Some(0));
    let rounds = watch.stdout();
    let rounds = rounds.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    assert!(rounds.map(|shown| shown["at"].to_string()).collect::<Vec<_>>().is_sorted());
}

#[tokio::test]
async fn nothing_runs_and_nothing_is_created() {
    let folder = tempfile::tempdir().unwrap();
    let port = crate::harness::ports::free_address();
    let verb = Causeway::new(["status", "--json"])
        .set("data_dir", folder.path().display().to_string())
        .set("admin.listen", port.to_string());
    let (code, shown) = json_of(verb).await;
    assert_eq!((code, &shown["process"]["state"]), (Some(1), &json!("not_reachable")), "{shown:#}");
    assert!(problems(&shown).starts_with("not running"), "{shown:#}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
