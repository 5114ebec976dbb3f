//! What one worker knows about the rows of `sys_cs_message`: whether its user may read them, which of them are messages for
//! the requester, where each chat is, and which messages are missing.
//!
//! No document says which roles read the table, how a payload is written, or how an agent's message to the requester differs
//! from other rows (`src/platform/servicenow/FACTS.md`). The rows of messages whose callbacks came answer these questions.
//!
//! Guarantees: a kind of rows is relayed only after a row of this kind had exactly the text that its callback had. The table
//! counts as readable only after the row of such a message was seen. An error ends the use of the table for ten minutes. A
//! row from before the start of its chat does not count. Times are compared only with times of the instance's clock, except
//! for the start of the chat.
//! Not responsible for: requests (`mod.rs` beside it), relaying (`to_bot/missing_rows.rs`, `watch/virtual_agent_gaps.rs`).

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::bridge::table_reading::TableRights;
use crate::delivery::RecentKeys;
use crate::message::{MessageId, PayloadDigest};
use crate::platform::servicenow::{AgentRow, RowPlace};

/// How long an error ends the use of the table.
const OFF_FOR: Duration = Duration::from_secs(600);
/// A chat is read again from this time before the newest row of the previous reading, because rows of one instance become
/// visible out of order.
const OVERLAP: Duration = Duration::from_secs(180);
/// A chat that was not read for this time is forgotten.
const KEPT: Duration = Duration::from_secs(3600);

/// The chat of a conversation, and from which time its rows are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::bridge) struct ChatQuery {
    pub(in crate::bridge) group: String,
    /// sys_id of the `sys_cs_conversation`.
    pub(in crate::bridge) conversation: String,
    pub(in crate::bridge) from: Timestamp,
}

#[derive(Debug)]
struct ChatRows {
    conversation: String,
    /// Earlier rows are not of this chat.
    begins: Timestamp,
    /// Earlier rows were read before.
    from: Timestamp,
    /// The missing messages, with the time of the first reading that showed them.
    missing: HashMap<MessageId, Instant>,
    /// The missing messages that were counted as gaps.
    told: HashSet<MessageId>,
    used: Instant,
}

/// The knowledge of one worker.
#[derive(Debug, Default)]
pub(in crate::bridge) struct RowKnowledge {
    rights: TableRights,
    off_since: Option<Instant>,
    /// The kinds of agents' messages, and whether a row of the kind had the text of its callback.
    kinds: HashMap<String, bool>,
    /// The rows whose texts were compared.
    compared: RecentKeys<MessageId, ()>,
    /// The messages without a readable payload.
    unreadable: RecentKeys<MessageId, ()>,
    /// The messages whose conversation was asked for in vain.
    unplaced: HashMap<String, Instant>,
    /// The time of the newest row of any chat.
    newest: Option<Timestamp>,
    chats: HashMap<String, ChatRows>,
}

impl RowKnowledge {
    /// Whether the table is not used at present.
    pub(in crate::bridge) fn is_off(&self) -> bool {
        self.off_since.is_some_and(|since| since.elapsed() < OFF_FOR)
    }

    /// Ends the use of the table for some time.
    pub(in crate::bridge) fn turn_off(&mut self, reason: &str) {
        self.off_since = Some(Instant::now());
        if self.rights != TableRights::Refused {
            self.rights = TableRights::Refused;
            tracing::info!(reason, "chats over the Virtual Agent API are not read back from sys_cs_message");
        }
    }

    /// The table shows rows, and the texts of some rows are known to be right.
    fn is_granted(&mut self) {
        if self.rights != TableRights::Granted {
            self.rights = TableRights::Granted;
            tracing::info!("chats over the Virtual Agent API are read back from sys_cs_message");
        }
    }

    /// Whether the rows of some messages can be relayed.
    pub(in crate::bridge) fn is_usable(&self) -> bool {
        !self.is_off() && self.kinds.values().any(|is_same| *is_same)
    }

    /// Whether the conversation of the chat is known.
    pub(in crate::bridge) fn has_place(&self, group: &str) -> bool {
        self.chats.contains_key(group)
    }

    /// Whether a conversation may be asked for by the row of this message: the table did not hide the row before.
    pub(in crate::bridge) fn may_ask_for(&self, message: &str) -> bool {
        self.unplaced.get(message).is_none_or(|at| at.elapsed() >= OFF_FOR)
    }

    /// Records the conversation of a chat that was opened at this time of our clock.
    pub(in crate::bridge) fn place(&mut self, group: &str, place: RowPlace, opened_at: Timestamp) {
        let begins = opened_at.min(place.created);
        self.chats.entry(group.to_owned()).or_insert(ChatRows {
            conversation: place.conversation,
            begins,
            from: begins,
            missing: HashMap::new(),
            told: HashSet::new(),
            used: Instant::now(),
        });
    }

    /// The table did not show the rows of these messages.
    pub(in crate::bridge) fn are_hidden(&mut self, messages: &[&str]) {
        self.unplaced.retain(|_, at| at.elapsed() < OFF_FOR);
        self.unplaced.extend(messages.iter().map(|message| ((*message).to_owned(), Instant::now())));
        if self.rights != TableRights::Granted && self.chats.is_empty() {
            self.turn_off("the user cannot read the rows of known messages");
        }
    }

    /// The chats of these groups whose conversation is known.
    pub(in crate::bridge) fn queries<'a>(&self, groups: impl Iterator<Item = &'a str>) -> Vec<ChatQuery> {
        let query = |group: &str| {
            let chat = self.chats.get(group)?;
            let (conversation, from) = (chat.conversation.clone(), chat.from);
            Some(ChatQuery { group: group.to_owned(), conversation, from })
        };
        groups.filter_map(query).collect()
    }

    /// Whether the row was written after the start of this chat.
    pub(in crate::bridge) fn is_of_chat(&self, group: &str, row: &AgentRow) -> bool {
        self.chats
            .get(group)
            .is_some_and(|chat| row.created >= chat.begins && row.conversation == chat.conversation)
    }

    /// Whether the text of this row, whose callback came, should be compared.
    pub(in crate::bridge) fn needs_comparison(&self, row: &AgentRow, id: MessageId) -> bool {
        self.kinds.get(&row.kind) != Some(&true) && !self.compared.contains(&id)
    }

    /// Records a row whose callback came with an agent's message. `is_same`: its text is that of the callback; `None` if
    /// the texts were not compared.
    pub(in crate::bridge) fn learn(&mut self, row: &AgentRow, id: MessageId, is_same: Option<bool>) {
        let known = self.kinds.entry(row.kind.clone()).or_default();
        let Some(is_same) = is_same else { return };
        *known |= is_same;
        self.compared.add(id, ());
        if is_same {
            self.is_granted();
        }
    }

    /// Whether the row is of a kind that agents' messages have. A message whose payload could not be read is left out.
    pub(in crate::bridge) fn is_message(&self, row: &AgentRow, id: MessageId) -> bool {
        self.kinds.contains_key(&row.kind) && !self.unreadable.contains(&id)
    }

    /// Whether rows of this kind are relayed.
    pub(in crate::bridge) fn relays(&self, row: &AgentRow) -> bool {
        self.kinds.get(&row.kind) == Some(&true)
    }

    /// Records the missing messages of a chat that was read completely, and returns how long each is known to be missing.
    pub(in crate::bridge) fn was_read(
        &mut self,
        group: &str,
        missing: &[(MessageId, &AgentRow)],
    ) -> Vec<Duration> {
        let Some(chat) = self.chats.get_mut(group) else { return vec![Duration::ZERO; missing.len()] };
        let now = Instant::now();
        chat.used = now;
        chat.missing.retain(|id, _| missing.iter().any(|(other, _)| other == id));
        let ages = missing.iter().map(|(id, _)| now - *chat.missing.entry(*id).or_insert(now)).collect();
        // A missing message stays within the window of the next reading.
        let oldest = missing.iter().map(|(_, row)| row.created).min();
        let seen = self.newest.map(|newest| newest.checked_sub(OVERLAP).unwrap_or(Timestamp::MIN));
        if let Some(from) = seen.map(|seen| oldest.map_or(seen, |oldest| oldest.min(seen))) {
            chat.from = from.max(chat.begins);
        }
        ages
    }

    /// Records a successful reading. A later reading shows no new row that is older than the rows of this one.
    pub(in crate::bridge) fn note_reading<'a>(&mut self, rows: impl Iterator<Item = &'a AgentRow>) {
        self.newest = self.newest.max(rows.map(|row| row.created).max());
        self.chats.retain(|_, chat| chat.used.elapsed() < KEPT);
        if self.is_usable() {
            self.is_granted();
        }
    }

    /// Counts a message as a gap. Returns whether it is new, and whether it is the first of its chat. `is_final`: the payload
    /// was read. Otherwise the message is still relayed if its kind is verified later.
    pub(in crate::bridge) fn tell(&mut self, group: &str, id: MessageId, is_final: bool) -> (bool, bool) {
        if is_final {
            self.unreadable.add(id, ());
        }
        let Some(chat) = self.chats.get_mut(group) else { return (false, false) };
        let is_first = chat.told.is_empty();
        let is_new = chat.told.insert(id);
        (is_new, is_new && is_first)
    }
}

/// The digest of a message's text, which is kept for the comparison with its row. White space does not count.
pub(in crate::bridge) fn text_digest(sys_id: &str, text: &str) -> PayloadDigest {
    let words: Vec<&str> = text.split_whitespace().collect();
    PayloadDigest::of(format!("{sys_id}\n{}", words.join(" ")).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn row(sys_id: &str, second: i64, kind: &str) -> AgentRow {
        AgentRow {
            written: at(second),
            sequence: 0,
            sys_id: sys_id.to_owned(),
            conversation: "conversation".to_owned(),
            created: at(second),
            kind: kind.to_owned(),
        }
    }

    fn placed(opened_at: i64) -> RowKnowledge {
        let mut known = RowKnowledge::default();
        let place = RowPlace { conversation: "conversation".to_owned(), created: at(10) };
        known.place("g", place, at(opened_at));
        known
    }

    fn id(name: &str) -> MessageId {
        MessageId::derived("servicenow", name)
    }

    fn from(known: &RowKnowledge) -> Timestamp {
        known.queries(["g"].into_iter()).remove(0).from
    }

    #[tokio::test(start_paused = true)]
    async fn a_kind_is_relayed_after_a_row_had_the_text_of_its_callback() {
        let mut known = placed(0);
        let whisper = row("w", 12, "other");
        assert!(!known.is_message(&row("a", 11, "text"), id("a")) && !known.is_usable());
        known.learn(&row("a", 11, "text"), id("a"), Some(false));
        assert!(known.is_message(&row("b", 11, "text"), id("b")));
        assert!(!known.relays(&row("b", 11, "text")) && !known.is_usable());
        assert!(!known.needs_comparison(&row("a", 11, "text"), id("a")), "it was compared");
        assert!(known.needs_comparison(&row("b", 12, "text"), id("b")));
        known.learn(&row("b", 12, "text"), id("b"), Some(true));
        known.learn(&row("c", 12, "text"), id("c"), None);
        assert!(known.relays(&row("c", 13, "text")) && known.is_usable());
        assert!(!known.is_message(&whisper, id("w")), "no callback had a row of this kind");
        known.turn_off("an error");
        assert!(known.is_off() && !known.is_usable());
        tokio::time::advance(OFF_FOR).await;
        assert!(known.is_usable());
    }

    #[tokio::test(start_paused = true)]
    async fn rows_from_before_the_start_do_not_count() {
        // The earlier of our own time and the time of a known row of the chat: one of the clocks may be ahead.
        assert!(placed(8).is_of_chat("g", &row("a", 8, "")) && !placed(8).is_of_chat("g", &row("a", 7, "")));
        assert!(
            placed(90).is_of_chat("g", &row("a", 10, "")) && !placed(90).is_of_chat("g", &row("a", 9, ""))
        );
        assert!(!placed(8).is_of_chat("other", &row("a", 20, "")));
        let other = AgentRow { conversation: "other".to_owned(), ..row("a", 20, "") };
        assert!(!placed(8).is_of_chat("g", &other));
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_message_stays_in_the_window() {
        let mut known = placed(0);
        assert_eq!(from(&known), at(0));
        let (old, new) = (row("a", 100, "text"), row("b", 1000, "text"));
        known.note_reading([&old, &new].into_iter());
        assert_eq!(known.was_read("g", &[(id("a"), &old)]), [Duration::ZERO]);
        assert_eq!(from(&known), at(100));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(known.was_read("g", &[(id("a"), &old)]), [Duration::from_secs(2)]);
        assert!(known.was_read("g", &[]).is_empty());
        assert_eq!(from(&known), at(1000 - 180));
    }

    #[tokio::test(start_paused = true)]
    async fn a_table_that_hides_known_rows_is_not_used() {
        let mut known = RowKnowledge::default();
        assert!(!known.has_place("g") && known.may_ask_for("m"));
        known.are_hidden(&["m"]);
        assert!(known.is_off() && !known.may_ask_for("m") && known.may_ask_for("n"));
        // If other chats can be read, one hidden row says nothing about the table.
        let mut known = placed(0);
        known.are_hidden(&["m"]);
        assert!(!known.is_off() && known.has_place("g"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_without_a_text_is_told_once() {
        let mut known = placed(0);
        known.learn(&row("k", 11, "text"), id("k"), Some(false));
        let told = [known.tell("g", id("a"), false), known.tell("g", id("a"), false)];
        assert_eq!(told, [(true, true), (false, false)]);
        assert!(known.is_message(&row("a", 12, "text"), id("a")), "its kind may be verified later");
        assert_eq!(known.tell("g", id("b"), true), (true, false));
        assert!(!known.is_message(&row("b", 12, "text"), id("b")));
    }

    #[test]
    fn white_space_does_not_change_a_text() {
        assert_eq!(text_digest("a", "one\n two "), text_digest("a", "one two"));
        assert_ne!(text_digest("a", "one two"), text_digest("b", "one two"));
    }
}
