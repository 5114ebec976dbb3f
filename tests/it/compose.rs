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
        match name.filter(|name| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')) {
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

fn block(name: &str) -> String {
    services().into_iter().find(|(service, _)| service == name).unwrap_or_else(|| panic!("{name}")).1
}

fn secrets(name: &str) -> BTreeSet<String> {
    let block = block(name);
    let line = block.lines().find_map(|line| line.trim().strip_prefix("secrets: [")).unwrap();
    line.trim_end_matches(']').split(", ").map(str::to_owned).collect()
}

const ROLES: [&str; 3] = ["ingress", "worker", "console"];

#[test]
fn the_shell_of_an_operator_has_the_settings_of_all_roles() {
    let of_broker = |secret: &String| secret.starts_with("queue_url");
    let mut all: BTreeSet<String> = ROLES.iter().flat_map(|role| secrets(role)).collect();
    all.retain(|secret| !of_broker(secret));
    all.insert("queue_url".to_owned());
    assert_eq!(secrets("tool"), all);
    let tool = block("tool");
    assert!(tool.contains("<<: [*ingress, *worker, *console]") && tool.contains("profiles: [tool]"));
    for role in ROLES {
        assert!(block(role).contains(&format!("environment: &{role}")), "{role}");
    }
}

#[test]
fn no_serving_process_may_make_queues() {
    for (role, user) in [("ingress", "ingress"), ("worker", "worker"), ("console", "operator")] {
        let (block, secrets) = (block(role), secrets(role));
        let file = format!("CAUSEWAY_QUEUE__URL_FILE: /run/secrets/queue_url_{user}\n");
        assert!(block.contains(&file), "{role}");
        let of_broker: Vec<_> = secrets.iter().filter(|secret| secret.starts_with("queue_url")).collect();
        assert_eq!(of_broker, [&format!("queue_url_{user}")], "{role} has the login of its own user alone");
        assert!(block.contains("depends_on: *stores") || block.contains("depends_on: &stores"), "{role}");
        assert!(!block.contains("QUEUE__DECLARE"), "{role} has the shared value, which is check");
        for path in ["deploy/secrets/generate", "deploy/secrets/demo/rabbitmq_roles.json"] {
            assert!(read(path).contains(&format!("\"name\": \"causeway-{user}\"")), "{path}: {user}");
        }
    }
    let compose = read("docker-compose.yml");
    assert!(compose.contains("CAUSEWAY_QUEUE__DECLARE: ${CAUSEWAY_QUEUE__DECLARE:-check}"));
    assert!(compose.contains("broker-setup: { condition: service_completed_successfully }"));
    let setup = block("broker-setup");
    for part in ["command: [broker, declare]", "restart: \"no\"", "<<: *settings", "/run/secrets/queue_url\n"]
    {
        assert!(setup.contains(part), "{part}");
    }
    assert!(!secrets("ingress").contains("admin_token"), "the public process serves no console");
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
