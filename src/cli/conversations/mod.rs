//! `causeway conversations list|show|erase`: prints conversations from the directory, and erases one.
//!
//! `list --json` prints `{"conversations": [C, ..]}`, `show --json` prints `C`, which is `{"conversation_id",
//! "origin", "state", "servicenow": {"group", "number", "queue_id", "position", "wait"}, "agent", "reason",
//! "opened_at", "updated_at"}`; an unknown value is `null`.

mod erase;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::{Value, json};

use super::{CliFailure, SettingFiles, output};
use crate::app;
use crate::config::RunPurpose;
use crate::conversation::{Conversation, ConversationState, Directory, ListFilter};
use crate::message::ConversationId;

/// The widest cells of the table. The conversation gets the rest.
const CHAT_COLUMNS: usize = 12;
const AGENT_COLUMNS: usize = 12;

#[derive(Debug, clap::Args)]
pub(super) struct ConversationsArgs {
    #[command(subcommand)]
    verb: ConversationsVerb,
}

#[derive(Debug, clap::Subcommand)]
enum ConversationsVerb {
    /// List the newest conversations
    List {
        /// Only those in this state
        #[arg(long, value_parser = state())]
        state: Option<ConversationState>,
        /// Maximum number of conversations; 0 lists all
        #[arg(long, default_value_t = 100, value_name = "N")]
        limit: u32,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one conversation
    Show {
        /// Its conversation_id, or ServiceNow's group or number (CHAT0001234) of its chat
        id: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove one conversation for good: its record, its chats, its reply handle and its dead letters
    Erase(erase::EraseArgs),
}

/// clap lists the states in the help and in the completions, and suggests one for a misspelled one.
fn state() -> impl TypedValueParser<Value = ConversationState> {
    let names = ConversationState::ALL.iter().map(|state| state.as_str());
    PossibleValuesParser::new(names).try_map(|text| ConversationState::parse(&text).ok_or("is not a state"))
}

pub(super) async fn run(args: ConversationsArgs, sources: &SettingFiles) -> Result<(), CliFailure> {
    let settings = sources.settings_for_admin(RunPurpose::Admin)?;
    let directory = app::open_directory(&settings).await?;
    let done = match args.verb {
        ConversationsVerb::List { state, limit, json } => {
            let limit = if limit == 0 { u32::MAX } else { limit };
            list(&directory, &ListFilter { state, limit }, json).await
        }
        ConversationsVerb::Show { id, json } => show(&directory, &id, json).await,
        ConversationsVerb::Erase(args) => Box::pin(erase::run(&args, &directory, &settings)).await,
    };
    directory.close().await;
    done
}

async fn list(directory: &Directory, filter: &ListFilter, json: bool) -> Result<(), CliFailure> {
    let found = directory.list(filter).await.map_err(anyhow::Error::from)?;
    if json {
        let all: Vec<Value> = found.iter().map(document).collect();
        return Ok(output::json(&json!({ "conversations": all }))?);
    }
    if found.is_empty() {
        return Ok(output::line("no conversations")?);
    }
    Ok(output::line(table(&found, output::columns()))?)
}

/// A table of at most `columns`. A chat is shown by its number, which people know, or by its group.
fn table(found: &[Conversation], columns: usize) -> String {
    let text = |value: Option<&String>, room| {
        output::cut(&output::harmless(value.map_or("-", String::as_str)), room)
    };
    let row = |one: &Conversation| {
        let chat = text(one.number.as_ref().or(one.group.as_ref()), CHAT_COLUMNS);
        let (state, agent) = (one.state.to_string(), text(one.agent.as_ref(), AGENT_COLUMNS));
        vec![output::harmless(one.id.as_str()), state, chat, agent, output::short_time(one.updated_at)]
    };
    let head = ["CONVERSATION", "STATE", "CHAT", "AGENT", "UPDATED (UTC)"];
    output::table_within(columns, 0, &head, found.iter().map(row).collect(), &[])
}

async fn show(directory: &Directory, id: &str, json: bool) -> Result<(), CliFailure> {
    let parsed =
        ConversationId::parse(id).map_err(|problem| CliFailure::Usage(format!("the id {problem}")))?;
    let mut found = directory.find(&parsed).await.map_err(anyhow::Error::from)?;
    if found.is_none() {
        found = directory.find_by_group(id).await.map_err(anyhow::Error::from)?;
    }
    if found.is_none()
        && let [only] = directory.ids(id).await.map_err(anyhow::Error::from)?.as_slice()
        && let Ok(only) = ConversationId::parse(only)
    {
        found = directory.find(&only).await.map_err(anyhow::Error::from)?;
    }
    let Some(found) = found else {
        return Err(anyhow::anyhow!("no conversation, group or number \"{}\"", id.escape_debug()).into());
    };
    if json {
        return Ok(output::json(&document(&found))?);
    }
    let position = found.position.map(|position| position.to_string());
    let rows = [
        ("conversation", Some(found.id.to_string())),
        ("origin", Some(found.origin.to_string())),
        ("state", Some(found.state.to_string())),
        ("reason", found.reason),
        ("group", found.group),
        ("number", found.number),
        ("queue id", found.queue_id),
        ("position", position),
        ("wait", found.wait),
        ("agent", found.agent),
        ("opened at", Some(found.opened_at.to_string())),
        ("updated at", Some(found.updated_at.to_string())),
    ];
    for (name, value) in rows {
        if let Some(value) = value {
            output::line(format_args!("{name:<13} {}", output::harmless(&value)))?;
        }
    }
    Ok(())
}

fn document(one: &Conversation) -> Value {
    json!({
        "conversation_id": one.id.as_str(),
        "origin": one.origin.as_str(),
        "state": one.state.as_str(),
        "servicenow": {
            "group": one.group, "number": one.number, "queue_id": one.queue_id,
            "position": one.position, "wait": one.wait,
        },
        "agent": one.agent,
        "reason": one.reason,
        "opened_at": one.opened_at.to_string(),
        "updated_at": one.updated_at.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::Origin;

    #[test]
    fn the_table_fits_and_shows_the_number() {
        let now = crate::clock::now();
        let one = Conversation {
            id: ConversationId::parse(&"c".repeat(100)).unwrap(),
            origin: Origin::Api,
            state: ConversationState::Requested,
            group: Some("g".repeat(32)),
            number: None,
            queue_id: None,
            position: None,
            wait: None,
            agent: Some("Wolfeschlegelsteinhausen".to_owned()),
            reason: None,
            opened_at: now,
            updated_at: now,
            released_at: None,
            waiting_since: now,
        };
        let other = Conversation { number: Some("CHAT0001234".to_owned()), ..one.clone() };
        let text = table(&[one, other], 80);
        assert!(text.lines().all(|line| output::width(line) <= 80), "{text}");
        assert!(text.contains("  CHAT0001234  ") && text.contains("ggg…"), "{text}");
    }
}
