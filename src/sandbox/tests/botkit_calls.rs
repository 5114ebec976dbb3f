//! The calls of the simulated BotKit API: which calls are accepted, which are refused, and the effect of each.

use serde_json::json;

use super::botkit_server::{Scene, Server, signed};
use super::*;
use crate::sandbox::botkit::{
    BotScript, BotStep, ClearOfLapsed, FileShape, RepeatedCall, SigningAlgorithm, UserFile, token,
};
use crate::sandbox::{BotKitSwitches, BotSettings};

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
        other(|bot| bot.algorithm = SigningAlgorithm::Hs512),
        other(|bot| bot.algorithm = SigningAlgorithm::None),
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

    let strict = BotSettings { algorithm: SigningAlgorithm::Hs512, ..BotSettings::default() };
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
