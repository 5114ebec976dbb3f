//! The processes of a run: real ones, of this very executable, each with settings of its own and nothing of the environment.
//!
//! Guarantees: whatever is started here is ended by its own id, also after a failure or Ctrl-C; what they log is in the run's
//! folder. Leaves to others: when one is broken (`faults.rs`).

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
#[cfg(target_os = "linux")]
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

/// How long a process may take from its start to being ready.
const READY_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// `CAUSEWAY_…` pairs.
pub(super) type Variables = Vec<(String, String)>;

/// One process, running or not.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: String,
    verb: &'static str,
    variables: Variables,
    admin: SocketAddr,
    log: PathBuf,
    /// Held by whoever breaks it: one thing at a time.
    child: Mutex<Option<Child>>,
}

/// An address of loopback that nobody listens on right now; taken from below the range of outgoing connections, so that it
/// is still free when its process starts again.
pub(super) fn free_address() -> anyhow::Result<SocketAddr> {
    use rand::RngExt;
    let mut dice = rand::rng();
    let mut tried =
        (0..1000).map(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, dice.random_range(20_000..32_000))));
    tried.find(|address| TcpListener::bind(address).is_ok()).context("no free port on loopback")
}

impl Member {
    pub(super) fn new(
        name: String,
        verb: &'static str,
        mut variables: Variables,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let admin = free_address()?;
        variables.push(("CAUSEWAY_ADMIN__LISTEN".to_owned(), admin.to_string()));
        let log = folder.join(format!("{name}.log"));
        Ok(Self { name, verb, variables, admin, log, child: Mutex::new(None) })
    }

    /// Starts it, and waits until it is ready.
    pub(super) async fn start(&self) -> anyhow::Result<()> {
        let mut child = self.child.lock().await;
        *child = Some(self.spawn()?);
        let gave_up =
            || format!("{} was not ready within {READY_WITHIN:?}: see {}", self.name, self.log.display());
        let ready = async {
            while !self.is_ready().await {
                if let Some(running) = child.as_mut()
                    && let Some(status) = running.try_wait()?
                {
                    // Its last words may still be on their way through the pipe.
                    tokio::time::sleep(LOOK_EVERY).await;
                    let said = std::fs::read_to_string(&self.log).unwrap_or_default();
                    let last = said.lines().last().unwrap_or_default();
                    anyhow::bail!("{} ended at once ({status}): {last}", self.name);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Ok(())
        };
        tokio::time::timeout(READY_WITHIN, ready).await.with_context(gave_up)?
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log);
        let mut log = log.with_context(|| format!("cannot write {}", self.log.display()))?;
        // What it says must come through while its disk is full: a pipe has no limit. It ends with the process.
        let (mut said, says) = std::io::pipe().context("no pipe for the log")?;
        std::thread::Builder::new()
            .name(format!("log of {}", self.name))
            .spawn(move || std::io::copy(&mut said, &mut log))?;
        let mut command = Command::new("/bin/sh");
        // Whoever writes beyond a limit is killed unless it ignores that; a child inherits this, and the pid stays the same.
        command.args(["-c", r#"trap '' XFSZ; exec "$@""#, "sh"]).arg(program);
        command.arg(self.verb).env_clear().envs(self.variables.iter().cloned());
        command.stdin(Stdio::null()).stdout(says.try_clone()?).stderr(says);
        // Ctrl-C at the terminal is for `prove` alone, which ends the others itself.
        command.process_group(0).kill_on_drop(true);
        command.spawn().with_context(|| format!("cannot start {}", self.name))
    }

    /// Ends it in an instant, calls `gone`, and starts it again after `away`.
    pub(super) async fn kill(&self, away: Duration, gone: impl FnOnce()) -> anyhow::Result<()> {
        let mut child = self.child.lock().await;
        if let Some(running) = child.as_mut() {
            running.start_kill()?;
            gone();
            running.wait().await?;
        }
        tokio::time::sleep(away).await;
        *child = Some(self.spawn()?);
        Ok(())
    }

    /// Stops its clock for a while: sockets stay open, nothing answers.
    pub(super) async fn freeze(&self, lasts: Duration) -> anyhow::Result<()> {
        let child = self.child.lock().await;
        let Some(pid) = child.as_ref().and_then(Child::id).and_then(pid) else { return Ok(()) };
        kill_process(pid, Signal::STOP)?;
        tokio::time::sleep(lasts).await;
        Ok(kill_process(pid, Signal::CONT)?)
    }

    /// For a while every write of it to a file fails; what it has written stays. Calls `full` and `room` when that is so.
    pub(super) async fn fill_disk(
        &self,
        lasts: Duration,
        full: impl FnOnce(),
        room: impl FnOnce(),
    ) -> anyhow::Result<()> {
        let child = self.child.lock().await;
        let Some(pid) = child.as_ref().and_then(Child::id).and_then(pid) else { return Ok(()) };
        limit_files(pid, Some(0))?;
        full();
        tokio::time::sleep(lasts).await;
        room();
        limit_files(pid, None)
    }

    /// Wakes it where it is frozen, gives it room where its disk is full, starts it where it is gone; whether it was gone.
    pub(super) async fn mend(&self) -> anyhow::Result<bool> {
        let mut child = self.child.lock().await;
        if let Some(running) = child.as_mut()
            && running.try_wait()?.is_none()
        {
            if let Some(pid) = running.id().and_then(pid) {
                kill_process(pid, Signal::CONT)?;
                limit_files(pid, None)?;
            }
            return Ok(false);
        }
        *child = Some(self.spawn()?);
        Ok(true)
    }

    /// Whether it has ended by itself: nobody asked it to.
    pub(super) async fn has_fallen(&self) -> bool {
        // Somebody is breaking it right now.
        let Ok(mut child) = self.child.try_lock() else { return false };
        child.as_mut().is_some_and(|running| matches!(running.try_wait(), Ok(Some(_))))
    }

    /// Its memory in bytes, where the system tells.
    pub(super) fn memory(&self) -> Option<u64> {
        let pid = self.child.try_lock().ok()?.as_ref()?.id()?;
        resident(&pid.to_string())
    }

    async fn is_ready(&self) -> bool {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let ask = async {
            let mut stream = tokio::net::TcpStream::connect(self.admin).await?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: prove\r\nconnection: close\r\n\r\n").await?;
            let mut head = [0; 12];
            stream.read_exact(&mut head).await?;
            std::io::Result::Ok(head)
        };
        let answered = tokio::time::timeout(Duration::from_secs(2), ask).await;
        matches!(answered, Ok(Ok(head)) if head.ends_with(b"200"))
    }

    /// Ends it for good.
    pub(super) async fn end(&self) {
        if let Some(mut running) = self.child.lock().await.take() {
            // Where it is gone already there is nothing to end.
            let _ = running.kill().await;
        }
    }
}

/// The memory of a process, `self` for this one.
pub(super) fn resident(pid: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// How far into a file a process may write. Only the soft limit, which needs no rights to be lifted again.
#[cfg(target_os = "linux")]
fn limit_files(pid: Pid, most: Option<u64>) -> anyhow::Result<()> {
    // What we may ourselves is what it was born with.
    let own = getrlimit(Resource::Fsize);
    let limit = Rlimit { current: most.or(own.current), maximum: own.maximum };
    prlimit(Some(pid), Resource::Fsize, limit).context("cannot limit the files of a process")?;
    Ok(())
}

/// `plan.rs` plans no such fault here.
#[cfg(not(target_os = "linux"))]
fn limit_files(_: Pid, _: Option<u64>) -> anyhow::Result<()> {
    Ok(())
}

fn pid(id: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(id).ok()?)
}
