//! Tests the promises of the embedded engine: one serving process for each folder, an admin console beside the process,
//! `kill -9` at any time, a full disk.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that finds the unexpected has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use causeway::message::{
    AttemptHistory, DeadLetter, DeadReason, Destination, Destinations, Kind, LaneKey, Message, MessageId,
    RequestId, Trace, TraceParent,
};
use causeway::queue::embedded::{EmbeddedQueue, EmbeddedSettings};
use causeway::queue::{PartitionId, Queue, QueueError, QueueTuning};
use rand::RngExt;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);
const PREFETCH: u16 = 16;
/// The variable tells the test binary that it is the child of one of its own tests, and names the folder to use.
const CHILD: &str = "CAUSEWAY_TEST_CHILD_FOLDER";

fn settings(folder: &Path) -> EmbeddedSettings {
    let tuning = QueueTuning {
        destinations: Destinations::new([Destination::ServiceNow, Destination::Xo]),
        partitions: 4,
        prefetch: PREFETCH,
        publish_timeout: Duration::from_secs(10),
    };
    EmbeddedSettings { data_dir: folder.to_owned(), tuning, max_messages: None }
}

async fn serve(folder: &Path) -> Queue {
    Queue::Embedded(EmbeddedQueue::open(settings(folder)).await.unwrap())
}

async fn desk(folder: &Path) -> Queue {
    Queue::Embedded(EmbeddedQueue::open_admin(settings(folder)).await.unwrap())
}

fn text(lane: usize, body: impl Into<bytes::Bytes>) -> Message {
    Message::new(MessageId::fresh(), Kind::CallbackMessage, Destination::Xo, lane_key(lane), body)
}

fn lane_key(lane: usize) -> LaneKey {
    LaneKey::parse(&format!("lane-{lane}")).unwrap()
}

fn partition(lane: usize) -> PartitionId {
    PartitionId::of(Destination::Xo, &lane_key(lane), 4)
}

#[tokio::test]
async fn a_folder_is_served_by_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let queue = serve(folder.path()).await;
    let refused = EmbeddedQueue::open(settings(folder.path())).await.expect_err("it is served");
    assert!(matches!(refused, QueueError::Busy(_)));
    let sentence = refused.to_string();
    assert!(sentence.contains(&folder.path().display().to_string()), "{sentence}");
    assert!(sentence.contains(&format!("process {}", std::process::id())), "{sentence}");
    queue.close().await;
    serve(folder.path()).await.close().await;
}

#[tokio::test]
async fn the_console_works_beside_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let missing =
        EmbeddedQueue::open_admin(settings(folder.path())).await.expect_err("there is no queue yet");
    assert!(matches!(missing, QueueError::Mismatch(_)), "{missing}");

    let queue = serve(folder.path()).await;
    let mut subscription = queue.subscribe(partition(1)).await.unwrap();
    let desk = desk(folder.path()).await;
    assert!(matches!(desk.subscribe(partition(1)).await, Err(QueueError::Busy(_))));

    desk.publish(&text(1, "from the desk")).await.unwrap();
    let received = timeout(SOON, subscription.next()).await.expect("the server sees it").unwrap();
    assert_eq!(received.message.body, "from the desk");
    received.ack().await.unwrap();

    let dead = DeadLetter::new(text(1, "x"), DeadReason::Expired, "too late", AttemptHistory::default());
    queue.dead_letter(&dead).await.unwrap();
    let mut dead_letter_reader = desk.dead_letter_reader(Destination::Xo).await.unwrap();
    let refused = queue.dead_letter_reader(Destination::Xo).await.expect_err("the desk is visiting");
    assert!(refused.to_string().contains("being read by process"), "{refused}");
    assert_eq!(desk.depth().await.unwrap().dead, 1);
    dead_letter_reader.next().await.unwrap().unwrap().remove().await.unwrap();
    dead_letter_reader.close().await;
    assert_eq!(queue.depth().await.unwrap().dead, 0);
}

#[tokio::test]
async fn a_file_that_is_not_ours_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    serve(folder.path()).await.close().await;

    let mut others = settings(folder.path());
    others.tuning.partitions = 6;
    let refused = EmbeddedQueue::open(others).await.expect_err("another number of partitions").to_string();
    assert!(refused.contains("made with 4 partitions, but queue.partitions is 6"), "{refused}");

    let file = folder.path().join("queue.sqlite");
    rusqlite::Connection::open(&file).unwrap().pragma_update(None, "user_version", 9).unwrap();
    let refused = EmbeddedQueue::open(settings(folder.path())).await.expect_err("another version");
    assert!(matches!(refused, QueueError::Mismatch(_)));
    assert!(refused.to_string().contains("version 9, but this program knows version 3"), "{refused}");

    std::fs::write(&file, "certainly no database ".repeat(400)).unwrap();
    let refused = EmbeddedQueue::open(settings(folder.path())).await.expect_err("no database");
    assert!(matches!(refused, QueueError::Mismatch(_)), "{refused}");
}

/// A file of the version before 0.2 has no columns for the ids of the cause.
#[tokio::test]
async fn a_file_of_version_2_is_upgraded_with_its_messages() {
    let folder = tempfile::tempdir().unwrap();
    let queue = Queue::Embedded(EmbeddedQueue::open(settings(folder.path())).await.unwrap());
    queue.publish(&text(1, "old")).await.unwrap();
    queue
        .dead_letter(&DeadLetter::new(
            text(1, "dead"),
            DeadReason::Expired,
            "too late",
            AttemptHistory::default(),
        ))
        .await
        .unwrap();
    queue.close().await;
    let file = rusqlite::Connection::open(folder.path().join("queue.sqlite")).unwrap();
    for table in ["message", "dead_letter"] {
        for column in ["request_id", "traceparent"] {
            file.execute_batch(&format!("ALTER TABLE {table} DROP COLUMN {column}")).unwrap();
        }
    }
    file.pragma_update(None, "user_version", 2).unwrap();
    drop(file);

    let queue = Queue::Embedded(EmbeddedQueue::open(settings(folder.path())).await.unwrap());
    let parent = TraceParent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let trace = Trace { request_id: RequestId::parse("r-1"), parent };
    queue.publish(&Message { trace: trace.clone(), ..text(1, "new") }).await.unwrap();
    let mut subscription = queue.subscribe(partition(1)).await.unwrap();
    for expected in [Trace::default(), trace] {
        let received = subscription.next().await.unwrap();
        assert_eq!((received.message.trace.clone(), received.unreadable.clone()), (expected, None));
        received.ack().await.unwrap();
    }
    let mut dead_letter_reader = queue.dead_letter_reader(Destination::Xo).await.unwrap();
    let held = dead_letter_reader.next().await.unwrap().expect("the dead letter is still there");
    assert_eq!((held.dead.reason, held.dead.message.trace.clone()), (DeadReason::Expired, Trace::default()));
    dead_letter_reader.close().await;
    queue.close().await;
    // Each column behind the body could only be read by reading the body.
    let file = rusqlite::Connection::open(folder.path().join("queue.sqlite")).unwrap();
    let last = "SELECT name FROM pragma_table_info('message') ORDER BY cid DESC LIMIT 1";
    assert_eq!(file.query_row(last, [], |row| row.get::<_, String>(0)).unwrap(), "body");
}

#[tokio::test]
async fn a_full_queue_refuses_until_something_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let mut bounded = settings(folder.path());
    bounded.max_messages = Some(3);
    let queue = Queue::Embedded(EmbeddedQueue::open(bounded).await.unwrap());
    for _ in 0..3 {
        queue.publish(&text(1, "x")).await.unwrap();
    }
    assert!(matches!(queue.publish(&text(2, "x")).await, Err(QueueError::Full)));
    let dead = DeadLetter::new(text(1, "x"), DeadReason::Expired, "too late", AttemptHistory::default());
    queue.dead_letter(&dead).await.unwrap();
    let mut subscription = queue.subscribe(partition(1)).await.unwrap();
    subscription.next().await.unwrap().ack().await.unwrap();
    queue.publish(&text(2, "x")).await.unwrap();
    assert!(matches!(queue.publish(&text(2, "x")).await, Err(QueueError::Full)));
}

/// After a stop without a record, only the first `prefetch` messages count as redelivered.
#[tokio::test]
async fn doubt_after_a_crash_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let queue = serve(folder.path()).await;
    for number in 0..PREFETCH + 4 {
        queue.publish(&text(1, number.to_string())).await.unwrap();
    }
    queue.close().await;
    rusqlite::Connection::open(folder.path().join("queue.sqlite"))
        .unwrap()
        .execute("UPDATE about SET clean = 0", [])
        .unwrap();
    let queue = serve(folder.path()).await;
    let mut subscription = queue.subscribe(partition(1)).await.unwrap();
    for number in 0..PREFETCH + 4 {
        let received = timeout(SOON, subscription.next()).await.unwrap().unwrap();
        assert_eq!(received.redeliveries > 0, number < PREFETCH, "{number}");
        received.ack().await.unwrap();
    }
}

fn child_folder() -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "not a setting: how a test talks to its own child")]
    std::env::var(CHILD).ok().map(PathBuf::from)
}

/// Starts the test binary again with a single test. `wrap` is a shell line that ends with the start of its arguments.
fn child(test: &str, wrap: &str, folder: &Path) -> Child {
    Command::new("sh")
        .args(["-c", wrap, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("queue_embedded::{test}"), "--nocapture", "--test-threads=1"])
        .env(CHILD, folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn say(what: char, number: usize) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "@{what}{number}").and_then(|()| out.flush()).expect("the parent listens");
}

/// The output of a killed child: `P` published, `L` received, `S` about to be settled, `D` settled.
type Said = BTreeMap<char, BTreeSet<usize>>;

/// `number % LANES` is the lane.
const LANES: usize = 12;

#[tokio::test(flavor = "multi_thread")]
async fn kill_minus_nine_loses_nothing() {
    if let Some(folder) = child_folder() {
        return publish_and_settle_for_ever(&folder).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut published = 0;
    for _ in 0..20 {
        let said = tokio::task::block_in_place(|| run_and_kill(folder.path()));
        published += said.get(&'P').map_or(0, BTreeSet::len);
        check_what_is_left(folder.path(), &said).await;
    }
    assert!(published > 100, "the child hardly worked: {published}");
}

async fn publish_and_settle_for_ever(folder: &Path) {
    let queue = serve(folder).await;
    let mut busy = Vec::new();
    for lane in 0..LANES {
        let queue = queue.clone();
        busy.push(causeway::tasks::spawn(async move {
            for number in (lane..).step_by(LANES) {
                queue.publish(&text(lane, number.to_string())).await.unwrap();
                say('P', number);
            }
        }));
    }
    for partition in PartitionId::all(Destination::Xo, 4) {
        let mut subscription = queue.subscribe(partition).await.unwrap();
        busy.push(causeway::tasks::spawn(async move {
            let mut kept = Vec::new();
            while let Some(received) = subscription.next().await {
                let number = number(&received.message);
                say('L', number);
                if number.is_multiple_of(3) && kept.len() < usize::from(PREFETCH) / 2 {
                    kept.push(received);
                    continue;
                }
                say('S', number);
                received.ack().await.unwrap();
                say('D', number);
            }
        }));
    }
    for task in busy {
        task.await.unwrap();
    }
}

fn number(message: &Message) -> usize {
    std::str::from_utf8(&message.body).unwrap().parse().unwrap()
}

fn run_and_kill(folder: &Path) -> Said {
    let mut child = child("kill_minus_nine_loses_nothing", "exec \"$@\"", folder);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = Said::new();
    let hear = |line: std::io::Result<String>, said: &mut Said| {
        // The kill may have cut a line, and a cut number would be another number.
        let event = line.ok()?.strip_prefix('@')?.to_owned();
        let number = event.get(1..)?.parse().ok()?;
        said.entry(event.chars().next()?).or_default().insert(number);
        Some(())
    };
    // From the first confirmed publish on, the kill may come at any time.
    while said.is_empty() {
        let _ = hear(lines.next().expect("the child works"), &mut said);
    }
    let pid = child.id();
    let moment = Duration::from_micros(rand::rng().random_range(0..150_000));
    let killer = std::thread::spawn(move || {
        crate::harness::wait::let_pass_blocking(moment);
        assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    });
    for line in lines {
        let _ = hear(line, &mut said);
    }
    killer.join().unwrap();
    child.wait().unwrap();
    said
}

async fn check_what_is_left(folder: &Path, said: &Said) {
    let nobody = BTreeSet::new();
    let [published, lent, settling, settled] =
        ['P', 'L', 'S', 'D'].map(|it| said.get(&it).unwrap_or(&nobody));
    let queue = serve(folder).await;
    let left = queue.depth().await.unwrap().waiting.get(&Destination::Xo).copied().unwrap_or(0);
    let mut found = BTreeSet::new();
    let mut newest: BTreeMap<usize, usize> = BTreeMap::new();
    for partition in PartitionId::all(Destination::Xo, 4) {
        let mut subscription = queue.subscribe(partition).await.unwrap();
        // A message of this test marks the end of the partition.
        let mark = (0..).find(|lane| self::partition(*lane) == partition).unwrap();
        queue.publish(&text(mark, "end")).await.unwrap();
        loop {
            let received = timeout(SOON, subscription.next()).await.expect("all is lent again").unwrap();
            if received.message.body == "end" {
                break received.ack().await.unwrap();
            }
            let number = number(&received.message);
            assert!(found.insert(number), "{number} is there twice");
            assert!(received.redeliveries > 0 || !lent.contains(&number), "{number} had been lent");
            let before = newest.insert(number % LANES, number);
            assert!(before.is_none_or(|before| before < number), "{number} was overtaken by {before:?}");
            received.ack().await.unwrap();
        }
        subscription.close().await;
    }
    assert_eq!(found.len(), usize::try_from(left).unwrap(), "the counters tell the truth");
    let lost: Vec<_> = published.iter().filter(|it| !settling.contains(it) && !found.contains(it)).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
    assert!(found.is_disjoint(settled), "settled, and there again");
    assert_eq!(queue.depth().await.unwrap().waiting.values().sum::<u64>(), 0);
    queue.close().await;
}

/// A limit on the size of files simulates a full disk: every write beyond the limit fails.
#[tokio::test]
async fn a_full_disk_refuses_and_recovers() {
    if let Some(folder) = child_folder() {
        return fill_the_disk(&folder).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let wrap = "trap '' XFSZ; ulimit -S -f 3000; exec \"$@\"";
    let output = child("a_full_disk_refuses_and_recovers", wrap, folder.path()).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));

    let file = rusqlite::Connection::open(folder.path().join("queue.sqlite")).unwrap();
    let verdict: String = file.pragma_query_value(None, "integrity_check", |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
}

fn limit_files(most: &str) {
    let (limit, pid) = (format!("--fsize={most}"), std::process::id().to_string());
    assert!(Command::new("prlimit").args([&limit, "--pid", &pid]).status().unwrap().success());
}

async fn fill_the_disk(folder: &Path) {
    let queue = serve(folder).await;
    let mut connected = queue.connected();
    let mut subscription = queue.subscribe(partition(1)).await.unwrap();
    let mut taken = 0;
    let refused = loop {
        let body = format!("{taken:04096}");
        match queue.publish(&text(1, body)).await {
            Ok(()) => taken += 1,
            Err(refused) => break refused,
        }
        assert!(taken < 1_000, "the disk never filled");
    };
    assert!(matches!(refused, QueueError::Unavailable(_)), "{refused}");
    timeout(SOON, connected.wait_for(|up| !up)).await.unwrap().unwrap();

    limit_files("0:");
    // A message that cannot be acked now is acked later and never redelivered. It makes room for the next received
    // messages.
    for _ in 0..PREFETCH {
        subscription.next().await.unwrap().ack().await.unwrap_err();
    }
    limit_files("unlimited");
    timeout(SOON, connected.wait_for(|up| *up)).await.expect("it recovers by itself").unwrap();
    queue.publish(&text(1, "after")).await.unwrap();

    let next = timeout(SOON, subscription.next()).await.expect("the same borrower gets more").unwrap();
    assert_eq!(next.message.body, format!("{PREFETCH:04096}"));
    let left = taken + 1 - u64::from(PREFETCH);
    let begun = Instant::now();
    while queue.depth().await.unwrap().waiting[&Destination::Xo] != left && begun.elapsed() < SOON {}
    assert_eq!(queue.depth().await.unwrap().waiting[&Destination::Xo], left);
    subscription.close().await;
    let mut subscription = queue.subscribe(partition(1)).await.unwrap();
    for expected in u64::from(PREFETCH)..taken {
        let received = timeout(SOON, subscription.next()).await.unwrap().unwrap();
        assert_eq!(received.message.body, format!("{expected:04096}"));
        received.ack().await.unwrap();
    }
    assert_eq!(subscription.next().await.unwrap().message.body, "after");
    queue.close().await;
}
