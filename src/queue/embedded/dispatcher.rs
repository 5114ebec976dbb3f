//! The dispatcher: it knows which consumer has which message. It keeps this in memory, because one process serves the file.
//!
//! Guarantees: a partition has one consumer, and other consumers wait in order. No consumer has more than `prefetch`
//! unacked messages. A message that may have been delivered before is marked as redelivered. The dispatcher reads only the
//! messages that it hands out, so memory does not grow with the queue.
//! Not responsible for: acks on disk (`writer.rs`).

use std::collections::{BTreeMap, HashMap, VecDeque};

use tokio::sync::mpsc;

use super::store::{MessageStore, StreamState};
use super::stream::{SequenceNumber, StreamId};
use super::subscription::{EmbeddedAck, RowBody};
use super::writer::{ReplySender, WriterHandle};
use crate::queue::waiting_body::{SMALL_BYTES, WaitingBody};
use crate::queue::{self, QueueError, ReceivedMessage};

/// The number of a new consumer, and its stream of messages.
pub(super) type ConsumerHandle = (u64, mpsc::Receiver<ReceivedMessage>);

/// The consumers of all partitions.
#[derive(Debug)]
pub(super) struct MessageDispatcher {
    prefetch: u16,
    partitions: BTreeMap<StreamId, PartitionState>,
    consumers: u64,
}

#[derive(Debug)]
struct PartitionState {
    in_flight: InFlightMark,
    consumer: Option<ConsumerState>,
    waiting: VecDeque<(WriterHandle, ReplySender<ConsumerHandle>)>,
}

/// The last message that may have been delivered before. Messages are delivered in order, so all earlier ones may have
/// been, too.
#[derive(Debug, Clone, Copy)]
enum InFlightMark {
    UpTo(SequenceNumber),
    /// After a crash: at most the first `out` messages before `before` had been delivered and not acked.
    Unknown {
        out: u16,
        before: SequenceNumber,
    },
}

#[derive(Debug)]
struct ConsumerState {
    number: u64,
    writer_handle: WriterHandle,
    messages: mpsc::Sender<ReceivedMessage>,
    /// The last message that was handed out or skipped.
    at: SequenceNumber,
    unsettled: u16,
    /// There may be more messages after `at`.
    more: bool,
}

impl MessageDispatcher {
    /// `out`: see [`MessageStore::started`].
    pub(super) fn new(prefetch: u16, out: u16, streams: &[StreamState]) -> Self {
        let partitions = streams.iter().filter(|state| !state.stream.is_dead_letter()).map(|state| {
            let unknown = InFlightMark::Unknown { out, before: state.stream.seq(state.next) };
            let in_flight = state.in_flight.map_or(unknown, InFlightMark::UpTo);
            (state.stream, PartitionState { in_flight, consumer: None, waiting: VecDeque::new() })
        });
        Self { prefetch, partitions: partitions.collect(), consumers: 0 }
    }

    /// Adds a consumer. The reply comes when the partition is free.
    pub(super) fn enqueue(
        &mut self,
        stream: StreamId,
        writer_handle: WriterHandle,
        reply: ReplySender<ConsumerHandle>,
    ) {
        if let Some(partition) = self.partitions.get_mut(&stream) {
            partition.waiting.push_back((writer_handle, reply));
            self.admit(stream);
        } else {
            let _ = reply.send(Err(QueueError::Mismatch(format!("the queue has no partition {}", stream.0))));
        }
    }

    fn admit(&mut self, stream: StreamId) {
        let Some(partition) = self.partitions.get_mut(&stream) else { return };
        while partition.consumer.is_none() {
            let Some((writer_handle, reply)) = partition.waiting.pop_front() else { return };
            self.consumers += 1;
            let (messages, receiver) = mpsc::channel(usize::from(self.prefetch.max(1)));
            // A consumer that gave up has dropped its receiver: the next one gets the partition.
            if reply.send(Ok((self.consumers, receiver))).is_ok() {
                let number = self.consumers;
                partition.consumer = Some(ConsumerState {
                    number,
                    writer_handle,
                    messages,
                    at: stream.start(),
                    unsettled: 0,
                    more: true,
                });
            }
        }
    }

    /// Removes a consumer. The next one gets its unacked messages in their original position.
    pub(super) fn release(&mut self, stream: StreamId, number: u64) {
        let Some(partition) = self.partitions.get_mut(&stream) else { return };
        if partition.consumer.as_ref().is_some_and(|consumer| consumer.number == number) {
            partition.consumer = None;
            self.admit(stream);
        }
    }

    fn consumer(&mut self, stream: StreamId) -> Option<&mut ConsumerState> {
        self.partitions.get_mut(&stream)?.consumer.as_mut()
    }

    /// Whether this consumer still has the partition.
    pub(super) fn is_current(&self, stream: StreamId, number: u64) -> bool {
        let consumer = self.partitions.get(&stream).and_then(|partition| partition.consumer.as_ref());
        consumer.is_some_and(|consumer| consumer.number == number)
    }

    /// Records that one message of this consumer is acked on disk.
    pub(super) fn acked(&mut self, stream: StreamId, number: u64) {
        if let Some(consumer) = self.consumer(stream).filter(|consumer| consumer.number == number) {
            consumer.unsettled = consumer.unsettled.saturating_sub(1);
        }
    }

    /// Records that a message was published to the partition.
    pub(super) fn arrived(&mut self, stream: StreamId) {
        if let Some(consumer) = self.consumer(stream) {
            consumer.more = true;
        }
    }

    /// Records that another process may have published to any partition.
    pub(super) fn arrived_anywhere(&mut self) {
        for partition in self.partitions.values_mut() {
            if let Some(consumer) = &mut partition.consumer {
                consumer.more = true;
            }
        }
    }

    /// Hands out all messages that fit, except those in `settling`, which are acked but not written yet.
    pub(super) fn dispatch(
        &mut self,
        store: &MessageStore,
        acking: &HashMap<SequenceNumber, u64>,
    ) -> rusqlite::Result<()> {
        for (stream, partition) in &mut self.partitions {
            partition.dispatch(*stream, self.prefetch, store, acking)?;
        }
        Ok(())
    }

    /// The last delivered message of each partition, for the note of a clean stop.
    pub(super) fn in_flight(&self) -> Vec<(StreamId, Option<SequenceNumber>)> {
        let in_flight = |partition: &PartitionState| match partition.in_flight {
            InFlightMark::UpTo(seq) => Some(seq),
            InFlightMark::Unknown { .. } => None,
        };
        self.partitions.iter().map(|(stream, partition)| (*stream, in_flight(partition))).collect()
    }
}

impl PartitionState {
    fn dispatch(
        &mut self,
        stream: StreamId,
        prefetch: u16,
        store: &MessageStore,
        acking: &HashMap<SequenceNumber, u64>,
    ) -> rusqlite::Result<()> {
        let Some(consumer) = &mut self.consumer else { return Ok(()) };
        while consumer.more && consumer.unsettled < prefetch {
            let in_flight = match self.in_flight {
                InFlightMark::UpTo(seq) => seq,
                InFlightMark::Unknown { out, before } => {
                    store.nth(stream, before, out)?.unwrap_or(stream.start())
                }
            };
            let free = prefetch - consumer.unsettled;
            let window = store.window(stream, consumer.at, free)?;
            consumer.more = window.len() == usize::from(free);
            self.in_flight =
                InFlightMark::UpTo(in_flight.max(window.last().map_or(consumer.at, |(last, _)| last.seq)));
            for (stored, bytes) in window {
                consumer.at = stored.seq;
                if acking.contains_key(&stored.seq) {
                    continue;
                }
                let ack_token =
                    EmbeddedAck::received(stored.seq, consumer.number, consumer.writer_handle.clone());
                let waiting = if bytes > SMALL_BYTES {
                    WaitingBody::Row(RowBody {
                        seq: stored.seq,
                        bytes,
                        writer_handle: consumer.writer_handle.clone(),
                    })
                } else {
                    WaitingBody::Here(None)
                };
                let received = ReceivedMessage {
                    message: stored.entry,
                    redeliveries: u32::from(stored.seq <= in_flight),
                    unreadable: stored.unreadable,
                    ack_token: queue::AckToken::Embedded(ack_token),
                    waiting,
                    room: None,
                };
                consumer.unsettled += 1;
                // Fails only if the receiver is gone. The command that reports the end of this consumer is on its way.
                let _ = consumer.messages.try_send(received);
            }
        }
        Ok(())
    }
}
