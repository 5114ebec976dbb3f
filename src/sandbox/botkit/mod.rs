//! The simulated XO from the view of a BotKit server: a user, a bot, the events that XO posts, and the API that XO
//! expects calls on.
//!
//! With OnMessage subscribed, XO waits for its BotKit server on every message in bot mode. An acknowledgement alone
//! does not reach the bot, and the user reads a bot message only after the BotKit server has passed it on.
//! Undocumented behaviour is a switch ([`BotKitSwitches`]).

mod calls;
mod channel;
mod control;
mod files;
mod history;
mod payload;
mod posting;
mod script;
mod state;
mod switches;
mod token;
mod turns;
mod user;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use serde_json::Value;

pub use channel::{ChannelKind, ChannelShape};
pub(super) use control::router as control_router;
pub use files::UserFile;
pub use posting::BotAnswer;
pub use script::{BotScript, BotStep};
pub(super) use state::BotKitState;
pub use state::{BotKitCall, HeardMessage, PostedEvent};
pub use switches::{
    AfterWait, AgentFlags, BotKitSwitches, ClearOfLapsed, FileShape, RepeatedCall, SkippedTurn, WantsContext,
};
pub use token::{SigningAlgorithm, token};
pub use user::BotUser;

use super::Sandbox;
use super::fault_gate::gate;
use super::fault_rules::Operation;
use super::state::SandboxState;

/// The path of the API.
const ROOT: &str = "/xo/api/botsdk/stream/";
/// The paths of the API. The second one is the path at the real XO, for callers that know only its host.
const ROOTS: [&str; 2] = [ROOT, "/api/botsdk/stream/"];
const FILES: &str = "/xo/files/";

pub(super) fn router(world: &Arc<SandboxState>) -> Router<Arc<SandboxState>> {
    let routes = ROOTS.iter().fold(Router::new(), |router, root| {
        router
            .route(&format!("{root}{{bot}}/getMessages"), get(history::history))
            .route(&format!("{root}{{bot}}/{{call}}/{{handle}}"), post(calls::call))
    });
    let routes = routes.route(&format!("{FILES}{{id}}"), get(files::file));
    routes.layer(from_fn_with_state(world.clone(), gate))
}

impl Sandbox {
    /// Sets the BotKit server of users that are simulated over HTTP.
    pub fn set_botkit_url(&self, url: &str) {
        self.world.botkit.lock().ingress_url = Some(url.to_owned());
    }

    /// All events that XO has posted, in order.
    pub fn botkit_events(&self) -> Vec<PostedEvent> {
        self.world.botkit.lock().events().cloned().collect()
    }

    /// The events for which XO still waits, so that their turns are blocked.
    pub fn waiting_events(&self) -> Vec<PostedEvent> {
        self.world.botkit.lock().events().filter(|event| event.waiting).cloned().collect()
    }
}

/// Whether a path belongs to this API.
pub(super) fn is_ours(path: &str) -> bool {
    path.starts_with(FILES) || inside(path).is_some()
}

/// The path after the API's prefix, or `None` if the path is outside of the API.
fn inside(path: &str) -> Option<&str> {
    ROOTS.iter().find_map(|root| path.strip_prefix(root))
}

/// The operation of a call, by its path.
pub(super) fn operation(path: &str) -> Operation {
    if path.starts_with(FILES) {
        return Operation::File;
    }
    match inside(path).and_then(|rest| rest.split('/').nth(1)) {
        Some("sendUserMessage") => Operation::Tell,
        Some("sendBotMessage") => Operation::BotMessage,
        Some("skipUserMessage" | "skipBotMessage") => Operation::Skip,
        Some("sendAlertMessage") => Operation::Alert,
        Some("sendFeedbackMessage") => Operation::Feedback,
        Some("sendBotEvent") => Operation::ClientEvent,
        Some("startAgentSession") => Operation::Session,
        Some("clearAgentSession") => Operation::Clear,
        Some("extendcallid") => Operation::Extend,
        Some("getMessages") => Operation::Read,
        _ => Operation::Other,
    }
}

/// The text of a call, for the user or for the bot.
pub(super) fn words(body: &Value) -> Option<String> {
    turns::ShownText::read(body).map(|shown| shown.text)
}

/// The user of a call, from the channel or the context in its body.
pub(super) fn user_of(body: &Value) -> Option<String> {
    let places = [
        "/channel/from",
        "/channel/channelInfos/from",
        "/channel/userId",
        "/context/session/UserContext/_id",
    ];
    places.iter().find_map(|place| body.pointer(place)?.as_str()).map(str::to_owned)
}
