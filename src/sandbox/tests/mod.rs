//! Tests of the sandbox over real HTTP.

mod botkit;
mod botkit_calls;
mod botkit_server;
mod callbacks;
mod chats;
mod faults;
mod logins;

use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::Value;
use tokio::net::TcpListener;

use super::{AgentAcceptance, AgentSettings, Sandbox, SandboxQueue, SandboxSettings};

const SOON: Duration = Duration::from_secs(10);
const USER: &str = "chatbot_interface";

struct Bench {
    sandbox: Sandbox,
    client: Client,
    queue: String,
}

fn by_hand() -> SandboxSettings {
    SandboxSettings {
        agent: AgentSettings { accept: AgentAcceptance::Manual, ..AgentSettings::default() },
        ..SandboxSettings::default()
    }
}

impl Bench {
    async fn new(settings: SandboxSettings) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sandbox = Sandbox::start(listener, settings).await;
        let client = super::http::client("test").unwrap();
        Self { sandbox, client, queue: SandboxQueue::default().id }
    }

    /// A call without login.
    fn bare(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.sandbox.url()))
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.bare(Method::GET, path).basic_auth(USER, Some("sandbox")).header("accept", "application/json")
    }

    fn post(&self, path: &str, body: &str) -> RequestBuilder {
        self.bare(Method::POST, path)
            .basic_auth(USER, Some("sandbox"))
            .header("accept", "application/json")
            .header("content-type", "application/json")
            .body(body.to_owned())
    }

    fn start(&self, text: &str) -> RequestBuilder {
        let path = format!("/api/now/connect/support/queues/{}/sessions", self.queue);
        self.post(&path, &serde_json::json!({ "message": text }).to_string())
    }

    fn say(&self, group: &str, text: &str) -> RequestBuilder {
        let path = format!("/api/now/connect/conversations/{group}/messages");
        self.post(&path, &serde_json::json!({ "message": text, "group": group }).to_string())
    }

    fn leave(&self, group: &str) -> RequestBuilder {
        self.post(&format!("/api/now/connect/support/sessions/{group}/leave"), "{}")
    }

    async fn started(&self, text: &str) -> String {
        let entry = result(self.start(text).send().await.unwrap()).await;
        entry["group"].as_str().unwrap().to_owned()
    }

    async fn entry(&self, group: &str) -> Value {
        let path = format!("/api/now/connect/support/sessions?group_id={group}");
        result(self.get(&path).send().await.unwrap()).await[0].clone()
    }
}

async fn json(response: Response) -> Value {
    serde_json::from_str(&response.text().await.unwrap()).unwrap()
}

async fn result(response: Response) -> Value {
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/json;charset=UTF-8");
    json(response).await["result"].clone()
}
