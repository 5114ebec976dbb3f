//! Parses JSON of other systems with bounded memory.
//!
//! A tree of JSON (`serde_json::Value`) can take a hundred times the memory of its text: `{"":0},` is 7 bytes as text
//! and about 700 bytes as a tree. A body from another system is therefore read field by field, and never into a tree of
//! unknown size.
//!
//! Guarantees: [`bounded`] holds at most [`VALUES_MAX`] values. [`SkippedValue`] accepts the same JSON as a tree, and holds
//! nothing.
//!
//! Not responsible for: the fields of a body.

use std::cell::Cell;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The most values of a tree. No document that Causeway reads as a tree has a tenth of this number. A tree of this size
/// takes at most 8 MiB, without its texts.
pub const VALUES_MAX: usize = 20_000;

/// Parses a small document as a tree. A document with more than [`VALUES_MAX`] values is an error.
pub fn bounded(raw: &[u8]) -> Result<Value, serde_json::Error> {
    let left = Cell::new(VALUES_MAX);
    let mut deserializer = serde_json::Deserializer::from_slice(raw);
    let value = BoundedTree { left: &left }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// One value of a tree. All values share one counter.
#[derive(Clone, Copy)]
struct BoundedTree<'a> {
    left: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for BoundedTree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let Some(left) = self.left.get().checked_sub(1) else {
            return Err(D::Error::custom(format_args!("more than {VALUES_MAX} values")));
        };
        self.left.set(left);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for BoundedTree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Value, E> {
        Ok(truth.into())
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            fields.insert(key, entries.next_value_seed(self)?);
        }
        Ok(Value::Object(fields))
    }
}

/// A value that is validated like a tree, including the characters of its texts, and is not kept.
#[derive(Debug)]
pub struct SkippedValue;

impl<'de> Deserialize<'de> for SkippedValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for SkippedValue {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self, A::Error> {
        while entries.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_large_tree_is_an_error_and_a_large_text_is_none() {
        let many = format!("[{}0]", r#"{"":0},"#.repeat(VALUES_MAX / 2 + 1));
        assert!(bounded(many.as_bytes()).is_err());
        assert!(serde_json::from_str::<SkippedValue>(&many).is_ok());
        let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(1 << 20));
        assert_eq!(bounded(long.as_bytes()).unwrap()["a"].as_str().unwrap().len(), 1 << 20);
    }

    proptest! {
        #[test]
        fn each_json_value_is_accepted(
            parts in proptest::collection::vec(
                prop_oneof![
                    Just("{"), Just("}"), Just("["), Just("]"), Just(","), Just(":"), Just("\"a\""), Just("\"\\ud800\""),
                    Just("1"), Just("-1.5e3"), Just("1e999"), Just("true"), Just("null"), Just(" "), Just("\"\u{1}\""),
                ],
                0..9,
            ),
        ) {
            let text = parts.concat();
            let tree = serde_json::from_str::<Value>(&text).ok();
            prop_assert_eq!(bounded(text.as_bytes()).ok(), tree.clone());
            prop_assert_eq!(serde_json::from_str::<SkippedValue>(&text).is_ok(), tree.is_some());
        }
    }
}
