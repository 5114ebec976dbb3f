//! The report of a pilot, in Markdown and in JSON.
//!
//! Guarantees: the report holds step names, numbers, statuses and words of fixed lists only, so it can be attached to a ticket.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::observer::Fact;
use crate::clock;
use crate::config::Settings;
use crate::platform::ChatApi;

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StepOutcome {
    /// Its event happened.
    Observed,
    /// A person skipped the step.
    Skipped,
    /// Its event did not happen in time.
    TimedOut,
}

impl StepOutcome {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Observed => "observed",
            Self::Skipped => "skipped",
            Self::TimedOut => "timed_out",
        }
    }
}

/// The result of one step.
#[derive(Debug)]
pub(super) struct StepResult {
    pub(super) name: &'static str,
    pub(super) outcome: StepOutcome,
    pub(super) seconds: f64,
    pub(super) facts: Vec<Fact>,
}

impl StepResult {
    /// The result in one line.
    pub(super) fn line(&self) -> String {
        let facts: Vec<String> = self.facts.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let mark = if facts.is_empty() { "" } else { ": " };
        format!("{} after {:.1} s{mark}{}", self.outcome.as_str(), self.seconds, facts.join(", "))
    }
}

/// All results.
#[derive(Debug)]
pub(super) struct PilotReport {
    at: String,
    /// The settings that decide what can be observed.
    facts: Vec<Fact>,
    pub(super) steps: Vec<StepResult>,
}

impl PilotReport {
    pub(super) fn new(settings: &Settings) -> Self {
        let api = settings.servicenow.as_ref().map_or(ChatApi::ConnectSupport, |named| named.api);
        let engine = if settings.queue.url.is_some() { "rabbitmq" } else { "embedded" };
        let facts = vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("servicenow_api", api.as_str().to_owned()),
            ("engine", engine.to_owned()),
            ("bots", settings.xo.bots.len().to_string()),
        ];
        let at = clock::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        Self { at, facts, steps: Vec::new() }
    }

    /// The number of steps whose event happened.
    pub(super) fn observed(&self) -> usize {
        self.steps.iter().filter(|step| step.outcome == StepOutcome::Observed).count()
    }

    /// Whether no step ran out of time.
    pub(super) fn is_complete(&self) -> bool {
        self.steps.iter().all(|step| step.outcome != StepOutcome::TimedOut)
    }

    pub(super) fn markdown(&self) -> String {
        let mut text = format!("# Causeway pilot, {}\n\n", self.at);
        text.push_str("This report holds no text of the chat, no name, no id and no secret.\n\n");
        for (name, value) in &self.facts {
            let _ = writeln!(text, "- {name}: {value}");
        }
        text.push_str("\n| step | outcome | seconds | observed |\n|---|---|---|---|\n");
        for step in &self.steps {
            let facts: Vec<String> =
                step.facts.iter().map(|(name, value)| format!("{name}: {value}")).collect();
            let (name, outcome, facts) = (step.name, step.outcome.as_str(), facts.join("<br>"));
            let _ = writeln!(text, "| {name} | {outcome} | {:.1} | {facts} |", step.seconds);
        }
        text
    }

    pub(super) fn json(&self) -> String {
        let facts = |facts: &[Fact]| -> Map<String, Value> {
            facts.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect()
        };
        let steps = self.steps.iter().map(|step| {
            json!({
                "step": step.name,
                "outcome": step.outcome.as_str(),
                "seconds": (step.seconds * 10.0).round() / 10.0,
                "facts": facts(&step.facts),
            })
        });
        let steps: Vec<Value> = steps.collect();
        let document = json!({ "at": self.at, "about": facts(&self.facts), "steps": steps });
        format!("{document:#}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, RunPurpose};

    #[test]
    fn both_formats_hold_every_step() {
        let settings = Settings::load(None, &Environment::default(), RunPurpose::Admin).unwrap();
        let mut report = PilotReport::new(&settings);
        report.steps.push(StepResult {
            name: "rights",
            outcome: StepOutcome::Observed,
            seconds: 0.26,
            facts: vec![("login", "ok".to_owned())],
        });
        report.steps.push(StepResult {
            name: "end",
            outcome: StepOutcome::TimedOut,
            seconds: 5.0,
            facts: Vec::new(),
        });
        assert!(
            report.markdown().contains("| rights | observed | 0.3 | login: ok |"),
            "{}",
            report.markdown()
        );
        let json: Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["steps"][0]["facts"]["login"], "ok");
        assert_eq!(json["steps"][1]["outcome"], "timed_out");
        assert_eq!((report.observed(), report.is_complete()), (1, false));
        assert_eq!(report.steps[0].line(), "observed after 0.3 s: login: ok");
    }
}
