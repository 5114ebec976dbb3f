//! The one thread that owns the file: it writes commands in groups, then hands out messages.
//!
//! Guarantees: commands take effect in the order in which they were sent. All waiting commands are written in one
//! transaction, and answered only after it is on disk. If an ack could not be written, this process does not hand out the
//! message again and repeats the write until it succeeds.
//! Not responsible for: SQL (`store.rs`), which consumer has which message (`lending.rs`).

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

/// How often the thread checks for changes without a command: rows of another process, or space on a full disk.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long after the last write the write-ahead log is emptied; with steady writes, after [`EMPTY_LOG_EVERY`].
const EMPTY_LOG_AFTER: Duration = Duration::from_secs(1);
const EMPTY_LOG_EVERY: Duration = Duration::from_secs(30);
/// The largest group. At this size the disk costs each command little, and no caller waits long.
const GROUP_MAX: usize = 1_024;

pub(super) const NO_NOTE: &str =
    "could not record which messages were in flight; the next start treats this as a crash";

pub(super) type Reply<T = ()> = oneshot::Sender<Result<T, QueueError>>;

/// A command to the thread.
#[derive(Debug)]
pub(super) enum Command {
    Write(Write, Reply),
    Ask(Ask),
}

/// A command that is written to disk. A publish carries its permit, because a caller that gives up leaves the command in
/// the line.
#[derive(Debug)]
pub(super) enum Write {
    Publish { message: Message, _permit: OwnedSemaphorePermit },
    Settle { seq: Seq, borrower: u64 },
    Bury { dead: Box<DeadLetter>, _permit: OwnedSemaphorePermit },
    Remove { seq: Seq },
}

/// A command without a write of its own. It ends the group before it.
#[derive(Debug)]
pub(super) enum Ask {
    /// `gate` is the sender for the acks of the new consumer.
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
    /// Asks for the end of the line.
    End {
        line: Line,
        reply: Reply<Seq>,
    },
    /// Asks for the body of a message that is not acked.
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

/// The sender of commands. The thread ends when the last sender is dropped. The line of commands is bounded: publishers
/// need a permit, and each partition has at most `prefetch` unacked messages.
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
    QueueError::Unavailable(format!("its file cannot be used: {error}"))
}

/// The state of the thread.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) store: Store,
    pub(super) partitions: u16,
    pub(super) max_messages: Option<u64>,
    /// `None` for a tool, which hands out no messages.
    pub(super) lending: Option<Lending>,
    pub(super) connected: watch::Sender<bool>,
    /// Acks that are not on disk yet, with the number of their consumer.
    pub(super) settling: HashMap<Seq, u64>,
}

/// When to empty the write-ahead log, which holds the texts of messages that have left the queue.
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

    /// Due in a pause of the writes, or if the log was not emptied for long; at most once in [`EMPTY_LOG_AFTER`].
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

/// The caller that closed the queue, and whether the stop could be recorded.
pub(super) type Closed = (Reply, Result<(), QueueError>);

/// A write and its caller.
type Waiting = (Write, Reply);

impl Writer {
    /// Runs until the queue is closed. Returns the caller to answer after the file is closed and the folder is released.
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
                    // Only the server empties the log after writes of others: two processes that did so would trigger each
                    // other.
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

    /// Writes the group in one transaction.
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

    /// Drops writes that must not take effect. An ack of a closed subscription is one: another consumer may have the
    /// message by now. A publish without a waiting caller is another: the caller tries again, so the message would be there
    /// twice.
    fn only_standing(&self, group: Vec<Waiting>) -> Vec<Waiting> {
        let mut standing = Vec::with_capacity(group.len());
        for (write, reply) in group {
            match (&write, &self.lending) {
                (Write::Settle { seq, borrower }, Some(lending))
                    if !lending.stands(seq.line(), *borrower) =>
                {
                    let text = "the message was returned when its subscription was closed".to_owned();
                    let _ = reply.send(Err(QueueError::Unavailable(text)));
                }
                (Write::Publish { .. } | Write::Bury { .. }, _) if reply.is_closed() => {}
                _ => standing.push((write, reply)),
            }
        }
        standing
    }

    /// Updates the dispatcher after a write is on disk.
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
                let text = "this process opened the queue as a tool: only the serving process can consume";
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

    /// Repeats the acks that could not be written, or tests whether the file can be written.
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

    /// Reports when the file begins to fail, and when it works again.
    fn see(&self, error: Option<&rusqlite::Error>) {
        let changed = self.connected.send_if_modified(|connected| {
            let before = std::mem::replace(connected, error.is_none());
            before != *connected
        });
        match error {
            Some(error) if changed => {
                tracing::warn!(%error, "the queue file cannot be used; retrying until it works")
            }
            None if changed => tracing::info!("the queue file works again"),
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

/// Takes the waiting commands, up to the first one that is not a write.
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

/// Returns `false` if the queue is full or does not know the destination.
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
