//! The simulated XO as a BotKit server sees it: the BotKit API that it calls, and a user whose events it hears.
//!
//! What XO answers there is documented nowhere; what its own SDK sends is. So the requests are held against the SDK's code, and
//! each guess about the answers is a switch ([`crate::sandbox::BotKitSwitches`]).

mod api;
mod token;
mod user;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

pub(super) use api::router;
pub use token::{Algorithm, token};
pub use user::{BotAnswer, BotUser, Heard};

use super::script::Operation;
use super::settings::BotKitSwitches;

/// Where the API stands.
const ROOT: &str = "/xo/api/botsdk/stream/";
/// And where it stands at the real XO, for who knows no more of it than its host.
const ROOTS: [&str; 2] = [ROOT, "/api/botsdk/stream/"];

/// What a path says behind the root, where it is one of this API.
pub(super) fn inside(path: &str) -> Option<&str> {
    ROOTS.iter().find_map(|root| path.strip_prefix(root))
}

/// Who is with an agent, and by which handle they can be answered.
#[derive(Debug)]
pub(super) struct Switchboard {
    board: Mutex<Board>,
}

#[derive(Debug)]
struct Board {
    switches: BotKitSwitches,
    next: u64,
    users: BTreeMap<String, User>,
    handles: HashMap<String, Handle>,
}

#[derive(Debug, Default, Clone)]
struct User {
    with_agent: bool,
    sessions: u32,
    clears: u32,
    heard: Vec<Heard>,
    /// The context of the last transfer.
    transferred: Value,
}

/// A reply handle: XO's `requestId`.
#[derive(Debug, Clone)]
struct Handle {
    bot_id: String,
    user: String,
    fresh_at: Instant,
    context: Value,
}

impl Switchboard {
    pub(super) fn new(switches: BotKitSwitches) -> Self {
        let board = Board { switches, next: 1, users: BTreeMap::new(), handles: HashMap::new() };
        Self { board: Mutex::new(board) }
    }

    pub(super) fn switches(&self) -> BotKitSwitches {
        self.board().switches
    }

    pub(super) fn set(&self, switches: BotKitSwitches) {
        self.board().switches = switches;
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Board {
    fn user(&mut self, user: &str) -> &mut User {
        self.users.entry(user.to_owned()).or_default()
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The handle, where it still lives.
    fn live(&mut self, bot_id: &str, request_id: &str) -> Option<&mut Handle> {
        let life = Duration::from_millis(self.switches.handle_life_ms);
        let handle = self.handles.get_mut(request_id)?;
        (handle.bot_id == bot_id && handle.fresh_at.elapsed() < life).then_some(handle)
    }
}

/// What a call asks for, by its path.
pub(super) fn operation(path: &str) -> Operation {
    match inside(path).and_then(|rest| rest.split('/').nth(1)) {
        Some("sendUserMessage") => Operation::Tell,
        Some("startAgentSession") => Operation::Session,
        Some("clearAgentSession") => Operation::Clear,
        Some("extendcallid") => Operation::Extend,
        Some("getMessages") => Operation::Read,
        _ => Operation::Other,
    }
}

/// What is said to the user: plain, or in a template.
pub(super) fn words(body: &Value) -> Option<String> {
    let plain = body.get("message").and_then(Value::as_str).map(str::to_owned);
    plain.or_else(|| {
        let template = body.pointer("/overrideMessagePayload/body")?.as_str()?;
        let template: Value = serde_json::from_str(template).ok()?;
        template.pointer("/payload/text")?.as_str().map(str::to_owned)
    })
}

/// Whom a call is about, by the channel that it brings back.
pub(super) fn user_of(body: &Value) -> Option<String> {
    let places = ["/channel/from", "/channel/channelInfos/from", "/channel/userId"];
    places.iter().find_map(|place| body.pointer(place)?.as_str()).map(str::to_owned)
}
