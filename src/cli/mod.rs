//! The command line: one file for each verb.
//!
//! Guarantees: results go to standard output; questions, progress and errors go to standard error. No verb asks a
//! question without a terminal.
//! Not responsible for: the exit code (`main.rs`) and the work itself.

mod ask;
mod check;
mod conversations;
mod dead;
mod demo;
mod folder;
mod healthcheck;
mod operator;
mod output;
mod prove;
mod sandbox;
mod servicenow;

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

use crate::app::{self, Roles};
use crate::config::{Environment, Problems, Purpose, Settings};
use crate::telemetry::{LogSettings, start_logging};

/// Carries chat conversations between Kore.ai's XO Platform and ServiceNow without losing a message.
#[derive(Debug, Parser)]
#[command(
    name = "causeway",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "Settings come from a TOML file and from environment variables (CAUSEWAY_SERVICENOW__HOST_URL is \
                  servicenow.host_url). `causeway check --print-defaults` prints every key with its default and its \
                  meaning; `causeway check` tests the settings.\n\nExit codes: 0 done, 1 failed, 2 usage, 78 settings."
)]
pub struct Cli {
    /// The settings file (TOML)
    #[arg(long, global = true, env = "CAUSEWAY_CONFIG", value_name = "FILE", hide_env_values = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// See Causeway work in half a minute, without any setup: two chats, an outage, a dead letter, a replay
    Demo(demo::Args),
    /// Accept and deliver messages: ingress and worker in one process
    Serve,
    /// Accept messages: HTTP to queue. With RabbitMQ, run as many ingresses as needed
    Ingress,
    /// Deliver messages: queue to ServiceNow and XO. With RabbitMQ, run as many workers as needed
    Worker,
    /// Serve the files of conversations to holders of a link: GET /v1/files/{token}
    Files,
    /// Simulate ServiceNow and XO, scriptable over HTTP
    Sandbox(Box<sandbox::Args>),
    /// Test the settings: broker, directory, ServiceNow, XO; one line and one hint for each
    Check(check::Args),
    /// Ask a running process whether it is ready (for container health checks)
    Healthcheck(healthcheck::Args),
    /// Inspect, replay, export or discard dead letters
    Dead(dead::Args),
    /// Inspect conversations
    Conversations(conversations::Args),
    /// Configure ServiceNow: REST Message, Business Rule, queues
    #[command(name = "servicenow")]
    ServiceNow(Box<servicenow::Args>),
    /// Test the delivery guarantees: send numbered messages during kills, network cuts and outages, then print a
    /// report; exit 1 if a guarantee is broken
    Prove(Box<prove::Args>),
}

/// The reason why a verb failed.
#[derive(Debug)]
pub enum Failure {
    /// The settings contain mistakes.
    Settings(Problems),
    /// The arguments are not usable, or the settings do not allow them.
    Usage(String),
    /// The work failed.
    Failed(anyhow::Error),
    /// The work failed, and the output already says so.
    Told,
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::Settings(problems)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// The sources of a verb's settings.
#[derive(Debug)]
struct Sources {
    file: Option<PathBuf>,
    environment: Environment,
}

impl Sources {
    fn settings(&self, purpose: Purpose) -> Result<Settings, Failure> {
        // Docker Compose passes an empty CAUSEWAY_CONFIG if no settings file is configured.
        let file: Option<&Path> = self.file.as_deref().filter(|path| !path.as_os_str().is_empty());
        Ok(Settings::load(file, &self.environment, purpose)?)
    }

    /// The settings for an operator's verb. The log level `info` becomes `warn`, so that log lines do not disturb the
    /// output. The lines of the audit remain.
    fn settings_for_desk(&self, purpose: Purpose) -> Result<Settings, Failure> {
        let settings = self.settings(purpose)?;
        let level = if settings.log.level == "info" { "warn" } else { settings.log.level.as_str() };
        start_logging(&LogSettings { level: level.to_owned(), ..settings.log.clone() });
        Ok(settings)
    }
}

/// Runs the verb of the command line.
pub async fn run(cli: Cli, environment: Environment) -> Result<(), Failure> {
    let sources = Sources { file: cli.config, environment };
    match cli.verb {
        // The demo reads no settings, so it is the same on every machine.
        Verb::Demo(args) => Box::pin(demo::run(&args, output::Paint::stdout(&sources.environment))).await,
        // The processes that `prove` starts have settings of their own.
        Verb::Prove(args) => Box::pin(prove::run(*args, output::Paint::stdout(&sources.environment))).await,
        Verb::Serve => serve(&sources, Purpose::Serve, Roles::Serve).await,
        Verb::Ingress => serve(&sources, Purpose::Ingress, Roles::Ingress).await,
        Verb::Worker => serve(&sources, Purpose::Worker, Roles::Worker).await,
        Verb::Files => {
            let settings = sources.settings(Purpose::Files)?;
            start_logging(&settings.log);
            Ok(Box::pin(app::run_files(&settings)).await?)
        }
        Verb::Sandbox(args) => Box::pin(sandbox::run(*args)).await,
        Verb::Check(args) => Box::pin(check::run(&args, &sources)).await,
        Verb::Healthcheck(args) => healthcheck::run(&args, &sources).await,
        Verb::Dead(args) => Box::pin(dead::run(args, &sources)).await,
        Verb::Conversations(args) => Box::pin(conversations::run(args, &sources)).await,
        Verb::ServiceNow(args) => Box::pin(servicenow::run(*args, &sources)).await,
    }
}

/// `serve`, `ingress` and `worker`: the same process with different roles.
async fn serve(sources: &Sources, purpose: Purpose, roles: Roles) -> Result<(), Failure> {
    let settings = sources.settings(purpose)?;
    start_logging(&settings.log);
    Ok(Box::pin(app::run(settings, roles)).await?)
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
