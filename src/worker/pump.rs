//! The pump of one partition: borrow, hand to the lanes, let their heads fly, settle; and give everything back in time.
//!
//! One owner, one loop. Guarantees: whatever ends a subscription (stop, a tripped breaker, a better-ranked worker, the
//! broker), what is in the air lands first, nothing new starts, and then the subscription is closed, which is the only way
//! back that keeps the order. While the breaker is tripped nothing is held: the pump waits outside, probes when it is its
//! turn, and looks in from time to time to expire what is too late.

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
/// A tripped destination's partitions are looked into at least so often, for what is too late.
const VISIT_EVERY: Duration = Duration::from_secs(20);
/// What was given back and never came again is forgotten after this.
const FORGET_AFTER: Duration = Duration::from_secs(1800);
/// A better-ranked worker that waits for the partition and does not get it is given way to once more after this. Who waits
/// in line, too, goes behind the better one by that.
const YIELD_AGAIN: Duration = Duration::from_secs(30);

/// By which right the pump is subscribed.
#[derive(Debug)]
enum Mode {
    /// The breaker passes.
    Open,
    /// To send the one probe.
    Probe(ProbeSeat),
    /// Nothing may be sent; only what is too late is ended.
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
    /// What one stuck lane may hold of a crowded window: a quarter.
    share: usize,
    /// So many loans are a crowded window: three quarters.
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

    /// Runs until the stop.
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
                // A queue that vanishes again and again must not make this loop hot.
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

    /// Who should have this partition instead, and stands where in its line; if anybody.
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
            // Not while a probe is in the air: the time that is over already would make this loop hot until it lands.
            let looking = !matches!(mode, Mode::Open)
                && end.is_none()
                && flights.is_empty()
                && !subscription.is_arriving();
            let alarm = lanes.next_alarm();
            tokio::select! {
                // In a fixed order, so that a simulation repeats itself. What happens rarely comes first, and what lands
                // before what is new: neither can keep the other waiting, since only what is lent can land.
                biased;
                () = stop.wait(), if end.is_none() => end = Some(End::Stopped),
                _ = tick.tick() => self.tell(&lanes, flights.len(), true),
                Ok(()) = changes.changed() => if breaker.passes() {
                    mode = Mode::Open;
                    lanes.unpark();
                },
                // Who went away and comes back is a newcomer, as is who subscribed anew.
                Ok(()) = better.changed() => if self.wanted_by().is_none() {
                    wanted = None;
                },
                () = at(alarm) => lanes.wake(Instant::now()),
                Some(landing) = flights.next() => {
                    quiet_since = Instant::now();
                    // A broker ends the subscription itself; until then it may still be told what else has landed.
                    if matches!(landing, Landing::Unsettled) && !self.crew.queue.shared() {
                        end.get_or_insert(End::Lost);
                    }
                    self.land(landing, &mut lanes, &flights, &over);
                    // The breaker may have opened while this one was on its way to wait for that.
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

    /// Whether this subscription should end, judged anew after every event.
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

    /// Whether there is a head to probe with, which is then the first in line: the youngest of the least tried. What fails
    /// for reasons of its own is what stays longest, so that the oldest are the worst to ask with: each of them would keep
    /// the destination closed to all others for one more pause. The first probe is worth no wait; after it the window fills
    /// before somebody is chosen.
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

    /// Lets every ready head fly. Outside of [`Mode::Open`] one of them carries the probe, the others may only expire.
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
            // Nobody else had it meanwhile: what we know of it is all there is to know.
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

    /// In a crowded window a stuck lane keeps its share; what it holds beyond that dies, so that the others come in.
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

    /// What goes back to the queue is remembered, and the next visit planned for the first of it that will be too late.
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
