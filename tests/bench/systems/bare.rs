//! The bare loop: the smallest program that accepts a message over HTTP, stores it in a quorum queue and posts it. It
//! is the upper limit for all other systems.
//!
//! Guarantees: as durable as Causeway (persistent, answered after the confirm, acked after the 2xx), and as fast as
//! lapin and reqwest allow: one publishing task with a window of 256, so that confirms stay with their messages;
//! separate connections for both directions; `channel.basic_ack`. It has no order, no retry (a failed message goes
//! back to the queue at once), no dead letters, no metrics and no reconnect. With several queues, used in turn, it
//! shows the cost of the queues alone.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use axum::extract::State;
use axum::http::StatusCode;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use reqwest::Client;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::sync::{Semaphore, mpsc, oneshot};

const WINDOW: usize = 256;
const PREFETCH: u16 = 256;

/// The options of the command line.
#[derive(Debug, clap::Args)]
pub(crate) struct BareArgs {
    #[arg(long)]
    amqp: String,
    /// The address that accepts posts.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// The destination.
    #[arg(long)]
    sink: Option<String>,
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
    /// The number of queues.
    #[arg(long, default_value_t = 1)]
    queues: usize,
    /// A database for one select and one insert for each message.
    #[arg(long)]
    postgres: Option<String>,
}

/// Runs until it is killed or loses the broker.
pub(crate) fn run(args: BareArgs) -> anyhow::Result<()> {
    let queues: Vec<String> = (0..args.queues).map(|index| format!("bare.{index}")).collect();
    tokio::runtime::Runtime::new()?.block_on(async move {
        let front = async {
            match args.listen {
                Some(listen) => take(&args.amqp, &queues, listen).await,
                None => std::future::pending().await,
            }
        };
        let worker = async {
            match &args.sink {
                Some(sink) => deliver(&args, &queues, sink).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = front => ended,
            ended = worker => ended,
        }
    })
}

async fn channel(amqp: &str, queues: &[String]) -> anyhow::Result<(Connection, Channel)> {
    let connection = Connection::connect(amqp, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    for queue in queues {
        let durable = QueueDeclareOptions::durable();
        channel.queue_declare(queue.as_str().into(), durable, arguments.clone()).await?;
    }
    Ok((connection, channel))
}

/// A body, and the channel that reports the confirm.
type Order = (Bytes, oneshot::Sender<bool>);

async fn take(amqp: &str, queues: &[String], listen: SocketAddr) -> anyhow::Result<()> {
    let (_connection, channel) = channel(amqp, queues).await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let (orders, taken) = mpsc::channel::<Order>(1024);
    let app = axum::Router::new().fallback(answer).with_state(orders);
    let listener = tokio::net::TcpListener::bind(listen).await?;
    tokio::select! {
        ended = publish(&channel, queues, taken) => ended,
        ended = async { axum::serve(listener, app).await } => ended.context("the listener"),
    }
}

async fn answer(State(orders): State<mpsc::Sender<Order>>, body: Bytes) -> StatusCode {
    let (told, confirmed) = oneshot::channel();
    if orders.send((body, told)).await.is_err() {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    match confirmed.await {
        Ok(true) => StatusCode::ACCEPTED,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn publish(
    channel: &Channel,
    queues: &[String],
    mut orders: mpsc::Receiver<Order>,
) -> anyhow::Result<()> {
    let mut unconfirmed = FuturesUnordered::new();
    let mut turn = queues.iter().cycle();
    loop {
        tokio::select! {
            Some((told, confirmation)) = unconfirmed.next() => {
                let told: oneshot::Sender<bool> = told;
                let confirmation: lapin::Result<Confirmation> = confirmation;
                // The caller may have disconnected.
                let _ = told.send(matches!(confirmation?, Confirmation::Ack(None)));
            }
            Some((body, told)) = orders.recv(), if unconfirmed.len() < WINDOW => {
                let properties = BasicProperties::default().with_delivery_mode(2);
                let options = BasicPublishOptions::default();
                let queue = turn.next().context("no queue")?.as_str().into();
                let confirm = channel.basic_publish("".into(), queue, options, &body, properties).await?;
                unconfirmed.push(async move { (told, confirm.await) });
            }
            else => return Ok(()),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark has no task book: its tasks end with its runtime")]
async fn deliver(args: &BareArgs, queues: &[String], sink: &str) -> anyhow::Result<()> {
    let in_flight = args.in_flight;
    let (_connection, channel) = channel(&args.amqp, queues).await?;
    let directory = match &args.postgres {
        Some(url) => Some(directory(url).await?),
        None => None,
    };
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let mut consumers = Vec::new();
    for queue in queues {
        let options = BasicConsumeOptions::default();
        let consume = channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default());
        consumers.push(consume.await?);
    }
    let mut lent = futures_util::stream::select_all(consumers);
    let client = Client::builder().no_proxy().http1_only().pool_max_idle_per_host(in_flight).build()?;
    let worker = Arc::new(Worker { channel, client, sink: sink.to_owned(), directory });
    let seats = Arc::new(Semaphore::new(in_flight));
    while let Some(delivery) = lent.next().await {
        let delivery = delivery?;
        let seat = Arc::clone(&seats).acquire_owned().await?;
        let worker = Arc::clone(&worker);
        tokio::spawn(async move {
            // A lost channel also ends the consumer.
            let _ = worker.post(delivery).await;
            drop(seat);
        });
    }
    anyhow::bail!("the broker ended the consumer")
}

struct Worker {
    channel: Channel,
    client: Client,
    sink: String,
    directory: Option<PgPool>,
}

/// The least that a two-way worker remembers: the state of each chat, and which messages it has delivered.
async fn directory(url: &str) -> anyhow::Result<PgPool> {
    let pool = PgPoolOptions::new().max_connections(16).connect(url).await?;
    let tables = "CREATE TABLE IF NOT EXISTS chat (id text PRIMARY KEY, state text NOT NULL);
        CREATE TABLE IF NOT EXISTS delivered (id text PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())";
    sqlx::raw_sql(tables).execute(&pool).await?;
    Ok(pool)
}

impl Worker {
    async fn look_up(&self) {
        let Some(pool) = &self.directory else { return };
        let select =
            sqlx::query("SELECT state FROM chat WHERE id = $1").bind("5f1c4ac4c0a8010e01d3e7a1a5b0c111");
        let _ = select.fetch_optional(pool).await;
    }

    async fn note(&self) {
        let Some(pool) = &self.directory else { return };
        let insert =
            sqlx::query("INSERT INTO delivered (id) VALUES ($1)").bind(uuid::Uuid::now_v7().to_string());
        let _ = insert.execute(pool).await;
    }

    async fn post(&self, delivery: Delivery) -> lapin::Result<bool> {
        self.look_up().await;
        let post =
            self.client.post(&self.sink).header("content-type", "application/json").body(delivery.data);
        let taken = match post.send().await {
            // The connection can be used again only if the answer is read to its end.
            Ok(answer) => answer.status().is_success() && answer.bytes().await.is_ok(),
            Err(_) => false,
        };
        if taken {
            self.note().await;
            self.channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await?;
        } else {
            let again = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
            self.channel.basic_nack(delivery.delivery_tag, again).await?;
        }
        Ok(taken)
    }
}
