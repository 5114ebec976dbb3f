//! Tests of events in the shapes that XO posts.

use serde_json::json;

use super::*;

fn route() -> BotKitRoute {
    BotKitRoute {
        bot_id: "st-1".into(),
        component_id: "default".into(),
        event: crate::ingress::botkit::BotKitEvent::UserMessage,
    }
}

fn with<T>(body: &Value, read: impl FnOnce(&EventPayload<'_>) -> T) -> T {
    let (route, body) = (route(), body.to_string());
    read(&EventPayload::read(&route, body.as_bytes()).ok().unwrap())
}

fn paths() -> UserPaths {
    let path = |paths: &str| paths.split(' ').map(str::to_owned).collect::<Vec<_>>();
    UserPaths {
        id: vec![path("/context/session/UserContext/_id"), path("/channel/from")],
        name: vec![
            path("/context/session/UserContext/identities/0/profileInfo/name"),
            path("/context/session/UserContext/firstName /context/session/UserContext/lastName"),
        ],
        email: vec![
            path("/context/session/UserContext/identities/0/profileInfo/email"),
            path("/context/session/UserContext/emailId"),
            path("/context/email"),
        ],
        language: vec![path("/context/currentLanguage")],
    }
}

fn settings(context: ReplyContextMode) -> BotKitIngress {
    BotKitIngress { context, user: paths(), ..BotKitIngress::default() }
}

fn nested() -> Value {
    json!({
        "requestId": 1_501_244_156_289_u64,
        "baseUrl": "https://platform.kore.ai/api/botsdk/stream/st-1",
        "sendUserMessageUrl": "https://platform.kore.ai/api/botsdk/stream/st-1/sendUserMessage/1501244156289",
        "channel": {"_id": "dc-1", "channelInfos": {
            "requestId": "ms-1", "message": "agent please", "body": "x".repeat(9000), "client": "botbuilder",
            "from": "u-1", "type": "rtm", "handle": {"userId": "u-1"}, "botInfo": {"chatBot": "Help"}}},
        "context": {
            "history": [{"dialogState": "transferredToAgent"}, {"type": "incoming", "message": "hi"},
                        {"type": "outgoing", "message": "Hello!", "createdOn": "2026-11-22T10:00:00Z"}],
            "entities": {"big": "y".repeat(9000)},
            "session": {
                "UserContext": {"_id": "u-1", "firstName": "Ada", "lastName": "L", "emailId": "a@example.com"},
                "BotUserSession": {"conversationSessionId": "5f1", "lastMessage": {"channel": "rtm",
                    "messagePayload": {"clientMessageId": 7, "message": {"body": "agent please"}}}},
                "opts": {"userId": "u-1", "streamId": "st-1"}}},
    })
}

fn flat() -> Value {
    json!({"requestId": "2", "message": "hello", "agent_transfer": true,
           "baseUrl": "https://platform.kore.ai/api/botsdk/stream/st-1",
           "channel": {"from": "u-1", "type": "rtm", "userId": "ada@web", "sessionId": "5f2"}})
}

#[test]
fn two_users_never_share_a_conversation() {
    let named = |user: &str, channel: &str| {
        let body = json!({"channel": {"from": user, "type": channel}});
        with(&body, |payload| payload.conversation().ok().map(|id| id.to_string())).unwrap()
    };
    let all =
        [("u-1:rtm", "x"), ("u-1", "rtm:x"), ("u-1%3Artm", "x")].map(|(user, channel)| named(user, channel));
    assert_eq!(all, ["st-1:u-1%3Artm:x", "st-1:u-1:rtm%3Ax", "st-1:u-1%253Artm:x"]);
}

#[test]
fn a_user_on_a_channel_is_one_conversation_whatever_the_shape() {
    let named = |body: &Value| with(body, |payload| payload.conversation().ok().map(|id| id.to_string()));
    assert_eq!(named(&nested()).as_deref(), Some("st-1:u-1:rtm"));
    assert_eq!(named(&flat()).as_deref(), Some("st-1:u-1:rtm"));
    // XO's id of a user has priority over the channel's id.
    let both = json!({"channel": {"from": "+82 10", "userId": "u-1", "type": "whatsapp"}});
    assert_eq!(named(&both).as_deref(), Some("st-1:u-1:whatsapp"));
    let foreign = json!({"channel": {"from": "+82 10"}});
    assert_eq!(named(&foreign).as_deref(), Some("st-1:+82 10:unknown"));
    let long = json!({"channel": {"from": "u".repeat(400), "type": "rtm"}});
    assert!(named(&long).unwrap().starts_with("st-1:") && named(&long) == named(&long));
    for nobody in [json!({}), json!({"channel": {"from": " "}}), json!({"channel": "u-1"})] {
        assert_eq!(named(&nobody), None, "{nobody}");
    }
}

#[test]
fn the_same_event_has_the_same_id() {
    let id =
        |body: &Value| with(body, |payload| payload.id(&payload.conversation().unwrap(), "on_user_message"));
    let changed = |path: &str, value: Value| {
        let mut body = nested();
        *body.pointer_mut(path).unwrap() = value;
        body
    };
    // XO's id of the message decides, even if everything else in the second post is new.
    assert_eq!(id(&nested()), id(&changed("/requestId", json!(9))));
    assert_ne!(id(&nested()), id(&changed("/channel/channelInfos/requestId", json!("ms-2"))));
    let nameless = |request: &str, text: &str| {
        let mut body = flat();
        (body["requestId"], body["message"]) = (json!(request), json!(text));
        id(&body)
    };
    assert_eq!(nameless("2", "a"), nameless("2", "a"));
    assert_ne!(nameless("2", "a"), nameless("2", "b"));
    assert_ne!(nameless("2", "a"), nameless("3", "a"));
    let client = |number: u64, text: &str| {
        let mut body = changed("/channel/channelInfos/requestId", Value::Null);
        body["context"]["session"]["BotUserSession"]["lastMessage"]["messagePayload"]["clientMessageId"] =
            json!(number);
        body["message"] = json!(text);
        id(&body)
    };
    assert_eq!(client(1, "yes"), client(1, "yes"));
    // The last message of a context may still be the one of the transfer. A second message with the same text is not
    // a repeat.
    let stale = |request: u64| {
        let mut body = changed("/channel/channelInfos/requestId", Value::Null);
        (body["requestId"], body["message"]) = (json!(request), json!("yes"));
        id(&body)
    };
    assert_eq!(stale(8), stale(8));
    assert_ne!(stale(8), stale(9));
    assert_ne!(client(1, "yes"), client(2, "yes"));
    assert_ne!(client(1, "yes"), client(1, "no"));
}

#[test]
fn little_of_a_large_payload_is_kept() {
    let reply = |kept| with(&nested(), |payload| payload.reply(&settings(kept)).ok().unwrap());
    let trimmed = reply(ReplyContextMode::Trimmed);
    assert!(serde_json::to_vec(&trimmed).unwrap().len() < 1000);
    assert_eq!(trimmed.request_id, "1501244156289");
    assert_eq!(trimmed.channel_type(), Some("rtm"));
    assert_eq!(trimmed.channel["channelInfos"]["handle"]["userId"], "u-1");
    assert_eq!(trimmed.context["session"]["BotUserSession"], json!({"conversationSessionId": "5f1"}));
    assert_eq!(trimmed.context["session"]["UserContext"], json!({"_id": "u-1"}));
    assert_eq!(reply(ReplyContextMode::None).context, Value::Null);
    assert_eq!(reply(ReplyContextMode::Full).context, nested()["context"]);
}

#[test]
fn one_address_tells_the_other() {
    let reply = |body: &Value| with(body, |payload| payload.reply(&settings(ReplyContextMode::None)).ok());
    let made = reply(&flat()).unwrap();
    assert_eq!(
        made.send_user_message_url,
        "https://platform.kore.ai/api/botsdk/stream/st-1/sendUserMessage/2"
    );
    let back = reply(&json!({"sendUserMessageUrl": "https://k/s/st-1/sendUserMessage/77"})).unwrap();
    assert_eq!((back.base_url.as_str(), back.request_id.as_str()), ("https://k/s/st-1", "77"));
    assert!(reply(&json!({"requestId": "1"})).is_none());
    assert!(reply(&json!({"baseUrl": "https://k/s/st-1"})).is_none());
}

#[test]
fn the_agent_sees_the_user_and_the_transcript() {
    with(&nested(), |payload| {
        let user = payload.user(&paths()).unwrap();
        assert_eq!((user.name.as_deref(), user.email.as_deref()), (Some("Ada L"), Some("a@example.com")));
        assert_eq!(payload.last_words().as_deref(), Some("agent please"));
        let said: Vec<_> = payload.transcript().into_iter().map(|line| (line.from, line.text)).collect();
        assert_eq!(said, [("user".into(), "hi".into()), ("bot".into(), "Hello!".to_owned())]);
    });
    let silent = json!({"context": {"history": [{"type": "incoming", "message": "only this"}]}});
    assert_eq!(with(&silent, |payload| payload.last_words()).as_deref(), Some("only this"));
    assert_eq!(with(&json!({}), |payload| payload.last_words()), None);
}

#[test]
fn a_foreign_reply_address_is_named() {
    let allowed = AllowedHosts::new(vec!["platform.kore.ai".into()]);
    assert!(with(&nested(), |payload| payload.check_addresses(&allowed)).is_ok());
    for field in ["baseUrl", "sendUserMessageUrl"] {
        let mut body = nested();
        body[field] = json!("https://evil.example/api/botsdk/stream/st-1");
        let refusal = with(&body, |payload| payload.check_addresses(&allowed)).unwrap_err();
        assert!(refusal.to_string().contains(field), "{refusal}");
    }
}

#[test]
fn either_flag_means_agent_mode() {
    for (flags, expected) in [
        (json!({}), false),
        (json!({"agent_transfer": false, "agent_session": false}), false),
        (json!({"agent_transfer": true}), true),
        (json!({"agent_session": true}), true),
        (json!({"agent_transfer": false, "agent_session": true}), true),
        (json!({"agent_transfer": "true"}), true),
        (json!({"agent_session": "True "}), true),
        (json!({"agent_transfer": "false", "agent_session": null}), false),
    ] {
        assert_eq!(with(&flags, |payload| payload.is_with_agent()), expected, "{flags}");
    }
}

#[test]
fn files_are_found_by_their_address() {
    let flat = json!({"channel": {"attachments": [
        {"fileName": "a.png", "fileUrl": "https://f/a"}, {"fileName": "b.pdf", "url": {"fileUrl": "https://f/b"}}]}});
    let found = with(&flat, |payload| payload.attachments());
    let named: Vec<_> = found.iter().map(|file| (file.name.as_deref(), file.url.as_str())).collect();
    assert_eq!(named, [(Some("a.png"), "https://f/a"), (Some("b.pdf"), "https://f/b")]);
    let body = json!({"messageObject": {"attachments": [
        {"url": "https://f/1", "fileName": "a.png"}, {"url": {"fileUrl": "https://f/2"}}, {"fileId": "3"}]}});
    let found = with(&body, |payload| payload.attachments());
    let urls: Vec<&str> = found.iter().map(|file| file.url.as_str()).collect();
    // A file without an address is reported by its name.
    assert_eq!(urls, ["https://f/1", "https://f/2", ""]);
}

#[test]
fn the_user_is_found_by_the_configured_paths() {
    let teams = json!({"context": {"session": {"UserContext": {"_id": "u-1", "identities": [
        {"type": "msteams", "profileInfo": {"name": "Grace", "email": "grace@example.com"}}]}}}});
    let user = with(&teams, |payload| payload.user(&paths())).unwrap();
    assert_eq!((user.name.as_deref(), user.email.as_deref()), (Some("Grace"), Some("grace@example.com")));
    let half = json!({"context": {"currentLanguage": "fr", "email": "m@example.com",
        "session": {"UserContext": {"_id": "u-1", "lastName": "L", "emailId": "anonymous"}}}});
    let user = with(&half, |payload| payload.user(&paths())).unwrap();
    assert_eq!((user.name.as_deref(), user.language.as_deref()), (Some("L"), Some("fr")));
    // A value that is not an address is not used as one.
    assert_eq!(user.email.as_deref(), Some("m@example.com"));
    assert_eq!(with(&json!({"context": {"email": 5}}), |payload| payload.user(&paths())), None);
}

#[test]
fn half_a_pair_in_a_text_loses_nothing_else() {
    let route = route();
    let body = br#"{"requestId": 1, "message": "a\ud83d", "channel": {"from": "u-1", "type": "rtm"}}"#;
    let payload = EventPayload::read(&route, body).ok().unwrap();
    assert!(payload.message().ok().unwrap().starts_with("a\u{fffd}"));
    assert_eq!(payload.conversation().ok().unwrap().to_string(), "st-1:u-1:rtm");
}

#[test]
fn an_invalid_event_is_refused_with_its_field() {
    let route = route();
    let refusal = |body: &[u8]| EventPayload::read(&route, body).err().map(|refusal| refusal.to_string());
    assert!(refusal(b"[]").unwrap().contains("cannot be used"));
    assert!(refusal(b"{\"message\": }").unwrap().contains("line 1"));
    assert!(refusal(b"{\n\"message\": \"\xff\"}").unwrap().contains("line 2, column 12"));
    assert_eq!(refusal(b" {} "), None);
}

/// Parsing this context into a tree would take a hundred megabytes.
#[test]
fn a_context_of_a_million_small_values_is_not_built() {
    let route = route();
    let context = "[1],".repeat(500_000);
    let body = format!(
        r#"{{"channel": {{"from": "u-1", "type": "rtm"}}, "context": {{"x": [{context}0]}}, "message": "hi"}}"#
    );
    let payload = EventPayload::read(&route, body.as_bytes()).ok().unwrap();
    assert_eq!(payload.message().ok().unwrap(), "hi");
    assert!(payload.found.capacity() < 64);
}
