//! `causeway conversations erase`: removes one conversation from the directory and from the dead letters.
//!
//! Guarantees: an id that means several conversations is an error. An open conversation needs `--force`. The dead letters are removed
//! first, so that an interrupted call finds the names of the conversation again. The act is written to the audit log.
//! Not responsible for: messages that wait in a queue, and the records of ServiceNow and XO.

use std::collections::HashSet;

use serde_json::json;

use super::super::{CliFailure, confirm, operator, output};
use crate::app;
use crate::config::Settings;
use crate::conversation::{ConversationState, Directory, ErasableRows};
use crate::dead_letters::{self, DeadLetterFilter};
use crate::message::ConversationId;
use crate::queue::Queue;
use crate::telemetry::{Act, Ending, audit};

#[derive(Debug, clap::Args)]
pub(super) struct EraseArgs {
    /// Its conversation_id, or ServiceNow's group or number (CHAT0001234) of its chat
    id: String,
    /// Count what would be removed, then exit
    #[arg(long)]
    dry_run: bool,
    /// Erase the conversation even if it is open; later messages of its chat then find no conversation
    #[arg(long)]
    force: bool,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
    /// Print JSON: {"conversation_id", "conversations", "chats", "reply_handles", "dead_letters", "dry_run"}
    #[arg(long)]
    json: bool,
}

/// The rows and the dead letters that an erasure removes.
struct ErasePlan {
    rows: Option<ErasableRows>,
    filter: DeadLetterFilter,
    dead_letters: HashSet<dead_letters::DeadLetterKey>,
}

impl ErasePlan {
    /// The conversations, chats, reply handles and dead letters.
    fn counts(&self) -> [u64; 4] {
        let rows = self.rows.as_ref();
        let chats = rows.map_or(0, |rows| rows.groups.len() as u64);
        let handles = rows.map_or(0, |rows| rows.reply_handles);
        [u64::from(rows.is_some()), chats, handles, self.dead_letters.len() as u64]
    }
}

fn in_words([conversations, chats, handles, dead_letters]: [u64; 4]) -> String {
    let counted = [
        output::counted(conversations, "conversation"),
        output::counted(chats, "chat"),
        output::counted(handles, "reply handle"),
        output::counted(dead_letters, "dead letter"),
    ];
    counted.join(", ")
}

pub(super) async fn run(
    args: &EraseArgs,
    directory: &Directory,
    settings: &Settings,
) -> Result<(), CliFailure> {
    let queue = app::open_admin(settings).await?;
    let done = erase(args, directory, &queue).await;
    queue.close().await;
    done
}

async fn erase(args: &EraseArgs, directory: &Directory, queue: &Queue) -> Result<(), CliFailure> {
    let plan = plan(args, directory, queue).await?;
    let counts = plan.counts();
    if counts == [0; 4] {
        let id = args.id.escape_debug();
        return Err(anyhow::anyhow!("no conversation, group, number or dead letter \"{id}\"").into());
    }
    let name = plan.filter.conversation.clone().unwrap_or_default();
    let shown = output::harmless(&name);
    let words = in_words(counts);
    if !args.dry_run {
        let question = format!("Remove {shown} for good: {words}?");
        if !confirm::agreed(&question, args.yes).await? {
            return Ok(output::line("nothing was removed")?);
        }
        let mut gone = 0;
        let done = remove(&plan, args.force, directory, queue, &mut gone).await;
        let ending =
            if done.is_ok() { Ending::Done(Some(&words)) } else { Ending::Failed("not all was removed") };
        audit(Act::Erase, &operator::here(), plan.filter.for_audit(), gone, ending);
        done?;
    }
    let [conversations, chats, reply_handles, dead_letters] = counts;
    if args.json {
        return Ok(output::json(&json!({
            "conversation_id": name, "conversations": conversations, "chats": chats,
            "reply_handles": reply_handles, "dead_letters": dead_letters, "dry_run": args.dry_run,
        }))?);
    }
    let verb = if args.dry_run { "would remove" } else { "removed" };
    Ok(output::line(format_args!("{verb} {shown}: {words}"))?)
}

/// Finds the rows and the dead letters. A conversation that the directory has forgotten may still have dead letters.
async fn plan(args: &EraseArgs, directory: &Directory, queue: &Queue) -> Result<ErasePlan, CliFailure> {
    let ids = directory.ids(&args.id).await.map_err(anyhow::Error::from)?;
    let rows = match ids.as_slice() {
        [] => None,
        [id] => Some(directory.rows(id).await.map_err(anyhow::Error::from)?),
        _ => {
            let ids = ids.iter().map(|id| output::harmless(id)).collect::<Vec<_>>().join(", ");
            return Err(CliFailure::Usage(format!("the id means several conversations, give one: {ids}")));
        }
    };
    if let Some(rows) = &rows
        && !args.force
    {
        refuse_open(&rows.id, directory).await?;
    }
    let conversation = rows.as_ref().map_or_else(|| args.id.clone(), |rows| rows.id.clone());
    let names = rows.iter().flat_map(|rows| rows.groups.iter().cloned()).collect();
    let filter = DeadLetterFilter { conversation: Some(conversation), names, ..DeadLetterFilter::default() };
    let entries = dead_letters::list(queue, &filter).await?;
    Ok(ErasePlan { rows, filter, dead_letters: entries.iter().map(|entry| entry.key).collect() })
}

async fn refuse_open(id: &str, directory: &Directory) -> Result<(), CliFailure> {
    let Ok(id) = ConversationId::parse(id) else { return Ok(()) };
    let found = directory.find(&id).await.map_err(anyhow::Error::from)?;
    match found.map(|found| found.state) {
        Some(state) if !matches!(state, ConversationState::Ended | ConversationState::Failed) => {
            Err(CliFailure::Usage(format!(
                "the conversation is {state}: erase it after its end, or with --force"
            )))
        }
        _ => Ok(()),
    }
}

async fn remove(
    plan: &ErasePlan,
    force: bool,
    directory: &Directory,
    queue: &Queue,
    gone: &mut u64,
) -> Result<(), CliFailure> {
    dead_letters::discard(queue, &plan.filter, &plan.dead_letters, |count| *gone = count).await?;
    if let Some(rows) = &plan.rows
        && !directory.erase(&rows.id, force).await.map_err(anyhow::Error::from)?
    {
        return Err(anyhow::anyhow!("the conversation was requested again: its rows were not removed").into());
    }
    Ok(())
}
