//! The command line: one file for each verb.
//!
//! Guarantees: results go to standard output; questions, progress and errors to standard error; nothing is asked where
//! nobody sits at a terminal. Leaves to others: the exit code (`main.rs`), the work itself.

mod ask;
mod check;
mod conversations;
mod dead;
mod demo;
mod folder;
mod healthcheck;
mod output;
mod prove;
mod sandbox;
mod servicenow;

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

use crate::app::{self, Roles};
use crate::config::{Environment, Problems, Purpose, Settings};
use crate::telemetry::{LogSettings, start_logging};

/// Carries chat conversations between Kore.ai's XO Platform and ServiceNow, and loses none of them.
#[derive(Debug, Parser)]
#[command(
    name = "causeway",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "Settings come from a TOML file and from environment variables (CAUSEWAY_SERVICENOW__HOST_URL is \
                  servicenow.host_url). `causeway check --print-defaults` prints every key with its default and its \
                  meaning; `causeway check` tries them out.\n\nExit codes: 0 done, 1 failed, 2 usage, 78 settings."
)]
pub struct Cli {
    /// The settings file, TOML.
    #[arg(long, global = true, env = "CAUSEWAY_CONFIG", value_name = "FILE", hide_env_values = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// See it work, in half a minute and with nothing set up: two chats, an outage, a dead letter, a replay
    Demo(demo::Args),
    /// Take and deliver messages: ingress and worker in one process
    Serve,
    /// Take messages: HTTP to queue. As many of these as needed, with RabbitMQ
    Ingress,
    /// Deliver messages: queue to ServiceNow and XO. As many of these as needed, with RabbitMQ
    Worker,
    /// Give the files of conversations to who has a link: GET /v1/files/{token}
    Files,
    /// Stand in for ServiceNow and XO, scriptable over HTTP
    Sandbox(Box<sandbox::Args>),
    /// Try the settings out: broker, directory, ServiceNow, XO; a line each, a hint each
    Check(check::Args),
    /// Ask a running process whether it is ready, for container health checks
    Healthcheck(healthcheck::Args),
    /// Look at dead letters, and replay, export or discard them
    Dead(dead::Args),
    /// Look at conversations
    Conversations(conversations::Args),
    /// Set ServiceNow up: its REST Message and Business Rule, its queues
    #[command(name = "servicenow")]
    ServiceNow(Box<servicenow::Args>),
    /// Prove the promises: numbered messages through kills, cuts and outages, then a ledger; exit 1 if one broke
    Prove(Box<prove::Args>),
}

/// Why a verb did not do what was asked.
#[derive(Debug)]
pub enum Failure {
    /// The settings have mistakes.
    Settings(Problems),
    /// What was asked for cannot be asked for like that.
    Usage(String),
    /// It failed.
    Failed(anyhow::Error),
    /// It failed, and the output already says so.
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

/// What a verb reads its settings from.
#[derive(Debug)]
struct Sources {
    file: Option<PathBuf>,
    environment: Environment,
}

impl Sources {
    fn settings(&self, purpose: Purpose) -> Result<Settings, Failure> {
        // An empty CAUSEWAY_CONFIG is how compose says that there is none.
        let file: Option<&Path> = self.file.as_deref().filter(|path| !path.as_os_str().is_empty());
        Ok(Settings::load(file, &self.environment, purpose)?)
    }

    /// The settings for an operator's verb, whose output no ordinary log line should disturb.
    fn settings_for_desk(&self, purpose: Purpose) -> Result<Settings, Failure> {
        let settings = self.settings(purpose)?;
        let level = if settings.log.level == "info" { "warn" } else { settings.log.level.as_str() };
        start_logging(&LogSettings { level: level.to_owned(), ..settings.log.clone() });
        Ok(settings)
    }
}

/// Does what was asked for.
pub async fn run(cli: Cli, environment: Environment) -> Result<(), Failure> {
    let sources = Sources { file: cli.config, environment };
    match cli.verb {
        // No settings: it shows the same on every machine.
        Verb::Demo(args) => Box::pin(demo::run(&args, output::Paint::stdout(&sources.environment))).await,
        // As the demo: its processes have settings of their own.
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
