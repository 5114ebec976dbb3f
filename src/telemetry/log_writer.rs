//! Writes log lines to standard error on a thread of its own.
//!
//! Guarantees: a task that logs a line for this thread makes no system call. A line is written within about [`PAUSE`]. If the
//! reader of standard error stops, at most [`LINES_MAX`] lines wait in memory, then logging waits. [`flush`] writes all lines.
//! Not responsible for: the lines of the last [`PAUSE`] before a kill -9; the lines that are written at once (`logs.rs`), which
//! can stand before older lines of this thread.

use std::io::{self, Write as _};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};

/// The pause between two writes. Lines that come during the pause are written together.
const PAUSE: Duration = Duration::from_millis(5);
const LINES_MAX: usize = 4096;
/// Lines of this size together are written without waiting for more.
const WRITE_BYTES: usize = 64 * 1024;

static WRITER: OnceLock<NonBlocking> = OnceLock::new();
static GUARD: Mutex<Option<WorkerGuard>> = Mutex::new(None);

/// A writer for log lines. All writers of a process share one thread, which ends with [`flush`].
pub(super) fn writer() -> NonBlocking {
    let start = || {
        let builder = NonBlockingBuilder::default().lossy(false).buffered_lines_limit(LINES_MAX);
        let (writer, guard) = builder.thread_name("log").finish(PacedStderr::default());
        *GUARD.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
        writer
    };
    WRITER.get_or_init(start).clone()
}

/// Writes all waiting lines. The process calls this function at its end; later lines are lost.
pub fn flush() {
    drop(GUARD.lock().unwrap_or_else(PoisonError::into_inner).take());
}

/// Standard error, written to when no more lines wait.
#[derive(Debug, Default)]
struct PacedStderr {
    waiting: Vec<u8>,
}

impl PacedStderr {
    fn write_waiting(&mut self) -> io::Result<()> {
        let written = io::stderr().write_all(&self.waiting);
        self.waiting.clear();
        written
    }
}

impl io::Write for PacedStderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.waiting.extend_from_slice(line);
        if self.waiting.len() >= WRITE_BYTES {
            self.write_waiting()?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let written = self.write_waiting();
        // This is the pace of the thread and waits for no condition: each write to a disk or a pipe carries the lines of a
        // whole pause.
        std::thread::sleep(PAUSE);
        written
    }
}
