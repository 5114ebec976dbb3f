//! Callbacks of an instance: credentials, both body styles, echoes, order.

use super::*;
use crate::sandbox::{
    BodyStyle, CallbackCredential, CallbackSettings, FaultRule, Operation, SandboxSwitches, Side,
};

/// A bench whose instance posts its callbacks to its own simulated XO.
async fn posting(style: BodyStyle) -> Bench {
    let bench = Bench::new(by_hand()).await;
    let callback = CallbackSettings { style, ..CallbackSettings::to(bench.sandbox.xo_callback_url()) };
    bench.sandbox.set_callback(Some(callback));
    bench
}

fn arrived(bench: &Bench) -> Vec<String> {
    bench.sandbox.ledger().find(|entry| entry.side == Side::Xo).into_iter().map(|entry| entry.body).collect()
}

#[tokio::test]
async fn every_row_but_our_own_is_posted_once_and_in_order() {
    let bench = posting(BodyStyle::Stringify).await;
    let group = bench.started("mine").await;
    bench.sandbox.agent_accept(&group).await.unwrap();
    bench.sandbox.agent_says(&group, "a \"quoted\"\n<line>").await.unwrap();
    bench.leave(&group).send().await.unwrap();
    let calls = bench.sandbox.ledger().xo_callbacks().remove(&group).unwrap();
    let texts: Vec<_> = calls.iter().map(|call| call.text.clone().unwrap()).collect();
    assert_eq!(texts.len(), 3);
    assert!(texts[0].starts_with("Thank you for contacting support"));
    assert_eq!(texts[1], "a \"quoted\"\n<line>");
    assert_eq!(texts[2], "chatbot_interface has left the support session");
    let body: Value = serde_json::from_str(&calls[2].body).unwrap();
    assert_eq!(body["sys_created_by"], "system");
    assert_eq!(body.as_object().unwrap().len(), 5);
}

#[tokio::test]
async fn with_echo_on_our_own_words_come_back() {
    let bench = posting(BodyStyle::Stringify).await;
    bench.sandbox.set_switches(SandboxSwitches { echo: true, ..SandboxSwitches::default() });
    let group = bench.started("mine").await;
    let echo: Value = serde_json::from_str(&arrived(&bench)[0]).unwrap();
    assert_eq!((&echo["group"], &echo["sys_created_by"]), (&group.into(), &USER.into()));
}

#[tokio::test]
async fn the_stock_script_breaks_where_the_real_one_does() {
    let bench = posting(BodyStyle::StockScript).await;
    let group = bench.started("x").await;
    bench.sandbox.agent_accept(&group).await.unwrap();
    bench.sandbox.agent_says(&group, "one\n<two>").await.unwrap();
    bench.sandbox.agent_says(&group, "say \"hi\"").await.unwrap();
    let bodies = arrived(&bench);
    let fine: Value = serde_json::from_str(&bodies[1]).unwrap();
    assert_eq!(fine["formatted_message"], "one\n%3ctwo%3e");
    assert_eq!(fine["last_message"], "undefined");
    assert!(serde_json::from_str::<Value>(&bodies[2]).is_err());
    assert!(bodies[2].contains(r#""say "hi"""#));

    let bench = posting(BodyStyle::StockScriptUnescaped).await;
    let group = bench.started("x").await;
    bench.sandbox.agent_accept(&group).await.unwrap();
    bench.sandbox.agent_says(&group, "one\n<two>").await.unwrap();
    assert!(serde_json::from_str::<Value>(&arrived(&bench)[1]).is_err());
}

#[tokio::test]
async fn a_failed_callback_is_never_tried_again() {
    let bench = posting(BodyStyle::Stringify).await;
    let group = bench.started("x").await;
    bench.sandbox.script().fail(FaultRule::new(Side::Xo).status(503).times(1));
    bench.sandbox.agent_accept(&group).await.unwrap();
    let lost = FaultRule::new(Side::ServiceNow).operation(Operation::Callback).cut().times(1);
    bench.sandbox.script().fail(lost);
    bench.sandbox.agent_says(&group, "lost on the way").await.unwrap();
    bench.sandbox.agent_says(&group, "arrives").await.unwrap();
    let texts: Vec<_> =
        bench.sandbox.ledger().xo_callbacks()[&group].iter().map(|call| call.text.clone().unwrap()).collect();
    assert_eq!(texts, ["arrives"]);
    assert_eq!(bench.sandbox.ledger().count(|entry| entry.side == Side::Xo), 2);
    let sent = bench.sandbox.ledger().find(|entry| entry.outbound);
    assert_eq!(sent.iter().map(|entry| entry.status).collect::<Vec<_>>(), [Some(503), None, Some(200)]);
}

#[tokio::test]
async fn each_credential_is_carried() {
    let bench = Bench::new(SandboxSettings { events_token: Some("t".to_owned()), ..by_hand() }).await;
    let group = bench.started("x").await;
    let send_with = async |credential: CallbackCredential, action: &str| {
        let callback = CallbackSettings { credential, ..CallbackSettings::to(bench.sandbox.events_url()) };
        bench.sandbox.set_callback(Some(callback));
        if action == "accept" {
            bench.sandbox.agent_accept(&group).await.unwrap();
        } else {
            bench.sandbox.agent_says(&group, action).await.unwrap();
        }
        bench.sandbox.ledger().find(|entry| entry.outbound).pop().unwrap().status
    };
    assert_eq!(send_with(CallbackCredential::None, "accept").await, Some(401));
    let header =
        CallbackCredential::Header { name: "authorization".to_owned(), value: "Bearer t".to_owned() };
    assert_eq!(send_with(header, "two").await, Some(200));
    let basic = CallbackCredential::Basic { username: "u".to_owned(), password: "p".to_owned() };
    assert_eq!(send_with(basic, "three").await, Some(401));
}

#[tokio::test]
async fn waiting_for_the_ledger_needs_no_polling() {
    let bench = posting(BodyStyle::Stringify).await;
    let group = bench.started("x").await;
    let ledger = bench.sandbox.ledger();
    let (seen, accepted) = tokio::join!(
        ledger.wait_for(|ledger| ledger.total(Side::Xo, Operation::Callback).applied == 1, SOON),
        bench.sandbox.agent_accept(&group),
    );
    assert!(seen && accepted.is_ok());
    assert!(!ledger.wait_for(|_| false, Duration::from_millis(10)).await);
}
