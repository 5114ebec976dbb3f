//! The course of a message or of a conversation as a table: both directions in the order of time, without text.

use maud::{Markup, html};

use super::{PageFrame, page, plural};
use crate::conversation::JournalOutcome;
use crate::course::{Course, CourseEvent};
use crate::message::Destination;

/// The most events on one page.
const SHOWN: usize = 500;

/// The page of a name that belongs to no conversation of the directory, such as the id of a message.
pub(in super::super) fn course(frame: PageFrame<'_>, known: &Course) -> Markup {
    let content = html! { p { "Known under " strong.wrap { (known.name) } ":" } (events(known)) };
    page("Course", frame, &content)
}

/// The newest events of a course.
pub(super) fn events(known: &Course) -> Markup {
    let left_out = known.events.len().saturating_sub(SHOWN);
    html! {
        h2 { "Course" }
        @if known.events.is_empty() { p { "None of its messages was settled within journal.kept." } } @else {
            table.list {
                caption {
                    (plural(known.events.len(), "event"))
                    @if left_out > 0 { ", without the first " (left_out) ": causeway trace shows all" }
                }
                thead { tr {
                    th scope="col" { "At" } th scope="col" { "Event" } th scope="col" { "Way" } th scope="col" { "Kind" }
                    th scope="col" { "Detail" } th scope="col" { "Message" }
                } }
                tbody { @for event in known.events.iter().skip(left_out) { (row(event)) } }
            }
        }
        p.hint { "A message that still waits in a queue has no event yet. The attempts of a dead letter are on its page." }
    }
}

fn row(event: &CourseEvent) -> Markup {
    let died = event.event == JournalOutcome::DeadLettered.as_str();
    let detail = event.detail();
    html! { tr {
        td { time datetime=(event.at) { (event.at.strftime("%Y-%m-%d %H:%M:%S%.3f")) } }
        td data-label="Event" { strong { (event.event) } }
        td data-label="Way" { (way(event)) }
        td data-label="Kind" { (event.kind.as_deref().unwrap_or("–")) }
        td.wrap data-label="Detail" { @if detail.is_empty() { "–" } @else { (detail) } }
        td.wrap data-label="Message" {
            @match &event.message {
                Some(id) if died => a href={ "/desk/letters/" (id) } { (id) },
                Some(id) => code { (id) },
                None => "–",
            }
        }
    } }
}

/// The direction, and the destination of the message.
fn way(event: &CourseEvent) -> String {
    let Some(name) = &event.destination else { return "–".to_owned() };
    match Destination::parse(name) {
        Some(Destination::ServiceNow) => format!("to the agent ({name})"),
        _ if event.kind.as_deref().is_some_and(|kind| kind.starts_with("bot.")) => {
            format!("between user and bot ({name})")
        }
        _ => format!("to the user ({name})"),
    }
}
