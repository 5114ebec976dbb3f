//! What became of a call without an answer: read it back before trying again.
//!
//! Neither API takes an idempotency key, so the text is all there is to recognise our own by. Texts repeat, so each
//! search is cut down to where only the lost call can stand: for a start, the open chats that no conversation owns
//! (the directory's claim decides); for a message, what stands behind the last one known to be delivered.
//! Guarantees: where it stays in doubt the answer is "not found". The worst is then a repeat, never a loss.
//! Leaves to others: claiming (`conversation/`), remembering the last delivered message (`delivery/`).

use std::cmp::Ordering;

use super::wire::{OneOrMany, WireMessage, WireSession};
use super::{QueueEntry, Request, ServiceNow};
use crate::message::{ConversationId, rich_text};
use crate::platform::error::CallError;

/// How many pages of a conversation are read at most.
pub(super) const PAGES_MAX: usize = 5;
/// From here on a stored text that is the beginning of ours counts as ours, cut off by its column.
const CUT_CHARS_MIN: usize = 1000;

/// An open chat of our user that may be the one whose start was not answered.
///
/// Newest first: skip the groups that the directory knows; take one that is [`Started::certain`] as it is, ask
/// [`ServiceNow::opening_of`] about another (about [`Started::LOOKS_MAX`] of them at most), and claim what is left.
/// Of two conversations with the same text each may get the other's chat: nobody can tell the difference, since
/// neither has heard anything else yet. A start whose claim fails afterwards has lost its chat to the other that way
/// and opens another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// The chat.
    pub entry: QueueEntry,
    /// The queue entry shows our whole text. Otherwise it shows nothing, or only how it begins.
    pub certain: bool,
}

/// The text that a start is recognised by.
#[derive(Clone, Copy)]
pub struct StartText<'a> {
    /// The whole text, if every try sends the same one.
    pub whole: &'a str,
    /// How the text of each try begins, if what follows can differ from try to try (a transcript that is read anew).
    pub begins: Option<&'a str>,
}

impl std::fmt::Debug for StartText<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StartText").finish_non_exhaustive()
    }
}

impl StartText<'_> {
    /// Whether `shown`, the text of a queue entry (whole, cut off or empty), can be of this start, and whether it is all of it.
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

/// The first words of our user in a chat, as ServiceNow stores them.
pub struct Opening(WireMessage);

impl std::fmt::Debug for Opening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opening").finish_non_exhaustive()
    }
}

impl Opening {
    /// Whether they are this text.
    pub fn is(&self, text: &str) -> bool {
        carries(&self.0, text)
    }

    /// What [`recognisable`] would have made of the text that was sent; ServiceNow may have changed it in one of these ways.
    pub fn recognisable(&self) -> Vec<String> {
        readings(&self.0).map(|stored| stored.chars().take(CUT_CHARS_MIN).collect()).collect()
    }
}

/// What stays of a text whatever ServiceNow does to it: blanks may change, tags may be stripped, and a column may cut it off beyond
/// this length.
pub fn recognisable(text: &str) -> [String; 2] {
    [normal(text), normal(&rich_text::html_text(text, None))]
        .map(|text| text.chars().take(CUT_CHARS_MIN).collect())
}

impl Started {
    /// How many uncertain chats are worth reading for one start.
    pub const LOOKS_MAX: usize = 10;
}

/// A message in ServiceNow's hands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Posted {
    /// sys_id of the `live_message`, where the answer named it.
    pub sys_id: Option<String>,
}

/// Where a search begins. Whoever knows neither must not search: an older message of the same text would pass for the
/// lost one, and the lost one would stay lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since<'a> {
    /// Certainly nothing was sent after the start of the chat.
    Start,
    /// sys_id of the last message that was delivered ([`Posted::sys_id`]).
    Message(&'a str),
}

impl ServiceNow {
    /// Open chats of our user in the queue that may carry this start's text, newest first. See [`Started`]. None of them where the
    /// list is longer than we read: it would be so for the next try, too, which then could never be made.
    pub async fn find_started(
        &self,
        conversation: &ConversationId,
        queue_id: &str,
        text: StartText<'_>,
    ) -> Result<Vec<Started>, CallError> {
        let path = ["api", "now", "connect", "support", "queues", queue_id, "sessions"];
        let asked = self.in_session(conversation, Request::get(&path, &[])).await;
        let found: OneOrMany<WireSession> = match asked {
            Err(error) if error.is_too_large() => {
                tracing::warn!(%conversation, "too many chats in the queue to look for the one that may have been started");
                return Ok(Vec::new());
            }
            answered => answered?,
        };
        let mut started: Vec<Started> = found
            .into_vec()
            .into_iter()
            .filter_map(|session| {
                let mut entry = session.entry();
                let certain = text.fits(&entry.short_description.take().unwrap_or_default())?;
                let entry = entry.meaning().filter(QueueEntry::is_open)?;
                Some(Started { entry, certain })
            })
            .collect();
        // Stable: without numbers the order of the answer stays.
        started.sort_by(|left, right| age(&right.entry).cmp(&age(&left.entry)));
        Ok(started)
    }

    /// The first thing that our user said in this chat, if the newest page shows it.
    pub async fn opening_of(
        &self,
        conversation: &ConversationId,
        group: &str,
    ) -> Result<Option<Opening>, CallError> {
        let page = self.page(conversation, group, None).await?;
        Ok(page.into_iter().rev().find(|message| self.is_own(message)).map(Opening))
    }

    /// Whether this text was posted by our user after `since`, and what ServiceNow calls it.
    pub async fn find_sent(
        &self,
        conversation: &ConversationId,
        group: &str,
        text: &str,
        since: Since<'_>,
    ) -> Result<Option<Posted>, CallError> {
        let mut own: Vec<WireMessage> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        let mut before: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let page = self.page(conversation, group, before.as_deref()).await?;
            before = page.last().and_then(|oldest| oldest.timestamp.clone());
            let mut grew = false;
            for message in page {
                if since.is(&message) {
                    return Ok(newest(&own, text));
                }
                if message.sys_id.as_ref().is_none_or(|id| seen.insert(id.clone())) {
                    grew = true;
                    if self.is_own(&message) {
                        own.push(message);
                    }
                }
            }
            let enough = since == Since::Start && own.len() >= 2;
            if enough || !grew || before.is_none() {
                break;
            }
        }
        if since != Since::Start {
            return Ok(None);
        }
        // The oldest of ours is what opened the chat, which may be the same words.
        own.pop();
        Ok(newest(&own, text))
    }

    /// One page of the conversation, newest first.
    pub(super) async fn page(
        &self,
        conversation: &ConversationId,
        group: &str,
        before: Option<&str>,
    ) -> Result<Vec<WireMessage>, CallError> {
        let path = ["api", "now", "connect", "conversations", group, "messages"];
        let query: Vec<(&str, &str)> = before.map(|before| ("before", before)).into_iter().collect();
        let mut page: Vec<WireMessage> = self.in_session(conversation, Request::get(&path, &query)).await?;
        if let (Some(first), Some(last)) = (page.first(), page.last())
            && time_order(first, last) == Ordering::Less
        {
            page.reverse();
        }
        Ok(page)
    }

    pub(super) fn is_own(&self, message: &WireMessage) -> bool {
        message
            .created_by
            .as_deref()
            .is_some_and(|user| user.eq_ignore_ascii_case(self.inner.auth.username()))
    }
}

impl Since<'_> {
    fn is(self, message: &WireMessage) -> bool {
        matches!(self, Self::Message(id) if message.sys_id.as_deref() == Some(id))
    }
}

fn newest(own: &[WireMessage], text: &str) -> Option<Posted> {
    let found = own.iter().find(|message| carries(message, text))?;
    Some(Posted { sys_id: found.sys_id.clone() })
}

/// A chat's number tells its age: numbers only grow.
pub(super) fn age(entry: &QueueEntry) -> (usize, &str) {
    let number = entry.number.as_deref().unwrap_or_default();
    (number.len(), number)
}

/// Times are epoch numbers or sortable text; [`Ordering::Equal`] where they cannot be compared.
fn time_order(left: &WireMessage, right: &WireMessage) -> Ordering {
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

/// ServiceNow strips tags from what users write, and writes references and mark-up of its own: whichever way the stored text is
/// read, one reading that is ours is enough.
fn carries(message: &WireMessage, text: &str) -> bool {
    let wanted = [normal(text), normal(&rich_text::html_text(text, None))];
    readings(message).any(|stored| {
        let is_cut = stored.chars().count() >= CUT_CHARS_MIN && wanted[0].starts_with(&stored);
        is_cut || wanted.iter().any(|wanted| !wanted.is_empty() && *wanted == stored)
    })
}

/// The texts that a stored message can have been.
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

/// ServiceNow trims, and turns line breaks and blanks into one another.
fn normal(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
