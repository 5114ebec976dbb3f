//! The printed timeline: headings, and one line for each event.

use std::time::{Duration, Instant};

use crate::cli::output::{self, AnsiPaint};

/// The minimum width of a terminal.
const COLUMNS: usize = 80;
/// The width before the text of a line: time, name and mark.
const MARGIN: usize = 21;

/// The kind of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LineTone {
    /// A person or a component acts.
    Act,
    /// A message arrived.
    Arrived,
    /// A fault is over.
    Good,
    /// A fault occurred.
    Bad,
}

#[derive(Debug)]
pub(super) struct DemoTimeline {
    begun: Instant,
    paint: AnsiPaint,
}

impl DemoTimeline {
    pub(super) fn begin(paint: AnsiPaint) -> Self {
        Self { begun: Instant::now(), paint }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Prints the heading of a new act.
    pub(super) fn heading(&self, title: &str) -> std::io::Result<()> {
        output::line(format_args!("\n{}", self.paint.bold(title)))
    }

    /// Prints a text unchanged.
    pub(super) fn text(&self, text: impl std::fmt::Display) -> std::io::Result<()> {
        output::line(text)
    }

    /// Prints a text in lines that fit the terminal.
    pub(super) fn paragraph(&self, text: &str) -> std::io::Result<()> {
        wrapped(text, COLUMNS).iter().try_for_each(output::line)
    }

    /// Prints one event: `who` it concerns, and `what` happened.
    pub(super) fn tell(&self, who: &str, tone: LineTone, what: &str) -> std::io::Result<()> {
        let at = format!("{:5.1}s", self.elapsed().as_secs_f64());
        let mark = match tone {
            LineTone::Act => " ",
            LineTone::Arrived => ">",
            LineTone::Good => "+",
            LineTone::Bad => "!",
        };
        let painted = |line: &String| match tone {
            LineTone::Act | LineTone::Arrived => line.clone(),
            LineTone::Good => self.paint.green(line),
            LineTone::Bad => self.paint.red(line),
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
