//! The course of one message or of one conversation: both directions in the order of time, for `causeway trace`, the admin API
//! and the console.
//!
//! As JSON: `{"name", "conversations": [{"conversation_id", "state", "group", "number", "reason", "opened_at", "updated_at",
//! "released_at"}], "events": [{"at", "event", "message"?, "kind"?, "destination"?, "conversation"?, "outcome"?, "reason"?,
//! "attempts"?, "status"?, "error"?, "request_id"?, "trace_id"?}], "incomplete"?}`. An event is `accepted`, `attempt`, `delivered`,
//! `forwarded`, `answered`, `dropped`, `dead_lettered`, or a state of the conversation. `incomplete` is a sentence about missing
//! events.
//!
//! Guarantees: a course contains no text of the chat and no words of a platform.
//! Not responsible for: messages that wait in a queue, which have no row in the journal yet; the layout (`cli/trace.rs`,
//! `admin/console/view/conversations.rs`).

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::conversation::{
    Conversation, ConversationState, Directory, DirectoryError, JournalEntry, JournalOutcome,
};
use crate::dead_letters::{self, DeadLetterError, DeadLetterFilter};
use crate::message::{ConversationId, DeadLetter, Message, MessageId};
use crate::queue::Queue;

/// The sentence about dead letters that could not be read.
pub const DEAD_LETTERS_MISSING: &str = "the dead letters cannot be read, so their attempts are missing";

/// All that is known under a name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Course {
    /// The name that was asked for.
    pub name: String,
    /// The conversations of this name.
    pub conversations: Vec<CourseConversation>,
    /// The events in the order of time.
    pub events: Vec<CourseEvent>,
    /// Why events are missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incomplete: Option<String>,
}

/// A conversation as the directory knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CourseConversation {
    /// Its id.
    pub conversation_id: String,
    /// The state, as in [`ConversationState`].
    pub state: String,
    /// ServiceNow's id of the chat.
    pub group: Option<String>,
    /// ServiceNow's number of the chat.
    pub number: Option<String>,
    /// Why the conversation ended or failed.
    pub reason: Option<String>,
    /// When the newest episode was requested.
    pub opened_at: Timestamp,
    /// When any fact last changed.
    pub updated_at: Timestamp,
    /// When the bot side took its user back.
    pub released_at: Option<Timestamp>,
}

/// One line of a course.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CourseEvent {
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    pub event: String,
    /// The id of the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The kind of the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The destination of the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// The conversation, or the chat of ServiceNow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversation: Option<String>,
    /// The outcome of an attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// Why the message died, or why the conversation ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The number of attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// The HTTP status of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The error of an attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The `x-request-id` of the request that caused the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The trace id of the same request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
}

impl CourseEvent {
    /// Events of one moment keep the order in which they happen to a message.
    fn rank(&self) -> u8 {
        match self.event.as_str() {
            "attempt" => 1,
            event if JournalOutcome::parse(event).is_some() => 2,
            _ => 0,
        }
    }

    /// What a person needs beside the event: the outcome, the reason, the status, several attempts and the error.
    pub fn detail(&self) -> String {
        let attempts = self.attempts.filter(|attempts| *attempts > 1).map(|n| format!("{n} attempts"));
        let status = self.status.map(|status| format!("HTTP {status}"));
        let parts = [self.outcome.clone(), self.reason.clone(), status, attempts, self.error.clone()];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// Reads what the directory and the dead letters know under a name.
#[derive(Debug)]
pub struct CourseReader {
    name: String,
    filter: DeadLetterFilter,
    conversations: Vec<Conversation>,
    journal: Vec<JournalEntry>,
    dead: Vec<DeadLetter>,
}

impl CourseReader {
    /// `name`: the id of a message, the id of a conversation, or ServiceNow's group or number of a chat.
    pub fn new(name: &str) -> Self {
        let filter = match MessageId::parse(name) {
            Ok(id) => DeadLetterFilter { ids: [id].into(), ..DeadLetterFilter::default() },
            Err(_) => DeadLetterFilter { conversation: Some(name.to_owned()), ..DeadLetterFilter::default() },
        };
        let (conversations, journal, dead) = (Vec::new(), Vec::new(), Vec::new());
        Self { name: name.to_owned(), filter, conversations, journal, dead }
    }

    /// Reads one message, or one conversation by any of its names. A message id may also be the id of a conversation.
    pub async fn read_directory(&mut self, directory: &Directory) -> Result<(), DirectoryError> {
        if let Ok(id) = MessageId::parse(&self.name) {
            self.journal = directory.journal_of_message(id).await?;
        }
        if !self.journal.is_empty() {
            return Ok(());
        }
        let mut names = directory.names(&self.name).await?;
        for id in directory.ids(&self.name).await?.iter().filter_map(|id| ConversationId::parse(id).ok()) {
            self.conversations.extend(directory.find(&id).await?);
        }
        if !names.is_empty() {
            self.filter.ids.clear();
            self.filter.conversation = Some(self.name.clone());
            self.filter.names.clone_from(&names);
        }
        names.insert(self.name.clone());
        for name in &names {
            self.journal.extend(directory.journal_of_chat(name).await?);
        }
        Ok(())
    }

    /// Reads the dead letters, which have the attempts. Call this after [`Self::read_directory`], which finds the other names of
    /// the conversation.
    pub async fn read_dead_letters(&mut self, queue: &Queue) -> Result<(), DeadLetterError> {
        let (filter, dead) = (&self.filter, &mut self.dead);
        dead_letters::look::<DeadLetterError>(queue, filter, |found| {
            // Only the story is shown, so memory holds no bodies.
            let message = Message { body: bytes::Bytes::new(), ..found.message.clone() };
            dead.push(DeadLetter { message, ..found.clone() });
            Ok(())
        })
        .await
    }

    /// The course of all that was read.
    pub fn course(self) -> Course {
        Course {
            events: self.events(),
            conversations: self.conversations.into_iter().map(CourseConversation::from).collect(),
            name: self.name,
            incomplete: None,
        }
    }

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
            events.push(CourseEvent { at, event, ..of(entry) });
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
                    event: JournalOutcome::DeadLettered.as_str().to_owned(),
                    reason: Some(dead.reason.to_string()),
                    attempts: Some(dead.story.count()),
                    ..of_dead(dead)
                });
            }
        }
        events.sort_by_key(|event| (event.at, event.rank()));
        events
    }
}

impl From<Conversation> for CourseConversation {
    fn from(known: Conversation) -> Self {
        Self {
            conversation_id: known.id.to_string(),
            state: known.state.as_str().to_owned(),
            group: known.group,
            number: known.number,
            reason: known.reason,
            opened_at: known.opened_at,
            updated_at: known.updated_at,
            released_at: known.released_at,
        }
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
        message: Some(entry.message.to_string()),
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
        message: Some(message.id.to_string()),
        kind: Some(message.kind.to_string()),
        destination: Some(message.destination.to_string()),
        conversation: message.chat_name().map(str::to_owned),
        request_id: message.trace.request_id.as_deref().map(str::to_owned),
        trace_id: message.trace.parent.as_ref().map(|parent| parent.trace_id().to_owned()),
        ..CourseEvent::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::{DedupKey, SettledAfter};
    use crate::message::{DeadReason, Destination, Kind, LaneKey};

    #[test]
    fn a_course_is_in_the_order_of_time_and_has_no_text() {
        let dead = DeadLetter::refused(br#"{"conversation_id":"c-1","message":"private words"}"#);
        let lane = LaneKey::parse("c-1").unwrap();
        let sent =
            Message::new(MessageId::fresh(), Kind::HandoffMessage, Destination::ServiceNow, lane, "private");
        let after = SettledAfter { attempts: 3, status: Some(503), reason: Some(DeadReason::Expired) };
        let fact = DedupKey::DeadLettered { message: dead.message.id, replays: dead.message.replays };
        let mut reader = CourseReader::new("c-1");
        reader.journal = [
            JournalEntry::of(&sent, DedupKey::Delivered(sent.id), SettledAfter::default()),
            JournalEntry::of(&dead.message, fact, after),
        ]
        .into_iter()
        .flatten()
        .collect();
        reader.dead = vec![dead.clone()];
        let course = reader.course();
        assert!(course.events.is_sorted_by_key(|event| event.at));
        let count = |name: &str| course.events.iter().filter(|event| event.event == name).count();
        assert_eq!((count("accepted"), count("delivered"), count("dead_lettered")), (2, 1, 1));
        assert_eq!(count("attempt"), dead.story.attempts().len());
        let json = serde_json::to_string(&course).unwrap();
        assert!(json.contains(&sent.id.to_string()) && json.contains("handoff.message"), "{json}");
        assert!(!json.contains("private") && !json.contains("echoed"), "{json}");
        let again: Course = serde_json::from_str(&json).unwrap();
        assert_eq!(again, course, "another process reads what was written");
    }
}
