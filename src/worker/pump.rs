//! The pump of one partition: it receives messages, puts them into lanes, starts the first message of each lane, and
//! returns the rest in time.
//!
//! One loop owns the partition. Guarantees: whenever a subscription ends (shutdown, tripped breaker, preferred worker,
//! broker), attempts in flight finish first and no new attempt starts. Then the subscription closes, which is the only way
//! to return messages in order. While the breaker is tripped, the pump holds no message: it waits without a subscription,
//! probes in its turn, and subscribes from time to time to expire old messages.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::Instant;

use super::lane::LaneScheduler;
use super::process::{MessageProcessor, ProcessResult, RetryState, StartPermission};
use super::stats::{PartitionStats, WorkerStats};
use crate::delivery::breaker::{CircuitBreaker, ProbePermit};
use crate::message::{DeadReason, LaneKey, MessageId};
use crate::queue::{PartitionId, QueueError, ReceivedMessage, Subscription};
use crate::tasks::CancellationToken;

/// How long a probe or a visit waits for a message before the partition counts as empty.
const PROBE_WAIT: Duration = Duration::from_millis(300);
/// While a destination is tripped, its partitions are visited at least this often to expire old messages.
const EXPIRE_CHECK_INTERVAL: Duration = Duration::from_secs(20);
/// The retry state of a message is forgotten this long after the message was last received.
const FORGET_AFTER: Duration = Duration::from_secs(1800);
/// How long we keep a partition that its preferred worker is waiting for before we release it again. The release also moves
/// other waiting workers behind the preferred one.
const RELEASE_AGAIN: Duration = Duration::from_secs(30);

/// The permission with which the pump is subscribed.
#[derive(Debug)]
enum PumpMode {
    /// The breaker passes.
    Open,
    /// The pump sends the one probe.
    Probe(ProbePermit),
    /// No call is allowed; the pump only expires old messages.
    ExpireOnly,
}

/// Why a subscription ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SessionEnd {
    Stopped,
    Lost,
    Tripped,
    Released,
    Idle,
}

/// The pump of one partition.
#[derive(Debug)]
pub(super) struct MessagePump {
    partition: PartitionId,
    processor: Arc<MessageProcessor>,
    stats: Arc<WorkerStats>,
    stop: CancellationToken,
    retry_states: HashMap<MessageId, RetryState>,
    /// The limit of one stuck lane in a crowded window: a quarter of the prefetch.
    max_per_stuck_lane: usize,
    /// The number of messages that make a window crowded: three quarters.
    crowd: usize,
    next_expire_check: Instant,
}

/// One subscription of a pump: its lanes, its attempts, and why it ends.
struct PumpSession {
    mode: PumpMode,
    /// A number for the preferred worker that waited for the partition when the session began.
    wanted: Option<u64>,
    lanes: LaneScheduler,
    running: FuturesUnordered<BoxFuture<'static, ProcessResult>>,
    /// Becomes true when no new attempt may start.
    over: watch::Sender<bool>,
    begun: Instant,
    /// When a message last came or left.
    quiet_since: Instant,
    end: Option<SessionEnd>,
}

impl PumpSession {
    fn new(mode: PumpMode, wanted: Option<u64>) -> Self {
        let (lanes, running, over) =
            (LaneScheduler::default(), FuturesUnordered::new(), watch::Sender::new(false));
        let begun = Instant::now();
        Self { mode, wanted, lanes, running, over, begun, quiet_since: begun, end: None }
    }

    /// Not while a probe is in flight: the time in the past would make the loop spin until the probe ends.
    fn looks_for_probe(&self) -> bool {
        !matches!(self.mode, PumpMode::Open) && self.end.is_none() && self.running.is_empty()
    }
}

impl MessagePump {
    pub(super) fn new(
        partition: PartitionId,
        processor: Arc<MessageProcessor>,
        stats: Arc<WorkerStats>,
        stop: CancellationToken,
    ) -> Self {
        let max_per_stuck_lane = usize::from(processor.settings.prefetch / 4).max(1);
        let (retry_states, next_expire_check) = (HashMap::new(), Instant::now());
        Self {
            partition,
            processor,
            stats,
            stop,
            retry_states,
            max_per_stuck_lane,
            crowd: 3 * max_per_stuck_lane,
            next_expire_check,
        }
    }

    /// Runs until cancellation.
    pub(super) async fn run(mut self) -> Result<(), QueueError> {
        let stop = self.stop.clone();
        let mut losses = 0_u32;
        loop {
            let mode = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                mode = self.admission() => mode,
            };
            let wanted = self.preferred_by();
            let subscribed = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                subscribed = self.processor.queue.subscribe(self.partition) => subscribed,
            };
            let end = match subscribed {
                Ok(mut subscription) => {
                    let begun = Instant::now();
                    let end = self.serve(&mut subscription, mode, wanted).await;
                    subscription.close().await;
                    losses = if begun.elapsed() > Duration::from_secs(5) { 0 } else { losses };
                    end
                }
                Err(error @ QueueError::Mismatch(_)) => return Err(error),
                Err(error) => {
                    tracing::debug!(partition = %self.partition, %error, "cannot subscribe");
                    SessionEnd::Lost
                }
            };
            tracing::debug!(partition = %self.partition, ?end, "subscription over");
            match end {
                SessionEnd::Stopped => return Ok(()),
                // A subscription that is lost again and again must not make this loop spin.
                SessionEnd::Lost => {
                    losses = losses.saturating_add(1);
                    let pause = Duration::from_millis(100).saturating_mul(losses.min(50));
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        () = tokio::time::sleep(pause) => {}
                    }
                }
                SessionEnd::Tripped | SessionEnd::Released | SessionEnd::Idle => {}
            }
        }
    }

    /// Waits until there is a reason to subscribe. Cancel-safe.
    async fn admission(&mut self) -> PumpMode {
        let breaker = self.breaker().clone();
        if breaker.passes() {
            return PumpMode::Open;
        }
        tokio::select! {
            biased;
            permit = breaker.probe_permit() => permit.map_or(PumpMode::Open, PumpMode::Probe),
            () = tokio::time::sleep_until(self.next_expire_check) => PumpMode::ExpireOnly,
        }
    }

    /// A number for the preferred worker that waits for this partition and for its consumer position; `None` if there is no
    /// such worker.
    fn preferred_by(&self) -> Option<u64> {
        self.processor.queue.preferred_elsewhere().borrow().get(&self.partition).copied()
    }

    async fn serve(
        &mut self,
        subscription: &mut Subscription,
        mode: PumpMode,
        wanted: Option<u64>,
    ) -> SessionEnd {
        let breaker = self.breaker().clone();
        let mut changes = breaker.changes();
        let mut better = self.processor.queue.preferred_elsewhere();
        let mut session = PumpSession::new(mode, wanted);
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        let stop = self.stop.clone();
        loop {
            if matches!(session.mode, PumpMode::Open) {
                subscription.announce();
            }
            if session.end.is_none() {
                self.start_or_end(&mut session, subscription.is_arriving());
            }
            if session.end.is_some() {
                session.over.send_replace(true);
                if session.running.is_empty() {
                    break;
                }
                subscription.flush();
            }
            let looks_for_probe = session.looks_for_probe() && !subscription.is_arriving();
            let alarm = session.lanes.next_timer();
            tokio::select! {
                // A fixed order makes a simulation repeatable. Rare events come first, and results before new messages.
                // Results cannot starve new messages, because each received message gives one result.
                biased;
                () = stop.cancelled(), if session.end.is_none() => session.end = Some(SessionEnd::Stopped),
                _ = tick.tick() => self.record_stats(&session.lanes, session.running.len(), true),
                Ok(()) = changes.changed() => if breaker.passes() {
                    session.mode = PumpMode::Open;
                    session.lanes.unblock();
                },
                // A worker that left and came back counts as new, and so does one that subscribed again.
                Ok(()) = better.changed() => if self.preferred_by().is_none() {
                    session.wanted = None;
                },
                () = sleep_until(alarm) => session.lanes.wake(Instant::now()),
                Some(result) = session.running.next() => self.on_processed(result, &mut session),
                received = subscription.next(), if session.end.is_none() => match received {
                    Some(received) => self.accept(received, &mut session),
                    None => session.end = Some(SessionEnd::Lost),
                },
                () = tokio::time::sleep_until(session.quiet_since + PROBE_WAIT), if looks_for_probe => {}
            }
        }
        self.leave(session)
    }

    fn breaker(&self) -> &Arc<CircuitBreaker> {
        self.processor.gates.gate(self.partition.destination).breaker()
    }

    fn start_or_end(&mut self, session: &mut PumpSession, is_arriving: bool) {
        let may_start = match &session.mode {
            PumpMode::Open | PumpMode::ExpireOnly => true,
            PumpMode::Probe(permit) => self.picks_probe(&mut session.lanes, permit.is_first(), session.begun),
        };
        if may_start {
            self.start_next(session);
        }
        let landed = session.running.is_empty() && !is_arriving;
        session.end = self.reason_to_end(session, landed);
    }

    /// The end of a session without attempts in flight.
    fn leave(&mut self, session: PumpSession) -> SessionEnd {
        let PumpSession { mode, lanes, end, .. } = session;
        self.remember(&lanes);
        self.record_stats(&lanes, 0, false);
        if let (PumpMode::Probe(permit), Some(SessionEnd::Idle)) = (mode, end)
            && self.processor.queue.has_other_workers()
        {
            permit.found_no_message(self.processor.queue.partitions());
        }
        end.unwrap_or(SessionEnd::Idle)
    }

    /// Whether this subscription should end, checked after every event.
    fn reason_to_end(&self, session: &PumpSession, landed: bool) -> Option<SessionEnd> {
        match &session.mode {
            PumpMode::Open if !self.breaker().passes() => return Some(SessionEnd::Tripped),
            PumpMode::Open => {}
            PumpMode::Probe(_) | PumpMode::ExpireOnly => {
                let quiet = landed && session.quiet_since.elapsed() >= PROBE_WAIT;
                return quiet.then_some(SessionEnd::Idle);
            }
        }
        let better = self.preferred_by()?;
        let newcomer = session.wanted != Some(better);
        (newcomer || session.begun.elapsed() >= RELEASE_AGAIN).then_some(SessionEnd::Released)
    }

    /// Whether there is a message to probe with; its lane is then the first one. The probe is the newest message among
    /// those with the fewest attempts. Messages that fail for reasons of their own stay longest, so the oldest messages are
    /// the worst probes: each of them would keep the destination closed for one more pause. A first probe with an untried
    /// message does not wait. Later probes wait until the window is full, or for [`PROBE_WAIT`].
    fn picks_probe(&self, lanes: &mut LaneScheduler, first: bool, begun: Instant) -> bool {
        let tried = |received: &ReceivedMessage| {
            self.retry_states.get(&received.message.id).map_or(0, |retry_state| retry_state.story.count())
        };
        let Some((tries, key)) = lanes.best(tried) else { return false };
        let seen_all =
            lanes.held() >= usize::from(self.processor.settings.prefetch) || begun.elapsed() >= PROBE_WAIT;
        let picks = seen_all || first && tries == 0;
        if picks {
            lanes.prefer(&key);
        }
        picks
    }

    /// Starts the first message of every ready lane. Outside of [`PumpMode::Open`] one message carries the probe, and the
    /// others may only expire.
    fn start_next(&mut self, session: &mut PumpSession) {
        while let Some(received) = session.lanes.start_next() {
            let retry_state = self.retry_states.remove(&received.message.id);
            let retry_state =
                retry_state.unwrap_or_else(|| RetryState::new(&self.processor.settings, &received));
            let permission = match std::mem::replace(&mut session.mode, PumpMode::ExpireOnly) {
                PumpMode::Open => {
                    session.mode = PumpMode::Open;
                    StartPermission::Normal
                }
                PumpMode::Probe(permit) => StartPermission::Probe(permit),
                PumpMode::ExpireOnly => StartPermission::ExpireOnly,
            };
            let over = session.over.subscribe();
            let process = self.processor.clone().process(received, retry_state, permission, over);
            session.running.push(Box::pin(process));
        }
    }

    fn accept(&mut self, received: ReceivedMessage, session: &mut PumpSession) {
        session.quiet_since = Instant::now();
        let id = received.message.id;
        let mut retry_state = match self.retry_states.remove(&id) {
            // No other worker had the message meanwhile, so the known state is complete.
            Some(known)
                if !self.processor.queue.shared() || received.redeliveries == known.redeliveries + 1 =>
            {
                known
            }
            Some(mut known) => {
                known.possibly_delivered = true;
                known
            }
            None => RetryState::new(&self.processor.settings, &received),
        };
        retry_state.redelivered(received.redeliveries);
        self.retry_states.insert(id, retry_state);
        let lane = received.message.lane.clone();
        session.lanes.push(received);
        self.make_room(&lane, session);
    }

    fn is_crowded_by(&self, lane: &LaneKey, session: &PumpSession) -> bool {
        let held = session.lanes.held() + session.running.len();
        session.lanes.exceeds(lane, self.max_per_stuck_lane) && held >= self.crowd
    }

    /// In a crowded window a stuck lane keeps its limit; its other messages are dead-lettered to make room for other lanes.
    fn make_room(&mut self, lane: &LaneKey, session: &mut PumpSession) {
        if !self.is_crowded_by(lane, session) {
            return;
        }
        for received in session.lanes.shed(lane, self.max_per_stuck_lane) {
            let retry_state = self.retry_states.remove(&received.message.id);
            let retry_state =
                retry_state.unwrap_or_else(|| RetryState::new(&self.processor.settings, &received));
            let processor = self.processor.clone();
            let mut over = session.over.subscribe();
            let why = "its conversation is stuck and has filled its share of the partition".to_owned();
            session.running.push(Box::pin(async move {
                match processor
                    .dead_letter(received, retry_state, DeadReason::Exhausted, why, &mut over)
                    .await
                {
                    ProcessResult::AckFailed => ProcessResult::AckFailed,
                    _ => ProcessResult::Excess,
                }
            }));
        }
    }

    fn on_processed(&mut self, result: ProcessResult, session: &mut PumpSession) {
        session.quiet_since = Instant::now();
        match result {
            ProcessResult::Settled { lane, freed } => session.lanes.finished(&lane, freed),
            ProcessResult::Excess => {}
            // A broker ends the subscription itself; until then it may still accept other acks.
            ProcessResult::AckFailed if self.processor.queue.shared() => {}
            ProcessResult::AckFailed => drop(session.end.get_or_insert(SessionEnd::Lost)),
            ProcessResult::Retry { received, mut retry_state, at, waits } => {
                let (id, lane) = (received.message.id, received.message.lane.clone());
                session.lanes.back_off(received, at);
                if self.is_crowded_by(&lane, session) {
                    retry_state.crowds_others_out();
                }
                if waits || retry_state.is_stuck() {
                    session.lanes.mark_stuck(&lane);
                }
                self.retry_states.insert(id, retry_state);
                self.make_room(&lane, session);
            }
            ProcessResult::Blocked { received, retry_state } => {
                self.retry_states.insert(received.message.id, retry_state);
                session.lanes.block(received);
            }
        }
        // The breaker may have begun to pass while this message was about to be parked.
        if matches!(session.mode, PumpMode::Open) && self.breaker().passes() {
            session.lanes.unblock();
        }
    }

    /// Plans the next visit for the first deadline among the returned messages, and forgets old retry states.
    fn remember(&mut self, lanes: &LaneScheduler) {
        let now = Instant::now();
        let deadlines = &self.processor.settings.deadlines;
        let left = lanes.messages().map(|received| {
            let age = crate::clock::since(received.message.accepted_at);
            deadlines.of(received.message.kind).saturating_sub(age)
        });
        self.next_expire_check = now
            + left
                .min()
                .unwrap_or(EXPIRE_CHECK_INTERVAL)
                .clamp(Duration::from_secs(1), EXPIRE_CHECK_INTERVAL);
        self.retry_states.retain(|_, retry_state| retry_state.seen.elapsed() < FORGET_AFTER);
    }

    fn record_stats(&self, lanes: &LaneScheduler, flying: usize, subscribed: bool) {
        let oldest = lanes.messages().map(|received| received.message.accepted_at).min();
        let view = PartitionStats {
            lanes: lanes.counts(),
            held: lanes.messages().count() + flying,
            oldest,
            subscribed,
            preferred_elsewhere: self.preferred_by().is_some(),
        };
        self.stats.set(self.partition, view);
    }
}

async fn sleep_until(alarm: Option<Instant>) {
    match alarm {
        Some(alarm) => tokio::time::sleep_until(alarm).await,
        None => std::future::pending().await,
    }
}
