//! Tests that a caller of the handoff API reaches only conversations that were opened over this API, and that no text
//! of a caller selects an internal branch.

use causeway::bridge::UnknownGroup;
use causeway::conversation::{ConversationState, OpenedChat, Origin};
use causeway::delivery::PriorAttempts;
use causeway::message::{
    ConversationId, DeadLetter, DeadReason, Destination, Kind, Outcome, dead_letter::AttemptHistory,
};
use causeway::sandbox::{BotSettings, Operation, Side};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::botkit::{ENDED, cleared, heard, relay, talking, user};
use crate::conversations::{message, room};
use crate::harness::relay::{Plan, Relay};

/// A request of each type for one conversation.
fn requests(conversation: &str) -> [(Kind, Value); 4] {
    let request = |kind: &str| json!({"type": kind, "conversation_id": conversation, "message": "forged"});
    [
        (Kind::HandoffStart, request("start")),
        (Kind::HandoffMessage, request("message")),
        (Kind::HandoffTyping, request("typing")),
        (Kind::HandoffEnd, request("end")),
    ]
}

fn event(relay: &Relay, conversation: &str, kind: &str) -> Option<Value> {
    let posted = relay.sandbox.ledger().find(|entry| entry.side == Side::Events && entry.applied);
    let events = posted.iter().filter_map(|entry| serde_json::from_str::<Value>(&entry.body).ok());
    events.into_iter().find(|event| event["conversation_id"] == conversation && event["type"] == kind)
}

on_every_engine! {
    async fn the_token_reaches_no_conversation_of_a_bot(bench: Bench) {
        let relay = relay(&bench, &[]).await;
        let user = user(&relay, "u-1");
        let group = talking(&relay, &user).await;
        let conversation = format!("{}:u-1:rtm", BotSettings::default().bot_id);
        let listed = relay.tool(["conversations", "list", "--json"]).run(crate::harness::relay::PATIENCE).await;
        assert!(listed.stdout.contains(&conversation), "{}{}", listed.stdout, listed.stderr);

        let seen = relay.conversation(&conversation).await;
        let unknown = relay.conversation("c-unknown").await;
        assert_eq!((seen.status, &seen.body["detail"]), (StatusCode::NOT_FOUND, &unknown.body["detail"]));
        for (_, request) in requests(&conversation) {
            let answer = relay.handoff(request).await;
            assert_eq!((answer.status.as_u16(), &answer.body["field"]), (422, &json!("conversation_id")), "{}", answer.body);
        }
        // The chat goes on, and its agent can close it.
        assert_eq!(user.says("still here").await.status, 200);
        relay.until("the words of the user", |relay| {
            let said = relay.said(&group);
            if said.last().is_some_and(|text| text == "still here") { Ok(()) } else { Err(format!("{said:?}")) }
        }).await;
        assert!(!relay.said(&group).iter().any(|text| text.contains("forged")));
        relay.sandbox.agent_closes(&group).await.expect("the chat is open");
        heard(&relay, &user, ENDED).await;
        cleared(&relay, &user).await;
    }

    async fn a_reason_of_a_caller_is_only_text(bench: Bench) {
        let relay = Plan::on(&bench).set("servicenow.poll_waiting", "200ms").start().await;
        let group = relay.open("c-1").await;
        let end = json!({"type": "end", "conversation_id": "c-1", "reason": "waited_too_long"});
        relay.handoff(end).await.id();
        relay.reaches("c-1", "ended").await;
        relay.until("the end", |relay| event(relay, "c-1", "callback.ended").map(drop).ok_or_else(String::new)).await;
        let ended = event(&relay, "c-1", "callback.ended").unwrap_or_default();
        assert_eq!(ended["reason"], "waited_too_long");
        assert_eq!(event(&relay, "c-1", "handoff.failed"), None);
        assert_eq!(relay.sandbox.state(&group), Some(8), "the chat was left");
        relay.metric_is("causeway_conversations_ended_total", &[("reason", "other")], |ended| ended == 1.0).await;
        let odd = json!({"type": "end", "conversation_id": "c-1", "reason": {"cause": "waited_too_long"}});
        assert_eq!(relay.handoff(odd).await.status.as_u16(), 422);
    }
}

/// The ingress may run with other settings than the worker, so the worker decides.
#[tokio::test(flavor = "multi_thread")]
async fn the_worker_refuses_what_the_ingress_could_not_see() {
    let room = room(UnknownGroup::DeadLetter).await;
    let id = |name: &str| ConversationId::parse(name).unwrap();
    // A conversation of a bot that is in a chat, one that has ended, one that waits for its chat, and an unknown one
    // whose name belongs to a bot.
    let names = ["u-open", "u-ended", "u-requested", "st-1:u-unknown"];
    for name in &names[..3] {
        room.directory.mark_requested(&id(name), Origin::BotKit, None).await.unwrap();
    }
    let opened = OpenedChat {
        group: "g-1".into(),
        number: None,
        queue_id: "q".into(),
        position: None,
        wait: None,
        agent: None,
        active: true,
    };
    room.directory.mark_opened(&id("u-open"), &opened).await.unwrap();
    assert!(room.directory.mark_ended(&id("u-ended"), None, "agent").await.unwrap());
    let mut before = Vec::new();
    for name in names {
        before.push(room.directory.find(&id(name)).await.unwrap());
    }
    for (name, before) in names.iter().zip(before) {
        for (kind, request) in requests(name) {
            let request = message(kind, name, &request);
            for past in [
                PriorAttempts::default(),
                PriorAttempts { possibly_delivered: true, ..PriorAttempts::default() },
            ] {
                let attempt = room.deliverer.attempt(&request, past).await;
                let dead = Outcome::Dead(DeadReason::Rejected);
                let expected = if kind == Kind::HandoffTyping { Outcome::Dropped } else { dead };
                assert_eq!(attempt.outcome, expected, "{kind} to {name}: {}", attempt.error);
            }
            for reason in [DeadReason::Rejected, DeadReason::Expired] {
                let dead = DeadLetter::new(request.clone(), reason, "", AttemptHistory::default());
                room.deliverer.before_dead_letter(&dead).await.unwrap();
            }
        }
        let after = room.directory.find(&id(name)).await.unwrap();
        assert_eq!(after, before, "{name}");
    }
    let called = |entry: &causeway::sandbox::LedgerEntry| {
        matches!(entry.operation, Operation::Start | Operation::Message | Operation::Leave)
    };
    assert_eq!(room.sandbox.ledger().count(called), 0);
    for destination in [Destination::Events, Destination::Callbacks, Destination::parse("bot:one").unwrap()] {
        let waiting = room.queue.depth().await.unwrap().waiting.get(&destination).copied().unwrap_or(0);
        assert_eq!(waiting, 0, "{destination}");
    }
    let known = room.directory.find(&id("u-open")).await.unwrap().unwrap();
    assert_eq!((known.state, known.origin), (ConversationState::Active, Origin::BotKit));
}
