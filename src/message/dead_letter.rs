//! A message that could not be delivered, with the story of its attempts.
//!
//! Guarantees: the story names times, statuses and errors, never the chat's text.
//! Leaves to others: where it waits (`queue/`), how it comes back (`dead/`).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{DeadReason, Message, PlatformWords};

/// How many attempts a story keeps: the first few and the newest, so that a long outage stays readable.
const KEPT_FIRST: usize = 5;
const KEPT_LAST: usize = 20;

/// One attempt, as a person reads it later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptRecord {
    /// When it began.
    pub at: Timestamp,
    /// The HTTP status, where there was an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// [`super::Outcome::as_str`].
    pub outcome: String,
    /// What went wrong, without the chat's text and without the platform's words.
    pub error: String,
    /// The platform's words. They can repeat the chat's text: shown only with it.
    #[serde(default, rename = "platform_words", skip_serializing_if = "PlatformWords::is_empty")]
    pub said: PlatformWords,
}

/// Every attempt of one message; the middle of a very long story is only counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Story {
    attempts: Vec<AttemptRecord>,
    /// How many attempts were left out between the first and the newest.
    #[serde(default)]
    left_out: u32,
}

impl Story {
    /// Adds the newest attempt.
    pub fn add(&mut self, attempt: AttemptRecord) {
        self.attempts.push(attempt);
        if self.attempts.len() > KEPT_FIRST + KEPT_LAST {
            self.attempts.remove(KEPT_FIRST);
            self.left_out = self.left_out.saturating_add(1);
        }
    }

    /// The attempts kept, oldest first.
    pub fn attempts(&self) -> &[AttemptRecord] {
        &self.attempts
    }

    /// How many attempts were made.
    pub fn count(&self) -> u32 {
        u32::try_from(self.attempts.len()).unwrap_or(u32::MAX).saturating_add(self.left_out)
    }

    /// How many attempts between the first and the newest are only counted.
    pub const fn left_out(&self) -> u32 {
        self.left_out
    }
}

/// A message that reached its end without delivery. It waits for a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The message as it was taken.
    pub message: Message,
    /// Why it died.
    pub reason: DeadReason,
    /// One sentence for the person who finds it; never the chat's text.
    pub detail: String,
    /// When it died.
    pub died_at: Timestamp,
    /// What was tried.
    pub story: Story,
}

impl DeadLetter {
    /// A message that dies now.
    pub fn new(message: Message, reason: DeadReason, detail: impl Into<String>, story: Story) -> Self {
        Self { message, reason, detail: detail.into(), died_at: crate::clock::now(), story }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_story_keeps_its_beginning_and_its_end() {
        let mut story = Story::default();
        for second in 0..100 {
            let at = Timestamp::from_second(second).unwrap();
            let (error, said) = (String::new(), PlatformWords::default());
            story.add(AttemptRecord { at, status: Some(503), outcome: "retry".into(), error, said });
        }
        assert_eq!(story.count(), 100);
        assert_eq!(story.attempts().len(), 25);
        assert_eq!(story.attempts()[4].at.as_second(), 4);
        assert_eq!(story.attempts()[5].at.as_second(), 80);
    }
}
