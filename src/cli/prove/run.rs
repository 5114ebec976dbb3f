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

use super::Args;
use super::faults::{self, Diary};
use super::fleet::{Member, resident};
use super::history::Happened;
use super::load::Line;
use super::phases::Phases;
use super::plan::{Mishap, Planned, schedule};
use super::report::{self, Report, Sources};
use super::stage::Stage;
use super::verdict::unfinished;
use crate::cli::{Failure, output};
use crate::dead::{self, Filter};
use crate::message::{Destination, MessageId};
use crate::sandbox::{Fault, Operation, Rule, Side};
use crate::tasks::{self, Stop};

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Observations of the processes.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The maximum number of bytes, by process.
    pub(super) most: std::collections::BTreeMap<String, u64>,
    /// The processes that ended by themselves.
    pub(super) fallen: Vec<String>,
}

pub(super) async fn play(args: &Args, seed: u64, stage: &Stage) -> Result<Report, Failure> {
    let kinds = args.kinds(stage.ground)?;
    let phases = Phases::of(args.span(), args.poisoned > 0.0, !kinds.is_empty());
    let planned = schedule(seed, &kinds, stage.ground, phases.end - phases.poisoned, args.fault_every);
    let messages = (args.rate * args.span().as_secs_f64()).round();
    if !args.json {
        announce(args, seed, stage, planned.len(), messages)?;
    }
    let begin = Instant::now();
    let offset = stage.witness.at(begin.into_std());
    let (stop, diary, memory) =
        (Stop::default(), Mutex::new(Diary::default()), Mutex::new(Memory::default()));
    let callers = stage.callers()?;
    let lines = lines(args, phases, begin);
    let speaking: Vec<_> =
        lines.into_iter().map(|line| tasks::spawn(callers.clone().speak(line, stop.clone()))).collect();
    let bar = progress(messages);
    let ended = tokio::select! {
        ended = script(args, stage, phases, &planned, begin, &diary) => ended,
        () = overtaken(args, stage) => Ok(()),
        never = follow(stage, &bar, &diary, &memory) => match never {},
    };
    let took = begin.elapsed().min(args.span());
    if took < args.span() {
        stop.ask();
    }
    ended?;
    stage.mend().await?;
    let dead = tokio::select! {
        dead = quiet(args, stage, speaking, &stop) => dead?,
        never = follow(stage, &bar, &diary, &memory) => match never {},
    };
    bar.finish_and_clear();
    let diary = diary.into_inner().unwrap_or_else(PoisonError::into_inner);
    let memory = memory.into_inner().unwrap_or_else(PoisonError::into_inner);
    let sources =
        Sources { seed, stage, phases, offset, took, quiet_after: begin.elapsed() - took, planned: &planned };
    Ok(report::draw(&sources, &diary, memory, &dead))
}

fn announce(args: &Args, seed: u64, stage: &Stage, faults: usize, messages: f64) -> std::io::Result<()> {
    let engine = match &args.queue_url {
        None => "one process on the embedded engine".to_owned(),
        Some(_) => format!(
            "RabbitMQ, an ingress and {} as processes",
            output::counted(stage.ground.workers as u64, "worker")
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
fn lines(args: &Args, phases: Phases, begin: Instant) -> Vec<Line> {
    let gap = Duration::from_secs_f64(1.0 / args.rate);
    let of_each = f64::from(args.conversations) / 2.0;
    let poisoned = if args.poisoned > 0.0 { (of_each * args.poisoned).round().max(1.0) as u32 } else { 0 };
    let line = |number: u32| Line {
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
    args: &Args,
    stage: &Stage,
    phases: Phases,
    planned: &[Planned],
    begin: Instant,
    diary: &Mutex<Diary>,
) -> Result<(), Failure> {
    if args.swallow_one {
        let fault = Fault::Status {
            status: 200,
            body: Some(r#"{"status":"success"}"#.to_owned()),
            headers: std::collections::BTreeMap::new(),
        };
        stage.sandbox.script().fail(Rule::new(Side::Xo).operation(Operation::Callback).times(1).fault(fault));
    }
    tokio::time::sleep_until(begin + phases.clean).await;
    if args.poisoned > 0.0 {
        faults::poison(stage);
    }
    faults::carry_out(stage, planned, begin + phases.poisoned, diary).await?;
    tokio::time::sleep_until(begin + phases.end).await;
    Ok(())
}

/// Ends at the first overtaken message, except with `--keep-going`.
async fn overtaken(args: &Args, stage: &Stage) {
    while args.keep_going || stage.witness.tally().swapped == 0 {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Updates the progress bar, measures the memory of the processes, and restarts processes that ended by themselves,
/// as a supervisor would.
async fn follow(
    stage: &Stage,
    bar: &ProgressBar,
    diary: &Mutex<Diary>,
    memory: &Mutex<Memory>,
) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let tally = stage.witness.tally();
        let made = diary.lock().unwrap_or_else(PoisonError::into_inner).happened.len();
        bar.set_position(tally.accepted);
        bar.set_message(format!(
            "{} in flight, {made} faults",
            tally.accepted.saturating_sub(tally.delivered)
        ));
        for (number, member) in stage.members.iter().enumerate() {
            note_memory(memory, &member.name, member.memory());
            if member.has_fallen().await {
                raise(stage, number, member, diary, memory).await;
            }
        }
        note_memory(memory, "prove and sandbox", resident("self"));
    }
}

fn note_memory(memory: &Mutex<Memory>, name: &str, bytes: Option<u64>) {
    let Some(bytes) = bytes else { return };
    let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
    let most = memory.most.entry(name.to_owned()).or_default();
    *most = bytes.max(*most);
}

async fn raise(stage: &Stage, number: usize, member: &Member, diary: &Mutex<Diary>, memory: &Mutex<Memory>) {
    // If the restart fails, the next pass tries again.
    if !member.mend().await.unwrap_or(false) {
        return;
    }
    memory.lock().unwrap_or_else(PoisonError::into_inner).fallen.push(member.name.clone());
    let is_ingress = stage.ground.broker && number == 0;
    let mishap = if is_ingress { Mishap::KillIngress } else { Mishap::KillWorker };
    let until = stage.witness.now();
    let from = until.saturating_sub(u64::try_from(LOOK_EVERY.as_micros()).unwrap_or(0));
    let fell = Happened { mishap, from, until, worker: number.saturating_sub(1), side: Destination::Xo };
    diary.lock().unwrap_or_else(PoisonError::into_inner).happened.push(fell);
}

/// Waits until every accepted message has an outcome and the queue is empty, or until there is no progress any more.
/// Returns the dead letters.
async fn quiet(
    args: &Args,
    stage: &Stage,
    speaking: Vec<tokio::task::JoinHandle<()>>,
    stop: &Stop,
) -> Result<HashSet<MessageId>, Failure> {
    let mut dead = HashSet::new();
    let (mut last, mut moved) = ((0, 0, 0), Instant::now());
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let tally = stage.witness.tally();
        // While the broker is still starting, nothing can be observed.
        let looked = look(stage, tally.delivered < tally.accepted).await;
        if let Ok((waiting, letters)) = looked {
            dead.extend(letters);
            let open = stage.witness.look(|chats| {
                chats.iter().map(|chat| unfinished(chat, |n| dead.contains(&chat.id_of(n)))).sum::<usize>()
            });
            let spoken = speaking.iter().all(tokio::task::JoinHandle::is_finished);
            if spoken && open == 0 && waiting == 0 {
                return Ok(dead);
            }
        }
        let now = (tally.accepted, tally.delivered, dead.len());
        if std::mem::replace(&mut last, now) != now {
            moved = Instant::now();
        }
        if moved.elapsed() >= args.give_up_after {
            stop.ask();
            return Ok(dead);
        }
    }
}

/// The number of messages in the queue and, if `letters` is set, the ids of the dead letters.
async fn look(stage: &Stage, letters: bool) -> anyhow::Result<(u64, Vec<MessageId>)> {
    let queue = crate::app::open_desk(&stage.desk).await?;
    let looked = async {
        let depth = queue.depth().await?;
        let found = if letters && depth.dead > 0 {
            dead::list(&queue, &Filter::default()).await?
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
