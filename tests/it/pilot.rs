//! Tests that `causeway pilot` observes one conversation in the sandbox, with the switches of undocumented facts in both
//! positions, that it observes a bot's turns and asks its people, and that its report holds no text and no secret.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use causeway::sandbox::botkit::BotScript;
use causeway::sandbox::{BotSettings, RowSwitches, SandboxSwitches, TableAccess};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::botkit::{chat, relay_of, user};
use super::harness::binary::Running;
use super::harness::matrix::Engine;
use super::harness::relay::{PATIENCE, Plan, Relay};

const IN_TIME: Duration = Duration::from_secs(60);

/// A pilot that asks nothing.
fn observing(relay: &Relay, report: &Path) -> Running {
    relay.verb(&["pilot", "--yes", "--time-limit", "60s", "--report", report.to_str().unwrap()]).spawn()
}

/// Plays the steps of the agent up to the step in which the user writes.
async fn agent_comes(relay: &Relay, pilot: &mut Running, group: &str) {
    pilot.line("accept (agent)", IN_TIME).await;
    relay.sandbox.agent_accept(group).await.unwrap();
    pilot.line("agent_writes (agent)", IN_TIME).await;
    relay.sandbox.agent_says(group, "words of the agent").await.unwrap();
    pilot.line("user_writes (user)", IN_TIME).await;
}

/// Plays the other steps of the agent.
async fn agent_goes(relay: &Relay, pilot: &mut Running, group: &str) {
    pilot.line("internal_note (agent)", IN_TIME).await;
    relay.sandbox.agent_whispers(group, "pilot-note for colleagues").await.unwrap();
    pilot.line("placeholder (agent)", IN_TIME).await;
    relay.sandbox.agent_says(group, "${pilot}").await.unwrap();
    pilot.line("end (agent)", IN_TIME).await;
    relay.sandbox.agent_closes(group).await.unwrap();
}

/// Plays both people of one pilot, and returns the report by step.
async fn pilot(relay: &Relay, conversation: &str) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let mut pilot = observing(relay, &report);
    pilot.line("start (user)", IN_TIME).await;
    relay.start(conversation).await;
    let group = relay.open(conversation).await;
    agent_comes(relay, &mut pilot, &group).await;
    relay.say(conversation, "words of the user").await;
    agent_goes(relay, &mut pilot, &group).await;
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

/// With onMessage subscribed, XO waits for Causeway in each turn (`src/platform/xo/FACTS.md`), so the pilot can measure a turn.
#[tokio::test(flavor = "multi_thread")]
async fn a_pilot_with_a_bot_observes_its_turns_before_and_after_the_chat() {
    let bench = Engine::Embedded.bench().unwrap();
    let bot = BotSettings { script: BotScript::help_desk(), ..BotSettings::default() };
    let mut relay = relay_of(&bench, vec![bot], &[]).await;
    let ada = user(&relay, "ada");
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let mut pilot = observing(&relay, &report);
    pilot.line("bot_turn (user)", IN_TIME).await;
    assert_eq!(ada.says("a private question").await.status, 200);
    pilot.line("start (user)", IN_TIME).await;
    assert_eq!(ada.says("Get me an agent").await.status, 200);
    let group = chat(&relay).await;
    agent_comes(&relay, &mut pilot, &group).await;
    assert_eq!(ada.says("words of the user").await.status, 200);
    agent_goes(&relay, &mut pilot, &group).await;
    pilot.line("bot_again (user)", IN_TIME).await;
    assert!(ada.wait_for(|user| user.clears() == 1, IN_TIME).await, "XO has the user back");
    assert_eq!(ada.says("another private question").await.status, 200);
    let ended = pilot.exit(PATIENCE).await;
    assert_eq!(ended.code(), Some(0), "{}", pilot.stderr());
    let text = std::fs::read_to_string(&report).unwrap();
    assert!(!text.contains("private") && !text.contains("words of") && !text.contains("ada"), "{text}");
    let report: Value = serde_json::from_str(&text).unwrap();
    for step in ["bot_turn", "bot_again"] {
        let turn = facts(&report, step);
        assert_eq!(
            (&turn["facts"]["kind"], &turn["facts"]["outcome"]),
            (&"bot.user_message".into(), &"delivered".into())
        );
    }
    assert_eq!(facts(&report, "end")["facts"]["user_is_back_with_the_bot_side"], "yes", "{report}");
    assert_eq!(relay.stop().await, [Some(0)]);
}

/// The pilot in a terminal, with people who type.
struct Terminal {
    child: Child,
    shown: String,
}

impl Terminal {
    fn start(relay: &Relay, report: &str) -> Self {
        let line = format!("'{}' pilot --time-limit 60s --report '{report}'", env!("CARGO_BIN_EXE_causeway"));
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]).env("TERM", "xterm");
        for (key, value) in &relay.settings {
            command.env(format!("CAUSEWAY_{}", key.to_uppercase().replace('.', "__")), value);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        Self {
            child: command.spawn().expect("`script` of util-linux makes a terminal"),
            shown: String::new(),
        }
    }

    /// Waits until the terminal shows the words after the words of the last call.
    async fn shows(&mut self, words: &str) {
        let shown = async {
            loop {
                if let Some(at) = self.shown.find(words) {
                    self.shown.drain(..at + words.len());
                    return;
                }
                let mut read = [0; 4096];
                let count = self.child.stdout.as_mut().unwrap().read(&mut read).await.unwrap();
                assert_ne!(count, 0, "the pilot ended before {words:?}: {}", self.shown);
                self.shown.push_str(&String::from_utf8_lossy(&read[..count]));
            }
        };
        let waited = tokio::time::timeout(PATIENCE, shown).await;
        assert!(waited.is_ok(), "{words:?} is missing");
    }

    async fn types(&mut self, line: &str) {
        self.child.stdin.as_mut().unwrap().write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs script of util-linux: tests/run runs it"]
async fn a_pilot_asks_its_people_and_goes_on_without_a_skipped_step() {
    let bench = Engine::Embedded.bench().unwrap();
    let mut relay = Plan::on(&bench).set("servicenow.poll_waiting", "200ms").start().await;
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let mut terminal = Terminal::start(&relay, report.to_str().unwrap());
    terminal.shows("start (user)").await;
    relay.start("c-1").await;
    terminal.shows("[yes/no]").await;
    terminal.types("perhaps").await;
    terminal.types("no").await;
    for step in ["accept", "agent_writes", "user_writes", "internal_note", "placeholder", "end"] {
        terminal.shows(&format!("{step} (")).await;
        terminal.types("skip").await;
        terminal.shows("skipped after").await;
    }
    terminal.shows("2 of 8 steps observed").await;
    assert_eq!(terminal.child.wait().await.unwrap().code(), Some(0));
    let report: Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    assert_eq!(facts(&report, "start")["facts"]["person_says"], "no", "{report}");
    assert_eq!(facts(&report, "end")["outcome"], "skipped", "{report}");
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
