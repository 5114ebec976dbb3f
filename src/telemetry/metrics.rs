//! The metrics: one struct, created once and passed down. Labels are few and bounded; no label is a conversation id.
//!
//! Guarantees: every series of a closed label set exists from the start, so that a rate is never missing. Not responsible
//! for: the endpoint of the metrics (`ingress/admin.rs`).

use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use super::names;
use crate::message::{DeadReason, Destinations, RetryReason};

const SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0];

/// Buckets for the time that users wait for agents. The other buckets are too coarse above half a minute.
const SECONDS_OF_PEOPLE: &[f64] = &[
    1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 240.0, 300.0, 450.0, 600.0, 900.0,
    1800.0, 3600.0,
];

/// The known ends of conversations. A bot may name any reason, so other reasons count as `other`.
const ENDS: [&str; 13] = [
    "agent",
    "user",
    "session_closed",
    "abandoned",
    "escalated",
    "gone",
    "idle",
    "no_agent",
    "waited_too_long",
    "expired",
    "rejected",
    "exhausted",
    OTHER,
];
const OTHER: &str = "other";
const READS: [&str; 6] = ["state", "messages", "bulk", "virtual_agent", "row", "escalation"];

/// The known name of an end, or `other`. A reason of a caller is text, so no label and no report shows it.
pub(crate) fn end_label(reason: &str) -> &'static str {
    ENDS.into_iter().find(|known| *known == reason).unwrap_or(OTHER)
}

/// All metrics of one process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// `{source,status}`
    pub ingress_requests: IntCounterVec,
    /// `{source}`
    pub ingress_duration: HistogramVec,
    /// `{engine}`, bound to this process's engine
    pub publish_duration: Histogram,
    /// `{destination,kind,outcome}`
    pub attempts: IntCounterVec,
    /// `{destination}`
    pub attempt_duration: HistogramVec,
    /// `{destination,kind}`
    pub latency: HistogramVec,
    /// `{destination,reason}`
    pub retries: IntCounterVec,
    /// `{destination,reason}`
    pub dead_letters: IntCounterVec,
    /// For all destinations together.
    pub dead_letter_messages: IntGauge,
    /// `{destination}`
    pub replayed: IntCounterVec,
    /// `{destination}`
    pub queue_messages: IntGaugeVec,
    /// `{destination}`
    pub oldest_age: GaugeVec,
    /// `{destination,state}`
    pub lanes: IntGaugeVec,
    /// `{destination}`
    pub in_flight: IntGaugeVec,
    /// `{destination}`
    pub breaker_state: IntGaugeVec,
    /// `{destination,reason}`
    pub breaker_trips: IntCounterVec,
    /// 0 or 1
    pub broker_connected: IntGauge,
    /// 0 or 1
    pub directory_up: IntGauge,
    /// `causeway_clock_ahead_seconds`
    pub clock_ahead: Gauge,
    /// `{peer,kind,subject}`
    pub certificate_expiry: IntGaugeVec,
    /// `causeway_spool_has_room`
    pub spool_has_room: IntGauge,
    /// `causeway_queues_without_majority`
    pub silent_queues: IntGauge,
    /// `causeway_queues_with_unsafe_policy`
    pub unsafe_queues: IntGauge,
    /// `causeway_spool_messages`
    pub spool_messages: IntGauge,
    /// `causeway_spool_oldest_age_seconds`
    pub spool_oldest_age: Gauge,
    /// `{destination}`
    pub partitions_owned: IntGaugeVec,
    /// `causeway_directory_commit_seconds`
    pub directory_commit: Histogram,
    /// `{state}`
    pub conversations: IntGaugeVec,
    /// `causeway_unconfirmed_callbacks_total`
    pub unconfirmed: IntCounter,
    /// `causeway_unconfirmed_ends_total`
    pub unconfirmed_ends: IntCounter,
    /// `{what}`: `state`, `messages`, `bulk`, `virtual_agent`, `row` (before an agent's message), `escalation`
    pub servicenow_reads: IntCounterVec,
    /// `causeway_servicenow_oldest_unread_seconds`
    pub oldest_unread: Gauge,
    /// What gap repair found.
    pub repaired: IntCounter,
    /// `causeway_unreadable_rows_total`
    pub unreadable_rows: IntCounter,
    /// `{reason}`, by [`Metrics::count_end`]
    ended: IntCounterVec,
    /// The time from request to agent.
    pub agent_wait: Histogram,
    /// Unroutable messages.
    pub unroutable: IntGauge,
    /// Items of Virtual Agent callbacks with an unknown type.
    pub unknown_items: IntCounter,
}

impl Metrics {
    /// Registers everything, including the metrics of the process itself.
    pub fn new(engine: &str) -> Result<Self, prometheus::Error> {
        let r = Registry::new();
        let publish = histograms(&r, names::PUBLISH_DURATION, &["engine"])?;
        let metrics = Self {
            ingress_requests: counters(&r, names::INGRESS_REQUESTS, &["source", "status"])?,
            ingress_duration: histograms(&r, names::INGRESS_DURATION, &["source"])?,
            publish_duration: publish.with_label_values(&[engine]),
            attempts: counters(&r, names::ATTEMPTS, &["destination", "kind", "outcome"])?,
            attempt_duration: histograms(&r, names::ATTEMPT_DURATION, &["destination"])?,
            latency: histograms(&r, names::LATENCY, &["destination", "kind"])?,
            retries: counters(&r, names::RETRIES, &["destination", "reason"])?,
            dead_letters: counters(&r, names::DEAD_LETTERS, &["destination", "reason"])?,
            dead_letter_messages: gauge(&r, names::DEAD_LETTER_MESSAGES)?,
            replayed: counters(&r, names::REPLAYED, &["destination"])?,
            queue_messages: gauges(&r, names::QUEUE_MESSAGES, &["destination"])?,
            oldest_age: registered(&r, GaugeVec::new(opts(names::OLDEST_AGE), &["destination"])?)?,
            lanes: gauges(&r, names::LANES, &["destination", "state"])?,
            in_flight: gauges(&r, names::IN_FLIGHT, &["destination"])?,
            breaker_state: gauges(&r, names::BREAKER_STATE, &["destination"])?,
            breaker_trips: counters(&r, names::BREAKER_TRIPS, &["destination", "reason"])?,
            broker_connected: gauge(&r, names::BROKER_CONNECTED)?,
            directory_up: gauge(&r, names::DIRECTORY_UP)?,
            clock_ahead: registered(&r, Gauge::with_opts(opts(names::CLOCK_AHEAD))?)?,
            certificate_expiry: gauges(&r, names::CERTIFICATE_EXPIRY, &["peer", "kind", "subject"])?,
            spool_has_room: gauge(&r, names::SPOOL_HAS_ROOM)?,
            silent_queues: gauge(&r, names::SILENT_QUEUES)?,
            unsafe_queues: gauge(&r, names::UNSAFE_QUEUES)?,
            spool_messages: gauge(&r, names::SPOOL_MESSAGES)?,
            spool_oldest_age: registered(&r, Gauge::with_opts(opts(names::SPOOL_OLDEST_AGE))?)?,
            partitions_owned: gauges(&r, names::PARTITIONS_OWNED, &["destination"])?,
            directory_commit: histogram(&r, names::DIRECTORY_COMMIT, SECONDS)?,
            conversations: gauges(&r, names::CONVERSATIONS, &["state"])?,
            unconfirmed: registered(&r, IntCounter::with_opts(opts(names::UNCONFIRMED))?)?,
            unconfirmed_ends: registered(&r, IntCounter::with_opts(opts(names::UNCONFIRMED_ENDS))?)?,
            servicenow_reads: counters(&r, names::READS, &["what"])?,
            oldest_unread: registered(&r, Gauge::with_opts(opts(names::OLDEST_UNREAD))?)?,
            repaired: registered(&r, IntCounter::with_opts(opts(names::REPAIRED))?)?,
            unreadable_rows: registered(&r, IntCounter::with_opts(opts(names::UNREADABLE_ROWS))?)?,
            ended: counters(&r, names::ENDED, &["reason"])?,
            agent_wait: histogram(&r, names::AGENT_WAIT, SECONDS_OF_PEOPLE)?,
            unroutable: gauge(&r, names::ASTRAY)?,
            unknown_items: registered(&r, IntCounter::with_opts(opts(names::UNKNOWN_ITEMS))?)?,
            registry: r,
        };
        metrics.register_process(engine)?;
        metrics.start_at_zero();
        Ok(metrics)
    }

    fn register_process(&self, engine: &str) -> Result<(), prometheus::Error> {
        let info = gauges(&self.registry, names::BUILD_INFO, &["version", "engine"])?;
        info.with_label_values(&[env!("CARGO_PKG_VERSION"), engine]).set(1);
        let process = prometheus::process_collector::ProcessCollector::for_self();
        self.registry.register(Box::new(process))
    }

    fn start_at_zero(&self) {
        for reason in ENDS {
            self.ended.with_label_values(&[reason]);
        }
        for what in READS {
            self.servicenow_reads.with_label_values(&[what]);
        }
    }

    /// Creates the series of every destination, so that a rate can be computed for its first event.
    pub fn show_destinations(&self, destinations: &Destinations) {
        for destination in destinations.iter() {
            let destination = destination.as_str();
            for reason in DeadReason::ALL {
                self.dead_letters.with_label_values(&[destination, reason.as_str()]);
            }
            for reason in RetryReason::ALL {
                self.retries.with_label_values(&[destination, reason.as_str()]);
            }
            for vec in [&self.queue_messages, &self.in_flight, &self.breaker_state, &self.partitions_owned] {
                vec.with_label_values(&[destination]);
            }
            for state in ["waiting", "in_flight", "backing_off"] {
                self.lanes.with_label_values(&[destination, state]);
            }
            self.oldest_age.with_label_values(&[destination]);
            self.replayed.with_label_values(&[destination]);
            self.attempt_duration.with_label_values(&[destination]);
        }
    }

    /// Counts the end of a conversation.
    pub fn count_end(&self, reason: &str) {
        self.ended.with_label_values(&[end_label(reason)]).inc();
    }

    /// All metrics in the text format of Prometheus.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}

fn opts((name, help): (&str, &str)) -> Opts {
    Opts::new(name, help)
}

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn counters(
    registry: &Registry,
    name: (&str, &str),
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    registered(registry, IntCounterVec::new(opts(name), labels)?)
}

fn gauges(
    registry: &Registry,
    name: (&str, &str),
    labels: &[&str],
) -> Result<IntGaugeVec, prometheus::Error> {
    registered(registry, IntGaugeVec::new(opts(name), labels)?)
}

fn gauge(registry: &Registry, name: (&str, &str)) -> Result<IntGauge, prometheus::Error> {
    registered(registry, IntGauge::with_opts(opts(name))?)
}

fn histograms(
    registry: &Registry,
    name: (&str, &str),
    labels: &[&str],
) -> Result<HistogramVec, prometheus::Error> {
    let options = HistogramOpts::new(name.0, name.1).buckets(SECONDS.to_vec());
    registered(registry, HistogramVec::new(options, labels)?)
}

fn histogram(
    registry: &Registry,
    name: (&str, &str),
    buckets: &[f64],
) -> Result<Histogram, prometheus::Error> {
    let options = HistogramOpts::new(name.0, name.1).buckets(buckets.to_vec());
    registered(registry, Histogram::with_opts(options)?)
}
