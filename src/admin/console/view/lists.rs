//! The list of dead letters, and one dead letter with its attempts.

use maud::{Markup, html};

use super::super::runs::ReplayRun;
use super::{
    PageFrame, actions, counted, groups, link, link_with, moment, page, time, to_conversation, told,
};
use crate::dead_letters::brief::{Brief, BriefPage};
use crate::dead_letters::edit::is_editable;
use crate::dead_letters::{DeadLetterFilter, conversation_of};
use crate::message::{DeadLetter, DeadReason, Destination, MessageId};

/// Which page of the list is shown.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct ListPage {
    /// The number of lines before the page.
    pub(in super::super) before: usize,
    /// The number of lines of a full page.
    pub(in super::super) size: usize,
    pub(in super::super) newest_first: bool,
}

pub(in super::super) fn letters(
    frame: PageFrame<'_>,
    filter: &DeadLetterFilter,
    found: &BriefPage,
    list: ListPage,
    run: Option<&ReplayRun>,
) -> Markup {
    let content = html! {
        @if let Some(run) = run { p.note { "The newest replay: " (told(run)) " " a href="/desk/progress" { "More" } } }
        (filters(filter, &found.destinations))
        @if found.entries.is_empty() {
            p.good {
                @if *filter == DeadLetterFilter::default() { "There are no dead letters." } @else { "No dead letter matches these filters." }
            }
        } @else {
            (groups(filter, &found.entries))
            (actions(frame, filter, found.entries.len()))
            (lines(frame, filter, found, list))
        }
    };
    page("Dead letters", frame, &content)
}

/// One line for each dead letter. The boxes and the buttons are one form, which asks for a plan or a question.
fn lines(frame: PageFrame<'_>, filter: &DeadLetterFilter, found: &BriefPage, list: ListPage) -> Markup {
    html! {
        form method="get" action="/desk/replay" {
            input type="hidden" name="selected" value="true";
            table.list {
                caption { (position(found, list)) ": " (counted(found.entries.len() as u64)) }
                thead { tr {
                    @if frame.may_act { th scope="col" { "Select" } }
                    th scope="col" { "Died" } th scope="col" { "Kind" } th scope="col" { "To" } th scope="col" { "Conversation" }
                    th scope="col" { "Reason" } th scope="col" { "Answer" } th scope="col" { "Detail" } th.number scope="col" { "Attempts" }
                } }
                tbody { @for brief in &found.briefs { (row(frame, brief)) } }
            }
            @if frame.may_act {
                div.actions {
                    button.main { "Replay the selected…" }
                    button.danger formaction="/desk/discard" { "Discard the selected…" }
                }
            }
        }
        (page_links(filter, found, list))
    }
}

/// `The newest 1 to 100`.
fn position(found: &BriefPage, list: ListPage) -> String {
    let order = if list.newest_first { "newest" } else { "oldest" };
    match found.briefs.len() {
        0 => format!("Behind the last of the {order}"),
        shown => format!("The {order} {} to {}", list.before + 1, list.before + shown),
    }
}

fn page_links(filter: &DeadLetterFilter, found: &BriefPage, list: ListPage) -> Markup {
    let to = |before: usize, newest_first: bool| {
        let order = if newest_first { "newest" } else { "oldest" };
        let more =
            [("before", before.to_string()), ("limit", list.size.to_string()), ("sort", order.to_owned())];
        link_with("/desk/letters", filter, more)
    };
    let behind = list.before.saturating_add(list.size);
    html! {
        nav.pages aria-label="Pages of the list" {
            @if list.before > 0 { a href=(to(list.before.saturating_sub(list.size), list.newest_first)) { "Previous page" } }
            @if behind < found.entries.len() { a href=(to(behind, list.newest_first)) { "Next page" } }
            a href=(to(0, !list.newest_first)) { @if list.newest_first { "Oldest first" } @else { "Newest first" } }
        }
    }
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

fn row(frame: PageFrame<'_>, brief: &Brief) -> Markup {
    let id = brief.id.to_string();
    let short = id.get(id.len().saturating_sub(8)..).unwrap_or_default();
    html! { tr {
        @if frame.may_act {
            td data-label="Select" { input type="checkbox" name="id" value=(id) aria-label={ "Select " (brief.kind) " " (short) }; }
        }
        td { (time(brief.died_at)) }
        td data-label="Kind" { a href={ "/desk/letters/" (id) } { (brief.kind) } }
        td data-label="To" { (brief.destination) }
        td.line data-label="Conversation" { (to_conversation(brief.conversation())) }
        td data-label="Reason" { (brief.reason) }
        td data-label="Answer" { (brief.answer) }
        td.line data-label="Detail" title=(brief.detail) { (brief.detail) }
        td.number data-label="Attempts" { (brief.attempts) }
    } }
}

pub(in super::super) fn letter(
    frame: PageFrame<'_>,
    id: MessageId,
    deaths: &[DeadLetter],
    (reveal, may_edit): (bool, bool),
) -> Markup {
    let filter = DeadLetterFilter { ids: [id].into(), ..DeadLetterFilter::default() };
    let content = html! {
        @for dead in deaths { (death(frame, dead, reveal)) }
        (actions(frame, &filter, deaths.len()))
        @if may_edit && deaths.last().is_some_and(|dead| is_editable(dead.reason)) {
            p { a.button href={ "/desk/letters/" (id) "/edit" } { "Edit and replay…" } }
        }
    };
    let kind = deaths.first().map_or("message", |dead| dead.message.kind.as_str());
    page(kind, frame, &content)
}

fn death(frame: PageFrame<'_>, dead: &DeadLetter, reveal: bool) -> Markup {
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
                    @if frame.may_act { a.button href={ "/desk/letters/" (message.id) "?reveal=true" } { "Show the text" } }
                }
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
                    td.number data-label="Status" { @match attempt.status { Some(status) => (status), None => "–" } }
                    td data-label="Outcome" { (attempt.outcome) } td.wrap data-label="Error" {
                        (attempt.error)
                        @if reveal && !attempt.said.is_empty() { ": " (attempt.said.reveal()) }
                    }
                } } }
            }
        }
    }
}
