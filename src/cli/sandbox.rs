//! `causeway sandbox`: simulates ServiceNow and XO.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use url::Url;

use super::{CliFailure, output};
use crate::sandbox::botkit::BotScript;
use crate::sandbox::traffic::{self, TrafficSettings};
use crate::sandbox::{
    AgentSettings, BotSettings, CallbackCredential, CallbackSettings, Sandbox, SandboxQueue, SandboxSettings,
};
use crate::tasks::{self, CancellationToken};

#[derive(Debug, clap::Args)]
pub(super) struct SandboxArgs {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:8090", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// User name for the simulated ServiceNow
    #[arg(long, default_value = "chatbot_interface", value_name = "NAME")]
    username: String,
    /// Password for the simulated ServiceNow
    #[arg(long, default_value = "sandbox", hide_default_value = true)]
    password: String,
    /// Queue ID of its only chat queue; default: a fixed ID
    #[arg(long, value_name = "ID")]
    queue: Option<String>,
    /// URL to which the simulated ServiceNow posts agents' messages: Causeway's /v1/callbacks/servicenow
    #[arg(long, value_name = "URL")]
    callback_url: Option<Url>,
    /// Value of the header x-causeway-token in those posts
    #[arg(long, value_name = "TOKEN", conflicts_with = "callback_token_file", requires = "callback_url")]
    callback_token: Option<String>,
    /// File that contains this token
    #[arg(long, value_name = "FILE", requires = "callback_url")]
    callback_token_file: Option<PathBuf>,
    /// URL to which XO posts the events of its bot: the public address of Causeway, without a path
    #[arg(long, value_name = "URL")]
    botkit_url: Option<Url>,
    /// The address of the sandbox as Causeway reaches it, without a path; XO's reply URLs begin with it
    #[arg(long, value_name = "URL", requires = "botkit_url")]
    public_url: Option<Url>,
    /// Play users who ask for a human: Causeway's /v1/handoffs. With --botkit-url every second one comes from XO's bot
    #[arg(long, value_name = "URL")]
    traffic_url: Option<Url>,
    /// Bearer token for those requests
    #[arg(long, value_name = "TOKEN", conflicts_with = "traffic_token_file", requires = "traffic_url")]
    traffic_token: Option<String>,
    /// File that contains this token
    #[arg(long, value_name = "FILE", requires = "traffic_url")]
    traffic_token_file: Option<PathBuf>,
    /// Number of users that ask per minute
    #[arg(long, default_value_t = 12, value_name = "N", requires = "traffic_url")]
    traffic_per_minute: u32,
    /// Make the platforms fail now and then, for a short time
    #[arg(long, requires = "traffic_url")]
    faults: bool,
}

/// Runs until SIGTERM or SIGINT.
pub(super) async fn run(args: SandboxArgs) -> Result<(), CliFailure> {
    let listener =
        TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let traffic_token = secret(args.traffic_token.clone(), args.traffic_token_file.clone())?;
    let sandbox = Sandbox::start(listener, settings(&args)?).await;
    output::line(format_args!("the sandbox listens on {0}: curl {0}/sandbox explains it", sandbox.url()))?;
    let stop = CancellationToken::default();
    let players = args.traffic_url.map(|url| {
        let settings = TrafficSettings {
            handoffs_url: url.to_string(),
            token: traffic_token.unwrap_or_default(),
            per_minute: args.traffic_per_minute,
            faults: args.faults,
            sandbox_url: sandbox.url().to_owned(),
            bot_users: args.botkit_url.is_some(),
        };
        let heard = stop.clone();
        tasks::spawn(traffic::run(settings, async move { heard.cancelled().await }))
    });
    stopped().await?;
    stop.cancel();
    if let Some(players) = players {
        players.abort();
    }
    sandbox.stop().await;
    Ok(())
}

fn settings(args: &SandboxArgs) -> Result<SandboxSettings, CliFailure> {
    let token = secret(args.callback_token.clone(), args.callback_token_file.clone())?;
    let callback = args.callback_url.as_ref().map(|url| {
        let credential = token.map_or(CallbackCredential::None, |value| CallbackCredential::Header {
            name: "x-causeway-token".to_owned(),
            value,
        });
        CallbackSettings { credential, ..CallbackSettings::to(url.as_str()) }
    });
    let queue = SandboxQueue::default();
    let queue = SandboxQueue { id: args.queue.clone().unwrap_or(queue.id), ..queue };
    // A demonstration may run for days, so the number of recorded requests is limited.
    let keep = Some(100_000);
    Ok(SandboxSettings {
        username: args.username.clone(),
        password: args.password.clone(),
        queues: vec![queue],
        // Simulated users need an agent that replies.
        agent: AgentSettings { replies: args.traffic_url.is_some(), ..AgentSettings::default() },
        callback,
        bots: vec![BotSettings { script: BotScript::help_desk(), ..BotSettings::default() }],
        public_url: args.public_url.as_ref().map(without_slash),
        botkit_url: args.botkit_url.as_ref().map(without_slash),
        keep,
        ..SandboxSettings::default()
    })
}

fn without_slash(url: &Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

/// Waits for SIGTERM or SIGINT.
pub(super) async fn stopped() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}

/// Returns the value, or the content of the file that contains it.
fn secret(value: Option<String>, file: Option<PathBuf>) -> Result<Option<String>, CliFailure> {
    let Some(path) = file else { return Ok(value) };
    let text = std::fs::read_to_string(&path)
        .map_err(|error| CliFailure::Usage(format!("cannot read {}: {error}", path.display())))?;
    Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
}
