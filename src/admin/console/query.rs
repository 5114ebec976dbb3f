//! The query of a caller: the filters of the command line and some options, from a URL, a form or JSON.
//!
//! Guarantees: an unknown name is refused, because an ignored filter would select more dead letters than intended.

use std::time::Duration;

use serde_json::Value;

use crate::dead_letters::DeadLetterFilter;
use crate::dead_letters::filter::{FILTERS, rate, wait};
use crate::dead_letters::outcome::WAIT;
use crate::http_server::problem::{ApiError, FieldError};

/// The number of dead letters that are shown, by default and at most.
const LIMIT: usize = 100;
const LIMIT_MAX: usize = 10_000;

/// The filters and options of one request.
#[derive(Debug, Default)]
pub(super) struct DeadLetterQuery {
    pub(super) filter: DeadLetterFilter,
    /// The maximum number of dead letters to show.
    pub(super) limit: usize,
    /// The number of dead letters before the page.
    pub(super) before: usize,
    /// Whether the list begins with the newest dead letter.
    pub(super) newest_first: bool,
    /// Whether the ids are the whole selection.
    pub(super) selected: bool,
    /// Whether to show the texts.
    pub(super) reveal: bool,
    /// Whether to return only the plan.
    pub(super) dry_run: bool,
    /// The rate of a replay in messages a second.
    pub(super) rate: Option<f64>,
    /// The time limit for the outcomes of a replay's messages.
    pub(super) wait: Duration,
    /// The number of dead letters that the caller confirmed.
    pub(super) confirm: Option<u64>,
}

impl DeadLetterQuery {
    /// Reads the pairs of a URL or a form. `also` lists the names that are allowed in addition to the filters. Empty
    /// values are ignored.
    pub(super) fn of_form(text: &str, also: &[&str]) -> Result<Self, ApiError> {
        let pairs = url::form_urlencoded::parse(text.as_bytes());
        Self::read(pairs.filter(|(_, value)| !value.is_empty()), also)
    }

    /// Reads one JSON object; `id` and `reason` may be lists.
    pub(super) fn of_json(body: &[u8], also: &[&str]) -> Result<Self, ApiError> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| ApiError::NotJson { line: error.line(), column: error.column() })?;
        let Value::Object(fields) = value else {
            return Err(ApiError::Invalid(vec![fault("body", "must be one JSON object")]));
        };
        let mut pairs = Vec::new();
        for (name, value) in fields {
            match value {
                Value::Null => {}
                Value::Array(many) if name == "id" || name == "reason" => {
                    pairs.extend(many.iter().map(|one| (name.clone(), plain(one))));
                }
                one => pairs.push((name, plain(&one))),
            }
        }
        Self::read(pairs.into_iter(), also)
    }

    fn read(
        pairs: impl Iterator<Item = (impl AsRef<str>, impl AsRef<str>)>,
        also: &[&str],
    ) -> Result<Self, ApiError> {
        let mut asked = Self { limit: LIMIT, wait: WAIT, newest_first: true, ..Self::default() };
        let mut errors = Vec::new();
        for (name, value) in pairs {
            let (name, value) = (name.as_ref(), value.as_ref());
            let taken = if also.contains(&name) {
                asked.take(name, value)
            } else {
                asked.filter.narrow(name, value).and_then(|known| match known {
                    true => Ok(()),
                    false => Err(format!("is not known here: use {}", [FILTERS, also].concat().join(", "))),
                })
            };
            errors.extend(taken.err().map(|reason| fault(name, &reason)));
        }
        errors.extend(asked.filter.check().err().map(|reason| fault("since", &reason)));
        if errors.is_empty() { Ok(asked) } else { Err(ApiError::Invalid(errors)) }
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        let flag = || match value {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err("must be true or false".to_owned()),
        };
        let number = |what: &str| value.parse::<u64>().map_err(|_| format!("must be {what}"));
        match name {
            "limit" => {
                let limit = usize::try_from(number("a number")?).unwrap_or(LIMIT_MAX);
                self.limit = limit.min(LIMIT_MAX);
            }
            "before" => self.before = usize::try_from(number("a number")?).unwrap_or(usize::MAX),
            "sort" => {
                self.newest_first = match value {
                    "newest" => true,
                    "oldest" => false,
                    _ => return Err("must be newest or oldest".to_owned()),
                }
            }
            "selected" => self.selected = flag()?,
            "reveal" => self.reveal = flag()?,
            "dry_run" => self.dry_run = flag()?,
            "confirm" => self.confirm = Some(number("the number of dead letters that you saw")?),
            "rate" => self.rate = Some(rate(value)?),
            "wait" => self.wait = wait(value)?,
            // The form token, which the page checks.
            _ => {}
        }
        Ok(())
    }
}

pub(super) fn fault(field: &str, reason: &str) -> FieldError {
    FieldError { field: field.to_owned(), reason: reason.to_owned() }
}

/// The value as it would be written in a URL.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Destination, MessageId};

    #[test]
    fn a_form_and_json_say_the_same() {
        let form = DeadLetterQuery::of_form("destination=xo&conversation=&rate=20%2Fs", &["rate"]).unwrap();
        let json =
            DeadLetterQuery::of_json(br#"{"destination":"xo","reason":null,"rate":20}"#, &["rate"]).unwrap();
        assert_eq!(form.filter, json.filter);
        assert_eq!(form.filter.destination, Some(Destination::Xo));
        assert_eq!((form.rate, json.rate), (Some(20.0), Some(20.0)));
        let ids = [MessageId::fresh(), MessageId::fresh()];
        let body = serde_json::json!({ "id": ids.map(|id| id.to_string()) }).to_string();
        assert_eq!(DeadLetterQuery::of_json(body.as_bytes(), &[]).unwrap().filter.ids, ids.into());
        let form = DeadLetterQuery::of_form("reason=expired&reason=rejected", &[]).unwrap();
        let json = DeadLetterQuery::of_json(br#"{"reason":["rejected","expired"]}"#, &[]).unwrap();
        assert_eq!((form.filter.reasons.len(), form.filter), (2, json.filter));
    }

    #[test]
    fn unknown_parameters_are_refused() {
        for body in [
            r#"{"destinaton":"xo"}"#,
            r#"{"conversation":""}"#,
            r#"{"confirm":3}"#,
            r#"{"id":["7"]}"#,
            r#"{"reason":{}}"#,
            r#"{"reason":["expired","boredom"]}"#,
            r#"{"since":"2026-11-22","until":"2026-11-22"}"#,
            "[]",
        ] {
            let refused = DeadLetterQuery::of_json(body.as_bytes(), &["rate"]);
            assert!(matches!(refused, Err(ApiError::Invalid(_))), "{body}");
        }
        assert!(matches!(DeadLetterQuery::of_json(b"{", &[]), Err(ApiError::NotJson { .. })));
        assert!(DeadLetterQuery::of_form("confirm=-1", &["confirm"]).is_err());
    }
}
