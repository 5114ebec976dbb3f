//! Recognises the end of a chat that ServiceNow announces in a sentence. Some instances post neither a flag nor an
//! action with the end, and integrations with these instances rely on the sentence alone
//! (`src/platform/servicenow/FACTS.md`).
//!
//! Guarantees: no sentence ends a chat by itself, because sentences are translated and people may write the same words.
//! A sentence counts only together with the state. Over Connect Support the state is the state of the queue entry
//! (`watch/poll.rs`). Over the Virtual Agent API the items after the sentence decide. The chat is over if a text of
//! ServiceNow's bot follows without a flag of an agent's chat, and without a sign of an agent before the text. If no
//! such item follows, the idle limit ends the chat, and the metrics count this case.
//! Not responsible for: ending the chat (`virtual_agent_callback.rs`, `watch/poll.rs`), the idle limit (`watch/time_limits.rs`).

use crate::clock;
use crate::conversation::{DedupKey, Directory};
use crate::delivery::InternalError;
use crate::message::Message;
use crate::platform::servicenow::{ChatSign, ItemMeaning, VirtualAgentCallback};

/// Stored instead of the id of the last relayed message: a closing sentence was the last event of the chat.
pub(in crate::bridge) const ANNOUNCED: &str = "closing sentence";

/// Whether a text of ServiceNow itself announces the end of a chat. `sentences`: `servicenow.end_sentences`.
pub(in crate::bridge) fn is_closing_sentence(sentences: &[String], text: &str) -> bool {
    let text = text.to_lowercase();
    sentences.iter().any(|part| !part.trim().is_empty() && text.contains(&part.trim().to_lowercase()))
}

/// Records that the end of a chat was announced by the message `last`. The metrics count an announced end that
/// nothing confirms. A later message of the chat makes the record void, because the chat goes on.
pub(in crate::bridge) async fn note_closing_sentence(
    directory: &Directory,
    group: &str,
    last: &str,
) -> Result<(), InternalError> {
    directory.mark_done(DedupKey::closing_sentence(group, last), None, clock::now()).await?;
    Ok(())
}

/// Whether the last event of a chat was a sentence that announced its end.
pub(in crate::bridge) async fn is_announced(
    directory: &Directory,
    group: &str,
) -> Result<bool, InternalError> {
    let Some(last) = directory.last_relayed(group).await? else { return Ok(false) };
    Ok(directory.is_done(DedupKey::closing_sentence(group, &last)).await?)
}

/// Whether this callback confirms the announced end of a chat with an agent.
pub(in crate::bridge) async fn confirms_end(
    sentences: &[String],
    directory: &Directory,
    message: &Message,
    callback: &VirtualAgentCallback,
    group: &str,
) -> Result<bool, InternalError> {
    let says_nothing = |meaning: &ItemMeaning| matches!(meaning, ItemMeaning::Typing | ItemMeaning::Nothing);
    if callback.items.iter().all(|item| says_nothing(&item.meaning)) {
        return Ok(false);
    }
    let was_announced = directory.last_relayed(group).await?.as_deref() == Some(ANNOUNCED);
    let seen = Evidence::of(callback, was_announced, |text| is_closing_sentence(sentences, text));
    let is_news = seen.confirms || seen.is_announced != was_announced;
    // A repeated or replayed callback is old: the chat has changed since then.
    if !is_news || directory.is_done(DedupKey::CallbackApplied(message.id)).await? {
        return Ok(false);
    }
    if seen.is_announced {
        note_closing_sentence(directory, group, ANNOUNCED).await?;
        directory.mark_relayed(group, ANNOUNCED).await?;
    } else if !seen.confirms {
        directory.mark_relayed(group, &message.id.to_string()).await?;
    }
    Ok(seen.confirms)
}

/// The evidence in the items of a callback, read in order.
#[derive(Debug, PartialEq, Eq)]
struct Evidence {
    /// The end was announced, and no later item contradicts the announcement.
    is_announced: bool,
    /// A text of ServiceNow's bot followed the announcement.
    confirms: bool,
}

impl Evidence {
    fn of(callback: &VirtualAgentCallback, announced: bool, is_closing: impl Fn(&str) -> bool) -> Self {
        // The flag belongs to the whole callback, so it contradicts only an announcement of an earlier callback.
        let mut seen = Self { is_announced: announced && !callback.agent_chat, confirms: false };
        for item in &callback.items {
            let is_agent_sign = matches!(
                item.meaning,
                ItemMeaning::Sign(ChatSign::Queued { .. } | ChatSign::AgentChat | ChatSign::AgentCame)
            );
            if item.from_agent || item.is_topic_header || is_agent_sign {
                seen = Self { is_announced: false, confirms: false };
                continue;
            }
            match &item.meaning {
                ItemMeaning::Notice(text) if is_closing(text) => seen.is_announced = true,
                ItemMeaning::Text(_) | ItemMeaning::Question(_)
                    if seen.is_announced && !callback.agent_chat =>
                {
                    seen.confirms = true;
                }
                _ => {}
            }
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOSED: &str =
        r#"{"uiType":"ActionMsg","actionType":"System","message":"Grace has closed the support session."}"#;
    const BOT: &str = r#"{"uiType":"OutputText","value":"What can I help with?"}"#;
    const AGENT: &str = r#"{"uiType":"OutputText","value":"still here","agentInfo":{"sentFromAgent":true}}"#;
    const HEADER: &str = r#"{"uiType":"ActionMsg","actionType":"ChatSubHeader","message":"A topic began"}"#;

    fn seen(announced: bool, flag: &str, items: &[&str]) -> (bool, bool) {
        let body = format!(r#"{{"clientSessionId":"g"{flag},"body":[{}]}}"#, items.join(","));
        let callback = VirtualAgentCallback::read(body.as_bytes(), None).unwrap();
        let seen = Evidence::of(&callback, announced, |text| text.contains("closed the support session"));
        (seen.is_announced, seen.confirms)
    }

    /// FACTS.md: public integrations know the end from the sentence; which flags a topic's items carry is not known.
    #[test]
    fn a_sentence_needs_the_state() {
        let chat = r#","agentChat":true"#;
        assert_eq!(seen(false, "", &[CLOSED]), (true, false));
        assert_eq!(seen(false, chat, &[CLOSED]), (true, false));
        assert_eq!(seen(true, "", &[BOT]), (true, true));
        assert_eq!(seen(false, "", &[CLOSED, BOT]), (true, true));
        // Nothing was announced, or an agent or a topic came in between.
        assert_eq!(seen(false, "", &[BOT]), (false, false));
        assert_eq!(seen(true, chat, &[BOT]), (false, false));
        assert_eq!(seen(true, "", &[AGENT]), (false, false));
        assert_eq!(seen(true, "", &[HEADER, BOT]), (false, false));
        assert_eq!(seen(false, "", &[BOT, CLOSED]), (true, false));
    }
}
