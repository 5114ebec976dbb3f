//! Holds the text of a platform's refusal, which can repeat the text of a user.
//!
//! Guarantees: `Debug`, `Display` and logs do not show the text. [`PlatformWords::reveal`] returns the text for an
//! operator who asked for the text of the message. The text is one short line without control characters.
//!
//! Not responsible for: the meaning of a refusal (`platform/error.rs`), permissions (`cli/dead`, `ingress/desk`).

use serde::{Deserialize, Serialize};

/// The longest text, in characters.
const CHARS_MAX: usize = 200;

/// A short line of a platform's text.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlatformWords(String);

impl PlatformWords {
    /// Replaces control characters by blanks and truncates the text. `carried` is the text of the call: a literal
    /// repetition is removed.
    pub fn new(said: &str, carried: &str) -> Self {
        let carried = carried.trim();
        let said = if carried.is_empty() { said.to_owned() } else { said.replace(carried, "…") };
        Self(one_line(&said))
    }

    /// The text, for an operator who asked for it, or for a decision. Never for a log.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether the text is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Debug for PlatformWords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_empty() { "none" } else { "hidden" })
    }
}

/// One short line: control characters are replaced by blanks, and the text is truncated.
pub(crate) fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ").chars().take(CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_one_short_line_without_the_text() {
        assert_eq!(
            PlatformWords::new("bad\r\n value: my secret\ttail", "my secret").reveal(),
            "bad value: … tail"
        );
        assert_eq!(PlatformWords::new(&"x".repeat(900), "").reveal().len(), CHARS_MAX);
    }

    #[test]
    fn words_are_not_printed() {
        assert_eq!(format!("{:?}", PlatformWords::new("the user said hello", "")), "hidden");
    }
}
