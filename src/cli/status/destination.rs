//! The state of each destination, from the metrics of a process, from the queue and from the settings.
//!
//! Guarantees: an unknown value is `None`. On RabbitMQ, breakers and messages in flight are values of one worker; a worker
//! without a partition of a destination reports nothing about the destination.

use std::collections::BTreeSet;

use super::super::output;
use crate::clock;
use crate::config::Settings;
use crate::message::Destination;
use crate::queue::QueueDepth;
use crate::status::{DestinationStatus, MetricSamples, breaker, whole};

/// Every destination of the settings, of the queue and of the running process.
pub(super) fn local(
    settings: &Settings,
    samples: &MetricSamples,
    depth: Option<&QueueDepth>,
) -> Vec<DestinationStatus> {
    let is_rabbit = settings.queue.url.is_some();
    let mut names: BTreeSet<String> = samples.labels("causeway_queue_messages", "destination");
    if !is_rabbit || depth.is_none() {
        names.extend(settings.destinations().iter().map(|it| it.to_string()));
    }
    // An operator's verb asks a broker for destinations that this deployment never had.
    let is_there = |(destination, waiting): &(&Destination, &u64)| {
        **waiting > 0 || !is_rabbit || depth.is_some_and(|depth| depth.consumed.contains_key(destination))
    };
    names.extend(
        depth.iter().flat_map(|depth| depth.waiting.iter().filter(is_there)).map(|(it, _)| it.to_string()),
    );
    names.into_iter().map(|name| one(&name, settings, samples, depth)).collect()
}

fn one(
    name: &str,
    settings: &Settings,
    samples: &MetricSamples,
    depth: Option<&QueueDepth>,
) -> DestinationStatus {
    let is_rabbit = settings.queue.url.is_some();
    let known = Destination::parse(name);
    let sample = |metric: &str| samples.of(metric, name).map(whole);
    let owned = sample("causeway_partitions_owned");
    // An ingress, or a worker without a partition of this destination, has only default values.
    let serves = !is_rabbit || owned.is_some_and(|count| count > 0);
    let in_depth = |find: fn(&QueueDepth, Destination) -> Option<u64>| find(depth?, known?);
    let waiting = in_depth(|depth, it| depth.waiting.get(&it).copied());
    let held = sample("causeway_queue_messages").filter(|_| serves);
    let oldest = depth.zip(known).and_then(|(depth, it)| depth.oldest.get(&it));
    let oldest = oldest.map(|at| clock::since(*at).as_secs());
    let waits = held.max(waiting).is_some_and(|count| count > 0);
    DestinationStatus {
        breaker: sample("causeway_breaker_state").filter(|state| serves || *state > 0).and_then(breaker),
        waiting: if is_rabbit { waiting.max(held) } else { waiting.or(held).or(Some(0)) },
        in_flight: sample("causeway_in_flight").filter(|count| serves || *count > 0),
        oldest_age_seconds: oldest
            .or_else(|| sample("causeway_oldest_message_age_seconds"))
            .filter(|_| waits),
        partitions: Some(settings.queue.partitions),
        consumed: if is_rabbit { in_depth(|depth, it| depth.consumed.get(&it).copied()) } else { owned },
        dead_letters: in_depth(|depth, it| Some(depth.dead_of.get(&it).copied().unwrap_or(0))),
        destination: output::harmless(name),
    }
}
