//! Tests that each act of an operator leaves one line in the audit log, from the admin console and from the command line.

use causeway::sandbox::{FaultRule, Operation, Side};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::binary::Finished;
use crate::harness::http;
use crate::harness::relay::{PATIENCE, Plan, Relay};
use crate::harness::wait::eventually;
use crate::trace::{lines, log_of};

const ADMIN_TOKEN: &str = "a-long-admin-token";

async fn admin(relay: &Relay, method: Method, path: &str, body: Option<Value>) -> (StatusCode, String) {
    let url = format!("{}{path}", relay.processes[0].admin_url());
    let request = http::client().request(method, url).bearer_auth(ADMIN_TOKEN);
    let request = body.into_iter().fold(request, |request, body| {
        request.header("content-type", "application/json").body(body.to_string())
    });
    let answer = request.send().await.unwrap();
    (answer.status(), answer.text().await.unwrap())
}

on_every_engine! {
    async fn each_act_of_an_operator_is_one_line(bench: Bench) {
        // A level below info must not switch the audit off.
        let plan = Plan::on(&bench).set("admin.token", ADMIN_TOKEN).set("log.level", "warn");
        let relay = plan.start().await;
        relay.open("c-1").await;
        let refusal = FaultRule::new(Side::ServiceNow).operation(Operation::Message).times(3).status(400);
        relay.sandbox.script().fail(refusal);
        for n in 0..3 {
            relay.say("c-1", &format!("secret-words {n}")).await;
        }
        let dead = relay.dead_letters_at_least(3).await;
        let id = dead[0]["id"].as_str().unwrap();

        admin(&relay, Method::GET, &format!("/dead-letters/{id}"), None).await;
        admin(&relay, Method::GET, &format!("/dead-letters/{id}?reveal=true"), None).await;
        admin(&relay, Method::GET, "/dead-letters/export?destination=servicenow", None).await;
        let discard = json!({"id": id, "confirm": 1});
        assert_eq!(admin(&relay, Method::POST, "/dead-letters/discard", Some(discard.clone())).await.0, StatusCode::OK);
        assert_eq!(admin(&relay, Method::POST, "/dead-letters/discard", Some(discard)).await.0, StatusCode::CONFLICT);
        let last = json!({"id": dead[2]["id"]});
        assert_eq!(admin(&relay, Method::POST, "/dead-letters/replay", Some(last)).await.0, StatusCode::ACCEPTED);
        let audited = eventually("the end of the replay", PATIENCE, async || {
            let audited = lines(&log_of(&relay), "operator");
            if audited.iter().any(|line| line["act"] == "replay" && line["outcome"] == "done") { Ok(audited) } else { Err(format!("{audited:?}")) }
        }).await;
        let told = |line: &Value| ["act", "filter", "messages", "outcome"].map(|field| line[field].to_string().replace('"', "")).join(" ");
        let told: Vec<String> = audited.iter().map(told).collect();
        assert_eq!(told, [
            format!("reveal id={id} 1 done"),
            "export destination=servicenow 3 done".to_owned(),
            format!("discard id={id} 1 done"),
            format!("discard id={id} 0 failed"),
            format!("replay id={} 1 started", dead[2]["id"].as_str().unwrap()),
            format!("replay id={} 1 done", dead[2]["id"].as_str().unwrap()),
        ]);
        for line in &audited {
            assert_eq!((&line["who"], &line["from"]), (&json!("admin"), &json!("127.0.0.1")), "{line}");
            assert_eq!(line["target"], "causeway::audit");
        }
        assert_eq!(lines(&log_of(&relay), "message settled").len(), 0, "log.level = warn");

        let verb = async |args: &[&str], acts: &[&str]| {
            let run: Finished = relay.verb(args).run(PATIENCE).await;
            assert_eq!(run.code, Some(0), "{}", run.stderr);
            let audited = lines(&run.stderr, "operator");
            let told: Vec<_> = audited.iter().map(|line| format!("{} {}", line["act"], line["outcome"]).replace('"', "")).collect();
            assert_eq!(told, acts, "{}", run.stderr);
            for line in &audited {
                assert_eq!((&line["messages"], &line["from"]), (&json!(1), &json!("no terminal")), "{line}");
                assert!(!line["who"].as_str().unwrap().is_empty());
            }
            assert!(!run.stderr.contains("secret-words"), "{}", run.stderr);
        };
        verb(&["dead", "list"], &[]).await;
        verb(&["dead", "show"], &[]).await;
        verb(&["dead", "show", "--reveal"], &["reveal done"]).await;
        verb(&["dead", "export", "--yes"], &["export done"]).await;
        verb(&["dead", "replay", "--yes"], &["replay started", "replay done"]).await;
        let refusal = FaultRule::new(Side::ServiceNow).operation(Operation::Message).times(1).status(400);
        relay.sandbox.script().fail(refusal);
        relay.say("c-1", "secret-words 4").await;
        relay.dead_letters_at_least(1).await;
        let file = bench.folder().join("dead.jsonl");
        verb(&["dead", "export", "--yes", "--output", file.to_str().unwrap()], &["export done"]).await;
        verb(&["dead", "discard", "--yes"], &["discard done"]).await;
        verb(&["dead", "import", file.to_str().unwrap()], &["import done"]).await;
        for private in ["secret-words", ADMIN_TOKEN] {
            assert!(!log_of(&relay).contains(private), "{private} is in the log");
        }
    }

    async fn the_filter_hides_the_conversation_if_the_setting_says_so(bench: Bench) {
        let relay = Plan::on(&bench).set("log.conversation_ids", "false").start().await;
        let run = relay.tool(["dead", "export", "--yes", "--conversation", "c-hidden"]).run(PATIENCE).await;
        let audited = lines(&run.stderr, "operator");
        assert_eq!((audited.len(), &audited[0]["filter"]), (1, &json!("conversation=(hidden)")));
        assert!(!run.stderr.contains("c-hidden"), "{}", run.stderr);
    }
}
