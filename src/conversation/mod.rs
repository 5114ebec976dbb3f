//! The directory of conversations: which conversation has which chat at ServiceNow, its state, and the facts that happened
//! already.
//!
//! Guarantees: after a call returned `Ok`, its data survives any crash. Several processes may use one directory at once.
//! The state of a conversation changes only as [`state`] says, and each change happens exactly once. A chat (ServiceNow's
//! `group`) belongs to one conversation for ever. While the database is unreachable, every call fails within seconds; it
//! works again without a restart. A process may also start while it is unreachable ([`Directory::start`]).
//! Not responsible for: notices to the two sides about a change (`bridge/notices.rs`), when to poll and when to forget.

mod database;
mod dedup;
mod directory;
mod erase;
mod error;
mod incidents;
mod journal;
mod kept_connection;
mod oauth_tokens;
mod pooler;
mod postgres;
mod probe;
mod queue_checks;
mod reader;
mod relay_progress;
mod reply_handles;
mod retention;
mod row;
mod schema;
mod settled;
mod snapshot;
mod state;
mod statements;
mod write;
mod writer;

use std::path::PathBuf;

use jiff::Timestamp;
use secrecy::SecretString;

use crate::live::Live;
use crate::message::{ConversationId, ReplyHandle, named};
pub use dedup::{DedupKey, DoneBefore};
pub use directory::Directory;
pub use erase::ErasableRows;
pub use error::DirectoryError;
pub use journal::{JournalEntry, JournalOutcome, SettledAfter};
pub use postgres::PostgresDirectory;
pub use snapshot::{LookupName, Snapshot};
pub use write::Changes;

/// The settings of the directory.
#[derive(Debug, Clone)]
pub struct DirectorySettings {
    /// The database.
    pub url: DirectoryUrl,
}

/// The database of the directory.
#[derive(Debug, Clone)]
pub enum DirectoryUrl {
    /// A file, for the processes of one machine.
    Sqlite(PathBuf),
    /// `postgres://…`, for workers on several machines. A changed password is used at the next connection.
    Postgres(Live<SecretString>),
}

named! {
    /// The state of a conversation.
    ConversationState {
        /// Requested; ServiceNow has not answered yet.
        Requested = "requested",
        /// In ServiceNow's queue.
        Waiting = "waiting",
        /// With an agent.
        Active = "active",
        /// Over, for any reason.
        Ended = "ended",
        /// No agent came: the bot took over.
        Failed = "failed",
    }
}

named! {
    /// The route on which a conversation came in, and on which its events go back.
    Origin {
        /// `POST /v1/handoffs`.
        Api = "api",
        /// XO's BotKit protocol.
        BotKit = "botkit",
    }
}

/// One conversation in the directory. Times have millisecond precision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// The id from its caller.
    pub id: ConversationId,
    /// The route on which it came in.
    pub origin: Origin,
    /// Its state.
    pub state: ConversationState,
    /// ServiceNow's id of the newest chat, kept after the end until the conversation is requested again.
    pub group: Option<String>,
    /// ServiceNow's number for people, such as `IMS0000123`.
    pub number: Option<String>,
    /// The requested queue.
    pub queue_id: Option<String>,
    /// The position in the queue, while waiting.
    pub position: Option<u32>,
    /// ServiceNow's text about the wait, while waiting.
    pub wait: Option<String>,
    /// The name of the agent.
    pub agent: Option<String>,
    /// Why the conversation ended or failed.
    pub reason: Option<String>,
    /// When the newest episode was requested.
    pub opened_at: Timestamp,
    /// Since when it has had no agent: its request, or the time at which the last agent left.
    pub waiting_since: Timestamp,
    /// When any field last changed.
    pub updated_at: Timestamp,
    /// When the bot side took its user back in this episode.
    pub released_at: Option<Timestamp>,
}

/// The last message that was delivered into a chat. A read-back starts after this message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LastSent {
    /// No message was delivered after the start.
    Nothing,
    /// The `sys_id` of the message.
    Message(String),
    /// ServiceNow returned no id, so a read-back has no place to start.
    Unknown,
}

/// The address for messages to the user of a conversation at XO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredReply {
    /// The newest handle.
    pub handle: ReplyHandle,
    /// XO reported that the handle has expired; the next event of the user brings another.
    pub expired: bool,
}

/// A chat that ServiceNow opened for a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedChat {
    /// ServiceNow's id of the chat.
    pub group: String,
    /// ServiceNow's number for people.
    pub number: Option<String>,
    /// The queue of the chat.
    pub queue_id: String,
    /// The position in the queue.
    pub position: Option<u32>,
    /// ServiceNow's text about the wait.
    pub wait: Option<String>,
    /// The name of the agent.
    pub agent: Option<String>,
    /// An agent has the chat already.
    pub active: bool,
}

/// The session state of a chat as it was read. It replaces the stored state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observation {
    /// The position in the queue.
    pub position: Option<u32>,
    /// ServiceNow's text about the wait.
    pub wait: Option<String>,
    /// The name of the agent.
    pub agent: Option<String>,
    /// An agent has the chat; otherwise the chat waits in a queue, possibly again.
    pub active: bool,
    /// The last change of the conversation ([`Conversation::updated_at`]) on which the caller decided. If the conversation has
    /// changed since then, the observation has no effect. `None`: the observation counts in any case.
    pub decided_on: Option<Timestamp>,
}

/// The owner of a chat after a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// The chat belongs to this conversation, now or since an earlier call.
    Ours,
    /// The chat belongs to another conversation; the claim changed nothing.
    TakenByAnother,
}

/// The conversations to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListFilter {
    /// Only conversations in this state.
    pub state: Option<ConversationState>,
    /// The largest number of conversations.
    pub limit: u32,
}
