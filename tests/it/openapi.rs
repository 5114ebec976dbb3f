//! Promise: `deploy/openapi.json` describes each route, status, problem code and event of Causeway, and describes nothing else.
//!
//! The lists are compared with the source. The answers of the real binary and its events are compared with the schemas.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use causeway::conversation::ConversationState;
use causeway::files::{FileLinks, FileSource, LinkedFile};
use causeway::message::{ConversationId, DeadReason, Kind};
use causeway::sandbox::{CallbackCredential, CallbackSettings, SandboxQueue};
use reqwest::header::HeaderMap;
use reqwest::{Client, Method};
use serde_json::{Value, json};

use crate::harness::http;
use crate::harness::matrix::Engine;
use crate::harness::relay::{Plan, Relay};
use crate::harness::xo::FakeXo;

const URN: &str = "urn:causeway:problem:";
/// XO gets these refusals in BotKit's words, so no answer lists their codes.
const IN_BOTKIT_WORDS_ONLY: [&str; 2] = ["insufficient", "bad_argument"];
const METHODS: [&str; 2] = ["get", "post"];

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The description.
struct Api {
    doc: Value,
}

impl Api {
    fn read() -> Self {
        let text = std::fs::read_to_string(file("deploy/openapi.json")).unwrap();
        Self { doc: serde_json::from_str(&text).unwrap() }
    }

    /// The value itself, or the value that its `$ref` names.
    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        let Some(name) = value["$ref"].as_str() else { return value };
        let found = self.doc.pointer(name.trim_start_matches('#'));
        self.resolve(found.unwrap_or_else(|| panic!("{name} names nothing")))
    }

    fn paths(&self) -> BTreeSet<String> {
        self.doc["paths"].as_object().unwrap().keys().cloned().collect()
    }

    /// Each response with its path, method and status.
    fn responses(&self) -> Vec<(&str, &str, &str, &Value)> {
        let mut found = Vec::new();
        for (path, item) in self.doc["paths"].as_object().unwrap() {
            for method in METHODS {
                for (status, response) in item[method]["responses"].as_object().into_iter().flatten() {
                    found.push((path.as_str(), method, status.as_str(), self.resolve(response)));
                }
            }
        }
        found
    }

    /// What is wrong with a value, by a schema. A property that the schema does not name is wrong if `is_whole`.
    fn faults(&self, schema: &Value, value: &Value, at: &str, is_whole: bool) -> Vec<String> {
        let schema = self.resolve(schema);
        let mut faults = Vec::new();
        for (rule, wanted) in schema.as_object().unwrap_or_else(|| panic!("{at}: no schema")) {
            let checked = |schema: &Value| self.faults(schema, value, at, is_whole);
            let number = |wanted: &Value| wanted.as_f64().unwrap();
            let holds = match rule.as_str() {
                "title" | "description" | "default" | "examples" | "discriminator" | "pattern" => true,
                "type" => words(wanted).iter().any(|name| is_a(name, value)),
                "const" => value == wanted,
                "enum" => wanted.as_array().unwrap().contains(value),
                "format" => value.as_str().is_none_or(|text| has_format(wanted, text)),
                "minimum" => value.as_f64().is_none_or(|given| given >= number(wanted)),
                "maximum" => value.as_f64().is_none_or(|given| given <= number(wanted)),
                "minLength" => {
                    value.as_str().is_none_or(|text| text.chars().count() as f64 >= number(wanted))
                }
                "maxLength" => {
                    value.as_str().is_none_or(|text| text.chars().count() as f64 <= number(wanted))
                }
                "minItems" => value.as_array().is_none_or(|items| items.len() as f64 >= number(wanted)),
                "maxItems" => value.as_array().is_none_or(|items| items.len() as f64 <= number(wanted)),
                "required" => words(wanted).iter().all(|name| value.get(name).is_some()),
                "properties" | "additionalProperties" | "items" => {
                    faults.extend(self.faults_inside(schema, value, at, is_whole));
                    true
                }
                "anyOf" => wanted.as_array().unwrap().iter().any(|one| checked(one).is_empty()),
                "oneOf" => {
                    wanted.as_array().unwrap().iter().filter(|one| checked(one).is_empty()).count() == 1
                }
                "allOf" => {
                    // Each part knows some of the properties.
                    let all = wanted.as_array().unwrap().iter();
                    faults.extend(all.flat_map(|one| self.faults(one, value, at, false)));
                    true
                }
                other => panic!("{at}: this test does not know the rule {other}"),
            };
            if !holds {
                faults.push(format!("{at}: {value} breaks {rule} {wanted}"));
            }
        }
        faults.sort();
        faults.dedup();
        faults
    }

    fn faults_inside(&self, schema: &Value, value: &Value, at: &str, is_whole: bool) -> Vec<String> {
        let mut faults = Vec::new();
        for (name, inner) in value.as_object().into_iter().flatten() {
            let at = format!("{at}.{name}");
            match [&schema["properties"][name], &schema["additionalProperties"]] {
                [Value::Null, Value::Null] if is_whole => faults.push(format!("{at}: is not described")),
                [Value::Null, Value::Null] => {}
                [Value::Null, any] => faults.extend(self.faults(any, inner, &at, is_whole)),
                [known, _] => faults.extend(self.faults(known, inner, &at, is_whole)),
            }
        }
        for (index, inner) in value.as_array().into_iter().flatten().enumerate() {
            faults.extend(self.faults(&schema["items"], inner, &format!("{at}[{index}]"), is_whole));
        }
        faults
    }

    /// What is wrong with an answer of this route.
    fn faults_of_answer(&self, path: &str, method: &str, answer: &Answer) -> Vec<String> {
        let item = &self.doc["paths"][path];
        // A method that is not described is answered like the others of its address.
        let method = METHODS.into_iter().find(|known| *known == method && item[*known].is_object());
        let method = method.or_else(|| METHODS.into_iter().find(|known| item[*known].is_object())).unwrap();
        let at = format!("{method} {path}: {} {}", answer.status, answer.text);
        let response = self.resolve(&item[method]["responses"][answer.status.to_string()]);
        if !response.is_object() {
            return vec![format!("{at}: the status is not described")];
        }
        let mut faults = Vec::new();
        for (name, header) in response["headers"].as_object().into_iter().flatten() {
            let header = self.resolve(header);
            match answer.header(name) {
                None if header["required"] == true => faults.push(format!("{at}: {name} is missing")),
                None => {}
                Some(text) => {
                    let number = text.parse::<u64>().ok().filter(|_| header["schema"]["type"] == "integer");
                    let value = number.map_or_else(|| json!(text), |number| json!(number));
                    faults.extend(self.faults(&header["schema"], &value, &format!("{at}: {name}"), true));
                }
            }
        }
        let given = answer.header("content-type").unwrap_or_default();
        let essence = given.split(';').next().unwrap_or_default();
        match response["content"].as_object() {
            None if answer.text.is_empty() => {}
            None => faults.push(format!("{at}: a body is not described")),
            Some(content) => match content.get(&given).or(content.get(essence)).or(content.get("*/*")) {
                None => faults.push(format!("{at}: the content type {given} is not described")),
                Some(media) if matches!(essence, "application/json" | "application/problem+json") => {
                    faults.extend(self.faults(&media["schema"], &answer.json(), &at, true));
                }
                Some(_) if essence == "application/x-ndjson" => {
                    let letter = &self.doc["components"]["schemas"]["DeadLetter"];
                    let lines = answer
                        .text
                        .lines()
                        .map(|line| serde_json::from_str::<Value>(line).unwrap_or_default());
                    faults.extend(lines.flat_map(|line| self.faults(letter, &line, &at, true)));
                }
                Some(_) => {}
            },
        }
        let code = answer.json()["type"].as_str().unwrap_or_default().trim_start_matches(URN).to_owned();
        if response["x-problem-codes"].is_array()
            && !words(&response["x-problem-codes"]).contains(&code.as_str())
        {
            faults.push(format!("{at}: the code {code} is not described for this status"));
        }
        let codes = response["x-botkit-codes"].as_array();
        if codes.is_some_and(|codes| !codes.contains(&answer.json()["errors"][0]["code"])) {
            faults.push(format!("{at}: BotKit's code is not described for this status"));
        }
        faults
    }
}

/// A text, or a list of texts.
fn words(value: &Value) -> Vec<&str> {
    let many = value.as_array().into_iter().flatten().filter_map(Value::as_str);
    value.as_str().into_iter().chain(many).collect()
}

fn is_a(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "null" => value.is_null(),
        other => panic!("there is no type {other}"),
    }
}

fn has_format(format: &Value, text: &str) -> bool {
    match format.as_str().unwrap() {
        "uuid" => uuid::Uuid::parse_str(text).is_ok(),
        "date-time" => text.parse::<jiff::Timestamp>().is_ok(),
        "uri" => url::Url::parse(text).is_ok(),
        other => panic!("this test does not know the format {other}"),
    }
}

/// What was answered.
struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name).map(|value| value.to_str().unwrap().to_owned())
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }
}

/// The source files of a folder, without comments and unit tests.
fn sources(folder: &str) -> Vec<String> {
    let (mut folders, mut found) = (vec![file(folder)], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && !path.ends_with("tests.rs")
            {
                found.push(code(&path));
            }
        }
    }
    assert!(!found.is_empty(), "{folder} holds no source");
    found
}

fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    product.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The texts that stand directly behind `before`.
fn texts_after<'a>(code: &'a str, before: &str) -> Vec<&'a str> {
    let behind = code.split(before).skip(1);
    behind.filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next()).collect()
}

/// Every route of both listeners. The console at `/desk` is for browsers.
fn routes() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for code in ["src/ingress", "src/admin", "src/files"].into_iter().flat_map(sources) {
        found.extend(texts_after(&code, ".route(").into_iter().map(str::to_owned));
        if let Some((_, rest)) = code.split_once("fn paths(") {
            let paths = rest.split("\n    }\n").next().unwrap_or_default();
            found.extend(paths.split('"').skip(1).step_by(2).map(str::to_owned));
        }
        // The admin API reads the rest of its paths itself.
        if code.contains("trim_start_matches(\"/dead-letters\")") {
            let names = ["(\"GET\", ", "(\"POST\", "].into_iter().flat_map(|arm| texts_after(&code, arm));
            found.extend(names.filter(|name| !name.is_empty()).map(|name| format!("/dead-letters/{name}")));
            found.extend(code.contains("(\"GET\", id)").then(|| "/dead-letters/{id}".to_owned()));
        }
    }
    found.retain(|path| !path.contains("{*") && !path.starts_with("/desk"));
    found
}

/// The codes of `problem.rs` with their status.
fn refusals() -> BTreeSet<(u16, String)> {
    let code = code(&file("src/http_server/problem.rs"));
    let rows = code.split('(').skip(1).filter_map(|rest| rest.split_once(", \""));
    let row = |(status, rest): (&str, &str)| {
        Some((status.parse::<u16>().ok()?, rest.split('"').next()?.to_owned()))
    };
    let found: BTreeSet<(u16, String)> = rows.filter_map(row).collect();
    assert!(found.len() > 20, "{found:?}");
    found
}

/// The codes of the route for files.
fn file_refusals() -> BTreeSet<String> {
    let code = code(&file("src/files/server.rs"));
    let rows = code.split("StatusCode::").skip(1).filter_map(|rest| rest.split_once(','));
    let row = |(status, rest): (&str, &str)| {
        let is_name = status.chars().all(|letter| letter.is_ascii_uppercase() || letter == '_');
        let text = rest.trim_start().strip_prefix('"').filter(|_| is_name)?;
        text.split('"').next().map(str::to_owned)
    };
    let found: BTreeSet<String> = rows.filter_map(row).collect();
    assert!(found.len() > 4, "{found:?}");
    found
}

#[test]
fn every_route_is_described_and_every_described_route_exists() {
    let (routes, described) = (routes(), Api::read().paths());
    assert_eq!(routes, described);
    assert!(routes.len() > 10, "{routes:?}");
}

#[test]
fn every_problem_code_is_described_with_its_status() {
    let (api, refusals, of_files) = (Api::read(), refusals(), file_refusals());
    let types = api.doc["components"]["schemas"]["ProblemType"]["oneOf"].as_array().unwrap();
    let code = |one: &Value| one["const"].as_str().unwrap().strip_prefix(URN).unwrap().to_owned();
    let described: BTreeSet<String> = types.iter().map(code).collect();
    let mut known: BTreeSet<String> = refusals.iter().map(|(_, code)| code.clone()).collect();
    known.extend(of_files.iter().cloned());
    assert_eq!(described, known);

    let mut listed = BTreeSet::new();
    for (path, method, status, response) in api.responses() {
        for code in words(&response["x-problem-codes"]) {
            let pair = (status.parse::<u16>().unwrap(), code.to_owned());
            let of_file = path.starts_with("/v1/files/") && of_files.contains(code);
            assert!(of_file || refusals.contains(&pair), "{method} {path}: {pair:?} is never answered");
            listed.insert(code.to_owned());
        }
    }
    listed.extend(IN_BOTKIT_WORDS_ONLY.map(str::to_owned));
    assert_eq!(listed, known, "each code is a code of some status");
}

#[test]
fn the_words_of_the_protocols_are_those_of_the_code() {
    let api = Api::read();
    let schemas = &api.doc["components"]["schemas"];
    let set = |value: &Value| -> BTreeSet<String> { words(value).into_iter().map(str::to_owned).collect() };
    let named =
        |names: &[&str]| -> BTreeSet<String> { names.iter().map(|name| (*name).to_owned()).collect() };

    let botkit = sources("src/ingress/botkit").join("\n");
    let events = texts_after(&botkit, "(").into_iter().filter(|text| text.starts_with("on_"));
    let events = named(&events.collect::<Vec<_>>());
    assert_eq!(set(&api.doc["components"]["parameters"]["BotKitEventName"]["schema"]["enum"]), events);
    let answers = code(&file("src/ingress/botkit/answer.rs"));
    let codes = &schemas["BotKitErrors"]["properties"]["errors"]["items"]["properties"]["code"]["enum"];
    assert_eq!(set(codes), named(&texts_after(&answers, "json!(")));
    assert!(answers.contains("json!(4002)") && codes[0] == 4002);

    let kinds: Vec<&str> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
    let reasons: Vec<&str> = DeadReason::ALL.iter().map(|reason| reason.as_str()).collect();
    let states: Vec<&str> = ConversationState::ALL.iter().map(|state| state.as_str()).collect();
    let letter = &schemas["DeadLetter"]["properties"];
    assert_eq!(set(&letter["kind"]["enum"]), named(&kinds));
    assert_eq!(set(&letter["reason"]["enum"]), named(&reasons));
    assert_eq!(set(&schemas["Conversation"]["properties"]["state"]["enum"]), named(&states));
    let posted = Kind::ALL.iter().filter(|kind| !kind.is_for_servicenow() && !kind.is_bot_turn());
    let posted: Vec<&str> = posted.map(|kind| kind.as_str()).collect();
    let webhooks: Vec<&str> = api.doc["webhooks"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(named(&webhooks), named(&posted));
}

#[test]
fn every_example_fits_its_schema() {
    let api = Api::read();
    let paths = api.doc["paths"].as_object().unwrap().values();
    let mut count = 0;
    for item in paths.chain(api.doc["webhooks"].as_object().unwrap().values()) {
        let media = METHODS.map(|method| &item[method]["requestBody"]["content"]["application/json"]);
        for media in media.into_iter().filter(|media| media.is_object()) {
            for (name, example) in media["examples"].as_object().into_iter().flatten() {
                let faults = api.faults(&media["schema"], &example["value"], name, true);
                assert!(faults.is_empty(), "{faults:#?}");
                count += 1;
            }
        }
    }
    assert!(count > 8, "{count}");
}

#[test]
fn a_value_that_does_not_fit_is_found() {
    let api = Api::read();
    let faults = |value: Value| {
        api.faults(&json!({"$ref": "#/components/schemas/HandoffAccepted"}), &value, "body", true).len()
    };
    let id = "0d7f3c8e-5a55-5d0c-9c7b-2f6c6f6c9a11";
    assert_eq!(faults(json!({"id": id, "conversation_id": "c", "status": "accepted"})), 0);
    for wrong in [
        json!({"id": id, "conversation_id": "c"}),
        json!({"id": "7", "conversation_id": "c", "status": "accepted"}),
        json!({"id": id, "conversation_id": 1, "status": "accepted"}),
        json!({"id": id, "conversation_id": "c", "status": "taken"}),
        json!({"id": id, "conversation_id": "c", "status": "accepted", "more": 1}),
        json!([]),
    ] {
        assert!(faults(wrong.clone()) > 0, "{wrong}");
    }
}

/// One request of the live test: the described path, the path that is called, what is sent and which status comes.
struct HttpCall {
    path: String,
    called: String,
    method: Method,
    /// `admin`, `handoffs`, `callback`, `bot` or nothing.
    credential: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    body: Option<String>,
    status: u16,
}

impl HttpCall {
    fn new(method: Method, path: &str, credential: &'static str, status: u16) -> Self {
        let (path, called, headers) = (path.to_owned(), path.to_owned(), Vec::new());
        Self { path, called, method, credential, headers, body: None, status }
    }

    fn at(self, called: impl Into<String>) -> Self {
        Self { called: called.into(), ..self }
    }

    fn json(self, body: &Value) -> Self {
        self.body(body.to_string())
    }

    fn body(self, body: impl Into<String>) -> Self {
        Self { body: Some(body.into()), ..self.header("content-type", "application/json") }
    }

    fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }
}

/// The relay, and who asks it.
struct Live {
    api: Api,
    relay: Relay,
    client: Client,
    secret: String,
    faults: Vec<String>,
    seen: BTreeMap<(String, u16), u32>,
}

impl Live {
    async fn ask(&mut self, call: HttpCall) -> Value {
        let process = &self.relay.processes[0];
        let is_admin = ["/metrics", "/livez", "/readyz", "/dead-letters", "/trace"]
            .iter()
            .any(|path| call.path.starts_with(path));
        let base = if is_admin { process.admin_url() } else { process.public_url() };
        let mut request = self.client.request(call.method.clone(), format!("{base}{}", call.called));
        request = match call.credential {
            "admin" => request.bearer_auth("admin-token"),
            "handoffs" => request.bearer_auth("handoffs-token"),
            "callback" => request.header("x-causeway-token", "callback-token"),
            "bot" => request.header("apikey", &self.secret),
            _ => request,
        };
        for (name, value) in &call.headers {
            request = request.header(*name, *value);
        }
        let answer = request.body(call.body.unwrap_or_default()).send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let answer = Answer { status, headers, text: answer.text().await.unwrap() };
        let method = call.method.as_str().to_lowercase();
        self.faults.extend(self.api.faults_of_answer(&call.path, &method, &answer));
        if status != call.status {
            self.faults.push(format!(
                "{method} {}: {status} instead of {}: {}",
                call.called, call.status, answer.text
            ));
        }
        *self.seen.entry((call.path, status)).or_default() += 1;
        answer.json()
    }

    async fn ask_all(&mut self, calls: Vec<HttpCall>) {
        for call in calls {
            self.ask(call).await;
        }
    }
}

const CALLBACKS: &str = "/v1/callbacks/servicenow";
const HANDOFFS: &str = "/v1/handoffs";
const CONVERSATION: &str = "/v1/conversations/{conversation_id}";
const AVAILABILITY: &str = "/v1/availability";
const EVENT: &str = "/sdk/bots/{bot_id}/{event}";
const COMPONENT_EVENT: &str = "/sdk/bots/{bot_id}/components/{component_id}/{event}";
const FILES: &str = "/v1/files/{token}";

fn callbacks() -> Vec<HttpCall> {
    let post = |credential, status| HttpCall::new(Method::POST, CALLBACKS, credential, status);
    let row =
        json!({"group": "g-1", "formatted_message": "hi", "sys_created_by": "beth.anglin", "sys_id": "m-1"});
    let with = |name: &str, value: Value| {
        let mut row = row.clone();
        row[name] = value;
        row
    };
    vec![
        post("callback", 202).json(&row),
        post("callback", 202).json(&with("internal", json!(true))),
        post("callback", 202).body("nobody can read this"),
        post("callback", 400).body(""),
        post("", 401).json(&row),
        post("callback", 403).json(&with("instance", json!("clone"))),
        post("callback", 413).body(" ".repeat((64 << 10) + 1)),
        post("callback", 415).body("{}").header("content-encoding", "gzip"),
    ]
}

fn handoffs() -> Vec<HttpCall> {
    let post = |credential, status| HttpCall::new(Method::POST, HANDOFFS, credential, status);
    let typing = json!({"type": "typing", "conversation_id": "c-9"});
    let message = json!({"type": "message", "conversation_id": "c-9", "message": "one", "id": "key"});
    let other = json!({"type": "message", "conversation_id": "c-9", "message": "two", "id": "key"});
    let get = |path: &str, credential, status| {
        HttpCall::new(Method::GET, CONVERSATION, credential, status).at(path)
    };
    vec![
        post("handoffs", 202).json(&typing),
        post("handoffs", 202).json(&message),
        post("handoffs", 422).json(&other),
        post("handoffs", 422).json(&json!({"type": "start"})),
        post("handoffs", 400).body("{"),
        post("", 401).json(&typing),
        post("handoffs", 415).header("content-type", "text/plain"),
        get("/v1/conversations/c-1", "handoffs", 200),
        get("/v1/conversations/c-1", "", 401),
        get("/v1/conversations/nobody", "handoffs", 404),
        HttpCall::new(Method::GET, AVAILABILITY, "handoffs", 200),
        HttpCall::new(Method::GET, AVAILABILITY, "", 401),
        HttpCall::new(Method::GET, AVAILABILITY, "handoffs", 404).at("/v1/availability?queue=none"),
        HttpCall::new(Method::GET, AVAILABILITY, "handoffs", 422).at("/v1/availability?queue=a/b"),
    ]
}

fn botkit(bot: &str, transfer: &Value) -> Vec<HttpCall> {
    let bot = bot.to_owned();
    let post = |event: &str, credential, status| {
        HttpCall::new(Method::POST, EVENT, credential, status).at(format!("/sdk/bots/{bot}/{event}"))
    };
    let component = HttpCall::new(Method::POST, COMPONENT_EVENT, "bot", 200);
    vec![
        post("on_agent_transfer", "bot", 200).json(transfer),
        post("on_event", "bot", 200).json(&json!({"event": {}})),
        post("on_webhook", "bot", 200).json(&json!({"any": 1})),
        component.at(format!("/sdk/bots/{bot}/components/dg-1/on_event")).json(&json!({})),
        post("on_user_message", "bot", 400).json(&json!({"message": "hi"})),
        post("on_event", "bot", 400).body("{"),
        post("on_event", "", 401).json(&json!({})),
        post("on_everything", "bot", 404).json(&json!({})),
        post("on_event", "bot", 412).body("[]"),
        post("on_event", "bot", 415).header("content-type", "text/plain"),
    ]
}

fn files() -> Vec<HttpCall> {
    let links = |life| {
        let public = url::Url::parse("http://files.example").unwrap();
        FileLinks::new(Some(public), "files-secret".to_owned().into(), Duration::from_secs(life))
    };
    let path = |links: FileLinks, at: &str| {
        let conversation = ConversationId::parse("c-1").unwrap();
        let file = LinkedFile {
            conversation,
            source: FileSource::Attachment("none".to_owned()),
            name: "a.png".to_owned(),
        };
        links.link(&file, at.parse().unwrap()).unwrap().trim_start_matches("http://files.example").to_owned()
    };
    let get = |path: String, status| HttpCall::new(Method::GET, FILES, "", status).at(path);
    vec![
        get("/v1/files/forged".to_owned(), 404),
        get(path(links(1), "2026-11-22T10:00:00Z"), 410),
        get(path(links(1), "2100-01-01T00:00:00Z"), 404),
        get("/v1/files/%ff".to_owned(), 404),
    ]
}

/// Another method than those that are described, at each address.
fn wrong_methods(paths: BTreeSet<String>, bot: &str) -> Vec<HttpCall> {
    let fill = |path: &str| {
        let path = path.replace("{bot_id}", bot).replace("{event}", "on_event");
        path.split('/')
            .map(|part| if part.starts_with('{') { "x" } else { part })
            .collect::<Vec<_>>()
            .join("/")
    };
    let call = |path: String| HttpCall::new(Method::PUT, &path, "admin", 405).at(fill(&path));
    paths.into_iter().map(call).collect()
}

async fn dead_letters(live: &mut Live) {
    let get = |path, status| HttpCall::new(Method::GET, path, "admin", status);
    let post = |path, status| HttpCall::new(Method::POST, path, "admin", status);
    let (list, one, replay, discard) =
        ("/dead-letters", "/dead-letters/{id}", "/dead-letters/replay", "/dead-letters/discard");
    live.ask(get(replay, 200)).await;
    let id = live.ask(get(list, 200)).await["dead_letters"][0]["id"].as_str().unwrap().to_owned();
    let nobody = "00000000-0000-4000-8000-000000000001";
    let calls = vec![
        get(list, 200).at("/dead-letters?reason=unreadable&limit=1&since=1h"),
        get(list, 200).at("/dead-letters?answer=not%20sent"),
        get(list, 422).at("/dead-letters?color=red"),
        HttpCall::new(Method::GET, list, "", 401),
        get(one, 200).at(format!("/dead-letters/{id}?reveal=true")),
        get(one, 422).at(format!("/dead-letters/{id}?destination=xo")),
        get(one, 404).at(format!("/dead-letters/{nobody}")),
        get("/dead-letters/export", 200),
        get("/trace", 200).at(format!("/trace?name={id}")),
        get("/trace", 200).at("/trace?name=c-1"),
        get("/trace", 200).at("/trace?name=c-unknown"),
        get("/trace", 422),
        HttpCall::new(Method::GET, "/trace", "", 401),
        post(replay, 200).json(&json!({"dry_run": true})),
        post(replay, 400).body("{"),
        post(replay, 415).header("content-type", "text/plain"),
        post(replay, 422).json(&json!({"rate": "fast"})),
        post("/dead-letters/replay/stop", 200),
        post("/dead-letters/edit", 404).json(&json!({"id": id, "body": "{}"})),
        post(discard, 422).json(&json!({})),
        post(discard, 409).json(&json!({"confirm": 99})),
        post(discard, 200).json(&json!({"reason": "expired", "confirm": 0})),
        post(replay, 202).json(&json!({"id": id, "wait": "0"})),
        get(replay, 200),
        get("/metrics", 200),
        get("/livez", 200),
        get("/readyz", 200),
    ];
    live.ask_all(calls).await;
}

/// A conversation from its start to its end and a start that finds no agent; returns when all four types were posted.
async fn events(relay: &Relay) {
    let credential =
        CallbackCredential::Header { name: "x-causeway-token".into(), value: "callback-token".into() };
    let url = format!("{}{CALLBACKS}", relay.processes[0].public_url());
    relay.sandbox.set_callback(Some(CallbackSettings { credential, ..CallbackSettings::to(url) }));
    let group = relay.open("c-1").await;
    relay.sandbox.agent_accept(&group).await.expect("the chat waits");
    relay.sandbox.agent_says(&group, "Have you tried water?").await.expect("the chat is open");
    let posted = |relay: &Relay, kind: &str| {
        let found =
            relay.sandbox.ledger().count(|entry| entry.event.as_deref() == Some(kind) && entry.applied);
        if found > 0 { Ok(()) } else { Err(format!("no {kind}")) }
    };
    relay.until("what the agent said", |relay| posted(relay, "callback.message")).await;
    relay.sandbox.agent_closes(&group).await.expect("the chat is open");
    relay.sandbox.set_queue_open(&SandboxQueue::default().id, false);
    relay.start("c-2").await;
    for kind in ["callback.event", "callback.ended", "handoff.failed"] {
        relay.until(kind, |relay| posted(relay, kind)).await;
    }
    relay.sandbox.set_queue_open(&SandboxQueue::default().id, true);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answers_and_the_events_are_those_described() {
    let bench = Engine::Embedded.bench().expect("it is always there");
    let xo = FakeXo::start().await;
    let plan =
        xo.settings(Plan::on(&bench)).set("xo.allow_apikey", "true").set("servicenow.instance", "acme");
    let plan = plan.set("files.public_url", "http://files.example").set("files.secret", "files-secret");
    let relay = plan.set("ingress.body_limit", "64 KiB").set("admin.token", "admin-token").start().await;
    events(&relay).await;
    let (api, client, secret) = (Api::read(), http::client(), xo.bot.client_secret.clone());
    let mut live = Live { api, relay, client, secret, faults: Vec::new(), seen: BTreeMap::new() };
    let transfer = xo.event("u-1", true);
    let paths = live.api.paths();
    for calls in [callbacks(), handoffs(), botkit(&xo.bot.bot_id, &transfer), files()] {
        live.ask_all(calls).await;
    }
    live.relay.dead_letters_at_least(1).await;
    dead_letters(&mut live).await;
    live.ask_all(wrong_methods(paths, &xo.bot.bot_id)).await;

    let mut told = BTreeSet::new();
    for entry in live.relay.sandbox.ledger().find(|entry| entry.event.is_some() && entry.applied) {
        let kind = entry.event.clone().unwrap();
        let schema =
            &live.api.doc["webhooks"][&kind]["post"]["requestBody"]["content"]["application/json"]["schema"];
        let body: Value = serde_json::from_str(&entry.body).unwrap();
        live.faults.extend(live.api.faults(schema, &body, &kind, true));
        told.insert(kind);
    }
    assert!(live.faults.is_empty(), "{:#?}", live.faults);
    assert_eq!(told.len(), 4, "{told:?}");
    assert!(live.seen.len() > 50, "{:#?}", live.seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interface_that_is_off_answers_as_described() {
    let bench = Engine::Embedded.bench().expect("it is always there");
    let relay = Plan::on(&bench).set("ingress.handoffs.token", "").start().await;
    let (api, client) = (Api::read(), http::client());
    let mut live =
        Live { api, relay, client, secret: String::new(), faults: Vec::new(), seen: BTreeMap::new() };
    live.ask_all(vec![
        HttpCall::new(Method::POST, HANDOFFS, "handoffs", 404).json(&json!({})),
        HttpCall::new(Method::GET, CONVERSATION, "handoffs", 404).at("/v1/conversations/c-1"),
        HttpCall::new(Method::GET, AVAILABILITY, "handoffs", 404),
        HttpCall::new(Method::GET, "/dead-letters", "admin", 404),
        HttpCall::new(Method::GET, "/dead-letters/{id}", "admin", 404).at("/dead-letters/x"),
        HttpCall::new(Method::GET, "/trace", "admin", 404).at("/trace?name=c-1"),
        HttpCall::new(Method::GET, FILES, "", 404).at("/v1/files/x"),
    ])
    .await;
    assert!(live.faults.is_empty(), "{:#?}", live.faults);
}
