//! What is remembered: which conversation is which chat at ServiceNow, how far it got, and what was done already.
//!
//! Guarantees: what a call returned `Ok` for survives any crash; several processes may use one directory at once; the
//! state of a conversation changes only as [`state`] says, each change exactly once; a chat (ServiceNow's `group`)
//! belongs to one conversation for ever. While the database is away every call says so within seconds, and works again
//! by itself once it is back.
//! Leaves to others: what to tell the two sides about a change (`worker/`), when to poll and when to forget.

mod dedup;
mod directory;
mod error;
mod replies;
mod row;
mod schema;
mod state;
mod statements;
mod told;

use std::path::PathBuf;

use jiff::Timestamp;
use secrecy::SecretString;

use crate::message::{ConversationId, ReplyHandle, named};
pub use dedup::{DedupKey, DoneBefore};
pub use directory::Directory;
pub use error::DirectoryError;

/// What the directory needs to be told.
#[derive(Debug, Clone)]
pub struct DirectorySettings {
    /// Where it is kept.
    pub url: DirectoryUrl,
}

/// Where the directory is kept.
#[derive(Debug, Clone)]
pub enum DirectoryUrl {
    /// A file, for the processes of one machine.
    Sqlite(PathBuf),
    /// `postgres://…`, for workers on several machines.
    Postgres(SecretString),
}

named! {
    /// How far a conversation got.
    State {
        /// Asked for; ServiceNow has not answered yet.
        Requested = "requested",
        /// In ServiceNow's queue.
        Waiting = "waiting",
        /// With an agent.
        Active = "active",
        /// Over, in whatever way.
        Ended = "ended",
        /// No human came: the bot took over.
        Failed = "failed",
    }
}

named! {
    /// Which door a conversation came through, and so how its events go back.
    Origin {
        /// `POST /v1/handoffs`.
        Api = "api",
        /// XO's BotKit protocol.
        BotKit = "botkit",
    }
}

/// One conversation as the directory knows it. Times have millisecond precision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// As its caller named it.
    pub id: ConversationId,
    /// Which door it came through.
    pub origin: Origin,
    /// How far it got.
    pub state: State,
    /// ServiceNow's name for the chat: the newest one, kept after the end until the conversation is requested anew.
    pub group: Option<String>,
    /// ServiceNow's number for people, such as `IMS0000123`.
    pub number: Option<String>,
    /// The queue that was asked for.
    pub queue_id: Option<String>,
    /// Place in the queue, while waiting.
    pub position: Option<u32>,
    /// ServiceNow's words for the wait, while waiting.
    pub wait: Option<String>,
    /// Who has the chat.
    pub agent: Option<String>,
    /// Why it ended or failed.
    pub reason: Option<String>,
    /// When it was requested, the last time.
    pub opened_at: Timestamp,
    /// Since when it has had no agent: its request, or the going of the last one.
    pub waiting_since: Timestamp,
    /// When anything here changed last.
    pub updated_at: Timestamp,
    /// When the bot side took its user back, in this episode.
    pub released_at: Option<Timestamp>,
}

/// The last message that was delivered into a chat: whoever reads the chat back looks behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LastSent {
    /// Nothing was delivered after the start.
    Nothing,
    /// What ServiceNow calls it.
    Message(String),
    /// ServiceNow gave it no name: there is no place to look from.
    Unknown,
}

/// Where XO takes what is said to a conversation's user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The newest handle.
    pub handle: ReplyHandle,
    /// XO said that it is gone; the user's next event brings another.
    pub expired: bool,
}

/// A chat that ServiceNow opened for a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// ServiceNow's name for the chat.
    pub group: String,
    /// ServiceNow's number for people.
    pub number: Option<String>,
    /// The queue that it stands in.
    pub queue_id: String,
    /// Place in the queue.
    pub position: Option<u32>,
    /// ServiceNow's words for the wait.
    pub wait: Option<String>,
    /// Who has the chat.
    pub agent: Option<String>,
    /// An agent has it already.
    pub active: bool,
}

/// What a look at the chat's session state showed. It replaces what was known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observation {
    /// Place in the queue.
    pub position: Option<u32>,
    /// ServiceNow's words for the wait.
    pub wait: Option<String>,
    /// Who has the chat.
    pub agent: Option<String>,
    /// An agent has it; otherwise it waits in a queue, possibly again.
    pub active: bool,
}

/// Whose a chat is, once somebody said that it is theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// It belongs to this conversation, now or since an earlier call.
    Ours,
    /// It belongs to another conversation; nothing was changed.
    TakenByAnother,
}

/// Which conversations to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListFilter {
    /// Only those in this state.
    pub state: Option<State>,
    /// At most so many.
    pub limit: u32,
}
