//! Reads a caller's JSON object field by field and collects the faults with their paths.
//!
//! Guarantees: one pass collects all faults, up to the number that an answer lists. `null` counts as absent. If a key
//! occurs twice, the last value counts. A fault never contains a value. The body is not parsed into a tree, so memory
//! depends only on the fields that are used.
//! Not responsible for: which fields exist (`handoffs.rs`).

use std::cell::RefCell;
use std::fmt;

use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::http_server::problem::{FIELD_ERRORS_MAX, FieldError};
use crate::message::json::SkippedValue;

/// The faults found so far.
#[derive(Debug, Default)]
pub(super) struct FieldErrors(RefCell<Vec<FieldError>>);

impl FieldErrors {
    /// Adds one fault.
    pub(super) fn add(&self, field: impl Into<String>, reason: impl Into<String>) {
        let mut errors = self.0.borrow_mut();
        if errors.len() < FIELD_ERRORS_MAX {
            errors.push(FieldError { field: field.into(), reason: reason.into() });
        }
    }

    /// The collected faults.
    pub(super) fn into_vec(self) -> Vec<FieldError> {
        self.0.into_inner()
    }
}

/// The limits of a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct TextBounds {
    pub(super) bytes: usize,
    pub(super) may_be_empty: bool,
}

/// Parses a body and checks that it is valid JSON.
pub(super) fn parse(raw: &[u8]) -> Result<&RawValue, serde_json::Error> {
    // The first pass checks the parts that the second pass skips.
    serde_json::from_slice::<SkippedValue>(raw)?;
    serde_json::from_slice(raw)
}

/// One object of the caller and its path.
#[derive(Debug, Clone)]
pub(super) struct JsonFields<'a> {
    object: &'a RawValue,
    path: String,
    errors: &'a FieldErrors,
}

impl<'a> JsonFields<'a> {
    /// The outermost object. `None` if the value is not an object.
    pub(super) fn new(body: &'a RawValue, errors: &'a FieldErrors) -> Option<Self> {
        body.get().starts_with('{').then_some(Self { object: body, path: String::new(), errors })
    }

    /// Adds a fault of the field `key`.
    pub(super) fn fault(&self, key: &str, reason: impl Into<String>) {
        self.errors.add(self.path_of(key), reason);
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn value(&self, key: &str) -> Option<&'a RawValue> {
        let mut found = None;
        each_field(self.object, |name, value| {
            if name == key {
                found = value;
            }
        });
        found
    }

    /// An optional text. `None` if it is absent or faulty.
    pub(super) fn text(&self, key: &str, bounds: TextBounds) -> Option<String> {
        self.text_of(key, self.value(key)?, bounds)
    }

    fn text_of(&self, key: &str, value: &RawValue, bounds: TextBounds) -> Option<String> {
        let Ok(text) = serde_json::from_str::<String>(value.get()) else {
            self.fault(key, "must be a string");
            return None;
        };
        if text.len() > bounds.bytes {
            self.fault(key, format!("must be at most {} bytes long, is {}", bounds.bytes, text.len()));
            None
        } else if !bounds.may_be_empty && text.trim().is_empty() {
            self.fault(key, "must not be empty");
            None
        } else {
            Some(text)
        }
    }

    /// A required text.
    pub(super) fn required_text(&self, key: &str, bounds: TextBounds) -> Option<String> {
        let Some(value) = self.value(key) else {
            self.fault(key, "is missing; it must be a string");
            return None;
        };
        self.text_of(key, value, bounds)
    }

    /// A flag. False if it is absent.
    pub(super) fn flag(&self, key: &str) -> bool {
        match self.value(key).map(RawValue::get) {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => {
                self.fault(key, "must be true or false");
                false
            }
        }
    }

    /// An optional object.
    pub(super) fn object(&self, key: &str) -> Option<Self> {
        let object = self.value(key)?;
        if !object.get().starts_with('{') {
            self.fault(key, "must be an object");
            return None;
        }
        Some(Self { object, path: self.path_of(key), errors: self.errors })
    }

    /// An optional list of objects, each converted by `read`. An item that is not an object is a fault and is
    /// skipped.
    pub(super) fn objects<T>(&self, key: &str, mut read: impl FnMut(&Self) -> Option<T>) -> ParsedObjects<T> {
        let mut found = ParsedObjects { count: 0, read: Vec::new() };
        let Some(list) = self.value(key) else { return found };
        let path = self.path_of(key);
        if !list.get().starts_with('[') {
            self.errors.add(path, "must be an array of objects");
            return found;
        }
        let mut index = 0_usize;
        each_item(list, |object| {
            let path = format!("{path}[{index}]");
            index += 1;
            if object.get().starts_with('{') {
                found.count += 1;
                found.read.extend(read(&Self { object, path, errors: self.errors }));
            } else {
                self.errors.add(path, "must be an object");
            }
        });
        found
    }

    /// Calls `take` for each field that is a text.
    pub(super) fn texts(&self, bounds: TextBounds, mut take: impl FnMut(&str, String)) {
        each_field(self.object, |key, value| {
            if let Some(text) = value.and_then(|value| self.text_of(key, value, bounds)) {
                take(key, text);
            }
        });
    }
}

/// The result of reading a list of objects.
#[derive(Debug)]
pub(super) struct ParsedObjects<T> {
    /// The number of objects in the list.
    pub(super) count: usize,
    /// The objects without a fault.
    pub(super) read: Vec<T>,
}

/// Calls `each` for each field. `None` stands for `null`.
fn each_field<'a>(object: &'a RawValue, each: impl FnMut(&str, Option<&'a RawValue>)) {
    struct FieldWalk<F>(F);
    impl<'a, F: FnMut(&str, Option<&'a RawValue>)> Visitor<'a> for FieldWalk<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'a>>(mut self, mut entries: A) -> Result<(), A::Error> {
            while let Some(key) = entries.next_key::<std::borrow::Cow<'_, str>>()? {
                let value: &RawValue = entries.next_value()?;
                (self.0)(&key, Some(value).filter(|value| value.get() != "null"));
            }
            Ok(())
        }
    }
    // The text is valid, because `parse` has checked the whole text.
    let _ = serde_json::Deserializer::from_str(object.get()).deserialize_map(FieldWalk(each));
}

fn each_item<'a>(list: &'a RawValue, each: impl FnMut(&'a RawValue)) {
    struct ItemWalk<F>(F);
    impl<'a, F: FnMut(&'a RawValue)> Visitor<'a> for ItemWalk<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'a>>(mut self, mut items: A) -> Result<(), A::Error> {
            while let Some(item) = items.next_element::<&RawValue>()? {
                (self.0)(item);
            }
            Ok(())
        }
    }
    let _ = serde_json::Deserializer::from_str(list.get()).deserialize_seq(ItemWalk(each));
}
