//! Holds every name that other programs, other versions or files on disk know: a changed name must be changed here, too, on
//! purpose. `PINS_UPDATE=1 cargo nextest run -E 'test(pins)'` writes the list anew.
//!
//! The names are read from the source, so that a new name cannot be forgotten. The HTTP interface has its own list
//! (`deploy/openapi.json`, `openapi.rs`).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::told;

const PINS: &str = "tests/fixtures/pins.txt";

/// Files whose plain literals are names on the wire or on disk.
const FILES: &[(&str, &str)] = &[
    ("amqp", "src/queue/rabbit/names.rs"),
    ("amqp", "src/queue/rabbit/topology.rs"),
    ("amqp", "src/queue/rabbit/wire.rs"),
    ("amqp", "src/queue/rabbit/membership.rs"),
    ("message", "src/message/mod.rs"),
    ("message", "src/message/destination.rs"),
    ("message", "src/message/dead_letter.rs"),
    ("message", "src/message/outcome.rs"),
    ("directory", "src/conversation/dedup.rs"),
    ("directory", "src/conversation/mod.rs"),
    ("metric", "src/telemetry/names.rs"),
    ("setting", "src/config/keys.rs"),
];

/// Calls whose first argument is the source of a derived id. A changed source gives other ids to the same events.
const ID_SOURCES: &[&str] = &["MessageId::derived(\"", "MessageId::derived_from(\""];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// The code of a file without comments and without its unit tests.
fn code(file: &Path) -> String {
    let text = read(file);
    let product = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    product.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The literals without spaces and escapes.
fn names(code: &str) -> impl Iterator<Item = &str> {
    let is_name = |text: &&str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:#*/".contains(c);
        let begins = text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        text.len() > 1 && begins && text.chars().all(plain)
    };
    code.lines().flat_map(|line| line.split('"').skip(1).step_by(2)).filter(is_name)
}

fn sources(folder: &Path, ends: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in
        fs::read_dir(folder).expect("a folder of the source").map(|entry| entry.expect("an entry").path())
    {
        if entry.is_dir() {
            found.extend(sources(&entry, ends));
        } else if entry.to_string_lossy().ends_with(ends) {
            found.push(entry);
        }
    }
    found.sort();
    found
}

fn found() -> BTreeSet<String> {
    let mut pins = BTreeSet::new();
    for (section, file) in FILES {
        let code = code(&root().join(file));
        pins.extend(names(&code).map(|name| format!("{section} {name}")));
    }
    let is_file = |name: &&str| [".lock", ".sqlite", ".db"].iter().any(|end| name.ends_with(end));
    for file in sources(&root().join("src"), ".rs") {
        if file.to_string_lossy().contains("/sandbox/") || file.to_string_lossy().contains("_tests.rs") {
            continue;
        }
        let code = code(&file);
        pins.extend(names(&code).filter(is_file).map(|name| format!("file {name}")));
        for call in ID_SOURCES {
            let after = code.split(call).skip(1).filter_map(|rest| rest.split('"').next());
            pins.extend(after.map(|source| format!("id {source}")));
        }
    }
    for file in sources(&root().join("src"), ".sql") {
        let name = file.file_name().expect("a name").to_string_lossy().into_owned();
        let text = read(&file);
        let lines = text.lines().map(|line| line.split("--").next().unwrap_or_default().trim());
        pins.extend(lines.filter(|line| line.len() > 2).map(|line| format!("sql {name} {line}")));
    }
    pins
}

#[test]
fn a_name_on_the_wire_or_on_disk_changes_on_purpose() {
    let file = root().join(PINS);
    let found = found();
    if told("PINS_UPDATE").is_some() {
        let text: Vec<&str> = found.iter().map(String::as_str).collect();
        fs::write(&file, text.join("\n") + "\n").expect("the list can be written");
    }
    let pinned: BTreeSet<String> = read(&file).lines().map(str::to_owned).collect();
    let gone: Vec<_> = pinned.difference(&found).collect();
    let new: Vec<_> = found.difference(&pinned).collect();
    assert!(
        gone.is_empty() && new.is_empty(),
        "names that other programs or files know have changed. Gone: {gone:#?}. New: {new:#?}. If this is on purpose, \
         PINS_UPDATE=1 writes {PINS}"
    );
}

#[test]
fn names_are_found_and_sentences_are_not() {
    let code = "let it = (\"w.xo\", \"a sentence\", \"x-causeway-lane\", \"\");";
    assert_eq!(names(code).collect::<Vec<_>>(), ["w.xo", "x-causeway-lane"]);
}
