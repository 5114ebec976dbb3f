//! Builds the message of a callback that was lost, if the message still has to be relayed.
//!
//! Guarantees: a message has the same id in a callback and in a reading. A message that was relayed or dead-lettered, or that
//! is internal, is not relayed again.
//! Not responsible for: reading (`watch/gaps.rs`, `to_bot/callback_row.rs`), relaying (`to_bot/callback_relay.rs`).

use serde_json::json;

use crate::conversation::{DedupKey, Directory};
use crate::delivery::InternalError;
use crate::message::{Destination, Kind, LaneKey, Message, MessageId};
use crate::platform::servicenow::RemoteMessage;

/// Returns the message if it still has to be relayed: it was not relayed, not dead-lettered and is not internal. If its
/// callback arrived before the directory knew the chat, the callback went to XO's Callback URL under the usual id. Such
/// a message is relayed under an id of its own.
pub(in crate::bridge) async fn unrelayed(
    directory: &Directory,
    group: &str,
    remote: &RemoteMessage,
    place: (Destination, LaneKey),
) -> Result<Option<Message>, InternalError> {
    let mut lost = message_of(group, remote, place);
    let mut known = directory.find_done(&dealt_with(lost.id)).await?;
    if known.iter().any(|done| matches!(done.key, DedupKey::Forwarded(_)))
        && !known.iter().any(|done| matches!(done.key, DedupKey::Delivered(_)))
    {
        lost.id = second_id(lost.id);
        known = directory.find_done(&dealt_with(lost.id)).await?;
    }
    Ok(known.is_empty().then_some(lost))
}

/// The id of a message whose callback went to XO's Callback URL before its chat was known.
pub(in crate::bridge) fn second_id(message: MessageId) -> MessageId {
    MessageId::derived("told", &message.to_string())
}

fn dealt_with(message: MessageId) -> [DedupKey; 4] {
    let dead = DedupKey::DeadLettered { message, replays: 0 };
    [DedupKey::Delivered(message), DedupKey::Forwarded(message), DedupKey::Internal(message), dead]
}

/// Builds the message that the lost callback would have carried.
fn message_of(group: &str, remote: &RemoteMessage, (destination, lane): (Destination, LaneKey)) -> Message {
    let id = MessageId::derived("servicenow", &remote.sys_id);
    let body = json!({
        "group": group,
        "formatted_message": remote.text,
        "sys_created_by": remote.created_by,
        "sys_id": remote.sys_id,
        "repaired": true,
    });
    Message::new(id, Kind::CallbackMessage, destination, lane, body.to_string())
}
