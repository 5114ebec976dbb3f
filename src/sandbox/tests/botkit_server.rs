//! A BotKit server that only acknowledges, and a user of a bot whose events go to it.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::json;

use super::*;
use crate::sandbox::botkit::{BotScript, BotUser, token};
use crate::sandbox::{BotKitSwitches, BotSettings};

/// A BotKit server that records and answers events, and makes no call by itself.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) url: String,
    status: Arc<Mutex<u16>>,
    events: Arc<Mutex<Vec<(String, Value, HeaderMap)>>>,
}

impl Server {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Self { url, status: Arc::new(Mutex::new(200)), events: Arc::default() };
        let router = Router::new()
            .route("/sdk/bots/{bot}/{event}", post(acknowledge))
            .layer(axum::extract::DefaultBodyLimit::max(4 << 20))
            .with_state(server.clone());
        drop(crate::tasks::spawn(async move { axum::serve(listener, router).await }));
        server
    }

    pub(super) fn answers(&self, status: u16) {
        *self.status.lock().unwrap() = status;
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.events.lock().unwrap().iter().map(|(name, ..)| name.clone()).collect()
    }

    /// The last event of this name.
    pub(super) fn last(&self, name: &str) -> Value {
        let events = self.events.lock().unwrap();
        events.iter().rev().find(|(event, ..)| event == name).unwrap().1.clone()
    }
}

async fn acknowledge(
    State(server): State<Server>,
    Path((_, event)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut event_body: Value = serde_json::from_slice(&body).unwrap();
    server.events.lock().unwrap().push((event, event_body.clone(), headers));
    event_body["ackMessage"] = json!(true);
    let status = StatusCode::from_u16(*server.status.lock().unwrap()).unwrap();
    (status, [("supportsMessageAck", "true")], event_body.to_string()).into_response()
}

pub(super) struct Scene {
    pub(super) bench: Bench,
    pub(super) server: Server,
    pub(super) user: BotUser,
}

impl Scene {
    pub(super) async fn new(script: BotScript, switches: BotKitSwitches) -> Self {
        let bots = vec![BotSettings { script, ..BotSettings::default() }];
        let bench = Bench::new(SandboxSettings { bots, botkit: switches, ..by_hand() }).await;
        let server = Server::start().await;
        let user = bench.sandbox.bot_user(&server.url, "u-1");
        Self { bench, server, user }
    }

    pub(super) async fn help_desk() -> Self {
        Self::new(BotScript::help_desk(), BotKitSwitches::default()).await
    }

    pub(super) fn switch(&self, switches: BotKitSwitches) {
        self.bench.sandbox.set_botkit(switches);
    }

    /// Makes the call of a BotKit server for this event: posts the event's own payload to one of its URLs.
    pub(super) async fn call(&self, event: &Value, call: &str) -> u16 {
        self.call_with(event, call, &signed(60, &BotSettings::default())).await
    }

    pub(super) async fn call_with(&self, event: &Value, call: &str, credential: &str) -> u16 {
        let mut body = event.clone();
        body["__payloadClass"] = json!("OnMessagePayload");
        let url =
            format!("{}/{call}/{}", event["baseUrl"].as_str().unwrap(), event["requestId"].as_str().unwrap());
        let request = self.bench.client.post(url).header("auth", credential).body(body.to_string());
        request.send().await.unwrap().status().as_u16()
    }

    /// Passes on the last event of this name after XO has posted `count` of them.
    pub(super) async fn passes_on(&self, name: &str, count: usize) -> u16 {
        let posted = |user: &BotUser| user.events().iter().filter(|event| event.event == name).count();
        self.until(|user| posted(user) >= count).await;
        let seen = async || {
            while self.server.names().iter().filter(|event| *event == name).count() < count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, seen()).await.unwrap();
        let call = if name == "on_bot_message" { "sendUserMessage" } else { "sendBotMessage" };
        self.call(&self.server.last(name), call).await
    }

    pub(super) async fn until(&self, condition: impl Fn(&BotUser) -> bool) {
        let user = &self.user;
        assert!(user.wait_for(condition, SOON).await, "{:?}", user.events());
    }

    pub(super) fn waiting(&self) -> Vec<String> {
        self.bench.sandbox.waiting_events().into_iter().map(|event| event.event).collect()
    }
}

pub(super) fn signed(seconds: i64, bot: &BotSettings) -> String {
    let claims = json!({ "appId": bot.app_id, "exp": crate::clock::now().as_second() + seconds });
    token(bot.algorithm, &claims, &bot.client_secret)
}
