//! Reads written values as typed values, one function for each type.
//!
//! Guarantees: an unreadable value becomes a [`SettingProblem`] with its key, and reading continues. A value is not repeated if
//! its key is secret, or if it contains an `@` and so perhaps a password.
//! Not responsible for: the set of keys and the rules between keys (`meant`, `rules`).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use super::keys::{self, KeyVisibility};
use super::problem::{SettingProblem, SettingSource};
use super::raw::{RawSettings, WrittenValue};

/// The longest duration of any setting. Much longer ones cannot be added to a point in time.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Returns values and collects their problems.
pub(super) struct SettingsReader {
    raw: RawSettings,
    /// The keys that were read, so that a test can show that no key is forgotten.
    asked: BTreeSet<String>,
}

impl SettingsReader {
    pub(super) const fn new(raw: RawSettings) -> Self {
        Self { raw, asked: BTreeSet::new() }
    }

    /// All problems.
    pub(super) fn into_problems(self) -> Vec<SettingProblem> {
        self.raw.problems
    }

    /// Whether the key has a value or a default.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.raw.entries.contains_key(key)
    }

    /// Whether this key already has a problem.
    pub(super) fn is_wrong(&self, key: &str) -> bool {
        self.raw.problems.iter().any(|problem| problem.key == key)
    }

    /// The keys that were read, with `*` for list numbers.
    #[cfg(test)]
    pub(super) fn asked(&self) -> &BTreeSet<String> {
        &self.asked
    }

    /// Records a problem of a key.
    pub(super) fn wrong(&mut self, key: &str, reason: impl Into<String>) {
        let place = self.raw.entries.get(key).map_or(SettingSource::Nowhere, |entry| entry.place.clone());
        self.raw.problems.push(SettingProblem { key: key.to_owned(), place, reason: reason.into() });
    }

    /// A proxy variable of the machine, such as `HTTPS_PROXY`.
    pub(super) fn machine_proxy(&self, name: &str) -> Option<&str> {
        self.raw.proxies.get(name).map(String::as_str)
    }

    /// Records a problem of a variable that is no setting of ours.
    pub(super) fn wrong_variable(&mut self, name: &str, reason: impl Into<String>) {
        let place = SettingSource::Variable(name.to_owned());
        self.raw.problems.push(SettingProblem { key: name.to_owned(), place, reason: reason.into() });
    }

    /// The entries of a list of tables, such as `xo.bots.0`, in the order of their numbers.
    pub(super) fn entries_of(&self, list: &str) -> Vec<String> {
        let numbers = self.raw.entries.keys().filter_map(|key| {
            key.strip_prefix(list)?.strip_prefix('.')?.split_once('.')?.0.parse::<u32>().ok()
        });
        numbers.collect::<BTreeSet<_>>().into_iter().map(|number| format!("{list}.{number}")).collect()
    }

    /// The languages with a table inside of this one.
    pub(super) fn languages_of(&self, table: &str) -> Vec<String> {
        let inner = self.raw.entries.keys().filter_map(|key| {
            key.strip_prefix(table)?.strip_prefix('.')?.split_once('.').map(|(tag, _)| tag.to_owned())
        });
        inner.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The entries of a table with free names, each as name and value.
    pub(super) fn table_of(&self, table: &str) -> Vec<(String, String)> {
        let named = self.raw.entries.iter().filter_map(|(key, entry)| {
            let name = key.strip_prefix(table)?.strip_prefix('.')?;
            match &entry.written {
                WrittenValue::One(text) => Some((name.to_owned(), text.trim().to_owned())),
                WrittenValue::Many(_) => Some((name.to_owned(), String::new())),
            }
        });
        named.collect()
    }

    /// A list of `name=value`. Other items are reported under the key.
    pub(super) fn pairs(&mut self, key: &str) -> Vec<(String, String)> {
        let mut pairs = Vec::new();
        for pair in self.list(key).unwrap_or_default() {
            match pair.split_once('=').map(|(name, value)| (name.trim(), value.trim())) {
                Some((name, value)) if !name.is_empty() => pairs.push((name.to_owned(), value.to_owned())),
                _ => self.wrong(key, format!("\"{}\" is not name=value", pair.escape_debug())),
            }
        }
        pairs
    }

    /// A text. An empty text is a mistake.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        self.parsed(
            key,
            "a text",
            |text| if text.is_empty() { Err(String::new()) } else { Ok(text.to_owned()) },
        )
    }

    /// A text that cannot be printed by mistake.
    pub(super) fn secret(&mut self, key: &str) -> Option<SecretString> {
        self.text(key).map(SecretString::from)
    }

    /// A list: a TOML array, or one text with commas.
    pub(super) fn list(&mut self, key: &str) -> Option<Vec<String>> {
        self.asked.insert(keys::pattern(key));
        let items = match &self.raw.entries.get(key)?.written {
            WrittenValue::One(text) => text.split(',').map(str::to_owned).collect(),
            WrittenValue::Many(items) => items.clone(),
        };
        Some(items.iter().map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect())
    }

    pub(super) fn duration(&mut self, key: &str) -> Duration {
        let read = |text: &str| {
            let time = humantime::parse_duration(text).map_err(|_| String::new())?;
            if time.is_zero() {
                Err("must be longer than zero".to_owned())
            } else if time > DURATION_MAX {
                Err("is longer than a year".to_owned())
            } else {
                Ok(time)
            }
        };
        self.parsed(key, "a time with its unit, such as 250ms, 15s or 24h", read).unwrap_or_default()
    }

    pub(super) fn bytes(&mut self, key: &str) -> usize {
        self.parsed(key, "a size such as 512 KiB or 10 MiB", |text| parse_bytes(text).ok_or_else(String::new))
            .unwrap_or(0)
    }

    pub(super) fn whole(&mut self, key: &str, least: u16, most: u16) -> u16 {
        let read = |text: &str| match text.parse() {
            Ok(number) if (least..=most).contains(&number) => Ok(number),
            _ => Err(String::new()),
        };
        self.parsed(key, &format!("a whole number from {least} to {most}"), read).unwrap_or(least)
    }

    pub(super) fn factor(&mut self, key: &str) -> f64 {
        let read = |text: &str| match text.parse::<f64>() {
            Ok(number) if (1.0..=100.0).contains(&number) => Ok(number),
            _ => Err(String::new()),
        };
        self.parsed(key, "a number from 1 to 100", read).unwrap_or(1.0)
    }

    pub(super) fn rate(&mut self, key: &str) -> Option<f64> {
        self.parsed(key, "a number of calls in a second, such as 50 or 50/s", |text| {
            parse_rate(text).ok_or_else(String::new)
        })
    }

    pub(super) fn flag(&mut self, key: &str) -> bool {
        self.parsed(key, "true or false", |text| text.parse().map_err(|_| String::new())).unwrap_or(false)
    }

    pub(super) fn address(&mut self, key: &str) -> SocketAddr {
        let expected = "an IP address and a port, such as 0.0.0.0:8080 or [::1]:8080";
        let read = |text: &str| text.parse().map_err(|_| String::new());
        self.parsed(key, expected, read).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// The URL of a platform.
    pub(super) fn http_url(&mut self, key: &str) -> Option<Url> {
        let read = |text: &str| {
            let url = Url::parse(text).map_err(|error| error.to_string())?;
            if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
                return Err(String::new());
            }
            if !url.username().is_empty() || url.password().is_some() {
                return Err("user and password do not belong into the address: they have keys of their own"
                    .to_owned());
            }
            Ok(url)
        };
        self.parsed(key, "an address that begins with https:// (or http://)", read)
    }

    /// The URL of a host without a path: Causeway appends the paths itself.
    pub(super) fn host_url(&mut self, key: &str) -> Option<Url> {
        let url = self.http_url(key)?;
        if url.path() == "/" && url.query().is_none() && url.fragment().is_none() {
            return Some(url);
        }
        let why = "must be a host alone, such as https://acme.service-now.com: a path in it is a mistake";
        self.wrong(key, why);
        None
    }

    /// One value of a closed set of names.
    pub(super) fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> Option<T> {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        self.parsed(key, &format!("one of: {}", names.join(", ")), |text| {
            let found = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
            found.ok_or_else(|| {
                let near = keys::nearest_value(text, &names);
                near.map(|near| format!("did you mean {near}?")).unwrap_or_default()
            })
        })
    }

    /// Reads one value. If `read` fails, the problem says what was expected, and adds the reason from `read` if there is
    /// one.
    pub(super) fn parsed<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.asked.insert(keys::pattern(key));
        let reason = match &self.raw.entries.get(key)?.written {
            WrittenValue::One(text) => match read(text.trim()) {
                Ok(value) => return Some(value),
                Err(why) => {
                    let found = quoted(key, text);
                    let why = if why.is_empty() { why } else { format!(" ({why})") };
                    format!("must be {expected}{found}{why}")
                }
            },
            WrittenValue::Many(_) => format!("must be {expected}, not a list"),
        };
        self.wrong(key, reason);
        None
    }
}

/// The written value, if it may be shown.
fn quoted(key: &str, text: &str) -> String {
    if text.trim().is_empty() {
        ", is empty".to_owned()
    } else if keys::shown(key) == Some(KeyVisibility::Open) && !text.contains('@') {
        format!(", is \"{}\"", text.escape_debug())
    } else {
        String::new()
    }
}

/// `10 MiB`, `512KB`, `4096`.
pub(crate) fn parse_bytes(text: &str) -> Option<usize> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let factor: usize = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "kib" => 1 << 10,
        "mb" => 1_000_000,
        "mib" => 1 << 20,
        "gb" => 1_000_000_000,
        "gib" => 1 << 30,
        _ => return None,
    };
    number.parse::<usize>().ok()?.checked_mul(factor).filter(|bytes| *bytes > 0)
}

/// `50`, `50/s`, `0.5/s`: the number in a second.
pub(crate) fn parse_rate(text: &str) -> Option<f64> {
    let number: f64 = text.strip_suffix("/s").unwrap_or(text).trim().parse().ok()?;
    (0.001..=1_000_000.0).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse_bytes("10 MiB"), Some(10 << 20));
        assert_eq!(parse_bytes("512kb"), Some(512_000));
        assert_eq!(parse_bytes("4096"), Some(4096));
        for wrong in ["", "MiB", "0", "-1", "10 parsecs", "99999999999 GiB"] {
            assert_eq!(parse_bytes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn rates_are_read_with_and_without_their_unit() {
        assert_eq!(parse_rate("50/s"), Some(50.0));
        assert_eq!(parse_rate("0.5"), Some(0.5));
        for wrong in ["0", "-1", "inf", "NaN", "fast", "5/m"] {
            assert_eq!(parse_rate(wrong), None, "{wrong}");
        }
    }
}
