//! Structured logs: text for a person at a terminal, JSON for everything else.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For a person.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged, and how.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// Chosen by the terminal where not set.
    pub format: Option<LogFormat>,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter as `causeway=debug,lapin=warn`.
    pub level: String,
}

/// Sets up logging to standard error for the life of the process. A second call changes nothing.
pub fn start_logging(settings: &LogSettings) {
    // lapin reports every expected refusal as an error, sqlx every table that is there already; what matters of either is
    // logged by those who use them.
    let quiet = "lapin=off,sqlx=warn";
    let filter = EnvFilter::try_new(format!("{quiet},{}", settings.level));
    let filter = filter.unwrap_or_else(|_| EnvFilter::new(format!("{quiet},info")));
    let terminal = std::io::stderr().is_terminal();
    let format = settings.format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let started = match format {
        LogFormat::Text => lines.with_ansi(terminal).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    // A test that starts several relays in one process keeps the first subscriber.
    drop(started);
}
