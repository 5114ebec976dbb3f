//! `causeway dead import`: writes the dead letters of an export into their queues again.
//!
//! Guarantees: the file is imported only if every line is a dead letter. A dead letter whose message is among the dead
//! letters already is left out, so an import can be repeated, also after it was interrupted. Memory holds a few dead
//! letters at a time. An import is written to the audit log.
//! Not responsible for: reading one line (`dead_letters/import.rs`).

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use futures_util::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use serde_json::json;

use super::super::{CliFailure, operator, output};
use super::replay;
use crate::dead_letters::import::FieldFault;
use crate::dead_letters::{self, DeadLetterFilter};
use crate::message::{DeadLetter, Destination, MessageId, PayloadDigest};
use crate::queue::Queue;
use crate::telemetry::{Act, Ending, audit};

/// The number of faults that an error lists.
const FAULTS_SHOWN: usize = 20;
/// Dead letters that wait for the queue at once. The queue keeps their order.
const AT_ONCE: usize = 64;

/// One message: two requests under one key differ by their digest.
type Identity = (MessageId, Option<PayloadDigest>);

pub(super) async fn run(queue: &Queue, file: &Path, dry_run: bool, json: bool) -> Result<(), CliFailure> {
    let file = &Export::open(file)?;
    let (count, destinations) = checked(file)?;
    for (destination, line) in destinations {
        if !queue.keeps_dead_letters(destination).await? {
            let text = format!(
                "{file}: line {line}: destination: {destination} has no queue here; nothing was imported"
            );
            return Err(anyhow::anyhow!(text).into());
        }
    }
    let entries = dead_letters::list(queue, &DeadLetterFilter::default()).await?;
    let there: HashSet<Identity> = entries.iter().map(|entry| (entry.key.id, entry.digest)).collect();
    let mut choice = ImportSelection { there, chosen: HashSet::new(), already: 0 };
    let mut imported = 0_u64;
    let done = if dry_run {
        for dead in letters(file)? {
            imported += u64::from(choice.takes(&dead?));
        }
        Ok(())
    } else {
        let done = write(queue, file, count, &mut choice, &mut imported).await;
        let ending = if done.is_ok() { Ending::Done(None) } else { Ending::Failed("not all were imported") };
        audit(Act::Import, &operator::here(), format_args!("file={}", file.escaped()), imported, ending);
        done
    };
    let already = choice.already;
    if json {
        output::json(&json!({ "imported": imported, "already_there": already, "dry_run": dry_run }))?;
        return done;
    }
    let (what, verb) =
        (output::counted(imported, "dead letter"), if dry_run { "would import" } else { "imported" });
    let told = format!("{verb} {what}, {already} already there");
    match done {
        Ok(()) => Ok(output::line(told)?),
        Err(CliFailure::Failed(error)) => {
            Err(error.context(format!("{told}; then it stopped: run it again to continue")).into())
        }
        other => other,
    }
}

/// The number of dead letters, and each destination with its first line. All faults are one error.
fn checked(file: &Export) -> Result<(u64, Vec<(Destination, usize)>), CliFailure> {
    let mut first: HashMap<Destination, usize> = HashMap::new();
    let (mut count, mut faulty, mut shown) = (0, 0_usize, Vec::new());
    for line in lines(file)? {
        let (number, text) = line?;
        match dead_letters::import::letter(&text) {
            Ok(dead) => {
                count += 1;
                first.entry(dead.message.destination).or_insert(number);
            }
            Err(faults) => {
                faulty += 1;
                shown.extend(faults.iter().map(|fault| told(number, fault)));
                shown.truncate(FAULTS_SHOWN + 1);
            }
        }
    }
    if faulty == 0 {
        let mut destinations: Vec<_> = first.into_iter().collect();
        destinations.sort_by_key(|(_, line)| *line);
        return Ok((count, destinations));
    }
    if shown.len() > FAULTS_SHOWN {
        shown.truncate(FAULTS_SHOWN);
        shown.push("  ... and more".to_owned());
    }
    let what = output::counted(faulty as u64, "line");
    let text = format!("{file}: {what} not usable, nothing was imported\n{}", shown.join("\n"));
    Err(anyhow::anyhow!(text).into())
}

fn told(line: usize, fault: &FieldFault) -> String {
    format!("  line {line}: {}: {}", output::harmless(&fault.field), fault.reason)
}

/// The lines of an export, which are read twice.
enum Export {
    File(PathBuf),
    /// Standard input. A container often has no file that it shares with its host.
    Input(Vec<u8>),
}

impl Export {
    fn open(path: &Path) -> Result<Self, CliFailure> {
        if path.as_os_str() == "-" {
            let mut input = Vec::new();
            std::io::stdin().lock().read_to_end(&mut input)?;
            return Ok(Self::Input(input));
        }
        if std::fs::metadata(path).is_ok_and(|found| found.is_file()) {
            return Ok(Self::File(path.to_owned()));
        }
        Err(CliFailure::Usage(format!("{} is not a file (- reads standard input)", path.display())))
    }

    /// The name on one line of the audit log.
    fn escaped(&self) -> String {
        self.to_string().escape_debug().to_string()
    }

    fn read(&self) -> std::io::Result<Box<dyn BufRead + '_>> {
        match self {
            Self::File(path) => Ok(Box::new(BufReader::new(File::open(path)?))),
            Self::Input(input) => Ok(Box::new(input.as_slice())),
        }
    }
}

impl std::fmt::Display for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Input(_) => f.write_str("standard input"),
        }
    }
}

/// The lines that are not blank, with their numbers.
fn lines(file: &Export) -> Result<impl Iterator<Item = std::io::Result<(usize, Vec<u8>)>> + '_, CliFailure> {
    let opened = file.read().map_err(|error| CliFailure::Usage(format!("cannot open {file}: {error}")))?;
    let numbered = opened.split(b'\n').zip(1..);
    let numbered = numbered.map(|(line, number)| line.map(|line| (number, line)));
    Ok(numbered.filter(|line| !line.as_ref().is_ok_and(|(_, line)| line.trim_ascii().is_empty())))
}

/// The dead letters of a file that was checked before.
fn letters(
    file: &Export,
) -> Result<impl Iterator<Item = Result<DeadLetter, anyhow::Error>> + '_, CliFailure> {
    let read = |line: std::io::Result<(usize, Vec<u8>)>| {
        let (number, text) = line?;
        dead_letters::import::letter(&text)
            .map_err(|_| anyhow::anyhow!("line {number} has changed since it was checked"))
    };
    Ok(lines(file)?.map(read))
}

/// The decision about each dead letter.
struct ImportSelection {
    there: HashSet<Identity>,
    chosen: HashSet<(Identity, Timestamp)>,
    already: u64,
}

impl ImportSelection {
    /// Whether a dead letter is to be written. A message that died twice has two different lines in one export.
    fn takes(&mut self, dead: &DeadLetter) -> bool {
        let identity = (dead.message.id, dead.message.digest);
        let takes = !self.there.contains(&identity) && self.chosen.insert((identity, dead.died_at));
        self.already += u64::from(!takes);
        takes
    }
}

async fn write(
    queue: &Queue,
    file: &Export,
    count: u64,
    choice: &mut ImportSelection,
    imported: &mut u64,
) -> Result<(), CliFailure> {
    let bar = replay::bar(count);
    let chosen = letters(file)?.filter(|dead| dead.as_ref().map_or(true, |dead| choice.takes(dead)));
    let written = futures_util::stream::iter(chosen).map(async |dead| {
        queue.dead_letter(&dead?).await?;
        Ok::<(), anyhow::Error>(())
    });
    let done = written.buffered(AT_ONCE).try_for_each(|()| {
        *imported += 1;
        bar.set_position(*imported);
        std::future::ready(Ok(()))
    });
    let done = done.await;
    bar.finish_and_clear();
    Ok(done?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letters::json;
    use crate::message::{AttemptHistory, DeadReason, Kind, LaneKey, Message};

    fn dead() -> DeadLetter {
        let lane = LaneKey::parse("c-1").unwrap();
        let (kind, destination) = (Kind::HandoffMessage, Destination::ServiceNow);
        let message = Message::new(MessageId::fresh(), kind, destination, lane, "{}");
        DeadLetter::new(message, DeadReason::Rejected, "", AttemptHistory::default())
    }

    #[test]
    fn every_line_is_checked_and_faults_name_line_and_field() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dead.jsonl");
        let checked = |file| checked(&Export::open(file)?);
        let line = |field: &str| {
            let mut letter = json::letter(&dead(), true);
            letter[field] = "secret words".into();
            letter.to_string()
        };
        let good = json::letter(&dead(), true);
        std::fs::write(&file, format!("{good}\n\n{}\n{{\n{}", line("reason"), line("died_at"))).unwrap();
        let Err(CliFailure::Failed(error)) = checked(&file) else { panic!("a faulty file was accepted") };
        let text = error.to_string();
        assert!(text.contains("3 lines not usable, nothing was imported"), "{text}");
        for fault in ["line 3: reason:", "line 4: line: is not JSON", "line 5: died_at:"] {
            assert!(text.contains(fault), "{text}");
        }
        assert!(!text.contains("secret"), "{text}");
        std::fs::write(&file, "{}\n".repeat(100)).unwrap();
        let Err(CliFailure::Failed(error)) = checked(&file) else { panic!("a faulty file was accepted") };
        assert_eq!(error.to_string().lines().count(), 22, "{error}");
        std::fs::write(&file, format!("{good}\n")).unwrap();
        assert_eq!(checked(&file).unwrap(), (1, vec![(Destination::ServiceNow, 1)]));
    }

    #[test]
    fn a_message_is_imported_once() {
        let (one, other) = (dead(), dead());
        let there = HashSet::from([(one.message.id, None)]);
        let mut choice = ImportSelection { there, chosen: HashSet::new(), already: 0 };
        let takes = [&one, &other, &other].map(|dead| choice.takes(dead));
        assert_eq!((takes, choice.already), ([false, true, false], 2));
    }
}
