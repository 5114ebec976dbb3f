//! The text of a field in a callback of ServiceNow's, in each shape in which rules and flows write it.
//!
//! Guarantees: a number and a flag are read as they are written, a reference field (`{"value": …, "link": …}`) is its value. Of everything
//! else no memory is kept.
//! Not responsible for: which fields there are (`callback.rs`), the fields that the ingress reads (`ingress/callback_fields.rs`).

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A field that may be missing; one without a text counts as missing.
pub(super) fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(FieldText::deserialize(deserializer)?.0)
}

/// A field that must have a text.
pub(super) fn required<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    optional(deserializer)?.ok_or_else(|| D::Error::custom("expected a text"))
}

struct FieldText(Option<String>);

macro_rules! written {
    ($($visit:ident: $given:ty),+) => { $(fn $visit<E>(self, given: $given) -> Result<FieldText, E> {
        Ok(FieldText(Some(given.to_string())))
    })+ };
}

impl<'de> Deserialize<'de> for FieldText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = FieldText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            written!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str);

            fn visit_unit<E>(self) -> Result<FieldText, E> {
                Ok(FieldText(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<FieldText, A::Error> {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(FieldText(None))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<FieldText, A::Error> {
                let mut text = None;
                while let Some(key) = fields.next_key::<String>()? {
                    if key == "value" {
                        text = fields.next_value::<FieldText>()?.0;
                    } else {
                        fields.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(FieldText(text))
            }
        }
        deserializer.deserialize_any(Any)
    }
}
