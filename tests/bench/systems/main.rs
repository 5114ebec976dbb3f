//! Compares Causeway with its alternatives: the same jobs on the same broker in one run.
//!
//! `tests/bench/run` starts it: the script installs missing parts, starts a broker and builds the release.
//! `tests/bench/README.md` explains each number.
//! Guarantees: measures and reports, and asserts nothing about time.
//! Not responsible for: the pure parts of the hot path (`tests/bench/hot_path.rs`).

mod account;
mod bare;
mod broker;
mod catalogue;
mod chats;
mod compare;
mod curve_plot;
mod curves;
mod driver;
mod jobs;
mod ledger;
mod load;
mod machine;
mod options;
mod plot;
mod postgres;
mod report;
mod rows;
mod running;
mod shape;
mod sink;
mod turns;
mod two_way;
mod wire;

use std::sync::atomic::AtomicU32;
use std::time::Duration;

use clap::Parser as _;

use broker::Broker;
use driver::Driver;
use jobs::Bench;
use options::{BrokerArgs, Options, ShapeArgs, Verb};

fn main() -> anyhow::Result<()> {
    // Cargo adds its own flag to the arguments.
    let options = Options::parse_from(std::env::args().filter(|arg| arg != "--bench"));
    // The benchmark uses no TLS, but the HTTP client needs a default provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let verb = match options.verb {
        Verb::Bare(args) => return bare::run(args),
        other => other,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        match verb {
            Verb::Compare(args) => Box::pin(compare::run(args)).await,
            Verb::Curves(args) => Box::pin(curves::run(args)).await,
            Verb::TwoWay(args) => Box::pin(two_way::run(args)).await,
            Verb::Chats(args) => Box::pin(chats::run(args)).await,
            Verb::Turns(args) => Box::pin(turns::run(args)).await,
            Verb::Bare(_) => Ok(()),
        }
    })
}

/// The settings that all jobs of a run share.
async fn bench(broker: &BrokerArgs, shape: &ShapeArgs, window: Duration) -> anyhow::Result<Bench> {
    let connections = shape.connections.min(shape.conversations).max(1);
    Ok(Bench {
        broker: Broker::new(&broker.amqp, &broker.management)?,
        driver: Driver::start().await?,
        window,
        delay: Duration::ZERO,
        // A multiple of the number of connections, because each connection owns its conversations.
        conversations: shape.conversations / connections * connections,
        connections,
        outstanding: shape.outstanding,
        body: shape.body,
        settings: shape.settings.clone(),
        postgres: None,
        nonce: AtomicU32::new(std::process::id() << 8),
    })
}

#[expect(clippy::print_stdout, reason = "this is how a benchmark tells")]
fn say(text: &str) {
    println!("{text}");
}
