//! Promise: the rows that ServiceNow holds decide on what a user is told over Connect Support. A callback is a copy that a clone of the
//! instance can post as well. What is not known of reading rows back is a switch of the sandbox.

use causeway::sandbox::{BodyStyle, RowSwitches, SandboxSwitches};

use crate::gaps::{heard, hears, lose_next, of_type, often, plan, reads, started, talking};
use crate::harness::matrix::{Bench, Engine};
use crate::harness::relay::Relay;

async fn relay(bench: &Bench, style: BodyStyle, rows: RowSwitches) -> Relay {
    let switches = SandboxSwitches { rows, ..SandboxSwitches::default() };
    started(plan(bench).sandbox(|sandbox| sandbox.switches = switches), style).await
}

fn embedded() -> Bench {
    Engine::Embedded.bench().expect("it is always there")
}

on_every_engine! {
    // A clone copies rules, credentials and open chats with the same sys_ids (FACTS.md). Its rows are its own. Also a rule that
    // names the message before shows no gap.
    async fn callbacks_of_a_clone_are_not_relayed(bench: Bench) {
        for (name, style) in [("c-stock", BodyStyle::StockScript), ("c-own", BodyStyle::OwnRule)] {
            let relay = relay(&bench, style, RowSwitches::default()).await;
            let group = talking(&relay, name).await;
            relay.sandbox.clone_says(&group, "of a clone").await.unwrap();
            relay.sandbox.agent_says(&group, "of the agent").await.unwrap();
            assert_eq!(heard(&relay, name, 2).await, ["of the agent"]);
            assert_eq!(relay.metric("causeway_unconfirmed_callbacks_total", &[]).await, 1.0);
            assert_eq!(relay.dead_letters().await.len(), 0);
        }
    }

    async fn the_row_counts_and_not_the_copy(bench: Bench) {
        let relay = relay(&bench, BodyStyle::StockScript, RowSwitches::default()).await;
        let group = talking(&relay, "c-1").await;
        lose_next(&relay);
        relay.sandbox.agent_says(&group, "Tom &amp; Jerry").await.unwrap();
        let row = relay.sandbox.messages(&group).pop().unwrap();
        relay.callback(&group, "what a forger wrote", &row.sys_id).await.id();
        assert_eq!(heard(&relay, "c-1", 2).await, ["Tom & Jerry"]);
        let event = of_type(&relay, "c-1", "callback.message").pop().unwrap();
        assert_eq!(event["agent"], row.created_by.as_str());
        // A note among agents, whatever the callback says of it.
        lose_next(&relay);
        relay.sandbox.agent_whispers(&group, "a secret").await.unwrap();
        let note = relay.sandbox.messages(&group).pop().unwrap();
        relay.callback(&group, "a secret", &note.sys_id).await.id();
        relay.sandbox.agent_says(&group, "and now").await.unwrap();
        assert_eq!(heard(&relay, "c-1", 3).await, ["Tom & Jerry", "and now"]);
    }
}

/// The rule runs inside of the agent's transaction (FACTS.md), so its callback can be faster than the row.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_appears_after_its_callback_is_told() {
    let bench = embedded();
    let relay = relay(&bench, BodyStyle::StockScript, RowSwitches::default()).await;
    let group = talking(&relay, "c-1").await;
    let rows = RowSwitches { shown_after_ms: 1_000, ..RowSwitches::default() };
    relay.sandbox.set_switches(SandboxSwitches { rows, ..SandboxSwitches::default() });
    let before = reads(&relay);
    relay.sandbox.agent_says(&group, "one").await.unwrap();
    assert_eq!(heard(&relay, "c-1", 2).await, ["one"]);
    assert!(reads(&relay) - before < 12, "{} pages for two readings", reads(&relay) - before);
    assert_eq!(relay.metric("causeway_unconfirmed_callbacks_total", &[]).await, 0.0);
}

/// FACTS.md: nothing is known of `before` but that the browser client sends it.
#[tokio::test(flavor = "multi_thread")]
async fn order_does_not_depend_on_the_page_that_is_asked_for() {
    let bench = embedded();
    let rows = RowSwitches { ignores_before: true, ..RowSwitches::default() };
    let relay = relay(&bench, BodyStyle::StockScript, rows).await;
    let group = talking(&relay, "c-1").await;
    let texts: Vec<String> = (0..70).map(|n| format!("line {n}")).collect();
    for (number, text) in texts.iter().enumerate() {
        // Some callbacks are lost, so that later ones bring two.
        if number % 3 == 1 {
            lose_next(&relay);
        }
        relay.sandbox.agent_says(&group, text).await.unwrap();
        // An instance like this shows the newest page alone.
        if number % 30 == 29 {
            heard(&relay, "c-1", number + 2).await;
        }
    }
    assert_eq!(heard(&relay, "c-1", 71).await, texts);
}

/// FACTS.md: whether GET messages returns internal rows, and says that they are internal, is not known.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_internal_if_its_callback_alone_says_so() {
    let bench = embedded();
    let rows = RowSwitches { hides_internal: true, ..RowSwitches::default() };
    let switches = SandboxSwitches { rows, ..SandboxSwitches::default() };
    let plan = often(plan(&bench)).sandbox(|sandbox| sandbox.switches = switches);
    let relay = started(plan, BodyStyle::OwnRule).await;
    let group = talking(&relay, "c-1").await;
    relay.sandbox.agent_whispers(&group, "a secret").await.unwrap();
    relay.sandbox.agent_says(&group, "and now").await.unwrap();
    assert_eq!(heard(&relay, "c-1", 2).await, ["and now"]);
    let looked = reads(&relay);
    relay
        .until("two more looks", |relay| match reads(relay) - looked {
            0 | 1 => Err("not yet".to_owned()),
            _ => Ok(()),
        })
        .await;
    relay.sandbox.agent_closes(&group).await.unwrap();
    hears(&relay, "c-1", "callback.ended").await;
    let told = of_type(&relay, "c-1", "callback.message");
    assert!(!told.iter().any(|event| event["message"] == "a secret"), "{told:?}");
}

/// FACTS.md: an HTML sanitizer writes some characters as decimal references.
#[tokio::test(flavor = "multi_thread")]
async fn a_sanitized_text_reads_as_it_was_written() {
    let bench = embedded();
    let rows = RowSwitches { sanitizes: true, ..RowSwitches::default() };
    let relay = relay(&bench, BodyStyle::Stringify, rows).await;
    let group = talking(&relay, "c-1").await;
    let texts =
        ["https://kb.example/sp?id=kb&no=7+8", "type `ip a` or \"ipconfig\"", "it's <done>, me@example.com"];
    for text in texts {
        relay.sandbox.agent_says(&group, text).await.unwrap();
    }
    assert_eq!(heard(&relay, "c-1", 4).await, texts);
}
