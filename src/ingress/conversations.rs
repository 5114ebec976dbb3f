//! The route that shows the state of one conversation.
//!
//! Guarantees: the answer for a conversation of a bot is the answer for an unknown conversation.
//! Not responsible for: storing the state (`conversation/`).

use std::sync::Arc;

use axum::RequestExt;
use axum::extract::{Path, Request};
use axum::response::Response;
use serde_json::{Value, json};

use super::{IngressState, handoffs};
use crate::conversation::{Conversation, Origin};
use crate::http_server::problem::{self, ApiError};
use crate::message::ConversationId;

/// Answers with the state of one conversation.
pub(super) async fn answer(state: &Arc<IngressState>, request: &mut Request) -> Result<Response, ApiError> {
    handoffs::admit(state, request.headers())?;
    let directory = state.directory.as_ref().ok_or(ApiError::DirectoryAway)?;
    // An invalid id belongs to no conversation.
    let Path(name) =
        request.extract_parts::<Path<String>>().await.map_err(|_| ApiError::UnknownConversation)?;
    let id = ConversationId::parse(&name).map_err(|_| ApiError::UnknownConversation)?;
    let found = directory.find(&id).await?.filter(|found| found.origin == Origin::Api);
    let conversation = found.ok_or(ApiError::UnknownConversation)?;
    Ok(problem::found(&view(&conversation)))
}

fn view(conversation: &Conversation) -> Value {
    json!({
        "conversation_id": conversation.id,
        "state": conversation.state,
        "servicenow": {
            "group": conversation.group,
            "number": conversation.number,
            "queue_id": conversation.queue_id,
            "position": conversation.position,
            "wait": conversation.wait,
        },
        "agent": conversation.agent,
        "opened_at": conversation.opened_at,
        "updated_at": conversation.updated_at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::ConversationState;

    #[test]
    fn unknown_values_are_null() {
        let conversation = Conversation {
            id: ConversationId::parse("c-1").unwrap(),
            origin: Origin::Api,
            state: ConversationState::Waiting,
            group: Some("g1".into()),
            number: None,
            queue_id: Some("q1".into()),
            position: Some(2),
            wait: None,
            agent: None,
            reason: None,
            opened_at: "2026-11-22T10:00:00Z".parse().unwrap(),
            waiting_since: "2026-11-22T10:00:00Z".parse().unwrap(),
            updated_at: "2026-11-22T10:00:05.25Z".parse().unwrap(),
            released_at: None,
        };
        let expected = json!({
            "conversation_id": "c-1", "state": "waiting",
            "servicenow": { "group": "g1", "number": null, "queue_id": "q1", "position": 2, "wait": null },
            "agent": null, "opened_at": "2026-11-22T10:00:00Z", "updated_at": "2026-11-22T10:00:05.25Z",
        });
        assert_eq!(view(&conversation), expected);
    }
}
