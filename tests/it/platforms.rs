//! Promise: `check` and `healthcheck` really ask, say what is wrong and what to do, and end accordingly.

use std::path::Path;

use causeway::sandbox::{QueueSettings, Rule, Sandbox, SandboxSettings, Side, Switches};

use crate::harness::binary::{Causeway, Finished};
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
        .set("servicenow.queue_id", QueueSettings::default().id)
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
    async fn what_is_well_is_said_to_be_well(bench: Bench) {
        let sandbox = sandbox().await;
        let run = check(&sandbox).settings(&bench.settings()).run(PATIENCE).await;
        assert_eq!(run.code, Some(0), "{}{}", run.stdout, run.stderr);
        silent_about_secrets(&run);
        let lines = ["ok   settings", "ok   queue: ", "ok   directory: SQLite", "ok   ServiceNow answers", "IT Support",
            "ok   xo.callback_url", "ok   handoffs.events_url"];
        for line in lines {
            assert!(run.stdout.contains(line), "{line} is missing from:\n{}", run.stdout);
        }
        // It only looked.
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
        let again = ask();
        assert_eq!(relay.stop().await, [Some(0)]);
        assert_eq!(again.run(PATIENCE).await.code, Some(1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_comes_with_what_to_do() {
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

    sandbox.set_switches(Switches { plugin_missing: true, ..Switches::default() });
    red(&asked(check(&sandbox)).await, "plugin");
    sandbox.set_switches(Switches::default());
    for (rule, hint) in [
        (Rule::new(Side::ServiceNow).html_page(), "hibernates"),
        (Rule::new(Side::ServiceNow).redirect(), "servicenow.host_url"),
        (Rule::new(Side::ServiceNow).accepted(), "overloaded"),
    ] {
        sandbox.script().fail(rule);
        red(&asked(check(&sandbox)).await, hint);
        sandbox.script().clear();
    }
    sandbox.set_queue_open(&QueueSettings::default().id, false);
    let closed = asked(check(&sandbox)).await;
    assert_eq!(closed.code, Some(0), "a closed queue is as it should be: {}", closed.stdout);
    assert!(
        closed.stdout.contains("is closed now") && closed.stdout.contains("Schedule"),
        "{}",
        closed.stdout
    );
}
