//! Reads a caller's JSON object field by field and collects every fault with its path.
//!
//! Guarantees: one pass names all faults; `null` counts as absent; a fault never repeats a value.
//! Leaves to others: which fields there are (`handoffs.rs`).

use std::cell::RefCell;

use serde_json::{Map, Value};

use super::problem::Fault;

/// All faults found so far.
#[derive(Debug, Default)]
pub(super) struct Faults(RefCell<Vec<Fault>>);

impl Faults {
    /// Notes one fault.
    pub(super) fn add(&self, field: impl Into<String>, reason: impl Into<String>) {
        self.0.borrow_mut().push(Fault { field: field.into(), reason: reason.into() });
    }

    /// What was found.
    pub(super) fn into_vec(self) -> Vec<Fault> {
        self.0.into_inner()
    }
}

/// How a text is bounded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) bytes: usize,
    pub(super) may_be_empty: bool,
}

/// One object of the caller's, and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: String,
    faults: &'a Faults,
}

impl<'a> Fields<'a> {
    /// The outermost object.
    pub(super) const fn new(object: &'a Map<String, Value>, faults: &'a Faults) -> Self {
        Self { object, path: String::new(), faults }
    }

    /// Notes a fault of the field `key`.
    pub(super) fn fault(&self, key: &str, reason: impl Into<String>) {
        self.faults.add(self.path_of(key), reason);
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn value(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// A text that may be absent; `None` also where it is faulty.
    pub(super) fn text(&self, key: &str, bounds: Bounds) -> Option<&'a str> {
        let Value::String(text) = self.value(key)? else {
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

    /// A text that must be there.
    pub(super) fn required_text(&self, key: &str, bounds: Bounds) -> Option<&'a str> {
        if self.value(key).is_none() {
            self.fault(key, "is missing; it must be a string");
        }
        self.text(key, bounds)
    }

    /// A flag, false where it is absent.
    pub(super) fn flag(&self, key: &str) -> bool {
        match self.value(key) {
            None => false,
            Some(Value::Bool(flag)) => *flag,
            Some(_) => {
                self.fault(key, "must be true or false");
                false
            }
        }
    }

    /// An object that may be absent.
    pub(super) fn object(&self, key: &str) -> Option<Self> {
        let Value::Object(object) = self.value(key)? else {
            self.fault(key, "must be an object");
            return None;
        };
        Some(Self { object, path: self.path_of(key), faults: self.faults })
    }

    /// A list of objects that may be absent; what is no object is a fault and left out.
    pub(super) fn objects(&self, key: &str) -> Vec<Self> {
        let path = self.path_of(key);
        let list = match self.value(key) {
            None => return Vec::new(),
            Some(Value::Array(list)) => list,
            Some(_) => {
                self.faults.add(path, "must be an array of objects");
                return Vec::new();
            }
        };
        let of = |(index, value): (usize, &'a Value)| {
            let path = format!("{path}[{index}]");
            match value {
                Value::Object(object) => Some(Self { object, path, faults: self.faults }),
                _ => {
                    self.faults.add(path, "must be an object");
                    None
                }
            }
        };
        list.iter().enumerate().filter_map(of).collect()
    }

    /// The names of all fields that are there.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.object.keys().map(String::as_str)
    }
}
