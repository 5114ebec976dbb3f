//! Tests XO's BotKit protocol with the real binary: a user, a bot and an agent, in both directions, and every way that
//! a chat can end.

use std::time::Duration;

use causeway::sandbox::botkit::{BotUser, SigningAlgorithm, token};
use causeway::sandbox::{
    BotKitSwitches, BotSettings, CallbackCredential, CallbackSettings, FaultRule, Operation, SandboxQueue,
    Side, WantsContext,
};
use serde_json::{Value, json};
use sqlx::{Connection, Executor};

use crate::harness::matrix::{Bench, Engine};
use crate::harness::relay::{Plan, Relay};

pub(crate) const ENDED: &str = "The chat with the agent has ended.";
pub(crate) const WAITING: &str = "Please wait";
pub(crate) const JOINED: &str = "An agent has joined the chat.";
pub(crate) const QUIT_STATE: u8 = 7;

/// A relay with the bot of the sandbox, whose agent's messages come back as callbacks.
pub(crate) async fn relay(bench: &Bench, settings: &[(&str, &str)]) -> Relay {
    relay_of(bench, vec![BotSettings::default()], settings).await
}

/// The first bot is configured by the single keys. `settings` must contain the other bots.
pub(crate) async fn relay_of(bench: &Bench, bots: Vec<BotSettings>, settings: &[(&str, &str)]) -> Relay {
    let bot = bots[0].clone();
    let plan = Plan::on(bench)
        .set("xo.bot_id", bot.bot_id)
        .set("xo.app_id", bot.app_id)
        .set("xo.client_secret", bot.client_secret)
        .set("servicenow.poll_waiting", "200ms")
        .set("servicenow.poll_active", "200ms")
        .set("delivery.retry.max", "1s")
        .sandbox(|sandbox| sandbox.bots = bots);
    let plan = settings.iter().fold(plan, |plan, (key, value)| plan.set(key, *value));
    let relay = plan.start().await;
    let credential =
        CallbackCredential::Header { name: "x-causeway-token".into(), value: "callback-token".into() };
    let url = format!("{}/v1/callbacks/servicenow", relay.processes[0].public_url());
    relay.sandbox.set_callback(Some(CallbackSettings { credential, ..CallbackSettings::to(url) }));
    relay
}

pub(crate) fn user(relay: &Relay, name: &str) -> BotUser {
    relay.sandbox.bot_user(&relay.processes[0].public_url(), name)
}

/// Waits for the only chat.
pub(crate) async fn chat(relay: &Relay) -> String {
    relay
        .until("a chat", |relay| match relay.sandbox.groups().len() {
            1 => Ok(()),
            some => Err(format!("{some} chats; {}", relay.processes[0].running.stderr())),
        })
        .await;
    relay.sandbox.groups().remove(0)
}

pub(crate) async fn heard(relay: &Relay, user: &BotUser, text: &str) {
    relay
        .until(&format!("the user to hear {text:?}"), |relay| {
            let heard = user.heard_texts();
            let story = || format!("{heard:?}\n{}", relay.processes[0].running.stderr());
            if heard.iter().any(|said| said.contains(text)) { Ok(()) } else { Err(story()) }
        })
        .await;
}

/// Opens a chat with an agent, of whom the user has been notified.
pub(crate) async fn talking(relay: &Relay, user: &BotUser) -> String {
    assert_eq!(user.transfers("My laptop is on fire").await.status, 200);
    let group = chat(relay).await;
    // This relay also forwards chats that are not its own. An agent who writes before the answer of the start arrives
    // would count as such a chat.
    heard(relay, user, WAITING).await;
    relay.sandbox.agent_accept(&group).await.expect("the chat waits");
    heard(relay, user, JOINED).await;
    group
}

pub(crate) async fn cleared(relay: &Relay, user: &BotUser) {
    relay
        .until("the bot to have its user back", |relay| match user.clears() {
            0 => Err(format!("{:?}\n{}", user.heard_texts(), relay.processes[0].running.stderr())),
            _ => Ok(()),
        })
        .await;
}

pub(crate) async fn quiet(relay: &Relay) {
    relay.metric_is("causeway_queue_messages", &[], |waiting| waiting == 0.0).await;
}

pub(crate) fn left(relay: &Relay) -> usize {
    relay.sandbox.ledger().count(|entry| entry.operation == Operation::Leave && entry.applied)
}

/// The destination of the sandbox's bot: `bot:` and its id.
const BOT: &str = "bot:st-00000000-0000-5000-8000-000000000001";

fn told(relay: &Relay, status: u16) -> usize {
    relay.sandbox.ledger().count(|entry| {
        entry.side == Side::BotKit && entry.operation == Operation::Tell && entry.status == Some(status)
    })
}

on_every_engine! {
    async fn a_chat_goes_both_ways_in_order(bench: Bench) {
        let relay = relay(&bench, &[]).await;
        let wants = BotKitSwitches { wants_context: WantsContext::Trimmed, ..BotKitSwitches::default() };
        relay.sandbox.set_botkit(wants);
        let user = user(&relay, "u-1");
        let answer = user.transfers("My laptop is on fire").await;
        assert_eq!((answer.status, answer.supports_ack), (200, true));
        assert_eq!(answer.body, json!({"headers": {"supportsMessageAck": true}}));
        let group = chat(&relay).await;
        heard(&relay, &user, WAITING).await;
        relay.sandbox.agent_accept(&group).await.unwrap();
        heard(&relay, &user, JOINED).await;
        for n in 0..5 {
            let answer = user.says(&format!("question {n}")).await;
            assert_eq!((answer.status, &answer.body["ackMessage"]), (200, &json!(true)));
            assert_eq!(answer.body["message"], json!(format!("question {n}")));
            relay.sandbox.agent_says(&group, &format!("answer {n}")).await.unwrap();
        }
        assert_eq!(user.types().await.status, 200);
        relay.until("every question", |relay| {
            let said = relay.said(&group);
            if said.len() == 6 { Ok(()) } else { Err(format!("{said:?}")) }
        }).await;
        relay.sandbox.agent_closes(&group).await.unwrap();
        cleared(&relay, &user).await;
        let said = relay.said(&group);
        assert!(said[0].contains("My laptop is on fire") && said[0].contains("Ada Lovelace"), "{said:?}");
        assert_eq!(said[1..], (0..5).map(|n| format!("question {n}")).collect::<Vec<_>>());
        let all = user.heard();
        let answers: Vec<_> = all.iter().filter(|heard| heard.text.starts_with("answer")).collect();
        assert_eq!(answers.iter().map(|heard| heard.text.clone()).collect::<Vec<_>>(),
                   (0..5).map(|n| format!("answer {n}")).collect::<Vec<_>>());
        assert!(answers.iter().all(|heard| heard.as_agent), "an agent speaks in the template of the web channel");
        // The session was cleared after the last text, so the user was with the agent for every text.
        assert!(all.iter().all(|heard| heard.with_agent), "{all:?}");
        assert_eq!(all.last().map(|heard| heard.text.as_str()), Some(ENDED));
        quiet(&relay).await;
        assert_eq!((user.sessions(), user.clears()), (1, 1));
        assert_eq!(relay.sandbox.ledger().overlaps_where(|entry| entry.side == Side::BotKit && entry.operation.moves()), []);
    }

    async fn an_end_word_gives_the_user_back_also_while_servicenow_is_down(bench: Bench) {
        let relay = relay(&bench, &[]).await;
        let user = user(&relay, "u-1");
        let group = talking(&relay, &user).await;
        heard(&relay, &user, "Thank you for contacting support").await;
        relay.sandbox.script().fail(FaultRule::new(Side::ServiceNow).status(503));
        let before = user.heard().len();
        assert_eq!(user.says(" Stop Chat ").await.status, 200);
        cleared(&relay, &user).await;
        assert_eq!(left(&relay), 0, "ServiceNow could not have heard of it");
        relay.sandbox.script().clear();
        relay.until("ServiceNow to hear of it", |relay| match relay.sandbox.state(&group) {
            Some(QUIT_STATE) => Ok(()),
            state => Err(format!("{state:?}")),
        }).await;
        quiet(&relay).await;
        assert_eq!((user.clears(), left(&relay)), (1, 1));
        assert_eq!(user.heard().len(), before, "who goes needs no last words");
    }

    async fn a_user_who_quits_before_the_chat_gets_no_chat(bench: Bench) {
        let relay = relay(&bench, &[]).await;
        let user = user(&relay, "u-1");
        relay.sandbox.script().fail(FaultRule::new(Side::ServiceNow).status(503));
        assert_eq!(user.transfers("hello").await.status, 200);
        assert_eq!(user.says("quit").await.status, 200);
        cleared(&relay, &user).await;
        // While the rule is active, every start that is sent fails. A start that ends unsent was skipped because its
        // user had left.
        let unsent = [("destination", "servicenow"), ("kind", "handoff.start"), ("outcome", "repeated")];
        relay.metric_is("causeway_delivery_attempts_total", &unsent, |count| count == 1.0).await;
        relay.sandbox.script().clear();
        quiet(&relay).await;
        assert_eq!((relay.sandbox.groups().len(), user.clears()), (0, 1));
        // A new handoff opens a new chat.
        assert_eq!(user.transfers("again").await.status, 200);
        chat(&relay).await;
    }

    async fn a_user_who_quits_without_a_chat_is_returned_once(bench: Bench) {
        let relay = relay(&bench, &[]).await;
        let user = user(&relay, "u-1");
        user.set_with_agent(true);
        assert_eq!(user.says("quit").await.status, 200);
        cleared(&relay, &user).await;
        quiet(&relay).await;
        assert_eq!((relay.sandbox.groups().len(), user.clears()), (0, 1));
    }

    async fn a_user_whom_xo_took_back_leaves_servicenow(bench: Bench) {
        let relay = relay(&bench, &[]).await;
        let user = user(&relay, "u-1");
        let group = talking(&relay, &user).await;
        heard(&relay, &user, "Thank you for contacting support").await;
        user.set_with_agent(false);
        let before = user.heard().len();
        assert_eq!(user.says("hello bot").await.status, 200);
        relay.until("ServiceNow to hear of it", |relay| match relay.sandbox.state(&group) {
            Some(QUIT_STATE) => Ok(()),
            state => Err(format!("{state:?}")),
        }).await;
        quiet(&relay).await;
        assert_eq!((user.clears(), user.heard().len(), left(&relay)), (0, before, 1));
        assert_eq!(relay.said(&group).len(), 1, "what was for the bot is not for the agent");
    }

    async fn both_sides_end_at_once_and_each_is_ended_once(bench: Bench) {
        let relay = relay(&bench, &[]).await;
        let user = user(&relay, "u-1");
        let group = talking(&relay, &user).await;
        let (closed, quit) = tokio::join!(relay.sandbox.agent_closes(&group), user.says("quit"));
        closed.unwrap();
        assert_eq!(quit.status, 200);
        cleared(&relay, &user).await;
        relay.until("the chat to be over", |relay| match relay.sandbox.state(&group) {
            Some(1 | 2) => Err("open".to_owned()),
            _ => Ok(()),
        }).await;
        quiet(&relay).await;
        assert_eq!(user.clears(), 1);
        assert!(left(&relay) <= 1);
        assert_eq!(relay.dead_letters().await, Vec::<Value>::new());
    }

    async fn a_start_that_a_crash_repeats_opens_one_chat(bench: Bench) {
        let mut relay = relay(&bench, &[]).await;
        let user = user(&relay, "u-1");
        let slow = FaultRule::new(Side::ServiceNow).operation(Operation::Start).times(1).after();
        relay.sandbox.script().fail(slow.delay(Duration::from_secs(8)));
        assert_eq!(user.transfers("hello").await.status, 200);
        chat(&relay).await;
        relay.processes[0].running.kill9();
        relay.processes[0].restart();
        relay.ready().await;
        relay.until("the session to begin", |_| match user.sessions() {
            0 => Err("not yet".to_owned()),
            _ => Ok(()),
        }).await;
        quiet(&relay).await;
        assert_eq!(relay.sandbox.groups().len(), 1);
        let group = chat(&relay).await;
        relay.sandbox.agent_accept(&group).await.unwrap();
        heard(&relay, &user, JOINED).await;
        // XO may also post the same event again.
        user.says("one").await;
        user.repeats().await;
        user.repeats().await;
        user.says("two").await;
        relay.until("both words", |relay| match relay.said(&group).last().map(String::as_str) {
            Some("two") => Ok(()),
            _ => Err(format!("{:?}", relay.said(&group))),
        }).await;
        assert_eq!(relay.said(&group)[1..], ["one", "two"]);
    }

    async fn words_after_the_end_are_kept_and_open_nothing(bench: Bench) {
        let relay = relay(&bench, &[("xo.end_words", "bye")]).await;
        let user = user(&relay, "u-1");
        let group = talking(&relay, &user).await;
        relay.sandbox.agent_closes(&group).await.unwrap();
        cleared(&relay, &user).await;
        // XO posted this event before it knew of the end.
        user.set_with_agent(true);
        user.says("one more thing").await;
        let dead = relay.dead_letters_at_least(1).await;
        assert_eq!((&dead[0]["reason"], &dead[0]["kind"]), (&json!("conversation_over"), &json!("handoff.message")));
        assert_eq!(relay.sandbox.groups().len(), 1);
        // A late message of an agent is also kept.
        relay.callback(&group, "too late", "late-1").await;
        let dead = relay.dead_letters_at_least(2).await;
        assert!(dead.iter().any(|dead| dead["kind"] == "callback.message" && dead["reason"] == "conversation_over"));
        assert_eq!(user.clears(), 1);
    }

    async fn a_user_without_a_handover_gets_a_chat(bench: Bench) {
        let relay = relay(&bench, &[]).await;
        let user = user(&relay, "u-1");
        user.set_with_agent(true);
        assert_eq!(user.says("is anybody there?").await.status, 200);
        assert_eq!(user.says("hello?").await.status, 200);
        let group = chat(&relay).await;
        relay.until("both words", |relay| match relay.said(&group).len() {
            2 => Ok(()),
            _ => Err(format!("{:?}", relay.said(&group))),
        }).await;
        assert_eq!(relay.said(&group), ["is anybody there?", "hello?"]);
        // An event of a user who is with the bot has no effect.
        let other = relay.sandbox.bot_user(&relay.processes[0].public_url(), "u-2");
        assert_eq!(other.says("hello bot").await.status, 200);
        quiet(&relay).await;
        assert_eq!(relay.sandbox.groups().len(), 1);
    }

    async fn a_user_without_an_agent_is_told_and_returned(bench: Bench) {
        let relay = relay(&bench, &[]).await;
        let (closed, refused) = (user(&relay, "u-1"), user(&relay, "u-2"));
        relay.sandbox.set_queue_open(&SandboxQueue::default().id, false);
        closed.transfers("hello").await;
        heard(&relay, &closed, "No agent is available right now. Support is closed").await;
        cleared(&relay, &closed).await;
        relay.sandbox.script().fail(FaultRule::new(Side::ServiceNow).operation(Operation::Start).status(400));
        // Causeway keeps only a small part of a payload of megabytes.
        relay.sandbox.set_botkit(BotKitSwitches { context_bytes: 1 << 20, ..BotKitSwitches::default() });
        assert_eq!(refused.transfers("hello").await.status, 200);
        heard(&relay, &refused, "The agents cannot be reached right now").await;
        cleared(&relay, &refused).await;
        let dead = relay.dead_letters_at_least(1).await;
        assert_eq!(dead[0]["reason"], "rejected");
        assert!(dead[0]["body"].as_str().is_some_and(|body| body.len() < 8192), "the context was queued");
        quiet(&relay).await;
        assert_eq!((closed.clears(), refused.clears()), (1, 1));
    }

    async fn a_user_of_an_expired_start_is_told_and_returned(bench: Bench) {
        let relay = relay(&bench, &[("delivery.deadline.start", "2s")]).await;
        let user = user(&relay, "u-1");
        relay.sandbox.script().fail(FaultRule::new(Side::ServiceNow).status(500));
        user.transfers("hello").await;
        heard(&relay, &user, "No agent could be reached in time").await;
        cleared(&relay, &user).await;
        assert_eq!(relay.dead_letters_at_least(1).await[0]["reason"], "expired");
    }

    async fn a_lapsed_handle_waits_for_the_next_event(bench: Bench) {
        let relay = relay(&bench, &[]).await;
        let user = user(&relay, "u-1");
        let group = talking(&relay, &user).await;
        heard(&relay, &user, "Thank you for contacting support").await;
        user.handles_lapse();
        for text in ["first", "second", "third"] {
            relay.sandbox.agent_says(&group, text).await.unwrap();
        }
        relay.until("XO to say that the handle is gone", |relay| match told(relay, 404) {
            0 => Err("not yet".to_owned()),
            _ => Ok(()),
        }).await;
        // The message is checked repeatedly, but no call is made.
        relay.metric_is("causeway_delivery_attempts_total", &[("destination", BOT), ("outcome", "held")], |held| {
            held >= 4.0
        }).await;
        let event = user.flat("still here");
        user.post("on_user_message", &event).await;
        heard(&relay, &user, "third").await;
        let texts = user.heard_texts();
        assert!(texts.ends_with(&["first".into(), "second".into(), "third".into()]), "{texts:?}");
        assert_eq!(user.heard().last().map(|heard| json!(heard.handle)), Some(event["requestId"].clone()));
        assert_eq!(told(&relay, 404), 1, "a handle that is gone is not tried again");
    }

    async fn a_refused_token_is_signed_anew(bench: Bench) {
        let relay = relay(&bench, &[("xo.extend_every", "1s")]).await;
        let user = user(&relay, "u-1");
        let group = talking(&relay, &user).await;
        relay.sandbox.script().fail(FaultRule::new(Side::BotKit).operation(Operation::Tell).times(1).status(401));
        relay.sandbox.agent_says(&group, "hello").await.unwrap();
        heard(&relay, &user, "hello").await;
        assert_eq!(told(&relay, 401), 1);
        let paused = [("destination", BOT), ("outcome", "paused")];
        assert_eq!(relay.metric("causeway_delivery_attempts_total", &paused).await, 0.0, "one attempt was enough");
        assert_eq!(user.heard_texts().iter().filter(|text| *text == "hello").count(), 1);
        // No message is sent meanwhile, and the handle is extended.
        relay.until("the handle to be extended twice", |relay| {
            let extended = relay.sandbox.ledger().total(Side::BotKit, Operation::Extend).applied;
            if extended >= 2 { Ok(()) } else { Err(format!("{extended}")) }
        }).await;
    }
}

/// Each bot has a credential of its own, and XO's apps use one of two algorithms. This test has one bot for each
/// algorithm.
#[tokio::test(flavor = "multi_thread")]
async fn each_bot_is_answered_with_its_own_credential() {
    let bench = Engine::Embedded.bench().expect("it is always there");
    let one = BotSettings { algorithm: SigningAlgorithm::Hs512, ..BotSettings::default() };
    let other = BotSettings {
        bot_id: "st-00000000-0000-5000-8000-000000000002".to_owned(),
        app_id: "cs-00000000-0000-5000-8000-000000000002".to_owned(),
        client_secret: "another-bot-secret".to_owned(),
        algorithm: SigningAlgorithm::Hs256,
        ..BotSettings::default()
    };
    let bots = vec![one.clone(), other.clone()];
    let settings = [
        ("xo.jwt_algorithm", "HS512"),
        ("xo.bots.0.bot_id", other.bot_id.as_str()),
        ("xo.bots.0.app_id", &other.app_id),
        ("xo.bots.0.client_secret", &other.client_secret),
        ("xo.bots.0.jwt_algorithm", "HS256"),
    ];
    let relay = relay_of(&bench, bots, &settings).await;
    let users = [user(&relay, "u-1"), user(&relay, "u-2").at(&other)];
    for user in &users {
        assert_eq!(user.transfers("My laptop is on fire").await.status, 200);
        heard(&relay, user, WAITING).await;
    }
    for group in relay.sandbox.groups() {
        relay.sandbox.agent_accept(&group).await.unwrap();
        relay.sandbox.agent_closes(&group).await.unwrap();
    }
    for user in &users {
        cleared(&relay, user).await;
    }
    assert_eq!(relay.sandbox.ledger().count(|entry| entry.status == Some(401)), 0);
    // A bot's credential does not sign the events of another bot.
    let event = users[0].nested("hello");
    let claims = json!({"appId": one.app_id, "exp": causeway::clock::now().as_second() + 60});
    let credential = token(SigningAlgorithm::Hs512, &claims, &one.client_secret);
    assert_eq!(users[1].post_with("on_agent_transfer", &event, "token", &credential).await.status, 401);
}

/// An announcement that only ServiceNow can make is relayed to a bot's user, for example that a chat is about to time
/// out.
#[tokio::test(flavor = "multi_thread")]
async fn announcements_of_servicenow_reach_the_user() {
    let bench = Engine::Embedded.bench().expect("it is always there");
    let relay = relay(&bench, &[("servicenow.api", "virtual_agent")]).await;
    let user = user(&relay, "u-1");
    let group = talking(&relay, &user).await;
    for what in ["TYPING_STARTED", "TYPING_STOPPED", "MESSAGE_READ"] {
        let mut event = user.flat("");
        event["preDefinedEvent"] = json!({ "type": what });
        assert_eq!(user.post("on_client_event", &event).await.status, 200);
    }
    relay
        .until("what the agent sees of the user", |relay| {
            let seen = |entry: &causeway::sandbox::LedgerEntry| {
                matches!(entry.event.as_deref(), Some("TYPING" | "VIEWING"))
            };
            let seen = relay.sandbox.ledger().find(seen);
            let seen: Vec<_> = seen.iter().filter_map(|entry| entry.event.as_deref()).collect();
            if seen == ["TYPING", "VIEWING", "VIEWING"] { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
    let reminder = "The conversation is timing out, are you still there?";
    let item = json!({ "uiType": "ActionMsg", "actionType": "System", "message": reminder });
    relay.sandbox.virtual_agent_posts(&group, vec![item]).await.unwrap();
    heard(&relay, &user, reminder).await;
    relay.sandbox.agent_closes(&group).await.unwrap();
    cleared(&relay, &user).await;
    let heard = user.heard();
    assert!(heard.iter().all(|heard| heard.text != reminder || !heard.as_agent), "no agent said it");
    // A text that Causeway relays as its own notice is not relayed twice.
    let doubled = |text: &String| text.contains("has entered the chat") || text.contains("support session");
    assert!(!user.heard_texts().iter().any(doubled), "{:?}", user.heard_texts());
    assert_eq!(user.heard_texts().iter().filter(|text| *text == ENDED).count(), 1);
}

/// A handle that is not extended once would expire before its next turn.
#[tokio::test(flavor = "multi_thread")]
async fn a_handle_that_is_not_extended_at_once_is_tried_again() {
    let bench = Engine::Embedded.bench().expect("it is always there");
    let relay = relay(&bench, &[("xo.extend_every", "1h")]).await;
    let user = user(&relay, "u-1");
    talking(&relay, &user).await;
    relay
        .sandbox
        .script()
        .fail(FaultRule::new(Side::BotKit).operation(Operation::Extend).times(1).status(503));
    let file = bench.folder().join("directory.sqlite");
    let mut directory = sqlx::SqliteConnection::connect(&file.display().to_string()).await.unwrap();
    directory.execute("UPDATE reply_handles SET extended_at = 0").await.unwrap();
    relay
        .until("the handle to be extended", |relay| {
            let total = relay.sandbox.ledger().total(Side::BotKit, Operation::Extend);
            if (total.arrived, total.applied) == (2, 1) { Ok(()) } else { Err(format!("{total:?}")) }
        })
        .await;
}

/// The credentials and the refusals of the route. The engine makes no difference.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_token_of_xo_is_accepted() {
    let bench = Engine::Embedded.bench().expect("it is always there");
    let relay = relay(&bench, &[]).await;
    let user = user(&relay, "u-1");
    let (bot, event) = (BotSettings::default(), user.nested("hello"));
    let now = causeway::clock::now().as_second();
    let good = json!({"appId": bot.app_id, "exp": now + 60});
    let secret = bot.client_secret.as_str();
    let cases = [
        ("token", token(SigningAlgorithm::Hs256, &good, "another secret")),
        ("token", token(SigningAlgorithm::Hs256, &json!({"appId": bot.app_id, "exp": now - 120}), secret)),
        ("token", token(SigningAlgorithm::Hs256, &json!({"appId": "cs-other", "exp": now + 60}), secret)),
        ("token", token(SigningAlgorithm::None, &good, secret)),
        ("token", "nonsense".to_owned()),
        ("authorization", format!("Bearer {}", token(SigningAlgorithm::Hs256, &good, secret))),
        ("apikey", secret.to_owned()),
    ];
    for (header, credential) in &cases {
        let answer = user.post_with("on_agent_transfer", &event, header, credential).await;
        assert_eq!(answer.status, 401, "{header}: {credential}");
        assert_eq!(answer.body, json!({"errors": [{"msg": "Invalid apikey", "code": 4002}]}));
    }
    let code = |body: &Value| body["errors"][0]["code"].clone();
    let answer = user.post("on_everything", &event).await;
    assert_eq!((answer.status, code(&answer.body)), (404, json!("NOT_FOUND")));
    let stranger = BotSettings { bot_id: "st-another".to_owned(), ..bot.clone() };
    assert_eq!(user.clone().at(&stranger).post("on_agent_transfer", &event).await.status, 404);
    let answer = user.post("on_agent_transfer", &json!({"requestId": 1})).await;
    assert_eq!((answer.status, code(&answer.body)), (400, json!("INSUFFICIENT_ARGUMENTS")));
    let answer = user.post("on_agent_transfer", &json!([])).await;
    assert_eq!((answer.status, code(&answer.body)), (412, json!("VALIDATION_ERROR")));
    // The sender of an event may not choose the host of the answers.
    let trap = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    for field in ["baseUrl", "sendUserMessageUrl"] {
        let mut foreign = event.clone();
        foreign[field] = json!(format!("http://{}/xo/api/botsdk/stream/x", trap.local_addr().unwrap()));
        let answer = user.post("on_agent_transfer", &foreign).await;
        assert_eq!((answer.status, code(&answer.body)), (400, json!("INVALID_ARGUMENTS")));
        assert!(answer.body["errors"][0]["msg"].as_str().is_some_and(|msg| msg.contains(field)));
    }
    // A webhook node gets back its own body. The other algorithm and the address of the component are also accepted.
    let answer = user.post("on_webhook", &json!({"a": [1, 2]})).await;
    assert_eq!((answer.status, answer.body), (200, json!({"a": [1, 2]})));
    assert_eq!(relay.sandbox.groups().len(), 0);
    let hs512 = token(SigningAlgorithm::Hs512, &good, secret);
    assert_eq!(
        user.post_with("components/dg-1/on_agent_transfer", &event, "token", &hs512).await.status,
        200
    );
    chat(&relay).await;
    assert!(tokio::time::timeout(Duration::from_millis(1), trap.accept()).await.is_err(), "it was called");
    relay
        .metric_is("causeway_ingress_requests_total", &[("source", "botkit"), ("status", "401")], |seen| {
            seen == 7.0
        })
        .await;
}
