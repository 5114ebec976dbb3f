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

use super::flight::{Crew, Effort, Landing, Ticket};
use super::lane::Lanes;
use super::tally::{Tally, View};
use crate::delivery::breaker::ProbeSeat;
use crate::message::{DeadReason, LaneKey, MessageId};
use crate::queue::{Loan, PartitionId, QueueError, Subscription};
use crate::tasks::Stop;

/// How long a probe or a visit waits for a message before the partition counts as empty.
const PATIENCE: Duration = Duration::from_millis(300);
/// While a destination is tripped, its partitions are visited at least this often to expire old messages.
const VISIT_EVERY: Duration = Duration::from_secs(20);
/// The retry state of a message is forgotten this long after the message was last received.
const FORGET_AFTER: Duration = Duration::from_secs(1800);
/// How long we keep a partition that its preferred worker is waiting for before we release it again. The release also moves
/// other waiting workers behind the preferred one.
const YIELD_AGAIN: Duration = Duration::from_secs(30);

/// The permission with which the pump is subscribed.
#[derive(Debug)]
enum Mode {
    /// The breaker passes.
    Open,
    /// The pump sends the one probe.
    Probe(ProbeSeat),
    /// No call is allowed; the pump only expires old messages.
    Visit,
}

/// Why a subscription ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Stopped,
    Lost,
    Tripped,
    Yielded,
    Idle,
}

/// The pump of one partition.
#[derive(Debug)]
pub(super) struct Pump {
    partition: PartitionId,
    crew: Arc<Crew>,
    tally: Arc<Tally>,
    stop: Stop,
    efforts: HashMap<MessageId, Effort>,
    /// The limit of one stuck lane in a crowded window: a quarter of the prefetch.
    share: usize,
    /// The number of messages that make a window crowded: three quarters.
    crowd: usize,
    next_visit: Instant,
}

type Flights = FuturesUnordered<BoxFuture<'static, Landing>>;

impl Pump {
    pub(super) fn new(partition: PartitionId, crew: Arc<Crew>, tally: Arc<Tally>, stop: Stop) -> Self {
        let share = usize::from(crew.settings.prefetch / 4).max(1);
        let (efforts, next_visit) = (HashMap::new(), Instant::now());
        Self { partition, crew, tally, stop, efforts, share, crowd: 3 * share, next_visit }
    }

    /// Runs until cancellation.
    pub(super) async fn run(mut self) -> Result<(), QueueError> {
        let stop = self.stop.clone();
        let mut losses = 0_u32;
        loop {
            let mode = tokio::select! {
                biased;
                () = stop.wait() => return Ok(()),
                mode = self.admission() => mode,
            };
            let wanted = self.wanted_by();
            let subscribed = tokio::select! {
                biased;
                () = stop.wait() => return Ok(()),
                subscribed = self.crew.queue.subscribe(self.partition) => subscribed,
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
                    End::Lost
                }
            };
            tracing::debug!(partition = %self.partition, ?end, "subscription over");
            match end {
                End::Stopped => return Ok(()),
                // A subscription that is lost again and again must not make this loop spin.
                End::Lost => {
                    losses = losses.saturating_add(1);
                    let pause = Duration::from_millis(100).saturating_mul(losses.min(50));
                    tokio::select! {
                        () = stop.wait() => return Ok(()),
                        () = tokio::time::sleep(pause) => {}
                    }
                }
                End::Tripped | End::Yielded | End::Idle => {}
            }
        }
    }

    /// Waits until there is a reason to subscribe. Cancel-safe.
    async fn admission(&mut self) -> Mode {
        let breaker = self.crew.deliverer.gate(self.partition.destination).breaker().clone();
        if breaker.passes() {
            return Mode::Open;
        }
        tokio::select! {
            biased;
            seat = breaker.probe_seat() => seat.map_or(Mode::Open, Mode::Probe),
            () = tokio::time::sleep_until(self.next_visit) => Mode::Visit,
        }
    }

    /// A number for the preferred worker that waits for this partition and for its consumer position; `None` if there is no
    /// such worker.
    fn wanted_by(&self) -> Option<u64> {
        self.crew.queue.wanted_elsewhere().borrow().get(&self.partition).copied()
    }

    async fn serve(
        &mut self,
        subscription: &mut Subscription,
        mut mode: Mode,
        mut wanted: Option<u64>,
    ) -> End {
        let breaker = self.crew.deliverer.gate(self.partition.destination).breaker().clone();
        let mut changes = breaker.changes();
        let mut better = self.crew.queue.wanted_elsewhere();
        let over = watch::Sender::new(false);
        let mut lanes = Lanes::default();
        let mut flights = Flights::new();
        let mut end: Option<End> = None;
        let begun = Instant::now();
        let mut quiet_since = begun;
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        let stop = self.stop.clone();
        loop {
            if matches!(mode, Mode::Open) {
                subscription.announce();
            }
            if end.is_none() {
                let may_launch = match &mode {
                    Mode::Open | Mode::Visit => true,
                    Mode::Probe(seat) => self.picks_probe(&mut lanes, seat.is_first(), begun),
                };
                if may_launch {
                    self.launch(&mut lanes, &flights, &mut mode, &over);
                }
                let landed = flights.is_empty() && !subscription.is_arriving();
                end = self.reason_to_end(&mode, begun, wanted, quiet_since, landed);
            }
            if end.is_some() {
                over.send_replace(true);
                if flights.is_empty() {
                    break;
                }
                subscription.flush();
            }
            // Not while a probe is in flight: the time in the past would make this loop spin until the probe ends.
            let looking = !matches!(mode, Mode::Open)
                && end.is_none()
                && flights.is_empty()
                && !subscription.is_arriving();
            let alarm = lanes.next_alarm();
            tokio::select! {
                // A fixed order makes a simulation repeatable. Rare events come first, and results before new messages.
                // Results cannot starve new messages, because each received message gives one result.
                biased;
                () = stop.wait(), if end.is_none() => end = Some(End::Stopped),
                _ = tick.tick() => self.tell(&lanes, flights.len(), true),
                Ok(()) = changes.changed() => if breaker.passes() {
                    mode = Mode::Open;
                    lanes.unpark();
                },
                // A worker that left and came back counts as new, and so does one that subscribed again.
                Ok(()) = better.changed() => if self.wanted_by().is_none() {
                    wanted = None;
                },
                () = at(alarm) => lanes.wake(Instant::now()),
                Some(landing) = flights.next() => {
                    quiet_since = Instant::now();
                    // A broker ends the subscription itself; until then it may still accept other acks.
                    if matches!(landing, Landing::Unsettled) && !self.crew.queue.shared() {
                        end.get_or_insert(End::Lost);
                    }
                    self.land(landing, &mut lanes, &flights, &over);
                    // The breaker may have begun to pass while this message was about to be parked.
                    if matches!(mode, Mode::Open) && breaker.passes() {
                        lanes.unpark();
                    }
                }
                loan = subscription.next(), if end.is_none() => match loan {
                    Some(loan) => {
                        quiet_since = Instant::now();
                        self.accept(loan, &mut lanes, &flights, &over);
                    }
                    None => end = Some(End::Lost),
                },
                () = tokio::time::sleep_until(quiet_since + PATIENCE), if looking => {}
            }
        }
        self.remember(&lanes);
        self.tell(&lanes, 0, false);
        end.unwrap_or(End::Idle)
    }

    /// Whether this subscription should end, checked after every event.
    fn reason_to_end(
        &self,
        mode: &Mode,
        begun: Instant,
        wanted: Option<u64>,
        quiet_since: Instant,
        landed: bool,
    ) -> Option<End> {
        let breaker = self.crew.deliverer.gate(self.partition.destination).breaker();
        match mode {
            Mode::Open if !breaker.passes() => return Some(End::Tripped),
            Mode::Open => {}
            Mode::Probe(_) | Mode::Visit => {
                let quiet = landed && quiet_since.elapsed() >= PATIENCE;
                return quiet.then_some(End::Idle);
            }
        }
        let better = self.wanted_by()?;
        let newcomer = wanted != Some(better);
        (newcomer || begun.elapsed() >= YIELD_AGAIN).then_some(End::Yielded)
    }

    /// Whether there is a message to probe with; its lane is then the first one. The probe is the newest message among
    /// those with the fewest attempts. Messages that fail for reasons of their own stay longest, so the oldest messages are
    /// the worst probes: each of them would keep the destination closed for one more pause. A first probe with an untried
    /// message does not wait. Later probes wait until the window is full, or for [`PATIENCE`].
    fn picks_probe(&self, lanes: &mut Lanes, first: bool, begun: Instant) -> bool {
        let tried = |loan: &Loan| self.efforts.get(&loan.message.id).map_or(0, |effort| effort.story.count());
        let Some((tries, key)) = lanes.best(tried) else { return false };
        let seen_all =
            lanes.held() >= usize::from(self.crew.settings.prefetch) || begun.elapsed() >= PATIENCE;
        let picks = seen_all || first && tries == 0;
        if picks {
            lanes.prefer(&key);
        }
        picks
    }

    /// Starts the first message of every ready lane. Outside of [`Mode::Open`] one message carries the probe, and the
    /// others may only expire.
    fn launch(&mut self, lanes: &mut Lanes, flights: &Flights, mode: &mut Mode, over: &watch::Sender<bool>) {
        while let Some(loan) = lanes.launch() {
            let effort = self.efforts.remove(&loan.message.id);
            let effort = effort.unwrap_or_else(|| Effort::new(&self.crew.settings, &loan));
            let ticket = match std::mem::replace(mode, Mode::Visit) {
                Mode::Open => {
                    *mode = Mode::Open;
                    Ticket::Open
                }
                Mode::Probe(seat) => Ticket::Probe(seat),
                Mode::Visit => Ticket::Grounded,
            };
            flights.push(Box::pin(self.crew.clone().fly(loan, effort, ticket, over.subscribe())));
        }
    }

    fn accept(&mut self, loan: Loan, lanes: &mut Lanes, flights: &Flights, over: &watch::Sender<bool>) {
        let id = loan.message.id;
        let mut effort = match self.efforts.remove(&id) {
            // No other worker had the message meanwhile, so the known state is complete.
            Some(known) if !self.crew.queue.shared() || loan.earlier == known.earlier + 1 => known,
            Some(mut known) => {
                known.maybe_taken = true;
                known
            }
            None => Effort::new(&self.crew.settings, &loan),
        };
        effort.lent_again(loan.earlier);
        self.efforts.insert(id, effort);
        let lane = loan.message.lane.clone();
        lanes.push(loan);
        self.make_room(&lane, lanes, flights, over);
    }

    fn is_crowded_by(&self, lane: &LaneKey, lanes: &Lanes, flights: &Flights) -> bool {
        lanes.exceeds(lane, self.share) && lanes.held() + flights.len() >= self.crowd
    }

    /// In a crowded window a stuck lane keeps its limit; its other messages are dead-lettered to make room for other lanes.
    fn make_room(
        &mut self,
        lane: &LaneKey,
        lanes: &mut Lanes,
        flights: &Flights,
        over: &watch::Sender<bool>,
    ) {
        if !self.is_crowded_by(lane, lanes, flights) {
            return;
        }
        for loan in lanes.shed(lane, self.share) {
            let effort = self.efforts.remove(&loan.message.id);
            let effort = effort.unwrap_or_else(|| Effort::new(&self.crew.settings, &loan));
            let crew = self.crew.clone();
            let mut over = over.subscribe();
            let why = "its conversation is stuck and has filled its share of the partition".to_owned();
            flights.push(Box::pin(async move {
                match crew.bury(loan, effort, DeadReason::Exhausted, why, &mut over).await {
                    Landing::Unsettled => Landing::Unsettled,
                    _ => Landing::Excess,
                }
            }));
        }
    }

    fn land(&mut self, landing: Landing, lanes: &mut Lanes, flights: &Flights, over: &watch::Sender<bool>) {
        match landing {
            Landing::Settled { lane, freed } => lanes.landed(&lane, freed),
            Landing::Excess | Landing::Unsettled => {}
            Landing::Again { loan, mut effort, at, waits } => {
                let (id, lane) = (loan.message.id, loan.message.lane.clone());
                lanes.back_off(loan, at);
                if self.is_crowded_by(&lane, lanes, flights) {
                    effort.crowds_others_out();
                }
                if waits || effort.is_stuck() {
                    lanes.mark_stuck(&lane);
                }
                self.efforts.insert(id, effort);
                self.make_room(&lane, lanes, flights, over);
            }
            Landing::Parked { loan, effort } => {
                self.efforts.insert(loan.message.id, effort);
                lanes.park(loan);
            }
        }
    }

    /// Plans the next visit for the first deadline among the returned messages, and forgets old retry states.
    fn remember(&mut self, lanes: &Lanes) {
        let now = Instant::now();
        let deadlines = &self.crew.settings.deadlines;
        let left = lanes.loans().map(|loan| {
            let age = crate::clock::since(loan.message.accepted_at);
            deadlines.of(loan.message.kind).saturating_sub(age)
        });
        self.next_visit = now + left.min().unwrap_or(VISIT_EVERY).clamp(Duration::from_secs(1), VISIT_EVERY);
        self.efforts.retain(|_, effort| effort.seen.elapsed() < FORGET_AFTER);
    }

    fn tell(&self, lanes: &Lanes, flying: usize, subscribed: bool) {
        let oldest = lanes.loans().map(|loan| loan.message.accepted_at).min();
        let view = View {
            lanes: lanes.counts(),
            held: lanes.loans().count() + flying,
            oldest,
            subscribed,
            wanted_elsewhere: self.wanted_by().is_some(),
        };
        self.tally.set(self.partition, view);
    }
}

async fn at(alarm: Option<Instant>) {
    match alarm {
        Some(alarm) => tokio::time::sleep_until(alarm).await,
        None => std::future::pending().await,
    }
}
