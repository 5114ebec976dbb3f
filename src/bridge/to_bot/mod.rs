//! Carries an agent's side of a chat to the bot's user: callbacks, notices, events and the end.
//!
//! Guarantees: each file is about one kind of message or one way to the bot side.
//! Not responsible for: the user's messages (`to_agent/`), open chats without a callback (`watch/`).

pub(super) mod agent_joins;
pub(super) mod bot_turn;
pub(super) mod botkit;
pub(super) mod callback;
pub(super) mod callback_routing;
pub(super) mod callback_row;
pub(super) mod closing_sentence;
pub(super) mod events;
pub(super) mod notices;
pub(super) mod recent_rows;
pub(super) mod relay;
pub(super) mod texts;
pub(super) mod user_return;
pub(super) mod virtual_agent_callback;
pub(super) mod wait_updates;

pub use callback::UnknownGroup;
pub use texts::{AgentTemplate, BotKitSettings, LanguageTexts, NoticeTexts};
