//! The consumer's end of the embedded engine: received messages and their acks.
//!
//! Guarantees: the partition is free after a subscription ends, in every case.
//! Not responsible for: which messages are handed out (`dispatcher.rs`).

use bytes::Bytes;
use tokio::sync::mpsc;

use super::stream::{SequenceNumber, StreamId};
use super::writer::{ControlRequest, WriteRequest, WriterCommand, WriterHandle};
use crate::queue::{QueueError, ReceivedMessage};

/// The consumer of one partition.
#[derive(Debug)]
pub struct EmbeddedSubscription {
    stream: StreamId,
    number: u64,
    messages: mpsc::Receiver<ReceivedMessage>,
    writer_handle: WriterHandle,
    closed: bool,
}

impl EmbeddedSubscription {
    pub(super) const fn new(
        stream: StreamId,
        number: u64,
        messages: mpsc::Receiver<ReceivedMessage>,
        writer_handle: WriterHandle,
    ) -> Self {
        Self { stream, number, messages, writer_handle, closed: false }
    }

    pub(in crate::queue) async fn next(&mut self) -> Option<ReceivedMessage> {
        self.messages.recv().await
    }

    pub(in crate::queue) async fn close(mut self) {
        self.closed = true;
        let (stream, number) = (self.stream, self.number);
        // An error means that the queue is closed; then the partition is free, too.
        let _ = self
            .writer_handle
            .ask(|reply| WriterCommand::Ask(ControlRequest::Release { stream, number, reply: Some(reply) }))
            .await;
    }
}

impl Drop for EmbeddedSubscription {
    fn drop(&mut self) {
        if !self.closed {
            let (stream, number) = (self.stream, self.number);
            let _ = self.writer_handle.send(WriterCommand::Ask(ControlRequest::Release {
                stream,
                number,
                reply: None,
            }));
        }
    }
}

/// A body that stays in its row until the attempt of its message.
#[derive(Debug)]
pub(crate) struct RowBody {
    pub(super) seq: SequenceNumber,
    pub(in crate::queue) bytes: usize,
    pub(super) writer_handle: WriterHandle,
}

impl RowBody {
    pub(in crate::queue) async fn read(&self) -> Result<Bytes, QueueError> {
        let seq = self.seq;
        let body =
            self.writer_handle.ask(|reply| WriterCommand::Ask(ControlRequest::Body { seq, reply })).await?;
        Ok(body.into())
    }
}

/// The ack token of a message or of a dead letter.
#[derive(Debug)]
pub(crate) struct EmbeddedAck {
    write: WriteRequest,
    writer_handle: WriterHandle,
}

impl EmbeddedAck {
    pub(super) const fn received(seq: SequenceNumber, consumer: u64, writer_handle: WriterHandle) -> Self {
        Self { write: WriteRequest::Ack { seq, consumer }, writer_handle }
    }

    pub(super) const fn dead_letter(seq: SequenceNumber, writer_handle: WriterHandle) -> Self {
        Self { write: WriteRequest::Remove { seq }, writer_handle }
    }

    pub(in crate::queue) async fn ack(self) -> Result<(), QueueError> {
        let Self { write, writer_handle } = self;
        writer_handle.ask(|reply| WriterCommand::Write(write, reply)).await
    }
}
