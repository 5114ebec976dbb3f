//! Tests the directory on SQLite and on PostgreSQL: no record is lost, no step happens twice, and an absent or
//! unsuitable database is reported clearly.
//!
//! `CAUSEWAY_TEST_POSTGRES` is a superuser's URL of a server on which the tests create databases. `tests/run` sets the
//! variable and selects the tests on PostgreSQL; otherwise these tests are ignored.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use causeway::conversation::{
    Changes, Claim, Conversation, ConversationState, DedupKey, Directory, DirectoryError, DirectorySettings,
    DirectoryUrl, JournalEntry, JournalOutcome, ListFilter, LookupName, Observation, OpenedChat, Origin,
    SettledAfter,
};
use causeway::message::{
    ConversationId, DeadReason, Destination, Kind, LaneKey, Message, MessageId, PayloadDigest, ReplyHandle,
    RequestId, Trace, TraceParent,
};
use jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, SqliteConnection};
use tempfile::TempDir;
use tokio::task::JoinSet;
use url::Url;
use uuid::Uuid;

use super::harness::postgres::Database;
use super::harness::proxy::Proxy;
use super::harness::relay::PATIENCE;
use super::harness::wait::eventually;

const WAITING_EVERY: Duration = Duration::from_secs(5);
const ACTIVE_EVERY: Duration = Duration::from_secs(30);

/// An empty database for one test.
enum Place {
    Sqlite(TempDir),
    Postgres { server: Url, name: String },
}

impl Place {
    fn sqlite() -> Self {
        Self::Sqlite(TempDir::new().unwrap())
    }

    async fn postgres() -> Option<Self> {
        #[expect(clippy::disallowed_methods, reason = "no setting of Causeway: how tests are lent a server")]
        let server = std::env::var("CAUSEWAY_TEST_POSTGRES").expect("tests/run sets CAUSEWAY_TEST_POSTGRES");
        let server = Url::parse(&server).unwrap();
        let name = format!("directory_{}", Uuid::new_v4().simple());
        let place = Self::Postgres { server, name };
        place.on_server("CREATE DATABASE {name}").await;
        Some(place)
    }

    fn url(&self) -> DirectoryUrl {
        match self {
            // The folders do not exist yet.
            Self::Sqlite(folder) => DirectoryUrl::Sqlite(folder.path().join("deep/er/directory.db")),
            Self::Postgres { server, name } => {
                let mut url = server.clone();
                url.set_path(name);
                DirectoryUrl::Postgres(url.as_str().to_owned().into())
            }
        }
    }

    async fn open(&self) -> Directory {
        Directory::open(&DirectorySettings { url: self.url() }).await.unwrap()
    }

    /// Runs SQL on the server outside of our database, whose name replaces `{name}`.
    async fn on_server(&self, sql: &str) {
        let Self::Postgres { server, name } = self else { panic!("SQLite has no server") };
        let mut admin = server.clone();
        admin.set_path("postgres");
        let mut connection = PgConnection::connect(admin.as_str()).await.unwrap();
        connection.execute(sqlx::raw_sql(AssertSqlSafe(sql.replace("{name}", name)))).await.unwrap();
        connection.close().await.unwrap();
    }

    /// Runs SQL on the database without the directory.
    async fn execute(&self, sql: &'static str) {
        match self.url() {
            DirectoryUrl::Sqlite(path) => {
                let mut connection = SqliteConnection::connect(&path.display().to_string()).await.unwrap();
                connection.execute(sql).await.unwrap();
                connection.close().await.unwrap();
            }
            DirectoryUrl::Postgres(url) => {
                let url = secrecy::ExposeSecret::expose_secret(&*url.get()).to_owned();
                let mut connection = PgConnection::connect(&url).await.unwrap();
                connection.execute(sql).await.unwrap();
                connection.close().await.unwrap();
            }
        }
    }

    async fn remove(self) {
        if let Self::Postgres { .. } = self {
            self.on_server("DROP DATABASE {name} WITH (FORCE)").await;
        }
    }
}

macro_rules! on_each_database {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(&super::Place::sqlite()).await;
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            #[ignore = "needs PostgreSQL: tests/run starts it"]
            async fn $name() {
                let Some(place) = super::Place::postgres().await else { return };
                super::$name(&place).await;
                place.remove().await;
            })+
        }
    };
}

on_each_database! {
    a_conversation_lives_from_request_to_end,
    several_processes_may_start_at_once,
    restart_keeps_everything,
    a_group_has_one_owner,
    one_conversation_may_claim_its_group_twice,
    a_conversation_that_was_never_requested_has_no_chat,
    a_conversation_ends_once,
    ending_and_failing_cross_once,
    a_stale_group_ends_nothing,
    a_conversation_is_reopened_after_its_end,
    one_request_of_many_begins_the_conversation,
    each_conversation_is_due_to_one_caller,
    a_question_about_a_queue_has_one_answer,
    polling_has_two_rhythms,
    a_user_without_the_agent_waits_again,
    due_takes_the_longest_waiting_first,
    delivered_messages_are_remembered,
    each_fact_is_remembered_by_itself,
    an_older_directory_is_brought_up_to_date,
    the_journal_keeps_how_a_message_was_settled,
    only_what_is_over_is_forgotten,
    one_conversation_is_erased_with_its_rows,
    counts_and_lists,
    odd_texts_are_kept,
    a_newer_schema_is_refused,
    a_closed_directory_is_unavailable,
    writes_at_the_same_time_share_commits,
    an_answered_write_is_committed,
    a_refused_write_fails_alone,
    an_attempt_reads_its_rows_once,
    lookups_at_the_same_time_get_their_own_rows,
}

fn id(name: &str) -> ConversationId {
    ConversationId::parse(name).unwrap()
}

fn chat(group: &str) -> OpenedChat {
    OpenedChat {
        group: group.to_owned(),
        number: Some("IMS0000123".to_owned()),
        queue_id: "q-1".to_owned(),
        position: Some(3),
        wait: Some("2 Minutes".to_owned()),
        agent: None,
        active: false,
    }
}

async fn waiting(directory: &Directory, name: &str, group: &str) -> ConversationId {
    let id = id(name);
    directory.mark_requested(&id, Origin::Api, Some("q-1")).await.unwrap();
    assert_eq!(directory.mark_opened(&id, &chat(group)).await.unwrap(), Claim::Ours);
    id
}

async fn found(directory: &Directory, id: &ConversationId) -> Conversation {
    directory.find(id).await.unwrap().expect("the conversation is there")
}

fn later(seconds: i64) -> Timestamp {
    causeway::clock::now().checked_add(SignedDuration::from_secs(seconds)).unwrap()
}

fn ids(conversations: &[Conversation]) -> Vec<&str> {
    conversations.iter().map(|conversation| conversation.id.as_str()).collect()
}

/// Runs `work` for 0, 1, … concurrently.
async fn at_once<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    times: usize,
    work: impl Fn(usize) -> F,
) -> Vec<T> {
    (0..times).map(work).collect::<JoinSet<_>>().join_all().await
}

async fn a_conversation_lives_from_request_to_end(place: &Place) {
    let directory = place.open().await;
    let id = id("c-1");
    assert_eq!(directory.find(&id).await.unwrap(), None);
    directory.mark_requested(&id, Origin::BotKit, Some("q-0")).await.unwrap();
    let requested = found(&directory, &id).await;
    assert_eq!((requested.state, requested.origin), (ConversationState::Requested, Origin::BotKit));
    assert_eq!((requested.queue_id.as_deref(), requested.group), (Some("q-0"), None));

    assert_eq!(directory.mark_opened(&id, &chat("g-1")).await.unwrap(), Claim::Ours);
    let opened = found(&directory, &id).await;
    assert_eq!((opened.state, opened.position), (ConversationState::Waiting, Some(3)));
    assert_eq!(opened.number.as_deref(), Some("IMS0000123"));
    assert_eq!((opened.queue_id.as_deref(), opened.wait.as_deref()), (Some("q-1"), Some("2 Minutes")));
    assert!(directory.group_known("g-1").await.unwrap());
    assert!(!directory.group_known("g-2").await.unwrap());

    let seen = Observation { agent: Some("Grace".to_owned()), active: true, ..Observation::default() };
    directory.record_observation(&id, "g-other", &seen).await.unwrap();
    assert_eq!(found(&directory, &id).await, opened);
    directory.record_observation(&id, "g-1", &seen).await.unwrap();
    let active = found(&directory, &id).await;
    assert_eq!((active.state, active.agent.as_deref()), (ConversationState::Active, Some("Grace")));
    assert_eq!(active.opened_at, requested.opened_at);
    directory.record_observation(&id, "g-1", &seen).await.unwrap();
    assert_eq!(found(&directory, &id).await, active, "seeing the same again is no update");
    assert!(!directory.mark_failed(&id, "no_agent", Changes::default()).await.unwrap(), "it has an agent");

    assert!(directory.mark_ended(&id, Some("g-1"), "agent").await.unwrap());
    let ended = found(&directory, &id).await;
    assert_eq!((ended.state, ended.reason.as_deref()), (ConversationState::Ended, Some("agent")));
    directory.record_observation(&id, "g-1", &seen).await.unwrap();
    assert_eq!(directory.mark_opened(&id, &chat("g-1")).await.unwrap(), Claim::Ours);
    assert_eq!(found(&directory, &id).await, ended, "nothing reopens it but a request");
    assert_eq!(directory.find_by_group("g-1").await.unwrap(), Some(ended));
    assert_eq!(directory.find_by_group("g-2").await.unwrap(), None);
}

async fn several_processes_may_start_at_once(place: &Place) {
    let url = place.url();
    let opened = at_once(8, |_| {
        let settings = DirectorySettings { url: url.clone() };
        async move { Directory::open(&settings).await }
    })
    .await;
    for (number, directory) in opened.into_iter().enumerate() {
        let directory = directory.unwrap();
        waiting(&directory, &format!("c-{number}"), &format!("g-{number}")).await;
    }
}

async fn restart_keeps_everything(place: &Place) {
    let first = place.open().await;
    let id = waiting(&first, "c-1", "g-1").await;
    let message = MessageId::fresh();
    first.mark_done(DedupKey::Delivered(message), None, later(0)).await.unwrap();
    let before = found(&first, &id).await;
    let second = place.open().await;
    assert_eq!(found(&second, &id).await, before, "while the first one is still open");
    first.close().await;
    second.close().await;
    let third = place.open().await;
    assert_eq!(found(&third, &id).await, before);
    assert!(third.is_done(DedupKey::Delivered(message)).await.unwrap());
    assert!(third.group_known("g-1").await.unwrap());
}

async fn a_group_has_one_owner(place: &Place) {
    let (one, two) = (place.open().await, place.open().await);
    for round in 0..20 {
        let group = format!("g-{round}");
        let mut racers = JoinSet::new();
        for (directory, name) in [(one.clone(), format!("a-{round}")), (two.clone(), format!("b-{round}"))] {
            let (id, chat) = (id(&name), chat(&group));
            directory.mark_requested(&id, Origin::Api, None).await.unwrap();
            racers.spawn(async move {
                let claim = directory.mark_opened(&id, &chat).await.unwrap();
                (claim, found(&directory, &id).await)
            });
        }
        let claims = racers.join_all().await;
        let (ours, taken): (Vec<_>, Vec<_>) =
            claims.into_iter().partition(|(claim, _)| *claim == Claim::Ours);
        assert_eq!((ours.len(), taken.len()), (1, 1), "round {round}");
        assert_eq!(
            (ours[0].1.state, taken[0].1.state),
            (ConversationState::Waiting, ConversationState::Requested)
        );
        let owner = one.find_by_group(&group).await.unwrap().unwrap();
        assert_eq!(owner.id, ours[0].1.id);
    }
}

async fn one_conversation_may_claim_its_group_twice(place: &Place) {
    let directory = place.open().await;
    let id = waiting(&directory, "c-1", "g-1").await;
    let before = found(&directory, &id).await;
    assert_eq!(directory.mark_opened(&id, &chat("g-1")).await.unwrap(), Claim::Ours);
    assert_eq!(found(&directory, &id).await, before);
    directory.mark_requested(&id, Origin::BotKit, Some("q-9")).await.unwrap();
    assert_eq!(found(&directory, &id).await, before, "a repeated start is harmless");
}

async fn a_conversation_that_was_never_requested_has_no_chat(place: &Place) {
    let directory = place.open().await;
    let error = directory.mark_opened(&id("c-1"), &chat("g-1")).await.unwrap_err();
    assert!(matches!(&error, DirectoryError::Mismatch(why) if why.contains("c-1")), "{error}");
    assert!(!directory.group_known("g-1").await.unwrap());
}

async fn a_conversation_ends_once(place: &Place) {
    let directories = [place.open().await, place.open().await];
    let id = waiting(&directories[0], "c-1", "g-1").await;
    let changed = at_once(20, |caller| {
        let (directory, id) = (directories[caller % 2].clone(), id.clone());
        async move { directory.mark_ended(&id, Some("g-1"), &format!("by {caller}")).await.unwrap() }
    })
    .await;
    assert_eq!(changed.iter().filter(|changed| **changed).count(), 1);
    assert_eq!(found(&directories[0], &id).await.state, ConversationState::Ended);
}

async fn ending_and_failing_cross_once(place: &Place) {
    let directory = place.open().await;
    for round in 0..10 {
        let id = waiting(&directory, &format!("c-{round}"), &format!("g-{round}")).await;
        let changed = at_once(10, |caller| {
            let (directory, id) = (directory.clone(), id.clone());
            async move {
                if caller % 2 == 0 {
                    directory.mark_ended(&id, None, "user").await.unwrap()
                } else {
                    directory.mark_failed(&id, "no_agent", Changes::default()).await.unwrap()
                }
            }
        })
        .await;
        assert_eq!(changed.iter().filter(|changed| **changed).count(), 1, "round {round}");
        let over = found(&directory, &id).await;
        let reason = if over.state == ConversationState::Ended { "user" } else { "no_agent" };
        assert_eq!(over.reason.as_deref(), Some(reason));
    }
}

async fn a_stale_group_ends_nothing(place: &Place) {
    let directory = place.open().await;
    let id = waiting(&directory, "c-1", "g-1").await;
    assert!(!directory.mark_ended(&id, Some("g-0"), "agent").await.unwrap());
    assert!(directory.mark_ended(&id, Some("g-1"), "agent").await.unwrap());
    directory.mark_requested(&id, Origin::Api, None).await.unwrap();
    assert!(!directory.mark_ended(&id, Some("g-1"), "agent").await.unwrap(), "the next chat is not open yet");
    assert_eq!(directory.mark_opened(&id, &chat("g-2")).await.unwrap(), Claim::Ours);
    assert!(!directory.mark_ended(&id, Some("g-1"), "agent").await.unwrap());
    assert_eq!(found(&directory, &id).await.state, ConversationState::Waiting);
}

async fn a_conversation_is_reopened_after_its_end(place: &Place) {
    let directory = place.open().await;
    let id = waiting(&directory, "c-1", "g-1").await;
    assert!(directory.mark_ended(&id, None, "user").await.unwrap());
    directory.mark_requested(&id, Origin::BotKit, None).await.unwrap();
    let again = found(&directory, &id).await;
    assert_eq!((again.state, again.origin), (ConversationState::Requested, Origin::BotKit));
    assert_eq!((&again.group, &again.number, &again.queue_id), (&None, &None, &None));
    assert_eq!((&again.position, &again.wait, &again.reason), (&None, &None, &None));
    assert_eq!(directory.find_by_group("g-1").await.unwrap().as_ref(), Some(&again), "still its own chat");
    assert_eq!(directory.mark_opened(&id, &chat("g-2")).await.unwrap(), Claim::Ours);
    for group in ["g-1", "g-2"] {
        let owner = directory.find_by_group(group).await.unwrap().unwrap();
        assert_eq!((owner.id, owner.group.as_deref()), (id.clone(), Some("g-2")));
    }
    assert!(directory.mark_failed(&id, "no_agent", Changes::default()).await.unwrap());
    // A request over the handoff API never reopens a conversation of a bot.
    directory.mark_requested(&id, Origin::Api, None).await.unwrap();
    assert_eq!(found(&directory, &id).await.state, ConversationState::Failed);
    directory.mark_requested(&id, Origin::BotKit, None).await.unwrap();
    assert_eq!(found(&directory, &id).await.state, ConversationState::Requested);
}

async fn one_request_of_many_begins_the_conversation(place: &Place) {
    let directory = place.open().await;
    at_once(20, |caller| {
        let directory = directory.clone();
        async move {
            directory.mark_requested(&id("c-1"), Origin::Api, Some(&format!("q-{caller}"))).await.unwrap()
        }
    })
    .await;
    let first = found(&directory, &id("c-1")).await;
    directory.mark_requested(&id("c-1"), Origin::Api, Some("q-late")).await.unwrap();
    assert_eq!(found(&directory, &id("c-1")).await, first);
}

async fn each_conversation_is_due_to_one_caller(place: &Place) {
    const CONVERSATIONS: usize = 60;
    let directories = [place.open().await, place.open().await];
    for number in 0..CONVERSATIONS {
        waiting(&directories[0], &format!("c-{number}"), &format!("g-{number}")).await;
    }
    let now = later(60);
    // A caller that gets nothing does not wait for the work of another caller. Each caller therefore asks until all
    // have got nothing.
    let handed: Vec<_> = at_once(6, |caller| {
        let directory = directories[caller % 2].clone();
        async move {
            let mut mine = Vec::new();
            loop {
                let due = directory.find_due(now, WAITING_EVERY, ACTIVE_EVERY, 7).await.unwrap();
                if due.is_empty() {
                    return mine;
                }
                mine.extend(due.into_iter().map(|conversation| conversation.id));
            }
        }
    })
    .await
    .concat();
    assert_eq!(handed.len(), CONVERSATIONS, "handed out twice, or not at all");
    assert_eq!(handed.into_iter().collect::<BTreeSet<_>>().len(), CONVERSATIONS);
    let next = now.checked_add(SignedDuration::from_secs(5)).unwrap();
    let again = directories[1].find_due(next, WAITING_EVERY, ACTIVE_EVERY, 1_000).await.unwrap();
    assert_eq!(again.len(), CONVERSATIONS, "the next interval");
}

async fn a_question_about_a_queue_has_one_answer(place: &Place) {
    let (ingress, worker) = (place.open().await, place.open().await);
    let ask = async || ingress.ask_about_queue("q", later(0), later(-60)).await.unwrap();
    let first = ask().await;
    assert_eq!(worker.claim_queue_questions().await.unwrap(), [("q".to_owned(), first)]);
    assert!(worker.claim_queue_questions().await.unwrap().is_empty(), "claimed already");
    assert_eq!(ingress.queue_answer("q", first).await.unwrap(), None);
    worker.answer_queue_question("q", first, "one").await.unwrap();
    assert_eq!(ingress.queue_answer("q", first).await.unwrap().as_deref(), Some("one"));
    // The same queue again: the old answer is no answer.
    let second = ask().await;
    assert_eq!(ingress.queue_answer("q", second).await.unwrap(), None);
    assert_eq!(worker.claim_queue_questions().await.unwrap(), [("q".to_owned(), second)]);
    worker.answer_queue_question("q", second, "two").await.unwrap();
    worker.answer_queue_question("q", first, "late").await.unwrap();
    assert_eq!(ingress.queue_answer("q", first).await.unwrap().as_deref(), Some("two"));
    ingress.ask_about_queue("other", later(0), later(60)).await.unwrap();
    assert_eq!(ingress.queue_answer("q", first).await.unwrap(), None, "forgotten");
}

async fn polling_has_two_rhythms(place: &Place) {
    let directory = place.open().await;
    waiting(&directory, "waits", "g-1").await;
    let active = waiting(&directory, "talks", "g-2").await;
    let seen = Observation { active: true, ..Observation::default() };
    directory.record_observation(&active, "g-2", &seen).await.unwrap();
    directory.mark_requested(&id("requested"), Origin::Api, None).await.unwrap();
    let over = waiting(&directory, "over", "g-3").await;
    directory.mark_ended(&over, None, "user").await.unwrap();
    let due = async |seconds| {
        let mut due = directory.find_due(later(seconds), WAITING_EVERY, ACTIVE_EVERY, 10).await.unwrap();
        due.sort_by(|a, b| a.id.cmp(&b.id));
        due
    };
    assert_eq!(ids(&due(0).await), Vec::<&str>::new(), "just opened: nothing new to see");
    assert_eq!(ids(&due(10).await), ["waits"]);
    assert_eq!(ids(&due(12).await), Vec::<&str>::new());
    assert_eq!(ids(&due(100).await), ["talks", "waits"]);
}

async fn a_user_without_the_agent_waits_again(place: &Place) {
    let directory = place.open().await;
    let waits = waiting(&directory, "waits", "g-1").await;
    let talks = waiting(&directory, "talks", "g-2").await;
    let seen = Observation { active: true, ..Observation::default() };
    directory.record_observation(&talks, "g-2", &seen).await.unwrap();
    place.execute("UPDATE conversations SET opened_at = 0, waiting_since = 0").await;
    let overdue = async |seconds| directory.find_overdue(later(seconds), 10).await.unwrap();
    assert_eq!(ids(&overdue(-60).await), ["waits"]);
    // The agent of a long chat hands the chat back. The user has waited for a moment, not since the request.
    directory.record_observation(&talks, "g-2", &Observation::default()).await.unwrap();
    assert_eq!(ids(&overdue(-60).await), ["waits"]);
    assert_eq!(overdue(60).await.len(), 2);
    // A row of an older version.
    place.execute("UPDATE conversations SET waiting_since = NULL").await;
    assert_eq!(overdue(-60).await.len(), 2);
    assert_eq!(found(&directory, &waits).await.waiting_since, Timestamp::UNIX_EPOCH);
}

async fn due_takes_the_longest_waiting_first(place: &Place) {
    let directory = place.open().await;
    for (name, group) in [("first", "g-1"), ("second", "g-2")] {
        waiting(&directory, name, group).await;
    }
    let one = directory.find_due(later(100), WAITING_EVERY, ACTIVE_EVERY, 1).await.unwrap();
    waiting(&directory, "third", "g-3").await;
    let rest = directory.find_due(later(102), WAITING_EVERY, ACTIVE_EVERY, 2).await.unwrap();
    assert_eq!((one.len(), rest.len()), (1, 2));
    assert!(rest.iter().all(|conversation| conversation.id != one[0].id));
    assert!(directory.find_due(later(103), WAITING_EVERY, ACTIVE_EVERY, 0).await.unwrap().is_empty());
}

async fn delivered_messages_are_remembered(place: &Place) {
    let directory = place.open().await;
    let (one, other) = (MessageId::derived("servicenow", "1"), MessageId::derived("servicenow", "2"));
    assert!(!directory.is_done(DedupKey::Delivered(one)).await.unwrap());
    at_once(10, |_| {
        let directory = directory.clone();
        async move { directory.mark_done(DedupKey::Delivered(one), None, later(0)).await.unwrap() }
    })
    .await;
    assert!(directory.is_done(DedupKey::Delivered(one)).await.unwrap());
    assert!(!directory.is_done(DedupKey::Delivered(other)).await.unwrap());
}

async fn each_fact_is_remembered_by_itself(place: &Place) {
    let directory = place.open().await;
    let (one, other) = (MessageId::derived("servicenow", "1"), MessageId::derived("servicenow", "2"));
    let (first, second) = (PayloadDigest::of(b"first"), PayloadDigest::of(b"second"));
    let died = |replays| DedupKey::DeadLettered { message: one, replays };
    directory.mark_done(DedupKey::Delivered(one), Some(first), later(0)).await.unwrap();
    directory.mark_done(DedupKey::Delivered(one), Some(second), later(1)).await.unwrap();
    directory.mark_done(died(1), None, later(0)).await.unwrap();
    let keys = [DedupKey::Delivered(one), DedupKey::Forwarded(one), died(0), died(1)];
    let found = directory.find_done(&keys).await.unwrap();
    let mut found: Vec<_> = found.into_iter().map(|done| (done.key, done.digest)).collect();
    found.sort();
    assert_eq!(
        found,
        [(DedupKey::Delivered(one), Some(first)), (died(1), None)],
        "the first note of a fact stays"
    );
    assert_eq!(directory.find_done(&[]).await.unwrap(), []);

    // More keys than one statement queries.
    let many: Vec<MessageId> = (0..150).map(|n| MessageId::derived("test", &n.to_string())).collect();
    for message in &many {
        directory.mark_done(DedupKey::Delivered(*message), None, later(0)).await.unwrap();
    }
    let keys: Vec<DedupKey> =
        many.iter().chain([&other]).map(|message| DedupKey::Delivered(*message)).collect();
    assert_eq!(directory.find_done(&keys).await.unwrap().len(), 150);
}

/// The tables of the versions 5 and 6.
async fn drop_later_tables(place: &Place) {
    for statement in
        ["DROP TABLE incidents", "DROP TABLE oauth_tokens", "DROP TABLE queue_checks", "DROP TABLE journal"]
    {
        place.execute(statement).await;
    }
}

/// A directory of version 3, and one of version 4.
async fn an_older_directory_is_brought_up_to_date(place: &Place) {
    place.open().await.close().await;
    place.execute("DROP TABLE dedup_keys").await;
    place
        .execute(
            "CREATE TABLE delivered_messages (message_id TEXT PRIMARY KEY, delivered_at BIGINT NOT NULL)",
        )
        .await;
    drop_later_tables(place).await;
    place.execute("DELETE FROM directory_version WHERE version >= 4").await;
    let message = MessageId::parse("018f0000-0000-7000-8000-000000000001").unwrap();
    place
        .execute(
            "INSERT INTO delivered_messages VALUES ('018f0000-0000-7000-8000-000000000001', 1700000000000)",
        )
        .await;
    let directory = place.open().await;
    assert!(directory.is_done(DedupKey::Delivered(message)).await.unwrap());
    assert!(!directory.is_done(DedupKey::Forwarded(message)).await.unwrap());
    directory.close().await;

    drop_later_tables(place).await;
    place.execute("DELETE FROM directory_version WHERE version >= 5").await;
    place
        .execute(
            "INSERT INTO dedup_keys (dedup_key, done_at, digest) VALUES
             ('delivered:018f0000-0000-7000-8000-000000000001', 1700000000000, NULL),
             ('forwarded:018f0000-0000-7000-8000-000000000001', 1700000000000, NULL),
             ('answered:018f0000-0000-7000-8000-000000000001', 1700000000000, NULL),
             ('dead-lettered:018f0000-0000-7000-8000-000000000001:12', 1700000000000, NULL),
             ('nothing-to-send:018f0000-0000-7000-8000-000000000001:3', 1700000000000, NULL),
             ('internal:018f0000-0000-7000-8000-000000000001', 1700000000000, NULL)",
        )
        .await;
    let directory = place.open().await;
    let keys = [
        DedupKey::Delivered(message),
        DedupKey::Forwarded(message),
        DedupKey::Answered(message),
        DedupKey::DeadLettered { message, replays: 12 },
        DedupKey::NothingToSend { message, replays: 3 },
        DedupKey::Internal(message),
    ];
    for key in keys {
        assert!(directory.is_done(key).await.unwrap(), "{key:?}");
    }
    assert_eq!(directory.find_done(&keys).await.unwrap().len(), keys.len());
    assert!(!directory.is_done(DedupKey::DeadLettered { message, replays: 1 }).await.unwrap());
    let journal = directory.journal_of_message(message).await.unwrap();
    assert_eq!(journal.len(), 5, "{journal:?}");
    assert!(
        journal.iter().all(|entry| entry.kind.is_none() && entry.settled_at.as_second() == 1_700_000_000)
    );
}

async fn the_journal_keeps_how_a_message_was_settled(place: &Place) {
    let directory = place.open().await;
    let conversation = waiting(&directory, "c-1", "g-1").await;
    let trace = Trace {
        request_id: RequestId::parse("r-1"),
        parent: TraceParent::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    };
    let message = |number: &str, kind, destination, lane: &str| Message {
        trace: trace.clone(),
        ..Message::new(
            MessageId::derived("test", number),
            kind,
            Destination::parse(destination).unwrap(),
            LaneKey::parse(lane).unwrap(),
            "{\"message\":\"private words\"}",
        )
    };
    let sent = message("1", Kind::HandoffMessage, "servicenow", "c-1").with_digest();
    let heard = message("2", Kind::CallbackMessage, "xo", "g-1");
    let after = SettledAfter { attempts: 3, status: Some(503), reason: Some(DeadReason::Exhausted) };
    let died = DedupKey::DeadLettered { message: sent.id, replays: 0 };
    for (message, fact, after) in [
        (&sent, died, after),
        (&sent, DedupKey::Delivered(sent.id), SettledAfter { attempts: 1, ..SettledAfter::default() }),
        (&heard, DedupKey::Forwarded(heard.id), SettledAfter::default()),
    ] {
        let entry = JournalEntry::of(message, fact, after).unwrap();
        directory.record(Changes::default().settled(&entry)).await.unwrap();
    }
    assert!(JournalEntry::of(&sent, DedupKey::Internal(sent.id), after).is_none());
    let rows = directory.journal_of_message(sent.id).await.unwrap();
    assert_eq!(rows, directory.journal_of_chat("c-1").await.unwrap());
    let died = rows.iter().find(|row| row.outcome == JournalOutcome::DeadLettered).unwrap();
    assert_eq!((died.kind, died.destination.as_deref()), (Some(Kind::HandoffMessage), Some("servicenow")));
    assert_eq!((died.attempts, died.status, died.reason), (Some(3), Some(503), Some(DeadReason::Exhausted)));
    assert_eq!((died.accepted_at, died.request_id.as_deref()), (Some(sent.accepted_at), Some("r-1")));
    assert_eq!(died.trace_id.as_deref(), Some("0af7651916cd43dd8448eb211c80319c"));
    assert_eq!(died.digest, sent.digest);
    assert_eq!(directory.journal_of_chat("g-1").await.unwrap().len(), 1);

    // What belongs to a change is written only with the change.
    assert!(!directory.erase("c-1", false).await.unwrap(), "the conversation is open");
    assert_eq!(directory.journal_of_chat("c-1").await.unwrap(), rows);

    // An erased conversation leaves the rows, by which repeats are recognised, and no name.
    assert!(directory.erase("c-1", true).await.unwrap());
    for name in ["c-1", "g-1"] {
        assert_eq!(directory.journal_of_chat(name).await.unwrap(), []);
    }
    assert!(directory.is_done(DedupKey::Delivered(sent.id)).await.unwrap());
    assert_eq!(directory.journal_of_message(sent.id).await.unwrap()[0].request_id, None);
    assert_eq!(directory.find(&conversation).await.unwrap(), None);
}

async fn one_conversation_is_erased_with_its_rows(place: &Place) {
    let directory = place.open().await;
    let one = waiting(&directory, "one", "g-1").await;
    let other = waiting(&directory, "other", "g-2").await;
    let handle = serde_json::json!({
        "bot_id": "b", "component_id": "default", "request_id": "r-1", "base_url": "https://xo.example", "send_user_message_url": "https://xo.example/u"
    });
    let handle: ReplyHandle = serde_json::from_value(handle).unwrap();
    directory.save_reply_handle(&one, &handle, later(0)).await.unwrap();
    assert_eq!(directory.ids("g-1").await.unwrap(), ["one"]);
    assert_eq!(directory.ids("ims0000123").await.unwrap().len(), 2, "both chats have this number");
    assert_eq!(directory.ids("nothing").await.unwrap(), Vec::<String>::new());
    let rows = directory.rows("one").await.unwrap();
    assert_eq!((rows.groups, rows.reply_handles), (vec!["g-1".to_owned()], 1));

    assert!(!directory.erase("one", false).await.unwrap(), "the conversation is open");
    directory.mark_ended(&one, None, "user").await.unwrap();
    assert!(directory.erase("one", false).await.unwrap());
    assert!(!directory.erase("one", true).await.unwrap(), "nothing is left");
    assert_eq!(directory.find(&one).await.unwrap(), None);
    assert!(!directory.group_known("g-1").await.unwrap());
    assert!(directory.reply_handle(&one).await.unwrap().is_none());
    assert_eq!(directory.rows("one").await.unwrap().reply_handles, 0);
    assert!(directory.find(&other).await.unwrap().is_some() && directory.group_known("g-2").await.unwrap());
}

async fn only_what_is_over_is_forgotten(place: &Place) {
    let directory = place.open().await;
    let messages: Vec<MessageId> = (0..1_500).map(|_| MessageId::fresh()).collect();
    for message in &messages {
        directory.mark_done(DedupKey::Delivered(*message), None, later(-100)).await.unwrap();
    }
    let recent = MessageId::fresh();
    directory.mark_done(DedupKey::Delivered(recent), None, later(0)).await.unwrap();
    let open = waiting(&directory, "open", "g-1").await;
    let over = waiting(&directory, "over", "g-2").await;
    directory.mark_ended(&over, None, "user").await.unwrap();

    directory.mark_done(DedupKey::Internal(recent), None, later(-100)).await.unwrap();
    assert_eq!(directory.forget(later(-50), later(-50), later(-50)).await.unwrap(), 1_501);
    let before = directory.commits();
    assert_eq!(directory.forget(later(-50), later(-50), later(-50)).await.unwrap(), 0);
    assert_eq!(directory.commits(), before, "nothing is old, so nothing is written");
    assert!(!directory.is_done(DedupKey::Delivered(messages[0])).await.unwrap());
    assert!(directory.is_done(DedupKey::Delivered(recent)).await.unwrap());
    assert!(directory.find(&over).await.unwrap().is_some(), "over, but not for long enough");

    assert_eq!(directory.forget(later(-50), later(-50), later(50)).await.unwrap(), 1);
    assert_eq!(directory.find(&over).await.unwrap(), None);
    assert!(!directory.group_known("g-2").await.unwrap());
    assert!(directory.find(&open).await.unwrap().is_some());
    assert!(directory.group_known("g-1").await.unwrap());
}

async fn counts_and_lists(place: &Place) {
    let directory = place.open().await;
    assert_eq!(directory.counts().await.unwrap().len(), ConversationState::ALL.len());
    directory.mark_requested(&id("c-0"), Origin::Api, None).await.unwrap();
    waiting(&directory, "c-1", "g-1").await;
    let over = waiting(&directory, "c-2", "g-2").await;
    directory.mark_ended(&over, None, "user").await.unwrap();
    let counts: Vec<u64> = directory.counts().await.unwrap().into_values().collect();
    assert_eq!(counts, [1, 1, 0, 1, 0]);
    let all = directory.list(&ListFilter { state: None, limit: 10 }).await.unwrap();
    assert_eq!(all.len(), 3);
    assert!(all.is_sorted_by(|a, b| a.updated_at >= b.updated_at));
    assert_eq!(directory.list(&ListFilter { state: None, limit: 2 }).await.unwrap(), all[..2]);
    let ended =
        directory.list(&ListFilter { state: Some(ConversationState::Ended), limit: 10 }).await.unwrap();
    assert_eq!(ids(&ended), ["c-2"]);
}

async fn odd_texts_are_kept(place: &Place) {
    let directory = place.open().await;
    let id = id(&"한'\"%;--".repeat(20));
    directory.mark_requested(&id, Origin::Api, None).await.unwrap();
    let opened = OpenedChat { wait: Some("a\0b 'x' \u{1F600}".to_owned()), ..chat("g\0'1") };
    assert_eq!(directory.mark_opened(&id, &opened).await.unwrap(), Claim::Ours);
    let kept = directory.find_by_group("g\0'1").await.unwrap().unwrap();
    assert_eq!((kept.id, kept.wait.as_deref()), (id, Some("ab 'x' \u{1F600}")));
}

async fn a_newer_schema_is_refused(place: &Place) {
    place.open().await.close().await;
    place.execute("INSERT INTO directory_version (version) VALUES (99)").await;
    let error = Directory::open(&DirectorySettings { url: place.url() }).await.unwrap_err();
    assert!(matches!(&error, DirectoryError::Mismatch(why) if why.contains("version 99")), "{error}");
}

async fn a_closed_directory_is_unavailable(place: &Place) {
    let directory = place.open().await;
    directory.close().await;
    let error = directory.find(&id("c-1")).await.unwrap_err();
    assert!(matches!(error, DirectoryError::Unavailable(_)), "{error}");
}

/// As many writes as there are lanes: far fewer commits.
async fn writes_at_the_same_time_share_commits(place: &Place) {
    const WRITES: usize = 400;
    let directory = place.open().await;
    let before = directory.commits();
    let messages: Vec<MessageId> = (0..WRITES).map(|_| MessageId::fresh()).collect();
    waiting(&directory, "c-1", "g-1").await;
    let opened = directory.commits();
    assert!((1..=3).contains(&(opened - before)), "a write without company does not wait for others");
    at_once(WRITES, |number| {
        let (directory, message) = (directory.clone(), messages[number]);
        async move {
            let changes = Changes::default()
                .relayed("g-1", &format!("m-{number}"))
                .done(DedupKey::Delivered(message), None)
                .poll_soon(&id("c-1"));
            directory.record(changes).await.unwrap();
        }
    })
    .await;
    let commits = directory.commits() - opened;
    assert!(commits <= 20, "{commits} commits for {WRITES} writes");
    let keys: Vec<DedupKey> = messages.into_iter().map(DedupKey::Delivered).collect();
    assert_eq!(directory.find_done(&keys).await.unwrap().len(), WRITES);
    assert!(directory.last_relayed("g-1").await.unwrap().is_some());
}

/// What a crash leaves: each answered write is visible to another process at once.
async fn an_answered_write_is_committed(place: &Place) {
    let (writer, other) = (place.open().await, place.open().await);
    at_once(50, |_| {
        let (writer, other) = (writer.clone(), other.clone());
        async move {
            let key = DedupKey::Delivered(MessageId::fresh());
            assert!(writer.mark_done(key, None, later(0)).await.unwrap(), "it is new");
            assert!(other.is_done(key).await.unwrap(), "answered before its commit");
        }
    })
    .await;
}

async fn a_refused_write_fails_alone(place: &Place) {
    let directory = place.open().await;
    let refused = MessageId::parse("018f0000-0000-7000-8000-000000000001").unwrap();
    match place {
        Place::Sqlite(_) => {
            place
                .execute(
                    "CREATE TRIGGER refuse BEFORE INSERT ON dedup_keys
                     WHEN NEW.dedup_key LIKE '%018f0000-0000-7000-8000-000000000001'
                     BEGIN SELECT RAISE(ABORT, 'refused'); END",
                )
                .await;
        }
        Place::Postgres { .. } => {
            place
                .execute(
                    "ALTER TABLE dedup_keys ADD CONSTRAINT refuse
                     CHECK (dedup_key NOT LIKE '%018f0000-0000-7000-8000-000000000001')",
                )
                .await;
        }
    }
    let written = at_once(60, |number| {
        let directory = directory.clone();
        let message = if number == 30 { refused } else { MessageId::fresh() };
        async move {
            let changes = Changes::default().done(DedupKey::Internal(message), None).touched("g-1");
            (message, directory.record(changes).await.is_ok())
        }
    })
    .await;
    for (message, is_written) in written {
        assert_eq!(is_written, message != refused);
        assert_eq!(directory.is_done(DedupKey::Internal(message)).await.unwrap(), is_written);
    }
}

/// Names that need care in a list of lookups are among them.
async fn lookups_at_the_same_time_get_their_own_rows(place: &Place) {
    const LOOKUPS: usize = 120;
    let directory = place.open().await;
    let names = ["c-1", "quote\"d", "b\\ack", "komma,", "한국어"];
    for (number, name) in names.into_iter().enumerate() {
        waiting(&directory, name, &format!("g-{name}")).await;
        directory.mark_relayed(&format!("g-{name}"), &format!("m-{number}")).await.unwrap();
    }
    let looked_up = at_once(LOOKUPS, |number| {
        let (directory, name) = (directory.clone(), names.get(number % 6).copied().unwrap_or("unknown"));
        async move {
            let (message, group) = (MessageId::fresh(), format!("g-{name}"));
            let key = DedupKey::Delivered(message);
            if number % 2 == 0 {
                directory.mark_done(key, None, later(0)).await.unwrap();
            }
            let lookup = match number % 4 {
                0 | 1 => LookupName::Group(&group),
                _ => LookupName::Conversation { id: name, with_reply: false },
            };
            let (done, known) = directory.look_up(lookup, message, &[key]).await.unwrap();
            let (found, last) = known
                .within(async {
                    let found = directory.find_by_group(&group).await.unwrap();
                    (found.map(|found| found.id.to_string()), directory.last_relayed(&group).await.unwrap())
                })
                .await;
            (number, done.len(), found, last)
        }
    })
    .await;
    assert_eq!(looked_up.len(), LOOKUPS);
    for (number, done, found, last) in looked_up {
        assert_eq!(done, usize::from(number % 2 == 0), "lookup {number}");
        let name = names.get(number % 6).map(|name| (*name).to_owned());
        assert_eq!(last, name.as_ref().map(|_| format!("m-{}", number % 6)), "lookup {number}");
        assert_eq!(found, name, "lookup {number}");
    }
}

async fn an_attempt_reads_its_rows_once(place: &Place) {
    let (directory, other) = (place.open().await, place.open().await);
    let id = waiting(&directory, "c-1", "g-1").await;
    directory.mark_relayed("g-1", "m-1").await.unwrap();
    let (one, two) = (MessageId::derived("test", "1"), MessageId::derived("test", "2"));
    let digest = PayloadDigest::of(b"first");
    directory.mark_done(DedupKey::Delivered(one), Some(digest), later(0)).await.unwrap();
    directory.mark_done(DedupKey::Answered(one), None, later(0)).await.unwrap();
    let keys = [DedupKey::Delivered(one), DedupKey::Answered(one), DedupKey::Delivered(two)];
    let before = found(&directory, &id).await;

    for name in [LookupName::Conversation { id: "c-1", with_reply: true }, LookupName::Group("g-1")] {
        let (done, known) = directory.look_up(name, one, &keys).await.unwrap();
        let mut done: Vec<_> = done.into_iter().map(|done| (done.key, done.digest)).collect();
        done.sort();
        assert_eq!(done, [(keys[0], Some(digest)), (keys[1], None)]);
        known
            .within(async {
                let seen = Observation { position: Some(9), ..Observation::default() };
                other.record_observation(&id, "g-1", &seen).await.unwrap();
                other.mark_relayed("g-1", "m-2").await.unwrap();
            })
            .await;
        // The other process outdated the snapshot only inside of the attempt that wrote.
        let (_, known) = directory.look_up(name, one, &[]).await.unwrap();
        let seen = |position| Observation { position: Some(position), ..Observation::default() };
        other.record_observation(&id, "g-1", &seen(7)).await.unwrap();
        known
            .within(async {
                assert_eq!(found(&directory, &id).await.position, Some(9), "read with the lookup");
                assert_eq!(directory.find_by_group("g-1").await.unwrap().unwrap().position, Some(9));
                assert_eq!(directory.last_relayed("g-1").await.unwrap().as_deref(), Some("m-2"));
                // A decision is made on the newest row.
                directory.record_observation(&id, "g-1", &seen(5)).await.unwrap();
                assert_eq!(found(&directory, &id).await.position, Some(5), "the attempt itself wrote");
            })
            .await;
    }
    let (done, known) = directory.look_up(LookupName::Group("g-unknown"), two, &keys[2..]).await.unwrap();
    assert_eq!(done, []);
    assert_eq!(known.within(directory.find_by_group("g-unknown")).await.unwrap(), None);
    assert_ne!(found(&directory, &id).await, before);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: tests/run starts it"]
async fn a_lost_server_is_unavailable_until_it_is_back() {
    let Some(place) = Place::postgres().await else { return };
    let directory = place.open().await;
    let id = waiting(&directory, "c-1", "g-1").await;
    let throw_out = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid()";
    place.execute(throw_out).await;
    assert_eq!(
        found(&directory, &id).await.state,
        ConversationState::Waiting,
        "a lost connection is replaced in silence"
    );
    place.execute(throw_out).await;
    directory.poll_soon(&id).await.unwrap();

    place.on_server("ALTER DATABASE {name} ALLOW_CONNECTIONS false").await;
    place.on_server("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'").await;
    let error = directory.find(&id).await.unwrap_err();
    assert!(matches!(error, DirectoryError::Unavailable(_)), "{error}");
    let error = directory.poll_soon(&id).await.unwrap_err();
    assert!(matches!(error, DirectoryError::Unavailable(_)), "{error}");
    place.on_server("ALTER DATABASE {name} ALLOW_CONNECTIONS true").await;
    directory.poll_soon(&id).await.unwrap();
    assert_eq!(found(&directory, &id).await.state, ConversationState::Waiting);
    place.remove().await;
}

/// A busy reader keeps its connection and does not test the connection before each query.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: tests/run starts it"]
async fn a_lookup_is_repeated_if_its_connection_was_lost_on_postgres() {
    let Some(place) = Place::postgres().await else { return };
    let directory = place.open().await;
    waiting(&directory, "c-1", "g-1").await;
    let (is_over, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    let asks = async {
        while !is_over.load(Ordering::Relaxed) {
            let lookup = directory.look_up(LookupName::Group("g-1"), MessageId::fresh(), &[]);
            let (_, known) = lookup.await.unwrap();
            let found = known.within(directory.find_by_group("g-1")).await.unwrap();
            assert_eq!(found.unwrap().id.as_str(), "c-1");
            answers.fetch_add(1, Ordering::Relaxed);
        }
    };
    let throws_out = async {
        for _ in 0..20 {
            // The connection of the last lookup. If the server ended all, the repetition could meet another that is about to end.
            let last = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY query_start DESC LIMIT 1";
            place.execute(last).await;
            let before = answers.load(Ordering::Relaxed);
            let goes_on = async || {
                (answers.load(Ordering::Relaxed) > before + 5)
                    .then_some(())
                    .ok_or_else(|| "no answer".to_owned())
            };
            eventually("answers on a new connection", PATIENCE, goes_on).await;
        }
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(asks, throws_out);
    place.remove().await;
}

/// A process that freezes or loses its network in the middle of a transaction keeps rows locked. The next worker needs them.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: tests/run starts it"]
async fn the_transaction_of_a_lost_process_ends() {
    let database = Database::create().await;
    let open = async |url: String| {
        let url = DirectoryUrl::Postgres(SecretString::from(url).into());
        Directory::open(&DirectorySettings { url }).await.unwrap()
    };
    let proxy = Proxy::start(database.address()).await;
    let (lost, next) = (open(database.url_through(proxy.addr())).await, open(database.url()).await);
    let id = id("c-1");
    next.mark_requested(&id, Origin::Api, Some("q-1")).await.unwrap();
    let mut lock = database.lock_row("conversations", "c-1").await;
    // Two statements in one transaction: the row of the conversation, then the key.
    let key = DedupKey::Internal(MessageId::fresh());
    let written = lost.mark_failed(&id, "no_agent", Changes::default().done(key, None));
    let loses_its_network = async {
        lock.keeps_waiting("UPDATE conversations%").await;
        proxy.black_hole();
        lock.release().await;
    };
    let (written, ()) = tokio::join!(written, loses_its_network);
    assert!(matches!(written, Err(DirectoryError::Unavailable(_))), "{written:?}");
    eventually("the next process to write", PATIENCE, async || {
        let written = next.mark_failed(&id, "expired", Changes::default()).await;
        written.map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(
        found(&next, &id).await.reason.as_deref(),
        Some("expired"),
        "the lost transaction wrote nothing"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_file_is_unavailable_until_it_is_free() {
    let place = Place::sqlite();
    let directory = place.open().await;
    let DirectoryUrl::Sqlite(path) = place.url() else { unreachable!() };
    let mut other = SqliteConnection::connect(&path.display().to_string()).await.unwrap();
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    let error = directory.mark_requested(&id("c-1"), Origin::Api, None).await.unwrap_err();
    assert!(matches!(error, DirectoryError::Unavailable(_)), "{error}");
    other.execute("ROLLBACK").await.unwrap();
    directory.mark_requested(&id("c-1"), Origin::Api, None).await.unwrap();
}

/// The address of a port without a listener.
async fn nobody() -> std::net::SocketAddr {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

async fn cannot_open(url: DirectoryUrl) -> DirectoryError {
    let settings = DirectorySettings { url };
    let error = Directory::open(&settings).await.unwrap_err();
    for text in [format!("{settings:?}"), error.to_string(), format!("{error:?}")] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_url_is_told_plainly_and_without_the_password() {
    let postgres = |url: String| DirectoryUrl::Postgres(url.into());
    let error = cannot_open(postgres("postgres://causeway:hunter2@db:port/x".to_owned())).await;
    assert!(matches!(&error, DirectoryError::Mismatch(why) if why.contains("directory.url")), "{error}");
    let error = cannot_open(postgres("postgres://causeway:hunter2/@db/x".to_owned())).await;
    assert!(matches!(&error, DirectoryError::Mismatch(why) if why.contains("percent-encoded")), "{error}");

    let address = nobody().await;
    let error = cannot_open(postgres(format!("postgres://causeway:hunter2@{address}/x"))).await;
    let port = address.port().to_string();
    assert!(matches!(&error, DirectoryError::Unavailable(why) if why.contains(&port)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: tests/run starts it"]
async fn a_server_without_our_database_needs_an_operator() {
    let Some(place) = Place::postgres().await else { return };
    let Place::Postgres { server, .. } = &place else { unreachable!() };
    let mut url = server.clone();
    url.set_path("no_such_database");
    url.set_password(Some("hunter2")).unwrap();
    let error = cannot_open(DirectoryUrl::Postgres(url.as_str().to_owned().into())).await;
    assert!(matches!(&error, DirectoryError::Refused(why) if why.contains("no_such_database")), "{error}");
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_opened_is_named() {
    let folder = TempDir::new().unwrap();
    let no_file = folder.path().to_owned();
    let no_folder = folder.path().join("file");
    std::fs::write(&no_folder, "this is no database, and no folder either".repeat(100)).unwrap();
    for path in [no_file, no_folder.clone(), no_folder.join("directory.db")] {
        let error = cannot_open(DirectoryUrl::Sqlite(path.clone())).await;
        let path = path.display().to_string();
        assert!(matches!(&error, DirectoryError::Mismatch(why) if why.contains(&path)), "{error}");
    }
}
