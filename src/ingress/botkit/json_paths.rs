//! Reads single values from a large JSON text without parsing the text into a tree.
//!
//! XO's events hold a context of up to a megabyte, from which a few values are needed. A tree of small values takes a
//! hundred times the memory of its text.
//! Guarantees: a pass keeps only slices of the text. Values without a path are skipped. The time of a pass is linear
//! in the length of the text. If a key occurs twice, the last value counts, as in JavaScript. A number keeps its
//! spelling.
//! Not responsible for: which values are needed (`event.rs`, `bot_mode.rs`).

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// One path in progress: its index among the requested paths, and its remaining steps.
type PathWalk<'p> = (usize, &'p str);

/// Returns the JSON values at these paths. A path is a JSON pointer without escapes (`/context/session`). A step into
/// a list is a number. Fails if the text is not JSON.
pub(super) fn pick<'a>(json: &'a str, paths: &[&str]) -> serde_json::Result<Vec<Option<&'a RawValue>>> {
    let mut found = vec![None; paths.len()];
    let walks: Vec<PathWalk<'_>> = paths.iter().copied().enumerate().collect();
    let mut reader = serde_json::Deserializer::from_str(json);
    PathPicker { walks, found: &mut found }.deserialize(&mut reader)?;
    reader.end()?;
    Ok(found)
}

/// Returns the JSON of the first or the last entries of a list. Empty if the text is not a list.
pub(super) fn entries(list: &RawValue, keep: EntryLimit) -> VecDeque<&RawValue> {
    let mut reader = serde_json::Deserializer::from_str(list.get());
    reader.deserialize_any(EntryList(keep)).unwrap_or_default()
}

/// Which entries of a list are kept.
#[derive(Debug, Clone, Copy)]
pub(super) enum EntryLimit {
    First(usize),
    Last(usize),
}

/// The text of a JSON string. A lone surrogate, which JavaScript may write, is replaced.
pub(super) fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    let mut reader = serde_json::Deserializer::from_str(value.get());
    if !value.get().starts_with('"') {
        return None;
    }
    reader.deserialize_bytes(LossyText).ok()
}

/// An id that XO wrote as a text or as a number.
pub(super) fn written(value: &RawValue) -> Option<Cow<'_, str>> {
    let is_number = |first: &u8| first.is_ascii_digit() || *first == b'-';
    if value.get().as_bytes().first().is_some_and(is_number) {
        return Some(Cow::Borrowed(value.get()));
    }
    text(value).filter(|text| !text.is_empty())
}

/// Whether the value is `true`, as a flag or as a text.
pub(super) fn is_true(value: &RawValue) -> bool {
    value.get() == "true" || text(value).is_some_and(|text| text.trim().eq_ignore_ascii_case("true"))
}

/// Splits off the first step of a path, without its slash.
fn step(path: &str) -> Option<(&str, &str)> {
    let path = path.strip_prefix('/')?;
    Some(path.find('/').map_or((path, ""), |end| path.split_at(end)))
}

fn into<'p>(walks: &[PathWalk<'p>], key: &str) -> Vec<PathWalk<'p>> {
    let walks = walks.iter().filter_map(|(number, path)| Some((*number, step(path)?)));
    walks.filter(|(_, (first, _))| *first == key).map(|(number, (_, rest))| (number, rest)).collect()
}

struct PathPicker<'p, 'f, 'a> {
    walks: Vec<PathWalk<'p>>,
    found: &'f mut Vec<Option<&'a RawValue>>,
}

impl<'a> DeserializeSeed<'a> for PathPicker<'_, '_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        let (here, further): (Vec<PathWalk<'_>>, Vec<PathWalk<'_>>) =
            self.walks.into_iter().partition(|(_, path)| path.is_empty());
        if here.is_empty() {
            return deserializer.deserialize_any(PathPicker { walks: further, found: self.found });
        }
        let value: &'a RawValue = serde::Deserialize::deserialize(deserializer)?;
        for (number, _) in here {
            self.found[number] = Some(value);
        }
        if further.is_empty() {
            return Ok(());
        }
        let mut reader = serde_json::Deserializer::from_str(value.get());
        reader.deserialize_any(PathPicker { walks: further, found: self.found }).map_err(D::Error::custom)
    }
}

impl<'a> Visitor<'a> for PathPicker<'_, '_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(walks) = map.next_key_seed(PathKey(&self.walks))? {
            if walks.is_empty() {
                map.next_value::<IgnoredAny>()?;
            } else {
                map.next_value_seed(PathPicker { walks, found: &mut *self.found })?;
            }
        }
        Ok(())
    }

    fn visit_seq<S: SeqAccess<'a>>(self, mut list: S) -> Result<(), S::Error> {
        for place in 0_usize.. {
            let walks = into(&self.walks, &place.to_string());
            let more = if walks.is_empty() {
                list.next_element::<IgnoredAny>()?.is_some()
            } else {
                list.next_element_seed(PathPicker { walks, found: &mut *self.found })?.is_some()
            };
            if !more {
                break;
            }
        }
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// A key of an object. Reading it gives the paths that continue below it.
struct PathKey<'w, 'p>(&'w [PathWalk<'p>]);

impl<'a, 'p> DeserializeSeed<'a> for PathKey<'_, 'p> {
    type Value = Vec<PathWalk<'p>>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl<'p> Visitor<'_> for PathKey<'_, 'p> {
    type Value = Vec<PathWalk<'p>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(into(self.0, key))
    }

    fn visit_bytes<E>(self, key: &[u8]) -> Result<Self::Value, E> {
        Ok(std::str::from_utf8(key).map(|key| into(self.0, key)).unwrap_or_default())
    }
}

struct EntryList(EntryLimit);

impl<'a> Visitor<'a> for EntryList {
    type Value = VecDeque<&'a RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<S: SeqAccess<'a>>(self, mut list: S) -> Result<Self::Value, S::Error> {
        let (first, last) = match self.0 {
            EntryLimit::First(most) => (most, usize::MAX),
            EntryLimit::Last(most) => (usize::MAX, most),
        };
        let mut kept = VecDeque::new();
        while kept.len() < first {
            let Some(entry) = list.next_element::<&RawValue>()? else { break };
            if kept.len() == last {
                kept.pop_front();
            }
            kept.push_back(entry);
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(kept)
    }
}

/// A string that may hold a lone surrogate.
struct LossyText;

impl<'a> Visitor<'a> for LossyText {
    type Value = Cow<'a, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_bytes<E>(self, bytes: &'a [u8]) -> Result<Self::Value, E> {
        Ok(String::from_utf8_lossy(bytes))
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        Ok(Cow::Owned(String::from_utf8_lossy(bytes).into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picked<const N: usize>(json: &str, paths: [&str; N]) -> [Option<String>; N] {
        let found = pick(json, &paths).unwrap();
        std::array::from_fn(|n| found[n].map(|value| value.get().to_owned()))
    }

    fn some<const N: usize>(expected: [&str; N]) -> [Option<String>; N] {
        expected.map(|text| (!text.is_empty()).then(|| text.to_owned()))
    }

    #[test]
    fn values_are_found_at_their_paths_and_as_written() {
        let json = r#" {"skip": [{"a": 1}, "x"], "a": {"b": 1.50, "c": [10, {"d": "é\u00e9"}], "": null}, "e": 12345678901234567890123} "#;
        let paths = ["/a/b", "/a/c/1/d", "/a/c/7", "/e", "/a", "/a/b/c", "/none", "/skip/0/a"];
        let whole = r#"{"b": 1.50, "c": [10, {"d": "é\u00e9"}], "": null}"#;
        assert_eq!(
            picked(json, paths),
            some(["1.50", r#""é\u00e9""#, "", "12345678901234567890123", whole, "", "", "1"])
        );
    }

    #[test]
    fn the_last_of_equal_keys_counts_and_escaped_keys_are_keys() {
        assert_eq!(picked(r#"{"a": 1, "a": 2}"#, ["/a"]), some(["2"]));
        assert_eq!(picked(r#"{"\u0061": {"b\n": 3}}"#, ["/a/b\n"]), some(["3"]));
        assert_eq!(picked(r#"{"\ud800": 1, "a": 2}"#, ["/a"]), some(["2"]));
    }

    #[test]
    fn invalid_json_is_an_error() {
        for broken in
            ["", "{", r#"{"a": }"#, r#"{"a": 1} x"#, r#"{"b": [1,]}"#, "{'a': 1}", r#"{"a": {"b"}}"#]
        {
            assert!(pick(broken, &["/a"]).is_err(), "{broken}");
        }
        for other in ["[]", "1", "\"a\"", "null", "true"] {
            assert_eq!(picked(other, ["/a"]), [None], "{other}");
        }
    }

    #[test]
    fn deep_values_are_skipped_without_being_followed() {
        let deep = format!(r#"{{"b": {}{}, "a": 1}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(picked(&deep, ["/a"]), some(["1"]));
    }

    #[test]
    fn texts_are_read_also_with_half_a_pair() {
        let raw = |json: &'static str| serde_json::from_str::<&RawValue>(json).unwrap();
        assert_eq!(text(raw(r#""plain""#)).as_deref(), Some("plain"));
        assert_eq!(text(raw(r#""a\n\ud83d\ude00""#)).as_deref(), Some("a\n😀"));
        let half = text(raw(r#""a\ud83d b""#)).unwrap();
        assert!(half.starts_with("a\u{fffd}") && half.ends_with(" b"), "{half}");
        assert_eq!((text(raw("1")), text(raw("null"))), (None, None));
        assert_eq!(written(raw("1501244156289")).as_deref(), Some("1501244156289"));
        assert_eq!((written(raw(r#""x""#)).as_deref(), written(raw(r#""""#))), (Some("x"), None));
        for (value, expected) in [("true", true), (r#""True ""#, true), ("false", false), ("1", false)] {
            assert_eq!(is_true(raw(value)), expected, "{value}");
        }
    }

    #[test]
    fn entries_of_a_list_are_kept_from_either_end() {
        let kept = |json: &'static str, keep| {
            let list = serde_json::from_str::<&RawValue>(json).unwrap();
            entries(list, keep).iter().map(|entry| entry.get().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(kept("[1, 2, 3]", EntryLimit::First(2)), ["1", "2"]);
        assert_eq!(kept("[1, 2, 3]", EntryLimit::Last(2)), ["2", "3"]);
        assert_eq!(kept("{}", EntryLimit::Last(2)), Vec::<String>::new());
    }
}
