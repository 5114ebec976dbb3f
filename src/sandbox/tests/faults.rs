//! Every kind of fault, before and after its effect.

use reqwest::Method;

use super::*;
use crate::sandbox::{FaultRule, InjectedFault, Operation, RetryAfter, Side};

fn starts() -> FaultRule {
    FaultRule::new(Side::ServiceNow).operation(Operation::Start)
}

#[tokio::test]
async fn each_fault_shows_at_the_caller_and_none_takes_effect() {
    let bench = Bench::new(by_hand()).await;
    let script = bench.sandbox.script();
    for (rule, status) in [
        (starts().status(503), 503),
        (starts().status(401), 401),
        (starts().html_page(), 200),
        (starts().redirect(), 302),
        (starts().accepted(), 202),
        (starts().closed_queue(), 403),
        (starts().too_many(RetryAfter::None), 429),
    ] {
        script.clear();
        script.fail(rule.times(1));
        let answer = bench.start("x").send().await.unwrap();
        assert_eq!(answer.status(), status);
        assert!(bench.sandbox.groups().is_empty());
    }
    script.fail(starts().too_many(RetryAfter::Seconds(7)).times(1));
    let answer = bench.start("x").send().await.unwrap();
    assert_eq!(answer.headers()["retry-after"], "7");
    assert!(answer.headers().contains_key("x-ratelimit-reset"));
    script.fail(starts().too_many(RetryAfter::Date(7)).times(1));
    let answer = bench.start("x").send().await.unwrap();
    assert!(answer.headers()["retry-after"].to_str().unwrap().ends_with("GMT"));

    script.fail(starts().cut().times(1));
    assert!(bench.start("x").send().await.is_err());
    script.fail(starts().hang().times(1));
    assert!(bench.start("x").timeout(Duration::from_millis(200)).send().await.unwrap_err().is_timeout());
    assert!(bench.sandbox.groups().is_empty());
    bench.started("fine again").await;
    let total = bench.sandbox.ledger().total(Side::ServiceNow, Operation::Start);
    assert_eq!((total.arrived, total.applied), (12, 1));
}

#[tokio::test]
async fn a_fault_after_the_effect_leaves_the_effect() {
    let bench = Bench::new(by_hand()).await;
    bench.sandbox.script().fail(starts().after().cut().times(1));
    assert!(bench.start("did it?").send().await.is_err());
    let group = bench.sandbox.groups().pop().unwrap();
    let path = format!("/api/now/connect/support/queues/{}/sessions", bench.queue);
    let open = result(bench.get(&path).send().await.unwrap()).await;
    assert_eq!(open[0]["queueEntry"]["short_description"], "did it?");
    assert_eq!(open[0]["queueEntry"]["group"], group);
    let entry = bench.sandbox.ledger().entries().remove(0);
    assert_eq!((entry.applied, entry.status, entry.fault), (true, None, Some("cut")));
}

#[tokio::test]
async fn rules_pick_by_conversation_and_by_share() {
    let bench = Bench::new(by_hand()).await;
    let (a, b) = (bench.started("a").await, bench.started("b").await);
    let messages = FaultRule::new(Side::ServiceNow).operation(Operation::Message);
    let by_group = bench.sandbox.script().fail(messages.clone().conversation(&a));
    bench.sandbox.script().fail(messages.clone().conversation("poison").status(400));
    assert_eq!(bench.say(&a, "x").send().await.unwrap().status(), 503);
    assert_eq!(bench.say(&b, "x").send().await.unwrap().status(), 200);
    assert_eq!(bench.say(&b, "a poison pill").send().await.unwrap().status(), 400);
    assert!(bench.sandbox.script().remove(by_group));
    assert_eq!(bench.say(&a, "x").send().await.unwrap().status(), 200);

    bench.sandbox.script().clear();
    bench.sandbox.script().fail(messages.probability(0.5, 1));
    let mut failed = 0;
    for _ in 0..40 {
        failed += u32::from(bench.say(&b, "x").send().await.unwrap().status() == 503);
    }
    assert!((8..=32).contains(&failed), "{failed} of 40");
}

#[tokio::test]
async fn the_ledger_sees_two_calls_of_one_conversation_at_once() {
    let bench = Bench::new(by_hand()).await;
    let (a, b) = (bench.started("a").await, bench.started("b").await);
    bench.say(&a, "one").send().await.unwrap();
    bench.say(&a, "two").send().await.unwrap();
    bench.sandbox.script().fail(FaultRule::new(Side::ServiceNow).delay(Duration::from_millis(200)));
    let (x, y) = tokio::join!(bench.say(&a, "three").send(), bench.say(&b, "other").send());
    assert!(x.is_ok() && y.is_ok());
    assert_eq!(bench.sandbox.ledger().overlaps(), []);
    let (x, y) = tokio::join!(bench.say(&a, "four").send(), bench.say(&a, "five").send());
    assert!(x.is_ok() && y.is_ok());
    assert_eq!(bench.sandbox.ledger().overlaps().len(), 1);
}

#[tokio::test]
async fn the_same_is_scripted_and_read_over_http() {
    let bench = Bench::new(by_hand()).await;
    let rule =
        r#"{"side":"servicenow","operation":"start","times":1,"fault":{"kind":"status","status":500}}"#;
    let added = bench.bare(Method::POST, "/sandbox/rules").body(rule).send().await.unwrap();
    assert_eq!(added.status(), 201);
    assert_eq!(bench.sandbox.script().rules()[0].rule, starts().status(500).times(1));
    assert_eq!(bench.start("x").send().await.unwrap().status(), 500);
    let group = bench.started("y").await;
    for wrong in [
        "{",
        r#"{"side":"mars","fault":{"kind":"cut"}}"#,
        r#"{"side":"xo","fault":{"kind":"status","status":7}}"#,
    ] {
        let answer = bench.bare(Method::POST, "/sandbox/rules").body(wrong).send().await.unwrap();
        assert_eq!(answer.status(), 422);
    }
    let path = "/sandbox/ledger?side=servicenow&applied=true";
    let book = json(bench.bare(Method::GET, path).send().await.unwrap()).await;
    assert_eq!(book["entries"][0]["conversation"], group);
    let action = |action: &str| bench.bare(Method::POST, &format!("/sandbox/agents/{group}/{action}"));
    assert_eq!(action("accept").send().await.unwrap().status(), 204);
    assert_eq!(action("accept").send().await.unwrap().status(), 409);
    assert_eq!(action("dance").send().await.unwrap().status(), 422);
    assert_eq!(action("say").body(r#"{"text":"hello"}"#).send().await.unwrap().status(), 204);
    assert_eq!(bench.sandbox.messages(&group).pop().unwrap().text, "hello");
    let help = bench.bare(Method::GET, "/sandbox").send().await.unwrap().text().await.unwrap();
    assert!(help.contains("/sandbox/rules"));
    let cleared = bench.bare(Method::DELETE, "/sandbox/ledger").send().await.unwrap();
    assert_eq!((cleared.status().as_u16(), bench.sandbox.ledger().entries().len()), (204, 0));
}

#[tokio::test]
async fn xo_takes_json_and_refuses_the_rest() {
    let bench = Bench::new(SandboxSettings { events_token: Some("t".to_owned()), ..by_hand() }).await;
    let callback = |body: &str| bench.post("/xo/callback", body).send();
    assert_eq!(
        callback(r#"{"group":"g","sys_id":"1","formatted_message":"hi"}"#).await.unwrap().status(),
        200
    );
    assert_eq!(callback(r#"{"group":"g"#).await.unwrap().status(), 400);
    let event = || bench.bare(Method::POST, "/xo/events").header("content-type", "application/json");
    let body = r#"{"id":"e1","type":"agent.joined","conversation_id":"c"}"#;
    assert_eq!(event().body(body).send().await.unwrap().status(), 401);
    assert_eq!(event().bearer_auth("t").body(body).send().await.unwrap().status(), 200);
    assert_eq!(bench.bare(Method::GET, "/xo/nothing").send().await.unwrap().status(), 404);
    let ledger = bench.sandbox.ledger();
    assert_eq!(ledger.xo_callbacks()["g"][0].text.as_deref(), Some("hi"));
    assert_eq!(ledger.events()["c"][0].event.as_deref(), Some("agent.joined"));
    bench.sandbox.script().fail(FaultRule::new(Side::Xo).fault(InjectedFault::Accepted));
    assert_eq!(callback("{}").await.unwrap().status(), 202);
}

#[tokio::test]
async fn a_bounded_ledger_forgets_but_goes_on_counting() {
    let bench = Bench::new(SandboxSettings { keep: Some(3), keep_chats: Some(3), ..by_hand() }).await;
    for _ in 0..5 {
        bench.started("x").await;
    }
    let ledger = bench.sandbox.ledger();
    assert_eq!(ledger.entries().iter().map(|entry| entry.seq).collect::<Vec<_>>(), [3, 4, 5]);
    assert_eq!(ledger.total(Side::ServiceNow, Operation::Start).applied, 5);
}

#[tokio::test]
async fn stopping_frees_the_port() {
    let bench = Bench::new(by_hand()).await;
    bench.started("x").await;
    let url = bench.sandbox.url().to_owned();
    bench.sandbox.stop().await;
    assert!(bench.client.get(url).send().await.unwrap_err().is_connect());
}
