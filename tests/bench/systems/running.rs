//! The processes of a system: started with a bare environment and a log file, killed with everything below them.

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

/// How to start a process.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    pub(crate) role: &'static str,
    pub(crate) program: String,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    /// Answers there once it is ready.
    pub(crate) ready: Option<SocketAddr>,
}

/// A process in a group of its own; the group is killed when the value goes.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) role: &'static str,
    child: Child,
    ready: Option<SocketAddr>,
}

impl Running {
    /// What it prints is added to `log`.
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

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits until it answers.
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

    /// Asks it to end, and kills what is left of its group in the end.
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
    /// Also the way to kill it in the middle of its work.
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}
