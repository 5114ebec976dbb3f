//! The settings: read at start, and again while a process runs (`reload`), from their written form (`raw`: defaults, file,
//! environment) to typed values ([`Settings`]).
//!
//! Guarantees: either every value is valid and the role has what it needs, or all mistakes are reported together
//! ([`SettingProblems`]). `default.toml` contains every default. Secrets are never printed.
//! Not responsible for: the settings of the stages. Each stage declares its own, and no stage imports this room (`app.rs`
//! passes the settings on).

mod admin;
mod keys;
mod network;
mod parse;
mod print;
mod problem;
mod queue;
mod raw;
mod reader;
mod reload;
mod settings;
mod validate;
mod warnings;

use std::path::Path;

pub use network::NetworkConfig;
pub use problem::{SettingProblem, SettingProblems, SettingSource};
pub use raw::Environment;
#[cfg(feature = "tools")]
pub(crate) use reader::parse_rate;
pub use reload::{ReloadScope, ReloadableSettings, SettingsChange};
pub use settings::{
    BotConfig, DeliveryConfig, DirectoryConfig, FilesConfig, HandoffsConfig, IngressConfig, LimitConfig,
    QueueSettings, ServiceNowConfig, Settings, SpooledSenders, XoConfig,
};
pub use warnings::SettingWarning;

/// Every key with its default and its description, as TOML.
pub const REFERENCE: &str = raw::DEFAULTS;

/// The role for which the settings are read. A role requires its own part of the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunPurpose {
    /// Ingress and worker in one process.
    Serve,
    /// HTTP to queue.
    Ingress,
    /// Queue to the platforms.
    Worker,
    /// The files of conversations.
    Files,
    /// The admin console alone.
    Console,
    /// Calls every side that the settings name.
    Check,
    /// Commands for operators: queue and directory.
    Admin,
}

impl RunPurpose {
    /// Whether the role accepts callbacks and handoffs.
    const fn takes(self) -> bool {
        matches!(self, Self::Serve | Self::Ingress)
    }

    /// Whether the role calls the platforms.
    const fn delivers(self) -> bool {
        matches!(self, Self::Serve | Self::Worker | Self::Check)
    }
}

impl Settings {
    /// Reads the defaults, the file and the environment; each overrides the one before.
    pub fn load(
        file: Option<&Path>,
        environment: &Environment,
        purpose: RunPurpose,
    ) -> Result<Self, SettingProblems> {
        Self::of(raw::RawSettings::read(file, environment), purpose)
    }

    /// The values in use as a settings file, with secrets masked.
    pub fn print(file: Option<&Path>, environment: &Environment) -> String {
        print::print(&raw::RawSettings::read(file, environment))
    }

    /// Reads the written values.
    fn of(raw: raw::RawSettings, purpose: RunPurpose) -> Result<Self, SettingProblems> {
        if raw.is_broken {
            return Err(SettingProblems(raw.problems));
        }
        let written = raw.clone();
        let mut reader = reader::SettingsReader::new(raw);
        let mut settings = parse::settings(&mut reader);
        validate::check(&settings, purpose, &mut reader);
        let problems = reader.into_problems();
        if !problems.is_empty() {
            return Err(SettingProblems(problems));
        }
        settings.warnings = warnings::of(&settings, &written);
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::bridge::{UnknownGroup, VirtualAgentOptions};
    use crate::delivery::backoff::RetrySettings;
    use crate::platform::servicenow::StartAction;
    use crate::platform::{ChatApi, ServiceNowLogin};
    use crate::worker::MessageDeadlines;

    /// The reference with its examples enabled: every `#key = ...` line without its mark.
    fn with_examples() -> String {
        let is_example = |rest: &str| {
            let word = rest.bytes().take_while(|byte| byte.is_ascii_lowercase() || *byte == b'_').count();
            rest.starts_with('[') || (word > 0 && rest[word..].starts_with(" = "))
        };
        let lines = REFERENCE
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| is_example(rest)).unwrap_or(line));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn load_text(text: &str, purpose: RunPurpose) -> Result<Settings, SettingProblems> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("causeway.toml");
        std::fs::write(&file, text).unwrap();
        Settings::load(Some(&file), &Environment::default(), purpose)
    }

    #[test]
    fn the_reference_names_every_key_and_each_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("causeway.toml");
        std::fs::write(&file, with_examples()).unwrap();
        let raw = raw::RawSettings::read(Some(&file), &Environment::default());
        assert_eq!(raw.problems, []);
        let named: BTreeSet<String> = raw.entries.keys().map(|key| keys::pattern(key)).collect();
        let known: BTreeSet<String> = keys::KEYS.iter().map(|(key, _)| (*key).to_owned()).collect();
        assert_eq!(named, known);

        let mut reader = reader::SettingsReader::new(raw);
        parse::settings(&mut reader);
        assert_eq!(*reader.asked(), known);
    }

    #[test]
    fn the_examples_of_the_reference_are_valid() {
        // The files of the examples do not exist.
        let text: Vec<_> =
            with_examples().lines().filter(|line| !line.contains("_file = ")).map(str::to_owned).collect();
        let settings = load_text(&text.join("\n"), RunPurpose::Serve).unwrap();
        assert_eq!(settings.xo.bots.len(), 2);
        assert_eq!(settings.xo.allowed_hosts, ["platform.kore.ai"]);
        let context = settings.servicenow.unwrap().virtual_agent_chats.context_variables;
        assert_eq!(context["b2b_category"], "humanresource");
    }

    #[test]
    fn a_context_variable_has_a_name_and_a_value() {
        let text = "[servicenow]\ncontext_variables = [\"topic\", \"=x\", \"queue=it=2\"]";
        let problems = load_text(text, RunPurpose::Admin).unwrap_err();
        assert_eq!(problems.0.len(), 2, "{problems:?}");
        assert!(problems.0.iter().all(|problem| problem.key == "servicenow.context_variables"));
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        // Spelled out, so that a change of a default needs a change of this test.
        use std::time::Duration;
        let settings = Settings::load(None, &Environment::default(), RunPurpose::Admin).unwrap();
        let seconds = Duration::from_secs;
        assert_eq!(settings.data_dir, Path::new("./data"));
        assert_eq!(settings.drain, seconds(25));
        assert!(settings.queue.url.is_none());
        assert_eq!((settings.queue.partitions, settings.queue.prefetch), (8, 256));
        assert_eq!((settings.queue.heartbeat, settings.queue.publish_timeout), (seconds(15), seconds(5)));
        assert!(matches!(&settings.directory, DirectoryConfig::Sqlite(path) if path.starts_with("./data")));
        assert!(settings.servicenow.is_none());
        assert_eq!(settings.xo.end_words, ["quit", "stop chat", "end chat"]);
        assert_eq!(settings.ingress.listen.to_string(), "0.0.0.0:8080");
        assert_eq!(settings.ingress.body_limit, 2 << 20);
        assert!(!settings.ingress.allow_unauthenticated);
        assert_eq!(settings.admin_listen.to_string(), "127.0.0.1:9464");
        for limits in [&settings.delivery.servicenow, &settings.delivery.xo] {
            assert_eq!((limits.timeout, limits.concurrency, limits.rate), (seconds(10), 32, None));
        }
        let retry = &settings.delivery.retry;
        assert_eq!((retry.initial, retry.max), (Duration::from_millis(250), seconds(30)));
        assert!((retry.factor - 2.0).abs() < f64::EPSILON);
        let deadline = &settings.delivery.deadline;
        assert_eq!((deadline.start, deadline.message), (seconds(120), seconds(900)));
        assert_eq!((deadline.typing, deadline.end), (seconds(5), seconds(24 * 3600)));
        assert_eq!(settings.delivery.hold, seconds(60));
        assert_eq!(settings.delivery.unknown_group, UnknownGroup::DeadLetter);
        assert_eq!((settings.log.format, settings.log.level.as_str()), (None, "info"));
        let servicenow = Environment::from([
            ("CAUSEWAY_SERVICENOW__HOST_URL", "https://x.service-now.com"),
            ("CAUSEWAY_SERVICENOW__USERNAME", "u"),
            ("CAUSEWAY_SERVICENOW__PASSWORD", "p"),
        ]);
        let servicenow = Settings::load(None, &servicenow, RunPurpose::Worker).unwrap().servicenow.unwrap();
        assert_eq!((servicenow.poll_waiting, servicenow.poll_active), (seconds(5), seconds(30)));
        assert_eq!(servicenow.api, ChatApi::ConnectSupport);
        assert_eq!(servicenow.virtual_agent.start_action, StartAction::StartConversation);
        let chats = &servicenow.virtual_agent_chats;
        assert_eq!((chats.watchdog, chats.receipts), (seconds(15), true));
        assert_eq!(chats.queue_variable, "LiveAgent_queue");
        assert!(matches!(servicenow.login, ServiceNowLogin::Basic { .. }));
    }
    #[test]
    fn the_defaults_of_a_stage_are_those_of_the_reference() {
        let settings = Settings::load(None, &Environment::default(), RunPurpose::Admin).unwrap();
        assert_eq!(settings.delivery.retry, RetrySettings::default());
        assert_eq!(settings.delivery.deadline, MessageDeadlines::default());
        let named = Environment::from([
            ("CAUSEWAY_SERVICENOW__HOST_URL", "https://x.service-now.com"),
            ("CAUSEWAY_SERVICENOW__USERNAME", "u"),
            ("CAUSEWAY_SERVICENOW__PASSWORD", "p"),
        ]);
        let settings = Settings::load(None, &named, RunPurpose::Worker).unwrap();
        assert_eq!(settings.servicenow.unwrap().virtual_agent_chats, VirtualAgentOptions::default());
    }
}
