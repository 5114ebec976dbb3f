//! `causeway pilot`: leads two people, a user and an agent, through one real conversation, and writes a report about what no
//! document of the platforms says.
//!
//! Guarantees: each step waits for the event that it is about, at most for its time limit, and can be skipped. Without a terminal
//! nothing is asked (`--yes`). Not responsible for: the steps (`steps.rs`), what is observed (`observer.rs`), the format of the
//! report (`report.rs`).

mod observer;
mod report;
mod steps;

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{CliFailure, SettingFiles, output};
use crate::app::{self, App, ServiceRoles};
use crate::config::{RunPurpose, Settings};
use crate::tasks::CancellationToken;
use observer::PilotObserver;
use report::{PilotReport, StepOutcome, StepResult};
use steps::{PERSON_SKIPS, PilotStep};

/// How often a step looks for its event.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The lines of the terminal that wait to be read. Further ones wait in the terminal.
const LINES_MAX: usize = 16;

#[derive(Debug, clap::Args)]
pub(super) struct PilotArgs {
    /// File for the report: JSON if its name ends in .json, else Markdown; without it the report is printed
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Time limit of each step
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    time_limit: Duration,
    /// Start `serve` in this process, because no deployment runs with these settings
    #[arg(long)]
    serve: bool,
    /// Ask nothing and only observe (without a terminal)
    #[arg(long)]
    yes: bool,
}

/// The people at the terminal.
#[derive(Debug)]
struct PeopleAtTerminal {
    /// The lines that they type; `None` if nothing is asked.
    lines: Option<mpsc::Receiver<String>>,
}

pub(super) async fn run(args: &PilotArgs, sources: &SettingFiles) -> Result<(), CliFailure> {
    let has_terminal = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if !args.yes && !has_terminal {
        return Err(CliFailure::Usage("the steps cannot be asked without a terminal: use --yes".to_owned()));
    }
    let purpose = if args.serve { RunPurpose::Serve } else { RunPurpose::Check };
    let settings = sources.settings_for_admin(purpose)?;
    if settings.servicenow.is_none() {
        return Err(CliFailure::Usage(
            "servicenow.host_url and its login are not set: nothing to try".to_owned(),
        ));
    }
    let stop = CancellationToken::default();
    let served = match args.serve {
        true => Some(Box::pin(App::start(settings.clone(), ServiceRoles::Serve, &stop)).await?),
        false => None,
    };
    let mut people = PeopleAtTerminal::new(!args.yes);
    let done = lead(args, &settings, &mut people).await;
    stop.cancel();
    if let Some(app) = served {
        app.finish().await?;
    }
    let report = done?;
    write(args, &report)?;
    say(&format!("{} of {} steps observed", report.observed(), report.steps.len()));
    if report.is_complete() { Ok(()) } else { Err(CliFailure::Told) }
}

/// Goes through all steps.
async fn lead(
    args: &PilotArgs,
    settings: &Settings,
    people: &mut PeopleAtTerminal,
) -> anyhow::Result<PilotReport> {
    let directory = app::open_directory(settings).await?;
    let clients = app::HttpClients::new(settings)?;
    let servicenow =
        app::servicenow(clients.servicenow, settings)?.context("servicenow.host_url is not set")?;
    let mut observer = PilotObserver::new(directory, servicenow);
    let mut report = PilotReport::new(settings);
    let steps = PilotStep::all(!settings.xo.bots.is_empty());
    for (number, step) in (1..).zip(&steps) {
        say(&format!("STEP {number} of {} {} ({}): {}", steps.len(), step.name, step.who, step.prompt));
        let result = attempt(step, &mut observer, people, args.time_limit).await;
        say(&format!("     {}", result.line()));
        report.steps.push(result);
    }
    observer.close().await;
    Ok(report)
}

/// Waits for the event of one step, for a person who skips the step, or for the time limit.
async fn attempt(
    step: &PilotStep,
    observer: &mut PilotObserver,
    people: &mut PeopleAtTerminal,
    limit: Duration,
) -> StepResult {
    let began = Instant::now();
    observer.begin();
    let waiting = async {
        loop {
            if let Some(facts) = observer.look(step.goal).await {
                return facts;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let (outcome, mut facts) = tokio::select! {
        facts = waiting => (StepOutcome::Observed, facts),
        () = people.skip() => (StepOutcome::Skipped, Vec::new()),
        () = tokio::time::sleep(limit) => (StepOutcome::TimedOut, Vec::new()),
    };
    let took = began.elapsed();
    if let (StepOutcome::Observed, Some(question)) = (outcome, step.question) {
        facts.push((step.answer_name, people.answer(question, limit).await));
    }
    StepResult { name: step.name, outcome, seconds: took.as_secs_f64(), facts }
}

fn write(args: &PilotArgs, report: &PilotReport) -> Result<(), CliFailure> {
    let Some(path) = &args.report else { return Ok(output::line(report.markdown())?) };
    let is_json = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("json"));
    let text = if is_json { report.json() } else { report.markdown() };
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    say(&format!("report: {}", path.display()));
    Ok(())
}

/// A line for the people. A closed standard error does not end the pilot.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", output::harmless(text));
}

impl PeopleAtTerminal {
    fn new(asks: bool) -> Self {
        if !asks {
            return Self { lines: None };
        }
        let (sender, lines) = mpsc::channel(LINES_MAX);
        // The thread ends with the process: a read of the terminal cannot be cancelled.
        drop(tokio::task::spawn_blocking(move || {
            for line in std::io::stdin().lines().map_while(Result::ok) {
                if sender.blocking_send(line.trim().to_lowercase()).is_err() {
                    return;
                }
            }
        }));
        Self { lines: Some(lines) }
    }

    /// Waits for a person who skips the step.
    async fn skip(&mut self) {
        if let Some(lines) = &mut self.lines {
            while let Some(line) = lines.recv().await {
                if line == PERSON_SKIPS {
                    return;
                }
            }
        }
        std::future::pending().await
    }

    /// The answer to a question with yes or no.
    async fn answer(&mut self, question: &str, limit: Duration) -> String {
        let Some(lines) = &mut self.lines else { return "not asked".to_owned() };
        say(&format!("     {question} [yes/no]"));
        let answered = async {
            while let Some(line) = lines.recv().await {
                match line.as_str() {
                    "y" | "yes" => return "yes",
                    "n" | "no" => return "no",
                    PERSON_SKIPS => return "skipped",
                    _ => {}
                }
            }
            "not answered"
        };
        tokio::time::timeout(limit, answered).await.unwrap_or("not answered").to_owned()
    }
}
