//! `causeway servicenow`: sets up the instance over its Table API.
//!
//! Guarantees: only records that carry our mark are ever changed.
//! Not responsible for: the list of records (`records.rs`), the differences (`plan.rs`), writing (`install.rs`).

mod diff;
mod install;
mod plan;
mod queues;
mod records;
mod rule;
mod stock;

use std::path::PathBuf;

use clap::Subcommand;
use secrecy::SecretString;

use super::{Failure, Sources};
use crate::app;
use crate::config::{Api, Login, Purpose, Settings};
use crate::platform::{CallError, Http, HttpSettings, ServiceNow, check};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Create or update all records: the REST Message with its method and headers, the Business Rule, and the retry
    Install(install::Args),
    /// List the queues with their Queue IDs
    Queues(queues::Args),
    /// Print the script of the Business Rule and of its Script Action, ready to paste
    Rule(rule::Args),
}

/// Another user than that of the settings, for actions that the integration user should not be allowed to do.
#[derive(Debug, clap::Args)]
struct Who {
    /// Log in as this user, for example an administrator, instead of as servicenow.username
    #[arg(long = "as", value_name = "USER", requires = "password_file")]
    user: Option<String>,
    /// File with that user's password
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
}

pub(super) async fn run(args: Args, sources: &Sources) -> Result<(), Failure> {
    match args.what {
        What::Install(args) => {
            let settings = settings(sources)?;
            Box::pin(install::run(args, &settings)).await
        }
        What::Queues(args) => {
            let settings = settings(sources)?;
            Box::pin(queues::run(args, &settings)).await
        }
        What::Rule(args) => rule::run(&args, &sources.settings_for_desk(Purpose::Desk)?),
    }
}

fn settings(sources: &Sources) -> Result<Settings, Failure> {
    let settings = sources.settings_for_desk(Purpose::Check)?;
    if settings.servicenow.is_none() {
        return Err(Failure::Usage(
            "set servicenow.host_url and the login: no instance is configured".into(),
        ));
    }
    Ok(settings)
}

/// A client of the instance, with the login of the settings or of `--as`.
fn client(settings: &Settings, who: &Who) -> Result<ServiceNow, Failure> {
    let mut settings = settings.clone();
    if let Some(servicenow) = &mut settings.servicenow {
        // Reading and writing records does not depend on the chat API.
        servicenow.api = Api::ConnectSupport;
    }
    if let (Some(user), Some(file)) = (&who.user, &who.password_file)
        && let Some(servicenow) = &mut settings.servicenow
    {
        let text = std::fs::read_to_string(file)
            .map_err(|error| Failure::Usage(format!("cannot read {}: {error}", file.display())))?;
        let password = SecretString::from(text.trim_end_matches(['\r', '\n']));
        servicenow.login = Login::Basic { username: user.clone(), password };
    }
    let timeout = settings.delivery.servicenow.timeout;
    let http = Http::new(&HttpSettings { timeout, user_agent: app::USER_AGENT.to_owned() });
    let client = app::servicenow(http.map_err(anyhow::Error::from)?, &settings)?;
    client.ok_or_else(|| Failure::Usage("servicenow.host_url is not set".into()))
}

/// The user whose messages are ours, independent of the user that runs the verb.
fn own_user(settings: &Settings) -> Option<&str> {
    match &settings.servicenow.as_ref()?.login {
        Login::Basic { username, .. } => Some(username),
        Login::OAuth { username, .. } => username.as_deref(),
    }
}

/// The roles that may change or see a table.
fn roles(table: &str) -> &'static str {
    match table {
        "sys_script" => "business_rule_admin (or admin)",
        "sys_properties" | "sysevent_register" | "sysevent_script_action" => "admin",
        "chat_queue" => "chat_admin (or agent_admin)",
        "awa_queue" => "awa_admin (or awa_manager)",
        _ => "web_service_admin (or admin)",
    }
}

/// The error of a table, with the next step.
fn explained(table: &str, error: &CallError) -> String {
    let roles = roles(table);
    let next = match error.status() {
        Some(403 | 404) => format!(
            "the user lacks permission: give it the role {roles}, or run this once as an administrator with \
             --as USER --password-file FILE"
        ),
        _ => check::next_step(error).to_owned(),
    };
    format!("{table}: {}\n  -> {next}", error.with_words())
}

fn failed(table: &str, error: &CallError) -> Failure {
    Failure::Failed(anyhow::anyhow!("{}", explained(table, error)))
}
