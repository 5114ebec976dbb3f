//! The summary: compares the messages that Causeway accepted with the arrivals in the sandbox's ledger.
//!
//! Guarantees: lost, overtaken and latency come only from the ledger and the requests. Causeway's own metrics only
//! provide the counts of retries, dead letters and replays. A replayed message is expected late, so that it does not
//! count as overtaken.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::environment::DemoClient;
use super::metrics_scrape::{DemoSide, MetricsScrape};
use super::scenario::{DemoPath, DemoPerson, DemoScenario};
use crate::cli::output;
use crate::dead_letters::{self, DeadLetterFilter};
use crate::sandbox::{LedgerEntry, Operation, Side};

/// A message that Causeway accepted and therefore must deliver.
#[derive(Debug, Clone)]
struct AcceptedRecord {
    lane: String,
    name: String,
    /// When the message was accepted. If this is absent, the arrival provides the time.
    at: Option<Timestamp>,
    /// Position in its lane, if it has one.
    place: Option<usize>,
}

/// A message that took effect on the other side.
#[derive(Debug, Clone)]
struct ArrivedRecord {
    lane: String,
    name: String,
    taken_at: Option<Timestamp>,
    at: Timestamp,
    effect: u64,
}

/// The counts of one direction.
#[derive(Debug, Default, PartialEq, Eq)]
struct DirectionSummary {
    accepted: usize,
    delivered: usize,
    lost: usize,
    overtaken: usize,
    latencies: Vec<Duration>,
}

/// The counts of both directions, and Causeway's metrics.
#[derive(Debug)]
pub(super) struct DemoSummary {
    directions: [(DemoSide, DirectionSummary); 2],
    scrape: MetricsScrape,
    left_dead: usize,
}

impl DemoSummary {
    pub(super) async fn draw(scenario: &DemoScenario<'_>, front: &DemoClient) -> anyhow::Result<Self> {
        let scrape = front.scrape().await?;
        let entries = front.sandbox.ledger().entries();
        let queue = crate::app::open_admin(&front.settings).await?;
        let left = dead_letters::list(&queue, &DeadLetterFilter::default()).await;
        queue.close().await;
        let mut to_servicenow = add_up(&taken_from_bot(scenario), &to_servicenow(&entries));
        let mut to_xo = add_up(&taken_for_bot_side(scenario, front, &entries), &to_bot_side(&entries));
        // Two concurrent requests of one lane violate the order, even if both arrived in order this time.
        for (one, _) in front.sandbox.ledger().overlaps() {
            let side = entries.iter().find(|entry| entry.seq == one).map(|entry| entry.side);
            let direction = if side == Some(Side::ServiceNow) { &mut to_servicenow } else { &mut to_xo };
            direction.overtaken += 1;
        }
        let directions = [(DemoSide::ServiceNow, to_servicenow), (DemoSide::BotSide, to_xo)];
        Ok(Self { directions, scrape, left_dead: left?.len() })
    }

    /// Whether every message was delivered and no message was overtaken.
    pub(super) fn balances(&self) -> bool {
        let kept = |direction: &DirectionSummary| direction.lost == 0 && direction.overtaken == 0;
        self.left_dead == 0 && self.directions.iter().all(|(_, direction)| kept(direction))
    }

    /// The text for a failed summary.
    pub(super) fn broken(&self) -> String {
        let sum = |pick: fn(&DirectionSummary) -> usize| {
            self.directions.iter().map(|(_, at)| pick(at)).sum::<usize>()
        };
        let (lost, overtaken) = (sum(|at| at.lost), sum(|at| at.overtaken));
        format!(
            "Broken: {lost} lost, {overtaken} overtaken, {} left in the dead-letter queue.",
            self.left_dead
        )
    }

    /// The summary with one column for each direction, so that it fits a terminal.
    pub(super) fn table(&self) -> String {
        let column = |(toward, direction): &(DemoSide, DirectionSummary)| {
            let counts = [
                direction.accepted as u64,
                direction.delivered as u64,
                self.scrape.retried(*toward),
                self.scrape.dead_lettered(*toward),
                self.scrape.replayed(*toward),
                direction.lost as u64,
                direction.overtaken as u64,
            ];
            let times = [50, 99].map(|percent| shown(quantile(&direction.latencies, percent)));
            counts.iter().map(u64::to_string).chain(times).collect::<Vec<_>>()
        };
        let names = [
            "accepted",
            "delivered",
            "retried",
            "dead-lettered",
            "replayed",
            "lost",
            "overtaken",
            "p50",
            "p99",
        ];
        let columns: Vec<Vec<String>> = self.directions.iter().map(column).collect();
        let row = |(at, name): (usize, &&str)| {
            let cells = columns.iter().filter_map(|column| column.get(at).cloned());
            std::iter::once((*name).to_owned()).chain(cells).collect::<Vec<_>>()
        };
        let rows: Vec<_> = names.iter().enumerate().map(row).collect();
        output::table(&["", "TO SERVICENOW", "TO THE BOT SIDE"], &rows, &[1, 2])
    }
}

/// Every request that was answered with 202, in order.
fn taken_from_bot(scenario: &DemoScenario<'_>) -> Vec<AcceptedRecord> {
    let posts = scenario.posts().iter().enumerate();
    let taken = posts.map(|(place, post)| AcceptedRecord {
        lane: post.person.conversation.to_owned(),
        name: name(post.operation, &post.text),
        at: Some(post.at),
        place: (!post.replayed).then_some(place),
    });
    taken.collect()
}

fn name(operation: Operation, text: &str) -> String {
    match operation {
        Operation::Leave => "leaves".to_owned(),
        // The text of a start has more lines than the user's words.
        _ => text.lines().next().unwrap_or_default().to_owned(),
    }
}

fn to_servicenow(entries: &[LedgerEntry]) -> Vec<ArrivedRecord> {
    let here =
        |entry: &&LedgerEntry| entry.side == Side::ServiceNow && !entry.outbound && entry.operation.moves();
    let mut groups: BTreeMap<&str, &str> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry.operation == Operation::Start) {
        let person = DemoPerson::ALL.iter().find(|person| person.opened(entry));
        if let (Some(group), Some(person)) = (entry.group.as_deref(), person) {
            groups.insert(group, person.conversation);
        }
    }
    let arrived = entries.iter().filter(here).filter_map(|entry| {
        let lane = groups.get(entry.group.as_deref()?)?;
        let name = name(entry.operation, entry.text.as_deref().unwrap_or_default());
        Some(ArrivedRecord {
            lane: (*lane).to_owned(),
            name,
            taken_at: None,
            at: done(entry),
            effect: entry.effect?,
        })
    });
    arrived.collect()
}

/// The messages that must reach the bot side: every callback answered with 202, every notice that Causeway must send,
/// and every message between a user and the bot.
fn taken_for_bot_side(
    scenario: &DemoScenario<'_>,
    front: &DemoClient,
    entries: &[LedgerEntry],
) -> Vec<AcceptedRecord> {
    let posted = |entry: &&LedgerEntry| entry.outbound && entry.applied;
    let callbacks = entries.iter().filter(posted).filter_map(|entry| {
        let group = entry.group.clone().unwrap_or_default();
        let (lane, name) = match scenario.person_of(&group).filter(|person| person.way == DemoPath::Bot) {
            // For a user of a bot, Causeway replaces the text of ServiceNow's system messages with its own text.
            Some(_) if is_system(entry) => return None,
            Some(person) => (person.conversation.to_owned(), entry.text.clone().unwrap_or_default()),
            None => (group, entry.message_id.clone().unwrap_or_default()),
        };
        Some((entry.at, lane, name))
    });
    // While the user talks to an agent, the user's messages go to ServiceNow and count in the other direction.
    let with_bot = front.sandbox.botkit_events().into_iter().filter(|event| event.ended_by.is_some());
    let with_bot = with_bot.map(|event| (event.at, event.user, event.text.unwrap_or_default()));
    let mut taken: Vec<_> = callbacks.chain(with_bot).collect();
    taken.sort_by_key(|(at, ..)| *at);
    let placed = taken.into_iter().enumerate().map(|(place, (at, lane, name))| AcceptedRecord {
        lane,
        name,
        at: Some(at),
        place: Some(place),
    });
    let notices = scenario.owed().iter().map(|(person, notice)| AcceptedRecord {
        lane: person.conversation.to_owned(),
        name: notice.clone(),
        at: None,
        place: None,
    });
    placed.chain(notices).collect()
}

/// Whether ServiceNow's system wrote this row.
pub(super) fn is_system(entry: &LedgerEntry) -> bool {
    let body: Value = serde_json::from_str(&entry.body).unwrap_or_default();
    body.get("sys_created_by").and_then(Value::as_str) == Some("system")
}

fn to_bot_side(entries: &[LedgerEntry]) -> Vec<ArrivedRecord> {
    let arrived = entries.iter().filter_map(|entry| {
        let body: Value = serde_json::from_str(&entry.body).ok()?;
        let field = |name: &str| body.get(name).and_then(Value::as_str);
        let (lane, name) = match (entry.side, entry.operation) {
            (Side::Events, _) => match field("sys_id") {
                Some(sys_id) => (entry.group.clone()?, sys_id.to_owned()),
                None => (entry.conversation.clone()?, notice(&body)?),
            },
            (Side::BotKit, Operation::Tell | Operation::BotMessage) => {
                (entry.conversation.clone()?, entry.text.clone()?)
            }
            (Side::BotKit, Operation::Clear) => (entry.conversation.clone()?, "ended".to_owned()),
            _ => return None,
        };
        let taken_at = field("at").and_then(|at| at.parse().ok());
        Some(ArrivedRecord { lane, name, taken_at, at: done(entry), effect: entry.effect? })
    });
    arrived.collect()
}

/// The short name of a notice: `joined`, `waiting 2`, `ended`.
pub(super) fn notice(event: &Value) -> Option<String> {
    let name = match event.get("event").and_then(Value::as_str) {
        Some(name) => name,
        None => event.get("type")?.as_str()?.rsplit('.').next()?,
    };
    let position = event.get("position").and_then(Value::as_u64);
    Some(position.map_or_else(|| name.to_owned(), |position| format!("{name} {position}")))
}

/// When the request was answered.
pub(super) fn done(entry: &LedgerEntry) -> Timestamp {
    let took = entry.finished.map_or(Duration::ZERO, |finished| finished - entry.started);
    entry.at.checked_add(took).unwrap_or(entry.at)
}

fn add_up(taken: &[AcceptedRecord], arrived: &[ArrivedRecord]) -> DirectionSummary {
    // Delivery is at least once, so the first arrival counts.
    let mut first: BTreeMap<(&str, &str), &ArrivedRecord> = BTreeMap::new();
    for arrival in arrived {
        let known = first.entry((&arrival.lane, &arrival.name)).or_insert(arrival);
        if arrival.effect < known.effect {
            *known = arrival;
        }
    }
    let expected: BTreeSet<(&str, &str)> =
        taken.iter().map(|taken| (taken.lane.as_str(), taken.name.as_str())).collect();
    // Arrivals without an external request come from Causeway itself.
    let own = first.keys().filter(|key| !expected.contains(*key)).count();
    let delivered = |taken: &AcceptedRecord| first.get(&(taken.lane.as_str(), taken.name.as_str())).copied();
    let mut direction = DirectionSummary {
        accepted: taken.len() + own,
        delivered: first.len(),
        lost: taken.iter().filter(|taken| delivered(taken).is_none()).count(),
        ..DirectionSummary::default()
    };
    for one in taken {
        let Some(arrival) = delivered(one) else { continue };
        if let Some(at) = one.at.or(arrival.taken_at) {
            direction.latencies.push(Duration::try_from(arrival.at.duration_since(at)).unwrap_or_default());
        }
        let overtakes = |later: &AcceptedRecord| {
            later.lane == one.lane
                && one.place.zip(later.place).is_some_and(|(place, later)| place < later)
                && delivered(later).is_some_and(|other| other.effect < arrival.effect)
        };
        direction.overtaken += usize::from(taken.iter().any(overtakes));
    }
    direction.latencies.sort_unstable();
    direction
}

/// The quantile of a sorted list, by nearest rank.
fn quantile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

fn shown(latency: Option<Duration>) -> String {
    match latency {
        None => "-".to_owned(),
        Some(latency) if latency >= Duration::from_secs(1) => format!("{:.1} s", latency.as_secs_f64()),
        Some(latency) => format!("{} ms", latency.as_millis()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(lane: &str, names: &[&str]) -> Vec<AcceptedRecord> {
        let one = |(place, name): (usize, &&str)| AcceptedRecord {
            lane: lane.to_owned(),
            name: (*name).to_owned(),
            at: Timestamp::from_second(100).ok(),
            place: Some(place),
        };
        names.iter().enumerate().map(one).collect()
    }

    fn arrived(lane: &str, names: &[&str]) -> Vec<ArrivedRecord> {
        let one = |(effect, name): (u64, &&str)| ArrivedRecord {
            lane: lane.to_owned(),
            name: (*name).to_owned(),
            taken_at: None,
            at: Timestamp::from_second(101).unwrap(),
            effect,
        };
        (1..).zip(names).map(one).collect()
    }

    fn counts(taken: &[AcceptedRecord], arrived: &[ArrivedRecord]) -> (usize, usize, usize, usize) {
        let sum = add_up(taken, arrived);
        (sum.accepted, sum.delivered, sum.lost, sum.overtaken)
    }

    #[test]
    fn messages_in_order_are_neither_lost_nor_overtaken() {
        assert_eq!(counts(&taken("a", &["1", "2", "3"]), &arrived("a", &["1", "2", "3"])), (3, 3, 0, 0));
    }

    #[test]
    fn a_message_that_never_arrived_is_lost() {
        assert_eq!(counts(&taken("a", &["1", "2", "3"]), &arrived("a", &["1", "3"])), (3, 2, 1, 0));
        assert_eq!(counts(&taken("a", &["1"]), &arrived("b", &["1"])).2, 1);
    }

    #[test]
    fn a_message_after_a_later_one_was_overtaken() {
        assert_eq!(counts(&taken("a", &["1", "2", "3"]), &arrived("a", &["2", "3", "1"])), (3, 3, 0, 1));
        assert_eq!(counts(&taken("a", &["1", "2", "3"]), &arrived("a", &["3", "2", "1"])).3, 2);
    }

    #[test]
    fn a_replayed_message_has_no_place_any_more() {
        let mut taken = taken("a", &["1", "2", "3"]);
        taken[0].place = None;
        assert_eq!(counts(&taken, &arrived("a", &["2", "3", "1"])), (3, 3, 0, 0));
    }

    #[test]
    fn a_repeat_and_an_unexpected_arrival_are_counted_once() {
        let arrived = arrived("a", &["1", "2", "1", "notice"]);
        assert_eq!(counts(&taken("a", &["1", "2"]), &arrived), (3, 3, 0, 0));
    }

    #[test]
    fn latency_is_from_taken_to_done_by_nearest_rank() {
        let sum = add_up(&taken("a", &["1"]), &arrived("a", &["1"]));
        assert_eq!(sum.latencies, [Duration::from_secs(1)]);
        let hundred: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(quantile(&hundred, 50), Some(Duration::from_millis(50)));
        assert_eq!(quantile(&hundred, 99), Some(Duration::from_millis(99)));
        assert_eq!(quantile(&hundred[..1], 99), Some(Duration::from_millis(1)));
        assert_eq!(shown(quantile(&[], 50)), "-");
    }

    #[test]
    fn a_notice_is_named_by_what_it_says() {
        let name = |text: &str| notice(&serde_json::from_str(text).unwrap());
        let waiting = r#"{"type":"callback.event","event":"waiting","position":2}"#;
        assert_eq!(name(waiting).as_deref(), Some("waiting 2"));
        assert_eq!(name(r#"{"type":"callback.ended"}"#).as_deref(), Some("ended"));
    }
}
