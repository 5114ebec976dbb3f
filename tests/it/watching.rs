//! Tests that an operator finds the meaning and the remedy of every alert and every panel, and that the program knows
//! every command of the runbook. `promtool test rules` and `tests/compose` test the results of the rules and queries.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

const RUNBOOK: &str = "deploy/README.md";

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The lines of each alert, by name.
fn alerts() -> BTreeMap<String, String> {
    let text = read("deploy/prometheus/alerts.yml");
    let mut found = BTreeMap::new();
    for part in text.split("      - alert: ").skip(1) {
        let (name, rest) = part.split_once('\n').unwrap();
        let body = rest.split("\n  - name: ").next().unwrap();
        found.insert(name.to_owned(), body.to_owned());
    }
    assert!(found.len() > 10, "{found:?}");
    found
}

fn value<'a>(block: &'a str, key: &str) -> Option<&'a str> {
    block.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "))
}

/// The sections of the runbook about alerts, by heading.
fn sections() -> BTreeMap<String, String> {
    let text = read(RUNBOOK);
    let (_, about) = text.split_once("\n# Alerts\n").unwrap();
    let sections = about.split("\n## ").skip(1).filter_map(|section| section.split_once('\n'));
    sections.map(|(name, text)| (name.to_owned(), text.to_owned())).collect()
}

fn dashboards() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/grafana/dashboards");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: std::path::PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
    };
    files.map(read).collect()
}

/// Every panel that shows data, with a name for a person.
fn panels() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for (file, dashboard) in dashboards() {
        for panel in dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row") {
            found.push((format!("{file}: {}", panel["title"]), panel.clone()));
        }
    }
    assert!(found.len() > 30, "{found:?}");
    found
}

#[test]
fn every_alert_says_how_bad_it_is_and_leads_to_three_commands() {
    let (alerts, sections) = (alerts(), sections());
    for (name, block) in &alerts {
        assert!(value(block, "for").is_some(), "{name} has no `for`");
        let severity = value(block, "labels").unwrap_or_default();
        assert!(
            ["{ severity: critical }", "{ severity: warning }"].contains(&severity),
            "{name}: {severity}"
        );
        for text in ["summary", "description"] {
            assert!(value(block, text).is_some_and(|text| text.len() > 10), "{name} has no {text}");
        }
        // The base is the deployment's own.
        let url = value(block, "runbook_url").unwrap_or_default();
        let link = format!("/{RUNBOOK}#{}", name.to_lowercase());
        assert!(url.starts_with("https://") && url.ends_with(&link), "{name}: {url}");
        let section = sections.get(name).unwrap_or_else(|| panic!("{RUNBOOK} has no section {name}"));
        let commands = section.split("```").nth(1).unwrap_or_default().trim().lines().count();
        assert_eq!(commands, 3, "the section {name} has three commands to run");
    }
    let missing: Vec<_> = sections.keys().filter(|name| !alerts.contains_key(*name)).collect();
    assert!(missing.is_empty(), "{RUNBOOK} speaks of alerts that nobody raises: {missing:?}");
}

#[test]
fn every_alert_is_shown_to_fire_and_not_to_fire() {
    // In the order of the file: the query comes before its expected result.
    let (mut fires, mut is_silent) = (BTreeSet::new(), BTreeSet::new());
    let mut asked = String::new();
    for line in read("deploy/prometheus/alerts.test.yml").lines().map(str::trim) {
        if let Some((_, rest)) = line.split_once("ALERTS{alertname=\"") {
            rest.split('"').next().unwrap_or_default().clone_into(&mut asked);
        } else if line == "exp_samples: []" {
            is_silent.insert(std::mem::take(&mut asked));
        } else if line == "exp_samples:" {
            fires.insert(std::mem::take(&mut asked));
        }
    }
    for name in alerts().keys() {
        assert!(fires.contains(name), "no test shows that {name} fires");
        assert!(is_silent.contains(name), "no test shows that {name} keeps silent");
    }
}

#[test]
fn every_panel_has_a_unit_and_says_what_to_do() {
    for (name, panel) in panels() {
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{name} has no unit");
        let description = panel["description"].as_str().unwrap_or_default();
        assert!(description.len() > 60, "{name} does not say what to do: {description}");
        assert!(
            panel["targets"].as_array().is_some_and(|targets| !targets.is_empty()),
            "{name} asks nothing"
        );
    }
}

#[test]
fn each_query_asks_for_an_exported_metric() {
    let names = read("src/telemetry/names.rs");
    let mut asked: Vec<(String, String)> = alerts()
        .into_iter()
        .map(|(name, block)| (name, block.split("annotations:").next().unwrap().to_owned()))
        .collect();
    for (name, panel) in panels() {
        for target in panel["targets"].as_array().unwrap() {
            asked.push((name.clone(), target["expr"].as_str().unwrap().to_owned()));
        }
    }
    let is_of_a_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    for (who, query) in asked {
        for word in query.split(|letter| !is_of_a_name(letter)).filter(|word| word.starts_with("causeway_")) {
            let metric = ["_bucket", "_sum", "_count"].iter().find_map(|part| word.strip_suffix(part));
            let metric = metric.unwrap_or(word);
            assert!(names.contains(&format!("\"{metric}\"")), "{who} asks for {word}");
        }
    }
}

/// Each selector of a query: the metric, and what stands in its braces.
fn selectors(query: &str) -> Vec<(&str, &str)> {
    let metrics = ["causeway", "rabbitmq_", "process_", "up", "ALERTS"];
    let is_of_a_name = |letter: char| letter.is_ascii_alphanumeric() || "_:".contains(letter);
    let mut found = Vec::new();
    let (mut rest, mut is_text) = (query, false);
    while let Some(first) = rest.chars().next() {
        let length = rest.find(|letter| !is_of_a_name(letter)).unwrap_or(rest.len());
        if length == 0 || is_text {
            is_text ^= first == '"';
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let (word, after) = rest.split_at(length);
        rest = after;
        if metrics.iter().any(|metric| word == *metric || (*metric != "up" && word.starts_with(*metric))) {
            let braces = after.strip_prefix('{').and_then(|inside| inside.split_once('}'));
            found.push((word, braces.map_or("", |(inside, _)| inside)));
        }
    }
    found
}

#[test]
fn dashboards_work_for_several_deployments_and_any_data_source() {
    for (file, dashboard) in dashboards() {
        let text = dashboard.to_string();
        assert!(!text.contains("\"uid\":\"prometheus\""), "{file} names one data source");
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        let of = |name: &str| variables.iter().find(|variable| variable["name"] == name);
        assert_eq!(of("datasource").unwrap()["type"], "datasource", "{file}");
        for name in ["deployment", "destination"] {
            let Some(variable) = of(name) else {
                assert!(name == "destination" && !text.contains("$destination"), "{file} has no ${name}");
                continue;
            };
            assert_eq!(variable["multi"], true, "{file}: {name}");
            assert_eq!(variable["includeAll"], true, "{file}: {name}");
            // A series without the label is among all of them.
            assert_eq!(variable["allValue"], ".*", "{file}: {name}");
        }
    }
    let chosen = "deployment=~\"$deployment\"";
    for (name, panel) in panels() {
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{name}");
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{name}");
            let query = target["expr"].as_str().unwrap();
            let selectors = selectors(query);
            assert!(!selectors.is_empty(), "{name}: {query}");
            for (metric, braces) in selectors {
                assert!(braces.contains(chosen), "{name}: {metric}{{{braces}}} is of every deployment");
            }
        }
    }
}

#[test]
fn every_alert_knows_its_deployment_and_asks_for_a_job_that_is_scraped() {
    let scraped = read("deploy/prometheus/prometheus.yml");
    for (name, block) in alerts() {
        let query = block.split("labels:").next().unwrap();
        for aggregation in ["sum", "max", "min", "count", "group", "avg"] {
            let bare = format!("{aggregation}(");
            let is_bare = query.match_indices(&bare).any(|(at, _)| !query[..at].ends_with('_'));
            assert!(!is_bare, "{name}: a {aggregation} of all deployments");
        }
        for by in query.split(" by (").skip(1) {
            assert!(by.starts_with("deployment"), "{name}: by ({by}");
        }
        for on in query.split(" on (").skip(1) {
            assert!(on.starts_with("deployment") || on.starts_with(')'), "{name}: on ({on}");
        }
        for jobs in query.split("job").skip(1) {
            let Some((_, rest)) = jobs.split_once('"') else { continue };
            for job in rest.split('"').next().unwrap_or_default().split('|') {
                assert!(scraped.contains(&format!("job_name: {job}\n")), "{name}: nobody scrapes {job}");
            }
        }
    }
}

/// The arguments of each command in a document, from the code blocks and from the text.
fn calls(document: &str) -> Vec<(String, Vec<String>)> {
    let blocks = document.split("```").skip(1).step_by(2).flat_map(str::lines);
    let prose = document.split("```").step_by(2).flat_map(|prose| prose.split('`').skip(1).step_by(2));
    // In a sentence, the bare name of a command is only a name.
    let prose = prose.filter(|code| code.starts_with("docker compose "));
    let starts = [
        "docker compose exec -T worker causeway ",
        "docker compose exec worker causeway ",
        "docker compose exec ingress causeway ",
        "docker compose run --rm tool ",
        "kubectl -n causeway exec deployment/causeway-worker -- causeway ",
        "kubectl -n causeway exec statefulset/causeway-ingress -- causeway ",
        "causeway ",
    ];
    let mut found = Vec::new();
    for line in blocks.chain(prose).map(str::trim) {
        let Some(rest) = starts.iter().find_map(|start| line.strip_prefix(start)) else { continue };
        // The rest is for the shell or the reader.
        let ends = ["  ", " >", " <", " |", " &", " #", " \\", ";"];
        let call = ends.iter().fold(rest, |call, end| call.split(end).next().unwrap());
        let id = "00000000-0000-4000-8000-000000000001";
        let words = call.split(' ').filter(|word| !word.is_empty());
        let words = words.map(|word| if word == "ID" { id.to_owned() } else { word.to_owned() });
        found.push((line.to_owned(), words.collect()));
    }
    found
}

/// Whether the command reads its settings, and stops if they are missing.
fn reads_settings(args: &[String]) -> bool {
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["check", rest @ ..] => !rest.contains(&"--print-defaults"),
        ["servicenow", verb, ..] => ["install", "queues"].contains(verb),
        [verb, ..] => ["serve", "ingress", "worker", "dead", "conversations", "trace"].contains(verb),
        [] => false,
    }
}

#[test]
fn commands_in_the_documents_can_be_run() {
    let mut counted = 0;
    for document in ["README.md", RUNBOOK] {
        for (line, args) in calls(&read(document)) {
            let mut command = Command::new(env!("CARGO_BIN_EXE_causeway"));
            command.args(&args).env_clear().env("CAUSEWAY_CONFIG", "/no/such/file.toml").stdin(Stdio::null());
            // A command that would run without settings is only called with `--help`, which checks the arguments before
            // it.
            let whole = reads_settings(&args);
            let output = if whole { command.output() } else { command.arg("--help").output() }.unwrap();
            let expected = if whole { 78 } else { 0 };
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(expected), "{document}: {line}: {said}");
            // A command whose output goes to a file cannot ask for a confirmation.
            let unasked = line.contains("dead export") && line.contains('>');
            let is_plain = line.contains(" -T ") || line.starts_with("kubectl ");
            assert!(!unasked || (is_plain && line.contains("--yes")), "{document}: {line}");
            // A role has no secret of the other role.
            let role = ["exec ingress causeway ", "exec worker causeway servicenow "];
            assert!(
                !role.iter().any(|role| line.contains(role)) || args == ["healthcheck"],
                "{document}: {line}"
            );
            counted += 1;
        }
    }
    assert!(counted > 40, "{counted}");
}
