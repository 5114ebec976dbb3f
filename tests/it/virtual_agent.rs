//! Tests that a conversation over the Virtual Agent API works as over Connect Support, although ServiceNow answers
//! every request with 200. A start counts only when a callback shows an agent's queue, and each item of a callback is
//! relayed once.

use causeway::sandbox::{
    CallbackSettings, FaultRule, LedgerEntry, MessageProof, Operation, SandboxSwitches, Side,
    VirtualAgentSwitches,
};
use serde_json::{Value, json};

use crate::harness::matrix::Bench;
use crate::harness::relay::{PATIENCE, Plan, Relay};

pub(crate) fn plan(bench: &Bench) -> Plan {
    Plan::on(bench).set("servicenow.api", "virtual_agent").set("xo.callback_url", "")
}

pub(crate) async fn started(plan: Plan, switches: VirtualAgentSwitches) -> Relay {
    let relay = plan.start().await;
    relay.sandbox.set_switches(SandboxSwitches { virtual_agent: switches, ..SandboxSwitches::default() });
    let url = format!("{}/v1/callbacks/servicenow?token=callback-token", relay.processes[0].public_url());
    relay.sandbox.set_callback(Some(CallbackSettings::to(url)));
    relay
}

/// Opens a chat with an agent.
pub(crate) async fn with_agent(relay: &Relay, conversation: &str) -> String {
    relay.start(conversation).await;
    relay.reaches(conversation, "waiting").await;
    let group = group_of(relay, conversation).await;
    relay.sandbox.agent_accept(&group).await.unwrap();
    relay.reaches(conversation, "active").await;
    group
}

async fn group_of(relay: &Relay, conversation: &str) -> String {
    relay.conversation(conversation).await.body["servicenow"]["group"].as_str().unwrap().to_owned()
}

pub(crate) fn told(relay: &Relay, conversation: &str) -> Vec<Value> {
    let entries = relay.sandbox.ledger().events().remove(conversation).unwrap_or_default();
    entries.iter().map(|entry| serde_json::from_str(&entry.body).unwrap()).collect()
}

fn short(event: &Value) -> String {
    event["event"].as_str().or(event["type"].as_str()).unwrap_or_default().to_owned()
}

/// The messages to the user, in order.
fn heard(relay: &Relay, conversation: &str) -> Vec<String> {
    let said = |event: &Value| event["message"].as_str().map(str::to_owned);
    told(relay, conversation).iter().filter_map(said).collect()
}

fn count(relay: &Relay, conversation: &str, what: &str) -> usize {
    told(relay, conversation).iter().filter(|event| short(event) == what).count()
}

pub(crate) async fn hears(relay: &Relay, conversation: &str, what: &str) -> Value {
    relay
        .until(&format!("{conversation} to hear {what}"), |relay| {
            let known = told(relay, conversation);
            if known.iter().any(|event| short(event) == what) { Ok(()) } else { Err(format!("{known:#?}")) }
        })
        .await;
    told(relay, conversation).into_iter().find(|event| short(event) == what).unwrap()
}

pub(crate) async fn hears_text(relay: &Relay, conversation: &str, text: &str) {
    relay
        .until(&format!("{conversation} to hear {text}"), |relay| {
            let heard = heard(relay, conversation);
            if heard.iter().any(|said| said == text) { Ok(()) } else { Err(format!("{heard:?}")) }
        })
        .await;
}

async fn says(relay: &Relay, group: &str, texts: &[&str]) {
    relay
        .until(&format!("{texts:?}"), |relay| {
            let said = relay.said(group);
            if said.len() >= texts.len() { Ok(()) } else { Err(format!("{said:?}")) }
        })
        .await;
    assert_eq!(relay.said(group), texts);
}

/// The requests of the instance with this action. An empty text means no action.
fn asked(relay: &Relay, action: &str) -> Vec<Value> {
    let of = |entry: &LedgerEntry| {
        entry.side == Side::ServiceNow && !entry.outbound && entry.event.as_deref().unwrap_or("") == action
    };
    let entries = relay.sandbox.ledger().find(|entry| of(entry) && entry.path.contains("sn_va_as_service"));
    entries.iter().map(|entry| serde_json::from_str(&entry.body).unwrap()).collect()
}

async fn asks(relay: &Relay, action: &str, times: usize) -> Vec<Value> {
    relay
        .until(&format!("{action} {times} times"), |relay| {
            let found = asked(relay, action);
            if found.len() >= times { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    asked(relay, action)
}

fn agent_item(id: &str, text: &str) -> Value {
    json!({
        "uiType": "OutputText", "group": "DefaultText", "value": text, "messageId": id,
        "agentInfo": { "sentFromAgent": true, "agentName": "Beth Anglin" },
    })
}

fn event_rule(text: &str) -> FaultRule {
    FaultRule::new(Side::Events).operation(Operation::Event).conversation(text)
}

on_every_engine! {
    async fn from_request_to_the_agents_end(bench: Bench) {
        let plan = plan(&bench).set("servicenow.context_variables", "b2b_category=it, topic=laptop");
        let relay = started(plan, VirtualAgentSwitches::default()).await;
        relay.handoff(json!({
            "type": "start", "conversation_id": "c-1", "message": "My laptop is on fire",
            "user": { "id": "u-1", "name": "Ada", "email": "ada@example.com", "language": "ko" },
            "transcript": [
                { "from": "bot", "text": "How can I help?", "at": "2026-11-22T10:00:00Z" },
                { "from": "user", "text": "I want a human" },
            ],
            "metadata": { "channel": "web" },
        })).await.id();
        relay.reaches("c-1", "waiting").await;
        let group = group_of(&relay, "c-1").await;
        let start = asked(&relay, "START_CONVERSATION").remove(0);
        assert_eq!((&start["clientSessionId"], &start["userId"]), (&json!(group), &json!(group)));
        assert_eq!(start["clientVariables"], json!({ "causeway_conversation_id": "c-1", "causeway_group": group }));
        assert_eq!(start["emailId"], "ada@example.com");
        let queue = causeway::sandbox::SandboxQueue::default().id;
        assert_eq!(start["contextVariables"], json!({
            "live_agent_only": "true", "requester_session_language": "ko", "b2b_category": "it", "topic": "laptop",
            "channel": "web", "LiveAgent_queue": queue,
        }));
        let history = start["history"].as_array().unwrap();
        assert_eq!(history[0], json!({
            "isBotMessage": true, "value": "How can I help?", "displayName": "bot", "type": "text",
            "timestamp": "1795341600000",
        }));
        assert_eq!((&history[1]["displayName"], &history[1]["isBotMessage"]), (&json!("Ada"), &json!(false)));
        assert_eq!(hears(&relay, "c-1", "waiting").await["wait"], "8 Seconds");

        relay.sandbox.agent_accept(&group).await.unwrap();
        relay.reaches("c-1", "active").await;
        assert_eq!(relay.conversation("c-1").await.body["agent"], "Beth Anglin");
        relay.metric_is("causeway_agent_wait_seconds_count", &[], |count| count == 1.0).await;
        for n in 0..5 {
            relay.sandbox.agent_says(&group, &format!("agent {n}")).await.unwrap();
            relay.say("c-1", &format!("user {n}")).await;
        }
        let first = "My laptop is on fire\n\nFrom: Ada <ada@example.com>";
        says(&relay, &group, &[first, "user 0", "user 1", "user 2", "user 3", "user 4"]).await;
        hears_text(&relay, "c-1", "agent 4").await;
        relay.sandbox.agent_closes(&group).await.unwrap();
        relay.reaches("c-1", "ended").await;
        assert_eq!(hears(&relay, "c-1", "callback.ended").await["reason"], "agent");
        relay.metric_is("causeway_conversations_ended_total", &[("reason", "agent")], |count| count == 1.0).await;
        let short: Vec<String> = told(&relay, "c-1").iter().map(short).collect();
        assert_eq!((short.first().unwrap().as_str(), short.last().unwrap().as_str()), ("callback.message", "callback.ended"));
        assert_eq!(["waiting", "joined", "left"].map(|what| count(&relay, "c-1", what)), [1, 1, 0]);
        let agent: Vec<Value> = told(&relay, "c-1").into_iter().filter(|event| event["from"] == "agent").collect();
        let texts: Vec<&str> = agent.iter().map(|event| event["message"].as_str().unwrap()).collect();
        assert_eq!(texts[1..], ["agent 0", "agent 1", "agent 2", "agent 3", "agent 4"]);
        assert!(agent.iter().all(|event| event["agent"] == "Beth Anglin" && event["group"] == group.as_str()));
        assert_eq!(relay.sandbox.ledger().overlaps(), []);
        assert_eq!(relay.dead_letters().await.len(), 0);
    }

    async fn a_start_without_a_sign_is_asked_again_until_its_time_is_over(bench: Bench) {
        let plan = plan(&bench).set("servicenow.watchdog", "500ms").set("delivery.deadline.start", "4s");
        let silent = VirtualAgentSwitches { silent: true, ..VirtualAgentSwitches::default() };
        let relay = started(plan, silent).await;
        relay.start("c-1").await;
        assert_eq!(hears(&relay, "c-1", "handoff.failed").await["reason"], "expired");
        relay.reaches("c-1", "failed").await;
        let starts = asks(&relay, "START_CONVERSATION", 3).await;
        let names: std::collections::BTreeSet<String> =
            starts.iter().map(|start| format!("{} {}", start["requestId"], start["userId"])).collect();
        assert_eq!(names.len(), 1, "asked again under the same names");
        assert_eq!(relay.dead_letters_at_least(1).await[0]["reason"], "expired");
        let fault = asks(&relay, "FAULT_CONVERSATION", 1).await;
        assert_eq!((&fault[0]["userId"], &fault[0]["cause"]), (&starts[0]["userId"], &json!("EXTERNAL_FAILURE")));
        assert_eq!(count(&relay, "c-1", "handoff.failed"), 1);
    }

    async fn an_answer_of_the_bot_is_no_agent(bench: Bench) {
        let plan = plan(&bench)
            .set("servicenow.start_action", "AGENT")
            .set("servicenow.watchdog", "1s")
            .set("delivery.deadline.start", "4s");
        let falls_back = VirtualAgentSwitches { falls_back: true, ..VirtualAgentSwitches::default() };
        let relay = started(plan, falls_back).await;
        relay.start("c-1").await;
        asks(&relay, "AGENT", 2).await;
        assert_eq!(relay.conversation("c-1").await.body["state"], "requested");
        assert_eq!(hears(&relay, "c-1", "handoff.failed").await["reason"], "expired");
        assert_eq!(heard(&relay, "c-1"), [""; 0], "the user asked for a person");
    }

    async fn no_agent_is_an_answer(bench: Bench) {
        for takes_control in [false, true] {
            let bench = bench.engine().bench().unwrap();
            let nobody = VirtualAgentSwitches { no_agents: true, takes_control, ..VirtualAgentSwitches::default() };
            let relay = started(plan(&bench), nobody).await;
            relay.start("c-1").await;
            let failed = hears(&relay, "c-1", "handoff.failed").await;
            assert_eq!(failed["reason"], "no_agent");
            assert_eq!(failed["detail"], "No agents are available at the moment. Please try again later.");
            relay.reaches("c-1", "failed").await;
            relay.metric_is("causeway_conversations_ended_total", &[("reason", "no_agent")], |count| count == 1.0).await;
            // The next start is another request, and succeeds when an agent is available.
            relay.sandbox.set_switches(SandboxSwitches::default());
            with_agent(&relay, "c-1").await;
            let starts = asked(&relay, "START_CONVERSATION");
            assert_eq!(starts.len(), 2);
            assert_ne!(starts[0]["userId"], starts[1]["userId"]);
            assert_eq!(relay.dead_letters().await.len(), 0);
        }
    }

    async fn the_end_of_a_chat_without_an_agent_is_told_also_as_a_question(bench: Bench) {
        let relay = started(plan(&bench), VirtualAgentSwitches::default()).await;
        relay.start("c-1").await;
        relay.reaches("c-1", "waiting").await;
        let group = group_of(&relay, "c-1").await;
        let picker = json!({
            "uiType": "Picker", "label": "Nobody is here. Shall I open a ticket?", "messageId": "p-1",
            "options": [{ "label": "Yes", "value": "y" }, { "label": "No", "value": "n" }],
        });
        let gone = json!({ "uiType": "ActionMsg", "actionType": "SwitchToVirtualAgent" });
        relay.sandbox.virtual_agent_posts(&group, vec![picker, gone]).await.unwrap();
        let failed = hears(&relay, "c-1", "handoff.failed").await;
        assert_eq!(failed["detail"], "Nobody is here. Shall I open a ticket?");
    }

    async fn every_item_is_told_once_although_the_bot_side_fails_between(bench: Bench) {
        let relay = started(plan(&bench), VirtualAgentSwitches::default()).await;
        let group = with_agent(&relay, "c-1").await;
        relay.sandbox.script().fail(event_rule("second").times(3).status(503));
        let items = [agent_item("m-1", "first"), agent_item("m-2", "second"), agent_item("m-3", "third")];
        relay.sandbox.virtual_agent_posts(&group, items.to_vec()).await.unwrap();
        relay.sandbox.agent_says(&group, "fourth").await.unwrap();
        hears_text(&relay, "c-1", "fourth").await;
        let heard = heard(&relay, "c-1");
        assert_eq!(heard[heard.len() - 4..], ["first", "second", "third", "fourth"]);
        let tries = |text: &str| relay.sandbox.ledger().count(|entry| {
            entry.side == Side::Events && entry.text.as_deref() == Some(text)
        });
        assert_eq!(["first", "second", "third"].map(tries), [1, 4, 1]);
    }

    async fn a_callback_that_comes_twice_is_told_once(bench: Bench) {
        let twice = VirtualAgentSwitches { twice: true, ..VirtualAgentSwitches::default() };
        let relay = started(plan(&bench), twice).await;
        let group = with_agent(&relay, "c-1").await;
        relay.sandbox.agent_says(&group, "once").await.unwrap();
        // The same item again, together with other items.
        let items = vec![agent_item("m-1", "one"), agent_item("m-2", "two")];
        relay.sandbox.virtual_agent_posts(&group, items).await.unwrap();
        relay.sandbox.virtual_agent_posts(&group, vec![agent_item("m-2", "two"), agent_item("m-3", "three")]).await.unwrap();
        relay.sandbox.agent_closes(&group).await.unwrap();
        relay.reaches("c-1", "ended").await;
        hears(&relay, "c-1", "callback.ended").await;
        let heard = heard(&relay, "c-1");
        for text in ["once", "one", "two", "three"] {
            assert_eq!(heard.iter().filter(|said| *said == text).count(), 1, "{text} in {heard:?}");
        }
        assert_eq!(["waiting", "joined", "callback.ended"].map(|what| count(&relay, "c-1", what)), [1, 1, 1]);
    }

    async fn the_end_is_told_by_flags_and_actions_and_never_by_words(bench: Bench) {
        let relay = started(plan(&bench), VirtualAgentSwitches::default()).await;
        let gone = json!({ "uiType": "ActionMsg", "actionType": "SwitchToVirtualAgent" });
        let words = json!({
            "uiType": "ActionMsg", "actionType": "System", "message": "Beth Anglin has closed the support session.",
        });
        let picker = json!({
            "uiType": "TopicPickerControl", "promptMsg": "What else?", "options": [{ "label": "Live Agent Support." }],
        });
        let group = with_agent(&relay, "c-1").await;
        relay.sandbox.virtual_agent_posts(&group, vec![words.clone()]).await.unwrap();
        hears_text(&relay, "c-1", "Beth Anglin has closed the support session.").await;
        relay.sandbox.agent_says(&group, "still here").await.unwrap();
        hears_text(&relay, "c-1", "still here").await;
        assert_eq!(relay.conversation("c-1").await.body["state"], "active");
        relay.sandbox.virtual_agent_posts(&group, vec![agent_item("m-1", "bye"), gone, picker]).await.unwrap();
        relay.reaches("c-1", "ended").await;
        hears(&relay, "c-1", "callback.ended").await;
        let all = told(&relay, "c-1");
        assert_eq!(all[all.len() - 2]["message"], "bye", "{all:#?}");
        assert_eq!(all[all.len() - 1]["reason"], "agent");

        // The same by the flag alone, without a text of any language.
        let by_flag = VirtualAgentSwitches { ends_by_flag: true, ..VirtualAgentSwitches::default() };
        relay.sandbox.set_switches(SandboxSwitches { virtual_agent: by_flag, ..SandboxSwitches::default() });
        let group = with_agent(&relay, "c-2").await;
        relay.sandbox.agent_closes(&group).await.unwrap();
        relay.reaches("c-2", "ended").await;
        assert_eq!(hears(&relay, "c-2", "callback.ended").await["reason"], "agent");
    }

    async fn both_ends_at_once_are_told_once(bench: Bench) {
        let relay = started(plan(&bench), VirtualAgentSwitches::default()).await;
        let mut groups = Vec::new();
        for name in ["c-1", "c-2", "c-3"] {
            groups.push((name, with_agent(&relay, name).await));
        }
        for (name, group) in &groups {
            // The slower side finds the chat ended. Either end is valid.
            let (_, _) = tokio::join!(relay.end(name), relay.sandbox.agent_closes(group));
        }
        for (name, group) in &groups {
            relay.reaches(name, "ended").await;
            hears(&relay, name, "callback.ended").await;
            relay.sandbox.virtual_agent_posts(group, vec![agent_item(&format!("late-{name}"), "a last word")]).await.unwrap();
            hears_text(&relay, name, "a last word").await;
            assert_eq!(count(&relay, name, "callback.ended"), 1);
        }
        // A user who leaves before an agent came was not refused.
        relay.start("c-4").await;
        relay.reaches("c-4", "waiting").await;
        let group = group_of(&relay, "c-4").await;
        // The callback of our end arrives before the answer of the call.
        let leave = FaultRule::new(Side::ServiceNow).operation(Operation::Leave);
        relay.sandbox.script().fail(leave.times(1).after().delay(std::time::Duration::from_secs(2)));
        relay.end("c-4").await;
        relay.reaches("c-4", "ended").await;
        assert_eq!(hears(&relay, "c-4", "callback.ended").await["reason"], "user");
        assert_eq!((relay.sandbox.state(&group), count(&relay, "c-4", "handoff.failed")), (Some(8), 0));
        let end = asked(&relay, "END_CONVERSATION").pop().unwrap();
        assert_eq!(end["message"], json!({ "text": "", "typed": true }));
    }

    async fn typing_is_seen_on_both_sides(bench: Bench) {
        for suffixed in [false, true] {
            let bench = bench.engine().bench().unwrap();
            let switches = VirtualAgentSwitches { suffixed, ..VirtualAgentSwitches::default() };
            let relay = started(plan(&bench), switches).await;
            let group = with_agent(&relay, "c-1").await;
            relay.handoff(json!({ "type": "typing", "conversation_id": "c-1" })).await.id();
            let typing = asks(&relay, "TYPING", 1).await;
            relay.handoff(json!({ "type": "typing", "conversation_id": "c-1", "stopped": true })).await.id();
            let viewing = asks(&relay, "VIEWING", 1).await;
            assert_eq!((&typing[0]["message"]["text"], &viewing[0]["message"]["text"]), (&json!(""), &json!("")));
            relay.sandbox.agent_types(&group).await.unwrap();
            assert_eq!(hears(&relay, "c-1", "typing").await["agent"], "Beth Anglin");
        }
    }

    async fn requests_prove_themselves(bench: Bench) {
        let proofs = [
            ("servicenow.message_token", MessageProof::Token("ORANGE".to_owned())),
            ("servicenow.message_hmac", MessageProof::Hmac("ORANGE".to_owned())),
        ];
        for (key, proof) in proofs {
            for (secret, right) in [("ORANGE", true), ("LEMON", false)] {
                let bench = bench.engine().bench().unwrap();
                let plan = plan(&bench).set(key, secret).set("delivery.deadline.start", if right { "60s" } else { "2s" });
                let proof = proof.clone();
                let plan = plan.sandbox(|sandbox| sandbox.message_auth = Some(proof));
                let relay = started(plan, VirtualAgentSwitches::default()).await;
                relay.start("c-1").await;
                relay.reaches("c-1", if right { "waiting" } else { "failed" }).await;
                assert_eq!(relay.sandbox.groups().len(), usize::from(right), "{key} = {secret}");
            }
        }
    }

    async fn unknown_items_are_relayed_as_text_and_counted(bench: Bench) {
        let relay = started(plan(&bench), VirtualAgentSwitches::default()).await;
        let group = with_agent(&relay, "c-1").await;
        let items = vec![
            json!({ "uiType": "Hologram", "value": "a hologram", "messageId": "h-1" }),
            json!({ "uiType": "Smell", "messageId": "h-2" }),
            json!({ "uiType": "OutputImage", "altText": "a plan", "value": "https://example.com/plan.png", "messageId": "h-3" }),
            json!({
                "uiType": "OutputLink", "label": "the manual", "value": { "action": "https://example.com/manual" },
                "messageId": "h-4",
            }),
            json!({ "uiType": "OutputHtml", "value": "<p>Press <b>F1</b></p>", "messageId": "h-5" }),
            json!({ "uiType": "Picker", "label": "Which?", "options": [{ "label": "A" }, { "label": "B" }], "messageId": "h-6" }),
            json!({ "uiType": "StreamStart", "streamId": "s" }),
            json!({ "uiType": "StreamChunk", "streamId": "s", "streamSequence": 1, "value": "in " }),
            json!({ "uiType": "StreamChunk", "streamId": "s", "streamSequence": 2, "value": "pieces" }),
        ];
        relay.sandbox.virtual_agent_posts(&group, items).await.unwrap();
        // The last callback of a stream brings the whole text (FACTS.md).
        let whole = json!({ "uiType": "OutputText", "streamId": "s", "value": "in pieces", "messageId": "h-7" });
        relay.sandbox.virtual_agent_posts(&group, vec![whole]).await.unwrap();
        hears_text(&relay, "c-1", "in pieces").await;
        let heard = heard(&relay, "c-1");
        assert_eq!(heard[heard.len() - 6..], [
            "a hologram", "a plan\nhttps://example.com/plan.png", "the manual\nhttps://example.com/manual",
            "Press F1", "Which?\n1. A\n2. B", "in pieces",
        ]);
        relay.metric_is("causeway_unknown_items_total", &[], |count| count == 2.0).await;
    }

    async fn the_agent_sees_what_became_of_the_words(bench: Bench) {
        let relay = started(plan(&bench), VirtualAgentSwitches::default()).await;
        let group = with_agent(&relay, "c-1").await;
        // The receipt of the greeting must not be combined with the next one.
        asks(&relay, "UPDATE_MESSAGES", 1).await;
        relay.sandbox.script().fail(event_rule("refused").status(400));
        relay.sandbox.virtual_agent_posts(&group, vec![agent_item("m-1", "taken"), agent_item("m-2", "refused")]).await.unwrap();
        relay.until("both receipts", |relay| {
            let notes: Vec<Value> = asked(relay, "UPDATE_MESSAGES").into_iter()
                .flat_map(|request| request["message"].as_array().unwrap().clone()).collect();
            let wanted = [
                json!({ "id": "m-1", "status": "sent_to_user" }), json!({ "id": "m-2", "status": "external_error" }),
            ];
            if wanted.iter().all(|note| notes.contains(note)) { Ok(()) } else { Err(format!("{notes:?}")) }
        }).await;
        assert_eq!(relay.dead_letters_at_least(1).await[0]["reason"], "rejected");
        // A receipt that fails has no consequence.
        relay.sandbox.script().fail(FaultRule::new(Side::ServiceNow).operation(Operation::Other).hang());
        relay.sandbox.agent_says(&group, "after all").await.unwrap();
        relay.say("c-1", "thanks").await;
        hears_text(&relay, "c-1", "after all").await;
        says(&relay, &group, &["hello from c-1", "thanks"]).await;
    }

    async fn a_crash_between_the_request_and_its_callback_opens_one_chat(bench: Bench) {
        let relay = plan(&bench).start();
        let mut relay = relay.await;
        // No callback arrives yet, so the start has no sign.
        relay.start("c-1").await;
        asks(&relay, "START_CONVERSATION", 1).await;
        relay.processes[0].running.kill9();
        relay.processes[0].running.exit(PATIENCE).await;
        let url = format!("{}/v1/callbacks/servicenow?token=callback-token", relay.processes[0].public_url());
        relay.sandbox.set_callback(Some(CallbackSettings::to(url)));
        relay.processes[0].restart();
        relay.ready().await;
        relay.reaches("c-1", "waiting").await;
        let group = group_of(&relay, "c-1").await;
        assert_eq!(relay.sandbox.groups(), std::slice::from_ref(&group));
        assert_eq!(asks(&relay, "START_CONVERSATION", 2).await.len(), 2);
        relay.sandbox.agent_accept(&group).await.unwrap();
        relay.reaches("c-1", "active").await;
        assert_eq!(count(&relay, "c-1", "waiting"), 1);
    }

    async fn older_apps_are_understood(bench: Bench) {
        let switches = VirtualAgentSwitches {
            nameless: true, labels: true, writes_false: true, forgets_variables: true, hides_names: true,
            ..VirtualAgentSwitches::default()
        };
        let relay = started(plan(&bench), switches).await;
        let group = with_agent(&relay, "c-1").await;
        relay.sandbox.agent_says(&group, "ok").await.unwrap();
        relay.sandbox.agent_says(&group, "ok").await.unwrap();
        relay.say("c-1", "fine").await;
        says(&relay, &group, &["hello from c-1", "fine"]).await;
        relay.sandbox.agent_closes(&group).await.unwrap();
        hears(&relay, "c-1", "callback.ended").await;
        let heard = heard(&relay, "c-1");
        assert_eq!(heard.iter().filter(|said| *said == "ok").count(), 2, "two messages, though none has a name");
        assert_eq!(asked(&relay, "UPDATE_MESSAGES"), [Value::Null; 0]);
    }

    async fn a_failure_in_a_success_is_a_failure(bench: Bench) {
        let relay = started(plan(&bench), VirtualAgentSwitches::default()).await;
        let group = with_agent(&relay, "c-1").await;
        let message = || FaultRule::new(Side::ServiceNow).operation(Operation::Message);
        let failure = |words: &str| json!({ "status": "failure", "error": { "message": words, "detail": null } }).to_string();
        relay.sandbox.script().fail(message().times(2).status_with(200, failure("The worker is busy")));
        relay.say("c-1", "one").await;
        says(&relay, &group, &["hello from c-1", "one"]).await;
        relay.sandbox.script().fail(message().times(1).status_with(200, failure("Missing parameter: userId")));
        relay.say("c-1", "two").await;
        assert_eq!(relay.dead_letters_at_least(1).await[0]["reason"], "rejected");
        relay.sandbox.script().fail(message().times(1).status_with(200, failure("The conversation has ended")));
        relay.say("c-1", "three").await;
        relay.reaches("c-1", "ended").await;
        assert_eq!(hears(&relay, "c-1", "callback.ended").await["reason"], "gone");
        assert_eq!(relay.dead_letters_at_least(2).await.iter().filter(|dead| dead["reason"] == "conversation_over").count(), 1);
    }
}
