//! Tests of the networks of companies: the only way out is a proxy with a password, or a server has a certificate of a private
//! authority.

use causeway::sandbox::{OAuthClient, Side};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::harness::authority::Authority;
use crate::harness::binary::{Causeway, Finished};
use crate::harness::forward_proxy::{ForwardProxy, PASSWORD};
use crate::harness::matrix::Engine;
use crate::harness::relay::{PATIENCE, Plan};

#[tokio::test]
async fn every_call_goes_through_the_proxy_and_nothing_else_leaves() {
    let bench = Engine::Embedded.bench().unwrap();
    let plan = Plan::on(&bench);
    let proxy = ForwardProxy::to(plan.sandbox_address()).await;
    let client = OAuthClient::default();
    // No name exists, so a call that does not take the proxy reaches nothing.
    let mut relay = plan
        .set("http.proxy", proxy.url())
        .set("servicenow.host_url", "http://servicenow.invalid")
        .set("servicenow.auth", "oauth")
        .set("servicenow.client_id", client.client_id)
        .set("servicenow.client_secret", client.client_secret)
        .set("xo.callback_url", "http://xo.invalid/xo/callback")
        .set("handoffs.events_url", "http://events.invalid/xo/events")
        .start()
        .await;
    let group = relay.open("c-1").await;
    relay.say("c-1", "a word of the user").await;
    relay.callback("another-group", "a word for XO", "m-1").await;
    relay
        .until("words in both directions", |relay| {
            let sides =
                [Side::Xo, Side::Events].map(|side| relay.sandbox.ledger().count(|entry| entry.side == side));
            let said = relay.said(&group);
            if said.len() == 2 && !sides.contains(&0) { Ok(()) } else { Err(format!("{said:?} {sides:?}")) }
        })
        .await;
    let seen = proxy.seen();
    for part in
        ["servicenow.invalid/oauth_token.do", "servicenow.invalid/api/", "xo.invalid/xo", "events.invalid/xo"]
    {
        assert!(seen.iter().any(|line| line.contains(part)), "{part}: {seen:?}");
    }
    relay.processes[0].running.line("calls go through a proxy", PATIENCE).await;
    let log = relay.processes[0].running.stderr();
    for secret in [PASSWORD, "P%40ss", "cHIweHk"] {
        assert!(!log.contains(secret));
    }
}

#[tokio::test]
async fn a_proxy_that_refuses_loses_nothing_and_is_named() {
    let bench = Engine::Embedded.bench().unwrap();
    let plan = Plan::on(&bench);
    let proxy = ForwardProxy::to(plan.sandbox_address()).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("proxy");
    std::fs::write(&file, format!("{}\n", proxy.bare_url())).unwrap();
    let mut relay = plan
        .set("xo.proxy_file", file.to_str().unwrap())
        .set("xo.callback_url", "http://xo.invalid/xo/callback")
        .start()
        .await;
    relay.callback("another-group", "a word for XO", "m-1").await;
    relay.metric_is("causeway_retries_total", &[("destination", "xo")], |count| count > 0.0).await;
    let checked = relay.tool(["check"]).run(PATIENCE).await;
    let expected =
        ["xo.callback_url: calls go through the proxy 127.0.0.1:", "status 407", "-> see http.proxy"];
    for part in expected {
        assert!(checked.stdout.contains(part), "{part}: {}", checked.stdout);
    }
    // Nothing was told to be delivered, and a correct password heals it.
    assert_eq!(relay.dead_letters().await.len(), 0);
    std::fs::write(&file, proxy.url()).unwrap();
    assert_eq!(relay.stop().await, [Some(0)]);
    relay.processes[0].restart();
    relay.ready().await;
    relay
        .until("the word at XO", |relay| {
            let posted = relay.sandbox.ledger().count(|entry| entry.side == Side::Xo && entry.applied);
            if posted == 1 { Ok(()) } else { Err(format!("{posted} posts")) }
        })
        .await;
    assert_eq!(proxy.seen(), ["POST http://xo.invalid/xo/callback"]);
}

/// A server with a certificate of a private authority for one name and one period. Returns its port and the authority in PEM.
async fn private_server(name: &str, years: std::ops::Range<i32>) -> (u16, String) {
    let authority = Authority::new();
    let acceptor = authority.server(name, years, false);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    crate::harness::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            crate::harness::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let _ = stream.read(&mut [0; 4096]).await;
                let answer =
                    b"HTTP/1.1 405 Method Not Allowed\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
                let _ = stream.write_all(answer).await;
            });
        }
    });
    (port, authority.pem())
}

async fn check(url: &str, more: &[(&str, &str)]) -> Finished {
    let folder = tempfile::tempdir().unwrap();
    let check = Causeway::new(["check"])
        .set("data_dir", folder.path().to_str().unwrap())
        .set("ingress.servicenow.token", "t")
        .set("xo.callback_url", url);
    more.iter().fold(check, |check, (key, value)| check.set(key, value)).run(PATIENCE).await
}

#[tokio::test]
async fn check_says_why_a_certificate_is_refused() {
    let (good, authority) = private_server("localhost", 2020..2090).await;
    let (old, old_authority) = private_server("localhost", 2001..2002).await;
    let (renamed, renamed_authority) = private_server("other.example", 2020..2090).await;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, pem: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (ca, old_ca, renamed_ca) = (
        file("ca.pem", &authority),
        file("old.pem", &old_authority),
        file("renamed.pem", &renamed_authority),
    );
    let url = |scheme: &str, port: u16| format!("{scheme}://localhost:{port}/cb");
    for (url, ca, says) in [
        (url("https", good), "", ["issued by (CN=Corporate CA)", "http.ca_file"]),
        (url("https", old), old_ca.as_str(), ["(CN=localhost) has expired on 2002-01-01", "renew"]),
        (
            url("https", renamed),
            renamed_ca.as_str(),
            ["for other.example, not for localhost", "check the address"],
        ),
        (url("http", good), "", ["not HTTP", "https://"]),
    ] {
        let run = check(&url, &[("xo.ca_file", ca)]).await;
        assert_eq!(run.code, Some(1), "{}{}", run.stdout, run.stderr);
        for part in says {
            assert!(run.stdout.contains(part), "{part}: {}", run.stdout);
        }
    }
    for key in ["xo.ca_file", "http.ca_file"] {
        let run = check(&url("https", good), &[(key, &ca)]).await;
        assert_eq!(run.code, Some(0), "{}{}", run.stdout, run.stderr);
    }
    let wrong =
        check(&url("https", good), &[("http.ca_file", "/nowhere/ca.pem"), ("xo.proxy", "socks5://p:1")])
            .await;
    assert_eq!(wrong.code, Some(78), "{}", wrong.stdout);
    for part in [
        "http.ca_file (CAUSEWAY_HTTP__CA_FILE): cannot read /nowhere/ca.pem",
        "xo.proxy (CAUSEWAY_XO__PROXY)",
    ] {
        assert!(wrong.stderr.contains(part), "{part}: {}", wrong.stderr);
    }
}
