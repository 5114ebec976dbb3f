//! The words of a platform's refusal, which can repeat the text of a user.
//!
//! Guarantees: neither `Debug` nor `Display` nor a log shows them; [`PlatformWords::reveal`] does, for a person who asked to
//! see the text of the message. They are one short line without control characters.
//! Not responsible for: what a refusal means (`platform/error.rs`), who may see it (`cli/dead`, `ingress/desk`).

use serde::{Deserialize, Serialize};

/// The most characters that are kept.
const CHARS_MAX: usize = 200;

/// One short line of what a platform said.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlatformWords(String);

impl PlatformWords {
    /// Control characters become blanks and the rest is cut. `carried` is the text that the call carried: it is left out as
    /// far as the platform repeated it word by word.
    pub fn new(said: &str, carried: &str) -> Self {
        let carried = carried.trim();
        let said = if carried.is_empty() { said.to_owned() } else { said.replace(carried, "…") };
        Self(one_line(&said))
    }

    /// The words, for a person who asked for them, or for a decision. Never for a log.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether the platform said nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Debug for PlatformWords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_empty() { "none" } else { "hidden" })
    }
}

/// One short line: control characters become blanks and the rest is cut.
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
