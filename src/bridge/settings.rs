//! The settings of the bridge, except the texts for a bot's users (`to_bot/texts.rs`) and the intervals of the polls
//! (`watch/poll.rs`).
//!
//! Guarantees: a value means what `config/default.toml` says about its key.
//! Not responsible for: reading the settings (`config/`).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::bridge::to_bot::texts::BotKitSettings;
use crate::files::FileLinks;
use crate::message::routing::QueueRoutes;
use crate::message::{BotSide, named};

/// Settings of delivery attempts.
#[derive(Debug, Clone)]
pub struct DeliverySettings {
    /// `servicenow.queue_id`
    pub queue_id: Option<String>,
    /// `servicenow.routes`
    pub routes: QueueRoutes,
    /// `delivery.unknown_group`
    pub unknown_group: UnknownGroup,
    /// How long a callback waits for the start that may be opening its group.
    pub unknown_group_wait: Duration,
    /// The destination of each conversation.
    pub bot_side: BotSide,
    /// XO's Callback URL is configured: unknown groups are forwarded there.
    pub relays_callbacks: bool,
    /// `handoffs.events_url` is configured.
    pub tells_events: bool,
    /// BotKit credentials of at least one bot are configured.
    pub serves_bots: bool,
    /// `servicenow.read_back`
    pub read_back: ReadBack,
    /// `servicenow.bulk_read`: tables show which of many chats need a poll, or agents' messages without a callback, if the
    /// user may read them.
    pub bulk_read: bool,
    /// `servicenow.read_rate`: the limit of requests in a second that poll the chats.
    pub read_rate: f64,
    /// Settings of the texts and calls for a bot's users.
    pub botkit: BotKitSettings,
    /// Settings of the transfer of files.
    pub files: FileSettings,
    /// Settings of chats over the Virtual Agent API.
    pub virtual_agent: VirtualAgentOptions,
    /// `servicenow.incident`: the record of a handoff that found no agent; `None` creates none.
    pub incident: Option<IncidentSettings>,
}

named! {
    /// `delivery.unknown_group`: the treatment of a callback whose `group` no conversation opened.
    #[derive(Default)]
    UnknownGroup {
        /// The callback is dead-lettered as `unknown_conversation`.
        #[default]
        DeadLetter = "dead_letter",
        /// The callback is dropped and counted, because feeds and private chats are not ours.
        Drop = "drop",
    }
}

named! {
    /// `servicenow.read_back`: the moment at which a chat is read back before an agent's message is relayed.
    #[derive(Default)]
    ReadBack {
        /// Before each message, unless its callback shows that no message is missing.
        #[default]
        Always = "always",
        /// Only if the callback itself shows a gap or a file.
        Gaps = "gaps",
    }
}

/// Settings of the transfer of files.
#[derive(Debug, Clone)]
pub struct FileSettings {
    /// Creates links. `None` if no secret to sign links is configured.
    pub links: Option<FileLinks>,
    /// `files.max_size`, in bytes.
    pub max_size: u64,
}

impl Default for FileSettings {
    fn default() -> Self {
        Self { links: None, max_size: 25 << 20 }
    }
}

/// Settings of chats over the Virtual Agent API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualAgentOptions {
    /// `servicenow.watchdog`: how long a start waits for a sign before the agent is requested again.
    pub watchdog: Duration,
    /// `servicenow.context_variables`
    pub context_variables: BTreeMap<String, String>,
    /// `servicenow.queue_variable`: the context variable that takes a start's Queue ID.
    pub queue_variable: String,
    /// `servicenow.receipts`: whether the agent sees what the user received.
    pub receipts: bool,
    /// `servicenow.tell_topics`: whether items of an agent's chat that are not marked as the agent's are relayed.
    pub tell_topics: bool,
    /// `servicenow.end_without_flag`: whether a bot's words without the flag of an agent's chat end that chat.
    pub end_without_flag: bool,
    /// `servicenow.end_sentences`: parts of the sentences in which ServiceNow announces the end of a chat.
    pub end_sentences: Vec<String>,
}

impl Default for VirtualAgentOptions {
    fn default() -> Self {
        Self {
            watchdog: Duration::from_secs(15),
            context_variables: BTreeMap::new(),
            queue_variable: "LiveAgent_queue".to_owned(),
            receipts: true,
            tell_topics: true,
            end_without_flag: false,
            end_sentences: [
                "has closed the support session",
                "has left the support session",
                "the support session was closed",
                "the conversation has ended",
                "you have left the conversation",
            ]
            .map(str::to_owned)
            .to_vec(),
        }
    }
}

/// `servicenow.incident*`
#[derive(Debug, Clone)]
pub struct IncidentSettings {
    /// The table of the record. It extends `task`, so that it has `number` and `correlation_id`.
    pub table: String,
    /// The field for the user of the handoff; `None` leaves the user out.
    pub caller_field: Option<String>,
    /// Names of fields and their values with placeholders.
    pub fields: Vec<(String, String)>,
}
