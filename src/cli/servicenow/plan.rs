//! What is there, what should be there, and what must be done about the difference.
//!
//! Guarantees: a record of our name without our mark is an error that says what to do, before anything is written; what
//! belongs to a record that is not there is not there either; values marked secret are not shown. Leaves to others:
//! asking and writing (`install.rs`).

use crate::platform::Row;

use super::diff;
use super::records::{MARK, Owned, Wanted};

/// What must be done about one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// It is as it should be.
    Keep { sys_id: String },
    /// It is not there.
    Create,
    /// These fields differ.
    Change { sys_id: String, fields: Vec<&'static str>, old: Row },
}

impl Step {
    pub(super) fn sys_id(&self) -> Option<&str> {
        match self {
            Self::Keep { sys_id } | Self::Change { sys_id, .. } => Some(sys_id),
            Self::Create => None,
        }
    }
}

/// The encoded query that finds the record; `None` where its owner is not there yet.
pub(super) fn query(wanted: &Wanted, steps: &[Step]) -> Option<String> {
    let mut terms = Vec::new();
    if let Owned::By { field, owner } = wanted.owned {
        terms.push(format!("{field}={}", steps.get(owner)?.sys_id()?));
    }
    terms.extend(wanted.key.iter().map(|(name, value)| format!("{name}={value}")));
    Some(terms.join("^"))
}

/// What must be done, given what was found.
pub(super) fn step(wanted: &Wanted, found: &[Row]) -> Result<Step, String> {
    let ours = |row: &&Row| {
        wanted.owned != Owned::Marked || row.get("description").is_some_and(|text| text.contains(MARK))
    };
    let mine: Vec<&Row> = found.iter().filter(ours).collect();
    let (label, table) = (wanted.label(), wanted.table);
    match (mine.as_slice(), found) {
        ([], []) => Ok(Step::Create),
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

fn id(row: &Row) -> &str {
    row.get("sys_id").map_or("", String::as_str)
}

fn compare(wanted: &Wanted, row: &Row) -> Step {
    let sys_id = id(row).to_owned();
    let fields = differing(wanted, row);
    if fields.is_empty() { Step::Keep { sys_id } } else { Step::Change { sys_id, fields, old: row.clone() } }
}

/// The fields in which the row is not as it should be.
pub(super) fn differing(wanted: &Wanted, row: &Row) -> Vec<&'static str> {
    let differs = |name: &str, value: &str| row.get(name).map_or("", String::as_str).same(value);
    wanted.fields.iter().filter(|field| !differs(field.name, &field.value)).map(|field| field.name).collect()
}

trait Same {
    fn same(&self, other: &str) -> bool;
}

impl Same for str {
    /// Forms write line ends in their own way and drop what is blank at the end.
    fn same(&self, other: &str) -> bool {
        self.trim_end().lines().map(str::trim_end).eq(other.trim_end().lines().map(str::trim_end))
    }
}

/// One record's part of the plan, for people.
pub(super) fn describe(wanted: &Wanted, step: &Step) -> String {
    let (label, table) = (wanted.label(), wanted.table);
    let mut lines = vec![match step {
        Step::Keep { .. } => format!("= {label} ({table}): as it should be"),
        Step::Create => format!("+ {label} ({table}): is created"),
        Step::Change { sys_id, .. } => format!("~ {label} ({table} {sys_id}): is changed"),
    }];
    for field in &wanted.fields {
        let old = match step {
            Step::Create => "",
            Step::Change { fields, old, .. } if fields.contains(&field.name) => {
                old.get(field.name).map_or("", String::as_str)
            }
            _ => continue,
        };
        let new = field.value.as_str();
        let (creates, name) = (*step == Step::Create, field.name);
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
