//! Load generator and sink on one thread of their own, and what a job asks of them.

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

/// More than any system can have in the air.
const ANY: usize = Semaphore::MAX_PERMITS / 4;

/// See the head of this file. The thread ends with the process.
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

    /// Begins to post. What arrives is noted in `ledger` from now on.
    pub(crate) fn load(&self, target: Target, ledger: &Arc<Ledger>, pace: Pace) -> Posting {
        let room = match pace {
            Pace::Closed(outstanding) => outstanding.min(ANY),
            Pace::Open(_) => 0,
        };
        let room = Arc::new(Semaphore::new(room));
        self.sink.note(ledger, &room);
        let (ledger, over, began) = (Arc::clone(ledger), AtomicBool::new(false), Instant::now());
        let load = Arc::new(Load { target, ledger, pace, room, over, began });
        let task = self.handle.spawn(Arc::clone(&load).run());
        Posting { load, task }
    }
}

/// A load that runs.
#[derive(Debug)]
pub(crate) struct Posting {
    load: Arc<Load>,
    task: JoinHandle<()>,
}

impl Posting {
    /// All of the ledger's messages have been taken.
    pub(crate) fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// Ends it and waits until every post has its answer.
    pub(crate) async fn end(self) {
        self.load.end();
        let _ = self.task.await;
    }
}

/// Lets time pass.
pub(crate) async fn pass(time: Duration) {
    tokio::time::sleep_until(tokio::time::Instant::now() + time).await;
}

/// Looks again and again until it is so; false when it did not become so in time.
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
