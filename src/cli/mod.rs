//! The command line: one file for each verb.
//!
//! Guarantees: results go to standard output; questions, progress and errors go to standard error. No verb asks a
//! question without a terminal.
//! Not responsible for: the exit code (`main.rs`) and the work itself.

mod admin_listener;
mod broker;
mod check;
mod confirm;
mod conversations;
mod dead;
#[cfg(feature = "tools")]
mod demo;
#[cfg(feature = "tools")]
mod folder;
mod healthcheck;
mod manual;
mod operator;
mod output;
mod pilot;
#[cfg(feature = "tools")]
mod prove;
#[cfg(feature = "tools")]
mod sandbox;
mod servicenow;
mod spool;
mod status;
mod trace;

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

use crate::app::{self, ServiceRoles};
use crate::config::{Environment, ReloadableSettings, RunPurpose, SettingProblems, Settings};
use crate::telemetry::{LogSettings, start_logging};

/// The version, the revision and the date of the revision; `deploy/build.rs` finds the latter two.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILD_REVISION"), ")");

/// Carries chat conversations between Kore.ai's XO Platform and ServiceNow without losing a message.
#[derive(Debug, Parser)]
#[command(
    name = "causeway",
    version = VERSION,
    max_term_width = 100,
    after_help = "Settings come from a TOML file and from environment variables (CAUSEWAY_SERVICENOW__HOST_URL is \
                  servicenow.host_url). `causeway check --print-defaults` prints every key with its default and its \
                  meaning; `causeway check` tests the settings.\n\nExit codes: 0 done, 1 failed, 2 usage, 78 settings."
)]
pub struct Cli {
    /// The settings file (TOML)
    #[arg(long, global = true, env = "CAUSEWAY_CONFIG", value_name = "FILE", hide_env_values = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: CliVerb,
}

#[derive(Debug, Subcommand)]
enum CliVerb {
    /// See Causeway work in half a minute, without any setup: two chats, an outage, a dead letter, a replay
    #[cfg(feature = "tools")]
    Demo(demo::DemoArgs),
    /// Accept and deliver messages: ingress and worker in one process
    Serve,
    /// Accept messages: HTTP to queue. With RabbitMQ, run as many ingresses as needed
    Ingress,
    /// Deliver messages: queue to ServiceNow and XO. With RabbitMQ, run as many workers as needed
    Worker,
    /// Serve the admin console and its API alone, with a broker user of its own, so that the ingress needs no right to read
    /// dead letters
    Console,
    /// Serve the files of conversations to holders of a link: GET /v1/files/{token}
    Files,
    /// Simulate ServiceNow and XO, scriptable over HTTP
    #[cfg(feature = "tools")]
    Sandbox(Box<sandbox::SandboxArgs>),
    /// Test the settings: broker, directory, ServiceNow, XO; one line and one hint for each
    Check(check::CheckArgs),
    /// Show the state of a deployment on one page: breakers, waiting messages, workers, dead letters; exit 1 if it needs a
    /// person
    Status(status::StatusArgs),
    /// Show the course of one message or one conversation, both directions: accepted, attempts, delivered, dead
    Trace(trace::TraceArgs),
    /// Ask a running process whether it is ready (for container health checks)
    Healthcheck(healthcheck::HealthcheckArgs),
    /// Inspect, replay, export, import or discard dead letters
    Dead(dead::DeadArgs),
    /// Hand the spool of an ingress that never sees its broker again to another ingress
    Spool(spool::SpoolArgs),
    /// Inspect conversations, or erase one
    Conversations(conversations::ConversationsArgs),
    /// Prepare RabbitMQ: make the exchanges and queues, or print them for an administrator, with a user for each role
    Broker(broker::BrokerArgs),
    /// Configure ServiceNow: REST Message, Business Rule, queues
    #[command(name = "servicenow")]
    ServiceNow(Box<servicenow::ServiceNowArgs>),
    /// Test the delivery guarantees: send numbered messages during kills, network cuts and outages, then print a
    /// report; exit 1 if a guarantee is broken
    #[cfg(feature = "tools")]
    Prove(Box<prove::ProveArgs>),
    /// Lead a user and an agent through one real conversation, and report what no document says about the platforms
    Pilot(pilot::PilotArgs),
    /// Print a completion script for a shell, for example: causeway completions bash > /etc/bash_completion.d/causeway
    Completions(manual::CompletionsArgs),
    /// Print the manual page of Causeway, or of one verb: causeway man dead replay | man -l -
    Man(manual::ManArgs),
}

/// The reason why a verb failed.
#[derive(Debug)]
pub enum CliFailure {
    /// The settings contain mistakes.
    Settings(SettingProblems),
    /// The arguments are not usable, or the settings do not allow them.
    Usage(String),
    /// The work failed.
    Failed(anyhow::Error),
    /// The work failed, and the output already says so.
    Told,
}

impl From<SettingProblems> for CliFailure {
    fn from(problems: SettingProblems) -> Self {
        Self::Settings(problems)
    }
}

impl From<anyhow::Error> for CliFailure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<std::io::Error> for CliFailure {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// The sources of a verb's settings.
#[derive(Debug)]
struct SettingFiles {
    file: Option<PathBuf>,
    environment: Environment,
}

impl SettingFiles {
    /// The settings file, if one is named.
    fn file(&self) -> Option<&Path> {
        // Docker Compose passes an empty CAUSEWAY_CONFIG if no settings file is configured.
        self.file.as_deref().filter(|path| !path.as_os_str().is_empty())
    }

    fn settings(&self, purpose: RunPurpose) -> Result<Settings, CliFailure> {
        Ok(Settings::load(self.file(), &self.environment, purpose)?)
    }

    /// The settings of a serving process, which reads them again while it runs.
    fn reloadable(&self, purpose: RunPurpose) -> Result<(Settings, ReloadableSettings), CliFailure> {
        Ok(ReloadableSettings::load(self.file(), &self.environment, purpose)?)
    }

    /// The settings for an operator's verb. The log level `info` becomes `warn`, so that log lines do not disturb the
    /// output. The lines of the audit remain.
    fn settings_for_admin(&self, purpose: RunPurpose) -> Result<Settings, CliFailure> {
        let settings = self.settings(purpose)?;
        let level = if settings.log.level == "info" { "warn" } else { settings.log.level.as_str() };
        start_logging(&LogSettings { level: level.to_owned(), ..settings.log.clone() });
        Ok(settings)
    }
}

/// Runs the verb of the command line.
pub async fn run(cli: Cli, environment: Environment) -> Result<(), CliFailure> {
    let sources = SettingFiles { file: cli.config, environment };
    match cli.verb {
        // The demo reads no settings, so it is the same on every machine.
        #[cfg(feature = "tools")]
        CliVerb::Demo(args) => {
            Box::pin(demo::run(&args, output::AnsiPaint::stdout(&sources.environment))).await
        }
        // The processes that `prove` starts have settings of their own.
        #[cfg(feature = "tools")]
        CliVerb::Prove(args) => {
            Box::pin(prove::run(*args, output::AnsiPaint::stdout(&sources.environment))).await
        }
        CliVerb::Serve => serve(&sources, RunPurpose::Serve, ServiceRoles::Serve).await,
        CliVerb::Ingress => serve(&sources, RunPurpose::Ingress, ServiceRoles::Ingress).await,
        CliVerb::Worker => serve(&sources, RunPurpose::Worker, ServiceRoles::Worker).await,
        CliVerb::Console => serve(&sources, RunPurpose::Console, ServiceRoles::Console).await,
        CliVerb::Files => {
            let (settings, source) = sources.reloadable(RunPurpose::Files)?;
            start_logging(&settings.log);
            warn(&settings);
            Ok(Box::pin(app::run_files(&settings, source)).await?)
        }
        #[cfg(feature = "tools")]
        CliVerb::Sandbox(args) => Box::pin(sandbox::run(*args)).await,
        CliVerb::Check(args) => Box::pin(check::run(&args, &sources)).await,
        CliVerb::Status(args) => Box::pin(status::run(&args, &sources)).await,
        CliVerb::Trace(args) => Box::pin(trace::run(&args, &sources)).await,
        CliVerb::Healthcheck(args) => healthcheck::run(&args, &sources).await,
        CliVerb::Dead(args) => Box::pin(dead::run(args, &sources)).await,
        CliVerb::Conversations(args) => Box::pin(conversations::run(args, &sources)).await,
        CliVerb::Spool(args) => spool::run(args, &sources),
        CliVerb::Broker(args) => Box::pin(broker::run(args, &sources)).await,
        CliVerb::ServiceNow(args) => Box::pin(servicenow::run(*args, &sources)).await,
        CliVerb::Pilot(args) => Box::pin(pilot::run(&args, &sources)).await,
        CliVerb::Completions(args) => manual::completions(&args),
        CliVerb::Man(args) => manual::man(&args),
    }
}

/// `serve`, `ingress`, `worker` and `console`: the same process with different roles.
async fn serve(sources: &SettingFiles, purpose: RunPurpose, roles: ServiceRoles) -> Result<(), CliFailure> {
    let (settings, source) = sources.reloadable(purpose)?;
    start_logging(&settings.log);
    warn(&settings);
    Ok(Box::pin(app::run(settings, source, roles)).await?)
}

fn warn(settings: &Settings) {
    for warning in &settings.warnings {
        tracing::warn!(key = warning.key, reason = warning.reason, "this setting is not safe");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
