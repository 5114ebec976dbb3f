//! Promise: each role works with the rights of its own user and no more. The exchanges and queues come from the definitions that
//! `causeway broker definitions` prints, or from `causeway broker declare`.

use serde_json::{Value, json};

use crate::harness::binary::{Causeway, Finished};
use crate::harness::broker::Vhost;
use crate::harness::http;
use crate::harness::matrix::{Bench, Engine};
use crate::harness::relay::{PATIENCE, Plan, Relay};

/// The printed definitions, with a password for each user.
async fn definitions(bench: &Bench, more: &[&str]) -> Value {
    let vhost = bench.vhost().unwrap();
    let version = if bench.engine() == Engine::Rabbit310 { "3.10.8" } else { "4.3" };
    let args = ["broker", "definitions", "--users", vhost.name(), "--broker-version", version];
    let printed = Causeway::new(args)
        .args(more)
        .set("queue.url", vhost.url())
        .set("servicenow.host_url", "http://servicenow.example")
        .set("xo.callback_url", "https://xo.example/cb")
        .set("handoffs.events_url", "https://bot.example/events")
        .set("ingress.handoffs.token", "t")
        .run(PATIENCE)
        .await;
    assert_eq!(printed.code, Some(0), "{}", printed.stderr);
    let mut definitions: Value = serde_json::from_str(&printed.stdout).unwrap();
    for user in definitions["users"].as_array_mut().unwrap() {
        assert_eq!(user["password_hash"], "", "no password is printed");
        let fields = user.as_object_mut().unwrap();
        fields.retain(|name, _| name == "name" || name == "tags");
        fields.insert("password".to_owned(), json!("pw"));
    }
    definitions
}

fn url(vhost: &Vhost, role: &str) -> String {
    vhost.url().replace("guest:guest", &format!("{}-{role}:pw", vhost.name()))
}

/// A conversation and a dead letter pass an ingress and a worker.
async fn both_roles_work(relay: &Relay) {
    let group = relay.open("c-1").await;
    relay.say("c-1", "words").await;
    relay
        .until("the words", |relay| {
            let said = relay.said(&group);
            if said.len() == 2 { Ok(()) } else { Err(format!("{said:?}")) }
        })
        .await;
    let junk = format!("{}/v1/callbacks/servicenow?token=callback-token", relay.processes[0].public_url());
    let answer = http::client().post(junk).body("{\"group\": nonsense").send().await.unwrap();
    assert!(answer.text().await.unwrap().contains("dead_lettered"));
}

async fn declare(relay: &Relay, vhost: &Vhost, more: &[(&str, &str)]) -> Finished {
    let tool = relay.tool(["broker", "declare"]).set("queue.url", vhost.url());
    more.iter().fold(tool, |tool, (key, value)| tool.set(key, *value)).run(PATIENCE).await
}

fn nothing_was_refused(relay: &Relay) {
    let log = relay.processes.iter().map(|process| process.running.stderr()).collect::<String>();
    for wrong in ["ACCESS_REFUSED", "PRECONDITION"] {
        assert!(!log.contains(wrong), "{log}");
    }
}

on_every_rabbit! {
    async fn the_printed_definitions_suffice_for_each_role(bench: Bench) {
        let vhost = bench.vhost().unwrap();
        vhost.import(&definitions(&bench, &[]).await);
        let plan = Plan::on(&bench).apart(0).set("queue.url", url(vhost, "ingress")).set("queue.declare", "check");
        let mut relay = plan.start().await;
        relay.add_with("worker", &[("queue.url", url(vhost, "worker"))]).await;
        both_roles_work(&relay).await;
        let of_operator = |args| relay.tool(args).set("queue.url", url(vhost, "operator"));
        let listed = of_operator(["dead", "list"]).run(PATIENCE).await;
        assert!(listed.code == Some(0) && listed.stdout.contains("unreadable"), "{}{}", listed.stdout, listed.stderr);
        nothing_was_refused(&relay);
        // An administrator's declaration finds equal arguments.
        let checked = relay.tool(["check"]).set("queue.url", vhost.url()).set("queue.declare", "true").run(PATIENCE).await;
        assert!(checked.stdout.contains("ok   queue: RabbitMQ"), "{}", checked.stdout);
    }

    // As in the shipped stack: the worker is an operator, too, and the console is a process of its own.
    async fn a_declared_topology_suffices_for_each_role(bench: Bench) {
        let vhost = bench.vhost().unwrap();
        let mut users = definitions(&bench, &["--worker-is-operator"]).await;
        users.as_object_mut().unwrap().retain(|part, _| part == "users" || part == "permissions");
        vhost.import(&users);
        let plan = Plan::on(&bench).apart(0).set("queue.url", url(vhost, "ingress")).set("queue.declare", "check");
        // Fewer queues are made sooner.
        let plan = plan.set("queue.partitions", "2");
        let mut relay = plan.start_unready().await;
        // The second run finds everything and changes nothing.
        for _ in 0..2 {
            let declared = declare(&relay, vhost, &[]).await;
            assert!(declared.code == Some(0), "{}{}", declared.stdout, declared.stderr);
            assert!(declared.stdout.contains("the exchanges and queues of servicenow"), "{}", declared.stdout);
        }
        let refused = declare(&relay, vhost, &[("queue.partitions", "3")]).await;
        assert!(refused.code == Some(1) && refused.stderr.contains("queue.partitions is 3"), "{}", refused.stderr);
        // The ingress began before the queues were there.
        relay.ready().await;
        relay.add_with("worker", &[("queue.url", url(vhost, "worker"))]).await;
        relay.add_with("console", &[("queue.url", url(vhost, "operator")), ("admin.token", "desk".to_owned())]).await;
        both_roles_work(&relay).await;
        let listed = relay.tool(["dead", "list"]).set("queue.url", url(vhost, "worker")).run(PATIENCE).await;
        assert!(listed.code == Some(0) && listed.stdout.contains("unreadable"), "{}{}", listed.stdout, listed.stderr);
        let desk = format!("{}/dead-letters", relay.processes[2].admin_url());
        let shown = http::client().get(desk).bearer_auth("desk").send().await.unwrap().text().await.unwrap();
        assert!(shown.contains("unreadable"), "{shown}");
        nothing_was_refused(&relay);
        let checked = relay.tool(["check"]).set("queue.url", url(vhost, "worker")).run(PATIENCE).await;
        for part in ["ok   queue: RabbitMQ", "note queue: RabbitMQ: the bindings were not tested"] {
            assert!(checked.stdout.contains(part), "{part}: {}", checked.stdout);
        }
        // A queue that is missing later is named, and the next run makes it.
        let unknown = [("xo.name", "second"), ("xo.bot_id", "st-2"), ("xo.app_id", "cs-2"), ("xo.client_secret", "secret-of-the-bot")];
        let missing = relay.tool(["check"]).set("queue.url", url(vhost, "worker"));
        let missing = unknown.iter().fold(missing, |tool, (key, value)| tool.set(key, *value)).run(PATIENCE).await;
        assert!(missing.stdout.contains("`causeway broker declare`"), "{}", missing.stdout);
        let declared = declare(&relay, vhost, &unknown).await;
        assert!(declared.code == Some(0) && declared.stdout.contains("bot:second"), "{}{}", declared.stdout, declared.stderr);
    }
}
