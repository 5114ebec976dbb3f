//! Defines the lanes of a conversation in bot mode.
//!
//! Everything toward the user (the bot's messages, an agent's messages, notices) is in the lane of the conversation, so
//! the bot's last message arrives before an agent's first. The user's messages to the bot have a lane of their own: XO
//! may answer that call only after it has received the bot's answer, so a shared lane would block itself.
//!
//! Not responsible for: the messages in the lanes (`ingress/botkit/bot_mode.rs`).

use super::{ConversationId, Kind, LaneKey, MessageId};

/// The prefix of the lane of a user's messages to the bot.
const TO_BOT: &str = "to-bot:";

/// The lane of a message of this kind.
pub fn lane(kind: Kind, conversation: &ConversationId) -> LaneKey {
    if kind != Kind::BotUserMessage && kind != Kind::BotClientEvent {
        return LaneKey::from(conversation);
    }
    let named = format!("{TO_BOT}{conversation}");
    // A conversation id of nearly the longest length leaves no room for the prefix.
    LaneKey::parse(&named).unwrap_or_else(|_| LaneKey::alone(MessageId::derived("to-bot", &named)))
}

/// The conversation that a lane belongs to.
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
