//! The one thread that owns the file: writes in groups, then lends.
//!
//! Guarantees: commands take effect in the order in which they were sent; everything that waits is written in one
//! transaction, and answered only once that is on the disk; a settled message whose settling could not be written is
//! never lent again by this process, and its settling is tried until it works.
//! Leaves to others: SQL (`store.rs`), who borrowed what (`lending.rs`).

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use super::lending::{Borrowed, Lending};
use super::line::{Line, Seq};
use super::row::Stored;
use super::store::{Store, Writing};
use crate::message::{DeadLetter, Message};
use crate::queue::{Depth, PartitionId, QueueError};

/// How often the thread looks for what no command tells: rows of another process, room on a full disk.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long after the last write the write-ahead log is emptied, and after how long in any case.
const EMPTY_LOG_AFTER: Duration = Duration::from_secs(1);
const EMPTY_LOG_EVERY: Duration = Duration::from_secs(30);
/// The largest group: enough to make the disk's part small, and no more, so that nobody waits long.
const GROUP_MAX: usize = 1_024;

pub(super) const NO_NOTE: &str =
    "the queue could not note what it had lent: the next start takes it for a crash";

pub(super) type Reply<T = ()> = oneshot::Sender<Result<T, QueueError>>;

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Command {
    Write(Write, Reply),
    Ask(Ask),
}

/// What goes to the disk. A permit goes with it, since whoever stops waiting leaves it in the line.
#[derive(Debug)]
pub(super) enum Write {
    Publish { message: Message, _permit: OwnedSemaphorePermit },
    Settle { seq: Seq, borrower: u64 },
    Bury { dead: Box<DeadLetter>, _permit: OwnedSemaphorePermit },
    Remove { seq: Seq },
}

/// What does not, and ends the group before it.
#[derive(Debug)]
pub(super) enum Ask {
    /// With the gate that its loans are settled through.
    Borrow {
        line: Line,
        gate: Gate,
        reply: Reply<Borrowed>,
    },
    GiveBack {
        line: Line,
        number: u64,
        reply: Option<Reply>,
    },
    /// Where the line ends now.
    End {
        line: Line,
        reply: Reply<Seq>,
    },
    /// Of a message that is not settled.
    Body {
        seq: Seq,
        reply: Reply<Vec<u8>>,
    },
    DeadLetter {
        after: Seq,
        before: Seq,
        reply: Reply<Option<Stored<DeadLetter>>>,
    },
    Depth {
        reply: Reply<Depth>,
    },
    Close {
        reply: Reply,
    },
}

/// The way to the thread, which ends when the last one is dropped. Its line is bounded by who stands in it: publishers need
/// a permit, and there are at most `prefetch` loans for each partition.
#[derive(Debug, Clone)]
pub(super) struct Gate(pub(super) Sender<Command>);

impl Gate {
    pub(super) fn send(&self, command: Command) -> Result<(), QueueError> {
        self.0.send(command).map_err(|_| closed())
    }

    pub(super) async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, QueueError> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply))?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    }
}

fn closed() -> QueueError {
    QueueError::Unavailable("it is closed".to_owned())
}

fn unavailable(error: &rusqlite::Error) -> QueueError {
    QueueError::Unavailable(format!("its file refuses: {error}"))
}

/// The thread's belongings.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) store: Store,
    pub(super) partitions: u16,
    pub(super) max_messages: Option<u64>,
    /// `None` at a desk, which does not lend.
    pub(super) lending: Option<Lending>,
    pub(super) connected: watch::Sender<bool>,
    /// Settled, but not on the disk yet; and by which borrower.
    pub(super) settling: HashMap<Seq, u64>,
}

/// When the write-ahead log has to be emptied. It holds the texts of messages that have left the queue.
#[derive(Debug, Default)]
struct LogState {
    /// The first and the newest write since the log was emptied.
    dirty: Option<(Instant, Instant)>,
    tried: Option<Instant>,
}

impl LogState {
    fn written(&mut self) {
        let now = Instant::now();
        self.dirty = Some((self.dirty.map_or(now, |(first, _)| first), now));
    }

    /// In a pause, or when the log was not emptied for long; at most once in [`EMPTY_LOG_AFTER`].
    fn is_due(&mut self) -> bool {
        let Some((first, newest)) = self.dirty else { return false };
        let due = newest.elapsed() >= EMPTY_LOG_AFTER || first.elapsed() >= EMPTY_LOG_EVERY;
        let rested = self.tried.is_none_or(|tried| tried.elapsed() >= EMPTY_LOG_AFTER);
        if due && rested {
            self.tried = Some(Instant::now());
        }
        due && rested
    }
}

/// Whom to tell that the queue is closed, and whether its stop could be noted.
pub(super) type Closed = (Reply, Result<(), QueueError>);

/// A write, and whom to answer.
type Waiting = (Write, Reply);

impl Writer {
    /// Until the queue is closed. Returns whom to tell, once the file is closed and the folder is free, too.
    pub(super) fn run(mut self, commands: &Receiver<Command>) -> Option<Closed> {
        let mut others = self.store.others_wrote().ok();
        let mut looked = Instant::now();
        let mut log = LogState::default();
        loop {
            let (group, ask) = match commands.recv_timeout(LOOK_EVERY) {
                Ok(first) => gather(first, commands),
                Err(RecvTimeoutError::Timeout) => (Vec::new(), None),
                Err(RecvTimeoutError::Disconnected) => {
                    self.stop().err().iter().for_each(|error| tracing::warn!(%error, "{NO_NOTE}"));
                    return None;
                }
            };
            if !group.is_empty() {
                self.write(group);
                log.written();
            }
            match ask {
                Some(Ask::Close { reply }) => return Some((reply, self.stop())),
                Some(ask) => self.answer(ask),
                None => {}
            }
            if looked.elapsed() >= LOOK_EVERY {
                looked = Instant::now();
                self.mend();
                let now = self.store.others_wrote().ok();
                if now != others {
                    others = now;
                    // Only the server empties the log behind others: two that did so would keep each other at it.
                    if self.lending.is_some() {
                        log.written();
                    }
                    self.lending.iter_mut().for_each(Lending::arrived_anywhere);
                }
            }
            self.lend();
            if log.is_due() && self.store.empty_log().unwrap_or(false) {
                log = LogState::default();
            }
        }
    }

    /// One transaction for all of them.
    fn write(&mut self, group: Vec<Waiting>) {
        let group = self.only_standing(group);
        let (max, partitions) = (self.max_messages, self.partitions);
        let written = self.store.write(|writing| {
            let mut room = match max {
                Some(max) => max.saturating_sub(writing.messages()?),
                None => u64::MAX,
            };
            group
                .iter()
                .map(|(write, _)| apply(writing, write, &mut room, partitions))
                .collect::<Result<Vec<_>, _>>()
        });
        self.see(written.as_ref().err());
        match written {
            Ok(fits) => {
                for ((write, reply), fits) in group.into_iter().zip(fits) {
                    self.learn(&write);
                    let _ = reply.send(if fits { Ok(()) } else { Err(QueueError::Full) });
                }
            }
            Err(error) => {
                for (write, reply) in group {
                    if let Write::Settle { seq, borrower } = write {
                        self.settling.insert(seq, borrower);
                    }
                    let _ = reply.send(Err(unavailable(&error)));
                }
            }
        }
    }

    /// A loan that was given back may be somebody else's by now: its settling has no effect. And who stopped waiting for
    /// a publish tries it again: writing it now would make it two.
    fn only_standing(&self, group: Vec<Waiting>) -> Vec<Waiting> {
        let mut standing = Vec::with_capacity(group.len());
        for (write, reply) in group {
            match (&write, &self.lending) {
                (Write::Settle { seq, borrower }, Some(lending))
                    if !lending.stands(seq.line(), *borrower) =>
                {
                    let text = "the loan was given back when its subscription was closed".to_owned();
                    let _ = reply.send(Err(QueueError::Unavailable(text)));
                }
                (Write::Publish { .. } | Write::Bury { .. }, _) if reply.is_closed() => {}
                _ => standing.push((write, reply)),
            }
        }
        standing
    }

    /// What a write that is on the disk means for the borrowers.
    fn learn(&mut self, write: &Write) {
        let Some(lending) = &mut self.lending else { return };
        match write {
            Write::Publish { message, .. } => {
                let partition = PartitionId::of(message.destination, &message.lane, self.partitions);
                self.store.numbers().partition(partition).iter().for_each(|line| lending.arrived(*line));
            }
            Write::Settle { seq, borrower } => lending.settled(seq.line(), *borrower),
            Write::Bury { .. } | Write::Remove { .. } => {}
        }
    }

    fn answer(&mut self, ask: Ask) {
        let failed = |error: rusqlite::Error| unavailable(&error);
        match (ask, &mut self.lending) {
            (Ask::Borrow { line, gate, reply }, Some(lending)) => lending.queue_up(line, gate, reply),
            (Ask::Borrow { reply, .. }, None) => {
                let text = "this process opened the queue as a desk: only the one that serves it lends";
                let _ = reply.send(Err(QueueError::Busy(text.to_owned())));
            }
            (Ask::GiveBack { line, number, reply }, lending) => {
                lending.iter_mut().for_each(|lending| lending.give_back(line, number));
                reply.map(|reply| reply.send(Ok(())));
            }
            (Ask::End { line, reply }, _) => drop(reply.send(self.store.next(line).map_err(failed))),
            (Ask::DeadLetter { after, before, reply }, _) => {
                drop(reply.send(self.store.dead_letter(after, before).map_err(failed)));
            }
            (Ask::Body { seq, reply }, _) => drop(reply.send(self.store.body(seq).map_err(failed))),
            (Ask::Depth { reply }, _) => drop(reply.send(self.store.depth(self.partitions).map_err(failed))),
            (Ask::Close { reply }, _) => drop(reply.send(Err(closed()))),
        }
    }

    fn lend(&mut self) {
        if let Some(lending) = &mut self.lending
            && let Err(error) = lending.lend(&self.store, &self.settling)
        {
            self.see(Some(&error));
        }
    }

    /// Tries again what could not be written, or at least whether anything can.
    fn mend(&mut self) {
        if self.settling.is_empty() && *self.connected.borrow() {
            return;
        }
        let settling = &self.settling;
        let written = self.store.write(|writing| {
            settling.keys().try_for_each(|seq| writing.remove(*seq))?;
            writing.probe()
        });
        self.see(written.as_ref().err());
        if written.is_ok() {
            for (seq, borrower) in std::mem::take(&mut self.settling) {
                self.learn(&Write::Settle { seq, borrower });
            }
        }
    }

    /// Tells everybody when the file begins to refuse, and when it takes again.
    fn see(&self, error: Option<&rusqlite::Error>) {
        let changed = self.connected.send_if_modified(|connected| {
            let before = std::mem::replace(connected, error.is_none());
            before != *connected
        });
        match error {
            Some(error) if changed => {
                tracing::warn!(%error, "the queue's file refuses; trying until it works")
            }
            None if changed => tracing::info!("the queue's file works again"),
            _ => {}
        }
    }

    fn stop(&mut self) -> Result<(), QueueError> {
        self.mend();
        let noted = match &self.lending {
            Some(lending) => self.store.stopped(&lending.lent()).map_err(|error| unavailable(&error)),
            None => Ok(()),
        };
        self.connected.send_replace(false);
        noted
    }
}

/// Takes what waits already, up to the first command that is no write.
fn gather(first: Command, commands: &Receiver<Command>) -> (Vec<Waiting>, Option<Ask>) {
    let mut group = Vec::new();
    let mut command = Some(first);
    while let Some(taken) = command {
        match taken {
            Command::Write(write, reply) => group.push((write, reply)),
            Command::Ask(ask) => return (group, Some(ask)),
        }
        command = if group.len() < GROUP_MAX { commands.try_recv().ok() } else { None };
    }
    (group, None)
}

/// `false` where there is no room for it.
fn apply(
    writing: &mut Writing<'_>,
    write: &Write,
    room: &mut u64,
    partitions: u16,
) -> rusqlite::Result<bool> {
    match write {
        Write::Publish { .. } if *room == 0 => return Ok(false),
        Write::Publish { message, .. } => {
            *room -= 1;
            return writing.publish(partitions, message);
        }
        Write::Settle { seq, .. } => {
            writing.remove(*seq)?;
            *room = room.saturating_add(1);
        }
        Write::Bury { dead, .. } => return writing.bury(dead),
        Write::Remove { seq } => writing.remove(*seq)?,
    }
    Ok(true)
}
