//! The names of a deployment's exchanges and queues.
//!
//! Guarantees: each name begins with `queue.prefix`. So one pattern of a policy or of a permission covers the deployment, and
//! several deployments can share a vhost.
//! Not responsible for: arguments and bindings (`topology.rs`).

use std::fmt;
use std::sync::Arc;

use crate::message::Destination;
use crate::queue::PartitionId;

/// A queue name has at most 255 bytes. The longest name behind the prefix has a bot's name of 64 bytes in it.
const PREFIX_BYTES_MAX: usize = 100;

/// An exchange of the deployment. A refusal of the broker names one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Exchange {
    /// Takes messages; the routing key is the partition.
    Messages,
    /// Takes dead letters; the routing key is the destination.
    DeadLetters,
    /// Takes what the other two could not route.
    Unroutable,
    /// Workers announce themselves on it.
    Workers,
    /// Shows the broker's clock (`broker_clock.rs`). Everything but the comparison works without it.
    Clock,
}

impl Exchange {
    const fn name(self) -> &'static str {
        match self {
            Self::Messages => "in",
            Self::DeadLetters => "dlx",
            Self::Unroutable => "in.unrouted",
            Self::Workers => "workers",
            Self::Clock => "clock",
        }
    }
}

/// `queue.prefix`, and the names that begin with it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TopologyNames {
    prefix: Arc<str>,
}

impl fmt::Debug for TopologyNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopologyNames({}*)", self.prefix)
    }
}

impl TopologyNames {
    /// Reads a prefix: at most 100 letters, digits and `-_.:`, not beginning with `amq.`, which the broker keeps for itself.
    /// An empty prefix is allowed.
    pub fn parse(prefix: &str) -> Result<Self, String> {
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.:".contains(letter);
        if prefix.len() > PREFIX_BYTES_MAX {
            return Err(format!("it has more than {PREFIX_BYTES_MAX} letters"));
        }
        if !prefix.chars().all(is_plain) {
            return Err(String::new());
        }
        if prefix.starts_with("amq.") {
            return Err("RabbitMQ keeps names that begin with amq. for itself".to_owned());
        }
        Ok(Self { prefix: prefix.into() })
    }

    fn with(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(super) fn exchange(&self, exchange: Exchange) -> String {
        self.with(exchange.name())
    }

    /// The queue of unroutable messages.
    pub(super) fn unroutable(&self) -> String {
        self.with("unrouted")
    }

    pub(super) fn partition(&self, partition: PartitionId) -> String {
        format!("{}w.{}.{}", self.prefix, partition.destination, partition.index)
    }

    /// The queue of the dead letters of a destination.
    pub(super) fn dead_letters(&self, destination: Destination) -> String {
        format!("{}dlq.{destination}", self.prefix)
    }

    /// The lock of the dead-letter reader of a destination; not part of the topology.
    pub(super) fn reader_lock(&self, destination: Destination) -> String {
        format!("{}reader.{destination}", self.prefix)
    }

    /// A regular expression of RabbitMQ for names that begin with the prefix and go on with one of these patterns, or that
    /// the broker chose for a temporary queue.
    pub(super) fn permission(&self, patterns: &[&str]) -> String {
        let prefix = self.escaped();
        match patterns {
            [] => r"^amq\.gen.*".to_owned(),
            [one] => format!(r"^({prefix}{one}|amq\.gen.*)$"),
            several => format!(r"^({prefix}({})|amq\.gen.*)$", several.join("|")),
        }
    }

    /// All names, in the form of [`Self::permission`].
    pub(super) fn any(&self) -> String {
        self.permission(&[".*"])
    }

    /// A regular expression for queues whose names begin with the prefix and this pattern.
    pub(super) fn pattern(&self, pattern: &str) -> String {
        format!("^{}{pattern}", self.escaped())
    }

    /// A regular expression for the queues that keep messages: partitions, dead letters and unroutable messages.
    pub fn keeping(&self) -> String {
        self.pattern(r"(w\.|dlq\.|unrouted$)")
    }

    /// Whether this queue is a partition.
    pub fn is_partition(&self, queue: &str) -> bool {
        queue.strip_prefix(&*self.prefix).is_some_and(|name| name.starts_with("w."))
    }

    fn escaped(&self) -> String {
        self.prefix.replace('.', r"\.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_begins_with_the_prefix() {
        let names = TopologyNames::parse("causeway.").unwrap();
        let partition = PartitionId { destination: Destination::Xo, index: 3 };
        assert_eq!(names.exchange(Exchange::Messages), "causeway.in");
        assert_eq!(names.partition(partition), "causeway.w.xo.3");
        assert_eq!(names.dead_letters(Destination::Xo), "causeway.dlq.xo");
        assert_eq!(names.reader_lock(Destination::Xo), "causeway.reader.xo");
        assert_eq!(names.permission(&["in", r"w\..+"]), r"^(causeway\.(in|w\..+)|amq\.gen.*)$");
        assert_eq!(names.any(), r"^(causeway\..*|amq\.gen.*)$");
        assert_eq!(names.permission(&[]), r"^amq\.gen.*");
        assert!(names.is_partition("causeway.w.xo.3") && !names.is_partition("w.xo.3"));
        assert!(!names.is_partition("causeway.dlq.xo"));
        let bare = TopologyNames::parse("").unwrap();
        assert_eq!(bare.exchange(Exchange::DeadLetters), "dlx");
    }

    #[test]
    fn a_prefix_has_no_letters_with_a_meaning() {
        let long = "a".repeat(PREFIX_BYTES_MAX + 1);
        for wrong in ["a b", "a*", "a/", "ü.", "amq.a", "(a)", &long] {
            assert!(TopologyNames::parse(wrong).is_err(), "{wrong}");
        }
        for right in ["", "causeway.", "team-7:", "A_b."] {
            assert!(TopologyNames::parse(right).is_ok(), "{right}");
        }
    }
}
