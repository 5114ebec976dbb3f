//! Tests that chat text is available only to the service and to an operator who asks for it: not to other users of the
//! machine, not in a file after delivery, not in a log, and not in the text of a refusal.
#![expect(clippy::unwrap_used, reason = "a test that finds the unexpected has failed")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use causeway::message::{
    AttemptHistory, DeadLetter, DeadReason, Destination, Destinations, Kind, LaneKey, Message, MessageId,
};
use causeway::queue::embedded::{EmbeddedQueue, EmbeddedSettings};
use causeway::queue::{PartitionId, Queue, QueueTuning};
use causeway::sandbox::{FaultRule, Operation, Side};

use crate::harness::http;
use crate::harness::matrix::Engine;
use crate::harness::relay::{PATIENCE, Plan};
use crate::harness::wait::eventually;

/// Every file below a folder, with its mode.
fn files(folder: &Path) -> Vec<(String, u32)> {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            (entry.file_name().into_string().unwrap(), mode)
        })
        .collect()
}

fn holds(folder: &Path, words: &str) -> Vec<String> {
    let names = files(folder).into_iter().map(|(name, _)| name);
    let holding = |name: &String| {
        let bytes = std::fs::read(folder.join(name)).unwrap_or_default();
        bytes.windows(words.len()).any(|window| window == words.as_bytes())
    };
    names.filter(holding).collect()
}

fn message(number: usize) -> Message {
    // Sizes from one line to several pages of the file.
    let body = format!("SECRETWORDS {number} ").repeat(1 + number * number * 3);
    Message::new(
        MessageId::fresh(),
        Kind::CallbackMessage,
        Destination::Xo,
        LaneKey::parse("lane").unwrap(),
        body,
    )
}

/// SQLite leaves deleted data in its file unless `secure_delete` is set and the log is emptied.
#[tokio::test]
async fn delivered_and_discarded_texts_leave_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let destinations = Destinations::new([Destination::ServiceNow, Destination::Xo]);
    let tuning =
        QueueTuning { destinations, partitions: 1, prefetch: 16, publish_timeout: Duration::from_secs(10) };
    let settings = EmbeddedSettings { data_dir: folder.path().to_owned(), tuning, max_messages: None };
    let queue = Queue::Embedded(EmbeddedQueue::open(settings).await.unwrap());
    for number in 0..50 {
        queue.publish(&message(number)).await.unwrap();
        let dead = DeadLetter::new(message(number), DeadReason::Rejected, "no", AttemptHistory::default());
        queue.dead_letter(&dead).await.unwrap();
    }
    assert!(!holds(folder.path(), "SECRETWORDS").is_empty(), "the test looks at the right files");
    let partition = PartitionId { destination: Destination::Xo, index: 0 };
    let mut subscription = queue.subscribe(partition).await.unwrap();
    for _ in 0..50 {
        subscription.next().await.unwrap().ack().await.unwrap();
    }
    let mut dead_letter_reader = queue.dead_letter_reader(Destination::Xo).await.unwrap();
    while let Some(held) = dead_letter_reader.next().await.unwrap() {
        held.remove().await.unwrap();
    }
    dead_letter_reader.close().await;
    eventually("the texts are gone", PATIENCE, async || {
        match holds(folder.path(), "SECRETWORDS").as_slice() {
            [] => Ok(()),
            files => Err(format!("{files:?}")),
        }
    })
    .await;
    assert!(folder.path().join("queue.sqlite-wal").exists(), "the queue is still open");
    queue.close().await;
}

/// The folder is readable for everyone, with the usual umask.
#[tokio::test]
async fn data_files_are_for_their_owner_alone() {
    let bench = Engine::Embedded.bench().unwrap();
    let folder = bench.folder().join("shared");
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let relay = Plan::on(&bench).set("data_dir", folder.to_str().unwrap()).start().await;
    relay.open("c-1").await;
    relay.say("c-1", "hello").await;
    relay.tool(["dead", "list"]).run(PATIENCE).await;
    let seen = files(&folder);
    for name in ["queue.sqlite", "queue.sqlite-wal", "queue.sqlite-shm", "directory.sqlite", "causeway.lock"]
    {
        assert!(seen.iter().any(|(seen, _)| seen == name), "{name} is missing: {seen:?}");
    }
    assert!(seen.iter().all(|(_, mode)| mode & 0o077 == 0), "{seen:?}");

    let made = bench.folder().join("made");
    relay
        .tool(["conversations", "list"])
        .set("data_dir", made.to_str().unwrap())
        .set("directory.url", format!("sqlite:{}", made.join("directory.sqlite").display()))
        .run(PATIENCE)
        .await;
    if made.exists() {
        assert_eq!(std::fs::metadata(&made).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(files(&made).iter().all(|(_, mode)| mode & 0o077 == 0), "{:?}", files(&made));
    }
}

on_every_engine! {
    // A platform may repeat the text of a message in its refusal, here with other white space.
    async fn the_words_of_a_refusal_are_shown_with_the_text_alone(bench: Bench) {
        let relay = Plan::on(&bench)
            .set("log.level", "trace")
            .set("admin.token", "admin-token")
            .start()
            .await;
        relay.open("c-1").await;
        let body = r#"{"error":{"message":"Bad value: SECRET-ECHO words","detail":null},"status":"failure"}"#;
        let refuse = FaultRule::new(Side::ServiceNow).operation(Operation::Message).status_with(400, body);
        relay.sandbox.script().fail(refuse);
        relay.say("c-1", "the user wrote this").await;
        relay.dead_letters_at_least(1).await;

        let client = http::client();
        let get = async |path: &str| {
            let url = format!("{}{path}", relay.processes[0].admin_url());
            client.get(url).bearer_auth("admin-token").send().await.unwrap().text().await.unwrap()
        };
        let mut views = vec![get("/dead-letters").await];
        for verb in [&["dead", "list"][..], &["dead", "show"], &["dead", "show", "--json"], &["dead", "replay", "--dry-run"]] {
            let run = relay.verb(verb).run(PATIENCE).await;
            views.push(format!("{}{}", run.stdout, run.stderr));
        }
        let id = serde_json::from_str::<serde_json::Value>(&views[0]).unwrap()["dead_letters"][0]["id"].as_str().unwrap().to_owned();
        views.push(get(&format!("/dead-letters/{id}")).await);
        for view in &views {
            assert!(!view.contains("SECRET-ECHO"), "{view}");
        }
        assert!(views[2].contains("refused (status 400)"), "{}", views[2]);
        assert!(get(&format!("/dead-letters/{id}?reveal=true")).await.contains("SECRET-ECHO"));
        let shown = relay.verb(&["dead", "show", "--reveal"]).run(PATIENCE).await;
        assert!(shown.stdout.contains("SECRET-ECHO"), "{}", shown.stdout);
        let running = &relay.processes[0].running;
        assert!(!format!("{}{}", running.stdout(), running.stderr()).contains("SECRET-ECHO"));
    }

    // lapin's traces print frames and addresses, and traces of other libraries print their payloads.
    async fn no_log_level_prints_a_secret_or_a_text(bench: Bench) {
        let url = bench.vhost().map(|vhost| vhost.url_with_password("SECRET-PASSWORD"));
        for level in ["trace", "causeway=trace,lapin=trace,amq_protocol_tcp=trace"] {
            let mut plan = Plan::on(&bench).set("log.level", level);
            if let Some(url) = &url {
                plan = plan.set("queue.url", url);
            }
            let relay = plan.start().await;
            let group = relay.open(&format!("c-{}", level.len())).await;
            relay.say(&format!("c-{}", level.len()), "SECRET-TEXT").await;
            relay.until("it is there", |relay| {
                if relay.said(&group).len() > 1 { Ok(()) } else { Err("not yet".to_owned()) }
            }).await;
            let running = &relay.processes[0].running;
            let said = format!("{}{}", running.stdout(), running.stderr());
            assert!(!said.is_empty());
            for word in ["SECRET-PASSWORD", "SECRET-TEXT", "handoffs-token", "callback-token"] {
                assert!(!said.contains(word), "{level}: the log holds {word}");
            }
        }
    }
}
