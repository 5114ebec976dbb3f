//! A user of a bot, and XO between the two: posts the events that a BotKit server hears, signed and shaped as XO's are (nested on
//! a transfer, flat later), and knows what the user heard.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::{Value, json};

use super::token::token;
use super::{Handle, ROOT};
use crate::sandbox::http;
use crate::sandbox::settings::BotSettings;
use crate::sandbox::world::World;

const PATIENCE: Duration = Duration::from_secs(30);

/// Something that a user heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// The words.
    pub text: String,
    /// Shown as an agent's.
    pub as_agent: bool,
    /// The user was with an agent, as XO knew.
    pub with_agent: bool,
    /// The reply handle that it came by.
    pub handle: String,
}

/// What a BotKit server answered.
#[derive(Debug, Clone)]
pub struct BotAnswer {
    /// The HTTP status; 0 where there was no answer.
    pub status: u16,
    /// The body, where it is JSON.
    pub body: Value,
    /// The header `supportsMessageAck`.
    pub supports_ack: bool,
}

/// One user of a bot. Clones are the same user.
#[derive(Clone)]
pub struct BotUser {
    world: Arc<World>,
    bot: BotSettings,
    xo: String,
    door: String,
    user: String,
    last: Arc<Mutex<Option<(String, Value)>>>,
    client: Option<Client>,
}

impl fmt::Debug for BotUser {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("BotUser").field("user", &self.user).finish_non_exhaustive()
    }
}

impl BotUser {
    pub(in crate::sandbox) fn new(world: &Arc<World>, xo: &str, door: &str, user: &str) -> Self {
        Self {
            world: world.clone(),
            bot: world.settings.bots.first().cloned().unwrap_or_default(),
            xo: xo.to_owned(),
            door: door.trim_end_matches('/').to_owned(),
            user: user.to_owned(),
            last: Arc::default(),
            client: http::client("Koreai"),
        }
    }

    /// The same user by another bot.
    #[must_use]
    pub fn at(mut self, bot: &BotSettings) -> Self {
        self.bot = bot.clone();
        self
    }

    /// XO's name for the user.
    pub fn id(&self) -> &str {
        &self.user
    }

    /// The bot hands the user over.
    pub async fn transfers(&self, last_words: &str) -> BotAnswer {
        self.world.switchboard.board().user(&self.user).with_agent = true;
        let event = self.nested(last_words);
        self.post("on_agent_transfer", &event).await
    }

    /// The user writes: to the agent, or to the bot.
    pub async fn says(&self, text: &str) -> BotAnswer {
        let event = self.flat(text);
        self.post("on_user_message", &event).await
    }

    /// The user types.
    pub async fn types(&self) -> BotAnswer {
        let mut event = self.flat("");
        event["preDefinedEvent"] = json!({ "type": "TYPING_STARTED" });
        self.post("on_client_event", &event).await
    }

    /// The last event once more, byte for byte.
    pub async fn repeats(&self) -> BotAnswer {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (event, body) = last.unwrap_or_default();
        self.post(&event, &body).await
    }

    /// XO takes the user out of agent mode (or puts them in) by itself, as it does after some idle time.
    pub fn set_with_agent(&self, with_agent: bool) {
        self.world.switchboard.board().user(&self.user).with_agent = with_agent;
    }

    /// Whether XO has the user in agent mode.
    pub fn is_with_agent(&self) -> bool {
        self.world.switchboard.board().user(&self.user).with_agent
    }

    /// What the user heard, in order.
    pub fn heard(&self) -> Vec<Heard> {
        self.world.switchboard.board().user(&self.user).heard.clone()
    }

    /// The words alone.
    pub fn heard_texts(&self) -> Vec<String> {
        self.heard().into_iter().map(|heard| heard.text).collect()
    }

    /// How often the bot got its user back.
    pub fn clears(&self) -> u32 {
        self.world.switchboard.board().user(&self.user).clears
    }

    /// How often an agent session began.
    pub fn sessions(&self) -> u32 {
        self.world.switchboard.board().user(&self.user).sessions
    }

    /// Every reply handle of this user lapses.
    pub fn handles_lapse(&self) {
        self.world.switchboard.board().handles.retain(|_, handle| handle.user != self.user);
    }

    /// Posts an event of any shape, signed as XO signs.
    pub async fn post(&self, event: &str, body: &Value) -> BotAnswer {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((event.to_owned(), body.clone()));
        let exp = crate::clock::now().as_second() + 60;
        let claims = json!({ "appId": self.bot.app_id, "exp": exp });
        let token = token(self.bot.algorithm, &claims, &self.bot.client_secret);
        let answer = self.post_with(event, body, "token", &token).await;
        if self.world.switchboard.switches().posts_twice {
            self.post_with(event, body, "token", &token).await;
        }
        answer
    }

    /// Posts an event with this header as its credential.
    pub async fn post_with(&self, event: &str, body: &Value, header: &str, credential: &str) -> BotAnswer {
        let nothing = BotAnswer { status: 0, body: Value::Null, supports_ack: false };
        let Some(client) = &self.client else { return nothing };
        let url = format!("{}/sdk/bots/{}/{event}", self.door, self.bot.bot_id);
        let request = client
            .post(url)
            .header("content-type", "application/json")
            .header(header, credential)
            .timeout(PATIENCE)
            .body(body.to_string());
        let Ok(answer) = request.send().await else { return nothing };
        let status = answer.status().as_u16();
        let supports_ack = answer.headers().get("supportsMessageAck").is_some_and(|value| value == "true");
        let text = answer.text().await.unwrap_or_default();
        BotAnswer { status, body: serde_json::from_str(&text).unwrap_or(Value::Null), supports_ack }
    }

    /// A transfer as XO posts it: everything it knows, nested.
    pub fn nested(&self, last_words: &str) -> Value {
        let number = self.world.switchboard.board().number();
        let context = self.context(number, last_words);
        self.world.switchboard.board().user(&self.user).transferred = context.clone();
        let mut event = self.envelope(number, &context);
        event["channel"] = json!({
            "_id": "dc-00000000-0000-5000-8000-000000000001",
            "channelInfos": {
                "requestId": format!("ms-{}-{number}", self.user), "message": last_words, "body": last_words,
                "client": "websdk", "from": self.user, "type": "rtm",
                "handle": { "userId": self.user, "handleId": "h-1", "clientId": "cl-1",
                            "taskBotId": self.bot.bot_id, "traceId": "trace", "spanId": "span" },
                "botInfo": { "taskBotId": self.bot.bot_id, "chatBot": "Help" },
            },
        });
        event["callbackUrl"] =
            json!(format!("{}{ROOT}{}/serviceCallback/{number}", self.xo, self.bot.bot_id));
        event
    }

    /// A later message: flat, and named by what it says and by its request.
    pub fn flat(&self, text: &str) -> Value {
        let (number, user, stale) = {
            let mut board = self.world.switchboard.board();
            (board.number(), board.user(&self.user).clone(), board.switches.stale_context)
        };
        let with_agent = user.with_agent;
        let context = if stale && with_agent { user.transferred } else { self.context(number, text) };
        let mut event = self.envelope(number, &context);
        event["message"] = json!(text);
        event["agent_transfer"] = json!(with_agent);
        event["channel"] = json!({
            "from": self.user, "type": "rtm", "userId": self.user, "sessionId": "5f1c4ac4c0a8010e01d3e7a1",
        });
        event
    }

    fn envelope(&self, number: u64, context: &Value) -> Value {
        let request_id = format!("{}-{number}", crate::clock::now().as_millisecond());
        let base = format!("{}{ROOT}{}", self.xo, self.bot.bot_id);
        let handle = Handle {
            bot_id: self.bot.bot_id.clone(),
            user: self.user.clone(),
            fresh_at: Instant::now(),
            context: context.clone(),
        };
        self.world.switchboard.board().handles.insert(request_id.clone(), handle);
        json!({
            "requestId": request_id,
            "botId": self.bot.bot_id,
            "componentId": "default",
            "sendUserMessageUrl": format!("{base}/sendUserMessage/{request_id}"),
            "sendBotMessageUrl": format!("{base}/sendBotMessage/{request_id}"),
            "clearConversationSessionUrl": format!("{base}/clearConversationSession/{request_id}"),
            "baseUrl": base,
            "context": context,
            "metaInfo": {},
        })
    }

    fn context(&self, number: u64, last_words: &str) -> Value {
        let size = self.world.switchboard.switches().context_bytes;
        json!({
            "bot": "Help", "botid": self.bot.bot_id, "intent": "TalkToAgent",
            "entities": { "filler": "x".repeat(size) },
            "history": [{ "type": "incoming", "message": last_words }, { "dialogState": "transferredToAgent" }],
            "session": {
                "UserContext": { "_id": self.user, "firstName": "Ada", "lastName": "Lovelace",
                                 "emailId": "ada@example.com", "identities": [] },
                "BotUserSession": {
                    "conversationSessionId": "5f1c4ac4c0a8010e01d3e7a1",
                    "lastMessage": { "channel": "rtm", "messagePayload": {
                        "clientMessageId": number, "message": { "body": last_words } } },
                },
                "opts": { "userId": self.user, "streamId": self.bot.bot_id },
            },
        })
    }
}
