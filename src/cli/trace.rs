//! `causeway trace`: the course of one message or of one conversation, both directions in the order of time.
//!
//! `--json` prints `{"name", "conversations": [{"conversation_id", "state", "group", "number", "reason", "opened_at", "updated_at",
//! "released_at"}], "events": [{"at", "event", "message"?, "kind"?, "destination"?, "conversation"?, "outcome"?, "reason"?,
//! "attempts"?, "status"?, "error"?, "request_id"?, "trace_id"?}]}`. An event is `accepted`, `attempt`, `delivered`, `forwarded`,
//! `answered`, `dropped`, `dead_lettered`, or a state of the conversation.
//!
//! Guarantees: no text of the chat and no words of a platform are printed. A broker that does not answer hides only the attempts of
//! dead letters, and standard error says so.
//! Not responsible for: messages that wait in a queue. They have no row in the journal yet.

use std::collections::BTreeSet;
use std::io::Write;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{CliFailure, SettingFiles, output};
use crate::app;
use crate::config::{DirectoryConfig, RunPurpose, Settings};
use crate::conversation::{
    Conversation, ConversationState, Directory, DirectoryError, JournalEntry, JournalOutcome,
};
use crate::dead_letters::{self, DeadLetterError, DeadLetterFilter};
use crate::message::{ConversationId, DeadLetter, Message, MessageId};

/// The last digits of an id are random, so eight of them tell messages apart.
const SHORT_ID: usize = 8;
const DESTINATION_COLUMNS: usize = 12;

#[derive(Debug, clap::Args)]
pub(super) struct TraceArgs {
    /// The id of a message, a conversation_id, or ServiceNow's group or number (CHAT0001234) of a chat
    name: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// All that is known under a name.
#[derive(Debug, Default)]
struct Course {
    conversations: Vec<Conversation>,
    journal: Vec<JournalEntry>,
    dead: Vec<DeadLetter>,
}

/// One line of a course.
#[derive(Debug, Default)]
struct CourseEvent {
    at: Timestamp,
    /// Events of one moment keep the order in which they happen to a message.
    order: u8,
    event: String,
    message: Option<MessageId>,
    kind: Option<String>,
    destination: Option<String>,
    conversation: Option<String>,
    reason: Option<String>,
    attempts: Option<u32>,
    status: Option<u16>,
    outcome: Option<String>,
    error: Option<String>,
    request_id: Option<String>,
    trace_id: Option<String>,
}

pub(super) async fn run(args: &TraceArgs, sources: &SettingFiles) -> Result<(), CliFailure> {
    let settings = sources.settings_for_admin(RunPurpose::Admin)?;
    let mut filter = filter(&args.name);
    let mut course = Course::default();
    if let Some(directory) = directory(&settings).await? {
        let read = read_directory(&directory, &args.name, &mut filter, &mut course).await;
        directory.close().await;
        read.map_err(DeadLetterError::from)?;
    }
    match dead_letters_of(&settings, &filter).await {
        Ok(dead) => course.dead = dead,
        Err(error) => {
            let why = "causeway: the dead letters cannot be read, so their attempts are missing";
            writeln!(std::io::stderr(), "{why}: {error:#}")?;
        }
    }
    let events = course.events();
    if events.is_empty() {
        let name = args.name.escape_debug();
        return Err(anyhow::anyhow!(
            "nothing is known under \"{name}\": no message, conversation, group or number of this name was settled within \
             journal.kept, and no dead letter has the name. A message that still waits in a queue is not shown"
        )
        .into());
    }
    if args.json {
        return Ok(output::json(&document(&args.name, &course, &events))?);
    }
    Ok(output::line(text(&events, output::columns()))?)
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

fn filter(name: &str) -> DeadLetterFilter {
    match MessageId::parse(name) {
        Ok(id) => DeadLetterFilter { ids: [id].into(), ..DeadLetterFilter::default() },
        Err(_) => DeadLetterFilter { conversation: Some(name.to_owned()), ..DeadLetterFilter::default() },
    }
}

/// Reads one message, or one conversation by any of its names. A message id may also be the id of a conversation.
async fn read_directory(
    directory: &Directory,
    name: &str,
    filter: &mut DeadLetterFilter,
    course: &mut Course,
) -> Result<(), DirectoryError> {
    if let Ok(id) = MessageId::parse(name) {
        course.journal = directory.journal_of_message(id).await?;
    }
    if course.journal.is_empty() {
        let mut names = directory.names(name).await?;
        for id in directory.ids(name).await?.iter().filter_map(|id| ConversationId::parse(id).ok()) {
            course.conversations.extend(directory.find(&id).await?);
        }
        if !names.is_empty() {
            filter.ids.clear();
            filter.conversation = Some(name.to_owned());
            filter.names.clone_from(&names);
        }
        names.insert(name.to_owned());
        for name in &names {
            course.journal.extend(directory.journal_of_chat(name).await?);
        }
    }
    Ok(())
}

async fn dead_letters_of(settings: &Settings, filter: &DeadLetterFilter) -> anyhow::Result<Vec<DeadLetter>> {
    let queue = app::open_admin(settings).await?;
    let mut found = Vec::new();
    let read = dead_letters::look::<DeadLetterError>(&queue, filter, |dead| {
        // Only the story is shown, so memory holds no bodies.
        let message = Message { body: bytes::Bytes::new(), ..dead.message.clone() };
        found.push(DeadLetter { message, ..dead.clone() });
        Ok(())
    })
    .await;
    queue.close().await;
    read?;
    Ok(found)
}

impl Course {
    /// The events in the order of time.
    fn events(&self) -> Vec<CourseEvent> {
        let mut events: Vec<CourseEvent> = self.conversations.iter().flat_map(states).collect();
        let mut accepted = BTreeSet::new();
        for entry in &self.journal {
            if let Some(at) = entry.accepted_at
                && accepted.insert((entry.message, at))
            {
                let event = "accepted".to_owned();
                events.push(CourseEvent {
                    at,
                    event,
                    reason: None,
                    attempts: None,
                    status: None,
                    ..of(entry)
                });
            }
            let (at, event) = (entry.settled_at, entry.outcome.as_str().to_owned());
            events.push(CourseEvent { at, order: 2, event, ..of(entry) });
        }
        let died: BTreeSet<(MessageId, u32)> = self
            .journal
            .iter()
            .filter(|entry| entry.outcome == JournalOutcome::DeadLettered)
            .map(|entry| (entry.message, entry.replays))
            .collect();
        for dead in &self.dead {
            let (message, at) = (&dead.message, dead.message.accepted_at);
            if accepted.insert((message.id, at)) {
                events.push(CourseEvent { at, event: "accepted".to_owned(), ..of_dead(dead) });
            }
            events.extend(dead.story.attempts().iter().map(|attempt| CourseEvent {
                at: attempt.at,
                order: 1,
                event: "attempt".to_owned(),
                outcome: Some(attempt.outcome.clone()),
                status: attempt.status,
                error: Some(attempt.error.clone()).filter(|error| !error.is_empty()),
                ..of_dead(dead)
            }));
            // The directory may have been away when the message died, or the row is older than `journal.kept`.
            if !died.contains(&(message.id, message.replays)) {
                events.push(CourseEvent {
                    at: dead.died_at,
                    order: 2,
                    event: JournalOutcome::DeadLettered.as_str().to_owned(),
                    reason: Some(dead.reason.to_string()),
                    attempts: Some(dead.story.count()),
                    ..of_dead(dead)
                });
            }
        }
        events.sort_by_key(|event| (event.at, event.order));
        events
    }
}

/// What the directory knows about the states of a conversation: its request, its release and its last change.
fn states(one: &Conversation) -> Vec<CourseEvent> {
    let state = |at, event: &str, reason: Option<&String>| CourseEvent {
        at,
        event: event.to_owned(),
        conversation: Some(one.id.to_string()),
        reason: reason.cloned(),
        ..CourseEvent::default()
    };
    let mut states = vec![state(one.opened_at, ConversationState::Requested.as_str(), None)];
    states.extend(one.released_at.map(|at| state(at, "given back to the bot", None)));
    if one.state != ConversationState::Requested {
        states.push(state(one.updated_at, one.state.as_str(), one.reason.as_ref()));
    }
    states
}

fn of(entry: &JournalEntry) -> CourseEvent {
    CourseEvent {
        message: Some(entry.message),
        kind: entry.kind.map(|kind| kind.to_string()),
        destination: entry.destination.clone(),
        conversation: entry.conversation.clone(),
        reason: entry.reason.map(|reason| reason.to_string()),
        attempts: entry.attempts,
        status: entry.status,
        request_id: entry.request_id.clone(),
        trace_id: entry.trace_id.clone(),
        ..CourseEvent::default()
    }
}

fn of_dead(dead: &DeadLetter) -> CourseEvent {
    let message = &dead.message;
    CourseEvent {
        message: Some(message.id),
        kind: Some(message.kind.to_string()),
        destination: Some(message.destination.to_string()),
        conversation: message.chat_name().map(str::to_owned),
        request_id: message.trace.request_id.as_deref().map(str::to_owned),
        trace_id: message.trace.parent.as_ref().map(|parent| parent.trace_id().to_owned()),
        ..CourseEvent::default()
    }
}

impl CourseEvent {
    fn json(&self) -> Value {
        let text = |text: &Option<String>| text.clone().map(Value::from);
        let fields = [
            ("at", Some(self.at.to_string().into())),
            ("event", Some(self.event.clone().into())),
            ("message", self.message.map(|id| id.to_string().into())),
            ("kind", text(&self.kind)),
            ("destination", text(&self.destination)),
            ("conversation", text(&self.conversation)),
            ("outcome", text(&self.outcome)),
            ("reason", text(&self.reason)),
            ("attempts", self.attempts.map(Value::from)),
            ("status", self.status.map(Value::from)),
            ("error", text(&self.error)),
            ("request_id", text(&self.request_id)),
            ("trace_id", text(&self.trace_id)),
        ];
        let known = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Value::Object(known.collect::<Map<_, _>>())
    }

    /// What a person needs beside the event: why, and after how many attempts.
    fn detail(&self) -> String {
        let attempts = self.attempts.filter(|attempts| *attempts > 1).map(|n| format!("{n} attempts"));
        let status = self.status.map(|status| format!("HTTP {status}"));
        let parts = [
            self.outcome.clone(),
            self.reason.clone(),
            status,
            attempts,
            self.error.as_deref().map(output::harmless),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

fn document(name: &str, course: &Course, events: &[CourseEvent]) -> Value {
    let conversation = |one: &Conversation| {
        json!({
            "conversation_id": one.id.as_str(),
            "state": one.state.as_str(),
            "group": one.group,
            "number": one.number,
            "reason": one.reason,
            "opened_at": one.opened_at.to_string(),
            "updated_at": one.updated_at.to_string(),
            "released_at": one.released_at.map(|at| at.to_string()),
        })
    };
    json!({
        "name": name,
        "conversations": course.conversations.iter().map(conversation).collect::<Value>(),
        "events": events.iter().map(CourseEvent::json).collect::<Value>(),
    })
}

/// A table of at most `columns`, then the messages with their complete ids.
fn text(events: &[CourseEvent], columns: usize) -> String {
    let short = |id: MessageId| {
        let id = id.to_string();
        id.chars().skip(id.len().saturating_sub(SHORT_ID)).collect::<String>()
    };
    let row = |event: &CourseEvent| {
        vec![
            event.at.strftime("%m-%d %H:%M:%S%.3f").to_string(),
            output::harmless(&event.event),
            event.message.map(short).unwrap_or_default(),
            output::cut(&output::harmless(event.destination.as_deref().unwrap_or("-")), DESTINATION_COLUMNS),
            output::harmless(&event.detail()),
        ]
    };
    let head = ["AT (UTC)", "EVENT", "MESSAGE", "TO", "DETAIL"];
    let table = output::table_within(columns, 4, &head, events.iter().map(row).collect(), &[]);
    let mut messages = BTreeSet::new();
    let mut lines = vec![table, String::new()];
    for event in events {
        let Some(id) = event.message else { continue };
        if messages.insert(id) {
            let kind = event.kind.as_deref().unwrap_or("of an older version");
            lines.push(format!("{id}  {kind}"));
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
    use crate::conversation::{DedupKey, SettledAfter};
    use crate::message::{DeadReason, Destination, Kind, LaneKey};

    #[test]
    fn a_course_is_in_the_order_of_time_and_fits() {
        let dead = DeadLetter::refused(br#"{"conversation_id":"c-1","message":"private words"}"#);
        let lane = LaneKey::parse("c-1").unwrap();
        let sent =
            Message::new(MessageId::fresh(), Kind::HandoffMessage, Destination::ServiceNow, lane, "private");
        let after = SettledAfter { attempts: 3, status: Some(503), reason: Some(DeadReason::Expired) };
        let fact = DedupKey::DeadLettered { message: dead.message.id, replays: dead.message.replays };
        let course = Course {
            conversations: Vec::new(),
            journal: [
                JournalEntry::of(&sent, DedupKey::Delivered(sent.id), SettledAfter::default()),
                JournalEntry::of(&dead.message, fact, after),
            ]
            .into_iter()
            .flatten()
            .collect(),
            dead: vec![dead.clone()],
        };
        let events = course.events();
        assert!(events.is_sorted_by_key(|event| event.at));
        let count = |name: &str| events.iter().filter(|event| event.event == name).count();
        assert_eq!((count("accepted"), count("delivered"), count("dead_lettered")), (2, 1, 1));
        assert_eq!(count("attempt"), dead.story.attempts().len());
        let shown = text(&events, 80);
        assert!(shown.lines().all(|line| output::width(line) <= 80), "{shown}");
        assert!(shown.contains(&sent.id.to_string()) && shown.contains("handoff.message"), "{shown}");
        let json = document("c-1", &course, &events).to_string();
        for shown in [shown, json] {
            assert!(!shown.contains("private") && !shown.contains("echoed"), "{shown}");
        }
    }
}
