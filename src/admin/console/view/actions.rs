//! Pages of actions: the plan and the confirmation before an action, its progress and its result.

use maud::{Markup, html};

use super::super::runs::ReplayRun;
use super::{PageFrame, counted, groups, hidden, link, moment, page, told, trouble};
use crate::dead_letters::replay::{ReplayAction, ReplayPlan};
use crate::dead_letters::{DeadLetterFilter, DeadLetterSummary};
use crate::message::DeadLetter;

pub(in super::super) fn plan(frame: PageFrame<'_>, filter: &DeadLetterFilter, plan: &ReplayPlan) -> Markup {
    let (to_replay, to_clear, to_leave) = (plan.to_replay(), plan.to_clear(), plan.to_leave());
    let content = html! {
        (meant(filter))
        @if plan.steps().is_empty() { p.good { "There is nothing to replay." } } @else {
            p { "Nothing has been changed yet. A replay would do the following, each conversation in its original order:" }
            table {
                caption { (to_replay) " replayed, " (to_clear) " removed, " (to_leave) " kept" }
                thead { tr { th scope="col" { "Action" } th scope="col" { "To" } th scope="col" { "Reason" }
                    th.number scope="col" { "Dead letters" } th.number scope="col" { "Conversations" } } }
                tbody { @for ((action, destination, reason), (count, lanes)) in plan.summary() { tr {
                    th scope="row" { (what_happens(action)) } td data-label="To" { (destination) } td data-label="Reason" { (reason) }
                    td.number data-label="Dead letters" { (count) } td.number data-label="Conversations" { (lanes) }
                } } }
            }
        }
        @if to_replay + to_clear > 0 {
            form.narrow method="post" action="/desk/replay" {
                (hidden(frame, filter))
                label for="rate" { "Maximum rate in messages a second (empty: no limit)" }
                input id="rate" name="rate" inputmode="decimal" placeholder="20";
                button.main { "Replay " (counted(to_replay)) } " " a href=(link("/desk/letters", filter)) { "Cancel" }
            }
        } @else { p { a href=(link("/desk/letters", filter)) { "Back" } } }
    };
    page("Replay plan", frame, &content)
}

pub(in super::super) fn progress(frame: PageFrame<'_>, run: Option<&ReplayRun>) -> Markup {
    let running = run.is_some_and(|run| run.ended.is_none());
    let content = html! {
        @match run {
            None => p { "This process has run no replay since its start." },
            Some(run) => {
                p class=(if running { "note" } else if trouble(run).is_some() { "bad" } else { "good" }) role="status" { (told(run)) }
                progress aria-label="Progress" max=((run.to_replay + run.to_clear).max(1)) value=(run.replay_counts.replayed + run.replay_counts.cleared) { (run.replay_counts.replayed) }
                dl {
                    dt { "Began" } dd { (moment(run.began)) }
                    @if let Some((ended, _)) = run.ended { dt { "Ended" } dd { (moment(ended)) } }
                    dt { "Replayed" } dd { (run.replay_counts.replayed) " of " (run.to_replay) }
                    dt { "Delivered" } dd { (run.outcomes.delivered) }
                    dt { "Died again" } dd { (run.outcomes.died_again) }
                    @if run.outcomes.answered > 0 { dt { "No agent came" } dd { (run.outcomes.answered) } }
                    @if run.outcomes.nothing_to_send > 0 { dt { "Nothing to send" } dd { (run.outcomes.nothing_to_send) } }
                    @if run.published && run.outcomes.on_the_way > 0 { dt { "Still on their way" } dd { (run.outcomes.on_the_way) } }
                    dt { "Removed" } dd { (run.replay_counts.cleared) " of " (run.to_clear) }
                }
            }
        }
        @if running && frame.may_act {
            form.actions method="post" action="/desk/stop" {
                input type="hidden" name="form" value=(frame.form.unwrap_or_default());
                button.danger { "Stop" }
            }
        }
        p { a href="/desk/letters" { "Back to the dead letters" } }
    };
    page("Replay", frame, &content)
}

/// The form with the text of a message.
pub(in super::super) fn edit(frame: PageFrame<'_>, dead: &DeadLetter) -> Markup {
    let id = dead.message.id;
    let content = html! {
        p.note { strong { (dead.reason) } ": " (dead.detail) }
        p { "The changed message is sent under a new id. This dead letter is kept until the new message is delivered." }
        form.narrow.wide method="post" action="/desk/edit" {
            input type="hidden" name="form" value=(frame.form.unwrap_or_default());
            input type="hidden" name="id" value=(id);
            input type="hidden" name="died_at" value=(dead.died_at);
            label for="body" { "The message as JSON" }
            // The browser removes a line break at the beginning of a text area.
            textarea id="body" name="body" dir="auto" spellcheck="false" { "\n" (String::from_utf8_lossy(&dead.message.body)) }
            div.actions { button.main { "Send the changed message" } a href={ "/desk/letters/" (id) } { "Cancel" } }
        }
    };
    page("Edit and replay", frame, &content)
}

pub(in super::super) fn question(
    frame: PageFrame<'_>,
    filter: &DeadLetterFilter,
    entries: &[DeadLetterSummary],
) -> Markup {
    let count = entries.len() as u64;
    let content = html! {
        @if count == 0 { p.good { "There is nothing to discard." } p { a href="/desk/letters" { "Back" } } } @else {
            (meant(filter))
            (groups(filter, entries))
            p.bad role="alert" { "Remove " strong { (counted(count)) } " for good? Removed dead letters cannot be restored." }
            form.actions method="post" action="/desk/discard" {
                (hidden(frame, filter))
                input type="hidden" name="confirm" value=(count);
                a.button.main href=(link("/desk/letters", filter)) { "Keep them" }
                button.danger { "Remove " (counted(count)) }
            }
        }
    };
    page("Discard", frame, &content)
}

pub(in super::super) fn discarded(frame: PageFrame<'_>, gone: u64) -> Markup {
    let content = html! {
        p.good role="status" { "Removed " (counted(gone)) "." }
        p { a href="/desk/letters" { "Back to the dead letters" } }
    };
    page("Discarded", frame, &content)
}

/// Shows the filters on a page that asks for a decision.
fn meant(filter: &DeadLetterFilter) -> Markup {
    let asked = filter.written();
    html! { p { "Selected: " @if asked.is_empty() { strong { "all dead letters" } } @else {
        @for (index, (name, value)) in asked.iter().enumerate() {
            @if index > 0 { ", " } (name) " " strong.wrap { (value) }
        }
    } } }
}

const fn what_happens(action: ReplayAction) -> &'static str {
    match action {
        ReplayAction::Replay => "Replayed",
        ReplayAction::Delivered => "Removed: delivered meanwhile",
        ReplayAction::Superseded => "Removed: a later dead letter of the same message is replayed",
        ReplayAction::Unreadable => "Kept: unreadable, so a replay would fail again",
        ReplayAction::Over => "Kept: its chat has ended",
        ReplayAction::OtherPayload => "Kept: another request was delivered under its key",
    }
}
