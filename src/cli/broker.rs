//! `causeway broker`: prepares RabbitMQ for processes whose users may not make queues.
//!
//! Guarantees: `definitions` connects to nothing and changes nothing, and its output contains no secret. `declare` deletes
//! and changes nothing that exists.
//! Not responsible for: the content (`queue/rabbit/definitions.rs`, `queue/rabbit/topology.rs`).

use std::time::Duration;

use super::output;
use super::{CliFailure, SettingFiles};
use crate::app;
use crate::config::{RunPurpose, Settings};
use crate::queue::rabbit::{BrokerUrl, DefinitionSettings, definitions};

const HELP: &str = "The settings decide which queues exist: use those of ingress and worker together. The users \
    causeway-ingress, causeway-worker and causeway-operator come without a password, so the broker refuses them. Put a hash into \
    the file (rabbitmqctl hash_password PASSWORD prints one) or set a password after the import (rabbitmqctl change_password \
    causeway-worker PASSWORD). Import: rabbitmqctl import_definitions FILE, or definitions.local.path in rabbitmq.conf. Then set \
    queue.declare = \"check\" and give each role the queue.url of its own user.";

const DECLARE_HELP: &str = "The settings decide which queues exist: use those of ingress and worker together, and a queue.url whose \
    user may configure, write and read everything that begins with queue.prefix. Run it before the first start and after a change of \
    these settings; it can run at any time, also while messages pass. Another number of partitions is refused.";

#[derive(Debug, clap::Args)]
pub(super) struct BrokerArgs {
    #[command(subcommand)]
    verb: BrokerVerb,
}

#[derive(Debug, clap::Subcommand)]
enum BrokerVerb {
    /// Print exchanges, queues, bindings, policies and a user for each role as definitions of RabbitMQ (JSON)
    Definitions(DefinitionsArgs),
    /// Make the exchanges, queues and bindings with the user of queue.url, for processes with queue.declare = "check"
    Declare(DeclareArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = DECLARE_HELP)]
struct DeclareArgs {
    /// How long to wait for the broker
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    wait: Duration,
}

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
struct DefinitionsArgs {
    /// The virtual host; without it that of queue.url, or causeway
    #[arg(long, value_name = "NAME")]
    vhost: Option<String>,
    /// The begin of the users' names
    #[arg(long, value_name = "NAME", default_value = "causeway")]
    users: String,
    /// The version of RabbitMQ: an older broker does not know every entry of the policies
    #[arg(long, value_name = "VERSION", default_value = "4.3", value_parser = version)]
    broker_version: (u32, u32),
    /// Give the worker's user the rights of the operator, too: for admin.token or dead.kept in a worker, and for verbs that
    /// are run in its container
    #[arg(long)]
    worker_is_operator: bool,
}

fn version(text: &str) -> Result<(u32, u32), String> {
    let mut parts = text.split('.').map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        (Some(Ok(major)), None) => Ok((major, 0)),
        _ => Err("expected a version such as 4.3 or 3.10.8".to_owned()),
    }
}

pub(super) async fn run(args: BrokerArgs, sources: &SettingFiles) -> Result<(), CliFailure> {
    let settings = sources.settings_for_admin(RunPurpose::Admin)?;
    match args.verb {
        BrokerVerb::Definitions(args) => print_definitions(args, &settings),
        BrokerVerb::Declare(args) => {
            app::declare(&settings, args.wait).await?;
            Ok(output::line(declared(&settings))?)
        }
    }
}

/// The result for the operator.
fn declared(settings: &Settings) -> String {
    let destinations: Vec<_> = settings.destinations().iter().map(|one| one.as_str().to_owned()).collect();
    format!(
        "{}: the exchanges and queues of {} with {} partitions each are there",
        app::place(settings),
        destinations.join(", "),
        settings.queue.partitions
    )
}

fn print_definitions(args: DefinitionsArgs, settings: &Settings) -> Result<(), CliFailure> {
    let of_url = settings.queue.url.as_ref().map(BrokerUrl::vhost);
    let vhost = args.vhost.or(of_url).unwrap_or_else(|| "causeway".to_owned());
    let DefinitionsArgs { users, broker_version: version, worker_is_operator, .. } = args;
    let made = DefinitionSettings { vhost, users, version, worker_is_operator };
    Ok(output::json(&definitions(&settings.queue.names, &app::tuning(settings), &made))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_has_one_to_three_numbers() {
        for (text, expected) in [("4.3", (4, 3)), ("3.10.8", (3, 10)), ("4", (4, 0))] {
            assert_eq!(version(text), Ok(expected));
        }
        for wrong in ["", "x", "4.x", "-1"] {
            assert!(version(wrong).is_err(), "{wrong}");
        }
    }
}
