//! The signals of a serving process.
//!
//! Guarantees: the first SIGTERM or SIGINT starts the drain, the second one ends the process at once. SIGHUP never ends the
//! process, also while it starts. Not responsible for: the drain (`tasks.rs`), reading the settings again (`reload.rs`), the
//! exit code (`main.rs`).

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The process was told twice to stop, or once before it was started.
#[derive(Debug, thiserror::Error)]
#[error("ended at once by a second signal; messages in flight are delivered after the next start")]
pub struct ShutdownReason {
    /// 128 plus the number of the signal, as a shell reports it.
    pub exit_code: u8,
}

/// The signals since the start of the process.
#[derive(Debug)]
pub(super) struct SignalHandler {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<Signal>,
}

impl SignalHandler {
    pub(super) fn hear() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: Some(signal(SignalKind::hangup())?),
        })
    }

    /// The signals to read the settings again, also those that came before this call.
    pub(super) const fn take_hangup(&mut self) -> Option<Signal> {
        self.hangup.take()
    }

    /// Waits for a signal to stop. Cancel-safe.
    pub(super) async fn stop(&mut self) -> ShutdownReason {
        tokio::select! {
            _ = self.terminate.recv() => ShutdownReason { exit_code: 143 },
            _ = self.interrupt.recv() => ShutdownReason { exit_code: 130 },
        }
    }
}
