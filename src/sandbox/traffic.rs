//! Simulated users for the shipped compose file: every few seconds a user runs a handoff through Causeway's public API,
//! so that new dashboards show data. From time to time a platform fails for a short time.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rand::RngExt;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, sleep};

/// The target of the simulated traffic, and its amount.
#[derive(Clone)]
pub struct TrafficSettings {
    /// Causeway's `POST /v1/handoffs`.
    pub handoffs_url: String,
    /// Its bearer token.
    pub token: String,
    /// Conversations per minute.
    pub per_minute: u32,
    /// Whether platforms fail on a schedule.
    pub faults: bool,
    /// The sandbox's own address, to which scheduled faults are posted.
    pub sandbox_url: String,
    /// Whether every second user talks to XO's bot first, and is handed over by the bot.
    pub bot_users: bool,
}

impl fmt::Debug for TrafficSettings {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TrafficSettings")
            .field("per_minute", &self.per_minute)
            .field("faults", &self.faults)
            .finish_non_exhaustive()
    }
}

/// Maximum number of concurrent conversations. If Causeway is slow or unavailable, no new conversation starts.
const MOST_AT_ONCE: usize = 200;
const FAULT_EVERY: Duration = Duration::from_secs(90);

const WORDS: [&str; 6] = [
    "My laptop is on fire",
    "It is still burning",
    "The screen says <PC LOAD LETTER>",
    "I already turned it off and \"on\" again",
    "네, 감사합니다",
    "That worked, thank you",
];

/// The bot's script knows the first three texts; the bot hands over at the third.
const BOT_WORDS: [&str; 5] =
    ["menu", "password", "an agent, please", "My laptop is on fire", "That worked, thank you"];

/// Runs until cancellation.
pub async fn run(settings: TrafficSettings, stop: impl Future<Output = ()>) {
    let Some(client) = super::http::client("causeway-sandbox") else { return };
    let period = Duration::from_secs(60) / settings.per_minute.max(1);
    let mut arrivals = interval(period);
    arrivals.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (mut playing, mut arrived) = (FuturesUnordered::new(), 0_u64);
    let mishaps = mishaps(&client, &settings);
    tokio::pin!(stop, mishaps);
    loop {
        tokio::select! {
            () = &mut stop => return,
            _ = arrivals.tick(), if playing.len() < MOST_AT_ONCE => {
                arrived += 1;
                playing.push(play(&client, &settings, settings.bot_users && arrived % 2 == 0));
            }
            Some(()) = playing.next() => {}
            () = &mut mishaps, if settings.faults => {}
        }
    }
}

async fn play(client: &Client, settings: &TrafficSettings, comes_from_bot: bool) {
    if comes_from_bot { talk_to_bot(client, settings).await } else { ask_for_human(client, settings).await }
}

/// One user of XO's bot: talks to the bot, is handed over to an agent, and ends the chat in the widget.
async fn talk_to_bot(client: &Client, settings: &TrafficSettings) {
    let user = format!("{}/sandbox/users/trickle-{}", settings.sandbox_url, uuid::Uuid::now_v7());
    for words in BOT_WORDS {
        if !act(client, &format!("{user}/say"), &json!({ "text": words })).await {
            return;
        }
        pause().await;
    }
    act(client, &format!("{user}/end"), &json!({})).await;
}

async fn act(client: &Client, url: &str, body: &Value) -> bool {
    let answer = client.post(url).timeout(Duration::from_secs(15)).body(body.to_string()).send().await;
    answer.is_ok_and(|answer| answer.status().is_success())
}

/// One user: asks for an agent, writes some messages, and leaves.
async fn ask_for_human(client: &Client, settings: &TrafficSettings) {
    let conversation = format!("trickle-{}", uuid::Uuid::now_v7());
    let user = json!({ "id": format!("u-{conversation}"), "name": "Ada", "language": "en" });
    let start =
        json!({ "type": "start", "conversation_id": conversation, "message": WORDS[0], "user": user });
    if !post(client, settings, &start).await {
        return;
    }
    let lines = rand::rng().random_range(2..WORDS.len());
    for words in WORDS.iter().skip(1).take(lines) {
        pause().await;
        let message = json!({ "type": "message", "conversation_id": conversation, "message": words });
        if !post(client, settings, &message).await {
            break;
        }
    }
    pause().await;
    post(client, settings, &json!({ "type": "end", "conversation_id": conversation, "reason": "user" }))
        .await;
}

async fn pause() {
    let ms = rand::rng().random_range(1_000..4_000);
    sleep(Duration::from_millis(ms)).await;
}

/// Posts until the request is accepted, as a bot would. All attempts have the same key, so they count as one message.
async fn post(client: &Client, settings: &TrafficSettings, body: &Value) -> bool {
    let key = uuid::Uuid::now_v7().to_string();
    for _ in 0..5 {
        let request = client
            .post(&settings.handoffs_url)
            .bearer_auth(&settings.token)
            .header("idempotency-key", &key)
            .header("content-type", "application/json")
            .timeout(Duration::from_secs(15))
            .body(body.to_string());
        match request.send().await {
            Ok(answer) if answer.status().is_success() => return true,
            Ok(answer) if answer.status().is_client_error() => return false,
            _ => sleep(Duration::from_secs(2)).await,
        }
    }
    false
}

/// Requests one fault after another. Never returns.
async fn mishaps(client: &Client, settings: &TrafficSettings) {
    let mut turns = interval(FAULT_EVERY);
    turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut last = None;
    for turn in 0_usize.. {
        turns.tick().await;
        last = arrange(client, settings, turn, last).await;
    }
}

/// Requests the next fault of the schedule from the sandbox: a short one that is visible on a dashboard. Returns the
/// id of its rule.
async fn arrange(client: &Client, settings: &TrafficSettings, turn: usize, last: Option<u64>) -> Option<u64> {
    let mishaps = [
        json!({ "side": "servicenow", "times": 6, "fault": { "kind": "status", "status": 503 } }),
        json!({ "side": "events", "times": 4, "fault": { "kind": "cut" } }),
        json!({ "side": "servicenow", "times": 1, "operation": "message",
                "fault": { "kind": "too_many", "retry_after": { "seconds": 5 } } }),
        json!({ "side": "servicenow", "times": 1, "operation": "message", "after": true, "fault": { "kind": "cut" } }),
        json!({ "side": "servicenow", "times": 1, "operation": "message",
                "fault": { "kind": "status", "status": 400 } }),
        json!({ "side": "servicenow", "times": 2, "fault": { "kind": "html_page" } }),
    ];
    let rules = format!("{}/sandbox/rules", settings.sandbox_url);
    // The previous rule is removed first, so that rules do not accumulate. Other rules stay, because a person may use
    // them.
    if let Some(last) = last {
        let _ = client.delete(format!("{rules}/{last}")).send().await;
    }
    let made = client.post(&rules).body(mishaps[turn % mishaps.len()].to_string()).send().await.ok()?;
    let made: Value = serde_json::from_slice(&made.bytes().await.ok()?).ok()?;
    made["id"].as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::{FaultRule, Sandbox, SandboxSettings, Side};

    #[tokio::test]
    async fn a_fault_set_by_hand_outlives_the_schedule() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sandbox = Sandbox::start(listener, SandboxSettings::default()).await;
        let settings = TrafficSettings {
            handoffs_url: String::new(),
            token: String::new(),
            per_minute: 1,
            faults: true,
            sandbox_url: sandbox.url().to_owned(),
            bot_users: false,
        };
        let client = crate::sandbox::http::client("test").unwrap();
        let by_hand = sandbox.script().fail(FaultRule::new(Side::ServiceNow).status(503));
        let mut last = None;
        for turn in 0..3 {
            last = arrange(&client, &settings, turn, last).await;
            let rules: Vec<u64> = sandbox.script().rules().iter().map(|active| active.id).collect();
            assert_eq!(rules, [by_hand, last.unwrap()], "the schedule takes back its own rule and no other");
        }
        sandbox.stop().await;
    }
}
