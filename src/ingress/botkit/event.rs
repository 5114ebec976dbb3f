//! Reads the values that Causeway needs from one of XO's events, whose payload can be a megabyte.
//!
//! Guarantees: all events of one user on one bot and channel give the same conversation, without a lookup. The same
//! event always gets the same id. Only the parts of `channel` and `context` that a reply needs are kept. Unused
//! values are not parsed into trees. The shapes are those of BotKit's objects (`src/platform/xo/FACTS.md`), nested in
//! a transfer and flat later.
//! Not responsible for: what happens to an event (`mod.rs`), reading single values (`json_paths.rs`).

use std::borrow::Cow;
use std::collections::VecDeque;

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::attachments;
use super::json_paths::{self, EntryLimit, entries, pick, written};
use super::{BotKitIngress, BotKitRoute, ReplyContextMode, UserPaths};
use crate::http_server::problem::{ApiError, FieldError};
use crate::message::handoff::{Attachment, ChatUser, TranscriptLine};
use crate::message::ids::ID_BYTES_MAX;
use crate::message::{AllowedHosts, ConversationId, MessageId, ReplyHandle};

/// The longest text in bytes. Texts for agents and their history are far below.
const TEXT_BYTES_MAX: usize = 32 << 10;
/// The number of history lines that an agent is shown, the newest ones.
const LINES_MAX: usize = 50;
/// The longest JSON value in bytes that can be an id.
const SMALL_BYTES_MAX: usize = 4 << 10;

/// The places of a user id, the most likely first. XO's own id (`u-…`) is the same in all events of a user, so it has
/// priority in any place. A channel's id of its user counts only if no place has XO's id.
const USERS: &[&str] = &[
    "/context/session/UserContext/_id",
    "/context/session/opts/userId",
    "/channel/channelInfos/handle/userId",
    "/channel/channelInfos/from",
    "/channel/from",
    "/channel/userId",
];
const CHANNEL_TYPES: &[&str] = &["/channel/type", "/channel/channelInfos/type"];
/// XO's id of the user's message, `ms-…`.
const USER_MESSAGE: &str = "/channel/channelInfos/requestId";
/// A client's own number of its message.
const CLIENT_MESSAGE: &str = "/context/session/BotUserSession/lastMessage/messagePayload/clientMessageId";

/// The keys that identify a channel and its user. The rest of `channel` repeats the message.
const CHANNEL: &[&str] = &["_id", "type", "from", "userId", "sessionId", "handle", "channelInfos", "botInfo"];
const CHANNEL_INFOS: &[&str] = &["requestId", "type", "from", "handle", "botInfo"];

/// The paths that are read from each event in one pass.
pub(super) const READ: &[&str] = &[
    "/requestId",
    "/baseUrl",
    "/sendUserMessageUrl",
    "/sendBotMessageUrl",
    "/skipUserMessageUrl",
    "/skipBotMessageUrl",
    "/getBotVariableUrl",
    "/sendFeedbackMessageUrl",
    "/sendAlertMessageUrl",
    "/sendBotEventUrl",
    "/context",
    "/channel",
    "/message",
    "/messageObject",
    "/agent_transfer",
    "/agent_session",
    "/isTemplate",
    "/metaInfo",
    "/formattedMessage",
    "/overrideMessagePayload",
    "/metaTags",
    "/event/eventType",
    "/preDefinedEvent",
    "/customEvent",
    "/context/session/UserContext/_id",
    "/context/session/opts/userId",
    "/channel/channelInfos/handle/userId",
    "/channel/channelInfos/from",
    "/channel/from",
    "/channel/userId",
    "/channel/type",
    "/channel/channelInfos/type",
    USER_MESSAGE,
    CLIENT_MESSAGE,
    "/channel/botEvent",
];

/// The addresses of XO in an event. Addresses that Causeway does not call are not checked.
const ADDRESSES: &[&str] = &[
    "/baseUrl",
    "/sendUserMessageUrl",
    "/sendBotMessageUrl",
    "/skipUserMessageUrl",
    "/skipBotMessageUrl",
    "/sendAlertMessageUrl",
    "/sendBotEventUrl",
];

/// Escapes a part of a conversation's id. The last two colons of an id are its separators, so that no two users share
/// an id.
fn escaped(part: &str) -> Cow<'_, str> {
    if part.contains([':', '%']) { part.replace('%', "%25").replace(':', "%3A").into() } else { part.into() }
}

/// An event, with the route that received it.
pub(super) struct EventPayload<'a> {
    pub(super) route: &'a BotKitRoute,
    json: &'a str,
    found: Vec<Option<&'a RawValue>>,
}

impl<'a> EventPayload<'a> {
    /// Reads the values at the paths of [`READ`].
    pub(super) fn read(route: &'a BotKitRoute, body: &'a [u8]) -> Result<Self, ApiError> {
        let json = std::str::from_utf8(body).map_err(|error| not_utf8(body, error.valid_up_to()))?;
        let found = pick(json, READ)
            .map_err(|error| ApiError::NotJson { line: error.line(), column: error.column() })?;
        if !json.trim_start().starts_with('{') {
            let reason = "must be one JSON object".to_owned();
            return Err(ApiError::Invalid(vec![FieldError { field: "body".to_owned(), reason }]));
        }
        Ok(Self { route, json, found })
    }

    /// The JSON value at one of the paths of [`READ`].
    pub(super) fn raw_at(&self, path: &str) -> Option<&'a RawValue> {
        READ.iter().position(|known| *known == path).and_then(|place| self.found[place])
    }

    /// The same value. `None` for `null`.
    pub(super) fn at(&self, path: &str) -> Option<&'a RawValue> {
        self.raw_at(path).filter(|value| value.get() != "null")
    }

    /// The whole event as received.
    pub(super) const fn json(&self) -> &'a str {
        self.json
    }

    /// The address of an operation as JSON: the received one, or one built by XO's pattern.
    pub(super) fn address(&self, operation: &str) -> Option<String> {
        if let Some(address) = self.at(&format!("/{operation}Url")) {
            return Some(address.get().to_owned());
        }
        let (base, request) = (self.text_at("/baseUrl")?, self.request_id()?);
        let request: String = url::form_urlencoded::byte_serialize(request.as_bytes()).collect();
        Some(Value::from(format!("{}/{operation}/{request}", base.trim_end_matches('/'))).to_string())
    }

    /// Whether the message is empty: no text, and no value of another type.
    pub(super) fn is_without_words(&self) -> bool {
        self.at("/message")
            .is_none_or(|value| json_paths::text(value).is_some_and(|text| text.trim().is_empty()))
    }

    /// The file names, without a path that a name may contain.
    pub(super) fn file_names(&self) -> Option<String> {
        let names: Vec<String> = self.files().into_iter().filter_map(file_name).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    /// The values at these paths, read in one more pass.
    fn all(&self, paths: &[&str]) -> Vec<Option<&'a RawValue>> {
        pick(self.json, paths).unwrap_or_default()
    }

    fn text_at(&self, path: &str) -> Option<String> {
        self.at(path).and_then(words)
    }

    /// The text at the first of these paths that has one.
    fn first_text(&self, paths: &[&str]) -> Option<String> {
        self.all(paths).into_iter().flatten().find_map(words)
    }

    /// The text of the message.
    pub(super) fn message(&self) -> Result<String, ApiError> {
        let Some(value) = self.at("/message") else { return Ok(String::new()) };
        match json_paths::text(value) {
            Some(text) if text.len() <= TEXT_BYTES_MAX => Ok(text.into_owned()),
            Some(text) => Err(fault(
                "message",
                format!("must be at most {TEXT_BYTES_MAX} bytes long, is {}", text.len()),
            )),
            None => Err(fault("message", "must be a string")),
        }
    }

    /// Whether the user is in agent mode. `agent_transfer` is set from the transfer on, `agent_session` after the
    /// call that starts the session. XO is not known to set both at the same time. Some clients send them as text.
    pub(super) fn is_with_agent(&self) -> bool {
        ["/agent_transfer", "/agent_session"]
            .iter()
            .any(|flag| self.at(flag).is_some_and(json_paths::is_true))
    }

    /// Whether the user pressed "end chat" in XO's web widget.
    pub(super) fn is_session_closure(&self) -> bool {
        self.text_at("/event/eventType").is_some_and(|kind| kind.eq_ignore_ascii_case("sessionClosure"))
    }

    /// The type of a client event, such as `TYPING_STARTED`.
    pub(super) fn client_event(&self) -> Option<String> {
        json_paths::pick(self.at("/preDefinedEvent")?.get(), &["/type"]).ok()?.remove(0).and_then(words)
    }

    /// The conversation of this user on this bot and channel.
    pub(super) fn conversation(&self) -> Result<ConversationId, ApiError> {
        let named = || USERS.iter().filter_map(|path| self.text_at(path));
        let user = named().find(|user| user.starts_with("u-")).or_else(|| named().next());
        let user = user.ok_or(ApiError::Insufficient(
            "context.session.UserContext._id or channel.from: the user is not named",
        ))?;
        let channel = CHANNEL_TYPES.iter().find_map(|path| self.text_at(path));
        let (bot, channel) = (self.route.bot_id.as_str(), channel.as_deref().unwrap_or("unknown"));
        let whole = format!("{bot}:{}:{}", escaped(&user), escaped(channel));
        let parts = [bot, &user, channel];
        let short = || format!("{bot}:{}", MessageId::derived_from("botkit-conversation", &parts));
        ConversationId::parse(&whole)
            .or_else(|_| ConversationId::parse(&short()))
            .map_err(|_| ApiError::Insufficient("context.session.UserContext._id: cannot be used"))
    }

    /// The id of the message. It is derived from XO's id of the user's message, or otherwise from all values that may
    /// identify the event. If XO posts an event again with another requestId, the message is repeated. This is better
    /// than losing a text that a user writes twice.
    pub(super) fn id(&self, conversation: &ConversationId, event: &str) -> MessageId {
        let text = self.at("/message").and_then(json_paths::text).unwrap_or_default();
        let (conversation, request) = (conversation.as_str(), self.request_id().unwrap_or_default());
        match self.user_message() {
            Some(own) => MessageId::derived_from("botkit", &[conversation, event, &own]),
            // The last message in the context may be an earlier one. In this case the request and the text make the
            // difference.
            None => {
                let client = self.client_message().unwrap_or_default();
                let said = digest(&[&request, &text]);
                MessageId::derived_from("botkit", &[conversation, event, &client, &said])
            }
        }
    }

    /// `ms-…`: XO's id of the user's message.
    pub(super) fn user_message(&self) -> Option<String> {
        self.text_at(USER_MESSAGE)
    }

    fn client_message(&self) -> Option<Cow<'a, str>> {
        self.at(CLIENT_MESSAGE).and_then(written)
    }

    pub(super) fn request_id(&self) -> Option<Cow<'a, str>> {
        self.at("/requestId").and_then(written)
    }

    /// Refuses an event with an address that Causeway may not call, even if Causeway would not call it.
    pub(super) fn check_addresses(&self, allowed: &AllowedHosts) -> Result<(), ApiError> {
        for path in ADDRESSES {
            let field = path.trim_start_matches('/');
            let Some(value) = self.at(path) else { continue };
            let address = json_paths::text(value).ok_or(ApiError::BadArgument(field, "must be a string"))?;
            allowed.admit(&address).map_err(|why| ApiError::BadArgument(field, why))?;
        }
        Ok(())
    }

    /// The address for replies to this user. If one of the two addresses is missing, it is derived from the other.
    pub(super) fn reply(&self, settings: &BotKitIngress) -> Result<ReplyHandle, ApiError> {
        const MISSING: &str = "baseUrl, sendUserMessageUrl and requestId: without them no reply is possible";
        let (base, send) = (self.text_at("/baseUrl"), self.text_at("/sendUserMessageUrl"));
        let of_send = send.as_deref().and_then(|send| send.split_once("/sendUserMessage/"));
        let of_base = of_send.map(|(base, _)| base.to_owned());
        let base = base.or(of_base).ok_or(ApiError::Insufficient(MISSING))?;
        let base = base.trim_end_matches('/').to_owned();
        let last = of_send.map(|(_, id)| id.to_owned()).filter(|id| !id.is_empty());
        let request_id = self.request_id().map(Cow::into_owned).or(last);
        let request_id = request_id.ok_or(ApiError::Insufficient(MISSING))?;
        let send = send.unwrap_or_else(|| format!("{base}/sendUserMessage/{request_id}"));
        Ok(ReplyHandle {
            bot_id: self.route.bot_id.clone(),
            component_id: self.route.component_id.clone(),
            request_id,
            base_url: base,
            send_user_message_url: send,
            channel: self.channel(),
            language: self.first_joined(&settings.user.language, |_| true),
            context: self.context(settings.context),
        })
    }

    fn channel(&self) -> Value {
        let Some(channel) = self.at("/channel") else { return json!({}) };
        let mut kept = only(channel, CHANNEL);
        if kept.contains_key("channelInfos") {
            let infos = json_paths::pick(channel.get(), &["/channelInfos"]).unwrap_or_default();
            let infos = infos.first().copied().flatten();
            kept.insert("channelInfos".to_owned(), infos.map(|infos| only(infos, CHANNEL_INFOS)).into());
        }
        kept.into()
    }

    fn context(&self, kept: ReplyContextMode) -> Value {
        let Some(context) = self.at("/context").filter(|_| kept != ReplyContextMode::None) else {
            return Value::Null;
        };
        if kept == ReplyContextMode::Full {
            return serde_json::from_str(context.get()).unwrap_or_default();
        }
        let paths =
            ["/session/UserContext/_id", "/session/BotUserSession/conversationSessionId", "/session/opts"];
        let found = json_paths::pick(context.get(), &paths).unwrap_or_default();
        let at = |place: usize| found.get(place).copied().flatten().and_then(small).unwrap_or_default();
        json!({ "session": {
            "UserContext": { "_id": at(0) },
            "BotUserSession": { "conversationSessionId": at(1) },
            "opts": at(2),
        }})
    }

    /// The user's data that the agent sees.
    pub(super) fn user(&self, paths: &UserPaths) -> Option<ChatUser> {
        let email = self.first_joined(&paths.email, |email| email.contains('@'));
        let user = ChatUser {
            id: self.first_joined(&paths.id, |_| true),
            name: self.first_joined(&paths.name, |_| true),
            email,
            language: self.first_joined(&paths.language, |_| true),
        };
        (user != ChatUser::default()).then_some(user)
    }

    /// Returns the first value that exists and for which `fits` is true. An entry with several paths gives their
    /// values joined by blanks.
    fn first_joined(&self, wanted: &[Vec<String>], fits: impl Fn(&str) -> bool) -> Option<String> {
        let paths: Vec<&str> = wanted.iter().flatten().map(String::as_str).collect();
        let mut found = self.all(&paths).into_iter();
        let joined = wanted.iter().map(|one| {
            let words: Vec<String> =
                found.by_ref().take(one.len()).flatten().filter_map(short_words).collect();
            words.join(" ")
        });
        joined.collect::<Vec<_>>().into_iter().find(|words| !words.is_empty() && fits(words))
    }

    /// The last message of the user, which the agent reads first.
    pub(super) fn last_words(&self) -> Option<String> {
        const PLACES: &[&str] = &[
            "/context/session/BotUserSession/lastMessage/messagePayload/message/body",
            "/channel/channelInfos/message",
            "/channel/channelInfos/body",
            "/context/userInputs/originalInput/sentence",
            "/message",
        ];
        self.first_text(PLACES)
            .or_else(|| {
                self.transcript().into_iter().rev().find(|line| line.from == "user").map(|line| line.text)
            })
            .map(|mut text| {
                cut(&mut text);
                text
            })
    }

    /// The history before the transfer, as far as it has texts.
    pub(super) fn transcript(&self) -> Vec<TranscriptLine> {
        let Some(history) = self.all(&["/context/history"]).first().copied().flatten() else {
            return Vec::new();
        };
        let lines: Vec<TranscriptLine> =
            entries(history, EntryLimit::Last(4 * LINES_MAX)).into_iter().filter_map(line).collect();
        lines.into_iter().rev().take(LINES_MAX).rev().collect()
    }

    /// The files of the message. Their shape is not documented, so each entry with an address counts.
    pub(super) fn attachments(&self) -> Vec<Attachment> {
        attachments::files(self.all(attachments::PLACES))
    }

    fn files(&self) -> VecDeque<&'a RawValue> {
        let found = self.all(attachments::PLACES).into_iter().flatten();
        let mut lists = found.map(|list| entries(list, EntryLimit::First(attachments::FILES_MAX)));
        lists.find(|list| !list.is_empty()).unwrap_or_default()
    }
}

fn not_utf8(body: &[u8], at: usize) -> ApiError {
    let before = &body[..at];
    let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
    let column = before.iter().rev().take_while(|byte| **byte != b'\n').count();
    ApiError::NotJson { line, column }
}

fn fault(field: &str, reason: impl Into<String>) -> ApiError {
    ApiError::Invalid(vec![FieldError { field: field.to_owned(), reason: reason.into() }])
}

/// A text that is not empty, without surrounding blanks.
fn words(value: &RawValue) -> Option<String> {
    let text = json_paths::text(value)?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// A text or a number that is short enough for an id.
fn short_words(value: &RawValue) -> Option<String> {
    let text = written(value).filter(|text| text.len() <= ID_BYTES_MAX)?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

pub(super) fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Parses a value of a few kilobytes.
fn small(value: &RawValue) -> Option<Value> {
    let is_small = value.get().len() <= SMALL_BYTES_MAX;
    let is_text = value.get().starts_with('"');
    let value = is_small.then(|| serde_json::from_str(value.get()).ok()).flatten()?;
    // A long text cannot be an id.
    (!is_text || Value::as_str(&value).is_some_and(|text| text.len() <= ID_BYTES_MAX)).then_some(value)
}

fn only(object: &RawValue, keys: &[&str]) -> Map<String, Value> {
    let paths: Vec<String> = keys.iter().map(|key| format!("/{key}")).collect();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let found = json_paths::pick(object.get(), &paths).unwrap_or_default();
    let kept = keys.iter().zip(found).filter_map(|(key, value)| {
        // `channelInfos` is read separately.
        let nested = *key == "channelInfos";
        let value = value.and_then(|value| if nested { Some(Value::Null) } else { small(value) });
        Some(((*key).to_owned(), value?))
    });
    kept.collect()
}

fn line(entry: &RawValue) -> Option<TranscriptLine> {
    const TEXTS: [&str; 3] = ["/message", "/text", "/body"];
    const WRITERS: [&str; 4] = ["/type", "/from", "/direction", "/author"];
    const TIMES: [&str; 3] = ["/createdOn", "/timestamp", "/date"];
    let first = |paths: &[&str]| {
        let found = json_paths::pick(entry.get(), paths).unwrap_or_default();
        found.into_iter().flatten().find_map(json_paths::text)
    };
    let text = first(&TEXTS)?;
    let mut text = Some(text.trim()).filter(|text| !text.is_empty())?.to_owned();
    cut(&mut text);
    let from = match first(&WRITERS).as_deref() {
        Some("incoming" | "user" | "USER") => "user",
        _ => "bot",
    };
    Some(TranscriptLine { from: from.to_owned(), text, at: first(&TIMES).map(Cow::into_owned) })
}

fn cut(text: &mut String) {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

/// The name of a file, or the last part of its address.
fn file_name(entry: &RawValue) -> Option<String> {
    const NAMES: [&str; 5] = ["/fileName", "/name", "/fileUrl", "/url/fileUrl", "/url"];
    const CHARS_MAX: usize = 200;
    let found = json_paths::pick(entry.get(), &NAMES).unwrap_or_default();
    let name = found.into_iter().flatten().find_map(words)?;
    let name = name.split(['?', '#']).next().unwrap_or_default();
    let last = name.rsplit(['/', '\\']).find(|part| !part.is_empty()).unwrap_or("file");
    Some(last.chars().filter(|c| !c.is_control()).take(CHARS_MAX).collect())
}

#[cfg(test)]
mod tests;
