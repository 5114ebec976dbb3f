//! Tests the command line: the help, the error messages and the exit codes.

use std::process::{Command, Output};

/// The real program, without the settings of this process's environment.
fn causeway(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_causeway"));
    command.args(args).env_clear().stdin(std::process::Stdio::null());
    command
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn the_version_says_what_was_built() {
    let output = causeway(&["--version"]).output().unwrap();
    let told = stdout(&output);
    let start = concat!("causeway ", env!("CARGO_PKG_VERSION"), " (");
    let built = told
        .strip_prefix(start)
        .and_then(|rest| rest.strip_suffix(")\n"))
        .unwrap_or_else(|| panic!("{told}"));
    // A build from a changed tree says so. A debug build does not ask for the revision.
    let known = built.trim_end_matches(", changed").split_once(' ').is_some_and(|(revision, date)| {
        revision.bytes().all(|byte| byte.is_ascii_hexdigit()) && date.parse::<jiff::civil::Date>().is_ok()
    });
    assert!(known || built == "unknown revision", "{told}");
}

#[test]
fn help_is_enough_to_work_from() {
    let output = causeway(&["--help"]).output().unwrap();
    assert_eq!(code(&output), 0);
    let help = stdout(&output);
    let verbs =
        ["serve", "ingress", "worker", "sandbox", "check", "healthcheck", "dead", "conversations", "trace"];
    for word in verbs.iter().chain(&["--config", "CAUSEWAY_CONFIG", "--print-defaults", "78 settings"]) {
        assert!(help.contains(word), "{word} is missing from:\n{help}");
    }
    let output = causeway(&["dead", "replay", "--help"]).output().unwrap();
    let flags = [
        "--destination",
        "--conversation",
        "--reason",
        "--since",
        "--until",
        "--id",
        "--yes",
        "--dry-run",
        "--rate",
    ];
    for flag in flags {
        assert!(stdout(&output).contains(flag), "{flag}");
    }
}

#[test]
fn the_help_has_three_spellings_and_the_status_explains_its_json() {
    let said = |args: &[&str]| {
        let output = causeway(args).output().unwrap();
        assert_eq!(code(&output), 0, "{args:?} {}", stderr(&output));
        stdout(&output)
    };
    assert_eq!(said(&["help"]), said(&["--help"]));
    assert_eq!(said(&["help", "dead", "list"]), said(&["dead", "list", "--help"]));
    assert!(said(&["-h"]).contains("Commands:"));
    for word in ["needs_attention", "oldest_age_seconds", "Exit codes"] {
        assert!(said(&["status", "--help"]).contains(word), "{word}");
    }
}

#[test]
fn completions_and_manual_pages_know_every_verb_and_flag() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = causeway(&["completions", shell]).output().unwrap();
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        for word in ["servicenow", "dry-run", "watch"] {
            assert!(stdout(&output).contains(word), "{shell}: {word}");
        }
    }
    let output = causeway(&["man"]).output().unwrap();
    assert!(stdout(&output).contains(".TH causeway") && stdout(&output).contains("causeway\\-status"));
    let output = causeway(&["man", "dead", "replay"]).output().unwrap();
    assert!(stdout(&output).contains(".TH causeway-dead-replay") && stdout(&output).contains("rate"));
    for args in [&["man", "nothing"][..], &["completions", "cmd"], &["completions"]] {
        let output = causeway(args).output().unwrap();
        assert_eq!(code(&output), 2, "{args:?}");
    }
}

#[test]
fn a_usage_error_exits_with_2() {
    for args in [
        &["serv"][..],
        &[],
        &["dead"],
        &["dead", "list", "--reason", "boredom"],
        &["dead", "list", "--since", "yesterday"],
        &["dead", "show", "7"],
        &["dead", "show", "--id", "7"],
        &["dead", "replay", "--rate", "fast"],
        &["conversations", "list", "--state", "asleep"],
        &["sandbox", "--callback-token", "t"],
    ] {
        let output = causeway(args).output().unwrap();
        assert_eq!(code(&output), 2, "{args:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn a_misspelled_word_gets_a_suggestion() {
    for (args, tip) in [
        (&["stauts"][..], "'status'"),
        (&["dead", "reply"], "'replay'"),
        (&["dead", "list", "--reasn", "expired"], "'--reason'"),
        (&["dead", "list", "--reason", "expird"], "'expired'"),
        (&["conversations", "list", "--state", "activ"], "'active'"),
        (&["completions", "bahs"], "'bash'"),
    ] {
        let output = causeway(args).output().unwrap();
        let said = stderr(&output);
        assert_eq!(code(&output), 2, "{args:?}");
        assert!(said.contains("tip: a similar") && said.contains(tip), "{said}");
    }
}

#[test]
fn a_wrong_time_is_explained_with_its_flag_and_examples() {
    for flag in ["--since", "--until"] {
        let output = causeway(&["dead", "list", flag, "noon"]).output().unwrap();
        let said = stderr(&output);
        assert_eq!(code(&output), 2);
        assert!(
            said.contains(flag) && said.contains("2026-11-22 10:03") && said.contains("2 hours ago"),
            "{said}"
        );
    }
}

#[test]
fn wrong_settings_end_with_78_and_name_every_key() {
    let output = causeway(&["serve"])
        .env("CAUSEWAY_QUEUE__URL", "redis://user:S3cret-Value@host")
        .env("CAUSEWAY_DRAIN", "a while")
        .env("CAUSEWAY_SERVICENOW__HOST_URL", "https://example.service-now.com")
        .env("CAUSEWAY_SERVICENOW__PASWORD", "S3cret-Value")
        .output()
        .unwrap();
    assert_eq!(code(&output), 78);
    let said = stderr(&output);
    for key in ["queue.url", "drain", "servicenow.pasword", "servicenow.username", "ingress.servicenow"] {
        assert!(said.contains(&format!("  {key} (")), "{key} is missing from:\n{said}");
    }
    assert!(said.contains("CAUSEWAY_SERVICENOW__PASSWORD?"), "{said}");
    assert!(!said.contains("S3cret-Value"), "{said}");
    assert!(output.stdout.is_empty());
}

#[test]
fn a_settings_file_that_is_not_there_ends_with_78() {
    for args in
        [&["--config", "/no/such/file.toml", "worker"][..], &["worker", "--config", "/no/such/file.toml"]]
    {
        let output = causeway(args).output().unwrap();
        assert_eq!(code(&output), 78);
        assert!(stderr(&output).contains("/no/such/file.toml"), "{}", stderr(&output));
    }
    let output = causeway(&["worker"]).env("CAUSEWAY_CONFIG", "/no/such/file.toml").output().unwrap();
    assert!(stderr(&output).contains("cannot read /no/such/file.toml"), "{}", stderr(&output));
}

#[test]
fn check_reads_the_settings_as_each_role_would() {
    let folder = tempfile::tempdir().unwrap();
    let check = |args: &[&str], set: &[(&str, &str)]| {
        let mut command = causeway(&["check"]);
        command.args(args).env("CAUSEWAY_DATA_DIR", folder.path()).envs(set.iter().copied());
        command.output().unwrap()
    };
    let nothing = check(&[], &[]);
    assert_eq!(code(&nothing), 1, "{}", stdout(&nothing));
    for role in ["serve", "ingress", "worker"] {
        assert!(
            stdout(&nothing).contains(&format!("FAIL settings: {role} would not start")),
            "{}",
            stdout(&nothing)
        );
    }
    let ingress = [("CAUSEWAY_INGRESS__SERVICENOW__TOKEN", "t")];
    let one = check(&[], &ingress);
    assert_eq!(code(&one), 0, "{}", stdout(&one));
    assert!(stdout(&one).contains("ok   settings: enough for ingress"), "{}", stdout(&one));
    assert!(stdout(&one).contains("note settings: worker would not start"), "{}", stdout(&one));
    assert_eq!(code(&check(&["--role", "ingress"], &ingress)), 0);
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "a check leaves nothing behind that a service could not use: {left:?}");
    assert_eq!(code(&check(&["--role", "worker"], &ingress)), 1);
}

#[test]
fn addresses_with_a_wrong_path_are_refused() {
    let output = causeway(&["worker"])
        .env("CAUSEWAY_SERVICENOW__HOST_URL", "https://acme.service-now.com/api/now")
        .output()
        .unwrap();
    assert_eq!(code(&output), 78);
    assert!(stderr(&output).contains("a path in it is a mistake"), "{}", stderr(&output));
    for wrong in ["https://causeway.example.com", "https://causeway.example.com/v1/callbacks"] {
        let output = causeway(&["servicenow", "install", "--endpoint", wrong]).output().unwrap();
        assert_eq!(code(&output), 2);
        assert!(stderr(&output).contains("/v1/callbacks/servicenow"), "{}", stderr(&output));
    }
}

#[test]
fn the_printed_defaults_are_a_settings_file() {
    let output = causeway(&["check", "--print-defaults"]).output().unwrap();
    assert_eq!(code(&output), 0);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("causeway.toml");
    std::fs::write(&file, &output.stdout).unwrap();
    let none = causeway::config::Environment::default();
    causeway::config::Settings::load(Some(&file), &none, causeway::config::RunPurpose::Admin).unwrap();
}

#[test]
fn a_health_check_answers_with_its_exit_code() {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let admin = std::thread::spawn(move || {
        for answer in ["200 OK\r\n\r\nready", "503 Service Unavailable\r\n\r\nqueue away"] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let read = stream.read(&mut request).unwrap();
            assert!(request[..read].starts_with(b"GET /readyz HTTP/1.1\r\n"));
            stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).unwrap();
        }
    });
    let listen = format!("0.0.0.0:{}", address.port());
    let ask = || causeway(&["healthcheck"]).env("CAUSEWAY_ADMIN__LISTEN", &listen).output().unwrap();
    assert_eq!(code(&ask()), 0);
    let unwell = ask();
    assert_eq!(code(&unwell), 1);
    assert!(stderr(&unwell).contains("503: queue away"), "{}", stderr(&unwell));
    admin.join().unwrap();
    // No process listens any more.
    assert_eq!(code(&ask()), 1);
}

#[test]
fn check_says_a_line_for_each_side_and_fails_where_one_does() {
    let folder = tempfile::tempdir().unwrap();
    let well = causeway(&["check"])
        .env("CAUSEWAY_DATA_DIR", folder.path())
        .env("CAUSEWAY_INGRESS__SERVICENOW__TOKEN", "t")
        .output()
        .unwrap();
    let said = stdout(&well);
    assert_eq!(code(&well), 0, "{said}{}", stderr(&well));
    assert!(said.contains("ok   queue: embedded engine, nothing is stored yet"), "{said}");
    assert!(said.contains("ok   directory: SQLite"), "{said}");

    // A port without a listener.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let unwell = causeway(&["check"])
        .env("CAUSEWAY_DATA_DIR", folder.path())
        .env("CAUSEWAY_SERVICENOW__HOST_URL", format!("http://127.0.0.1:{port}"))
        .env("CAUSEWAY_SERVICENOW__USERNAME", "u")
        .env("CAUSEWAY_SERVICENOW__PASSWORD", "S3cret-Value")
        .output()
        .unwrap();
    let said = stdout(&unwell);
    assert_eq!(code(&unwell), 1, "{said}");
    assert!(said.contains("FAIL ") && said.contains("     -> ") && said.contains("ok   directory"), "{said}");
    assert!(!said.contains("S3cret-Value") && !stderr(&unwell).contains("S3cret-Value"));
}

#[test]
fn an_empty_directory_lists_no_conversations() {
    let folder = tempfile::tempdir().unwrap();
    let ask = |args: &[&str]| causeway(args).env("CAUSEWAY_DATA_DIR", folder.path()).output().unwrap();
    let listed: serde_json::Value =
        serde_json::from_slice(&ask(&["conversations", "list", "--json"]).stdout).unwrap();
    assert_eq!(listed, serde_json::json!({ "conversations": [] }));
    let unknown = ask(&["conversations", "show", "c-1"]);
    assert_eq!(code(&unknown), 1);
    assert!(stderr(&unknown).contains("c-1"), "{}", stderr(&unknown));
}
