//! Promise: the definitions that `causeway broker definitions` prints are all that a broker needs, and each role works with
//! the rights of its own user.

use serde_json::{Value, json};

use crate::harness::binary::Causeway;
use crate::harness::http;
use crate::harness::matrix::Engine;
use crate::harness::relay::{PATIENCE, Plan};

on_every_rabbit! {
    async fn the_printed_definitions_suffice_for_each_role(bench: Bench) {
        let vhost = bench.vhost().unwrap();
        let version = if bench.engine() == Engine::Rabbit310 { "3.10.8" } else { "4.3" };
        let printed = Causeway::new(["broker", "definitions", "--users", vhost.name(), "--broker-version", version])
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
        vhost.import(&definitions);
        let url = |role: &str| vhost.url().replace("guest:guest", &format!("{}-{role}:pw", vhost.name()));
        let plan = Plan::on(&bench).apart(0).set("queue.url", url("ingress")).set("queue.declare", "check");
        let mut relay = plan.start().await;
        relay.add_with("worker", &[("queue.url", url("worker"))]).await;
        let group = relay.open("c-1").await;
        relay.say("c-1", "words").await;
        relay.until("the words", |relay| {
            let said = relay.said(&group);
            if said.len() == 2 { Ok(()) } else { Err(format!("{said:?}")) }
        }).await;
        let junk = format!("{}/v1/callbacks/servicenow?token=callback-token", relay.processes[0].public_url());
        let answer = http::client().post(junk).body("{\"group\": nonsense").send().await.unwrap();
        assert!(answer.text().await.unwrap().contains("dead_lettered"));
        let of_operator = |args| relay.tool(args).set("queue.url", url("operator"));
        let listed = of_operator(["dead", "list"]).run(PATIENCE).await;
        assert!(listed.code == Some(0) && listed.stdout.contains("unreadable"), "{}{}", listed.stdout, listed.stderr);
        let log = relay.processes.iter().map(|process| process.running.stderr()).collect::<String>();
        for wrong in ["ACCESS_REFUSED", "PRECONDITION"] {
            assert!(!log.contains(wrong), "{log}");
        }
        // An administrator's declaration finds equal arguments.
        let checked = relay.tool(["check"]).set("queue.url", vhost.url()).set("queue.declare", "true").run(PATIENCE).await;
        assert!(checked.stdout.contains("ok   queue: RabbitMQ"), "{}", checked.stdout);
    }
}
