//! Tests that an agent's message over the Virtual Agent API is relayed although its callback was lost, if the user may read
//! `sys_cs_message`.
//!
//! Facts: `src/platform/servicenow/FACTS.md`. SN-63: `messageId` of a callback is the sys_id of a row of this table. SN-64: the
//! query and the fields of public programs. Which roles read the table, and how a payload is written, is not documented, so the
//! sandbox has switches.

use causeway::sandbox::{
    ChatTableAccess, ConversationRowSwitches, LedgerEntry, RowPayload, SandboxSwitches, VirtualAgentSwitches,
};
use serde_json::Value;

use crate::gaps::{lose_next, often};
use crate::harness::matrix::{Bench, Engine};
use crate::harness::relay::{PATIENCE, Relay};
use crate::virtual_agent::{hears, hears_text, plan, started, told, with_agent};

const READ_BACK: &str = "read back from sys_cs_message";

/// A chat with an agent, whose greeting was heard.
async fn talking(bench: &Bench, access: ChatTableAccess, payload: RowPayload) -> (Relay, String) {
    let plan = often(plan(bench)).set("servicenow.poll_waiting", "200ms");
    let relay = started(plan, VirtualAgentSwitches::default()).await;
    let conversation_rows = ConversationRowSwitches { access, payload };
    relay.sandbox.set_switches(SandboxSwitches { conversation_rows, ..SandboxSwitches::default() });
    let group = with_agent(&relay, "c-1").await;
    relay
        .until("the greeting", |relay| match of_agent(relay).len() {
            0 => Err("nothing was heard".to_owned()),
            _ => Ok(()),
        })
        .await;
    (relay, group)
}

/// The agent's messages that the user read.
fn of_agent(relay: &Relay) -> Vec<String> {
    let of_agent = told(relay, "c-1").into_iter().filter(|event| event["from"] == "agent");
    of_agent.map(|event| event["message"].as_str().unwrap_or_default().to_owned()).collect()
}

/// The same without the greeting.
fn said(relay: &Relay) -> Vec<String> {
    of_agent(relay).split_off(1)
}

async fn says(relay: &Relay, group: &str, text: &str) {
    relay.sandbox.agent_says(group, text).await.unwrap();
}

async fn unread(relay: &Relay, group: &str, text: &str) {
    lose_next(relay);
    says(relay, group, text).await;
}

/// SN-63 and SN-64.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_callback_is_repaired_in_order_and_once() {
    let bench = Engine::Embedded.bench().expect("it is always there");
    let (mut relay, group) = talking(&bench, ChatTableAccess::All, RowPayload::Text).await;
    relay.processes[0].running.line(READ_BACK, PATIENCE).await;
    // No callback has ever had a row of this kind.
    relay.sandbox.agent_whispers(&group, "a note among agents").await.unwrap();
    unread(&relay, &group, "one").await;
    says(&relay, &group, "two").await;
    hears_text(&relay, "c-1", "two").await;
    assert_eq!(said(&relay), ["one", "two"], "the row comes before the callback of a later message");
    unread(&relay, &group, "three \"quoted\"").await;
    relay.sandbox.agent_closes(&group).await.unwrap();
    hears(&relay, "c-1", "callback.ended").await;
    assert_eq!(said(&relay), ["one", "two", "three \"quoted\""], "the row comes before the end");
    relay.metric_is("causeway_repaired_messages_total", &[], |count| count == 2.0).await;
    assert_eq!(relay.metric("causeway_unreadable_rows_total", &[]).await, 0.0);
    assert_eq!(relay.dead_letters().await.len(), 0);
}

/// SN-50: a callback may come late or twice. SN-63: it has the id of its row.
#[tokio::test(flavor = "multi_thread")]
async fn a_callback_after_the_reading_is_not_relayed_again() {
    let bench = Engine::Embedded.bench().expect("it is always there");
    let (mut relay, group) = talking(&bench, ChatTableAccess::All, RowPayload::Item).await;
    relay.processes[0].running.line(READ_BACK, PATIENCE).await;
    unread(&relay, &group, "late").await;
    unread(&relay, &group, "later").await;
    let checked = relay.tool(["check"]).run(PATIENCE).await;
    assert!(checked.stdout.contains("shows agents' messages whose callbacks are lost"), "{}", checked.stdout);
    hears_text(&relay, "c-1", "later").await;
    relay.metric_is("causeway_repaired_messages_total", &[], |count| count == 2.0).await;
    let lost = |entry: &LedgerEntry| entry.outbound && entry.text.as_deref() == Some("late");
    let callback: Value = serde_json::from_str(&relay.sandbox.ledger().find(lost)[0].body).unwrap();
    relay.sandbox.virtual_agent_posts(&group, callback["body"].as_array().unwrap().clone()).await.unwrap();
    says(&relay, &group, "next").await;
    hears_text(&relay, "c-1", "next").await;
    assert_eq!(said(&relay), ["late", "later", "next"]);
}

/// Not documented: the roles that read the table. An access rule can hide its rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_hidden_table_changes_nothing() {
    let bench = Engine::Embedded.bench().expect("it is always there");
    let (mut relay, group) = talking(&bench, ChatTableAccess::Own, RowPayload::Text).await;
    relay.processes[0].running.line("are not read back", PATIENCE).await;
    let checked = relay.tool(["check"]).run(PATIENCE).await;
    assert!(checked.stdout.contains("whose callback is lost is not read back"), "{}", checked.stdout);
    unread(&relay, &group, "one").await;
    says(&relay, &group, "two").await;
    hears_text(&relay, "c-1", "two").await;
    relay.sandbox.agent_closes(&group).await.unwrap();
    hears(&relay, "c-1", "callback.ended").await;
    assert_eq!(said(&relay), ["two"]);
    let reads = relay.metric("causeway_servicenow_reads_total", &[("what", "virtual_agent")]).await;
    assert_eq!(reads, 1.0, "the test of the rights");
}

/// Not documented: the form of a payload. This one cannot be told from a text, but it is not the text of a callback.
#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_payload_is_told_and_not_relayed() {
    let bench = Engine::Embedded.bench().expect("it is always there");
    let (mut relay, group) = talking(&bench, ChatTableAccess::All, RowPayload::Encoded).await;
    unread(&relay, &group, "one").await;
    unread(&relay, &group, "two").await;
    relay.metric_is("causeway_unreadable_rows_total", &[], |count| count == 2.0).await;
    relay.processes[0].running.line("cannot be read", PATIENCE).await;
    says(&relay, &group, "three").await;
    hears_text(&relay, "c-1", "three").await;
    assert_eq!(said(&relay), ["three"]);
}
