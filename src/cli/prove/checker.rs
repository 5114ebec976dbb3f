//! The checker: finds messages that were lost, overtaken, or repeated without a reason.
//!
//! Guarantees: no I/O. Three things explain a repeat: a fault of the platform in the answer to this attempt, an
//! answer as late as the caller's timeout, or a scheduled fault during the attempt or while its success was being
//! recorded.

use super::fault_plan::FaultKind;
use super::history::{DeliveryCall, FaultRecord, MessageTrace, Micros, ProveChat, SECOND};
use crate::message::Destination;

/// Longest time from a platform's answer until the queue has recorded it, without faults.
const NOTED_WITHIN: Micros = SECOND;
/// How long a fault has effects after its end.
const AFTERMATH: Micros = 2 * SECOND;

/// A broken guarantee.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum BrokenPromise {
    /// The message was accepted, but it was neither delivered nor dead-lettered.
    Lost,
    /// The message took effect after a later one of its conversation, or a later one started before this one was
    /// finished.
    Overtaken,
    /// The message took effect twice, although the outcome of the first attempt was known.
    Unexplained,
    /// A correct request was rejected.
    Refused,
    /// ServiceNow, which never repeats a callback, was told to repeat one.
    TurnedAway,
    /// The message was accepted while no file could be written.
    Unwritten,
}

impl BrokenPromise {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Overtaken => "overtaken",
            Self::Unexplained => "repeated without a reason",
            Self::Refused => "refused",
            Self::TurnedAway => "told to repeat",
            Self::Unwritten => "taken on a full disk",
        }
    }
}

/// The result of the check of one conversation.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct CheckResult {
    pub(super) accepted: u64,
    pub(super) delivered: u64,
    pub(super) dead: u64,
    /// The effects after the first effect of a message, each with its reason.
    pub(super) repeats: Vec<&'static str>,
    /// The index of the message, and the broken guarantee.
    pub(super) breaches: Vec<(usize, BrokenPromise)>,
}

/// The facts outside of the conversation that the checker needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct CheckContext<'a> {
    pub(super) happened: &'a [FaultRecord],
    /// Whether the ingress has a spool, so that it accepts callbacks without the broker.
    pub(super) has_spool: bool,
    /// Causeway's timeout for a call to a platform.
    pub(super) call_timeout: Micros,
}

/// Checks one conversation. `dead` tells whether message n is a dead letter.
pub(super) fn check(chat: &ProveChat, dead: impl Fn(usize) -> bool, known: CheckContext<'_>) -> CheckResult {
    let mut judgement = CheckResult::default();
    for (n, trace) in chat.messages.iter().enumerate() {
        let effect = trace.effect();
        if trace.refused.is_some() {
            judgement.breaches.push((n, BrokenPromise::Refused));
        }
        if known.has_spool && chat.destination == Destination::Xo && trace.turned_away.is_some() {
            judgement.breaches.push((n, BrokenPromise::TurnedAway));
        }
        if trace.accepted.is_some() {
            judgement.accepted += 1;
            if effect.is_some() || is_moot(chat, n, &dead) {
                judgement.delivered += 1;
            } else if dead(n) {
                judgement.dead += 1;
            } else {
                judgement.breaches.push((n, BrokenPromise::Lost));
            }
        }
        if taken_on_a_full_disk(trace, known) {
            judgement.breaches.push((n, BrokenPromise::Unwritten));
        }
        for why in repeats(chat, n, trace, known) {
            match why {
                Some(why) => judgement.repeats.push(why),
                None => {
                    judgement.repeats.push("nothing");
                    judgement.breaches.push((n, BrokenPromise::Unexplained));
                }
            }
        }
    }
    overtaken(chat, &dead, known, &mut judgement.breaches);
    judgement
}

/// Whether the message was first posted and answered with 2xx while no file could be written. The message cannot have
/// been on the disk then.
fn taken_on_a_full_disk(trace: &MessageTrace, known: CheckContext<'_>) -> bool {
    let (Some(posted), Some(accepted)) = (trace.posted, trace.accepted) else { return false };
    full_disks(known).any(|fault| fault.from <= posted && accepted <= fault.until)
}

fn full_disks(known: CheckContext<'_>) -> impl Iterator<Item = &FaultRecord> {
    known.happened.iter().filter(|fault| fault.fault_kind == FaultKind::FullDisk)
}

/// The number of accepted messages without an outcome.
pub(super) fn unfinished(chat: &ProveChat, dead: impl Fn(usize) -> bool) -> usize {
    let open = |(n, trace): &(usize, &MessageTrace)| {
        trace.accepted.is_some() && trace.effect().is_none() && !is_moot(chat, *n, &dead) && !dead(*n)
    };
    chat.messages.iter().enumerate().filter(open).count()
}

/// Whether message n is the end of a chat whose start was dead-lettered. There is no chat to end, so Causeway sends
/// nothing.
fn is_moot(chat: &ProveChat, n: usize, dead: &impl Fn(usize) -> bool) -> bool {
    chat.destination == Destination::ServiceNow
        && n > 0
        && n + 1 == super::generator::HANDOFF_LENGTH
        && dead(0)
}

/// Compares the effect of each message with the effects before it, and its first visit with the outcome of its
/// predecessor.
fn overtaken(
    chat: &ProveChat,
    dead: &impl Fn(usize) -> bool,
    known: CheckContext<'_>,
    breaches: &mut Vec<(usize, BrokenPromise)>,
) {
    let mut newest = 0;
    for (n, trace) in chat.messages.iter().enumerate() {
        if let Some((_, place)) = trace.effect() {
            if place < newest {
                breaches.push((n, BrokenPromise::Overtaken));
            }
            newest = newest.max(place);
        }
        let (Some(before), Some(began)) =
            (n.checked_sub(1).and_then(|before| chat.messages.get(before)), trace.calls.first())
        else {
            continue;
        };
        let through = through(before, known.call_timeout);
        let jumped = match through {
            Some(through) => began.began < through,
            // The predecessor died. It must not arrive after the start of this message, unless a broken connection
            // delayed it.
            None => {
                dead(n - 1)
                    && before
                        .calls
                        .iter()
                        .any(|late| late.began > began.began && by_fault(chat, late, known).is_none())
            }
        };
        if jumped {
            breaches.push((n - 1, BrokenPromise::Overtaken));
        }
    }
    breaches.sort_unstable();
    breaches.dedup();
}

/// The time at which the sender could know that the message was delivered.
fn through(trace: &MessageTrace, call_timeout: Micros) -> Option<Micros> {
    let done = |call: &DeliveryCall| {
        let (at, _) = call.effect?;
        // If the answer was broken or missing, the time of the effect is the only evidence.
        let answered = call.fault.is_none() && call.status.is_some_and(|status| status < 300);
        let ended = call.ended.filter(|_| answered).unwrap_or(at);
        Some(if ended.saturating_sub(call.began) >= call_timeout { at } else { ended })
    };
    trace.calls.iter().filter_map(done).min()
}

/// One entry for each effect after the first: the reason, or `None`.
fn repeats(
    chat: &ProveChat,
    n: usize,
    trace: &MessageTrace,
    known: CheckContext<'_>,
) -> Vec<Option<&'static str>> {
    if trace.calls.len() < 2 {
        return Vec::new();
    }
    let mut effects: Vec<&DeliveryCall> = trace.calls.iter().filter(|call| call.effect.is_some()).collect();
    effects.sort_by_key(|call| call.effect.map(|(_, place)| place));
    let explain = |pair: &[&DeliveryCall]| match pair {
        [first, again] => explained(chat, n, trace, first, again, known),
        _ => None,
    };
    effects.windows(2).map(explain).collect()
}

fn explained(
    chat: &ProveChat,
    n: usize,
    trace: &MessageTrace,
    first: &DeliveryCall,
    again: &DeliveryCall,
    known: CheckContext<'_>,
) -> Option<&'static str> {
    // A late answer is still an answer.
    if let (Some(fault), None) = (first.fault, first.status) {
        return Some(fault);
    }
    let ended = first.ended.unwrap_or(first.began);
    if first.ended.is_none() || ended - first.began >= known.call_timeout {
        return Some("timeout");
    }
    let meets = |fault: &FaultRecord, from: Micros, to: Micros| {
        fault.from <= to && from <= fault.until.saturating_add(AFTERMATH)
    };
    let delivery = |fault: &&FaultRecord| touches(fault, chat.destination);
    let noted = noted(chat, n, ended, known);
    let met = known.happened.iter().filter(delivery).find(|fault| meets(fault, first.began, noted));
    if let Some(fault) = met {
        return Some(fault.fault_kind.as_str());
    }
    // The message was posted twice because the first answer was lost, so two copies are in the queue. A repeat then
    // needs a second fault: the record of the first delivery was lost before the second copy's turn.
    let (posted, accepted) = (trace.posted?, trace.accepted.unwrap_or(again.began));
    let lost_answer = |fault: &&FaultRecord| {
        fault.fault_kind.blurs_acceptance() && meets(fault, posted, accepted + NOTED_WITHIN)
    };
    let cause = known.happened.iter().find(lost_answer)?;
    let forgot = known.happened.iter().filter(delivery).any(|fault| meets(fault, first.began, again.began));
    (trace.posts > 1 && forgot).then(|| cause.fault_kind.as_str())
}

/// The time by which a delivery was certainly recorded. A lane moves on only after that. If the next message was
/// waiting, its start is the evidence, even on a slow disk. On a full disk, the recording happens when there is room
/// again.
fn noted(chat: &ProveChat, n: usize, ended: Micros, known: CheckContext<'_>) -> Micros {
    let next = chat.messages.get(n + 1).filter(|next| next.accepted.is_some_and(|at| at <= ended));
    let moved_on = next.map(|next| next.calls.first().map_or(Micros::MAX, |call| call.began));
    let noted = moved_on.unwrap_or(ended).saturating_add(NOTED_WITHIN);
    let room = full_disks(known).filter(|fault| fault.from <= noted && ended <= fault.until);
    room.map(|fault| fault.until.saturating_add(NOTED_WITHIN)).fold(noted, Micros::max)
}

/// The scheduled fault that may have delayed this visit.
fn by_fault(chat: &ProveChat, call: &DeliveryCall, known: CheckContext<'_>) -> Option<&'static str> {
    let held = |fault: &&FaultRecord| {
        let at = call.began;
        touches(fault, chat.destination) && fault.from <= at && at <= fault.until.saturating_add(AFTERMATH)
    };
    known.happened.iter().find(held).map(|fault| fault.fault_kind.as_str())
}

fn touches(fault: &FaultRecord, destination: Destination) -> bool {
    let one_sided = matches!(
        fault.fault_kind,
        FaultKind::CutPlatform | FaultKind::HolePlatform | FaultKind::DownPlatform
    );
    fault.fault_kind.blurs_delivery() && (!one_sided || fault.side == destination)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL_TIMEOUT: Micros = 4 * SECOND;

    fn call(began: Micros, place: u64) -> DeliveryCall {
        let ended = began + 1_000;
        DeliveryCall {
            began,
            ended: Some(ended),
            effect: Some((ended, place)),
            status: Some(200),
            fault: None,
        }
    }

    fn failed(began: Micros) -> DeliveryCall {
        DeliveryCall { effect: None, status: Some(500), ..call(began, 0) }
    }

    fn taken(calls: &[DeliveryCall]) -> MessageTrace {
        MessageTrace {
            posted: Some(1),
            posts: 1,
            accepted: Some(2),
            calls: calls.to_vec(),
            ..MessageTrace::default()
        }
    }

    fn chat(messages: &[MessageTrace]) -> ProveChat {
        let (name, destination) = ("c".to_owned(), Destination::Xo);
        ProveChat { name, destination, poisoned: false, messages: messages.to_vec() }
    }

    fn judged(messages: &[MessageTrace], happened: &[FaultRecord]) -> CheckResult {
        check(
            &chat(messages),
            |_| false,
            CheckContext { happened, has_spool: true, call_timeout: CALL_TIMEOUT },
        )
    }

    fn fault(fault_kind: FaultKind, from: Micros, until: Micros) -> FaultRecord {
        FaultRecord { fault_kind, from, until, worker: 0, side: Destination::Xo }
    }

    #[test]
    fn one_arrival_in_order_is_valid() {
        let seen = judged(&[taken(&[call(10_000, 1)]), taken(&[failed(20_000), call(30_000, 2)])], &[]);
        assert_eq!((seen.accepted, seen.delivered, seen.dead), (2, 2, 0));
        assert_eq!((seen.repeats, seen.breaches), (vec![], vec![]));
    }

    #[test]
    fn an_accepted_message_without_an_end_is_lost() {
        assert_eq!(judged(&[taken(&[failed(10_000)])], &[]).breaches, [(0, BrokenPromise::Lost)]);
        let unanswered = MessageTrace { accepted: None, ..taken(&[]) };
        assert_eq!(judged(&[unanswered], &[]).breaches, [], "nobody promised anything");
    }

    #[test]
    fn a_callback_may_not_be_told_to_repeat_if_there_is_a_spool() {
        let messages = [MessageTrace { turned_away: Some(1), posts: 2, ..taken(&[call(10_000, 1)]) }];
        assert_eq!(judged(&messages, &[]).breaches, [(0, BrokenPromise::TurnedAway)]);
        let known = CheckContext { happened: &[], has_spool: false, call_timeout: CALL_TIMEOUT };
        assert_eq!(check(&chat(&messages), |_| false, known).breaches, []);
        // A caller of the handoff API repeats.
        let handoffs = ProveChat { destination: Destination::ServiceNow, ..chat(&messages) };
        let known = CheckContext { has_spool: true, ..known };
        assert_eq!(check(&handoffs, |_| false, known).breaches, []);
    }

    #[test]
    fn a_dead_letter_is_an_end() {
        let known = CheckContext { happened: &[], has_spool: true, call_timeout: CALL_TIMEOUT };
        let seen = check(&chat(&[taken(&[failed(10_000)]), taken(&[call(20_000, 1)])]), |n| n == 0, known);
        assert_eq!((seen.delivered, seen.dead, seen.breaches), (1, 1, vec![]));
    }

    #[test]
    fn a_dead_letter_that_is_tried_again_was_overtaken() {
        let known = CheckContext { happened: &[], has_spool: true, call_timeout: CALL_TIMEOUT };
        let messages = [taken(&[failed(10_000), failed(30_000)]), taken(&[call(20_000, 1)])];
        assert_eq!(check(&chat(&messages), |n| n == 0, known).breaches, [(0, BrokenPromise::Overtaken)]);
    }

    #[test]
    fn effects_out_of_order_are_overtaken() {
        let seen = judged(&[taken(&[call(30_000, 2)]), taken(&[call(10_000, 1)])], &[]);
        assert!(seen.breaches.contains(&(1, BrokenPromise::Overtaken)), "{:?}", seen.breaches);
    }

    #[test]
    fn a_start_before_the_one_before_is_through_is_overtaking() {
        // The effects are in order, but both messages were in flight at the same time.
        let slow = DeliveryCall { ended: Some(20_000), effect: Some((10_500, 1)), ..call(10_000, 1) };
        let seen = judged(&[taken(&[slow]), taken(&[call(15_000, 2)])], &[]);
        assert_eq!(seen.breaches, [(0, BrokenPromise::Overtaken)]);
    }

    #[test]
    fn a_try_while_the_one_before_has_only_failed_is_overtaking() {
        let seen = judged(
            &[taken(&[failed(10_000), call(30_000, 1)]), taken(&[failed(20_000), call(40_000, 2)])],
            &[],
        );
        assert_eq!(seen.breaches, [(0, BrokenPromise::Overtaken)]);
    }

    #[test]
    fn a_repeat_needs_a_reason_that_met_this_attempt() {
        let twice = [taken(&[call(10 * SECOND, 1), call(15 * SECOND, 2)])];
        let unexplained = [(0, BrokenPromise::Unexplained)];
        assert_eq!(judged(&twice, &[]).breaches, unexplained);
        let kill = |at| fault(FaultKind::KillWorker, at, at);
        assert_eq!(judged(&twice, &[kill(10 * SECOND)]).repeats, ["kill-worker"]);
        assert_eq!(judged(&twice, &[kill(5 * SECOND)]).breaches, unexplained, "long before");
        assert_eq!(judged(&twice, &[kill(13 * SECOND)]).breaches, unexplained, "long after it was noted");
        let elsewhere = FaultRecord {
            side: Destination::ServiceNow,
            ..fault(FaultKind::CutPlatform, 10 * SECOND, 10 * SECOND)
        };
        assert_eq!(judged(&twice, &[elsewhere]).breaches, unexplained, "the other platform's wire");
        let harmless = fault(FaultKind::Slow, 9 * SECOND, 11 * SECOND);
        assert_eq!(judged(&twice, &[harmless]).breaches, unexplained, "it leaves nothing open");
    }

    #[test]
    fn a_delivery_is_noted_when_the_next_one_starts() {
        let twice = taken(&[call(10 * SECOND, 1), call(20 * SECOND, 2)]);
        let kill = fault(FaultKind::KillWorker, 15 * SECOND, 15 * SECOND);
        let waited = [twice.clone(), taken(&[call(25 * SECOND, 3)])];
        assert_eq!(judged(&waited, &[kill]).repeats, ["kill-worker"], "it was still being noted");
        let moved_on = [twice, taken(&[call(12 * SECOND, 3)])];
        assert_eq!(judged(&moved_on, &[kill]).breaches, [(0, BrokenPromise::Unexplained)]);
    }

    #[test]
    fn a_full_disk_explains_a_repeat_only_with_a_kill_before_it_was_noted() {
        let twice = [taken(&[call(10 * SECOND, 1), call(20 * SECOND, 2)])];
        let full = fault(FaultKind::FullDisk, 9 * SECOND, 15 * SECOND);
        let kill = |at| fault(FaultKind::KillWorker, at, at);
        assert_eq!(judged(&twice, &[full]).breaches, [(0, BrokenPromise::Unexplained)]);
        assert_eq!(judged(&twice, &[full, kill(15 * SECOND)]).repeats, ["kill-worker"]);
        assert_eq!(judged(&twice, &[full, kill(18 * SECOND)]).breaches, [(0, BrokenPromise::Unexplained)]);
    }

    #[test]
    fn nothing_is_taken_on_a_full_disk() {
        let trace = |posted, accepted| MessageTrace {
            posted: Some(posted),
            accepted: Some(accepted),
            ..taken(&[call(9 * SECOND, 1)])
        };
        let full = [fault(FaultKind::FullDisk, 2 * SECOND, 4 * SECOND)];
        let known = |trace| judged(&[trace], &full).breaches;
        assert_eq!(known(trace(2 * SECOND, 3 * SECOND)), [(0, BrokenPromise::Unwritten)]);
        assert_eq!(known(trace(SECOND, 3 * SECOND)), [], "it may have been written before");
        assert_eq!(known(trace(3 * SECOND, 5 * SECOND)), [], "it was posted again until there was room");
    }

    #[test]
    fn the_platforms_own_fault_and_a_timeout_explain_themselves() {
        let cut = DeliveryCall { fault: Some("cut"), status: None, ..call(SECOND, 1) };
        assert_eq!(judged(&[taken(&[cut, call(2 * SECOND, 2)])], &[]).repeats, ["cut"]);
        let slow = DeliveryCall { fault: Some("delay"), ..call(SECOND, 1) };
        let answered = judged(&[taken(&[slow, call(2 * SECOND, 2)])], &[]);
        assert_eq!(answered.breaches, [(0, BrokenPromise::Unexplained)]);
        let late = DeliveryCall { ended: Some(SECOND + CALL_TIMEOUT), ..call(SECOND, 1) };
        assert_eq!(judged(&[taken(&[late, call(6 * SECOND, 2)])], &[]).repeats, ["timeout"]);
    }

    #[test]
    fn two_copies_need_a_lost_answer_and_a_lost_memory() {
        let trace = MessageTrace {
            posted: Some(SECOND),
            posts: 2,
            accepted: Some(2 * SECOND),
            ..taken(&[call(10 * SECOND, 1), call(30 * SECOND, 2)])
        };
        let answer = fault(FaultKind::CutCallers, SECOND, SECOND);
        let memory = fault(FaultKind::KillWorker, 20 * SECOND, 20 * SECOND);
        assert_eq!(judged(std::slice::from_ref(&trace), &[answer, memory]).repeats, ["cut-callers"]);
        for alone in [answer, memory] {
            let seen = judged(std::slice::from_ref(&trace), &[alone]);
            assert_eq!(seen.breaches, [(0, BrokenPromise::Unexplained)], "{alone:?}");
        }
    }

    #[test]
    fn a_refusal_is_told() {
        let trace = MessageTrace { refused: Some(422), accepted: None, ..taken(&[]) };
        assert_eq!(judged(&[trace], &[]).breaches, [(0, BrokenPromise::Refused)]);
    }
}
