//! Executes a run from its first message to quiet.
//!
//! Guarantees: faults happen only while messages flow. Everything is repaired before the wait for quiet. The check
//! begins after the wait for quiet.
//! Not responsible for: the single steps.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::ProveArgs;
use super::checker::unfinished;
use super::environment::ProveEnvironment;
use super::fault_plan::{FaultKind, PlannedFault, schedule};
use super::generator::LoadStream;
use super::history::FaultRecord;
use super::nemesis::{self, FaultLog};
use super::phases::RunPhases;
use super::processes::{ProveProcess, resident};
use super::report::{self, ProveReport, ReportSources};
use crate::cli::{CliFailure, output};
use crate::dead_letters::{self, DeadLetterFilter};
use crate::message::{Destination, MessageId};
use crate::sandbox::{FaultRule, InjectedFault, Operation, Side};
use crate::tasks::{self, CancellationToken};

const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Observations of the processes.
#[derive(Debug, Default)]
pub(super) struct MemoryUse {
    /// The maximum number of bytes, by process.
    pub(super) most: std::collections::BTreeMap<String, u64>,
    /// The processes that ended by themselves.
    pub(super) fallen: Vec<String>,
}

pub(super) async fn play(
    args: &ProveArgs,
    seed: u64,
    environment: &ProveEnvironment,
) -> Result<ProveReport, CliFailure> {
    let kinds = args.kinds(environment.scope)?;
    let phases = RunPhases::of(args.span(), args.poisoned > 0.0, !kinds.is_empty());
    let planned = schedule(seed, &kinds, environment.scope, phases.end - phases.poisoned, args.fault_every);
    let messages = (args.rate * args.span().as_secs_f64()).round();
    if !args.json {
        announce(args, seed, environment, planned.len(), messages)?;
    }
    let begin = Instant::now();
    let offset = environment.observer.at(begin.into_std());
    let (stop, fault_log, memory) =
        (CancellationToken::default(), Mutex::new(FaultLog::default()), Mutex::new(MemoryUse::default()));
    let callers = environment.callers()?;
    let lines = lines(args, phases, begin);
    let speaking: Vec<_> =
        lines.into_iter().map(|line| tasks::spawn(callers.clone().speak(line, stop.clone()))).collect();
    let bar = progress(messages);
    let ended = tokio::select! {
        ended = script(args, environment, phases, &planned, begin, &fault_log) => ended,
        () = overtaken(args, environment) => Ok(()),
        never = follow(environment, &bar, &fault_log, &memory) => match never {},
    };
    let took = begin.elapsed().min(args.span());
    if took < args.span() {
        stop.cancel();
    }
    ended?;
    environment.mend().await?;
    let dead = tokio::select! {
        dead = quiet(args, environment, speaking, &stop) => dead?,
        never = follow(environment, &bar, &fault_log, &memory) => match never {},
    };
    bar.finish_and_clear();
    let fault_log = fault_log.into_inner().unwrap_or_else(PoisonError::into_inner);
    let memory = memory.into_inner().unwrap_or_else(PoisonError::into_inner);
    let sources = ReportSources {
        seed,
        environment,
        phases,
        offset,
        took,
        quiet_after: begin.elapsed() - took,
        planned: &planned,
    };
    Ok(report::draw(&sources, &fault_log, memory, &dead))
}

fn announce(
    args: &ProveArgs,
    seed: u64,
    environment: &ProveEnvironment,
    faults: usize,
    messages: f64,
) -> std::io::Result<()> {
    let engine = match &args.queue_url {
        None => "one process on the embedded engine".to_owned(),
        Some(_) => format!(
            "RabbitMQ, an ingress and {} as processes",
            output::counted(environment.scope.workers as u64, "worker")
        ),
    };
    let span = humantime::format_duration(Duration::from_secs(args.span().as_secs()));
    output::line(format_args!(
        "seed {seed}: {messages} messages at {}/s for {span}, {} at a time, {faults} faults; {engine}",
        args.rate,
        output::counted(u64::from(args.conversations), "conversation"),
    ))
}

/// The callers' schedules: their messages are spread evenly over time.
fn lines(args: &ProveArgs, phases: RunPhases, begin: Instant) -> Vec<LoadStream> {
    let gap = Duration::from_secs_f64(1.0 / args.rate);
    let of_each = f64::from(args.conversations) / 2.0;
    let poisoned = if args.poisoned > 0.0 { (of_each * args.poisoned).round().max(1.0) as u32 } else { 0 };
    let line = |number: u32| LoadStream {
        destination: if number.is_multiple_of(2) { Destination::Xo } else { Destination::ServiceNow },
        first: begin + gap * number,
        every: gap * args.conversations,
        until: begin + phases.end,
        poisoned: (number / 2 < poisoned).then(|| (begin + phases.clean, begin + phases.end)),
    };
    (0..args.conversations).map(line).collect()
}

/// The actions while messages flow.
async fn script(
    args: &ProveArgs,
    environment: &ProveEnvironment,
    phases: RunPhases,
    planned: &[PlannedFault],
    begin: Instant,
    fault_log: &Mutex<FaultLog>,
) -> Result<(), CliFailure> {
    if args.swallow_one {
        let fault = InjectedFault::Status {
            status: 200,
            body: Some(r#"{"status":"success"}"#.to_owned()),
            headers: std::collections::BTreeMap::new(),
        };
        environment
            .sandbox
            .script()
            .fail(FaultRule::new(Side::Xo).operation(Operation::Callback).times(1).fault(fault));
    }
    tokio::time::sleep_until(begin + phases.clean).await;
    if args.poisoned > 0.0 {
        nemesis::poison(environment);
    }
    nemesis::carry_out(environment, planned, begin + phases.poisoned, fault_log).await?;
    tokio::time::sleep_until(begin + phases.end).await;
    Ok(())
}

/// Ends at the first overtaken message, except with `--keep-going`.
async fn overtaken(args: &ProveArgs, environment: &ProveEnvironment) {
    while args.keep_going || environment.observer.counts().swapped == 0 {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Updates the progress bar, measures the memory of the processes, and restarts processes that ended by themselves,
/// as a supervisor would.
async fn follow(
    environment: &ProveEnvironment,
    bar: &ProgressBar,
    fault_log: &Mutex<FaultLog>,
    memory: &Mutex<MemoryUse>,
) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        let counts = environment.observer.counts();
        let made = fault_log.lock().unwrap_or_else(PoisonError::into_inner).happened.len();
        bar.set_position(counts.accepted);
        bar.set_message(format!(
            "{} in flight, {made} faults",
            counts.accepted.saturating_sub(counts.delivered)
        ));
        for (number, member) in environment.members.iter().enumerate() {
            note_memory(memory, &member.name, member.memory());
            if member.has_fallen().await {
                raise(environment, number, member, fault_log, memory).await;
            }
        }
        note_memory(memory, "prove and sandbox", resident("self"));
    }
}

fn note_memory(memory: &Mutex<MemoryUse>, name: &str, bytes: Option<u64>) {
    let Some(bytes) = bytes else { return };
    let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
    let most = memory.most.entry(name.to_owned()).or_default();
    *most = bytes.max(*most);
}

async fn raise(
    environment: &ProveEnvironment,
    number: usize,
    member: &ProveProcess,
    fault_log: &Mutex<FaultLog>,
    memory: &Mutex<MemoryUse>,
) {
    // If the restart fails, the next pass tries again.
    if !member.mend().await.unwrap_or(false) {
        return;
    }
    memory.lock().unwrap_or_else(PoisonError::into_inner).fallen.push(member.name.clone());
    let is_ingress = environment.scope.broker && number == 0;
    let fault_kind = if is_ingress { FaultKind::KillIngress } else { FaultKind::KillWorker };
    let until = environment.observer.now();
    let from = until.saturating_sub(u64::try_from(POLL_INTERVAL.as_micros()).unwrap_or(0));
    let fell =
        FaultRecord { fault_kind, from, until, worker: number.saturating_sub(1), side: Destination::Xo };
    fault_log.lock().unwrap_or_else(PoisonError::into_inner).happened.push(fell);
}

/// Waits until every accepted message has an outcome and the queue is empty, or until there is no progress any more.
/// Returns the dead letters.
async fn quiet(
    args: &ProveArgs,
    environment: &ProveEnvironment,
    speaking: Vec<tokio::task::JoinHandle<()>>,
    stop: &CancellationToken,
) -> Result<HashSet<MessageId>, CliFailure> {
    let mut dead = HashSet::new();
    let (mut last, mut moved) = ((0, 0, 0), Instant::now());
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        let counts = environment.observer.counts();
        // While the broker is still starting, nothing can be observed.
        let looked = look(environment, counts.delivered < counts.accepted).await;
        if let Ok((waiting, letters)) = looked {
            dead.extend(letters);
            let open = environment.observer.look(|chats| {
                chats.iter().map(|chat| unfinished(chat, |n| dead.contains(&chat.id_of(n)))).sum::<usize>()
            });
            let spoken = speaking.iter().all(tokio::task::JoinHandle::is_finished);
            if spoken && open == 0 && waiting == 0 {
                return Ok(dead);
            }
        }
        let now = (counts.accepted, counts.delivered, dead.len());
        if std::mem::replace(&mut last, now) != now {
            moved = Instant::now();
        }
        if moved.elapsed() >= args.give_up_after {
            stop.cancel();
            return Ok(dead);
        }
    }
}

/// The number of messages in the queue and, if `letters` is set, the ids of the dead letters.
async fn look(environment: &ProveEnvironment, letters: bool) -> anyhow::Result<(u64, Vec<MessageId>)> {
    let queue = crate::app::open_admin(&environment.admin_settings).await?;
    let looked = async {
        let depth = queue.depth().await?;
        let found = if letters && depth.dead > 0 {
            dead_letters::list(&queue, &DeadLetterFilter::default()).await?
        } else {
            Vec::new()
        };
        let ids = found.into_iter().map(|entry| entry.key.id).collect();
        anyhow::Ok((depth.waiting.values().sum(), ids))
    };
    let looked = looked.await;
    queue.close().await;
    looked
}

/// A progress bar on standard error, shown only on a terminal.
fn progress(messages: f64) -> ProgressBar {
    let bar = ProgressBar::new(messages as u64);
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg} {elapsed}");
    style.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style))
}
