//! The channels of the simulated users: web, WhatsApp and Teams. Each channel has the shapes in which XO describes
//! it, and the fields that identify the user.
//!
//! The type name of the WhatsApp channel is not documented; the name here is an assumption.

use serde_json::{Value, json};

/// The channel of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum ChannelKind {
    /// Kore's web client.
    #[default]
    Web,
    /// WhatsApp.
    WhatsApp,
    /// Microsoft Teams.
    Teams,
}

impl ChannelKind {
    /// The value of `channel.type`.
    pub fn type_name(self) -> &'static str {
        match self {
            Self::Web => "rtm",
            Self::WhatsApp => "whatsapp",
            Self::Teams => "msteams",
        }
    }

    /// The channel with this type name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Web, Self::WhatsApp, Self::Teams].into_iter().find(|kind| kind.type_name() == name)
    }

    /// `context.session.UserContext` on this channel.
    pub(super) fn user_context(self, user: &str) -> Value {
        let teams = json!([{ "type": "msteams", "val": format!("29:{user}"),
                             "profileInfo": { "name": "Ada Lovelace", "email": "ada@example.com" } }]);
        match self {
            Self::Web => json!({ "_id": user, "firstName": "Ada", "lastName": "Lovelace",
                                 "emailId": "ada@example.com", "identities": [] }),
            Self::WhatsApp => json!({ "_id": user, "orgId": "o-1",
                                      "identities": [{ "type": "whatsapp", "val": "491700000000" }] }),
            Self::Teams => json!({ "_id": user, "orgId": "o-1", "identities": teams }),
        }
    }
}

/// The shape of `channel` in an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelShape {
    /// Names inside `channelInfos`.
    Nested,
    /// Names in `channel` itself.
    Flat,
    /// Neither `channelInfos` nor a user: only the context identifies the user.
    Bare,
}

/// The channel data of an event.
#[derive(Debug)]
pub(super) struct ChannelParts<'a> {
    pub(super) kind: ChannelKind,
    pub(super) shape: ChannelShape,
    pub(super) user: &'a str,
    pub(super) bot: &'a str,
    pub(super) session: &'a str,
    /// XO's id of the user's last message.
    pub(super) message_id: &'a str,
    pub(super) words: Option<&'a str>,
}

pub(super) fn channel(parts: &ChannelParts<'_>) -> Value {
    let ChannelParts { kind, user, bot, session, .. } = parts;
    let channel_type = kind.type_name();
    match parts.shape {
        ChannelShape::Nested => {
            let mut infos = json!({
                "requestId": parts.message_id,
                "client": "websdk", "from": user, "type": channel_type,
                "handle": { "userId": user, "handleId": "h-1", "clientId": "cl-1",
                            "taskBotId": bot, "traceId": "trace", "spanId": "span" },
                "botInfo": { "taskBotId": bot, "chatBot": "Help" },
            });
            // JavaScript omits a key without a value.
            if let Some(words) = parts.words {
                infos["message"] = json!(words);
                infos["body"] = json!(words);
            }
            json!({ "_id": "dc-00000000-0000-5000-8000-000000000001", "channelInfos": infos })
        }
        ChannelShape::Flat => {
            json!({ "from": user, "type": channel_type, "userId": user, "sessionId": session })
        }
        ChannelShape::Bare => json!({ "type": channel_type, "botLanguage": "en" }),
    }
}
