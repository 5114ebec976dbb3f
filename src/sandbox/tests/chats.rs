//! The life of a chat: start, state, messages, leave, close, escalate; sessions and their cookies.

use reqwest::Method;

use super::*;
use crate::sandbox::{BasicLogin, Operation, SandboxSwitches, Side};

#[tokio::test]
async fn a_wrong_login_gets_the_platforms_401() {
    let bench = Bench::new(by_hand()).await;
    let path = "/api/now/connect/support/queues";
    let answer = bench.bare(Method::GET, path).basic_auth(USER, Some("wrong")).send().await.unwrap();
    assert_eq!(answer.status(), 401);
    assert!(answer.headers().contains_key("www-authenticate"));
    let body = json(answer).await;
    assert_eq!(body["error"]["message"], "User Not Authenticated");
    assert_eq!(body["error"]["detail"], "Required to provide Auth information");
    assert_eq!(body["status"], "failure");

    bench
        .sandbox
        .set_switches(SandboxSwitches { basic: BasicLogin::Restricted, ..SandboxSwitches::default() });
    assert_eq!(bench.get(path).send().await.unwrap().status(), 401);

    bench
        .sandbox
        .set_switches(SandboxSwitches { basic: BasicLogin::MfaMissing, ..SandboxSwitches::default() });
    let answer = bench.get(path).send().await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["x-mfa_token"]),
        (401, &"invalid".parse().unwrap())
    );
}

#[tokio::test]
async fn missing_headers_and_a_missing_plugin_are_400() {
    let bench = Bench::new(by_hand()).await;
    let path = format!("/api/now/connect/support/queues/{}/sessions", bench.queue);
    let bare = bench.bare(Method::POST, &path).basic_auth(USER, Some("sandbox")).body(r#"{"message":"hi"}"#);
    let answer = bare.try_clone().unwrap().header("accept", "application/json").send().await.unwrap();
    assert_eq!(answer.status(), 400);
    let answer = bare.header("content-type", "text/plain").send().await.unwrap();
    assert_eq!(answer.status(), 415);
    assert_eq!(bench.post(&path, "{}").send().await.unwrap().status(), 400);
    assert!(bench.sandbox.groups().is_empty());

    bench.sandbox.set_switches(SandboxSwitches { plugin_missing: true, ..SandboxSwitches::default() });
    let answer = bench.get("/api/now/connect/support/queues").send().await.unwrap();
    assert_eq!(answer.status(), 400);
    assert_eq!(json(answer).await["error"]["message"], "Requested URI does not represent any resource");
}

#[tokio::test]
async fn a_chat_lives_from_start_to_close() {
    let bench = Bench::new(by_hand()).await;
    let group = bench.started("My laptop is on fire").await;
    let entry = bench.entry(&group).await;
    assert_eq!((&entry["state"], &entry["position"]), (&1.into(), &1.into()));
    assert_eq!(entry["average_wait_time"], "2 Minutes");

    bench.sandbox.agent_accept(&group).await.unwrap();
    let entry = bench.entry(&group).await;
    assert_eq!((&entry["state"], &entry["assigned_to"]), (&2.into(), &"beth.anglin".into()));

    let sent = result(bench.say(&group, "still burning").send().await.unwrap()).await;
    bench.sandbox.agent_says(&group, "Water?").await.unwrap();
    let path = format!("/api/now/connect/conversations/{group}/messages");
    let rows = result(bench.get(&path).send().await.unwrap()).await;
    let texts: Vec<_> =
        rows.as_array().unwrap().iter().map(|row| row["formatted_message"].as_str().unwrap()).collect();
    assert_eq!(texts[..2], ["Water?", "still burning"]);
    assert_eq!(texts.last(), Some(&"My laptop is on fire"));
    assert_eq!((&rows[1]["sys_id"], &rows[1]["created_by"]), (&sent["sys_id"], &USER.into()));
    let older =
        result(bench.get(&format!("{path}?before={}", rows[1]["timestamp"])).send().await.unwrap()).await;
    assert_eq!(older.as_array().unwrap().len(), rows.as_array().unwrap().len() - 2);

    bench.sandbox.agent_closes(&group).await.unwrap();
    assert_eq!(bench.entry(&group).await["state"], 3);
    let last = bench.sandbox.messages(&group).pop().unwrap();
    assert_eq!(
        (last.created_by.as_str(), last.text.as_str()),
        ("system", "Beth Anglin has left the support session")
    );
    let late = bench.say(&group, "hello?").send().await.unwrap();
    assert_eq!(late.status(), 403);
    assert!(json(late).await["result"].is_string());

    let said = bench.sandbox.ledger().servicenow_texts();
    assert_eq!(said[&group], ["My laptop is on fire", "still burning"]);
}

#[tokio::test]
async fn the_user_leaves_before_and_after_the_agent_came() {
    let bench = Bench::new(by_hand()).await;
    let (early, late) = (bench.started("a").await, bench.started("b").await);
    assert_eq!(result(bench.leave(&early).send().await.unwrap()).await["state"], 8);
    bench.sandbox.agent_accept(&late).await.unwrap();
    assert_eq!(result(bench.leave(&late).send().await.unwrap()).await["state"], 7);
    assert_eq!(bench.leave(&late).send().await.unwrap().status(), 403);
    bench.sandbox.agent_closes(&late).await.unwrap();
    let words = bench.sandbox.messages(&late).pop().unwrap().text;
    assert_eq!(words, "Beth Anglin has closed the support session");
    assert_eq!(bench.sandbox.state(&late), Some(3));

    let unknown = bench.leave("0123").send().await.unwrap();
    assert_eq!(unknown.status(), 404);
    assert_eq!(json(unknown).await["error"]["message"], "No Record found");
}

#[tokio::test]
async fn an_escalated_chat_goes_on_in_the_next_queue_or_is_over() {
    let second = SandboxQueue { id: "second".to_owned(), ..SandboxQueue::default() };
    let first = SandboxQueue { escalate_to: Some("second".to_owned()), ..SandboxQueue::default() };
    let bench = Bench::new(SandboxSettings { queues: vec![first, second], ..by_hand() }).await;
    let group = bench.started("hard").await;
    bench.sandbox.agent_escalates(&group).unwrap();
    let path = format!("/api/now/connect/support/sessions?group_id={group}");
    let entries = result(bench.get(&path).send().await.unwrap()).await;
    assert_eq!((&entries[0]["state"], &entries[1]["state"]), (&1.into(), &4.into()));
    bench.sandbox.agent_escalates(&group).unwrap();
    assert_eq!(bench.sandbox.state(&group), Some(4));
    assert_eq!(bench.say(&group, "?").send().await.unwrap().status(), 403);
}

#[tokio::test]
async fn a_closed_queue_says_so_in_plain_words() {
    let bench = Bench::new(by_hand()).await;
    assert!(bench.sandbox.set_queue_open(&bench.queue, false));
    let refused = bench.start("anybody?").send().await.unwrap();
    assert_eq!(refused.status(), 403);
    assert!(json(refused).await["result"].as_str().unwrap().contains("closed"));
    let path = format!("/api/now/connect/support/queues/{}", bench.queue);
    assert!(result(bench.get(&path).send().await.unwrap()).await["not_available"].is_string());
    assert_eq!(bench.sandbox.ledger().total(Side::ServiceNow, Operation::Start).applied, 0);
}

#[tokio::test]
async fn a_session_rotates_once_and_overflows_into_202() {
    let settings =
        SandboxSettings { session_queue: 1, transaction_time: Duration::from_millis(300), ..by_hand() };
    let bench = Bench::new(settings).await;
    let path = "/api/now/connect/support/queues";
    let first = bench.get(path).send().await.unwrap();
    let cookies: Vec<_> = first.headers().get_all("set-cookie").iter().collect();
    assert_eq!(cookies.len(), 3);
    let id = cookies[0].to_str().unwrap().split(';').next().unwrap().to_owned();
    let second = bench.get(path).header("cookie", &id).send().await.unwrap();
    let rotated = second.headers()["set-cookie"].to_str().unwrap();
    assert!(rotated.starts_with("JSESSIONID=") && !rotated.starts_with(&id));
    let third = bench.get(path).header("cookie", &id).send().await.unwrap();
    assert!(!third.headers().contains_key("set-cookie"));

    let call = || async { bench.get(path).header("cookie", &id).send().await.unwrap().status().as_u16() };
    let (a, b, c, d) = tokio::join!(call(), call(), call(), call());
    let mut answers = [a, b, c, d];
    answers.sort_unstable();
    assert_eq!(answers, [200, 200, 202, 202]);
}

#[tokio::test]
async fn the_agent_comes_answers_and_goes_by_itself() {
    let agent = AgentSettings {
        accept: AgentAcceptance::After(Duration::from_millis(1)),
        replies: true,
        reply_after: Duration::from_millis(1),
        closes_after: Some(1),
        ..AgentSettings::default()
    };
    let bench = Bench::new(SandboxSettings { agent, ..SandboxSettings::default() }).await;
    let group = bench.started("hi").await;
    tokio::time::timeout(SOON, async {
        while bench.entry(&group).await["state"] != 2 {}
        bench.say(&group, "hot").send().await.unwrap();
        while bench.entry(&group).await["state"] != 3 {}
    })
    .await
    .unwrap();
    let said = bench.sandbox.messages(&group);
    assert!(said.iter().any(|row| row.created_by == "beth.anglin" && row.text.contains("hot")));
}
