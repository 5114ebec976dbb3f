//! A message that could not be delivered, with the history of its attempts.
//!
//! Guarantees: the history contains times, statuses and errors. The platform's words, which may repeat the chat's text,
//! are kept in a field that neither `Debug` nor a log shows.
//!
//! Not responsible for: storage (`queue/`), replay (`dead/`).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{DeadReason, Message, PlatformWords};

/// The first and the newest attempts that a history keeps, so that the history of a long outage stays readable.
const KEPT_FIRST: usize = 5;
const KEPT_LAST: usize = 20;

/// One attempt in the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptRecord {
    /// When the attempt started.
    pub at: Timestamp,
    /// The HTTP status, if there was an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// [`super::Outcome::as_str`].
    pub outcome: String,
    /// The error, without the chat's text and without the platform's words.
    pub error: String,
    /// The platform's words, which can repeat the chat's text. They are shown only together with the text.
    #[serde(default, rename = "platform_words", skip_serializing_if = "PlatformWords::is_empty")]
    pub said: PlatformWords,
}

/// The attempts of one message. The middle of a long history is only counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptHistory {
    attempts: Vec<AttemptRecord>,
    /// The number of attempts between the first and the newest that were not kept.
    #[serde(default)]
    left_out: u32,
}

impl AttemptHistory {
    /// Adds the newest attempt.
    pub fn add(&mut self, attempt: AttemptRecord) {
        self.attempts.push(attempt);
        if self.attempts.len() > KEPT_FIRST + KEPT_LAST {
            self.attempts.remove(KEPT_FIRST);
            self.left_out = self.left_out.saturating_add(1);
        }
    }

    /// The history with these attempts, out of `count` in all. `None` if a history of so many attempts keeps others.
    pub fn restored(attempts: Vec<AttemptRecord>, count: u32) -> Option<Self> {
        let (kept, all) = (attempts.len(), usize::try_from(count).ok()?);
        let left_out = u32::try_from(all.checked_sub(kept)?).ok()?;
        let is_whole = kept == all.min(KEPT_FIRST + KEPT_LAST);
        is_whole.then_some(Self { attempts, left_out })
    }

    /// The attempts that were kept, oldest first.
    pub fn attempts(&self) -> &[AttemptRecord] {
        &self.attempts
    }

    /// Makes the history shorter by one step: first the attempts in the middle are left out, then the texts of the two that
    /// remain. Returns `false` if nothing is left to shorten.
    pub fn shorten(&mut self) -> bool {
        if self.attempts.len() > 2 {
            self.attempts.remove(self.attempts.len() / 2);
            self.left_out = self.left_out.saturating_add(1);
            return true;
        }
        let is_longer = !self.is_shortest();
        for attempt in &mut self.attempts {
            attempt.error.clear();
            attempt.said = PlatformWords::default();
        }
        is_longer
    }

    /// Whether [`Self::shorten`] has nothing left to do.
    pub fn is_shortest(&self) -> bool {
        let has_text = |attempt: &AttemptRecord| !attempt.error.is_empty() || !attempt.said.is_empty();
        self.attempts.len() <= 2 && !self.attempts.iter().any(has_text)
    }

    /// The number of attempts.
    pub fn count(&self) -> u32 {
        u32::try_from(self.attempts.len()).unwrap_or(u32::MAX).saturating_add(self.left_out)
    }

    /// The number of attempts between the first and the newest that are only counted.
    pub const fn left_out(&self) -> u32 {
        self.left_out
    }
}

/// A message that ended without delivery and waits for a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The message as it was accepted.
    pub message: Message,
    /// The reason of the dead letter.
    pub reason: DeadReason,
    /// One sentence for the operator, without the chat's text.
    pub detail: String,
    /// When the dead letter was written.
    pub died_at: Timestamp,
    /// The history of the attempts.
    pub story: AttemptHistory,
}

impl DeadLetter {
    /// Creates a dead letter with the current time.
    pub fn new(
        message: Message,
        reason: DeadReason,
        detail: impl Into<String>,
        story: AttemptHistory,
    ) -> Self {
        Self { message, reason, detail: detail.into(), died_at: crate::clock::now(), story }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Destination, Kind, LaneKey, MessageId};

    impl DeadLetter {
        /// A message of a user that ServiceNow refused with 400, in words that repeat the user's.
        pub(crate) fn refused(body: &'static [u8]) -> Self {
            let lane = LaneKey::parse("c-1").unwrap();
            let id = MessageId::fresh();
            let message = Message::new(id, Kind::HandoffMessage, Destination::ServiceNow, lane, body);
            let mut story = AttemptHistory::default();
            story.add(AttemptRecord {
                at: crate::clock::now(),
                status: Some(400),
                outcome: "dead".into(),
                error: "refused (status 400)".into(),
                said: PlatformWords::new("Bad value: echoed words", ""),
            });
            Self::new(message, DeadReason::Rejected, "ServiceNow said no", story)
        }
    }

    #[test]
    fn a_long_story_keeps_its_beginning_and_its_end() {
        let mut story = AttemptHistory::default();
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
