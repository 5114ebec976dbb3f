//! Posts XO's events: signs them, applies timeout and repeats, and records for which call XO waits.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::state::{BotConnection, EventPosting, SessionKey};
use super::switches::{AfterWait, BotKitSwitches};
use super::token::token;
use super::turns;
use crate::sandbox::state::SandboxState;

/// The answer of a BotKit server.
#[derive(Debug, Clone, Default)]
pub struct BotAnswer {
    /// The HTTP status; 0 if there was no answer, or no event.
    pub status: u16,
    /// The body, if it is JSON.
    pub body: Value,
    /// The header `supportsMessageAck`.
    pub supports_ack: bool,
}

/// Records the event at once. The future posts the event until it is answered.
pub(super) fn post(
    world: &Arc<SandboxState>,
    key: &SessionKey,
    event: &str,
    body: Value,
) -> impl Future<Output = BotAnswer> + Send + use<> {
    let mut state = world.botkit.lock();
    let switches = state.switches;
    let text = body.get("message").and_then(Value::as_str).map(str::to_owned);
    let connects = body.pointer("/channel/botEvent").is_some();
    let posting = EventPosting {
        event,
        request_id: body.get("requestId").and_then(Value::as_str).unwrap_or_default(),
        text,
        waits: waits(event, &body, switches),
    };
    let waits = posting.waits;
    let number = state.posted(key, posting);
    let connection = state.session(key).connection.clone();
    drop(state);
    world.botkit.notify();
    if waits && switches.turn_wait_ms > 0 {
        let later = world.clone();
        world.task_group.start(async move {
            tokio::time::sleep(Duration::from_millis(switches.turn_wait_ms)).await;
            end_without_call(&later, number, "timeout", switches.after_wait == AfterWait::GoesOn, connects);
        });
    }
    let (world, event) = (world.clone(), event.to_owned());
    async move {
        let Some(connection) = connection else { return BotAnswer::default() };
        let answer = until_answered(&world, &connection, &event, &body, number, switches).await;
        if accepted(&answer, switches) && event == "on_webhook" && answer.status == 202 {
            world.botkit.lock().wait(number);
            world.botkit.notify();
        } else if accepted(&answer, switches) && switches.ack_is_enough {
            end_without_call(&world, number, "ack", true, connects);
        } else if !accepted(&answer, switches) {
            let goes_on = switches.after_refusal == AfterWait::GoesOn;
            if goes_on {
                end_without_call(&world, number, "refusal", true, connects);
            }
        }
        answer
    }
}

async fn until_answered(
    world: &Arc<SandboxState>,
    connection: &BotConnection,
    event: &str,
    body: &Value,
    number: u64,
    switches: BotKitSwitches,
) -> BotAnswer {
    let body = body.to_string();
    let once = async || {
        let exp = crate::clock::now().as_second() + 60;
        let claims = json!({ "appId": connection.bot.app_id, "exp": exp });
        let token = token(connection.bot.algorithm, &claims, &connection.bot.client_secret);
        let answer = post_once(world, connection, event, body.clone(), "token", &token).await;
        if let Some(event) = world.botkit.lock().event(number) {
            event.answers.push(answer.status);
        }
        world.botkit.notify();
        answer
    };
    let mut answer = once().await;
    if switches.posts_twice {
        once().await;
    }
    for _ in 0..switches.event_repeats {
        if accepted(&answer, switches) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(switches.event_repeat_ms)).await;
        answer = once().await;
    }
    answer
}

/// Posts the event once, with this credential header.
pub(super) async fn post_once(
    world: &Arc<SandboxState>,
    connection: &BotConnection,
    event: &str,
    body: String,
    header: &str,
    credential: &str,
) -> BotAnswer {
    let timeout = Duration::from_millis(world.botkit.switches().event_timeout_ms);
    let Some(client) = &world.botkit.client else { return BotAnswer::default() };
    let url = format!("{}/sdk/bots/{}/{event}", connection.ingress_url, connection.bot.bot_id);
    let request = client
        .post(url)
        .header("content-type", "application/json")
        .header(header, credential)
        .timeout(timeout)
        .body(body);
    let Ok(answer) = request.send().await else { return BotAnswer::default() };
    let status = answer.status().as_u16();
    let supports_ack = answer.headers().get("supportsMessageAck").is_some_and(|value| value == "true");
    let text = answer.text().await.unwrap_or_default();
    BotAnswer { status, body: serde_json::from_str(&text).unwrap_or(Value::Null), supports_ack }
}

fn accepted(answer: &BotAnswer, switches: BotKitSwitches) -> bool {
    let acknowledged = answer.supports_ack
        && (answer.body["ackMessage"] == json!(true)
            || answer.body["headers"]["supportsMessageAck"] == json!(true));
    (200..300).contains(&answer.status) && (!switches.needs_ack || acknowledged)
}

/// Whether XO waits for a call before it goes on after this event.
fn waits(event: &str, body: &Value, switches: BotKitSwitches) -> bool {
    let is = |field: &str| body.get(field) == Some(&json!(true));
    let with_agent = is("agent_transfer") || is("agent_session");
    let empty = body.get("message").and_then(Value::as_str).is_none_or(str::is_empty)
        && body.get("overrideMessagePayload").is_none();
    match event {
        "on_user_message" if with_agent || !switches.on_message => false,
        "on_user_message" => switches.connect_waits || body.pointer("/channel/botEvent").is_none(),
        "on_bot_message" if !switches.on_message => false,
        "on_bot_message" if with_agent => switches.agent_mode_bot_messages_wait,
        "on_bot_message" => switches.empty_messages_wait || !empty,
        "on_alert" => switches.alerts_wait,
        _ => false,
    }
}

/// Ends the wait for a call that did not come.
fn end_without_call(world: &Arc<SandboxState>, number: u64, by: &str, goes_on: bool, connects: bool) {
    let key = {
        let mut state = world.botkit.lock();
        let Some(event) = state.end_wait(number, by) else { return };
        if goes_on {
            turns::passes_on(world, &mut state, &event, connects);
        }
        event.key
    };
    world.botkit.notify();
    turns::go_on(world, &key);
}
