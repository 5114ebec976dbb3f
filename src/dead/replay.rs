//! Replays dead letters in their original order without losing one.
//!
//! A replay has two reading sessions: the first makes a [`Plan`] that the operator can inspect, the second carries the
//! plan out. A message is published and confirmed before its dead letter is removed. A kill between these steps leaves
//! both; the next replay finds the dead letter again, and the worker or the plan recognises the message by its id. A
//! dead letter that is not published is removed only if its message was delivered, or if another dead letter of the
//! same message is published.
//!
//! Guarantees: the messages of each lane are published in the order of acceptance. Only dead letters of the plan are
//! changed. Memory holds the plan and the dead letters that arrive out of order, not all bodies.
//!
//! Not responsible for: publishing many lanes concurrently (`resend.rs`), the operator's input (`cli/dead`,
//! `ingress/desk`), suppressing messages that are delivered meanwhile (`delivery/`).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior};

use super::order::Lineup;
use super::outcome::Republished;
use super::resend::Resend;
use super::{DeskError, Entry, Filter, Key, Visit};
use crate::conversation::{DedupKey, Directory, DirectoryError, State};
use crate::message::{ConversationId, DeadReason, Destination, Kind, LaneKey, named};
use crate::queue::{Queue, QueueError};
use crate::tasks::Stop;

/// The dead letters of one query to the directory.
const ASKED_AT_ONCE: usize = 30;

named! {
    /// The action of a replay on a dead letter.
    Fate {
        /// Publishes the message again.
        Replay = "replay",
        /// Only removes the dead letter: a destination has answered 2xx to the message since.
        Delivered = "already delivered",
        /// Only removes the dead letter: the same message with the same payload died again later, and that dead letter
        /// is replayed.
        Superseded = "died again later",
        /// Leaves the dead letter: another request was delivered under the same key, so the worker would refuse this
        /// one.
        OtherPayload = "its key was used for another request",
        /// Leaves the dead letter: the message cannot be parsed and would only die again. It is replayed if the filter
        /// names its reason or id.
        Unreadable = "unreadable",
        /// Leaves the dead letter: its chat has ended, so the message would only die again. It is replayed if the
        /// filter names its id.
        Over = "its chat has ended",
    }
}

impl Fate {
    /// Whether the dead letter stays.
    pub const fn stays(self) -> bool {
        matches!(self, Self::Unreadable | Self::Over | Self::OtherPayload)
    }
}

/// The directory's knowledge about the dead letters of a plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// The dead letters whose messages were delivered since.
    pub delivered: HashSet<Key>,
    /// The dead letters under whose ids another payload was delivered.
    pub other_payload: HashSet<Key>,
    /// The lanes whose chats have ended.
    pub over: HashSet<LaneKey>,
}

/// One dead letter of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The dead letter.
    pub entry: Entry,
    /// The action on the dead letter.
    pub fate: Fate,
}

/// The plan of a replay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    steps: Vec<Step>,
}

impl Plan {
    /// Makes a plan for these dead letters, which are in the order of death.
    pub fn new(entries: Vec<Entry>, filter: &Filter, known: &Known) -> Self {
        let newest: HashMap<_, Key> =
            entries.iter().map(|entry| ((entry.key.id, entry.digest), entry.key)).collect();
        // A start opens a new chat for the messages behind it.
        let reopened: HashSet<&LaneKey> = entries
            .iter()
            .filter(|entry| entry.kind == Kind::HandoffStart && !known.delivered.contains(&entry.key))
            .map(|entry| &entry.lane)
            .collect();
        let is_over = |entry: &Entry| {
            speaks_in_a_chat(entry.kind)
                && known.over.contains(&entry.lane)
                && !reopened.contains(&entry.lane)
        };
        let fate = |entry: &Entry| {
            let named = filter.ids.contains(&entry.key.id);
            if newest.get(&(entry.key.id, entry.digest)) != Some(&entry.key) {
                Fate::Superseded
            } else if known.delivered.contains(&entry.key) {
                Fate::Delivered
            } else if known.other_payload.contains(&entry.key) {
                Fate::OtherPayload
            } else if entry.reason == DeadReason::Unreadable {
                let asked_for = named || filter.reason == Some(DeadReason::Unreadable);
                if asked_for { Fate::Replay } else { Fate::Unreadable }
            } else if is_over(entry) && !named {
                Fate::Over
            } else {
                Fate::Replay
            }
        };
        let fates: Vec<Fate> = entries.iter().map(fate).collect();
        let mut steps: Vec<Step> =
            entries.into_iter().zip(fates).map(|(entry, fate)| Step { entry, fate }).collect();
        // The sort is stable: messages accepted in the same millisecond keep the order of death.
        steps.sort_by_key(|step| step.entry.accepted_at);
        Self { steps }
    }

    /// The steps, in the order of acceptance.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The number of dead letters with this action.
    pub fn count(&self, fate: Fate) -> u64 {
        self.steps.iter().map(|step| u64::from(step.fate == fate)).sum()
    }

    /// The number of messages to publish.
    pub fn to_replay(&self) -> u64 {
        self.count(Fate::Replay)
    }

    /// The number of dead letters that are only removed.
    pub fn to_clear(&self) -> u64 {
        self.count(Fate::Delivered) + self.count(Fate::Superseded)
    }

    /// The number of dead letters that stay.
    pub fn to_leave(&self) -> u64 {
        self.steps.iter().map(|step| u64::from(step.fate.stays())).sum()
    }

    /// The number of messages and lanes by action, destination and reason.
    pub fn summary(&self) -> BTreeMap<(Fate, Destination, DeadReason), (u64, usize)> {
        let mut counts: BTreeMap<_, (u64, BTreeSet<&LaneKey>)> = BTreeMap::new();
        for Step { entry, fate } in &self.steps {
            let (count, lanes) = counts.entry((*fate, entry.destination, entry.reason)).or_default();
            *count += 1;
            lanes.insert(&entry.lane);
        }
        counts.into_iter().map(|(which, (count, lanes))| (which, (count, lanes.len()))).collect()
    }

    fn at(&self, destination: Destination) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(move |step| step.entry.destination == destination)
    }
}

/// Whether a message of this kind needs a chat that another message opened.
const fn speaks_in_a_chat(kind: Kind) -> bool {
    matches!(kind, Kind::HandoffMessage | Kind::HandoffTyping | Kind::HandoffEnd)
}

/// Reads the dead letters and the directory, and makes a plan.
pub async fn plan(queue: &Queue, filter: &Filter, directory: &Directory) -> Result<Plan, DeskError> {
    let entries = super::list(queue, filter).await?;
    let mut known = Known::default();
    delivered(&entries, directory, &mut known).await?;
    let mut asked = HashSet::new();
    for entry in &entries {
        if speaks_in_a_chat(entry.kind)
            && asked.insert(&entry.lane)
            && has_ended(directory, &entry.lane).await?
        {
            known.over.insert(entry.lane.clone());
        }
    }
    Ok(Plan::new(entries, filter, &known))
}

async fn delivered(
    entries: &[Entry],
    directory: &Directory,
    known: &mut Known,
) -> Result<(), DirectoryError> {
    for some in entries.chunks(ASKED_AT_ONCE) {
        let deliveries = |id| [DedupKey::Delivered(id), DedupKey::Forwarded(id)];
        let keys: Vec<DedupKey> = some.iter().flat_map(|entry| deliveries(entry.key.id)).collect();
        let done = directory.find_done(&keys).await?;
        for entry in some {
            let ours = done.iter().find(|done| deliveries(entry.key.id).contains(&done.key));
            match ours.map(|done| (entry.digest, done.digest)) {
                None => {}
                Some((Some(dead), Some(delivered))) if dead != delivered => {
                    known.other_payload.insert(entry.key);
                }
                Some(_) => {
                    known.delivered.insert(entry.key);
                }
            }
        }
    }
    Ok(())
}

/// The lane of a message to ServiceNow is the conversation.
async fn has_ended(directory: &Directory, lane: &LaneKey) -> Result<bool, DeskError> {
    let Ok(id) = ConversationId::parse(lane.as_str()) else { return Ok(false) };
    Ok(directory.find(&id).await?.is_some_and(|known| known.state == State::Ended))
}

/// The progress of a replay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Messages published again, whose dead letters were removed.
    pub replayed: u64,
    /// Dead letters that were only removed.
    pub cleared: u64,
}

/// The result of a replay, complete or not.
#[derive(Debug, Default)]
pub struct Replayed {
    /// The numbers.
    pub tally: Tally,
    /// The messages that were published again. [`super::outcome::wait`] reports their results.
    pub messages: Vec<Republished>,
    /// The error that stopped the replay. The steps in `tally` are done; the other dead letters are unchanged.
    pub trouble: Option<DeskError>,
}

/// Carries a plan out, at most `rate` messages per second, until the cancellation. `progress` gets the numbers after
/// each step.
pub async fn run(
    queue: &Queue,
    filter: &Filter,
    plan: &Plan,
    rate: Option<f64>,
    stop: &Stop,
    mut progress: impl FnMut(Tally),
) -> Replayed {
    let mut pace = rate.map(pace);
    let mut replayed = Replayed::default();
    for destination in filter.destinations(queue) {
        if stop.asked() || !plan.at(destination).any(|step| !step.fate.stays()) {
            continue;
        }
        let mut visit = match Visit::begin(queue, destination, filter).await {
            Ok(visit) => visit,
            Err(error) => {
                replayed.trouble = Some(error.into());
                break;
            }
        };
        let mut resend = Resend::new(queue, stop, &mut pace, &mut replayed, &mut progress);
        let done = one_siding(&mut visit, plan, destination, &mut resend).await;
        resend.give_up().await;
        visit.end().await;
        if let Err(error) = done {
            replayed.trouble = Some(error.into());
            break;
        }
    }
    replayed
}

async fn one_siding<P: FnMut(Tally)>(
    visit: &mut Visit<'_>,
    plan: &Plan,
    destination: Destination,
    resend: &mut Resend<'_, P>,
) -> Result<(), QueueError> {
    let fates: HashMap<Key, Fate> = plan.at(destination).map(|step| (step.entry.key, step.fate)).collect();
    let to_replay = plan.at(destination).filter(|step| step.fate == Fate::Replay);
    let mut lineup = Lineup::expecting(to_replay.map(|step| (step.entry.lane.clone(), step.entry.key)));
    let mut left = plan.at(destination).filter(|step| !step.fate.stays()).count();
    while left > 0 && !resend.is_stopped() {
        let Some(held) = visit.next().await? else { break };
        let entry = Entry::from(&held.dead);
        match fates.get(&entry.key) {
            None | Some(Fate::Unreadable | Fate::Over | Fate::OtherPayload) => continue,
            Some(Fate::Delivered | Fate::Superseded) => resend.clear(held).await?,
            Some(Fate::Replay) => {
                for ready in lineup.arrive(&entry.lane, entry.key, held) {
                    resend.take(ready).await?;
                }
            }
        }
        left -= 1;
    }
    // Another operator removed the messages that these waited for.
    for late in lineup.rest() {
        resend.take(late).await?;
    }
    resend.finish().await
}

fn pace(rate: f64) -> Interval {
    let mut pace = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pace
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead::Answer;
    use crate::message::{MessageId, PayloadDigest};
    use jiff::Timestamp;

    fn entry(id: MessageId, lane: &str, reason: DeadReason, accepted: i64, died: i64) -> Entry {
        let at = |second| Timestamp::from_second(second).unwrap();
        Entry {
            destination: Destination::Xo,
            key: Key { id, died_at: at(died) },
            kind: Kind::CallbackMessage,
            lane: LaneKey::parse(lane).unwrap(),
            reason,
            answer: Answer::NotSent,
            accepted_at: at(accepted),
            replays: 0,
            digest: None,
        }
    }

    fn fates(plan: &Plan) -> Vec<Fate> {
        plan.steps().iter().map(|step| step.fate).collect()
    }

    #[test]
    fn a_plan_follows_the_order_of_acceptance() {
        let ids = [(); 4].map(|()| MessageId::fresh());
        let entries = vec![
            entry(ids[1], "a", DeadReason::Expired, 20, 100),
            entry(ids[0], "a", DeadReason::Expired, 10, 101),
            entry(ids[2], "a", DeadReason::Expired, 30, 102),
            entry(ids[3], "a", DeadReason::Expired, 30, 103),
        ];
        let plan = Plan::new(entries, &Filter::default(), &Known::default());
        let order: Vec<MessageId> = plan.steps().iter().map(|step| step.entry.key.id).collect();
        assert_eq!(order, ids);
        assert_eq!(plan.summary()[&(Fate::Replay, Destination::Xo, DeadReason::Expired)], (4, 1));
    }

    #[test]
    fn what_needs_no_replay_is_said_and_why() {
        let [twice, delivered, unreadable] = [(); 3].map(|()| MessageId::fresh());
        let entries = vec![
            entry(twice, "a", DeadReason::Expired, 1, 10),
            entry(delivered, "a", DeadReason::Exhausted, 2, 20),
            entry(unreadable, "b", DeadReason::Unreadable, 3, 30),
            entry(twice, "a", DeadReason::Expired, 4, 40),
        ];
        let known = Known { delivered: [entries[1].key].into(), ..Known::default() };
        let plan = Plan::new(entries.clone(), &Filter::default(), &known);
        assert_eq!(fates(&plan), [Fate::Superseded, Fate::Delivered, Fate::Unreadable, Fate::Replay]);

        let by_reason = Filter { reason: Some(DeadReason::Unreadable), ..Filter::default() };
        let plan = Plan::new(entries[2..3].to_vec(), &by_reason, &Known::default());
        assert_eq!(fates(&plan), [Fate::Replay]);
    }

    #[test]
    fn two_requests_under_one_key_are_two_messages() {
        let (id, digest) = (MessageId::fresh(), |text: &str| Some(PayloadDigest::of(text.as_bytes())));
        let of = |text, died| Entry { digest: digest(text), ..entry(id, "a", DeadReason::Rejected, 1, died) };
        let entries = vec![of("one", 10), of("other", 20), of("one", 30)];
        let planned = |known: &Known| fates(&Plan::new(entries.clone(), &Filter::default(), known));
        assert_eq!(planned(&Known::default()), [Fate::Superseded, Fate::Replay, Fate::Replay]);
        let other_payload = [entries[0].key, entries[2].key].into();
        let known = Known { other_payload, delivered: [entries[1].key].into(), ..Known::default() };
        assert_eq!(planned(&known), [Fate::Superseded, Fate::Delivered, Fate::OtherPayload]);
    }

    #[test]
    fn nothing_is_said_in_a_chat_that_has_ended_unless_a_start_opens_another() {
        let [said, start] = [(); 2].map(|()| MessageId::fresh());
        let of =
            |kind, id, second| Entry { kind, ..entry(id, "c", DeadReason::Rejected, second, 10 + second) };
        let message = of(Kind::HandoffMessage, said, 2);
        let known = Known { over: [message.lane.clone()].into(), ..Known::default() };
        let planned = |entries: Vec<Entry>, filter: &Filter| fates(&Plan::new(entries, filter, &known));
        assert_eq!(planned(vec![message.clone()], &Filter::default()), [Fate::Over]);
        let named = Filter { ids: [said].into(), ..Filter::default() };
        assert_eq!(planned(vec![message.clone()], &named), [Fate::Replay]);
        let both = vec![of(Kind::HandoffStart, start, 1), message];
        assert_eq!(planned(both, &Filter::default()), [Fate::Replay, Fate::Replay]);
        // The bot side has not been notified of the ended chat, so the notice is still useful.
        let ended = of(Kind::CallbackEnded, MessageId::fresh(), 3);
        assert_eq!(planned(vec![ended], &Filter::default()), [Fate::Replay]);
    }
}
