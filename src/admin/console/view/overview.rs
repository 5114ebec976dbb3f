//! The start page: the state of the deployment, and what needs a person.

use maud::{Markup, html};

use super::super::overview::Overview;
use super::super::runs::ReplayRun;
use super::{PageFrame, link, moment, page, told};
use crate::dead_letters::DeadLetterFilter;
use crate::message::DeadReason;
use crate::status::{DeploymentStatus, DestinationStatus, ProcessState, age, counted};

pub(in super::super) fn overview(frame: PageFrame<'_>, shown: &Overview, run: Option<&ReplayRun>) -> Markup {
    let status = &shown.status;
    let content = html! {
        @if status.needs_attention.is_empty() { p.good role="status" { "Nothing needs a person." } } @else {
            div.bad role="status" {
                p { strong { "Needs a person:" } }
                ul { @for problem in &status.needs_attention { li { (problem) } } }
            }
        }
        form.filters method="get" action="/desk/conversation" {
            div { label for="name" { "Message id, conversation, group or CHAT number" } input id="name" name="name" required; }
            div.go { button { "Find" } }
        }
        dl {
            dt { "Process" } dd.wrap { (process(status)) }
            dt { "Engine" } dd { (status.engine.as_deref().unwrap_or("unknown")) }
            @if let Some(workers) = status.queue.workers { dt { "Workers" } dd { (workers) } }
            dt { "Spool" } dd { (spool(status)) }
            dt { "Directory" } dd.wrap { (directory(status)) }
            dt { "Dead letters" } dd.wrap { (dead_letters(shown)) }
            @if let Some(run) = run { dt { "Last replay" } dd.wrap { (moment(run.began)) " " (told(run)) " " a href="/desk/progress" { "More" } } }
        }
        (destinations(status))
    };
    page("Status", frame, &content)
}

fn process(status: &DeploymentStatus) -> String {
    let address = &status.process.address;
    match (&status.process.state, &status.process.error) {
        (ProcessState::Ready, _) => format!("ready at {address}"),
        (_, Some(error)) => format!("not ready at {address}: {error}"),
        (_, None) => format!("not ready at {address}"),
    }
}

fn spool(status: &DeploymentStatus) -> String {
    match (status.spool.messages, status.spool.oldest_age_seconds) {
        (Some(messages), Some(oldest)) => {
            format!("{}, oldest {}", counted(messages, "message"), age(oldest))
        }
        _ => "empty".to_owned(),
    }
}

fn directory(status: &DeploymentStatus) -> String {
    if let Some(error) = &status.directory.error {
        return format!("cannot be used: {error}");
    }
    let counts = status.directory.conversations.iter().flatten().filter(|(_, count)| **count > 0);
    let told: Vec<String> = counts.map(|(state, count)| format!("{count} {state}")).collect();
    if told.is_empty() { "no conversations".to_owned() } else { told.join(", ") }
}

fn dead_letters(shown: &Overview) -> Markup {
    let state = &shown.status.dead_letters;
    let total = state.total.unwrap_or(0);
    let of = |reason: &str| DeadLetterFilter {
        reasons: DeadReason::parse(reason).into_iter().collect(),
        ..DeadLetterFilter::default()
    };
    html! {
        a href="/desk/letters" { @if state.total.is_some() { (total) } @else { "unknown" } }
        @if total > 0 {
            @for (index, (reason, count)) in state.by_reason.iter().flatten().enumerate() {
                @if index == 0 { ": " } @else { ", " }
                a href=(link("/desk/letters", &of(reason))) { (reason) } " " (count)
            }
            @if let Some(at) = shown.counted_at { " (the reasons as of " (moment(at)) ")" }
            @if state.by_reason.is_none() { " (the list tells the reasons)" }
        }
    }
}

fn destinations(status: &DeploymentStatus) -> Markup {
    html! {
        @if !status.destinations.is_empty() {
            table.list {
                caption { "Destinations" }
                thead { tr {
                    th scope="col" { "Destination" } th scope="col" { "Breaker" } th.number scope="col" { "Waiting" }
                    th.number scope="col" { "In flight" } th.number scope="col" { "Oldest" }
                    th.number scope="col" { "Partitions" } th.number scope="col" { "Dead letters" }
                } }
                tbody { @for one in &status.destinations { (destination(one)) } }
            }
        }
    }
}

fn destination(one: &DestinationStatus) -> Markup {
    let number = |value: Option<u64>| value.map_or_else(|| "?".to_owned(), |value| value.to_string());
    let partitions = match one.partitions {
        Some(of) => format!("{} of {of}", number(one.consumed)),
        None => number(one.consumed),
    };
    html! { tr {
        th.wrap scope="row" { (one.destination) }
        td data-label="Breaker" { (one.breaker.unwrap_or("?")) }
        td.number data-label="Waiting" { (number(one.waiting)) }
        td.number data-label="In flight" { (number(one.in_flight)) }
        td.number data-label="Oldest" { (one.oldest_age_seconds.map_or_else(|| "–".to_owned(), age)) }
        td.number data-label="Partitions" { (partitions) }
        td.number data-label="Dead letters" { (number(one.dead_letters)) }
    } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{DeadLetterStatus, ProcessStatus};

    #[test]
    fn the_start_page_shows_what_needs_a_person_and_what_is_unknown() {
        let dead_letters = DeadLetterStatus {
            total: Some(3),
            by_reason: Some([("rejected".to_owned(), 3)].into()),
            error: None,
        };
        let status = DeploymentStatus {
            process: ProcessStatus { state: ProcessState::Ready, ..ProcessStatus::default() },
            destinations: vec![DestinationStatus {
                destination: "xo".to_owned(),
                breaker: Some("tripped"),
                ..DestinationStatus::default()
            }],
            dead_letters,
            needs_attention: vec!["the breaker of <xo> is tripped".to_owned()],
            ..DeploymentStatus::default()
        };
        let frame = PageFrame { form: Some("f"), place: "broker/vhost", ..PageFrame::default() };
        let page = |counted_at| {
            let shown = Overview { status: status.clone(), counted_at };
            overview(frame, &shown, None).into_string()
        };
        let text = page(None);
        for words in
            ["the breaker of &lt;xo&gt; is tripped", "reason=rejected", ">tripped<", ">?<", "broker/vhost"]
        {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(!text.contains("as of") && page(Some(crate::clock::now())).contains("as of"));
    }
}
