//! Runs the real binary as a child process: settings through its environment, its output, signals, exit code.
//!
//! The environment is otherwise empty, so that a developer's exported variables change no test. A test that fails shows the end
//! of the log of each of its processes.

use std::io::{BufRead, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::told;
use super::wait::eventually;

/// The time limit for a process to stop after SIGSTOP.
const STOPS_WITHIN: Duration = Duration::from_secs(10);
/// The lines of a log that a failed test shows.
const SHOWN_LINES: usize = 60;

/// A command that can be started.
#[derive(Debug)]
pub(crate) struct Causeway {
    command: Command,
}

impl Causeway {
    /// `causeway ARGS...` in the current folder, without settings.
    pub(crate) fn new<const N: usize>(args: [&str; N]) -> Self {
        Self::program(env!("CARGO_BIN_EXE_causeway"), args)
    }

    fn program<const N: usize>(program: &str, args: [&str; N]) -> Self {
        let mut command = Command::new(program);
        command
            .args(args)
            .env_clear()
            .env("RUST_BACKTRACE", "1")
            .env("PATH", told("PATH").unwrap_or_default());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { command }
    }

    /// Adds an argument.
    pub(crate) fn arg(mut self, arg: &str) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.command.args(args);
        self
    }

    /// Adds a setting by its key in the settings file: `queue.url` becomes `CAUSEWAY_QUEUE__URL`.
    pub(crate) fn set(mut self, key: &str, value: impl AsRef<str>) -> Self {
        self.command.env(variable(key), value.as_ref());
        self
    }

    /// Adds many settings, for example those of an engine.
    pub(crate) fn settings<'a>(self, pairs: impl IntoIterator<Item = &'a (String, String)>) -> Self {
        pairs.into_iter().fold(self, |this, (key, value)| this.set(key, value))
    }

    /// Sets a variable by its own name, for example `RUST_LOG` or `CAUSEWAY_CONFIG`.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.command.env(name, value.as_ref());
        self
    }

    pub(crate) fn in_folder(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Starts the process. It is killed when the value is dropped.
    pub(crate) fn spawn(mut self) -> Running {
        let mut child = self.command.spawn().expect("the binary starts");
        let (stdout, stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        Running { stdout: Captured::read(stdout), stderr: Captured::read(stderr), child }
    }

    /// Runs the process until it ends.
    pub(crate) async fn run(self, timeout: Duration) -> Finished {
        let mut running = self.spawn();
        let status = running.exit(timeout).await;
        Finished { code: status.code(), stdout: running.stdout(), stderr: running.stderr() }
    }
}

fn variable(key: &str) -> String {
    format!("CAUSEWAY_{}", key.replace('.', "__").to_uppercase())
}

/// The result of a run. `code` is `None` if a signal ended the process.
#[derive(Debug, Clone)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    stdout: Captured,
    stderr: Captured,
}

impl Running {
    /// Waits for a line, on either stream, that contains `needle`, and returns it.
    pub(crate) async fn line(&mut self, needle: &str, timeout: Duration) -> String {
        eventually(&format!("a line with {needle:?}"), timeout, async || {
            let ended = self.child.try_wait().ok().flatten();
            let (out, err) = (self.stdout(), self.stderr());
            let found = out.lines().chain(err.lines()).find(|line| line.contains(needle));
            found
                .map(str::to_owned)
                .ok_or_else(|| format!("ended: {ended:?}\n--- stdout\n{out}\n--- stderr\n{err}"))
        })
        .await
    }

    /// The output so far.
    pub(crate) fn stdout(&self) -> String {
        self.stdout.text()
    }

    pub(crate) fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Asks the process to end in an orderly way.
    pub(crate) fn sigterm(&self) {
        self.signal("TERM");
    }

    pub(crate) fn sigint(&self) {
        self.signal("INT");
    }

    /// Sends the signal of a terminal that closes.
    pub(crate) fn sighup(&self) {
        self.signal("HUP");
    }

    /// Freezes the process: sockets stay open, and no answer comes. On a busy machine the threads of a process run on for a moment
    /// after the signal, so this function waits until all of them have stopped.
    pub(crate) fn sigstop(&self) {
        self.signal("STOP");
        let began = Instant::now();
        while !self.has_stopped() {
            assert!(began.elapsed() < STOPS_WITHIN, "the process does not stop");
            std::thread::yield_now();
        }
    }

    fn has_stopped(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("a process");
        // The state is the first word after the name, which is in parentheses. T: stopped by a signal.
        let is_stopped =
            |stat: String| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'));
        let stats = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
        stats.into_iter().all(is_stopped)
    }

    pub(crate) fn sigcont(&self) {
        self.signal("CONT");
    }

    /// Kills the process, and waits until it is gone.
    pub(crate) fn kill9(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it is gone");
    }

    /// The most bytes of memory that were resident at a time, as Linux notes them.
    pub(crate) fn memory_peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kibibytes << 10
    }

    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until the process ends. After that, all its output has been read.
    pub(crate) async fn exit(&mut self, timeout: Duration) -> ExitStatus {
        let status = eventually("the binary to end", timeout, async || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            _ => Err(format!("still running\n--- stdout\n{}\n--- stderr\n{}", self.stdout(), self.stderr())),
        })
        .await;
        self.stdout.finish();
        self.stderr.finish();
        status
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args(["-s", signal, &self.child.id().to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()), "SIG{signal} could not be sent");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.stderr();
            let from = log.lines().count().saturating_sub(SHOWN_LINES);
            let lines: String = log.lines().skip(from).map(|line| format!("{line}\n")).collect();
            let _ =
                write!(std::io::stderr(), "--- the end of the log of process {}\n{lines}", self.child.id());
        }
    }
}

/// One output stream, read by its own thread, so that the child never blocks on a full pipe.
#[derive(Debug)]
struct Captured {
    text: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Captured {
    fn read(stream: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let shared = Arc::clone(&text);
        let reader = std::thread::spawn(move || {
            let (mut stream, mut line) = (BufReader::new(stream), Vec::new());
            while stream.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                shared
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        });
        Self { text, reader: Some(reader) }
    }

    fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn finish(&mut self) {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Causeway {
        Causeway::program("/bin/sh", ["-c", script])
    }

    #[test]
    fn settings_travel_by_their_variable() {
        assert_eq!(variable("servicenow.host_url"), "CAUSEWAY_SERVICENOW__HOST_URL");
        assert_eq!(variable("data_dir"), "CAUSEWAY_DATA_DIR");
    }

    #[tokio::test]
    async fn the_binary_runs() {
        assert_eq!(Causeway::new(["--help"]).run(SOON).await.code, Some(0));
    }

    #[tokio::test]
    async fn lines_settings_and_exit_code_come_back() {
        let run = shell("echo got $CAUSEWAY_QUEUE__URL; echo bad >&2; exit 78")
            .set("queue.url", "amqp://x")
            .run(SOON)
            .await;
        assert_eq!(
            (run.code, run.stdout.as_str(), run.stderr.as_str()),
            (Some(78), "got amqp://x\n", "bad\n")
        );
    }

    #[tokio::test]
    async fn sigterm_is_delivered_even_after_a_freeze() {
        let mut running =
            shell("trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done").spawn();
        assert_eq!(running.line("read", SOON).await, "ready");
        running.sigstop();
        running.sigterm();
        assert!(running.is_running(), "a frozen process does nothing");
        running.sigcont();
        assert_eq!(running.exit(SOON).await.code(), Some(7));
        assert!(running.stdout().ends_with("bye\n"));
    }

    #[tokio::test]
    async fn kill9_leaves_no_exit_code() {
        let mut running = shell("echo ready; exec sleep 60").spawn();
        running.line("ready", SOON).await;
        running.kill9();
        assert_eq!(running.exit(SOON).await.code(), None);
    }
}
