//! Tests that at a handoff the agent sees the earlier messages of the user and the bot, on both of ServiceNow's APIs. A
//! chat never waits longer than 2 seconds for these messages, and never opens twice because of them.

use std::time::Duration;

use causeway::sandbox::{CallbackSettings, FaultRule, Operation, Side};
use serde_json::{Value, json};

use crate::harness::relay::{Plan, Relay};
use crate::harness::xo::{FakeXo, history_item};

/// The history in XO's order, newest first (`src/platform/xo/FACTS.md`): the `text` of a template is JSON, and there
/// are marker texts.
fn history() -> Vec<Value> {
    let template = json!({"type": "template", "payload": {"template_type": "button", "text": "Shall I call an agent?",
        "buttons": [{"title": "Yes"}, {"title": "No"}]}});
    vec![
        history_item("incoming", "Yes", 5),
        history_item("outgoing", &template.to_string(), 4),
        history_item("incoming", "my laptop is broken", 3),
        history_item("outgoing", "Hello!", 2),
        history_item("incoming", "INITIAL DIALOG", 1),
    ]
}

const READ: &str = "Yes\n\nFrom: Ada Lovelace <ada@example.com>\n\nBefore:\nbot: Hello!\nuser: my laptop is broken\n\
                    bot: Shall I call an agent? [Yes] [No]";

/// The only chat. The sandbox has it before its ledger has the request with the first words.
async fn chat(relay: &Relay) -> String {
    relay
        .until("a chat", |relay| match relay.sandbox.groups().as_slice() {
            [group] if !relay.said(group).is_empty() => Ok(()),
            some => Err(format!("{} chats; {}", some.len(), relay.processes[0].running.stderr())),
        })
        .await;
    relay.sandbox.groups().remove(0)
}

on_every_engine! {
    async fn the_agent_reads_what_was_said_before(bench: Bench) {
        let xo = FakeXo::start().await;
        xo.set(|behaviour| behaviour.history = history());
        let relay = xo.settings(Plan::on(&bench)).start().await;
        xo.transfers(&relay, "u-1", "Yes").await;
        let group = chat(&relay).await;
        assert_eq!(relay.said(&group), [READ]);
        // The call is in `src/platform/xo/FACTS.md`: GET {baseUrl}/getMessages?skip&limit&userId, header `auth`.
        let asked = xo.asked("/getMessages");
        assert_eq!(asked.len(), 1);
        assert!(asked[0].signed && asked[0].method == "GET", "{asked:?}");
        assert_eq!(asked[0].query, "skip=0&limit=20&userId=u-1");
        assert_eq!(asked[0].path, format!("/api/botsdk/stream/{}/getMessages", xo.bot.bot_id));
    }

    async fn a_chat_opens_although_xo_does_not_answer(bench: Bench) {
        let xo = FakeXo::start().await;
        xo.set(|behaviour| behaviour.history_takes = Duration::from_secs(60));
        let relay = xo.settings(Plan::on(&bench)).start().await;
        xo.transfers(&relay, "u-1", "Yes").await;
        let group = chat(&relay).await;
        assert_eq!(relay.said(&group), ["Yes\n\nFrom: Ada Lovelace <ada@example.com>"]);
        assert_eq!(relay.dead_letters().await, Vec::<Value>::new());
    }

    async fn a_start_whose_answer_was_lost_opens_one_chat_whatever_was_said_since(bench: Bench) {
        let xo = FakeXo::start().await;
        xo.set(|behaviour| behaviour.history = history());
        let mut relay = xo.settings(Plan::on(&bench)).start().await;
        let slow = FaultRule::new(Side::ServiceNow).operation(Operation::Start).times(1).after();
        relay.sandbox.script().fail(slow.delay(Duration::from_secs(8)));
        xo.transfers(&relay, "u-1", "Yes").await;
        let group = chat(&relay).await;
        relay.processes[0].running.kill9();
        xo.set(|behaviour| behaviour.history.insert(0, history_item("outgoing", "Please wait.", 6)));
        relay.processes[0].restart();
        relay.ready().await;
        relay.until("the session to begin", |_| match xo.asked("/startAgentSession/").len() {
            0 => Err("not yet".to_owned()),
            _ => Ok(()),
        }).await;
        relay.metric_is("causeway_queue_messages", &[], |waiting| waiting == 0.0).await;
        assert_eq!(relay.sandbox.groups(), std::slice::from_ref(&group), "the chat of the lost answer is the chat");
        assert_eq!(relay.said(&group), [READ]);
        // Another user with the same first message has a separate chat.
        xo.transfers(&relay, "u-2", "Yes").await;
        relay.until("the other chat", |relay| match relay.sandbox.groups().len() {
            2 => Ok(()),
            some => Err(format!("{some} chats")),
        }).await;
    }

    async fn over_the_virtual_agent_api_it_is_the_history(bench: Bench) {
        let xo = FakeXo::start().await;
        xo.set(|behaviour| behaviour.history = history());
        let relay = xo.settings(Plan::on(&bench).set("servicenow.api", "virtual_agent")).start().await;
        let url = format!("{}/v1/callbacks/servicenow?token=callback-token", relay.processes[0].public_url());
        relay.sandbox.set_callback(Some(CallbackSettings::to(url)));
        xo.transfers(&relay, "u-1", "Yes").await;
        chat(&relay).await;
        let asked = relay.sandbox.ledger().find(|entry| entry.path.contains("sn_va_as_service") && !entry.outbound);
        let request: Value = serde_json::from_str(&asked[0].body).unwrap();
        // The fields are in `src/platform/servicenow/FACTS.md`: history {isBotMessage, value, displayName, type:"text",
        // timestamp (13 digits)}.
        let line = |is_bot: bool, name: &str, text: &str, second: u64| json!({"isBotMessage": is_bot, "value": text,
            "displayName": name, "type": "text", "timestamp": format!("{}", 1_795_849_200_000_u64 + second * 1000)});
        assert_eq!(request["history"], json!([
            line(true, "bot", "Hello!", 2), line(false, "Ada Lovelace", "my laptop is broken", 3),
            line(true, "bot", "Shall I call an agent? [Yes] [No]", 4),
        ]));
        assert!(request["message"]["text"].as_str().is_some_and(|text| text.starts_with("Yes\n")), "{request}");
    }
}
