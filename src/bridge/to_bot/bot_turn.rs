//! Passes the messages between a user and a bot on to XO, and tells XO to continue without a message that cannot be
//! passed on.
//!
//! XO waits for one call for each message (`src/platform/xo/FACTS.md`).
//!
//! Guarantees: the body is posted as it is on the queue, to the address in the body, with the credential of its bot,
//! and only to an allowed host. A message that is dead-lettered is skipped at XO, so that XO does not wait.
//!
//! Not responsible for: the content of the body (`ingress/botkit/bot_mode.rs`), the signature
//! (`platform/xo/botkit.rs`), how often a message is tried (`worker/`).

use std::borrow::Cow;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::delivery::Attempt;
use crate::delivery::classify::Operation;
use crate::message::{DeadReason, Endpoint, Kind, Message, Outcome};
use crate::platform::Xo;

const ENDPOINT: Endpoint = Endpoint::XoBotKit;
/// The time limit of the skip call. The user and all later messages wait meanwhile.
const SKIP_TIME: Duration = Duration::from_secs(3);

/// The fields of a body that are read: the bot and the addresses. All other fields are ignored.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BotTurn<'a> {
    #[serde(borrow)]
    bot_id: Cow<'a, str>,
    #[serde(default)]
    send_user_message_url: Option<Cow<'a, str>>,
    #[serde(default)]
    send_bot_message_url: Option<Cow<'a, str>>,
    #[serde(default)]
    skip_user_message_url: Option<Cow<'a, str>>,
    #[serde(default)]
    skip_bot_message_url: Option<Cow<'a, str>>,
    #[serde(default)]
    send_alert_message_url: Option<Cow<'a, str>>,
    #[serde(default)]
    send_bot_event_url: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    message: Option<&'a RawValue>,
    #[serde(borrow, default)]
    override_message_payload: Option<&'a RawValue>,
}

impl BotTurn<'_> {
    /// The address to which a message of this kind is posted.
    fn address(&self, kind: Kind) -> Option<&str> {
        let address = match kind {
            Kind::BotUserMessage => &self.send_bot_message_url,
            Kind::BotBotMessage if self.says_nothing() => &self.skip_user_message_url,
            Kind::BotBotMessage => &self.send_user_message_url,
            Kind::BotAlert => &self.send_alert_message_url,
            Kind::BotClientEvent => &self.send_bot_event_url,
            _ => &None,
        };
        address.as_deref()
    }

    /// The address that tells XO to skip a message of this kind.
    fn skip_address(&self, kind: Kind) -> Option<&str> {
        match kind {
            Kind::BotUserMessage => self.skip_bot_message_url.as_deref(),
            Kind::BotBotMessage => self.skip_user_message_url.as_deref(),
            _ => None,
        }
    }

    /// Whether a bot's message has neither a text nor a payload of its own.
    fn says_nothing(&self) -> bool {
        let is_empty = |value: &RawValue| matches!(value.get(), "null" | "\"\"" | "{}");
        self.message.is_none_or(is_empty) && self.override_message_payload.is_none_or(is_empty)
    }
}

/// Makes one attempt to pass a message on.
pub(in crate::bridge) async fn pass_on(xo: &Xo, message: &Message) -> Attempt {
    let Ok(turn) = serde_json::from_slice::<BotTurn<'_>>(&message.body) else {
        return Attempt::dead(ENDPOINT, DeadReason::Unreadable, "its body is not a bot turn of this version");
    };
    let Some(address) = turn.address(message.kind) else {
        return Attempt::of(ENDPOINT, Outcome::Dropped, "the message names no address; XO does not wait");
    };
    match xo.pass_on(&turn.bot_id, address, message.body.clone()).await {
        Ok(()) => Attempt::delivered(ENDPOINT),
        Err(error) => Attempt::called(ENDPOINT, &error, Operation::Tell),
    }
}

/// Tells XO to continue without a dead-lettered message. A failure of this call has no consequence for us.
pub(in crate::bridge) async fn skip(xo: &Xo, message: &Message) {
    let Ok(turn) = serde_json::from_slice::<BotTurn<'_>>(&message.body) else { return };
    let Some(address) = turn.skip_address(message.kind) else { return };
    let call = xo.pass_on(&turn.bot_id, address, message.body.clone());
    let failed = match tokio::time::timeout(SKIP_TIME, call).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer in time".to_owned(),
    };
    tracing::warn!(id = %message.id, kind = %message.kind, error = failed, "could not tell XO to skip a message that was dead-lettered");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(body: &str, kind: Kind) -> Option<String> {
        serde_json::from_str::<BotTurn<'_>>(body).unwrap().address(kind).map(str::to_owned)
    }

    #[test]
    fn each_kind_has_its_address() {
        let body = r#"{"botId": "st-1", "message": "hi", "sendUserMessageUrl": "su", "sendBotMessageUrl": "sb",
            "skipUserMessageUrl": "ku", "skipBotMessageUrl": "kb", "sendAlertMessageUrl": "sa", "sendBotEventUrl": "se",
            "context": {"x": [1, 2, {"botId": "other"}]}}"#;
        for (kind, expected) in [
            (Kind::BotUserMessage, "sb"),
            (Kind::BotBotMessage, "su"),
            (Kind::BotAlert, "sa"),
            (Kind::BotClientEvent, "se"),
        ] {
            assert_eq!(address(body, kind).as_deref(), Some(expected), "{kind}");
        }
        let turn: BotTurn<'_> = serde_json::from_str(body).unwrap();
        assert_eq!(turn.skip_address(Kind::BotUserMessage), Some("kb"));
        assert_eq!(turn.skip_address(Kind::BotBotMessage), Some("ku"));
        assert_eq!(turn.skip_address(Kind::BotAlert), None);
    }

    #[test]
    fn a_bot_that_says_nothing_is_skipped() {
        let of = |more: &str| {
            address(
                &format!(
                    r#"{{"botId": "st-1", "sendUserMessageUrl": "su", "skipUserMessageUrl": "ku"{more}}}"#
                ),
                Kind::BotBotMessage,
            )
        };
        for nothing in [
            "",
            r#", "message": """#,
            r#", "message": null"#,
            r#", "message": "", "overrideMessagePayload": {}"#,
        ] {
            assert_eq!(of(nothing).as_deref(), Some("ku"), "{nothing}");
        }
        for something in
            [r#", "message": "a""#, r#", "message": "", "overrideMessagePayload": {"body": "x"}"#]
        {
            assert_eq!(of(something).as_deref(), Some("su"), "{something}");
        }
    }
}
