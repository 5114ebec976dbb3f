//! The broker of a run. The user starts it; a command of the user stops it and starts it again.
//!
//! Guarantees: one action at a time. A stopped broker is started again, however a run ends. A broker that the command
//! starts may keep the command's output open.
//! Not responsible for: the time of the faults (`nemesis.rs`).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::process::Command;
use tokio::sync::Mutex;

#[derive(Debug)]
pub(super) struct BrokerControl {
    command: String,
    log: PathBuf,
    /// Whether the broker is down. A fault holds the lock while it acts.
    away: Mutex<bool>,
}

impl BrokerControl {
    pub(super) fn new(command: &str, folder: &Path) -> Self {
        Self { command: command.to_owned(), log: folder.join("broker-ctl.log"), away: Mutex::new(false) }
    }

    /// Stops the broker for `lasts`. `how` is `stop` or `kill`. Calls `begins` once no other fault acts on the
    /// broker.
    pub(super) async fn take_away(
        &self,
        how: &str,
        lasts: Duration,
        begins: impl FnOnce(),
    ) -> anyhow::Result<()> {
        let mut away = self.away.lock().await;
        begins();
        *away = true;
        self.run(how).await?;
        tokio::time::sleep(lasts).await;
        self.run("start").await?;
        *away = false;
        Ok(())
    }

    /// Starts the broker if it is down.
    pub(super) async fn bring_back(&self) -> anyhow::Result<()> {
        let mut away = self.away.lock().await;
        if *away {
            self.run("start").await?;
            *away = false;
        }
        Ok(())
    }

    async fn run(&self, what: &str) -> anyhow::Result<()> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("cannot write {}", self.log.display()))?;
        let mut words = self.command.split_whitespace();
        let program = words.next().context("--broker-ctl is empty")?;
        let mut command = Command::new(program);
        // The output goes to a file. A broker started by the command would keep a pipe open, and the end of the
        // command would not be seen.
        command.args(words).arg(what).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // The new process group keeps a Ctrl-C for `prove` away from the processes that the command starts.
        command.process_group(0);
        let ended = command.status().await;
        let status = ended.with_context(|| format!("--broker-ctl: cannot run {program}"))?;
        if !status.success() {
            let said = std::fs::read_to_string(&self.log).unwrap_or_default();
            let last = said.lines().last().unwrap_or_default();
            bail!("--broker-ctl: `{} {what}` ended with {status}: {last}", self.command);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const LASTS: Duration = Duration::from_millis(1);

    /// A command that records its arguments, leaves a process running on `start`, and fails at `kill`.
    fn command(folder: &Path) -> BrokerControl {
        let script = folder.join("ctl");
        let words = "#!/bin/sh\necho \"$1 $2\" >>\"$1/asked\"\ncase $2 in start) sleep 60 & echo $! >\"$1/pid\";; \
                     kill) echo no such broker >&2; exit 3;; esac\n";
        std::fs::write(&script, words).unwrap();
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o700)).unwrap();
        BrokerControl::new(&format!("{} {}", script.display(), folder.display()), folder)
    }

    fn asked(folder: &Path) -> Vec<String> {
        let asked = std::fs::read_to_string(folder.join("asked")).unwrap_or_default();
        asked.lines().map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn it_is_taken_away_and_brought_back_though_what_was_started_runs_on() {
        let folder = tempfile::tempdir().unwrap();
        let broker = command(folder.path());
        let mut begun = false;
        broker.take_away("stop", LASTS, || begun = true).await.unwrap();
        broker.bring_back().await.unwrap();
        assert!(begun);
        assert_eq!(asked(folder.path()), ["stop", "start"], "what is there is not started again");
        let pid = std::fs::read_to_string(folder.path().join("pid")).unwrap();
        assert!(std::process::Command::new("kill").arg(pid.trim()).status().unwrap().success());
    }

    #[tokio::test]
    async fn a_failure_is_told_and_an_interrupted_run_brings_it_back() {
        let folder = tempfile::tempdir().unwrap();
        let broker = command(folder.path());
        let failed = broker.take_away("kill", LASTS, || ()).await.unwrap_err().to_string();
        assert!(failed.contains("no such broker") && failed.contains("kill"), "{failed}");
        broker.bring_back().await.unwrap();
        assert_eq!(asked(folder.path()), ["kill", "start"]);
        let pid = std::fs::read_to_string(folder.path().join("pid")).unwrap();
        assert!(std::process::Command::new("kill").arg(pid.trim()).status().unwrap().success());
    }
}
