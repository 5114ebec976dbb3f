//! The switches of the simulated XO: one for each fact about the BotKit protocol that no source documents. The defaults are the
//! strictest reading of what is documented. A test sets a switch to the other reading and shows that nothing is lost.

use serde::{Deserialize, Serialize};

/// What is not documented about XO's side of the BotKit protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BotKitSwitches {
    /// The app is subscribed to OnMessage: every message goes through the BotKit server. False: in bot mode XO talks to its bot
    /// directly and posts no message events.
    pub on_message: bool,
    /// Without that subscription XO still posts `on_user_message` in agent mode.
    pub agent_mode_without_subscription: bool,
    /// How many milliseconds XO waits for the call that lets an event go on; 0: for ever.
    pub turn_wait_ms: u64,
    /// What XO does when that time is over.
    pub after_wait: AfterWait,
    /// What XO does when an event is refused or not answered, also after the last repeat.
    pub after_refusal: AfterWait,
    /// An acknowledgement is enough to let a turn go on. No source says so.
    pub ack_is_enough: bool,
    /// An answer without `supportsMessageAck` and `ackMessage` counts as no answer.
    pub needs_ack: bool,
    /// How many milliseconds XO waits for the answer of an event.
    pub event_timeout_ms: u64,
    /// How often XO posts an event again that was refused or not answered.
    pub event_repeats: u32,
    /// How many milliseconds lie between these repeats.
    pub event_repeat_ms: u64,
    /// XO posts each event twice, as if the first answer had been lost.
    pub posts_twice: bool,
    /// A call must bring `__payloadClass`, as every public BotKit server sends it.
    pub wants_class: bool,
    /// How much of the event's `context` a call must bring back.
    pub wants_context: WantsContext,
    /// What becomes of words whose turn goes on by a skip call.
    pub skipped: Skipped,
    /// What XO does with the same call for the same event and with the same words.
    pub repeated_call: RepeatedCall,
    /// The status of a call that succeeded.
    pub ok_status: u16,
    /// Whether an answer has a body that is JSON, a refusal included.
    pub answers_json: bool,
    /// The status of a call whose `requestId` is unknown or has lapsed.
    pub lapsed_status: u16,
    /// After how many milliseconds a `requestId` lapses that is not extended.
    pub handle_life_ms: u64,
    /// `extendcallid` has no effect when the user has said nothing for so many milliseconds.
    pub extend_idle_ms: u64,
    /// What `clearAgentSession` does with a `requestId` that has lapsed.
    pub clear_of_lapsed: ClearOfLapsed,
    /// XO closes a session of a user who has said nothing for so many milliseconds; 0: never.
    pub session_idle_ms: u64,
    /// Which of `agent_transfer` and `agent_session` an event shows while an agent session runs.
    pub agent_flags: AgentFlags,
    /// The user stays in agent mode after the widget has closed the session.
    pub closure_keeps_agent_mode: bool,
    /// XO posts all messages of one answer of the bot at once, instead of one after the other.
    pub bot_messages_at_once: bool,
    /// XO waits for the call of a bot message in agent mode, too.
    pub agent_mode_bot_messages_wait: bool,
    /// XO waits for the call of an empty bot message, too.
    pub empty_messages_wait: bool,
    /// XO waits for a call when a page has loaded (`ON_CONNECT_EVENT`).
    pub connect_waits: bool,
    /// XO waits for the call of an alert.
    pub alerts_wait: bool,
    /// How many characters of a text for the user XO takes; 0: any number.
    pub text_chars_max: usize,
    /// How many characters of a text for the bot XO takes; 0: any number.
    pub bot_text_chars_max: usize,
    /// While a user is with an agent an event's `context` stays that of the transfer, the last message in it included.
    pub stale_context: bool,
    /// How large the `context` of an event is, in bytes.
    pub context_bytes: usize,
    /// `getMessages` answers oldest first, against the documentation.
    pub oldest_first: bool,
    /// The address of a user's file needs no `auth` token.
    pub files_without_token: bool,
    /// After how many milliseconds the address of a user's file is gone; 0: never.
    pub file_life_ms: u64,
    /// Where the address of a file stands in `channel.attachments[]`.
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
            skipped: Skipped::Dropped,
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

/// How much of the context a call must bring back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WantsContext {
    /// None of it.
    #[default]
    None,
    /// The names of user and session.
    Trimmed,
    /// All of it.
    Full,
}

/// What XO does when no call comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AfterWait {
    /// The words go nowhere: the bot stays silent, or the user does not read the bot.
    #[default]
    StaysSilent,
    /// XO passes the words on itself.
    GoesOn,
}

/// What becomes of words that are skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Skipped {
    /// Nobody reads them.
    #[default]
    Dropped,
    /// XO passes them on itself.
    PassedOn,
}

/// What a repeated call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RepeatedCall {
    /// It acts again: the words are read twice.
    #[default]
    Taken,
    /// It is answered with success and does nothing.
    Ignored,
    /// It is answered with 400.
    Refused,
}

/// What `clearAgentSession` does with a lapsed `requestId`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClearOfLapsed {
    /// It is refused like every other call.
    #[default]
    Refused,
    /// It works.
    Taken,
    /// It is answered with success and does nothing.
    Pretended,
}

/// Which flags say that an agent has the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentFlags {
    /// `agent_transfer` and, after `startAgentSession`, `agent_session`.
    #[default]
    Both,
    /// `agent_transfer` alone: `agent_session` is never there.
    TransferOnly,
    /// After `startAgentSession` only `agent_session` is true.
    SessionOnly,
}

/// Where the address of a file stands in an item of `channel.attachments[]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileShape {
    /// `{fileName, fileUrl}`
    #[default]
    Flat,
    /// `{fileName, url: {fileUrl}}`
    Nested,
    /// `{fileName}`: there is no address.
    NameOnly,
}
