//! A steady load of callbacks, and the check at the end of every fault: no message is lost, and no message overtakes.
//!
//! Several chats post concurrently, each one callback after another. A callback that is not accepted is posted again
//! under the same `sys_id`. A repeat may therefore arrive, and only the first arrival counts.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use causeway::sandbox::{LedgerEntry, Operation, RequestLedger, Sandbox, Side};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::http;
use super::relay::{PATIENCE, Relay};
use super::wait::{eventually, let_pass};

/// The pause between two callbacks of a chat.
const PAUSE: Duration = Duration::from_millis(20);
/// A bounded load has at most this number of callbacks for each chat on their way.
const ON_THEIR_WAY: usize = 20;

/// The answers other than 202: the status and `Retry-After`.
type Refusals = BTreeSet<(u16, Option<String>)>;

#[derive(Debug)]
pub(crate) struct Load {
    over: watch::Sender<bool>,
    /// The number of accepted callbacks, by group.
    accepted: Vec<(String, Arc<AtomicUsize>)>,
    refusals: Arc<Mutex<Refusals>>,
    lines: Vec<JoinHandle<()>>,
}

/// Holds a load back, so that the backlog of a starved deployment does not grow without end.
#[derive(Debug, Clone)]
struct Backlog {
    ledger: RequestLedger,
    accepted: Arc<AtomicUsize>,
    most: usize,
}

impl Backlog {
    fn is_full(&self) -> bool {
        self.accepted.load(Ordering::Relaxed) > applied(&self.ledger).saturating_add(self.most)
    }
}

/// The callbacks that XO accepted, with repeats.
fn applied(ledger: &RequestLedger) -> usize {
    usize::try_from(ledger.total(Side::Xo, Operation::Callback).applied).unwrap_or(usize::MAX)
}

impl Load {
    /// Posts callbacks of this many chats to the first process of the relay, until [`Load::all_arrive`].
    pub(crate) fn start(relay: &Relay, lines: usize) -> Self {
        Self::start_within(relay, lines, usize::MAX)
    }

    /// Like [`Load::start`], but pauses while too many callbacks have not arrived at XO. For tests in which XO is healthy.
    pub(crate) fn bounded(relay: &Relay, lines: usize) -> Self {
        Self::start_within(relay, lines, lines * ON_THEIR_WAY)
    }

    fn start_within(relay: &Relay, lines: usize, most: usize) -> Self {
        let backlog = Backlog { ledger: relay.sandbox.ledger().clone(), accepted: Arc::default(), most };
        let over = watch::Sender::new(false);
        let refusals = Arc::default();
        let url = format!("{}/v1/callbacks/servicenow?token=callback-token", relay.processes[0].public_url());
        let accepted: Vec<(String, Arc<AtomicUsize>)> =
            (0..lines).map(|line| (format!("group-{line}"), Arc::default())).collect();
        let lines = accepted.iter().map(|(group, accepted)| {
            let poster = Poster {
                client: http::client(),
                url: url.clone(),
                group: group.clone(),
                accepted: Arc::clone(accepted),
                refusals: Arc::clone(&refusals),
                backlog: backlog.clone(),
            };
            super::spawn(poster.post(over.subscribe()))
        });
        let lines = lines.collect();
        Self { over, accepted, refusals, lines }
    }

    /// The number of accepted callbacks, by group.
    pub(crate) fn accepted(&self) -> Vec<(String, usize)> {
        let count =
            |(group, count): &(String, Arc<AtomicUsize>)| (group.clone(), count.load(Ordering::Relaxed));
        self.accepted.iter().map(count).collect()
    }

    fn total(&self) -> usize {
        self.accepted().into_iter().map(|(_, count)| count).sum()
    }

    /// Waits until this many more callbacks are accepted.
    pub(crate) async fn takes(&self, more: usize) {
        let goal = self.total() + more;
        eventually("the load to be accepted", PATIENCE, async || match self.total() {
            taken if taken >= goal => Ok(()),
            taken => Err(format!("{taken} of {goal}; refusals {:?}", self.refusals())),
        })
        .await;
    }

    /// Waits until a callback is refused with this status, and returns the `Retry-After` of the refusal.
    pub(crate) async fn is_refused(&self, status: u16) -> Option<String> {
        eventually(&format!("a refusal with {status}"), PATIENCE, async || {
            let refusals = self.refusals();
            let found = refusals.iter().find(|(found, _)| *found == status);
            found.map(|(_, after)| after.clone()).ok_or_else(|| format!("{refusals:?}"))
        })
        .await
    }

    /// The number of different refusals.
    pub(crate) fn refusal_count(&self) -> usize {
        self.refusals().len()
    }

    fn refusals(&self) -> Refusals {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until every callback that is accepted by now has arrived at XO, in order for each chat.
    pub(crate) async fn arrives(&self, sandbox: &Sandbox) {
        let accepted = self.accepted();
        let least = accepted.iter().map(|(_, count)| count).sum();
        eventually("everything accepted to arrive in order", PATIENCE, async || {
            // Copies of the ledger would starve the processes under test: none before the numbers can be right, and then
            // one for all chats.
            match applied(sandbox.ledger()) {
                some if some < least => return Err(format!("{some} of {least}")),
                _ => {}
            }
            let taken = sandbox.ledger().xo_callbacks();
            let of = |group: &str| taken.get(group).map_or(&[][..], Vec::as_slice);
            let late = accepted.iter().filter_map(|(group, count)| arrived(of(group), group, *count).err());
            let late: Vec<String> = late.collect();
            if late.is_empty() { Ok(()) } else { Err(late.join(", ")) }
        })
        .await;
    }

    /// Ends the load, and waits until all callbacks have arrived.
    pub(crate) async fn all_arrive(mut self, sandbox: &Sandbox) {
        self.over.send_replace(true);
        for line in self.lines.drain(..) {
            line.await.expect("a line ends by itself");
        }
        self.arrives(sandbox).await;
    }
}

/// Panics if a message arrived before an earlier one.
fn arrived(entries: &[LedgerEntry], group: &str, accepted: usize) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    let numbers = entries.iter().filter_map(|entry| entry.text.as_deref()?.parse().ok());
    let firsts: Vec<usize> = numbers.filter(|n| seen.insert(*n)).collect();
    assert!(firsts.iter().copied().eq(0..firsts.len()), "overtaken in {group}: {firsts:?}");
    match firsts.len() {
        all if all >= accepted => Ok(()),
        some => Err(format!("{some} of {accepted} of {group}")),
    }
}

struct Poster {
    client: reqwest::Client,
    url: String,
    group: String,
    accepted: Arc<AtomicUsize>,
    refusals: Arc<Mutex<Refusals>>,
    backlog: Backlog,
}

impl Poster {
    async fn post(self, over: watch::Receiver<bool>) {
        let group = &self.group;
        for n in 0_usize.. {
            let body = json!({
                "group": group, "formatted_message": n.to_string(), "sys_created_by": "beth.anglin",
                "last_message": "", "sys_id": format!("{group}-{n}"),
            });
            while self.backlog.is_full() || !self.is_accepted(body.to_string()).await {
                if *over.borrow() {
                    return;
                }
                let_pass(PAUSE).await;
            }
            self.accepted.fetch_add(1, Ordering::Relaxed);
            self.backlog.accepted.fetch_add(1, Ordering::Relaxed);
            if *over.borrow() {
                return;
            }
            let_pass(PAUSE).await;
        }
    }

    async fn is_accepted(&self, body: String) -> bool {
        let post = self.client.post(&self.url).header("content-type", "application/json").body(body);
        // Without any answer the process is down.
        let Ok(answer) = post.send().await else { return false };
        let after =
            answer.headers().get("retry-after").and_then(|after| after.to_str().ok()).map(str::to_owned);
        if answer.status().as_u16() != 202 {
            let refusal = (answer.status().as_u16(), after);
            self.refusals.lock().unwrap_or_else(PoisonError::into_inner).insert(refusal);
            return false;
        }
        true
    }
}
