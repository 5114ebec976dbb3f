//! Tests `servicenow.bulk_read`: tables show which of many chats need a poll, if the user may read them.
//!
//! Facts: `src/platform/servicenow/FACTS.md`, the tables `chat_queue_entry` and `live_message`. Which answer a user without the role
//! gets is not documented, so the sandbox has a switch with both.

use causeway::sandbox::{BodyStyle, ChatTableAccess, Operation, SandboxSwitches};

use crate::gaps::{heard, hears, lose_next, often, plan, started, talking};
use crate::harness::matrix::{Bench, Engine};
use crate::harness::relay::{PATIENCE, Relay};

const CHATS: [&str; 3] = ["c-0", "c-1", "c-2"];

/// Three chats with an agent each.
async fn chats(bench: &Bench, access: ChatTableAccess) -> (Relay, Vec<String>) {
    let plan = often(plan(bench))
        .sandbox(|sandbox| sandbox.switches = SandboxSwitches { chat_tables: access, ..sandbox.switches });
    let relay = started(plan, BodyStyle::StockScript).await;
    let mut groups = Vec::new();
    for conversation in CHATS {
        groups.push(talking(&relay, conversation).await);
    }
    (relay, groups)
}

fn states(relay: &Relay) -> usize {
    relay.sandbox.ledger().count(|entry| entry.operation == Operation::State)
}

async fn bulk(relay: &Relay) -> f64 {
    relay.metric("causeway_servicenow_reads_total", &[("what", "bulk")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_chat_is_not_polled_and_a_lost_callback_is_repaired() {
    let bench = Engine::Embedded.bench().expect("it is always there");
    let (relay, groups) = chats(&bench, ChatTableAccess::All).await;
    // Two requests for each batch, whatever the number of chats; one chat of four batches is polled.
    let (begun, before) = (bulk(&relay).await, states(&relay));
    relay.metric_is("causeway_servicenow_reads_total", &[("what", "bulk")], |now| now >= begun + 24.0).await;
    let polled = states(&relay) - before;
    assert!(polled <= 8, "{polled} of the quiet chats were polled in at least 12 batches");
    lose_next(&relay);
    relay.sandbox.agent_says(&groups[0], "Can you hear me?").await.unwrap();
    assert_eq!(heard(&relay, CHATS[0], 2).await, ["Can you hear me?"]);
    relay.sandbox.agent_closes(&groups[1]).await.unwrap();
    hears(&relay, CHATS[1], "callback.ended").await;
    assert_eq!(relay.dead_letters().await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_hide_rows_are_not_used() {
    let bench = Engine::Embedded.bench().expect("it is always there");
    let (mut relay, groups) = chats(&bench, ChatTableAccess::Own).await;
    lose_next(&relay);
    relay.sandbox.agent_says(&groups[2], "Can you hear me?").await.unwrap();
    assert_eq!(heard(&relay, CHATS[2], 2).await, ["Can you hear me?"]);
    assert_eq!(bulk(&relay).await, 1.0, "the test of the rights");
    relay.processes[0].running.line("one by one", PATIENCE).await;
}
