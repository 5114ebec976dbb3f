//! Tests that the Business Rule that we ship reports everything to the ingress and never blocks an agent. A JavaScript
//! engine runs the rule with stand-ins for ServiceNow's objects, and its requests go to the real ingress. The retry of
//! callbacks is tested in `servicenow_retry`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::StatusCode;
use serde_json::{Map, Value, json};

use crate::harness::business_rule::{self, Instance, RULE, SECRET, mac};
use crate::harness::http;
use crate::harness::matrix::Engine;
use crate::harness::relay::Plan;

/// The result of a run of the rule.
struct Run {
    sent: Vec<Value>,
    /// The requests that another host got.
    elsewhere: Vec<Value>,
    errors: Vec<String>,
    /// The queued retries.
    events: Vec<Value>,
    /// Whether an exception reached the agent's transaction.
    threw: bool,
}

/// The settings of an instance, and `row`, which was just written.
fn told(text: &str) -> Map<String, Value> {
    let mut settings = business_rule::settings();
    let row = json!({
        "group": "g1", "formatted_message": text, "sys_created_by": "beth.anglin", "sys_id": "m3",
        "sys_created_on": "2026-11-22 10:00:02", "internal": "0",
    });
    settings.insert("row".to_owned(), row);
    settings
}

fn run_script(script: &str, told: &Map<String, Value>) -> Run {
    let mut done = Instance::with_script(script, told).run(
        "var threw = false;
         try { rule(recordOf(instance.row), undefined); } catch (error) { threw = true; }
         result = { sent: sent, elsewhere: elsewhere, errors: errors, events: events, threw: threw };",
    );
    let list = |value: &Value| value.as_array().unwrap().clone();
    Run {
        sent: list(&done["sent"]),
        elsewhere: list(&done["elsewhere"]),
        events: list(&done["events"]),
        errors: serde_json::from_value(done["errors"].take()).unwrap(),
        threw: done["threw"] == true,
    }
}

fn run(told: &Map<String, Value>) -> Run {
    run_script(RULE, told)
}

/// The body of the only request.
fn body(run: &Run) -> Value {
    assert!(!run.threw && run.errors.is_empty(), "{:?}", run.errors);
    assert_eq!(run.sent.len(), 1);
    serde_json::from_str(run.sent[0]["body"].as_str().unwrap()).unwrap()
}

const NASTY: [&str; 11] = [
    "plain",
    "she said \"no\" and 'yes'",
    "line\nbreak\r\nand\ttab",
    "C:\\temp\\new \\u0041 \\ud83d \\",
    "한국어 日本語 ñ ü \u{7f} \u{85} \u{2028}",
    "👍🏽 and 𝔘",
    "<b>%3c</b> & </script>",
    "{\"group\":\"other\"}",
    "\u{1}\u{1f}",
    "set ${HOME} first, and ${a.b} or $5 {x}",
    "a=b+c&d@e#f%g^h*i~j|k'l`m\"n/o",
];

#[test]
fn whatever_is_written_the_body_is_json_in_ascii() {
    for text in NASTY {
        let run = run(&told(text));
        assert_eq!(body(&run)["formatted_message"], text);
        assert!(run.sent[0]["body"].as_str().unwrap().is_ascii());
    }
}

/// Whether RESTMessageV2 substitutes `${…}` in the body of a script is not known (`src/platform/servicenow/FACTS.md`): nothing
/// that it could change may be in the body, and the substitution is switched off if the release can do that.
#[test]
fn nothing_in_the_body_can_be_substituted() {
    for (release, substitutes) in [("new", true), ("new", false), ("old", true), ("old", false)] {
        for text in NASTY {
            let mut told = told(text);
            told.insert("release".to_owned(), json!(release));
            told.insert("substitutes".to_owned(), json!(substitutes));
            let run = run(&told);
            assert_eq!(body(&run)["formatted_message"], text, "{release}");
            let sent = run.sent[0]["body"].as_str().unwrap();
            assert!(!sent.contains('$') && sent.matches(['{', '}']).count() == 2, "{sent}");
            assert_eq!(run.sent[0]["substitutes"], substitutes && release == "old");
            let signed = run.sent[0]["headers"]["x-causeway-signature"].as_str().unwrap();
            let (at, proof) = signed.trim_start_matches("t=").split_once(",v1=").unwrap();
            let key = STANDARD.encode(SECRET);
            assert_eq!(proof, mac(key, "HmacSHA256".to_owned(), format!("{at}.{sent}")), "as it was sent");
        }
    }
}

/// RESTMessageV2 follows redirects, with the credentials. A login page of another host is answered with 200.
#[test]
fn no_redirect_takes_a_message_away() {
    for (release, elsewhere) in [("new", 0), ("old", 1)] {
        let mut told = told("hello");
        told.insert("release".to_owned(), json!(release));
        told.insert("redirects".to_owned(), json!(true));
        let run = run(&told);
        assert_eq!(run.elsewhere.len(), elsewhere, "{release}");
        assert_eq!(run.events.len(), 1, "{release}: it is sent again");
        assert!(!run.threw && run.errors[0].contains("was answered"), "{:?}", run.errors);
    }
}

#[test]
fn half_a_character_does_not_spoil_the_rest() {
    // JSON that Rust cannot write, so the engine builds it.
    let sent = Instance::new(&told("cut HALF off")).run(
        "instance.row.formatted_message = instance.row.formatted_message.replace('HALF', '\\ud83d');
         rule(recordOf(instance.row), undefined);
         result = sent[0].body;",
    );
    let sent: Value = serde_json::from_str(sent.as_str().unwrap()).unwrap();
    assert_eq!(sent["formatted_message"], "cut \u{fffd} off");
}

#[test]
fn it_says_what_the_relay_needs_to_know() {
    let mut told = told("hello");
    told["history"] = json!([
        { "group": "g1", "sys_id": "m1", "sys_created_by": "beth.anglin", "internal": false, "sys_created_on": "2026-11-22 10:00:00" },
        { "group": "g1", "sys_id": "m2", "sys_created_by": "beth.anglin", "internal": false, "sys_created_on": "2026-11-22 10:00:01" },
        { "group": "g1", "sys_id": "i1", "sys_created_by": "beth.anglin", "internal": true, "sys_created_on": "2026-11-22 10:00:01" },
        { "group": "g1", "sys_id": "u1", "sys_created_by": "chatbot_interface", "internal": false, "sys_created_on": "2026-11-22 10:00:01" },
        { "group": "g2", "sys_id": "x1", "sys_created_by": "beth.anglin", "internal": false, "sys_created_on": "2026-11-22 10:00:01" },
        { "group": "g1", "sys_id": "m3", "sys_created_by": "beth.anglin", "internal": false, "sys_created_on": "2026-11-22 10:00:02" },
        { "group": "g1", "sys_id": "m4", "sys_created_by": "beth.anglin", "internal": false, "sys_created_on": "2026-11-22 10:00:03" },
    ]);
    let done = run(&told);
    let mut body = body(&done);
    let sent_at = body["sent_at"].take().as_i64().unwrap();
    assert!(sent_at > 1_700_000_000_000, "in milliseconds");
    let expected = json!({
        "group": "g1", "group_type": "support", "formatted_message": "hello", "sys_created_by": "beth.anglin",
        "sys_created_on": "2026-11-22 10:00:02", "last_message": "", "sys_id": "m3", "internal": false,
        "instance": "acme",
        // The previous message that this rule should have sent.
        "previous": "m2", "sent_at": null,
    });
    assert_eq!(body, expected);
    let request = &done.sent[0];
    assert_eq!((&request["message"], &request["method"]), (&json!("Causeway"), &json!("post")));
    assert_eq!(request["headers"]["Content-Type"], "application/json");
    assert!(request["timeout"].as_i64().is_some_and(|ms| ms <= 3000), "an agent does not wait longer");

    told["history"] = json!([]);
    assert_eq!(self::body(&run(&told))["previous"], "", "the first one");
}

/// The clock of the rule has whole seconds. The order of two messages of the same second is unknown, and a wrong guess
/// would hide that the other message is missing.
#[test]
fn of_two_messages_of_one_second_none_is_the_previous() {
    let said = |id: &str, second: &str| {
        json!({
            "group": "g1", "sys_id": id, "sys_created_by": "system", "internal": false,
            "sys_created_on": format!("2026-11-22 10:00:{second}"),
        })
    };
    for (history, previous) in [
        (json!([said("m1", "00"), said("m2", "01")]), json!("m2")),
        (json!([said("m1", "01"), said("m2", "01")]), Value::Null),
        (json!([said("m1", "00"), said("m2", "02")]), Value::Null),
        (json!([said("m1", "02")]), Value::Null),
    ] {
        let mut told = told("hello");
        told["history"] = history;
        assert_eq!(body(&run(&told))["previous"], previous, "{:?}", told["history"]);
    }
}

#[test]
fn foreign_records_stay_unchanged() {
    let fields = [
        ("internal", "1"),
        ("internal", "true"),
        ("internal", "yes"),
        ("sys_created_by", "chatbot_interface"),
    ];
    for (field, value) in fields {
        let mut told = told("hush");
        told["row"][field] = json!(value);
        let run = run(&told);
        assert!(run.sent.is_empty() && run.errors.is_empty() && !run.threw, "{field} = {value}");
    }
    for (kind, sends) in
        [("peer", false), ("document", false), ("", true), ("support", true), ("unheard-of", true)]
    {
        let mut told = told("hush");
        told.insert("type".to_owned(), json!(kind));
        assert_eq!(!run(&told).sent.is_empty(), sends, "{kind}");
    }
}

#[test]
fn nothing_escapes_into_the_agents_transaction() {
    // What throws, whether the message is sent all the same, and whether it is sent again.
    for (breaks, sends, repeats) in [
        ("message", false, true),
        ("execute", false, true),
        ("mac", false, true),
        ("query", true, false),
        ("queue", true, false),
        ("log", true, false),
    ] {
        let mut told = told("my secret words");
        told["breaks"] = json!(breaks);
        let run = run(&told);
        assert!(!run.threw, "{breaks}");
        assert_eq!((!run.sent.is_empty(), run.events.len()), (sends, usize::from(repeats)), "{breaks}");
        assert_eq!(run.errors.is_empty(), sends, "{breaks}");
        let said = run.errors.join(" ");
        assert!(!said.contains("hush") && !said.contains("secret words"), "{said}");
        // Everything at once.
        told.insert("status".to_owned(), json!(503));
        assert!(!self::run(&told).threw, "{breaks}");
    }
    let mut told = told("hello");
    told["status"] = json!(503);
    let refused = run(&told);
    assert_eq!(refused.events.len(), 1, "to be sent again");
    assert!(!refused.threw && refused.errors[0].contains("503") && refused.errors[0].contains("m3"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_ingress_takes_what_it_sends() {
    let Some(bench) = Engine::Embedded.bench() else { return };
    let plan =
        Plan::on(&bench).set("ingress.servicenow.hmac_secret", SECRET).set("servicenow.instance", "acme");
    let relay = plan.start().await;
    let url = format!("{}/v1/callbacks/servicenow", relay.processes[0].public_url());
    let post = async |request: &Value| {
        let headers = request["headers"].as_object().unwrap().iter();
        let posted = headers.fold(http::client().post(&url), |posted, (name, value)| {
            posted.header(name.as_str(), value.as_str().unwrap())
        });
        posted.body(request["body"].as_str().unwrap().to_owned()).send().await.unwrap().status()
    };
    for (n, text) in NASTY.iter().enumerate() {
        let mut told = told(text);
        told["row"]["sys_id"] = json!(format!("m{n}"));
        // A signature is valid for five minutes, so the instance has the machine's time.
        told["now"] = json!(causeway::clock::now().as_millisecond());
        let mut clone = told.clone();
        clone["name"] = json!("acmetest");
        assert_eq!(post(&run(&clone).sent[0]).await, StatusCode::FORBIDDEN, "a clone: {text}");
        let mut run = run(&told);
        assert_eq!(post(&run.sent[0]).await, StatusCode::ACCEPTED, "{text}");
        let changed = run.sent[0]["body"].as_str().unwrap().replace("beth", "eve");
        run.sent[0]["body"] = json!(changed);
        assert_eq!(post(&run.sent[0]).await, StatusCode::UNAUTHORIZED, "{text}");
    }
    // No conversation opened this group, so the text goes unchanged to XO's Callback URL.
    let expected: Vec<String> = NASTY.iter().map(|text| (*text).to_owned()).collect();
    relay
        .until("every text at XO", |relay| match relay.called_back().get("g1") {
            Some(texts) if *texts == expected => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
}

#[test]
fn without_a_signature_the_header_of_the_method_is_the_proof() {
    let script = RULE.replace("var CREDENTIAL = 'signature';", "var CREDENTIAL = 'token';");
    let run = run_script(&script, &told("hello"));
    body(&run);
    assert!(run.sent[0]["headers"].get("x-causeway-signature").is_none());
}

#[test]
fn it_is_written_in_the_javascript_that_servicenow_has() {
    let code = RULE.lines().filter(|line| !line.trim_start().starts_with("//"));
    let words = |line: &str| -> Vec<String> {
        line.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_owned).collect()
    };
    for line in code {
        for word in ["let", "const", "class", "async", "await", "yield", "import", "export", "of"] {
            // Words inside a string are not code.
            let outside: String = line.split('\'').step_by(2).collect();
            assert!(!words(&outside).iter().any(|found| found == word), "`{word}` is not ES5: {line}");
        }
        for sign in ["=>", "`", "...", "?.", "??", "(?<"] {
            assert!(!line.contains(sign), "`{sign}` is not ES5: {line}");
        }
    }
    assert!(RULE.is_ascii(), "an editor of ServiceNow may not keep anything else");
}
