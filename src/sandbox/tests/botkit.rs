//! The simulated XO, driven over real HTTP by a BotKit server that only acknowledges: what goes on, what stands still, and what
//! is refused. The facts stand in the vendor's pages on BotKit and in public BotKit servers; the rest is a switch.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::json;

use super::*;
use crate::sandbox::botkit::{
    AfterWait, AgentFlags, Algorithm, BotScript, BotStep, BotUser, ChannelKind, ChannelShape, ClearOfLapsed,
    FileShape, RepeatedCall, Skipped, UserFile, token,
};
use crate::sandbox::{BotKitSwitches, BotSettings};

/// A BotKit server that notes events and answers them, and makes no call by itself.
#[derive(Debug, Clone)]
struct Server {
    url: String,
    status: Arc<Mutex<u16>>,
    events: Arc<Mutex<Vec<(String, Value, HeaderMap)>>>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Self { url, status: Arc::new(Mutex::new(200)), events: Arc::default() };
        let router = Router::new()
            .route("/sdk/bots/{bot}/{event}", post(acknowledge))
            .layer(axum::extract::DefaultBodyLimit::max(4 << 20))
            .with_state(server.clone());
        drop(crate::tasks::spawn(async move { axum::serve(listener, router).await }));
        server
    }

    fn answers(&self, status: u16) {
        *self.status.lock().unwrap() = status;
    }

    fn names(&self) -> Vec<String> {
        self.events.lock().unwrap().iter().map(|(name, ..)| name.clone()).collect()
    }

    /// The last event of this name.
    fn last(&self, name: &str) -> Value {
        let events = self.events.lock().unwrap();
        events.iter().rev().find(|(event, ..)| event == name).unwrap().1.clone()
    }
}

async fn acknowledge(
    State(server): State<Server>,
    Path((_, event)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut event_body: Value = serde_json::from_slice(&body).unwrap();
    server.events.lock().unwrap().push((event, event_body.clone(), headers));
    event_body["ackMessage"] = json!(true);
    let status = StatusCode::from_u16(*server.status.lock().unwrap()).unwrap();
    (status, [("supportsMessageAck", "true")], event_body.to_string()).into_response()
}

struct Scene {
    bench: Bench,
    server: Server,
    user: BotUser,
}

impl Scene {
    async fn new(script: BotScript, switches: BotKitSwitches) -> Self {
        let bots = vec![BotSettings { script, ..BotSettings::default() }];
        let bench = Bench::new(SandboxSettings { bots, botkit: switches, ..by_hand() }).await;
        let server = Server::start().await;
        let user = bench.sandbox.bot_user(&server.url, "u-1");
        Self { bench, server, user }
    }

    async fn help_desk() -> Self {
        Self::new(BotScript::help_desk(), BotKitSwitches::default()).await
    }

    fn switch(&self, switches: BotKitSwitches) {
        self.bench.sandbox.set_botkit(switches);
    }

    /// What a BotKit server posts for this event: its own payload, to one of its addresses.
    async fn call(&self, event: &Value, call: &str) -> u16 {
        self.call_with(event, call, &signed(60, &BotSettings::default())).await
    }

    async fn call_with(&self, event: &Value, call: &str, credential: &str) -> u16 {
        let mut body = event.clone();
        body["__payloadClass"] = json!("OnMessagePayload");
        let url =
            format!("{}/{call}/{}", event["baseUrl"].as_str().unwrap(), event["requestId"].as_str().unwrap());
        let request = self.bench.client.post(url).header("auth", credential).body(body.to_string());
        request.send().await.unwrap().status().as_u16()
    }

    /// Passes on the last event of this name once XO has posted `count` of them.
    async fn passes_on(&self, name: &str, count: usize) -> u16 {
        let posted = |user: &BotUser| user.events().iter().filter(|event| event.event == name).count();
        self.until(|user| posted(user) >= count).await;
        let seen = async || {
            while self.server.names().iter().filter(|event| *event == name).count() < count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, seen()).await.unwrap();
        let call = if name == "on_bot_message" { "sendUserMessage" } else { "sendBotMessage" };
        self.call(&self.server.last(name), call).await
    }

    async fn until(&self, condition: impl Fn(&BotUser) -> bool) {
        let user = &self.user;
        assert!(user.wait_for(condition, SOON).await, "{:?}", user.events());
    }

    fn waiting(&self) -> Vec<String> {
        self.bench.sandbox.waiting_events().into_iter().map(|event| event.event).collect()
    }
}

fn signed(seconds: i64, bot: &BotSettings) -> String {
    let claims = json!({ "appId": bot.app_id, "exp": crate::clock::now().as_second() + seconds });
    token(bot.algorithm, &claims, &bot.client_secret)
}

#[tokio::test]
async fn an_acknowledgement_alone_leaves_the_bot_silent() {
    let scene = Scene::help_desk().await;
    let answer = scene.user.says("hello").await;
    assert_eq!((answer.status, answer.supports_ack), (200, true));
    assert_eq!(scene.waiting(), ["on_user_message"]);
    assert_eq!((scene.user.bot_read(), scene.user.heard_texts()), (vec![], vec![]));
    assert_eq!(scene.server.names(), ["on_user_message"]);

    assert_eq!(scene.passes_on("on_user_message", 1).await, 200);
    assert_eq!(scene.user.bot_read(), ["hello"]);
    // The bot has answered, and the user reads nothing of it yet.
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
    // By a switch XO posts them at once.
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
    scene.switch(BotKitSwitches { skipped: Skipped::PassedOn, ..BotKitSwitches::default() });
    scene.user.bot_says("told by XO").await;
    scene.call(&scene.server.last("on_bot_message"), "skipUserMessage").await;
    assert_eq!(scene.user.heard_texts(), ["told by XO"]);
    // The BotKit server may answer the user itself: the bot does not read the words.
    scene.user.says("anybody?").await;
    let mut event = scene.server.last("on_user_message");
    event["message"] = json!("It is me");
    scene.call(&event, "sendUserMessage").await;
    assert_eq!((scene.waiting(), scene.user.bot_read()), (vec![], vec![]));
    assert_eq!(scene.user.heard_texts(), ["told by XO", "It is me"]);
}

#[tokio::test]
async fn what_happens_after_the_wait_is_a_switch() {
    let silent = BotKitSwitches { turn_wait_ms: 20, ..BotKitSwitches::default() };
    let scene = Scene::new(BotScript::help_desk(), silent).await;
    scene.user.says("lost").await;
    scene.until(|user| user.events()[0].ended_by.as_deref() == Some("timeout")).await;
    assert_eq!(scene.user.bot_read(), [] as [&str; 0]);
    scene.switch(BotKitSwitches { after_wait: AfterWait::GoesOn, ..silent });
    scene.user.says("found").await;
    scene.until(|user| user.heard_texts() == ["You said: found"]).await;
    // What the old belief was: an acknowledgement is enough.
    scene.switch(BotKitSwitches { ack_is_enough: true, ..BotKitSwitches::default() });
    scene.user.says("acknowledged").await;
    scene.until(|user| user.heard_texts().len() == 2).await;
    assert_eq!(scene.user.events().last().and_then(|event| event.ended_by.clone()).as_deref(), Some("ack"));
    // A refused event is posted again as often as the switch says.
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
    // Now the words are the agent's: XO waits for nothing.
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
async fn a_request_id_lapses_and_is_kept_alive() {
    let scene = Scene::help_desk().await;
    scene.user.transfers("help").await;
    let event = scene.server.last("on_agent_transfer");
    for status in [404, 410, 400] {
        let switches =
            BotKitSwitches { handle_life_ms: 0, lapsed_status: status, ..BotKitSwitches::default() };
        scene.switch(switches);
        assert_eq!(scene.call(&event, "sendUserMessage").await, status);
        assert_eq!(scene.call(&event, "clearAgentSession").await, status);
        scene.switch(BotKitSwitches { clear_of_lapsed: ClearOfLapsed::Pretended, ..switches });
        assert_eq!(scene.call(&event, "clearAgentSession").await, 200);
        assert!(scene.user.is_with_agent());
    }
    let lapsed = BotKitSwitches { handle_life_ms: 0, ..BotKitSwitches::default() };
    scene.switch(BotKitSwitches { clear_of_lapsed: ClearOfLapsed::Taken, ..lapsed });
    assert_eq!(scene.call(&event, "clearAgentSession").await, 200);
    assert!(!scene.user.is_with_agent());

    scene.switch(BotKitSwitches::default());
    assert_eq!(scene.call(&event, "extendcallid").await, 200);
    scene.user.handles_lapse();
    assert_eq!(scene.call(&event, "extendcallid").await, 404);
}

#[tokio::test]
async fn a_call_must_be_signed_and_complete() {
    let scene = Scene::help_desk().await;
    scene.user.says("hello").await;
    let event = scene.server.last("on_user_message");
    let bot = BotSettings::default();
    let other = |change: fn(&mut BotSettings)| {
        let mut other = BotSettings::default();
        change(&mut other);
        signed(60, &other)
    };
    let wrong = [
        "nonsense".to_owned(),
        signed(-120, &bot),
        other(|bot| bot.client_secret = "another".to_owned()),
        other(|bot| bot.app_id = "cs-other".to_owned()),
        other(|bot| bot.algorithm = Algorithm::Hs512),
        other(|bot| bot.algorithm = Algorithm::None),
        token(bot.algorithm, &json!({ "appId": bot.app_id }), &bot.client_secret),
    ];
    for credential in &wrong {
        assert_eq!(scene.call_with(&event, "sendBotMessage", credential).await, 401, "{credential}");
    }
    let mut without_channel = event.clone();
    without_channel["channel"] = Value::Null;
    assert_eq!(scene.call(&without_channel, "sendBotMessage").await, 400);
    let mut long = event.clone();
    long["message"] = json!("x ".repeat(1_501));
    assert_eq!(scene.call(&long, "sendBotMessage").await, 400);
    let url = event["sendBotMessageUrl"].as_str().unwrap();
    let bare = scene.bench.client.post(url).header("auth", signed(60, &bot)).body(event.to_string());
    assert_eq!(bare.try_clone().unwrap().send().await.unwrap().status(), 400, "without __payloadClass");
    assert_eq!(scene.waiting(), ["on_user_message"]);
    scene.switch(BotKitSwitches { wants_class: false, ..BotKitSwitches::default() });
    assert_eq!(bare.send().await.unwrap().status(), 200);
    assert_eq!(scene.user.bot_read(), ["hello"]);
    assert_eq!(scene.call(&event, "sendNothing").await, 404);

    let strict = BotSettings { algorithm: Algorithm::Hs512, ..BotSettings::default() };
    let bench = Bench::new(SandboxSettings { bots: vec![strict.clone()], ..by_hand() }).await;
    let base = bench.sandbox.bot_user("http://127.0.0.1:1", "u-1").base_url();
    let get = |credential: String| {
        bench.client.get(format!("{base}/getMessages?userId=u-1")).header("auth", credential)
    };
    assert_eq!(get(signed(60, &strict)).send().await.unwrap().status(), 200);
    assert_eq!(get(signed(60, &bot)).send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn a_call_that_comes_twice_is_seen() {
    let scene = Scene::help_desk().await;
    scene.user.says("hello").await;
    let event = scene.server.last("on_user_message");
    scene.call(&event, "sendBotMessage").await;
    assert_eq!(scene.user.repeated_calls(), []);
    scene.call(&event, "sendBotMessage").await;
    assert_eq!(scene.user.bot_read(), ["hello", "hello"]);
    let repeated = scene.user.repeated_calls();
    assert_eq!((repeated.len(), repeated[0].call.as_str()), (1, "sendBotMessage"));
    scene.switch(BotKitSwitches { repeated_call: RepeatedCall::Ignored, ..BotKitSwitches::default() });
    assert_eq!(scene.call(&event, "sendBotMessage").await, 200);
    assert_eq!(scene.user.bot_read().len(), 2);
    scene.switch(BotKitSwitches { repeated_call: RepeatedCall::Refused, ..BotKitSwitches::default() });
    assert_eq!(scene.call(&event, "sendBotMessage").await, 400);
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
    // A loaded page has no words either: the bot welcomes its user.
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
async fn a_file_is_fetched_with_the_token_of_the_bot() {
    let scene = Scene::help_desk().await;
    let file = UserFile::new("bill.pdf", "application/pdf", vec![7; 1 << 20]);
    scene.user.sends_file(&file, Some("my bill")).await;
    let item = scene.server.last("on_user_message")["channel"]["attachments"][0].clone();
    assert_eq!(item["fileName"], "bill.pdf");
    let url = item["fileUrl"].as_str().unwrap().to_owned();
    let get = || scene.bench.client.get(&url);
    assert_eq!(get().send().await.unwrap().status(), 401);
    let fetched = get().header("auth", signed(60, &BotSettings::default())).send().await.unwrap();
    assert_eq!((fetched.status().as_u16(), fetched.content_length()), (200, Some(1 << 20)));
    scene.switch(BotKitSwitches {
        files_without_token: true,
        file_shape: FileShape::Nested,
        ..BotKitSwitches::default()
    });
    assert_eq!(get().send().await.unwrap().status(), 200);
    scene.user.sends_file(&file, None).await;
    let item = &scene.server.last("on_user_message")["channel"]["attachments"][0];
    assert!(item["url"]["fileUrl"].is_string() && item.get("fileUrl").is_none());
}

#[tokio::test]
async fn the_history_is_newest_first_and_shows_templates_as_text() {
    let script = BotScript::default().answers("menu", vec![BotStep::buttons("Which one?", &["A", "B"])]);
    let scene = Scene::new(script, BotKitSwitches::default()).await;
    scene.user.says("menu").await;
    scene.passes_on("on_user_message", 1).await;
    scene.passes_on("on_bot_message", 1).await;
    let heard = scene.user.heard().remove(0);
    assert_eq!(heard.template.unwrap()["payload"]["buttons"][1]["title"], "B");
    let url = format!("{}/getMessages?userId=u-1&limit=10", scene.user.base_url());
    let get = || scene.bench.client.get(&url).header("auth", signed(60, &BotSettings::default()));
    let page = json(get().send().await.unwrap()).await;
    let texts = |page: &Value| -> Vec<(Value, String)> {
        let items = page["messages"].as_array().unwrap().iter();
        let text = |item: &Value| item["components"][0]["data"]["text"].as_str().unwrap().to_owned();
        items.map(|item| (item["type"].clone(), text(item))).collect()
    };
    let shown = texts(&page);
    assert_eq!((&shown[0].0, &shown[1]), (&json!("outgoing"), &(json!("incoming"), "menu".to_owned())));
    assert!(shown[0].1.starts_with('{') && shown[0].1.contains("Which one?"));
    scene.switch(BotKitSwitches { oldest_first: true, ..BotKitSwitches::default() });
    assert_eq!(texts(&json(get().send().await.unwrap()).await)[0].1, "menu");
}

#[tokio::test]
async fn alerts_client_events_surveys_and_webhooks_have_calls_of_their_own() {
    let scene = Scene::help_desk().await;
    scene.user.alert("It is time").await;
    assert_eq!(scene.waiting(), ["on_alert"]);
    scene.call(&scene.server.last("on_alert"), "sendAlertMessage").await;
    assert_eq!(scene.user.heard_texts(), ["It is time"]);
    scene.user.client_event("MESSAGE_READ").await;
    scene.call(&scene.server.last("on_client_event"), "sendBotEvent").await;
    assert_eq!(scene.user.client_events()[0]["preDefinedEvent"]["type"], "MESSAGE_READ");
    scene.user.survey("How was it?").await;
    let mut event = scene.server.last("on_bot_message");
    assert_eq!(scene.call(&event, "sendFeedbackMessage").await, 400);
    event["feedbackData"]["score"] = json!(5);
    assert_eq!(scene.call(&event, "sendFeedbackMessage").await, 200);
    assert_eq!((scene.user.feedback().len(), scene.waiting()), (1, vec![]));
    scene.server.answers(202);
    assert_eq!(scene.user.webhook("look it up").await.status, 202);
    assert_eq!(scene.waiting(), ["on_webhook"]);
    let event = scene.server.last("on_webhook");
    assert!(event["callbackUrl"].as_str().is_some_and(|url| url.contains("/serviceCallback/")));
    assert_eq!(scene.call(&event, "serviceCallback").await, 200);
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

#[tokio::test]
async fn users_can_be_played_and_asked_for_over_http() {
    let server = Server::start().await;
    let bots = vec![BotSettings { script: BotScript::help_desk(), ..BotSettings::default() }];
    let bench = Bench::new(SandboxSettings { bots, botkit_url: Some(server.url.clone()), ..by_hand() }).await;
    let send = async |path: &str, body: &str| {
        bench.bare(Method::POST, path).body(body.to_owned()).send().await.unwrap()
    };
    let said = send("/sandbox/users/u-7/say", r#"{"text": "hello", "channel": "msteams"}"#).await;
    assert_eq!(json(said).await["status"], 200);
    for (path, body) in [
        ("/sandbox/users/u-7/sing", "{}"),
        ("/sandbox/users/u-7/say", "{}"),
        ("/sandbox/users/u-7/say", r#"{"text": "x", "channel": "smoke"}"#),
        ("/sandbox/users/u-7/say", r#"{"text": "x", "bot": "st-none"}"#),
    ] {
        assert_eq!(send(path, body).await.status(), 422, "{path} {body}");
    }
    let get = async |path: &str| json(bench.bare(Method::GET, path).send().await.unwrap()).await;
    let waiting = get("/sandbox/events?waiting=true&user=u-7").await;
    assert_eq!(waiting["events"][0]["event"], "on_user_message");
    assert_eq!(get("/sandbox/events?repeated=true").await["events"], json!([]));
    let user = get("/sandbox/users/u-7").await;
    assert_eq!(user["sessions"][0]["channel"], "msteams");
    assert_eq!(user["sessions"][0]["waiting"].as_array().unwrap().len(), 1);
    assert_eq!(bench.bare(Method::GET, "/sandbox/users/u-8").send().await.unwrap().status(), 404);
}
