//! The command line of the benchmark.

use std::time::Duration;

use super::bare::BareArgs;

/// Compares Causeway with its alternatives.
#[derive(Debug, clap::Parser)]
#[command(
    name = "systems",
    about = "Causeway beside what one would use instead: the same jobs, the same broker, one run"
)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Measure all systems in several interleaved rounds.
    Compare(CompareArgs),
    /// Measure Causeway alone with growing sizes.
    Curves(CurvesArgs),
    /// Two-way: a message of the handoff API into a chat, and an agent's message to the events URL.
    TwoWay(TwoWayArgs),
    /// Bot mode: what is added to each turn between a user and XO's bot
    Turns(TurnsArgs),
    /// Thousands of open chats: requests, memory and processor time in quiet, the repair of a lost callback
    Chats(ChatsArgs),
    /// The bare loop itself (a part of the comparison).
    #[command(hide = true)]
    Bare(BareArgs),
}

/// The broker that everything runs on.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct BrokerArgs {
    /// RabbitMQ, as amqp://user:password@host:port
    #[arg(long)]
    pub(crate) amqp: String,
    /// The management API, as http://host:port
    #[arg(long)]
    pub(crate) management: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    pub(crate) broker: BrokerArgs,
    /// The systems, in this order
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "bare,bare-8,causeway,embedded,amqplib,celery,dramatiq,faststream,restate"
    )]
    pub(crate) systems: Vec<String>,
    /// Length of each measurement in seconds
    #[arg(long, default_value_t = 8)]
    pub(crate) seconds: u64,
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,
    /// How long the destination takes to answer, in milliseconds
    #[arg(long, value_delimiter = ',', default_value = "0")]
    pub(crate) delays: Vec<u64>,
    /// The jobs
    #[arg(long, value_delimiter = ',', default_value = "through,half,drain,kill")]
    pub(crate) jobs: Vec<String>,
    #[command(flatten)]
    pub(crate) shape: ShapeArgs,
    /// One round of two seconds: about three minutes
    #[arg(long)]
    pub(crate) quick: bool,
}

/// The messages and how they are posted.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ShapeArgs {
    #[arg(long, default_value_t = 10_240)]
    pub(crate) conversations: u32,
    /// Connections of the load generator
    #[arg(long, default_value_t = 128)]
    pub(crate) connections: u32,
    /// The highest number of messages in transit while the maximum is measured
    #[arg(long, default_value_t = 512)]
    pub(crate) outstanding: usize,
    /// Bytes of each message
    #[arg(long, default_value_t = 300)]
    pub(crate) body: usize,
    /// A setting of Causeway, as queue.partitions=16
    #[arg(long = "set", value_parser = pair)]
    pub(crate) settings: Vec<(String, String)>,
}

impl ShapeArgs {
    /// For a job that makes its own load.
    pub(crate) const fn without_load(settings: Vec<(String, String)>) -> Self {
        Self { conversations: 1, connections: 1, outstanding: 1, body: 300, settings }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct CurvesArgs {
    #[command(flatten)]
    pub(crate) broker: BrokerArgs,
    /// The curves
    #[arg(long, value_delimiter = ',', default_value = "conversations,partitions,workers,body,depth,dead")]
    pub(crate) curves: Vec<String>,
    /// `causeway` (on RabbitMQ), `embedded`, or both
    #[arg(long, value_delimiter = ',', default_value = "causeway,embedded")]
    pub(crate) engines: Vec<String>,
    /// Length of each measurement in seconds
    #[arg(long, default_value_t = 5)]
    pub(crate) seconds: u64,
    /// The largest size: 1000000 takes about an hour, 10000 minutes
    #[arg(long, default_value_t = 100_000)]
    pub(crate) most: u32,
}

#[derive(Debug, clap::Args)]
pub(crate) struct TwoWayArgs {
    #[command(flatten)]
    pub(crate) broker: BrokerArgs,
    /// PostgreSQL, as postgres://user@host:port
    #[arg(long)]
    pub(crate) postgres: String,
    /// The systems; a name with -sqlite keeps the directory of conversations in a file
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "bare,causeway,causeway-sqlite,embedded,amqplib,faststream"
    )]
    pub(crate) systems: Vec<String>,
    /// Length of each measurement in seconds
    #[arg(long, default_value_t = 8)]
    pub(crate) seconds: u64,
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: usize,
    #[command(flatten)]
    pub(crate) shape: ShapeArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ChatsArgs {
    #[command(flatten)]
    pub(crate) broker: BrokerArgs,
    /// PostgreSQL, as postgres://user@host:port
    #[arg(long)]
    pub(crate) postgres: String,
    /// The systems: embedded, causeway
    #[arg(long, value_delimiter = ',', default_value = "embedded,causeway")]
    pub(crate) systems: Vec<String>,
    /// The numbers of open chats, one measurement after another
    #[arg(long, value_delimiter = ',', default_value = "100,1000,10000")]
    pub(crate) sizes: Vec<usize>,
    /// Seconds in which nobody writes
    #[arg(long, default_value_t = 60)]
    pub(crate) quiet: u64,
    /// Messages in each direction
    #[arg(long, default_value_t = 10_000)]
    pub(crate) messages: usize,
    /// Whole conversations
    #[arg(long, default_value_t = 500)]
    pub(crate) lives: usize,
    /// A setting of Causeway, as servicenow.read_rate=10/s
    #[arg(long = "set", value_parser = pair)]
    pub(crate) settings: Vec<(String, String)>,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct TurnsArgs {
    #[command(flatten)]
    pub(crate) broker: BrokerArgs,
    #[arg(long, default_value_t = 200)]
    pub(crate) users: u32,
    /// Turns of each user: two messages each
    #[arg(long, default_value_t = 20)]
    pub(crate) turns: u32,
    /// Turns a second of all users together
    #[arg(long, default_value_t = 100.0)]
    pub(crate) rate: f64,
    /// Kill the process that delivers, and start it again, every so many seconds
    #[arg(long, value_name = "SECONDS")]
    pub(crate) kill: Option<u64>,
    /// The systems: echo, bare, embedded, causeway
    #[arg(long, value_delimiter = ',', default_value = "echo,embedded,causeway")]
    pub(crate) systems: Vec<String>,
    /// Bytes of the context in each event, one measurement after another
    #[arg(long, value_delimiter = ',', default_value = "0")]
    pub(crate) contexts: Vec<usize>,
    /// A setting of Causeway, as queue.partitions=16
    #[arg(long = "set", value_parser = pair)]
    pub(crate) settings: Vec<(String, String)>,
}

impl CompareArgs {
    pub(crate) fn window(&self) -> Duration {
        Duration::from_secs(if self.quick { 2 } else { self.seconds })
    }

    pub(crate) const fn rounds(&self) -> usize {
        if self.quick { 1 } else { self.rounds }
    }

    pub(crate) fn wants(&self, job: &str) -> bool {
        self.jobs.iter().any(|wanted| wanted == job)
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}
