//! Tells systemd the state of the process: ready, reloading, stopping, alive.
//!
//! Guarantees: without `NOTIFY_SOCKET` nothing is sent. A message that cannot be sent has no effect on the process. `WATCHDOG=1` is
//! sent only if the runtime has just run a task and a blocking call, so that a process that hangs is restarted. A broker or a
//! platform that is away does not stop it: a restart would not help.
//! Source: `sd_notify(3)`, `systemd.service(5)`.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::config::Environment;
use crate::tasks::{self, CancellationToken};

/// The connection to systemd. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct SystemdNotifier {
    socket: Option<Arc<UnixDatagram>>,
    /// How often systemd wants to hear `WATCHDOG=1`.
    watchdog: Option<Duration>,
}

impl SystemdNotifier {
    /// The socket that systemd names in the environment.
    pub(super) fn new(environment: &Environment) -> Self {
        let Some(name) = environment.get("NOTIFY_SOCKET") else { return Self::default() };
        let socket = connect(name);
        if let Err(error) = &socket {
            tracing::warn!(%error, "cannot reach systemd at NOTIFY_SOCKET");
        }
        let pid = environment.get("WATCHDOG_PID");
        let is_meant = pid.is_none_or(|pid| pid == std::process::id().to_string());
        let microseconds = environment.get("WATCHDOG_USEC").and_then(|time| time.parse::<u64>().ok());
        let watchdog = microseconds.filter(|time| is_meant && *time > 0).map(Duration::from_micros);
        Self { socket: socket.ok().map(Arc::new), watchdog }
    }

    /// The listeners accept connections.
    pub(super) fn ready(&self) {
        self.send("READY=1");
    }

    /// The settings are being read again. [`Self::ready`] ends this state.
    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let microseconds = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1_000);
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
    }

    /// The process drains.
    pub(super) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, message: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(message.as_bytes())
        {
            tracing::debug!(%error, "cannot notify systemd");
        }
    }

    /// Sends `WATCHDOG=1` three times in the interval of systemd, until the cancellation. Then it goes on until the process
    /// ends, because a drain may take longer than the interval.
    pub(super) fn start_watchdog(&self, stop: &CancellationToken) {
        let (Some(interval), Some(_)) = (self.watchdog, &self.socket) else { return };
        let (this, stop) = (self.clone(), stop.clone());
        drop(tasks::spawn(async move {
            let pause = interval / 3;
            loop {
                if tokio::time::timeout(interval / 2, runtime_answers()).await == Ok(true) {
                    this.send("WATCHDOG=1");
                } else if !stop.is_cancelled() {
                    tracing::warn!("the runtime answers late: systemd may restart this process");
                }
                tokio::time::sleep(pause).await;
            }
        }));
    }
}

/// Whether another task and a blocking call come to an end.
async fn runtime_answers() -> bool {
    let task = tasks::spawn(async { tokio::fs::metadata("/").await.is_ok() });
    task.await.unwrap_or(false)
}

fn connect(name: &str) -> std::io::Result<UnixDatagram> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name.as_bytes())?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 256];
        let count = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn systemd_hears_each_state_on_a_path_and_on_an_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("causeway-test-{}", uuid::Uuid::new_v4());
        let abstract_name = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        for (socket, written) in [
            (UnixDatagram::bind(&path).unwrap(), path.display().to_string()),
            (UnixDatagram::bind_addr(&abstract_name).unwrap(), format!("@{name}")),
        ] {
            let environment =
                Environment::from([("NOTIFY_SOCKET", written.as_str()), ("WATCHDOG_USEC", "90000")]);
            let systemd = SystemdNotifier::new(&environment);
            systemd.ready();
            assert_eq!(heard(&socket), "READY=1");
            systemd.reloading();
            let reloading = heard(&socket);
            let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
            assert!(time.parse::<u64>().unwrap() > 0);
            systemd.stopping();
            assert_eq!(heard(&socket), "STOPPING=1");
            systemd.start_watchdog(&CancellationToken::default());
            assert_eq!([heard(&socket), heard(&socket)], ["WATCHDOG=1", "WATCHDOG=1"]);
        }
    }

    #[tokio::test]
    async fn the_watchdog_of_another_process_is_not_fed() {
        let of = |pid: &str| {
            let pairs = [("NOTIFY_SOCKET", "/nowhere"), ("WATCHDOG_USEC", "90000"), ("WATCHDOG_PID", pid)];
            SystemdNotifier::new(&Environment::from(pairs)).watchdog.is_some()
        };
        assert!(!of("1"));
        assert!(of(&std::process::id().to_string()));
        SystemdNotifier::new(&Environment::default()).ready();
    }
}
