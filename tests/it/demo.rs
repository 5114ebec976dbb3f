//! Tests that `causeway demo` shows the whole relay on a bare machine: an outage, a dead letter, a replay. The demo
//! prints a summary, leaves nothing behind, and ignores the environment.

use std::path::Path;
use std::time::Duration;

use crate::harness::binary::{Causeway, Finished};
use crate::harness::http;

const LONG: Duration = Duration::from_secs(180);

/// An environment with settings that could disturb the demo, and its own folder for its files.
fn demo<const N: usize>(args: [&str; N], folder: &Path) -> Causeway {
    std::fs::create_dir_all(folder.join("tmp")).unwrap();
    Causeway::new(args)
        .in_folder(folder)
        .env("TMPDIR", folder.join("tmp").to_str().unwrap())
        .env("CAUSEWAY_CONFIG", "/no/such/file.toml")
        .env("HTTP_PROXY", "http://127.0.0.1:9")
        .set("queue.url", "redis://nonsense")
        .set("servicenow.host_url", "https://example.service-now.com")
        .set("directory.url", "postgres://nobody@127.0.0.1:9/none")
        .set("data_dir", "/proc/no/such/place")
        .set("ingress.listen", "not an address")
        .set("no.such.key", "1")
}

fn nothing_is_left(folder: &Path) {
    let left = |folder: &Path| -> Vec<_> {
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    assert_eq!(left(&folder.join("tmp")), [] as [&str; 0]);
    assert_eq!(left(folder), ["tmp"]);
}

/// The numbers of one direction, ServiceNow (0) or the bot side (1): accepted, delivered, retried, dead-lettered,
/// replayed, lost, overtaken.
fn numbers(output: &Finished, direction: usize) -> Vec<u64> {
    let names = ["accepted", "delivered", "retried", "dead-lettered", "replayed", "lost", "overtaken"];
    let number = |name: &&str| {
        let row = output.stdout.lines().filter_map(|line| line.strip_prefix(*name)).next_back();
        let cells: Vec<&str> = row.unwrap_or_default().split_whitespace().collect();
        cells.get(direction).and_then(|cell| cell.parse().ok())
    };
    let numbers =
        names.iter().map(|name| number(name).unwrap_or_else(|| panic!("no {name}:\n{}", output.stdout)));
    numbers.collect()
}

#[tokio::test]
async fn the_demo_shows_every_act_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let output = demo(["demo", "--speed", "20"], folder.path()).run(LONG).await;
    assert_eq!(output.code, Some(0), "{}\n{}", output.stdout, output.stderr);
    assert_eq!(output.stderr, "");
    for line in output.stdout.lines() {
        assert!(line.chars().count() <= 80, "wider than a terminal: {line}");
    }
    assert!(!output.stdout.contains('\u{1b}'), "colours in a pipe:\n{}", output.stdout);
    // The events on both sides, in the required order.
    let acts = [
        "Ada writes to the bot: \"Hello\"",
        "Ada reads the bot: \"Hello, I am the help desk bot.",
        "Grace is told: number 1 in the queue",
        "a chat waits in the queue: Ada",
        "Ada is told: \"Please wait, an agent will be with you soon.",
        "Grace is told: beth.anglin has joined",
        "Ada is told: \"An agent has joined the chat.",
        "Ada reads the agent: \"How big is the fire?\"",
        "the agent reads Ada: \"About one keyboard wide\"",
        "answers 503: Causeway will try again",
        "Ada reads the agent: \"The laptop, not the coffee\"",
        "answers with a web page (200, HTML): the instance hibernates",
        "breaker tripped",
        "4 messages wait on disk",
        "wakes up",
        "the probe gets through",
        "refuses with 400: Ada: \"The cat says <script>\"",
        "dead letter: handoff.message, rejected, attempts: 1",
        "replayed 1 message",
        "the agent reads Ada: \"The cat says <script>\"",
        "Ada is with the bot again",
        "Ada writes to the bot: \"Thank you\"",
        "Ada reads the bot: \"You said: Thank you\"",
        "Grace has left the chat",
        "Grace's chat was ended by the user: the bot takes over",
        "Nothing was lost, nothing was overtaken.",
    ];
    // A long line is broken between two words.
    let told = output.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut rest = told.as_str();
    for act in acts {
        let found = rest.find(act);
        let at = found.unwrap_or_else(|| panic!("{act:?} is missing, or too early, in\n{}", output.stdout));
        rest = &rest[at + act.len()..];
    }
    for words in ["breaker passing", "the probe gets the web page again", "replayed 1 message", "p50", "p99"]
    {
        assert!(told.contains(words), "{words:?} is missing in\n{}", output.stdout);
    }
    // Accepted, delivered, retried, dead-lettered, replayed, lost, overtaken.
    let to_servicenow = numbers(&output, 0);
    assert!(to_servicenow[2] >= 1, "a probe met the outage: {to_servicenow:?}");
    assert_eq!((&to_servicenow[..2], &to_servicenow[3..]), (&[12, 12][..], &[1, 1, 0, 0][..]));
    assert_eq!(numbers(&output, 1), [20, 20, 2, 0, 0, 0, 0]);
    nothing_is_left(folder.path());
}

#[tokio::test]
async fn a_demo_that_is_kept_can_be_tried_until_it_is_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    let mut demo = demo(["demo", "--keep", "--speed", "20"], folder.path()).spawn();
    demo.line("causeway conversations list", LONG).await;
    let shown = demo.stdout();
    let address = |name: &str| {
        let line = shown.lines().find_map(|line| line.trim_start().strip_prefix(&format!("{name}=")));
        line.and_then(|line| line.split_whitespace().next()).unwrap().to_owned()
    };
    let (public, admin, sandbox) = (address("C"), address("M"), address("S"));
    let client = http::client();
    let get = async |url: String| {
        let answer = client.get(url).bearer_auth("demo").send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(get(format!("{admin}/readyz")).await.0, 200);
    assert!(get(format!("{admin}/metrics")).await.1.contains("causeway_replayed_total"));
    assert!(get(format!("{sandbox}/sandbox")).await.1.contains("FAULTS"));
    let (status, conversation) = get(format!("{public}/v1/conversations/demo-grace")).await;
    assert_eq!(status, 200);
    assert!(conversation.contains("\"state\":\"ended\""), "{conversation}");

    let console = shown.lines().find(|line| line.contains("/desk")).unwrap();
    let console = console.split_whitespace().next().unwrap();
    assert_eq!(console, format!("{admin}/desk"));
    let (status, page) = get(format!("{admin}/dead-letters")).await;
    assert_eq!(status, 200, "the token of the console is the one that is shown: {page}");

    let start = r#"{"type": "start", "conversation_id": "mine", "message": "Hello?"}"#;
    let start = client.post(format!("{public}/v1/handoffs")).bearer_auth("demo").body(start);
    let answer = start.header("content-type", "application/json").send().await.unwrap();
    assert_eq!(answer.status(), 202);

    let beside = shown.lines().find(|line| line.ends_with("causeway dead list")).unwrap();
    let setting = |name: &str| {
        let word = beside.split_whitespace().find_map(|word| word.strip_prefix(&format!("{name}=")));
        word.unwrap().to_owned()
    };
    let list = Causeway::new(["dead", "list"])
        .set("data_dir", setting("CAUSEWAY_DATA_DIR"))
        .set("queue.partitions", setting("CAUSEWAY_QUEUE__PARTITIONS"))
        .run(LONG)
        .await;
    assert_eq!((list.code, list.stdout.as_str()), (Some(0), "no dead letters\n"), "{}", list.stderr);

    demo.sigint();
    assert_eq!(demo.exit(LONG).await.code(), Some(0), "{}", demo.stderr());
    nothing_is_left(folder.path());
}

#[tokio::test]
async fn a_demo_that_is_stopped_midway_proves_nothing_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut demo = demo(["demo", "--speed", "0.1"], folder.path()).spawn();
    demo.line("Grace is told: number 1", LONG).await;
    demo.sigterm();
    assert_eq!(demo.exit(LONG).await.code(), Some(1));
    assert!(demo.stderr().contains("interrupted before its end"), "{}", demo.stderr());
    nothing_is_left(folder.path());
}

#[tokio::test]
async fn the_demo_is_what_a_newcomer_sees_first() {
    let output = Causeway::new([]).run(LONG).await;
    assert_eq!(output.code, Some(2));
    let verbs = output.stderr.split("Commands:").nth(1).unwrap_or_default();
    assert!(verbs.trim_start().starts_with("demo "), "{}", output.stderr);
}
