//! Finds out by reading whether a call without an answer succeeded, before it is made again.
//!
//! Neither API takes an idempotency key, so a message can be recognised only by its text. Texts repeat, so each
//! search is limited to the places where the lost call can be found. For a start these are the open chats that belong
//! to no conversation (the directory's claim decides). For a message it is everything after the last message that is
//! known to be delivered.
//! Guarantees: in doubt the result is "not found". The worst consequence is a repeated message, never a lost one.
//! Not responsible for: claiming (`conversation/`), remembering the last delivered message (`delivery/`).

use std::cmp::Ordering;
use std::collections::HashSet;

use super::wire::{OneOrMany, WireMessage, WireSession};
use super::{ApiRequest, QueueEntry, ServiceNow};
use crate::message::{ConversationId, rich_text};
use crate::platform::error::CallError;
use crate::telemetry::logged_conversation;

/// The maximum number of pages of a conversation that are read.
const PAGES_MAX: usize = 5;
/// The number of rows of a full page (`FACTS.md`). A shorter page without new rows is the last one.
const PAGE_ROWS: usize = 30;
/// The minimum length in characters of a truncated text. A stored text of at least this length counts as ours if our
/// text begins with it.
const CUT_CHARS_MIN: usize = 1000;

/// An open chat of our user that may be the one whose start was not answered.
///
/// The list is sorted newest first. The caller skips groups that the directory knows. The caller takes a chat that is
/// [`StartedChat::certain`]. It checks any other chat with [`ServiceNow::opening_of`], at most
/// [`StartedChat::LOOKS_MAX`] chats, and claims the first match. Two conversations with the same text may get each
/// other's chat. This makes no difference, because neither has received any other message yet. A start whose claim
/// fails afterwards has lost its chat to the other conversation, and opens another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartedChat {
    /// The chat.
    pub entry: QueueEntry,
    /// The queue entry shows our whole text. Otherwise the entry shows no text or only its beginning.
    pub certain: bool,
}

/// The text by which a start is recognised.
#[derive(Clone, Copy)]
pub struct StartText<'a> {
    /// The whole text, if each attempt sends the same text.
    pub whole: &'a str,
    /// The beginning of each attempt's text, if the rest can differ between attempts (a transcript that is read
    /// anew).
    pub begins: Option<&'a str>,
}

impl std::fmt::Debug for StartText<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StartText").finish_non_exhaustive()
    }
}

impl StartText<'_> {
    /// Compares `shown`, the text of a queue entry (whole, cut off or empty), with this start. `None`: another text;
    /// `Some(true)`: the whole text; `Some(false)`: possibly this start.
    fn fits(&self, shown: &str) -> Option<bool> {
        let (shown, whole) = (normal(shown), normal(self.whole));
        let cut = shown.trim_end_matches(['.', '…']).trim_end();
        let begins = self
            .begins
            .map(normal)
            .is_some_and(|begins| shown.starts_with(&begins) || begins.starts_with(cut));
        (shown == whole || whole.starts_with(cut) || begins).then_some(shown == whole)
    }
}

/// The first text of our user in a chat, as ServiceNow stores it.
pub struct OpeningMessage(WireMessage);

impl std::fmt::Debug for OpeningMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpeningMessage").finish_non_exhaustive()
    }
}

impl OpeningMessage {
    /// Whether it is this text.
    pub fn is(&self, text: &str) -> bool {
        carries(&self.0, text)
    }

    /// The forms that [`recognisable`] would have made of the sent text. ServiceNow may have changed the text in one
    /// of these ways.
    pub fn recognisable(&self) -> Vec<String> {
        readings(&self.0).map(|stored| stored.chars().take(CUT_CHARS_MIN).collect()).collect()
    }
}

/// The forms of a text that survive ServiceNow's changes. White space may change, tags may be stripped, and a column
/// may truncate the text beyond this length.
pub fn recognisable(text: &str) -> [String; 2] {
    [normal(text), normal(&rich_text::html_text(text, None))]
        .map(|text| text.chars().take(CUT_CHARS_MIN).collect())
}

impl StartedChat {
    /// The maximum number of uncertain chats that are read for one start.
    pub const LOOKS_MAX: usize = 10;
}

/// A message that ServiceNow has stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostedMessage {
    /// sys_id of the `live_message`, if the answer named it.
    pub sys_id: Option<String>,
}

/// The point at which a search begins. A caller that knows neither must not search. It would take an older message
/// with the same text for the lost one, and the lost message would never be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadSince<'a> {
    /// It is certain that nothing was sent after the start of the chat.
    Start,
    /// sys_id of the last message that was delivered ([`PostedMessage::sys_id`]).
    Message(&'a str),
}

impl ServiceNow {
    /// Open chats of our user in the queue that may carry this start's text, newest first. See [`StartedChat`]. Empty if
    /// the list exceeds the size limit: the next attempt would find it too large as well, so the start could never be
    /// made.
    pub async fn find_started(
        &self,
        conversation: &ConversationId,
        queue_id: &str,
        text: StartText<'_>,
    ) -> Result<Vec<StartedChat>, CallError> {
        let path = ["api", "now", "connect", "support", "queues", queue_id, "sessions"];
        let asked = self.in_session(conversation, ApiRequest::get(&path, &[])).await;
        let found: OneOrMany<WireSession> = match asked {
            Err(error) if error.is_too_large() => {
                tracing::warn!(
                    conversation = logged_conversation(conversation),
                    "could not look for a chat that may have been started: the list of the queue's chats is too large"
                );
                return Ok(Vec::new());
            }
            answered => answered?,
        };
        let mut started: Vec<StartedChat> = found
            .into_vec()
            .into_iter()
            .filter_map(|session| {
                let mut entry = session.entry();
                let certain = text.fits(&entry.short_description.take().unwrap_or_default())?;
                let entry = entry.parse().filter(QueueEntry::is_open)?;
                Some(StartedChat { entry, certain })
            })
            .collect();
        // A stable sort: without numbers the order of the answer stays.
        started.sort_by(|left, right| age(&right.entry).cmp(&age(&left.entry)));
        Ok(started)
    }

    /// The first message of our user in this chat, if the newest page shows it.
    pub async fn opening_of(
        &self,
        conversation: &ConversationId,
        group: &str,
    ) -> Result<Option<OpeningMessage>, CallError> {
        let page = self.page(conversation, group, None).await?;
        Ok(page.into_iter().rev().find(|message| self.is_own(message)).map(OpeningMessage))
    }

    /// Returns the message with this text that our user posted after `since`, or `None`.
    pub async fn find_sent(
        &self,
        conversation: &ConversationId,
        group: &str,
        text: &str,
        since: ReadSince<'_>,
    ) -> Result<Option<PostedMessage>, CallError> {
        let mut own: Vec<WireMessage> = Vec::new();
        let mut pages = Pages::of(self, conversation, group);
        while let Some(page) = pages.next().await? {
            for message in page {
                if since.is(&message) {
                    return Ok(newest(&own, text));
                }
                if self.is_own(&message) {
                    own.push(message);
                }
            }
            if since == ReadSince::Start && own.len() >= 2 {
                break;
            }
        }
        if since != ReadSince::Start {
            return Ok(None);
        }
        // The oldest of our messages opened the chat, possibly with the same text.
        own.pop();
        Ok(newest(&own, text))
    }

    /// Returns one page of the conversation, newest first.
    pub(super) async fn page(
        &self,
        conversation: &ConversationId,
        group: &str,
        before: Option<&str>,
    ) -> Result<Vec<WireMessage>, CallError> {
        let path = ["api", "now", "connect", "conversations", group, "messages"];
        let query: Vec<(&str, &str)> = before.map(|before| ("before", before)).into_iter().collect();
        let mut page: Vec<WireMessage> =
            self.in_session(conversation, ApiRequest::get(&path, &query)).await?;
        if let (Some(first), Some(last)) = (page.first(), page.last())
            && time_order(&Written::of(first), &Written::of(last)) == Ordering::Less
        {
            page.reverse();
        }
        Ok(page)
    }

    pub(super) fn is_own(&self, message: &WireMessage) -> bool {
        message.created_by.as_deref().is_some_and(|user| self.is_own_user(user))
    }

    /// Whether this is the user of the login. ServiceNow ignores the case of user names.
    pub(super) fn is_own_user(&self, user: &str) -> bool {
        user.eq_ignore_ascii_case(self.username())
    }
}

/// Reads the messages of a conversation page by page, newest first, at most [`PAGES_MAX`] pages.
///
/// Pages after the first are requested with `before`. Only ServiceNow's own browser client is known to use `before`
/// (`FACTS.md`), so the order must not depend on the parameter. A row of a later page counts only if it comes after all
/// rows shown before and is not newer than those rows. An instance that ignores `before` shows the newest page again,
/// perhaps with rows that were written since.
pub(super) struct Pages<'a> {
    servicenow: &'a ServiceNow,
    conversation: &'a ConversationId,
    group: &'a str,
    seen: HashSet<String>,
    /// The time of the oldest row so far.
    oldest: Option<Written>,
    left: usize,
    /// Whether the last page had no new row.
    is_over: bool,
    /// Whether the pages so far cover the whole chat.
    is_complete: bool,
}

impl<'a> Pages<'a> {
    pub(super) fn of(servicenow: &'a ServiceNow, conversation: &'a ConversationId, group: &'a str) -> Self {
        Self {
            servicenow,
            conversation,
            group,
            seen: HashSet::new(),
            oldest: None,
            left: PAGES_MAX,
            is_over: false,
            is_complete: false,
        }
    }

    /// Returns the new rows of the next page. `None` if no further page can be read.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<WireMessage>>, CallError> {
        let before = self.oldest.as_ref().map(|oldest| oldest.timestamp.as_deref());
        // The next page is requested by the time of the oldest row, so a row without a time ends the reading.
        let is_asked = !matches!(before, Some(None));
        if self.is_over || self.left == 0 || !is_asked {
            return Ok(None);
        }
        self.left -= 1;
        let page = self.servicenow.page(self.conversation, self.group, before.flatten()).await?;
        let rows = page.len();
        let fresh = self.older(page);
        if let Some(last) = fresh.last() {
            self.oldest = Some(Written::of(last));
            return Ok(Some(fresh));
        }
        self.is_over = true;
        // A full page without new rows may come from an instance that ignores `before`, and then older rows are hidden.
        // A chat without any row hides all of its rows.
        self.is_complete = rows < PAGE_ROWS && self.oldest.is_some();
        Ok(None)
    }

    /// Returns the rows of a page that are older than all rows shown before, newest first.
    fn older(&mut self, mut page: Vec<WireMessage>) -> Vec<WireMessage> {
        let was_seen =
            |message: &WireMessage| message.sys_id.as_ref().is_some_and(|id| self.seen.contains(id));
        if let Some(last_seen) = page.iter().rposition(was_seen) {
            page.drain(..=last_seen);
        }
        if let Some(oldest) = &self.oldest {
            page.retain(|message| time_order(&Written::of(message), oldest) != Ordering::Greater);
        }
        page.retain(|message| message.sys_id.as_ref().is_none_or(|id| self.seen.insert(id.clone())));
        page
    }

    /// The number of requests so far.
    pub(super) const fn requests(&self) -> u64 {
        (PAGES_MAX - self.left) as u64
    }

    /// Whether the pages cover the whole chat, or its newest [`PAGES_MAX`] pages. Only valid after [`Pages::next`] has
    /// returned `None`.
    pub(super) const fn is_complete(&self) -> bool {
        self.is_complete || (self.left == 0 && !self.is_over)
    }
}

/// The time of a row, as far as the row states it.
#[derive(Debug, Clone)]
struct Written {
    timestamp: Option<String>,
    created_on: Option<String>,
}

impl Written {
    fn of(message: &WireMessage) -> Self {
        Self { timestamp: message.timestamp.clone(), created_on: message.created_on.clone() }
    }
}

impl ReadSince<'_> {
    fn is(self, message: &WireMessage) -> bool {
        matches!(self, Self::Message(id) if message.sys_id.as_deref() == Some(id))
    }
}

fn newest(own: &[WireMessage], text: &str) -> Option<PostedMessage> {
    let found = own.iter().find(|message| carries(message, text))?;
    Some(PostedMessage { sys_id: found.sys_id.clone() })
}

/// Orders chats by number, because later chats have higher numbers.
pub(super) fn age(entry: &QueueEntry) -> (usize, &str) {
    let number = entry.number.as_deref().unwrap_or_default();
    (number.len(), number)
}

/// Compares two times, which are epoch numbers or sortable text. [`Ordering::Equal`] if the times cannot be compared.
fn time_order(left: &Written, right: &Written) -> Ordering {
    let pairs = [(&left.timestamp, &right.timestamp), (&left.created_on, &right.created_on)];
    for (left, right) in pairs {
        if let (Some(left), Some(right)) = (left, right) {
            let order = match (left.parse::<f64>(), right.parse::<f64>()) {
                (Ok(left), Ok(right)) => left.total_cmp(&right),
                _ => left.cmp(right),
            };
            if order != Ordering::Equal {
                return order;
            }
        }
    }
    Ordering::Equal
}

/// Whether a stored message is our text. ServiceNow strips tags from users' texts and adds references and mark-up of
/// its own, so each reading of the stored text is compared.
fn carries(message: &WireMessage, text: &str) -> bool {
    let wanted = [normal(text), normal(&rich_text::html_text(text, None))];
    readings(message).any(|stored| {
        let is_cut = stored.chars().count() >= CUT_CHARS_MIN && wanted[0].starts_with(&stored);
        is_cut || wanted.iter().any(|wanted| !wanted.is_empty() && *wanted == stored)
    })
}

/// Returns the possible readings of a stored message.
fn readings(message: &WireMessage) -> impl Iterator<Item = String> {
    let plain = [&message.message, &message.formatted_message].into_iter().flatten();
    plain.flat_map(|stored| {
        let readings: [&str; 4] = [
            stored,
            &rich_text::references(stored),
            &rich_text::message_text(stored, None),
            &rich_text::html_text(stored, None),
        ];
        readings.map(normal)
    })
}

/// Replaces each run of white space by one blank. ServiceNow trims texts and exchanges line breaks and blanks.
fn normal(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
