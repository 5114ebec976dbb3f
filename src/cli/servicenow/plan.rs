//! Compares the records in the instance with the wanted records and plans the changes.
//!
//! Guarantees: a record of our name without our mark is an error with the next step, before any write. If an owner is
//! missing, the records that it owns count as missing. Secret values are not shown.
//! Not responsible for: asking and writing (`install.rs`).

use crate::platform::TableRow;

use super::diff;
use super::records::{MARK, RecordOwner, WantedRecord};

/// The change to one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum InstallStep {
    /// The record is up to date.
    Keep { sys_id: String },
    /// The record is missing.
    Create,
    /// These fields differ.
    Change { sys_id: String, fields: Vec<&'static str>, old: TableRow },
}

impl InstallStep {
    pub(super) fn sys_id(&self) -> Option<&str> {
        match self {
            Self::Keep { sys_id } | Self::Change { sys_id, .. } => Some(sys_id),
            Self::Create => None,
        }
    }
}

/// The encoded query that finds the record; `None` if its owner is missing.
pub(super) fn query(wanted: &WantedRecord, steps: &[InstallStep]) -> Option<String> {
    let mut terms = Vec::new();
    if let RecordOwner::By { field, owner } = wanted.owned {
        terms.push(format!("{field}={}", steps.get(owner)?.sys_id()?));
    }
    terms.extend(wanted.key.iter().map(|(name, value)| format!("{name}={value}")));
    Some(terms.join("^"))
}

/// The change to a record, given the rows that the query found.
pub(super) fn step(wanted: &WantedRecord, found: &[TableRow]) -> Result<InstallStep, String> {
    let ours = |row: &&TableRow| {
        wanted.owned != RecordOwner::Marked || row.get("description").is_some_and(|text| text.contains(MARK))
    };
    let mine: Vec<&TableRow> = found.iter().filter(ours).collect();
    let (label, table) = (wanted.label(), wanted.table);
    match (mine.as_slice(), found) {
        ([], []) => Ok(InstallStep::Create),
        ([], [other, ..]) => Err(format!(
            "{label} ({table} {}) is there and was not made by Causeway: it is left alone.\n  -> choose another name \
             with --name, or, if it may be overwritten, write \"{MARK}\" into its description",
            id(other)
        )),
        ([row], _) => Ok(compare(wanted, row)),
        ([row, ..], _) => Err(format!(
            "{label} ({table}) is there {} times with Causeway's mark.\n  -> delete all but one, such as {}",
            mine.len(),
            id(row)
        )),
    }
}

fn id(row: &TableRow) -> &str {
    row.get("sys_id").map_or("", String::as_str)
}

fn compare(wanted: &WantedRecord, row: &TableRow) -> InstallStep {
    let sys_id = id(row).to_owned();
    let fields = differing(wanted, row);
    if fields.is_empty() {
        InstallStep::Keep { sys_id }
    } else {
        InstallStep::Change { sys_id, fields, old: row.clone() }
    }
}

/// The fields whose values differ from the wanted ones.
pub(super) fn differing(wanted: &WantedRecord, row: &TableRow) -> Vec<&'static str> {
    let differs = |name: &str, value: &str| row.get(name).map_or("", String::as_str).same(value);
    wanted.fields.iter().filter(|field| !differs(field.name, &field.value)).map(|field| field.name).collect()
}

trait SameText {
    fn same(&self, other: &str) -> bool;
}

impl SameText for str {
    /// Forms change line ends and drop trailing blanks, so both are ignored.
    fn same(&self, other: &str) -> bool {
        self.trim_end().lines().map(str::trim_end).eq(other.trim_end().lines().map(str::trim_end))
    }
}

/// One record's part of the plan, as text.
pub(super) fn describe(wanted: &WantedRecord, step: &InstallStep) -> String {
    let (label, table) = (wanted.label(), wanted.table);
    let mut lines = vec![match step {
        InstallStep::Keep { .. } => format!("= {label} ({table}): as it should be"),
        InstallStep::Create => format!("+ {label} ({table}): is created"),
        InstallStep::Change { sys_id, .. } => format!("~ {label} ({table} {sys_id}): is changed"),
    }];
    for field in &wanted.fields {
        let old = match step {
            InstallStep::Create => "",
            InstallStep::Change { fields, old, .. } if fields.contains(&field.name) => {
                old.get(field.name).map_or("", String::as_str)
            }
            _ => continue,
        };
        let new = field.value.as_str();
        let (creates, name) = (*step == InstallStep::Create, field.name);
        if field.secret {
            lines.push(format!("    {name}: (secret{})", if creates { "" } else { ", another value" }));
        } else if creates && new.lines().count() > 1 {
            lines.push(format!(
                "    {name}: {} lines (causeway servicenow rule prints them)",
                new.lines().count()
            ));
        } else if creates {
            lines.push(format!("    {name}: {new}"));
        } else if old.lines().count() > 1 || new.lines().count() > 1 {
            lines.push(format!("    {name}:"));
            lines.extend(diff::lines(old, new).into_iter().map(|line| format!("      {line}")));
        } else {
            lines.push(format!("    {name}: \"{old}\" -> \"{new}\""));
        }
    }
    lines.join("\n")
}
