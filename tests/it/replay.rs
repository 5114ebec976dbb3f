//! Tests that dead letters can be read without harm, and that a replay brings them back in their original order without
//! a loss.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use causeway::conversation::{DedupKey, Directory, DirectorySettings, DirectoryUrl};
use causeway::message::{
    AttemptHistory, DeadLetter, DeadReason, Destination, Destinations, Kind, LaneKey, Message, MessageId,
};
use causeway::queue::embedded::{EmbeddedQueue, EmbeddedSettings};
use causeway::queue::{PartitionId, Queue, QueueTuning};
use causeway::sandbox::{FaultRule, Operation, Side};
use jiff::Timestamp;

use crate::harness::relay::{PATIENCE, Plan, Relay, numbered};

async fn open(data_dir: &Path) -> Queue {
    let tuning = QueueTuning {
        destinations: Destinations::new([Destination::ServiceNow, Destination::Xo]),
        partitions: 8,
        prefetch: 256,
        publish_timeout: Duration::from_secs(5),
    };
    let settings = EmbeddedSettings { data_dir: data_dir.to_owned(), tuning, max_messages: None };
    Queue::Embedded(EmbeddedQueue::open(settings).await.unwrap())
}

/// A message of a lane, accepted in second `n`.
fn message(lane: &str, n: i64) -> Message {
    let body = format!(r#"{{"type":"message","conversation_id":"{lane}","message":"private words {n}"}}"#);
    let id = MessageId::derived("test", &format!("{lane}-{n}"));
    let mut message =
        Message::new(id, Kind::HandoffMessage, Destination::ServiceNow, LaneKey::parse(lane).unwrap(), body);
    message.accepted_at = Timestamp::from_second(n).unwrap();
    message
}

/// Dead-letters five messages in each of three lanes, in another order than that of their acceptance.
async fn dead_letter(queue: &Queue) {
    for n in [3, 1, 2, 5, 4] {
        for lane in ["a", "b", "c"] {
            let dead =
                DeadLetter::new(message(lane, n), DeadReason::Expired, "too late", AttemptHistory::default());
            queue.dead_letter(&dead).await.unwrap();
        }
    }
}

fn dead(data_dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_causeway"));
    command.arg("dead").args(args).env_clear().env("CAUSEWAY_DATA_DIR", data_dir);
    command.stdin(std::process::Stdio::null()).output().unwrap()
}

fn succeeded(output: &Output) -> String {
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}{error}");
    said.into_owned()
}

/// All messages to ServiceNow, by lane, in order.
async fn on_the_road(queue: &Queue, count: usize) -> BTreeMap<String, Vec<Message>> {
    let mut lanes: BTreeMap<String, Vec<Message>> = BTreeMap::new();
    let mut taken = 0;
    for partition in PartitionId::all(Destination::ServiceNow, 8) {
        let mut subscription = queue.subscribe(partition).await.unwrap();
        while taken < count {
            let Ok(Some(received)) =
                tokio::time::timeout(Duration::from_millis(500), subscription.next()).await
            else {
                break;
            };
            lanes.entry(received.message.lane.to_string()).or_default().push(received.message.clone());
            taken += 1;
            received.ack().await.unwrap();
        }
        subscription.close().await;
    }
    lanes
}

#[tokio::test]
async fn a_replay_brings_every_lane_back_in_its_original_order() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path()).await;
    dead_letter(&queue).await;

    let listed: serde_json::Value =
        serde_json::from_str(&succeeded(&dead(folder.path(), &["count", "--json"]))).unwrap();
    assert_eq!(listed["dead_letters"], 15);
    assert_eq!(listed["groups"][0]["lanes"], 3);

    let plan = succeeded(&dead(folder.path(), &["replay", "--dry-run"]));
    assert!(plan.contains("replay") && plan.contains("15"), "{plan}");
    let unasked = dead(folder.path(), &["replay"]);
    assert_eq!(unasked.status.code(), Some(2), "without a terminal nothing is assumed");

    let one = succeeded(&dead(folder.path(), &["replay", "--conversation", "b", "--yes", "--wait", "0"]));
    assert!(one.contains("replayed 5 of 5 messages"), "{one}");
    let rest = succeeded(&dead(folder.path(), &["replay", "--yes", "--wait", "0", "--rate", "500/s"]));
    assert!(rest.contains("replayed 10 of 10 messages"), "{rest}");

    let lanes = on_the_road(&queue, 15).await;
    for lane in ["a", "b", "c"] {
        let expected: Vec<MessageId> = (1..=5).map(|n| message(lane, n).id).collect();
        let came: Vec<MessageId> = lanes[lane].iter().map(|message| message.id).collect();
        assert_eq!(came, expected, "lane {lane}");
        assert!(
            lanes[lane].iter().all(|message| message.replays == 1 && message.accepted_at.as_second() > 5)
        );
    }
    assert_eq!(queue.depth().await.unwrap().dead, 0);
    queue.close().await;
}

#[tokio::test]
async fn a_replay_killed_midway_loses_nothing_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path()).await;
    dead_letter(&queue).await;
    let mut child = Command::new(env!("CARGO_BIN_EXE_causeway"))
        .args(["dead", "replay", "--yes", "--rate", "20/s"])
        .env_clear()
        .env("CAUSEWAY_DATA_DIR", folder.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let began = async {
        while queue.depth().await.unwrap().dead > 12 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), began).await.unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let left = queue.depth().await.unwrap().dead;
    assert!((1..=12).contains(&left), "{left}");
    succeeded(&dead(folder.path(), &["replay", "--yes", "--wait", "0"]));

    // After a kill between the publish and the removal, one message may be there twice, but never out of order.
    let lanes = on_the_road(&queue, 16).await;
    for lane in ["a", "b", "c"] {
        let mut came: Vec<MessageId> = lanes[lane].iter().map(|message| message.id).collect();
        came.dedup();
        let expected: Vec<MessageId> = (1..=5).map(|n| message(lane, n).id).collect();
        assert_eq!(came, expected, "lane {lane}");
    }
    assert_eq!(queue.depth().await.unwrap().dead, 0);
    queue.close().await;
}

#[tokio::test]
async fn a_replay_does_not_send_a_delivered_message_again() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path()).await;
    dead_letter(&queue).await;
    let url = DirectoryUrl::Sqlite(folder.path().join("directory.sqlite"));
    let directory = Directory::open(&DirectorySettings { url }).await.unwrap();
    for lane in ["a", "b"] {
        directory
            .mark_done(DedupKey::Delivered(message(lane, 2).id), None, causeway::clock::now())
            .await
            .unwrap();
    }
    let said = succeeded(&dead(folder.path(), &["replay", "--yes", "--wait", "0"]));
    assert!(said.contains("take out: already delivered"), "{said}");
    assert!(said.contains("replayed 13 of 13 messages, took 2 dead letters that needed none out"), "{said}");
    assert!(said.contains("delivered 0, died again 0, still on its way 13 (not waited for"), "{said}");
    assert_eq!(on_the_road(&queue, 13).await.values().map(Vec::len).sum::<usize>(), 13);
    assert_eq!(queue.depth().await.unwrap().dead, 0);
    directory.close().await;
    queue.close().await;
}

#[tokio::test]
async fn text_is_shown_only_when_asked_for_and_what_is_discarded_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path()).await;
    dead_letter(&queue).await;

    let shown = succeeded(&dead(folder.path(), &["show", "--limit", "2"]));
    assert!(shown.contains("expired: too late") && shown.contains("and 13 more"), "{shown}");
    assert!(!shown.contains("private words"), "{shown}");
    let id = message("a", 1).id.to_string();
    assert!(succeeded(&dead(folder.path(), &["show", "--id", &id, "--reveal"])).contains("private words 1"));

    let file = folder.path().join("dead.jsonl");
    succeeded(&dead(folder.path(), &["export", "--yes", "--output", file.to_str().unwrap()]));
    let exported = std::fs::read_to_string(&file).unwrap();
    assert_eq!(exported.lines().count(), 15);
    for line in exported.lines() {
        let document: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(document["body"].as_str().unwrap().contains("private words"));
    }
    let again = dead(folder.path(), &["export", "--yes", "--output", file.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(2), "an existing file is not overwritten");

    let refused = dead(folder.path(), &["discard"]);
    assert_eq!(refused.status.code(), Some(2));
    let gone = succeeded(&dead(folder.path(), &["discard", "--yes", "--conversation", "c"]));
    assert!(gone.contains("removed 5 dead letters"), "{gone}");
    assert_eq!(queue.depth().await.unwrap().dead, 10);
    queue.close().await;
}

/// The same command in a terminal, with the input of a person.
fn typed(data_dir: &Path, args: &str, answer: &str) -> Option<String> {
    let line = format!("'{}' dead {args}", env!("CARGO_BIN_EXE_causeway"));
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]).env("CAUSEWAY_DATA_DIR", data_dir);
    command.env("TERM", "xterm").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("`script` of util-linux makes a terminal");
    child.stdin.take().unwrap().write_all(answer.as_bytes()).unwrap();
    Some(succeeded(&child.wait_with_output().unwrap()))
}

#[tokio::test]
#[ignore = "needs script of util-linux: tests/run runs it"]
async fn a_person_is_asked_first_and_sees_how_far_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path()).await;
    dead_letter(&queue).await;
    let file = folder.path().join("dead.jsonl");
    let export = format!("export --output '{}'", file.display());
    for (args, answer, asks, says) in [
        ("replay", "n\n", "Replay 15 messages? [y/N]", "nothing was replayed"),
        ("replay", "\n", "Replay 15 messages? [y/N]", "nothing was replayed"),
        ("discard", "no\n", "Remove 15 dead letters for good? [y/N]", "nothing was removed"),
        (
            export.as_str(),
            "n\n",
            "Write 15 dead letters with the text of the messages? [y/N]",
            "nothing was written",
        ),
    ] {
        let Some(said) = typed(folder.path(), args, answer) else { return };
        assert!(said.contains(asks) && said.contains(says), "{args}: {said}");
    }
    assert!(!file.exists());
    assert_eq!(queue.depth().await.unwrap().dead, 15);

    let Some(said) = typed(folder.path(), "replay --rate 20/s --wait 0", "y\n") else { return };
    assert!(said.contains("replayed 15 of 15 messages"), "{said}");
    assert!((1..15).any(|n| said.contains(&format!(" {n}/15 "))), "a bar tells how far it is: {said}");
    assert_eq!(queue.depth().await.unwrap().dead, 0);
    queue.close().await;
}

/// Replays all dead letters, and returns the output.
async fn replayed(relay: &Relay) -> String {
    let run = relay.tool(["dead", "replay", "--yes"]).run(PATIENCE).await;
    assert_eq!(run.code, Some(0), "{}{}", run.stdout, run.stderr);
    run.stdout
}

async fn says(relay: &Relay, group: &str, texts: &[String]) {
    relay
        .until(&format!("{texts:?}"), |relay| {
            let said = relay.said(group);
            if said == texts { Ok(()) } else { Err(format!("{said:?}")) }
        })
        .await;
}

on_every_engine! {
    async fn an_expired_start_and_what_followed_come_to_life(bench: Bench) {
        let relay = Plan::on(&bench).set("delivery.deadline.start", "2s").start().await;
        let down = FaultRule::new(Side::ServiceNow).operation(Operation::Start).status(503);
        relay.sandbox.script().fail(down);
        relay.start("c-1").await;
        relay.messages(&["c-1".to_owned()], 4, 1).await;
        let dead = relay.dead_letters_at_least(5).await;
        let reasons: Vec<&str> = dead.iter().map(|dead| dead["reason"].as_str().unwrap()).collect();
        assert_eq!(reasons[0], "expired");
        assert_eq!(reasons[1..], ["conversation_failed"; 4]);
        relay.reaches("c-1", "failed").await;
        relay.until("the bot side to be told", |relay| {
            let told = relay.sandbox.ledger().events().remove("c-1").unwrap_or_default();
            let failed = told.iter().any(|entry| entry.event.as_deref() == Some("handoff.failed"));
            if failed { Ok(()) } else { Err(format!("{told:?}")) }
        }).await;

        relay.sandbox.script().clear();
        let said = replayed(&relay).await;
        assert!(said.contains("replayed 5 of 5 messages: delivered 5, died again 0\n"), "{said}");
        relay.reaches("c-1", "waiting").await;
        let groups = relay.sandbox.groups();
        assert_eq!(groups.len(), 1);
        let opening = std::iter::once("hello from c-1".to_owned());
        let texts: Vec<String> = opening.chain((0..4).map(|n| numbered("c-1", n))).collect();
        says(&relay, &groups[0], &texts).await;
        assert_eq!(relay.dead_letters().await.len(), 0);
        relay.metric_is("causeway_replayed_total", &[("destination", "servicenow")], |count| count == 5.0).await;
    }

    async fn a_killed_replay_of_a_running_relay_doubles_nothing(bench: Bench) {
        let relay = Plan::on(&bench).start().await;
        let names: Vec<String> = (0..3).map(|n| format!("c-{n}")).collect();
        let mut groups = Vec::new();
        for name in &names {
            groups.push(relay.open(name).await);
        }
        let refuse = FaultRule::new(Side::ServiceNow).operation(Operation::Message).status(400);
        relay.sandbox.script().fail(refuse);
        relay.messages(&names, 5, 3).await;
        relay.dead_letters_at_least(15).await;
        relay.sandbox.script().clear();

        let mut killed = relay.tool(["dead", "replay", "--yes", "--rate", "8/s"]).spawn();
        relay.until("a part of the replay", |relay| {
            let came: usize = groups.iter().map(|group| relay.said(group).len() - 1).sum();
            if came >= 4 { Ok(()) } else { Err(format!("{came}")) }
        }).await;
        killed.kill9();
        replayed(&relay).await;
        for (name, group) in names.iter().zip(&groups) {
            let opening = std::iter::once(format!("hello from {name}"));
            let texts: Vec<String> = opening.chain((0..5).map(|n| numbered(name, n))).collect();
            says(&relay, group, &texts).await;
        }
        assert_eq!(relay.dead_letters().await.len(), 0);
        // No other message follows: the last message of each chat stands behind every message that a replay published
        // twice.
        for (name, group) in names.iter().zip(&groups) {
            relay.say(name, "the end").await;
            relay.until("the end", |relay| {
                if relay.said(group).last().is_some_and(|last| last == "the end") { Ok(()) } else { Err(String::new()) }
            }).await;
            assert_eq!(relay.said(group).len(), 7, "{:?}", relay.said(group));
        }
    }
}
