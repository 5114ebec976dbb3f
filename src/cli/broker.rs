//! `causeway broker definitions`: prints what an administrator imports into RabbitMQ before the first start.
//!
//! Guarantees: nothing is connected and nothing is changed. The output contains no secret.
//! Not responsible for: the content (`queue/rabbit/definitions.rs`).

use super::output;
use super::{CliFailure, SettingFiles};
use crate::app;
use crate::config::RunPurpose;
use crate::queue::rabbit::{BrokerUrl, DefinitionSettings, definitions};

const HELP: &str = "The settings decide which queues exist: use those of ingress and worker together. The users \
    causeway-ingress, causeway-worker and causeway-operator come without a password, so the broker refuses them. Put a hash into \
    the file (rabbitmqctl hash_password PASSWORD prints one) or set a password after the import (rabbitmqctl change_password \
    causeway-worker PASSWORD). Import: rabbitmqctl import_definitions FILE, or definitions.local.path in rabbitmq.conf. Then set \
    queue.declare = \"check\" and give each role the queue.url of its own user.";

#[derive(Debug, clap::Args)]
pub(super) struct BrokerArgs {
    #[command(subcommand)]
    verb: BrokerVerb,
}

#[derive(Debug, clap::Subcommand)]
enum BrokerVerb {
    /// Print exchanges, queues, bindings, policies and a user for each role as definitions of RabbitMQ (JSON)
    Definitions(DefinitionsArgs),
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
}

fn version(text: &str) -> Result<(u32, u32), String> {
    let mut parts = text.split('.').map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        (Some(Ok(major)), None) => Ok((major, 0)),
        _ => Err("expected a version such as 4.3 or 3.10.8".to_owned()),
    }
}

pub(super) fn run(args: BrokerArgs, sources: &SettingFiles) -> Result<(), CliFailure> {
    let BrokerVerb::Definitions(args) = args.verb;
    let settings = sources.settings_for_admin(RunPurpose::Admin)?;
    let of_url = settings.queue.url.as_ref().map(BrokerUrl::vhost);
    let vhost = args.vhost.or(of_url).unwrap_or_else(|| "causeway".to_owned());
    let made = DefinitionSettings { vhost, users: args.users, version: args.broker_version };
    Ok(output::json(&definitions(&settings.queue.names, &app::tuning(&settings), &made))?)
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
