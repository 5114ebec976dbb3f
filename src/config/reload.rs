//! Reads the settings again while the process runs.
//!
//! Guarantees: either all changes that can take effect at run time are returned together, or the old settings stay. A secret
//! takes effect only together with the account that it belongs to: if a bot of the list becomes another bot, or the instance of
//! ServiceNow changes, the new secret waits for the restart, too.
//! Not responsible for: when the settings are read (`app/reload.rs`), what a changed value does.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use url::Url;

use super::keys::{self, KeyVisibility};
use super::raw::{RawEntry, RawSettings, WrittenValue};
use super::{Environment, RunPurpose, SettingProblems, Settings};
use crate::queue::rabbit::BrokerUrl;

/// The keys that take effect at run time, in addition to the secrets.
const OPEN_KEYS: [&str; 14] = [
    "ingress.servicenow.username",
    "servicenow.client_id",
    "xo.app_id",
    "xo.jwt_algorithm",
    "xo.bots.*.app_id",
    "xo.bots.*.jwt_algorithm",
    "xo.allow_apikey",
    "xo.end_words",
    "xo.first_words",
    "xo.end_on_session_closure",
    "xo.bot_messages_in_agent_mode",
    "http.no_proxy",
    "log.level",
    "log.conversation_ids",
];

/// Secrets that can be added or removed at run time. Adding or removing another secret switches a part of the process on or
/// off, for example the admin console.
const OPTIONAL_SECRETS: [&str; 12] = [
    "ingress.servicenow.password",
    "ingress.servicenow.token",
    "ingress.servicenow.hmac_secret",
    "servicenow.message_token",
    "servicenow.message_hmac",
    "handoffs.events_token",
    "handoffs.events_secret",
    "files.secret",
    "http.proxy",
    "servicenow.proxy",
    "xo.proxy",
    "handoffs.events_proxy",
];

/// Accounts: the prefix of the keys, and the keys that say whose account it is.
const ACCOUNTS: [(&str, &[&str]); 2] =
    [("servicenow.", &["host_url", "username", "auth", "api"]), ("xo.", &["bot_id", "name"])];

/// The scope of a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadScope {
    /// The secret files.
    SecretFiles,
    /// The settings file and all secret files.
    Everything,
}

/// The settings of a running process, with their sources.
pub struct ReloadableSettings {
    file: Option<PathBuf>,
    environment: Environment,
    purpose: RunPurpose,
    in_use: RawSettings,
}

impl std::fmt::Debug for ReloadableSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReloadableSettings").field("file", &self.file).finish_non_exhaustive()
    }
}

/// The result of reading the settings again.
#[derive(Debug)]
pub struct SettingsChange {
    /// The settings in use from now on.
    pub settings: Settings,
    /// The keys whose new values are in use.
    pub changed: Vec<String>,
    /// The keys whose new values need a restart.
    pub needs_restart: Vec<String>,
    /// The secrets that keep their old values, because their files cannot be used.
    pub problems: Option<SettingProblems>,
}

impl ReloadableSettings {
    /// Reads the settings as [`Settings::load`] does, and keeps their sources.
    pub fn load(
        file: Option<&Path>,
        environment: &Environment,
        purpose: RunPurpose,
    ) -> Result<(Settings, Self), SettingProblems> {
        let in_use = RawSettings::read(file, environment);
        let settings = Settings::of(in_use.clone(), purpose)?;
        let (file, environment) = (file.map(Path::to_owned), environment.clone());
        Ok((settings, Self { file, environment, purpose, in_use }))
    }

    /// The environment of the process.
    pub const fn environment(&self) -> &Environment {
        &self.environment
    }

    /// The files that contain secrets.
    pub fn secret_files(&self) -> BTreeSet<PathBuf> {
        let all = self.in_use.entries.values().chain(self.in_use.unset.values());
        all.filter_map(|entry| entry.secret_file.clone()).collect()
    }

    /// Reads the settings again. An error changes nothing.
    pub fn reload(&mut self, scope: ReloadScope) -> Result<SettingsChange, SettingProblems> {
        let (fresh, problems) = match scope {
            ReloadScope::Everything => {
                let fresh = RawSettings::read(self.file.as_deref(), &self.environment);
                Settings::of(fresh.clone(), self.purpose)?;
                (fresh, Vec::new())
            }
            ReloadScope::SecretFiles => self.with_fresh_secrets(),
        };
        let (raw, changed, needs_restart) = merge(&self.in_use, fresh);
        let settings = Settings::of(raw.clone(), self.purpose)?;
        self.in_use = raw;
        let problems = (!problems.is_empty()).then_some(SettingProblems(problems));
        Ok(SettingsChange { settings, changed, needs_restart, problems })
    }

    /// The settings in use with the secrets of their files. A secret that cannot be used keeps its value.
    fn with_fresh_secrets(&self) -> (RawSettings, Vec<super::SettingProblem>) {
        let mut fresh = self.in_use.clone();
        let mut problems = fresh.read_secret_files_again();
        if let Err(unfit) = Settings::of(fresh.clone(), self.purpose) {
            for problem in unfit.0 {
                if let Some(old) = self.in_use.entries.get(&problem.key) {
                    fresh.entries.insert(problem.key.clone(), old.clone());
                }
                problems.push(problem);
            }
        }
        (fresh, problems)
    }
}

/// The new settings as far as they take effect at run time, the changed keys, and the keys that need a restart.
fn merge(old: &RawSettings, fresh: RawSettings) -> (RawSettings, Vec<String>, Vec<String>) {
    let keys: BTreeSet<&String> = old.entries.keys().chain(fresh.entries.keys()).collect();
    let differs = |key: &str| written(old, key) != written(&fresh, key);
    let mut merged = RawSettings { entries: old.entries.clone(), ..fresh.clone() };
    let (mut changed, mut needs_restart) = (Vec::new(), Vec::new());
    for key in keys {
        if differs(key) {
            let account = account_of(key);
            // The handoff API itself is switched on at a start.
            let switches_on =
                key == "ingress.handoffs.token_next" && written(old, "ingress.handoffs.token").is_none();
            let same_account = account.iter().all(|identity| identity == key || !differs(identity));
            if !same_account
                || switches_on
                || !takes_effect(key, old.entries.get(key), fresh.entries.get(key))
            {
                needs_restart.push(key.clone());
                continue;
            }
            changed.push(key.clone());
        }
        match fresh.entries.get(key) {
            Some(entry) => merged.entries.insert(key.clone(), entry.clone()),
            None => merged.entries.remove(key),
        };
    }
    (merged, changed, needs_restart)
}

fn written<'a>(raw: &'a RawSettings, key: &str) -> Option<&'a WrittenValue> {
    raw.entries.get(key).map(|entry| &entry.written)
}

/// The keys that say to whose account a key belongs.
fn account_of(key: &str) -> Vec<String> {
    if let Some((number, _)) = key.strip_prefix("xo.bots.").and_then(|rest| rest.split_once('.')) {
        return ["bot_id", "name"].map(|name| format!("xo.bots.{number}.{name}")).to_vec();
    }
    let account = ACCOUNTS.iter().find(|(prefix, _)| {
        key.strip_prefix(prefix).is_some_and(|name| !name.contains('.') && is_credential(key))
    });
    account
        .map_or_else(Vec::new, |(prefix, names)| names.iter().map(|name| format!("{prefix}{name}")).collect())
}

/// Whether the key belongs to a login, not to the way to the platform.
fn is_credential(key: &str) -> bool {
    let is_secret = keys::shown(key) == Some(KeyVisibility::Secret);
    let is_part = matches!(key, "servicenow.client_id" | "xo.app_id" | "xo.jwt_algorithm");
    (is_secret && !key.ends_with(".proxy") && key != "xo.callback_url") || is_part
}

/// Whether a change of this value takes effect at run time.
fn takes_effect(key: &str, old: Option<&RawEntry>, new: Option<&RawEntry>) -> bool {
    let pattern = keys::pattern(key);
    if keys::shown(key) != Some(KeyVisibility::Secret) {
        return OPEN_KEYS.contains(&pattern.as_str());
    }
    match (old.map(|entry| &entry.written), new.map(|entry| &entry.written)) {
        (Some(WrittenValue::One(old)), Some(WrittenValue::One(new))) => match pattern.as_str() {
            "queue.url" => BrokerUrl::differ_only_in_login(old, new),
            "directory.url" => differ_only_in_password(old, new),
            _ => true,
        },
        _ => pattern.ends_with("_next") || OPTIONAL_SECRETS.contains(&pattern.as_str()),
    }
}

/// Whether two URLs differ at most in user and password.
fn differ_only_in_password(one: &str, other: &str) -> bool {
    let place = |text: &str| {
        let mut url = Url::parse(text).ok().filter(|url| url.has_host())?;
        url.set_username("").ok()?;
        url.set_password(None).ok()?;
        Some(url)
    };
    place(one).is_some_and(|one| Some(one) == place(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with a settings file, and a secret file for each of these keys.
    struct Written {
        folder: tempfile::TempDir,
    }

    const SETTINGS: &str = "
        [queue]
        url = \"amqp://causeway:old@127.0.0.1:1/%2f\"
        [servicenow]
        host_url = \"https://example.service-now.com\"
        username = \"bot\"
        [[xo.bots]]
        bot_id = \"st-1\"
        app_id = \"cs-1\"
        client_secret = \"secret-of-one\"
        [xo]
        allowed_hosts = [\"platform.kore.ai\"]
        [ingress.servicenow]
        token = \"token\"
    ";

    impl Written {
        fn new() -> Self {
            let this = Self { folder: tempfile::tempdir().unwrap() };
            this.settings(SETTINGS);
            this.secret("first-password");
            this
        }

        fn settings(&self, text: &str) {
            std::fs::write(self.folder.path().join("causeway.toml"), text).unwrap();
        }

        fn secret(&self, secret: &str) {
            std::fs::write(self.folder.path().join("password"), secret).unwrap();
        }

        fn load(&self) -> ReloadableSettings {
            let file = self.folder.path().join("causeway.toml");
            let password = self.folder.path().join("password");
            let environment =
                Environment::from([("CAUSEWAY_SERVICENOW__PASSWORD_FILE", password.to_str().unwrap())]);
            ReloadableSettings::load(Some(&file), &environment, RunPurpose::Serve).unwrap().1
        }
    }

    fn names(keys: &[&str]) -> Vec<String> {
        keys.iter().map(|key| (*key).to_owned()).collect()
    }

    #[test]
    fn a_secret_file_is_read_again_and_the_settings_file_is_not() {
        let written = Written::new();
        let mut settings = written.load();
        assert_eq!(settings.secret_files().len(), 1);
        written.settings(&SETTINGS.replace("secret-of-one", "another"));
        written.secret("second-password\n");
        let change = settings.reload(ReloadScope::SecretFiles).unwrap();
        assert_eq!((change.changed, change.needs_restart), (names(&["servicenow.password"]), names(&[])));
        let login = format!("{:?}", change.settings.servicenow.unwrap().login);
        assert!(!login.contains("second"), "{login}");
        let again = settings.reload(ReloadScope::SecretFiles).unwrap();
        assert_eq!(again.changed, names(&[]));
    }

    #[test]
    fn a_secret_file_that_cannot_be_used_keeps_the_old_secret() {
        let written = Written::new();
        let mut settings = written.load();
        for wrong in ["", "\n"] {
            written.secret(wrong);
            let change = settings.reload(ReloadScope::SecretFiles).unwrap();
            assert_eq!(change.changed, names(&[]));
            assert_eq!(change.problems.unwrap().0[0].key, "servicenow.password");
        }
        std::fs::remove_file(written.folder.path().join("password")).unwrap();
        assert!(settings.reload(ReloadScope::SecretFiles).unwrap().problems.is_some());
        assert!(settings.reload(ReloadScope::Everything).is_err());
        written.secret("first-password");
        assert!(settings.reload(ReloadScope::Everything).unwrap().changed.is_empty());
    }

    #[test]
    fn a_broken_settings_file_changes_nothing() {
        let written = Written::new();
        let mut settings = written.load();
        written.settings(&format!("{}\n[log]\nlevel = \"loud\"", SETTINGS.replace("\"token\"", "\"other\"")));
        let problems = settings.reload(ReloadScope::Everything).unwrap_err();
        assert_eq!(problems.0[0].key, "log.level");
        written
            .settings(&format!("{}\n[log]\nlevel = \"debug\"", SETTINGS.replace("\"token\"", "\"other\"")));
        let change = settings.reload(ReloadScope::Everything).unwrap();
        assert_eq!(change.changed, names(&["ingress.servicenow.token", "log.level"]));
        assert_eq!(change.settings.log.level, "debug");
    }

    #[test]
    fn a_secret_changes_only_together_with_its_account() {
        let written = Written::new();
        let mut settings = written.load();
        written.settings(&SETTINGS.replace("st-1", "st-2").replace("secret-of-one", "secret-of-two"));
        let change = settings.reload(ReloadScope::Everything).unwrap();
        assert_eq!(change.changed, names(&[]));
        assert_eq!(change.needs_restart, names(&["xo.bots.0.bot_id", "xo.bots.0.client_secret"]));
        assert_eq!(change.settings.xo.bots[0].bot_id, "st-1");
        written.settings(&SETTINGS.replace("\"bot\"", "\"other\""));
        written.secret("password-of-the-other");
        let change = settings.reload(ReloadScope::Everything).unwrap();
        assert_eq!(change.needs_restart, names(&["servicenow.password", "servicenow.username"]));
        // Only the password: the user stays.
        written.settings(SETTINGS);
        let change = settings.reload(ReloadScope::Everything).unwrap();
        assert_eq!((change.changed, change.needs_restart), (names(&["servicenow.password"]), names(&[])));
    }

    #[test]
    fn a_password_of_a_store_changes_and_its_place_does_not() {
        let written = Written::new();
        let mut settings = written.load();
        written.settings(&SETTINGS.replace("causeway:old@", "causeway:new@"));
        assert_eq!(settings.reload(ReloadScope::Everything).unwrap().changed, names(&["queue.url"]));
        for other in ["127.0.0.2:1/%2f", "127.0.0.1:2/%2f", "127.0.0.1:1/other"] {
            written.settings(&SETTINGS.replace("127.0.0.1:1/%2f", other));
            assert_eq!(
                settings.reload(ReloadScope::Everything).unwrap().needs_restart,
                names(&["queue.url"])
            );
        }
        assert!(differ_only_in_password("postgres://u:a@h/d?x=1", "postgres://v:b@h/d?x=1"));
        assert!(!differ_only_in_password("postgres://u:a@h/d", "postgres://u:a@h/e"));
        assert!(!differ_only_in_password("sqlite:/a", "sqlite:/b"));
    }

    #[test]
    fn a_secret_that_switches_a_part_on_needs_a_restart() {
        let written = Written::new();
        let mut settings = written.load();
        let more = "\n[ingress.handoffs]\ntoken_next = \"next\"\n[admin]\ntoken = \"admin\"\n[handoffs]\nevents_url = \"https://b.example/\"";
        written.settings(&format!("{SETTINGS}{more}"));
        let change = settings.reload(ReloadScope::Everything).unwrap();
        assert_eq!(change.changed, names(&[]));
        let restart = names(&["admin.token", "handoffs.events_url", "ingress.handoffs.token_next"]);
        assert_eq!(change.needs_restart, restart);
        written.settings(&SETTINGS.replace("\"token\"", "\"token\"\ntoken_next = \"next\""));
        let change = settings.reload(ReloadScope::Everything).unwrap();
        assert!(change.changed.contains(&"ingress.servicenow.token_next".to_owned()), "{change:?}");
    }

    #[test]
    fn an_empty_file_of_a_next_value_means_that_there_is_none() {
        let written = Written::new();
        let next = written.folder.path().join("next");
        std::fs::write(&next, "").unwrap();
        let line = format!("token = \"token\"\ntoken_next_file = \"{}\"", next.display());
        written.settings(&SETTINGS.replace("token = \"token\"", &line));
        let mut settings = written.load();
        assert_eq!(settings.secret_files().len(), 2);
        for content in ["next\n", ""] {
            std::fs::write(&next, content).unwrap();
            let change = settings.reload(ReloadScope::SecretFiles).unwrap();
            assert_eq!(change.changed, names(&["ingress.servicenow.token_next"]), "{content:?}");
            assert_eq!(change.settings.ingress.token.next.is_some(), !content.is_empty());
        }
        assert!(settings.reload(ReloadScope::Everything).unwrap().changed.is_empty());
    }

    #[test]
    fn every_listed_key_exists() {
        for key in OPEN_KEYS.into_iter().chain(OPTIONAL_SECRETS) {
            let is_secret = OPTIONAL_SECRETS.contains(&key);
            let shown = keys::KEYS.iter().find(|(known, _)| *known == key).map(|(_, shown)| *shown);
            assert_eq!(shown == Some(KeyVisibility::Secret), is_secret, "{key}");
            assert!(shown.is_some(), "{key}");
        }
    }
}
