//! The route for ServiceNow's callbacks: `live_message` rows (Connect Support) and Virtual Agent answers.
//!
//! Guarantees: valid JSON is published byte for byte. Broken JSON is published repaired. An unreadable body becomes a
//! dead letter with its raw bytes. The same event always gets the same id.
//! Not responsible for: whether the `group` belongs to Causeway (`delivery/`), repeats (`worker/`), the meaning of a
//! Virtual Agent answer (`delivery/`; only its lane and its id are read here).

use std::sync::Arc;

use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Value, json};

use super::callback_credentials::{self, AuthResult};
use super::callback_fields::CallbackFields;
use super::lenient;
use super::{IngressState, SenderRepeats};
use crate::clock;
use crate::http_server::body;
use crate::http_server::problem::{self, ApiError};
use crate::http_server::read_budget::SenderTrust;
use crate::http_server::server::ClientCertificate;
use crate::message::callback::is_set;
use crate::message::{
    AttemptHistory, DeadLetter, DeadReason, Destination, Kind, LaneKey, Message, MessageId,
};

/// Answers a callback.
pub(super) async fn answer(state: &Arc<IngressState>, request: &mut Request) -> Result<Response, ApiError> {
    let settings = state.settings.get();
    let auth = &settings.servicenow;
    let certificate = request.extensions().get::<ClientCertificate>();
    if auth.demands_certificate && certificate.is_none() {
        return Err(ApiError::Unauthorized(r#"Basic realm="causeway""#));
    }
    let verdict =
        callback_credentials::callback(auth, request.headers(), request.uri().query(), clock::machine());
    if verdict == AuthResult::Refused {
        return Err(ApiError::Unauthorized(r#"Basic realm="causeway""#));
    }
    body::is_json(request.headers())?;
    let headers = request.headers().clone();
    let sender = if verdict == AuthResult::Authorised { SenderTrust::Proven } else { SenderTrust::Unproven };
    let raw = body::read(&headers, request.body_mut(), state.limits_for(sender)).await?;
    if let AuthResult::AfterBody(signature) = verdict
        && !signature.holds(&auth.hmac_secret, &raw)
    {
        return Err(ApiError::Unauthorized(r#"Basic realm="causeway""#));
    }
    let destination = settings.bot_side.of_chat();
    match read(raw, auth.own_user.as_deref(), auth.instance.as_deref(), destination) {
        ParsedCallback::Event(message) => {
            let id = message.id;
            state.publish_to_completion(message, SenderRepeats::Never).await?;
            Ok(problem::accepted(&json!({ "id": id, "status": "accepted" })))
        }
        ParsedCallback::Unreadable(mut dead) => {
            // After a replay only XO's own integration may be able to read the body.
            if state.queue.destinations().contains(Destination::Xo) {
                dead.message.destination = Destination::Xo;
            }
            let id = dead.message.id;
            tracing::warn!(%id, detail = dead.detail, bytes = dead.message.body.len(), "callback kept as dead letter");
            state.dead_letter(*dead).await?;
            Ok(problem::accepted(&json!({ "id": id, "status": "dead_lettered" })))
        }
        ParsedCallback::Internal(message) => {
            // Whether reading a chat back shows that a row is internal is not known, so a worker has to remember what the callback says.
            if settings.bot_side.two_way {
                state.publish_to_completion(message, SenderRepeats::Never).await?;
            }
            Ok(problem::accepted(&json!({ "status": "ignored" })))
        }
        ParsedCallback::Unwanted => Ok(problem::accepted(&json!({ "status": "ignored" }))),
        ParsedCallback::OtherInstance => Err(ApiError::OtherInstance),
    }
}

/// The result of reading a callback's body.
enum ParsedCallback {
    Event(Message),
    /// Our own message on its way back, or a message among agents of a chat that it does not name.
    Unwanted,
    /// A message among agents. The message holds the name of its row alone.
    Internal(Message),
    /// Another instance than the configured one sent it: most likely a clone of it.
    OtherInstance,
    Unreadable(Box<DeadLetter>),
}

fn read(
    raw: Bytes,
    own_user: Option<&str>,
    instance: Option<&str>,
    destination: Destination,
) -> ParsedCallback {
    let (fields, body) = match CallbackFields::strict(&raw) {
        Some(fields) => (fields, raw.clone()),
        None => {
            match lenient::repair(&raw).and_then(|fields| Some((serde_json::to_vec(&fields).ok()?, fields))) {
                Some((repaired, fields)) => (CallbackFields::repaired(fields), Bytes::from(repaired)),
                None => {
                    return unreadable(
                        MessageId::fresh(),
                        raw,
                        destination,
                        "the body is not a JSON object, even with lenient parsing",
                    );
                }
            }
        }
    };
    if let (Some(ours), Some(sender)) = (instance, named(&fields, "instance"))
        && !sender.eq_ignore_ascii_case(ours)
    {
        return ParsedCallback::OtherInstance;
    }
    let virtual_agent = is_virtual_agent(&fields);
    let row_id = || named(&fields, "sys_id").map(|name| MessageId::derived("servicenow", name));
    let id = if virtual_agent { answer_id(&fields) } else { row_id() };
    let id = id.unwrap_or_else(MessageId::fresh);
    if !virtual_agent
        && let (Some(own), Some(writer)) = (own_user, named(&fields, "sys_created_by"))
        && writer.eq_ignore_ascii_case(own)
    {
        return ParsedCallback::Unwanted;
    }
    let lane = if virtual_agent { answer_lane(&fields) } else { group_lane(&fields) };
    let is_internal = !virtual_agent && is_internal(&fields);
    match lane {
        Ok(lane) if is_internal => {
            let row = named(&fields, "sys_id");
            let Some(note) = row.map(|row| internal_note(lane.as_str(), row)) else {
                return ParsedCallback::Unwanted;
            };
            ParsedCallback::Internal(Message::new(id, Kind::CallbackMessage, destination, lane, note))
        }
        Ok(lane) => ParsedCallback::Event(Message::new(id, Kind::CallbackMessage, destination, lane, body)),
        Err(_) if is_internal => ParsedCallback::Unwanted,
        Err(detail) => unreadable(id, raw, destination, &detail),
    }
}

/// What is queued of a message among agents: its name, and nothing that it says.
fn internal_note(group: &str, sys_id: &str) -> Bytes {
    Bytes::from(json!({ "group": group, "sys_id": sys_id, "causeway_internal": true }).to_string())
}

fn unreadable(id: MessageId, raw: Bytes, destination: Destination, detail: &str) -> ParsedCallback {
    let message = Message::new(id, Kind::CallbackMessage, destination, LaneKey::alone(id), raw);
    ParsedCallback::Unreadable(Box::new(DeadLetter::new(
        message,
        DeadReason::Unreadable,
        detail,
        AttemptHistory::default(),
    )))
}

/// A text field with a value. JavaScript writes `undefined` or `null` for an unknown value.
fn named<'a>(fields: &'a CallbackFields, key: &str) -> Option<&'a str> {
    fields.get(key)?.as_str().filter(|text| !matches!(*text, "" | "undefined" | "null"))
}

fn group_lane(fields: &CallbackFields) -> Result<LaneKey, String> {
    let group = match fields.get("group") {
        None | Some(Value::Null) => return Err("`group` is missing".to_owned()),
        Some(Value::String(group)) => group,
        Some(_) => return Err("`group` is not a string".to_owned()),
    };
    if group == "undefined" {
        return Err("`group` is `undefined`".to_owned());
    }
    LaneKey::parse(group).map_err(|problem| format!("`group` {problem}"))
}

/// `live_message` also holds messages among agents, which no user may read.
fn is_internal(fields: &CallbackFields) -> bool {
    ["internal", "private_message"].iter().any(|key| is_set(fields.get(key)))
}

/// Connect Support always sends a `group`, Virtual Agent never does.
fn is_virtual_agent(fields: &CallbackFields) -> bool {
    !fields.contains_key("group")
        && (fields.parts().is_some()
            || fields.contains_key("clientSessionId")
            || fields.contains_key("requestId"))
}

/// The chat's id as ServiceNow returns it: in the client variables, as the session or as the user. All three are
/// equal in our chats.
fn answer_lane(fields: &CallbackFields) -> Result<LaneKey, String> {
    let name = fields
        .group_variable()
        .or_else(|| named(fields, "clientSessionId"))
        .or_else(|| named(fields, "userId"));
    let name = name.ok_or("`clientSessionId` is missing or not a string")?;
    LaneKey::parse(name).map_err(|problem| format!("`clientSessionId` {problem}"))
}

/// An answer can have several parts, each with its own id. All these ids together identify the answer. Its flags and
/// actions are part of the identity: an end of the chat with the id of an earlier text is not a repeat.
fn answer_id(fields: &CallbackFields) -> Option<MessageId> {
    let parts = fields.parts()?;
    let flags: Vec<&str> = ["completed", "takeControl"]
        .into_iter()
        .filter(|flag| fields.get(flag) == Some(&Value::Bool(true)))
        .collect();
    match parts.names.as_slice() {
        [] => None,
        [(id, None)] if parts.actions.is_empty() && flags.is_empty() => {
            Some(MessageId::derived("servicenow", id))
        }
        names => {
            let counts = [names.len().to_string(), parts.actions.len().to_string()];
            let mut all: Vec<&str> = counts.iter().map(String::as_str).collect();
            all.extend(names.iter().flat_map(|(id, sequence)| [id, sequence.as_deref().unwrap_or_default()]));
            all.extend(parts.actions.iter().map(String::as_str));
            all.extend(flags);
            Some(MessageId::derived_from("servicenow", &all))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Callback;

    fn event(body: &str) -> Message {
        match read(Bytes::copy_from_slice(body.as_bytes()), Some("relay"), None, Destination::Xo) {
            ParsedCallback::Event(message) => message,
            ParsedCallback::Unwanted | ParsedCallback::Internal(_) | ParsedCallback::OtherInstance => {
                panic!("not taken")
            }
            ParsedCallback::Unreadable(dead) => panic!("{}", dead.detail),
        }
    }

    fn dead(body: &[u8]) -> DeadLetter {
        match read(Bytes::copy_from_slice(body), Some("relay"), None, Destination::Xo) {
            ParsedCallback::Unreadable(dead) => *dead,
            _ => panic!("was read"),
        }
    }

    #[test]
    fn valid_json_goes_on_untouched() {
        let body = r#"{ "group":"g1",  "formatted_message":"a %3c b", "sys_created_by":"ada", "sys_id":"m1", "x":[1] }"#;
        let message = event(body);
        assert_eq!(message.body, body.as_bytes());
        assert_eq!(message.lane.as_str(), "g1");
        assert_eq!(message.id, MessageId::derived("servicenow", "m1"));
        assert_eq!(message.kind, Kind::CallbackMessage);
    }

    #[test]
    fn broken_json_goes_on_repaired() {
        let message = event(
            "{\"group\":\"g1\",\"formatted_message\":\"a \"b\"\tc %3cd%3e\",\"sys_created_by\":\"ada\",\"last_message\":undefined,\"sys_id\":\"m1\"}",
        );
        let callback: Callback = serde_json::from_slice(&message.body).unwrap();
        assert_eq!(callback.text(None), "a \"b\"\tc <d>");
        assert!(callback.formatted_message.unwrap().contains("%3c"));
        assert_eq!(message.id, MessageId::derived("servicenow", "m1"));
    }

    #[test]
    fn without_a_name_every_event_is_a_new_one() {
        let body = r#"{"group":"g1","sys_id":"undefined"}"#;
        assert_ne!(event(body).id, event(body).id);
    }

    #[test]
    fn our_own_messages_are_not_sent_back() {
        for body in [
            r#"{"group":"g1","sys_created_by":"Relay","sys_id":"m1"}"#,
            r#"{"group":"g1","formatted_message":"a "b"","sys_created_by":"relay","sys_id":"m1"}"#,
        ] {
            assert!(matches!(
                read(Bytes::from(body), Some("relay"), None, Destination::Xo),
                ParsedCallback::Unwanted
            ));
            assert!(matches!(read(Bytes::from(body), None, None, Destination::Xo), ParsedCallback::Event(_)));
        }
    }

    /// FACTS.md: `getValue` gives `"1"`; a hand-written rule sends the number. What is queued of it says nothing.
    #[test]
    fn of_a_message_among_agents_its_name_alone_is_kept() {
        for internal in ["1", "\"1\"", "true", "\"yes\"", "{\"value\":\"true\"}", "[]", "{}"] {
            let body = format!(
                r#"{{"group":"g1","sys_id":"m1","formatted_message":"secret","internal":{internal}}}"#
            );
            let ParsedCallback::Internal(message) =
                read(Bytes::from(body), None, None, Destination::Callbacks)
            else {
                panic!("{internal}")
            };
            let callback: Callback = serde_json::from_slice(&message.body).unwrap();
            assert!(callback.internal && callback.formatted_message.is_none(), "{internal}");
            assert_eq!((callback.group.as_str(), message.id), ("g1", MessageId::derived("servicenow", "m1")));
        }
        for open in ["0", "\"0\"", "false", "null", "{\"value\":\"false\"}"] {
            let message = event(&format!(r#"{{"group":"g1","sys_id":"m1","internal":{open}}}"#));
            assert!(!serde_json::from_slice::<Callback>(&message.body).unwrap().internal, "{open}");
        }
    }

    /// Flows and other rules write a reference field as an object, and a text as a number.
    #[test]
    fn a_reference_field_is_its_value() {
        let message = event(
            r#"{"group":{"value":"g1","link":"https://x"},"sys_id":{"value":"m1"},"formatted_message":4711,"sys_created_by":{"value":"ada","display_value":"Ada"}}"#,
        );
        let callback: Callback = serde_json::from_slice(&message.body).unwrap();
        assert_eq!((message.lane.as_str(), message.id), ("g1", MessageId::derived("servicenow", "m1")));
        assert_eq!((callback.group.as_str(), callback.text(None).as_str()), ("g1", "4711"));
        assert_eq!(
            (callback.sys_id.as_deref(), callback.sys_created_by.as_deref()),
            (Some("m1"), Some("ada"))
        );
    }

    /// FACTS.md: a clone copies rules, REST Messages and open chats with the same sys_ids.
    #[test]
    fn a_clone_is_told_by_its_name() {
        let refused = |body: &str, ours| {
            let read = read(Bytes::copy_from_slice(body.as_bytes()), None, ours, Destination::Xo);
            matches!(read, ParsedCallback::OtherInstance)
        };
        for (instance, refuses) in
            [("\"acmetest\"", true), ("\"ACME\"", false), ("\"\"", false), ("null", false)]
        {
            let body = format!(r#"{{"group":"g1","sys_id":"m1","instance":{instance}}}"#);
            assert_eq!(refused(&body, Some("acme")), refuses, "{instance}");
            assert!(!refused(&body, None));
            let body = format!(r#"{{"clientSessionId":"g1","body":[],"instance":{instance}}}"#);
            assert_eq!(refused(&body, Some("acme")), refuses, "{instance}");
        }
        assert!(!refused(r#"{"group":"g1","sys_id":"m1"}"#, Some("acme")));
    }

    #[test]
    fn an_unreadable_body_keeps_its_bytes() {
        let long = format!(r#"{{"group":"{}","sys_id":"m1"}}"#, "g".repeat(257));
        let cases: [(&[u8], &str); 8] = [
            (b"hello", "the body is not a JSON object, even with lenient parsing"),
            (b"[1]", "the body is not a JSON object, even with lenient parsing"),
            (b"{\"group\":\"\xff\"}", "the body is not a JSON object, even with lenient parsing"),
            (br#"{"sys_id":"m1"}"#, "`group` is missing"),
            (br#"{"group":7,"sys_id":"m1"}"#, "`group` is not a string"),
            (br#"{"group":"","sys_id":"m1"}"#, "`group` must not be empty"),
            (br#"{"group":undefined,"sys_id":"m1"}"#, "`group` is missing"),
            (long.as_bytes(), "`group` must be at most 256 bytes long, is 257"),
        ];
        for (body, detail) in cases {
            let dead = dead(body);
            assert_eq!(dead.detail, detail);
            assert_eq!(dead.message.body, body);
            assert_eq!(dead.message.lane, LaneKey::alone(dead.message.id));
            assert_eq!(dead.reason, DeadReason::Unreadable);
        }
        assert_eq!(dead(br#"{"sys_id":"m1"}"#).message.id, MessageId::derived("servicenow", "m1"));
    }

    #[test]
    fn an_answer_is_named_by_all_that_it_says() {
        let id = |rest: &str| event(&format!(r#"{{"clientSessionId":"s1",{rest}}}"#)).id;
        let text = r#""body":[{"uiType":"OutputText","messageId":"v1"}]"#;
        assert_eq!(id(text), id(text));
        for other in [
            r#""body":[{"uiType":"OutputText","messageId":"v1"}],"completed":true"#,
            r#""body":[{"uiType":"ActionMsg","actionType":"SwitchToVirtualAgent","messageId":"v1"}]"#,
            r#""body":[{"uiType":"StreamChunk","streamSequence":2,"messageId":"v1"}]"#,
        ] {
            assert_ne!(id(text), id(other), "{other}");
            assert_eq!(id(other), id(other));
        }
        let nameless = r#""body":[{"uiType":"OutputText","value":"ok"}]"#;
        assert_ne!(id(nameless), id(nameless));
    }

    #[test]
    fn a_virtual_agent_answer_stands_in_its_conversations_line() {
        let body =
            r#"{"requestId":"r","clientSessionId":"s1","body":[{"uiType":"OutputText","messageId":"v1"}]}"#;
        let message = event(body);
        assert_eq!((message.lane.as_str(), message.kind), ("s1", Kind::CallbackMessage));
        assert_eq!(message.id, MessageId::derived("servicenow", "v1"));
        assert_eq!(message.body, body.as_bytes());

        let named = event(
            r#"{"clientSessionId":"s1","clientVariables":{"causeway_conversation_id":"c1","causeway_group":"g1"},"body":[]}"#,
        );
        assert_eq!(named.lane.as_str(), "g1");
        assert_eq!(event(r#"{"requestId":"r","userId":"g1","body":[]}"#).lane.as_str(), "g1");
        assert_eq!(
            dead(br#"{"requestId":"r","body":[]}"#).detail,
            "`clientSessionId` is missing or not a string"
        );
    }
}
