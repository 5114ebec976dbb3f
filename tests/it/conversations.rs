//! Tests that a conversation lives as documented: one chat for each request, and the bot side receives every message
//! once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use causeway::bridge::{
    BotKitSettings, Deliverer, DelivererParts, DeliverySettings, ReadBack, UnknownGroup, VirtualAgentOptions,
};
use causeway::conversation::{Directory, DirectorySettings, DirectoryUrl, OpenedChat, Origin};
use causeway::delivery::{Gates, PriorAttempts};
use causeway::message::{
    BotName, BotSide, ConversationId, DeadReason, Destination, Destinations, Kind, KnownBot, LaneKey,
    Message, MessageId, Outcome,
};
use causeway::platform::{
    HttpClient, HttpSettings, NetworkSettings, ServiceNow, ServiceNowLogin, ServiceNowSettings,
    TokenAlgorithm, Xo, XoBot, XoSettings,
};
use causeway::queue::Queue;
use causeway::queue::embedded::{EmbeddedQueue, EmbeddedSettings};
use causeway::sandbox::{
    AgentAcceptance, AgentSettings, CallbackSettings, FaultRule, Operation, Sandbox, SandboxQueue,
    SandboxSettings, Side,
};
use causeway::telemetry::Metrics;
use serde_json::{Value, json};

use crate::harness::matrix::{Bench, Engine};
use crate::harness::ports;
use crate::harness::postgres::Database;
use crate::harness::relay::{PATIENCE, Plan, Relay};

/// Polls the session state often, and lets ServiceNow post its callbacks.
fn plan(bench: &Bench) -> Plan {
    Plan::on(bench)
        .set("servicenow.poll_waiting", "200ms")
        .set("servicenow.poll_active", "200ms")
        .set("xo.callback_url", "")
}

async fn started(plan: Plan) -> Relay {
    let relay = plan.start().await;
    let url = format!("{}/v1/callbacks/servicenow?token=callback-token", relay.processes[0].public_url());
    relay.sandbox.set_callback(Some(CallbackSettings::to(url)));
    relay
}

/// The events of a conversation at the bot side, in order.
fn told(relay: &Relay, conversation: &str) -> Vec<Value> {
    let entries = relay.sandbox.ledger().events().remove(conversation).unwrap_or_default();
    entries.iter().map(|entry| serde_json::from_str(&entry.body).unwrap()).collect()
}

/// Waits until this many conversations have ended for each reason.
async fn ended_by(relay: &Relay, ends: &[(&str, f64)]) {
    for (reason, count) in ends {
        relay.metric_is("causeway_conversations_ended_total", &[("reason", reason)], |is| is == *count).await;
    }
}

/// The short name of an event: `waiting`, `joined`, `left`, `callback.message`, `callback.ended`, `handoff.failed`.
fn short(event: &Value) -> String {
    event["event"].as_str().or(event["type"].as_str()).unwrap_or_default().to_owned()
}

fn count(relay: &Relay, conversation: &str, what: &str) -> usize {
    told(relay, conversation).iter().filter(|event| short(event) == what).count()
}

async fn hears(relay: &Relay, conversation: &str, what: &str, times: usize) -> Vec<Value> {
    relay
        .until(&format!("{conversation} to hear {what} {times} times"), |relay| {
            let told = told(relay, conversation);
            if told.iter().filter(|event| short(event) == what).count() >= times {
                Ok(())
            } else {
                Err(format!("{told:?}"))
            }
        })
        .await;
    told(relay, conversation).into_iter().filter(|event| short(event) == what).collect()
}

async fn says(relay: &Relay, group: &str, texts: &[&str]) {
    relay
        .until(&format!("{texts:?}"), |relay| {
            let said = relay.said(group);
            if said.len() >= texts.len() { Ok(()) } else { Err(format!("{said:?}")) }
        })
        .await;
    assert_eq!(relay.said(group), texts);
}

fn start_rule() -> FaultRule {
    FaultRule::new(Side::ServiceNow).operation(Operation::Start)
}

fn message_rule() -> FaultRule {
    FaultRule::new(Side::ServiceNow).operation(Operation::Message)
}

async fn chats(relay: &Relay, count: usize) -> Vec<String> {
    relay
        .until(&format!("{count} chats"), |relay| {
            let groups = relay.sandbox.groups();
            if groups.len() >= count { Ok(()) } else { Err(format!("{groups:?}")) }
        })
        .await;
    relay.sandbox.groups()
}

on_every_engine! {
    async fn from_request_to_the_agents_end(bench: Bench) {
        let relay = started(plan(&bench)).await;
        relay.sandbox.script().fail(start_rule().times(1).delay(Duration::from_secs(1)));
        relay.start("c-1").await;
        relay.reaches("c-1", "requested").await;
        relay.reaches("c-1", "waiting").await;
        let group = chats(&relay, 1).await.remove(0);
        relay.sandbox.agent_accept(&group).await.unwrap();
        relay.reaches("c-1", "active").await;
        assert_eq!(relay.conversation("c-1").await.body["agent"], "beth.anglin");
        relay.sandbox.agent_says(&group, "Which laptop?").await.unwrap();
        relay.say("c-1", "the burning one").await;
        says(&relay, &group, &["hello from c-1", "the burning one"]).await;
        relay.sandbox.agent_closes(&group).await.unwrap();
        relay.reaches("c-1", "ended").await;
        let ended = hears(&relay, "c-1", "callback.ended", 1).await;
        assert_eq!(ended[0]["reason"], "agent");
        ended_by(&relay, &[("agent", 1.0), ("user", 0.0)]).await;
        // The greeting, the question, and the system message "has left".
        let messages = hears(&relay, "c-1", "callback.message", 3).await;
        assert_eq!(messages[1]["message"], "Which laptop?");
        let from: Vec<&str> = messages.iter().map(|message| message["from"].as_str().unwrap()).collect();
        assert_eq!(from, ["agent", "agent", "system"]);
        let told = told(&relay, "c-1");
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for event in &told {
            assert_eq!((&event["conversation_id"], &event["group"]), (&json!("c-1"), &json!(group)));
            *kinds.entry(short(event)).or_default() += 1;
        }
        let expected = [("callback.ended", 1), ("callback.message", 3), ("joined", 1), ("waiting", 1)];
        assert_eq!(kinds, expected.map(|(kind, times)| (kind.to_owned(), times)).into());
        assert_eq!(short(&told[0]), "waiting");
        assert_eq!(told[0]["position"], 1);
    }

    async fn the_users_end_and_what_comes_after_it(bench: Bench) {
        let relay = started(plan(&bench)).await;
        let first = relay.open("c-1").await;
        // A second start has no effect while the chat is open.
        relay.start("c-1").await;
        relay.say("c-1", "one").await;
        says(&relay, &first, &["hello from c-1", "one"]).await;
        assert_eq!(relay.sandbox.groups(), std::slice::from_ref(&first));
        relay.sandbox.agent_accept(&first).await.unwrap();
        relay.end("c-1").await;
        relay.reaches("c-1", "ended").await;
        assert_eq!(relay.sandbox.state(&first), Some(7));
        let ended = hears(&relay, "c-1", "callback.ended", 1).await;
        assert_eq!((&ended[0]["reason"], &ended[0]["group"]), (&json!("user"), &json!(first)));
        ended_by(&relay, &[("user", 1.0), ("agent", 0.0)]).await;

        relay.say("c-1", "is anybody there?").await;
        relay.say("c-none", "hello?").await;
        let dead = relay.dead_letters_at_least(2).await;
        let reason = |lane: &str| dead.iter().find(|dead| dead["lane"] == lane).unwrap()["reason"].clone();
        assert_eq!(reason("c-1"), "conversation_over");
        assert_eq!(reason("c-none"), "unknown_conversation");

        let second = relay.open("c-1").await;
        assert_ne!(first, second);
        relay.say("c-1", "again").await;
        says(&relay, &second, &["hello from c-1", "again"]).await;
        // A late message of the first chat's agent is relayed with the first chat's group.
        relay.callback(&first, "one more thing", "late-1").await.id();
        relay.until("the late words", |relay| {
            let late = told(relay, "c-1").into_iter().find(|event| event["message"] == "one more thing");
            late.filter(|event| event["group"] == first.as_str()).map(drop).ok_or_else(|| "not yet".to_owned())
        }).await;
        assert_eq!(relay.conversation("c-1").await.body["servicenow"]["group"], second.as_str());
        assert_eq!(count(&relay, "c-1", "callback.ended"), 1);
    }

    async fn both_ends_at_once_are_told_once(bench: Bench) {
        let relay = started(plan(&bench)).await;
        let names: Vec<String> = (0..4).map(|n| format!("c-{n}")).collect();
        let mut groups = Vec::new();
        for name in &names {
            let group = relay.open(name).await;
            relay.sandbox.agent_accept(&group).await.unwrap();
            groups.push(group);
        }
        for name in &names {
            relay.reaches(name, "active").await;
        }
        for (name, group) in names.iter().zip(&groups) {
            let (_, closed) = tokio::join!(relay.end(name), relay.sandbox.agent_closes(group));
            // The call is refused if the user was faster and the chat is gone. Either end is valid.
            let _ = closed;
        }
        for name in &names {
            relay.reaches(name, "ended").await;
            hears(&relay, name, "callback.ended", 1).await;
            // A repeat would be in the lane before this message.
            relay.callback(&groups[names.iter().position(|other| other == name).unwrap()], "last", name).await.id();
        }
        for name in &names {
            relay.until("the last words", |relay| {
                let told = told(relay, name);
                if told.iter().any(|event| event["message"] == "last") { Ok(()) } else { Err(format!("{told:?}")) }
            }).await;
            assert_eq!(count(&relay, name, "callback.ended"), 1, "{:?}", told(&relay, name));
        }
        assert_eq!(relay.dead_letters().await.len(), 0);
    }

    async fn an_answer_that_got_lost_opens_no_second_chat(bench: Bench) {
        let relay = started(plan(&bench).set("delivery.servicenow.timeout", "1s")).await;
        for (name, lost) in [("c-cut", start_rule().cut()), ("c-hang", start_rule().hang())] {
            relay.sandbox.script().fail(lost.after().times(1).conversation(name));
            let group = relay.open(name).await;
            // Equal texts in a row. The answer of each is lost once.
            let lost = if name == "c-cut" { message_rule().cut() } else { message_rule().hang() };
            relay.sandbox.script().fail(lost.after().times(2).conversation("same"));
            relay.say(name, "same").await;
            relay.say(name, "same").await;
            relay.say(name, "other").await;
            let opening = format!("hello from {name}");
            says(&relay, &group, &[opening.as_str(), "same", "same", "other"]).await;
            relay.sandbox.script().clear();
        }
        assert_eq!(relay.sandbox.groups().len(), 2);
        assert_eq!(relay.dead_letters().await.len(), 0);
    }

    async fn a_kill_between_answer_and_note_opens_no_second_chat(bench: Bench) {
        let mut relay = started(plan(&bench)).await;
        let late = Duration::from_secs(30);
        relay.sandbox.script().fail(start_rule().after().delay(late));
        relay.start("c-1").await;
        let group = chats(&relay, 1).await.remove(0);
        relay.processes[0].running.kill9();
        relay.sandbox.script().clear();
        relay.processes[0].restart();
        relay.ready().await;
        relay.reaches("c-1", "waiting").await;
        hears(&relay, "c-1", "waiting", 1).await;
        relay.sandbox.script().fail(message_rule().after().delay(late));
        relay.say("c-1", "exactly once").await;
        says(&relay, &group, &["hello from c-1", "exactly once"]).await;
        relay.processes[0].running.kill9();
        relay.sandbox.script().clear();
        relay.processes[0].restart();
        relay.ready().await;
        relay.say("c-1", "and on").await;
        says(&relay, &group, &["hello from c-1", "exactly once", "and on"]).await;
        assert_eq!(relay.sandbox.groups(), [group]);
        // A kill may come between the answer to an event and its note. Then the event is sent again, under its id.
        let waiting = hears(&relay, "c-1", "waiting", 1).await;
        assert!(waiting.iter().all(|event| event["id"] == waiting[0]["id"]), "{waiting:?}");
    }

    async fn a_greeting_may_be_faster_than_the_answer(bench: Bench) {
        let relay = started(plan(&bench)).await;
        relay.sandbox.script().fail(start_rule().after().times(1).delay(Duration::from_secs(2)));
        relay.start("c-1").await;
        let group = chats(&relay, 1).await.remove(0);
        relay.sandbox.agent_accept(&group).await.unwrap();
        assert_eq!(relay.conversation("c-1").await.body["servicenow"]["group"], Value::Null);
        let heard = hears(&relay, "c-1", "callback.message", 1).await;
        assert_eq!(heard[0]["message"], AgentSettings::default().greeting);
        assert_eq!(relay.dead_letters().await.len(), 0);
    }

    async fn a_closed_queue_is_told_and_nothing_follows(bench: Bench) {
        let relay = started(plan(&bench)).await;
        let queue = SandboxQueue::default();
        relay.sandbox.set_queue_open(&queue.id, false);
        let start = json!({"type": "start", "conversation_id": "c-1", "message": "help"});
        relay.try_handoff(&start, Some("key")).await.unwrap().id();
        let failed = hears(&relay, "c-1", "handoff.failed", 1).await;
        assert_eq!((&failed[0]["reason"], &failed[0]["detail"]), (&json!("no_agent"), &json!(queue.not_available)));
        relay.reaches("c-1", "failed").await;
        // The same start is posted again, and has been answered already.
        relay.sandbox.set_queue_open(&queue.id, true);
        relay.try_handoff(&start, Some("key")).await.unwrap().id();
        relay.say("c-1", "hello?").await;
        let dead = relay.dead_letters_at_least(1).await;
        assert_eq!(dead[0]["reason"], "conversation_failed", "{dead:?}");
        assert_eq!(relay.conversation("c-1").await.body["state"], "failed");
        assert_eq!((relay.sandbox.groups().len(), count(&relay, "c-1", "handoff.failed")), (0, 1));
        ended_by(&relay, &[("no_agent", 1.0)]).await;
        // A bot's own reason does not become a label.
        relay.open("c-2").await;
        let end = json!({"type": "end", "conversation_id": "c-2", "reason": "the user went for lunch"});
        relay.try_handoff(&end, None).await.unwrap().id();
        relay.reaches("c-2", "ended").await;
        ended_by(&relay, &[("other", 1.0), ("no_agent", 1.0)]).await;
    }
}

/// The state of the chat, the relay progress and the delivery are written together.
#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_message_costs_one_commit() {
    const COMMITS: &str = "causeway_directory_commit_seconds_count";
    let bench = Engine::Embedded.bench().unwrap();
    let relay = started(plan(&bench)).await;
    let group = relay.open("c-1").await;
    relay.sandbox.agent_accept(&group).await.unwrap();
    hears(&relay, "c-1", "joined", 1).await;
    relay.reaches("c-1", "active").await;
    // The latency is measured after the commit.
    let settled = async |kind: &str, count: f64| {
        let labels = [("kind", kind)];
        relay.metric_is("causeway_delivery_latency_seconds_count", &labels, |seen| seen == count).await;
    };
    settled("handoff.start", 1.0).await;
    // The greeting of the agent.
    settled("callback.message", 1.0).await;
    let before = relay.metric(COMMITS, &[]).await;
    for number in 1..=5_u8 {
        relay.say("c-1", "ordinary").await;
        settled("handoff.message", f64::from(number)).await;
        relay.sandbox.agent_says(&group, "ordinary").await.unwrap();
        settled("callback.message", f64::from(number + 1)).await;
    }
    let commits = relay.metric(COMMITS, &[]).await - before;
    // The notice about the agent may be recorded meanwhile.
    assert!((1.0..=12.0).contains(&commits), "{commits} commits for five messages each way");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_line_moves_and_an_agent_may_leave() {
    let bench = Engine::Embedded.bench().unwrap();
    let relay = started(plan(&bench)).await;
    let ahead = relay.open("c-ahead").await;
    let group = relay.open("c-1").await;
    assert_eq!(relay.conversation("c-1").await.body["servicenow"]["position"], 2);
    relay.sandbox.agent_accept(&ahead).await.unwrap();
    let waiting = hears(&relay, "c-1", "waiting", 2).await;
    assert_eq!((&waiting[0]["position"], &waiting[1]["position"]), (&json!(2), &json!(1)));
    relay.sandbox.agent_accept(&group).await.unwrap();
    let joined = hears(&relay, "c-1", "joined", 1).await;
    assert_eq!(joined[0]["agent"], "beth.anglin");
    relay.sandbox.agent_leaves(&group).await.unwrap();
    let left = hears(&relay, "c-1", "left", 1).await;
    assert_eq!(left[0]["agent"], "beth.anglin");
    relay.reaches("c-1", "waiting").await;
    relay.metric_is("causeway_agent_wait_seconds_count", &[], |count| count == 2.0).await;
    // The agent closed the chat before the next poll. The user's next message discovers the end.
    relay.sandbox.agent_closes(&group).await.unwrap();
    relay.reaches("c-1", "ended").await;
    assert_eq!(hears(&relay, "c-1", "callback.ended", 1).await[0]["reason"], "agent");
}

on_every_rabbit! {
    async fn several_workers_share_a_directory(bench: Bench) {
        let database = Database::create().await;
        let relay = started(plan(&bench).set("directory.url", database.url()).apart(2)).await;
        let names: Vec<String> = (0..6).map(|n| format!("c-{n}")).collect();
        for (n, name) in names.iter().enumerate() {
            let group = relay.open(name).await;
            relay.messages(std::slice::from_ref(name), 3, 1).await;
            relay.sandbox.agent_accept(&group).await.unwrap();
            relay.reaches(name, "active").await;
            let opening = format!("hello from {name}");
            let texts = [&opening, &format!("{name} #0"), &format!("{name} #1"), &format!("{name} #2")];
            says(&relay, &group, &texts.map(String::as_str)).await;
            if n % 2 == 0 {
                relay.end(name).await;
            } else {
                relay.sandbox.agent_closes(&group).await.unwrap();
            }
        }
        for name in &names {
            relay.reaches(name, "ended").await;
            hears(&relay, name, "callback.ended", 1).await;
        }
        for name in &names {
            let seen = ["waiting", "joined", "callback.ended"].map(|what| count(&relay, name, what));
            // Positions may change while the users wait. Every other event occurs once.
            assert!(seen[0] >= 1 && seen[1..] == [1, 1], "{name}: {:?}", told(&relay, name));
        }
    }
}

/// A deliverer in this process, for cases that no setting produces.
pub(crate) struct Room {
    pub(crate) deliverer: Arc<Deliverer>,
    pub(crate) directory: Directory,
    pub(crate) queue: Queue,
    pub(crate) sandbox: Sandbox,
    _folder: tempfile::TempDir,
}

pub(crate) async fn room(unknown_group: UnknownGroup) -> Room {
    let folder = tempfile::tempdir().unwrap();
    let listener = tokio::net::TcpListener::bind(ports::free_address()).await.unwrap();
    let agent = AgentSettings { accept: AgentAcceptance::Manual, ..AgentSettings::default() };
    let settings = SandboxSettings { agent, ..SandboxSettings::default() };
    let client = ServiceNowSettings {
        host_url: url::Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap(),
        login: ServiceNowLogin::Basic {
            username: settings.username.clone(),
            password: settings.password.clone().into(),
        },
        queue_id: Some(SandboxQueue::default().id),
    };
    let sandbox = Sandbox::start(listener, settings).await;
    let http = HttpClient::new(&HttpSettings {
        timeout: Duration::from_secs(30),
        user_agent: "test".into(),
        network: NetworkSettings::default(),
    })
    .unwrap();
    let url = DirectoryUrl::Sqlite(folder.path().join("directory.sqlite"));
    let directory = Directory::open(&DirectorySettings { url }).await.unwrap();
    let embedded = EmbeddedSettings {
        data_dir: folder.path().to_owned(),
        tuning: causeway::queue::QueueTuning {
            destinations: Destinations::new([
                Destination::ServiceNow,
                Destination::Events,
                Destination::Callbacks,
                Destination::parse("bot:one").unwrap(),
            ]),
            partitions: 8,
            prefetch: 16,
            publish_timeout: Duration::from_secs(5),
        },
        max_messages: None,
    };
    let queue = Queue::Embedded(EmbeddedQueue::open(embedded).await.unwrap());
    let bot = XoBot {
        bot_id: "st-1".into(),
        app_id: "cs-1".into(),
        client_secret: "secret".into(),
        algorithm: TokenAlgorithm::default(),
    };
    let name = BotName::parse("one").unwrap();
    let bots = vec![KnownBot { bot_id: "st-1".into(), name }];
    let metrics = Arc::new(Metrics::new("embedded").unwrap());
    let parts = DelivererParts {
        xo: Xo::new(http.clone(), XoSettings { bots: vec![bot], ..XoSettings::default() }),
        servicenow: Some(ServiceNow::new(http, client)),
        directory: Some(directory.clone()),
        queue: queue.clone(),
        gates: Gates::new(&queue, &BTreeMap::new(), metrics.clone()),
        metrics,
    };
    let delivery = DeliverySettings {
        routes: causeway::message::routing::QueueRoutes::default(),
        files: causeway::bridge::FileSettings::default(),
        queue_id: Some(SandboxQueue::default().id),
        unknown_group,
        unknown_group_wait: Duration::from_secs(30),
        bot_side: BotSide { two_way: true, bots },
        relays_callbacks: false,
        tells_events: true,
        virtual_agent: VirtualAgentOptions::default(),
        incident: None,
        serves_bots: false,
        bulk_read: false,
        read_back: ReadBack::Always,
        read_rate: 1000.0,
        botkit: BotKitSettings::default(),
    };
    let deliverer = Deliverer::new(parts, delivery);
    Room { deliverer, directory, queue, sandbox, _folder: folder }
}

pub(crate) fn message(kind: Kind, lane: &str, body: &Value) -> Message {
    let destination = if kind.is_for_servicenow() { Destination::ServiceNow } else { Destination::Events };
    Message::new(MessageId::fresh(), kind, destination, LaneKey::parse(lane).unwrap(), body.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_of_an_unknown_group_is_held_then_dead_lettered() {
    let body = json!({"group": "g-foreign", "formatted_message": "x", "sys_id": "s"});
    let fresh = message(Kind::CallbackMessage, "g-foreign", &body);
    let mut old = fresh.clone();
    old.accepted_at = causeway::clock::now().checked_sub(Duration::from_secs(31)).unwrap();
    let held = Outcome::Deferred { at_most: Duration::from_secs(30), then: DeadReason::UnknownConversation };
    let keeps = room(UnknownGroup::DeadLetter).await;
    assert_eq!(keeps.deliverer.attempt(&fresh, PriorAttempts::default()).await.outcome, held);
    assert_eq!(
        keeps.deliverer.attempt(&old, PriorAttempts::default()).await.outcome,
        held,
        "it dies of that"
    );
    let drops = room(UnknownGroup::Drop).await;
    assert_eq!(drops.deliverer.attempt(&fresh, PriorAttempts::default()).await.outcome, held);
    assert_eq!(drops.deliverer.attempt(&old, PriorAttempts::default()).await.outcome, Outcome::Dropped);
}

/// The ingress recorded the user and published the end, and crashed before it published the notice.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_a_chat_is_returned_also_after_a_crash() {
    let room = room(UnknownGroup::DeadLetter).await;
    let name = "st-1:u-1";
    let reply = json!({
        "bot_id": "st-1", "component_id": "default", "request_id": "1", "base_url": "https://xo.example",
        "send_user_message_url": "https://xo.example/sendUserMessage/1", "channel": {},
    });
    let end = json!({ "type": "end", "conversation_id": name, "reason": "user", "reply": reply });
    let end = message(Kind::HandoffEnd, name, &end);
    let id = ConversationId::parse(name).unwrap();
    room.directory.mark_accepted(&id, Origin::BotKit, None, end.accepted_at).await.unwrap();
    let waiting = async || {
        let depth = room.queue.depth().await.unwrap();
        depth.waiting.get(&Destination::parse("bot:one").unwrap()).copied().unwrap_or(0)
    };
    assert_eq!(room.deliverer.attempt(&end, PriorAttempts::default()).await.outcome, Outcome::Repeated);
    assert_eq!(waiting().await, 1);
    // The conversation is over now, so a repeat of the end publishes nothing.
    assert_eq!(room.deliverer.attempt(&end, PriorAttempts::default()).await.outcome, Outcome::Repeated);
    assert_eq!(waiting().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_that_comes_too_late_is_left() {
    let room = room(UnknownGroup::DeadLetter).await;
    let id = |name: &str| ConversationId::parse(name).unwrap();
    let start = |name: &str| {
        let body = json!({"type": "start", "conversation_id": name, "message": format!("from {name}")});
        message(Kind::HandoffStart, name, &body)
    };
    for (name, goes_on) in [("c-over", false), ("c-elsewhere", true)] {
        room.sandbox.script().fail(start_rule().after().times(1).delay(Duration::from_millis(1500)));
        let before = room.sandbox.groups();
        let (first, deliverer) = (start(name), room.deliverer.clone());
        let late =
            crate::harness::spawn(async move { deliverer.attempt(&first, PriorAttempts::default()).await });
        let opened = room.sandbox.ledger().wait_for(
            |ledger| ledger.servicenow_texts().values().any(|texts| texts[0] == format!("from {name}")),
            PATIENCE,
        );
        assert!(opened.await);
        let new = room.sandbox.groups().into_iter().find(|group| !before.contains(group)).unwrap();
        // Another worker, which has the partition now, ends the conversation or opens it again meanwhile.
        if goes_on {
            room.directory.mark_requested(&id(name), Origin::Api, None).await.unwrap();
            let other = OpenedChat {
                group: "g-other".into(),
                number: None,
                queue_id: "q".into(),
                position: None,
                wait: None,
                agent: None,
                active: false,
            };
            room.directory.mark_opened(&id(name), &other).await.unwrap();
        } else {
            assert!(room.directory.mark_ended(&id(name), None, "user").await.unwrap());
        }
        assert_eq!(late.await.unwrap().outcome, Outcome::Repeated);
        assert_eq!(room.sandbox.state(&new), Some(8), "no agent should wait for nobody");
        let known = room.directory.find(&id(name)).await.unwrap().unwrap();
        assert_eq!(known.state.as_str(), if goes_on { "waiting" } else { "ended" });
        assert_eq!(known.group.as_deref() == Some("g-other"), goes_on);
    }
}
