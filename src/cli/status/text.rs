//! The layout of `causeway status` for a person.
//!
//! Guarantees: no line of the table and of the lists is wider than the terminal. Only the sentences about problems may be.

use super::super::output::{self, AnsiPaint};
use crate::status::{DeploymentStatus, DestinationStatus, ProcessState};

/// The report as lines of at most `columns` columns, except for the sentences about problems.
pub(super) fn page(report: &DeploymentStatus, columns: usize, paint: AnsiPaint) -> String {
    let mut lines = vec![
        format!(
            "causeway {}  {}  {}",
            report.version,
            output::harmless(report.engine.as_deref().unwrap_or("unknown engine")),
            output::harmless(&report.deployment)
        ),
        format!("process       {}", process(report)),
    ];
    if let Some(workers) = report.queue.workers {
        lines.push(format!("workers       {workers}"));
    }
    if let Some(messages) = report.spool.messages.filter(|messages| *messages > 0) {
        let age = report.spool.oldest_age_seconds.map_or_else(|| "-".to_owned(), output::age);
        lines.push(format!("spool         {}, oldest {age}", output::counted(messages, "message")));
    }
    lines.push(format!("directory     {}", directory(report)));
    lines.push(format!("dead letters  {}", dead_letters(report)));
    if !report.destinations.is_empty() {
        let rows = report.destinations.iter().map(row).collect();
        let head = ["DESTINATION", "BREAKER", "WAITING", "IN FLIGHT", "OLDEST", "PARTITIONS", "DEAD"];
        lines.push(String::new());
        lines.push(output::table_within(columns, 0, &head, rows, &[2, 3, 4, 5, 6]));
    }
    lines.push(String::new());
    if report.needs_attention.is_empty() {
        lines.push(paint.green("Nothing needs a person."));
    } else {
        lines.push(paint.red("Needs a person:"));
        lines.extend(report.needs_attention.iter().map(|what| format!("- {}", output::harmless(what))));
    }
    lines.join("\n")
}

fn process(report: &DeploymentStatus) -> String {
    let process = &report.process;
    let error = output::harmless(process.error.as_deref().unwrap_or_default());
    let version = process.version.as_deref().filter(|version| *version != report.version);
    let version = version.map(|version| format!(", version {version}")).unwrap_or_default();
    match process.state {
        ProcessState::Ready => format!("ready at {}{version}", process.address),
        ProcessState::NotReady => format!("not ready at {}{version}: {error}", process.address),
        ProcessState::NotReachable => format!("none at {}: {error}", process.address),
    }
}

fn directory(report: &DeploymentStatus) -> String {
    let state = &report.directory;
    let counted = |counts: &std::collections::BTreeMap<String, u64>| {
        let counts = counts.iter().filter(|(_, count)| **count > 0);
        let told: Vec<String> = counts.map(|(state, count)| format!("{count} {state}")).collect();
        if told.is_empty() { "no conversations".to_owned() } else { told.join(", ") }
    };
    let told = match (&state.conversations, &state.error) {
        (Some(counts), _) => counted(counts),
        (None, Some(error)) => format!("cannot be asked: {}", output::harmless(error)),
        (None, None) => "nothing is stored yet".to_owned(),
    };
    match &state.kind {
        Some(kind) => format!("{kind}: {told}"),
        None => told,
    }
}

fn dead_letters(report: &DeploymentStatus) -> String {
    let state = &report.dead_letters;
    let total = state.total.map_or_else(|| "unknown".to_owned(), |total| total.to_string());
    let reasons = state.by_reason.iter().flatten();
    let reasons: Vec<String> = reasons.map(|(reason, count)| format!("{reason} {count}")).collect();
    let error =
        state.error.as_deref().map(|error| format!(" (reasons unknown: {})", output::harmless(error)));
    let reasons = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join(", ")) };
    format!("{total}{reasons}{}", error.unwrap_or_default())
}

fn row(state: &DestinationStatus) -> Vec<String> {
    let number = |value: Option<u64>| value.map_or_else(|| "?".to_owned(), |value| value.to_string());
    vec![
        state.destination.clone(),
        state.breaker.unwrap_or("?").to_owned(),
        number(state.waiting),
        number(state.in_flight),
        state.oldest_age_seconds.map_or_else(|| "-".to_owned(), output::age),
        match state.partitions {
            Some(of) => format!("{}/{of}", number(state.consumed)),
            None => number(state.consumed),
        },
        number(state.dead_letters),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;
    use crate::status::ProcessStatus;

    #[test]
    fn a_page_fits_and_tells_what_is_unknown() {
        let state = DestinationStatus {
            destination: format!("bot:{}", "b".repeat(60)),
            ..DestinationStatus::default()
        };
        let process = ProcessStatus { address: "127.0.0.1:9464".into(), ..ProcessStatus::default() };
        let mut report =
            DeploymentStatus { process, destinations: vec![state], ..DeploymentStatus::default() };
        let paint = AnsiPaint::stdout(&Environment::default());
        let text = page(&report, 80, paint);
        assert!(text.lines().all(|line| output::width(line) <= 80), "{text}");
        assert!(text.contains("?  ") && text.contains("Nothing needs a person."), "{text}");
        report.needs_attention.push("the breaker of xo is tripped".into());
        assert!(page(&report, 80, paint).ends_with("- the breaker of xo is tripped"));
    }
}
