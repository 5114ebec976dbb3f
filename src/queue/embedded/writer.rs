//! The one thread that owns the file: it writes commands in groups, then hands out messages.
//!
//! Guarantees: commands take effect in the order in which they were sent. All waiting commands are written in one
//! transaction, and answered only after it is on disk. If an ack could not be written, this process does not hand out the
//! message again and repeats the write until it succeeds.
//! Not responsible for: SQL (`store.rs`), which consumer has which message (`dispatcher.rs`).

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use super::dispatcher::{ConsumerHandle, MessageDispatcher};
use super::row::StoredRow;
use super::store::{MessageStore, WriteTransaction};
use super::stored_lanes::StoredLane;
use super::stream::{SequenceNumber, StreamId};
use crate::message::{DeadLetter, DeadReason, Message};
use crate::queue::{PartitionId, QueueDepth, QueueError};

/// The interval at which the thread checks for changes without a command: rows of another process, or space on a full
/// disk.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// How long after the last write the write-ahead log is emptied; with steady writes, after [`EMPTY_LOG_EVERY`].
const EMPTY_LOG_AFTER: Duration = Duration::from_secs(1);
const EMPTY_LOG_EVERY: Duration = Duration::from_secs(30);
/// The largest group. At this size the disk costs each command little, and no caller waits long.
const GROUP_MAX: usize = 1_024;

pub(super) const IN_FLIGHT_NOT_RECORDED: &str =
    "could not record which messages were in flight; the next start treats this as a crash";

pub(super) type ReplySender<T = ()> = oneshot::Sender<Result<T, QueueError>>;

/// A command to the thread.
#[derive(Debug)]
pub(super) enum WriterCommand {
    Write(WriteRequest, ReplySender),
    Ask(ControlRequest),
}

/// A command that is written to disk. A publish carries its permit, because a caller that gives up leaves the command in
/// the line.
#[derive(Debug)]
pub(super) enum WriteRequest {
    Publish { message: Message, _permit: OwnedSemaphorePermit },
    Ack { seq: SequenceNumber, consumer: u64 },
    DeadLetter { dead: Box<DeadLetter>, _permit: OwnedSemaphorePermit },
    Remove { seq: SequenceNumber },
}

/// A command without a write of its own. It ends the group before it.
#[derive(Debug)]
pub(super) enum ControlRequest {
    /// `gate` is the sender for the acks of the new consumer.
    Subscribe {
        stream: StreamId,
        writer_handle: WriterHandle,
        reply: ReplySender<ConsumerHandle>,
    },
    Release {
        stream: StreamId,
        number: u64,
        reply: Option<ReplySender>,
    },
    /// Asks for the end of the line.
    End {
        stream: StreamId,
        reply: ReplySender<SequenceNumber>,
    },
    /// Asks for the body of a message that is not acked.
    Body {
        seq: SequenceNumber,
        reply: ReplySender<Vec<u8>>,
    },
    DeadLetter {
        after: SequenceNumber,
        before: SequenceNumber,
        reply: ReplySender<Option<StoredRow<DeadLetter>>>,
    },
    Depth {
        reply: ReplySender<QueueDepth>,
    },
    /// Asks for the number of dead letters by reason.
    Reasons {
        reply: ReplySender<BTreeMap<DeadReason, u64>>,
    },
    /// Asks for the lane of each message.
    Lanes {
        reply: ReplySender<Vec<StoredLane>>,
    },
    Close {
        reply: ReplySender,
    },
}

/// The sender of commands. The thread ends when the last sender is dropped. The line of commands is bounded: publishers
/// need a permit, and each partition has at most `prefetch` unacked messages.
#[derive(Debug, Clone)]
pub(super) struct WriterHandle(pub(super) Sender<WriterCommand>);

impl WriterHandle {
    pub(super) fn send(&self, command: WriterCommand) -> Result<(), QueueError> {
        self.0.send(command).map_err(|_| closed())
    }

    pub(super) async fn ask<T>(
        &self,
        command: impl FnOnce(ReplySender<T>) -> WriterCommand,
    ) -> Result<T, QueueError> {
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
pub(super) struct StoreWriter {
    pub(super) store: MessageStore,
    pub(super) partitions: u16,
    pub(super) max_messages: Option<u64>,
    /// `None` for a tool, which hands out no messages.
    pub(super) dispatcher: Option<MessageDispatcher>,
    pub(super) connected: watch::Sender<bool>,
    /// Acks that are not on disk yet, with the number of their consumer.
    pub(super) acking: HashMap<SequenceNumber, u64>,
}

/// The time at which the write-ahead log is emptied, because it holds the texts of messages that have left the queue.
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
pub(super) type CloseReply = (ReplySender, Result<(), QueueError>);

/// A write and its caller.
type WaitingWrite = (WriteRequest, ReplySender);

impl StoreWriter {
    /// Runs until the queue is closed. Returns the caller to answer after the file is closed and the folder is released.
    pub(super) fn run(mut self, commands: &Receiver<WriterCommand>) -> Option<CloseReply> {
        let mut others = self.store.others_wrote().ok();
        let mut looked = Instant::now();
        let mut log = LogState::default();
        loop {
            let (group, ask) = match commands.recv_timeout(POLL_INTERVAL) {
                Ok(first) => gather(first, commands),
                Err(RecvTimeoutError::Timeout) => (Vec::new(), None),
                Err(RecvTimeoutError::Disconnected) => {
                    self.stop()
                        .err()
                        .iter()
                        .for_each(|error| tracing::warn!(%error, "{IN_FLIGHT_NOT_RECORDED}"));
                    return None;
                }
            };
            if !group.is_empty() {
                self.write(group);
                log.written();
            }
            match ask {
                Some(ControlRequest::Close { reply }) => return Some((reply, self.stop())),
                Some(ask) => self.answer(ask),
                None => {}
            }
            if looked.elapsed() >= POLL_INTERVAL {
                looked = Instant::now();
                self.mend();
                let now = self.store.others_wrote().ok();
                if now != others {
                    others = now;
                    // Only the server empties the log after writes of others: two processes that did so would trigger each
                    // other.
                    if self.dispatcher.is_some() {
                        log.written();
                    }
                    self.dispatcher.iter_mut().for_each(MessageDispatcher::arrived_anywhere);
                }
            }
            self.dispatch();
            if log.is_due() && self.store.empty_log().unwrap_or(false) {
                log = LogState::default();
            }
        }
    }

    /// Writes the group in one transaction.
    fn write(&mut self, group: Vec<WaitingWrite>) {
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
                    if let WriteRequest::Ack { seq, consumer } = write {
                        self.acking.insert(seq, consumer);
                    }
                    let _ = reply.send(Err(unavailable(&error)));
                }
            }
        }
    }

    /// Drops writes that must not take effect. An ack of a closed subscription is one: another consumer may have the
    /// message by now. A publish without a waiting caller is another: the caller tries again, so the message would be there
    /// twice.
    fn only_standing(&self, group: Vec<WaitingWrite>) -> Vec<WaitingWrite> {
        let mut standing = Vec::with_capacity(group.len());
        for (write, reply) in group {
            match (&write, &self.dispatcher) {
                (WriteRequest::Ack { seq, consumer }, Some(dispatcher))
                    if !dispatcher.is_current(seq.stream(), *consumer) =>
                {
                    let text = "the message was returned when its subscription was closed".to_owned();
                    let _ = reply.send(Err(QueueError::Unavailable(text)));
                }
                (WriteRequest::Publish { .. } | WriteRequest::DeadLetter { .. }, _) if reply.is_closed() => {}
                _ => standing.push((write, reply)),
            }
        }
        standing
    }

    /// Updates the dispatcher after a write is on disk.
    fn learn(&mut self, write: &WriteRequest) {
        let Some(dispatcher) = &mut self.dispatcher else { return };
        match write {
            WriteRequest::Publish { message, .. } => {
                let partition = PartitionId::of(message.destination, &message.lane, self.partitions);
                self.store
                    .numbers()
                    .partition(partition)
                    .iter()
                    .for_each(|stream| dispatcher.arrived(*stream));
            }
            WriteRequest::Ack { seq, consumer } => dispatcher.acked(seq.stream(), *consumer),
            WriteRequest::DeadLetter { .. } | WriteRequest::Remove { .. } => {}
        }
    }

    fn answer(&mut self, ask: ControlRequest) {
        let failed = |error: rusqlite::Error| unavailable(&error);
        match (ask, &mut self.dispatcher) {
            (ControlRequest::Subscribe { stream, writer_handle, reply }, Some(dispatcher)) => {
                dispatcher.enqueue(stream, writer_handle, reply)
            }
            (ControlRequest::Subscribe { reply, .. }, None) => {
                let text = "this process opened the queue as a tool: only the serving process can consume";
                let _ = reply.send(Err(QueueError::Busy(text.to_owned())));
            }
            (ControlRequest::Release { stream, number, reply }, dispatcher) => {
                dispatcher.iter_mut().for_each(|dispatcher| dispatcher.release(stream, number));
                reply.map(|reply| reply.send(Ok(())));
            }
            (ControlRequest::End { stream, reply }, _) => {
                drop(reply.send(self.store.next(stream).map_err(failed)))
            }
            (ControlRequest::DeadLetter { after, before, reply }, _) => {
                drop(reply.send(self.store.dead_letter(after, before).map_err(failed)));
            }
            (ControlRequest::Body { seq, reply }, _) => {
                drop(reply.send(self.store.body(seq).map_err(failed)))
            }
            (ControlRequest::Depth { reply }, _) => {
                drop(reply.send(self.store.depth(self.partitions).map_err(failed)))
            }
            (ControlRequest::Reasons { reply }, _) => {
                drop(reply.send(self.store.dead_reasons().map_err(failed)))
            }
            (ControlRequest::Lanes { reply }, _) => {
                drop(reply.send(self.store.stored_lanes().map_err(failed)))
            }
            (ControlRequest::Close { reply }, _) => drop(reply.send(Err(closed()))),
        }
    }

    fn dispatch(&mut self) {
        if let Some(dispatcher) = &mut self.dispatcher
            && let Err(error) = dispatcher.dispatch(&self.store, &self.acking)
        {
            self.see(Some(&error));
        }
    }

    /// Repeats the acks that could not be written, or tests whether the file can be written.
    fn mend(&mut self) {
        if self.acking.is_empty() && *self.connected.borrow() {
            return;
        }
        let acking = &self.acking;
        let written = self.store.write(|writing| {
            acking.keys().try_for_each(|seq| writing.remove(*seq))?;
            writing.probe()
        });
        self.see(written.as_ref().err());
        if written.is_ok() {
            for (seq, consumer) in std::mem::take(&mut self.acking) {
                self.learn(&WriteRequest::Ack { seq, consumer });
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
        let noted = match &self.dispatcher {
            Some(dispatcher) => {
                self.store.stopped(&dispatcher.in_flight()).map_err(|error| unavailable(&error))
            }
            None => Ok(()),
        };
        self.connected.send_replace(false);
        noted
    }
}

/// Takes the waiting commands, up to the first one that is not a write.
fn gather(
    first: WriterCommand,
    commands: &Receiver<WriterCommand>,
) -> (Vec<WaitingWrite>, Option<ControlRequest>) {
    let mut group = Vec::new();
    let mut command = Some(first);
    while let Some(taken) = command {
        match taken {
            WriterCommand::Write(write, reply) => group.push((write, reply)),
            WriterCommand::Ask(ask) => return (group, Some(ask)),
        }
        command = if group.len() < GROUP_MAX { commands.try_recv().ok() } else { None };
    }
    (group, None)
}

/// Returns `false` if the queue is full or does not know the destination.
fn apply(
    writing: &mut WriteTransaction<'_>,
    write: &WriteRequest,
    room: &mut u64,
    partitions: u16,
) -> rusqlite::Result<bool> {
    match write {
        WriteRequest::Publish { .. } if *room == 0 => return Ok(false),
        WriteRequest::Publish { message, .. } => {
            *room -= 1;
            return writing.publish(partitions, message);
        }
        WriteRequest::Ack { seq, .. } => {
            writing.remove(*seq)?;
            *room = room.saturating_add(1);
        }
        WriteRequest::DeadLetter { dead, .. } => return writing.dead_letter(dead),
        WriteRequest::Remove { seq } => writing.remove(*seq)?,
    }
    Ok(true)
}
