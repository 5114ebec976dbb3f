//! The simulated bot: what it answers to which words. It is small on purpose; what matters is that it reads nothing before XO
//! has passed the words on, and that the user reads nothing of it before XO was told so.

use std::time::Duration;

use serde_json::{Value, json};

/// One thing that the bot does in its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BotStep {
    /// It says this. A template is JSON text, as XO hands it on; the text may be empty.
    Say(String),
    /// It says this with an override of the channel's message, as a message node with a channel override does.
    SayWith {
        /// The plain message.
        message: String,
        /// The `overrideMessagePayload`.
        payload: Value,
    },
    /// An alert task tells this.
    Alert(String),
    /// The dialog task of this name ends.
    EndTask(String),
    /// The agent transfer node: the dialog ends, and the user waits for an agent.
    HandOver,
}

impl BotStep {
    /// It says this.
    pub fn say(text: impl Into<String>) -> Self {
        Self::Say(text.into())
    }

    /// It shows a template with buttons.
    pub fn buttons(text: &str, titles: &[&str]) -> Self {
        let button = |title: &&str| json!({ "type": "postback", "title": title, "payload": title });
        let buttons: Vec<Value> = titles.iter().map(button).collect();
        let payload = json!({ "template_type": "button", "text": text, "buttons": buttons });
        Self::Say(json!({ "type": "template", "payload": payload }).to_string())
    }
}

/// What the bot does when words of the user contain these ones.
#[derive(Debug, Clone, PartialEq, Eq)]
struct BotRule {
    contains: String,
    steps: Vec<BotStep>,
}

/// What a bot answers. The default script is silent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BotScript {
    rules: Vec<BotRule>,
    welcome: Vec<BotStep>,
    echoes: bool,
    think: Duration,
}

impl BotScript {
    /// A small help desk: it shows a menu, says an empty message, answers in two messages, hands over, and repeats other words.
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

    /// Repeats words that no rule knows: `You said: …`.
    #[must_use]
    pub fn echoing(self) -> Self {
        Self { echoes: true, ..self }
    }

    /// Does this when the user's words contain these ones, in any case. The first rule that fits is used.
    #[must_use]
    pub fn answers(mut self, contains: &str, steps: Vec<BotStep>) -> Self {
        self.rules.push(BotRule { contains: contains.to_lowercase(), steps });
        self
    }

    /// Does this when the page of the web channel has loaded.
    #[must_use]
    pub fn welcomes(self, welcome: Vec<BotStep>) -> Self {
        Self { welcome, ..self }
    }

    /// Thinks this long before each answer.
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
