//! The calls of XO's BotKit API that a live chat needs (`src/platform/xo/FACTS.md`): send a message to the user,
//! start and end the agent session, keep the reply handle valid.
//!
//! Guarantees: an address is called only if its host is allowed, and only with the credential of the handle's bot.
//! Each attempt has a fresh token, valid for 60 s. A refused token is replaced once. No error holds chat text. The
//! request body is the smallest one that is known to work.
//! Not responsible for: which handle is used (`bridge/to_bot/botkit.rs`), what an error means.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use sha2::{Sha256, Sha512};
use url::Url;

use super::Xo;
use crate::clock;
use crate::message::{ConversationId, ReplyHandle, named};
use crate::platform::error::{AnswerKind, CallError};
use crate::platform::http::HttpCall;

/// The lifetime of a token in seconds, the same as in BotKit's own SDK.
const TOKEN_SECONDS: i64 = 60;
/// An id that belongs to no user.
const NOBODY: &str = "causeway-check";

/// The credential of one bot.
#[derive(Debug, Clone)]
pub struct XoBot {
    /// XO's id of the bot.
    pub bot_id: String,
    /// The client id of its app.
    pub app_id: String,
    /// The client secret of its app.
    pub client_secret: SecretString,
    /// The signature algorithm of the app.
    pub algorithm: TokenAlgorithm,
}

named! {
    /// `xo.jwt_algorithm`: the signature algorithm of a token. An app in XO uses one of the two.
    #[derive(Default)]
    TokenAlgorithm {
        /// HMAC with SHA-256.
        #[default]
        Hs256 = "HS256",
        /// HMAC with SHA-512.
        Hs512 = "HS512",
    }
}

impl TokenAlgorithm {
    fn sign(self, secret: &[u8], text: &str) -> Option<Vec<u8>> {
        Some(match self {
            Self::Hs256 => {
                let mac = Hmac::<Sha256>::new_from_slice(secret).ok()?.chain_update(text);
                mac.finalize().into_bytes().to_vec()
            }
            Self::Hs512 => {
                let mac = Hmac::<Sha512>::new_from_slice(secret).ok()?.chain_update(text);
                mac.finalize().into_bytes().to_vec()
            }
        })
    }
}

/// An operation on an agent session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionStep {
    /// Start the session.
    Start,
    /// End the session: the bot answers the user again.
    Clear,
    /// Extend the validity of the reply handle.
    Extend,
}

impl SessionStep {
    const fn path(self) -> &'static str {
        match self {
            Self::Start => "startAgentSession",
            Self::Clear => "clearAgentSession",
            Self::Extend => "extendcallid",
        }
    }
}

/// A message for the user.
#[derive(Clone, Copy)]
pub struct BotKitText<'a> {
    /// The text.
    pub text: &'a str,
    /// Shown as an agent's message, if the channel supports it.
    pub as_agent: bool,
    /// What the user can answer with: the title that they see, and the text that their bot gets. Only a channel that shows
    /// buttons may have them.
    pub quick_replies: &'a [(&'a str, &'a str)],
}

impl std::fmt::Debug for BotKitText<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Words")
    }
}

impl Xo {
    /// Whether this conversation came from a configured bot. Its id starts with the bot's id.
    pub fn is_of_a_bot(&self, conversation: &ConversationId) -> bool {
        let begins = |bot: &XoBot| {
            conversation.as_str().strip_prefix(bot.bot_id.as_str()).is_some_and(|rest| rest.starts_with(':'))
        };
        self.settings.get().bots.iter().any(begins)
    }

    /// The reason why this handle cannot be used at all, if there is one.
    pub fn refuses(&self, handle: &ReplyHandle) -> Option<String> {
        if self.bot(handle).is_none() {
            return Some("no credentials are configured for its bot: see xo.bots".to_owned());
        }
        let settings = self.settings.get();
        [("baseUrl", &handle.base_url), ("sendUserMessageUrl", &handle.send_user_message_url)]
            .iter()
            .find_map(|(name, address)| {
                settings.allowed_hosts.admit(address).err().map(|why| format!("its {name} {why}"))
            })
    }

    /// Sends a message to the user.
    pub async fn send_to_user(&self, handle: &ReplyHandle, words: BotKitText<'_>) -> Result<(), CallError> {
        let mut payload = payload(handle);
        if !words.quick_replies.is_empty() {
            let replies = words
                .quick_replies
                .iter()
                .map(|(title, payload)| json!({"content_type": "text", "title": title, "payload": payload}));
            let replies: Vec<Value> = replies.collect();
            let template = json!({"type": "template", "payload": {
                "template_type": "quick_replies", "text": words.text, "quick_replies": replies,
            }});
            payload["overrideMessagePayload"] = json!({"isTemplate": true, "body": template.to_string()});
        } else if words.as_agent {
            let template =
                json!({"type": "template", "payload": {"template_type": "live_agent", "text": words.text}});
            payload["overrideMessagePayload"] = json!({"isTemplate": true, "body": template.to_string()});
        } else {
            payload["message"] = json!(words.text);
        }
        self.call_bot(handle, &handle.send_user_message_url, &payload).await
    }

    /// Shows an image to the user (`src/platform/xo/FACTS.md`).
    pub async fn show_image(&self, handle: &ReplyHandle, url: &str) -> Result<(), CallError> {
        let mut payload = payload(handle);
        let template = json!({"type": "image", "payload": {"url": url}});
        payload["overrideMessagePayload"] = json!({"isTemplate": true, "body": template.to_string()});
        self.call_bot(handle, &handle.send_user_message_url, &payload).await
    }

    /// Starts, ends or extends an agent session.
    pub async fn agent_session(&self, handle: &ReplyHandle, step: SessionStep) -> Result<(), CallError> {
        let address = at(&handle.base_url, step.path(), &handle.request_id);
        self.call_bot(handle, &address, &payload(handle)).await
    }

    async fn call_bot(&self, handle: &ReplyHandle, address: &str, payload: &Value) -> Result<(), CallError> {
        self.pass_on(&handle.bot_id, address, Bytes::from(payload.to_string())).await
    }

    /// Posts a body unchanged. A refused token is replaced once, because it may have expired on the way.
    pub async fn pass_on(&self, bot_id: &str, address: &str, body: Bytes) -> Result<(), CallError> {
        let settings = self.settings.get();
        let bot = settings.bots.iter().find(|bot| bot.bot_id == bot_id);
        let bot = bot.ok_or_else(|| CallError::refused_here("its bot is not configured"))?;
        let url = settings.allowed_hosts.admit(address);
        let url: Url = url.map_err(|why| CallError::refused_here(format!("its reply address {why}")))?;
        let refused = |error: &CallError| matches!(error, CallError::Answer(answer) if answer.kind == AnswerKind::Credentials);
        let client = self.timed(settings.bots_timeout);
        match Self::post(&client.http, &url, signed(bot)?, body.clone()).await {
            Err(error) if refused(&error) => Self::post(&client.http, &url, signed(bot)?, body).await,
            done => done,
        }
    }

    /// Returns XO's status for this bot's credential. The call reads the messages of a user that does not exist: it
    /// is the only call of this API that needs no handle and changes nothing.
    pub(crate) async fn try_bot(&self, bot: &XoBot, root: &Url) -> Result<StatusCode, CallError> {
        let mut url = root.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["api", "botsdk", "stream", &bot.bot_id, "getMessages"]);
        }
        url.query_pairs_mut().extend_pairs([("skip", "0"), ("limit", "1"), ("userId", NOBODY)]);
        let call = HttpCall { method: Method::GET, url, headers: signed(bot)?, body: None };
        Ok(self.http.call(call).await?.status)
    }

    pub(super) fn bot(&self, handle: &ReplyHandle) -> Option<XoBot> {
        self.settings.get().bots.iter().find(|bot| bot.bot_id == handle.bot_id).cloned()
    }
}

fn at(base_url: &str, operation: &str, request_id: &str) -> String {
    let id: String = url::form_urlencoded::byte_serialize(request_id.as_bytes()).collect();
    format!("{}/{operation}/{id}", base_url.trim_end_matches('/'))
}

fn payload(handle: &ReplyHandle) -> Value {
    let mut payload = json!({
        "__payloadClass": "OnMessagePayload",
        "requestId": handle.request_id,
        "botId": handle.bot_id,
        "componentId": handle.component_id,
        "sendUserMessageUrl": handle.send_user_message_url,
        "sendBotMessageUrl": at(&handle.base_url, "sendBotMessage", &handle.request_id),
        "channel": handle.channel,
    });
    if !handle.context.is_null() {
        payload["context"] = handle.context.clone();
    }
    payload
}

pub(super) fn signed(bot: &XoBot) -> Result<HeaderMap, CallError> {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let exp = clock::machine().as_second() + TOKEN_SECONDS;
    let claims = json!({ "appId": bot.app_id, "exp": exp });
    let header = json!({ "typ": "JWT", "alg": bot.algorithm.as_str() });
    let token = format!("{}.{}", part(&header), part(&claims));
    let signature = bot
        .algorithm
        .sign(bot.client_secret.expose_secret().as_bytes(), &token)
        .ok_or_else(|| CallError::not_made("the client secret cannot be a key"))?;
    let token = format!("{token}.{}", URL_SAFE_NO_PAD.encode(signature));
    let mut value =
        HeaderValue::try_from(token).map_err(|_| CallError::not_made("the token fits into no header"))?;
    value.set_sensitive(true);
    Ok(HeaderMap::from_iter([(HeaderName::from_static("auth"), value)]))
}

#[cfg(test)]
mod tests {
    use super::super::XoSettings;
    use super::*;
    use crate::message::AllowedHosts;
    use crate::platform::peer::{self, Peer};

    fn handle(base: &Url) -> ReplyHandle {
        let base = format!("{base}api/botsdk/stream/st-1");
        ReplyHandle {
            bot_id: "st-1".into(),
            component_id: "default".into(),
            request_id: "77".into(),
            send_user_message_url: format!("{base}/sendUserMessage/77"),
            base_url: base,
            channel: json!({"type": "rtm", "from": "u-1"}),
            language: None,
            context: Value::Null,
        }
    }

    fn xo(hosts: Vec<String>) -> Xo {
        let bot = XoBot {
            bot_id: "st-1".into(),
            app_id: "cs-1".into(),
            client_secret: "shared-secret".into(),
            algorithm: TokenAlgorithm::default(),
        };
        let allowed_hosts = AllowedHosts::new(hosts);
        Xo::new(peer::http(), XoSettings { bots: vec![bot], allowed_hosts, ..XoSettings::default() })
    }

    fn host(url: &Url) -> String {
        format!("{}:{}", url.host_str().unwrap(), url.port().unwrap())
    }

    fn tokens(heard: &str) -> Vec<String> {
        heard
            .lines()
            .filter_map(|line| line.strip_prefix("auth: "))
            .map(|line| line.trim().to_owned())
            .collect()
    }

    #[tokio::test]
    async fn the_smallest_body_and_a_fresh_token_go_out() {
        let peer = Peer::saying("HTTP/1.1 200 OK\n\n").await;
        let xo = xo(vec![host(&peer.url)]);
        xo.send_to_user(
            &handle(&peer.url),
            BotKitText { text: "hello", as_agent: false, quick_replies: &[] },
        )
        .await
        .unwrap();
        let heard = peer.heard.lock().unwrap().concat();
        let (head, body) = heard.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /api/botsdk/stream/st-1/sendUserMessage/77 HTTP/1.1"), "{head}");
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!((&body["message"], &body["requestId"]), (&json!("hello"), &json!("77")));
        assert_eq!(body.get("context"), None);
        let token = tokens(head).remove(0);
        let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
        let claims: Value = serde_json::from_slice(&claims).unwrap();
        let life = claims["exp"].as_i64().unwrap() - clock::now().as_second();
        assert_eq!(claims["appId"], "cs-1");
        assert!((58..=60).contains(&life), "{life}");
    }

    #[tokio::test]
    async fn the_agent_speaks_in_a_template() {
        let peer = Peer::saying("HTTP/1.1 200 OK\n\n").await;
        let xo = xo(vec![host(&peer.url)]);
        xo.send_to_user(
            &handle(&peer.url),
            BotKitText { text: "say \"hi\"", as_agent: true, quick_replies: &[] },
        )
        .await
        .unwrap();
        let heard = peer.heard.lock().unwrap().concat();
        let body: Value = serde_json::from_str(heard.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!(
            (body.get("message"), &body["overrideMessagePayload"]["isTemplate"]),
            (None, &json!(true))
        );
        let inner: Value =
            serde_json::from_str(body["overrideMessagePayload"]["body"].as_str().unwrap()).unwrap();
        assert_eq!(inner["payload"], json!({"template_type": "live_agent", "text": "say \"hi\""}));
    }

    #[tokio::test]
    async fn a_refused_token_is_replaced_once() {
        let peer = Peer::saying("HTTP/1.1 401 Unauthorized\n\n").await;
        let xo = xo(vec![host(&peer.url)]);
        let error = xo.agent_session(&handle(&peer.url), SessionStep::Clear).await.unwrap_err();
        assert_eq!(error.status(), Some(401));
        let heard = peer.heard.lock().unwrap().concat();
        assert_eq!(tokens(&heard).len(), 2, "{heard}");
        assert!(heard.contains("POST /api/botsdk/stream/st-1/clearAgentSession/77"), "{heard}");
    }

    #[tokio::test]
    async fn a_foreign_address_is_never_called() {
        let peer = Peer::saying("HTTP/1.1 200 OK\n\n").await;
        let xo = xo(vec!["platform.kore.ai".to_owned()]);
        let handle = handle(&peer.url);
        assert!(xo.refuses(&handle).is_some_and(|why| why.contains("xo.allowed_hosts")));
        xo.send_to_user(&handle, BotKitText { text: "x", as_agent: false, quick_replies: &[] })
            .await
            .unwrap_err();
        xo.agent_session(&handle, SessionStep::Extend).await.unwrap_err();
        assert!(peer.heard.lock().unwrap().concat().is_empty());
    }

    #[test]
    fn a_bot_knows_its_conversations_and_shows_no_secret() {
        let xo = xo(Vec::new());
        let of = |id: &str| xo.is_of_a_bot(&ConversationId::parse(id).unwrap());
        assert!(of("st-1:u-1:rtm") && !of("st-12:u-1:rtm") && !of("c-1"));
        assert!(!format!("{xo:?} {:?}", xo.settings.get().bots).contains("shared-secret"));
    }
}
