//! The destination of a message: a remote endpoint with one credential, which fails independently of the others.
//!
//! Guarantees: a destination is small, `Copy`, and has one text for queues, metrics, settings and the command line.
//! [`BotSide`] finds the destination of a conversation from the settings alone.
//!
//! Not responsible for: the requests (`delivery/`), the limits (`delivery/gate.rs`).

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::ConversationId;

/// The longest name of a bot, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// The most names in a process. Names are never freed; a deployment has a few, and this limit bounds the names that a
/// caller can add.
const NAMES_MAX: usize = 4_096;
/// The prefix of the text of a bot's destination.
const BOT_PREFIX: &str = "bot:";

/// The destination of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Destination {
    /// `servicenow`: the human side.
    ServiceNow,
    /// `xo`: XO's Callback URL.
    Xo,
    /// `events`: `handoffs.events_url`.
    Events,
    /// `bot:<name>`: the BotKit reply addresses of one bot.
    Bot(BotName),
    /// `callbacks`: not a remote endpoint, but the queue of messages about a ServiceNow chat whose conversation is
    /// unknown. A worker finds the conversation and puts each message on the queue of its real destination, in order.
    Callbacks,
}

/// The name of a bot in the settings, by default its bot id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BotName(&'static str);

impl BotName {
    /// Accepts 1 to 64 of the characters `A-Z a-z 0-9 . _ -`.
    pub fn parse(name: &str) -> Result<Self, &'static str> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(is_plain) {
            return Err("must be 1 to 64 characters long and hold only letters, digits, '.', '_' and '-'");
        }
        interned(&format!("{BOT_PREFIX}{name}")).map(Self).ok_or("is one name too many for this process")
    }

    /// The name without the prefix.
    pub fn as_str(self) -> &'static str {
        self.0.strip_prefix(BOT_PREFIX).unwrap_or(self.0)
    }
}

impl fmt::Debug for BotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Returns one copy of each text for the life of the process, so that a destination can be copied, compared and used as
/// a label.
fn interned(text: &str) -> Option<&'static str> {
    static KNOWN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = known.get(text) {
        return Some(found);
    }
    if known.len() >= NAMES_MAX {
        return None;
    }
    let kept: &'static str = Box::leak(text.to_owned().into_boxed_str());
    known.insert(kept);
    Some(kept)
}

impl Destination {
    /// The text of the destination.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ServiceNow => "servicenow",
            Self::Xo => "xo",
            Self::Events => "events",
            Self::Callbacks => "callbacks",
            Self::Bot(name) => name.0,
        }
    }

    /// Parses the text.
    pub fn parse(text: &str) -> Option<Self> {
        let fixed = [Self::ServiceNow, Self::Xo, Self::Events, Self::Callbacks];
        let known = fixed.into_iter().find(|destination| destination.as_str() == text);
        known.or_else(|| BotName::parse(text.strip_prefix(BOT_PREFIX)?).ok().map(Self::Bot))
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for Destination {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Destination {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("is the name of no destination"))
    }
}

/// The configured destinations, each once. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destinations(Arc<[Destination]>);

impl Destinations {
    /// Sorts the destinations and removes duplicates.
    pub fn new(destinations: impl IntoIterator<Item = Destination>) -> Self {
        let sorted: BTreeSet<Destination> = destinations.into_iter().collect();
        Self(sorted.into_iter().collect())
    }

    /// All destinations.
    pub fn iter(&self) -> impl Iterator<Item = Destination> + '_ {
        self.0.iter().copied()
    }

    /// Whether a destination is configured.
    pub fn contains(&self, destination: Destination) -> bool {
        self.0.contains(&destination)
    }
}

/// A bot of the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownBot {
    /// XO's id of the bot. The ids of its users' conversations start with this id and a colon.
    pub bot_id: String,
    /// The name of the bot in the settings.
    pub name: BotName,
}

/// Finds the destination of a conversation or a chat. The ingress and the worker have the same settings, so both get
/// the same result.
#[derive(Debug, Clone, Default)]
pub struct BotSide {
    /// Whether Causeway opens chats itself: an instance of ServiceNow, the handoff API or a bot is configured.
    /// Otherwise this is the pure callback relay.
    pub two_way: bool,
    /// The bots of the settings.
    pub bots: Vec<KnownBot>,
}

impl BotSide {
    /// The destination of one bot.
    pub fn bot(&self, bot_id: &str) -> Option<Destination> {
        self.bots.iter().find(|bot| bot.bot_id == bot_id).map(|bot| Destination::Bot(bot.name))
    }

    /// The destination of the bot whose user this conversation belongs to.
    pub fn bot_of(&self, conversation: &ConversationId) -> Option<Destination> {
        let begins_with = |bot: &&KnownBot| {
            conversation.as_str().strip_prefix(bot.bot_id.as_str()).is_some_and(|rest| rest.starts_with(':'))
        };
        self.bots.iter().find(begins_with).map(|bot| Destination::Bot(bot.name))
    }

    /// The destination of messages to the bot side of this conversation: its bot, or the events URL for a conversation
    /// of the API.
    pub fn of_conversation(&self, conversation: &ConversationId) -> Destination {
        self.bot_of(conversation).unwrap_or(Destination::Events)
    }

    /// The destination of a message that only names a ServiceNow chat. The callback relay has only one such
    /// destination. In a two-way relay, only a worker can find the conversation of the chat.
    pub const fn of_chat(&self) -> Destination {
        if self.two_way { Destination::Callbacks } else { Destination::Xo }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(bots: &[(&str, &str)]) -> BotSide {
        let bots = bots
            .iter()
            .map(|(id, name)| KnownBot { bot_id: (*id).to_owned(), name: BotName::parse(name).unwrap() });
        BotSide { two_way: true, bots: bots.collect() }
    }

    #[test]
    fn texts_are_read_back() {
        for text in ["servicenow", "xo", "events", "callbacks", "bot:support", "bot:st-1.a_b"] {
            assert_eq!(Destination::parse(text).map(Destination::as_str), Some(text));
        }
        let long = format!("bot:{}", "x".repeat(65));
        for text in ["", "bot", "bot:", "bot:a b", "bot:a:b", "bot:\u{e9}", "XO", long.as_str()] {
            assert_eq!(Destination::parse(text), None, "{text}");
        }
        assert_eq!(BotName::parse("support").unwrap().as_str(), "support");
        assert_eq!(Destination::parse("bot:a"), Destination::parse("bot:a"));
    }

    #[test]
    fn a_conversation_names_its_bot() {
        let side = side(&[("st-1", "one"), ("st-12", "twelve")]);
        let of = |id: &str| side.of_conversation(&ConversationId::parse(id).unwrap()).as_str();
        assert_eq!(
            [of("st-1:u-1:rtm"), of("st-12:u-1:rtm"), of("st-1"), of("c-1")],
            ["bot:one", "bot:twelve", "events", "events"]
        );
        assert_eq!(side.bot("st-12"), Destination::parse("bot:twelve"));
        assert_eq!(side.bot("st-3"), None);
    }

    #[test]
    fn only_the_pure_relay_knows_where_a_chat_belongs() {
        assert_eq!(side(&[]).of_chat(), Destination::Callbacks);
        assert_eq!(BotSide::default().of_chat(), Destination::Xo);
    }

    #[test]
    fn each_destination_is_configured_once() {
        let twice = Destinations::new([Destination::Xo, Destination::ServiceNow, Destination::Xo]);
        assert_eq!(twice.iter().collect::<Vec<_>>(), [Destination::ServiceNow, Destination::Xo]);
        assert!(twice.contains(Destination::Xo) && !twice.contains(Destination::Events));
    }
}
