//! Tests that a key identifies one request of one conversation. The same request again is harmless. Another request
//! under the same key is refused or dead-lettered, and never dropped silently.

use causeway::sandbox::{FaultRule, Operation, Side};
use serde_json::{Value, json};

use crate::harness::relay::{PATIENCE, Plan, Relay};

fn message(conversation: &str, text: &str) -> Value {
    json!({"type": "message", "conversation_id": conversation, "message": text})
}

fn start(conversation: &str) -> Value {
    json!({"type": "start", "conversation_id": conversation, "message": format!("hello from {conversation}")})
}

async fn post(relay: &Relay, body: &Value, key: &str) -> (u16, Value) {
    let answer = relay.try_handoff(body, Some(key)).await.unwrap();
    (answer.status.as_u16(), answer.body)
}

async fn accepted(relay: &Relay, body: &Value, key: &str) -> String {
    relay.try_handoff(body, Some(key)).await.unwrap().id()
}

async fn says(relay: &Relay, group: &str, texts: &[&str]) {
    relay
        .until(&format!("{texts:?}"), |relay| {
            let said = relay.said(group);
            if said.get(1..) == Some(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()[..]) {
                Ok(())
            } else {
                Err(format!("{said:?}"))
            }
        })
        .await;
}

/// Checks that the only dead letter is the second request.
async fn second_is_rejected(relay: &Relay, id: &str) {
    let dead = relay.dead_letters_at_least(1).await;
    assert_eq!(dead.len(), 1, "{dead:#?}");
    assert_eq!((&dead[0]["id"], &dead[0]["reason"]), (&json!(id), &json!("rejected")), "{dead:#?}");
    assert!(dead[0]["body"].as_str().unwrap().contains("second"), "{dead:#?}");
    assert!(dead[0]["detail"].as_str().unwrap().contains("Idempotency-Key"), "{dead:#?}");
    // A replay would only be refused again.
    let plan = relay.tool(["dead", "replay", "--dry-run"]).run(PATIENCE).await;
    assert!(plan.stdout.contains("leave: another request was delivered under its key"), "{}", plan.stdout);
}

on_every_engine! {
    async fn two_conversations_never_share_an_id(bench: Bench) {
        let relay = Plan::on(&bench).start().await;
        let one = accepted(&relay, &start("a"), "b:c").await;
        let other = accepted(&relay, &start("a:b"), "c").await;
        assert_ne!(one, other);
        relay.reaches("a", "waiting").await;
        relay.reaches("a:b", "waiting").await;
        assert_eq!(relay.sandbox.groups().len(), 2);
    }

    async fn a_key_with_another_payload_is_refused(bench: Bench) {
        let relay = Plan::on(&bench).start().await;
        let group = relay.open("c-1").await;
        let id = accepted(&relay, &message("c-1", "first"), "k-1").await;
        // The same request with another order of fields.
        let same = r#"{"message":"first","conversation_id":"c-1","id":"other","type":"message"}"#;
        assert_eq!(accepted(&relay, &serde_json::from_str(same).unwrap(), "k-1").await, id);
        let (status, problem) = post(&relay, &message("c-1", "second"), "k-1").await;
        assert_eq!((status, problem["type"].as_str()), (422, Some("urn:causeway:problem:idempotency_key_reused")), "{problem}");
        assert_eq!(problem["field"], "Idempotency-Key");
        let (status, _) = post(&relay, &json!({"type": "typing", "conversation_id": "c-1"}), "k-1").await;
        assert_eq!(status, 422, "another type is another request");
        let field = json!({"type": "message", "conversation_id": "c-1", "message": "second", "id": "k-1"});
        let refused = relay.try_handoff(&field, None).await.unwrap();
        assert_eq!((refused.status.as_u16(), &refused.body["field"]), (422, &json!("id")), "{}", refused.body);
        accepted(&relay, &message("c-1", "second"), "k-2").await;
        says(&relay, &group, &["first", "second"]).await;
        assert_eq!(relay.dead_letters().await, Vec::<Value>::new());
    }

    async fn a_reused_key_that_only_the_worker_sees_is_dead_lettered(bench: Bench) {
        let mut relay = Plan::on(&bench).start().await;
        let group = relay.open("c-1").await;
        let id = accepted(&relay, &message("c-1", "first"), "k-1").await;
        says(&relay, &group, &["first"]).await;
        // Another ingress, or a restarted one, does not know the first request.
        relay.stop().await;
        relay.processes[0].restart();
        relay.ready().await;
        assert_eq!(accepted(&relay, &message("c-1", "first"), "k-1").await, id, "a repeat is harmless");
        relay.stop().await;
        relay.processes[0].restart();
        relay.ready().await;
        assert_eq!(accepted(&relay, &message("c-1", "second"), "k-1").await, id);
        second_is_rejected(&relay, &id).await;
        says(&relay, &group, &["first"]).await;
    }

    async fn of_two_requests_that_died_the_one_that_was_delivered_later_is_no_other(bench: Bench) {
        let mut relay = Plan::on(&bench).start().await;
        let group = relay.open("c-1").await;
        relay.sandbox.script().fail(FaultRule::new(Side::ServiceNow).operation(Operation::Message).status(400));
        let id = accepted(&relay, &message("c-1", "the second one, first"), "k-1").await;
        relay.dead_letters_at_least(1).await;
        relay.sandbox.script().clear();
        relay.stop().await;
        relay.processes[0].restart();
        relay.ready().await;
        assert_eq!(accepted(&relay, &message("c-1", "delivered"), "k-1").await, id);
        says(&relay, &group, &["delivered"]).await;
        // The dead request was never delivered, so no replay removes its dead letter.
        let run = relay.tool(["dead", "replay", "--yes"]).run(PATIENCE).await;
        assert_eq!(run.code, Some(0), "{}{}", run.stdout, run.stderr);
        assert!(run.stdout.contains("leave: another request was delivered under its key"), "{}", run.stdout);
        assert_eq!(relay.dead_letters().await.len(), 1);
    }
}

on_every_rabbit! {
    async fn two_ingresses_deliver_one_of_two_requests_under_a_key(bench: Bench) {
        let mut relay = Plan::on(&bench).apart(1).start().await;
        relay.add("ingress").await;
        let group = relay.open("c-1").await;
        let id = accepted(&relay, &message("c-1", "first"), "k-1").await;
        says(&relay, &group, &["first"]).await;
        relay.processes.swap(0, 2);
        assert_eq!(accepted(&relay, &message("c-1", "second"), "k-1").await, id);
        second_is_rejected(&relay, &id).await;
        says(&relay, &group, &["first"]).await;
    }
}
