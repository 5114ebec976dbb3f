//! Runs the load generator and the sink on a thread of their own, and gives jobs access to the load and the sink.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

use super::ledger::Ledger;
use super::load::{Load, Pace, Target};
use super::sink::Sink;

/// More than any system can have in flight.
const ANY: usize = Semaphore::MAX_PERMITS / 4;

/// The handle of the driver's thread. The thread ends with the process.
#[derive(Debug)]
pub(crate) struct Driver {
    handle: Handle,
    pub(crate) sink: Arc<Sink>,
    pub(crate) sink_address: SocketAddr,
}

impl Driver {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let (told, opened) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        std::thread::Builder::new().name("driver".into()).spawn(move || {
            runtime.block_on(async move {
                let _ = told.send(Sink::open().await);
                std::future::pending::<()>().await;
            });
        })?;
        let (sink, sink_address) = opened.await.context("the driver's thread")??;
        Ok(Self { handle, sink, sink_address })
    }

    /// Starts to post. Arrivals are recorded in `ledger` from now on.
    pub(crate) fn load(&self, target: Target, ledger: &Arc<Ledger>, pace: Pace) -> Posting {
        let room = match pace {
            Pace::Closed(outstanding) => outstanding.min(ANY),
            Pace::Open(_) => 0,
        };
        let room = Arc::new(Semaphore::new(room));
        self.sink.note(ledger, &room);
        let (ledger, over, began) = (Arc::clone(ledger), AtomicBool::new(false), Instant::now());
        let sink = Arc::clone(&self.sink);
        let load = Arc::new(Load { target, ledger, pace, room, over, began, sink });
        let task = self.handle.spawn(Arc::clone(&load).run());
        Posting { load, task }
    }
}

/// A running load.
#[derive(Debug)]
pub(crate) struct Posting {
    load: Arc<Load>,
    task: JoinHandle<()>,
}

impl Posting {
    /// Whether all messages of the ledger have been accepted.
    pub(crate) fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// Stops the load and waits until each post has its answer.
    pub(crate) async fn end(self) {
        self.load.end();
        let _ = self.task.await;
    }
}

/// Waits.
pub(crate) async fn pass(time: Duration) {
    tokio::time::sleep_until(tokio::time::Instant::now() + time).await;
}

/// Repeats the check until it succeeds. Returns false if it did not succeed in time.
pub(crate) async fn until(patience: Duration, mut so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + patience;
    while !so() {
        if Instant::now() > end {
            return false;
        }
        pass(Duration::from_millis(10)).await;
    }
    true
}
