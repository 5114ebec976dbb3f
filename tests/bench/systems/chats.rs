//! Open chats: what thousands of chats cost while nobody writes in them, and whether they make a message dearer.
//!
//! The sandbox plays ServiceNow, with its tables readable, and the bot side. For each size: the requests to ServiceNow, the
//! processor time and the memory while all chats are quiet; the time until a message whose callback was lost reaches the bot side;
//! the processor time of an agent's message, of a user's message, and of a whole conversation: a start, ten messages each way, an end.
//! Guarantees: measures and reports, asserts nothing about time. Not responsible for: rates (`two_way.rs`).

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use causeway::sandbox::{
    AgentAcceptance, AgentSettings, CallbackSettings, ChatTableAccess, FaultRule, LedgerMoment, Operation,
    Sandbox, SandboxSettings, SandboxSwitches, Side,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::account;
use super::catalogue::{Role, System, target};
use super::driver::{pass, until};
use super::jobs::{Bench, Stage};
use super::options::{ChatsArgs, ShapeArgs};
use super::postgres::Postgres;
use super::shape::TOKEN;
use super::wire::Client;
use super::{machine, say};

/// The time limit for opening all chats.
const LIMIT: Duration = Duration::from_secs(900);
/// The time limit of a repair.
const REPAIR: Duration = Duration::from_secs(300);
/// The parallel requests of the load.
const AT_ONCE: usize = 32;
const QUEUE: &str = "5f1c4ac4c0a8010e01d3e7a1a5b0c111";

/// The results for one number of chats.
#[derive(Debug, Default)]
struct Outcome {
    chats: usize,
    /// Requests to ServiceNow a second in quiet.
    requests: f64,
    /// Processor time in quiet, as a share of one processor.
    quiet_cpu: f64,
    megabytes: f64,
    /// Seconds from the lost callback to the bot side.
    repair: f64,
    /// Processor seconds for 1,000 messages of agents and of users.
    to_bot: f64,
    to_agent: f64,
    /// Processor seconds of 1,000 whole conversations.
    life: f64,
}

pub(crate) async fn run(args: ChatsArgs) -> anyhow::Result<()> {
    let shape = ShapeArgs::without_load(args.settings.clone());
    let mut bench = super::bench(&args.broker, &shape, Duration::from_secs(1)).await?;
    bench.postgres = Some(Postgres::new(&args.postgres)?);
    let mut table = format!(
        "{}\n\n{} s of quiet. CPU for a message: seconds for 1,000 messages, of Causeway alone.\n\n| system | chats | requests/s in quiet | CPU in quiet | MB | lost callback repaired after s | CPU to bot | CPU to agent | CPU of 1,000 conversations |\n|---|---|---|---|---|---|---|---|---|\n",
        machine::facts(&bench.broker).await?.join("\n"),
        args.quiet
    );
    for name in &args.systems {
        for &chats in &args.sizes {
            let outcome =
                one(&mut bench, &args, name, chats).await.with_context(|| format!("{name}, {chats}"))?;
            let line = outcome.line(name);
            say(&line);
            let _ = writeln!(table, "{line}");
        }
    }
    std::fs::write(target().join("chats.md"), &table)?;
    say(&format!("written to {}", target().join("chats.md").display()));
    Ok(())
}

async fn one(bench: &mut Bench, args: &ChatsArgs, name: &str, chats: usize) -> anyhow::Result<Outcome> {
    let system = System::find(name).with_context(|| format!("there is no system {name:?}"))?;
    let sandbox = Arc::new(sandbox().await?);
    bench.settings = settings(args, &sandbox);
    let mut stage = bench.stage(system).await?;
    let database = stage.name().to_owned();
    let postgres = bench.postgres.as_ref().context("no PostgreSQL")?;
    if name != "embedded" {
        stage.place.settings.push(("directory.url".to_owned(), postgres.fresh(&database).await?));
    }
    let listen = stage.place.listen();
    sandbox.set_callback(Some(CallbackSettings::to(format!(
        "http://{listen}/v1/callbacks/servicenow?token={TOKEN}"
    ))));
    stage.start(Role::Whole).await?;
    let measured = measure(args, &sandbox, &stage, listen, chats).await;
    stage.leave().await?;
    postgres.forget(&database).await?;
    Arc::into_inner(sandbox).context("the sandbox is in use")?.stop().await;
    measured
}

async fn sandbox() -> anyhow::Result<Sandbox> {
    let accept = AgentAcceptance::After(Duration::from_millis(100));
    let settings = SandboxSettings {
        agent: AgentSettings { accept, ..AgentSettings::default() },
        switches: SandboxSwitches { chat_tables: ChatTableAccess::All, ..SandboxSwitches::default() },
        keep: Some(1_000),
        ..SandboxSettings::default()
    };
    Ok(Sandbox::start(TcpListener::bind("127.0.0.1:0").await?, settings).await)
}

fn settings(args: &ChatsArgs, sandbox: &Sandbox) -> Vec<(String, String)> {
    let own = [
        ("servicenow.host_url", sandbox.servicenow_url().to_owned()),
        ("servicenow.username", "chatbot_interface".to_owned()),
        ("servicenow.password", "sandbox".to_owned()),
        ("servicenow.queue_id", QUEUE.to_owned()),
        ("handoffs.events_url", sandbox.events_url()),
        ("ingress.handoffs.token", TOKEN.to_owned()),
    ];
    own.map(|(key, value)| (key.to_owned(), value)).into_iter().chain(args.settings.clone()).collect()
}

/// The number of requests of an operation that took effect.
fn applied(sandbox: &Sandbox, side: Side, operation: Operation) -> u64 {
    sandbox.ledger().total(side, operation).applied
}

/// All requests to ServiceNow so far. A callback is a request of ServiceNow.
fn requests(sandbox: &Sandbox) -> u64 {
    let totals = sandbox.ledger().totals().into_iter();
    let to_servicenow = totals.filter(|(side, operation, _)| {
        *side == Side::ServiceNow && !matches!(operation, Operation::Callback)
    });
    to_servicenow.map(|(_, _, count)| count.arrived).sum()
}

async fn measure(
    args: &ChatsArgs,
    sandbox: &Arc<Sandbox>,
    stage: &Stage<'_>,
    listen: SocketAddr,
    chats: usize,
) -> anyhow::Result<Outcome> {
    // Each chat: a start, the agent's greeting by a callback, and the notice that the agent joined.
    post(listen, chats, |chat| format!(
        r#"{{"type":"start","conversation_id":"c-{chat}","user":{{"id":"u-{chat}","name":"Ada"}},"message":"My laptop does not start"}}"#
    )).await;
    let open = until(LIMIT, || sandbox.groups().len() >= chats).await;
    ensure!(open, "only {} chats were opened", sandbox.groups().len());
    // Position, agent and greeting reach the bot side: at least three events for each chat.
    let events = || applied(sandbox, Side::Events, Operation::Event);
    let told = until(LIMIT, || events() >= 3 * chats as u64).await;
    ensure!(told, "only {} events", events());
    settle(events).await;

    let (before, cpu, began) = (requests(sandbox), stage.cpu().0, Instant::now());
    pass(Duration::from_secs(args.quiet)).await;
    let seconds = began.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let requests = (requests(sandbox) - before) as f64 / seconds;
    let quiet_cpu = (stage.cpu().0 - cpu) / seconds;
    let megabytes = account::usage(&stage.pids()).megabytes;

    let groups = sandbox.groups();
    let repair = lose_one(sandbox, groups.last().context("no chat")?).await?;
    let to_bot = agents_write(args, sandbox, stage, &groups).await?;
    let to_agent = users_write(args, sandbox, stage, listen, chats).await?;
    let life = lives(args, sandbox, stage, listen).await?;
    Ok(Outcome { chats, requests, quiet_cpu, megabytes, repair, to_bot, to_agent, life })
}

/// Waits until a count has not grown for five seconds.
async fn settle(count: impl Fn() -> u64) {
    let mut seen = None;
    while seen != Some(count()) {
        seen = Some(count());
        pass(Duration::from_secs(5)).await;
    }
}

/// Cuts the callback of one message. The seconds until the bot side has the message.
async fn lose_one(sandbox: &Sandbox, group: &str) -> anyhow::Result<f64> {
    let rule = FaultRule::new(Side::ServiceNow).operation(Operation::Callback);
    sandbox.script().fail(rule.times(1).cut());
    let lost = "Can you hear me?";
    let (began, arrived) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let heard = Arc::clone(&arrived);
    sandbox.ledger().record(move |moment, entry| {
        let is_it = entry.operation == Operation::Event && entry.text.as_deref() == Some(lost);
        if is_it && moment == LedgerMoment::TookEffect {
            heard.fetch_add(1, Ordering::Relaxed);
        }
    });
    sandbox.agent_says(group, lost).await.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let repaired = until(REPAIR, || arrived.load(Ordering::Relaxed) > 0).await;
    ensure!(repaired, "the lost message was not repaired within {REPAIR:?}");
    Ok(began.elapsed().as_secs_f64())
}

/// Each agent in turn writes a message. The processor seconds for 1,000 messages.
async fn agents_write(
    args: &ChatsArgs,
    sandbox: &Arc<Sandbox>,
    stage: &Stage<'_>,
    groups: &[String],
) -> anyhow::Result<f64> {
    let events = || applied(sandbox, Side::Events, Operation::Event);
    let (cpu, goal) = (stage.cpu().0, events() + args.messages as u64);
    let mut agents = JoinSet::new();
    for agent in 0..AT_ONCE {
        let (sandbox, groups, messages) = (Arc::clone(sandbox), groups.to_vec(), args.messages);
        agents.spawn(async move {
            for message in (agent..messages).step_by(AT_ONCE) {
                let group = &groups[message % groups.len()];
                let _ = sandbox.agent_says(group, &format!("Try this, part {message}")).await;
            }
        });
    }
    agents.join_all().await;
    ensure!(until(LIMIT, || events() >= goal).await, "{} messages did not arrive", goal - events());
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    Ok((stage.cpu().0 - cpu) * 1000.0 / args.messages as f64)
}

/// Each user in turn writes a message. The processor seconds for 1,000 messages.
async fn users_write(
    args: &ChatsArgs,
    sandbox: &Sandbox,
    stage: &Stage<'_>,
    listen: SocketAddr,
    chats: usize,
) -> anyhow::Result<f64> {
    let messages = || applied(sandbox, Side::ServiceNow, Operation::Message);
    let (cpu, goal) = (stage.cpu().0, messages() + args.messages as u64);
    post(listen, args.messages, |message| {
        let chat = message % chats;
        format!(r#"{{"type":"message","conversation_id":"c-{chat}","message":"I tried part {message}"}}"#)
    })
    .await;
    ensure!(until(LIMIT, || messages() >= goal).await, "{} messages did not arrive", goal - messages());
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    Ok((stage.cpu().0 - cpu) * 1000.0 / args.messages as f64)
}

/// Plays whole conversations, several at once. The processor seconds for 1,000 conversations.
async fn lives(
    args: &ChatsArgs,
    sandbox: &Arc<Sandbox>,
    stage: &Stage<'_>,
    listen: SocketAddr,
) -> anyhow::Result<f64> {
    let cpu = stage.cpu().0;
    let mut players = JoinSet::new();
    for player in 0..AT_ONCE {
        let (sandbox, lives) = (Arc::clone(sandbox), args.lives);
        players.spawn(async move {
            #[expect(
                clippy::disallowed_methods,
                reason = "a benchmark is another program's client, not the product's"
            )]
            let client = reqwest::Client::builder().no_proxy().build()?;
            for number in (player..lives).step_by(AT_ONCE) {
                life(&sandbox, &client, listen, number).await?;
            }
            anyhow::Ok(())
        });
    }
    players.join_all().await.into_iter().collect::<anyhow::Result<()>>()?;
    settle(|| applied(sandbox, Side::ServiceNow, Operation::Leave)).await;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    Ok((stage.cpu().0 - cpu) * 1000.0 / args.lives.max(1) as f64)
}

async fn life(
    sandbox: &Sandbox,
    client: &reqwest::Client,
    listen: SocketAddr,
    number: usize,
) -> anyhow::Result<()> {
    let id = format!("life-{number}");
    let post = async |body: Value| {
        let request = client.post(format!("http://{listen}/v1/handoffs")).bearer_auth(TOKEN);
        let request = request.header("content-type", "application/json").body(body.to_string());
        request.send().await?.error_for_status()
    };
    post(json!({ "type": "start", "conversation_id": id, "message": "My laptop does not start" })).await?;
    let began = Instant::now();
    let group = loop {
        let request = client.get(format!("http://{listen}/v1/conversations/{id}")).bearer_auth(TOKEN);
        let shown: Value = serde_json::from_slice(&request.send().await?.bytes().await?)?;
        match (shown["state"].as_str(), shown["servicenow"]["group"].as_str()) {
            (Some("active"), Some(group)) => break group.to_owned(),
            _ => ensure!(began.elapsed() < LIMIT, "no agent came: {shown}"),
        }
        pass(Duration::from_millis(200)).await;
    };
    for part in 0..10 {
        let text = format!("I tried part {part}");
        post(json!({ "type": "message", "conversation_id": id, "message": text })).await?;
        let said = sandbox.agent_says(&group, &format!("Try part {part}")).await;
        said.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    }
    post(json!({ "type": "end", "conversation_id": id })).await?;
    Ok(())
}

/// Posts these requests to the handoff API. A refused request is repeated.
async fn post(listen: SocketAddr, count: usize, body: impl Fn(usize) -> String) {
    let mut bodies: Vec<Vec<String>> = vec![Vec::new(); AT_ONCE];
    (0..count).for_each(|number| bodies[number % AT_ONCE].push(body(number)));
    let mut clients = JoinSet::new();
    for bodies in bodies {
        clients.spawn(async move {
            let mut client = Client::new(listen);
            for body in bodies {
                let request = format!(
                    "POST /v1/handoffs HTTP/1.1\r\nhost: {listen}\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                while !matches!(client.exchange(request.as_bytes()).await, Ok(200..300)) {
                    pass(Duration::from_millis(20)).await;
                }
            }
        });
    }
    clients.join_all().await;
}

impl Outcome {
    fn line(&self, name: &str) -> String {
        let Self { chats, requests, quiet_cpu, megabytes, repair, to_bot, to_agent, life } = self;
        format!(
            "| {name} | {chats} | {requests:.1} | {quiet_cpu:.3} | {megabytes:.0} | {repair:.1} | {to_bot:.3} | {to_agent:.3} | {life:.1} |"
        )
    }
}
