//! Reads the messages between a user and the bot before a handoff, for the agent. XO is asked when the chat is about to
//! open.
//!
//! Guarantees: a chat opens without the transcript if XO does not answer within [`BUDGET`], or if XO's breaker is not
//! passing. The transcript is bounded and loses its oldest lines first. Each attempt reads the transcript anew. A start
//! whose answer was lost is still recognised, because a mark of the text is recorded before the text is sent.
//!
//! Not responsible for: reading XO's answer (`platform/xo/history.rs`), the search for a lost start (`handoff.rs`).

use std::time::Duration;

use crate::bridge::context::BridgeContext;
use crate::bridge::to_agent::HandoffHandler;
use crate::bridge::to_agent::user_files::named_file;
use crate::conversation::DedupKey;
use crate::delivery::InternalError;
use crate::message::ReplyHandle;
use crate::message::handoff::{HandoffStart, TranscriptLine};
use crate::platform::HistoryEntry;
use crate::platform::servicenow::{OpeningMessage, recognisable};

/// The time limit for XO's answer. The chat waits meanwhile.
const BUDGET: Duration = Duration::from_secs(2);
/// A longer line is truncated.
const LINE_CHARS_MAX: usize = 2_000;
/// The maximum size of all lines in bytes: ServiceNow's columns are limited, and an agent reads the last lines.
const TRANSCRIPT_BYTES_MAX: usize = 12 << 10;

impl HandoffHandler<'_> {
    /// Whether the transcript of this start is read from XO, so that its text can differ between attempts.
    pub(in crate::bridge) fn reads_history(&self, start: &HandoffStart) -> bool {
        start.reply.is_some() && self.to_agent.context.settings.botkit.transcript > 0
    }

    /// The messages before the handoff, oldest first: XO's own list, otherwise the transcript of the start.
    pub(in crate::bridge) async fn read_transcript(&self, start: &HandoffStart) -> Vec<TranscriptLine> {
        let Some(handle) = start.reply.as_deref().filter(|_| self.reads_history(start)) else {
            return start.transcript.clone();
        };
        let read = history(&self.to_agent.context, handle).await.unwrap_or_default();
        let lines = bounded(read.iter().map(line).collect(), &start.message);
        if lines.is_empty() { start.transcript.clone() } else { lines }
    }

    /// Records a mark of the text that is about to be sent, if another attempt may send another text.
    pub(in crate::bridge) async fn note_opening(
        &self,
        start: &HandoffStart,
        text: &str,
    ) -> Result<(), InternalError> {
        if self.reads_history(start) {
            for form in recognisable(text) {
                self.directory.mark_done(self.mark(&form), None, crate::clock::now()).await?;
            }
        }
        Ok(())
    }

    /// Whether an attempt of this start opened the chat. `whole` is the text of an attempt without XO's answer.
    pub(in crate::bridge) async fn is_of_this_start(
        &self,
        opening: &OpeningMessage,
        whole: &str,
    ) -> Result<bool, InternalError> {
        if opening.is(whole) {
            return Ok(true);
        }
        for text in opening.recognisable().into_iter().filter(|text| !text.is_empty()) {
            if self.directory.is_done(self.mark(&text)).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The mark of a text that this start was sent with. The mark does not contain the text.
    fn mark(&self, text: &str) -> DedupKey {
        DedupKey::opening_text(self.message.id, self.message.replays, text)
    }
}

/// The last messages between user and bot, oldest first; empty if XO does not answer.
pub(in crate::bridge) async fn transcript_of(
    context: &BridgeContext,
    handle: &ReplyHandle,
) -> Vec<TranscriptLine> {
    let read = history(context, handle).await.unwrap_or_default();
    bounded(read.iter().map(line).collect(), "")
}

/// Reads the history from XO. `None` if XO does not answer.
async fn history(context: &BridgeContext, handle: &ReplyHandle) -> Option<Vec<HistoryEntry>> {
    let destination = context.settings.bot_side.bot(&handle.bot_id)?;
    if !context.gate(destination).breaker().passes() {
        return None;
    }
    let most = context.settings.botkit.transcript;
    match context.xo.history(handle, most, BUDGET).await {
        Ok(spoken) => Some(spoken),
        Err(error) => {
            tracing::info!(%error, "a chat opens without its transcript: XO did not return the history");
            None
        }
    }
}

fn line(spoken: &HistoryEntry) -> TranscriptLine {
    let files = spoken.files.iter().map(named_file);
    let words = Some(spoken.text.trim().to_owned()).filter(|words| !words.is_empty());
    let mut text = words.into_iter().chain(files).collect::<Vec<_>>().join("\n");
    if let Some((end, _)) = text.char_indices().nth(LINE_CHARS_MAX) {
        text.truncate(end);
        text.push('…');
    }
    let from = if spoken.from_user { "user" } else { "bot" };
    TranscriptLine { from: from.to_owned(), text, at: spoken.at.clone() }
}

/// Bounds the transcript, and removes the user's message that becomes the first message of the chat. Later messages of
/// the user wait on the queue.
fn bounded(mut lines: Vec<TranscriptLine>, first_words: &str) -> Vec<TranscriptLine> {
    let unanswered = lines.iter().rposition(|line| line.from != "user").map_or(0, |last| last + 1);
    let same = |line: &TranscriptLine| line.text.trim() == first_words.trim();
    if let Some(first) = lines[unanswered..].iter().position(same) {
        lines.truncate(unanswered + first);
    }
    let mut room = TRANSCRIPT_BYTES_MAX;
    let kept = lines.iter().rev().take_while(|line| {
        let fits = line.text.len() <= room;
        room = room.saturating_sub(line.text.len());
        fits
    });
    let kept = kept.count();
    lines.split_off(lines.len() - kept)
}

/// The text between the user's message and the transcript in the first message of a chat.
const BEFORE: &str = "\n\nBefore:";

/// The beginning of a chat's first message: the user's message and the user's name.
fn head(start: &HandoffStart) -> String {
    let mut text = start.message.clone();
    let user = start.user.clone().unwrap_or_default();
    let who: Vec<String> =
        [user.name, user.email.map(|email| format!("<{email}>"))].into_iter().flatten().collect();
    if !who.is_empty() {
        text.push_str(&format!("\n\nFrom: {}", who.join(" ")));
    }
    text
}

/// The beginning of a first message that has a transcript.
pub(in crate::bridge) fn begins_with(start: &HandoffStart) -> String {
    head(start) + BEFORE
}

/// The first message of a chat, for the agent: the user's message, the user's name and the transcript.
pub(in crate::bridge) fn first_words(start: &HandoffStart, before: &[TranscriptLine]) -> String {
    let mut text = head(start);
    if !before.is_empty() {
        text.push_str(BEFORE);
        for line in before {
            text.push_str(&format!("\n{}: {}", line.from, line.text));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spoken(from_user: bool, text: &str) -> HistoryEntry {
        HistoryEntry { from_user, text: text.to_owned(), files: Vec::new(), at: None }
    }

    fn texts(lines: &[TranscriptLine]) -> Vec<&str> {
        lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn words_that_wait_behind_the_first_ones_are_no_transcript() {
        let said = [(false, "Hi"), (true, "help"), (true, "anybody?"), (true, "hello?")];
        let lines =
            || said.iter().map(|(from_user, text)| line(&spoken(*from_user, text))).collect::<Vec<_>>();
        assert_eq!(texts(&bounded(lines(), "anybody?")), ["Hi", "help"]);
        assert_eq!(texts(&bounded(lines(), "help")), ["Hi"]);
        assert_eq!(texts(&bounded(lines(), "Hi")), ["Hi", "help", "anybody?", "hello?"]);
    }

    #[test]
    fn the_oldest_lines_go_first() {
        let lines: Vec<TranscriptLine> =
            (0..10).map(|n| line(&spoken(false, &format!("{n}{}", "x".repeat(1_900))))).collect();
        let kept = bounded(lines, "");
        assert_eq!(kept.len(), 6);
        assert!(kept[5].text.starts_with('9') && kept[0].text.starts_with('4'));
        let long = line(&spoken(false, &"네".repeat(5_000)));
        assert_eq!(long.text.chars().count(), LINE_CHARS_MAX + 1);
    }

    #[test]
    fn the_first_words_are_not_said_twice() {
        let lines =
            || vec![line(&spoken(true, "yes")), line(&spoken(false, "Shall I?")), line(&spoken(true, "yes"))];
        assert_eq!(texts(&bounded(lines(), "yes ")), ["yes", "Shall I?"]);
        assert_eq!(texts(&bounded(lines(), "agent please")).len(), 3);
        assert_eq!(bounded(vec![line(&spoken(true, "yes"))], "yes"), []);
    }
}
