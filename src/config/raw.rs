//! The settings as written: defaults, file and environment in layers, flattened to dotted keys.
//!
//! Guarantees: every value has its place. Unknown keys, broken TOML and unreadable secret files are all found in one pass.
//! No value is printed. Not responsible for: the meaning of the values (`meant`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::keys::{self, KeyVisibility};
use super::problem::{SettingProblem, SettingSource};

/// The reference of all keys, which is also the lowest layer.
pub(super) const DEFAULTS: &str = include_str!("default.toml");

/// The place of a default.
pub(super) const DEFAULTS_PLACE: &str = "the built-in defaults";

const PREFIX: &str = "CAUSEWAY_";
/// Variables with our prefix that are not keys: the settings file, and switches of the test suite.
const NOT_KEYS: &[&str] = &["CAUSEWAY_CONFIG", "CAUSEWAY_TEST_"];

/// The environment, passed in so that no test needs to change its own.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The environment of this process.
    pub fn of_process() -> Self {
        // A value that is not Unicode cannot be valid; its lossy form is reported like any wrong value.
        let pairs = std::env::vars_os();
        Self(
            pairs
                .map(|(name, value)| {
                    (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
                })
                .collect(),
        )
    }

    /// The proxy variables of the machine. Both spellings are common.
    fn proxies(&self) -> BTreeMap<String, String> {
        let names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"];
        let named = names.iter().filter_map(|name| {
            let spellings = [name.to_lowercase(), (*name).to_owned()];
            let found = spellings.iter().filter_map(|spelling| self.0.get(spelling));
            let value = found.map(|value| value.trim()).find(|value| !value.is_empty())?;
            Some(((*name).to_owned(), value.to_owned()))
        });
        named.collect()
    }

    /// The value of a variable that is present and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether a variable is present and not empty.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(pairs: [(&str, &str); N]) -> Self {
        pairs.into_iter().collect()
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for Environment {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Environment({} variables)", self.0.len())
    }
}

/// A value as it was written.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum WrittenValue {
    /// A value that is not an array.
    One(String),
    /// A TOML array.
    Many(Vec<String>),
}

/// A value and its place.
#[derive(Clone)]
pub(super) struct RawEntry {
    pub(super) written: WrittenValue,
    pub(super) place: SettingSource,
    /// The file that contains the secret, if the setting names a file.
    pub(super) secret_file: Option<PathBuf>,
}

impl RawEntry {
    const fn new(written: WrittenValue, place: SettingSource) -> Self {
        Self { written, place, secret_file: None }
    }
}

/// All values by key, after all layers.
#[derive(Clone, Default)]
pub(super) struct RawSettings {
    pub(super) entries: BTreeMap<String, RawEntry>,
    /// The next values of credentials whose files are empty: there is no next value yet.
    pub(super) unset: BTreeMap<String, RawEntry>,
    /// The proxy variables that all programs of the machine share, such as `HTTPS_PROXY`, by name.
    pub(super) proxies: BTreeMap<String, String>,
    pub(super) problems: Vec<SettingProblem>,
    /// The settings file is not TOML, so nothing can be said about missing keys.
    pub(super) is_broken: bool,
}

impl RawSettings {
    /// Reads the defaults, the file over the defaults, and the environment over both.
    pub(super) fn read(file: Option<&Path>, environment: &Environment) -> Self {
        let mut raw = Self::default();
        raw.lay(|layer| layer.add_toml(Path::new(DEFAULTS_PLACE), DEFAULTS));
        if let Some(path) = file {
            match std::fs::read_to_string(path) {
                Ok(text) => raw.lay(|layer| {
                    layer.add_toml(path, &text);
                    layer.drop_overridden(environment);
                }),
                Err(error) => raw.problems.push(SettingProblem {
                    key: "--config".to_owned(),
                    place: SettingSource::Nowhere,
                    reason: format!("cannot read {}: {error}", path.display()),
                }),
            }
        }
        raw.lay(|layer| layer.add_environment(environment));
        raw.proxies = environment.proxies();
        raw
    }

    /// Fills one layer, reads its secret files, and puts it over the existing values.
    fn lay(&mut self, fill: impl FnOnce(&mut Self)) {
        let mut layer = Self::default();
        fill(&mut layer);
        layer.read_secret_files();
        layer.report_unknown();
        self.unset.retain(|key, _| !layer.entries.contains_key(key));
        self.entries.append(&mut layer.entries);
        self.unset.append(&mut layer.unset);
        self.problems.append(&mut layer.problems);
        self.is_broken |= layer.is_broken;
    }

    fn add_toml(&mut self, path: &Path, text: &str) {
        let place = |at: usize| SettingSource::File {
            path: path.to_owned(),
            line: text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1,
        };
        let (table, errors) = DeTable::parse_recoverable(text);
        // Only the message: the parser's full report quotes the line, which may contain a secret. Only the first error: the
        // others, and the keys behind it, follow from it.
        if let Some(error) = errors.iter().min_by_key(|error| error.span().map_or(0, |span| span.start)) {
            self.is_broken = true;
            self.problems.push(SettingProblem {
                key: "the file".to_owned(),
                place: place(error.span().map_or(0, |span| span.start)),
                reason: format!("is not TOML: {}", error.message()),
            });
            return;
        }
        self.flatten("", table.get_ref(), &place);
    }

    fn flatten(&mut self, prefix: &str, table: &DeTable<'_>, place: &dyn Fn(usize) -> SettingSource) {
        for (name, value) in table {
            let key = if prefix.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{prefix}.{}", name.get_ref())
            };
            let at = place(name.span().start);
            match value.get_ref() {
                DeValue::Table(inner) => self.flatten(&key, inner, place),
                DeValue::Array(items) if items.iter().any(|item| item.get_ref().is_table()) => {
                    for (number, item) in items.iter().enumerate() {
                        if let DeValue::Table(inner) = item.get_ref() {
                            self.flatten(&format!("{key}.{number}"), inner, place);
                        }
                    }
                }
                DeValue::Array(items) => {
                    let written =
                        WrittenValue::Many(items.iter().map(|item| scalar(item.get_ref())).collect());
                    self.entries.insert(key, RawEntry::new(written, at));
                }
                single => {
                    self.entries.insert(key, RawEntry::new(WrittenValue::One(scalar(single)), at));
                }
            }
        }
    }

    fn add_environment(&mut self, environment: &Environment) {
        for (name, value) in &environment.0 {
            let Some(rest) = name.strip_prefix(PREFIX) else { continue };
            // Docker Compose passes a variable without a value as an empty one.
            if value.is_empty()
                || NOT_KEYS.iter().any(|other| name.starts_with(other))
                || is_service_link(rest)
            {
                continue;
            }
            let key = rest.to_ascii_lowercase().replace("__", ".");
            let place = SettingSource::Variable(name.clone());
            self.entries.insert(key, RawEntry::new(WrittenValue::One(value.clone()), place));
        }
    }

    /// Removes the secret files whose secret comes from the environment. Such a file is not read: a service may lack the right
    /// to read the file that the settings name for the administrator's commands.
    fn drop_overridden(&mut self, environment: &Environment) {
        let mut above = Self::default();
        above.add_environment(environment);
        self.entries.retain(|key, _| {
            let set = |secret: &str| above.entries.contains_key(secret) || above.entries.contains_key(key);
            !secret_of_file(key).is_some_and(set)
        });
    }

    /// Replaces every `<secret>_file` with the content of its file.
    fn read_secret_files(&mut self) {
        let is_file_of_secret = |key: &&String| secret_of_file(key).is_some();
        let pointers: Vec<String> = self.entries.keys().filter(is_file_of_secret).cloned().collect();
        for pointer in pointers {
            let Some(entry) = self.entries.remove(&pointer) else { continue };
            let key = pointer.trim_end_matches("_file").to_owned();
            match self.read_secret(&key, &entry) {
                Ok((secret, file)) => {
                    let is_unset = secret.is_empty();
                    let written = WrittenValue::One(secret);
                    let read = RawEntry { written, place: entry.place, secret_file: Some(file) };
                    if is_unset { &mut self.unset } else { &mut self.entries }.insert(key, read);
                }
                Err(reason) => {
                    self.problems.push(SettingProblem { key: pointer, place: entry.place, reason })
                }
            }
        }
    }

    fn read_secret(&self, key: &str, entry: &RawEntry) -> Result<(String, PathBuf), String> {
        if let Some(other) = self.entries.get(key) {
            return Err(format!("{key} is also set ({}): keep one of the two", other.place));
        }
        let WrittenValue::One(path) = &entry.written else {
            return Err("must be the path of one file".to_owned());
        };
        let path = PathBuf::from(path);
        Ok((secret_of(key, &path)?, path))
    }

    /// Reads every secret file again. A secret whose file cannot be read keeps its value, and the problem is returned.
    pub(super) fn read_secret_files_again(&mut self) -> Vec<SettingProblem> {
        let mut problems = Vec::new();
        self.entries.append(&mut self.unset);
        for (key, entry) in &mut self.entries {
            let Some(file) = &entry.secret_file else { continue };
            match secret_of(key, file) {
                Ok(secret) => entry.written = WrittenValue::One(secret),
                Err(reason) => {
                    problems.push(SettingProblem { key: key.clone(), place: entry.place.clone(), reason })
                }
            }
        }
        let nothing = WrittenValue::One(String::new());
        let is_unset = |entry: &RawEntry| entry.secret_file.is_some() && entry.written == nothing;
        self.unset = self.entries.extract_if(.., |_, entry| is_unset(entry)).collect();
        problems
    }

    fn report_unknown(&mut self) {
        let unknown = self.entries.iter().filter(|(key, _)| keys::shown(key).is_none());
        let problems = unknown.map(|(key, entry)| {
            let reason = match (keys::nearest(key), &entry.place) {
                (Some(near), SettingSource::Variable(_)) => {
                    format!("no such key: did you mean {}?", variable(near))
                }
                (Some(near), _) => format!("no such key: did you mean {near}?"),
                (None, _) => "no such key: causeway check --print-defaults lists them all".to_owned(),
            };
            SettingProblem { key: key.clone(), place: entry.place.clone(), reason }
        });
        self.problems.extend(problems);
        self.entries.retain(|key, _| keys::shown(key).is_some());
    }
}

/// The secret to which a key with `_file` belongs.
fn secret_of_file(key: &str) -> Option<&str> {
    key.strip_suffix("_file").filter(|secret| keys::shown(secret) == Some(KeyVisibility::Secret))
}

/// The secret in a file. It is empty only if the key is the next value of a credential.
fn secret_of(key: &str, path: &Path) -> Result<String, String> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    // Editors and `echo` end a file with a line break that is not part of the secret.
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() && !key.ends_with("_next") {
        return Err(format!("{shown} is empty"));
    }
    Ok(secret.to_owned())
}

/// The environment variable of a key.
pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_ascii_uppercase())
}

/// Kubernetes puts the addresses of a Service named `causeway` into every pod, with our prefix.
fn is_service_link(rest: &str) -> bool {
    let rest = format!("_{rest}");
    rest.ends_with("_SERVICE_HOST") || rest.contains("_SERVICE_PORT") || rest.ends_with("_PORT") || {
        let after = rest.split_once("_PORT_").map_or("", |(_, after)| after);
        after.starts_with(|first: char| first.is_ascii_digit())
    }
}

/// A single value as text: its key decides the meaning, not its TOML type.
fn scalar(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => number.to_string(),
            Err(_) => number.as_str().to_owned(),
        },
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "[..]".to_owned(),
        DeValue::Table(_) => "{..}".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_file_is_not_read_if_the_environment_has_the_secret() {
        let folder = tempfile::tempdir().unwrap();
        let settings = folder.path().join("causeway.toml");
        std::fs::write(&settings, "[servicenow]\npassword_file = \"/nowhere/password\"\n").unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, "of the file\n").unwrap();
        let file = file.to_str().unwrap();
        for (variable, value, expected) in [
            ("CAUSEWAY_SERVICENOW__PASSWORD_FILE", file, "of the file"),
            ("CAUSEWAY_SERVICENOW__PASSWORD", "of the variable", "of the variable"),
        ] {
            let raw = RawSettings::read(Some(&settings), &Environment::from([(variable, value)]));
            assert!(raw.problems.is_empty(), "{variable}");
            let expected = WrittenValue::One(expected.to_owned());
            assert!(raw.entries["servicenow.password"].written == expected, "{variable}");
        }
        let raw = RawSettings::read(Some(&settings), &Environment::default());
        assert!(raw.problems[0].reason.contains("cannot read /nowhere/password"), "without a variable");
    }

    #[test]
    fn service_links_are_not_settings() {
        for name in
            ["SERVICE_HOST", "PORT", "PORT_8080_TCP_ADDR", "INGRESS_SERVICE_PORT_HTTP", "INGRESS_PORT_80_TCP"]
        {
            assert!(is_service_link(name), "{name}");
        }
        for (key, _) in keys::KEYS {
            assert!(!is_service_link(variable(key).trim_start_matches(PREFIX)), "{key}");
        }
    }
}
