//! Runs the processes of a system: starts them with an empty environment and a log file, and kills them with all
//! descendants.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// The command of a process.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    pub(crate) role: &'static str,
    pub(crate) program: String,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    /// The address that answers once the process is ready.
    pub(crate) ready: Option<SocketAddr>,
}

/// A process in a group of its own. Dropping the value kills the group.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) role: &'static str,
    child: Child,
    ready: Option<SocketAddr>,
}

impl Running {
    /// Starts the process. Its output is appended to `log`.
    pub(crate) fn start(recipe: &Recipe, log: &Path) -> anyhow::Result<Self> {
        let out = File::options().create(true).append(true).open(log)?;
        let mut command = Command::new(&recipe.program);
        command.args(&recipe.args).env_clear().envs(recipe.env.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).process_group(0);
        let child = command.spawn().with_context(|| format!("starting {}", recipe.program))?;
        Ok(Self { role: recipe.role, child, ready: recipe.ready })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, if the process has ended.
    pub(crate) fn ended(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits until the process answers.
    pub(crate) async fn ready(&mut self, patience: Duration) -> anyhow::Result<()> {
        let Some(address) = self.ready else { return Ok(()) };
        let until = Instant::now() + patience;
        while TcpStream::connect(address).await.is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}", self.role);
            }
            if Instant::now() > until {
                bail!("{} does not listen on {address}", self.role);
            }
            tokio::time::sleep_until(Instant::now() + Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Asks the process to end, and then kills the rest of its group.
    pub(crate) async fn stop(mut self, patience: Duration) {
        self.signal(Signal::TERM);
        let until = Instant::now() + patience;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            tokio::time::sleep_until(Instant::now() + Duration::from_millis(20)).await;
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Running {
    /// Kills the group. The kill job uses this, too.
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}
