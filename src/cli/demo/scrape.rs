//! Causeway's metrics as Prometheus would scrape them: the demo knows no more than an operator does.

use crate::message::Destination;

/// One reading of `/metrics`.
#[derive(Debug)]
pub(super) struct Scrape(pub(super) String);

impl Scrape {
    /// The sum over all series of this name and destination that also carry `label`, as `outcome="retry"`.
    fn sum(&self, name: &str, destination: Destination, label: &str) -> u64 {
        let wanted = format!("destination=\"{destination}\"");
        let series = self.0.lines().filter_map(|line| {
            let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.split_once("} ")?;
            (labels.contains(&wanted) && labels.contains(label)).then(|| value.parse::<u64>().unwrap_or(0))
        });
        series.sum()
    }

    pub(super) fn breaker(&self, destination: Destination) -> Breaker {
        match self.sum("causeway_breaker_state", destination, "") {
            0 => Breaker::Passing,
            1 => Breaker::Tripped,
            _ => Breaker::Probing,
        }
    }

    pub(super) fn waiting(&self, destination: Destination) -> u64 {
        self.sum("causeway_queue_messages", destination, "")
    }

    /// Attempts that had to be made again: failures, and probes of a destination that was not ready.
    pub(super) fn retried(&self, destination: Destination) -> u64 {
        self.sum("causeway_retries_total", destination, "")
            + self.sum("causeway_delivery_attempts_total", destination, "outcome=\"paused\"")
    }

    pub(super) fn dead_lettered(&self, destination: Destination) -> u64 {
        self.sum("causeway_dead_letters_total", destination, "")
    }

    pub(super) fn replayed(&self, destination: Destination) -> u64 {
        self.sum("causeway_replayed_total", destination, "")
    }
}

/// `causeway_breaker_state`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Breaker {
    Passing,
    Tripped,
    Probing,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_added_up_by_name_and_label() {
        let text = "# TYPE causeway_retries_total counter\n\
                    causeway_retries_total{destination=\"xo\",reason=\"timeout\"} 2\n\
                    causeway_retries_total{destination=\"xo\",reason=\"connect\"} 3\n\
                    causeway_retries_total{destination=\"servicenow\",reason=\"connect\"} 7\n\
                    causeway_delivery_attempts_total{destination=\"servicenow\",kind=\"k\",outcome=\"paused\"} 1\n\
                    causeway_delivery_attempts_total{destination=\"servicenow\",kind=\"k\",outcome=\"delivered\"} 9\n\
                    causeway_breaker_state{destination=\"servicenow\"} 2\n";
        let scrape = Scrape(text.to_owned());
        assert_eq!(scrape.retried(Destination::Xo), 5);
        assert_eq!(scrape.retried(Destination::ServiceNow), 8);
        assert_eq!(scrape.breaker(Destination::ServiceNow), Breaker::Probing);
        assert_eq!(scrape.breaker(Destination::Xo), Breaker::Passing);
        assert_eq!(scrape.dead_lettered(Destination::Xo), 0);
    }
}
