//! Carries a user's side of a chat to the agents: the start, the messages, typing and the end.
//!
//! Guarantees: each file is about one API of ServiceNow or one part of a start.
//! Not responsible for: the messages of the agents (`to_bot/`), open chats without a message (`watch/`).

mod failed_start;
mod handoff;
mod incident;
mod late_start;
mod routing;
mod transcript;
mod user_files;
mod virtual_agent;

use std::sync::Arc;

use crate::bridge::best_effort::BestEffortCalls;
use crate::bridge::context::BridgeContext;
use crate::bridge::notices::Notices;
use crate::bridge::watch::gaps::GapRepair;
use crate::conversation::{Conversation, ConversationState, Directory, Origin};
use crate::delivery::{Attempt, InternalError, PriorAttempts};
use crate::message::{DeadReason, Endpoint, Handoff, Kind, Message};
use crate::platform::{ServiceNow, Xo};
pub(super) use routing::check_queues;
use user_files::TransferSlots;
use virtual_agent::VirtualAgentStarts;

const ENDPOINT: Endpoint = Endpoint::ServiceNow;

/// Makes the attempts toward ServiceNow.
#[derive(Debug)]
pub(super) struct ToAgent {
    context: Arc<BridgeContext>,
    notices: Arc<Notices>,
    best_effort: Arc<BestEffortCalls>,
    /// Reads a chat back before its end.
    gaps: Arc<GapRepair>,
    /// The starts over the Virtual Agent API that wait for a sign.
    starts: VirtualAgentStarts,
    /// Limits the concurrent transfers of files.
    transfers: TransferSlots,
}

/// One attempt toward ServiceNow.
struct HandoffHandler<'a> {
    to_agent: &'a ToAgent,
    servicenow: &'a ServiceNow,
    directory: &'a Directory,
    message: &'a Message,
    possibly_delivered: bool,
    /// The number of attempts, with this one.
    attempts: u32,
}

type HandlerResult = Result<Attempt, InternalError>;

impl ToAgent {
    pub(super) fn new(
        context: Arc<BridgeContext>,
        notices: Arc<Notices>,
        best_effort: Arc<BestEffortCalls>,
        gaps: Arc<GapRepair>,
    ) -> Self {
        let (starts, transfers) = (VirtualAgentStarts::default(), TransferSlots::default());
        Self { context, notices, best_effort, gaps, starts, transfers }
    }

    /// Makes one attempt toward ServiceNow.
    pub(super) async fn attempt(&self, message: &Message, past: PriorAttempts) -> Attempt {
        let handoff = serde_json::from_slice::<Handoff>(&message.body);
        let (Some(servicenow), Some(directory)) = (&self.context.servicenow, &self.context.directory) else {
            let why = "servicenow.host_url is not set on this worker";
            return Attempt::dead(ENDPOINT, DeadReason::Rejected, why);
        };
        let (possibly_delivered, attempts) = (past.possibly_delivered, past.count.saturating_add(1));
        let handler =
            HandoffHandler { to_agent: self, servicenow, directory, message, possibly_delivered, attempts };
        // The request may have been sent already, so the next attempt reads back before it sends.
        let done = match (message.kind, handoff) {
            (Kind::HandoffIncident, _) => handler.create_incident().await,
            (_, Ok(handoff)) => handler.deliver(&handoff).await,
            (_, Err(_)) => {
                let why = "its body is not a handoff request of this version";
                return Attempt::dead(ENDPOINT, DeadReason::Unreadable, why);
            }
        };
        done.unwrap_or_else(|error| Attempt::internal(ENDPOINT, true, error))
    }
}

/// Whether a caller of the handoff API made this request, but its conversation belongs to a bot.
fn is_foreign(xo: &Xo, handoff: &Handoff, known: Option<&Conversation>) -> bool {
    let is_of_a_bot =
        xo.is_of_a_bot(handoff.conversation()) || known.is_some_and(|known| known.origin == Origin::BotKit);
    handoff.is_from_api() && is_of_a_bot
}

/// Whether the conversation has an open chat.
fn is_open(conversation: &Conversation) -> bool {
    open_group(Some(conversation)).is_ok()
}

/// The open chat of a conversation, or the reason why there is none.
fn open_group(conversation: Option<&Conversation>) -> Result<&str, DeadReason> {
    let conversation = conversation.ok_or(DeadReason::UnknownConversation)?;
    match (conversation.state, &conversation.group) {
        (ConversationState::Waiting | ConversationState::Active, Some(group)) => Ok(group),
        (ConversationState::Failed, _) => Err(DeadReason::ConversationFailed),
        (ConversationState::Ended, _) => Err(DeadReason::ConversationOver),
        (ConversationState::Requested | ConversationState::Waiting | ConversationState::Active, _) => {
            Err(DeadReason::UnknownConversation)
        }
    }
}
