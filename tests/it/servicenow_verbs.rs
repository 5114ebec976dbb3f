//! Tests that `causeway servicenow` sets an instance up completely, changes nothing in a second run, leaves foreign
//! records unchanged, and reports a missing right.

use causeway::sandbox::{Sandbox, SandboxQueue, SandboxSettings, SandboxSwitches, TableAccess};

use crate::harness::binary::{Causeway, Finished};
use crate::harness::ports;
use crate::harness::relay::PATIENCE;

const ENDPOINT: &str = "https://relay.example.com/v1/callbacks/servicenow";
const RULE: &str = include_str!("../../deploy/servicenow/live_message.js");
const SECRET: &str = "S1gning-Secret";
const TABLES: [&str; 7] = [
    "sys_rest_message",
    "sys_rest_message_fn",
    "sys_rest_message_fn_headers",
    "sys_properties",
    "sys_script",
    "sysevent_register",
    "sysevent_script_action",
];

async fn sandbox() -> Sandbox {
    let listener = tokio::net::TcpListener::bind(ports::free_address()).await.unwrap();
    Sandbox::start(listener, SandboxSettings::default()).await
}

fn verb(sandbox: &Sandbox, args: &[&str]) -> Causeway {
    let login = SandboxSettings::default();
    let (verb, rest) = args.split_first().expect("a verb");
    rest.iter()
        .fold(Causeway::new([*verb]), |causeway, arg| causeway.arg(arg))
        .set("servicenow.host_url", sandbox.servicenow_url())
        .set("servicenow.username", login.username)
        .set("servicenow.password", login.password)
        .set("ingress.servicenow.hmac_secret", SECRET)
}

async fn run(causeway: Causeway) -> Finished {
    let finished = causeway.run(PATIENCE).await;
    for text in [&finished.stdout, &finished.stderr] {
        // Neither the secret itself nor the form that ServiceNow stores.
        assert!(!text.contains(SECRET) && !text.contains("UzFnbmluZy1TZWNyZXQ="), "{text}");
    }
    finished
}

async fn install(sandbox: &Sandbox, more: &[&str]) -> Finished {
    let args = ["servicenow", "install", "--endpoint", ENDPOINT];
    run(verb(sandbox, &[&args, more].concat())).await
}

/// All records of the instance.
fn everything(sandbox: &Sandbox) -> Vec<std::collections::BTreeMap<String, String>> {
    TABLES.iter().flat_map(|table| sandbox.records(table)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn installing_twice_is_as_once() {
    let sandbox = sandbox().await;
    let dry = install(&sandbox, &["--dry-run"]).await;
    assert_eq!(dry.code, Some(0), "{}{}", dry.stdout, dry.stderr);
    assert!(
        dry.stdout.contains("+ REST Message \"Causeway\"") && dry.stdout.contains(ENDPOINT),
        "{}",
        dry.stdout
    );
    assert!(dry.stdout.contains("7 records to write; nothing was written"), "{}", dry.stdout);
    assert!(everything(&sandbox).is_empty());
    let unasked = install(&sandbox, &[]).await;
    assert_eq!(unasked.code, Some(2), "without a terminal nobody agreed: {}", unasked.stderr);
    assert!(everything(&sandbox).is_empty());

    let first = install(&sandbox, &["--yes"]).await;
    assert_eq!(first.code, Some(0), "{}{}", first.stdout, first.stderr);
    assert!(first.stdout.contains("wrote 7 records"), "{}", first.stdout);
    let made = everything(&sandbox);
    let [message, method, header, key, rule, event, action] = &made[..] else { panic!("{made:#?}") };
    for title in ["HTTP Method", "Business Rule", "Event Registration \"causeway.retry\"", "Script Action"] {
        assert!(dry.stdout.contains(&format!("+ {title}")), "{title} is missing from:\n{}", dry.stdout);
    }
    assert!(action["active"] == "true" && event["table"] == "live_message");
    assert_eq!((message["name"].as_str(), message["rest_endpoint"].as_str()), ("Causeway", ENDPOINT));
    assert_eq!(method["rest_message"], message["sys_id"]);
    assert_eq!((method["function_name"].as_str(), method["http_method"].as_str()), ("post", "post"));
    assert_eq!(header["rest_message_function"], method["sys_id"]);
    assert_eq!((header["name"].as_str(), header["value"].as_str()), ("Content-Type", "application/json"));
    assert_eq!((key["name"].as_str(), key["is_private"].as_str()), ("causeway.signing_key", "true"));
    assert_eq!(key["value"], "UzFnbmluZy1TZWNyZXQ=");
    assert_eq!(rule["script"], RULE, "what is installed is the file that the tests execute");
    assert_eq!(event["event_name"], "causeway.retry");
    assert_eq!((&action["event_name"], &action["script"]), (&event["event_name"], &rule["script"]));
    assert_eq!((rule["collection"].as_str(), rule["when"].as_str()), ("live_message", "after"));
    assert_eq!(rule["filter_condition"], "sys_created_by!=chatbot_interface^internal=false^EQ");

    let second = install(&sandbox, &["--yes"]).await;
    assert_eq!(second.code, Some(0));
    assert!(second.stdout.contains("nothing to do: everything is as it should be"), "{}", second.stdout);
    assert_eq!(everything(&sandbox), made);
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_records_are_shown_and_corrected() {
    let sandbox = sandbox().await;
    assert_eq!(install(&sandbox, &["--yes"]).await.code, Some(0));
    let other = [
        "servicenow",
        "install",
        "--endpoint",
        "https://new.example.com/v1/callbacks/servicenow",
        "--dry-run",
    ];
    let run_other = run(verb(&sandbox, &other).set("servicenow.username", "chatbot_interface")).await;
    let expected =
        format!("rest_endpoint: \"{ENDPOINT}\" -> \"https://new.example.com/v1/callbacks/servicenow\"");
    assert!(run_other.stdout.contains(&expected), "{}", run_other.stdout);
    assert!(run_other.stdout.contains("= Business Rule \"Causeway\""), "{}", run_other.stdout);

    let token = verb(&sandbox, &["servicenow", "install", "--endpoint", ENDPOINT, "--yes"])
        .set("ingress.servicenow.hmac_secret", "")
        .set("ingress.servicenow.token", "T0ken-Value");
    let changed = run(token).await;
    assert_eq!(changed.code, Some(0), "{}{}", changed.stdout, changed.stderr);
    for line in
        ["-   var CREDENTIAL = 'signature';", "+   var CREDENTIAL = 'token';", "x-causeway-token", "(secret)"]
    {
        assert!(changed.stdout.contains(line), "{line} is missing from:\n{}", changed.stdout);
    }
    assert!(!changed.stdout.contains("T0ken-Value"));
    assert_eq!(sandbox.records("sys_rest_message_fn_headers")[1]["value"], "T0ken-Value");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_others_stay_unchanged() {
    let sandbox = sandbox().await;
    sandbox.plant(
        "sys_script",
        &[
            ("name", "Kore"),
            ("collection", "live_message"),
            ("active", "true"),
            ("script", "new sn_ws.RESTMessageV2('Platform - Agent Integrations', '…')"),
        ],
    );
    sandbox.plant("sys_rest_message", &[("name", "Causeway"), ("description", "of a colleague")]);
    let before = everything(&sandbox);
    let refused = install(&sandbox, &["--yes"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
    for words in ["was not made by Causeway", "--name", "managed-by: causeway"] {
        assert!(refused.stderr.contains(words), "{words} is missing from:\n{}", refused.stderr);
    }
    assert_eq!(everything(&sandbox), before);

    let named = install(&sandbox, &["--name", "Causeway 2", "--yes"]).await;
    assert_eq!(named.code, Some(0), "{}{}", named.stdout, named.stderr);
    assert!(named.stdout.contains("the Business Rule \"Kore\""), "{}", named.stdout);
    let rule = sandbox.records("sys_script").pop().unwrap();
    assert!(rule["script"].contains("var REST_MESSAGE = 'Causeway 2';"));
    // If two rules shared an event, the delivery of one rule would end the retries of the other.
    assert!(rule["script"].contains("var RETRY_EVENT = 'causeway_2.retry';"));
    let action = sandbox.records("sysevent_script_action").pop().unwrap();
    assert_eq!((action["event_name"].as_str(), &action["script"]), ("causeway_2.retry", &rule["script"]));
    assert!(before.iter().all(|row| everything(&sandbox).contains(row)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_right_is_named() {
    let sandbox = sandbox().await;
    let access = |tables| sandbox.set_switches(SandboxSwitches { tables, ..SandboxSwitches::default() });
    for (tables, words) in [
        (TableAccess::Refused, "web_service_admin"),
        (TableAccess::ReadOnly, "web_service_admin"),
        (TableAccess::NoScripts, "silently ignored: script"),
    ] {
        access(tables);
        let refused = install(&sandbox, &["--yes"]).await;
        assert_eq!(refused.code, Some(1), "{tables:?}: {}", refused.stdout);
        for words in [words, "--as USER --password-file FILE"] {
            assert!(
                refused.stderr.contains(words),
                "{tables:?}: {words} is missing from:\n{}",
                refused.stderr
            );
        }
    }
    // Half of the records were written; the next run completes them.
    access(TableAccess::Allowed);
    assert_eq!(install(&sandbox, &["--yes"]).await.code, Some(0));
    let again = install(&sandbox, &["--dry-run"]).await;
    assert!(again.stdout.contains("nothing to do"), "{}", again.stdout);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "wrong\n").unwrap();
    let file = file.to_str().unwrap();
    let args = [
        "servicenow",
        "install",
        "--endpoint",
        ENDPOINT,
        "--as",
        "admin",
        "--password-file",
        file,
        "--dry-run",
    ];
    let wrong = run(verb(&sandbox, &args)).await;
    assert_eq!(wrong.code, Some(1));
    assert!(wrong.stderr.contains("snc_basic_auth_api_access"), "{}", wrong.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_virtual_agents_record_is_servicenows() {
    let sandbox = sandbox().await;
    let va = || {
        let args = ["servicenow", "install", "--endpoint", ENDPOINT, "--yes"];
        verb(&sandbox, &args).set("servicenow.api", "virtual_agent")
    };
    let missing = run(va()).await;
    assert!(missing.stderr.contains("Virtual Agent API from the ServiceNow Store"), "{}", missing.stderr);
    let stock =
        sandbox.plant("sys_rest_message", &[("name", "VA Bot to Bot"), ("rest_endpoint", "https://old")]);
    let method =
        [("function_name", "postMessage"), ("rest_message", stock.as_str()), ("rest_endpoint", ENDPOINT)];
    sandbox.plant("sys_rest_message_fn", &method);
    let before = everything(&sandbox);
    let told = run(va()).await;
    assert_eq!(told.code, Some(1), "what is to be done by hand is not done yet");
    for words in [&format!("\"https://old\" -> \"{ENDPOINT}\""), "By hand:", "= HTTP Method \"postMessage\""]
    {
        assert!(told.stdout.contains(words), "{words} is missing from:\n{}", told.stdout);
    }
    assert_eq!(everything(&sandbox), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_of_both_kinds_are_listed() {
    let sandbox = sandbox().await;
    let queue = SandboxQueue::default();
    sandbox.set_queue_open(&queue.id, false);
    let agent = sandbox.records("awa_queue")[0].clone();
    let listed = run(verb(&sandbox, &["servicenow", "queues"])).await;
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
    let line = |id: &str| listed.stdout.lines().find(|line| line.contains(id)).unwrap_or_default().to_owned();
    assert!(
        line(&queue.id).contains("chat_queue") && line(&queue.id).contains("IT Support"),
        "{}",
        listed.stdout
    );
    assert!(
        line(&queue.id).ends_with("closed") && line(&agent["sys_id"]).ends_with("active"),
        "{}",
        listed.stdout
    );

    // Without Connect Support the command reads its table; without the tables it calls Connect Support.
    let json = async |switches: SandboxSwitches| -> serde_json::Value {
        sandbox.set_switches(switches);
        serde_json::from_str(&run(verb(&sandbox, &["servicenow", "queues", "--json"])).await.stdout).unwrap()
    };
    let missing = json(SandboxSwitches { plugin_missing: true, ..SandboxSwitches::default() }).await;
    assert_eq!(missing["queues"][1]["id"], queue.id);
    assert_eq!(
        (&missing["queues"][1]["state"], &missing["queues"][1]["kind"]),
        (&"active".into(), &"chat_queue".into())
    );
    let refused = json(SandboxSwitches { tables: TableAccess::Refused, ..SandboxSwitches::default() }).await;
    assert_eq!(
        (&refused["queues"][0]["state"], refused["queues"].as_array().unwrap().len()),
        (&"closed".into(), 1)
    );
    assert!(refused["notes"][0].as_str().unwrap().contains("awa_admin"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rule_that_is_printed_is_the_file() {
    let rule = Causeway::new(["servicenow", "rule"]).run(PATIENCE).await;
    assert_eq!((rule.code, rule.stdout.as_str()), (Some(0), RULE));
    let args = ["servicenow", "rule", "--token", "--name", "Relay", "--own-user", "relay.user"];
    let other = Causeway::new(args).run(PATIENCE).await;
    for line in [
        "  var REST_MESSAGE = 'Relay';",
        "  var OWN_USER = 'relay.user';",
        "  var CREDENTIAL = 'token';",
        "  var RETRY_EVENT = 'relay.retry';",
    ] {
        assert!(other.stdout.lines().any(|printed| printed == line), "{}", other.stdout);
    }
    let quoted = Causeway::new(["servicenow", "rule", "--own-user", "o'hara"]).run(PATIENCE).await;
    assert_eq!(quoted.code, Some(2));
}
