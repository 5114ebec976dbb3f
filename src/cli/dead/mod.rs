//! `causeway dead list|count|show|replay|discard|export|import`: the operator's commands for dead letters.
//!
//! `list --json` prints `{"dead_letters": [{"id", "destination", "kind", "conversation_id", "group", "reason", "detail",
//! "died_at", "attempts"}], "total": N}`. `count --json` prints `{"dead_letters": N, "groups": [{"destination", "reason",
//! "count", "lanes", "first_died_at", "last_died_at", "answers": [{"answer", "count"}]}]}`. `show --json` prints `{"matching": N, "dead_letters": [D, ..]}`, `export` prints one `D` on
//! each line (see `dead_letters/json.rs` for `D`).
//!
//! Guarantees: only `show --reveal` and `export` print message text. An action that cannot be undone needs a
//! confirmation.

mod import;
mod list;
mod replay;
mod show;
mod which;

use std::collections::HashSet;
use std::io::Write;
use std::path::PathBuf;

use super::{CliFailure, SettingFiles, confirm, operator, output};
use crate::app;
use crate::config::{RunPurpose, Settings};
use crate::dead_letters::filter::{self, IdOrEnd};
use crate::dead_letters::{self, DeadLetterError, DeadLetterFilter, json};
use crate::queue::Queue;
use crate::telemetry::{Act, Ending, audit};
use which::FilterArgs;

#[derive(Debug, clap::Args)]
pub(super) struct DeadArgs {
    #[command(subcommand)]
    verb: DeadVerb,
}

#[derive(Debug, clap::Subcommand)]
enum DeadVerb {
    /// List dead letters, one line for each, newest last
    List {
        #[command(flatten)]
        which: FilterArgs,
        /// Maximum number of dead letters, the newest ones; 0 lists all
        #[arg(long, default_value_t = 0, value_name = "N")]
        limit: usize,
        /// Print JSON: {"dead_letters": [{"id", "destination", "kind", "conversation_id", "group", "reason", "detail",
        /// "died_at", "attempts"}], "total": N}
        #[arg(long)]
        json: bool,
    },
    /// Count dead letters by destination, reason and the platform's last answer
    Count {
        #[command(flatten)]
        which: FilterArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show each dead letter with its attempts
    Show {
        /// Only these: their ids, or the ends of their ids as `list` shows them
        #[arg(value_name = "ID", value_parser = filter::id_or_end)]
        ids: Vec<IdOrEnd>,
        #[command(flatten)]
        which: FilterArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Print the text of the messages, too
        #[arg(long)]
        reveal: bool,
        /// Maximum number of dead letters; 0 shows all
        #[arg(long, default_value_t = 20, value_name = "N")]
        limit: usize,
    },
    /// Redeliver dead letters in their original order, then report how many were delivered and how many died again.
    /// Safe to interrupt: run it again to continue
    Replay(replay::ReplayArgs),
    /// Remove dead letters permanently
    Discard {
        #[command(flatten)]
        which: FilterArgs,
        /// Count what would be removed, then exit
        #[arg(long)]
        dry_run: bool,
        /// Do not ask for confirmation
        #[arg(long)]
        yes: bool,
    },
    /// Write dead letters as JSON Lines, with the text of the messages; the queue keeps them
    Export {
        #[command(flatten)]
        which: FilterArgs,
        /// Write to this new file, readable by its owner only, instead of to standard output
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Do not ask for confirmation
        #[arg(long)]
        yes: bool,
    },
    /// Write the dead letters of an export into their queues again. Every line is checked first. A message that is among
    /// the dead letters already is left out, so an import can be repeated
    Import {
        /// The file that `export` wrote (JSON Lines); - reads standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Check the file and count what would be imported, then exit
        #[arg(long)]
        dry_run: bool,
        /// Print JSON: {"imported": N, "already_there": N, "dry_run": BOOL}
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(args: DeadArgs, sources: &SettingFiles) -> Result<(), CliFailure> {
    let settings = sources.settings_for_admin(RunPurpose::Admin)?;
    let queue = app::open_admin(&settings).await?;
    let done = Box::pin(carry_out(args.verb, &queue, &settings)).await;
    queue.close().await;
    done
}

async fn carry_out(verb: DeadVerb, queue: &Queue, settings: &Settings) -> Result<(), CliFailure> {
    match verb {
        DeadVerb::List { which, limit, json } => {
            list::list(queue, &which.filter(queue, settings).await?, limit, json).await
        }
        DeadVerb::Count { which, json } => {
            list::count(queue, &which.filter(queue, settings).await?, json).await
        }
        DeadVerb::Show { ids, mut which, json, reveal, limit } => {
            which.id.extend(ids);
            show::show(queue, &which.filter(queue, settings).await?, json, reveal, limit).await
        }
        DeadVerb::Replay(args) => Box::pin(replay::run(args, queue, settings)).await,
        DeadVerb::Discard { which, dry_run, yes } => {
            discard(queue, &which.filter(queue, settings).await?, dry_run, yes).await
        }
        DeadVerb::Import { file, dry_run, json } => import::run(queue, &file, dry_run, json).await,
        DeadVerb::Export { which, output, yes } => {
            export(queue, &which.filter(queue, settings).await?, output, yes).await
        }
    }
}

impl From<DeadLetterError> for CliFailure {
    fn from(error: DeadLetterError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<crate::queue::QueueError> for CliFailure {
    fn from(error: crate::queue::QueueError) -> Self {
        Self::Failed(error.into())
    }
}

async fn discard(
    queue: &Queue,
    filter: &DeadLetterFilter,
    dry_run: bool,
    yes: bool,
) -> Result<(), CliFailure> {
    let entries = dead_letters::list(queue, filter).await?;
    let selected: HashSet<_> = entries.iter().map(|entry| entry.key).collect();
    if selected.is_empty() {
        return Ok(output::line("no dead letters")?);
    }
    let what = output::counted(selected.len() as u64, "dead letter");
    if dry_run {
        output::line(list::counts(&entries))?;
        return Ok(output::line(format_args!("would remove {what}"))?);
    }
    if !confirm::agreed(&format!("Remove {what} for good?"), yes).await? {
        return Ok(output::line("nothing was removed")?);
    }
    let bar = replay::bar(selected.len() as u64);
    let mut gone = 0;
    let done = dead_letters::discard(queue, filter, &selected, |count| {
        gone = count;
        bar.set_position(count);
    });
    let done = done.await;
    bar.finish_and_clear();
    let trouble = done.as_ref().err().map(ToString::to_string);
    let ending = trouble.as_deref().map_or(Ending::Done(None), Ending::Failed);
    audit(Act::Discard, &operator::here(), filter.for_audit(), gone, ending);
    Ok(output::line(format_args!("removed {}", output::counted(done?, "dead letter")))?)
}

async fn export(
    queue: &Queue,
    filter: &DeadLetterFilter,
    file: Option<PathBuf>,
    yes: bool,
) -> Result<(), CliFailure> {
    let count = dead_letters::list(queue, filter).await?.len();
    let what = output::counted(count as u64, "dead letter");
    if count > 0 && !confirm::agreed(&format!("Write {what} with the text of the messages?"), yes).await? {
        return Ok(output::line("nothing was written")?);
    }
    let Some(path) = file else {
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        return export_to(queue, filter, &mut out).await;
    };
    let mut out = std::io::BufWriter::new(private_file(&path)?);
    export_to(queue, filter, &mut out).await?;
    out.into_inner().map_err(|error| anyhow::Error::from(error.into_error()))?.sync_all()?;
    Ok(output::line(format_args!("wrote {what} to {}", path.display()))?)
}

async fn export_to(queue: &Queue, filter: &DeadLetterFilter, out: &mut impl Write) -> Result<(), CliFailure> {
    let mut written = 0;
    let looked = dead_letters::look::<CliFailure>(queue, filter, |dead| {
        serde_json::to_writer(&mut *out, &json::letter(dead, true)).map_err(std::io::Error::from)?;
        out.write_all(b"\n")?;
        written += 1;
        Ok(())
    });
    let done = looked.await.and_then(|()| Ok(out.flush()?));
    let ending = if done.is_ok() { Ending::Done(None) } else { Ending::Failed("not all were written") };
    audit(Act::Export, &operator::here(), filter.for_audit(), written, ending);
    done
}

/// Creates a new file that only its owner can read.
fn private_file(path: &std::path::Path) -> Result<std::fs::File, CliFailure> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
        .open(path)
        .map_err(|error| CliFailure::Usage(format!("cannot create {}: {error}", path.display())))
}
