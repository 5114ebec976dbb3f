//! A server process that cannot outlive its test. It runs under the `leash` script, which watches our end of a pipe.
//!
//! The pipe closes when the `Leash` is dropped, and also when this process is killed, so no cleanup of ours must run.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The folder of the harness with its scripts.
pub(super) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/harness").join(name)
}

#[derive(Debug)]
pub(crate) struct Leash {
    keeper: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    dir: PathBuf,
    group: u32,
}

impl Leash {
    /// Runs `script` with a fresh folder and `args`. At the end its process group gets `signal` and the folder is
    /// deleted.
    pub(crate) fn start(script_name: &str, signal: &str, args: &[String]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("causeway-test-")
            .tempdir()
            .expect("a folder for a server")
            .keep();
        let mut keeper = Command::new(script("leash"))
            .args([signal.as_ref(), dir.as_os_str(), script(script_name).as_os_str(), dir.as_os_str()])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tests/it/harness/leash starts");
        let orders = keeper.stdin.take();
        let answers = BufReader::new(keeper.stdout.take().expect("stdout is piped"));
        let mut leash = Self { keeper, orders, answers, dir, group: 0 };
        leash.run_again();
        leash
    }

    /// Starts the server (again) in its folder. A running server is killed first.
    pub(crate) fn run_again(&mut self) {
        let orders = self.orders.as_mut().expect("the leash is held until drop");
        orders.write_all(b"run\n").expect("the keeper reads its orders");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("the keeper answers");
        self.group = answer.trim().parse().expect("the keeper answers with a pid");
    }

    /// Sends `signal` to the server and all its children.
    pub(crate) fn signal(&self, signal: &str) {
        let status = Command::new("kill").args(["-s", signal, "--", &format!("-{}", self.group)]).status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "no process of group {} took signal {signal}",
            self.group
        );
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The end of the server's output, for the message of a failing test.
    pub(crate) fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.dir.with_extension("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.keeper.wait();
    }
}
