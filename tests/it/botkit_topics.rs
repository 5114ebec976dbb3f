//! Promise: what a topic of the Virtual Agent asks in an agent's chat reaches the user, as buttons where the channel has them, and
//! the user's answer reaches ServiceNow. Which flags such items carry is not known (FACTS.md, Conversation Autopilot).

use causeway::sandbox::botkit::BotUser;
use causeway::sandbox::{Operation, SandboxSwitches, Side, VirtualAgentSwitches};
use serde_json::{Value, json};

use crate::botkit::{JOINED, cleared, heard, relay, talking, user};
use crate::harness::matrix::Bench;
use crate::harness::relay::Relay;

fn topic() -> [Value; 3] {
    [
        json!({ "uiType": "ActionMsg", "actionType": "ChatSubHeader", "message": "A topic began", "messageId": "t-1" }),
        json!({ "uiType": "OutputText", "value": "Let me ask you something.", "messageId": "t-2" }),
        json!({
            "uiType": "Picker", "label": "Which building?", "messageId": "t-3",
            "options": [{ "label": "North", "value": "n" }, { "label": "South", "value": "s" }],
        }),
    ]
}

async fn posts(relay: &Relay, group: &str, item: Value) {
    relay.sandbox.virtual_agent_posts(group, vec![item]).await.expect("a chat of this API");
}

/// The buttons that the user was shown.
fn buttons(relay: &Relay) -> Vec<Value> {
    let told =
        relay.sandbox.ledger().find(|entry| entry.side == Side::BotKit && entry.operation == Operation::Tell);
    let bodies = told.iter().filter_map(|entry| serde_json::from_str::<Value>(&entry.body).ok());
    let templates = bodies.filter_map(|body| {
        serde_json::from_str::<Value>(body["overrideMessagePayload"]["body"].as_str()?).ok()
    });
    let shown = templates.filter(|template| template["payload"]["template_type"] == "quick_replies");
    shown.map(|template| template["payload"]["quick_replies"].clone()).collect()
}

async fn in_an_agents_chat(bench: &Bench, settings: &[(&str, &str)]) -> (Relay, BotUser, String) {
    let settings = [&[("servicenow.api", "virtual_agent")], settings].concat();
    let relay = relay(bench, &settings).await;
    let user = user(&relay, "u-1");
    let group = talking(&relay, &user).await;
    heard(&relay, &user, JOINED).await;
    (relay, user, group)
}

on_every_engine! {
    async fn a_question_of_a_topic_is_relayed_and_ends_no_chat(bench: Bench) {
        let (relay, user, group) = in_an_agents_chat(&bench, &[]).await;
        for (index, item) in topic().into_iter().enumerate() {
            // Whichever flags they carry.
            let switches = VirtualAgentSwitches { unflagged: index > 0, ..VirtualAgentSwitches::default() };
            relay.sandbox.set_switches(SandboxSwitches { virtual_agent: switches, ..SandboxSwitches::default() });
            posts(&relay, &group, item).await;
        }
        for words in ["A topic began", "Let me ask you something.", "Which building?\n1. North\n2. South"] {
            heard(&relay, &user, words).await;
        }
        let expected = json!([
            { "content_type": "text", "title": "North", "payload": "n" },
            { "content_type": "text", "title": "South", "payload": "s" },
        ]);
        assert_eq!(buttons(&relay), [expected]);
        // A button answers with its payload.
        user.says("n").await;
        relay.until("the answer", |relay| {
            let said = relay.said(&group);
            if said.iter().any(|said| said == "n") { Ok(()) } else { Err(format!("{said:?}")) }
        }).await;
        assert_eq!(user.clears(), 0);
    }

    async fn a_topic_can_be_kept_from_the_user(bench: Bench) {
        let (relay, user, group) = in_an_agents_chat(&bench, &[("servicenow.tell_topics", "false")]).await;
        for item in topic() {
            posts(&relay, &group, item).await;
        }
        relay.sandbox.agent_says(&group, "back again").await.unwrap();
        heard(&relay, &user, "back again").await;
        assert!(!user.heard_texts().iter().any(|said| said.contains("building")), "{:?}", user.heard_texts());
    }

    // FACTS.md: public integrations know the end of a chat from a sentence alone.
    async fn an_end_is_a_sentence_and_the_state(bench: Bench) {
        let (relay, user, group) = in_an_agents_chat(&bench, &[]).await;
        let unflagged = VirtualAgentSwitches { unflagged: true, ..VirtualAgentSwitches::default() };
        relay.sandbox.set_switches(SandboxSwitches { virtual_agent: unflagged, ..SandboxSwitches::default() });
        let closed = || json!({ "uiType": "ActionMsg", "actionType": "System", "message": "Beth has closed the support session." });
        posts(&relay, &group, closed()).await;
        heard(&relay, &user, "has closed the support session").await;
        // The agent is there after all, and so is what a topic asks then.
        relay.sandbox.agent_says(&group, "wrong button").await.unwrap();
        heard(&relay, &user, "wrong button").await;
        let [_, topic, _] = topic();
        posts(&relay, &group, topic).await;
        heard(&relay, &user, "Let me ask you something.").await;
        assert_eq!(user.clears(), 0, "no sentence ends a chat");
        posts(&relay, &group, closed()).await;
        posts(&relay, &group, json!({ "uiType": "OutputText", "value": "What can I help with?", "messageId": "b-1" })).await;
        cleared(&relay, &user).await;
        assert!(!user.heard_texts().iter().any(|said| said.contains("What can I help")), "{:?}", user.heard_texts());
    }

    async fn an_end_that_nothing_confirms_is_left_to_the_idle_limit(bench: Bench) {
        let (relay, user, group) = in_an_agents_chat(&bench, &[("servicenow.idle_limit", "4s")]).await;
        let silent = VirtualAgentSwitches { ends_by_sentence: true, ..VirtualAgentSwitches::default() };
        relay.sandbox.set_switches(SandboxSwitches { virtual_agent: silent, ..SandboxSwitches::default() });
        relay.sandbox.agent_closes(&group).await.unwrap();
        heard(&relay, &user, "has left the support session").await;
        cleared(&relay, &user).await;
        relay.metric_is("causeway_unconfirmed_ends_total", &[], |count| count >= 1.0).await;
    }

    async fn an_announced_end_is_forgotten_when_the_chat_goes_on(bench: Bench) {
        let (relay, user, group) = in_an_agents_chat(&bench, &[("servicenow.idle_limit", "4s")]).await;
        let closed = json!({ "uiType": "ActionMsg", "actionType": "System", "message": "Beth has closed the support session." });
        posts(&relay, &group, closed).await;
        relay.sandbox.agent_says(&group, "wrong button").await.unwrap();
        heard(&relay, &user, "wrong button").await;
        cleared(&relay, &user).await;
        assert_eq!(relay.metric("causeway_unconfirmed_ends_total", &[]).await, 0.0);
    }

    async fn an_end_is_guessed_only_on_purpose(bench: Bench) {
        let (relay, user, group) = in_an_agents_chat(&bench, &[("servicenow.end_without_flag", "true")]).await;
        let unflagged = VirtualAgentSwitches { unflagged: true, ..VirtualAgentSwitches::default() };
        relay.sandbox.set_switches(SandboxSwitches { virtual_agent: unflagged, ..SandboxSwitches::default() });
        posts(&relay, &group, json!({ "uiType": "OutputText", "value": "What can I help with?", "messageId": "b-1" })).await;
        cleared(&relay, &user).await;
        assert!(!user.heard_texts().iter().any(|said| said.contains("What can I help")), "{:?}", user.heard_texts());
    }
}
