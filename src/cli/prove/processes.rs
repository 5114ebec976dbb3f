//! The processes of a run: instances of this executable, each with settings of its own and an empty environment.
//!
//! Guarantees: every process started here is ended by its own id, also after a failure or Ctrl-C. Logs go to the
//! run's folder.
//! Not responsible for: the time of the faults (`nemesis.rs`).

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

/// Time limit from a process's start until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// `CAUSEWAY_…` pairs.
pub(super) type Variables = Vec<(String, String)>;

/// One process, running or stopped.
#[derive(Debug)]
pub(super) struct ProveProcess {
    pub(super) name: String,
    verb: &'static str,
    variables: Variables,
    admin: SocketAddr,
    log: PathBuf,
    /// A fault holds the lock while it acts, so that one fault acts at a time.
    child: Mutex<Option<Child>>,
}

/// A free loopback address. Its port is below the range of outgoing connections, so that it is still free when the
/// process restarts.
pub(super) fn free_address() -> anyhow::Result<SocketAddr> {
    use rand::RngExt;
    let mut rng = rand::rng();
    let mut tried =
        (0..1000).map(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, rng.random_range(20_000..32_000))));
    tried.find(|address| TcpListener::bind(address).is_ok()).context("no free port on loopback")
}

impl ProveProcess {
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

    /// Starts the process and waits until it is ready.
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
                    // The last log lines may still be in the pipe.
                    tokio::time::sleep(POLL_INTERVAL).await;
                    let said = std::fs::read_to_string(&self.log).unwrap_or_default();
                    let last = said.lines().last().unwrap_or_default();
                    anyhow::bail!("{} ended at once ({status}): {last}", self.name);
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            Ok(())
        };
        tokio::time::timeout(READY_WITHIN, ready).await.with_context(gave_up)?
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log);
        let mut log = log.with_context(|| format!("cannot write {}", self.log.display()))?;
        // The log must work while the disk limit is 0. A pipe has no such limit. The thread ends with the process.
        let (mut said, says) = std::io::pipe().context("no pipe for the log")?;
        std::thread::Builder::new()
            .name(format!("log of {}", self.name))
            .spawn(move || std::io::copy(&mut said, &mut log))?;
        let mut command = Command::new("/bin/sh");
        // A process that exceeds its file limit gets SIGXFSZ, which kills it by default. The shell ignores the
        // signal, the child inherits that, and `exec` keeps the pid.
        command.args(["-c", r#"trap '' XFSZ; exec "$@""#, "sh"]).arg(program);
        command.arg(self.verb).env_clear().envs(self.variables.iter().cloned());
        command.stdin(Stdio::null()).stdout(says.try_clone()?).stderr(says);
        // Ctrl-C at the terminal is for `prove` only, which ends the other processes itself.
        command.process_group(0).kill_on_drop(true);
        command.spawn().with_context(|| format!("cannot start {}", self.name))
    }

    /// Kills the process, calls `gone`, and starts the process again after `away`.
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

    /// Pauses the process with SIGSTOP for `lasts`: its sockets stay open, and it does not answer.
    pub(super) async fn freeze(&self, lasts: Duration) -> anyhow::Result<()> {
        let child = self.child.lock().await;
        let Some(pid) = child.as_ref().and_then(Child::id).and_then(pid) else { return Ok(()) };
        kill_process(pid, Signal::STOP)?;
        tokio::time::sleep(lasts).await;
        Ok(kill_process(pid, Signal::CONT)?)
    }

    /// Makes every write to a file fail for `lasts`; data written before stays. Calls `full` after the start and
    /// `room` before the end.
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

    /// Repairs the process: resumes it, lifts its disk limit, or starts it again. Returns whether the process was
    /// gone.
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

    /// Whether the process ended by itself, without a fault or a stop.
    pub(super) async fn has_fallen(&self) -> bool {
        // A fault or a start holds the lock now.
        let Ok(mut child) = self.child.try_lock() else { return false };
        child.as_mut().is_some_and(|running| matches!(running.try_wait(), Ok(Some(_))))
    }

    /// Resident memory in bytes, if the system reports it.
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

    /// Ends the process for good.
    pub(super) async fn end(&self) {
        if let Some(mut running) = self.child.lock().await.take() {
            // The error means that the process is gone already.
            let _ = running.kill().await;
        }
    }
}

/// Resident memory of a process in bytes; `self` means this process.
pub(super) fn resident(pid: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// Limits the size of files that a process may write. Only the soft limit changes, because lifting the hard limit
/// needs privileges.
#[cfg(target_os = "linux")]
fn limit_files(pid: Pid, most: Option<u64>) -> anyhow::Result<()> {
    // `None` restores our own soft limit, which the process inherited at its start.
    let own = getrlimit(Resource::Fsize);
    let limit = Rlimit { current: most.or(own.current), maximum: own.maximum };
    prlimit(Some(pid), Resource::Fsize, limit).context("cannot limit the files of a process")?;
    Ok(())
}

/// `fault_plan.rs` plans no full disk on this system.
#[cfg(not(target_os = "linux"))]
fn limit_files(_: Pid, _: Option<u64>) -> anyhow::Result<()> {
    Ok(())
}

fn pid(id: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(id).ok()?)
}
