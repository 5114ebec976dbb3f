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

use super::{CliFailure, SettingFiles};
use crate::app;
use crate::config::{RunPurpose, Settings};
use crate::platform::{CallError, ServiceNow, check};
use crate::platform::{ChatApi, ServiceNowLogin};

#[derive(Debug, clap::Args)]
pub(super) struct ServiceNowArgs {
    #[command(subcommand)]
    what: ServiceNowVerb,
}

#[derive(Debug, Subcommand)]
enum ServiceNowVerb {
    /// Create or update all records: the REST Message with its method and headers, the Business Rule, and the retry
    Install(install::InstallArgs),
    /// List the queues with their Queue IDs
    Queues(queues::QueuesArgs),
    /// Print the script of the Business Rule and of its Script Action, ready to paste
    Rule(rule::RuleArgs),
}

/// Another user than that of the settings, for actions that the integration user should not be allowed to do.
#[derive(Debug, clap::Args)]
struct InstallerLogin {
    /// Log in as this user, for example an administrator, instead of as servicenow.username
    #[arg(long = "as", value_name = "USER", requires = "password_file")]
    user: Option<String>,
    /// File with that user's password
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
}

pub(super) async fn run(args: ServiceNowArgs, sources: &SettingFiles) -> Result<(), CliFailure> {
    match args.what {
        ServiceNowVerb::Install(args) => {
            let settings = settings(sources)?;
            Box::pin(install::run(args, &settings)).await
        }
        ServiceNowVerb::Queues(args) => {
            let settings = settings(sources)?;
            Box::pin(queues::run(args, &settings)).await
        }
        ServiceNowVerb::Rule(args) => rule::run(&args, &sources.settings_for_admin(RunPurpose::Admin)?),
    }
}

fn settings(sources: &SettingFiles) -> Result<Settings, CliFailure> {
    let settings = sources.settings_for_admin(RunPurpose::Check)?;
    if settings.servicenow.is_none() {
        return Err(CliFailure::Usage(
            "set servicenow.host_url and the login: no instance is configured".into(),
        ));
    }
    Ok(settings)
}

/// A client of the instance, with the login of the settings or of `--as`.
fn client(settings: &Settings, who: &InstallerLogin) -> Result<ServiceNow, CliFailure> {
    let mut settings = settings.clone();
    if let Some(servicenow) = &mut settings.servicenow {
        // Reading and writing records does not depend on the chat API.
        servicenow.api = ChatApi::ConnectSupport;
    }
    if let (Some(user), Some(file)) = (&who.user, &who.password_file)
        && let Some(servicenow) = &mut settings.servicenow
    {
        let text = std::fs::read_to_string(file)
            .map_err(|error| CliFailure::Usage(format!("cannot read {}: {error}", file.display())))?;
        let password = SecretString::from(text.trim_end_matches(['\r', '\n']));
        servicenow.login = ServiceNowLogin::Basic { username: user.clone(), password };
    }
    let clients = app::HttpClients::new(&settings).map_err(anyhow::Error::from)?;
    let client = app::servicenow(clients.servicenow, &settings)?;
    client.ok_or_else(|| CliFailure::Usage("servicenow.host_url is not set".into()))
}

/// The user whose messages are ours, independent of the user that runs the verb.
fn own_user(settings: &Settings) -> Option<&str> {
    match &settings.servicenow.as_ref()?.login {
        ServiceNowLogin::Basic { username, .. } => Some(username),
        ServiceNowLogin::OAuth { username, .. } => username.as_deref(),
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

fn failed(table: &str, error: &CallError) -> CliFailure {
    CliFailure::Failed(anyhow::anyhow!("{}", explained(table, error)))
}
