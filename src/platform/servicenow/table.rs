//! The Table API: the instance's own records, for the verbs that set it up and look around.
//!
//! Guarantees: every value is text, as the instance stores it (references as a sys_id, flags as `true` and `false`).
//! Leaves to others: which records there should be (`cli/servicenow/`), what a refusal is about. An access rule can
//! leave rows out of a list, or fields out of a write, without a word: whoever writes compares what comes back.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Request, ServiceNow};
use crate::platform::error::CallError;

/// The fields of one record.
pub type Row = BTreeMap<String, String>;

/// As it arrives: text, but a reference can be an object.
type WireRow = BTreeMap<String, Value>;

impl ServiceNow {
    /// The first `limit` rows that fit the encoded query.
    pub(crate) async fn rows(
        &self,
        table: &str,
        query: &str,
        fields: &[&str],
        limit: usize,
    ) -> Result<Vec<Row>, CallError> {
        let (path, fields, limit) = (["api", "now", "table", table], fields.join(","), limit.to_string());
        let query = [
            ("sysparm_query", query),
            ("sysparm_fields", fields.as_str()),
            ("sysparm_limit", limit.as_str()),
            ("sysparm_exclude_reference_link", "true"),
        ];
        let rows: Vec<WireRow> = self.exchange(None, Request::get(&path, &query)).await?;
        Ok(rows.into_iter().map(meaning).collect())
    }

    /// Makes a row; returns what the instance made of it.
    pub(crate) async fn insert(&self, table: &str, row: &Row) -> Result<Row, CallError> {
        let path = ["api", "now", "table", table];
        Ok(meaning(self.exchange(None, Request::post(&path, &json!(row), "")).await?))
    }

    /// Changes fields of a row; returns what the instance made of it.
    pub(crate) async fn update(&self, table: &str, sys_id: &str, row: &Row) -> Result<Row, CallError> {
        let path = ["api", "now", "table", table, sys_id];
        Ok(meaning(self.exchange(None, Request::patch(&path, &json!(row))).await?))
    }
}

fn meaning(row: WireRow) -> Row {
    let text = |value: Value| match value.get("value").unwrap_or(&value) {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    row.into_iter().map(|(name, value)| (name, text(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_its_sys_id() {
        let row = json!({"a": "x", "b": {"link": "https://…", "value": "id"}, "c": null, "d": true, "e": 3});
        let row = meaning(serde_json::from_value(row).unwrap());
        let values: Vec<&str> = row.values().map(String::as_str).collect();
        assert_eq!(values, ["x", "id", "", "true", "3"]);
    }
}
