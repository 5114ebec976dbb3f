//! The Virtual Agent Bot Integration API: one address, and an `action` that selects the operation.
//!
//! Guarantees: success is a 200 whose JSON says so. Success only means "accepted": ServiceNow checks the request
//! afterwards, and only its callbacks show the result (`virtual_agent_callback.rs`). Each chat is a separate user,
//! because ServiceNow keeps one open conversation for each `userId`. Our ids of the chat are sent in
//! `clientVariables`, which every callback returns.
//! Not responsible for: the proof that an agent is present, and the time of the next request
//! (`bridge/to_agent/virtual_agent.rs`).
//! Source: ServiceNow documentation, "Virtual Agent Bot Integration API" and "Message authentication".

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value, json};
use sha1::Sha1;

use super::{ApiRequest, ServiceNow, wire};
use crate::live::Live;
use crate::message::callback::{CONVERSATION_VARIABLE, GROUP_VARIABLE};
use crate::message::{ConversationId, MessageId, PlatformWords, json, named};
use crate::platform::error::{AnswerKind, CallError, ErrorAnswer};
use crate::platform::http::HttpReply;

const PATH: [&str; 4] = ["api", "sn_va_as_service", "bot", "integration"];

named! {
    /// The action that asks for an agent. The instance decides which action reaches a person.
    StartAction {
        /// The greeting topic. With `live_agent_only` it leads on to an agent.
        StartConversation = "START_CONVERSATION",
        /// Directly to an agent. On some instances the bot answers nevertheless.
        Agent = "AGENT",
    }
}

named! {
    /// The delivery status of an agent's message, for the ticks in the agent's panel.
    Receipt {
        /// The user's side has the message.
        Sent = "sent_to_user",
        /// The message did not arrive.
        Failed = "external_error",
    }
}

/// Message authentication in addition to the login. Without it ServiceNow treats every user as a guest.
#[derive(Clone, Default)]
pub struct MessageAuth {
    /// The header `token`.
    pub token: Option<SecretString>,
    /// The key of the header `x-b2b-signature`.
    pub hmac: Option<SecretString>,
}

/// The settings that only this API needs.
#[derive(Debug, Clone)]
pub struct VirtualAgentSettings {
    /// The action that asks for an agent.
    pub start_action: StartAction,
    /// The message authentication.
    pub message_auth: MessageAuth,
}

impl std::fmt::Debug for MessageAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MessageAuth").finish_non_exhaustive()
    }
}

/// The data with which a chat is opened. No `Debug`: it holds chat text.
pub(crate) struct ChatOpening {
    /// The first text.
    pub(crate) text: String,
    /// The user's email address, for account linking.
    pub(crate) email: Option<String>,
    /// The context variables that route the chat.
    pub(crate) context: BTreeMap<String, String>,
    /// The conversation before the chat.
    pub(crate) history: Vec<HistoryLine>,
}

/// A line of the conversation before the chat.
pub(crate) struct HistoryLine {
    /// The author is the bot.
    pub(crate) from_bot: bool,
    /// The author's name, as the agent reads it.
    pub(crate) name: String,
    /// The text.
    pub(crate) text: String,
    /// The time of the line.
    pub(crate) at: Timestamp,
}

/// A file for the agent, given by its address.
pub(crate) struct SharedFile<'a> {
    /// The address from which ServiceNow fetches the file.
    pub(crate) url: &'a str,
    /// Its media type.
    pub(crate) content_type: Option<&'a str>,
    /// The file name.
    pub(crate) name: &'a str,
}

/// The request id with which the user's side ends the chat. The callback repeats it, so that this end differs from
/// others.
pub(crate) fn end_request(group: &str) -> String {
    format!("end-{group}")
}

impl ServiceNow {
    /// Asks for an agent. A repeated request with the same ids enters the same conversation.
    pub(crate) async fn ask_for_agent(
        &self,
        conversation: &ConversationId,
        group: &str,
        id: MessageId,
        opening: &ChatOpening,
    ) -> Result<(), CallError> {
        let history = opening.history.iter().map(|line| {
            json!({
                "isBotMessage": line.from_bot,
                "value": line.text,
                "displayName": line.name,
                "type": "text",
                "timestamp": format!("{:013}", line.at.as_millisecond()),
            })
        });
        let history: Vec<Value> = history.collect();
        let action = self.virtual_agent().map_or(StartAction::StartConversation, |known| known.start_action);
        let mut request = about(conversation, group, &id.to_string());
        request.insert("action".into(), json!(action));
        request.insert("message".into(), words(&opening.text, id));
        request.insert("contextVariables".into(), json!(opening.context));
        if let Some(email) = &opening.email {
            request.insert("emailId".into(), json!(email));
        }
        if !history.is_empty() {
            request.insert("history".into(), json!(history));
        }
        self.request(conversation, request, &opening.text).await
    }

    /// Sends a message of the user.
    pub(crate) async fn send_to_agent(
        &self,
        conversation: &ConversationId,
        group: &str,
        id: MessageId,
        text: &str,
        file: Option<&SharedFile<'_>>,
    ) -> Result<(), CallError> {
        let mut message = words(text, id);
        if let Some(file) = file {
            message["attachment"] = json!({
                "url": file.url,
                "contentType": file.content_type.unwrap_or("application/octet-stream"),
                "fileName": file.name,
                "clientAttachmentId": id,
            });
        }
        let mut request = about(conversation, group, &id.to_string());
        request.insert("message".into(), message);
        self.request(conversation, request, text).await
    }

    /// Reports that the user is typing or has stopped typing.
    pub(crate) async fn user_types(
        &self,
        conversation: &ConversationId,
        group: &str,
        id: MessageId,
        stopped: bool,
    ) -> Result<(), CallError> {
        let mut request = about(conversation, group, &id.to_string());
        request.insert("action".into(), json!(if stopped { "VIEWING" } else { "TYPING" }));
        request.insert("message".into(), words("", id));
        self.request(conversation, request, "").await
    }

    /// Reports the delivery status of an agent's messages.
    pub(crate) async fn note_receipts(
        &self,
        conversation: &ConversationId,
        group: &str,
        messages: &[String],
        receipt: Receipt,
    ) -> Result<(), CallError> {
        let notes: Vec<Value> = messages.iter().map(|id| json!({ "id": id, "status": receipt })).collect();
        let status = receipt.to_string();
        let parts = [group, &status].into_iter().chain(messages.iter().map(String::as_str));
        let name = MessageId::derived_from("receipt", &parts.collect::<Vec<_>>());
        let mut request = about(conversation, group, &name.to_string());
        request.insert("action".into(), json!("UPDATE_MESSAGES"));
        request.insert("message".into(), json!(notes));
        self.request(conversation, request, "").await
    }

    /// Gives up the chat: no more messages will come, and no agent should wait in it.
    pub(crate) async fn fault(&self, conversation: &ConversationId, group: &str) -> Result<(), CallError> {
        let mut request = about(conversation, group, &format!("fault-{group}"));
        request.insert("action".into(), json!("FAULT_CONVERSATION"));
        request.insert("cause".into(), json!("EXTERNAL_FAILURE"));
        self.request(conversation, request, "").await
    }

    /// Ends the chat for the user. A chat that is over or does not exist counts as ended.
    pub(super) async fn end_conversation(
        &self,
        conversation: &ConversationId,
        group: &str,
    ) -> Result<(), CallError> {
        let mut request = about(conversation, group, &end_request(group));
        request.insert("action".into(), json!("END_CONVERSATION"));
        request.insert("message".into(), json!({ "text": "", "typed": true }));
        let gone = |error: &CallError| {
            error.is_absent()
                || matches!(error, CallError::Answer(ErrorAnswer { kind: AnswerKind::Gone, .. }))
        };
        match self.request(conversation, request, "").await {
            Err(error) if !gone(&error) => Err(error),
            _ => {
                self.forget(conversation);
                Ok(())
            }
        }
    }

    /// Checks whether the instance has this API. If the API exists, it answers a GET with 405.
    pub async fn virtual_agent_installed(&self) -> Result<(), CallError> {
        let reply = self.converse(None, &ApiRequest::get(&PATH, &[])).await?;
        if reply.status == StatusCode::METHOD_NOT_ALLOWED {
            return Ok(());
        }
        wire::answered(reply, "", self.instance()).map(drop)
    }

    fn virtual_agent(&self) -> Option<Arc<super::VirtualAgentSettings>> {
        self.inner.virtual_agent.as_ref().map(Live::get)
    }

    async fn request(
        &self,
        conversation: &ConversationId,
        request: Map<String, Value>,
        sent_text: &str,
    ) -> Result<(), CallError> {
        let body = Value::Object(request).to_string();
        let headers = self
            .virtual_agent()
            .map_or_else(|| Ok(HeaderMap::new()), |known| known.message_auth.headers(&body))?;
        let request = ApiRequest {
            method: Method::POST,
            path: &PATH,
            query: &[],
            body: Some(body.into()),
            headers,
            sent_text,
        };
        let mut lease = self.inner.sessions.lock(conversation).await;
        let reply = self.converse(Some(&mut lease), &request).await?;
        taken(wire::answered(reply, sent_text, self.instance())?, sent_text)
    }
}

impl MessageAuth {
    pub(super) fn headers(&self, body: &str) -> Result<HeaderMap, CallError> {
        let mut headers = HeaderMap::new();
        if let Some(token) = &self.token {
            headers.insert(HeaderName::from_static("token"), secret(token.expose_secret())?);
        }
        if let Some(key) = &self.hmac {
            let mac = Hmac::<Sha1>::new_from_slice(key.expose_secret().as_bytes());
            let mut mac = mac.map_err(|_| CallError::not_made("servicenow.message_hmac is not a key"))?;
            mac.update(body.as_bytes());
            let mut hex = String::with_capacity(40);
            for byte in mac.finalize().into_bytes() {
                // Writing into a String cannot fail.
                let _ = write!(hex, "{byte:02x}");
            }
            headers.insert(HeaderName::from_static("x-b2b-signature"), secret(&hex)?);
        }
        Ok(headers)
    }
}

fn secret(text: &str) -> Result<HeaderValue, CallError> {
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| CallError::not_made("servicenow.message_token does not fit into a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The fields that each request has.
fn about(conversation: &ConversationId, group: &str, request_id: &str) -> Map<String, Value> {
    let mut request = Map::new();
    request.insert("requestId".into(), json!(request_id));
    request.insert("clientSessionId".into(), json!(group));
    request.insert("userId".into(), json!(group));
    let variables = json!({ CONVERSATION_VARIABLE: conversation, GROUP_VARIABLE: group });
    request.insert("clientVariables".into(), variables);
    request
}

fn words(text: &str, id: MessageId) -> Value {
    json!({ "text": text, "typed": true, "clientMessageId": id })
}

/// `UPDATE_MESSAGES` is answered with plain text, every other request with JSON that holds the result.
fn taken(reply: HttpReply, sent_text: &str) -> Result<(), CallError> {
    let (status, retry_after) = (reply.status.as_u16(), reply.retry_after());
    let body = reply.body?;
    let Ok(said) = json::bounded(&body) else {
        let plain = body.starts_with(b"Message Processed");
        return if plain {
            Ok(())
        } else {
            Err(CallError::bad_body("neither JSON nor the documented reply"))
        };
    };
    // Scripted REST wraps a script's return value in `result`, unless the script writes the answer itself.
    let said = said.get("result").filter(|inner| inner.is_object() || inner.is_string()).unwrap_or(&said);
    match said.get("status").and_then(Value::as_str) {
        Some(status) if status.eq_ignore_ascii_case("success") => Ok(()),
        Some(_) => {
            let error = &said["error"];
            let words = [&error["message"], &error["detail"], error].into_iter().filter_map(Value::as_str);
            let words = words.collect::<Vec<_>>().join(": ");
            let kind = failure(&words);
            let (detail, said) = (String::new(), PlatformWords::new(&words, sent_text));
            Err(CallError::Answer(ErrorAnswer { status, retry_after, kind, detail, said }))
        }
        None if said.as_str().is_some_and(|words| words.starts_with("Message Processed")) => Ok(()),
        None => Err(CallError::bad_body("JSON without the documented `status`")),
    }
}

/// A failure with status 200 gives its reason only as text, and the texts are not documented. A failure with an
/// unknown text is temporary.
fn failure(words: &str) -> AnswerKind {
    let words = words.to_ascii_lowercase();
    let says = |any: &[&str]| any.iter().any(|part| words.contains(part));
    if says(&["unauthorized", "not authenticated", "authentication", "invalid token", "token validation"]) {
        AnswerKind::Credentials
    } else if says(&["conversation"])
        && says(&["not found", "no active", "does not exist", "ended", "closed"])
    {
        AnswerKind::Gone
    } else if says(&["missing", "required", "malformed", "invalid", "not supported"]) {
        AnswerKind::Permanent
    } else {
        AnswerKind::Temporary
    }
}
