//! Tests of the client against small remote sides: every fixture, the rules of the session, and the search for lost
//! calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::IntoResponse;
use axum::routing::any;
use tokio::sync::Notify;
use url::Url;

use super::*;
use crate::message::Callback;
use crate::platform::error::{AnswerKind, ErrorAnswer, NoAnswerKind, NotReady, SentState};
use crate::platform::peer::{self, Peer};

const OK: &str = "HTTP/1.1 200 OK\ncontent-type: application/json;charset=UTF-8\n\n";
const GROUP: &str = "5f1c0a2edb31220064d3f2f6bf961901";
const TEXT: &str = "My laptop is on fire";

fn basic(username: &str, password: &str) -> ServiceNowLogin {
    ServiceNowLogin::Basic { username: username.into(), password: password.into() }
}

fn client(url: &Url) -> ServiceNow {
    let settings = ServiceNowSettings {
        host_url: url.clone(),
        login: basic("chatbot_interface", "hush-password"),
        queue_id: Some("q".into()),
    };
    ServiceNow::new(peer::http(), settings)
}

fn conversation(name: &str) -> ConversationId {
    ConversationId::parse(name).unwrap()
}

fn c() -> ConversationId {
    conversation("c-1")
}

fn fixture(name: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/servicenow/");
    std::fs::read_to_string(format!("{path}{name}")).unwrap()
}

/// The whole answer. A fixture that is only a body gets a head.
fn answer(name: &str) -> String {
    let text = fixture(name);
    if name.ends_with(".http") { text } else { format!("{OK}{text}") }
}

async fn peer(name: &str) -> (Peer, ServiceNow) {
    let peer = Peer::saying(answer(name)).await;
    let client = client(&peer.url);
    (peer, client)
}

fn answered<T: std::fmt::Debug>(result: Result<T, CallError>) -> ErrorAnswer {
    match result.unwrap_err() {
        CallError::Answer(answer) => answer,
        CallError::NoAnswer(no_answer) => panic!("{no_answer}"),
    }
}

fn no_answer<T: std::fmt::Debug>(result: Result<T, CallError>) -> (SentState, NoAnswerKind) {
    match result.unwrap_err() {
        CallError::NoAnswer(no_answer) => (no_answer.sent, no_answer.kind),
        CallError::Answer(answer) => panic!("{answer}"),
    }
}

#[tokio::test]
async fn every_answer_is_read() {
    let mut names: Vec<String> =
        std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/servicenow"))
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "SOURCES.md" && !name.starts_with("callback-") && !name.starts_with("va-"))
            .collect();
    names.sort();
    assert!(names.len() > 25);
    for name in names {
        let (_peer, client) = peer(&name).await;
        match name.split(['-', '.']).next().unwrap() {
            "queue" => assert!(client.queue("q").await.unwrap().waiting.is_some(), "{name}"),
            "queues" => assert_eq!(client.queues().await.unwrap().len(), 2),
            "start" if name.ends_with(".json") || name.contains("session") => {
                let entry = client.start(&c(), "q", TEXT).await.unwrap();
                let read = (entry.group.as_str(), entry.position, entry.state, entry.is_open());
                assert_eq!(read, (GROUP, Some(3), Some(ChatState::Waiting), true), "{name}");
                assert_eq!(entry.number.as_deref(), Some("CHAT0001042"));
                assert_eq!(entry.assigned_to, None);
            }
            "start" => {
                let kind = answered(client.start(&c(), "q", TEXT).await).kind;
                assert!(matches!(kind, AnswerKind::Business(text) if !text.contains('<')), "{name}");
            }
            "state" => check_state(&name, client.state(&c(), GROUP).await.unwrap()),
            "sessions" => {
                assert!(!client.find_started(&c(), "q", whole(TEXT)).await.unwrap().is_empty(), "{name}")
            }
            "leave" => client.leave(&c(), GROUP).await.unwrap(),
            "message" => assert!(client.send(&c(), GROUP, TEXT, &[]).await.unwrap().sys_id.is_some()),
            "messages" if name.ends_with(".json") => {
                client.find_sent(&c(), GROUP, TEXT, ReadSince::Start).await.unwrap();
            }
            _ => check_refusal(&name, answered(client.send(&c(), GROUP, TEXT, &[]).await)),
        }
    }
}

fn check_state(name: &str, entry: Option<QueueEntry>) {
    let seen = entry.as_ref().and_then(|entry| entry.state.map(|state| (state.is_open(), state.ended_by())));
    let expected = match name {
        "state-none.json" => None,
        "state-waiting.json" | "state-active.json" => Some((true, None)),
        "state-closed-complete.json" => Some((false, Some(EndedBy::Agent))),
        "state-closed-escalated.json" => Some((false, Some(EndedBy::Escalation))),
        _ => Some((false, Some(EndedBy::User))),
    };
    assert_eq!(seen, expected, "{name}");
    if name == "state-active.json" {
        assert!(entry.unwrap().assigned_to.is_some());
    }
}

fn check_refusal(name: &str, answer: ErrorAnswer) {
    let seconds = answer.retry_after.map(|wait| wait.as_secs());
    let (kind, wait) = match name {
        "accepted-202.http" => (AnswerKind::NotReady(NotReady::Accepted), None),
        "page-hibernating.http" => (AnswerKind::NotReady(NotReady::Html), None),
        "redirect-login.http" => (AnswerKind::NotReady(NotReady::Redirect), None),
        "error-401-not-authenticated.http" => (AnswerKind::Credentials, None),
        "error-400-no-such-resource.http" | "error-403-insufficient-rights.http" => {
            (AnswerKind::Permanent, None)
        }
        "messages-403-no-member.http" => {
            (AnswerKind::Business("You are not a member of this conversation".into()), None)
        }
        "error-404-no-record.http" | "accept-404-empty.http" => (AnswerKind::Gone, None),
        "error-429-rate-limit.http" => (AnswerKind::Throttled, Some(42)),
        "error-429-semaphore.http" => (AnswerKind::Throttled, None),
        other => panic!("nobody says what {other} means"),
    };
    assert_eq!(answer.is_no_such_api(), name.contains("no-such-resource"), "{name}");
    assert_eq!((answer.kind, seconds), (kind, wait), "{name}");
}

#[test]
fn every_callback_is_what_it_claims_to_be() {
    let folder =
        std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/servicenow")).unwrap();
    let names = folder.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut seen = 0;
    for name in names.filter(|name| name.starts_with("callback-")) {
        let read = serde_json::from_str::<Callback>(&fixture(&name));
        match read {
            Ok(callback) => assert!(name.ends_with(".json") && callback.group == GROUP, "{name}"),
            Err(_) => assert!(name.ends_with(".txt"), "{name}"),
        }
        seen += 1;
    }
    assert_eq!(seen, 10);
}

#[tokio::test]
async fn every_call_has_its_documented_form() {
    let (peer, client) = peer("start-waiting.json").await;
    client.start(&c(), "q 1/x", "say \"hi\"\n<b>").await.unwrap();
    client.send(&c(), GROUP, "안녕", &[]).await.unwrap();
    client.leave(&c(), GROUP).await.unwrap();
    client.state(&c(), GROUP).await.unwrap();
    let heard = peer.heard.lock().unwrap();
    for request in heard.iter() {
        assert!(request.contains("accept: application/json"), "{request}");
        assert!(request.contains("content-type: application/json"), "{request}");
        // chatbot_interface:hush-password
        assert!(
            request.contains("authorization: Basic Y2hhdGJvdF9pbnRlcmZhY2U6aHVzaC1wYXNzd29yZA=="),
            "{request}"
        );
    }
    assert!(heard[0].starts_with("POST /api/now/connect/support/queues/q%201%2Fx/sessions HTTP/1.1"));
    assert!(heard[0].ends_with(r#"{"message":"say \"hi\"\n<b>"}"#));
    assert!(heard[1].starts_with(&format!("POST /api/now/connect/conversations/{GROUP}/messages HTTP/1.1")));
    assert!(heard[1].contains(r#""reflected_field":"comments""#) && heard[1].contains("안녕"));
    assert!(heard[2].starts_with(&format!("POST /api/now/connect/support/sessions/{GROUP}/leave HTTP/1.1")));
    assert!(heard[2].ends_with("\r\n\r\n{}"));
    assert!(
        heard[3].starts_with(&format!("GET /api/now/connect/support/sessions?group_id={GROUP} HTTP/1.1"))
    );
}

#[tokio::test]
async fn an_id_cannot_bend_the_address() {
    let (peer, client) = peer("start-waiting.json").await;
    for id in ["", ".", ".."] {
        assert_eq!(answered(client.start(&c(), id, TEXT).await).kind, AnswerKind::Permanent);
    }
    assert!(peer.heard.lock().unwrap().is_empty());
}

#[tokio::test]
async fn success_without_its_shape_may_have_happened() {
    for body in [
        "HTTP/1.1 200 OK\ncontent-type: application/json\n\n{\"status\":\"failure\"}",
        "HTTP/1.1 200 OK\ncontent-type: application/json\n\n{\"result\":{\"sys_id\":\"x\"}}",
        "HTTP/1.1 200 OK\ncontent-type: application/json\n\n{\"result\":{\"group\":\"My lap",
        "HTTP/1.1 200 OK\ncontent-type: text/plain\n\nok",
        "HTTP/1.1 204 No Content\n\n",
    ] {
        let peer = Peer::saying(body).await;
        let result = client(&peer.url).start(&c(), "q", TEXT).await;
        assert_eq!(no_answer(result), (SentState::Maybe, NoAnswerKind::BadBody), "{body}");
    }
    let page = Peer::saying("HTTP/1.1 200 OK\n\n  <!DOCTYPE HTML><html>").await;
    let kind = answered(client(&page.url).start(&c(), "q", TEXT).await).kind;
    assert_eq!(kind, AnswerKind::NotReady(NotReady::Html));
}

#[tokio::test]
async fn without_an_answer_it_says_whether_it_was_sent() {
    let nobody = client(&peer::nobody().await);
    assert_eq!(no_answer(nobody.send(&c(), GROUP, TEXT, &[]).await), (SentState::No, NoAnswerKind::Connect));
    let cutting = Peer::cutting().await;
    let result = client(&cutting.url).send(&c(), GROUP, TEXT, &[]).await;
    assert_eq!(no_answer(result), (SentState::Maybe, NoAnswerKind::Reset));
    assert_eq!(cutting.heard.lock().unwrap().len(), 1, "a POST is never repeated by itself");
}

#[tokio::test]
async fn nothing_shows_the_password_or_the_text() {
    let said = r#"{"error":{"message":"Bad value: My laptop is on fire","detail":null},"status":"failure"}"#;
    let peer =
        Peer::saying(format!("HTTP/1.1 400 Bad Request\ncontent-type: application/json\n\n{said}")).await;
    let client = client(&peer.url);
    let error = client.send(&c(), GROUP, TEXT, &[]).await.unwrap_err();
    let shown = format!("{client:?} {error:?} {error}");
    // The platform's text may repeat the user's text.
    for secret in ["hush", "laptop", "Bad value", "chatbot_interface"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[tokio::test]
async fn leaving_what_is_over_is_done() {
    for name in
        ["error-404-no-record.http", "error-403-insufficient-rights.http", "messages-403-no-member.http"]
    {
        let (_peer, client) = peer(name).await;
        client.leave(&c(), GROUP).await.unwrap();
    }
    let (_peer, client) = peer("page-hibernating.http").await;
    assert!(client.leave(&c(), GROUP).await.is_err());
}

/// Sets a new session with each answer, and answers 401 to the given session.
fn rotating() -> Router {
    let turn = Arc::new(AtomicUsize::new(0));
    let route = any(move |uri: Uri, headers: HeaderMap| {
        let turn = turn.fetch_add(1, Ordering::SeqCst) + 1;
        let came = headers.get(header::COOKIE).map(|value| value.to_str().unwrap().to_owned());
        async move {
            let cookie = [(header::SET_COOKIE, format!("JSESSIONID=s{turn}; Path=/; HttpOnly"))];
            let refused = came.is_some() && uri.path().contains("/lapsed/");
            let status = match uri.path() {
                path if path.contains("/busy/") => StatusCode::ACCEPTED,
                _ if refused => StatusCode::UNAUTHORIZED,
                _ => StatusCode::OK,
            };
            let body = serde_json::json!({"result": {"sys_id": came.unwrap_or_else(|| "none".into())}});
            (status, cookie, axum::Json(body)).into_response()
        }
    });
    Router::new().route("/{*rest}", route)
}

#[tokio::test]
async fn a_session_is_kept_rotated_and_dropped() {
    let peer = Peer::serving(rotating()).await;
    let client = client(&peer.url);
    let came = async |conversation: &ConversationId, group: &str| {
        client.send(conversation, group, TEXT, &[]).await.unwrap().sys_id.unwrap()
    };
    assert_eq!(came(&c(), "g").await, "none");
    assert_eq!(came(&c(), "g").await, "JSESSIONID=s1");
    assert_eq!(came(&c(), "g").await, "JSESSIONID=s2", "the rotated one");
    assert_eq!(came(&conversation("c-2"), "g").await, "none", "another conversation has its own");
    // Turns 5 and 6: the session is refused, the login alone is accepted.
    assert_eq!(came(&c(), "lapsed").await, "none");
    assert_eq!(came(&c(), "g").await, "JSESSIONID=s6");
    // Turn 8: ServiceNow queued or dropped the request.
    let kind = answered(client.send(&c(), "busy", TEXT, &[]).await).kind;
    assert_eq!(kind, AnswerKind::NotReady(NotReady::Accepted));
    assert_eq!(came(&c(), "g").await, "none");
    client.forget(&c());
    assert_eq!(came(&c(), "g").await, "none");
    client.leave(&c(), "g").await.unwrap();
    assert_eq!(came(&c(), "g").await, "none", "over is over");
}

#[tokio::test]
async fn one_call_at_a_time_for_each_conversation() {
    let (flying, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (arrived, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let route = {
        let (flying, most, arrived, go) = (flying.clone(), most.clone(), arrived.clone(), go.clone());
        any(move || {
            let (flying, most, arrived, go) = (flying.clone(), most.clone(), arrived.clone(), go.clone());
            async move {
                most.fetch_max(flying.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                arrived.notify_one();
                go.notified().await;
                flying.fetch_sub(1, Ordering::SeqCst);
                axum::Json(serde_json::json!({"result": {"sys_id": "m"}}))
            }
        })
    };
    let peer = Peer::serving(Router::new().route("/{*rest}", route)).await;
    let client = client(&peer.url);
    assert!(!client.busy(&c()));
    let calls: Vec<_> = (0..4)
        .map(|_| {
            let client = client.clone();
            crate::tasks::spawn(async move { client.send(&c(), GROUP, TEXT, &[]).await })
        })
        .collect();
    arrived.notified().await;
    assert!(client.busy(&c()));
    let other = {
        let client = client.clone();
        crate::tasks::spawn(async move { client.send(&conversation("c-2"), GROUP, TEXT, &[]).await })
    };
    arrived.notified().await;
    assert_eq!(flying.load(Ordering::SeqCst), 2, "two conversations, one call each");
    for call in calls.into_iter().chain([other]) {
        while !call.is_finished() {
            go.notify_one();
            tokio::task::yield_now().await;
        }
        call.await.unwrap().unwrap();
    }
    assert_eq!(most.load(Ordering::SeqCst), 2);
    assert!(!client.busy(&c()));
}

#[tokio::test]
async fn a_lost_start_is_found_among_the_open_ones() {
    let (_peer, client) = peer("sessions-nested.json").await;
    let found = client.find_started(&c(), "q", whole(TEXT)).await.unwrap();
    let read: Vec<_> = found.iter().map(|one| (one.entry.number.as_deref().unwrap(), one.certain)).collect();
    // Excluded: the closed chat, the other text and the longer text. The chat without a text must be read.
    assert_eq!(read, [("CHAT0001043", false), ("CHAT0001042", true)]);
    let long = format!("My laptop is on fire and {}", "the smoke alarm keeps ringing while ".repeat(6));
    let found = client.find_started(&c(), "q", whole(&long)).await.unwrap();
    let read: Vec<_> = found.iter().map(|one| (one.entry.number.as_deref().unwrap(), one.certain)).collect();
    assert_eq!(read, [("CHAT0001045", false), ("CHAT0001043", false), ("CHAT0001042", false)]);
}

#[tokio::test]
async fn a_list_that_is_too_long_holds_no_start_up() {
    let chat = r#"{"group":"g","queueEntry":{"sys_id":"e","group":"g","state":1,"short_description":""}}"#;
    let many = vec![chat; crate::platform::http::ANSWER_BYTES_MAX / chat.len() + 1].join(",");
    let list = format!("HTTP/1.1 200 OK\ncontent-type: application/json\n\n{{\"result\":[{many}]}}");
    let peer = Peer::saying(list).await;
    let found = client(&peer.url).find_started(&c(), "q", whole(TEXT)).await;
    assert_eq!(found, Ok(Vec::new()), "rather two chats than none");
}

fn whole(text: &str) -> StartText<'_> {
    StartText { whole: text, begins: None }
}

#[tokio::test]
async fn a_start_whose_end_can_differ_is_found_by_its_beginning() {
    let (_peer, client) = peer("sessions-nested.json").await;
    let begins = StartText { whole: "My laptop", begins: Some("My laptop is on") };
    let found = client.find_started(&c(), "q", begins).await.unwrap();
    let read: Vec<_> = found.iter().map(|one| (one.entry.number.as_deref().unwrap(), one.certain)).collect();
    // Each of them must be read, because only the beginning of the text is known.
    assert_eq!(read, [("CHAT0001045", false), ("CHAT0001043", false), ("CHAT0001042", false)]);
    let other = StartText { whole: "My printer", begins: Some("My printer is on") };
    let found = client.find_started(&c(), "q", other).await.unwrap();
    assert_eq!(found.len(), 1, "only the entry without a text can be of this start: {found:?}");
}

#[tokio::test]
async fn a_look_tells_which_chat_opened_so() {
    let (_peer, client) = peer("messages.json").await;
    let opening = client.opening_of(&c(), GROUP).await.unwrap().unwrap();
    assert!(opening.is(TEXT) && !opening.is("Is anybody there?"));
    assert!(opening.recognisable().contains(&recognisable(TEXT)[0]));
    let (_peer, client) = peer("messages-none.json").await;
    assert!(client.opening_of(&c(), GROUP).await.unwrap().is_none());
}

/// A conversation with these texts of our user, newest first.
fn talk(texts: &[(&str, &str)]) -> String {
    talk_after(0, texts)
}

/// The same, all of it written after a time.
fn talk_after(start: usize, texts: &[(&str, &str)]) -> String {
    let messages = texts.iter().rev().enumerate().map(|(time, (id, text))| {
        let time = start + time;
        serde_json::json!({
            "sys_id": id, "created_by": "Chatbot_Interface", "formatted_message": text, "timestamp": time,
        })
    });
    let mut messages = messages.collect::<Vec<_>>();
    messages.reverse();
    format!("{OK}{}", serde_json::json!({ "result": messages }))
}

async fn found(pages: &[String], text: &str, since: ReadSince<'_>) -> Option<String> {
    let pages: Vec<&str> = pages.iter().map(String::as_str).collect();
    let peer = Peer::saying_each(&pages).await;
    client(&peer.url).find_sent(&c(), GROUP, text, since).await.unwrap().and_then(|posted| posted.sys_id)
}

#[tokio::test]
async fn equal_texts_are_told_apart_by_where_they_stand() {
    let twice = [talk(&[("m3", "yes"), ("m2", "yes"), ("m1", "hello")])];
    let once = [talk(&[("m2", "yes"), ("m1", "hello")])];
    assert_eq!(found(&twice, "yes", ReadSince::Message("m2")).await.as_deref(), Some("m3"));
    assert_eq!(found(&once, "yes", ReadSince::Message("m2")).await, None, "the first yes is not the second");
    assert_eq!(found(&once, "yes", ReadSince::Start).await.as_deref(), Some("m2"));
    // The message that opened the chat is not the message after it, even with the same text.
    assert_eq!(found(&[talk(&[("m1", "hello")])], "hello", ReadSince::Start).await, None);
    let echo = [talk(&[("m2", "hello"), ("m1", "hello")])];
    assert_eq!(found(&echo, "hello", ReadSince::Start).await.as_deref(), Some("m2"));
    // Without the landmark the result is in doubt: a repeated message is better than a lost one.
    assert_eq!(found(&twice, "yes", ReadSince::Message("m9")).await, None);
}

#[tokio::test]
async fn a_landmark_on_an_older_page_is_found() {
    let pages = [
        talk_after(3, &[("m5", "yes"), ("m4", "other")]),
        talk(&[("m3", "third"), ("m2", "yes"), ("m1", "hello")]),
        talk(&[]),
    ];
    assert_eq!(found(&pages, "yes", ReadSince::Message("m3")).await.as_deref(), Some("m5"));
    assert_eq!(found(&pages, "third", ReadSince::Message("m2")).await.as_deref(), Some("m3"));
}

/// FACTS.md: `before` is known from the browser client alone. An instance that ignores it answers with the newest page
/// again, perhaps with rows that were written since.
#[tokio::test]
async fn an_instance_that_ignores_the_page_reorders_nothing() {
    let row = |id: &str, time: u64| serde_json::json!({ "sys_id": id, "created_by": "beth", "timestamp": time, "formatted_message": id });
    let page = |rows: Vec<serde_json::Value>| format!("{OK}{}", serde_json::json!({ "result": rows }));
    let read = async |pages: &[String], since: Option<&str>| {
        let pages: Vec<&str> = pages.iter().map(String::as_str).collect();
        let peer = Peer::saying_each(&pages).await;
        let history = client(&peer.url).messages_since(&c(), GROUP, since).await.unwrap();
        (history.messages.into_iter().map(|heard| heard.sys_id).collect::<Vec<_>>(), history.is_complete)
    };
    let first = page(vec![row("line 0", 10), row("greeting", 5)]);
    let second = page(vec![row("line 1", 11), row("line 0", 10), row("greeting", 5)]);
    let (heard, is_complete) = read(&[first.clone(), second.clone(), second], None).await;
    assert_eq!((heard, is_complete), (vec!["greeting".to_owned(), "line 0".to_owned()], true));

    // All of one second: the place on the page decides.
    let second = page(vec![row("line 1", 10), row("line 0", 10)]);
    let (heard, _) = read(&[page(vec![row("line 0", 10)]), second.clone(), second], None).await;
    assert_eq!(heard, ["line 0"]);
    // An instance that shows no row proves nothing.
    let (heard, is_complete) = read(&[page(vec![])], None).await;
    assert_eq!((heard.len(), is_complete), (0, false));

    let full = page((0..30).rev().map(|n| row(&format!("m{n}"), n)).collect());
    let (heard, is_complete) = read(&[full.clone(), full.clone(), full.clone()], None).await;
    assert_eq!((heard.len(), is_complete), (30, false), "older ones may be hidden");
    let (heard, is_complete) = read(&[full.clone(), full.clone(), full], Some("m27")).await;
    assert_eq!((heard, is_complete), (vec!["m28".to_owned(), "m29".to_owned()], true));
    // One that knows it is read to the end.
    let (heard, is_complete) =
        read(&[first, page(vec![row("older", 5), row("oldest", 4)]), page(vec![])], None).await;
    assert_eq!((heard.join(" "), is_complete), ("oldest older greeting line 0".to_owned(), true));
}

#[tokio::test]
async fn the_order_of_a_page_and_its_coats_do_not_matter() {
    let upside_down = [format!(
        "{OK}{}",
        r#"{"result":[
            {"sys_id":"m1","created_by":"chatbot_interface","message":"hello","created_on":"2026-11-22 10:00:00"},
            {"sys_id":"m2","created_by":"agent","message":"a < b","created_on":"2026-11-22 10:00:30"},
            {"sys_id":"m3","created_by":"chatbot_interface","formatted_message":"a &lt; b<br/>\"c\" &amp; d ","created_on":"2026-11-22 10:01:00"}]}"#
    )];
    assert_eq!(
        found(&upside_down, "a < b\n\"c\" & d", ReadSince::Message("m1")).await.as_deref(),
        Some("m3")
    );
    assert_eq!(found(&upside_down, "a < b", ReadSince::Message("m1")).await, None, "the agent's is not ours");
}
