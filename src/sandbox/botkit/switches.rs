//! The switches of the simulated XO: one for each undocumented fact of the BotKit protocol. The defaults are the
//! strictest reading of the documentation. A test sets a switch to the other reading and shows that no message is
//! lost.

use serde::{Deserialize, Serialize};

/// Undocumented behaviour of XO in the BotKit protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BotKitSwitches {
    /// The app is subscribed to OnMessage: every message goes through the BotKit server. If false, XO talks to its
    /// bot directly in bot mode and posts no message events.
    pub on_message: bool,
    /// XO posts `on_user_message` in agent mode even without this subscription.
    pub agent_mode_without_subscription: bool,
    /// Milliseconds that XO waits for the call that lets an event continue; 0: no limit.
    pub turn_wait_ms: u64,
    /// XO's action after this time.
    pub after_wait: AfterWait,
    /// XO's action if an event is refused or not answered, after the last repeat.
    pub after_refusal: AfterWait,
    /// An acknowledgement is enough to continue a turn. No source documents that.
    pub ack_is_enough: bool,
    /// An answer without `supportsMessageAck` and `ackMessage` counts as no answer.
    pub needs_ack: bool,
    /// Milliseconds that XO waits for the answer to an event.
    pub event_timeout_ms: u64,
    /// Number of repeats of an event that was refused or not answered.
    pub event_repeats: u32,
    /// Milliseconds between these repeats.
    pub event_repeat_ms: u64,
    /// XO posts each event twice, as if the first answer had been lost.
    pub posts_twice: bool,
    /// A call must contain `__payloadClass`, like the calls of every public BotKit server.
    pub wants_class: bool,
    /// The part of the event's `context` that a call must return.
    pub wants_context: WantsContext,
    /// The treatment of a message after a skip call.
    pub skipped: SkippedTurn,
    /// XO's reaction to a repeated call: the same call for the same event with the same text.
    pub repeated_call: RepeatedCall,
    /// The status of a call that succeeded.
    pub ok_status: u16,
    /// Whether answers have a JSON body, including refusals.
    pub answers_json: bool,
    /// The status for a call whose `requestId` is unknown or expired.
    pub lapsed_status: u16,
    /// Milliseconds after which a `requestId` expires unless it is extended.
    pub handle_life_ms: u64,
    /// `extendcallid` has no effect after the user was idle for this number of milliseconds.
    pub extend_idle_ms: u64,
    /// The effect of `clearAgentSession` with an expired `requestId`.
    pub clear_of_lapsed: ClearOfLapsed,
    /// XO closes a session after the user was idle for this number of milliseconds; 0: never.
    pub session_idle_ms: u64,
    /// The flags `agent_transfer` and `agent_session` of events during an agent session.
    pub agent_flags: AgentFlags,
    /// The user stays in agent mode after the widget has closed the session.
    pub closure_keeps_agent_mode: bool,
    /// XO posts all messages of one bot answer at once, instead of one after the other.
    pub bot_messages_at_once: bool,
    /// XO also waits for the call of a bot message in agent mode.
    pub agent_mode_bot_messages_wait: bool,
    /// XO also waits for the call of an empty bot message.
    pub empty_messages_wait: bool,
    /// XO waits for a call when a page has loaded (`ON_CONNECT_EVENT`).
    pub connect_waits: bool,
    /// XO waits for the call of an alert.
    pub alerts_wait: bool,
    /// Maximum number of characters in a text for the user; 0: no limit.
    pub text_chars_max: usize,
    /// Maximum number of characters in a text for the bot; 0: no limit.
    pub bot_text_chars_max: usize,
    /// During agent mode, an event's `context` stays that of the transfer, including its last message.
    pub stale_context: bool,
    /// Size of an event's `context` in bytes.
    pub context_bytes: usize,
    /// `getMessages` returns the oldest message first, contrary to the documentation.
    pub oldest_first: bool,
    /// The URL of a user's file requires no `auth` token.
    pub files_without_token: bool,
    /// Milliseconds after which the URL of a user's file expires; 0: never.
    pub file_life_ms: u64,
    /// The location of a file's URL in `channel.attachments[]`.
    pub file_shape: FileShape,
}

impl Default for BotKitSwitches {
    fn default() -> Self {
        Self {
            on_message: true,
            agent_mode_without_subscription: true,
            turn_wait_ms: 0,
            after_wait: AfterWait::StaysSilent,
            after_refusal: AfterWait::StaysSilent,
            ack_is_enough: false,
            needs_ack: false,
            event_timeout_ms: 30_000,
            event_repeats: 0,
            event_repeat_ms: 1_000,
            posts_twice: false,
            wants_class: true,
            wants_context: WantsContext::None,
            skipped: SkippedTurn::Dropped,
            repeated_call: RepeatedCall::Taken,
            ok_status: 200,
            answers_json: true,
            lapsed_status: 404,
            handle_life_ms: 300_000,
            extend_idle_ms: 900_000,
            clear_of_lapsed: ClearOfLapsed::Refused,
            session_idle_ms: 0,
            agent_flags: AgentFlags::Both,
            closure_keeps_agent_mode: false,
            bot_messages_at_once: false,
            agent_mode_bot_messages_wait: true,
            empty_messages_wait: true,
            connect_waits: true,
            alerts_wait: true,
            text_chars_max: 0,
            bot_text_chars_max: 3_000,
            stale_context: false,
            context_bytes: 4_096,
            oldest_first: false,
            files_without_token: false,
            file_life_ms: 0,
            file_shape: FileShape::Flat,
        }
    }
}

/// The part of the context that a call must return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WantsContext {
    /// No part of the context.
    #[default]
    None,
    /// The names of user and session.
    Trimmed,
    /// The whole context.
    Full,
}

/// XO's action if no call comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AfterWait {
    /// The message is not passed on: the bot stays silent, or the user does not read the bot's message.
    #[default]
    StaysSilent,
    /// XO passes the message on by itself.
    GoesOn,
}

/// The treatment of a skipped message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SkippedTurn {
    /// The message is dropped.
    #[default]
    Dropped,
    /// XO passes the message on by itself.
    PassedOn,
}

/// The effect of a repeated call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RepeatedCall {
    /// The call has its effect again: the message is read twice.
    #[default]
    Taken,
    /// The call is answered with success and has no effect.
    Ignored,
    /// The call is answered with 400.
    Refused,
}

/// The effect of `clearAgentSession` with an expired `requestId`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClearOfLapsed {
    /// The call is refused like every other call.
    #[default]
    Refused,
    /// The call has its effect.
    Taken,
    /// The call is answered with success and has no effect.
    Pretended,
}

/// The flags that mark agent mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentFlags {
    /// `agent_transfer` and, after `startAgentSession`, `agent_session`.
    #[default]
    Both,
    /// Only `agent_transfer`; `agent_session` is always absent.
    TransferOnly,
    /// After `startAgentSession` only `agent_session` is true.
    SessionOnly,
}

/// The location of a file's URL in an item of `channel.attachments[]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileShape {
    /// `{fileName, fileUrl}`
    #[default]
    Flat,
    /// `{fileName, url: {fileUrl}}`
    Nested,
    /// `{fileName}`: there is no URL.
    NameOnly,
}
