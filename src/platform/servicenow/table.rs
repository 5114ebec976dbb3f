//! The Table API: reads and writes the instance's own records, for the CLI verbs that set it up and inspect it,
//! and for the record of a handoff that found no agent.
//!
//! Guarantees: each value is text, as the instance stores it (a reference as a sys_id, a flag as `true` or `false`).
//! Not responsible for: which records should exist (`cli/servicenow/`), the reason of a refusal. An access rule can
//! silently omit rows from a list or fields from a write, so a caller that writes compares the returned row.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{ApiRequest, ServiceNow};
use crate::platform::error::CallError;

/// The fields of one record.
pub type TableRow = BTreeMap<String, String>;

/// A row as received: its values are text, but a reference can be an object.
type WireRow = BTreeMap<String, Value>;

impl ServiceNow {
    /// Returns the first `limit` rows that match the encoded query.
    pub(crate) async fn rows(
        &self,
        table: &str,
        query: &str,
        fields: &[&str],
        limit: usize,
    ) -> Result<Vec<TableRow>, CallError> {
        let (path, fields, limit) = (["api", "now", "table", table], fields.join(","), limit.to_string());
        let query = [
            ("sysparm_query", query),
            ("sysparm_fields", fields.as_str()),
            ("sysparm_limit", limit.as_str()),
            ("sysparm_exclude_reference_link", "true"),
        ];
        let rows: Vec<WireRow> = self.exchange(None, ApiRequest::get(&path, &query)).await?;
        Ok(rows.into_iter().map(parse).collect())
    }

    /// Inserts a row and returns the row as the instance stored it.
    pub(crate) async fn insert(&self, table: &str, row: &TableRow) -> Result<TableRow, CallError> {
        let path = ["api", "now", "table", table];
        Ok(parse(self.exchange(None, ApiRequest::post(&path, &json!(row), "")).await?))
    }

    /// Inserts a record for people, and returns its sys_id and its number. Not idempotent.
    pub(crate) async fn create(&self, table: &str, row: &TableRow) -> Result<TableRow, CallError> {
        let path = ["api", "now", "table", table];
        let query = [("sysparm_fields", "sys_id,number"), ("sysparm_exclude_reference_link", "true")];
        // The fields hold words of a user. An error must not repeat them.
        let words = row.values().max_by_key(|value| value.len()).map(String::as_str).unwrap_or_default();
        let request = ApiRequest { query: &query, ..ApiRequest::post(&path, &json!(row), words) };
        Ok(parse(self.exchange(None, request).await?))
    }

    /// Changes fields of a row and returns the row as the instance stored it.
    pub(crate) async fn update(
        &self,
        table: &str,
        sys_id: &str,
        row: &TableRow,
    ) -> Result<TableRow, CallError> {
        let path = ["api", "now", "table", table, sys_id];
        Ok(parse(self.exchange(None, ApiRequest::patch(&path, &json!(row))).await?))
    }
}

fn parse(row: WireRow) -> TableRow {
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
        let row = parse(serde_json::from_value(row).unwrap());
        let values: Vec<&str> = row.values().map(String::as_str).collect();
        assert_eq!(values, ["x", "id", "", "true", "3"]);
    }
}
