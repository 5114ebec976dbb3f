//! `causeway status`: one page about a deployment, and an exit code for scripts.
//!
//! Guarantees: the page names a part that does not answer, and shows all other parts. The exit code is 1 if something needs a
//! person, otherwise 0. A running process continues: the verb reads the files of the embedded engine beside it.

mod destination;
mod gather;
mod text;

use std::io::IsTerminal;
use std::time::Duration;

use url::Url;

use super::output::{self, AnsiPaint};
use super::{CliFailure, SettingFiles, admin_listener};
use crate::config::{RunPurpose, Settings};
use crate::status::DeploymentStatus;

/// The time between two pages of `--watch`.
const EVERY: Duration = Duration::from_secs(3);
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// The help of `--json`.
const JSON: &str = r#"JSON (an unknown value is null):
  {"at", "version", "engine": "embedded"|"rabbitmq", "deployment": folder, host/vhost or URL,
   "needs_attention": [sentence, ..],
   "process": {"address", "state": "ready"|"not_ready"|"not_reachable", "version", "error",
               "clock_ahead_seconds"},
   "queue": {"workers", "unroutable", "unsafe_policies", "without_majority", "error"},
   "spool": {"messages", "oldest_age_seconds"},
   "certificates": [{"peer", "kind": "server"|"client", "subject", "expires"}],
   "destinations": [{"destination", "breaker": "passing"|"tripped"|"probing", "waiting", "in_flight",
                     "oldest_age_seconds", "partitions", "consumed", "dead_letters"}],
   "directory": {"kind", "conversations": {state: N}, "error"},
   "dead_letters": {"total", "by_reason": {reason: N}, "error"}}

The breaker, in_flight and oldest_age_seconds come from the process at admin.listen. On RabbitMQ this is one worker of
several: use --admin URL for each other worker, or the metrics. With --admin, only that process is asked, and its
admin.token must be set to see the reasons of the dead letters.

Exit codes: 0 nothing needs a person, 1 something does (also: not running)."#;

#[derive(Debug, clap::Args)]
#[command(after_help = JSON)]
pub(super) struct StatusArgs {
    /// Print JSON; with --watch one line for each time
    #[arg(long)]
    json: bool,
    /// Show the state again every 3 seconds until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// Ask only the process with this admin listener, for example http://worker-1:9464; neither broker nor directory
    #[arg(long, value_name = "URL", value_parser = admin_listener::address)]
    admin: Option<Url>,
}

async fn gather(args: &StatusArgs, settings: &Settings, is_first: bool) -> DeploymentStatus {
    match &args.admin {
        Some(listener) => Box::pin(gather::remote(settings, listener)).await,
        None => Box::pin(gather::local(settings, is_first)).await,
    }
}

pub(super) async fn run(args: &StatusArgs, sources: &SettingFiles) -> Result<(), CliFailure> {
    let settings = sources.settings_for_admin(RunPurpose::Admin)?;
    let paint = AnsiPaint::stdout(&sources.environment);
    let mut is_first = true;
    loop {
        let report = tokio::select! {
            report = gather(args, &settings, is_first) => report,
            _ = tokio::signal::ctrl_c(), if args.watch => return Ok(()),
        };
        match (args.json, args.watch) {
            (true, false) => output::json(&report)?,
            (true, true) => output::line(serde_json::to_string(&report).map_err(std::io::Error::other)?)?,
            (false, watch) => {
                let clear = if watch && std::io::stdout().is_terminal() { CLEAR } else { "" };
                output::line(format_args!("{clear}{}", text::page(&report, output::columns(), paint)))?;
            }
        }
        if !args.watch {
            return if report.needs_attention.is_empty() { Ok(()) } else { Err(CliFailure::Told) };
        }
        is_first = false;
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}
