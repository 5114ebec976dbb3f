//! Tests a whole conversation of a user of XO over both ServiceNow APIs: the bot, the handoff, an agent, the end, the
//! bot again.

use causeway::sandbox::botkit::{BotScript, BotUser};
use causeway::sandbox::{BotKitSwitches, BotSettings};

use crate::botkit::{chat, cleared, heard, quiet, relay_of, user};
use crate::harness::matrix::Engine;
use crate::harness::relay::Relay;

async fn agent_reads(relay: &Relay, group: &str, text: &str) {
    relay
        .until(&format!("the agent to read {text:?}"), |relay| {
            let said = relay.said(group);
            if said.iter().any(|said| said.contains(text)) { Ok(()) } else { Err(format!("{said:?}")) }
        })
        .await;
}

/// Checks that no message is read twice, no call is made twice, and XO waits for no call.
fn nothing_is_left_over(relay: &Relay, user: &BotUser) {
    assert_eq!(relay.sandbox.waiting_events().len(), 0, "{:?}", relay.sandbox.waiting_events());
    assert_eq!(user.repeated_calls(), []);
    let read = user.heard_texts();
    let twice = read.iter().enumerate().find(|(at, text)| read[..*at].contains(text));
    assert_eq!(twice, None, "{read:?}");
}

async fn a_whole_conversation(api: &str) {
    let bench = Engine::Embedded.bench().expect("it is always there");
    let bot = BotSettings { script: BotScript::help_desk(), ..BotSettings::default() };
    let relay = relay_of(&bench, vec![bot], &[("servicenow.api", api)]).await;
    // Only OnAgentTransferNode is subscribed, so XO talks to its bot without the BotKit server
    // (`src/platform/xo/FACTS.md`).
    relay.sandbox.set_botkit(BotKitSwitches { on_message: false, ..BotKitSwitches::default() });
    let user = user(&relay, "u-1");
    user.says("My laptop is on fire").await;
    heard(&relay, &user, "You said: My laptop is on fire").await;
    user.says("Get me an agent").await;
    heard(&relay, &user, "I will get an agent for you.").await;
    let group = chat(&relay).await;
    // The agent writes after Causeway has recorded the chat.
    heard(&relay, &user, "Please wait").await;
    assert!(user.is_with_agent());
    relay.sandbox.agent_accept(&group).await.expect("the chat waits");
    heard(&relay, &user, "An agent has joined").await;
    for (asks, answers) in [("Is it hot?", "Please pour water on it"), ("And now?", "Now it is wet")] {
        assert_eq!(user.says(asks).await.status, 200);
        agent_reads(&relay, &group, asks).await;
        relay.sandbox.agent_says(&group, answers).await.expect("the chat is open");
        heard(&relay, &user, answers).await;
    }
    let bot_read = user.bot_read();
    assert_eq!(bot_read, ["My laptop is on fire", "Get me an agent"], "the agent's user is not the bot's");
    relay.sandbox.agent_closes(&group).await.expect("the chat is open");
    cleared(&relay, &user).await;
    quiet(&relay).await;
    assert!(!user.is_with_agent());
    user.says("Thank you").await;
    heard(&relay, &user, "You said: Thank you").await;
    assert_eq!((user.sessions(), user.clears()), (1, 1));
    assert_eq!(relay.dead_letters().await.len(), 0);
    nothing_is_left_over(&relay, &user);
    // The bot's last message before the transfer comes before the agent's first message.
    let read = user.heard_texts();
    let at = |text: &str| read.iter().position(|read| read.contains(text)).expect("it was read");
    assert!(at("I will get an agent") < at("Please wait") && at("Please wait") < at("water"), "{read:?}");
    assert!(at("Now it is wet") < at("has ended") && at("has ended") < at("You said: Thank you"), "{read:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_goes_from_the_bot_to_an_agent_and_back_over_connect_support() {
    a_whole_conversation("connect_support").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_goes_from_the_bot_to_an_agent_and_back_over_the_virtual_agent_api() {
    a_whole_conversation("virtual_agent").await;
}
