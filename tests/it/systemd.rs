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

fn shipped(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)).unwrap()
}

/// The service cannot read the files that the settings name: systemd passes their content as credentials.
#[test]
fn the_shipped_settings_pass_the_check_with_the_environment_of_the_unit() {
    let credentials = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_causeway"));
    command.args(["check", "--offline", "--role", "serve"]).env_clear();
    let unit = shipped("systemd/causeway.service");
    for credential in unit.lines().filter_map(|line| line.strip_prefix("LoadCredential=")) {
        let (name, file) = credential.split_once(':').unwrap();
        assert!(file.starts_with("/etc/causeway/secrets/"), "{file}");
        std::fs::write(credentials.path().join(name), "a-secret-of-some-length").unwrap();
    }
    for variable in unit.lines().filter_map(|line| line.strip_prefix("Environment=")) {
        let (name, value) = variable.split_once('=').unwrap();
        command.env(name, value.replace("%d", &credentials.path().display().to_string()));
    }
    let settings = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd/causeway.toml");
    let output = command.env("CAUSEWAY_CONFIG", settings).output().unwrap();
    let told =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(!told.contains("note"), "{told}");
}

#[test]
fn the_package_makes_the_user_and_the_folders_of_the_unit() {
    let (unit, script) = (shipped("systemd/causeway.service"), shipped("debian/postinst"));
    for line in ["User=causeway", "Group=causeway", "StateDirectory=causeway", "StateDirectoryMode=0700"] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
    assert!(script.contains("adduser --quiet --system --group"), "{script}");
    assert!(script.contains("install -d -o causeway -g causeway -m 0700 /var/lib/causeway"), "{script}");
    for program in unit.lines().filter(|line| line.starts_with("ExecStart")) {
        assert!(program.contains("/usr/bin/causeway "), "{program}");
    }
}

#[test]
fn the_unit_uses_what_the_program_offers() {
    let unit = shipped("systemd/causeway.service");
    for line in ["Type=notify", "WatchdogSec=", "ExecReload=", "LimitCORE=0", "causeway check --offline"] {
        assert!(unit.contains(line), "{line}");
    }
    for variable in unit.lines().filter_map(|line| line.split_once("_FILE=%d/")).map(|(_, name)| name) {
        assert!(unit.contains(&format!("LoadCredential={variable}:")), "{variable}");
    }
}
