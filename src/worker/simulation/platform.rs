//! A model of XO: takes callbacks, answers as its history says, and records each call, its worker and its effect.
//!
//! An effect happens whether or not the caller receives the answer: the effect does not end with its call.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use tokio::time::Instant;

use super::history::{History, Outage, Poison};
use crate::delivery::Gates;
use crate::message::{Destination, MessageId};
use crate::platform::http::{HttpCall, HttpReply};
use crate::platform::{NoAnswer, NoAnswerKind, SentState};
use crate::queue::model::ModelBroker;
use crate::tasks;

/// One call.
#[derive(Debug, Clone)]
pub(super) struct AskedCall {
    pub(super) worker: usize,
    pub(super) line: usize,
    pub(super) n: usize,
    pub(super) began: Instant,
    pub(super) ended: Option<Instant>,
    /// The status that the worker received, and the requested delay.
    pub(super) heard: Option<(u16, Option<Duration>)>,
    /// Begun while the breaker did not pass.
    pub(super) probe: bool,
}

/// The platform and its records.
#[derive(Debug)]
pub(super) struct PlatformWorld {
    history: History,
    start: Instant,
    broker: Arc<ModelBroker>,
    book: Mutex<PlatformBook>,
}

#[derive(Debug, Default)]
pub(super) struct PlatformBook {
    pub(super) asked: Vec<AskedCall>,
    pub(super) effects: Vec<(Instant, usize, usize)>,
    /// Promises that were broken at the start of a call.
    pub(super) broken: Vec<String>,
    staff: Vec<Weak<Gates>>,
}

enum CallFate {
    Taken,
    TakenUnheard,
    TakenLate,
    Status(u16, Option<u64>),
    Page,
    Refused,
    Hangs,
}

pub(super) fn worker_name(seed: u64, number: usize) -> String {
    format!("worker-{seed}-{number}")
}

pub(super) fn id(line: usize, n: usize) -> MessageId {
    MessageId::derived("simulation", &format!("{line}/{n}"))
}

pub(super) fn body(line: usize, n: usize) -> String {
    format!("{line} {n}")
}

/// The line and the number in a body.
pub(super) fn read(body: &[u8]) -> (usize, usize) {
    let (line, n) = std::str::from_utf8(body).unwrap().split_once(' ').unwrap();
    (line.parse().unwrap(), n.parse().unwrap())
}

/// Records the end of a call, even if the caller is gone.
struct OpenCall {
    world: Arc<PlatformWorld>,
    index: usize,
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.world.book().asked[self.index].ended = Some(Instant::now());
    }
}

impl PlatformWorld {
    pub(super) fn new(history: &History, broker: Arc<ModelBroker>) -> Arc<Self> {
        let book = Mutex::default();
        Arc::new(Self { history: history.clone(), start: Instant::now(), broker, book })
    }

    pub(super) fn book(&self) -> MutexGuard<'_, PlatformBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a worker. Its number is the number of workers before.
    pub(super) fn employ(&self, gates: &Arc<Gates>) {
        self.book().staff.push(Arc::downgrade(gates));
    }

    pub(super) async fn answer(
        self: Arc<Self>,
        worker: usize,
        call: HttpCall,
    ) -> Result<HttpReply, NoAnswer> {
        let (line, n) = read(&call.body.unwrap());
        let index = self.begin(worker, line, n);
        let open = OpenCall { world: self.clone(), index };
        let (fate, took) = self.fate(line, n);
        if matches!(fate, CallFate::Taken | CallFate::TakenUnheard | CallFate::TakenLate) {
            let late = if matches!(fate, CallFate::TakenLate) { Duration::from_secs(4) } else { took / 2 };
            let world = self.clone();
            tasks::spawn(async move {
                tokio::time::sleep(late).await;
                world.book().effects.push((Instant::now(), line, n));
            });
        }
        tokio::time::sleep(took).await;
        let reply = match fate {
            CallFate::Taken => reply(200, None, "application/json"),
            CallFate::Page => reply(200, None, "text/html"),
            CallFate::Status(status, after) => reply(status, after, "text/plain"),
            CallFate::TakenUnheard => return Err(no_answer(SentState::Maybe, NoAnswerKind::Reset)),
            CallFate::Refused => return Err(no_answer(SentState::No, NoAnswerKind::Connect)),
            CallFate::Hangs | CallFate::TakenLate => std::future::pending().await,
        };
        let page = matches!(fate, CallFate::Page);
        // An HTML page is not a success, whatever its status is.
        let status = if page { 299 } else { reply.status.as_u16() };
        self.book().asked[index].heard = Some((status, reply.retry_after()));
        drop(open);
        Ok(reply)
    }

    /// Checks the promises that must hold when a call begins.
    fn begin(&self, worker: usize, line: usize, n: usize) -> usize {
        let mut book = self.book();
        let now = Instant::now();
        let breaker = book.staff[worker].upgrade();
        let passes = breaker.is_some_and(|it| it.gate(Destination::Xo).breaker().passes());
        let mut broken = Vec::new();
        let in_the_air = || book.asked.iter().filter(|it| it.ended.is_none());
        if in_the_air().filter(|it| it.worker == worker).count() >= self.history.concurrency {
            broken.push("more in flight than the gate allows".to_owned());
        }
        // If a subscription is lost while its message is in flight, another worker receives the message at once. The same
        // message may then be in flight twice, but no later one.
        let excused = |it: &AskedCall| it.worker != worker && self.broker.may_come_twice(id(line, it.n));
        if in_the_air().any(|it| it.line == line && !excused(it)) {
            broken.push(format!("two of line {line} in flight"));
        }
        if self.broker.has_given_up(&worker_name(self.history.seed, worker)) {
            broken.push(format!("worker {worker} sends {line}/{n} although the broker has given it up"));
        }
        if !passes && in_the_air().any(|it| it.worker == worker && it.probe) {
            broken.push(format!("worker {worker} sends two probes"));
        }
        let taken = |m: usize| {
            let of = |it: &&AskedCall| {
                it.line == line && it.n == m && it.heard.is_some_and(|heard| heard.0 == 200)
            };
            book.asked.iter().find(of)
        };
        for m in (0..n).filter(|m| taken(*m).is_none() && !self.broker.is_buried(id(line, *m))) {
            broken.push(format!("{line}/{n} starts while {line}/{m} is undecided"));
        }
        if let Some(before) = taken(n) {
            if before.worker == worker {
                broken.push(format!("worker {worker} sends {line}/{n} again, which was taken"));
            } else if !self.broker.may_come_twice(id(line, n)) {
                broken.push(format!("{line}/{n} is sent again for no reason"));
            }
        }
        let at = now - self.start;
        book.broken.extend(broken.into_iter().map(|what| format!("{at:?}: {what}")));
        let asked = AskedCall { worker, line, n, began: now, ended: None, heard: None, probe: !passes };
        book.asked.push(asked);
        book.asked.len() - 1
    }

    /// The answer depends on the seed and on the number of earlier calls for the message, not on other events.
    fn fate(&self, line: usize, n: usize) -> (CallFate, Duration) {
        let tries = self.book().asked.iter().filter(|it| (it.line, it.n) == (line, n)).count();
        let mut hasher = DefaultHasher::new();
        (self.history.seed, line, n, tries).hash(&mut hasher);
        let random = &mut StdRng::seed_from_u64(hasher.finish());
        let took = Duration::from_millis(random.random_range(1..=150));
        let now = self.start.elapsed();
        let away = self.history.outages.iter().find(|(from, to, _)| (*from..*to).contains(&now));
        if let Some((_, to, outage)) = away {
            return (during(*outage, *to - now), took);
        }
        match self.history.lines[line].poison {
            Some(Poison::Rejected) => return (CallFate::Status(400, None), took),
            Some(Poison::Failing) => return (CallFate::Status(500, None), took),
            Some(Poison::Hanging) => return (CallFate::Hangs, took),
            None => {}
        }
        (self.drawn(random), took)
    }

    fn drawn(&self, random: &mut StdRng) -> CallFate {
        let noise = self.history.noise;
        let mut left = random.random_range(0..1000);
        let after = random.random_range(0..4);
        let fates = [
            (noise.lost_answer, CallFate::TakenUnheard),
            (noise.late_effect, CallFate::TakenLate),
            (noise.error, CallFate::Status(if after == 0 { 502 } else { 503 }, None)),
            (noise.asks, CallFate::Status(if after == 0 { 429 } else { 503 }, Some(after))),
            (noise.rejects, CallFate::Status(400, None)),
            (noise.refuses, CallFate::Refused),
            (noise.page, CallFate::Page),
            (noise.hangs, CallFate::Hangs),
        ];
        for (rate, fate) in fates {
            if left < rate {
                return fate;
            }
            left -= rate;
        }
        CallFate::Taken
    }
}

fn during(outage: Outage, left: Duration) -> CallFate {
    match outage {
        Outage::Refusing => CallFate::Refused,
        Outage::Failing => CallFate::Status(503, None),
        Outage::Asking => CallFate::Status(503, Some(left.as_secs().min(5))),
        Outage::Page => CallFate::Page,
        Outage::Hanging => CallFate::Hangs,
    }
}

fn no_answer(sent: SentState, kind: NoAnswerKind) -> NoAnswer {
    NoAnswer { sent, kind, detail: String::new() }
}

fn reply(status: u16, after: Option<u64>, media: &'static str) -> HttpReply {
    let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(media))]);
    headers.extend(after.map(|after| (RETRY_AFTER, HeaderValue::from(after))));
    // A page is recognised by its first bytes, whatever its status and content type are.
    let body = if media == "text/html" { "<!DOCTYPE html><title>Maintenance</title>" } else { "" };
    HttpReply {
        status: StatusCode::from_u16(status).unwrap(),
        headers,
        body: Ok(Bytes::from_static(body.as_bytes())),
    }
}
