//! XO as one fake server. It answers every call of the BotKit API, keeps a history and files, and posts a user's
//! events.
//!
//! The fake follows `src/platform/xo/FACTS.md`, not the product. Behaviour that no source describes is a field of
//! [`Behaviour`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Response, StatusCode, Uri};
use causeway::sandbox::BotSettings;
use causeway::sandbox::botkit::{SigningAlgorithm, token};
use serde_json::{Value, json};

use super::http;
use super::relay::{Plan, Relay};

/// The answers that a test can change.
#[derive(Debug, Clone, Default)]
pub(crate) struct Behaviour {
    /// Items of `getMessages`, newest first.
    pub(crate) history: Vec<Value>,
    /// How long `getMessages` takes.
    pub(crate) history_takes: Duration,
    /// Files by their path.
    pub(crate) files: BTreeMap<String, FileAnswer>,
}

/// The answer of a file.
#[derive(Debug, Clone)]
pub(crate) struct FileAnswer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) bytes: Vec<u8>,
    /// Whether the answer is chunked and has no length.
    pub(crate) chunked: bool,
}

impl FileAnswer {
    pub(crate) fn of(content_type: &str, bytes: impl Into<Vec<u8>>) -> Self {
        let headers = vec![("content-type", content_type.to_owned())];
        Self { status: 200, headers, bytes: bytes.into(), chunked: false }
    }
}

/// A request that the fake received.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    /// Whether the request had a token.
    pub(crate) signed: bool,
    /// The header `traceparent`.
    pub(crate) traceparent: Option<String>,
    pub(crate) body: Value,
}

#[derive(Debug, Default)]
struct Inner {
    behaviour: Behaviour,
    asked: Vec<Asked>,
    next: u64,
}

/// The fake server. It ends with the test's runtime.
#[derive(Debug, Clone)]
pub(crate) struct FakeXo {
    pub(crate) url: String,
    pub(crate) bot: BotSettings,
    inner: Arc<Mutex<Inner>>,
}

impl FakeXo {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("an address");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let inner: Arc<Mutex<Inner>> = Arc::default();
        let router = Router::new().fallback(take).with_state(inner.clone());
        drop(super::spawn(async move { axum::serve(listener, router).await }));
        Self { url, bot: BotSettings::default(), inner }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The settings with which a relay serves this bot.
    pub(crate) fn settings(&self, plan: Plan) -> Plan {
        plan.set("xo.bot_id", self.bot.bot_id.clone())
            .set("xo.app_id", self.bot.app_id.clone())
            .set("xo.client_secret", self.bot.client_secret.clone())
            .set("xo.allowed_hosts", self.url.trim_start_matches("http://"))
            .set("xo.callback_url", "")
            .set("servicenow.poll_waiting", "200ms")
            .set("servicenow.poll_active", "200ms")
            .set("delivery.retry.max", "1s")
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.inner().behaviour);
    }

    /// The requests whose path contains `part`.
    pub(crate) fn asked(&self, part: &str) -> Vec<Asked> {
        self.inner().asked.iter().filter(|asked| asked.path.contains(part)).cloned().collect()
    }

    /// The texts for users, in order: the `message`, or the template's JSON text.
    pub(crate) fn told(&self) -> Vec<String> {
        let told = self.asked("/sendUserMessage/");
        let words = |body: &Value| {
            let plain = body["message"].as_str();
            plain.or(body["overrideMessagePayload"]["body"].as_str()).unwrap_or_default().to_owned()
        };
        told.iter().map(|asked| words(&asked.body)).collect()
    }

    /// An event of this user in XO's format. A test adds its content.
    pub(crate) fn event(&self, user: &str, with_agent: bool) -> Value {
        let next = {
            let mut inner = self.inner();
            inner.next += 1;
            inner.next
        };
        let base = format!("{}/api/botsdk/stream/{}", self.url, self.bot.bot_id);
        json!({
            "requestId": next, "botId": self.bot.bot_id, "componentId": "default", "baseUrl": base,
            "sendUserMessageUrl": format!("{base}/sendUserMessage/{next}"),
            "sendBotMessageUrl": format!("{base}/sendBotMessage/{next}"),
            "agent_transfer": with_agent,
            "channel": {"type": "rtm", "from": user, "channelInfos": {"requestId": format!("ms-{next}"), "from": user, "type": "rtm"}},
            "context": {"session": {
                "UserContext": {"_id": user, "firstName": "Ada", "lastName": "Lovelace", "emailId": "ada@example.com"},
                "BotUserSession": {"conversationSessionId": "5f1c4ac4c0a8010e01d3e7a1"},
                "opts": {"userId": user, "streamId": self.bot.bot_id}}},
        })
    }

    /// Posts an event, which must be accepted.
    pub(crate) async fn posts(&self, relay: &Relay, event: &str, body: &Value) {
        self.posts_with(relay, event, body, &[]).await;
    }

    /// Posts an event with more headers, which must be accepted.
    pub(crate) async fn posts_with(
        &self,
        relay: &Relay,
        event: &str,
        body: &Value,
        headers: &[(&str, &str)],
    ) {
        let url = format!("{}/sdk/bots/{}/{event}", relay.processes[0].public_url(), self.bot.bot_id);
        // The year 2100, so that a test needs no clock.
        let claims = json!({"appId": self.bot.app_id, "exp": 4_102_444_800_u64});
        let token = token(SigningAlgorithm::Hs256, &claims, &self.bot.client_secret);
        let request =
            http::client().post(url).header("content-type", "application/json").header("token", token);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let status = request.body(body.to_string()).send().await.expect("an answer").status();
        assert_eq!(status, StatusCode::OK);
    }

    /// The bot hands this user over with this last message.
    pub(crate) async fn transfers(&self, relay: &Relay, user: &str, words: &str) {
        let mut event = self.event(user, true);
        event["context"]["session"]["BotUserSession"]["lastMessage"] =
            json!({"messagePayload": {"message": {"body": words}}});
        self.posts(relay, "on_agent_transfer", &event).await;
    }

    /// The user writes to the agent. `change` adds fields beside the text.
    pub(crate) async fn says(
        &self,
        relay: &Relay,
        user: &str,
        words: Option<&str>,
        change: impl FnOnce(&mut Value),
    ) {
        let mut event = self.event(user, true);
        if let Some(words) = words {
            event["message"] = json!(words);
        }
        change(&mut event);
        self.posts(relay, "on_user_message", &event).await;
    }
}

/// One item of `getMessages`.
pub(crate) fn history_item(kind: &str, text: &str, second: u32) -> Value {
    json!({"_id": format!("ms-{second}"), "type": kind, "createdOn": format!("2026-11-28T07:00:{second:02}.000Z"),
           "components": [{"cT": "text", "data": {"text": text}}]})
}

async fn take(
    State(inner): State<Arc<Mutex<Inner>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let signed =
        headers.get("auth").is_some_and(|auth| auth.to_str().unwrap_or_default().split('.').count() == 3);
    let behaviour = {
        let mut inner = inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.asked.push(Asked {
            method: method.to_string(),
            path: uri.path().to_owned(),
            query: uri.query().unwrap_or_default().to_owned(),
            signed,
            traceparent: headers
                .get("traceparent")
                .map(|value| value.to_str().unwrap_or_default().to_owned()),
            body: serde_json::from_slice(&body).unwrap_or_default(),
        });
        inner.behaviour.clone()
    };
    if let Some(file) = behaviour.files.get(uri.path()) {
        return file_answer(file);
    }
    if uri.path().ends_with("/getMessages") {
        super::wait::let_pass(behaviour.history_takes).await;
        return json_answer(&json!({"total": behaviour.history.len(), "messages": behaviour.history}));
    }
    json_answer(&json!({"status": "ok"}))
}

fn json_answer(value: &Value) -> Response<Body> {
    Response::builder()
        .header("content-type", "application/json")
        .body(Body::from(value.to_string()))
        .expect("an answer")
}

fn file_answer(file: &FileAnswer) -> Response<Body> {
    let answer = file
        .headers
        .iter()
        .fold(Response::builder().status(file.status), |answer, (name, value)| answer.header(*name, value));
    let body = if file.chunked {
        let pieces: Vec<Result<Bytes, std::io::Error>> =
            file.bytes.chunks(64 << 10).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Body::from_stream(futures_util::stream::iter(pieces))
    } else {
        Body::from(file.bytes.clone())
    };
    answer.body(body).expect("an answer")
}
