//! Fills in the texts of Causeway for a bot's users: `xo.texts` with the current values.
//!
//! Guarantees: no side effects. The user sees no placeholder and no technical id: a sentence whose value is unknown is
//! omitted.
//!
//! Not responsible for: sending (`botkit_relay.rs`, `user_return.rs`).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::message::handoff::EndCause;
use crate::message::{Kind, Notice, named};

/// The user pressed "end chat" in XO's web widget: XO itself has closed the session.
pub(in crate::bridge) const SESSION_CLOSED: &str = EndCause::SessionClosed.as_str();

/// Settings of the texts and calls for a bot's users.
#[derive(Debug, Clone)]
pub struct BotKitSettings {
    /// The texts.
    pub texts: LanguageTexts,
    /// The shortest interval between two texts about the wait.
    pub wait_updates: Duration,
    /// The condition under which an agent's message is shown in the agent style.
    pub agent_template: AgentTemplate,
    /// Whether XO is notified when an agent session starts.
    pub start_agent_session: bool,
    /// The interval at which the reply handle of a live conversation is extended.
    pub extend_every: Duration,
    /// `xo.transcript`: the maximum number of messages between user and bot that the agent sees.
    pub transcript: usize,
}

impl Default for BotKitSettings {
    fn default() -> Self {
        Self {
            texts: LanguageTexts::default(),
            wait_updates: Duration::from_secs(60),
            agent_template: AgentTemplate::Auto,
            start_agent_session: true,
            extend_every: Duration::from_secs(240),
            transcript: 20,
        }
    }
}

named! {
    /// `xo.agent_template`
    AgentTemplate {
        /// On XO's web channel.
        Auto = "auto",
        /// On every channel.
        Always = "always",
        /// On no channel.
        Never = "never",
    }
}

/// `xo.texts` in every configured language.
#[derive(Debug, Clone, Default)]
pub struct LanguageTexts {
    /// The texts for every language without texts of its own.
    pub default: NoticeTexts,
    /// The texts by language tag in lower case, such as `fr` or `pt-br`.
    pub languages: BTreeMap<String, NoticeTexts>,
    /// Our own user at ServiceNow, whose name must not be shown to a bot's user.
    pub own_user: Option<String>,
}

impl LanguageTexts {
    /// The text in this language, if there is one.
    pub(in crate::bridge) fn render(
        &self,
        kind: TextKind,
        notice: &Notice,
        language: Option<&str>,
    ) -> Option<String> {
        self.of(language).render(kind, notice, |value| self.is_public(value))
    }

    /// The texts of a language: `fr-ca` uses `fr` if there is no closer match.
    fn of(&self, language: Option<&str>) -> &NoticeTexts {
        let tag = language.unwrap_or_default().trim().to_lowercase().replace('_', "-");
        let primary = tag.split('-').next().unwrap_or_default();
        self.languages.get(&tag).or_else(|| self.languages.get(primary)).unwrap_or(&self.default)
    }

    /// Whether the words may be shown: they do not contain the name of our own user at ServiceNow.
    pub(in crate::bridge) fn is_public(&self, words: &str) -> bool {
        let spoken = |text: &str| -> Vec<String> {
            let parts = text.split(|c: char| !c.is_alphanumeric()).filter(|part| !part.is_empty());
            parts.map(str::to_lowercase).collect()
        };
        let own = self.own_user.as_deref().map(spoken).unwrap_or_default();
        own.is_empty() || !spoken(words).windows(own.len()).any(|part| part == own)
    }
}

/// `xo.texts`. An empty text is not sent.
#[derive(Debug, Clone, Default)]
pub struct NoticeTexts {
    /// The user waits.
    pub waiting: String,
    /// An agent came.
    pub joined: String,
    /// The agent left; the chat goes on.
    pub left: String,
    /// The chat is over.
    pub ended: String,
    /// No agent is available.
    pub no_agent: String,
    /// No agent came in time.
    pub expired: String,
    /// The chat could not be opened for another reason.
    pub failed: String,
}

/// The occasion of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::bridge) enum TextKind {
    Waiting,
    Joined,
    Left,
    Ended,
    NoAgent,
    Expired,
    Failed,
}

impl TextKind {
    /// The occasion of a chat's end; `None` if the user or XO ended the chat.
    pub(in crate::bridge) fn of_end(kind: Kind, reason: &str) -> Option<Self> {
        match (reason, kind) {
            ("user" | "xo" | SESSION_CLOSED, Kind::CallbackEnded) => None,
            ("no_agent", _) => Some(Self::NoAgent),
            ("expired" | "waited_too_long", _) => Some(Self::Expired),
            (_, Kind::HandoffFailed) => Some(Self::Failed),
            _ => Some(Self::Ended),
        }
    }
}

impl NoticeTexts {
    /// The text with its values, if there is one. A value that is not public counts as unknown.
    fn render(&self, kind: TextKind, notice: &Notice, is_public: impl Fn(&str) -> bool) -> Option<String> {
        let text = match kind {
            TextKind::Waiting => &self.waiting,
            TextKind::Joined => &self.joined,
            TextKind::Left => &self.left,
            TextKind::Ended => &self.ended,
            TextKind::NoAgent => &self.no_agent,
            TextKind::Expired => &self.expired,
            TextKind::Failed => &self.failed,
        };
        let position = notice.position.map(|position| position.to_string());
        let values = [
            ("{agent}", notice.agent.as_deref().filter(|agent| !is_record_id(agent) && is_public(agent))),
            ("{position}", position.as_deref()),
            ("{wait}", notice.wait.as_deref()),
            ("{number}", notice.number.as_deref()),
            ("{detail}", notice.detail.as_deref().filter(|detail| is_public(detail))),
        ];
        let said: String = sentences(text).filter_map(|sentence| filled(sentence, &values)).collect();
        Some(said.trim().to_owned()).filter(|said| !said.is_empty())
    }
}

/// The sentences of a text, each with its end. Together they make up the text.
fn sentences(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(['.', '!', '?', '\n', '。', '！', '？'])
}

/// The sentence with its values; `None` if a value is unknown.
fn filled(sentence: &str, values: &[(&str, Option<&str>)]) -> Option<String> {
    let mut rest = sentence;
    let mut said = String::new();
    // A value is not searched for placeholders, because ServiceNow's words may contain braces.
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

/// Whether the name is a `sys_id` of ServiceNow, which means nothing to a person.
fn is_record_id(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::ConversationId;

    fn texts() -> NoticeTexts {
        NoticeTexts {
            waiting: "Please wait. You are number {position}. It takes {wait}!".into(),
            joined: "An agent is here. It is {agent}.".into(),
            no_agent: "Nobody is here. {detail}".into(),
            ..NoticeTexts::default()
        }
    }

    fn notice() -> Notice {
        Notice::about(ConversationId::parse("c").unwrap())
    }

    #[test]
    fn unknown_values_are_left_out() {
        let say = |kind, notice: &Notice| texts().render(kind, notice, |_| true).unwrap_or_default();
        assert_eq!(say(TextKind::Waiting, &notice()), "Please wait.");
        let placed = Notice { position: Some(2), ..notice() };
        assert_eq!(say(TextKind::Waiting, &placed), "Please wait. You are number 2.");
        let both = Notice { wait: Some("2 Minutes".into()), ..placed };
        assert_eq!(say(TextKind::Waiting, &both), "Please wait. You are number 2. It takes 2 Minutes!");
        let named = |agent: &str| Notice { agent: Some(agent.into()), ..notice() };
        assert_eq!(say(TextKind::Joined, &named("Beth")), "An agent is here. It is Beth.");
        let id = "5f1c4ac4c0a8010e01d3e7a1a5b0c111";
        assert_eq!(say(TextKind::Joined, &named(id)), "An agent is here.");
        let words = Notice { detail: Some("Call {wait}: 555.".into()), ..notice() };
        assert_eq!(say(TextKind::NoAgent, &words), "Nobody is here. Call {wait}: 555.");
        assert_eq!(texts().render(TextKind::Ended, &notice(), |_| true), None);
    }

    #[test]
    fn everybody_is_spoken_to_in_their_language() {
        let text = |joined: &str| NoticeTexts { joined: joined.into(), ..NoticeTexts::default() };
        let languages = [("fr", "Bonjour"), ("pt-br", "Oi"), ("pt", "Ola")];
        let spoken = LanguageTexts {
            default: text("Hello"),
            languages: languages.map(|(tag, joined)| (tag.to_owned(), text(joined))).into(),
            own_user: None,
        };
        let say = |language| spoken.render(TextKind::Joined, &notice(), language).unwrap();
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
        let spoken = LanguageTexts {
            default: texts(),
            own_user: Some("chatbot_interface".into()),
            ..LanguageTexts::default()
        };
        for words in ["chatbot_interface has left the chat", "By Chatbot Interface."] {
            assert!(!spoken.is_public(words), "{words}");
            let notice = Notice { detail: Some(words.into()), ..notice() };
            assert_eq!(spoken.render(TextKind::NoAgent, &notice, None).as_deref(), Some("Nobody is here."));
        }
        for words in ["The chatbot has left", "chatbot_interfaces", "An agent has left"] {
            assert!(spoken.is_public(words), "{words}");
        }
        assert!(LanguageTexts::default().is_public("anything"));
    }

    #[test]
    fn every_end_has_its_last_words() {
        let ended = |reason| TextKind::of_end(Kind::CallbackEnded, reason);
        let failed = |reason| TextKind::of_end(Kind::HandoffFailed, reason);
        assert_eq!((ended("user"), ended("xo"), ended("agent")), (None, None, Some(TextKind::Ended)));
        assert_eq!(failed("no_agent"), Some(TextKind::NoAgent));
        assert_eq!(failed("expired"), Some(TextKind::Expired));
        assert_eq!(failed("rejected"), Some(TextKind::Failed));
        assert_eq!(ended("no_agent"), Some(TextKind::NoAgent));
    }
}
