//! Tests a whole conversation of a user of XO over both ServiceNow APIs: the bot, the handoff with the transcript, an
//! agent, files both ways, the end, the bot again.

use causeway::sandbox::botkit::{BotScript, BotUser, UserFile};
use causeway::sandbox::{BotKitSwitches, BotSettings};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::botkit::{chat, cleared, heard, quiet, relay_of, user};
use crate::harness::http;
use crate::harness::matrix::{Bench, Engine};
use crate::harness::ports;
use crate::harness::relay::Relay;

const PICTURE: &[u8] = b"\x89PNG\r\n\x1a\n a picture of the fire";
const PLAN: &[u8] = b"\x89PNG\r\n\x1a\n a plan of the exits";

/// One of the two APIs of ServiceNow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ServiceNowApi {
    ConnectSupport,
    VirtualAgent,
}

impl ServiceNowApi {
    const fn setting(self) -> &'static str {
        match self {
            Self::ConnectSupport => "connect_support",
            Self::VirtualAgent => "virtual_agent",
        }
    }
}

/// The requests to the Virtual Agent API, in order.
fn virtual_agent_requests(relay: &Relay) -> Vec<Value> {
    let is_request = |path: &str, outbound: bool| path.contains("sn_va_as_service") && !outbound;
    let found = relay.sandbox.ledger().find(|entry| is_request(&entry.path, entry.outbound));
    found.iter().filter_map(|entry| serde_json::from_str(&entry.body).ok()).collect()
}

async fn agent_reads(relay: &Relay, group: &str, text: &str) {
    relay
        .until(&format!("the agent to read {text:?}"), |relay| {
            let said = relay.said(group);
            if said.iter().any(|said| said.contains(text)) { Ok(()) } else { Err(format!("{said:?}")) }
        })
        .await;
}

/// The agent can read what the user and the bot wrote before the handoff, oldest first (`src/platform/xo/FACTS.md`:
/// `getMessages` returns the newest first).
fn agent_knows_the_conversation(relay: &Relay, group: &str, api: ServiceNowApi) {
    let wrote = ["My laptop is on fire", "You said: My laptop is on fire", "Get me an agent"];
    let transcript = match api {
        ServiceNowApi::ConnectSupport => relay.said(group)[0].clone(),
        ServiceNowApi::VirtualAgent => virtual_agent_requests(relay)[0].to_string(),
    };
    // The last message of the user is the question itself, so it is not repeated in the transcript.
    let (question, before) = match api {
        ServiceNowApi::ConnectSupport => transcript.split_once("Before:").expect("a transcript"),
        ServiceNowApi::VirtualAgent => (transcript.as_str(), transcript.as_str()),
    };
    assert!(question.contains(wrote[2]), "{transcript}");
    let at = |text: &str| before.find(text).expect("it is in the transcript");
    // The second text contains the first one.
    assert!(at(wrote[0]) < at(wrote[1]), "{transcript}");
}

async fn opened(url: &str) -> Vec<u8> {
    let answer = http::client().get(url).send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK, "{url}");
    answer.bytes().await.expect("a body").to_vec()
}

/// Connect Support takes the upload of a file; the Virtual Agent API takes a link (`src/platform/servicenow/FACTS.md`).
async fn agent_gets_the_users_file(relay: &Relay, group: &str, api: ServiceNowApi) {
    agent_reads(relay, group, "File: fire.png").await;
    match api {
        ServiceNowApi::ConnectSupport => {
            let files = relay.sandbox.files();
            assert!(files.iter().any(|file| file.group == group && file.bytes == PICTURE), "{files:?}");
        }
        ServiceNowApi::VirtualAgent => {
            let requests = virtual_agent_requests(relay);
            let links: Vec<&str> = requests
                .iter()
                .filter_map(|request| request["message"]["attachment"]["url"].as_str())
                .collect();
            assert_eq!(links.len(), 1, "{requests:?}");
            assert_eq!(opened(links[0]).await, PICTURE);
        }
    }
}

async fn agent_sends_a_file(relay: &Relay, group: &str, api: ServiceNowApi) {
    match api {
        ServiceNowApi::ConnectSupport => {
            relay
                .sandbox
                .agent_sends_file(group, "plan.png", "image/png", PLAN)
                .await
                .expect("the chat is open");
        }
        ServiceNowApi::VirtualAgent => {
            let id = relay.sandbox.keep_file(group, "plan.png", "image/png", PLAN);
            let value = format!("{}/api/now/v1/cs/media/{id}", relay.sandbox.servicenow_url());
            let item = json!({"uiType": "OutputImage", "altText": "plan.png", "value": value, "messageId": "i-1",
                "agentInfo": {"sentFromAgent": true, "agentName": "Beth Anglin"}});
            relay.sandbox.virtual_agent_posts(group, vec![item]).await.expect("the chat is open");
        }
    }
}

/// Waits for the link in the messages of the user, and opens the link.
async fn user_opens_the_agents_file(relay: &Relay, user: &BotUser, public: &str) {
    let link = || {
        user.heard().iter().find_map(|heard| {
            let read = heard.template.as_ref().map_or_else(|| heard.text.clone(), Value::to_string);
            let is_in_link = |letter: &char| !letter.is_whitespace() && !['"', '\\', ')'].contains(letter);
            read.find(public).map(|at| read[at..].chars().take_while(is_in_link).collect::<String>())
        })
    };
    relay
        .until("the user to get the link", |_| link().map(|_| ()).ok_or(format!("{:?}", user.heard())))
        .await;
    assert_eq!(opened(&link().expect("it is there")).await, PLAN);
}

/// Checks that no message is read twice, no call is made twice, and XO waits for no call.
fn nothing_is_left_over(relay: &Relay, user: &BotUser) {
    assert_eq!(relay.sandbox.waiting_events().len(), 0, "{:?}", relay.sandbox.waiting_events());
    assert_eq!(user.repeated_calls(), []);
    let read = user.heard_texts();
    let twice = read.iter().enumerate().find(|(at, text)| read[..*at].contains(text));
    assert_eq!(twice, None, "{read:?}");
}

async fn a_whole_conversation(bench: &Bench, api: ServiceNowApi, switches: BotKitSwitches) {
    let bot = BotSettings { script: BotScript::help_desk(), ..BotSettings::default() };
    let [port] = ports::free_ports();
    let public = format!("http://127.0.0.1:{port}");
    let listen = format!("127.0.0.1:{port}");
    let settings =
        [("servicenow.api", api.setting()), ("files.public_url", public.as_str()), ("files.listen", &listen)];
    let relay = relay_of(bench, vec![bot], &settings).await;
    relay.sandbox.set_botkit(switches);
    let user = user(&relay, "u-1");
    user.says("My laptop is on fire").await;
    heard(&relay, &user, "You said: My laptop is on fire").await;
    user.says("Get me an agent").await;
    heard(&relay, &user, "I will get an agent for you.").await;
    let group = chat(&relay).await;
    // The agent writes after Causeway has recorded the chat.
    heard(&relay, &user, "Please wait").await;
    assert!(user.is_with_agent());
    agent_knows_the_conversation(&relay, &group, api);
    relay.sandbox.agent_accept(&group).await.expect("the chat waits");
    heard(&relay, &user, "An agent has joined").await;
    for (asks, answers) in [("Is it hot?", "Please pour water on it"), ("And now?", "Now it is wet")] {
        assert_eq!(user.says(asks).await.status, 200);
        agent_reads(&relay, &group, asks).await;
        relay.sandbox.agent_says(&group, answers).await.expect("the chat is open");
        heard(&relay, &user, answers).await;
    }
    assert_eq!(user.sends_file(&UserFile::new("fire.png", "image/png", PICTURE), None).await.status, 200);
    agent_gets_the_users_file(&relay, &group, api).await;
    agent_sends_a_file(&relay, &group, api).await;
    user_opens_the_agents_file(&relay, &user, &public).await;
    let bot_read = user.bot_read();
    assert_eq!(bot_read, ["My laptop is on fire", "Get me an agent"], "the agent's user is not the bot's");
    relay.sandbox.agent_closes(&group).await.expect("the chat is open");
    cleared(&relay, &user).await;
    quiet(&relay).await;
    assert!(!user.is_with_agent());
    user.says("Thank you").await;
    heard(&relay, &user, "You said: Thank you").await;
    quiet(&relay).await;
    assert_eq!((user.sessions(), user.clears()), (1, 1));
    assert_eq!(user.bot_read(), ["My laptop is on fire", "Get me an agent", "Thank you"]);
    assert_eq!(relay.dead_letters().await.len(), 0);
    nothing_is_left_over(&relay, &user);
    // The bot's last message before the transfer comes before the agent's first message.
    let read = user.heard_texts();
    let at = |text: &str| read.iter().position(|read| read.contains(text)).expect("it was read");
    assert!(at("I will get an agent") < at("Please wait") && at("Please wait") < at("water"), "{read:?}");
    assert!(at("Now it is wet") < at("has ended") && at("has ended") < at("You said: Thank you"), "{read:?}");
}

on_every_engine! {
    // With onMessage subscribed, XO waits for Causeway's calls in each turn (`src/platform/xo/FACTS.md`).
    async fn a_user_goes_from_the_bot_to_an_agent_and_back_over_connect_support(bench: Bench) {
        a_whole_conversation(&bench, ServiceNowApi::ConnectSupport, BotKitSwitches::default()).await;
    }

    async fn a_user_goes_from_the_bot_to_an_agent_and_back_over_the_virtual_agent_api(bench: Bench) {
        a_whole_conversation(&bench, ServiceNowApi::VirtualAgent, BotKitSwitches::default()).await;
    }
}

/// If only OnAgentTransferNode is subscribed, XO talks to its bot without the BotKit server
/// (`src/platform/xo/FACTS.md`).
#[tokio::test(flavor = "multi_thread")]
async fn a_bot_whose_messages_are_not_subscribed_hands_over_and_takes_back() {
    let bench = Engine::Embedded.bench().expect("it is always there");
    let switches = BotKitSwitches { on_message: false, ..BotKitSwitches::default() };
    a_whole_conversation(&bench, ServiceNowApi::ConnectSupport, switches).await;
}
