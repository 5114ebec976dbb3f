//! What Causeway needs of one of XO's events, out of a payload of up to a megabyte.
//!
//! Guarantees: every event of one user on one bot and channel names the same conversation, with nothing looked up; the same
//! event always has the same id; of `channel` and `context` only what a reply needs is kept. The shapes are those of BotKit's
//! objects (platforms/xo.md 3.1), nested on a transfer and flat later. Leaves to others: what becomes of it (`mod.rs`).

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Door, Kept};
use crate::ingress::problem::{Fault, Refusal};
use crate::message::handoff::{Attachment, Line, User};
use crate::message::ids::ID_BYTES_MAX;
use crate::message::{AllowedHosts, ConversationId, MessageId, ReplyHandle};

/// What a text may hold, in bytes: what agents and their history are worth is far below.
const TEXT_BYTES_MAX: usize = 32 << 10;
/// The newest lines of the history that an agent is shown.
const LINES_MAX: usize = 50;

/// Where a user is named, the likeliest first. XO's own id (`u-…`) is the same on every event of a user and wins wherever it
/// stands; a channel's name for its user only counts where no event says the other.
const USERS: &[&str] = &[
    "/context/session/UserContext/_id",
    "/context/session/opts/userId",
    "/channel/channelInfos/handle/userId",
    "/channel/channelInfos/from",
    "/channel/from",
    "/channel/userId",
];

/// What names a channel and its user; the rest of `channel` is the message once more.
const CHANNEL: &[&str] = &["_id", "type", "from", "userId", "sessionId", "handle", "channelInfos", "botInfo"];
const CHANNEL_INFOS: &[&str] = &["requestId", "type", "from", "handle", "botInfo"];

/// An event, and the door that it came to.
pub(super) struct Payload<'a> {
    pub(super) door: &'a Door,
    pub(super) body: &'a Value,
}

impl Payload<'_> {
    fn text_at(&self, path: &str) -> Option<&str> {
        self.body.pointer(path).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty())
    }

    /// What was said.
    pub(super) fn message(&self) -> Result<String, Refusal> {
        match self.body.get("message") {
            None | Some(Value::Null) => Ok(String::new()),
            Some(Value::String(text)) if text.len() <= TEXT_BYTES_MAX => Ok(text.clone()),
            Some(Value::String(text)) => Err(fault(
                "message",
                format!("must be at most {TEXT_BYTES_MAX} bytes long, is {}", text.len()),
            )),
            Some(_) => Err(fault("message", "must be a string")),
        }
    }

    /// Whether the user is in agent mode. `agent_transfer` says so from the transfer on, `agent_session` from the call that begins
    /// the session on; XO is not known to set both at the same time. Some clients write them as text.
    pub(super) fn is_with_agent(&self) -> bool {
        ["agent_transfer", "agent_session"].iter().any(|flag| match self.body.get(*flag) {
            Some(Value::Bool(flag)) => *flag,
            Some(Value::String(flag)) => flag.trim().eq_ignore_ascii_case("true"),
            _ => false,
        })
    }

    /// Whether it is the event of a user who pressed "end chat" in XO's web widget.
    pub(super) fn is_session_closure(&self) -> bool {
        self.text_at("/event/eventType").is_some_and(|kind| kind.eq_ignore_ascii_case("sessionClosure"))
    }

    /// The conversation of this user on this bot and channel.
    pub(super) fn conversation(&self) -> Result<ConversationId, Refusal> {
        let named = || USERS.iter().filter_map(|path| self.text_at(path));
        let user = named().find(|user| user.starts_with("u-")).or_else(|| named().next());
        let user = user.ok_or(Refusal::Insufficient(
            "context.session.UserContext._id or channel.from: the user is not named",
        ))?;
        let channel = self.text_at("/channel/type").or_else(|| self.text_at("/channel/channelInfos/type"));
        let whole = format!("{}:{user}:{}", self.door.bot_id, channel.unwrap_or("unknown"));
        let short = || format!("botkit:{}", MessageId::derived("botkit-conversation", &whole));
        ConversationId::parse(&whole)
            .or_else(|_| ConversationId::parse(&short()))
            .map_err(|_| Refusal::Insufficient("context.session.UserContext._id: cannot be used"))
    }

    /// The id of the message that this event becomes: XO's own name for the user's message, else all that may name it. Rather a
    /// repeat, should XO post an event again under another request, than the loss of a word that is said twice.
    pub(super) fn id(&self, conversation: &ConversationId, event: &str) -> MessageId {
        let digest = |parts: &[&str]| {
            let mut hash = Sha256::new();
            for part in parts {
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(part);
            }
            hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        let text = self.body.get("message").and_then(Value::as_str).unwrap_or_default();
        let client = "/context/session/BotUserSession/lastMessage/messagePayload/clientMessageId";
        let client = self.body.pointer(client).and_then(written);
        let request = self.request_id().unwrap_or_default();
        let name = match (self.user_message(), client) {
            (Some(own), _) => own.to_owned(),
            // The last message of a context may be an earlier one: then the request and what was said tell two apart.
            (None, client) => format!("{}:{}", client.unwrap_or_default(), digest(&[&request, text])),
        };
        MessageId::derived("botkit", &format!("{conversation}:{event}:{name}"))
    }

    /// `ms-…`: XO's name for the user's message.
    pub(super) fn user_message(&self) -> Option<&str> {
        self.text_at("/channel/channelInfos/requestId")
    }

    fn request_id(&self) -> Option<String> {
        self.body.get("requestId").and_then(written)
    }

    /// Refuses an event whose reply addresses Causeway may not call, whether or not it would.
    pub(super) fn check_addresses(&self, allowed: &AllowedHosts) -> Result<(), Refusal> {
        for field in ["baseUrl", "sendUserMessageUrl"] {
            match self.body.get(field) {
                None | Some(Value::Null) => {}
                Some(Value::String(address)) => {
                    allowed.admit(address).map_err(|why| Refusal::BadArgument(field, why))?;
                }
                Some(_) => return Err(Refusal::BadArgument(field, "must be a string")),
            }
        }
        Ok(())
    }

    /// Where XO takes what is said to this user. What one address lacks the other one tells.
    pub(super) fn reply(&self, kept: Kept) -> Result<ReplyHandle, Refusal> {
        const MISSING: &str = "baseUrl, sendUserMessageUrl and requestId: nobody could answer";
        let (base, send) = (self.text_at("/baseUrl"), self.text_at("/sendUserMessageUrl"));
        let of_send = send.and_then(|send| send.split_once("/sendUserMessage/"));
        let base = base.or(of_send.map(|(base, _)| base)).ok_or(Refusal::Insufficient(MISSING))?;
        let base = base.trim_end_matches('/').to_owned();
        let last = of_send.map(|(_, id)| id.to_owned()).filter(|id| !id.is_empty());
        let request_id = self.request_id().or(last).ok_or(Refusal::Insufficient(MISSING))?;
        let send = send.map_or_else(|| format!("{base}/sendUserMessage/{request_id}"), str::to_owned);
        Ok(ReplyHandle {
            bot_id: self.door.bot_id.clone(),
            component_id: self.door.component_id.clone(),
            request_id,
            base_url: base,
            send_user_message_url: send,
            channel: self.channel(),
            context: self.context(kept),
        })
    }

    fn channel(&self) -> Value {
        let Some(channel) = self.body.get("channel").and_then(Value::as_object) else { return json!({}) };
        let mut channel = only(channel, CHANNEL);
        if let Some(infos) = channel.get("channelInfos").and_then(Value::as_object) {
            let infos = only(infos, CHANNEL_INFOS);
            channel.insert("channelInfos".to_owned(), infos.into());
        }
        channel.into()
    }

    fn context(&self, kept: Kept) -> Value {
        let Some(context) = self.body.get("context").filter(|_| kept != Kept::None) else {
            return Value::Null;
        };
        if kept == Kept::Full {
            return context.clone();
        }
        let at = |path: &str| context.pointer(path).cloned().unwrap_or_default();
        json!({ "session": {
            "UserContext": { "_id": at("/session/UserContext/_id") },
            "BotUserSession": { "conversationSessionId": at("/session/BotUserSession/conversationSessionId") },
            "opts": at("/session/opts"),
        }})
    }

    /// Who asks, as the agent should see it.
    pub(super) fn user(&self) -> Option<User> {
        let at =
            |name: &str| self.text_at(&format!("/context/session/UserContext/{name}")).map(str::to_owned);
        let names: Vec<String> = [at("firstName"), at("lastName")].into_iter().flatten().collect();
        let language = self
            .text_at("/context/session/BotUserSession/currentLanguage")
            .or_else(|| self.text_at("/context/currentLanguage"))
            .map(str::to_owned)
            .or_else(|| at("lang"));
        let user = User {
            id: USERS.iter().find_map(|path| self.text_at(path)).map(str::to_owned),
            name: Some(names.join(" ")).filter(|name| !name.is_empty()),
            email: at("emailId"),
            language,
        };
        (user != User::default()).then_some(user)
    }

    /// The user's own last words: what the agent reads first.
    pub(super) fn last_words(&self) -> Option<String> {
        const PLACES: &[&str] = &[
            "/context/session/BotUserSession/lastMessage/messagePayload/message/body",
            "/channel/channelInfos/message",
            "/channel/channelInfos/body",
            "/context/userInputs/originalInput/sentence",
            "/message",
        ];
        let spoken = PLACES.iter().find_map(|path| self.text_at(path)).map(str::to_owned);
        spoken
            .or_else(|| {
                self.transcript().into_iter().rev().find(|line| line.from == "user").map(|line| line.text)
            })
            .map(|mut text| {
                cut(&mut text);
                text
            })
    }

    /// What was said before, as far as the history has texts.
    pub(super) fn transcript(&self) -> Vec<Line> {
        let history = self.body.pointer("/context/history").and_then(Value::as_array);
        let lines: Vec<Line> = history.into_iter().flatten().filter_map(line).collect();
        lines.into_iter().rev().take(LINES_MAX).rev().collect()
    }

    /// Files that came with the words. Their shape is not documented: whatever has an address counts.
    pub(super) fn attachments(&self) -> Vec<Attachment> {
        let places = [
            "/channel/attachments",
            "/channel/channelInfos/attachments",
            "/messageObject/attachments",
            "/attachments",
        ];
        let lists = places.iter().filter_map(|path| self.body.pointer(path).and_then(Value::as_array));
        let first = lists.into_iter().find(|list| !list.is_empty());
        first.into_iter().flatten().filter_map(attachment).collect()
    }
}

fn fault(field: &str, reason: impl Into<String>) -> Refusal {
    Refusal::Invalid(vec![Fault { field: field.to_owned(), reason: reason.into() }])
}

/// A name, whether XO wrote it as a text or as a number.
fn written(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn only(object: &Map<String, Value>, keys: &[&str]) -> Map<String, Value> {
    let kept = object.iter().filter(|(key, _)| keys.contains(&key.as_str()));
    // A name is short; what is not is no name.
    kept.filter(|(_, value)| value.as_str().is_none_or(|text| text.len() <= ID_BYTES_MAX))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn line(entry: &Value) -> Option<Line> {
    let text = ["message", "text", "body"].iter().find_map(|key| entry.get(key)?.as_str());
    let mut text = text.map(str::trim).filter(|text| !text.is_empty())?.to_owned();
    cut(&mut text);
    let said_by = ["type", "from", "direction", "author"].iter().find_map(|key| entry.get(key)?.as_str());
    let from = match said_by {
        Some("incoming" | "user" | "USER") => "user",
        _ => "bot",
    };
    let at = ["createdOn", "timestamp", "date"].iter().find_map(|key| entry.get(key)?.as_str());
    Some(Line { from: from.to_owned(), text, at: at.map(str::to_owned) })
}

fn cut(text: &mut String) {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

fn attachment(entry: &Value) -> Option<Attachment> {
    let found = |names: &[&str]| {
        names.iter().find_map(|name| {
            let value = entry.get(name)?;
            value.as_str().or_else(|| value.get("fileUrl")?.as_str()).map(str::to_owned)
        })
    };
    let url = found(&["url", "fileUrl"])?;
    Some(Attachment {
        url,
        name: found(&["fileName", "name"]),
        content_type: found(&["contentType", "mimeType"]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door() -> Door {
        Door {
            bot_id: "st-1".into(),
            component_id: "default".into(),
            event: super::super::Event::UserMessage,
        }
    }

    fn with<T>(body: &Value, read: impl FnOnce(&Payload<'_>) -> T) -> T {
        read(&Payload { door: &door(), body })
    }

    fn nested() -> Value {
        json!({
            "requestId": 1_501_244_156_289_u64,
            "baseUrl": "https://platform.kore.ai/api/botsdk/stream/st-1",
            "sendUserMessageUrl": "https://platform.kore.ai/api/botsdk/stream/st-1/sendUserMessage/1501244156289",
            "channel": {"_id": "dc-1", "channelInfos": {
                "requestId": "ms-1", "message": "agent please", "body": "x".repeat(9000), "client": "botbuilder",
                "from": "u-1", "type": "rtm", "handle": {"userId": "u-1"}, "botInfo": {"chatBot": "Help"}}},
            "context": {
                "history": [{"dialogState": "transferredToAgent"}, {"type": "incoming", "message": "hi"},
                            {"type": "outgoing", "message": "Hello!", "createdOn": "2026-11-22T10:00:00Z"}],
                "entities": {"big": "y".repeat(9000)},
                "session": {
                    "UserContext": {"_id": "u-1", "firstName": "Ada", "lastName": "L", "emailId": "a@example.com"},
                    "BotUserSession": {"conversationSessionId": "5f1", "lastMessage": {"channel": "rtm",
                        "messagePayload": {"clientMessageId": 7, "message": {"body": "agent please"}}}},
                    "opts": {"userId": "u-1", "streamId": "st-1"}}},
        })
    }

    fn flat() -> Value {
        json!({"requestId": "2", "message": "hello", "agent_transfer": true,
               "baseUrl": "https://platform.kore.ai/api/botsdk/stream/st-1",
               "channel": {"from": "u-1", "type": "rtm", "userId": "ada@web", "sessionId": "5f2"}})
    }

    #[test]
    fn a_user_on_a_channel_is_one_conversation_whatever_the_shape() {
        let named = |body: &Value| with(body, |payload| payload.conversation().ok().map(|id| id.to_string()));
        assert_eq!(named(&nested()).as_deref(), Some("st-1:u-1:rtm"));
        assert_eq!(named(&flat()).as_deref(), Some("st-1:u-1:rtm"));
        // The channel's own name for its user does not win over XO's.
        let both = json!({"channel": {"from": "+82 10", "userId": "u-1", "type": "whatsapp"}});
        assert_eq!(named(&both).as_deref(), Some("st-1:u-1:whatsapp"));
        let foreign = json!({"channel": {"from": "+82 10"}});
        assert_eq!(named(&foreign).as_deref(), Some("st-1:+82 10:unknown"));
        let long = json!({"channel": {"from": "u".repeat(400), "type": "rtm"}});
        assert!(named(&long).unwrap().starts_with("botkit:") && named(&long) == named(&long));
        for nobody in [json!({}), json!({"channel": {"from": " "}}), json!({"channel": "u-1"})] {
            assert_eq!(named(&nobody), None, "{nobody}");
        }
    }

    #[test]
    fn the_same_event_has_the_same_id() {
        let id = |body: &Value| {
            with(body, |payload| payload.id(&payload.conversation().unwrap(), "on_user_message"))
        };
        let changed = |path: &str, value: Value| {
            let mut body = nested();
            *body.pointer_mut(path).unwrap() = value;
            body
        };
        // XO's own name for the message decides, whatever else is new about the second post.
        assert_eq!(id(&nested()), id(&changed("/requestId", json!(9))));
        assert_ne!(id(&nested()), id(&changed("/channel/channelInfos/requestId", json!("ms-2"))));
        let nameless = |request: &str, text: &str| {
            let mut body = flat();
            (body["requestId"], body["message"]) = (json!(request), json!(text));
            id(&body)
        };
        assert_eq!(nameless("2", "a"), nameless("2", "a"));
        assert_ne!(nameless("2", "a"), nameless("2", "b"));
        assert_ne!(nameless("2", "a"), nameless("3", "a"));
        let client = |number: u64, text: &str| {
            let mut body = changed("/channel/channelInfos/requestId", Value::Null);
            body["context"]["session"]["BotUserSession"]["lastMessage"]["messagePayload"]["clientMessageId"] =
                json!(number);
            body["message"] = json!(text);
            id(&body)
        };
        assert_eq!(client(1, "yes"), client(1, "yes"));
        // The last message of a context may be that of the transfer still: the same words again are no repeat.
        let stale = |request: u64| {
            let mut body = changed("/channel/channelInfos/requestId", Value::Null);
            (body["requestId"], body["message"]) = (json!(request), json!("yes"));
            id(&body)
        };
        assert_eq!(stale(8), stale(8));
        assert_ne!(stale(8), stale(9));
        assert_ne!(client(1, "yes"), client(2, "yes"));
        assert_ne!(client(1, "yes"), client(1, "no"));
    }

    #[test]
    fn little_of_a_large_payload_is_kept() {
        let reply = |kept| with(&nested(), |payload| payload.reply(kept).ok().unwrap());
        let trimmed = reply(Kept::Trimmed);
        assert!(serde_json::to_vec(&trimmed).unwrap().len() < 1000);
        assert_eq!(trimmed.request_id, "1501244156289");
        assert_eq!(trimmed.channel_type(), Some("rtm"));
        assert_eq!(trimmed.channel["channelInfos"]["handle"]["userId"], "u-1");
        assert_eq!(trimmed.context["session"]["BotUserSession"], json!({"conversationSessionId": "5f1"}));
        assert_eq!(trimmed.context["session"]["UserContext"], json!({"_id": "u-1"}));
        assert_eq!(reply(Kept::None).context, Value::Null);
        assert_eq!(reply(Kept::Full).context, nested()["context"]);
    }

    #[test]
    fn one_address_tells_the_other() {
        let reply = |body: &Value| with(body, |payload| payload.reply(Kept::None).ok());
        let made = reply(&flat()).unwrap();
        assert_eq!(
            made.send_user_message_url,
            "https://platform.kore.ai/api/botsdk/stream/st-1/sendUserMessage/2"
        );
        let back = reply(&json!({"sendUserMessageUrl": "https://k/s/st-1/sendUserMessage/77"})).unwrap();
        assert_eq!((back.base_url.as_str(), back.request_id.as_str()), ("https://k/s/st-1", "77"));
        assert!(reply(&json!({"requestId": "1"})).is_none());
        assert!(reply(&json!({"baseUrl": "https://k/s/st-1"})).is_none());
    }

    #[test]
    fn the_agent_sees_who_asks_and_what_was_said() {
        with(&nested(), |payload| {
            let user = payload.user().unwrap();
            assert_eq!((user.name.as_deref(), user.email.as_deref()), (Some("Ada L"), Some("a@example.com")));
            assert_eq!(payload.last_words().as_deref(), Some("agent please"));
            let said: Vec<_> = payload.transcript().into_iter().map(|line| (line.from, line.text)).collect();
            assert_eq!(said, [("user".into(), "hi".into()), ("bot".into(), "Hello!".to_owned())]);
        });
        let silent = json!({"context": {"history": [{"type": "incoming", "message": "only this"}]}});
        assert_eq!(with(&silent, |payload| payload.last_words()).as_deref(), Some("only this"));
        assert_eq!(with(&json!({}), |payload| payload.last_words()), None);
    }

    #[test]
    fn a_foreign_reply_address_is_named() {
        let allowed = AllowedHosts::new(vec!["platform.kore.ai".into()]);
        assert!(with(&nested(), |payload| payload.check_addresses(&allowed)).is_ok());
        for field in ["baseUrl", "sendUserMessageUrl"] {
            let mut body = nested();
            body[field] = json!("https://evil.example/api/botsdk/stream/st-1");
            let refusal = with(&body, |payload| payload.check_addresses(&allowed)).unwrap_err();
            assert!(refusal.to_string().contains(field), "{refusal}");
        }
    }

    #[test]
    fn either_flag_means_agent_mode() {
        for (flags, expected) in [
            (json!({}), false),
            (json!({"agent_transfer": false, "agent_session": false}), false),
            (json!({"agent_transfer": true}), true),
            (json!({"agent_session": true}), true),
            (json!({"agent_transfer": false, "agent_session": true}), true),
            (json!({"agent_transfer": "true"}), true),
            (json!({"agent_session": "True "}), true),
            (json!({"agent_transfer": "false", "agent_session": null}), false),
        ] {
            assert_eq!(with(&flags, |payload| payload.is_with_agent()), expected, "{flags}");
        }
    }

    #[test]
    fn files_are_found_by_their_address() {
        let flat = json!({"channel": {"attachments": [
            {"fileName": "a.png", "fileUrl": "https://f/a"}, {"fileName": "b.pdf", "url": {"fileUrl": "https://f/b"}}]}});
        let found = with(&flat, |payload| payload.attachments());
        let named: Vec<_> = found.iter().map(|file| (file.name.as_deref(), file.url.as_str())).collect();
        assert_eq!(named, [(Some("a.png"), "https://f/a"), (Some("b.pdf"), "https://f/b")]);
        let body = json!({"messageObject": {"attachments": [
            {"url": "https://f/1", "fileName": "a.png"}, {"url": {"fileUrl": "https://f/2"}}, {"fileId": "3"}]}});
        let found = with(&body, |payload| payload.attachments());
        let urls: Vec<&str> = found.iter().map(|file| file.url.as_str()).collect();
        assert_eq!(urls, ["https://f/1", "https://f/2"]);
    }
}
