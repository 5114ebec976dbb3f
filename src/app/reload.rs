//! Reads the settings again: the secret files when their content changes, everything on SIGHUP.
//!
//! Guarantees: the process never ends because of new settings. Settings with a mistake change nothing, and the log names their
//! keys, never a value. A destination whose breaker tripped because of a refused credential is probed as soon as a new
//! credential is in use.
//! Not responsible for: which keys can change at run time (`config/reload.rs`).

use std::fmt;
use std::future::pending;
use std::time::Duration;

use tokio::signal::unix::Signal;

use super::file_watch::FileWatch;
use super::systemd::SystemdNotifier;
use crate::config::{ReloadScope, ReloadableSettings, SettingProblems, Settings, SettingsChange};
use crate::message::Destination;
use crate::tasks::CancellationToken;

/// How often the secret files are looked at. A change takes effect after two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Passes changed settings to a running part.
type ChangeHandler = Box<dyn Fn(&Settings, &ChangedKeys) + Send + Sync>;

/// The changed keys.
#[derive(Debug)]
pub(super) struct ChangedKeys(Vec<String>);

impl ChangedKeys {
    /// Whether the credential of a destination may be among the changed keys.
    pub(super) fn concern(&self, destination: Destination) -> bool {
        let prefix = match destination {
            Destination::ServiceNow => "servicenow.",
            Destination::Xo | Destination::Bot(_) => "xo.",
            Destination::Events => "handoffs.events_",
            Destination::Callbacks => return false,
        };
        self.0.iter().any(|key| key.starts_with(prefix) || key.starts_with("http."))
    }
}

/// The parts that take changed settings.
#[derive(Default)]
pub(super) struct ChangeHandlers(Vec<ChangeHandler>);

impl fmt::Debug for ChangeHandlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ChangeHandlers").field(&self.0.len()).finish()
    }
}

impl ChangeHandlers {
    /// Adds a part.
    pub(super) fn add(&mut self, handler: impl Fn(&Settings) + Send + Sync + 'static) {
        self.0.push(Box::new(move |settings, _| handler(settings)));
    }

    /// Adds a part that needs to know what changed. It is called after the parts that were added before.
    pub(super) fn add_for_keys(&mut self, handler: impl Fn(&ChangedKeys) + Send + Sync + 'static) {
        self.0.push(Box::new(move |_, keys| handler(keys)));
    }

    fn pass_on(&self, change: &SettingsChange) {
        let keys = ChangedKeys(change.changed.clone());
        self.0.iter().for_each(|handler| handler(&change.settings, &keys));
    }
}

/// Reads the settings again until the cancellation.
pub(super) async fn run(
    mut source: ReloadableSettings,
    handlers: ChangeHandlers,
    mut hangup: Option<Signal>,
    systemd: SystemdNotifier,
    stop: CancellationToken,
) -> Result<(), String> {
    let mut watch = FileWatch::default();
    loop {
        watch.follow(source.secret_files());
        let scope = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = next(&mut hangup) => ReloadScope::Everything,
            () = tokio::time::sleep(LOOK_EVERY) => match watch.look().await {
                true => ReloadScope::SecretFiles,
                false => continue,
            },
        };
        if scope == ReloadScope::Everything {
            systemd.reloading();
        }
        match source.reload(scope) {
            Ok(change) => {
                if !change.changed.is_empty() {
                    handlers.pass_on(&change);
                }
                log(scope, &change);
            }
            Err(problems) => log_problems("the settings have mistakes, so the old ones stay", &problems),
        }
        if scope == ReloadScope::Everything {
            systemd.ready();
        }
    }
}

async fn next(hangup: &mut Option<Signal>) {
    if let Some(signal) = hangup
        && signal.recv().await.is_some()
    {
        return;
    }
    pending().await
}

fn log(scope: ReloadScope, change: &SettingsChange) {
    if let Some(problems) = &change.problems {
        log_problems("a secret file cannot be used, so the old secret stays", problems);
    }
    let changed = change.changed.join(", ");
    if !change.changed.is_empty() {
        tracing::info!(changed, "settings read again: the new values are in use");
    } else if scope == ReloadScope::Everything {
        tracing::info!("settings read again: nothing changed that can take effect at run time");
    }
    for warning in change.settings.warnings.iter().filter(|warning| change.changed.contains(&warning.key)) {
        tracing::warn!(key = warning.key, reason = warning.reason, "this setting is not safe");
    }
    if !change.needs_restart.is_empty() {
        let keys = change.needs_restart.join(", ");
        tracing::warn!(keys, "changed settings need a restart; until then the old values stay");
    }
}

fn log_problems(what: &str, problems: &SettingProblems) {
    let keys: Vec<&str> = problems.0.iter().map(|problem| problem.key.as_str()).collect();
    let reasons: Vec<String> = problems.0.iter().map(ToString::to_string).collect();
    tracing::error!(keys = keys.join(", "), reason = reasons.join("; "), "{what}");
}
