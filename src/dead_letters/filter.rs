//! Parses the filters of dead letters, and other parameters of the operator.
//!
//! Guarantees: the flags of the command line, a URL and a form are parsed by the same rules.

use std::time::Duration;

use jiff::Timestamp;

use super::DeadLetterFilter;
use crate::message::{DeadReason, Destination, MessageId};
use crate::telemetry::logged_conversation;

/// The number of ids that a line of the audit log lists.
const AUDITED_IDS: usize = 20;

/// The names of the filter parameters.
pub(crate) const FILTERS: &[&str] = &["destination", "conversation", "reason", "since", "until", "id"];

impl DeadLetterFilter {
    /// Adds a condition to the filter; `Ok(false)` if `name` is not one of [`FILTERS`].
    pub(crate) fn narrow(&mut self, name: &str, value: &str) -> Result<bool, String> {
        match name {
            "destination" => once(&mut self.destination, destination(value)?)?,
            "conversation" if value.is_empty() => return Err("must not be empty: leave it out".to_owned()),
            "conversation" => once(&mut self.conversation, value.to_owned())?,
            "reason" => once(&mut self.reason, reason(value)?)?,
            "since" => once(&mut self.since, moment(value)?)?,
            "until" => once(&mut self.until, moment(value)?)?,
            "id" => {
                self.ids.insert(id(value)?);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The parameters from which [`Self::narrow`] builds the same filter again. A relative time ("two hours ago") has
    /// become an absolute time.
    pub(crate) fn written(&self) -> Vec<(&'static str, String)> {
        let one = [
            ("destination", self.destination.map(|it| it.to_string())),
            ("conversation", self.conversation.clone()),
            ("reason", self.reason.map(|it| it.to_string())),
            ("since", self.since.map(|it| it.to_string())),
            ("until", self.until.map(|it| it.to_string())),
        ];
        let one = one.into_iter().filter_map(|(name, value)| Some((name, value?)));
        one.chain(self.ids.iter().map(|id| ("id", id.to_string()))).collect()
    }

    /// The filter on one line of the audit log. Many ids are only counted.
    pub(crate) fn for_audit(&self) -> String {
        let shown = |(name, value): &(&str, String)| match *name {
            "conversation" => match logged_conversation(value.escape_debug()) {
                Some(id) => format!("{name}={id}"),
                None => format!("{name}=(hidden)"),
            },
            _ => format!("{name}={value}"),
        };
        let written = self.written();
        let named = written.len() - self.ids.len() + self.ids.len().min(AUDITED_IDS);
        let mut parts: Vec<String> = written.iter().take(named).map(shown).collect();
        if named < written.len() {
            parts.push(format!("and {} more ids", written.len() - named));
        }
        if parts.is_empty() { "all".to_owned() } else { parts.join(" ") }
    }
}

/// Sets a value once. A second value is an error; otherwise one of two values would be ignored without notice.
fn once<T>(place: &mut Option<T>, value: T) -> Result<(), String> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err("is given more than once".to_owned()),
    }
}

pub(crate) fn destination(text: &str) -> Result<Destination, String> {
    Destination::parse(text)
        .ok_or_else(|| "must be servicenow, xo, events, callbacks or bot:<name>".to_owned())
}

pub(crate) fn reason(text: &str) -> Result<DeadReason, String> {
    let names = || DeadReason::ALL.iter().map(|reason| reason.as_str()).collect::<Vec<_>>().join(", ");
    DeadReason::parse(text).ok_or_else(|| format!("must be one of: {}", names()))
}

pub(crate) fn id(text: &str) -> Result<MessageId, String> {
    MessageId::parse(text).map_err(|problem| problem.to_string())
}

/// Parses an absolute time or a duration before now.
pub(crate) fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let ago = humantime::parse_duration(text)
        .map_err(|_| "must be a time as 2026-11-22T10:00:00Z, or how long ago as 2h or 15m".to_owned())?;
    let ago = jiff::SignedDuration::try_from(ago).map_err(|_| "is too long ago".to_owned())?;
    crate::clock::now().checked_sub(ago).map_err(|_| "is too long ago".to_owned())
}

/// Parses the rate of a replay in messages per second: `20`, `20/s`, `0.5/s`.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix("/s").unwrap_or(text).trim().parse::<f64>().ok();
    let number = number.filter(|rate| (0.001..=1_000_000.0).contains(rate));
    number.ok_or_else(|| "must be a number of messages in a second, as 20 or 20/s".to_owned())
}

/// Parses a waiting time: `60s`, `5m`, or `0` for no wait.
pub(crate) fn wait(text: &str) -> Result<Duration, String> {
    const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);
    let wait = if text == "0" { Ok(Duration::ZERO) } else { humantime::parse_duration(text) };
    wait.ok()
        .filter(|wait| *wait <= WAIT_MAX)
        .ok_or_else(|| "must be a time as 60s or 5m, at most 24h, or 0".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_what_was_written() {
        let (one, other) = (MessageId::fresh().to_string(), MessageId::fresh().to_string());
        let mut filter = DeadLetterFilter::default();
        let asked = [
            ("destination", "xo"),
            ("conversation", "c-1"),
            ("reason", "expired"),
            ("since", "2026-11-22T10:00:00Z"),
            ("until", "1h"),
            ("id", &one),
            ("id", &other),
        ];
        for (name, value) in asked {
            assert_eq!(filter.narrow(name, value), Ok(true), "{name}");
        }
        let mut again = DeadLetterFilter::default();
        for (name, value) in filter.written() {
            assert_eq!(again.narrow(name, &value), Ok(true), "{name}");
        }
        assert_eq!(again, filter);
        assert_eq!(filter.narrow("colour", "red"), Ok(false));
    }

    #[test]
    fn the_audit_lists_a_few_ids_and_counts_the_rest() {
        assert_eq!(DeadLetterFilter::default().for_audit(), "all");
        let ids = (0..25).map(|_| MessageId::fresh()).collect();
        let conversation = Some("c\n1".to_owned());
        let audited = DeadLetterFilter {
            destination: Some(Destination::Xo),
            conversation,
            ids,
            ..DeadLetterFilter::default()
        }
        .for_audit();
        assert!(audited.starts_with("destination=xo conversation=c\\n1 id="), "{audited}");
        assert_eq!((audited.matches(" id=").count(), audited.ends_with(" and 5 more ids")), (20, true));
    }

    #[test]
    fn nothing_is_taken_for_everything() {
        for (name, value) in
            [("destination", "x"), ("conversation", ""), ("reason", ""), ("since", "noon"), ("id", "7")]
        {
            assert!(DeadLetterFilter::default().narrow(name, value).is_err(), "{name}");
        }
        let mut filter =
            DeadLetterFilter { destination: Some(Destination::Xo), ..DeadLetterFilter::default() };
        assert!(filter.narrow("destination", "servicenow").is_err());
    }

    #[test]
    fn a_rate_is_a_number_in_a_second() {
        assert_eq!((rate("20"), rate("0.5/s")), (Ok(20.0), Ok(0.5)));
        for wrong in ["", "0", "-1", "nan", "inf", "20/m"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_wait_is_a_time_of_at_most_a_day() {
        let seconds = |text| wait(text).map(|wait| wait.as_secs()).ok();
        assert_eq!([seconds("0"), seconds("90s"), seconds("5m")], [Some(0), Some(90), Some(300)]);
        assert_eq!([seconds(""), seconds("60"), seconds("25h"), seconds("-1s")], [None; 4]);
    }

    #[test]
    fn a_moment_is_a_time_or_how_long_ago() {
        assert_eq!(moment("2026-11-22T10:00:00Z").unwrap().to_string(), "2026-11-22T10:00:00Z");
        let ago = crate::clock::since(moment("2h").unwrap()).as_secs();
        assert!((7200..7260).contains(&ago), "{ago}");
        for wrong in ["yesterday", "", "2 parsecs", "99999999years"] {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
    }
}
