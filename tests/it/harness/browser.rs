//! A real browser: headless Chromium, controlled over WebDriver.
//!
//! Its profile is in a temporary folder, and the browser and its driver end with the test. Tests query the page as a
//! person sees it: by its text and the names of the fields.

use std::time::Duration;

use reqwest::Client;
use serde_json::{Value, json};

use super::leash::Leash;
use super::wait::eventually;
use super::{http, ports, told};

const PATIENCE: Duration = Duration::from_secs(60);
/// The key of an element in WebDriver.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

#[derive(Debug)]
pub(crate) struct Browser {
    session: String,
    client: Client,
    _driver: Leash,
}

impl Browser {
    /// Starts the browser. Fails the test if the machine lacks Chromium or its driver.
    pub(crate) async fn start() -> Option<Self> {
        let path = told("PATH").unwrap_or_default();
        let there = |name: &str| std::env::split_paths(&path).any(|folder| folder.join(name).exists());
        let installed = there("chromedriver") && (there("chromium") || there("google-chrome"));
        assert!(installed, "chromium and chromium-driver are not installed (tests/run installs them)");
        let [port] = ports::free_ports();
        let driver = Leash::start("private-chromedriver", "TERM", &[port.to_string()]);
        let (root, client) = (format!("http://127.0.0.1:{port}"), http::client());
        eventually("the browser's driver", PATIENCE, async || {
            let asked = client.get(format!("{root}/status")).send().await;
            asked.map(drop).map_err(|error| format!("{error}\n{}", driver.log_tail()))
        })
        .await;
        let profile = format!("--user-data-dir={}", driver.dir().join("profile").display());
        let args = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--remote-debugging-pipe",
            "--window-size=1280,1000",
            &profile,
        ];
        let wanted = json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": { "args": args } } } });
        let session = eventually("a session in the browser", PATIENCE, async || {
            let begun =
                command(client.post(format!("{root}/session")).timeout(PATIENCE), wanted.clone()).await;
            let begun = begun.map_err(|error| format!("{error}\n{}", driver.log_tail()))?;
            Ok(format!("{root}/session/{}", begun["sessionId"].as_str().expect("a session's id")))
        })
        .await;
        Some(Self { session, client, _driver: driver })
    }

    /// Opens an address.
    pub(crate) async fn open(&self, url: &str) {
        self.post("url", json!({ "url": url })).await.expect("a page");
    }

    /// Clicks the element of this CSS selector, and waits for the next page.
    pub(crate) async fn press(&self, css: &str) {
        let element = self.element("css selector", css).await;
        self.post(&format!("element/{element}/click"), json!({})).await.expect("a click");
    }

    /// Follows the first link that contains this text.
    pub(crate) async fn follow(&self, text: &str) {
        let element = self.element("partial link text", text).await;
        self.post(&format!("element/{element}/click"), json!({})).await.expect("a click");
    }

    /// Clicks the first button that contains this text.
    pub(crate) async fn button(&self, text: &str) {
        let element = self.element("xpath", &format!("//button[contains(., '{text}')]")).await;
        self.post(&format!("element/{element}/click"), json!({})).await.expect("a click");
    }

    /// Writes into a field.
    pub(crate) async fn write(&self, css: &str, text: &str) {
        let element = self.element("css selector", css).await;
        self.post(&format!("element/{element}/value"), json!({ "text": text })).await.expect("a field");
    }

    /// The text of the page as a person reads it.
    pub(crate) async fn text(&self) -> String {
        let script = json!({ "script": "return document.body.innerText", "args": [] });
        let text = self.post("execute/sync", script).await.expect("the page's text");
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Shows pages as wide as this from now on, as on a phone or on a desk.
    pub(crate) async fn width(&self, width: u32) {
        let size = json!({ "width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600 });
        let wide = json!({ "cmd": "Emulation.setDeviceMetricsOverride", "params": size });
        self.post("goog/cdp/execute", wide).await.expect("the width");
    }

    /// Fails the test if axe-core finds a violation of accessibility on the page, or if the page is wider than the window.
    pub(crate) async fn is_accessible(&self, what: &str) {
        let file = told("CAUSEWAY_TEST_AXE").expect("tests/run installs axe-core and sets CAUSEWAY_TEST_AXE");
        let axe = std::fs::read_to_string(file).expect("axe-core");
        let run = "const done = arguments[arguments.length - 1]; axe.run().then(found => done(found.violations.map(one => \
                   one.id + ': ' + one.nodes.map(node => node.html).join(' '))), error => done([String(error)]))";
        let is_there = json!({ "script": "return typeof axe === 'object'", "args": [] });
        if self.post("execute/sync", is_there).await.expect("an answer") == false {
            self.post("execute/sync", json!({ "script": axe, "args": [] })).await.expect("axe-core");
        }
        let found = self.post("execute/async", json!({ "script": run, "args": [] })).await.expect("a result");
        assert_eq!(found, json!([]), "{what}");
        let script = "return [document.documentElement.scrollWidth, window.innerWidth]";
        let widths =
            self.post("execute/sync", json!({ "script": script, "args": [] })).await.expect("widths");
        assert!(widths[0].as_u64() <= widths[1].as_u64(), "{what} is wider than the window: {widths}");
    }

    /// Presses keys, one after another, as a person does who has no mouse. Tab is `\u{e004}`, Enter is `\u{e007}`, space is a space.
    pub(crate) async fn keys(&self, keys: &str) {
        let press = |key: char| {
            [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })]
        };
        let actions: Vec<Value> = keys.chars().flat_map(press).collect();
        let actions = json!({ "actions": [{ "type": "key", "id": "keys", "actions": actions }] });
        self.post("actions", actions).await.expect("keys");
    }

    /// Moves the browser into a time zone.
    pub(crate) async fn in_zone(&self, zone: &str) {
        let zone = json!({ "cmd": "Emulation.setTimezoneOverride", "params": { "timezoneId": zone } });
        self.post("goog/cdp/execute", zone).await.expect("the time zone");
    }

    /// Requests the dark colours from now on, and returns the background colour of the page.
    pub(crate) async fn in_the_dark(&self) -> String {
        let features = [json!({ "name": "prefers-color-scheme", "value": "dark" })];
        let dark = json!({ "cmd": "Emulation.setEmulatedMedia", "params": { "features": features } });
        self.post("goog/cdp/execute", dark).await.expect("the dark");
        let script =
            json!({ "script": "return getComputedStyle(document.body).backgroundColor", "args": [] });
        self.post("execute/sync", script).await.expect("a colour").to_string()
    }

    /// Waits until the page contains this text.
    pub(crate) async fn reads(&self, words: &str) {
        eventually(&format!("{words:?} on the page"), PATIENCE, async || {
            let text = self.text().await;
            if text.contains(words) { Ok(()) } else { Err(text) }
        })
        .await;
    }

    /// The title of the tab.
    pub(crate) async fn title(&self) -> String {
        let answer = self.client.get(format!("{}/title", self.session)).send().await.expect("an answer");
        let answer: Value = serde_json::from_str(&answer.text().await.expect("a body")).expect("JSON");
        answer["value"].as_str().unwrap_or_default().to_owned()
    }

    /// Saves a screenshot in the folder that `TESTS_PICTURES` names.
    pub(crate) async fn picture(&self, name: &str) {
        let Some(folder) = told("TESTS_PICTURES") else { return };
        let answer = self.client.get(format!("{}/screenshot", self.session)).send().await.expect("an answer");
        let answer: Value = serde_json::from_str(&answer.text().await.expect("a body")).expect("JSON");
        let bytes = base64::Engine::decode(
            &base64::engine::general_purpose::STANDARD,
            answer["value"].as_str().expect("a picture"),
        );
        std::fs::write(std::path::Path::new(&folder).join(format!("{name}.png")), bytes.expect("base64"))
            .expect("a file");
    }

    async fn element(&self, using: &str, value: &str) -> String {
        eventually(&format!("{using} {value:?}"), PATIENCE, async || {
            match self.post("element", json!({ "using": using, "value": value })).await {
                Ok(found) => Ok(found[ELEMENT].as_str().expect("an element").to_owned()),
                Err(error) => Err(format!("{error}\n{}", self.text().await)),
            }
        })
        .await
    }

    async fn post(&self, what: &str, body: Value) -> Result<Value, String> {
        command(self.client.post(format!("{}/{what}", self.session)), body).await
    }
}

async fn command(request: reqwest::RequestBuilder, body: Value) -> Result<Value, String> {
    let request = request.header("content-type", "application/json").body(body.to_string());
    let response = request.send().await.map_err(|error| error.to_string())?;
    let (status, text) = (response.status(), response.text().await.map_err(|error| error.to_string())?);
    let mut answer: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
    if status.is_success() { Ok(answer["value"].take()) } else { Err(answer["value"]["message"].to_string()) }
}
