//! Reads the values of XO's payload that the routing needs.
//!
//! Guarantees: only the values at the configured paths are kept, each at most [`VALUE_BYTES_MAX`] long. Other values
//! are skipped without being stored, so a payload of several megabytes needs no memory here.
//! Not responsible for: what a value decides (`message/routing.rs`).

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::message::routing::payload_name;

/// The longest value in bytes. A rule compares with a word, not with a long text.
const VALUE_BYTES_MAX: usize = 256;

/// The values at these paths (names and list positions, joined by dots), as metadata of a start.
pub(super) fn values_at<'a>(
    raw: &[u8],
    paths: impl IntoIterator<Item = &'a str>,
) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let wanted: Vec<WantedPath<'_>> = paths.into_iter().map(|path| WantedPath { path, rest: path }).collect();
    if wanted.is_empty() {
        return found;
    }
    let mut json = serde_json::Deserializer::from_slice(raw);
    // The payload was parsed as JSON before. If the parser fails here, the values found so far count.
    let _ = json.deserialize_any(PathVisitor { wanted, found: &mut found });
    found
}

/// A path and its remaining part at the current level.
#[derive(Clone, Copy)]
struct WantedPath<'a> {
    path: &'a str,
    rest: &'a str,
}

/// Reads one value.
struct PathVisitor<'a, 'f> {
    wanted: Vec<WantedPath<'a>>,
    found: &'f mut BTreeMap<String, String>,
}

impl<'a> PathVisitor<'a, '_> {
    /// The paths that continue below this name. A name may contain dots.
    fn below(&self, name: &str) -> Vec<WantedPath<'a>> {
        let below = self.wanted.iter().filter_map(|wanted| {
            let rest = wanted.rest.strip_prefix(name)?;
            let rest = if rest.is_empty() { rest } else { rest.strip_prefix('.')? };
            Some(WantedPath { path: wanted.path, rest })
        });
        below.collect()
    }

    fn is(self, value: &str) {
        let value = value.trim();
        if value.is_empty() || value.len() > VALUE_BYTES_MAX {
            return;
        }
        for wanted in self.wanted.iter().filter(|wanted| wanted.rest.is_empty()) {
            self.found.insert(payload_name(wanted.path), value.to_owned());
        }
    }
}

impl<'de> DeserializeSeed<'de> for PathVisitor<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for PathVisitor<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.is(if value { "true" } else { "false" });
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.is(&value.to_string());
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.is(&value.to_string());
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.is(&value.to_string());
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        self.is(value);
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<std::borrow::Cow<'_, str>>()? {
            let wanted = self.below(&name);
            if wanted.is_empty() {
                map.next_value::<IgnoredAny>()?;
            } else {
                map.next_value_seed(PathVisitor { wanted, found: &mut *self.found })?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        for position in 0_usize.. {
            let wanted = self.below(&position.to_string());
            let more = if wanted.is_empty() {
                items.next_element::<IgnoredAny>()?.is_some()
            } else {
                items.next_element_seed(PathVisitor { wanted, found: &mut *self.found })?.is_some()
            };
            if !more {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_asked_for_is_kept() {
        let raw = br#"{"context": {"session": {"BotUserSession": {"region": " EU ", "n": 7, "vip": true, "none": null},
            "UserContext": {"customData": {"a.b": "dotted"}, "big": "xxx"}}, "channels": [{"type": "rtm"}, {"type": "ivr"}]},
            "metaInfo": {"topic": "it"}}"#;
        let found = values_at(
            raw,
            [
                "context.session.BotUserSession.region",
                "context.session.BotUserSession.n",
                "context.session.BotUserSession.vip",
                "context.session.BotUserSession.none",
                "context.session.UserContext.customData.a.b",
                "context.channels.1.type",
                "context.session",
                "metaInfo.topic",
                "metaInfo.missing",
            ],
        );
        let read: Vec<(&str, &str)> =
            found.iter().map(|(name, value)| (name.trim_start_matches("payload:"), value.as_str())).collect();
        assert_eq!(
            read,
            [
                ("context.channels.1.type", "ivr"),
                ("context.session.BotUserSession.n", "7"),
                ("context.session.BotUserSession.region", "EU"),
                ("context.session.BotUserSession.vip", "true"),
                ("context.session.UserContext.customData.a.b", "dotted"),
                ("metaInfo.topic", "it"),
            ]
        );
        let long = format!(r#"{{"a": {{"b": "{}"}}}}"#, "x".repeat(300));
        assert!(values_at(long.as_bytes(), ["a.b"]).is_empty());
    }
}
