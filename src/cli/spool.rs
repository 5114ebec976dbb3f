//! `causeway spool export|import`: hands the spool of an ingress that never sees its broker again to another ingress.
//!
//! Guarantees: both write a line to the audit log. An export beside the running ingress is refused.
//! Not responsible for: the copy (`queue/spool/transfer.rs`).

use std::path::{Path, PathBuf};

use super::{CliFailure, SettingFiles, operator, output};
use crate::config::{RunPurpose, Settings};
use crate::queue::QueueError;
use crate::queue::spool::{TransferredSpool, export_spools, import_spool};
use crate::telemetry::{Act, Ending, audit};

#[derive(Debug, clap::Args)]
pub(super) struct SpoolArgs {
    #[command(subcommand)]
    verb: SpoolVerb,
}

#[derive(Debug, clap::Subcommand)]
enum SpoolVerb {
    /// Write the spooled messages of a stopped ingress to a new file, with their texts, and set its spool aside
    Export {
        /// The new file. If several processes shared the data_dir, further files get the endings .2, .3 and so on
        file: PathBuf,
    },
    /// Add an exported file to the spool of this data_dir. A running ingress publishes it within half a minute
    Import {
        /// A file of `spool export`
        file: PathBuf,
    },
}

pub(super) fn run(args: SpoolArgs, sources: &SettingFiles) -> Result<(), CliFailure> {
    let settings = sources.settings_for_admin(RunPurpose::Admin)?;
    match args.verb {
        SpoolVerb::Export { file } => export(&settings, &file),
        SpoolVerb::Import { file } => import(&settings, &file),
    }
}

fn folder(settings: &Settings) -> PathBuf {
    settings.data_dir.join("spool")
}

fn record<T>(act: Act, file: &Path, messages: u64, done: &Result<T, QueueError>) {
    let error = done.as_ref().err().map(ToString::to_string);
    let ending = error.as_deref().map_or(Ending::Done(None), Ending::Failed);
    let filter = format!("spool file={}", file.display().to_string().escape_debug());
    audit(act, &operator::here(), filter, messages, ending);
}

fn counted(one: &TransferredSpool) -> String {
    let messages = output::counted(one.count.messages, "message");
    let dead_letters = output::counted(one.count.dead_letters, "dead letter");
    format!("{messages} and {dead_letters}")
}

fn export(settings: &Settings, file: &Path) -> Result<(), CliFailure> {
    let done = export_spools(&folder(settings), file);
    let messages = done.as_ref().map_or(0, |all| all.iter().map(|one| one.count.messages).sum());
    record(Act::Export, file, messages, &done);
    let done = done.map_err(anyhow::Error::from)?;
    if done.is_empty() {
        return Ok(output::line(format_args!("the spool in {} is empty", folder(settings).display()))?);
    }
    for one in &done {
        output::line(format_args!("exported {} to {}", counted(one), one.to.display()))?;
        if let Some(aside) = &one.aside {
            output::line(format_args!(
                "  the original is now {}: delete it after the import",
                aside.display()
            ))?;
        }
    }
    Ok(())
}

fn import(settings: &Settings, file: &Path) -> Result<(), CliFailure> {
    if settings.queue.url.is_none() {
        let reason = "set queue.url: without RabbitMQ no ingress publishes a spool";
        return Err(CliFailure::Usage(reason.to_owned()));
    }
    let done = import_spool(&folder(settings), file, &settings.destinations());
    record(Act::Import, file, done.as_ref().map_or(0, |one| one.count.messages), &done);
    let one = done.map_err(anyhow::Error::from)?;
    Ok(output::line(format_args!("imported {} into {}", counted(&one), one.to.display()))?)
}
