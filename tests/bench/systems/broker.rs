//! The RabbitMQ that all systems share, with a separate virtual host for each job. Measures the broker's own cost.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use url::Url;

use super::account::{self, Usage};
use super::driver::pass;

/// The address of the broker and its management API.
#[derive(Debug)]
pub(crate) struct Broker {
    amqp: Url,
    management: Url,
    client: Client,
    pid: Option<u32>,
}

impl Broker {
    pub(crate) fn new(amqp: &str, management: &str) -> anyhow::Result<Self> {
        let amqp = Url::parse(amqp).context("the broker's URL")?;
        let management = Url::parse(management).context("the URL of the broker's management")?;
        #[expect(
            clippy::disallowed_methods,
            reason = "a benchmark is somebody else's client, not the product's"
        )]
        let client = Client::builder().no_proxy().build()?;
        let pid = amqp.port().and_then(account::listener);
        Ok(Self { amqp, management, client, pid })
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<String> {
        let url = self.management.join(path)?;
        let password = self.amqp.password();
        let request = self.client.request(method, url).basic_auth(self.amqp.username(), password);
        let request = request.header("content-type", "application/json");
        let answer = request.body(body.map(|body| body.to_string()).unwrap_or_default()).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success() || status.as_u16() == 404, "{path}: {status} {text}");
        Ok(text)
    }

    /// Creates an empty virtual host and returns its URL.
    pub(crate) async fn fresh(&self, name: &str) -> anyhow::Result<String> {
        self.forget(name).await?;
        self.ask(Method::PUT, &format!("/api/vhosts/{name}"), Some(json!({}))).await?;
        let all = json!({ "configure": ".*", "write": ".*", "read": ".*" });
        let user = self.amqp.username();
        self.ask(Method::PUT, &format!("/api/permissions/{name}/{user}"), Some(all)).await?;
        let mut url = self.amqp.clone();
        url.set_path(&format!("/{name}"));
        Ok(url.into())
    }

    /// Deletes the virtual host with its contents. A busy broker may need several attempts.
    pub(crate) async fn forget(&self, name: &str) -> anyhow::Result<()> {
        let path = format!("/api/vhosts/{name}");
        let mut tries = 1;
        loop {
            match self.ask(Method::DELETE, &path, None).await {
                Err(_) if tries < 5 => tries += 1,
                done => return done.map(drop),
            }
            pass(Duration::from_secs(1)).await;
        }
    }

    pub(crate) fn usage(&self) -> Usage {
        self.pid.map(|pid| account::usage(&[pid])).unwrap_or_default()
    }

    /// The version, such as `RabbitMQ 4.3.6`.
    pub(crate) async fn version(&self) -> anyhow::Result<String> {
        let overview: Value = serde_json::from_str(&self.ask(Method::GET, "/api/overview", None).await?)?;
        let text = |key: &str| overview[key].as_str().unwrap_or("?").to_owned();
        Ok(format!("RabbitMQ {} on Erlang {}", text("rabbitmq_version"), text("erlang_version")))
    }
}
