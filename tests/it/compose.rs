//! Tests that the files of docker compose match the program. `tests/compose` tests what needs a running stack.

use std::collections::BTreeSet;
use std::path::Path;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Every key of the default settings, as an environment variable.
fn variables() -> BTreeSet<String> {
    let text = read("src/config/default.toml");
    let mut section = String::new();
    let mut found = BTreeSet::new();
    for line in text.lines() {
        if let Some(list) = line.strip_prefix("#[[").and_then(|rest| rest.strip_suffix("]]")) {
            section = format!("[{list}].");
        } else if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = format!("{name}.");
        } else if let Some((key, _)) = line.trim_start_matches('#').split_once(" = ")
            && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        {
            found.insert(format!("CAUSEWAY_{}", format!("{section}{key}").replace('.', "__").to_uppercase()));
        }
    }
    assert!(found.len() > 40, "{found:?}");
    found
}

/// The block of each service, by name.
fn services() -> Vec<(String, String)> {
    let text = read("docker-compose.yml");
    let body = text.split("\nservices:\n").nth(1).unwrap().split("\nvolumes:\n").next().unwrap();
    let mut found: Vec<(String, String)> = Vec::new();
    for line in body.lines() {
        let name = line.strip_prefix("  ").and_then(|rest| rest.strip_suffix(':'));
        match name.filter(|name| name.bytes().all(|byte| byte.is_ascii_lowercase())) {
            Some(name) => found.push((name.to_owned(), String::new())),
            None => found.iter_mut().rev().take(1).for_each(|(_, block)| {
                block.push_str(line);
                block.push('\n');
            }),
        }
    }
    found
}

#[test]
fn every_setting_can_be_set_and_is_explained() {
    // The variables that the stack sets itself, and lists of tables, which a variable cannot hold.
    let decided = [
        "CAUSEWAY_DATA_DIR",
        "CAUSEWAY_QUEUE__URL",
        "CAUSEWAY_DIRECTORY__URL",
        "CAUSEWAY_INGRESS__LISTEN",
        "CAUSEWAY_INGRESS__ALLOW_UNAUTHENTICATED",
        "CAUSEWAY_ADMIN__LISTEN",
        "CAUSEWAY_LOG__FORMAT",
    ];
    let (compose, example) = (read("docker-compose.yml"), read(".env.example"));
    let names = |text: &str, name: &str, after: &str| {
        let file = format!("{name}_FILE{after}");
        text.lines()
            .map(|line| line.trim().trim_start_matches('#'))
            .any(|line| line.starts_with(&format!("{name}{after}")) || line.starts_with(&file))
    };
    for name in variables().iter().filter(|name| !name.contains('[') && !decided.contains(&name.as_str())) {
        assert!(names(&compose, name, ":"), "docker-compose.yml does not pass {name} on");
        assert!(names(&example, name, "="), ".env.example does not explain {name}");
    }
}

#[test]
fn every_secret_is_a_file_that_is_made_for_the_demo_and_for_production() {
    let (compose, generate) = (read("docker-compose.yml"), read("deploy/secrets/generate"));
    let files: Vec<&str> = compose
        .split("${SECRETS_DIR")
        .skip(1)
        .filter_map(|rest| rest.split_once('/').map(|(_, rest)| rest.split('"').next().unwrap_or_default()))
        .collect();
    assert!(files.len() > 10, "{files:?}");
    for file in files {
        assert!(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/secrets/demo").join(file).exists(),
            "demo/{file}"
        );
        assert!(generate.contains(file), "deploy/secrets/generate does not make {file}");
    }
}

#[test]
fn every_service_keeps_to_its_bounds() {
    let services = services();
    assert!(services.len() >= 7, "{:?}", services.iter().map(|(name, _)| name).collect::<Vec<_>>());
    for (name, block) in services {
        assert!(
            block.contains("<<: *service") || block.contains("<<: *causeway"),
            "{name} shares what all share"
        );
        assert!(block.contains("healthcheck:"), "{name} has no health check");
        assert!(block.contains("resources: { limits: { cpus:"), "{name} has no limits");
        assert_eq!(name == "sandbox", block.contains("profiles: [demo]"), "{name}");
        for port in block.lines().filter(|line| line.trim_start().starts_with("- \"") && line.contains(":9"))
        {
            assert!(
                port.contains("\"127.0.0.1:") || port.contains("rabbitmq-data"),
                "{name} is published: {port}"
            );
        }
    }
    let all = read("docker-compose.yml");
    for bound in ["read_only: true", "cap_drop: [ALL]", "no-new-privileges:true", "max-size: 10m"] {
        assert!(all.contains(bound), "{bound}");
    }
}

#[test]
fn the_shell_of_an_operator_has_the_settings_of_both_roles() {
    let services = services();
    let block = |name: &str| &services.iter().find(|(service, _)| service == name).unwrap().1;
    let secrets = |name: &str| -> BTreeSet<String> {
        let line = block(name).lines().find_map(|line| line.trim().strip_prefix("secrets: [")).unwrap();
        line.trim_end_matches(']').split(", ").map(str::to_owned).collect()
    };
    let both = &secrets("ingress") | &secrets("worker");
    assert_eq!(secrets("tool"), both);
    assert!(block("tool").contains("<<: [*ingress, *worker]") && block("tool").contains("profiles: [tool]"));
    for role in ["ingress", "worker"] {
        assert!(block(role).contains(&format!("environment: &{role}")), "{role}");
    }
}

#[test]
fn nothing_of_the_demo_is_in_the_example_for_production() {
    let set: Vec<String> = read(".env.example")
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .map(str::to_lowercase)
        .collect();
    assert!(set.iter().all(|line| !line.contains("sandbox") && !line.contains("demo")), "{set:?}");
}
