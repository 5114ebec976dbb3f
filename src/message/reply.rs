//! Where XO takes what is said back to its user: the small part of a BotKit event that a reply needs.
//!
//! XO calls it a request id; it lapses after minutes, so the newest one counts (platforms/xo.md 3.4: each event brings one,
//! `extendcallid` keeps it alive). Guarantees: `Debug` shows neither addresses nor anything of the user.
//! Leaves to others: reading it out of an event (`ingress/botkit`), which addresses may be called (`platform/xo`).
//! Source of the names: Koredotcom/BotKit, lib/sdk/ObjectTypes, and the smallest body that is known to work.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One reply handle.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyHandle {
    /// `botId`: chooses the credential.
    pub bot_id: String,
    /// `componentId`; BotKit says `default` where the address names none.
    pub component_id: String,
    /// `requestId`, as text whatever its type was.
    pub request_id: String,
    /// `baseUrl`: `https://{host}/api/botsdk/stream/{botId}`.
    pub base_url: String,
    /// `sendUserMessageUrl`
    pub send_user_message_url: String,
    /// `channel`, cut down to what names the channel and its user.
    #[serde(default)]
    pub channel: Value,
    /// `context`, as far as the settings say that it goes back.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub context: Value,
}

impl std::fmt::Debug for ReplyHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplyHandle").field("bot_id", &self.bot_id).finish_non_exhaustive()
    }
}
