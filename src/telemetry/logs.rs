//! Structured logs: text for a terminal, JSON otherwise.

use std::fmt::Display;
use std::io::IsTerminal;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::Level;
use tracing::field::DisplayValue;
use tracing_subscriber::fmt::writer::{BoxMakeWriter, MakeWriterExt as _};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, filter, fmt, reload};

use super::audit::TARGET as AUDIT_TARGET;
use super::log_writer;

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object for each line.
    Json,
}

/// The settings of the log.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// `None`: text on a terminal, otherwise JSON.
    pub format: Option<LogFormat>,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `causeway=debug,lapin=warn`.
    pub level: String,
    /// Whether lines name conversations and ServiceNow's chats.
    pub conversation_ids: bool,
}

/// `log.conversation_ids`, for the whole process like the log itself.
static CONVERSATION_IDS: AtomicBool = AtomicBool::new(true);

/// The filter of the log, which can be replaced.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// The value of a log field that names a conversation or a chat of ServiceNow. `None`, which leaves the field out, if
/// `log.conversation_ids` is off. Lines of the levels `info`, `warn` and `error` name a conversation only with this
/// function.
pub fn logged_conversation<T: Display>(name: T) -> Option<DisplayValue<T>> {
    CONVERSATION_IDS.load(Ordering::Relaxed).then(|| tracing::field::display(name))
}

/// These parts of lapin log neither credentials nor messages. All other parts print frames, which contain credentials and
/// messages.
const HARMLESS_LAPIN: &[&str] = &["channel", "channels", "heartbeat", "internal_rpc", "socket_state"];

/// Whether an event may be written, whatever `log.level` says. The traces of other libraries contain their traffic: the
/// broker's password, message bodies, URLs. So only Causeway's own traces are written.
fn is_harmless(target: &str, level: &Level) -> bool {
    let mut path = target.split("::");
    match path.next().unwrap_or_default() {
        "causeway" => true,
        "lapin" => *level < Level::TRACE && path.next().is_some_and(|part| HARMLESS_LAPIN.contains(&part)),
        "amq_protocol" | "amq_protocol_tcp" | "amq_protocol_types" | "amq_protocol_uri" => false,
        // This module prints the values of unknown parameters of `directory.url`.
        "sqlx_postgres" if path.next() == Some("options") => false,
        _ => *level < Level::TRACE,
    }
}

/// Whether a line may be lost at a kill -9. The audit, warnings and errors are written before the task continues.
fn can_wait(target: &str, level: &Level) -> bool {
    *level >= Level::INFO && target != AUDIT_TARGET
}

/// Sets up logging to standard error for the life of the process. A second call has no effect. The process calls
/// [`log_writer::flush`] at its end.
pub fn start_logging(settings: &LogSettings) {
    CONVERSATION_IDS.store(settings.conversation_ids, Ordering::Relaxed);
    let (filter, handle) = reload::Layer::new(filter_of(&settings.level));
    let terminal = std::io::stderr().is_terminal();
    let format = settings.format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    // A person at a terminal sees lines in the order of all other output.
    let writer = if terminal {
        BoxMakeWriter::new(std::io::stderr)
    } else {
        let paced = log_writer::writer().with_filter(|line| can_wait(line.target(), line.level()));
        BoxMakeWriter::new(paced.or_else(std::io::stderr))
    };
    let lines = fmt::layer().with_writer(writer).log_internal_errors(false);
    let harmless = filter::filter_fn(|event| is_harmless(event.target(), event.level()));
    let lines = match format {
        LogFormat::Text => lines.with_ansi(terminal).with_filter(harmless).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_filter(harmless).boxed(),
    };
    let started = tracing_subscriber::registry().with(filter).with(lines).try_init();
    // A test that starts several relays in one process keeps the first subscriber.
    if started.is_ok() {
        let _ = FILTER.set(handle);
    }
}

/// Uses `log.level` and `log.conversation_ids` of these settings from now on. `log.format` stays.
pub fn replace_log_settings(settings: &LogSettings) {
    CONVERSATION_IDS.store(settings.conversation_ids, Ordering::Relaxed);
    if let Some(filter) = FILTER.get() {
        // This fails only if the subscriber is gone, and with it the log.
        let _ = filter.reload(filter_of(&settings.level));
    }
}

fn filter_of(level: &str) -> EnvFilter {
    // lapin logs every expected refusal as an error, and sqlx logs every table that exists already. Their callers log
    // everything that matters.
    // The audit is written at each level, unless the level names its target.
    let quiet = "lapin=off,sqlx=warn,causeway::audit=info";
    let filter = EnvFilter::try_new(format!("{quiet},{level}"));
    filter.unwrap_or_else(|_| EnvFilter::new(format!("{quiet},info")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_of_other_libraries_are_not_written() {
        for (target, level, written) in [
            ("causeway::queue::rabbit", Level::TRACE, true),
            ("lapin::io_loop", Level::TRACE, false),
            ("lapin::io_loop", Level::ERROR, false),
            ("lapin::channel", Level::TRACE, false),
            ("lapin::channel", Level::DEBUG, true),
            ("lapin::returned_messages", Level::WARN, false),
            ("lapin", Level::ERROR, false),
            ("amq_protocol_tcp", Level::TRACE, false),
            ("hyper::proto::h1", Level::TRACE, false),
            ("hyper::proto::h1", Level::DEBUG, true),
            ("sqlx_postgres::options::parse", Level::WARN, false),
            ("sqlx_postgres::connection", Level::WARN, true),
        ] {
            assert_eq!(is_harmless(target, &level), written, "{target} {level}");
        }
    }
}
