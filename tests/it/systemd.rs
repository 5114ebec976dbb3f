//! Tests that a service of systemd tells its state over a real socket, and that the unit uses it.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use super::harness::binary::Causeway;
use super::harness::ports;

const IN_TIME: Duration = Duration::from_secs(60);

/// Reads messages until this one, and returns all of them.
fn heard_until(socket: &UnixDatagram, last: &str) -> Vec<String> {
    let mut heard = Vec::new();
    while heard.last().is_none_or(|message: &String| !message.starts_with(last)) {
        let mut bytes = [0; 256];
        let count = socket.recv(&mut bytes).unwrap_or_else(|error| panic!("{last} after {heard:?}: {error}"));
        heard.push(String::from_utf8_lossy(&bytes[..count]).into_owned());
    }
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_tells_that_it_is_ready_alive_reloading_and_stopping() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(IN_TIME)).unwrap();
    let [public, admin] = ports::free_ports();
    let mut service = Causeway::new(["serve"])
        .set("data_dir", folder.path().display().to_string())
        .set("ingress.listen", format!("127.0.0.1:{public}"))
        .set("admin.listen", format!("127.0.0.1:{admin}"))
        .set("ingress.servicenow.token", "a-token-of-the-callbacks")
        .set("xo.callback_url", "https://127.0.0.1:1/callback")
        .env("NOTIFY_SOCKET", path.display().to_string())
        .env("WATCHDOG_USEC", "600000")
        .spawn();
    heard_until(&socket, "READY=1");
    std::net::TcpStream::connect(("127.0.0.1", public)).expect("a service that is ready accepts connections");
    heard_until(&socket, "WATCHDOG=1");
    service.sighup();
    let reloading = heard_until(&socket, "RELOADING=1");
    assert!(reloading.last().unwrap().contains("\nMONOTONIC_USEC="), "{reloading:?}");
    heard_until(&socket, "READY=1");
    service.sigterm();
    heard_until(&socket, "STOPPING=1");
    assert_eq!(service.exit(IN_TIME).await.code(), Some(0), "{}", service.stderr());
}

#[test]
fn the_unit_uses_what_the_program_offers() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd/causeway.service");
    let unit = std::fs::read_to_string(unit).unwrap();
    for line in ["Type=notify", "WatchdogSec=", "ExecReload=", "LimitCORE=0", "causeway check --offline"] {
        assert!(unit.contains(line), "{line}");
    }
    for variable in unit.lines().filter_map(|line| line.split_once("_FILE=%d/")).map(|(_, name)| name) {
        assert!(unit.contains(&format!("LoadCredential={variable}:")), "{variable}");
    }
}
