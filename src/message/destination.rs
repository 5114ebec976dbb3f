//! Where a message goes: a remote endpoint with one credential, which fails on its own.
//!
//! Guarantees: a destination is small, `Copy`, and has one text: its name in queues, metrics, settings and on the command line.
//! [`BotSide`] answers from the settings alone which destination a conversation belongs to.
//! Not responsible for: what is sent there (`delivery/`), how often and how fast (`delivery/gate.rs`).

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::ConversationId;

/// The longest name of a bot, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// Names are kept for the life of the process. A deployment has a handful; this bounds what a caller can add.
const NAMES_MAX: usize = 4_096;
/// What the text of a bot's destination begins with.
const BOT_PREFIX: &str = "bot:";

/// Where a message goes.
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
    /// `callbacks`: no remote endpoint, but the queue in which messages about a ServiceNow chat wait until a worker knows whose
    /// chat it is. A worker then puts each one on the queue of its real destination, in order.
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

    /// The name alone.
    pub fn as_str(self) -> &'static str {
        self.0.strip_prefix(BOT_PREFIX).unwrap_or(self.0)
    }
}

impl fmt::Debug for BotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One copy of each text for the life of the process, so that a destination can be copied, compared and used as a label.
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
    /// Its text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ServiceNow => "servicenow",
            Self::Xo => "xo",
            Self::Events => "events",
            Self::Callbacks => "callbacks",
            Self::Bot(name) => name.0,
        }
    }

    /// Reads the text back.
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

/// The destinations that a deployment is configured for, each once. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destinations(Arc<[Destination]>);

impl Destinations {
    /// Each once, in a fixed order.
    pub fn new(destinations: impl IntoIterator<Item = Destination>) -> Self {
        let sorted: BTreeSet<Destination> = destinations.into_iter().collect();
        Self(sorted.into_iter().collect())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Destination> + '_ {
        self.0.iter().copied()
    }

    /// Whether this one is configured.
    pub fn contains(&self, destination: Destination) -> bool {
        self.0.contains(&destination)
    }
}

/// A bot of the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownBot {
    /// XO's id of the bot. Conversations of its users begin with this id and a colon.
    pub bot_id: String,
    /// Its name in the settings.
    pub name: BotName,
}

/// Which destination a conversation or a chat belongs to. Both roles answer this from settings that both of them have.
#[derive(Debug, Clone, Default)]
pub struct BotSide {
    /// Causeway opens chats itself: an instance of ServiceNow, the handoff API or a bot is configured. Otherwise this is the
    /// pure callback relay.
    pub two_way: bool,
    /// The bots of the settings.
    pub bots: Vec<KnownBot>,
}

impl BotSide {
    /// The destination of one bot.
    pub fn bot(&self, bot_id: &str) -> Option<Destination> {
        self.bots.iter().find(|bot| bot.bot_id == bot_id).map(|bot| Destination::Bot(bot.name))
    }

    /// The bot whose user's conversation this is.
    pub fn bot_of(&self, conversation: &ConversationId) -> Option<Destination> {
        let begins_with = |bot: &&KnownBot| {
            conversation.as_str().strip_prefix(bot.bot_id.as_str()).is_some_and(|rest| rest.starts_with(':'))
        };
        self.bots.iter().find(begins_with).map(|bot| Destination::Bot(bot.name))
    }

    /// Where messages to the bot side of this conversation go: to its bot, or to the events URL if it began over the API.
    pub fn of_conversation(&self, conversation: &ConversationId) -> Destination {
        self.bot_of(conversation).unwrap_or(Destination::Events)
    }

    /// Where messages enter the queue that only name a ServiceNow chat. In the callback relay there is only one place for them
    /// to go. In a two-way relay only a worker knows which conversation a chat belongs to.
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
