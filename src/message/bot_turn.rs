//! The lines of a conversation in bot mode.
//!
//! Everything toward the user (the bot's words, an agent's words, news) stands in the line of the conversation, so that the bot's
//! last words arrive before an agent's first. The user's words to the bot stand in a line of their own: XO may answer that call only
//! after the bot's answer was taken, and one line for both would then stand still.
//! Not responsible for: what travels in the lines (`ingress/botkit/bot_mode.rs`).

use super::{ConversationId, Kind, LaneKey, MessageId};

/// What the line of a user's words to the bot begins with.
const TO_BOT: &str = "to-bot:";

/// The line of a message of this kind.
pub fn lane(kind: Kind, conversation: &ConversationId) -> LaneKey {
    if kind != Kind::BotUserMessage && kind != Kind::BotClientEvent {
        return LaneKey::from(conversation);
    }
    let named = format!("{TO_BOT}{conversation}");
    // A name of almost the longest length has no room for more.
    LaneKey::parse(&named).unwrap_or_else(|_| LaneKey::alone(MessageId::derived("to-bot", &named)))
}

/// The conversation whose line this is.
pub fn conversation_of(lane: &LaneKey) -> &str {
    lane.as_str().strip_prefix(TO_BOT).unwrap_or(lane.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_to_the_bot_wait_for_nothing_that_goes_to_the_user() {
        let conversation = ConversationId::parse("st-1:u-1:rtm").unwrap();
        let to_bot = lane(Kind::BotUserMessage, &conversation);
        assert_eq!(lane(Kind::BotBotMessage, &conversation), LaneKey::from(&conversation));
        assert_ne!(to_bot, LaneKey::from(&conversation));
        assert_eq!(conversation_of(&to_bot), "st-1:u-1:rtm");
        let long = ConversationId::parse(&"c".repeat(256)).unwrap();
        assert_eq!(lane(Kind::BotUserMessage, &long), lane(Kind::BotUserMessage, &long));
    }
}
