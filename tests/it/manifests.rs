//! Promise: the documented path to Kubernetes works at the first apply. The real program starts with the settings and secrets
//! that the pods of `deploy/kubernetes` mount, and a conversation passes. `tests/kubernetes` tests the schemas, and that the
//! Helm chart is the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use causeway::sandbox::{Sandbox, SandboxSettings};
use serde_json::{Value, json};

use crate::harness::binary::{Causeway, Running};
use crate::harness::postgres::Database;
use crate::harness::relay::PATIENCE;
use crate::harness::wait::eventually;
use crate::harness::{http, ports};

type Data = BTreeMap<String, String>;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn run(script: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(root().join(script)).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(String::from_utf8(output.stdout).unwrap()) } else { Err(said) }
}

/// The plain values below `data` of each object, by the object's name.
fn data(text: &str) -> BTreeMap<String, Data> {
    let mut found = BTreeMap::new();
    for object in text.split("---\n").filter(|object| object.contains("\ndata:\n")) {
        let name = object.lines().find_map(|line| line.strip_prefix("  name: ")).unwrap();
        let lines = object.split("\ndata:\n").nth(1).unwrap().lines();
        let pairs = lines.filter_map(|line| line.strip_prefix("  ")?.split_once(": "));
        let pairs = pairs.filter(|(key, _)| !key.starts_with([' ', '#']));
        let pairs = pairs.map(|(key, value)| (key.to_owned(), value.to_owned()));
        found.insert(name.to_owned(), pairs.collect());
    }
    found
}

/// The settings file in `settings.yaml`.
fn settings_file(text: &str) -> String {
    let lines = text.split("  causeway.toml: |\n").nth(1).unwrap().lines();
    let lines = lines.take_while(|line| line.is_empty() || line.starts_with("    "));
    lines.map(|line| line.trim_start_matches("    ").to_owned() + "\n").collect()
}

/// The files that the pods mount, with a folder for each role.
struct Mounts {
    folder: PathBuf,
    environments: BTreeMap<String, Data>,
}

impl Mounts {
    /// `change` is what the steps tell the operator to set in the settings file.
    fn new(folder: &Path, secrets: &str, change: impl Fn(String) -> String) -> Self {
        let settings = fs::read_to_string(root().join("deploy/kubernetes/settings.yaml")).unwrap();
        fs::create_dir(folder.join("etc")).unwrap();
        fs::write(folder.join("etc/causeway.toml"), change(settings_file(&settings))).unwrap();
        for (role, files) in data(secrets) {
            let place = folder.join(&role);
            fs::create_dir(&place).unwrap();
            for (name, coded) in files {
                let plain = base64::engine::general_purpose::STANDARD.decode(coded).unwrap();
                fs::write(place.join(name), plain).unwrap();
            }
        }
        Self { folder: folder.to_owned(), environments: data(&settings) }
    }

    /// The command of a pod with its environment. The paths of the mounts are those of this machine.
    fn pod(&self, role: &str, args: &[&str]) -> Causeway {
        let name = format!("causeway-{role}");
        let own = |value: &str| {
            let secrets = self.folder.join(&name).display().to_string();
            let settings = self.folder.join("etc").display().to_string();
            value.replace("/run/secrets/causeway", &secrets).replace("/etc/causeway", &settings)
        };
        let environment = &self.environments[&name];
        let command = Causeway::new([])
            .args(args)
            .set("data_dir", self.folder.join("data").join(role).display().to_string());
        environment.iter().fold(command, |command, (variable, value)| command.env(variable, own(value)))
    }

    fn start(&self, role: &str, ports: [u16; 2]) -> Running {
        let [public, admin] = ports.map(|port| format!("127.0.0.1:{port}"));
        self.pod(role, &[role]).set("ingress.listen", public).set("admin.listen", admin).spawn()
    }

    fn secret(&self, role: &str, name: &str) -> String {
        fs::read_to_string(self.folder.join(format!("causeway-{role}")).join(name))
            .unwrap()
            .trim_end()
            .to_owned()
    }
}

/// The folder that the first step makes, with the one value that the operator has to write.
fn made(folder: &Path, broker: &str, database: &str) -> PathBuf {
    let made = folder.join("made");
    let shown = made.display().to_string();
    run("deploy/secrets/generate", &["--broker", broker, "--database", database, &shown]).unwrap();
    fs::write(made.join("servicenow_password.txt"), "sandbox").unwrap();
    made
}

on_every_rabbit! {
    async fn the_first_apply_carries_a_conversation(bench: Bench) {
        let vhost = bench.vhost().unwrap();
        let database = Database::create().await;
        let broker = format!("amqp://{}/{}", vhost.broker(), vhost.name());
        let folder = made(bench.folder(), &broker, &database.url().replace("causeway@", ""));
        for definitions in ["rabbitmq_users.json", "rabbitmq_roles.json"] {
            let text = fs::read_to_string(folder.join(definitions)).unwrap();
            vhost.import(&serde_json::from_str(&text).unwrap());
        }
        let secrets = run("deploy/kubernetes/secrets", &[&folder.display().to_string()]).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sandbox = Sandbox::start(listener, SandboxSettings::default()).await;
        let mounts = Mounts::new(bench.folder(), &secrets, |text| {
            // Fewer queues are made sooner.
            let text = text.replace("partitions = 8", "partitions = 2");
            let text = text.replace("https://acme.service-now.com", sandbox.servicenow_url());
            let text = text.replace("https://bot.example.com/causeway/events", &sandbox.events_url());
            text.replace("0123456789abcdef0123456789abcdef", "5f1c4ac4c0a8010e01d3e7a1a5b0c111")
        });
        for role in ["ingress", "worker"] {
            let checked = mounts.pod(role, &["check", "--offline", "--role", role]).run(PATIENCE).await;
            assert_eq!(checked.code, Some(0), "{role}: {}{}", checked.stdout, checked.stderr);
        }
        // All pods of an apply start at once: ingress and worker wait for the job.
        let (of_ingress, of_worker) = (ports::free_ports(), ports::free_ports());
        let running = [mounts.start("ingress", of_ingress), mounts.start("worker", of_worker)];
        let job = mounts.pod("broker-setup", &["broker", "declare"]).run(PATIENCE).await;
        assert_eq!(job.code, Some(0), "{}{}", job.stdout, job.stderr);
        let client = http::client();
        let log = || running.iter().map(Running::stderr).collect::<String>();
        for port in [of_ingress[1], of_worker[1]] {
            eventually("the pods to be ready", PATIENCE, async || {
                let answer = client.get(format!("http://127.0.0.1:{port}/readyz")).send().await;
                match answer {
                    Ok(answer) if answer.status().is_success() => Ok(()),
                    answer => Err(format!("{answer:?}\n{}", log())),
                }
            }).await;
        }
        let (token, api) = (mounts.secret("ingress", "handoffs_token"), format!("http://127.0.0.1:{}/v1", of_ingress[0]));
        let start = json!({ "type": "start", "conversation_id": "c-1", "message": "hello" });
        let taken = client.post(format!("{api}/handoffs")).bearer_auth(&token).body(start.to_string());
        let taken = taken.header("content-type", "application/json").send().await.unwrap();
        assert_eq!(taken.status(), 202, "{}", log());
        eventually("the conversation to reach an agent", PATIENCE, async || {
            let shown = client.get(format!("{api}/conversations/c-1")).bearer_auth(&token).send().await;
            let shown: Value = serde_json::from_str(&shown.unwrap().text().await.unwrap()).unwrap();
            if shown["state"] == "active" { Ok(()) } else { Err(format!("{shown}\n{}", log())) }
        }).await;
        let desk = format!("http://127.0.0.1:{}/dead-letters", of_worker[1]);
        let desk = client.get(desk).bearer_auth(mounts.secret("worker", "admin_token")).send().await.unwrap();
        assert!(desk.status().is_success(), "{}", desk.text().await.unwrap());
        assert!(!log().contains("ACCESS_REFUSED"), "{}", log());
    }
}

#[test]
fn each_secret_has_the_files_of_its_role_alone() {
    let folder = tempfile::tempdir().unwrap();
    let made = made(folder.path(), "amqps://rabbit.example.com/chat", "postgres://db.example.com/chat");
    let secrets = data(&run("deploy/kubernetes/secrets", &[&made.display().to_string()]).unwrap());
    let keys =
        |role: &str| secrets[&format!("causeway-{role}")].keys().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(
        keys("ingress"),
        [
            "callback_hmac_secret",
            "callback_password",
            "callback_token",
            "directory_url",
            "handoffs_token",
            "queue_url"
        ]
    );
    assert_eq!(
        keys("worker"),
        ["admin_token", "directory_url", "events_secret", "queue_url", "servicenow_password"],
        "an empty events_token is left out"
    );
    assert_eq!(keys("broker-setup"), ["queue_url"]);
    let urls: Vec<_> = secrets.values().map(|files| &files["queue_url"]).collect();
    assert!(urls[0] != urls[1] && urls[1] != urls[2], "each role has a user of its own");
}

#[test]
fn addresses_of_the_compose_stack_are_refused() {
    for (args, wrong) in [
        (
            &["--database", "postgres://db.example.com/chat"][..],
            "queue_url.txt: names the broker of docker compose",
        ),
        (
            &["--broker", "amqps://rabbit.example.com/chat"],
            "directory_url.txt: names the PostgreSQL of docker compose",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let made = folder.path().join("made").display().to_string();
        run("deploy/secrets/generate", &[args, &[&made]].concat()).unwrap();
        let refused = run("deploy/kubernetes/secrets", &[&made]).unwrap_err();
        assert!(refused.contains(wrong), "{refused}");
    }
}

#[test]
fn a_folder_of_an_older_version_gets_users_for_the_roles() {
    let old = |broker: &str| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("queue_url.txt"), format!("{broker}\n")).unwrap();
        fs::write(folder.path().join("rabbitmq_users.json"), "{}").unwrap();
        run("deploy/secrets/generate", &[&folder.path().display().to_string()]).unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(read("queue_url.txt"), format!("{broker}\n"), "an existing file is kept");
        let roles: Value = serde_json::from_str(&read("rabbitmq_roles.json")).unwrap();
        (["ingress", "worker", "operator"].map(|role| read(&format!("queue_url_{role}.txt"))), roles)
    };
    let (urls, roles) = old("amqp://causeway:pw@rabbitmq:5672/causeway");
    for (url, user) in urls.iter().zip(roles["users"].as_array().unwrap()) {
        let (name, password) = (user["name"].as_str().unwrap(), user["password"].as_str().unwrap());
        assert_eq!(*url, format!("amqp://{name}:{password}@rabbitmq:5672/causeway\n"));
    }
    // Only its administrator can make users on a broker of your own.
    let own = "amqps://mine:pw@rabbit.example.com/chat";
    let (urls, roles) = old(own);
    assert!(urls.iter().all(|url| *url == format!("{own}\n")) && roles["users"] == json!([]), "{urls:?}");
}
