//! The destination: accepts each post, records it, and answers 200 after a fixed time.
//!
//! Guarantees: a message counts as arrived when its request has been read, so a message that a system sends too early
//! counts as overtaking. Runs on the thread of the driver, like the load generator.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::ledger::Ledger;
use super::rows::Rows;
use super::shape;
use super::wire::Peer;

const REFUSAL: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";

/// The state that the sink and its user share.
#[derive(Debug)]
pub(crate) struct Sink {
    delay_us: AtomicU64,
    refuses: AtomicBool,
    job: Mutex<Option<Job>>,
    flying: AtomicU32,
    peak: AtomicU32,
    pub(crate) rows: Rows,
}

/// The ledger for arrivals, and the permits for the next posts.
#[derive(Debug, Clone)]
struct Job {
    ledger: Arc<Ledger>,
    room: Arc<Semaphore>,
}

impl Sink {
    /// Listens until its runtime ends.
    #[expect(
        clippy::disallowed_methods,
        reason = "a benchmark has no task book: its tasks end with its runtime"
    )]
    pub(crate) async fn open() -> std::io::Result<(Arc<Self>, SocketAddr)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let sink = Arc::new(Self {
            delay_us: AtomicU64::new(0),
            refuses: AtomicBool::new(false),
            job: Mutex::new(None),
            flying: AtomicU32::new(0),
            peak: AtomicU32::new(0),
            rows: Rows::default(),
        });
        let shared = Arc::clone(&sink);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move { shared.serve(Peer::new(stream)).await });
            }
        });
        Ok((sink, address))
    }

    pub(crate) fn delay(&self, delay: Duration) {
        self.delay_us.store(u64::try_from(delay.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Answers all requests with 400 from now on, or stops doing so.
    pub(crate) fn refuse(&self, refuses: bool) {
        self.refuses.store(refuses, Ordering::Relaxed);
    }

    /// Records arrivals in this ledger from now on. Each first arrival permits one more post.
    pub(crate) fn note(&self, ledger: &Arc<Ledger>, room: &Arc<Semaphore>) {
        let job = Job { ledger: Arc::clone(ledger), room: Arc::clone(room) };
        *self.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(job);
        self.peak.store(0, Ordering::Relaxed);
    }

    /// The highest number of parallel requests since the job began.
    pub(crate) fn peak(&self) -> u32 {
        self.peak.load(Ordering::Relaxed)
    }

    async fn serve(&self, mut peer: Peer) {
        while let Ok(Some(request)) = peer.next().await {
            self.peak.fetch_max(self.flying.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            self.arrived(&peer.buffer[request.body.clone()]);
            let delay = self.delay_us.load(Ordering::Relaxed);
            if delay > 0 {
                tokio::time::sleep_until(tokio::time::Instant::now() + Duration::from_micros(delay)).await;
            }
            self.flying.fetch_sub(1, Ordering::Relaxed);
            let written = if self.refuses.load(Ordering::Relaxed) {
                peer.write(REFUSAL).await
            } else {
                let (head, body) = peer.buffer[..request.body.end].split_at(request.body.start);
                let answer = shape::answer(head, body, &self.rows);
                peer.write(answer.as_bytes()).await
            };
            if written.is_err() {
                return;
            }
        }
    }

    fn arrived(&self, body: &[u8]) {
        let job = self.job.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let (Some(job), Some((nonce, message))) = (job, shape::named(body))
            && job.ledger.arrived(nonce, message)
        {
            job.room.add_permits(1);
        }
    }
}
