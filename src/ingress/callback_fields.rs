//! Reads the fields of a callback that the ingress uses from a body of any shape.
//!
//! Guarantees: unused parts are checked and skipped, so memory does not depend on them. A body with a repeated key is
//! not read here.
//! Not responsible for: broken JSON (`lenient.rs`), the meaning of the fields (`servicenow.rs`).

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher, RandomState};

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::message::callback::GROUP_VARIABLE;
use crate::message::json::SkippedValue;

const PARTS: &str = "body";
const VARIABLES: &str = "clientVariables";
/// The keys that are read in addition to [`PARTS`] and [`VARIABLES`].
const USED: &[&str] = &[
    "group",
    "sys_id",
    "sys_created_by",
    "instance",
    "internal",
    "private_message",
    "requestId",
    "clientSessionId",
    "userId",
    "completed",
    "takeControl",
];

/// The fields of a callback that are used.
#[derive(Debug, Default, PartialEq)]
pub(super) struct CallbackFields {
    /// Texts, numbers and flags, and the value of a reference field. A list or another object is stored empty.
    values: Vec<(&'static str, Value)>,
    parts: Option<MessageParts>,
    group_variable: Option<String>,
}

/// The ids and actions of the parts of a Virtual Agent answer.
#[derive(Debug, Default, PartialEq)]
pub(super) struct MessageParts {
    /// `messageId`, with `streamSequence` if there is one.
    pub(super) names: Vec<(String, Option<String>)>,
    /// `actionType`
    pub(super) actions: Vec<String>,
}

impl CallbackFields {
    /// Reads valid JSON: one object without a repeated key.
    ///
    /// A repeated key means that the text contained an unescaped quote. Only [`super::lenient::repair`] knows which
    /// of the two values is meant.
    pub(super) fn strict(raw: &[u8]) -> Option<Self> {
        // serde_json checks the UTF-8 of only those texts that it returns, so the whole body is checked here.
        let text = std::str::from_utf8(raw).ok()?;
        serde_json::from_str(text).ok()
    }

    /// The fields of a repaired body. A repaired body holds no list and no object.
    pub(super) fn repaired(mut values: Map<String, Value>) -> Self {
        let used = USED.iter().filter_map(|key| Some((*key, values.remove(*key)?)));
        Self { values: used.collect(), ..Self::default() }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        debug_assert!(USED.contains(&key), "{key} is not read");
        self.values.iter().find(|(known, _)| *known == key).map(|(_, value)| value)
    }

    pub(super) fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The parts of a Virtual Agent answer. `None` if `body` is not a list.
    pub(super) const fn parts(&self) -> Option<&MessageParts> {
        self.parts.as_ref()
    }

    /// The id that Causeway gave a Virtual Agent chat when it opened the chat.
    pub(super) fn group_variable(&self) -> Option<&str> {
        self.group_variable.as_deref()
    }
}

impl<'de> Deserialize<'de> for CallbackFields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = CallbackFields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<CallbackFields, A::Error> {
        let mut fields = CallbackFields::default();
        let mut seen = Seen::default();
        while let Some(key) = entries.next_key_seed(KeySeed(&seen.hasher))? {
            if !seen.is_first(&key) {
                return Err(A::Error::custom("a key occurs twice"));
            }
            match key {
                FieldKey::Used(PARTS) => fields.parts = entries.next_value::<MaybeParts>()?.0,
                FieldKey::Used(VARIABLES) => {
                    fields.group_variable = entries.next_value::<ClientVariables>()?.0
                }
                FieldKey::Used(key) => {
                    let ShallowValue(value) = entries.next_value()?;
                    fields.values.push((key, value));
                }
                FieldKey::Other(_) => _ = entries.next_value::<SkippedValue>()?,
            }
        }
        Ok(fields)
    }
}

/// The keys that an object had so far.
#[derive(Default)]
struct Seen {
    hasher: RandomState,
    used: Vec<&'static str>,
    /// Eight bytes for each key of any length. If two different keys have the same hash, the lenient reading decides.
    others: HashSet<u64>,
}

impl Seen {
    fn is_first(&mut self, key: &FieldKey) -> bool {
        match key {
            FieldKey::Used(key) if self.used.contains(key) => false,
            FieldKey::Used(key) => {
                self.used.push(key);
                true
            }
            FieldKey::Other(hash) => self.others.insert(*hash),
        }
    }
}

/// A key of an object.
enum FieldKey {
    Used(&'static str),
    /// The hash of a key that is not used.
    Other(u64),
}

struct KeySeed<'a>(&'a RandomState);

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = FieldKey;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed<'_> {
    type Value = FieldKey;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        let used = USED.iter().chain(&[PARTS, VARIABLES]).copied().find(|used| *used == key);
        Ok(used.map_or_else(|| FieldKey::Other(self.0.hash_one(key)), FieldKey::Used))
    }
}

/// A text, a number or a flag. A reference field, which some rules write as `{"value": …, "link": …}`, becomes its value. A list or
/// another object becomes an empty one.
struct ShallowValue(Value);

macro_rules! scalars {
    ($($visit:ident: $given:ty),+) => { $(fn $visit<E>(self, given: $given) -> Result<ShallowValue, E> {
        Ok(ShallowValue(given.into()))
    })+ };
}

impl<'de> Deserialize<'de> for ShallowValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ValueVisitor;
        impl<'de> Visitor<'de> for ValueVisitor {
            type Value = ShallowValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            scalars!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str);

            fn visit_unit<E>(self) -> Result<ShallowValue, E> {
                Ok(ShallowValue(Value::Null))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<ShallowValue, A::Error> {
                SkippedValue.visit_seq(items)?;
                Ok(ShallowValue(Value::Array(Vec::new())))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<ShallowValue, A::Error> {
                let mut value = None;
                while let Some(key) = entries.next_key::<String>()? {
                    let field: ShallowValue = entries.next_value()?;
                    if key == "value" {
                        value = Some(field.0);
                    }
                }
                Ok(ShallowValue(value.unwrap_or_else(|| Value::Object(Map::new()))))
            }
        }
        deserializer.deserialize_any(ValueVisitor)
    }
}

impl ShallowValue {
    fn into_text(self) -> Option<String> {
        match self.0 {
            Value::String(text) => Some(text),
            _ => None,
        }
    }
}

/// `clientVariables`: the only variable that is used.
struct ClientVariables(Option<String>);

impl<'de> Deserialize<'de> for ClientVariables {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct VariablesVisitor;
        impl<'de> Visitor<'de> for VariablesVisitor {
            type Value = Option<String>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Option<String>, A::Error> {
                let mut found = None;
                while let Some(key) = entries.next_key::<String>()? {
                    let value: ShallowValue = entries.next_value()?;
                    if key == GROUP_VARIABLE {
                        found = value.into_text();
                    }
                }
                Ok(found)
            }
        }
        // If the variables are not an object, they contain no name.
        let raw = <&RawValue>::deserialize(deserializer)?;
        let is_object = raw.get().starts_with('{');
        let read = || serde_json::Deserializer::from_str(raw.get()).deserialize_map(VariablesVisitor);
        Ok(Self(if is_object { read().map_err(D::Error::custom)? } else { checked(raw)? }))
    }
}

/// Returns `None` if the value is valid JSON, and an error otherwise.
fn checked<T, E: Error>(raw: &RawValue) -> Result<Option<T>, E> {
    serde_json::from_str::<SkippedValue>(raw.get()).map_err(E::custom)?;
    Ok(None)
}

/// `body`, if it is a list.
struct MaybeParts(Option<MessageParts>);

impl<'de> Deserialize<'de> for MaybeParts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PartListVisitor;
        impl<'de> Visitor<'de> for PartListVisitor {
            type Value = MessageParts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<MessageParts, A::Error> {
                let mut parts = MessageParts::default();
                while let Some(raw) = items.next_element::<&RawValue>()? {
                    parts.add(raw).map_err(A::Error::custom)?;
                }
                Ok(parts)
            }
        }
        let raw = <&RawValue>::deserialize(deserializer)?;
        let read = || serde_json::Deserializer::from_str(raw.get()).deserialize_seq(PartListVisitor);
        let is_list = raw.get().starts_with('[');
        Ok(Self(if is_list { Some(read().map_err(D::Error::custom)?) } else { checked(raw)? }))
    }
}

impl MessageParts {
    fn add(&mut self, raw: &RawValue) -> Result<(), serde_json::Error> {
        if !raw.get().starts_with('{') {
            return serde_json::from_str::<SkippedValue>(raw.get()).map(drop);
        }
        let part = serde_json::Deserializer::from_str(raw.get()).deserialize_map(PartVisitor)?;
        if let Some(id) = part.id.filter(|id| !id.is_empty()) {
            self.names.push((id, part.sequence.map(|sequence| sequence.to_string())));
        }
        self.actions.extend(part.action);
        Ok(())
    }
}

#[derive(Default)]
struct MessagePart {
    id: Option<String>,
    /// The JSON text of the value.
    sequence: Option<String>,
    action: Option<String>,
}

struct PartVisitor;

impl<'de> Visitor<'de> for PartVisitor {
    type Value = MessagePart;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<MessagePart, A::Error> {
        let mut part = MessagePart::default();
        while let Some(key) = entries.next_key::<String>()? {
            match key.as_str() {
                "messageId" => part.id = entries.next_value::<ShallowValue>()?.into_text(),
                "actionType" => part.action = entries.next_value::<ShallowValue>()?.into_text(),
                "streamSequence" => part.sequence = Some(entries.next_value::<ShallowValue>()?.0.to_string()),
                _ => _ = entries.next_value::<SkippedValue>()?,
            }
        }
        Ok(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_used_fields_are_kept() {
        let fields = CallbackFields::strict(
            br#"{"group":"g","sys_id":[{"x":1}],"internal":true,"big":[{"":0}],"body":[7,{"messageId":"a","streamSequence":2},
                {"actionType":"x"},{}],"clientVariables":{"causeway_group":"g1","n":[1]}}"#,
        )
        .unwrap();
        assert_eq!(fields.get("group"), Some(&"g".into()));
        assert_eq!(fields.get("sys_id"), Some(&Value::Array(Vec::new())));
        assert_eq!(fields.values.len(), 3);
        assert_eq!(fields.group_variable(), Some("g1"));
        let parts = fields.parts().unwrap();
        assert_eq!(
            (parts.names.as_slice(), parts.actions.as_slice()),
            (&[("a".to_owned(), Some("2".to_owned()))][..], &["x".to_owned()][..])
        );
    }

    #[test]
    fn lists_and_objects_at_other_places_are_no_fault() {
        let fields =
            CallbackFields::strict(br#"{"body":{"a":[]},"clientVariables":[1],"requestId":"r"}"#).unwrap();
        assert_eq!((fields.parts(), fields.group_variable()), (None, None));
    }

    #[test]
    fn invalid_json_is_not_read_wherever_the_fault_is() {
        for body in [
            &br#"{"group":"a","group":"b"}"#[..],
            br#"{"x":1,"x":2}"#,
            br#"{"x":"\ud800"}"#,
            br#"{"body":"\ud800"}"#,
            br#"{"body":[{"x":"\ud800"}]}"#,
            br#"{"clientVariables":{"x":"\ud800"}}"#,
            br#"{"x":1} x"#,
            b"{\"x\":\"\xff\"}",
            b"[1]",
        ] {
            assert_eq!(CallbackFields::strict(body), None, "{}", String::from_utf8_lossy(body));
        }
    }
}
