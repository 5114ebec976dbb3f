//! Tests how XO's users enter agent mode and return to the bot: every event that XO may post, and calls that fail.

use causeway::sandbox::{FaultRule, Operation, Side};
use serde_json::json;

use crate::botkit::{JOINED, QUIT_STATE, WAITING, chat, cleared, heard, left, quiet, relay, talking, user};
use crate::harness::matrix::Engine;
use crate::harness::relay::{PATIENCE, Relay};

async fn left_by_its_user(relay: &Relay, group: &str) {
    relay
        .until("ServiceNow to hear that the user is gone", |relay| match relay.sandbox.state(group) {
            Some(QUIT_STATE) => Ok(()),
            state => Err(format!("{state:?}")),
        })
        .await;
}

on_every_engine! {
    // A user's "end chat" in the web widget becomes `sessionClosure` (`src/platform/xo/FACTS.md`, row on_event). It is
    // unknown whether the event says anything about agent mode, so here the event does not.
    async fn end_chat_in_the_web_widget_ends_the_chat(bench: Bench) {
        let relay = relay(&bench, &[]).await;
        let user = user(&relay, "u-1");
        let group = talking(&relay, &user).await;
        heard(&relay, &user, "Thank you for contacting support").await;
        let before = user.heard().len();
        let mut event = user.flat("");
        event["event"] = json!({"eventType": "sessionClosure"});
        for field in ["message", "agent_transfer"] {
            event.as_object_mut().unwrap().remove(field);
        }
        // The call may fail, because XO has closed the session itself.
        relay.sandbox.script().fail(FaultRule::new(Side::BotKit).operation(Operation::Clear).status(400));
        assert_eq!(user.post("on_event", &event).await.status, 200);
        left_by_its_user(&relay, &group).await;
        quiet(&relay).await;
        assert_eq!((left(&relay), user.heard().len()), (1, before), "who goes needs no last words");
        // XO may post the event twice, and also for users who never had an agent.
        assert_eq!(user.post("on_event", &event).await.status, 200);
        let other = relay.sandbox.bot_user(&relay.processes[0].public_url(), "u-2");
        let mut closure = other.flat("");
        closure["event"] = json!({"eventType": "sessionClosure"});
        assert_eq!(other.post("on_event", &closure).await.status, 200);
        quiet(&relay).await;
        assert_eq!((left(&relay), other.clears(), other.heard().len()), (1, 0, 0));
        assert_eq!(relay.dead_letters().await, Vec::<serde_json::Value>::new());
        relay.metric_is("causeway_conversations_ended_total", &[("reason", "session_closed")], |ended| ended == 1.0).await;
    }

    // `agent_session` is true after startAgentSession (`src/platform/xo/FACTS.md`). It is unknown whether
    // `agent_transfer` may be false then.
    async fn an_agent_session_alone_is_agent_mode(bench: Bench) {
        let relay = relay(&bench, &[]).await;
        let user = user(&relay, "u-1");
        let group = talking(&relay, &user).await;
        let mut event = user.flat("to the agent");
        (event["agent_transfer"], event["agent_session"]) = (json!(false), json!(true));
        assert_eq!(user.post("on_user_message", &event).await.status, 200);
        relay.until("the agent to read it", |relay| match relay.said(&group).last().map(String::as_str) {
            Some("to the agent") => Ok(()),
            _ => Err(format!("{:?}", relay.said(&group))),
        }).await;
        assert_eq!(left(&relay), 0);
    }

    // `message` is absent if a user sent only a file (`src/platform/xo/FACTS.md`, row files).
    async fn a_file_without_words_is_a_message(bench: Bench) {
        let relay = relay(&bench, &[]).await;
        let user = user(&relay, "u-1");
        let group = talking(&relay, &user).await;
        let mut event = user.flat("");
        event.as_object_mut().unwrap().remove("message");
        event["channel"]["attachments"] = json!([{"fileName": "crack.png", "fileUrl": "https://files.example/crack.png"}]);
        assert_eq!(user.post("on_user_message", &event).await.status, 200);
        relay.until("the agent to read of the file", |relay| match relay.said(&group).last() {
            Some(said) if said.contains("crack.png") => Ok(()),
            said => Err(format!("{said:?}")),
        }).await;
        // A reconnect of the widget is not a message (`src/platform/xo/FACTS.md`, row channel).
        let mut event = user.flat("");
        event.as_object_mut().unwrap().remove("message");
        event["channel"]["botEvent"] = json!("ON_CONNECT_EVENT");
        assert_eq!(user.post("on_user_message", &event).await.status, 200);
        quiet(&relay).await;
        assert_eq!(relay.said(&group).len(), 2);
    }

    // The state of the chat is polled long after the agent has written.
    async fn an_agent_joins_before_the_first_words(bench: Bench) {
        let settings = [("servicenow.poll_waiting", "30s"), ("servicenow.poll_active", "30s")];
        let relay = relay(&bench, &settings).await;
        let user = user(&relay, "u-1");
        assert_eq!(user.transfers("help").await.status, 200);
        let group = chat(&relay).await;
        heard(&relay, &user, WAITING).await;
        relay.sandbox.agent_accept(&group).await.unwrap();
        relay.sandbox.agent_says(&group, "I am Grace").await.unwrap();
        heard(&relay, &user, "I am Grace").await;
        let texts = user.heard_texts();
        let place = |text: &str| texts.iter().position(|said| said.contains(text));
        assert!(place(JOINED).is_some() && place(JOINED) < place("I am Grace"), "{texts:?}");
    }

    async fn a_failed_closing_text_does_not_keep_the_user_from_the_bot(bench: Bench) {
        let relay = relay(&bench, &[]).await;
        let user = user(&relay, "u-1");
        let group = talking(&relay, &user).await;
        heard(&relay, &user, "Thank you for contacting support").await;
        quiet(&relay).await;
        let before = user.heard().len();
        relay.sandbox.script().fail(FaultRule::new(Side::BotKit).operation(Operation::Tell).status(500));
        relay.sandbox.agent_closes(&group).await.unwrap();
        cleared(&relay, &user).await;
        quiet(&relay).await;
        assert_eq!((user.clears(), user.heard().len()), (1, before));
        assert_eq!(relay.dead_letters().await, Vec::<serde_json::Value>::new());
    }

    async fn an_end_that_dies_still_gives_its_user_back(bench: Bench) {
        let relay = relay(&bench, &[]).await;
        let user = user(&relay, "u-1");
        let group = talking(&relay, &user).await;
        // XO refuses the call once, so the end is dead-lettered. The same call is made once more before that.
        relay.sandbox.script().fail(FaultRule::new(Side::BotKit).operation(Operation::Clear).times(1).status(400));
        relay.sandbox.agent_closes(&group).await.unwrap();
        let dead = relay.dead_letters_at_least(1).await;
        assert_eq!((&dead[0]["kind"], &dead[0]["reason"]), (&json!("callback.ended"), &json!("rejected")));
        cleared(&relay, &user).await;
        assert_eq!(user.clears(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_of_an_end_gives_its_user_back() {
    let bench = Engine::Embedded.bench().expect("it is always there");
    let relay = relay(&bench, &[]).await;
    let user = user(&relay, "u-1");
    let group = talking(&relay, &user).await;
    relay.sandbox.script().fail(FaultRule::new(Side::BotKit).operation(Operation::Clear).status(400));
    relay.sandbox.agent_closes(&group).await.unwrap();
    relay.dead_letters_at_least(1).await;
    assert_eq!(user.clears(), 0);
    let before = user.heard().len();
    relay.sandbox.script().clear();
    let run = relay.tool(["dead", "replay", "--yes"]).run(PATIENCE).await;
    assert_eq!(run.code, Some(0), "{}{}", run.stdout, run.stderr);
    cleared(&relay, &user).await;
    assert_eq!(
        (user.clears(), user.heard().len()),
        (1, before),
        "a text that went through is not said again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_widget_ends_nothing_if_the_setting_says_so() {
    let bench = Engine::Embedded.bench().expect("it is always there");
    let relay = relay(&bench, &[("xo.end_on_session_closure", "false")]).await;
    let user = user(&relay, "u-1");
    assert_eq!(user.transfers("hello").await.status, 200);
    chat(&relay).await;
    let mut event = user.flat("");
    event["event"] = json!({"eventType": "sessionClosure"});
    assert_eq!(user.post("on_event", &event).await.status, 200);
    user.says("still here").await;
    relay
        .until("the agent to read it", |relay| match relay.said(&chat_of(relay)).last().map(String::as_str) {
            Some("still here") => Ok(()),
            said => Err(format!("{said:?}")),
        })
        .await;
    assert_eq!((left(&relay), user.clears()), (0, 0));
}

fn chat_of(relay: &Relay) -> String {
    relay.sandbox.groups().remove(0)
}
