//! Tests of the two ways in which stored data ends: an operator erases a conversation, and the time of `dead.kept` passes.

use causeway::sandbox::{FaultRule, Operation, Side};
use serde_json::{Value, json};

use crate::harness::relay::{PATIENCE, Plan, Relay};
use crate::harness::wait::eventually;
use crate::trace::{lines, log_of};

async fn refused_messages(relay: &Relay, texts: &[(&str, &str)]) {
    relay.sandbox.script().fail(FaultRule::new(Side::ServiceNow).operation(Operation::Message).status(400));
    for (conversation, text) in texts {
        relay.say(conversation, text).await;
    }
    relay.dead_letters_at_least(texts.len()).await;
}

on_every_engine! {
    async fn an_erased_conversation_leaves_nothing_and_no_other_conversation_changes(bench: Bench) {
        let relay = Plan::on(&bench).start().await;
        let group = relay.open("c-1").await;
        relay.open("c-2").await;
        refused_messages(&relay, &[("c-1", "secret words"), ("c-2", "other words")]).await;

        let erase = async |args: &[&str]| {
            let args: Vec<&str> = ["conversations", "erase"].iter().chain(args).copied().collect();
            relay.verb(&args).run(PATIENCE).await
        };
        let open = erase(&["--yes", "c-1"]).await;
        assert!(open.code == Some(2) && open.stderr.contains("--force"), "{}", open.stderr);
        let none = erase(&["--yes", "c-3"]).await;
        assert!(none.code == Some(1) && none.stderr.contains("c-3"), "{}", none.stderr);
        let counts = json!({"conversation_id": "c-1", "conversations": 1, "chats": 1, "reply_handles": 0, "dead_letters": 1});
        let with = |dry_run: bool| {
            let mut counts = counts.clone();
            counts["dry_run"] = dry_run.into();
            counts
        };
        // The chat names the conversation, too.
        let dry = erase(&["--force", "--dry-run", "--json", &group]).await;
        assert_eq!(serde_json::from_str::<Value>(&dry.stdout).unwrap(), with(true), "{}", dry.stderr);
        assert_eq!(relay.dead_letters().await.len(), 2);

        let erased = erase(&["--force", "--yes", "--json", &group]).await;
        assert_eq!(serde_json::from_str::<Value>(&erased.stdout).unwrap(), with(false), "{}", erased.stderr);
        let audited = lines(&erased.stderr, "operator");
        let told: Vec<_> = audited.iter().map(|line| (&line["act"], &line["filter"], &line["messages"], &line["outcome"])).collect();
        assert_eq!(told, [(&json!("erase"), &json!("conversation=c-1"), &json!(1), &json!("done"))], "{}", erased.stderr);
        assert_eq!(relay.conversation("c-1").await.status, 404);
        assert_eq!(relay.conversation("c-2").await.status, 200);
        let left = relay.dead_letters().await;
        assert_eq!(left.iter().map(|letter| &letter["conversation_id"]).collect::<Vec<_>>(), ["c-2"]);
        assert_eq!(erase(&["--yes", &group]).await.code, Some(1), "nothing is left");
    }

    async fn a_dead_letter_is_discarded_after_its_time(bench: Bench) {
        let relay = Plan::on(&bench).set("dead.kept", "3s").start().await;
        relay.open("c-1").await;
        refused_messages(&relay, &[("c-1", "secret words")]).await;
        let audited = eventually("the dead letter to be discarded", PATIENCE, async || {
            let audited = lines(&log_of(&relay), "operator");
            if audited.is_empty() { Err(log_of(&relay)) } else { Ok(audited) }
        })
        .await;
        let line = &audited[0];
        assert_eq!((&line["act"], &line["who"], &line["messages"]), (&json!("discard"), &json!("dead.kept"), &json!(1)), "{line}");
        assert!(line["filter"].as_str().unwrap().starts_with("destination=servicenow until="), "{line}");
        assert_eq!(relay.dead_letters().await, Vec::<Value>::new());
    }
}
