//! Tests that OAuth tokens lose, repeat and reorder nothing: when a token expires, when all tokens are revoked at once,
//! and when no new token is issued for a while.

use std::time::Duration;

use causeway::sandbox::{
    FaultRule, LedgerEntry, OAuthClient, OAuthSwitches, Operation, SandboxSwitches, Side, TableAccess,
};

use crate::harness::relay::{PATIENCE, Plan, Relay, numbered};

fn with_oauth(plan: Plan, refresh_token: bool) -> Plan {
    let client = OAuthClient::default();
    let plan = plan
        .set("servicenow.auth", "oauth")
        .set("servicenow.client_id", client.client_id)
        .set("servicenow.client_secret", client.client_secret);
    if refresh_token { plan.set("servicenow.refresh_token", client.refresh_token) } else { plan }
}

fn switches(oauth: OAuthSwitches) -> SandboxSwitches {
    // These tests allow no password login.
    SandboxSwitches { basic: causeway::sandbox::BasicLogin::Restricted, oauth, ..SandboxSwitches::default() }
}

fn tokens(relay: &Relay) -> Vec<LedgerEntry> {
    relay.sandbox.ledger().find(|entry| entry.operation == Operation::Token)
}

async fn all_arrive_in_order(relay: &Relay, opened: &[(String, String)], each: usize) {
    relay
        .until("every message in its chat", |relay| {
            for (name, group) in opened {
                let said = relay.said(group).len();
                if said < each + 1 {
                    return Err(format!("{name}: {said} of {}", each + 1));
                }
            }
            Ok(())
        })
        .await;
    for (name, group) in opened {
        let mut expected = vec![format!("hello from {name}")];
        expected.extend((0..each).map(|n| numbered(name, n)));
        assert_eq!(relay.said(group), expected);
    }
}

async fn chats(relay: &Relay, count: usize) -> Vec<(String, String)> {
    let mut opened = Vec::new();
    for n in 0..count {
        let name = format!("c-{n}");
        let group = relay.open(&name).await;
        opened.push((name, group));
    }
    opened
}

on_every_engine! {
    async fn a_token_lapses_in_the_middle_of_traffic(bench: Bench) {
        let oauth = OAuthSwitches { token_life: 1, rotate: true, ..OAuthSwitches::default() };
        let plan = with_oauth(Plan::on(&bench), true).sandbox(|sandbox| sandbox.switches = switches(oauth));
        let relay = plan.start().await;
        let opened = chats(&relay, 4).await;
        let names: Vec<String> = opened.iter().map(|(name, _)| name.clone()).collect();
        // Traffic until several tokens have expired, independent of the speed of the machine.
        let mut each = 0;
        while tokens(&relay).len() < 4 {
            for name in &names {
                relay.say(name, &numbered(name, each)).await;
            }
            each += 1;
        }
        all_arrive_in_order(&relay, &opened, each).await;
        let refused = tokens(&relay).into_iter().filter(|entry| entry.status != Some(200)).count();
        assert_eq!(refused, 0, "each refresh token was the newest one");
        assert!(relay.dead_letters().await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_refusals_makes_one_renewal() {
    let Some(bench) = crate::harness::matrix::Engine::Embedded.bench() else { return };
    // Only the lanes make calls.
    let plan = with_oauth(Plan::on(&bench), false);
    let plan = plan.set("servicenow.poll_waiting", "10m").set("servicenow.poll_active", "10m");
    let relay = plan.sandbox(|sandbox| sandbox.switches = switches(OAuthSwitches::default())).start().await;
    let opened = chats(&relay, 12).await;
    let names: Vec<String> = opened.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(tokens(&relay).len(), 1, "one token for all lanes");
    // The refusals are slow, so many lanes have calls with the old token in flight when the first refusal arrives.
    let slow =
        FaultRule::new(Side::ServiceNow).operation(Operation::Message).delay(Duration::from_millis(1500));
    relay.sandbox.script().fail(slow.times(names.len() as u64));
    relay.sandbox.revoke_tokens();
    relay.messages(&names, 5, 12).await;
    all_arrive_in_order(&relay, &opened, 5).await;
    assert_eq!(tokens(&relay).len(), 2, "{:#?}", tokens(&relay));
    let ledger = relay.sandbox.ledger();
    let refused = ledger.count(|entry| entry.status == Some(401) && entry.operation == Operation::Message);
    assert!(refused > 1, "only {refused} lanes were refused: no burst");
    assert!(ledger.overlaps().is_empty());
    assert!(relay.dead_letters().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_refresh_token_outlives_a_restart() {
    let Some(bench) = crate::harness::matrix::Engine::Embedded.bench() else { return };
    let oauth = OAuthSwitches { rotate: true, ..OAuthSwitches::default() };
    let plan = with_oauth(Plan::on(&bench), true).sandbox(|sandbox| sandbox.switches = switches(oauth));
    let mut relay = plan.start().await;
    let opened = chats(&relay, 1).await;
    relay.stop().await;
    relay.sandbox.revoke_tokens();
    relay.processes[0].restart();
    relay.ready().await;
    relay.messages(&["c-0".to_owned()], 2, 1).await;
    all_arrive_in_order(&relay, &opened, 2).await;
    // Another program with the same settings uses the newest token, too, and leaves the newest one behind.
    let check = relay.tool(["check"]).run(PATIENCE).await;
    assert!(check.stdout.contains("ok   ServiceNow answers"), "{}", check.stdout);
    relay.sandbox.revoke_tokens();
    relay.say("c-0", &numbered("c-0", 2)).await;
    all_arrive_in_order(&relay, &opened, 3).await;
    assert!(relay.dead_letters().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_refresh_token_keeps_every_message_until_it_is_taken_again() {
    // The form of a refusal is unknown: this test has the observed form and the form of the standard.
    for standard_refusal in [false, true] {
        tokens_are_refused_for_a_while(standard_refusal).await;
    }
}

async fn tokens_are_refused_for_a_while(standard_refusal: bool) {
    let Some(bench) = crate::harness::matrix::Engine::Embedded.bench() else { return };
    let refused = OAuthSwitches { refuse_refresh: true, standard_refusal, ..OAuthSwitches::default() };
    let refusing = switches(refused);
    let plan = with_oauth(Plan::on(&bench), true).set("delivery.deadline.start", "10m");
    let relay = plan.sandbox(|sandbox| sandbox.switches = refusing).start().await;
    relay.start("c-1").await;
    for n in 0..3 {
        relay.say("c-1", &numbered("c-1", n)).await;
    }
    crate::harness::wait::eventually("the breaker to trip", PATIENCE, async || {
        let state = relay.metric("causeway_breaker_state", &[("destination", "servicenow")]).await;
        if state > 0.0 { Ok(()) } else { Err(format!("breaker {state}, {} tokens", tokens(&relay).len())) }
    })
    .await;
    let starts = relay.sandbox.ledger().count(|entry| entry.operation == Operation::Start);
    assert_eq!(starts, 0, "without a token nothing is sent");
    relay.sandbox.set_switches(switches(OAuthSwitches::default()));
    relay.reaches("c-1", "waiting").await;
    let group = relay.sandbox.groups().remove(0);
    all_arrive_in_order(&relay, &[("c-1".to_owned(), group)], 3).await;
    assert!(relay.dead_letters().await.is_empty());
    let secrets = OAuthClient::default();
    for process in &relay.processes {
        let printed = format!("{}{}", process.running.stdout(), process.running.stderr());
        assert!(!printed.contains(&secrets.client_secret) && !printed.contains(&secrets.refresh_token));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_explains_a_refused_token() {
    let folder = tempfile::tempdir().unwrap();
    let listener = tokio::net::TcpListener::bind(crate::harness::ports::free_address()).await.unwrap();
    let sandbox = causeway::sandbox::Sandbox::start(listener, Default::default()).await;
    let client = OAuthClient::default();
    let check = |refresh_token: Option<&str>| {
        let check = crate::harness::binary::Causeway::new(["check"])
            .set("data_dir", folder.path().to_str().unwrap())
            .set("servicenow.host_url", sandbox.servicenow_url())
            .set("servicenow.username", "chatbot_interface")
            .set("servicenow.auth", "oauth")
            .set("servicenow.client_id", &client.client_id)
            .set("servicenow.client_secret", &client.client_secret);
        refresh_token.into_iter().fold(check, |check, token| check.set("servicenow.refresh_token", token))
    };
    let well = check(Some(&client.refresh_token)).run(PATIENCE).await;
    assert_eq!(well.code, Some(0), "{}", well.stdout);
    let disabled = OAuthSwitches { client_credentials: false, ..OAuthSwitches::default() };
    sandbox.set_switches(SandboxSwitches { tables: TableAccess::Refused, ..switches(disabled) });
    for (token, hint) in [
        (Some("wrong-Secret"), "get a new servicenow.refresh_token"),
        (None, "glide.oauth.inbound.client.credential.grant_type.enabled"),
    ] {
        let run = check(token).run(PATIENCE).await;
        assert_eq!(run.code, Some(1), "{}", run.stdout);
        assert!(run.stdout.contains("FAIL ServiceNow: credentials refused"), "{}", run.stdout);
        assert!(run.stdout.contains(hint), "{hint} is missing from:\n{}", run.stdout);
        let printed = format!("{}{}", run.stdout, run.stderr);
        assert!(!printed.contains("wrong-Secret") && !printed.contains(&client.client_secret), "{printed}");
    }
}
