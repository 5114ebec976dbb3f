//! Tests that a lost callback loses no message. The chat is read back, and the bot side receives the agent's messages
//! in their order, each once. No conversation waits without a limit, and no text ends a chat.

use causeway::sandbox::{
    BodyStyle, CallbackSettings, FaultRule, Operation, SandboxQueue, SandboxSettings, SandboxSwitches, Side,
};
use serde_json::{Value, json};

use crate::harness::matrix::{Bench, Engine};
use crate::harness::relay::{Plan, Relay};

const SECOND_QUEUE: &str = "9d385017c611228701d22104cc95c371";

/// Reads chats back when told to, and otherwise hardly ever.
pub(crate) fn plan(bench: &Bench) -> Plan {
    Plan::on(bench)
        .set("servicenow.poll_waiting", "200ms")
        .set("servicenow.poll_active", "1h")
        .set("delivery.retry.max", "1s")
        .set("xo.callback_url", "")
}

pub(crate) fn often(plan: Plan) -> Plan {
    plan.set("servicenow.poll_active", "200ms")
}

pub(crate) async fn started(plan: Plan, style: BodyStyle) -> Relay {
    let relay = plan.start().await;
    let url = format!("{}/v1/callbacks/servicenow?token=callback-token", relay.processes[0].public_url());
    relay.sandbox.set_callback(Some(CallbackSettings { style, ..CallbackSettings::to(url) }));
    relay
}

/// An open chat with an agent, whose greeting was heard.
pub(crate) async fn talking(relay: &Relay, conversation: &str) -> String {
    let group = relay.open(conversation).await;
    relay.sandbox.agent_accept(&group).await.unwrap();
    relay.reaches(conversation, "active").await;
    heard(relay, conversation, 1).await;
    group
}

fn events(relay: &Relay, conversation: &str) -> Vec<Value> {
    let entries = relay.sandbox.ledger().events().remove(conversation).unwrap_or_default();
    entries.iter().map(|entry| serde_json::from_str(&entry.body).unwrap()).collect()
}

pub(crate) fn of_type(relay: &Relay, conversation: &str, kind: &str) -> Vec<Value> {
    events(relay, conversation).into_iter().filter(|event| event["type"] == kind).collect()
}

fn texts(relay: &Relay, conversation: &str) -> Vec<String> {
    let messages = of_type(relay, conversation, "callback.message");
    messages.iter().map(|event| event["message"].as_str().unwrap().to_owned()).collect()
}

/// Waits for so many messages after the greeting; returns their texts.
pub(crate) async fn heard(relay: &Relay, conversation: &str, count: usize) -> Vec<String> {
    relay
        .until(&format!("{conversation} to hear {count} messages"), |relay| {
            let texts = texts(relay, conversation);
            if texts.len() >= count { Ok(()) } else { Err(format!("{texts:?}")) }
        })
        .await;
    texts(relay, conversation).split_off(1)
}

pub(crate) async fn hears(relay: &Relay, conversation: &str, kind: &str) -> Value {
    relay
        .until(&format!("{conversation} to hear {kind}"), |relay| {
            let told = of_type(relay, conversation, kind);
            if told.is_empty() { Err(format!("{:?}", events(relay, conversation))) } else { Ok(()) }
        })
        .await;
    of_type(relay, conversation, kind).remove(0)
}

/// The callback of the agent's next words is lost.
pub(crate) fn lose_next(relay: &Relay) {
    let rule = FaultRule::new(Side::ServiceNow).operation(Operation::Callback);
    relay.sandbox.script().fail(rule.times(1).cut());
}

pub(crate) fn reads(relay: &Relay) -> u64 {
    relay.sandbox.ledger().total(Side::ServiceNow, Operation::Read).arrived
}

async fn a_gap_is_closed_in_order(relay: &Relay) {
    let group = talking(relay, "c-1").await;
    relay.sandbox.agent_says(&group, "one").await.unwrap();
    lose_next(relay);
    relay.sandbox.agent_says(&group, "two").await.unwrap();
    lose_next(relay);
    relay.sandbox.agent_says(&group, "three").await.unwrap();
    relay.sandbox.agent_says(&group, "four").await.unwrap();
    assert_eq!(heard(relay, "c-1", 5).await, ["one", "two", "three", "four"]);
    assert!(relay.metric("causeway_repaired_messages_total", &[]).await >= 2.0);
    let ids: Vec<Value> =
        of_type(relay, "c-1", "callback.message").into_iter().map(|event| event["id"].clone()).collect();
    let mut unique = ids.clone();
    unique.dedup();
    assert_eq!(ids, unique);
}

on_every_engine! {
    async fn a_lost_message_is_relayed_before_later_messages(bench: Bench) {
        a_gap_is_closed_in_order(&started(plan(&bench), BodyStyle::StockScript).await).await;
    }

    async fn our_own_rule_shows_the_gap_and_costs_no_call_without_one(bench: Bench) {
        let relay = started(plan(&bench).set("servicenow.read_back", "gaps"), BodyStyle::OwnRule).await;
        let group = talking(&relay, "c-0").await;
        let before = reads(&relay);
        let texts: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        for text in &texts {
            relay.sandbox.agent_says(&group, text).await.unwrap();
        }
        assert_eq!(heard(&relay, "c-0", 21).await, texts);
        // The arrival of the agent was polled meanwhile. Reading back for each message would make twenty calls.
        assert!(reads(&relay) - before < 10, "{}", reads(&relay) - before);
        a_gap_is_closed_in_order(&relay).await;
    }

    async fn a_greeting_that_came_before_its_chat_was_known_is_told_once(bench: Bench) {
        let callbacks = Plan::on(&bench).set("servicenow.poll_waiting", "200ms");
        let plan = callbacks.set("servicenow.poll_active", "200ms").set("delivery.retry.max", "1s");
        let relay = started(plan, BodyStyle::StockScript).await;
        // The chat is opened, but the answer and the poll are lost.
        let script = relay.sandbox.script();
        let start = || FaultRule::new(Side::ServiceNow).operation(Operation::Start);
        script.fail(start().after().times(1).cut());
        for operation in [Operation::Start, Operation::State, Operation::Read] {
            script.fail(FaultRule::new(Side::ServiceNow).operation(operation).status(503));
        }
        relay.start("c-1").await;
        relay.until("the chat", |relay| match relay.sandbox.groups().len() {
            1 => Ok(()),
            count => Err(format!("{count} groups")),
        }).await;
        let group = relay.sandbox.groups().remove(0);
        relay.sandbox.agent_accept(&group).await.unwrap();
        relay.until("the greeting at XO's Callback URL", |relay| {
            let forwarded = relay.called_back();
            if forwarded.contains_key(&group) { Ok(()) } else { Err(format!("{forwarded:?}")) }
        }).await;
        relay.sandbox.script().clear();
        relay.reaches("c-1", "active").await;
        heard(&relay, "c-1", 1).await;
        relay.sandbox.agent_says(&group, "one").await.unwrap();
        assert_eq!(heard(&relay, "c-1", 2).await, ["one"]);
        let looked = reads(&relay);
        relay.until("another look", |relay| {
            if reads(relay) > looked + 2 { Ok(()) } else { Err(format!("{}", reads(relay))) }
        }).await;
        let mut wanted = relay.called_back().remove(&group).unwrap();
        wanted.push("one".to_owned());
        assert_eq!(texts(&relay, "c-1"), wanted);
    }

    async fn the_schedule_finds_what_nothing_came_after(bench: Bench) {
        let relay = started(often(plan(&bench)), BodyStyle::Stringify).await;
        let group = talking(&relay, "c-1").await;
        lose_next(&relay);
        relay.sandbox.agent_says(&group, "are you still there?").await.unwrap();
        assert_eq!(heard(&relay, "c-1", 2).await, ["are you still there?"]);
        relay.metric_is("causeway_repaired_messages_total", &[], |count| count >= 1.0).await;
        assert_eq!(relay.dead_letters().await.len(), 0);
    }

    async fn the_last_words_are_told_before_the_end(bench: Bench) {
        let relay = started(often(plan(&bench)), BodyStyle::Stringify).await;
        for (conversation, agent_ends) in [("c-agent", true), ("c-user", false)] {
            let group = talking(&relay, conversation).await;
            // No poll succeeds until the chat is over.
            relay.sandbox.script().fail(FaultRule::new(Side::ServiceNow).operation(Operation::State).status(503));
            lose_next(&relay);
            relay.sandbox.agent_says(&group, "goodbye").await.unwrap();
            if agent_ends {
                lose_next(&relay);
                relay.sandbox.agent_closes(&group).await.unwrap();
            } else {
                relay.end(conversation).await;
            }
            relay.sandbox.script().clear();
            hears(&relay, conversation, "callback.ended").await;
            let told = events(&relay, conversation);
            let place = |wanted: &dyn Fn(&Value) -> bool| told.iter().position(wanted);
            let words = place(&|event| event["message"] == "goodbye");
            let end = place(&|event| event["type"] == "callback.ended");
            assert!(words.is_some() && words < end, "{told:?}");
            assert_eq!(of_type(&relay, conversation, "callback.ended").len(), 1, "{told:?}");
        }
    }

    // No message to ServiceNow waits that could be the probe.
    async fn a_recovery_is_noticed_by_looks_alone(bench: Bench) {
        let relay = started(often(plan(&bench)), BodyStyle::Stringify).await;
        let group = talking(&relay, "c-1").await;
        let state = ("causeway_breaker_state", [("destination", "servicenow")]);
        relay.sandbox.script().fail(FaultRule::new(Side::ServiceNow).operation(Operation::State).html_page());
        relay.metric_is(state.0, &state.1, |state| state > 0.0).await;
        relay.sandbox.script().clear();
        relay.metric_is(state.0, &state.1, |state| state == 0.0).await;
        lose_next(&relay);
        relay.sandbox.agent_says(&group, "one").await.unwrap();
        assert_eq!(heard(&relay, "c-1", 2).await, ["one"]);
    }

    async fn a_bot_side_that_is_down_gets_each_word_once(bench: Bench) {
        let relay = started(often(plan(&bench)), BodyStyle::Stringify).await;
        let group = talking(&relay, "c-1").await;
        relay.sandbox.script().fail(FaultRule::new(Side::Events).status(503));
        let seen = reads(&relay);
        for text in ["one", "two", "three"] {
            lose_next(&relay);
            relay.sandbox.agent_says(&group, text).await.unwrap();
        }
        relay.until("several looks", |relay| {
            if reads(relay) >= seen + 5 { Ok(()) } else { Err(format!("{}", reads(relay))) }
        }).await;
        relay.sandbox.script().clear();
        assert_eq!(heard(&relay, "c-1", 4).await, ["one", "two", "three"]);
        relay.metric_is("causeway_queue_messages", &[], |count| count == 0.0).await;
        assert_eq!(texts(&relay, "c-1").len(), 4);
    }

    async fn internal_messages_of_agents_are_not_relayed(bench: Bench) {
        for (name, style) in [("c-own", BodyStyle::OwnRule), ("c-stock", BodyStyle::StockScript)] {
            let relay = started(often(plan(&bench)), style).await;
            let group = talking(&relay, name).await;
            relay.sandbox.agent_whispers(&group, "this one is difficult").await.unwrap();
            lose_next(&relay);
            relay.sandbox.agent_whispers(&group, "very").await.unwrap();
            relay.sandbox.agent_says(&group, "See @L[https://kb.example/1|the article], @M[0a1b|Ada]").await.unwrap();
            assert_eq!(heard(&relay, name, 2).await, ["See the article (https://kb.example/1), Ada"]);
            relay.sandbox.agent_closes(&group).await.unwrap();
            hears(&relay, name, "callback.ended").await;
            let texts = texts(&relay, name);
            assert!(!texts.iter().any(|text| text.contains("difficult") || text == "very"), "{texts:?}");
        }
    }

    async fn no_word_ends_a_chat(bench: Bench) {
        let relay = started(often(plan(&bench)), BodyStyle::Stringify).await;
        let group = talking(&relay, "c-1").await;
        relay.sandbox.agent_says(&group, "Beth Anglin has closed the support session").await.unwrap();
        relay.sandbox.agent_says(&group, "only joking").await.unwrap();
        assert_eq!(heard(&relay, "c-1", 3).await[1], "only joking");
        relay.say("c-1", "I am still here").await;
        relay.until("the user's words", |relay| {
            let said = relay.said(&group);
            if said.len() == 2 { Ok(()) } else { Err(format!("{said:?}")) }
        }).await;
        assert_eq!(relay.conversation("c-1").await.body["state"], "active");
    }

    async fn one_empty_answer_ends_no_chat(bench: Bench) {
        let relay = started(often(plan(&bench)), BodyStyle::Stringify).await;
        let group = talking(&relay, "c-1").await;
        let state = FaultRule::new(Side::ServiceNow).operation(Operation::State);
        relay.sandbox.script().fail(state.times(1).status_with(200, r#"{"result":[]}"#));
        let looks = || relay.sandbox.ledger().total(Side::ServiceNow, Operation::State).arrived;
        let before = looks();
        relay.until("two more looks", |_| match looks() - before {
            0 | 1 => Err("not yet".to_owned()),
            _ => Ok(()),
        }).await;
        relay.sandbox.agent_says(&group, "still here").await.unwrap();
        assert_eq!(heard(&relay, "c-1", 2).await, ["still here"]);
        assert_eq!(of_type(&relay, "c-1", "callback.ended"), Vec::<Value>::new());
        assert_eq!(relay.conversation("c-1").await.body["state"], "active");
    }

    async fn a_chat_goes_on_in_the_queue_that_it_was_passed_to(bench: Bench) {
        for (name, renames) in [("c-stays", false), ("c-renamed", true)] {
            let switches = SandboxSwitches { escalation_renames: renames, ..SandboxSwitches::default() };
            let plan = often(plan(&bench)).sandbox(|sandbox| two_queues(sandbox, switches));
            let relay = started(plan, BodyStyle::Stringify).await;
            let first = talking(&relay, name).await;
            relay.sandbox.agent_escalates(&first).unwrap();
            relay.reaches(name, "waiting").await;
            let groups = relay.sandbox.groups();
            let next = groups.iter().find(|group| **group != first).unwrap_or(&first).clone();
            assert_eq!(renames, next != first);
            relay.until("the chat in its queue", |relay| {
                let waits = events(relay, name);
                let last = waits.iter().rev().find(|event| event["event"] == "waiting" || event["event"] == "left");
                if last.is_some_and(|event| event["group"] == next.as_str()) { Ok(()) } else { Err(format!("{waits:?}")) }
            }).await;
            relay.sandbox.agent_accept(&next).await.unwrap();
            relay.reaches(name, "active").await;
            // The waiting time is measured to the first agent only. The second agent meets a user who has had one.
            relay.metric_is("causeway_agent_wait_seconds_count", &[], |count| count == 1.0).await;
            relay.say(name, "second line?").await;
            relay.until("the words in the second chat", |relay| {
                let said = relay.said(&next);
                if said.last().is_some_and(|text| text == "second line?") { Ok(()) } else { Err(format!("{said:?}")) }
            }).await;
            assert_eq!(of_type(&relay, name, "callback.ended"), Vec::<Value>::new());
            relay.sandbox.agent_closes(&next).await.unwrap();
            hears(&relay, name, "callback.ended").await;
        }
    }

    async fn a_message_waits_for_a_limited_time(bench: Bench) {
        let relay = started(plan(&bench).set("servicenow.wait_limit", "1s"), BodyStyle::Stringify).await;
        let group = relay.open("c-1").await;
        let failed = hears(&relay, "c-1", "handoff.failed").await;
        assert_eq!(failed["reason"], "waited_too_long");
        relay.reaches("c-1", "failed").await;
        relay.until("the chat to be left", |relay| match relay.sandbox.state(&group) {
            Some(8) => Ok(()),
            state => Err(format!("{state:?}")),
        }).await;
        assert_eq!(of_type(&relay, "c-1", "handoff.failed").len(), 1);
        assert_eq!(relay.dead_letters().await.len(), 0);
    }

    async fn a_silent_chat_is_ended(bench: Bench) {
        let relay = started(often(plan(&bench)).set("servicenow.idle_limit", "4s"), BodyStyle::Stringify).await;
        let group = talking(&relay, "c-1").await;
        let ended = hears(&relay, "c-1", "callback.ended").await;
        assert_eq!(ended["reason"], "idle");
        assert_eq!(relay.sandbox.state(&group), Some(7));
        assert_eq!(of_type(&relay, "c-1", "callback.ended").len(), 1);
    }
}

fn two_queues(sandbox: &mut SandboxSettings, switches: SandboxSwitches) {
    sandbox.switches = switches;
    let second = SandboxQueue {
        id: SECOND_QUEUE.to_owned(),
        name: "Second line".to_owned(),
        ..SandboxQueue::default()
    };
    sandbox.queues =
        vec![SandboxQueue { escalate_to: Some(SECOND_QUEUE.to_owned()), ..SandboxQueue::default() }, second];
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_told_of_an_expired_start_during_an_outage() {
    let bench = Engine::Embedded.bench().unwrap();
    let relay = started(plan(&bench).set("servicenow.wait_limit", "1h"), BodyStyle::Stringify).await;
    let group = relay.open("c-1").await;
    // ServiceNow is down when the limit is reached. The user is notified anyway, and the chat is left later.
    relay.sandbox.script().fail(FaultRule::new(Side::ServiceNow).status(503));
    let mut impatient = relay;
    impatient.stop().await;
    impatient.processes[0].set("servicenow.wait_limit", "1s");
    impatient.processes[0].restart();
    impatient.ready().await;
    let failed = hears(&impatient, "c-1", "handoff.failed").await;
    assert_eq!(failed["reason"], json!("waited_too_long"));
    assert_eq!(impatient.sandbox.state(&group), Some(1));
    impatient.sandbox.script().clear();
    impatient
        .until("the chat to be left", |relay| match relay.sandbox.state(&group) {
            Some(8) => Ok(()),
            state => Err(format!("{state:?}")),
        })
        .await;
}

// The queue has no part in this, and the reading is given up only after half a minute: one engine.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_heard_while_servicenow_answers_nothing() {
    let bench = Engine::Embedded.bench().expect("it is always there");
    let relay = started(often(plan(&bench)), BodyStyle::Stringify).await;
    let group = talking(&relay, "c-1").await;
    relay.sandbox.script().fail(FaultRule::new(Side::ServiceNow).operation(Operation::Read).hang());
    lose_next(&relay);
    relay.sandbox.agent_says(&group, "one").await.unwrap();
    relay.sandbox.agent_says(&group, "two").await.unwrap();
    assert_eq!(heard(&relay, "c-1", 2).await, ["two"]);
    relay.sandbox.script().clear();
    relay.sandbox.agent_says(&group, "three").await.unwrap();
    // A late message is better than a lost one.
    let mut all = heard(&relay, "c-1", 4).await;
    all.sort_unstable();
    assert_eq!(all, ["one", "three", "two"]);
}
