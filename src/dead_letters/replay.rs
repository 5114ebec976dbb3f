//! Replays dead letters in their original order without losing one.
//!
//! A replay has two reading sessions: the first makes a [`ReplayPlan`] that the operator can inspect, the second carries the
//! plan out. A message is published and confirmed before its dead letter is removed. A kill between these steps leaves
//! both; the next replay finds the dead letter again, and the worker or the plan recognises the message by its id. A
//! dead letter that is not published is removed only if its message was delivered, or if another dead letter of the
//! same message is published.
//!
//! Guarantees: the messages of each lane are published in the order of acceptance. Only dead letters of the plan are
//! changed. Memory holds the plan and the dead letters that arrive out of order, not all bodies.
//!
//! Not responsible for: publishing many lanes concurrently (`replayer.rs`), the operator's input (`cli/dead`,
//! `ingress/desk`), suppressing messages that are delivered meanwhile (`delivery/`).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior};

use super::outcome::RepublishedMessage;
use super::replayer::DeadLetterReplayer;
use super::resequencer::LaneResequencer;
use super::{DeadLetterError, DeadLetterFilter, DeadLetterKey, DeadLetterSummary, FilteredReader};
use crate::conversation::{ConversationState, DedupKey, Directory, DirectoryError};
use crate::message::{ConversationId, DeadReason, Destination, Kind, LaneKey, named};
use crate::queue::{Queue, QueueError};
use crate::tasks::CancellationToken;

/// The dead letters of one query to the directory.
const LOOKUPS_AT_ONCE: usize = 30;

named! {
    /// The action of a replay on a dead letter.
    ReplayAction {
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

impl ReplayAction {
    /// Whether the dead letter stays.
    pub const fn stays(self) -> bool {
        matches!(self, Self::Unreadable | Self::Over | Self::OtherPayload)
    }
}

/// The directory's knowledge about the dead letters of a plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownOutcomes {
    /// The dead letters whose messages were delivered since.
    pub delivered: HashSet<DeadLetterKey>,
    /// The dead letters under whose ids another payload was delivered.
    pub other_payload: HashSet<DeadLetterKey>,
    /// The lanes whose chats have ended.
    pub over: HashSet<LaneKey>,
}

/// One dead letter of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanStep {
    /// The dead letter.
    pub entry: DeadLetterSummary,
    /// The action on the dead letter.
    pub action: ReplayAction,
}

/// The plan of a replay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplayPlan {
    steps: Vec<PlanStep>,
}

impl ReplayPlan {
    /// Makes a plan for these dead letters, which are in the order of death.
    pub fn new(entries: Vec<DeadLetterSummary>, filter: &DeadLetterFilter, known: &KnownOutcomes) -> Self {
        let newest: HashMap<_, DeadLetterKey> =
            entries.iter().map(|entry| ((entry.key.id, entry.digest), entry.key)).collect();
        // A start opens a new chat for the messages behind it.
        let reopened: HashSet<&LaneKey> = entries
            .iter()
            .filter(|entry| entry.kind == Kind::HandoffStart && !known.delivered.contains(&entry.key))
            .map(|entry| &entry.lane)
            .collect();
        let is_over = |entry: &DeadLetterSummary| {
            speaks_in_a_chat(entry.kind)
                && known.over.contains(&entry.lane)
                && !reopened.contains(&entry.lane)
        };
        let action = |entry: &DeadLetterSummary| {
            let named = filter.ids.contains(&entry.key.id);
            if newest.get(&(entry.key.id, entry.digest)) != Some(&entry.key) {
                ReplayAction::Superseded
            } else if known.delivered.contains(&entry.key) {
                ReplayAction::Delivered
            } else if known.other_payload.contains(&entry.key) {
                ReplayAction::OtherPayload
            } else if entry.reason == DeadReason::Unreadable {
                let asked_for = named || filter.reasons.contains(&DeadReason::Unreadable);
                if asked_for { ReplayAction::Replay } else { ReplayAction::Unreadable }
            } else if is_over(entry) && !named {
                ReplayAction::Over
            } else {
                ReplayAction::Replay
            }
        };
        let fates: Vec<ReplayAction> = entries.iter().map(action).collect();
        let mut steps: Vec<PlanStep> =
            entries.into_iter().zip(fates).map(|(entry, action)| PlanStep { entry, action }).collect();
        // The sort is stable: messages accepted in the same millisecond keep the order of death.
        steps.sort_by_key(|step| step.entry.accepted_at);
        Self { steps }
    }

    /// The steps, in the order of acceptance.
    pub fn steps(&self) -> &[PlanStep] {
        &self.steps
    }

    /// The number of dead letters with this action.
    pub fn count(&self, action: ReplayAction) -> u64 {
        self.steps.iter().map(|step| u64::from(step.action == action)).sum()
    }

    /// The number of messages to publish.
    pub fn to_replay(&self) -> u64 {
        self.count(ReplayAction::Replay)
    }

    /// The number of dead letters that are only removed.
    pub fn to_clear(&self) -> u64 {
        self.count(ReplayAction::Delivered) + self.count(ReplayAction::Superseded)
    }

    /// The number of dead letters that stay.
    pub fn to_leave(&self) -> u64 {
        self.steps.iter().map(|step| u64::from(step.action.stays())).sum()
    }

    /// The number of messages and lanes by action, destination and reason.
    pub fn summary(&self) -> BTreeMap<(ReplayAction, Destination, DeadReason), (u64, usize)> {
        let mut counts: BTreeMap<_, (u64, BTreeSet<&LaneKey>)> = BTreeMap::new();
        for PlanStep { entry, action } in &self.steps {
            let (count, lanes) = counts.entry((*action, entry.destination, entry.reason)).or_default();
            *count += 1;
            lanes.insert(&entry.lane);
        }
        counts.into_iter().map(|(which, (count, lanes))| (which, (count, lanes.len()))).collect()
    }

    fn at(&self, destination: Destination) -> impl Iterator<Item = &PlanStep> {
        self.steps.iter().filter(move |step| step.entry.destination == destination)
    }
}

/// Whether a message of this kind needs a chat that another message opened.
const fn speaks_in_a_chat(kind: Kind) -> bool {
    matches!(kind, Kind::HandoffMessage | Kind::HandoffTyping | Kind::HandoffEnd)
}

/// Reads the dead letters and the directory, and makes a plan.
pub async fn plan(
    queue: &Queue,
    filter: &DeadLetterFilter,
    directory: &Directory,
) -> Result<ReplayPlan, DeadLetterError> {
    let entries = super::list(queue, filter).await?;
    let mut known = KnownOutcomes::default();
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
    Ok(ReplayPlan::new(entries, filter, &known))
}

async fn delivered(
    entries: &[DeadLetterSummary],
    directory: &Directory,
    known: &mut KnownOutcomes,
) -> Result<(), DirectoryError> {
    for some in entries.chunks(LOOKUPS_AT_ONCE) {
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
async fn has_ended(directory: &Directory, lane: &LaneKey) -> Result<bool, DeadLetterError> {
    let Ok(id) = ConversationId::parse(lane.as_str()) else { return Ok(false) };
    Ok(directory.find(&id).await?.is_some_and(|known| known.state == ConversationState::Ended))
}

/// The progress of a replay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplayCounts {
    /// Messages published again, whose dead letters were removed.
    pub replayed: u64,
    /// Dead letters that were only removed.
    pub cleared: u64,
}

/// The result of a replay, complete or not.
#[derive(Debug, Default)]
pub struct ReplayResult {
    /// The numbers.
    pub replay_counts: ReplayCounts,
    /// The messages that were published again. [`super::outcome::wait`] reports their results.
    pub messages: Vec<RepublishedMessage>,
    /// The error that stopped the replay. The steps in `tally` are done; the other dead letters are unchanged.
    pub trouble: Option<DeadLetterError>,
}

/// Carries a plan out, at most `rate` messages per second, until the cancellation. `progress` gets the numbers after
/// each step.
pub async fn run(
    queue: &Queue,
    filter: &DeadLetterFilter,
    plan: &ReplayPlan,
    rate: Option<f64>,
    stop: &CancellationToken,
    mut progress: impl FnMut(ReplayCounts),
) -> ReplayResult {
    let mut pace = rate.map(pace);
    let mut replayed = ReplayResult::default();
    for destination in filter.destinations(queue) {
        if stop.is_cancelled() || !plan.at(destination).any(|step| !step.action.stays()) {
            continue;
        }
        let mut filtered = match FilteredReader::begin(queue, destination, filter).await {
            Ok(filtered) => filtered,
            Err(error) => {
                replayed.trouble = Some(error.into());
                break;
            }
        };
        let mut replayer = DeadLetterReplayer::new(queue, stop, &mut pace, &mut replayed, &mut progress);
        let done = replay_destination(&mut filtered, plan, destination, &mut replayer).await;
        replayer.give_up().await;
        filtered.end().await;
        if let Err(error) = done {
            replayed.trouble = Some(error.into());
            break;
        }
    }
    replayed
}

async fn replay_destination<P: FnMut(ReplayCounts)>(
    filtered: &mut FilteredReader<'_>,
    plan: &ReplayPlan,
    destination: Destination,
    replayer: &mut DeadLetterReplayer<'_, P>,
) -> Result<(), QueueError> {
    let fates: HashMap<DeadLetterKey, ReplayAction> =
        plan.at(destination).map(|step| (step.entry.key, step.action)).collect();
    let to_replay = plan.at(destination).filter(|step| step.action == ReplayAction::Replay);
    let mut lineup =
        LaneResequencer::expecting(to_replay.map(|step| (step.entry.lane.clone(), step.entry.key)));
    let mut left = plan.at(destination).filter(|step| !step.action.stays()).count();
    while left > 0 && !replayer.is_stopped() {
        let Some(held) = filtered.next().await? else { break };
        let entry = DeadLetterSummary::from(&held.dead);
        match fates.get(&entry.key) {
            None | Some(ReplayAction::Unreadable | ReplayAction::Over | ReplayAction::OtherPayload) => {
                continue;
            }
            Some(ReplayAction::Delivered | ReplayAction::Superseded) => replayer.clear(held).await?,
            Some(ReplayAction::Replay) => {
                for ready in lineup.arrive(&entry.lane, entry.key, held) {
                    replayer.take(ready).await?;
                }
            }
        }
        left -= 1;
    }
    // Another operator removed the messages that these waited for.
    for late in lineup.rest() {
        replayer.take(late).await?;
    }
    replayer.finish().await
}

fn pace(rate: f64) -> Interval {
    let mut pace = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pace
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letters::Answer;
    use crate::message::{MessageId, PayloadDigest};
    use jiff::Timestamp;

    fn entry(id: MessageId, lane: &str, reason: DeadReason, accepted: i64, died: i64) -> DeadLetterSummary {
        let at = |second| Timestamp::from_second(second).unwrap();
        DeadLetterSummary {
            destination: Destination::Xo,
            key: DeadLetterKey { id, died_at: at(died) },
            kind: Kind::CallbackMessage,
            lane: LaneKey::parse(lane).unwrap(),
            reason,
            answer: Answer::NotSent,
            accepted_at: at(accepted),
            replays: 0,
            digest: None,
        }
    }

    fn fates(plan: &ReplayPlan) -> Vec<ReplayAction> {
        plan.steps().iter().map(|step| step.action).collect()
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
        let plan = ReplayPlan::new(entries, &DeadLetterFilter::default(), &KnownOutcomes::default());
        let order: Vec<MessageId> = plan.steps().iter().map(|step| step.entry.key.id).collect();
        assert_eq!(order, ids);
        assert_eq!(plan.summary()[&(ReplayAction::Replay, Destination::Xo, DeadReason::Expired)], (4, 1));
    }

    #[test]
    fn the_plan_gives_the_reason_for_no_replay() {
        let [twice, delivered, unreadable] = [(); 3].map(|()| MessageId::fresh());
        let entries = vec![
            entry(twice, "a", DeadReason::Expired, 1, 10),
            entry(delivered, "a", DeadReason::Exhausted, 2, 20),
            entry(unreadable, "b", DeadReason::Unreadable, 3, 30),
            entry(twice, "a", DeadReason::Expired, 4, 40),
        ];
        let known = KnownOutcomes { delivered: [entries[1].key].into(), ..KnownOutcomes::default() };
        let plan = ReplayPlan::new(entries.clone(), &DeadLetterFilter::default(), &known);
        assert_eq!(
            fates(&plan),
            [
                ReplayAction::Superseded,
                ReplayAction::Delivered,
                ReplayAction::Unreadable,
                ReplayAction::Replay
            ]
        );

        let by_reason =
            DeadLetterFilter { reasons: [DeadReason::Unreadable].into(), ..DeadLetterFilter::default() };
        let plan = ReplayPlan::new(entries[2..3].to_vec(), &by_reason, &KnownOutcomes::default());
        assert_eq!(fates(&plan), [ReplayAction::Replay]);
    }

    #[test]
    fn two_requests_under_one_key_are_two_messages() {
        let (id, digest) = (MessageId::fresh(), |text: &str| Some(PayloadDigest::of(text.as_bytes())));
        let of = |text, died| DeadLetterSummary {
            digest: digest(text),
            ..entry(id, "a", DeadReason::Rejected, 1, died)
        };
        let entries = vec![of("one", 10), of("other", 20), of("one", 30)];
        let planned = |known: &KnownOutcomes| {
            fates(&ReplayPlan::new(entries.clone(), &DeadLetterFilter::default(), known))
        };
        assert_eq!(
            planned(&KnownOutcomes::default()),
            [ReplayAction::Superseded, ReplayAction::Replay, ReplayAction::Replay]
        );
        let other_payload = [entries[0].key, entries[2].key].into();
        let known =
            KnownOutcomes { other_payload, delivered: [entries[1].key].into(), ..KnownOutcomes::default() };
        assert_eq!(
            planned(&known),
            [ReplayAction::Superseded, ReplayAction::Delivered, ReplayAction::OtherPayload]
        );
    }

    #[test]
    fn nothing_is_said_in_a_chat_that_has_ended_unless_a_start_opens_another() {
        let [said, start] = [(); 2].map(|()| MessageId::fresh());
        let of = |kind, id, second| DeadLetterSummary {
            kind,
            ..entry(id, "c", DeadReason::Rejected, second, 10 + second)
        };
        let message = of(Kind::HandoffMessage, said, 2);
        let known = KnownOutcomes { over: [message.lane.clone()].into(), ..KnownOutcomes::default() };
        let planned = |entries: Vec<DeadLetterSummary>, filter: &DeadLetterFilter| {
            fates(&ReplayPlan::new(entries, filter, &known))
        };
        assert_eq!(planned(vec![message.clone()], &DeadLetterFilter::default()), [ReplayAction::Over]);
        let named = DeadLetterFilter { ids: [said].into(), ..DeadLetterFilter::default() };
        assert_eq!(planned(vec![message.clone()], &named), [ReplayAction::Replay]);
        let both = vec![of(Kind::HandoffStart, start, 1), message];
        assert_eq!(planned(both, &DeadLetterFilter::default()), [ReplayAction::Replay, ReplayAction::Replay]);
        // The bot side has not been notified of the ended chat, so the notice is still useful.
        let ended = of(Kind::CallbackEnded, MessageId::fresh(), 3);
        assert_eq!(planned(vec![ended], &DeadLetterFilter::default()), [ReplayAction::Replay]);
    }
}
