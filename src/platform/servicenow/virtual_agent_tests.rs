//! Tests of the Virtual Agent API against small remote sides, and of its documented callbacks.

use secrecy::SecretString;

use super::*;
use crate::message::MessageId;
use crate::platform::error::{AnswerKind, ErrorAnswer};
use crate::platform::peer::{self, Peer};

fn fixture(name: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/servicenow/");
    std::fs::read_to_string(format!("{path}{name}")).unwrap()
}

fn client(url: &Url, message_auth: MessageAuth) -> ServiceNow {
    let settings = ServiceNowSettings {
        host_url: url.clone(),
        login: ServiceNowLogin::Basic {
            username: "chatbot_interface".into(),
            password: "hush-password".into(),
        },
        queue_id: None,
    };
    let virtual_agent = VirtualAgentSettings { start_action: StartAction::Agent, message_auth };
    ServiceNow::with_virtual_agent(peer::http(), settings, virtual_agent)
}

fn c() -> ConversationId {
    ConversationId::parse("c-1").unwrap()
}

fn json(body: &str) -> String {
    format!("HTTP/1.1 200 OK\ncontent-type: application/json;charset=UTF-8\n\n{body}")
}

async fn told(answer: &str) -> Result<(), CallError> {
    let peer = Peer::saying(answer).await;
    let client = client(&peer.url, MessageAuth::default());
    client.send_to_agent(&c(), "g", MessageId::derived("test", "1"), "my secret words", None).await
}

#[tokio::test]
async fn a_success_says_so_in_its_body() {
    told(&json(r#"{"status":"success"}"#)).await.unwrap();
    told(&json(r#"{"result":{"status":"success"}}"#)).await.unwrap();
    told(&fixture("va-update-messages.http")).await.unwrap();
    for nothing in ["{}", r#"{"result":{}}"#, "[]", "ok"] {
        assert!(matches!(told(&json(nothing)).await, Err(CallError::NoAnswer(_))), "{nothing}");
    }
}

#[tokio::test]
async fn a_failure_is_read_from_its_words() {
    let failure = |words: &str| json(&format!(r#"{{"status":"failure","error":{{"message":"{words}"}}}}"#));
    let table = [
        ("User is unauthorized", AnswerKind::Credentials),
        ("Invalid token", AnswerKind::Credentials),
        ("Conversation not found", AnswerKind::Gone),
        ("The conversation has ended", AnswerKind::Gone),
        ("message is required", AnswerKind::Permanent),
        ("Something went wrong", AnswerKind::Temporary),
    ];
    for (words, expected) in table {
        let Err(CallError::Answer(ErrorAnswer { status, kind, said, .. })) = told(&failure(words)).await
        else {
            panic!("{words} was no answer");
        };
        assert_eq!((status, kind, said.reveal()), (200, expected, words));
    }
    let Err(CallError::Answer(answer)) = told(&fixture("va-failure.http")).await else { panic!("no answer") };
    assert_eq!(
        (answer.kind, answer.said.reveal()),
        (AnswerKind::Permanent, "Missing parameter: userId is required")
    );
    let error = told(&failure("cannot say my secret words")).await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("secret"));
}

#[tokio::test]
async fn an_end_of_what_is_not_there_is_an_end() {
    for answer in [
        json(r#"{"status":"failure","error":{"message":"No active conversation"}}"#),
        fixture("error-404-no-record.http"),
        json(r#"{"status":"success"}"#),
    ] {
        let peer = Peer::saying(&answer).await;
        client(&peer.url, MessageAuth::default()).leave(&c(), "g").await.unwrap();
        let heard = peer.heard.lock().unwrap().join("");
        assert!(heard.contains(r#""action":"END_CONVERSATION""#) && heard.contains(r#""requestId":"end-g""#));
    }
}

#[tokio::test]
async fn both_proofs_go_along() {
    let auth = || Some(SecretString::from("ORANGE"));
    let peer = Peer::saying(json(r#"{"status":"success"}"#)).await;
    let message_auth = MessageAuth { token: auth(), hmac: auth() };
    // The signature of `{"a":1}`, computed with another tool.
    let headers = message_auth.headers(r#"{"a":1}"#).unwrap();
    assert_eq!(headers["x-b2b-signature"], "fcbdf2a5f1941d7a9aa5874e34417ce0d1b1c6d8");
    assert!(headers["token"].is_sensitive());
    client(&peer.url, message_auth).fault(&c(), "g").await.unwrap();
    let heard = peer.heard.lock().unwrap().join("");
    assert!(heard.contains("token: ORANGE\r\n") && heard.contains("x-b2b-signature: "));
}

#[tokio::test]
async fn whether_the_api_is_there_is_asked_without_posting() {
    for (name, there) in [("va-get-405.http", true), ("error-400-no-such-resource.http", false)] {
        let peer = Peer::saying(fixture(name)).await;
        assert_eq!(client(&peer.url, MessageAuth::default()).virtual_agent_installed().await.is_ok(), there);
        assert!(peer.heard.lock().unwrap()[0].starts_with("GET /api/sn_va_as_service/bot/integration "));
    }
}

fn read(name: &str) -> VirtualAgentCallback {
    VirtualAgentCallback::read(fixture(name).as_bytes(), None).unwrap()
}

#[test]
fn the_documented_callbacks_mean_what_they_say() {
    let queued = ChatSign::Queued { wait: Some("8 Seconds".to_owned()) };
    // The sign, whether an agent came, whether the chat is over, the id of the chat.
    let uuid = "5f0c7a52-6d0e-5d0f-9a4f-1f7d0c1b2a30";
    let table = [
        ("va-start-greeting.json", None, false, false, uuid),
        ("va-stand-by.json", Some(ChatSign::AgentChat), false, false, uuid),
        ("va-wait-time.json", Some(queued), false, false, "g"),
        ("va-agent-text.json", Some(ChatSign::AgentCame), true, false, "g"),
        ("va-end-live-agent.json", None, false, true, "g"),
        ("va-fault.json", None, false, true, "g"),
        ("va-label.json", None, false, true, "g"),
    ];
    for (name, sign, came, over, group) in table {
        let callback = read(name);
        assert_eq!(callback.sign(), sign, "{name}");
        assert_eq!((callback.agent_came(), callback.over()), (came, over), "{name}");
        assert_eq!(callback.group.as_deref(), Some(group), "{name}");
    }
    assert_eq!(read("va-agent-text.json").agent(), Some("Beth Anglin"));
    assert!(read("va-label.json").items[0].meaning == ItemMeaning::Text("File got".to_owned()));
}

#[test]
fn a_connect_callback_is_none_of_these() {
    assert!(VirtualAgentCallback::read(fixture("callback-stock.json").as_bytes(), None).is_none());
    assert!(VirtualAgentCallback::read(b"[1]", None).is_none());
}

/// What the first item of a callback says.
fn parse(item: &str) -> ItemMeaning {
    let instance = Url::parse("https://acme.service-now.com").unwrap();
    let body = format!(r#"{{"clientSessionId":"g","body":[{item}]}}"#);
    let callback = VirtualAgentCallback::read(body.as_bytes(), Some(&instance)).unwrap();
    callback.items.into_iter().next().unwrap().meaning
}

/// FACTS.md, controls of va-api-controls.md: the words and every address.
#[test]
fn items_of_one_callback_are_read_one_by_one() {
    let text = |item: &str| match parse(item) {
        ItemMeaning::Text(text) | ItemMeaning::Notice(text) => text,
        ItemMeaning::Question(question) => question.text,
        ItemMeaning::Unknown(text) => format!("unknown: {text:?}"),
        _ => String::new(),
    };
    for (item, expected) in [
        (
            r#"{"uiType":"OutputCard","data":"{\"title\":\"INC1\",\"fields\":[{\"fieldLabel\":\"State\",\"fieldValue\":\"New\"}],\"url\":\"https://x/1\"}"}"#,
            "INC1\nState: New\nhttps://x/1",
        ),
        (
            r#"{"uiType":"OutputCard","templateName":"Small image with text","data":"{\"image\":\"/c.png\",\"description\":\"where it is\",\"title\":\"The button\",\"imageAlt\":\"a button\",\"url\":\"\"}"}"#,
            "The button\nwhere it is\na button\nhttps://acme.service-now.com/c.png",
        ),
        (
            r#"{"uiType":"OutputCard","data":"{\"title\":\"Film\",\"description\":\"a film\",\"link\":\"https://x/v\",\"id\":\"IWs\"}"}"#,
            "Film\na film\nhttps://x/v",
        ),
        (r#"{"uiType":"OutputCard","data":"{\"message\":\"of another template\"}"}"#, "of another template"),
        (
            r#"{"uiType":"GroupedPartsOutputControl","header":"Articles","values":[{"label":"One","action":"https://x/1"},{"label":"Two","description":"<b>2</b>"}]}"#,
            "Articles\nOne\nhttps://x/1\nTwo\n2",
        ),
        (
            r#"{"uiType":"OutputHtml","value":"<p>Read <a href='/kb?a=1&amp;b=2'>this</a></p>","links":[{"link":"/kb?a=1&b=2","label":"this"},{"link":"https://x/2","label":"that"}],"imageUrl":"https://x/i.png"}"#,
            "Read this (https://acme.service-now.com/kb?a=1&b=2)\nthat\nhttps://x/2\nhttps://x/i.png",
        ),
        (r#"{"uiType":"OutputText","value":"it&#39;s &lt;done&gt;"}"#, "it's <done>"),
        (
            r#"{"uiType":"OutputImage","value":"https://x/s.png","altText":"a picture"}"#,
            "a picture\nhttps://x/s.png",
        ),
        (
            r#"{"uiType":"OutputLink","label":"Portal","header":"go here","value":{"action":"/sp","target":"_blank"}}"#,
            "go here\nPortal\nhttps://acme.service-now.com/sp",
        ),
        (
            r#"{"uiType":"MultiPartOutput","navigationBtnLabel":"More","content":{"uiType":"OutputText","value":"part one"}}"#,
            "part one\n(More)",
        ),
        (
            r#"{"uiType":"MultiPartOutput","content":{"uiType":"OutputHtml","value":"<b>the end</b>"}}"#,
            "the end",
        ),
        (
            r#"{"uiType":"Picker","label":"which?","options":[{"label":"red","description":"the red one","attachment":"https://x/r.png","value":"v1"},{"label":"blue","value":"v2"}]}"#,
            "which?\n1. red: the red one\nhttps://x/r.png\n2. blue",
        ),
        (r#"{"uiType":"FileUpload","label":"Send a picture"}"#, "Send a picture"),
        (r#"{"uiType":"Date","label":"When?"}"#, "When?"),
        (r#"{"uiType":"StreamStart","value":"Looking into your request","streamId":"s"}"#, ""),
        (r#"{"uiType":"StreamChunk","value":"The ans","streamId":"s","streamSequence":1}"#, ""),
        (
            r#"{"uiType":"ActionMsg","actionType":"System","message":"X has entered the chat."}"#,
            "X has entered the chat.",
        ),
        (r#"{"uiType":"ActionMsg","actionType":"ChatSubHeader","message":"A topic began"}"#, "A topic began"),
        (r#"{"uiType":"ActionMsg","actionType":"EndTypingIndicatorActionMsg"}"#, ""),
        (r#"{"uiType":"ActionMsg","actionType":"Brandnew"}"#, "unknown: None"),
        (r#"{"uiType":"ActionMsg","actionType":"Brandnew","message":"words"}"#, r#"unknown: Some("words")"#),
        (r#"{"uiType":"Hologram","promptMsg":"look"}"#, r#"unknown: Some("look")"#),
        (
            r#"{"uiType":"Hologram","content":{"values":[{"label":"in","url":"/deep"}]},"group":"DefaultHologram"}"#,
            r#"unknown: Some("in\nhttps://acme.service-now.com/deep")"#,
        ),
        (r#"7"#, "unknown: None"),
    ] {
        assert_eq!(text(item), expected, "{item}");
    }
}

#[test]
fn a_choice_says_what_servicenow_wants_to_get() {
    let choices = |item: &str| match parse(item) {
        ItemMeaning::Question(question) => {
            let pairs = question.choices.into_iter().map(|choice| (choice.title, choice.value));
            pairs.collect::<Vec<_>>()
        }
        _ => panic!("no question: {item}"),
    };
    let pair = |title: &str, value: &str| (title.to_owned(), value.to_owned());
    assert_eq!(
        choices(
            r#"{"uiType":"Picker","label":"which?","options":[{"label":"North","value":"n"},{"label":"South"},"West"]}"#
        ),
        [pair("North", "n"), pair("South", "South"), pair("West", "West")]
    );
    assert_eq!(
        choices(
            r#"{"uiType":"MultiPartOutput","navigationBtnLabel":"More","content":{"uiType":"OutputText","value":"x"}}"#
        ),
        [pair("More", "click_for_more")]
    );
    assert_eq!(choices(r#"{"uiType":"InputText","label":"Your tag?"}"#), []);
}
