//! Tests that `causeway pilot` observes one conversation in the sandbox, with the switches of undocumented facts in both
//! positions, and that its report holds no text and no secret.

use std::time::Duration;

use causeway::sandbox::{RowSwitches, SandboxSwitches, TableAccess};
use serde_json::Value;

use super::harness::matrix::Engine;
use super::harness::relay::{PATIENCE, Plan, Relay};

const IN_TIME: Duration = Duration::from_secs(60);

/// Plays both people of one pilot, and returns the report by step.
async fn pilot(relay: &Relay, conversation: &str) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let mut pilot =
        relay.verb(&["pilot", "--yes", "--time-limit", "60s", "--report", report.to_str().unwrap()]).spawn();
    pilot.line("start (user)", IN_TIME).await;
    relay.start(conversation).await;
    pilot.line("accept (agent)", IN_TIME).await;
    let group = relay.open(conversation).await;
    relay.sandbox.agent_accept(&group).await.unwrap();
    pilot.line("agent_writes (agent)", IN_TIME).await;
    relay.sandbox.agent_says(&group, "words of the agent").await.unwrap();
    pilot.line("user_writes (user)", IN_TIME).await;
    relay.say(conversation, "words of the user").await;
    pilot.line("internal_note (agent)", IN_TIME).await;
    relay.sandbox.agent_whispers(&group, "pilot-note for colleagues").await.unwrap();
    pilot.line("placeholder (agent)", IN_TIME).await;
    relay.sandbox.agent_says(&group, "${pilot}").await.unwrap();
    pilot.line("end (agent)", IN_TIME).await;
    relay.sandbox.agent_closes(&group).await.unwrap();
    let ended = pilot.exit(PATIENCE).await;
    assert_eq!(ended.code(), Some(0), "{}", pilot.stderr());
    let text = std::fs::read_to_string(&report).unwrap();
    for secret in ["words of", "colleagues", "sandbox", conversation, group.as_str(), "chatbot_interface"] {
        assert!(!text.contains(secret) && !pilot.stderr().contains(secret), "{secret}: {text}");
    }
    serde_json::from_str(&text).unwrap()
}

fn facts(report: &Value, step: &str) -> Value {
    let steps = report["steps"].as_array().unwrap();
    steps.iter().find(|one| one["step"] == step).unwrap_or_else(|| panic!("{step}: {report}")).clone()
}

#[tokio::test]
async fn a_pilot_writes_down_what_it_observed_in_both_positions_of_the_switches() {
    let bench = Engine::Embedded.bench().unwrap();
    let plan =
        Plan::on(&bench).set("servicenow.poll_waiting", "200ms").set("servicenow.poll_active", "200ms");
    let mut relay = plan.start().await;
    let url = format!("{}/v1/callbacks/servicenow", relay.processes[0].public_url());
    relay.sandbox.set_callback(Some(causeway::sandbox::CallbackSettings {
        credential: causeway::sandbox::CallbackCredential::Header {
            name: "x-causeway-token".to_owned(),
            value: "callback-token".to_owned(),
        },
        ..causeway::sandbox::CallbackSettings::to(&url)
    }));

    let report = pilot(&relay, "c-1").await;
    assert_eq!(facts(&report, "rights")["facts"]["login"], "ok");
    assert_ne!(facts(&report, "rights")["facts"]["read_sys_user"], "status 403", "{report}");
    assert_eq!(facts(&report, "start")["facts"]["answer_has_number"], "yes", "{report}");
    assert_eq!(facts(&report, "agent_writes")["facts"]["outcome"], "delivered", "{report}");
    assert_eq!(facts(&report, "user_writes")["facts"]["kind"], "handoff.message", "{report}");
    assert_eq!(facts(&report, "internal_note")["facts"]["row_is_marked_internal"], "yes", "{report}");
    assert_eq!(facts(&report, "placeholder")["facts"]["row_keeps_the_placeholder"], "yes", "{report}");
    assert_eq!(facts(&report, "end")["facts"]["ended_by"], "agent", "{report}");

    relay.sandbox.set_switches(SandboxSwitches {
        tables: TableAccess::Refused,
        rows: RowSwitches { hides_internal: true, ..RowSwitches::default() },
        ..SandboxSwitches::default()
    });
    let report = pilot(&relay, "c-2").await;
    assert_eq!(facts(&report, "rights")["facts"]["read_sys_user"], "status 403", "{report}");
    assert_eq!(facts(&report, "internal_note")["facts"]["row_is_marked_internal"], "no", "{report}");
    assert_eq!(relay.stop().await, [Some(0)]);
}

#[tokio::test]
async fn a_pilot_without_a_terminal_asks_nothing() {
    let bench = Engine::Embedded.bench().unwrap();
    let asked = super::harness::binary::Causeway::new(["pilot"]).settings(&bench.settings());
    let asked = asked.run(IN_TIME).await;
    assert_eq!(asked.code, Some(2), "{}", asked.stderr);
    assert!(asked.stderr.contains("--yes"), "{}", asked.stderr);
}
