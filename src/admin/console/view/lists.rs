//! Pages that only show data: the list, and one dead letter with its attempts.

use maud::{Markup, html};

use super::super::runs::ReplayRun;
use super::{PageFrame, actions, counted, groups, link, moment, page, to_conversation, told};
use crate::dead_letters::{DeadLetterFilter, SearchResult, conversation_of};
use crate::message::{DeadLetter, DeadReason, Destination, MessageId};

pub(in super::super) fn home(
    frame: PageFrame<'_>,
    filter: &DeadLetterFilter,
    found: &SearchResult,
    run: Option<&ReplayRun>,
) -> Markup {
    let (shown, all) = (found.letters.len(), found.entries.len());
    let content = html! {
        @if let Some(run) = run { p.note { "The newest replay: " (told(run)) " " a href="/desk/progress" { "More" } } }
        (filters(filter, &found.destinations))
        @if found.entries.is_empty() {
            p.good {
                @if *filter == DeadLetterFilter::default() { "There are no dead letters." } @else { "No dead letter matches these filters." }
            }
        } @else {
            (groups(filter, &found.entries))
            (actions(frame, filter, all))
            table {
                caption { @if shown < all { "The oldest " (shown) " of " (all) } @else { (counted(all as u64)) } }
                thead { tr {
                    th scope="col" { "Died" } th scope="col" { "Kind" } th scope="col" { "Conversation" }
                    th scope="col" { "Reason" } th.number scope="col" { "Attempts" }
                } }
                tbody { @for dead in &found.letters { (row(dead)) } }
            }
        }
    };
    page("Dead letters", frame, &content)
}

fn filters(filter: &DeadLetterFilter, destinations: &[Destination]) -> Markup {
    let since = filter.since.map(|it| it.to_string()).unwrap_or_default();
    let until = filter.until.map(|it| it.to_string()).unwrap_or_default();
    html! {
        form.filters method="get" action="/desk/letters" {
            div { label for="destination" { "Destination" } select id="destination" name="destination" {
                option value="" { "all" }
                @for it in destinations { option value=(it) selected[filter.destination == Some(*it)] { (it) } }
            } }
            div { label for="reason" { "Reason" } select id="reason" name="reason" {
                option value="" { "all" }
                @for it in DeadReason::ALL { option value=(it) selected[filter.reasons.contains(it)] { (it) } }
            } }
            div { label for="conversation" { "Conversation, group or CHAT number" }
                input id="conversation" name="conversation" value=(filter.conversation.as_deref().unwrap_or_default()); }
            div { label for="since" { "Died since" } input id="since" name="since" placeholder="2h, or 2026-11-22 10:03" value=(since); }
            div { label for="until" { "and before" } input id="until" name="until" placeholder="15m, or 2026-11-22 10:03" value=(until); }
            div.go { button { "Filter" } " " a.button.quiet href="/desk/letters" { "All" } }
        }
    }
}

fn row(dead: &DeadLetter) -> Markup {
    let message = &dead.message;
    html! { tr {
        td { (moment(dead.died_at)) }
        td { a href={ "/desk/letters/" (message.id) } { (message.kind) } }
        td.wrap { (to_conversation(&conversation_of(dead).unwrap_or_else(|| message.lane.to_string()))) }
        td.wrap { (dead.reason) p.hint { (dead.detail) } }
        td.number { (dead.story.count()) }
    } }
}

pub(in super::super) fn letter(
    frame: PageFrame<'_>,
    id: MessageId,
    deaths: &[DeadLetter],
    reveal: bool,
) -> Markup {
    let filter = DeadLetterFilter { ids: [id].into(), ..DeadLetterFilter::default() };
    let content = html! {
        @for dead in deaths { (death(dead, reveal)) }
        (actions(frame, &filter, deaths.len()))
    };
    let kind = deaths.first().map_or("message", |dead| dead.message.kind.as_str());
    page(kind, frame, &content)
}

fn death(dead: &DeadLetter, reveal: bool) -> Markup {
    let message = &dead.message;
    let conversation = conversation_of(dead).unwrap_or_else(|| message.lane.to_string());
    let same = DeadLetterFilter { conversation: Some(conversation.clone()), ..DeadLetterFilter::default() };
    html! {
        section {
            p.bad { strong { (dead.reason) } ": " (dead.detail) }
            dl {
                dt { "Id" } dd { code { (message.id) } }
                dt { "To" } dd { (message.destination) }
                dt { "Conversation" } dd.wrap { (to_conversation(&conversation)) " (" a href=(link("/desk/letters", &same)) { "all its dead letters" } ")" }
                dt { "Accepted" } dd { (moment(message.accepted_at)) }
                dt { "Died" } dd { (moment(dead.died_at)) }
                @if message.replays > 0 { dt { "Replayed before" } dd { (message.replays) " times" } }
            }
            (story(dead, reveal))
            h2 { "Text" }
            @if reveal {
                pre dir="auto" { (String::from_utf8_lossy(&message.body)) }
            } @else {
                p { (message.body.len()) " bytes, hidden. "
                    a.button href={ "/desk/letters/" (message.id) "?reveal=true" } { "Show the text" } }
            }
        }
    }
}

fn story(dead: &DeadLetter, reveal: bool) -> Markup {
    let (count, left_out) = (dead.story.count(), dead.story.left_out());
    html! {
        h2 { "Attempts" }
        @if count == 0 { p { "None: the message was dead-lettered before anything was sent." } } @else {
            table {
                caption { (count) " in total" @if left_out > 0 { ", of which " (left_out) " in the middle are only counted" } }
                thead { tr { th scope="col" { "When" } th.number scope="col" { "Status" } th scope="col" { "Outcome" } th scope="col" { "Error" } } }
                tbody { @for attempt in dead.story.attempts() { tr {
                    td { (moment(attempt.at)) }
                    td.number { @match attempt.status { Some(status) => (status), None => "–" } }
                    td { (attempt.outcome) } td.wrap {
                        (attempt.error)
                        @if reveal && !attempt.said.is_empty() { ": " (attempt.said.reveal()) }
                    }
                } } }
            }
        }
    }
}
