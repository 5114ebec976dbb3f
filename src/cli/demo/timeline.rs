//! What the spectator reads: headings, and one line for each thing that happened.

use std::time::{Duration, Instant};

use crate::cli::output::{self, Paint};

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

    /// Who it happened to, and what.
    pub(super) fn tell(&self, who: &str, tone: Tone, what: &str) -> std::io::Result<()> {
        let at = format!("{:5.1}s", self.elapsed().as_secs_f64());
        let what = output::harmless(what);
        let (mark, what) = match tone {
            Tone::Act => (" ", what),
            Tone::Arrived => (">", what),
            Tone::Good => ("+", self.paint.green(&what)),
            Tone::Bad => ("!", self.paint.red(&what)),
        };
        output::line(format_args!("{}  {who:<10} {mark} {what}", self.paint.dim(&at)))
    }
}
