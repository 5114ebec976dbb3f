//! Tests the rules of the code base that no compiler checks. The rules read the source tree on every test run.
//!
//! Each rule is a table or a few lines. To change a rule, change it here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms that a room must not import, because imports run one way along the path of a message. `cli`, `app.rs` and
/// `main.rs` assemble the program and may import every room.
const MUST_NOT_KNOW: &[(&str, &str)] = &[
    (
        "tls",
        "admin http_server ingress files queue worker bridge delivery conversation platform dead_letters message sandbox",
    ),
    (
        "message",
        "admin http_server ingress queue worker bridge delivery conversation platform dead_letters sandbox",
    ),
    ("queue", "admin http_server ingress worker bridge delivery conversation platform dead_letters sandbox"),
    ("conversation", "admin course http_server ingress worker bridge delivery platform dead_letters sandbox"),
    ("platform", "admin http_server ingress queue worker bridge delivery dead_letters sandbox"),
    ("delivery", "admin http_server ingress worker bridge dead_letters sandbox"),
    ("bridge", "admin http_server ingress worker dead_letters sandbox"),
    ("files", "admin ingress queue worker bridge delivery conversation dead_letters sandbox"),
    ("worker", "admin http_server ingress sandbox"),
    ("http_server", "admin ingress files worker bridge delivery platform dead_letters sandbox"),
    ("ingress", "admin worker bridge delivery platform sandbox"),
    ("admin", "ingress worker bridge delivery platform sandbox"),
    ("dead_letters", "admin course http_server ingress worker bridge delivery platform sandbox"),
    (
        "status",
        "admin http_server ingress queue worker bridge delivery conversation platform dead_letters course sandbox",
    ),
    ("course", "admin http_server ingress worker bridge delivery platform sandbox"),
    // A simulator must not share the misunderstandings of the client.
    ("sandbox", "platform"),
    ("telemetry", "admin http_server ingress queue worker bridge delivery platform dead_letters sandbox"),
];

/// The parts of `bridge` that a part must not import: calls between the parts run one way, so that each cache has one owner.
const BRIDGE_MUST_NOT_KNOW: &[(&str, &str)] = &[
    ("to_bot", "to_agent watch"),
    ("watch", "to_agent"),
    ("context", "notices to_agent to_bot watch"),
    ("notices", "to_agent to_bot watch"),
    ("incident_request", "to_agent to_bot watch"),
    ("missing_message", "to_agent to_bot watch"),
    ("conversation_rows", "to_agent to_bot watch"),
    ("best_effort", "to_agent to_bot watch"),
    ("table_reading", "to_agent to_bot watch"),
];

/// The rooms that may import neither the settings nor their assembler.
const STAGES: &[&str] = &[
    "tls",
    "message",
    "queue",
    "conversation",
    "platform",
    "files",
    "delivery",
    "bridge",
    "worker",
    "http_server",
    "ingress",
    "admin",
    "dead_letters",
    "course",
    "status",
    "sandbox",
];
const ASSEMBLY: &[&str] = &["config", "cli", "app"];

/// Code that may occur in only one file of `src`: the words, the file, the reason.
const ONE_HOME: &[(&str, &str, &str)] = &[
    ("tokio::spawn(", "tasks.rs", "tasks are named, stopped and joined in one place"),
    ("task::spawn(", "tasks.rs", "tasks are named, stopped and joined in one place"),
    ("JoinSet", "tasks.rs", "tasks are named, stopped and joined in one place"),
    ("Client::builder()", "platform/http.rs", "one HTTP client with one set of limits"),
];

const MOST_LINES: usize = 500;
const SAY_NOTHING: &[&str] = &["util", "utils", "misc", "common", "helper", "helpers", "stuff", "shared"];
const UNFINISHED: &[&str] = &["todo!(", "unimplemented!("];
/// A test is ignored only if it needs a server that some machines lack. `cargo test` then reports the test as ignored
/// with the reason, and `tests/run` runs it. A test that finds its server missing fails.
const IGNORED: &str = "#[ignore";
const NEEDS_NEWEST_RABBIT: &str = "#[ignore = \"needs RabbitMQ 4.3: tests/run";
const MAY_BE_IGNORED: &[&str] = &[
    "#[ignore = \"needs RabbitMQ: tests/run",
    NEEDS_NEWEST_RABBIT,
    "#[ignore = \"needs PostgreSQL: tests/run",
    "#[ignore = \"needs Chromium: tests/run",
    "#[ignore = \"needs script of util-linux: tests/run",
    "#[ignore = \"needs curl and openssl: tests/run",
    "#[ignore = \"needs python3: tests/run",
    "#[ignore = \"needs node: tests/run",
];

/// One source file, with the path inside its root (`src` or `tests`).
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The text without its unit tests, which are at the end and have other rules.
    fn product(&self) -> &str {
        if self.path.ends_with("tests.rs") {
            return "";
        }
        let cut = self.text.match_indices("#[cfg(test)]\nmod ").find(|(at, _)| {
            self.text[*at..].lines().nth(1).is_some_and(|line| line.trim_end().ends_with('{'))
        });
        cut.map_or(&self.text, |(at, _)| &self.text[..at])
    }

    /// The product's code without comments: a comment may contain words that code may not.
    fn code(&self) -> String {
        strip_comments(self.product())
    }

    fn room(&self) -> &str {
        self.path.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }
}

fn strip_comments(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &str) -> Vec<Source> {
    let base = root().join(folder);
    let mut found = Vec::new();
    let mut folders = vec![base.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the tree can be read") {
            let path = entry.expect("the tree can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file is UTF-8");
                let path = path.strip_prefix(&base).expect("found below it").to_string_lossy().into_owned();
                found.push(Source { path, text });
            }
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

#[track_caller]
fn none(what: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{what}:\n  {}", broken.join("\n  "));
}

/// The rooms in `crate::room` and `crate::{room, other::Thing}`.
fn rooms_known(code: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for (at, found) in code.match_indices("crate::") {
        let rest = &code[at + found.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            rooms.insert(identifier(rest));
            continue;
        };
        let (mut depth, mut first) = (0, true);
        for (index, letter) in group.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => first = true,
                _ if first && !letter.is_whitespace() => {
                    rooms.insert(identifier(&group[index..]));
                    first = false;
                }
                _ => {}
            }
        }
    }
    rooms
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

#[test]
fn imports_are_read_as_rust_reads_them() {
    let code = "use crate::message::Id;\nuse crate::{clock, queue::{Loan, partition},\n  dead_letters::Letter};\nlet x = crate::tasks::new();";
    let rooms: Vec<_> = rooms_known(code).into_iter().collect();
    assert_eq!(rooms, ["clock", "dead_letters", "message", "queue", "tasks"]);
}

#[test]
fn imports_run_one_way_along_the_road() {
    let mut broken = Vec::new();
    for source in sources("src") {
        let mut banned: BTreeSet<&str> = BTreeSet::new();
        banned.extend(
            MUST_NOT_KNOW
                .iter()
                .filter(|(room, _)| *room == source.room())
                .flat_map(|(_, banned)| banned.split(' ')),
        );
        if STAGES.contains(&source.room()) {
            banned.extend(ASSEMBLY);
        }
        let known = rooms_known(&source.code());
        broken.extend(
            known
                .iter()
                .filter(|room| banned.contains(room.as_str()))
                .map(|room| format!("src/{}: must not know crate::{room}", source.path)),
        );
    }
    none("imports against the road (see MUST_NOT_KNOW)", broken);
}

#[test]
fn the_parts_of_the_bridge_call_each_other_one_way() {
    let mut broken = Vec::new();
    for source in sources("src") {
        let Some(inside) = source.path.strip_prefix("bridge/") else { continue };
        let part = inside.split('/').next().unwrap_or_default().trim_end_matches(".rs");
        // A braced import right behind `crate::bridge::` has no name here and is not allowed: the rule could not read it.
        let code = source.code();
        let known: BTreeSet<String> = code.split("crate::bridge::").skip(1).map(identifier).collect();
        let banned = BRIDGE_MUST_NOT_KNOW.iter().filter(|(name, _)| *name == part);
        let banned: Vec<&str> = banned.flat_map(|(_, banned)| banned.split(' ')).collect();
        broken.extend(
            known
                .iter()
                .filter(|known| known.is_empty() || banned.contains(&known.as_str()))
                .map(|known| format!("src/{}: must not know crate::bridge::{known}", source.path)),
        );
    }
    none("imports against the order of the parts (see BRIDGE_MUST_NOT_KNOW)", broken);
}

#[test]
fn code_with_one_home_stays_there() {
    let mut broken = Vec::new();
    for source in sources("src") {
        let code = source.code();
        for (words, home, why) in ONE_HOME {
            // The client of the sandbox is not the product's client.
            if source.path != *home && source.room() != "sandbox" && code.contains(words) {
                broken.push(format!("src/{}: {words} belongs to src/{home}: {why}", source.path));
            }
        }
    }
    none("out of their home", broken);
}

#[test]
fn every_file_is_part_of_the_crate() {
    for (folder, roots) in [("src", ["lib.rs", "main.rs"].as_slice()), ("tests/it", &["main.rs"])] {
        let all = sources(folder);
        let mut reached: BTreeSet<String> = roots.iter().map(|root| (*root).to_owned()).collect();
        let mut open: Vec<String> = reached.iter().cloned().collect();
        while let Some(path) = open.pop() {
            let Some(source) = all.iter().find(|source| source.path == path) else { continue };
            for module in declared_modules(&source.text) {
                let own = PathBuf::from(&path);
                let is_root = roots.contains(&path.as_str()) || path.ends_with("/mod.rs");
                let base = if is_root {
                    own.parent().unwrap_or(Path::new("")).to_owned()
                } else {
                    own.with_extension("")
                };
                for candidate in [base.join(format!("{module}.rs")), base.join(&module).join("mod.rs")] {
                    let candidate = candidate.to_string_lossy().into_owned();
                    if reached.insert(candidate.clone()) {
                        open.push(candidate);
                    }
                }
            }
        }
        let lost = all.iter().filter(|source| !reached.contains(&source.path));
        none(
            "files no `mod` line leads to",
            lost.map(|source| format!("{folder}/{}", source.path)).collect(),
        );
    }
}

fn declared_modules(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim).filter(|line| line.ends_with(';'));
    lines
        .filter_map(|line| {
            line.strip_prefix("mod ").or_else(|| {
                line.split_once(") mod ").or_else(|| line.split_once("pub mod ")).map(|(_, rest)| rest)
            })
        })
        .map(identifier)
        .collect()
}

#[test]
fn every_file_says_why_it_exists() {
    let blank = |source: &Source| source.text.trim().is_empty();
    let headed = |source: &Source| source.text.starts_with("//!") || source.text.starts_with("#![doc");
    for folder in ["src", "tests"] {
        let bare = sources(folder).into_iter().filter(|source| !blank(source) && !headed(source));
        none(
            "files that do not open with `//!`",
            bare.map(|source| format!("{folder}/{}", source.path)).collect(),
        );
    }
}

#[test]
fn no_file_is_longer_than_one_can_hold_in_the_head() {
    let long = sources("src").into_iter().filter_map(|source| {
        let lines = source.product().lines().count();
        (lines > MOST_LINES).then(|| format!("src/{}: {lines} lines without tests", source.path))
    });
    none("over 500 lines: split along their seam", long.collect());
}

#[test]
fn names_say_something() {
    for folder in ["src", "tests"] {
        let vague = sources(folder).into_iter().filter(|source| {
            Path::new(&source.path.trim_end_matches(".rs"))
                .iter()
                .any(|part| SAY_NOTHING.iter().any(|name| part == *name))
        });
        none(
            "names that would hold anything",
            vague.map(|source| format!("{folder}/{}", source.path)).collect(),
        );
    }
}

#[test]
fn nothing_is_left_unfinished_or_switched_off() {
    let mut broken = Vec::new();
    for folder in ["src", "tests"] {
        // This file must contain the forbidden words.
        for source in sources(folder).into_iter().filter(|source| source.path != "it/tidy.rs") {
            let code = strip_comments(&source.text);
            broken.extend(
                UNFINISHED
                    .iter()
                    .filter(|words| code.contains(**words))
                    .map(|words| format!("{folder}/{}: {words}", source.path)),
            );
        }
    }
    for source in sources("tests").into_iter().filter(|source| source.path != "it/tidy.rs") {
        let code = strip_comments(&source.text);
        let ignored = code.match_indices(IGNORED).map(|(at, _)| &code[at..]);
        // `tests/run` leaves out by the names that the macros give.
        let needs_newest = ignored.clone().filter(|rest| rest.starts_with(NEEDS_NEWEST_RABBIT));
        if !source.path.starts_with("it/harness/") {
            broken.extend(needs_newest.map(|_| format!("tests/{}: use on_newest_rabbit!", source.path)));
        }
        let others = ignored.filter(|rest| !MAY_BE_IGNORED.iter().any(|reason| rest.starts_with(reason)));
        broken.extend(
            others.map(|rest| format!("tests/{}: {}", source.path, rest.lines().next().unwrap_or_default())),
        );
    }
    none("unfinished, or a test nobody runs", broken);
}

/// `log.conversation_ids = false` must hold for each line that the level `info` writes.
#[test]
fn a_log_line_names_a_conversation_only_if_the_setting_allows_it() {
    let names = ["conversation", "conversation_id", "lane", "group"];
    let mut broken = Vec::new();
    for source in sources("src").into_iter().filter(|source| !["sandbox", "cli"].contains(&source.room())) {
        let code = source.code();
        for (at, _) in ["info!(", "warn!(", "error!("].iter().flat_map(|name| code.match_indices(*name)) {
            let line = code[at..].split(");").next().unwrap_or_default();
            let bare = |name: &&str| {
                [format!("%{name},"), format!("?{name},"), format!("{name} = %"), format!("{name} = ?")]
                    .iter()
                    .any(|way| line.contains(way))
            };
            broken.extend(
                names
                    .iter()
                    .filter(|name| bare(name))
                    .map(|name| format!("src/{}: {name} in {line}", source.path)),
            );
        }
    }
    none("log lines that need telemetry::logged_conversation", broken);
}

#[test]
fn tests_wait_for_conditions_not_for_time() {
    let sleeps = sources("tests").into_iter().filter(|source| {
        let exempt = ["it/harness/wait.rs", "it/tidy.rs"].contains(&source.path.as_str());
        !exempt && strip_comments(&source.text).contains("sleep(")
    });
    none("sleeping outside harness/wait.rs", sleeps.map(|source| format!("tests/{}", source.path)).collect());
}

/// The README has a section whose heading mentions promises or guarantees. Each of its list items or table rows names a
/// test in backticks: `ordering::keeps_order` is `fn keeps_order` in tests/it/ordering.rs (or a file below
/// tests/it/ordering/).
#[test]
fn every_promise_of_the_readme_names_a_test_that_exists() {
    let readme = fs::read_to_string(root().join("tests/README.md")).unwrap();
    let rows = promises(&readme);
    assert!(
        !rows.is_empty(),
        "tests/README.md has no section of promises (a heading with that word, then a list or table)"
    );
    let tests = sources("tests/it");
    let mut broken = Vec::new();
    for row in rows {
        let named = tests_named(&row);
        if named.is_empty() {
            broken.push(format!("names no test: {row}"));
        }
        broken.extend(
            named.iter().filter(|name| !exists(&tests, name)).map(|name| format!("no such test: {name}")),
        );
    }
    none("tests/README.md promises", broken);
}

fn promises(readme: &str) -> Vec<String> {
    let heading = |line: &str| line.starts_with('#');
    let about = |line: &str| ["promise", "guarantee"].iter().any(|word| line.to_lowercase().contains(word));
    let mut lines = readme
        .lines()
        .skip_while(|line| !(heading(line) && about(line)))
        .skip(1)
        .take_while(|line| !heading(line))
        .peekable();
    let mut rows = Vec::new();
    while let Some(line) = lines.next() {
        let numbered = line.split_once(". ").is_some_and(|(number, _)| number.parse::<u32>().is_ok());
        if line.starts_with("- ") || line.starts_with("* ") || numbered {
            rows.push(line.to_owned());
        } else if line.starts_with('|') {
            // The row above the line of dashes is the head of the table; neither is a promise.
            let is_rule =
                |line: &str| line.starts_with('|') && line.chars().all(|letter| "|-: ".contains(letter));
            if !is_rule(line) && !lines.peek().is_some_and(|next| is_rule(next)) {
                rows.push(line.to_owned());
            }
        } else if line.starts_with("  ") {
            // A continued list item.
            if let Some(row) = rows.last_mut() {
                row.push_str(line);
            }
        }
    }
    rows
}

fn tests_named(row: &str) -> Vec<String> {
    let is_name = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let quoted = row.split('`').skip(1).step_by(2);
    quoted.filter(|name| name.contains("::") && name.split("::").all(is_name)).map(str::to_owned).collect()
}

fn exists(tests: &[Source], name: &str) -> bool {
    let parts: Vec<&str> = name.split("::").collect();
    let in_module = |source: &&Source| {
        source.path == format!("{}.rs", parts[0]) || source.path.starts_with(&format!("{}/", parts[0]))
    };
    // The last part may be the test of one engine: `ordering::keeps_order::rabbit_4_3`.
    let mut candidates = parts[1..].iter().rev().take(2);
    candidates.any(|function| {
        tests.iter().filter(in_module).any(|source| source.text.contains(&format!("fn {function}(")))
    })
}

#[test]
fn promises_are_read_from_lists_and_tables() {
    let readme = "# X\n- no\n## What it promises\ntext\n| a | b |\n|---|---|\n| kept | `one::two` |\n- item\n  goes on `three::four::five`\n1. third\n## Next\n- no";
    let rows = promises(readme);
    assert_eq!(rows, ["| kept | `one::two` |", "- item  goes on `three::four::five`", "1. third"]);
    assert_eq!(tests_named(&rows[1]), ["three::four::five"]);
    let tests = sources("tests/it");
    assert!(exists(&tests, "tidy::names_say_something"));
    assert!(exists(&tests, "harness::matrix::every_engine_gets_a_place_of_its_own::embedded"));
    assert!(!exists(&tests, "tidy::nobody_wrote_this"));
}

#[test]
fn the_tree_is_really_read() {
    // Every rule above would pass without any files, so some files must exist.
    assert!(sources("src").iter().any(|source| source.path == "lib.rs"));
    assert!(sources("tests").iter().any(|source| source.path == "it/tidy.rs"));
}
