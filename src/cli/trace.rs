//! `causeway trace`: the course of one message or of one conversation, both directions in the order of time.
//!
//! `--json` prints the JSON of [`Course`]. With `--admin` a running process is asked over its admin API, and no other part of the
//! deployment.
//!
//! Guarantees: no text of the chat and no words of a platform are printed. A broker that does not answer hides only the attempts of
//! dead letters, and standard error says so.
//! Not responsible for: what a course contains (`course.rs`).

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use secrecy::SecretString;
use url::Url;

use super::{CliFailure, SettingFiles, admin_listener, output};
use crate::app;
use crate::config::{DirectoryConfig, RunPurpose, Settings};
use crate::conversation::Directory;
use crate::course::{Course, CourseEvent, CourseReader, DEAD_LETTERS_MISSING};
use crate::dead_letters::DeadLetterError;

/// The last digits of an id are random, so eight of them tell messages apart.
const SHORT_ID: usize = 8;
const DESTINATION_COLUMNS: usize = 12;
/// The time limit of the admin API, which may have to read many dead letters.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The end of the help.
const NOTES: &str = "\
A message that still waits in a queue is not shown: `causeway status` counts the waiting messages of each destination.

With --admin, only the process with this admin listener is asked, from any machine that reaches it. Its token is read
from --token-file, or from the setting admin.token (CAUSEWAY_ADMIN__TOKEN). A token with the role view is enough.";

#[derive(Debug, clap::Args)]
#[command(after_help = NOTES)]
pub(super) struct TraceArgs {
    /// The id of a message, a conversation_id, or ServiceNow's group or number (CHAT0001234) of a chat
    name: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Ask only the process with this admin listener, for example http://worker-1:9464; neither broker nor directory
    #[arg(long, value_name = "URL", value_parser = admin_listener::address)]
    admin: Option<Url>,
    /// The file with the token of the process, instead of the setting admin.token
    #[arg(long, value_name = "FILE", requires = "admin")]
    token_file: Option<PathBuf>,
}

pub(super) async fn run(args: &TraceArgs, sources: &SettingFiles) -> Result<(), CliFailure> {
    let settings = sources.settings_for_admin(RunPurpose::Admin)?;
    let course = match &args.admin {
        Some(listener) => remote(&settings, listener, args).await?,
        None => local(&settings, &args.name).await?,
    };
    if let Some(why) = &course.incomplete {
        writeln!(std::io::stderr(), "causeway: {}", output::harmless(why))?;
    }
    if course.events.is_empty() {
        let name = args.name.escape_debug();
        return Err(anyhow::anyhow!(
            "nothing is known under \"{name}\": no message, conversation, group or number of this name was settled within \
             journal.kept, and no dead letter has the name. A message that still waits in a queue is not shown"
        )
        .into());
    }
    if args.json {
        return Ok(output::json(&course)?);
    }
    Ok(output::line(text(&course.events, output::columns()))?)
}

async fn local(settings: &Settings, name: &str) -> anyhow::Result<Course> {
    let mut reader = CourseReader::new(name);
    if let Some(directory) = directory(settings).await? {
        let read = reader.read_directory(&directory).await;
        directory.close().await;
        read.map_err(DeadLetterError::from)?;
    }
    let dead_letters = async {
        let queue = app::open_admin(settings).await?;
        let read = reader.read_dead_letters(&queue).await;
        queue.close().await;
        anyhow::Ok(read?)
    };
    let incomplete = dead_letters.await.err().map(|error| format!("{DEAD_LETTERS_MISSING}: {error:#}"));
    Ok(Course { incomplete, ..reader.course() })
}

/// The pure callback relay has no directory before its first replay.
async fn directory(settings: &Settings) -> anyhow::Result<Option<Directory>> {
    if let DirectoryConfig::Sqlite(path) = &settings.directory
        && !path.exists()
    {
        return Ok(None);
    }
    app::open_directory(settings).await.map(Some)
}

/// Asks a running process.
async fn remote(settings: &Settings, listener: &Url, args: &TraceArgs) -> anyhow::Result<Course> {
    let of_file = args.token_file.as_ref().map(|path| {
        let text = std::fs::read_to_string(path);
        let text = text.with_context(|| format!("--token-file: cannot read {}", path.display()))?;
        anyhow::Ok(SecretString::from(text.trim()))
    });
    let token = of_file.transpose()?.or_else(|| settings.admin_tokens.first().map(|one| one.token.clone()));
    let Some(token) = token else {
        bail!("the admin API needs a token: set admin.token (CAUSEWAY_ADMIN__TOKEN), or give --token-file");
    };
    let mut url = admin_listener::path(listener, "/trace");
    url.query_pairs_mut().append_pair("name", &args.name);
    let (status, body) = admin_listener::get_within(&url, Some(&token), ADMIN_TIMEOUT).await?;
    match status {
        200 => serde_json::from_str(&body).context("the answer of the admin API is not readable"),
        401 => bail!("the process at {listener} has another token"),
        404 => bail!("the process at {listener} has no admin API of this version: set admin.token for it"),
        503 => bail!("the process at {listener} cannot reach its directory now: ask again"),
        status => bail!("the admin API at {listener} answered {status}"),
    }
}

/// A table of at most `columns`, then the messages with their complete ids.
fn text(events: &[CourseEvent], columns: usize) -> String {
    let short = |id: &String| {
        let id = output::harmless(id);
        id.chars().skip(id.len().saturating_sub(SHORT_ID)).collect::<String>()
    };
    let row = |event: &CourseEvent| {
        vec![
            event.at.strftime("%m-%d %H:%M:%S%.3f").to_string(),
            output::harmless(&event.event),
            event.message.as_ref().map(short).unwrap_or_default(),
            output::cut(&output::harmless(event.destination.as_deref().unwrap_or("-")), DESTINATION_COLUMNS),
            output::harmless(&event.detail()),
        ]
    };
    let head = ["AT (UTC)", "EVENT", "MESSAGE", "TO", "DETAIL"];
    let table = output::table_within(columns, 4, &head, events.iter().map(row).collect(), &[]);
    let mut messages = BTreeSet::new();
    let mut lines = vec![table, String::new()];
    for event in events {
        let Some(id) = &event.message else { continue };
        if messages.insert(id) {
            let kind = event.kind.as_deref().unwrap_or("of an older version");
            lines.push(output::harmless(&format!("{id}  {kind}")));
        }
    }
    if messages.is_empty() {
        lines.truncate(1);
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_fits_and_ends_with_the_complete_ids() {
        let event = |event: &str, error: &str| CourseEvent {
            event: event.to_owned(),
            message: Some("0d7f3c8e-5a55-5d0c-9c7b-2f6c6f6c9a11".to_owned()),
            kind: Some("handoff.message".to_owned()),
            destination: Some("servicenow".to_owned()),
            error: Some(error.to_owned()),
            ..CourseEvent::default()
        };
        let shown = text(&[event("accepted", ""), event("attempt", &"\u{1b}[2J long ".repeat(20))], 80);
        assert!(shown.lines().all(|line| output::width(line) <= 80), "{shown}");
        assert!(shown.ends_with("0d7f3c8e-5a55-5d0c-9c7b-2f6c6f6c9a11  handoff.message"), "{shown}");
        assert!(!shown.contains('\u{1b}'), "an answer does not control the terminal: {shown}");
    }
}
