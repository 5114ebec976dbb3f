//! Tests that conversations work for every possible value of a fact that is unknown about the platforms. Each fact is a
//! switch of the sandbox. Further facts are tested elsewhere: the Virtual Agent API in `virtual_agent`, the escalation
//! in `gaps`, the tokens in `oauth`, the reply handle and the context in `botkit`.

use causeway::sandbox::botkit::BotUser;
use causeway::sandbox::{
    BodyStyle, BotKitSwitches, BotSettings, CallbackCredential, CallbackSettings, ConnectSwitches, FaultRule,
    LastMessage, Operation, SandboxSwitches, Side,
};
use serde_json::Value;

use crate::harness::matrix::{Bench, Engine};
use crate::harness::relay::{Plan, Relay};

async fn relay(bench: &Bench, style: BodyStyle, connect: ConnectSwitches) -> Relay {
    relay_with(bench, style, connect, &[]).await
}

async fn relay_with(
    bench: &Bench,
    style: BodyStyle,
    connect: ConnectSwitches,
    settings: &[(&str, &str)],
) -> Relay {
    let bot = BotSettings::default();
    let plan = Plan::on(bench)
        .set("xo.bot_id", bot.bot_id)
        .set("xo.app_id", bot.app_id)
        .set("xo.client_secret", bot.client_secret)
        .set("servicenow.poll_waiting", "200ms")
        .set("servicenow.poll_active", "200ms")
        .set("delivery.retry.max", "1s")
        .set("delivery.servicenow.timeout", "2s");
    let plan = settings.iter().fold(plan, |plan, (key, value)| plan.set(key, *value));
    let plan =
        plan.sandbox(|sandbox| sandbox.switches = SandboxSwitches { connect, ..SandboxSwitches::default() });
    let relay = plan.start().await;
    let url = format!("{}/v1/callbacks/servicenow?token=callback-token", relay.processes[0].public_url());
    relay.sandbox.set_callback(Some(CallbackSettings { style, ..CallbackSettings::to(url) }));
    relay
}

fn bench() -> Bench {
    Engine::Embedded.bench().expect("it is always there")
}

fn told(relay: &Relay, kind: &str) -> Vec<Value> {
    let entries = relay.sandbox.ledger().events().remove("c-1").unwrap_or_default();
    let events = entries.iter().map(|entry| serde_json::from_str::<Value>(&entry.body).unwrap());
    events.filter(|event| event["type"] == kind).collect()
}

async fn hears(relay: &Relay, kind: &str, count: usize) -> Vec<Value> {
    relay
        .until(&format!("{kind} {count} times"), |relay| {
            let told = told(relay, kind);
            if told.len() >= count { Ok(()) } else { Err(format!("{told:?}")) }
        })
        .await;
    told(relay, kind)
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_support_may_show_little_and_say_it_twice() {
    for (style, last_message) in [
        (BodyStyle::Stringify, LastMessage::Empty),
        (BodyStyle::StockScript, LastMessage::SysId),
        (BodyStyle::OwnRule, LastMessage::Undefined),
    ] {
        let defaults = ConnectSwitches::default();
        let connect = ConnectSwitches { sparse_entries: true, last_message, twice: true, ..defaults };
        let bench = bench();
        let relay = relay(&bench, style, connect).await;
        // The answer is lost. The chat is found again by its first message, because its entry shows no text.
        let start = FaultRule::new(Side::ServiceNow).operation(Operation::Start);
        relay.sandbox.script().fail(start.times(1).after().cut());
        let group = relay.open("c-1").await;
        assert_eq!(relay.sandbox.groups().len(), 1);
        relay.sandbox.agent_accept(&group).await.unwrap();
        relay.reaches("c-1", "active").await;
        hears(&relay, "callback.message", 1).await;
        for text in ["one", "two"] {
            relay.sandbox.agent_says(&group, text).await.unwrap();
        }
        hears(&relay, "callback.message", 3).await;
        relay.sandbox.agent_closes(&group).await.unwrap();
        assert_eq!(hears(&relay, "callback.ended", 1).await.len(), 1);
        relay.metric_is("causeway_queue_messages", &[], |waiting| waiting == 0.0).await;
        let from_agent = |event: &&Value| event["from"] == "agent";
        let texts = told(&relay, "callback.message");
        let texts: Vec<_> = texts.iter().filter(from_agent).map(|event| event["message"].clone()).collect();
        assert_eq!(texts[1..], ["one", "two"], "{style:?}: {texts:?}");
        assert_eq!(told(&relay, "callback.ended").len(), 1);
        assert_eq!(relay.dead_letters().await.len(), 0);
    }
}

/// Whether RESTMessageV2 changes the body of a script is not known; it may do so after the body was signed.
#[tokio::test(flavor = "multi_thread")]
async fn servicenow_may_substitute_variables_in_a_signed_body() {
    for substitutes_variables in [true, false] {
        let bench = bench();
        let connect = ConnectSwitches { substitutes_variables, ..ConnectSwitches::default() };
        let settings = [("ingress.servicenow.hmac_secret", "signing secret")];
        let relay = relay_with(&bench, BodyStyle::OwnRule, connect, &settings).await;
        let mut callback =
            CallbackSettings::to(format!("{}/v1/callbacks/servicenow", relay.processes[0].public_url()));
        callback.style = BodyStyle::OwnRule;
        callback.credential = CallbackCredential::Hmac { secret: "signing secret".to_owned() };
        relay.sandbox.set_callback(Some(callback));
        let group = relay.open("c-1").await;
        relay.sandbox.agent_accept(&group).await.unwrap();
        relay.reaches("c-1", "active").await;
        let words = ["set ${HOME} first", "${a} costs $5 {really}, \u{1f44d} \"ok\" ${", "over"];
        for text in words {
            relay.sandbox.agent_says(&group, text).await.unwrap();
        }
        let is_from_agent = |event: &Value| event["from"] == "agent";
        relay
            .until("every text", |relay| {
                let told = told(relay, "callback.message").into_iter().filter(is_from_agent);
                let texts: Vec<Value> = told.map(|event| event["message"].clone()).collect();
                if texts.ends_with(&words.map(Value::from)) { Ok(()) } else { Err(format!("{texts:?}")) }
            })
            .await;
        // Reading the chat back would bring a refused message, too.
        let callbacks = relay.sandbox.ledger().find(|entry| entry.operation == Operation::Callback);
        let refused = callbacks.iter().find(|entry| entry.outbound && entry.status != Some(202));
        assert!(callbacks.len() >= words.len() && refused.is_none(), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servicenow_may_end_a_silent_chat_by_itself() {
    let bench = bench();
    let relay = relay(&bench, BodyStyle::Stringify, ConnectSwitches::default()).await;
    let group = relay.open("c-1").await;
    relay.sandbox.agent_accept(&group).await.unwrap();
    relay.reaches("c-1", "active").await;
    let connect = ConnectSwitches { idle_end_ms: 1, ..ConnectSwitches::default() };
    relay.sandbox.set_switches(SandboxSwitches { connect, ..SandboxSwitches::default() });
    assert_eq!(hears(&relay, "callback.ended", 1).await.len(), 1);
    relay.reaches("c-1", "ended").await;
    relay.say("c-1", "anybody there?").await;
    assert_eq!(relay.dead_letters_at_least(1).await[0]["reason"], "conversation_over");
    assert_eq!(told(&relay, "callback.ended").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn xo_may_post_everything_twice_and_answer_nothing() {
    let bench = bench();
    let relay = relay(&bench, BodyStyle::Stringify, ConnectSwitches::default()).await;
    let defaults = BotKitSwitches::default();
    let switches = BotKitSwitches { posts_twice: true, answers_json: false, stale_context: true, ..defaults };
    relay.sandbox.set_botkit(switches);
    let user = relay.sandbox.bot_user(&relay.processes[0].public_url(), "u-1");
    assert_eq!(user.transfers("My laptop is on fire").await.status, 200);
    let hears = async |user: &BotUser, text: &str| {
        relay
            .until(&format!("the user to hear {text:?}"), |_| {
                let heard = user.heard_texts();
                if heard.iter().any(|said| said.contains(text)) { Ok(()) } else { Err(format!("{heard:?}")) }
            })
            .await;
    };
    hears(&user, "Please wait").await;
    let group = relay.sandbox.groups().remove(0);
    relay.sandbox.agent_accept(&group).await.unwrap();
    hears(&user, "An agent has joined the chat.").await;
    // Only the request distinguishes the second "yes" from the first.
    for text in ["one", "yes", "yes"] {
        assert_eq!(user.says(text).await.status, 200);
    }
    relay
        .until("every word", |relay| match relay.said(&group).len() {
            4 => Ok(()),
            some => Err(format!("{some}: {:?}", relay.said(&group))),
        })
        .await;
    // An expired handle may be a 410 as well as a 404.
    relay.sandbox.set_botkit(BotKitSwitches { lapsed_status: 410, ..switches });
    user.handles_lapse();
    relay.sandbox.agent_says(&group, "waits for you").await.unwrap();
    relay
        .until("XO to say that the handle is gone", |relay| {
            match relay.sandbox.ledger().count(|entry| entry.status == Some(410)) {
                0 => Err("not yet".to_owned()),
                _ => Ok(()),
            }
        })
        .await;
    assert_eq!(user.says("three").await.status, 200);
    hears(&user, "waits for you").await;
    // A refusal without JSON is also a refusal.
    relay.sandbox.set_botkit(BotKitSwitches { text_chars_max: 10, ..switches });
    relay.sandbox.agent_says(&group, "much too long for this channel").await.unwrap();
    assert_eq!(relay.dead_letters_at_least(1).await[0]["reason"], "rejected");
    relay.sandbox.set_botkit(switches);
    assert_eq!(user.says("quit").await.status, 200);
    relay
        .until("the chat to be left", |relay| match relay.sandbox.state(&group) {
            Some(7) => Ok(()),
            state => Err(format!("{state:?}")),
        })
        .await;
    // The gauge may show an earlier value.
    relay
        .until("the bot to have its user back", |_| {
            if user.clears() > 0 { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
    relay.metric_is("causeway_queue_messages", &[], |waiting| waiting == 0.0).await;
    assert_eq!((relay.sandbox.groups().len(), user.clears()), (1, 1));
    assert_eq!(relay.said(&group)[1..], ["one", "yes", "yes", "three"]);
}
