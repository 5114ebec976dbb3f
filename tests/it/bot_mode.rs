//! Tests bot mode with the real binary. XO continues a turn only after the call that it waits for
//! (`src/platform/xo/FACTS.md`), so a bot that answers has received every message.

use std::time::Duration;

use causeway::sandbox::botkit::{BotScript, BotUser};
use causeway::sandbox::{BotSettings, FaultRule, Operation, Side};
use serde_json::{Value, json};

use crate::botkit::{JOINED, QUIT_STATE, WAITING, chat, heard, left, quiet, relay_of, user};
use crate::harness::matrix::{Bench, Engine};
use crate::harness::relay::Relay;

/// A relay whose bot is a small help desk. The bot repeats what it does not understand.
async fn help_desk(bench: &Bench, settings: &[(&str, &str)]) -> Relay {
    let bot = BotSettings { script: BotScript::help_desk(), ..BotSettings::default() };
    relay_of(bench, vec![bot], settings).await
}

fn users(relay: &Relay, count: usize) -> Vec<BotUser> {
    let door = relay.processes[0].public_url();
    (0..count).map(|n| relay.sandbox.bot_user(&door, &format!("u-{n}"))).collect()
}

async fn reads(relay: &Relay, user: &BotUser, texts: &[&str]) {
    relay
        .until(&format!("the user to read {texts:?}"), |relay| {
            let read = user.heard_texts();
            if read == texts {
                Ok(())
            } else {
                Err(format!("{read:?}\n{}", relay.processes[0].running.stderr()))
            }
        })
        .await;
}

fn calls(relay: &Relay, operation: Operation) -> usize {
    relay.sandbox.ledger().count(|entry| entry.side == Side::BotKit && entry.operation == operation)
}

/// Each user writes, waits for the answer, and writes again.
async fn turns(relay: &Relay, users: &[BotUser], turns: usize) {
    let talk = |user: &BotUser| {
        let user = user.clone();
        async move {
            for turn in 0..turns {
                let answer = user.says(&format!("turn {turn}")).await;
                assert_eq!((answer.status, &answer.body["ackMessage"]), (200, &json!(true)));
                let answered = user.wait_for(|user| user.heard().len() > turn, Duration::from_secs(60)).await;
                assert!(answered, "{} stands still after turn {turn}: {:?}", user.id(), user.waiting());
            }
        }
    };
    futures_util::future::join_all(users.iter().map(talk)).await;
    for user in users {
        let said: Vec<String> = (0..turns).map(|turn| format!("turn {turn}")).collect();
        let read: Vec<String> = said.iter().map(|words| format!("You said: {words}")).collect();
        assert_eq!((user.bot_read(), user.heard_texts()), (said, read), "{}", user.id());
        assert!(user.repeated_calls().is_empty(), "{:?}", user.repeated_calls());
    }
    quiet(relay).await;
    assert_eq!(relay.dead_letters().await, Vec::<Value>::new());
}

on_every_engine! {
    async fn every_turn_is_passed_on_once_and_in_order(bench: Bench) {
        let relay = help_desk(&bench, &[]).await;
        turns(&relay, &users(&relay, 20), 8).await;
        assert_eq!(relay.sandbox.groups().len(), 0, "nobody asked for an agent");
    }

    async fn the_last_words_of_the_bot_come_before_the_agents_first(bench: Bench) {
        let relay = help_desk(&bench, &[]).await;
        let user = user(&relay, "u-1");
        // The bot's message before the handover is delayed.
        let late = FaultRule::new(Side::BotKit).operation(Operation::Tell).times(2).status(503);
        relay.sandbox.script().fail(late);
        assert_eq!(user.says("I want an agent").await.status, 200);
        let group = chat(&relay).await;
        heard(&relay, &user, WAITING).await;
        relay.sandbox.agent_accept(&group).await.unwrap();
        relay.sandbox.agent_says(&group, "I am Grace").await.unwrap();
        heard(&relay, &user, "I am Grace").await;
        let texts = user.heard_texts();
        let place = |text: &str| texts.iter().position(|said| said.contains(text));
        assert_eq!(place("I will get an agent"), Some(0), "{texts:?}");
        assert!(place("An agent has joined") < place("I am Grace"), "{texts:?}");
        // After this point the bot receives no message.
        user.says("hello agent").await;
        relay.until("the agent to read it", |relay| match relay.said(&group).last().map(String::as_str) {
            Some("hello agent") => Ok(()),
            said => Err(format!("{said:?}")),
        }).await;
        assert_eq!(user.bot_read(), ["I want an agent"]);
    }

    async fn a_user_that_xo_took_back_reaches_the_bot(bench: Bench) {
        let relay = help_desk(&bench, &[]).await;
        let user = user(&relay, "u-1");
        user.says("agent").await;
        let group = chat(&relay).await;
        heard(&relay, &user, WAITING).await;
        relay.sandbox.agent_accept(&group).await.unwrap();
        heard(&relay, &user, JOINED).await;
        user.session_expires();
        user.says("password").await;
        relay.until("ServiceNow to hear that the user is gone", |relay| match relay.sandbox.state(&group) {
            Some(QUIT_STATE) => Ok(()),
            state => Err(format!("{state:?}")),
        }).await;
        heard(&relay, &user, "Press Forgot password.").await;
        quiet(&relay).await;
        assert_eq!((left(&relay), user.bot_read()), (1, vec!["agent".to_owned(), "password".to_owned()]));
    }

    async fn xo_goes_on_without_what_cannot_be_passed_on(bench: Bench) {
        let relay = help_desk(&bench, &[]).await;
        let user = user(&relay, "u-1");
        relay.sandbox.script().fail(FaultRule::new(Side::BotKit).operation(Operation::BotMessage).times(1).status(400));
        user.says("this one is refused").await;
        let dead = relay.dead_letters_at_least(1).await;
        assert_eq!((&dead[0]["kind"], &dead[0]["reason"]), (&json!("bot.user_message"), &json!("rejected")));
        assert!(dead[0]["conversation_id"].as_str().is_some_and(|id| id.contains("u-1")), "{}", dead[0]);
        assert_eq!(calls(&relay, Operation::Skip), 1);
        user.says("and this one is not").await;
        reads(&relay, &user, &["You said: and this one is not"]).await;
    }

    async fn a_repeat_of_xo_is_passed_on_once(bench: Bench) {
        let relay = help_desk(&bench, &[]).await;
        let user = user(&relay, "u-1");
        for _ in 0..2 {
            user.says("yes").await;
            user.repeats().await;
        }
        reads(&relay, &user, &["You said: yes", "You said: yes"]).await;
        quiet(&relay).await;
        assert_eq!((calls(&relay, Operation::BotMessage), user.bot_read().len()), (2, 2));
    }
}

/// Events of a bot other than plain texts, and events that are not messages.
#[tokio::test(flavor = "multi_thread")]
async fn every_event_of_a_bot_goes_on() {
    let bench = Engine::Embedded.bench().expect("it is always there");
    let relay = help_desk(&bench, &[]).await;
    let user = user(&relay, "u-1");
    user.says("menu").await;
    heard(&relay, &user, "What is it about?").await;
    user.says("hm").await;
    relay
        .until("the empty message to be skipped", |relay| match calls(relay, Operation::Skip) {
            1 => Ok(()),
            some => Err(format!("{some}")),
        })
        .await;
    user.alert("It is time.").await;
    heard(&relay, &user, "It is time.").await;
    user.types().await;
    relay
        .until("the client's event", |_| match user.client_events().len() {
            1 => Ok(()),
            some => Err(format!("{some}")),
        })
        .await;
    let answer = user.webhook("look it up").await;
    assert_eq!((answer.status, &answer.body["message"]), (200, &json!("look it up")));
    quiet(&relay).await;
    assert!(user.waiting().is_empty(), "{:?}", user.waiting());
    assert_eq!(relay.dead_letters().await, Vec::<Value>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn bot_messages_in_agent_mode_are_dropped_if_the_setting_says_so() {
    let bench = Engine::Embedded.bench().expect("it is always there");
    let relay = help_desk(&bench, &[("xo.bot_messages_in_agent_mode", "drop")]).await;
    let user = user(&relay, "u-1");
    user.says("agent").await;
    chat(&relay).await;
    heard(&relay, &user, WAITING).await;
    let before = user.heard().len();
    let mut event = user.flat("from the bot");
    event["agent_transfer"] = json!(true);
    assert_eq!(user.post("on_bot_message", &event).await.status, 200);
    relay
        .until("XO to be told to go on", |relay| match calls(relay, Operation::Skip) {
            1 => Ok(()),
            some => Err(format!("{some}")),
        })
        .await;
    quiet(&relay).await;
    assert_eq!(user.heard().len(), before);
}

/// An event that cannot be passed on is refused with its reason, and no foreign host is called.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_cannot_be_passed_on_is_refused() {
    let bench = Engine::Embedded.bench().expect("it is always there");
    let relay = help_desk(&bench, &[]).await;
    let user = user(&relay, "u-1");
    let code = |body: &Value| body["errors"][0]["code"].clone();
    let trap = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    for field in ["sendBotMessageUrl", "sendUserMessageUrl", "skipBotMessageUrl", "baseUrl"] {
        let mut event = user.flat("hello");
        event[field] = json!(format!("http://{}/xo/api/botsdk/stream/x", trap.local_addr().unwrap()));
        let answer = user.post("on_user_message", &event).await;
        assert_eq!((answer.status, code(&answer.body)), (400, json!("INVALID_ARGUMENTS")), "{field}");
        assert!(answer.body["errors"][0]["msg"].as_str().is_some_and(|msg| msg.contains(field)));
    }
    let mut event = user.flat("hello");
    for field in ["sendBotMessageUrl", "sendUserMessageUrl", "baseUrl"] {
        event.as_object_mut().unwrap().remove(field);
    }
    let answer = user.post("on_user_message", &event).await;
    assert_eq!((answer.status, code(&answer.body)), (400, json!("INSUFFICIENT_ARGUMENTS")));
    // A large context is passed on unchanged.
    let mut event = user.flat("with a large context");
    event["context"]["entities"] = json!({"big": vec![[1]; 250_000]});
    assert_eq!(user.post("on_user_message", &event).await.status, 200);
    heard(&relay, &user, "with a large context").await;
    quiet(&relay).await;
    assert!(tokio::time::timeout(Duration::from_millis(1), trap.accept()).await.is_err(), "it was called");
    assert_eq!(relay.dead_letters().await, Vec::<Value>::new());
}
