//! Pages about conversations: the list with its search, and one conversation with its course.
//!
//! The pages show what the directory knows, and no text of a message.

use maud::{Markup, html};

use super::course::events;
use super::{PageFrame, link, moment, page, to_conversation};
use crate::conversation::{Conversation, ConversationState};
use crate::course::Course;
use crate::dead_letters::DeadLetterFilter;

/// The list. `asked`: the name that was searched for.
pub(in super::super) fn conversations(
    frame: PageFrame<'_>,
    asked: &str,
    state: Option<ConversationState>,
    found: &[Conversation],
    limit: u32,
) -> Markup {
    let is_full = u32::try_from(found.len()).is_ok_and(|count| count >= limit);
    let content = html! {
        form.filters method="get" action="/desk/conversations" {
            div { label for="name" { "Conversation, group or CHAT number" } input id="name" name="name" value=(asked); }
            div { label for="state" { "State" } select id="state" name="state" {
                option value="" { "all" }
                @for it in ConversationState::ALL { option value=(it) selected[state == Some(*it)] { (it) } }
            } }
            div.go { button { "Search" } " " a.button.quiet href="/desk/conversations" { "All" } }
        }
        @if found.is_empty() {
            p.note { "The directory knows no such conversation. The callback relay keeps none." }
            @if !asked.is_empty() { p { a href=(link("/desk/letters", &letters_of(asked))) { "Dead letters of this name" } } }
        } @else {
            table {
                caption { @if is_full { "The " (limit) " with the newest change" } @else { (found.len()) " found" } }
                thead { tr {
                    th scope="col" { "Conversation" } th scope="col" { "State" } th scope="col" { "ServiceNow" }
                    th scope="col" { "Opened" } th scope="col" { "Changed" }
                } }
                tbody { @for it in found { tr {
                    th.wrap scope="row" { (to_conversation(it.id.as_str())) }
                    td data-label="State" { (it.state) }
                    td.wrap data-label="ServiceNow" { (it.number.as_deref().or(it.group.as_deref()).unwrap_or("–")) }
                    td data-label="Opened" { (moment(it.opened_at)) } td data-label="Changed" { (moment(it.updated_at)) }
                } } }
            }
        }
    };
    page("Conversations", frame, &content)
}

/// One conversation.
pub(in super::super) fn conversation(frame: PageFrame<'_>, known: &Conversation, course: &Course) -> Markup {
    let letters = letters_of(known.id.as_str());
    let content = html! {
        p.note { strong { (known.state) } @if let Some(reason) = &known.reason { ": " (reason) } }
        dl {
            dt { "Conversation" } dd.wrap { code { (known.id) } }
            dt { "Came by" } dd { (known.origin) }
            @for (name, value) in facts(known) { dt { (name) } dd.wrap { (value) } }
            dt { "Opened" } dd { (moment(known.opened_at)) }
            @if known.state == ConversationState::Waiting { dt { "Without an agent since" } dd { (moment(known.waiting_since)) } }
            dt { "Changed" } dd { (moment(known.updated_at)) }
            @if let Some(at) = known.released_at { dt { "User back at the bot" } dd { (moment(at)) } }
        }
        p { a href=(link("/desk/letters", &letters)) { "Its dead letters, in both directions" } }
        (events(course))
    };
    page("Conversation", frame, &content)
}

fn letters_of(name: &str) -> DeadLetterFilter {
    DeadLetterFilter { conversation: Some(name.to_owned()), ..DeadLetterFilter::default() }
}

/// The facts that are known, each with its name.
fn facts(known: &Conversation) -> impl Iterator<Item = (&'static str, String)> {
    let position = known.position.map(|position| position.to_string());
    [
        ("Chat at ServiceNow", known.number.clone()),
        ("Group at ServiceNow", known.group.clone()),
        ("Queue", known.queue_id.clone()),
        ("Position", position),
        ("Wait", known.wait.clone()),
        ("Agent", known.agent.clone()),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
}
