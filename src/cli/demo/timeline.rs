//! What the spectator reads: headings, and one line for each thing that happened.

use std::time::{Duration, Instant};

use crate::cli::output::{self, Paint};

/// A terminal is at least this wide.
const COLUMNS: usize = 80;
/// What stands before the words of a line: the time, who it is about, a mark.
const MARGIN: usize = 21;

/// How a line is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    /// Somebody does something.
    Act,
    /// Something arrived.
    Arrived,
    /// Something is as it should be again.
    Good,
    /// Something went wrong.
    Bad,
}

#[derive(Debug)]
pub(super) struct Timeline {
    begun: Instant,
    paint: Paint,
}

impl Timeline {
    pub(super) fn begin(paint: Paint) -> Self {
        Self { begun: Instant::now(), paint }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// A new act begins.
    pub(super) fn heading(&self, title: &str) -> std::io::Result<()> {
        output::line(format_args!("\n{}", self.paint.bold(title)))
    }

    /// As it is.
    pub(super) fn text(&self, text: impl std::fmt::Display) -> std::io::Result<()> {
        output::line(text)
    }

    /// In lines that fit.
    pub(super) fn paragraph(&self, text: &str) -> std::io::Result<()> {
        wrapped(text, COLUMNS).iter().try_for_each(output::line)
    }

    /// Who it happened to, and what.
    pub(super) fn tell(&self, who: &str, tone: Tone, what: &str) -> std::io::Result<()> {
        let at = format!("{:5.1}s", self.elapsed().as_secs_f64());
        let mark = match tone {
            Tone::Act => " ",
            Tone::Arrived => ">",
            Tone::Good => "+",
            Tone::Bad => "!",
        };
        let painted = |line: &String| match tone {
            Tone::Act | Tone::Arrived => line.clone(),
            Tone::Good => self.paint.green(line),
            Tone::Bad => self.paint.red(line),
        };
        let lines = wrapped(&output::harmless(what), COLUMNS - MARGIN);
        let mut lines = lines.iter().map(painted);
        let first = lines.next().unwrap_or_default();
        output::line(format_args!("{}  {who:<10} {mark} {first}", self.paint.dim(&at)))?;
        lines.try_for_each(|line| output::line(format_args!("{:MARGIN$}{line}", "")))
    }
}

/// Breaks a text between words. A word that is too long has a line of its own.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let Some(line) = lines.last_mut() else { break };
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= columns {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_breaks_between_words() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("incomprehensible", 7), ["incomprehensible"]);
        assert_eq!(wrapped("", 7), [""]);
    }
}
