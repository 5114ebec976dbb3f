//! The signals of a process that serves.
//!
//! Guarantees: the first SIGTERM or SIGINT begins the drain, the second one ends the process at once; SIGHUP, which a terminal
//! sends when it closes and which some tools send to have settings read again, changes nothing but the log. Not responsible for:
//! the drain (`tasks.rs`), the exit code (`main.rs`).

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The process was told twice to stop, or before it had begun.
#[derive(Debug, thiserror::Error)]
#[error("ended at once by a second signal; what was in flight is delivered by the next start")]
pub struct Interrupted {
    /// 128 and the number of the signal, as a shell says it.
    pub exit_code: u8,
}

/// The signals, from the first moment on.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn hear() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal to stop. Cancel-safe.
    pub(super) async fn stop(&mut self) -> Interrupted {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return Interrupted { exit_code: 143 },
                _ = self.interrupt.recv() => return Interrupted { exit_code: 130 },
                _ = self.hangup.recv() => {
                    tracing::info!("SIGHUP changes nothing: settings are read at the start only");
                }
            }
        }
    }
}
