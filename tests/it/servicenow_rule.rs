//! Tests that the Business Rule that we ship reports everything to the ingress and never blocks an agent. A JavaScript
//! engine runs the rule with stand-ins for ServiceNow's objects, and its requests go to the real ingress.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::StatusCode;
use rquickjs::{Context, Function, Runtime};
use serde_json::{Map, Value, json};
use sha2::Sha256;

use crate::harness::http;
use crate::harness::matrix::Engine;
use crate::harness::relay::Plan;

const RULE: &str = include_str!("../../deploy/servicenow/live_message.js");
const SECRET: &str = "signing secret of the tests";

/// Stand-ins for the ServiceNow objects that the rule uses. `told` holds a test's values.
const SERVICENOW: &str = r#"
var told = JSON.parse(toldText), sent = [], errors = [];
var current = {
  getValue: function (name) { return told.row.hasOwnProperty(name) ? told.row[name] : null; },
  sys_id: told.row.sys_id,
  group: { type: told.type }
};
var gs = {
  getProperty: function (name) { return name === 'causeway.signing_key' ? told.key : null; },
  error: function (text) { errors.push(text); }
};
function GlideCertificateEncryption() {}
GlideCertificateEncryption.prototype.generateMac = function (key, algorithm, data) {
  if (told.breaks === 'mac') { throw new Error('no such key'); }
  return mac(key, algorithm, data);
};
function GlideRecord(table) {
  if (told.breaks === 'query') { throw new Error('no such table ' + table); }
  this.rows = told.history.slice();
}
GlideRecord.prototype.addQuery = function (name, operator, value) {
  if (value === undefined) { value = operator; operator = '='; }
  this.rows = this.rows.filter(function (row) {
    var held = row[name];
    if (operator === '=') { return held === value; }
    return operator === '!=' ? held !== value : held <= value;
  });
};
GlideRecord.prototype.orderByDesc = function (name) {
  this.rows.sort(function (a, b) { return a[name] < b[name] ? 1 : -1; });
};
GlideRecord.prototype.setLimit = function (limit) { this.limit = limit; };
GlideRecord.prototype.query = function () { this.rows = this.rows.slice(0, this.limit); };
GlideRecord.prototype.next = function () { this.row = this.rows.shift(); return this.row !== undefined; };
GlideRecord.prototype.getValue = function (name) { return this.row[name]; };
var sn_ws = {
  RESTMessageV2: function (message, method) {
    var request = { message: message, method: method, headers: {} };
    this.setRequestHeader = function (name, value) { request.headers[name] = value; };
    this.setHttpTimeout = function (ms) { request.timeout = ms; };
    this.setRequestBody = function (body) { request.body = body; };
    this.execute = function () {
      if (told.breaks === 'network') { throw new Error('https://relay?token=hush'); }
      sent.push(request);
      return { getStatusCode: function () { return told.status; } };
    };
  }
};
"#;

/// The result of a run of the rule.
struct Run {
    sent: Vec<Value>,
    errors: Vec<String>,
    /// Whether an exception reached the agent's transaction.
    threw: bool,
}

/// The values for the stand-ins: a new row, and the state of the instance.
fn told(text: &str) -> Map<String, Value> {
    let row = json!({
        "group": "g1", "formatted_message": text, "sys_created_by": "beth.anglin", "sys_id": "m3",
        "sys_created_on": "2026-11-22 10:00:02", "internal": "0",
    });
    let told = json!({
        "row": row, "type": "support", "status": 202, "key": STANDARD.encode(SECRET), "breaks": "", "history": [],
    });
    told.as_object().unwrap().clone()
}

/// `GlideCertificateEncryption.generateMac`: the key and the result are Base64.
fn mac(key: String, algorithm: String, data: String) -> String {
    assert_eq!(algorithm, "HmacSHA256");
    assert!(data.is_ascii(), "what is signed may depend on no character set");
    let mut mac = Hmac::<Sha256>::new_from_slice(&STANDARD.decode(key).unwrap()).unwrap();
    mac.update(data.as_bytes());
    STANDARD.encode(mac.finalize().into_bytes())
}

fn run_script(script: &str, told: &Map<String, Value>) -> Run {
    let runtime = Runtime::new().unwrap();
    let context = Context::full(&runtime).unwrap();
    context.with(|js| {
        js.globals().set("toldText", Value::Object(told.clone()).to_string()).unwrap();
        js.globals().set("mac", Function::new(js.clone(), mac).unwrap()).unwrap();
        js.eval::<(), _>(SERVICENOW).unwrap();
        let threw = js.eval::<(), _>(script).is_err();
        let done: String = js.eval("JSON.stringify({ sent: sent, errors: errors })").unwrap();
        let mut done: Value = serde_json::from_str(&done).unwrap();
        let sent = done["sent"].as_array().unwrap().clone();
        Run { sent, errors: serde_json::from_value(done["errors"].take()).unwrap(), threw }
    })
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

const NASTY: [&str; 9] = [
    "plain",
    "she said \"no\" and 'yes'",
    "line\nbreak\r\nand\ttab",
    "C:\\temp\\new \\u0041 \\ud83d \\",
    "한국어 日本語 ñ ü \u{7f} \u{85} \u{2028}",
    "👍🏽 and 𝔘",
    "<b>%3c</b> & </script>",
    "{\"group\":\"other\"}",
    "\u{1}\u{1f}",
];

#[test]
fn whatever_is_written_the_body_is_json_in_ascii() {
    for text in NASTY {
        let run = run(&told(text));
        assert_eq!(body(&run)["formatted_message"], text);
        assert!(run.sent[0]["body"].as_str().unwrap().is_ascii());
    }
}

#[test]
fn half_a_character_does_not_spoil_the_rest() {
    // JSON that Rust cannot write, so the engine builds it.
    let half = format!("toldText = toldText.replace('HALF', '\\\\ud83d');\n{SERVICENOW}");
    let runtime = Runtime::new().unwrap();
    Context::full(&runtime).unwrap().with(|js| {
        js.globals().set("toldText", Value::Object(told("cut HALF off")).to_string()).unwrap();
        js.globals().set("mac", Function::new(js.clone(), mac).unwrap()).unwrap();
        js.eval::<(), _>(half).unwrap();
        js.eval::<(), _>(RULE).unwrap();
        let sent: String = js.eval("sent[0].body").unwrap();
        let sent: Value = serde_json::from_str(&sent).unwrap();
        assert_eq!(sent["formatted_message"], "cut \u{fffd} off");
    });
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
fn what_is_none_of_our_business_stays() {
    for (field, value) in [("internal", "1"), ("internal", "true"), ("sys_created_by", "chatbot_interface")] {
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
    for (breaks, sends) in [("network", false), ("mac", false), ("query", true)] {
        let mut told = told("my secret words");
        told["breaks"] = json!(breaks);
        let run = run(&told);
        assert!(!run.threw, "{breaks}");
        assert_eq!(!run.sent.is_empty(), sends, "{breaks}");
        assert_eq!(run.errors.is_empty(), sends, "{breaks}");
        let said = run.errors.join(" ");
        assert!(!said.contains("hush") && !said.contains("secret words"), "{said}");
    }
    let mut told = told("hello");
    told["status"] = json!(503);
    let refused = run(&told);
    assert!(!refused.threw && refused.errors[0].contains("503") && refused.errors[0].contains("m3"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_ingress_takes_what_it_sends() {
    let Some(bench) = Engine::Embedded.bench() else { return };
    let relay = Plan::on(&bench).set("ingress.servicenow.hmac_secret", SECRET).start().await;
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
