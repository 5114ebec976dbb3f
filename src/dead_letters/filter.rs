//! Parses the filters of dead letters, and other parameters of the operator.
//!
//! Guarantees: the flags of the command line, a URL and a form are parsed by the same rules.

use std::time::Duration;

use jiff::Timestamp;

use super::{Answer, DeadLetterFilter};
use crate::message::{DeadReason, Destination, MessageId};
use crate::telemetry::logged_conversation;

/// The number of ids that a line of the audit log lists.
const AUDITED_IDS: usize = 20;

/// The names of the filter parameters.
pub(crate) const FILTERS: &[&str] =
    &["destination", "conversation", "reason", "answer", "since", "until", "id"];

impl DeadLetterFilter {
    /// Adds a condition to the filter; `Ok(false)` if `name` is not one of [`FILTERS`].
    pub(crate) fn narrow(&mut self, name: &str, value: &str) -> Result<bool, String> {
        match name {
            "destination" => once(&mut self.destination, destination(value)?)?,
            "conversation" if value.is_empty() => return Err("must not be empty: leave it out".to_owned()),
            "conversation" => once(&mut self.conversation, value.to_owned())?,
            "reason" => {
                self.reasons.insert(reason(value)?);
            }
            "answer" => once(&mut self.answer, answer(value)?)?,
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
            ("answer", self.answer.map(|it| it.to_string())),
            ("since", self.since.map(|it| it.to_string())),
            ("until", self.until.map(|it| it.to_string())),
        ];
        let one = one.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let reasons = self.reasons.iter().map(|reason| ("reason", reason.to_string()));
        one.chain(reasons).chain(self.ids.iter().map(|id| ("id", id.to_string()))).collect()
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

pub(crate) fn answer(text: &str) -> Result<Answer, String> {
    Answer::parse(text).ok_or_else(|| "must be an HTTP status, \"no answer\" or \"not sent\"".to_owned())
}

pub(crate) fn id(text: &str) -> Result<MessageId, String> {
    MessageId::parse(text).map_err(|problem| problem.to_string())
}

/// The id of a message, or the end of an id as `causeway dead list` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum IdOrEnd {
    Id(MessageId),
    /// In lower case.
    End(String),
}

/// Parses an id, or at least the last eight characters of an id.
pub(crate) fn id_or_end(text: &str) -> Result<IdOrEnd, String> {
    const SHORTEST: usize = 8;
    if let Ok(id) = MessageId::parse(text) {
        return Ok(IdOrEnd::Id(id));
    }
    let is_end = text.len() >= SHORTEST && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    is_end.then(|| IdOrEnd::End(text.to_ascii_lowercase())).ok_or_else(|| {
        "must be the id of a message, or its last 8 characters as `causeway dead list` shows them".to_owned()
    })
}

/// Parses a time as people write it: a date, a date with a time, RFC 3339, or a duration before now. A time without a zone
/// is UTC.
pub(crate) fn moment(text: &str) -> Result<Timestamp, String> {
    let text = text.trim();
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    if let Ok(time) = text.parse::<jiff::civil::DateTime>() {
        return jiff::tz::TimeZone::UTC.to_timestamp(time).map_err(|_| "is too far away".to_owned());
    }
    let ago = text.strip_suffix("ago").map_or(text, str::trim_end);
    let one = ["an ", "a ", "one "].iter().find_map(|article| ago.strip_prefix(article));
    let ago = one.map_or_else(|| ago.to_owned(), |unit| format!("1 {unit}"));
    let ago = humantime::parse_duration(&ago).map_err(|_| MOMENTS.to_owned())?;
    let ago = jiff::SignedDuration::try_from(ago).map_err(|_| "is too long ago".to_owned())?;
    crate::clock::now().checked_sub(ago).map_err(|_| "is too long ago".to_owned())
}

/// The examples of an error.
const MOMENTS: &str = "must be a time (2026-11-22, \"2026-11-22 10:03\", 2026-11-22T10:03:00+01:00; without a zone: UTC) \
                       or how long ago (90m, 2h, \"2 hours ago\")";

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
            ("reason", "rejected"),
            ("answer", "400"),
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
        for (name, value) in [
            ("destination", "x"),
            ("conversation", ""),
            ("reason", ""),
            ("since", "noon"),
            ("answer", "4"),
            ("id", "7"),
        ] {
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
        for (text, time) in [
            ("2026-11-22T10:00:00Z", "2026-11-22T10:00:00Z"),
            ("2026-11-22T10:03:00+01:00", "2026-11-22T09:03:00Z"),
            ("2026-11-22 10:03:04.5Z", "2026-11-22T10:03:04.5Z"),
            ("2026-11-22", "2026-11-22T00:00:00Z"),
            (" 2026-11-22 10:03 ", "2026-11-22T10:03:00Z"),
            ("2026-11-22T10:03:09", "2026-11-22T10:03:09Z"),
        ] {
            assert_eq!(moment(text).unwrap().to_string(), time, "{text}");
        }
        for (text, seconds) in [
            ("2h", 7200),
            ("90m", 5400),
            ("2 hours ago", 7200),
            ("an hour ago", 3600),
            ("1 day 2 hours ago", 93_600),
            ("3 weeks ago", 1_814_400),
        ] {
            let ago = crate::clock::since(moment(text).unwrap()).as_secs();
            assert!((seconds..seconds + 60).contains(&ago), "{text}: {ago}");
        }
        for wrong in ["yesterday", "", "ago", "2 parsecs", "99999999years", "2026-13-01", "2026-11-22 25:00"]
        {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
        assert!(moment("noon").unwrap_err().contains("2026-11-22 10:03"));
    }

    #[test]
    fn an_id_may_be_shortened_to_its_end() {
        let id = MessageId::fresh();
        let text = id.to_string();
        assert_eq!(id_or_end(&text), Ok(IdOrEnd::Id(id)));
        assert_eq!(id_or_end(&text[28..].to_uppercase()), Ok(IdOrEnd::End(text[28..].to_owned())));
        for wrong in ["7", "", "1234567", "nothexadecimal", "%1234567"] {
            assert!(id_or_end(wrong).is_err(), "{wrong}");
        }
    }
}
