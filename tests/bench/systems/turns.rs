//! Bot mode: what Causeway adds to each turn of a conversation between a user and XO's bot, beside the least that can stand there.
//!
//! XO posts the user's words to the BotKit server and waits until the server calls `sendBotMessageUrl`; then it posts the bot's words
//! and waits for `sendUserMessageUrl`. The load plays XO: it measures the time from each post to the call that XO waits for. The echo
//! server answers each post and makes the call at once, without a queue. The bare loop (`bare.rs`) puts the same bodies on a queue and
//! posts them on; its call counts by the number in the body.
//! Guarantees: measures and reports, asserts nothing about time; counts lost and repeated calls and calls out of order.
//! Not responsible for: the callback relay (`jobs.rs`).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::bail;
use causeway::sandbox::BotSettings;
use causeway::sandbox::botkit::token;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::catalogue::{Role, System, target};
use super::driver::pass;
use super::jobs::Latency;
use super::options::{ShapeArgs, TurnsArgs};
use super::wire::{Client, Peer, find};
use super::{machine, say};

/// XO waits no longer.
const PATIENCE: Duration = Duration::from_secs(60);
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";

pub(crate) async fn run(args: TurnsArgs) -> anyhow::Result<()> {
    let shape = ShapeArgs::without_load(args.settings.clone());
    let mut bench = super::bench(&args.broker, &shape, Duration::from_secs(1)).await?;
    let mut table = format!(
        "{}\n\n{} users, {} turns each, {} turns/s. CPU: seconds for 1,000 calls, of the system and the broker.\n\n| bytes of the context | | p50 ms | p95 ms | p99 ms | CPU | calls | lost | repeated | out of order |\n|---|---|---|---|---|---|---|---|---|---|\n",
        machine::facts(&bench.broker).await?.join("\n"),
        args.users,
        args.turns,
        args.rate
    );
    for &context in &args.contexts {
        for name in &args.systems {
            let xo = Xo::open(context).await?;
            let outcome = match System::find(name) {
                None if name == "echo" => play(&args, &xo, echo(xo.address).await?).await,
                None => bail!("there is no system {name:?}"),
                Some(system) => {
                    bench.settings = settings(&args, &xo);
                    let mut stage = bench.stage(system).await?;
                    stage.place.sink = xo.address;
                    with_queue(&args, &xo, stage).await?
                }
            };
            let line = outcome.line(context, name);
            say(&line);
            let _ = writeln!(table, "{line}");
        }
    }
    std::fs::write(target().join("turns.md"), &table)?;
    say(&format!("written to {}", target().join("turns.md").display()));
    Ok(())
}

/// The settings of a bot whose calls arrive at the played XO.
fn settings(args: &TurnsArgs, xo: &Xo) -> Vec<(String, String)> {
    let bot = BotSettings::default();
    let own = [
        ("xo.bot_id", bot.bot_id),
        ("xo.app_id", bot.app_id),
        ("xo.client_secret", bot.client_secret),
        ("xo.allowed_hosts", xo.address.to_string()),
    ];
    own.map(|(key, value)| (key.to_owned(), value)).into_iter().chain(args.settings.clone()).collect()
}

/// Starts the processes, plays, and kills the one that delivers every `args.kill` seconds.
async fn with_queue(
    args: &TurnsArgs,
    xo: &Arc<Xo>,
    mut stage: super::jobs::Stage<'_>,
) -> anyhow::Result<Outcome> {
    let role = if stage.comes_apart() && args.kill.is_some() { Role::Worker } else { Role::Whole };
    if role == Role::Worker {
        stage.start(Role::Front).await?;
    }
    stage.start(role).await?;
    let listen = stage.place.listen();
    let Some(every) = args.kill.map(Duration::from_secs) else {
        let before = stage.cpu();
        let outcome = play(args, xo, listen).await;
        let after = stage.cpu();
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let thousands = outcome.calls.max(1) as f64 / 1000.0;
        stage.leave().await?;
        let cpu = Some(((after.0 - before.0) / thousands, (after.1 - before.1) / thousands));
        return Ok(Outcome { cpu, ..outcome });
    };
    let playing = play(args, xo, listen);
    tokio::pin!(playing);
    loop {
        tokio::select! {
            outcome = &mut playing => return Ok(outcome),
            () = pass(every) => {
                drop(stage.processes.pop());
                stage.start(role).await?;
            }
        }
    }
}

/// The same turns on any BotKit server.
async fn play(args: &TurnsArgs, xo: &Arc<Xo>, server: SocketAddr) -> Outcome {
    let began = Instant::now() + Duration::from_millis(500);
    let mut users = JoinSet::new();
    for user in 0..args.users {
        let (xo, args) = (Arc::clone(xo), args.clone());
        users.spawn(async move { xo.user(&args, user, server, began).await });
    }
    let mut times: Vec<f64> = users.join_all().await.into_iter().flatten().collect();
    // A repeated call would come a moment after the first one.
    pass(Duration::from_secs(2)).await;
    times.sort_by(f64::total_cmp);
    let expected = u64::from(args.users) * u64::from(args.turns) * 2;
    let calls = times.len() as u64;
    Outcome {
        latency: Latency::of(&times),
        calls,
        lost: expected - calls,
        repeated: xo.repeated.load(Ordering::Relaxed),
        out_of_order: xo.out_of_order.load(Ordering::Relaxed),
        cpu: None,
    }
}

#[derive(Debug)]
struct Outcome {
    latency: Latency,
    /// Seconds for 1,000 calls, of the system and the broker. Not measured for the echo server, which is a part of this process, and
    /// with kills.
    cpu: Option<(f64, f64)>,
    calls: u64,
    lost: u64,
    repeated: u64,
    out_of_order: u64,
}

impl Outcome {
    fn line(&self, context: usize, name: &str) -> String {
        let Latency { p50, p95, p99 } = self.latency;
        let Self { calls, lost, repeated, out_of_order, .. } = self;
        let cpu = self.cpu.map_or_else(String::new, |(own, broker)| format!("{own:.2} + {broker:.2}"));
        format!(
            "| {context} | {name} | {p50:.1} | {p95:.1} | {p99:.1} | {cpu} | {calls} | {lost} | {repeated} | {out_of_order} |"
        )
    }
}

/// The played XO: takes the calls of the BotKit server.
#[derive(Debug)]
struct Xo {
    address: SocketAddr,
    /// A text of the length of the context.
    context: String,
    calls: Mutex<HashMap<u64, Call>>,
    next: AtomicU64,
    repeated: AtomicU64,
    out_of_order: AtomicU64,
}

/// A call that XO waits for or has got.
#[derive(Debug, Default)]
struct Call {
    arrived: Option<Instant>,
    told: Arc<Notify>,
    /// The call of the same user that must have arrived before.
    after: Option<u64>,
}

impl Xo {
    #[expect(
        clippy::disallowed_methods,
        reason = "a benchmark has no task book: its tasks end with its runtime"
    )]
    async fn open(context: usize) -> anyhow::Result<Arc<Self>> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let xo = Arc::new(Self {
            address: listener.local_addr()?,
            context: "The user has a laptop and a telephone. ".chars().cycle().take(context).collect(),
            calls: Mutex::default(),
            next: AtomicU64::new(1),
            repeated: AtomicU64::new(0),
            out_of_order: AtomicU64::new(0),
        });
        let shared = Arc::clone(&xo);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move { shared.serve(Peer::new(stream)).await });
            }
        });
        Ok(xo)
    }

    async fn serve(&self, mut peer: Peer) {
        while let Ok(Some(request)) = peer.next().await {
            let (head, body) = peer.buffer[..request.body.end].split_at(request.body.start);
            self.arrived(head, body);
            if peer.write(ANSWER).await.is_err() {
                return;
            }
        }
    }

    /// Notes a call by the number at the end of its path. The bare loop posts to `/`, so the number of its call is in the body.
    fn arrived(&self, head: &[u8], body: &[u8]) {
        let Some(path) = find(head, b" HTTP/1.1").and_then(|end| head.get(..end)) else { return };
        let digits = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let number = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok());
        let Some(number) = number.or_else(|| request_id(body)) else { return };
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let after = calls.get(&number).and_then(|call| call.after);
        let overtook =
            after.is_some_and(|after| calls.get(&after).is_some_and(|call| call.arrived.is_none()));
        let Some(call) = calls.get_mut(&number) else { return };
        if call.arrived.is_some() {
            self.repeated.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if overtook {
            self.out_of_order.fetch_add(1, Ordering::Relaxed);
        }
        call.arrived = Some(Instant::now());
        call.told.notify_one();
    }

    /// The turns of one user; the times in milliseconds of all calls that came.
    async fn user(&self, args: &TurnsArgs, user: u32, server: SocketAddr, began: Instant) -> Vec<f64> {
        let (mut client, mut times, mut last) = (Client::new(server), Vec::new(), None);
        for turn in 0..args.turns {
            let due = f64::from(turn * args.users + user) / args.rate;
            tokio::time::sleep_until((began + Duration::from_secs_f64(due)).into()).await;
            for event in ["on_user_message", "on_bot_message"] {
                let number = self.next.fetch_add(1, Ordering::Relaxed);
                let told = Arc::new(Notify::new());
                let call = Call { arrived: None, told: Arc::clone(&told), after: last.replace(number) };
                self.calls.lock().unwrap_or_else(PoisonError::into_inner).insert(number, call);
                let request = self.request(server, user, number, event);
                let posted = Instant::now();
                // XO is not known to repeat an event; the load does, so that a killed process loses no turn here.
                while !matches!(client.exchange(&request).await, Ok(200..300)) && posted.elapsed() < PATIENCE
                {
                    pass(Duration::from_millis(20)).await;
                }
                if tokio::time::timeout(PATIENCE, told.notified()).await.is_ok() {
                    let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
                    let arrived = calls.get(&number).and_then(|call| call.arrived);
                    times.extend(arrived.map(|at| (at - posted).as_secs_f64() * 1000.0));
                }
            }
        }
        times
    }

    fn request(&self, server: SocketAddr, user: u32, number: u64, event: &str) -> Vec<u8> {
        let bot = BotSettings::default();
        let now = causeway::clock::now().as_second();
        let claims = json!({ "appId": bot.app_id, "iat": now, "exp": now + 60 });
        let token = token(bot.algorithm, &claims, &bot.client_secret);
        let body = self.event(&bot.bot_id, user, number).to_string();
        format!(
            "POST /sdk/bots/{}/{event} HTTP/1.1\r\nhost: {server}\r\ntoken: {token}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            bot.bot_id,
            body.len()
        )
        .into_bytes()
    }

    /// An event as XO posts it in bot mode.
    fn event(&self, bot: &str, user: u32, number: u64) -> Value {
        let base = format!("http://{}/api/botsdk/stream/{bot}", self.address);
        let user = format!("u-{user}");
        json!({
            "requestId": number, "botId": bot, "componentId": "default", "baseUrl": base,
            "sendUserMessageUrl": format!("{base}/sendUserMessage/{number}"),
            "sendBotMessageUrl": format!("{base}/sendBotMessage/{number}"),
            "skipBotMessageUrl": format!("{base}/skipBotMessage/{number}"),
            "skipUserMessageUrl": format!("{base}/skipUserMessage/{number}"),
            "agent_transfer": false, "agent_session": false,
            "message": format!("My laptop does not start, this is attempt {number}"),
            "channel": {"type": "rtm", "from": user, "channelInfos": {"from": user, "type": "rtm"}},
            "context": {"session": {"UserContext": {"_id": user, "firstName": "Ada"},
                "BotUserSession": {"conversationSessionId": "5f1c4ac4c0a8010e01d3e7a1"}},
                "history": self.context},
        })
    }
}

/// The number of the call in the body of an event.
fn request_id(body: &[u8]) -> Option<u64> {
    let from = find(body, br#""requestId":"#)? + 12;
    let digits = body.get(from..)?.split(|byte| !byte.is_ascii_digit()).next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The least BotKit server: answers each post, and calls the address that XO waits for at once.
#[expect(clippy::disallowed_methods, reason = "a benchmark has no task book: its tasks end with its runtime")]
async fn echo(xo: SocketAddr) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(echo_connection(Peer::new(stream), xo));
        }
    });
    Ok(address)
}

async fn echo_connection(mut peer: Peer, xo: SocketAddr) {
    let mut client = Client::new(xo);
    while let Ok(Some(request)) = peer.next().await {
        let is_users = find(&peer.buffer[..request.body.start], b"/on_user_message ").is_some();
        let body = peer.buffer[request.body].to_vec();
        let Ok(event) = serde_json::from_slice::<Value>(&body) else { return };
        let key = if is_users { "sendBotMessageUrl" } else { "sendUserMessageUrl" };
        let path = event[key].as_str().and_then(|url| url.splitn(4, '/').nth(3)).unwrap_or_default();
        if peer.write(ANSWER).await.is_err() {
            return;
        }
        let head = format!(
            "POST /{path} HTTP/1.1\r\nhost: {xo}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let _ = client.exchange(&[head.as_bytes(), &body].concat()).await;
    }
}
