//! Tokens and records, as documented.

use super::*;
use crate::sandbox::{OAuthClient, OAuthSwitches, SandboxSwitches, TableAccess};

async fn token(bench: &Bench, form: &str) -> (u16, Value) {
    let client = OAuthClient::default();
    let body = format!("{form}&client_id={}&client_secret={}", client.client_id, client.client_secret);
    let asked = bench.bare(Method::POST, "/oauth_token.do").body(body);
    let answer = asked.header("content-type", "application/x-www-form-urlencoded").send().await.unwrap();
    (answer.status().as_u16(), serde_json::from_str(&answer.text().await.unwrap()).unwrap())
}

fn by_refresh(token: &str) -> String {
    format!("grant_type=refresh_token&refresh_token={token}")
}

#[tokio::test]
async fn a_valid_token_is_used_again() {
    let bench = Bench::new(by_hand()).await;
    let first = OAuthClient::default().refresh_token;
    let (status, granted) = token(&bench, &by_refresh(&first)).await;
    assert_eq!((status, granted["token_type"].as_str()), (200, Some("Bearer")));
    assert_eq!(
        token(&bench, "grant_type=client_credentials").await.1["access_token"],
        granted["access_token"]
    );
    let shown = granted["access_token"].as_str().unwrap();
    let enter = || {
        let path = "/api/now/table/awa_queue";
        bench.bare(Method::GET, path).bearer_auth(shown).header("accept", "application/json").send()
    };
    assert_eq!(enter().await.unwrap().status(), 200);
    bench.sandbox.revoke_tokens();
    assert_eq!(enter().await.unwrap().status(), 401);
}

#[tokio::test]
async fn grants_are_refused_as_the_administrator_says() {
    let bench = Bench::new(by_hand()).await;
    let first = OAuthClient::default().refresh_token;
    assert_eq!(token(&bench, "grant_type=password&username=u&password=p").await.0, 401);
    assert_eq!(token(&bench, &by_refresh("another")).await.1["error_description"], "access_denied");
    let json =
        bench.bare(Method::POST, "/oauth_token.do").header("content-type", "application/json").body("{}");
    assert_eq!(json.send().await.unwrap().status(), 401);
    let oauth = OAuthSwitches { rotate: true, client_credentials: false, ..OAuthSwitches::default() };
    bench.sandbox.set_switches(SandboxSwitches { oauth, ..SandboxSwitches::default() });
    assert_eq!(token(&bench, "grant_type=client_credentials").await.0, 401);
    let (_, granted) = token(&bench, &by_refresh(&first)).await;
    assert_eq!(token(&bench, &by_refresh(&first)).await.0, 401, "it was exchanged for another");
    assert_eq!(token(&bench, &by_refresh(granted["refresh_token"].as_str().unwrap())).await.0, 200);
}

#[tokio::test]
async fn records_are_written_found_and_guarded() {
    let bench = Bench::new(by_hand()).await;
    let table = "/api/now/table/sys_script";
    let made = bench.post(table, r#"{"name":"a","script":"1"}"#).send().await.unwrap();
    assert_eq!(made.status(), 201);
    let made: Value = serde_json::from_str(&made.text().await.unwrap()).unwrap();
    let one = format!("{table}/{}", made["result"]["sys_id"].as_str().unwrap());
    let found = bench.get(&format!("{table}?sysparm_query=name=a^script=1&sysparm_fields=name")).send().await;
    let found: Value = serde_json::from_str(&found.unwrap().text().await.unwrap()).unwrap();
    assert_eq!(found, serde_json::json!({ "result": [{ "name": "a" }] }));
    assert_eq!(bench.get("/api/now/table/no_such_table").send().await.unwrap().status(), 400);
    for (tables, read, write) in
        [(TableAccess::Refused, 403, 403), (TableAccess::ReadOnly, 200, 403), (TableAccess::Hidden, 404, 201)]
    {
        bench.sandbox.set_switches(SandboxSwitches { tables, ..SandboxSwitches::default() });
        assert_eq!(bench.get(&one).send().await.unwrap().status(), read, "{tables:?}");
        assert_eq!(bench.post(table, r#"{"name":"b"}"#).send().await.unwrap().status(), write, "{tables:?}");
    }
}
