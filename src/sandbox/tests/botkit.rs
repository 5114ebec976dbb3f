//! The simulated XO, driven over real HTTP by a BotKit server that only acknowledges: which turns continue and which
//! are blocked. Facts come from the vendor's BotKit pages and from public BotKit servers; everything else is a
//! switch.

use serde_json::json;

use super::botkit_server::Scene;
use super::*;
use crate::sandbox::BotKitSwitches;
use crate::sandbox::botkit::{
    AfterWait, AgentFlags, BotScript, ChannelKind, ChannelShape, SkippedTurn, UserFile,
};

#[tokio::test]
async fn the_answer_202_alone_leaves_the_bot_silent() {
    let scene = Scene::help_desk().await;
    let answer = scene.user.says("hello").await;
    assert_eq!((answer.status, answer.supports_ack), (200, true));
    assert_eq!(scene.waiting(), ["on_user_message"]);
    assert_eq!((scene.user.bot_read(), scene.user.heard_texts()), (vec![], vec![]));
    assert_eq!(scene.server.names(), ["on_user_message"]);

    assert_eq!(scene.passes_on("on_user_message", 1).await, 200);
    assert_eq!(scene.user.bot_read(), ["hello"]);
    // The bot has answered, but the user has read no answer yet.
    scene.until(|user| user.waiting().iter().any(|event| event.event == "on_bot_message")).await;
    assert_eq!(scene.user.heard_texts(), [] as [&str; 0]);
    assert_eq!(scene.passes_on("on_bot_message", 1).await, 200);
    assert_eq!(scene.user.heard_texts(), ["You said: hello"]);
    assert_eq!(scene.waiting(), [] as [&str; 0]);
    let events = scene.user.events();
    assert_eq!(events[0].ended_by.as_deref(), Some("sendBotMessage"));
    assert_eq!(events[1].ended_by.as_deref(), Some("sendUserMessage"));
}

#[tokio::test]
async fn each_message_of_an_answer_waits_for_the_one_before() {
    let scene = Scene::help_desk().await;
    scene.user.says("password").await;
    scene.passes_on("on_user_message", 1).await;
    scene.passes_on("on_bot_message", 1).await;
    scene.passes_on("on_bot_message", 2).await;
    assert_eq!(scene.user.heard_texts(), ["Open the portal.", "Press Forgot password."]);
    // With a switch, XO posts both messages at once.
    scene.switch(BotKitSwitches { bot_messages_at_once: true, ..BotKitSwitches::default() });
    scene.user.says("password").await;
    scene.passes_on("on_user_message", 2).await;
    scene.until(|user| user.waiting().len() == 2).await;
}

#[tokio::test]
async fn a_skip_lets_the_turn_go_on_without_the_words() {
    let scene = Scene::help_desk().await;
    scene.user.says("lost").await;
    assert_eq!(scene.call(&scene.server.last("on_user_message"), "skipBotMessage").await, 200);
    assert_eq!((scene.waiting(), scene.user.bot_read()), (vec![], vec![]));
    scene.user.bot_says("unasked").await;
    assert_eq!(scene.call(&scene.server.last("on_bot_message"), "skipUserMessage").await, 200);
    assert_eq!((scene.waiting(), scene.user.heard_texts()), (vec![], vec![]));
    scene.switch(BotKitSwitches { skipped: SkippedTurn::PassedOn, ..BotKitSwitches::default() });
    scene.user.bot_says("told by XO").await;
    scene.call(&scene.server.last("on_bot_message"), "skipUserMessage").await;
    assert_eq!(scene.user.heard_texts(), ["told by XO"]);
    // The BotKit server may answer the user itself. The bot then does not read the text.
    scene.user.says("anybody?").await;
    let mut event = scene.server.last("on_user_message");
    event["message"] = json!("It is me");
    scene.call(&event, "sendUserMessage").await;
    assert_eq!((scene.waiting(), scene.user.bot_read()), (vec![], vec![]));
    assert_eq!(scene.user.heard_texts(), ["told by XO", "It is me"]);
}

#[tokio::test]
async fn the_result_of_a_timeout_is_a_switch() {
    let silent = BotKitSwitches { turn_wait_ms: 20, ..BotKitSwitches::default() };
    let scene = Scene::new(BotScript::help_desk(), silent).await;
    scene.user.says("lost").await;
    scene.until(|user| user.events()[0].ended_by.as_deref() == Some("timeout")).await;
    assert_eq!(scene.user.bot_read(), [] as [&str; 0]);
    scene.switch(BotKitSwitches { after_wait: AfterWait::GoesOn, ..silent });
    scene.user.says("found").await;
    scene.until(|user| user.heard_texts() == ["You said: found"]).await;
    // With a switch, an acknowledgement is enough.
    scene.switch(BotKitSwitches { ack_is_enough: true, ..BotKitSwitches::default() });
    scene.user.says("acknowledged").await;
    scene.until(|user| user.heard_texts().len() == 2).await;
    assert_eq!(scene.user.events().last().and_then(|event| event.ended_by.clone()).as_deref(), Some("ack"));
    // XO repeats a refused event as often as the switch says.
    scene.server.answers(503);
    let switches = BotKitSwitches { event_repeats: 2, event_repeat_ms: 1, ..BotKitSwitches::default() };
    scene.switch(BotKitSwitches { after_refusal: AfterWait::GoesOn, ..switches });
    scene.user.says("refused").await;
    scene.until(|user| user.bot_read().last().is_some_and(|words| words == "refused")).await;
    let refused = scene.user.events().into_iter().find(|event| event.text.as_deref() == Some("refused"));
    assert_eq!(refused.unwrap().answers, [503, 503, 503]);
}

#[tokio::test]
async fn without_the_subscription_the_bot_answers_by_itself() {
    let off = BotKitSwitches { on_message: false, ..BotKitSwitches::default() };
    let scene = Scene::new(BotScript::help_desk(), off).await;
    assert_eq!(scene.user.says("hello").await.status, 0);
    assert_eq!(scene.user.heard_texts(), ["You said: hello"]);
    scene.user.says("an agent, please").await;
    scene.until(|user| user.is_with_agent()).await;
    scene.until(|user| user.events().iter().any(|event| event.answers == [200])).await;
    assert_eq!(scene.user.says("hello agent").await.status, 200);
    assert_eq!(scene.server.names(), ["on_agent_transfer", "on_user_message"]);
    scene.switch(BotKitSwitches { agent_mode_without_subscription: false, ..off });
    assert_eq!(scene.user.says("hello?").await.status, 0);
}

#[tokio::test]
async fn the_bot_hands_over_after_its_last_words_were_read() {
    let scene = Scene::help_desk().await;
    scene.user.says("an agent, please").await;
    scene.passes_on("on_user_message", 1).await;
    scene.until(|user| user.events().len() == 2).await;
    assert!(!scene.user.is_with_agent());
    scene.passes_on("on_bot_message", 1).await;
    scene.until(|user| user.events().iter().any(|event| event.event == "on_agent_transfer")).await;
    scene.until(|user| user.events().iter().all(|event| event.answers.len() == 1)).await;
    let transfer = scene.server.last("on_agent_transfer");
    assert_eq!(transfer["channel"]["channelInfos"]["message"], "an agent, please");
    assert!(transfer.get("message").is_none() && transfer.get("agent_transfer").is_none());
    // The messages now go to the agent, and XO waits for no call.
    scene.call(&transfer, "startAgentSession").await;
    scene.user.says("hello agent").await;
    let event = scene.server.last("on_user_message");
    assert_eq!((&event["agent_transfer"], &event["agent_session"]), (&json!(true), &json!(true)));
    assert_eq!((scene.waiting(), scene.user.bot_read().len()), (vec![], 1));
    scene.switch(BotKitSwitches { agent_flags: AgentFlags::SessionOnly, ..BotKitSwitches::default() });
    scene.user.says("still here").await;
    let event = scene.server.last("on_user_message");
    assert_eq!((&event["agent_transfer"], &event["agent_session"]), (&json!(false), &json!(true)));
    scene.call(&transfer, "clearAgentSession").await;
    assert!(!scene.user.is_with_agent());
    assert_eq!((scene.user.sessions(), scene.user.clears()), (1, 1));
    scene.user.says("hello bot").await;
    assert_eq!(scene.waiting(), ["on_user_message"]);
}

#[tokio::test]
async fn a_session_ends_in_the_widget_by_inactivity_and_by_the_flag() {
    let scene = Scene::help_desk().await;
    scene.user.transfers("help").await;
    scene.call(&scene.server.last("on_agent_transfer"), "startAgentSession").await;
    let session = scene.user.session_id();
    assert_eq!(scene.user.ends_in_widget().await.status, 200);
    let event = scene.server.last("on_event");
    assert_eq!(event["event"]["eventType"], "sessionClosure");
    assert_eq!(event["agent_transfer"], true);
    assert!(!scene.user.is_with_agent());
    assert_ne!(scene.user.session_id(), session);

    scene.switch(BotKitSwitches { session_idle_ms: 1, ..BotKitSwitches::default() });
    scene.user.transfers("help").await;
    let session = scene.user.session_id();
    let since = std::time::Instant::now();
    while since.elapsed() <= Duration::from_millis(2) {
        tokio::task::yield_now().await;
    }
    scene.user.says("am I still with the agent?").await;
    let event = scene.server.last("on_user_message");
    assert_eq!(event["agent_transfer"], false);
    assert_ne!(event["context"]["session"]["BotUserSession"]["conversationSessionId"], json!(session));
    scene.user.set_with_agent(true);
    scene.user.set_with_agent(false);
    assert!(!scene.user.is_with_agent());
}

#[tokio::test]
async fn words_that_are_missing_stall_the_dialog() {
    let scene = Scene::help_desk().await;
    let file = UserFile::new("crack.png", "image/png", vec![1, 2, 3]);
    scene.user.sends_file(&file, None).await;
    let event = scene.server.last("on_user_message");
    assert!(event.get("message").is_none());
    scene.call(&event, "sendBotMessage").await;
    scene.user.says("hello?").await;
    scene.passes_on("on_user_message", 2).await;
    assert_eq!((scene.user.bot_read(), scene.user.events().len()), (vec!["hello?".to_owned()], 2));
    scene.user.says("again").await;
    scene.passes_on("on_user_message", 3).await;
    scene.until(|user| user.events().len() == 4).await;
    // A loaded page has no text either: the bot welcomes its user.
    let scene = Scene::help_desk().await;
    scene.user.connects().await;
    assert_eq!(scene.server.last("on_user_message")["channel"]["botEvent"], "ON_CONNECT_EVENT");
    scene.passes_on("on_user_message", 1).await;
    scene.passes_on("on_bot_message", 1).await;
    assert_eq!(scene.user.heard_texts(), ["Hello, I am the help desk bot."]);
    scene.switch(BotKitSwitches { connect_waits: false, ..BotKitSwitches::default() });
    scene.user.connects().await;
    assert_eq!(scene.waiting(), [] as [&str; 0]);
}

#[tokio::test]
async fn a_channel_is_nested_flat_or_bare_and_names_its_user() {
    let large = BotKitSwitches { context_bytes: 1 << 20, ..BotKitSwitches::default() };
    let scene = Scene::new(BotScript::default(), large).await;
    let name = "/context/session/UserContext";
    for (kind, who) in [
        (ChannelKind::Web, "emailId"),
        (ChannelKind::Teams, "identities/0/profileInfo/email"),
        (ChannelKind::WhatsApp, "identities/0/val"),
    ] {
        for shape in [ChannelShape::Nested, ChannelShape::Flat, ChannelShape::Bare] {
            let user = scene.user.clone().on_channel(kind).with_shape(shape);
            assert_eq!(user.says("hi").await.status, 200);
            let event = scene.server.last("on_user_message");
            let at = |path: &str| event.pointer(path).and_then(Value::as_str);
            let from = at("/channel/from").or_else(|| at("/channel/channelInfos/from"));
            assert_eq!(from, (shape != ChannelShape::Bare).then_some("u-1"));
            assert!(at(&format!("{name}/{who}")).is_some(), "{kind:?}");
            assert_eq!(at(&format!("{name}/_id")), Some("u-1"));
            assert_eq!(event["channel"].get("channelInfos").is_some(), shape == ChannelShape::Nested);
            assert_eq!(
                user.waiting().iter().filter(|event| event.text.as_deref() == Some("hi")).count(),
                user.events().len()
            );
        }
    }
    let patch = json!({ "session": { "UserContext": { "emailId": null, "customData": { "user_display_name": "Hedy" } } } });
    scene.user.clone().with_context(patch).says("it is me").await;
    let event = scene.server.last("on_user_message");
    assert_eq!(event.pointer(&format!("{name}/customData/user_display_name")), Some(&json!("Hedy")));
    assert_eq!(event.pointer(&format!("{name}/emailId")), None);
}
