//! The records that Causeway needs in a ServiceNow instance, as data.
//!
//! Guarantees: no I/O. Values that must not be shown are marked as secret.
//! Not responsible for: the records that already exist (`plan.rs`).
//!
//! The REST Message owns its method, and the method owns its headers. The Business Rule names both. If callbacks are
//! signed, the Business Rule also names the property with the key. The Script Action of the retry event has the same
//! script as the Business Rule.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret as _, SecretString};

use super::rule::{self, KEY_PROPERTY, METHOD, RuleScript};

/// The mark in the description of every record that we created. Records without it are not ours.
pub(super) const MARK: &str = "managed-by: causeway";

/// A value of a field.
#[derive(Clone)]
pub(super) struct RecordField {
    pub(super) name: &'static str,
    pub(super) value: String,
    pub(super) secret: bool,
}

/// The evidence that a record is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordOwner {
    /// Its description contains [`MARK`].
    Marked,
    /// Its owner is ours: `field` refers to the record at index `owner` of the list.
    By { field: &'static str, owner: usize },
}

/// A record in its wanted state.
pub(super) struct WantedRecord {
    pub(super) table: &'static str,
    /// The name of the record's type on ServiceNow's forms.
    pub(super) title: &'static str,
    /// The fields that identify the record. `fields` contains them, too.
    pub(super) key: Vec<(&'static str, String)>,
    pub(super) owned: RecordOwner,
    pub(super) fields: Vec<RecordField>,
}

/// The credential with which ServiceNow authenticates to the ingress.
pub(super) enum RuleProof {
    /// `ingress.servicenow.hmac_secret`
    Signature(SecretString),
    /// `ingress.servicenow.token`
    Token(SecretString),
    /// `ingress.allow_unauthenticated`
    Nothing,
}

/// All records, each owner before the records that it owns.
pub(super) fn wanted(endpoint: &str, script: &RuleScript, proof: &RuleProof) -> Vec<WantedRecord> {
    let name = script.name.as_str();
    let mut all =
        vec![message(name, endpoint), method(endpoint), header(1, "Content-Type", "application/json")];
    match proof {
        RuleProof::Signature(secret) => all.push(key(secret)),
        RuleProof::Token(token) => {
            let mut header = header(1, "x-causeway-token", token.expose_secret());
            for field in header.fields.iter_mut().filter(|field| field.name == "value") {
                field.secret = true;
            }
            all.push(header);
        }
        RuleProof::Nothing => {}
    }
    all.push(business_rule(script));
    all.push(retry_event(script));
    all.push(script_action(script));
    all
}

fn open(name: &'static str, value: impl Into<String>) -> RecordField {
    RecordField { name, value: value.into(), secret: false }
}

fn description(what: &str) -> RecordField {
    open("description", format!("{what} Change it with `causeway servicenow install`. [{MARK}]"))
}

fn message(name: &str, endpoint: &str) -> WantedRecord {
    WantedRecord {
        table: "sys_rest_message",
        title: "REST Message",
        key: vec![("name", name.to_owned())],
        owned: RecordOwner::Marked,
        fields: vec![
            open("name", name),
            open("rest_endpoint", endpoint),
            open("authentication_type", "no_authentication"),
            description("Where chat messages are told to Causeway."),
        ],
    }
}

fn method(endpoint: &str) -> WantedRecord {
    WantedRecord {
        table: "sys_rest_message_fn",
        title: "HTTP Method",
        key: vec![("function_name", METHOD.to_owned())],
        owned: RecordOwner::By { field: "rest_message", owner: 0 },
        fields: vec![
            open("function_name", METHOD),
            open("http_method", "post"),
            open("rest_endpoint", endpoint),
            open("authentication_type", "inherit_from_parent"),
        ],
    }
}

fn header(owner: usize, name: &str, value: &str) -> WantedRecord {
    WantedRecord {
        table: "sys_rest_message_fn_headers",
        title: "HTTP Header",
        key: vec![("name", name.to_owned())],
        owned: RecordOwner::By { field: "rest_message_function", owner },
        fields: vec![open("name", name), open("value", value)],
    }
}

/// The key in the encoding that `generateMac` needs. A private property is in no export and in no script.
fn key(secret: &SecretString) -> WantedRecord {
    let value = STANDARD.encode(secret.expose_secret());
    WantedRecord {
        table: "sys_properties",
        title: "System Property",
        key: vec![("name", KEY_PROPERTY.to_owned())],
        owned: RecordOwner::Marked,
        fields: vec![
            open("name", KEY_PROPERTY),
            RecordField { name: "value", value, secret: true },
            open("type", "string"),
            open("is_private", "true"),
            open("read_roles", "admin"),
            open("write_roles", "admin"),
            description("What callbacks to Causeway are signed with (Base64)."),
        ],
    }
}

fn business_rule(script: &RuleScript) -> WantedRecord {
    WantedRecord {
        table: "sys_script",
        title: "Business Rule",
        key: vec![("name", script.name.clone()), ("collection", "live_message".to_owned())],
        owned: RecordOwner::Marked,
        fields: vec![
            open("name", &script.name),
            open("collection", "live_message"),
            open("when", "after"),
            open("action_insert", "true"),
            open("action_update", "false"),
            open("action_delete", "false"),
            open("active", "true"),
            open("advanced", "true"),
            open("order", "1000"),
            open("filter_condition", format!("sys_created_by!={}^internal=false^EQ", script.own_user)),
            open("script", rule::render(script)),
            description("Tells Causeway of every message of a support chat."),
        ],
    }
}

/// The event that retries a callback.
fn retry_event(script: &RuleScript) -> WantedRecord {
    let event = rule::retry_event(&script.name);
    WantedRecord {
        table: "sysevent_register",
        title: "Event Registration",
        key: vec![("event_name", event.clone())],
        owned: RecordOwner::Marked,
        fields: vec![
            open("event_name", event),
            open("table", "live_message"),
            description("A message that Causeway did not take is sent again."),
        ],
    }
}

/// The event's handler: the same script as in the Business Rule.
fn script_action(script: &RuleScript) -> WantedRecord {
    let event = rule::retry_event(&script.name);
    WantedRecord {
        table: "sysevent_script_action",
        title: "Script Action",
        key: vec![("name", script.name.clone()), ("event_name", event.clone())],
        owned: RecordOwner::Marked,
        fields: vec![
            open("name", &script.name),
            open("event_name", event),
            open("active", "true"),
            open("order", "100"),
            open("script", rule::render(script)),
            description("Sends messages again that Causeway did not take."),
        ],
    }
}

impl WantedRecord {
    /// The label by which a person finds the record.
    pub(super) fn label(&self) -> String {
        format!("{} \"{}\"", self.title, self.key.first().map_or("", |(_, name)| name.as_str()))
    }
}

/// A name that is safe in an encoded query, in a script and on a form.
pub(super) fn name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || " ._-()".contains(c);
    if text.trim() == text && (1..=40).contains(&text.len()) && text.chars().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("1 to 40 letters, digits, blanks and . _ - ( )".to_owned())
    }
}
