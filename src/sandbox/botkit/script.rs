//! The simulated bot: its answers to certain words. It is small on purpose. The bot reads a text only after XO has
//! passed the text on. The user reads an answer only after the BotKit server has passed the answer on.

use std::time::Duration;

use serde_json::{Value, json};

/// One step of the bot's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BotStep {
    /// Sends this text. A template is JSON text, as XO passes it on. The text may be empty.
    Say(String),
    /// Sends this text with an override of the channel's message, like a message node with a channel override.
    SayWith {
        /// The plain message.
        message: String,
        /// The `overrideMessagePayload`.
        payload: Value,
    },
    /// An alert task sends this text.
    Alert(String),
    /// The dialog task of this name ends.
    EndTask(String),
    /// The agent transfer node: the dialog ends, and the user waits for an agent.
    HandOver,
}

impl BotStep {
    /// Sends this text.
    pub fn say(text: impl Into<String>) -> Self {
        Self::Say(text.into())
    }

    /// Shows a template with buttons.
    pub fn buttons(text: &str, titles: &[&str]) -> Self {
        let button = |title: &&str| json!({ "type": "postback", "title": title, "payload": title });
        let buttons: Vec<Value> = titles.iter().map(button).collect();
        let payload = json!({ "template_type": "button", "text": text, "buttons": buttons });
        Self::Say(json!({ "type": "template", "payload": payload }).to_string())
    }
}

/// The bot's steps if the user's text contains these words.
#[derive(Debug, Clone, PartialEq, Eq)]
struct BotRule {
    contains: String,
    steps: Vec<BotStep>,
}

/// The answers of a bot. The default script does not answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BotScript {
    rules: Vec<BotRule>,
    welcome: Vec<BotStep>,
    echoes: bool,
    think: Duration,
}

impl BotScript {
    /// A small script: shows a menu, sends an empty message, answers in two messages, hands over, and repeats other
    /// texts.
    pub fn help_desk() -> Self {
        let menu = BotStep::buttons("What is it about?", &["Laptop", "Password", "An agent"]);
        Self { echoes: true, ..Self::default() }
            .welcomes(vec![BotStep::say("Hello, I am the help desk bot.")])
            .answers("agent", vec![BotStep::say("I will get an agent for you."), BotStep::HandOver])
            .answers("menu", vec![menu])
            .answers(
                "password",
                vec![BotStep::say("Open the portal."), BotStep::say("Press Forgot password.")],
            )
            .answers("hm", vec![BotStep::say("")])
            .answers("remind", vec![BotStep::say("I will."), BotStep::Alert("It is time.".to_owned())])
            .answers("bye", vec![BotStep::say("Good-bye."), BotStep::EndTask("Help".to_owned())])
    }

    /// Repeats texts that match no rule: `You said: …`.
    #[must_use]
    pub fn echoing(self) -> Self {
        Self { echoes: true, ..self }
    }

    /// Adds a rule: performs the steps if the user's text contains these words, ignoring case. The first matching
    /// rule applies.
    #[must_use]
    pub fn answers(mut self, contains: &str, steps: Vec<BotStep>) -> Self {
        self.rules.push(BotRule { contains: contains.to_lowercase(), steps });
        self
    }

    /// Performs these steps when the page of the web channel has loaded.
    #[must_use]
    pub fn welcomes(self, welcome: Vec<BotStep>) -> Self {
        Self { welcome, ..self }
    }

    /// Waits this long before each answer.
    #[must_use]
    pub fn thinks(self, think: Duration) -> Self {
        Self { think, ..self }
    }

    pub(super) fn think(&self) -> Duration {
        self.think
    }

    pub(super) fn welcome(&self) -> Vec<BotStep> {
        self.welcome.clone()
    }

    pub(super) fn steps(&self, words: &str) -> Vec<BotStep> {
        let lower = words.to_lowercase();
        match self.rules.iter().find(|rule| lower.contains(&rule.contains)) {
            Some(rule) => rule.steps.clone(),
            None if self.echoes => vec![BotStep::Say(format!("You said: {words}"))],
            None => Vec::new(),
        }
    }
}
