//! Prints the settings in use as a settings file, for `causeway check --print`.
//!
//! Guarantees: the value of a secret key is masked. Every value has its place. Not responsible for: the defaults with their
//! descriptions (`default.toml`).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::keys::{self, KeyVisibility};
use super::problem::SettingSource;
use super::raw::{DEFAULTS_PLACE, RawEntry, RawSettings, WrittenValue};

/// The mask of a secret.
const MASK: &str = "********";

/// All values in use. Entries of lists of tables come last, as TOML demands.
pub(super) fn print(raw: &RawSettings) -> String {
    let mut text = String::new();
    let mut tables: BTreeMap<(String, u32), Vec<(&str, &RawEntry)>> = BTreeMap::new();
    for (key, entry) in &raw.entries {
        match table_of(key) {
            Some((table, number, name)) => tables.entry((table, number)).or_default().push((name, entry)),
            None => line(&mut text, key, key, entry),
        }
    }
    for ((table, number), entries) in tables {
        let _ = write!(text, "\n[[{table}]]\n");
        for (name, entry) in entries {
            line(&mut text, &format!("{table}.{number}.{name}"), name, entry);
        }
    }
    text
}

/// The list, the number and the rest of a key such as `xo.bots.0.name`.
fn table_of(key: &str) -> Option<(String, u32, &str)> {
    let lists = ["xo.bots", "servicenow.routes"];
    let list = lists.into_iter().find(|list| key.starts_with(&format!("{list}.")))?;
    let (number, name) = key.strip_prefix(list)?.strip_prefix('.')?.split_once('.')?;
    Some((list.to_owned(), number.parse().ok()?, name))
}

fn line(text: &mut String, key: &str, shown: &str, entry: &RawEntry) {
    let is_secret = keys::shown(key) != Some(KeyVisibility::Open);
    let value = match &entry.written {
        _ if is_secret => toml::Value::from(MASK),
        // An address may contain a password by mistake.
        WrittenValue::One(value) if value.contains('@') && value.contains("://") => toml::Value::from(MASK),
        WrittenValue::One(value) => toml::Value::from(value.as_str()),
        WrittenValue::Many(values) => toml::Value::from(values.clone()),
    };
    let place = match &entry.place {
        SettingSource::File { path, .. } if path.as_os_str() == DEFAULTS_PLACE => String::new(),
        place => format!("  # {}", place.to_string().replace(char::is_control, " ")),
    };
    let _ = writeln!(text, "{shown} = {value}{place}");
}

#[cfg(test)]
mod tests {
    use super::super::{Environment, RunPurpose, Settings};
    use super::*;

    #[test]
    fn printed_settings_can_be_read_and_hold_no_secret() {
        let environment = Environment::from([
            ("CAUSEWAY_INGRESS__SERVICENOW__TOKEN", "the-secret-of-the-callbacks"),
            ("CAUSEWAY_QUEUE__URL", "amqp://causeway:hidden-password@broker/%2f"),
            ("CAUSEWAY_SERVICENOW__INSTANCE", "example"),
            ("CAUSEWAY_XO__BOTS__0__BOT_ID", "st-1"),
            ("CAUSEWAY_XO__BOTS__0__CLIENT_SECRET", "the-secret-of-the-bot"),
        ]);
        let text = print(&RawSettings::read(None, &environment));
        for secret in ["the-secret", "hidden"] {
            assert!(!text.contains(secret), "{text}");
        }
        assert!(
            text.contains("servicenow.instance = \"example\"  # CAUSEWAY_SERVICENOW__INSTANCE\n"),
            "{text}"
        );
        assert!(text.contains("queue.partitions = \"8\"\n"), "{text}");
        assert!(text.contains("[[xo.bots]]\nbot_id = \"st-1\""), "{text}");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("printed.toml");
        std::fs::write(&file, text.replace("queue.url", "#queue.url")).unwrap();
        let again = RawSettings::read(Some(&file), &Environment::default());
        assert_eq!(again.problems, []);
        let settings = Settings::load(None, &environment, RunPurpose::Admin);
        assert!(settings.is_err(), "app_id is missing");
    }
}
