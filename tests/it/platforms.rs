//! Tests that `check` and `healthcheck` make real calls, report the error and its remedy, and return the right exit
//! code.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use causeway::clock;
use causeway::sandbox::{
    BasicLogin, BotSettings, FaultRule, InjectedFault, Operation, Sandbox, SandboxQueue, SandboxSettings,
    SandboxSwitches, Side,
};
use lapin::BasicProperties;
use serde_json::Value;

use crate::harness::amqp::Amqp;
use crate::harness::binary::{Causeway, Finished};
use crate::harness::matrix::Engine;
use crate::harness::ports;
use crate::harness::relay::{PATIENCE, Plan};

const PASSWORD: &str = "S3cret-Value";

async fn sandbox() -> Sandbox {
    let listener = tokio::net::TcpListener::bind(ports::free_address()).await.unwrap();
    Sandbox::start(listener, SandboxSettings { password: PASSWORD.into(), ..SandboxSettings::default() })
        .await
}

fn check(sandbox: &Sandbox) -> Causeway {
    Causeway::new(["check"])
        .set("servicenow.host_url", sandbox.servicenow_url())
        .set("servicenow.username", SandboxSettings::default().username)
        .set("servicenow.password", PASSWORD)
        .set("servicenow.queue_id", SandboxQueue::default().id)
        .set("xo.callback_url", sandbox.xo_callback_url())
        .set("handoffs.events_url", sandbox.events_url())
        .set("handoffs.events_token", "T0ken-Value")
}

fn in_folder(check: Causeway, folder: &Path) -> Causeway {
    check.set("data_dir", folder.to_str().unwrap())
}

fn silent_about_secrets(run: &Finished) {
    for secret in [PASSWORD, "T0ken-Value", "wrong-Secret"] {
        assert!(!run.stdout.contains(secret) && !run.stderr.contains(secret), "{run:?}");
    }
}

on_every_engine! {
    async fn the_check_reports_working_parts(bench: Bench) {
        let sandbox = sandbox().await;
        let run = check(&sandbox).settings(&bench.settings()).run(PATIENCE).await;
        assert_eq!(run.code, Some(0), "{}{}", run.stdout, run.stderr);
        silent_about_secrets(&run);
        let lines = ["ok   settings", "ok   queue: ", "ok   directory: SQLite", "ok   ServiceNow answers", "IT Support",
            "ok   xo.callback_url", "ok   handoffs.events_url"];
        for line in lines {
            assert!(run.stdout.contains(line), "{line} is missing from:\n{}", run.stdout);
        }
        // The command made only read calls.
        assert_eq!(sandbox.ledger().count(|entry| entry.applied), 0);
        assert!(sandbox.groups().is_empty());
    }

    async fn health_follows_the_process(bench: Bench) {
        let mut relay = Plan::on(&bench).start().await;
        let admin = relay.processes[0].admin_url().trim_start_matches("http://").to_owned();
        let ask = || relay.tool(["healthcheck"]).set("admin.listen", &admin);
        let (well, checked) = (ask().run(PATIENCE).await, relay.tool(["check"]).run(PATIENCE).await);
        assert_eq!((well.code, well.stdout.trim()), (Some(0), "ready"));
        assert_eq!(checked.code, Some(0), "beside a running relay: {}{}", checked.stdout, checked.stderr);
        assert!(checked.stdout.contains(" partitions, 0 messages waiting"), "{}", checked.stdout);
        let again = ask();
        assert_eq!(relay.stop().await, [Some(0)]);
        assert_eq!(again.run(PATIENCE).await.code, Some(1));
    }
}

on_every_rabbit! {
    async fn a_broker_is_looked_through(bench: Bench) {
        let vhost = bench.vhost().unwrap();
        let ask = || {
            let check = Causeway::new(["check"]).set("ingress.servicenow.token", "t");
            check.settings(&bench.settings()).run(PATIENCE)
        };
        let well = ask().await;
        assert_eq!(well.code, Some(0), "{}{}", well.stdout, well.stderr);
        let old = bench.engine() == Engine::Rabbit310;
        let version = if old { "RabbitMQ 3.10." } else { "RabbitMQ 4.3." };
        assert!(well.stdout.contains(&format!("ok   queue: {version}")), "{}", well.stdout);
        assert_eq!(well.stdout.contains("note ") && well.stdout.contains("plan the upgrade"), old, "{}", well.stdout);
        // The command tested the broker with a queue of its own.
        let held = |queue: &Value| queue["messages"].as_u64().unwrap_or(0);
        assert_eq!(vhost.queues().iter().map(held).sum::<u64>(), 0);

        let other = Amqp::open(&vhost.url()).await;
        other.publish("causeway.in", "a.way.to.nowhere", b"{}", BasicProperties::default()).await;
        let astray = ask().await;
        assert_eq!(astray.code, Some(1), "{}", astray.stdout);
        assert!(astray.stdout.contains("FAIL queue: 1 message found no partition"), "{}", astray.stdout);
        assert!(astray.stdout.contains("shovel"), "{}", astray.stdout);
        other.take("causeway.unrouted").await;

        vhost.forbid_writing_to("causeway.in");
        let shut = ask().await;
        assert_eq!(shut.code, Some(1), "{}", shut.stdout);
        assert!(shut.stdout.contains("the right to write") && shut.stdout.contains("configure, write and read"), "{}", shut.stdout);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_the_check_has_a_hint() {
    let (sandbox, folder) = (sandbox().await, tempfile::tempdir().unwrap());
    let asked = |check: Causeway| in_folder(check, folder.path()).run(PATIENCE);
    let red = |run: &Finished, hint: &str| {
        assert_eq!(run.code, Some(1), "{hint}: {}{}", run.stdout, run.stderr);
        let after = run.stdout.split("FAIL").nth(1).unwrap_or_default();
        assert!(
            after.contains("     -> ") && after.contains(hint),
            "{hint} is missing from:\n{}",
            run.stdout
        );
        silent_about_secrets(run);
    };
    red(&asked(check(&sandbox).set("servicenow.password", "wrong-Secret")).await, "servicenow.password");
    red(&asked(check(&sandbox).set("servicenow.queue_id", "0000")).await, "servicenow.queue_id");
    let nobody = format!("amqp://guest:wrong-Secret@127.0.0.1:{}/%2f", ports::free_address().port());
    red(&asked(check(&sandbox).set("queue.url", nobody)).await, "queue.url");
    let nobody = format!("http://{}/events", ports::free_address());
    red(&asked(check(&sandbox).set("handoffs.events_url", nobody)).await, "address");

    for (switches, hint) in [
        (SandboxSwitches { plugin_missing: true, ..SandboxSwitches::default() }, "plugin"),
        // The right password, answered like a wrong one.
        (
            SandboxSwitches { basic: BasicLogin::Restricted, ..SandboxSwitches::default() },
            "Basic login is restricted since 2026",
        ),
        (
            SandboxSwitches { basic: BasicLogin::MfaMissing, ..SandboxSwitches::default() },
            "multi-factor authentication",
        ),
    ] {
        sandbox.set_switches(switches);
        red(&asked(check(&sandbox)).await, hint);
    }
    sandbox.set_switches(SandboxSwitches::default());
    for (rule, hint) in [
        (FaultRule::new(Side::ServiceNow).html_page(), "hibernates"),
        (FaultRule::new(Side::ServiceNow).redirect(), "servicenow.host_url"),
        (FaultRule::new(Side::ServiceNow).accepted(), "overloaded"),
    ] {
        sandbox.script().fail(rule);
        red(&asked(check(&sandbox)).await, hint);
        sandbox.script().clear();
    }
    // Two minutes ago, as an HTTP date: valid for signatures, too late for XO's tokens.
    let date = std::time::SystemTime::try_from(clock::now()).unwrap() - Duration::from_secs(120);
    let headers = [("Date".to_owned(), httpdate::fmt_http_date(date))].into();
    for (side, operation, who) in
        [(Side::ServiceNow, Operation::Other, "ServiceNow's"), (Side::Xo, Operation::Callback, "127.0.0.1's")]
    {
        let late = InjectedFault::Status { status: 200, body: None, headers: BTreeMap::clone(&headers) };
        sandbox.script().fail(FaultRule::new(side).operation(operation).fault(late));
        let run = asked(check(&sandbox)).await;
        assert_eq!(run.code, Some(0), "{}", run.stdout);
        let line = run.stdout.lines().find(|line| line.contains(who)).unwrap_or_default();
        assert!(line.starts_with("note ") && line.contains(" s behind ours"), "{}", run.stdout);
        assert!(run.stdout.contains("NTP"), "{}", run.stdout);
        sandbox.script().clear();
    }
    let well = asked(check(&sandbox)).await;
    assert!(!well.stdout.contains("clock"), "{}", well.stdout);
    sandbox.set_queue_open(&SandboxQueue::default().id, false);
    let closed = asked(check(&sandbox)).await;
    assert_eq!(closed.code, Some(0), "a closed queue is as it should be: {}", closed.stdout);
    assert!(
        closed.stdout.contains("is closed now") && closed.stdout.contains("Schedule"),
        "{}",
        closed.stdout
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bots_credential_is_tried_where_it_changes_nothing() {
    let (sandbox, folder) = (sandbox().await, tempfile::tempdir().unwrap());
    let bot = BotSettings::default();
    let asked = |secret: &str| {
        let check = check(&sandbox)
            .set("xo.bot_id", &bot.bot_id)
            .set("xo.app_id", &bot.app_id)
            .set("xo.client_secret", secret);
        in_folder(check, folder.path()).run(PATIENCE)
    };
    let well = asked(&bot.client_secret).await;
    assert_eq!(well.code, Some(0), "{}{}", well.stdout, well.stderr);
    assert!(
        well.stdout.contains(&format!("ok   bot {}: XO takes its credential", bot.bot_id)),
        "{}",
        well.stdout
    );
    let wrong = asked("wrong-Secret").await;
    assert_eq!(wrong.code, Some(1), "{}{}", wrong.stdout, wrong.stderr);
    let line =
        wrong.stdout.lines().skip_while(|line| !line.starts_with("FAIL bot ")).nth(1).unwrap_or_default();
    assert!(line.starts_with("     -> ") && line.contains("xo.client_secret"), "{}", wrong.stdout);
    silent_about_secrets(&wrong);
    assert_eq!(sandbox.ledger().count(|entry| entry.applied), 0);
}
