//! The checker: compares a played history with every promise of the worker, one function for each promise.
//!
//! `platform.rs` checks the promises that must hold when a call begins: order, one message in flight, one probe, no repeat.
//! This file checks the promises that only the whole history shows.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use tokio::time::Instant;

use super::history::{BrokerWeather, History, Outage};
use super::platform::{AskedCall, id, read};
use super::play::{BEGINNING, DEADLINE, HOLD, PlayedHistory};
use crate::message::{DeadLetter, DeadReason};

/// The longest time of a healthy message beside failing conversations.
const HEALTHY: Duration = Duration::from_secs(3);
/// The same if failing conversations fill the window. They count as stuck only after failures over five seconds, between
/// which they back off and hang.
const HEALTHY_IN_A_CROWD: Duration = Duration::from_secs(21);

/// Timers are precise to the millisecond.
const TICK: Duration = Duration::from_millis(2);

/// All broken promises, in words.
pub(super) fn judge(history: &History, played: &PlayedHistory) -> Vec<String> {
    let mut broken = played.broken.clone();
    nothing_is_lost(played, &mut broken);
    nothing_overtakes(played, &mut broken);
    dead_letters_have_died_rightly(history, played, &mut broken);
    a_wish_to_be_left_alone_is_granted(played, &mut broken);
    a_stopped_worker_starts_no_attempt(played, &mut broken);
    match history.weather {
        BrokerWeather::Storm => {}
        BrokerWeather::Poison => the_healthy_are_not_delayed(history, played, &mut broken),
        BrokerWeather::Outage => an_outage_is_probed_only(history, played, &mut broken),
        BrokerWeather::Clocks => a_step_delays_no_message(history, played, &mut broken),
    }
    broken
}

fn of(played: &PlayedHistory, line: usize, n: usize) -> impl Iterator<Item = &AskedCall> {
    played.asked.iter().filter(move |it| (it.line, it.n) == (line, n))
}

fn was_taken(it: &AskedCall) -> bool {
    it.heard.is_some_and(|(status, _)| status == 200)
}

fn graves(played: &PlayedHistory, line: usize, n: usize) -> impl Iterator<Item = &(Instant, DeadLetter)> {
    let id = id(line, n);
    played.record.dead.iter().filter(move |(_, dead)| dead.message.id == id)
}

/// Each message is delivered or dead-lettered; both only with a cause.
fn nothing_is_lost(played: &PlayedHistory, broken: &mut Vec<String>) {
    for (line, n) in played.accepted.keys().copied() {
        let taken = of(played, line, n).any(was_taken);
        let buried = graves(played, line, n).count();
        let excused = played.record.twice.contains(&id(line, n));
        if !taken && buried == 0 {
            broken.push(format!("{line}/{n} is lost"));
        }
        if taken && !played.effects.iter().any(|(_, l, m)| (*l, *m) == (line, n)) {
            broken.push(format!("{line}/{n} was taken without effect: the model is wrong"));
        }
        if !excused && (buried > 1 || taken && buried > 0) {
            broken.push(format!("{line}/{n}: taken {taken}, and {buried} dead letters"));
        }
        let given_back = played.record.given_back.iter().filter(|(_, back)| *back == id(line, n));
        for (at, _) in given_back {
            if !excused
                && of(played, line, n).any(|it| was_taken(it) && it.ended.is_some_and(|end| end < *at))
            {
                broken.push(format!("{line}/{n} was delivered and then returned"));
            }
        }
    }
}

/// The first effects of a line are in the order of its messages. Messages that ended as dead letters are left out.
fn nothing_overtakes(played: &PlayedHistory, broken: &mut Vec<String>) {
    let mut newest: BTreeMap<usize, usize> = BTreeMap::new();
    let mut seen = std::collections::BTreeSet::new();
    for (_, line, n) in &played.effects {
        if graves(played, *line, *n).next().is_some() || !seen.insert((*line, *n)) {
            continue;
        }
        let newest = newest.entry(*line).or_insert(*n);
        if *n < *newest {
            broken.push(format!("{line}/{newest} has overtaken {line}/{n}"));
        }
        *newest = (*newest).max(*n);
    }
}

/// Whether the messages can fill three quarters of the window: in a crowded window a stuck line is charged for all time.
fn may_be_crowded(history: &History) -> bool {
    let all: usize = history.lines.iter().map(|line| line.moments.len()).sum();
    all >= usize::from(history.prefetch / 4) * 3
}

fn dead_letters_have_died_rightly(history: &History, played: &PlayedHistory, broken: &mut Vec<String>) {
    let crowd = may_be_crowded(history);
    let (ahead, behind) = history.wrong_clocks();
    for (died, dead) in &played.record.dead {
        let (line, n) = read(&dead.message.body);
        let story = dead.died_at.duration_since(dead.message.accepted_at);
        let age = Duration::try_from(story).unwrap_or_default();
        let accepted = dead.message.accepted_at.duration_since(BEGINNING.parse().unwrap());
        let lived = *died - (played.start + Duration::try_from(accepted).unwrap());
        let rightly = match dead.reason {
            DeadReason::Rejected => {
                of(played, line, n).any(|it| it.heard.is_some_and(|(status, _)| status == 400))
            }
            // As the history of the dead letter says, and not earlier than wrong clocks explain.
            DeadReason::Expired => age >= DEADLINE && lived + ahead + TICK >= DEADLINE,
            DeadReason::Exhausted if crowd => true,
            DeadReason::Exhausted => {
                let first = of(played, line, n).filter_map(|it| it.ended).min();
                first.is_some_and(|first| {
                    let served =
                        |it: &AskedCall| was_taken(it) && it.ended.is_some_and(|at| at > first && at < *died);
                    *died - first + TICK >= HOLD && played.asked.iter().any(served)
                })
            }
            _ => false,
        };
        if !rightly {
            broken.push(format!("{line}/{n} died of {} at the age of {age:?} for no reason", dead.reason));
        }
    }
    for it in &played.asked {
        if played.accepted.get(&(it.line, it.n)).is_some_and(|at| it.began > *at + DEADLINE + behind + TICK) {
            broken.push(format!("{}/{} is sent past its deadline", it.line, it.n));
        }
    }
}

/// `Retry-After` is a minimum delay for everything that the same worker sends there.
fn a_wish_to_be_left_alone_is_granted(played: &PlayedHistory, broken: &mut Vec<String>) {
    for wish in &played.asked {
        let (Some((status, Some(floor))), Some(at)) = (wish.heard, wish.ended) else { continue };
        let too_early =
            |it: &&AskedCall| it.worker == wish.worker && it.began > at && it.began + TICK < at + floor;
        if let Some(it) = played.asked.iter().find(too_early) {
            let early = at + floor - it.began;
            broken.push(format!("{}/{} is sent {early:?} too early after a {status}", it.line, it.n));
        }
    }
}

fn a_stopped_worker_starts_no_attempt(played: &PlayedHistory, broken: &mut Vec<String>) {
    for (worker, stopped) in &played.stopped {
        let after = |it: &&AskedCall| it.worker == *worker && it.began > *stopped + TICK;
        broken.extend(
            played
                .asked
                .iter()
                .find(after)
                .map(|it| format!("worker {worker} sends {}/{} although it was stopped", it.line, it.n)),
        );
    }
}

fn the_healthy_are_not_delayed(history: &History, played: &PlayedHistory, broken: &mut Vec<String>) {
    let most = if may_be_crowded(history) { HEALTHY_IN_A_CROWD } else { HEALTHY };
    for (line, n) in played.accepted.keys().copied() {
        if history.lines[line].poison.is_some() {
            continue;
        }
        let arrived = played.effects.iter().find(|(_, l, m)| (*l, *m) == (line, n)).map(|(at, _, _)| *at);
        let took = arrived.map(|at| at.saturating_duration_since(played.accepted[&(line, n)]));
        if took.is_none_or(|took| took > most) {
            broken.push(format!("{line}/{n} of a healthy line took {took:?}"));
        }
    }
}

/// If a clock was ahead, a message may expire early. Every delivered message is delivered at once.
fn a_step_delays_no_message(history: &History, played: &PlayedHistory, broken: &mut Vec<String>) {
    let (ahead, _) = history.wrong_clocks();
    for ((line, n), accepted) in &played.accepted {
        if history.lines[*line].poison.is_some() {
            continue;
        }
        let arrived = played.effects.iter().find(|(_, l, m)| (l, m) == (line, n)).map(|(at, _, _)| *at);
        let expired = graves(played, *line, *n).any(|(_, dead)| dead.reason == DeadReason::Expired);
        match arrived.map(|at| at.saturating_duration_since(*accepted)) {
            Some(took) if took > HEALTHY => broken.push(format!("{line}/{n} took {took:?}")),
            None if !expired || ahead < DEADLINE => broken.push(format!("{line}/{n} did not arrive")),
            _ => {}
        }
    }
}

/// Apart from calls in flight and the failures that trip the breaker, an outage costs only probes.
fn an_outage_is_probed_only(history: &History, played: &PlayedHistory, broken: &mut Vec<String>) {
    for (from, to, outage) in &history.outages {
        let during = |it: &&AskedCall| it.began > played.start + *from && it.began < played.start + *to;
        let calls = played.asked.iter().filter(during).count();
        // Delays of 0.1 s, 0.2 s and so on, up to 30 s.
        let (mut probes, mut pause, mut passed) = (1, 0.1, 0.0);
        while passed < (*to - *from).as_secs_f64() {
            probes += 1;
            passed += pause;
            pause = f64::min(pause * 2.0, 30.0);
        }
        let most = history.lines.len() + 3 + probes;
        // Failures other than a refusal must come from three lines before they count as an outage.
        if !matches!(outage, Outage::Failing | Outage::Hanging) && calls > most {
            broken.push(format!("{calls} calls in an outage, more than {most}"));
        }
    }
    for (_, dead) in played.record.dead.iter().filter(|(_, dead)| dead.reason != DeadReason::Expired) {
        let (line, n) = read(&dead.message.body);
        broken.push(format!("{line}/{n} died of {} in an outage", dead.reason));
    }
}

/// A report of a broken promise for developers: the events of the lines that it names.
pub(super) fn tell(history: &History, played: &PlayedHistory, broken: &[String]) -> String {
    let mut told = format!("{history:#?}\n");
    let named = |line: usize| {
        let name = format!("{line}/");

        broken.iter().any(|what| what.contains(&name)) || broken.iter().all(|what| !what.contains('/'))
    };
    let since = |at: Instant| (at - played.start).as_secs_f64();
    for it in played.asked.iter().filter(|it| named(it.line)) {
        let ended = it.ended.map(since);
        let _ = writeln!(
            told,
            "{:8.3} to {ended:8.3?} worker {} sends {}/{}{}, hears {:?}",
            since(it.began),
            it.worker,
            it.line,
            it.n,
            if it.probe { " as a probe" } else { "" },
            it.heard
        );
    }
    for (at, dead) in &played.record.dead {
        let (line, n) = read(&dead.message.body);
        let _ =
            writeln!(told, "{:8.3} {line}/{n} dead-lettered: {}, {}", since(*at), dead.reason, dead.detail);
    }
    let _ = writeln!(
        told,
        "stopped: {:?}",
        played.stopped.iter().map(|(w, at)| (w, since(*at))).collect::<Vec<_>>()
    );
    told
}
