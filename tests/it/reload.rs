//! Tests that a running process takes changed secrets and settings without a restart, and that a mistake in them changes
//! nothing.

use std::path::Path;
use std::time::Duration;

use super::harness::load::Load;
use super::harness::relay::{PATIENCE, Plan, Relay};
use super::harness::wait::eventually;

/// Two looks at the files, with a margin for a busy machine.
const IN_TIME: Duration = Duration::from_secs(20);

fn write(path: &Path, text: &str) -> String {
    // As Kubernetes and careful scripts do it: a new file takes the name of the old one.
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text).unwrap();
    std::fs::rename(&fresh, path).unwrap();
    path.display().to_string()
}

async fn callback_status(relay: &Relay, token: &str) -> u16 {
    let url = format!("{}/v1/callbacks/servicenow", relay.processes[0].public_url());
    let request = super::harness::http::client().post(url).header("content-type", "application/json");
    let body = r#"{"group":"foreign","formatted_message":"hi","sys_created_by":"beth","last_message":""}"#;
    request.header("x-causeway-token", token).body(body).send().await.unwrap().status().as_u16()
}

async fn takes(relay: &Relay, token: &str, status: u16) {
    eventually(&format!("{status} for a token"), IN_TIME, async || {
        let found = callback_status(relay, token).await;
        if found == status { Ok(()) } else { Err(format!("{found}")) }
    })
    .await;
}

#[tokio::test]
async fn a_written_secret_file_needs_no_restart() {
    let bench = super::harness::matrix::Engine::Embedded.bench().unwrap();
    let at = |name: &str| bench.folder().join(name);
    let plan = Plan::on(&bench)
        .set("servicenow.password", "")
        .set("servicenow.password_file", write(&at("password"), "wrong-password-value\n"))
        .set("ingress.servicenow.token", "")
        .set("ingress.servicenow.token_file", write(&at("token"), "first-token-value"))
        .set("ingress.servicenow.token_next_file", write(&at("next"), ""));
    let mut relay = plan.start().await;
    relay.start("c-1").await;
    let tripped = [("destination", "servicenow"), ("reason", "credentials")];
    relay.metric_is("causeway_breaker_trips_total", &tripped, |trips| trips > 0.0).await;
    write(&at("password"), "sandbox");
    relay.processes[0].running.line("changed\":\"servicenow.password", IN_TIME).await;
    relay.open("c-1").await;

    assert_eq!(callback_status(&relay, "second-token-value").await, 401);
    write(&at("next"), "second-token-value\n");
    takes(&relay, "second-token-value", 202).await;
    assert_eq!(callback_status(&relay, "first-token-value").await, 202, "both values are accepted");
    write(&at("token"), "second-token-value\n");
    takes(&relay, "first-token-value", 401).await;
    write(&at("next"), "");
    write(&at("token"), "");
    relay.processes[0].running.line("secret file cannot be used", IN_TIME).await;
    assert_eq!(callback_status(&relay, "second-token-value").await, 202, "the old secret stays");

    let log = relay.processes[0].running.stderr();
    for secret in ["first-token-value", "second-token-value", "wrong-password-value"] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[tokio::test]
async fn a_hangup_reads_the_settings_again_and_never_ends_the_process() {
    let bench = super::harness::matrix::Engine::Embedded.bench().unwrap();
    let file = bench.folder().join("causeway.toml");
    let settings = |level: &str, token: &str, drain: &str| {
        write(
            &file,
            &format!(
                "drain = \"{drain}\"\n[log]\nlevel = \"{level}\"\n[ingress.handoffs]\ntoken = \"{token}\""
            ),
        )
    };
    settings("info", "handoffs-token", "25s");
    let plan = Plan::on(&bench)
        .set("config", file.display().to_string())
        .set("log.level", "")
        .set("ingress.handoffs.token", "");
    let mut relay = plan.start().await;
    let load = Load::start(&relay, 4);
    load.takes(8).await;

    relay.processes[0].running.sighup();
    relay.processes[0].running.line("nothing changed", IN_TIME).await;
    settings("loud", "another-token", "soon");
    relay.processes[0].running.sighup();
    let line = relay.processes[0].running.line("so the old ones stay", IN_TIME).await;
    assert!(line.contains("ERROR") && line.contains("drain, log.level"), "{line}");
    assert!(!line.contains("another-token"), "{line}");
    relay.start("c-1").await;
    settings("debug", "another-token", "20s");
    relay.processes[0].running.sighup();
    let line = relay.processes[0].running.line("the new values are in use", IN_TIME).await;
    assert!(line.contains("\"ingress.handoffs.token, log.level\""), "{line}");
    let line = relay.processes[0].running.line("need a restart", IN_TIME).await;
    assert!(line.contains("WARN") && line.contains("\"drain\""), "{line}");
    assert_eq!(relay.conversation("c-1").await.status.as_u16(), 401, "the old token is refused");
    relay.processes[0].running.line("\"DEBUG\"", PATIENCE).await;

    load.takes(8).await;
    load.all_arrive(&relay.sandbox).await;
    assert_eq!(relay.stop().await, [Some(0)]);
}
