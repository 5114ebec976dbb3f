//! Prints arrivals. Every line comes from the sandbox's ledger or from Causeway's metrics, none from the scenario.
//!
//! Not responsible for: the actions of the people (`scenario.rs`), the summary (`summary.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::environment::DemoClient;
use super::metrics_scrape::{BreakerReading, DemoSide};
use super::scenario::DemoPerson;
use super::timeline::{DemoTimeline, LineTone};
use crate::sandbox::botkit::PostedEvent;
use crate::sandbox::{LedgerEntry, Operation, Side};

/// How often the breaker is read while nothing arrives.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Observes the events and prints them.
#[derive(Debug)]
pub(super) struct DemoObserver<'a> {
    front: &'a DemoClient,
    timeline: &'a DemoTimeline,
    seen: Mutex<ObservedState>,
}

#[derive(Debug)]
struct ObservedState {
    told: BTreeSet<u64>,
    groups: BTreeMap<String, &'static str>,
    breaker: BreakerReading,
    /// Whether the next successful request is the probe. The witness prints that before the metrics show it.
    probe_due: bool,
}

impl<'a> DemoObserver<'a> {
    pub(super) fn new(front: &'a DemoClient, timeline: &'a DemoTimeline) -> Self {
        let (told, groups) = (BTreeSet::new(), BTreeMap::new());
        let seen = ObservedState { told, groups, breaker: BreakerReading::Passing, probe_due: false };
        Self { front, timeline, seen: Mutex::new(seen) }
    }

    /// Prints the arrivals until the future is dropped or an error occurs.
    pub(super) async fn follow(&self) -> anyhow::Error {
        loop {
            self.front
                .sandbox
                .ledger()
                .wait_for(|ledger| ledger.count(|entry| self.is_untold(entry)) > 0, POLL_INTERVAL)
                .await;
            if let Err(error) = self.look().await {
                return error;
            }
        }
    }

    async fn look(&self) -> anyhow::Result<()> {
        let breaker = self.front.scrape().await?.breaker(DemoSide::ServiceNow);
        // The ledger already contains the request that changed the breaker. Print that request first.
        self.catch_up()?;
        if let Some((tone, what)) = self.seen().breaker_is(breaker) {
            self.timeline.tell("Causeway", tone, what)?;
        }
        Ok(())
    }

    /// Prints the arrivals that were not printed yet. Callers run this before they print other lines, to keep the
    /// order.
    pub(super) fn catch_up(&self) -> std::io::Result<()> {
        for entry in self.front.sandbox.ledger().find(|entry| self.is_untold(entry)) {
            let mut seen = self.seen();
            seen.told.insert(entry.seq);
            let (who, news) = match entry.side {
                Side::ServiceNow => ("ServiceNow", seen.servicenow(&entry)),
                Side::Xo | Side::Events => ("bot side", event(&entry)),
                Side::BotKit => ("XO", self.botkit(&entry)),
            };
            if let Some((tone, what)) = news {
                self.timeline.tell(who, tone, &what)?;
            }
        }
        Ok(())
    }

    /// The line for an action of XO toward a user of its bot.
    fn botkit(&self, entry: &LedgerEntry) -> Option<(LineTone, String)> {
        if !entry.applied {
            return Some((LineTone::Bad, format!("answers {}: Causeway will try again", entry.status?)));
        }
        let user =
            DemoPerson::ALL.iter().find(|person| Some(person.conversation) == entry.conversation.as_deref());
        let (user, words) = (user.map_or("a user", |person| person.name), first_line(entry));
        let handle = entry.path.rsplit('/').next().unwrap_or_default();
        let of_bot = |event: &PostedEvent| event.request_id == handle && event.event == "on_bot_message";
        let what = match entry.operation {
            Operation::BotMessage => format!("the bot reads {user}: \"{words}\""),
            Operation::Tell if entry.body.contains("live_agent") => {
                format!("{user} reads the agent: \"{words}\"")
            }
            Operation::Tell if self.front.sandbox.botkit_events().iter().any(of_bot) => {
                format!("{user} reads the bot: \"{words}\"")
            }
            Operation::Tell => format!("{user} is told: \"{words}\""),
            Operation::Clear => return Some((LineTone::Good, format!("{user} is with the bot again"))),
            _ => return None,
        };
        Some((LineTone::Arrived, what))
    }

    fn is_untold(&self, entry: &LedgerEntry) -> bool {
        is_news(entry) && !self.seen().told.contains(&entry.seq)
    }

    fn seen(&self) -> MutexGuard<'_, ObservedState> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ObservedState {
    fn breaker_is(&mut self, breaker: BreakerReading) -> Option<(LineTone, &'static str)> {
        match (std::mem::replace(&mut self.breaker, breaker), breaker) {
            (BreakerReading::Passing, BreakerReading::Tripped | BreakerReading::Probing) => {
                self.probe_due = true;
                let what = "breaker tripped: nothing more goes to ServiceNow until a probe gets through";
                Some((LineTone::Bad, what))
            }
            (BreakerReading::Tripped | BreakerReading::Probing, BreakerReading::Passing) => {
                Some((LineTone::Good, "breaker passing: the waiting messages are sent"))
            }
            _ => None,
        }
    }

    fn servicenow(&mut self, entry: &LedgerEntry) -> Option<(LineTone, String)> {
        let (text, user) = (first_line(entry), self.user(entry));
        if entry.fault == Some("html_page") {
            let again =
                if self.probe_due { "the probe gets the web page again" } else { "answers with a web page" };
            return Some((LineTone::Bad, format!("{again} (200, HTML): the instance hibernates")));
        }
        if !entry.applied {
            let status = entry.status?;
            return Some((LineTone::Bad, format!("refuses with {status}: {user}: \"{text}\"")));
        }
        let probe = if std::mem::take(&mut self.probe_due) { "the probe gets through: " } else { "" };
        let what = match entry.operation {
            Operation::Start => format!("{probe}a chat waits in the queue: {user}: \"{text}\""),
            Operation::Leave => format!("{probe}{user} has left the chat"),
            _ => format!("{probe}the agent reads {user}: \"{text}\""),
        };
        Some((if probe.is_empty() { LineTone::Arrived } else { LineTone::Good }, what))
    }

    /// The user of a chat. Only the start identifies the user, by its words.
    fn user(&mut self, entry: &LedgerEntry) -> &'static str {
        let opening = |person: &&&DemoPerson| entry.operation == Operation::Start && person.opened(entry);
        let group = entry.group.clone().unwrap_or_default();
        if let Some(person) = DemoPerson::ALL.iter().find(opening) {
            self.groups.insert(group.clone(), person.name);
        }
        self.groups.get(&group).copied().unwrap_or("somebody")
    }
}

/// Whether an entry gets a line: it moves a conversation and was answered, or it is a web page instead of an answer.
fn is_news(entry: &LedgerEntry) -> bool {
    let page = entry.fault == Some("html_page");
    !entry.outbound && entry.finished.is_some() && (page || entry.operation.moves())
}

fn event(entry: &LedgerEntry) -> Option<(LineTone, String)> {
    if !entry.applied {
        return Some((LineTone::Bad, format!("answers {}: Causeway will try again", entry.status?)));
    }
    let body: Value = serde_json::from_str(&entry.body).ok()?;
    let field = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or("?");
    let user =
        DemoPerson::ALL.iter().find(|person| Some(person.conversation) == entry.conversation.as_deref());
    let user = user.map_or("somebody", |person| person.name);
    let what = match (entry.event.as_deref()?, field("event")) {
        ("callback.message", _) => format!("{user} reads {}: \"{}\"", field("agent"), field("message")),
        ("callback.event", "waiting") => {
            let position = body.get("position").and_then(Value::as_u64).unwrap_or(0);
            format!("{user} is told: number {position} in the queue, about {}", field("wait"))
        }
        ("callback.event", "joined") => format!("{user} is told: {} has joined", field("agent")),
        ("callback.ended", _) => {
            let what =
                format!("hears that {user}'s chat was ended by the {}: the bot takes over", field("reason"));
            return Some((LineTone::Good, what));
        }
        (other, event) => format!("{user}: {other} {event}"),
    };
    Some((LineTone::Arrived, what))
}

fn first_line(entry: &LedgerEntry) -> &str {
    entry.text.as_deref().and_then(|text| text.lines().next()).unwrap_or_default()
}
