//! What Causeway itself says to a bot's user: `xo.texts` with the values of the moment.
//!
//! Guarantees: pure; no placeholder and no id that means nothing to a person reaches the user: a sentence whose value is not
//! known is left out. Leaves to others: saying it (`botkit.rs`).

use std::collections::BTreeMap;
use std::time::Duration;

use super::user_return::SESSION_CLOSED;
use crate::message::{Kind, Notice};

/// How a bot's users are spoken to.
#[derive(Debug, Clone)]
pub struct BotKitSettings {
    /// What they are told.
    pub texts: SpokenTexts,
    /// A user who waits is told of a change of the wait at most once in this time.
    pub wait_updates: Duration,
    /// When an agent's words are shown as such.
    pub agent_template: AgentTemplate,
    /// Whether XO is told that an agent session begins.
    pub start_agent_session: bool,
    /// How often the reply handle of a live conversation is extended.
    pub extend_every: Duration,
    /// `xo.transcript`: how many messages between user and bot the agent sees at most.
    pub transcript: usize,
}

impl Default for BotKitSettings {
    fn default() -> Self {
        Self {
            texts: SpokenTexts::default(),
            wait_updates: Duration::from_secs(60),
            agent_template: AgentTemplate::Auto,
            start_agent_session: true,
            extend_every: Duration::from_secs(240),
            transcript: 20,
        }
    }
}

/// `xo.agent_template`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentTemplate {
    /// On XO's web channel.
    Auto,
    /// On every channel.
    Always,
    /// On none.
    Never,
}

/// `xo.texts` in every language that the settings have.
#[derive(Debug, Clone, Default)]
pub struct SpokenTexts {
    /// For every language without texts of its own.
    pub default: Texts,
    /// By language tag in lower case, such as `fr` or `pt-br`.
    pub languages: BTreeMap<String, Texts>,
    /// Our own user at ServiceNow: its name means nothing to a user of the bot.
    pub own_user: Option<String>,
}

impl SpokenTexts {
    /// What is said in this language, if anything.
    pub(super) fn say(&self, occasion: Occasion, notice: &Notice, language: Option<&str>) -> Option<String> {
        self.of(language).say(occasion, notice, |value| self.is_public(value))
    }

    /// The texts of a language: `fr-ca` is spoken to in `fr` if there is nothing nearer.
    fn of(&self, language: Option<&str>) -> &Texts {
        let tag = language.unwrap_or_default().trim().to_lowercase().replace('_', "-");
        let primary = tag.split('-').next().unwrap_or_default();
        self.languages.get(&tag).or_else(|| self.languages.get(primary)).unwrap_or(&self.default)
    }

    /// Whether these words may be shown: they do not name our own user at ServiceNow.
    pub(super) fn is_public(&self, words: &str) -> bool {
        let spoken = |text: &str| -> Vec<String> {
            let parts = text.split(|c: char| !c.is_alphanumeric()).filter(|part| !part.is_empty());
            parts.map(str::to_lowercase).collect()
        };
        let own = self.own_user.as_deref().map(spoken).unwrap_or_default();
        own.is_empty() || !spoken(words).windows(own.len()).any(|part| part == own)
    }
}

/// `xo.texts`; an empty one says nothing.
#[derive(Debug, Clone, Default)]
pub struct Texts {
    /// The user waits.
    pub waiting: String,
    /// An agent came.
    pub joined: String,
    /// The agent went, the chat goes on.
    pub left: String,
    /// The chat is over.
    pub ended: String,
    /// Nobody is there.
    pub no_agent: String,
    /// Nobody came in time.
    pub expired: String,
    /// Anything else kept the chat from opening.
    pub failed: String,
}

/// What there is to say something about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Occasion {
    Waiting,
    Joined,
    Left,
    Ended,
    NoAgent,
    Expired,
    Failed,
}

impl Occasion {
    /// The last words of a chat; none where it was the user, or XO, who went.
    pub(super) fn of_end(kind: Kind, reason: &str) -> Option<Self> {
        match (reason, kind) {
            ("user" | "xo" | SESSION_CLOSED, Kind::CallbackEnded) => None,
            ("no_agent", _) => Some(Self::NoAgent),
            ("expired" | "waited_too_long", _) => Some(Self::Expired),
            (_, Kind::HandoffFailed) => Some(Self::Failed),
            _ => Some(Self::Ended),
        }
    }
}

impl Texts {
    /// What is said, if anything. A value that is not public counts as not known.
    fn say(&self, occasion: Occasion, notice: &Notice, is_public: impl Fn(&str) -> bool) -> Option<String> {
        let text = match occasion {
            Occasion::Waiting => &self.waiting,
            Occasion::Joined => &self.joined,
            Occasion::Left => &self.left,
            Occasion::Ended => &self.ended,
            Occasion::NoAgent => &self.no_agent,
            Occasion::Expired => &self.expired,
            Occasion::Failed => &self.failed,
        };
        let position = notice.position.map(|position| position.to_string());
        let values = [
            ("{agent}", notice.agent.as_deref().filter(|agent| !is_record_id(agent) && is_public(agent))),
            ("{position}", position.as_deref()),
            ("{wait}", notice.wait.as_deref()),
            ("{detail}", notice.detail.as_deref().filter(|detail| is_public(detail))),
        ];
        let said: String = sentences(text).filter_map(|sentence| filled(sentence, &values)).collect();
        Some(said.trim().to_owned()).filter(|said| !said.is_empty())
    }
}

/// Each with its end, so that they make up the text again.
fn sentences(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(['.', '!', '?', '\n', '。', '！', '？'])
}

/// The sentence with its values; none where one of them is not known.
fn filled(sentence: &str, values: &[(&str, Option<&str>)]) -> Option<String> {
    let mut rest = sentence;
    let mut said = String::new();
    // What is filled in is not read again: ServiceNow's words may hold braces, too.
    while let Some((at, (name, value))) =
        values.iter().filter_map(|value| rest.find(value.0).map(|at| (at, value))).min_by_key(|(at, _)| *at)
    {
        said.push_str(&rest[..at]);
        said.push_str(value.map(str::trim).filter(|value| !value.is_empty())?);
        rest = &rest[at + name.len()..];
    }
    said.push_str(rest);
    Some(said)
}

/// A `sys_id` of ServiceNow: no name that anybody would know.
fn is_record_id(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::ConversationId;

    fn texts() -> Texts {
        Texts {
            waiting: "Please wait. You are number {position}. It takes {wait}!".into(),
            joined: "An agent is here. It is {agent}.".into(),
            no_agent: "Nobody is here. {detail}".into(),
            ..Texts::default()
        }
    }

    fn notice() -> Notice {
        Notice::about(ConversationId::parse("c").unwrap())
    }

    #[test]
    fn what_is_not_known_is_not_mentioned() {
        let say = |occasion, notice: &Notice| texts().say(occasion, notice, |_| true).unwrap_or_default();
        assert_eq!(say(Occasion::Waiting, &notice()), "Please wait.");
        let placed = Notice { position: Some(2), ..notice() };
        assert_eq!(say(Occasion::Waiting, &placed), "Please wait. You are number 2.");
        let both = Notice { wait: Some("2 Minutes".into()), ..placed };
        assert_eq!(say(Occasion::Waiting, &both), "Please wait. You are number 2. It takes 2 Minutes!");
        let named = |agent: &str| Notice { agent: Some(agent.into()), ..notice() };
        assert_eq!(say(Occasion::Joined, &named("Beth")), "An agent is here. It is Beth.");
        let id = "5f1c4ac4c0a8010e01d3e7a1a5b0c111";
        assert_eq!(say(Occasion::Joined, &named(id)), "An agent is here.");
        let words = Notice { detail: Some("Call {wait}: 555.".into()), ..notice() };
        assert_eq!(say(Occasion::NoAgent, &words), "Nobody is here. Call {wait}: 555.");
        assert_eq!(texts().say(Occasion::Ended, &notice(), |_| true), None);
    }

    #[test]
    fn everybody_is_spoken_to_in_their_language() {
        let text = |joined: &str| Texts { joined: joined.into(), ..Texts::default() };
        let languages = [("fr", "Bonjour"), ("pt-br", "Oi"), ("pt", "Ola")];
        let spoken = SpokenTexts {
            default: text("Hello"),
            languages: languages.map(|(tag, joined)| (tag.to_owned(), text(joined))).into(),
            own_user: None,
        };
        let say = |language| spoken.say(Occasion::Joined, &notice(), language).unwrap();
        for (language, expected) in [
            (None, "Hello"),
            (Some("de"), "Hello"),
            (Some("fr_CA"), "Bonjour"),
            (Some("pt-BR"), "Oi"),
            (Some("PT"), "Ola"),
        ] {
            assert_eq!(say(language), expected, "{language:?}");
        }
    }

    #[test]
    fn our_own_user_is_not_named() {
        let spoken = SpokenTexts {
            default: texts(),
            own_user: Some("chatbot_interface".into()),
            ..SpokenTexts::default()
        };
        for words in ["chatbot_interface has left the chat", "By Chatbot Interface."] {
            assert!(!spoken.is_public(words), "{words}");
            let notice = Notice { detail: Some(words.into()), ..notice() };
            assert_eq!(spoken.say(Occasion::NoAgent, &notice, None).as_deref(), Some("Nobody is here."));
        }
        for words in ["The chatbot has left", "chatbot_interfaces", "An agent has left"] {
            assert!(spoken.is_public(words), "{words}");
        }
        assert!(SpokenTexts::default().is_public("anything"));
    }

    #[test]
    fn every_end_has_its_last_words() {
        let ended = |reason| Occasion::of_end(Kind::CallbackEnded, reason);
        let failed = |reason| Occasion::of_end(Kind::HandoffFailed, reason);
        assert_eq!((ended("user"), ended("xo"), ended("agent")), (None, None, Some(Occasion::Ended)));
        assert_eq!(failed("no_agent"), Some(Occasion::NoAgent));
        assert_eq!(failed("expired"), Some(Occasion::Expired));
        assert_eq!(failed("rejected"), Some(Occasion::Failed));
        assert_eq!(ended("no_agent"), Some(Occasion::NoAgent));
    }
}
