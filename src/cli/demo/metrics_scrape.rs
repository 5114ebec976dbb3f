//! Causeway's metrics in the Prometheus text format. The demo sees only the metrics that an operator sees.

/// The direction of a message. The bot side is every destination except ServiceNow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DemoSide {
    ServiceNow,
    BotSide,
}

impl DemoSide {
    fn fits(self, labels: &str) -> bool {
        let servicenow = labels.contains("destination=\"servicenow\"");
        match self {
            Self::ServiceNow => servicenow,
            Self::BotSide => labels.contains("destination=\"") && !servicenow,
        }
    }
}

/// One reading of `/metrics`.
#[derive(Debug)]
pub(super) struct MetricsScrape(pub(super) String);

impl MetricsScrape {
    /// The sum over all series with this name and direction that also contain `label`, for example `outcome="retry"`.
    fn sum(&self, name: &str, toward: DemoSide, label: &str) -> u64 {
        let series = self.0.lines().filter_map(|line| {
            let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.split_once("} ")?;
            (toward.fits(labels) && labels.contains(label)).then(|| value.parse::<u64>().unwrap_or(0))
        });
        series.sum()
    }

    pub(super) fn breaker(&self, toward: DemoSide) -> BreakerReading {
        match self.sum("causeway_breaker_state", toward, "") {
            0 => BreakerReading::Passing,
            1 => BreakerReading::Tripped,
            _ => BreakerReading::Probing,
        }
    }

    pub(super) fn waiting(&self, toward: DemoSide) -> u64 {
        self.sum("causeway_queue_messages", toward, "")
    }

    /// Attempts that had to be repeated: failures, and probes of a destination that was not ready.
    pub(super) fn retried(&self, toward: DemoSide) -> u64 {
        self.sum("causeway_retries_total", toward, "")
            + self.sum("causeway_delivery_attempts_total", toward, "outcome=\"paused\"")
    }

    pub(super) fn dead_lettered(&self, toward: DemoSide) -> u64 {
        self.sum("causeway_dead_letters_total", toward, "")
    }

    pub(super) fn replayed(&self, toward: DemoSide) -> u64 {
        self.sum("causeway_replayed_total", toward, "")
    }
}

/// `causeway_breaker_state`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BreakerReading {
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
        let scrape = MetricsScrape(text.to_owned());
        assert_eq!(scrape.retried(DemoSide::BotSide), 5);
        assert_eq!(scrape.retried(DemoSide::ServiceNow), 8);
        assert_eq!(scrape.breaker(DemoSide::ServiceNow), BreakerReading::Probing);
        assert_eq!(scrape.breaker(DemoSide::BotSide), BreakerReading::Passing);
        assert_eq!(scrape.dead_lettered(DemoSide::BotSide), 0);
    }
}
