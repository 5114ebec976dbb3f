//! Tests that two-way conversations survive all faults together. Users of the API and of a bot talk with agents while
//! workers are killed, answers fail and callbacks are lost. At the end each message has arrived in order, and each chat
//! has ended once on both sides.
//!
//! `CAUSEWAY_SOAK="<conversations> <seconds> <seconds between kills>"` makes the test long; otherwise it is short
//! enough for CI.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use causeway::conversation::{Directory, DirectorySettings, DirectoryUrl};
use causeway::message::ConversationId;
use causeway::sandbox::botkit::BotUser;
use causeway::sandbox::{
    AgentAcceptance, BotSettings, CallbackSettings, FaultRule, LedgerEntry, LedgerMoment, Operation, Sandbox,
    Side,
};
use futures_util::stream::{FuturesUnordered, StreamExt};
use reqwest::Client;
use serde_json::{Value, json};

use crate::harness::http;
use crate::harness::matrix::{Bench, Engine};
use crate::harness::relay::{Plan, Process, Relay};
use crate::harness::wait::{eventually, let_pass};

const LONG: Duration = Duration::from_secs(180);
const ROUNDS: usize = 3;
/// The time around a kill in which the kill can affect a request in flight: its answer, and the record of the answer.
const AROUND_A_KILL: Duration = Duration::from_secs(5);

struct Shape {
    conversations: usize,
    time: Duration,
    kill_every: Duration,
}

fn shape() -> Shape {
    let given = crate::harness::told("CAUSEWAY_SOAK").unwrap_or_else(|| "16 14 4".to_owned());
    let numbers: Vec<u64> =
        given.split_whitespace().map(|number| number.parse().expect("a number")).collect();
    Shape {
        conversations: usize::try_from(numbers[0]).expect("a small number"),
        time: Duration::from_secs(numbers[1]),
        kill_every: Duration::from_secs(numbers[2]),
    }
}

fn plan(bench: &Bench, virtual_agent: bool) -> Plan {
    let bot = BotSettings::default();
    let plan = Plan::on(bench)
        .set("xo.bot_id", bot.bot_id)
        .set("xo.app_id", bot.app_id)
        .set("xo.client_secret", bot.client_secret)
        .set("servicenow.poll_waiting", "500ms")
        .set("servicenow.poll_active", "2s")
        .set("servicenow.watchdog", "3s")
        .set("delivery.retry.max", "2s")
        .set("delivery.servicenow.timeout", "3s")
        .set("delivery.xo.timeout", "3s")
        .set("queue.heartbeat", "5s")
        .sandbox(|sandbox| sandbox.agent.accept = AgentAcceptance::After(Duration::from_millis(300)));
    let plan = if bench.engine() == Engine::Embedded { plan } else { plan.apart(2) };
    if virtual_agent { plan.set("servicenow.api", "virtual_agent") } else { plan }
}

/// One in twenty requests fails, one in five of these after its effect. One callback in fifty is lost.
fn let_it_rain(sandbox: &Sandbox, virtual_agent: bool) {
    let script = sandbox.script();
    // The Virtual Agent API has no gap repair, so ServiceNow itself must repeat a lost callback.
    let lost = if virtual_agent { 0.0 } else { 0.02 };
    script.fail(FaultRule::new(Side::ServiceNow).operation(Operation::Callback).probability(lost, 1).cut());
    let asked = [Operation::Start, Operation::Message, Operation::Leave, Operation::State, Operation::Read];
    let told = [Operation::Event, Operation::Tell, Operation::Clear, Operation::Session];
    let all = asked.map(|operation| (Side::ServiceNow, operation)).into_iter().chain(told.map(|operation| {
        (if operation == Operation::Event { Side::Events } else { Side::BotKit }, operation)
    }));
    for (seed, (side, operation)) in (2..).step_by(3).zip(all) {
        let rule = || FaultRule::new(side).operation(operation);
        script.fail(rule().probability(0.01, seed).after().cut());
        script.fail(rule().probability(0.01, seed + 1).cut());
        script.fail(rule().probability(0.03, seed + 2).status(503));
    }
}

/// A call that had an effect on one of the sides.
#[derive(Debug, Clone)]
struct Effect {
    seq: u64,
    operation: Operation,
    text: Option<String>,
    id: Option<String>,
    is_end: bool,
    started: Instant,
    /// The fault in the answer of the call.
    fault: Option<&'static str>,
}

/// Every effect in order, by side and conversation. Searching the ledger itself would be too slow.
#[derive(Clone, Default)]
struct Witness(Arc<Mutex<Book>>);

type Book = HashMap<(Side, String), Vec<Effect>>;

impl Witness {
    fn of(sandbox: &Sandbox) -> Self {
        let witness = Self::default();
        let book = witness.clone();
        sandbox.ledger().record(move |moment, entry| book.hear(moment, entry));
        witness
    }

    fn hear(&self, moment: LedgerMoment, entry: &LedgerEntry) {
        let Some(conversation) = entry.conversation.clone().filter(|_| !entry.outbound) else { return };
        let mut book = self.0.lock().unwrap();
        let line = book.entry((entry.side, conversation)).or_default();
        if moment == LedgerMoment::TookEffect {
            line.push(Effect {
                seq: entry.seq,
                operation: entry.operation,
                text: entry.text.clone(),
                id: entry.message_id.clone(),
                is_end: entry.event.as_deref() == Some("callback.ended"),
                started: entry.started,
                fault: entry.fault,
            });
        } else if let Some(effect) = line.iter_mut().rev().find(|effect| effect.seq == entry.seq) {
            effect.fault = entry.fault;
        }
    }

    fn at(&self, side: Side, conversation: &str) -> Vec<Effect> {
        self.0.lock().unwrap().get(&(side, conversation.to_owned())).cloned().unwrap_or_default()
    }

    fn texts(&self, side: Side, conversation: &str) -> Vec<String> {
        self.at(side, conversation).into_iter().filter_map(|effect| effect.text).collect()
    }

    /// The calls that had an effect twice without a reason: neither a fault in the answer nor a kill.
    fn unexplained(&self, kills: &[Instant]) -> Vec<String> {
        let mut found = Vec::new();
        for ((side, _), line) in self.0.lock().unwrap().iter() {
            let mut before: BTreeMap<&str, &Effect> = BTreeMap::new();
            for effect in line.iter().filter(|effect| effect.operation != Operation::Start) {
                let text = match effect.operation {
                    Operation::Clear => "the bot has its user back",
                    Operation::Leave => "the user has left",
                    _ => effect.text.as_deref().filter(|text| text.starts_with('c')).unwrap_or_default(),
                };
                if text.is_empty() {
                    continue;
                }
                let Some(first) = before.insert(text, effect) else { continue };
                let until = effect.started + AROUND_A_KILL;
                let killed = kills.iter().any(|kill| *kill + AROUND_A_KILL > first.started && *kill < until);
                if first.fault.is_none() && !killed {
                    found.push(format!("{side:?} {text}"));
                }
            }
        }
        found
    }
}

/// Checks at intervals, because hundreds of conversations wait at the same time.
async fn seen<T>(what: &str, mut condition: impl AsyncFnMut() -> Result<T, String>) -> T {
    eventually(what, LONG, async || {
        let seen = condition().await;
        if seen.is_err() {
            let_pass(Duration::from_millis(200)).await;
        }
        seen
    })
    .await
}

/// The environment of the conversations while the processes are killed.
struct Town<'a> {
    sandbox: &'a Sandbox,
    witness: Witness,
    ingress: String,
    client: Client,
    directory: Directory,
}

/// The origin of a request for an agent.
enum Caller {
    Api,
    Bot(Box<BotUser>),
}

/// One user's handoff.
struct Chat {
    name: String,
    conversation: String,
    group: String,
    caller: Caller,
}

impl Town<'_> {
    /// Posts the same event until it is accepted, as a good caller does.
    async fn post(&self, caller: &Caller, key: &str, body: &Value) {
        let mut again = false;
        seen(&format!("{key} to be taken"), async || {
            let status = match caller {
                Caller::Api => self.handoff(key, body).await,
                Caller::Bot(user) if again => user.repeats().await.status,
                Caller::Bot(user) => match (body["type"].as_str(), body["message"].as_str()) {
                    (Some("start"), text) => user.transfers(text.unwrap_or_default()).await.status,
                    (Some("end"), _) => user.says("quit").await.status,
                    (_, text) => user.says(text.unwrap_or_default()).await.status,
                },
            };
            again = true;
            if matches!(status, 200 | 202) { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
    }

    async fn handoff(&self, key: &str, body: &Value) -> u16 {
        let request = self
            .client
            .post(format!("{}/v1/handoffs", self.ingress))
            .bearer_auth("handoffs-token")
            .header("content-type", "application/json")
            .header("idempotency-key", key)
            .body(body.to_string());
        request.send().await.map_or(0, |answer| answer.status().as_u16())
    }

    /// The state and the group of a conversation. The handoff API shows no conversation of a bot, so the directory is read.
    async fn shown(&self, conversation: &str) -> Result<(&'static str, Option<String>), String> {
        let id = ConversationId::parse(conversation).map_err(|problem| problem.to_string())?;
        let found = self.directory.find(&id).await.map_err(|error| error.to_string())?;
        Ok(found.map_or(("unknown", None), |found| (found.state.as_str(), found.group)))
    }

    /// Plays a conversation from request to end.
    async fn converse(&self, n: usize) -> Chat {
        let name = format!("c{n}");
        let (caller, conversation) = if n.is_multiple_of(2) {
            (Caller::Api, name.clone())
        } else {
            let user = self.sandbox.bot_user(&self.ingress, &format!("u-{name}"));
            let id = format!("{}:{}:rtm", BotSettings::default().bot_id, user.id());
            (Caller::Bot(Box::new(user)), id)
        };
        let body =
            |kind: &str, text: &str| json!({"type": kind, "conversation_id": conversation, "message": text});
        self.post(&caller, &format!("{name} start"), &body("start", &format!("{name} u0"))).await;
        let asked = Instant::now();
        let group = seen(&format!("{name} to have an agent"), async || {
            let (shown, group) = self.shown(&conversation).await?;
            let group = group.unwrap_or_default();
            if shown == "active" {
                return Ok(group);
            }
            let late = asked.elapsed() > LONG * 9 / 10;
            Err(format!("{shown}\n{}", if late { self.story(&conversation, &group) } else { String::new() }))
        })
        .await;
        for round in 1..=ROUNDS {
            let text = format!("{name} u{round}");
            self.post(&caller, &text, &body("message", &text)).await;
            let text = format!("{name} a{round}");
            self.sandbox.agent_says(&group, &text).await.unwrap_or_else(|error| panic!("{text}: {error}"));
            let_pass(Duration::from_millis(700)).await;
        }
        let chat = Chat { name, conversation: conversation.clone(), group, caller };
        self.all_is_heard(&chat).await;
        let end = json!({"type": "end", "conversation_id": conversation, "reason": "user"});
        let key = format!("{} end", chat.name);
        match n % 3 {
            0 => drop(self.sandbox.agent_closes(&chat.group).await),
            1 => self.post(&chat.caller, &key, &end).await,
            // Both sides end the chat at the same time. The later side finds the chat ended.
            _ => drop(tokio::join!(
                self.sandbox.agent_closes(&chat.group),
                self.post(&chat.caller, &key, &end)
            )),
        }
        self.is_over(&chat).await;
        chat
    }

    /// The messages that the user received, in order, with repeats.
    fn heard(&self, chat: &Chat) -> Vec<String> {
        match &chat.caller {
            Caller::Bot(user) => user.heard_texts(),
            Caller::Api => self.witness.texts(Side::Events, &chat.conversation),
        }
    }

    /// Neither side ends the chat before the other has received the last message.
    async fn all_is_heard(&self, chat: &Chat) {
        let (asked, answered) = (format!("{} u{ROUNDS}", chat.name), format!("{} a{ROUNDS}", chat.name));
        seen(&format!("{answered} and {asked} to be heard"), async || {
            let (said, heard) = (self.witness.texts(Side::ServiceNow, &chat.group), self.heard(chat));
            if heard.contains(&answered) && said.contains(&asked) {
                Ok(())
            } else {
                Err(format!("{said:?} {heard:?}"))
            }
        })
        .await;
    }

    async fn is_over(&self, chat: &Chat) {
        seen(&format!("{} to be over on both sides", chat.name), async || {
            let (state, told) = (self.sandbox.state(&chat.group), self.ends(chat));
            let (shown, _) = self.shown(&chat.conversation).await?;
            if matches!(state, Some(3 | 7 | 8)) && shown == "ended" && told > 0 {
                Ok(())
            } else {
                Err(format!("at ServiceNow {state:?}, told {told} times, {shown}"))
            }
        })
        .await;
    }

    /// The number of ends that the bot side received. A repeated end counts once.
    fn ends(&self, chat: &Chat) -> usize {
        if let Caller::Bot(user) = &chat.caller {
            return usize::try_from(user.clears()).unwrap_or(usize::MAX);
        }
        let effects = self.witness.at(Side::Events, &chat.conversation);
        let ids: BTreeSet<_> =
            effects.into_iter().filter(|effect| effect.is_end).map(|effect| effect.id).collect();
        ids.len()
    }

    /// The messages that one of the two sides should have received and did not.
    fn judge(&self, chat: &Chat) -> Option<String> {
        let said = self.witness.texts(Side::ServiceNow, &chat.group);
        let wanted = |voice: &str, from: usize| -> Vec<String> {
            (from..=ROUNDS).map(|n| format!("{} {voice}{n}", chat.name)).collect()
        };
        let (said, heard) = (firsts(&said, &chat.name), firsts(&self.heard(chat), &chat.name));
        let wrong = said != wanted("u", 0) || heard != wanted("a", 1);
        wrong.then(|| {
            format!(
                "the agent read {said:?}, the user heard {heard:?}\n{}",
                self.story(&chat.conversation, &chat.group)
            )
        })
    }

    /// All calls of the platforms about a chat, one in each line.
    fn story(&self, conversation: &str, group: &str) -> String {
        let own = |entry: &LedgerEntry| {
            let named = [&entry.group, &entry.conversation].into_iter().flatten();
            let of_the_chat = !group.is_empty() && entry.path.contains(group);
            of_the_chat || named.into_iter().any(|name| name == conversation || name == group)
        };
        let line = |entry: &LedgerEntry| {
            let text = entry.text.as_deref().and_then(|text| text.lines().next()).unwrap_or_default();
            format!(
                "{} {:?} {:?}{} {text:?} {:?} {:?} effect {:?}",
                entry.at,
                entry.side,
                entry.operation,
                if entry.outbound { " out" } else { "" },
                entry.status,
                entry.fault,
                entry.effect
            )
        };
        self.sandbox.ledger().find(own).iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// The texts of this conversation, each at its first position. A start has more lines below the user's message.
fn firsts(texts: &[String], name: &str) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let lines = texts.iter().filter_map(|text| text.lines().next());
    let own = lines.filter(|line| line.split(' ').next() == Some(name));
    own.filter(|line| seen.insert((*line).to_owned())).map(str::to_owned).collect()
}

/// Kills one worker after another (on the embedded engine the only process) and starts it again.
fn kill(processes: &mut [Process], turn: usize) -> Instant {
    let victim = if processes.len() == 1 { 0 } else { 1 + turn % (processes.len() - 1) };
    let at = Instant::now();
    processes[victim].running.kill9();
    processes[victim].restart();
    at
}

fn times(kills: &[Instant], begun: Instant) -> Vec<Duration> {
    kills.iter().map(|kill| *kill - begun).collect()
}

async fn soak(bench: &Bench, virtual_agent: bool) {
    let shape = shape();
    let mut relay = plan(bench, virtual_agent).start().await;
    let ingress = relay.processes[0].public_url();
    let callback = CallbackSettings::to(format!("{ingress}/v1/callbacks/servicenow?token=callback-token"));
    relay.sandbox.set_callback(Some(callback));
    let_it_rain(&relay.sandbox, virtual_agent);
    let Relay { sandbox, processes, .. } = &mut relay;
    let url = DirectoryUrl::Sqlite(bench.folder().join("directory.sqlite"));
    let directory = Directory::open(&DirectorySettings { url }).await.expect("the directory of the relay");
    let town = Town { witness: Witness::of(sandbox), sandbox, ingress, client: http::client(), directory };
    let begun = Instant::now();
    let mut kills: Vec<Instant> = Vec::new();
    let mut over = Vec::new();
    let mut talking: FuturesUnordered<_> = (0..shape.conversations).map(|n| town.converse(n)).collect();
    let mut next = shape.conversations;
    let mut clock = tokio::time::interval(shape.kill_every);
    clock.tick().await;
    loop {
        tokio::select! {
            Some(chat) = talking.next() => {
                over.push(chat);
                if begun.elapsed() < shape.time {
                    talking.push(town.converse(next));
                    next += 1;
                }
            }
            _ = clock.tick(), if begun.elapsed() < shape.time => kills.push(kill(processes, kills.len())),
            else => break,
        }
    }
    drop(talking);
    sandbox.script().clear();
    let wrong: Vec<String> = over.iter().filter_map(|chat| town.judge(chat)).collect();
    let ends: Vec<_> =
        over.iter().filter(|chat| town.ends(chat) != 1).map(|chat| (&chat.name, town.ends(chat))).collect();
    let unexplained = town.witness.unexplained(&kills);
    let groups = sandbox.groups();
    let open = groups.iter().filter(|group| matches!(sandbox.state(group), Some(1 | 2))).count();
    relay.ready().await;
    relay.metric_is("causeway_queue_messages", &[], |waiting| waiting == 0.0).await;
    let dead = relay.dead_letters().await;
    let memory = relay.metric("process_resident_memory_bytes", &[]).await / f64::from(1 << 20);
    eprintln!(
        "soak: {} conversations in {:?}, {} kills, {} chats, {memory:.0} MiB in {} processes; ended otherwise than once: \
         {ends:?}; repeats without a reason: {unexplained:?}; dead letters: {dead:?}",
        over.len(),
        begun.elapsed(),
        kills.len(),
        groups.len(),
        relay.processes.len()
    );
    assert!(wrong.is_empty(), "kills {:?} after the start:\n{}", times(&kills, begun), wrong.join("\n\n"));
    assert!(kills.len() >= 2 && over.len() >= shape.conversations);
    assert_eq!((open, groups.len()), (0, over.len()), "a chat for each conversation, none left open");
    assert_eq!((dead.len(), unexplained.len()), (0, 0));
    // Events have ids, so the same end twice counts as one. A bot may be cleared twice only for a reason.
    assert!(ends.iter().all(|(name, _)| name[1..].parse::<usize>().is_ok_and(|n| n % 2 == 1)), "{ends:?}");
}

on_every_engine! {
    async fn two_way_conversations_survive_everything_at_once(bench: Bench) {
        soak(&bench, false).await;
    }

}

// The Virtual Agent API has no gap repair. A callback that ServiceNow posts while the only process is down would be
// lost, so the ingress is a process of its own.
on_every_rabbit! {
    async fn over_the_virtual_agent_api_too(bench: Bench) {
        soak(&bench, true).await;
    }
}
