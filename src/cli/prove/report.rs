//! The report: compares the guarantees with the observations, as a table or as JSON.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde::Serialize;

use super::checker::{BrokenPromise, CheckContext, check};
use super::environment::{CALL_TIMEOUT, ProveEnvironment};
use super::fault_plan::{FaultKind, PlannedFault};
use super::history::{FaultRecord, MessageTrace, Micros, ProveChat, SECOND};
use super::nemesis::{FaultLog, WorkerKill};
use super::phases::{RunPhase, RunPhases};
use super::run::MemoryUse;
use crate::cli::output::{self, AnsiPaint};
use crate::message::{Destination, MessageId};

/// Maximum number of broken conversations that are printed in full.
const LISTED_MAX: usize = 5;
/// Faults within this time of a broken message are printed with the message.
const AROUND: Micros = 10 * SECOND;
/// A kill counts as measured alone if no other fault happened in this time before it, or before all partitions were
/// served again.
const ALONE_BEFORE: Micros = 2 * SECOND;

/// The inputs of a report.
#[derive(Debug)]
pub(super) struct ReportSources<'a> {
    pub(super) seed: u64,
    pub(super) environment: &'a ProveEnvironment,
    pub(super) phases: RunPhases,
    /// When the first message was due, on the witness's clock.
    pub(super) offset: Micros,
    pub(super) took: Duration,
    pub(super) quiet_after: Duration,
    pub(super) planned: &'a [PlannedFault],
}

/// The whole report.
#[derive(Debug, Serialize)]
pub(super) struct ProveReport {
    kept: bool,
    seed: u64,
    engine: &'static str,
    workers: usize,
    seconds: f64,
    quiet_after_seconds: f64,
    posts: u64,
    delivered_per_second: f64,
    directions: BTreeMap<&'static str, DirectionCounts>,
    lost: u64,
    overtaken: u64,
    unexplained_repeats: u64,
    refused: u64,
    /// Callbacks that were answered with 500 or more although the ingress has a spool.
    told_to_repeat: u64,
    /// Messages accepted while the disk was full.
    taken_on_a_full_disk: u64,
    faults: BTreeMap<&'static str, FaultCount>,
    /// Milliseconds from the scheduled time of a message to its effect. Only healthy conversations count.
    latency_ms: BTreeMap<&'static str, LatencySummary>,
    /// Milliseconds from the only post of a callback to its 2xx.
    callback_answer_ms: LatencySummary,
    /// p99 of healthy conversations: with poisoned conversations around, divided by without.
    poisoned_p99_ratio: Option<f64>,
    /// Milliseconds from kill -9 of a worker until every partition with messages to deliver was served again.
    kill_to_next_delivery_ms: KillSummary,
    memory_bytes: BTreeMap<String, u64>,
    ended_by_itself: Vec<String>,
    histories: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
struct DirectionCounts {
    accepted: u64,
    delivered: u64,
    dead_lettered: u64,
    lost: u64,
    repeated: u64,
    overtaken: u64,
    /// Number of repeats by the reason that explains them.
    repeats_by_reason: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Default, Serialize)]
struct FaultCount {
    planned: u64,
    made: u64,
}

#[derive(Debug, Default, Serialize)]
struct LatencySummary {
    count: usize,
    p50: f64,
    p99: f64,
    max: f64,
}

#[derive(Debug, Default, Serialize)]
struct KillSummary {
    /// Kills without any other fault.
    alone: Vec<f64>,
    all: Vec<f64>,
}

impl ProveReport {
    /// Whether every guarantee was kept.
    pub(super) fn kept(&self) -> bool {
        self.kept
    }
}

/// Computes the report.
pub(super) fn draw(
    from: &ReportSources<'_>,
    fault_log: &FaultLog,
    memory: MemoryUse,
    dead: &HashSet<MessageId>,
) -> ProveReport {
    let call_timeout = u64::try_from(CALL_TIMEOUT.as_micros()).unwrap_or(u64::MAX);
    let has_spool = from.environment.scope.broker;
    let known = CheckContext { happened: &fault_log.happened, has_spool, call_timeout };
    let mut directions: BTreeMap<&'static str, DirectionCounts> = BTreeMap::new();
    let (mut histories, mut unexplained, mut refused, mut unwritten) = (Vec::new(), 0, 0, 0);
    let mut turned_away = 0;
    let (latency_ms, ratio, callback_answer_ms) = from.environment.observer.look(|chats| {
        for chat in chats {
            let judged = check(chat, |n| dead.contains(&chat.id_of(n)), known);
            let sum = directions.entry(chat.destination.as_str()).or_default();
            sum.accepted += judged.accepted;
            sum.delivered += judged.delivered;
            sum.dead_lettered += judged.dead;
            sum.repeated += judged.repeats.len() as u64;
            for why in judged.repeats {
                *sum.repeats_by_reason.entry(why).or_default() += 1;
            }
            for (n, breach) in &judged.breaches {
                match breach {
                    BrokenPromise::Lost => sum.lost += 1,
                    BrokenPromise::Overtaken => sum.overtaken += 1,
                    BrokenPromise::Unexplained => unexplained += 1,
                    BrokenPromise::Refused => refused += 1,
                    BrokenPromise::TurnedAway => turned_away += 1,
                    BrokenPromise::Unwritten => unwritten += 1,
                }
                if histories.len() < LISTED_MAX {
                    histories.push(history(chat, *n, *breach, dead, &fault_log.happened));
                }
            }
        }
        let (latency_ms, ratio) = latencies(from, chats);
        (latency_ms, ratio, answer_times(chats))
    });
    let sum = |pick: fn(&DirectionCounts) -> u64| directions.values().map(pick).sum::<u64>();
    let (lost, overtaken, delivered) = (sum(|of| of.lost), sum(|of| of.overtaken), sum(|of| of.delivered));
    let kept = lost + overtaken + unexplained + refused + turned_away + unwritten == 0 && delivered > 0;
    let broker = from.environment.scope.broker;
    ProveReport {
        kept,
        seed: from.seed,
        engine: if broker { "rabbitmq" } else { "embedded" },
        workers: from.environment.scope.workers,
        seconds: from.took.as_secs_f64(),
        quiet_after_seconds: from.quiet_after.as_secs_f64(),
        posts: from.environment.observer.counts().posts,
        delivered_per_second: delivered as f64 / (from.took + from.quiet_after).as_secs_f64(),
        directions,
        lost,
        overtaken,
        unexplained_repeats: unexplained,
        refused,
        told_to_repeat: turned_away,
        taken_on_a_full_disk: unwritten,
        faults: counts(from.planned, &fault_log.happened),
        latency_ms,
        callback_answer_ms,
        poisoned_p99_ratio: ratio,
        kill_to_next_delivery_ms: kills(from.environment, fault_log),
        memory_bytes: memory.most,
        ended_by_itself: memory.fallen,
        histories,
    }
}

fn counts(planned: &[PlannedFault], happened: &[FaultRecord]) -> BTreeMap<&'static str, FaultCount> {
    let mut counts: BTreeMap<&'static str, FaultCount> = BTreeMap::new();
    for fault in planned {
        counts.entry(fault.fault_kind.as_str()).or_default().planned += 1;
    }
    for fault in happened {
        counts.entry(fault.fault_kind.as_str()).or_default().made += 1;
    }
    counts
}

/// Time from a message's scheduled time to its effect, by the phase of the scheduled time.
fn latencies(
    from: &ReportSources<'_>,
    chats: &[ProveChat],
) -> (BTreeMap<&'static str, LatencySummary>, Option<f64>) {
    let mut waits: [Vec<Micros>; 3] = Default::default();
    for trace in chats.iter().filter(|chat| !chat.poisoned).flat_map(|chat| &chat.messages) {
        let since = Duration::from_micros(trace.due.saturating_sub(from.offset));
        let [clean, poisoned, faults] = &mut waits;
        let waits = match from.phases.at(since) {
            RunPhase::Warming => continue,
            RunPhase::Clean => clean,
            RunPhase::Poisoned => poisoned,
            RunPhase::Faults => faults,
        };
        waits.extend(trace.effect().map(|(at, _)| at.saturating_sub(trace.due)));
    }
    let [clean, poisoned, faults] = waits.map(summary);
    // Below this number a percentile is one slow message.
    let enough = clean.count >= RATIO_SAMPLES_MIN && poisoned.count >= RATIO_SAMPLES_MIN;
    let compared = enough && clean.p99 > 0.0;
    let ratio = compared.then(|| poisoned.p99 / clean.p99);
    (BTreeMap::from([("clean", clean), ("poisoned", poisoned), ("faults", faults)]), ratio)
}

/// The fewest messages of each phase whose 99th percentiles are compared: ten above the percentile.
const RATIO_SAMPLES_MIN: usize = 1_000;

fn answer_times(chats: &[ProveChat]) -> LatencySummary {
    let callbacks = chats.iter().filter(|chat| chat.destination == Destination::Xo);
    summary(callbacks.flat_map(|chat| &chat.messages).filter_map(MessageTrace::answer_time).collect())
}

fn summary(mut waits: Vec<Micros>) -> LatencySummary {
    waits.sort_unstable();
    let at = |share: f64| {
        let place = (waits.len() as f64 * share).ceil() as usize;
        waits.get(place.saturating_sub(1)).map_or(0.0, |wait| *wait as f64 / 1000.0)
    };
    LatencySummary { count: waits.len(), p50: at(0.5), p99: at(0.99), max: at(1.0) }
}

fn kills(environment: &ProveEnvironment, fault_log: &FaultLog) -> KillSummary {
    let mut found = KillSummary::default();
    for WorkerKill { fault, watch } in &fault_log.kills {
        let Some(after) = environment.observer.served_again(*watch) else { continue };
        let other = |other: &FaultRecord| {
            other != fault
                && other.fault_kind != FaultKind::Slow
                && other.from <= fault.until + after
                && fault.from <= other.until + ALONE_BEFORE
        };
        let ms = after as f64 / 1000.0;
        found.all.push(ms);
        if !fault_log.happened.iter().any(other) {
            found.alone.push(ms);
        }
    }
    found.all.sort_by(f64::total_cmp);
    found.alone.sort_by(f64::total_cmp);
    found
}

/// The history of one conversation around a broken message.
fn history(
    chat: &ProveChat,
    at: usize,
    breach: BrokenPromise,
    dead: &HashSet<MessageId>,
    faults: &[FaultRecord],
) -> String {
    let seconds = |at: Micros| format!("{:.4}", at as f64 / SECOND as f64);
    let mut lines = vec![format!(
        "{} to {}{}: message {at} {}, id {}",
        chat.name,
        chat.destination,
        if chat.poisoned { " (poisoned)" } else { "" },
        breach.as_str(),
        chat.id_of(at),
    )];
    let (mut first, mut last) = (Micros::MAX, 0);
    let nearby = at.saturating_sub(2)..=at + 2;
    for (n, trace) in chat.messages.iter().enumerate().filter(|(n, _)| nearby.contains(n)) {
        let accepted = trace.accepted.map_or("never".to_owned(), seconds);
        let end = if dead.contains(&chat.id_of(n)) { ", dead letter" } else { "" };
        lines.push(format!(
            "  message {n}: due {}, posted {} times, accepted {accepted}{end}",
            seconds(trace.due),
            trace.posts
        ));
        first = first.min(trace.due);
        last = last.max(trace.accepted.unwrap_or(trace.due));
        for call in &trace.calls {
            let ended = call.ended.map_or("open".to_owned(), seconds);
            let status = call.status.map_or("no answer".to_owned(), |status| status.to_string());
            let effect = call.effect.map_or(String::new(), |(when, place)| {
                format!(", effect {} (number {place})", seconds(when))
            });
            let fault = call.fault.map_or(String::new(), |fault| format!(", spoiled: {fault}"));
            lines
                .push(format!("    arrived {}, ended {ended}, {status}{effect}{fault}", seconds(call.began)));
            last = last.max(call.ended.unwrap_or(call.began));
        }
    }
    let near = |fault: &&FaultRecord| fault.until + AROUND >= first && fault.from <= last + AROUND;
    for fault in faults.iter().filter(near) {
        let span = format!("{} to {}", seconds(fault.from), seconds(fault.until));
        lines.push(format!(
            "  fault {}: {span} (worker {}, {})",
            fault.fault_kind,
            fault.worker + 1,
            fault.side
        ));
    }
    lines.join("\n")
}

/// Prints the report as a table.
pub(super) fn print(report: &ProveReport, paint: AnsiPaint) -> std::io::Result<()> {
    output::line("")?;
    output::line(ledger(report))?;
    for (name, direction) in &report.directions {
        if !direction.repeats_by_reason.is_empty() {
            output::line(format_args!("repeats to {name}: {}", listed(&direction.repeats_by_reason)))?;
        }
    }
    output::line("")?;
    output::line(latency(report))?;
    if let Some(ratio) = report.poisoned_p99_ratio {
        output::line(format_args!("p99 with poisoned conversations: {ratio:.2} times the p99 without"))?;
    }
    let answers = &report.callback_answer_ms;
    output::line(format_args!(
        "a callback was answered within {:.1} ms (p99), at most {:.1} ms",
        answers.p99, answers.max
    ))?;
    output::line(format_args!("\nfaults: {}", made(&report.faults)))?;
    let kills = &report.kill_to_next_delivery_ms;
    if let (Some(middle), Some(most)) = (kills.all.get(kills.all.len() / 2), kills.all.last()) {
        let alone = kills.alone.last().map_or(String::new(), |most| {
            format!(
                "; with nothing else going wrong at most {:.2} s ({} kills)",
                most / 1000.0,
                kills.alone.len()
            )
        });
        output::line(format_args!(
            "kill -9 of a worker to the next delivery of every partition: median {:.2} s, at most {:.2} s ({} kills){alone}",
            middle / 1000.0,
            most / 1000.0,
            kills.all.len()
        ))?;
    }
    let memory = report.memory_bytes.iter().map(|(name, bytes)| format!("{name} {} MiB", bytes >> 20));
    output::line(format_args!("memory at most: {}", memory.collect::<Vec<_>>().join(", ")))?;
    if !report.ended_by_itself.is_empty() {
        output::line(format_args!(
            "ended by itself, and started again: {}",
            report.ended_by_itself.join(", ")
        ))?;
    }
    output::line(format_args!(
        "{:.0} s of messages ({} posts), quiet {:.1} s later, {:.0} delivered in a second; seed {}\n",
        report.seconds, report.posts, report.quiet_after_seconds, report.delivered_per_second, report.seed
    ))?;
    for history in &report.histories {
        output::line(format_args!("{history}\n"))?;
    }
    output::line(verdict(report, paint))
}

fn verdict(report: &ProveReport, paint: AnsiPaint) -> String {
    if report.kept {
        let repeats: u64 = report.directions.values().map(|direction| direction.repeated).sum();
        let repeats = output::counted(repeats, "repeat");
        return paint.green(&format!("Nothing was lost, nothing was overtaken, {repeats} explained."));
    }
    let ProveReport { lost, overtaken, unexplained_repeats, refused, told_to_repeat, .. } = report;
    paint.red(&format!(
        "Broken: {lost} lost, {overtaken} overtaken, {unexplained_repeats} repeated without a reason, {refused} refused, \
         {told_to_repeat} callbacks told to be repeated."
    ))
}

fn ledger(report: &ProveReport) -> String {
    let row = |(name, of): (&&str, &DirectionCounts)| {
        let numbers = [of.accepted, of.delivered, of.dead_lettered, of.lost, of.repeated, of.overtaken]
            .map(|n| n.to_string());
        std::iter::once(format!("to {name}")).chain(numbers).collect()
    };
    let rows: Vec<Vec<String>> = report.directions.iter().map(row).collect();
    let head = ["DIRECTION", "ACCEPTED", "DELIVERED", "DEAD-LETTERED", "LOST", "REPEATED", "OVERTAKEN"];
    output::table(&head, &rows, &[1, 2, 3, 4, 5, 6])
}

fn latency(report: &ProveReport) -> String {
    let row = |name: &str| {
        let of = report.latency_ms.get(name)?;
        let ms = [of.p50, of.p99, of.max].map(|ms| format!("{ms:.1} ms"));
        Some([name.to_owned(), of.count.to_string()].into_iter().chain(ms).collect())
    };
    let rows: Vec<Vec<String>> = ["clean", "poisoned", "faults"].into_iter().filter_map(row).collect();
    output::table(&["HEALTHY CONVERSATIONS", "MESSAGES", "P50", "P99", "MAX"], &rows, &[1, 2, 3, 4])
}

fn listed(counts: &BTreeMap<&'static str, u64>) -> String {
    counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

fn made(counts: &BTreeMap<&'static str, FaultCount>) -> String {
    let total: u64 = counts.values().map(|count| count.made).sum();
    let each = counts.iter().map(|(name, count)| format!("{name} {}", count.made)).collect::<Vec<_>>();
    if each.is_empty() { "none".to_owned() } else { format!("{total} ({})", each.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_what_was_measured() {
        let latency = summary((1..=100).map(|ms| ms * 1000).collect());
        assert_eq!((latency.count, latency.p50, latency.p99, latency.max), (100, 50.0, 99.0, 100.0));
        assert_eq!(summary(Vec::new()).count, 0);
    }

    #[test]
    fn a_history_tells_what_happened_around_it() {
        use super::super::history::DeliveryCall;
        let call = DeliveryCall {
            began: 2 * SECOND,
            ended: Some(3 * SECOND),
            effect: None,
            status: Some(503),
            fault: Some("status"),
        };
        let trace = MessageTrace {
            due: SECOND,
            posts: 2,
            accepted: Some(SECOND),
            calls: vec![call],
            ..MessageTrace::default()
        };
        let chat = ProveChat {
            name: "c".into(),
            destination: Destination::Xo,
            poisoned: false,
            messages: vec![trace],
        };
        let fault = FaultRecord {
            fault_kind: FaultKind::Busy,
            from: SECOND,
            until: 3 * SECOND,
            worker: 0,
            side: Destination::Xo,
        };
        let text = history(&chat, 0, BrokenPromise::Lost, &HashSet::new(), &[fault]);
        for words in
            ["message 0 lost", "posted 2 times", "arrived 2.0000", "503", "fault 503: 1.0000 to 3.0000"]
        {
            assert!(text.contains(words), "{words} in\n{text}");
        }
    }
}
