//! An AMQP client without Causeway, for actions of an operator's tool or another program on the same broker.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};

#[derive(Debug)]
pub(crate) struct Amqp {
    connection: Connection,
    channel: Channel,
}

impl Amqp {
    pub(crate) async fn open(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("a broker");
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        Self { connection, channel }
    }

    /// Publishes and waits for the broker's confirm.
    pub(crate) async fn publish(&self, exchange: &str, key: &str, body: &[u8], properties: BasicProperties) {
        let options = BasicPublishOptions::default();
        let publish = self.channel.basic_publish(exchange.into(), key.into(), options, body, properties);
        let confirm = publish.await.expect("written").await.expect("answered");
        assert!(confirm.is_ack(), "{confirm:?}");
    }

    /// Declares a durable queue of this type with no other argument.
    pub(crate) async fn declare(&self, queue: &str, kind: &str) {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        let declare = self.channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments);
        declare.await.expect("declared");
    }

    /// Consumes this many messages and keeps them.
    pub(crate) async fn hold(&self, queue: &str, count: u16) -> Holding {
        let channel = self.connection.create_channel().await.expect("a channel");
        channel.basic_qos(count, BasicQosOptions::default()).await.expect("no more than that");
        let options = BasicConsumeOptions::default();
        let consume = channel.basic_consume(queue.into(), "holder".into(), options, FieldTable::default());
        let mut consumer = consume.await.expect("a consumer");
        for _ in 0..count {
            consumer.next().await.expect("a consumer that stays").expect("a message");
        }
        Holding { channel, consumer }
    }

    /// The number of ready messages of a queue.
    pub(crate) async fn waiting(&self, queue: &str) -> u32 {
        let passive = QueueDeclareOptions::durable().passive();
        let ask = self.channel.queue_declare(queue.into(), passive, FieldTable::default());
        ask.await.expect("a queue").message_count()
    }

    /// Takes one message out of a queue with a consumer, because a queue with a single active consumer refuses
    /// `basic.get`.
    pub(crate) async fn take(&self, queue: &str) -> Delivery {
        let channel = self.connection.create_channel().await.expect("a channel");
        channel.basic_qos(1, BasicQosOptions::default()).await.expect("one at a time");
        let options = BasicConsumeOptions::default();
        let consume = channel.basic_consume(queue.into(), "taker".into(), options, FieldTable::default());
        let mut consumer = consume.await.expect("a consumer");
        let next = tokio::time::timeout(Duration::from_secs(20), consumer.next()).await;
        let delivery = next.expect("a message in time").expect("a consumer that stays").expect("a message");
        channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await.expect("taken");
        channel.close(200, "taken".into()).await.expect("closed");
        delivery
    }
}

/// A consumer that acks nothing.
#[derive(Debug)]
pub(crate) struct Holding {
    channel: Channel,
    consumer: Consumer,
}

impl Holding {
    /// Cancels the consumer, and keeps its unacked messages.
    pub(crate) async fn cancel(&self) {
        let cancel = self.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default());
        cancel.await.expect("cancelled");
    }

    pub(crate) async fn give_back(self) {
        self.channel.close(200, "given back".into()).await.expect("closed");
    }
}
