//! The pages of the admin console.
//!
//! Guarantees: the template escapes all texts of users and platforms. The pages work without scripts and without
//! colour, because each state is shown as a word. The only script adds the local time.

mod actions;
mod conversations;
mod course;
mod lists;
mod overview;

pub(super) use actions::{discarded, edit, plan, progress, question};
pub(super) use conversations::{conversation, conversations};
pub(super) use course::course;
use jiff::Timestamp;
pub(super) use lists::{ListPage, letter, letters};
use maud::{DOCTYPE, Markup, html};
pub(super) use overview::overview;

use super::runs::ReplayRun;
use crate::dead_letters::{self, DeadLetterFilter, DeadLetterSummary};
use crate::message::DeadReason;

/// The data of the frame of each page.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PageFrame<'a> {
    /// The form token if the user is logged in.
    pub(super) form: Option<&'a str>,
    /// The place of the deployment: a folder, or host and vhost of the broker.
    pub(super) place: &'a str,
    /// Whether the user may change something, and not only look.
    pub(super) may_act: bool,
    /// Whether the browser loads the page again and again.
    pub(super) refresh: Option<&'a PageRefresh>,
}

/// The repeated loading of a page, which a user can turn on and off.
#[derive(Debug)]
pub(super) struct PageRefresh {
    /// The time between two loads.
    pub(super) seconds: u32,
    pub(super) is_on: bool,
    /// The address of the page with the other choice.
    pub(super) other: String,
}

/// The frame of each page.
fn page(title: &str, frame: PageFrame<'_>, content: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · Causeway" }
                link rel="stylesheet" href="/desk/style.css";
                @if frame.form.is_some() { script src="/desk/local-time.js" defer {} }
            }
            body {
                a.skip href="#content" { "Skip to the content" }
                header {
                    nav aria-label="Pages" {
                        a href="/desk" { "Status" }
                        a href="/desk/letters" { "Dead letters" }
                        a href="/desk/conversations" { "Conversations" }
                    }
                    @if let Some(form) = frame.form {
                        p.hint { "Causeway " (env!("CARGO_PKG_VERSION")) " on " span.wrap { (frame.place) } }
                        form method="post" action="/desk/logout" {
                            input type="hidden" name="form" value=(form);
                            button.quiet { "Log out" }
                        }
                    }
                }
                main #content { h1 { (title) } (content) }
                footer {
                    "All times are UTC."
                    @if let Some(refresh) = frame.refresh { " " (again(refresh)) }
                }
            }
        }
    }
}

fn again(refresh: &PageRefresh) -> Markup {
    let seconds = plural(refresh.seconds as usize, "second");
    html! {
        @if refresh.is_on { "This page is loaded again every " (seconds) ". " a href=(refresh.other) { "Stop loading it again" } }
        @else { a href=(refresh.other) { "Load this page again every " (seconds) } }
    }
}

pub(super) fn login(back: &str, refused: bool) -> Markup {
    let content = html! {
        @if refused { p.bad role="alert" { "The token is wrong." } }
        form.narrow method="post" action="/desk/login" {
            input type="hidden" name="back" value=(back);
            label for="token" { "Token" }
            input id="token" type="password" name="token" autocomplete="current-password" required autofocus;
            p.hint { "The value of " code { "admin.token" } ", or of one of " code { "admin.tokens" } ", in the settings of this process." }
            button.main { "Log in" }
        }
    };
    page("Log in", PageFrame::default(), &content)
}

pub(super) fn refusal(frame: PageFrame<'_>, title: &str, why: &dyn std::fmt::Display) -> Markup {
    let content = html! {
        p.bad role="alert" { (why) }
        p { a href="/desk" { "To the status" } " " a href="/desk/letters" { "To the dead letters" } }
    };
    page(title, frame, &content)
}

/// The dead letters by reason, destination and the platform's answer.
fn groups(filter: &DeadLetterFilter, entries: &[DeadLetterSummary]) -> Markup {
    let key = |entry: &DeadLetterSummary| (entry.destination, entry.reason, entry.answer);
    html! {
        table.list {
            caption { "By reason, destination and the platform's answer" }
            thead { tr {
                th scope="col" { "Reason" } th scope="col" { "To" } th scope="col" { "Answer" } th.number scope="col" { "Dead letters" }
                th.number scope="col" { "Conversations" } th scope="col" { "First" } th scope="col" { "Last" }
            } }
            tbody { @for ((destination, reason, answer), group) in dead_letters::summary_by(entries, key) {
                @let inner = DeadLetterFilter {
                    destination: Some(destination), reasons: [reason].into(), answer: Some(answer), ..filter.clone()
                };
                tr {
                    th scope="row" { a href=(link("/desk/letters", &inner)) { (reason) } p.hint { (meaning(reason)) } }
                    td data-label="To" { (destination) } td data-label="Answer" { (answer) }
                    td.number data-label="Dead letters" { (group.count) } td.number data-label="Conversations" { (group.lanes) }
                    td data-label="First" { (moment(group.first)) } td data-label="Last" { (moment(group.last)) }
                }
            } }
        }
    }
}

fn actions(frame: PageFrame<'_>, filter: &DeadLetterFilter, count: usize) -> Markup {
    html! {
        @if frame.may_act { div.actions {
            a.button.main href=(link("/desk/replay", filter)) { "Replay " (counted(count as u64)) "…" }
            form method="post" action="/desk/export" {
                (hidden(frame, filter))
                button title="JSON Lines with the texts of the messages" { "Export with texts" }
            }
            a.button.danger href=(link("/desk/discard", filter)) { "Discard…" }
        } }
    }
}

fn trouble(run: &ReplayRun) -> Option<&str> {
    run.ended.as_ref().and_then(|(_, trouble)| trouble.as_deref())
}

fn told(run: &ReplayRun) -> String {
    let (done, of) = (run.replay_counts.replayed, run.to_replay);
    let became = run.outcomes.describe();
    match (&run.ended, trouble(run)) {
        (None, _) if run.published => {
            format!("{done} of {of} replayed, waiting for their outcomes: {became}.")
        }
        (None, _) => format!("running, {done} of {of}."),
        (Some(_), None) => format!("done, {done} of {of} replayed: {became}."),
        (Some(_), Some(why)) => {
            format!(
                "stopped at {done} of {of} ({became}): {why}. The rest was not changed: replay again to continue."
            )
        }
    }
}

fn hidden(frame: PageFrame<'_>, filter: &DeadLetterFilter) -> Markup {
    html! {
        input type="hidden" name="form" value=(frame.form.unwrap_or_default());
        @for (name, value) in filter.written() { input type="hidden" name=(name) value=(value); }
    }
}

fn link(path: &str, filter: &DeadLetterFilter) -> String {
    link_with(path, filter, [])
}

fn link_with<const N: usize>(path: &str, filter: &DeadLetterFilter, more: [(&str, String); N]) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(filter.written());
    query.extend_pairs(more);
    let query = query.finish();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

/// A link to the page of a conversation. `name`: its id, or a chat of ServiceNow.
fn to_conversation(name: &str) -> Markup {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    let query = query.append_pair("name", name).finish();
    html! { a href={ "/desk/conversation?" (query) } { (name) } }
}

fn moment(at: Timestamp) -> Markup {
    let ago = std::time::Duration::from_secs(crate::clock::since(at).as_secs());
    // The two largest units are sufficient.
    let ago = humantime::format_duration(ago).to_string();
    let ago: Vec<&str> = ago.split(' ').take(2).collect();
    html! { (time(at)) span.hint { " " (ago.join(" ")) " ago" } }
}

fn time(at: Timestamp) -> Markup {
    html! { time datetime=(at) { (at.strftime("%Y-%m-%d %H:%M:%S")) } }
}

fn counted(count: u64) -> String {
    crate::status::counted(count, "dead letter")
}

fn plural(count: usize, noun: &str) -> String {
    crate::status::counted(count as u64, noun)
}

const fn meaning(reason: DeadReason) -> &'static str {
    match reason {
        DeadReason::Rejected => "the platform refused it for good",
        DeadReason::Expired => "its deadline passed",
        DeadReason::Unreadable => "it could not be read",
        DeadReason::ConversationFailed => "its chat never opened",
        DeadReason::ConversationOver => "its chat was over",
        DeadReason::UnknownConversation => "its chat is unknown",
        DeadReason::Exhausted => "it kept failing while other messages were delivered",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letters::brief::{Brief, BriefPage};
    use crate::dead_letters::replay::{KnownOutcomes, ReplayPlan};
    use crate::message::{
        AttemptHistory, AttemptRecord, DeadLetter, Destination, Kind, LaneKey, Message, MessageId,
        PlatformWords,
    };

    const FRAME: PageFrame<'_> =
        PageFrame { form: Some("f"), place: "broker/vhost", may_act: true, refresh: None };

    #[test]
    fn hostile_words_stay_words() {
        let hostile = r#"</pre><script>alert(1)</script>"><img src=x onerror=alert(1)>"#;
        let body = serde_json::json!({ "conversation_id": hostile, "message": hostile }).to_string();
        let message = Message::new(
            MessageId::fresh(),
            Kind::HandoffMessage,
            Destination::ServiceNow,
            LaneKey::parse(hostile).unwrap(),
            body,
        );
        let mut story = AttemptHistory::default();
        story.add(AttemptRecord {
            at: crate::clock::now(),
            status: Some(400),
            outcome: hostile.into(),
            error: hostile.into(),
            said: PlatformWords::new(hostile, ""),
        });
        let dead = DeadLetter::new(message, DeadReason::Rejected, hostile, story);
        let filter = DeadLetterFilter { conversation: Some(hostile.into()), ..DeadLetterFilter::default() };
        let found = BriefPage {
            entries: vec![DeadLetterSummary::from(&dead)],
            briefs: vec![Brief::from(&dead)],
            destinations: vec![Destination::ServiceNow],
        };
        let list = ListPage { before: 0, size: 100, newest_first: true };
        let known = KnownOutcomes::default();
        let pages = [
            letters(FRAME, &filter, &found, list, None),
            letter(FRAME, dead.message.id, std::slice::from_ref(&dead), (true, true)),
            edit(FRAME, &dead),
            plan(FRAME, &filter, &ReplayPlan::new(found.entries.clone(), &filter, &known)),
            question(FRAME, &filter, &found.entries),
            login(hostile, true),
            refusal(FRAME, "Refused", &hostile),
        ];
        for page in pages {
            let text = page.into_string();
            let own = text.replace("<script src=\"/desk/local-time.js\" defer>", "");
            assert!(!own.contains("<script") && !text.contains("<img"), "{text}");
            assert!(
                !text.contains("alert") || text.contains("&quot;&gt;&lt;img"),
                "an attribute ends where it ends: {text}"
            );
        }
    }

    #[test]
    fn text_is_hidden_until_asked_for() {
        let dead = [DeadLetter::refused(b"private words")];
        let shown = |reveal| letter(FRAME, dead[0].message.id, &dead, (reveal, true)).into_string();
        for words in ["private words", "echoed words"] {
            assert!(!shown(false).contains(words));
            assert!(shown(true).contains(words));
        }
    }
}
