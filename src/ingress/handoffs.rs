//! The route for handoff requests of any bot, script or dialog task.
//!
//! Guarantees: a request is either accepted as a whole or refused with all its faults. Unknown fields are ignored, so
//! that a newer caller can use an older Causeway. No request is accepted for a conversation whose id belongs to a bot.
//! Not responsible for: the conversation's state (`conversation/`), everything after the queue has the message. The
//! worker refuses requests for conversations that the directory knows as a bot's (`bridge/to_agent/handoff.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::response::Response;
use jiff::Timestamp;
use serde_json::json;

use super::fields::{self, FieldErrors, JsonFields, TextBounds};
use super::idempotency::KeyUse;
use super::{IngressState, SenderRepeats};
use crate::conversation::{DedupKey, DirectoryError, Origin};
use crate::http_server::body;
use crate::http_server::credentials;
use crate::http_server::problem::{self, ApiError, FieldError};
use crate::message::handoff::{
    Attachment, ChatUser, EndReason, Handoff, HandoffEnd, HandoffStart, HandoffText, TranscriptLine,
    TypingSignal,
};
use crate::message::ids::ID_BYTES_MAX;
use crate::message::{ConversationId, Destination, LaneKey, Message, MessageId};

/// The timeout for the directory. The write only makes the conversation visible earlier, because the worker writes
/// it, too.
const DIRECTORY_TIMEOUT: Duration = Duration::from_secs(1);

/// The text of a message.
const TEXT: TextBounds = TextBounds { bytes: 32 << 10, may_be_empty: false };
/// A line of the transcript, or the text of a message with attachments.
const TEXT_OR_NOTHING: TextBounds = TextBounds { bytes: 32 << 10, may_be_empty: true };
/// An id or a name.
const NAME: TextBounds = TextBounds { bytes: ID_BYTES_MAX, may_be_empty: false };
/// A descriptive text.
const LABEL: TextBounds = TextBounds { bytes: 2048, may_be_empty: true };

/// Checks the bearer token. Without a configured token the whole API is off.
pub(super) fn admit(state: &IngressState, headers: &HeaderMap) -> Result<(), ApiError> {
    let token = &state.settings.get().handoffs_token;
    match token.is_set() {
        false => Err(ApiError::NotEnabled("ingress.handoffs.token")),
        true if credentials::bearer_of(token, headers) => Ok(()),
        true => Err(ApiError::Unauthorized(r#"Bearer realm="causeway""#)),
    }
}

/// Answers a handoff request.
pub(super) async fn answer(
    state: &Arc<IngressState>,
    request: &mut axum::extract::Request,
) -> Result<Response, ApiError> {
    admit(state, request.headers())?;
    body::is_json(request.headers())?;
    let headers = request.headers().clone();
    let raw = body::read(&headers, request.body_mut(), state.limits()).await?;
    let HandoffRequest { key, handoff } = read(&raw, &headers)?;
    if state.settings.get().bot_side.bot_of(handoff.conversation()).is_some() {
        let reason =
            "must not begin with the id of a bot and a colon: such a conversation belongs to the bot";
        let field = "conversation_id".to_owned();
        return Err(ApiError::Invalid(vec![FieldError { field, reason: reason.to_owned() }]));
    }
    let body = serde_json::to_vec(&handoff).map_err(|_| ApiError::CutBody)?;
    let conversation = handoff.conversation();
    let id = key.as_ref().map_or_else(MessageId::fresh, |key| MessageId::of_key(conversation, &key.text));
    let lane = LaneKey::from(conversation);
    let message = Message::new(id, handoff.kind(), Destination::ServiceNow, lane, body);
    let message = if key.is_some() { message.with_digest() } else { message };
    let accepted_at = message.accepted_at;
    let claim = message.digest.map(|digest| state.idempotency_keys.claim(id, digest));
    if let (Some(KeyUse::Reused), Some(key)) = (claim, key) {
        return Err(ApiError::KeyReused(key.field));
    }
    if let Err(error) = state.publish_to_completion(message, SenderRepeats::OnRefusal).await {
        if claim == Some(KeyUse::First) {
            state.idempotency_keys.release(id);
        }
        return Err(error.into());
    }
    if let Handoff::Start(start) = &handoff {
        remember(state, id, accepted_at, start).await;
    }
    Ok(problem::accepted(&json!({ "id": id, "conversation_id": conversation, "status": "accepted" })))
}

/// Makes the conversation visible at once. The worker writes it, too, so a failure here has no consequence. A start
/// that is posted again after its delivery changes nothing, and the worker ignores it as well.
async fn remember(state: &IngressState, id: MessageId, accepted_at: Timestamp, start: &HandoffStart) {
    let Some(directory) = &state.directory else { return };
    let write = async {
        if !directory.find_done(&[DedupKey::Delivered(id), DedupKey::Answered(id)]).await?.is_empty() {
            return Ok(());
        }
        let queue_id = start.queue_id.as_deref();
        directory.mark_accepted(&start.conversation_id, Origin::Api, queue_id, accepted_at).await
    };
    match tokio::time::timeout(DIRECTORY_TIMEOUT, write).await {
        Ok(Ok(())) => {}
        Ok(Err::<_, DirectoryError>(error)) => {
            tracing::warn!(%error, "could not write to the directory; the worker will create the conversation (visible later)")
        }
        Err(_) => tracing::warn!(
            "the directory did not answer within 1 s; the worker will create the conversation (visible later)"
        ),
    }
}

/// A parsed handoff request.
#[derive(Debug)]
struct HandoffRequest {
    /// The key that identifies a repeated request.
    key: Option<IdempotencyKey>,
    handoff: Handoff,
}

/// An idempotency key of the caller.
#[derive(Debug)]
struct IdempotencyKey {
    /// The header or the field that contained the key.
    field: &'static str,
    text: String,
}

fn read(raw: &[u8], headers: &HeaderMap) -> Result<HandoffRequest, ApiError> {
    let body = fields::parse(raw)
        .map_err(|error| ApiError::NotJson { line: error.line(), column: error.column() })?;
    let errors = FieldErrors::default();
    let Some(fields) = JsonFields::new(body, &errors) else {
        errors.add("body", "must be one JSON object");
        return Err(ApiError::Invalid(errors.into_vec()));
    };
    let key = idempotency_key(headers, &fields, &errors);
    let handoff = handoff(&fields);
    let errors = errors.into_vec();
    match handoff {
        Some(handoff) if errors.is_empty() => Ok(HandoffRequest { key, handoff }),
        _ => Err(ApiError::Invalid(errors)),
    }
}

/// Reads the idempotency key from the header, or from the field `id` if there is no header.
fn idempotency_key(
    headers: &HeaderMap,
    fields: &JsonFields<'_>,
    errors: &FieldErrors,
) -> Option<IdempotencyKey> {
    let field = fields.text("id", NAME);
    let Some(header) = headers.get("idempotency-key") else {
        return field.map(|text| IdempotencyKey { field: "id", text });
    };
    match header.to_str().map(str::trim) {
        Ok(key) if (1..=ID_BYTES_MAX).contains(&key.len()) => {
            Some(IdempotencyKey { field: "Idempotency-Key", text: key.to_owned() })
        }
        _ => {
            errors.add("Idempotency-Key", format!("must be 1 to {ID_BYTES_MAX} printable ASCII characters"));
            None
        }
    }
}

/// Reads all fields even after a fault, so that the caller sees all faults at once.
fn handoff(fields: &JsonFields<'_>) -> Option<Handoff> {
    let conversation = conversation_id(fields);
    match fields.required_text("type", NAME)?.as_str() {
        "start" => start(fields, conversation).map(Handoff::Start),
        "message" => text(fields, conversation).map(Handoff::Message),
        "typing" => {
            let stopped = fields.flag("stopped");
            conversation.map(|conversation_id| {
                Handoff::Typing(TypingSignal { conversation_id, stopped, from_xo: false })
            })
        }
        "end" => {
            let reason = fields.text("reason", LABEL).map(EndReason::Other);
            conversation
                .map(|conversation_id| Handoff::End(HandoffEnd { conversation_id, reason, reply: None }))
        }
        _ => {
            fields.fault("type", "must be start, message, typing or end");
            None
        }
    }
}

fn conversation_id(fields: &JsonFields<'_>) -> Option<ConversationId> {
    let anything = TextBounds { bytes: usize::MAX, may_be_empty: true };
    let text = fields.required_text("conversation_id", anything)?;
    ConversationId::parse(&text).map_err(|problem| fields.fault("conversation_id", problem.to_string())).ok()
}

fn start(fields: &JsonFields<'_>, conversation: Option<ConversationId>) -> Option<HandoffStart> {
    let message = fields.required_text("message", TEXT);
    let queue_id = fields.text("queue_id", NAME).and_then(|queue| {
        // The id becomes a part of a URL path.
        LaneKey::parse(&queue).map_err(|problem| fields.fault("queue_id", problem.to_string())).ok()
    });
    let user = fields.object("user").map(|user| ChatUser {
        id: user.text("id", LABEL),
        name: user.text("name", LABEL),
        email: user.text("email", LABEL),
        language: user.text("language", LABEL),
    });
    let transcript = fields.objects("transcript", line).read;
    let metadata = fields.object("metadata").map(|metadata| strings(&metadata)).unwrap_or_default();
    Some(HandoffStart {
        conversation_id: conversation?,
        queue_id: queue_id.map(|queue| queue.as_str().to_owned()),
        message: message?,
        user,
        transcript,
        metadata,
        reply: None,
    })
}

fn line(fields: &JsonFields<'_>) -> Option<TranscriptLine> {
    let from = fields.required_text("from", NAME);
    let text = fields.required_text("text", TEXT_OR_NOTHING);
    let at = fields.text("at", NAME);
    if at.as_ref().is_some_and(|at| at.parse::<jiff::Timestamp>().is_err()) {
        fields.fault("at", "must be a time as in RFC 3339, such as 2026-11-22T10:00:00Z");
    }
    Some(TranscriptLine { from: from?, text: text?, at })
}

fn strings(fields: &JsonFields<'_>) -> BTreeMap<String, String> {
    let mut strings = BTreeMap::new();
    fields.texts(TEXT_OR_NOTHING, |key, text| drop(strings.insert(key.to_owned(), text)));
    strings
}

fn text(fields: &JsonFields<'_>, conversation: Option<ConversationId>) -> Option<HandoffText> {
    let sent = fields.objects("attachments", attachment);
    let message = if sent.count == 0 {
        fields.required_text("message", TEXT)
    } else {
        fields.text("message", TEXT_OR_NOTHING)
    };
    Some(HandoffText {
        conversation_id: conversation?,
        message: message.unwrap_or_default(),
        attachments: sent.read,
        reply: None,
    })
}

fn attachment(fields: &JsonFields<'_>) -> Option<Attachment> {
    let url = fields.required_text("url", TextBounds { bytes: 8 << 10, may_be_empty: false });
    let is_web = |url: &str| url::Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
    if url.as_deref().is_some_and(|url| !is_web(url)) {
        fields.fault("url", "must be an absolute http or https address");
    }
    let name = fields.text("name", LABEL);
    let content_type = fields.text("content_type", LABEL);
    Some(Attachment { url: url?, name, content_type })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn faults_of(body: &Value) -> Vec<(String, String)> {
        match read(body.to_string().as_bytes(), &HeaderMap::new()) {
            Err(ApiError::Invalid(errors)) => errors.into_iter().map(|f| (f.field, f.reason)).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn fields_of(body: &Value) -> Vec<String> {
        faults_of(body).into_iter().map(|(field, _)| field).collect()
    }

    fn taken(body: &Value) -> (Option<IdempotencyKey>, Handoff) {
        let HandoffRequest { key, handoff } = read(body.to_string().as_bytes(), &HeaderMap::new()).unwrap();
        (key, handoff)
    }

    #[test]
    fn the_four_types_of_the_documentation_are_taken() {
        let start = json!({"type": "start", "conversation_id": "c-1", "message": "My laptop is on fire",
            "user": {"id": "u-1", "name": "Ada", "email": "ada@example.com", "language": "ko"},
            "transcript": [{"from": "user", "text": "hi", "at": "2026-11-22T10:00:00Z"}], "metadata": {"any": "strings"}});
        let message = json!({"type": "message", "conversation_id": "c-1", "message": "still burning",
            "attachments": [{"url": "https://x.example/a.png", "name": "a.png", "content_type": "image/png"}]});
        let typing = json!({"type": "typing", "conversation_id": "c-1", "stopped": true});
        let end = json!({"type": "end", "conversation_id": "c-1", "reason": "user"});
        for body in [start, message, typing, end] {
            let (_, handoff) = taken(&body);
            assert_eq!(serde_json::to_value(&handoff).unwrap(), body);
        }
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let (_, handoff) =
            taken(&json!({"type": "typing", "conversation_id": "c", "color": {"a": 1}, "message": 7}));
        assert_eq!(serde_json::to_value(handoff).unwrap(), json!({"type": "typing", "conversation_id": "c"}));
        taken(&json!({"type": "end", "conversation_id": "c", "reason": null}));
        taken(&json!({"type": "message", "conversation_id": "c", "attachments": [{"url": "http://x/a"}]}));
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let long = "x".repeat((32 << 10) + 1);
        let body = json!({"type": "start", "conversation_id": "c".repeat(257), "message": long, "queue_id": "",
            "id": 5, "user": {"email": 1, "name": ["a"]},
            "transcript": [{"from": "user", "text": "ok"}, 7, {"from": "", "text": long, "at": "yesterday"}, {}],
            "metadata": {"a": "b", "n": 1}});
        let mut fields = fields_of(&body);
        fields.sort();
        let expected = [
            "conversation_id",
            "id",
            "message",
            "metadata.n",
            "queue_id",
            "transcript[1]",
            "transcript[2].at",
            "transcript[2].from",
            "transcript[2].text",
            "transcript[3].from",
            "transcript[3].text",
            "user.email",
            "user.name",
        ];
        assert_eq!(fields, expected);
    }

    #[test]
    fn each_fault_says_what_to_do() {
        let cases = [
            (json!([]), "body", "must be one JSON object"),
            (json!({"conversation_id": "c"}), "type", "is missing; it must be a string"),
            (
                json!({"type": "stop", "conversation_id": "c"}),
                "type",
                "must be start, message, typing or end",
            ),
            (json!({"type": "typing"}), "conversation_id", "is missing; it must be a string"),
            (json!({"type": "typing", "conversation_id": ""}), "conversation_id", "must not be empty"),
            (
                json!({"type": "typing", "conversation_id": "c", "stopped": 1}),
                "stopped",
                "must be true or false",
            ),
            (json!({"type": "typing", "conversation_id": 1}), "conversation_id", "must be a string"),
            (
                json!({"type": "start", "conversation_id": "c", "message": " "}),
                "message",
                "must not be empty",
            ),
            (json!({"type": "start", "conversation_id": "c"}), "message", "is missing; it must be a string"),
            (
                json!({"type": "message", "conversation_id": "c"}),
                "message",
                "is missing; it must be a string",
            ),
            (
                json!({"type": "start", "conversation_id": "c", "message": "m", "user": "Ada"}),
                "user",
                "must be an object",
            ),
            (
                json!({"type": "message", "conversation_id": "c", "attachments": [{"url": "file:///etc/passwd"}]}),
                "attachments[0].url",
                "must be an absolute http or https address",
            ),
            (
                json!({"type": "message", "conversation_id": "c", "message": "m", "attachments": "a"}),
                "attachments",
                "must be an array of objects",
            ),
        ];
        for (body, field, reason) in cases {
            assert_eq!(faults_of(&body)[0], (field.to_owned(), reason.to_owned()), "{body}");
        }
    }

    #[test]
    fn a_key_makes_a_repeated_post_the_same_message() {
        let body = json!({"type": "typing", "conversation_id": "c", "id": "k1"});
        let (field, header) = (
            taken(&body).0.unwrap(),
            HeaderMap::from_iter([(
                axum::http::HeaderName::from_static("idempotency-key"),
                "k2".parse().unwrap(),
            )]),
        );
        assert_eq!((field.field, field.text.as_str()), ("id", "k1"));
        let key = read(body.to_string().as_bytes(), &header).unwrap().key.unwrap();
        assert_eq!((key.field, key.text.as_str()), ("Idempotency-Key", "k2"));
        assert!(taken(&json!({"type": "typing", "conversation_id": "c"})).0.is_none());

        let long = HeaderMap::from_iter([(
            axum::http::HeaderName::from_static("idempotency-key"),
            "k".repeat(257).parse().unwrap(),
        )]);
        let Err(ApiError::Invalid(errors)) = read(body.to_string().as_bytes(), &long) else { panic!() };
        assert_eq!(errors[0].field, "Idempotency-Key");
    }

    #[test]
    fn a_list_of_very_many_faults_names_the_first() {
        let body = format!(
            r#"{{"type":"start","conversation_id":"c","message":"m","transcript":[{}0]}}"#,
            r#"{"":0},"#.repeat(9_000)
        );
        let Err(ApiError::Invalid(errors)) = read(body.as_bytes(), &HeaderMap::new()) else { panic!() };
        assert_eq!((errors.len(), errors[0].field.as_str()), (100, "transcript[0].from"));
    }

    #[test]
    fn of_a_key_that_occurs_twice_the_last_one_counts() {
        let body = br#"{"type":"end","conversation_id":"a","conversation_id":"b","reason":null}"#;
        let handoff = read(body, &HeaderMap::new()).unwrap().handoff;
        assert_eq!(handoff.conversation().as_str(), "b");
    }

    #[test]
    fn broken_json_is_shown_where_it_breaks() {
        let refusal = read(b"{\n  \"type\": start}", &HeaderMap::new()).unwrap_err();
        assert!(matches!(refusal, ApiError::NotJson { line: 2, .. }), "{refusal}");
    }
}
