//! `causeway servicenow queues`: lists the queues with their Queue IDs, for both chat APIs.
//!
//! Guarantees: if one kind is missing or unreadable, the command still lists the other kind and reports the problem.

use serde_json::json;

use super::super::{CliFailure, output};
use super::{InstallerLogin, client, explained};
use crate::config::Settings;
use crate::platform::{CallError, ServiceNow, TableRow};

#[derive(Debug, clap::Args)]
pub(super) struct QueuesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    who: InstallerLogin,
}

/// Whether a queue accepts chats, as far as the instance tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum ListedQueueState {
    Open,
    Closed,
    /// The queue is switched on. Only its schedule tells whether it is open now.
    Active,
    Inactive,
}

#[derive(serde::Serialize)]
struct QueueRow {
    kind: &'static str,
    name: String,
    id: String,
    state: ListedQueueState,
}

/// The table of Connect Support queues. servicenow.queue_id names one of them if api = "connect_support".
const CONNECT: &str = "chat_queue";
/// The table of Advanced Work Assignment queues, for the Virtual Agent API.
const AGENT: &str = "awa_queue";

pub(super) async fn run(args: QueuesArgs, settings: &Settings) -> Result<(), CliFailure> {
    let servicenow = client(settings, &args.who)?;
    let (connect, agent) = tokio::join!(connect(&servicenow), table(&servicenow, AGENT));
    let (mut queues, mut notes) = (Vec::new(), Vec::new());
    for (name, found) in [(CONNECT, connect), (AGENT, agent)] {
        match found {
            Ok(found) => queues.extend(found),
            Err(error) => notes.push(explained(name, &error)),
        }
    }
    queues.sort_by(|one, other| (one.kind, &one.name).cmp(&(other.kind, &other.name)));
    if notes.len() == 2 {
        return Err(CliFailure::Failed(anyhow::anyhow!("no queue can be listed\n{}", notes.join("\n"))));
    }
    if args.json {
        return Ok(output::json(&json!({ "queues": queues, "notes": notes }))?);
    }
    if queues.is_empty() {
        output::line("the user sees no queue")?;
    } else {
        output::line(describe(&queues))?;
    }
    for note in &notes {
        output::line(format_args!(
            "\nnot listed: {}",
            note.lines().map(output::harmless).collect::<Vec<_>>().join("\n")
        ))?;
    }
    Ok(())
}

fn describe(queues: &[QueueRow]) -> String {
    let state = |state| match state {
        ListedQueueState::Open => "open",
        ListedQueueState::Closed => "closed",
        ListedQueueState::Active => "active",
        ListedQueueState::Inactive => "inactive",
    };
    let cells = |queue: &QueueRow| {
        let name = output::harmless(&queue.name);
        vec![queue.kind.to_owned(), name, output::harmless(&queue.id), state(queue.state).to_owned()]
    };
    let rows: Vec<Vec<String>> = queues.iter().map(cells).collect();
    output::table(&["KIND", "NAME", "QUEUE ID", "STATE"], &rows, &[])
}

/// Connect Support itself reports whether a queue is open. The table also lists queues that the user may not use.
async fn connect(servicenow: &ServiceNow) -> Result<Vec<QueueRow>, CallError> {
    match servicenow.queues().await {
        Ok(queues) if !queues.is_empty() => Ok(queues
            .into_iter()
            .map(|queue| QueueRow {
                kind: CONNECT,
                state: if queue.not_available.is_some() {
                    ListedQueueState::Closed
                } else {
                    ListedQueueState::Open
                },
                name: queue.name.unwrap_or_default(),
                id: queue.sys_id,
            })
            .collect()),
        Ok(_) | Err(CallError::Answer(_)) => table(servicenow, CONNECT).await,
        Err(error) => Err(error),
    }
}

async fn table(servicenow: &ServiceNow, kind: &'static str) -> Result<Vec<QueueRow>, CallError> {
    let rows = servicenow.rows(kind, "", &["sys_id", "name", "active"], 1000).await?;
    let value = |row: &TableRow, name: &str| row.get(name).cloned().unwrap_or_default();
    let queue = |row: TableRow| QueueRow {
        kind,
        state: if value(&row, "active") == "false" {
            ListedQueueState::Inactive
        } else {
            ListedQueueState::Active
        },
        name: value(&row, "name"),
        id: value(&row, "sys_id"),
    };
    Ok(rows.into_iter().map(queue).collect())
}
