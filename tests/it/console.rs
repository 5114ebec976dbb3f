//! Tests the admin console: an operator sees which messages died and why, and replays or discards them, by a program or
//! in a browser. Every action is shown before it is carried out.

use causeway::sandbox::{FaultRule, Operation, Side};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::browser::Browser;
use crate::harness::http;
use crate::harness::matrix::{Bench, Engine};
use crate::harness::relay::{PATIENCE, Plan, Relay};
use crate::harness::wait::eventually;
use crate::trace::{lines, log_of};

const TOKEN: &str = "a-long-admin-token";

/// A relay with an admin console. With a shared broker the ingress is a process of its own.
async fn relay(bench: &Bench) -> Relay {
    let plan = Plan::on(bench).set("admin.token", TOKEN);
    if bench.engine() == Engine::Embedded { plan.start().await } else { plan.apart(1).start().await }
}

/// The JSON API of the admin console.
struct ConsoleClient {
    client: Client,
    url: String,
    token: &'static str,
}

impl ConsoleClient {
    fn of(relay: &Relay) -> Self {
        Self { client: http::client(), url: relay.processes[0].admin_url(), token: TOKEN }
    }

    async fn raw(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, String) {
        let request = self.client.request(method, format!("{}{path}", self.url)).bearer_auth(self.token);
        let request = body.into_iter().fold(request, |request, body| {
            request.header("content-type", "application/json").body(body.to_string())
        });
        let answer = request.send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let (status, text) = self.raw(Method::GET, path, None).await;
        (status.as_u16(), serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let (status, text) = self.raw(Method::POST, path, Some(body)).await;
        (status.as_u16(), serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Waits for this many dead letters, and returns the list.
    async fn lists(&self, count: usize) -> Value {
        eventually(&format!("{count} dead letters"), PATIENCE, async || {
            let (status, list) = self.get("/dead-letters").await;
            if status == 200 && list["matching"] == count {
                Ok(list)
            } else {
                Err(format!("{status} {list:#}"))
            }
        })
        .await
    }

    async fn replay_ends(&self) -> Value {
        eventually("the replay to be done", PATIENCE, async || {
            let (status, answer) = self.get("/dead-letters/replay").await;
            let replay = &answer["replay"];
            if status == 200 && replay["state"] == "done" {
                Ok(replay.clone())
            } else {
                Err(answer.to_string())
            }
        })
        .await
    }
}

/// The messages of a chat so far, without the first one.
fn said(relay: &Relay, group: &str) -> Vec<String> {
    relay.said(group).into_iter().skip(1).collect()
}

fn refuse(relay: &Relay) {
    relay.sandbox.script().fail(FaultRule::new(Side::ServiceNow).operation(Operation::Message).status(400));
}

async fn say(relay: &Relay, conversation: &str, text: &str) {
    let body = json!({"type": "message", "conversation_id": conversation, "message": text});
    relay.try_handoff(&body, Some(&format!("{conversation} {text}"))).await.unwrap().id();
}

on_every_engine! {
    // RabbitMQ answers a look at a queue that does not exist with a soft error, which ends a channel and no connection.
    async fn a_destination_without_a_queue_costs_no_connection(bench: Bench) {
        let plan = Plan::on(&bench).set("admin.token", TOKEN).set("xo.callback_url", "");
        let relay =
            if bench.engine() == Engine::Embedded { plan.start().await } else { plan.apart(1).start().await };
        let console = ConsoleClient::of(&relay);
        for _ in 0..3 {
            for destination in ["xo", "events", "bot:other"] {
                console.get(&format!("/dead-letters?destination={destination}")).await;
            }
        }
        console.lists(0).await;
        let process = &relay.processes[0].running;
        assert!(!process.stderr().contains("no connection"), "{}", process.stderr());
        assert!(!process.stdout().contains("no connection"), "{}", process.stdout());
    }

    async fn dead_letters_are_listed_shown_replayed_and_discarded(bench: Bench) {
        let relay = relay(&bench).await;
        let console = ConsoleClient::of(&relay);
        let (one, two) = (relay.open("c-1").await, relay.open("c-2").await);
        relay.open("c-3").await;
        refuse(&relay);
        for (conversation, text) in
            [("c-1", "words 1"), ("c-1", "words 2"), ("c-1", "words 3"), ("c-2", "words 1"), ("c-2", "words 2"), ("c-3", "words 1")]
        {
            say(&relay, conversation, text).await;
        }
        let list = console.lists(6).await;
        assert_eq!(list["groups"][0]["reason"], "rejected");
        assert_eq!(list["groups"][0]["lanes"], 3);
        assert!(!list.to_string().contains("words"), "{list:#}");
        assert_eq!(console.get("/dead-letters?conversation=c-1&limit=1").await.1["matching"], 3);

        let id = list["dead_letters"][0]["id"].as_str().unwrap();
        let (_, shown) = console.get(&format!("/dead-letters/{id}")).await;
        assert_eq!(shown["dead_letters"][0]["story"][0]["status"], 400, "{shown:#}");
        assert!(!shown.to_string().contains("words"), "{shown:#}");
        let (_, revealed) = console.get(&format!("/dead-letters/{id}?reveal=true")).await;
        assert!(revealed["dead_letters"][0]["body"].as_str().unwrap().contains("words"), "{revealed:#}");
        let (_, lines) = console.raw(Method::GET, "/dead-letters/export?conversation=c-2", None).await;
        let exported: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(exported.len() == 2 && exported.iter().all(|letter| letter["conversation_id"] == "c-2"), "{lines}");
        let texts = lines.replace("platform_words", "");
        assert_eq!(texts.matches("words").count(), 2);

        // Since the dead letters were written, the first message was delivered again, and the chat of the second has
        // ended.
        relay.sandbox.script().clear();
        say(&relay, "c-2", "words 2").await;
        relay.until("what was said again", |relay| if said(relay, &two).len() == 1 { Ok(()) } else { Err(String::new()) }).await;
        relay.end("c-3").await;
        relay.reaches("c-3", "ended").await;
        let (status, planned) = console.post("/dead-letters/replay", json!({"dry_run": true})).await;
        let plan = &planned["plan"];
        assert_eq!((status, &plan["replay"], &plan["take_out"], &plan["leave"]), (200, &json!(4), &json!(1), &json!(1)), "{plan:#}");
        console.lists(6).await;

        let (status, begun) = console.post("/dead-letters/replay", json!({"rate": "200/s"})).await;
        assert_eq!((status, &begun["plan"]), (202, plan), "what was planned is what is done");
        let done = console.replay_ends().await;
        assert_eq!((&done["replayed"], &done["taken_out"]), (&json!(4), &json!(1)), "{done:#}");
        assert_eq!((&done["outcomes"]["delivered"], &done["outcomes"]["died_again"]), (&json!(4), &json!(0)), "{done:#}");
        relay.until("the replay", |relay| {
            let right = said(relay, &one) == ["words 1", "words 2", "words 3"] && said(relay, &two) == ["words 2", "words 1"];
            if right { Ok(()) } else { Err(format!("{:?} {:?}", said(relay, &one), said(relay, &two))) }
        }).await;

        console.lists(1).await;
        let (status, refused) = console.post("/dead-letters/discard", json!({"confirm": 6})).await;
        assert_eq!((status, refused["type"].as_str()), (409, Some("urn:causeway:problem:recounted")), "{refused}");
        assert_eq!(console.post("/dead-letters/discard", json!({})).await.0, 422);
        assert_eq!(console.post("/dead-letters/discard", json!({"confirm": 1})).await, (200, json!({"discarded": 1})));
        console.lists(0).await;
        assert_eq!(console.get(&format!("/dead-letters/{id}")).await.0, 404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_replay_tells_how_far_it_is_and_keeps_other_writers_out() {
    let bench = Engine::Embedded.bench().unwrap();
    let relay = relay(&bench).await;
    let console = ConsoleClient::of(&relay);
    relay.open("c-1").await;
    refuse(&relay);
    relay.messages(&["c-1".to_owned()], 30, 1).await;
    console.lists(30).await;
    relay.sandbox.script().clear();
    assert_eq!(console.post("/dead-letters/replay", json!({"rate": 2})).await.0, 202);
    assert_eq!(console.get("/dead-letters/replay").await.1["replay"]["state"], "running");
    let (status, busy) = console.post("/dead-letters/replay", json!({})).await;
    assert_eq!((status, busy["type"].as_str()), (409, Some("urn:causeway:problem:busy")), "{busy}");
    // Another process sees the lock of the dead-letter reader.
    let beside = relay.tool(["dead", "discard", "--yes"]).run(PATIENCE).await;
    assert!(beside.code == Some(1) && beside.stderr.contains("wait until it is done"), "{}", beside.stderr);
    // A read-only client is never blocked.
    assert_eq!(console.get("/dead-letters").await.0, 200);
    for verb in ["list", "count", "show"] {
        let beside = relay.tool(["dead", verb]).run(PATIENCE).await;
        assert_eq!(beside.code, Some(0), "{verb}: {}", beside.stderr);
    }
    let (status, stopped) = console.post("/dead-letters/replay/stop", json!({})).await;
    assert_eq!(status, 200, "{stopped}");
    let replay = eventually("the end of the replay", PATIENCE, async || {
        let replay = console.get("/dead-letters/replay").await.1["replay"].clone();
        if replay["state"] == "stopped" { Ok(replay) } else { Err(replay.to_string()) }
    })
    .await;
    assert_eq!(replay["error"], "an operator stopped it");
    let replayed = replay["replayed"].as_u64().unwrap();
    assert!(replayed < 30, "{replay}");
    console.lists(30 - usize::try_from(replayed).unwrap()).await;
    let audited = lines(&log_of(&relay), "operator");
    let told: Vec<_> =
        audited.iter().map(|line| format!("{} {} {}", line["who"], line["act"], line["outcome"])).collect();
    let expected = ["replay\" \"started", "stop\" \"done", "replay\" \"interrupted"];
    assert_eq!(told, expected.map(|act| format!("\"admin\" \"{act}\"")));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_page_is_shown_without_the_token() {
    let bench = Engine::Embedded.bench().unwrap();
    let mut relay = relay(&bench).await;
    let doors = [
        (Method::GET, "/dead-letters"),
        (Method::GET, "/dead-letters/replay"),
        (Method::GET, "/dead-letters/export"),
        (Method::GET, "/trace?name=c-1"),
        (Method::POST, "/dead-letters/replay"),
        (Method::POST, "/dead-letters/replay/stop"),
        (Method::POST, "/dead-letters/edit"),
        (Method::POST, "/dead-letters/discard"),
    ];
    let stranger = ConsoleClient { token: "a-long-admin-tokem", ..ConsoleClient::of(&relay) };
    for (method, path) in &doors {
        let (status, text) = stranger.raw(method.clone(), path, Some(json!({"confirm": 0}))).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path} {text}");
    }
    // A form of another origin with a cookie, and a request without a cookie.
    let page = |path: &str| format!("{}{path}", relay.processes[0].admin_url());
    let client = http::client();
    let form = |path: &str, body: &str| {
        client
            .post(page(path))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body.to_owned())
    };
    assert_eq!(form("/desk/login", "token=wrong").send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let inside =
        form("/desk/login", &format!("token={TOKEN}&back=//elsewhere.example")).send().await.unwrap();
    assert_eq!(
        (inside.status(), inside.headers()["location"].to_str().unwrap()),
        (StatusCode::SEE_OTHER, "/desk")
    );
    let cookie = inside.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.contains("HttpOnly; SameSite=Strict") && !cookie.contains(TOKEN), "{cookie}");
    let cookie = cookie.split(';').next().unwrap();
    let old = client.get(page("/desk?reason=expired")).header("cookie", cookie).send().await.unwrap();
    assert_eq!(old.headers()["location"], "/desk/letters?reason=expired", "a link of an earlier version");
    let home = client.get(page("/desk")).header("cookie", cookie).send().await.unwrap();
    assert_eq!(home.status(), StatusCode::OK);
    assert!(home.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
    assert_eq!(home.headers()["cache-control"], "no-store");
    assert_eq!(home.headers()["refresh"], "10");
    let calm = client.get(page("/desk?refresh=off")).header("cookie", cookie).send().await.unwrap();
    assert_eq!(calm.headers().get("refresh"), None, "a user turns it off");
    let none = client.get(page("/desk/replay?selected=true")).header("cookie", cookie).send().await.unwrap();
    assert_eq!(none.status(), StatusCode::UNPROCESSABLE_ENTITY, "no box means nothing, and not everything");
    let forged =
        form("/desk/discard", "confirm=0&form=guessed").header("cookie", cookie).send().await.unwrap();
    assert_eq!(forged.status(), StatusCode::UNAUTHORIZED);
    for path in ["/desk", "/desk/replay", "/desk/letters/x"] {
        assert_eq!(client.get(page(path)).send().await.unwrap().status(), StatusCode::UNAUTHORIZED, "{path}");
    }
    // A misspelled filter would match all dead letters.
    let console = ConsoleClient::of(&relay);
    let (status, refused) = console.post("/dead-letters/replay", json!({"destinaton": "xo"})).await;
    assert_eq!((status, refused["field"].as_str()), (422, Some("destinaton")), "{refused}");

    // Without the setting there is no admin console.
    relay.processes[0].running.kill9();
    relay.processes[0].set("admin.token", "");
    relay.processes[0].restart();
    relay.ready().await;
    for path in ["/dead-letters", "/dead-letters/replay", "/desk", "/desk/login"] {
        let (status, answer) = console.get(path).await;
        assert_eq!(status, 404, "{path} {answer}");
        assert!(answer["detail"].as_str().unwrap().contains("admin.token"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_with_the_role_view_only_looks() {
    let bench = Engine::Embedded.bench().unwrap();
    let plan = Plan::on(&bench).set("admin.tokens.0.name", "ada").set("admin.tokens.0.token", "only-looks");
    let plan = plan.set("admin.tokens.0.role", "view").set("admin.tokens.1.name", "bob");
    let plan = plan.set("admin.tokens.1.token", "acts").set("admin.tokens.1.role", "act");
    let relay = plan.start().await;
    relay.open("c-1").await;
    refuse(&relay);
    say(&relay, "c-1", "secret words").await;
    let ada = ConsoleClient { token: "only-looks", ..ConsoleClient::of(&relay) };
    let list = ada.lists(1).await;
    let id = list["dead_letters"][0]["id"].as_str().unwrap();
    for path in
        [format!("/dead-letters/{id}"), "/trace?name=c-1".to_owned(), "/dead-letters/replay".to_owned()]
    {
        assert_eq!(ada.get(&path).await.0, 200, "{path}");
    }
    let refused = |(status, text): (StatusCode, String)| {
        let problem: Value = serde_json::from_str(&text).unwrap_or_default();
        assert_eq!(
            (status.as_u16(), problem["type"].as_str()),
            (403, Some("urn:causeway:problem:needs_role")),
            "{text}"
        );
        assert!(problem["detail"].as_str().unwrap().contains("role act"), "{text}");
        assert!(!text.contains("secret words"), "{text}");
    };
    for path in [format!("/dead-letters/{id}?reveal=true"), "/dead-letters/export".to_owned()] {
        refused(ada.raw(Method::GET, &path, None).await);
    }
    for path in ["replay", "replay/stop", "discard", "edit"] {
        refused(ada.raw(Method::POST, &format!("/dead-letters/{path}"), Some(json!({"confirm": 1}))).await);
    }
    // The same in a browser.
    let client = http::client();
    let page = |path: &str| format!("{}{path}", ada.url);
    let post = |path: &str, body: String| {
        client.post(page(path)).header("content-type", "application/x-www-form-urlencoded").body(body)
    };
    let inside = post("/desk/login", "token=only-looks".to_owned()).send().await.unwrap();
    let cookie = inside.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let get = async |path: &str| {
        let answer = client.get(page(path)).header("cookie", &cookie).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let (status, letters) = get("/desk/letters").await;
    assert!(status == 200 && letters.contains("rejected") && !letters.contains("Replay"), "{letters}");
    let form = letters.split("name=\"form\" value=\"").nth(1).unwrap().split('"').next().unwrap();
    for path in ["/desk/replay", "/desk/discard"] {
        assert_eq!(get(path).await.0, 403, "{path}");
    }
    for path in [format!("/desk/letters/{id}?reveal=true"), format!("/desk/letters/{id}/edit")] {
        let (status, text) = get(&path).await;
        assert!(status == 403 && !text.contains("secret words"), "{path}");
    }
    for path in ["replay", "discard", "export", "edit", "stop"] {
        let body = format!("form={form}&confirm=1&id={id}");
        let answer = post(&format!("/desk/{path}"), body).header("cookie", &cookie).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{path}");
    }
    // A token with the role act acts, and the audit names it.
    let bob = ConsoleClient { token: "acts", ..ConsoleClient::of(&relay) };
    assert_eq!(
        bob.post("/dead-letters/discard", json!({"confirm": 1})).await,
        (200, json!({"discarded": 1}))
    );
    let audited = lines(&log_of(&relay), "operator");
    assert_eq!(audited.len(), 1, "what was refused is no act: {audited:?}");
    assert_eq!((&audited[0]["who"], &audited[0]["act"]), (&json!("bob"), &json!("discard")));
}

on_every_engine! {
    async fn an_edited_message_takes_the_place_of_its_dead_letter(bench: Bench) {
        let relay = Plan::on(&bench).set("admin.token", TOKEN).set("admin.edit", "true").start().await;
        let console = ConsoleClient::of(&relay);
        let group = relay.open("c-1").await;
        relay.sandbox.script().fail(FaultRule::new(Side::ServiceNow).operation(Operation::Message).times(2).status(400));
        say(&relay, "c-1", "secret words").await;
        let list = console.lists(1).await;
        let id = list["dead_letters"][0]["id"].as_str().unwrap();
        let (_, shown) = console.get(&format!("/dead-letters/{id}?reveal=true")).await;
        let body = shown["dead_letters"][0]["body"].as_str().unwrap().replace("secret words", "other words");
        for (wrong, field) in [(json!({"id": id, "body": "{"}), "body"), (json!({"id": id}), "body"), (json!({"body": "{}"}), "id")] {
            let (status, refused) = console.post("/dead-letters/edit", wrong).await;
            assert_eq!((status, refused["field"].as_str()), (422, Some(field)), "{refused}");
        }
        // The first edited message is refused again: the dead letter is kept, and the new message has one of its own.
        let edit = json!({"id": id, "body": body});
        let (status, begun) = console.post("/dead-letters/edit", edit.clone()).await;
        assert_eq!(status, 202, "{begun}");
        assert_ne!(begun["id"], *id);
        let ended = |state: &'static str| {
            let console = &console;
            async move {
                eventually("the end of the edit", PATIENCE, async || {
                    let replay = console.get("/dead-letters/replay").await.1["replay"].clone();
                    if replay["state"] == state { Ok(replay) } else { Err(replay.to_string()) }
                }).await
            }
        };
        let replay = ended("stopped").await;
        assert_eq!((&replay["outcomes"]["died_again"], &replay["error"]), (&json!(1), &json!("not delivered, so the dead letter stays")));
        console.lists(2).await;
        // The next one is delivered, and only the edited dead letter goes.
        let (status, begun) = console.post("/dead-letters/edit", edit).await;
        assert_eq!(status, 202, "{begun}");
        let replay = ended("done").await;
        assert_eq!(replay["outcomes"]["delivered"], 1, "{replay}");
        assert_eq!(said(&relay, &group), ["other words"]);
        let left = console.lists(1).await;
        assert_ne!(left["dead_letters"][0]["id"], *id);
        let log = log_of(&relay);
        let audited: Vec<Value> = lines(&log, "operator").into_iter().filter(|line| line["act"] == "edit").collect();
        let outcomes: Vec<_> = audited.iter().map(|line| line["outcome"].as_str().unwrap()).collect();
        assert_eq!(outcomes, ["started", "failed", "started", "done"]);
        assert!(audited.iter().all(|line| line["filter"].as_str().unwrap().starts_with(&format!("id={id} new_id="))), "{audited:?}");
        assert!(!log.contains("words"), "the log contains no text");
    }

    async fn the_same_edit_twice_is_one_message(bench: Bench) {
        let relay = Plan::on(&bench).set("admin.token", TOKEN).set("admin.edit", "true").start().await;
        let console = ConsoleClient::of(&relay);
        let group = relay.open("c-1").await;
        relay.sandbox.script().fail(FaultRule::new(Side::ServiceNow).operation(Operation::Message).times(1).status(400));
        say(&relay, "c-1", "first words").await;
        let list = console.lists(1).await;
        let id = list["dead_letters"][0]["id"].as_str().unwrap();
        let (_, shown) = console.get(&format!("/dead-letters/{id}?reveal=true")).await;
        let body = shown["dead_letters"][0]["body"].as_str().unwrap().replace("first words", "other words");
        // The first edited message is on its way until the second one is published.
        relay.sandbox.script().fail(FaultRule::new(Side::ServiceNow).operation(Operation::Message).status(503));
        let edit = json!({"id": id, "body": body});
        let (status, first) = console.post("/dead-letters/edit", edit.clone()).await;
        assert_eq!(status, 202, "{first}");
        let (status, second) = console.post("/dead-letters/edit", edit).await;
        assert_eq!((status, &second["id"]), (202, &first["id"]), "{second}");
        relay.sandbox.script().clear();
        console.lists(0).await;
        relay.say("c-1", "later words").await;
        eventually("the message after both", PATIENCE, async || {
            let said = said(&relay, &group);
            if said.last().is_some_and(|last| last == "later words") { Ok(()) } else { Err(format!("{said:?}")) }
        }).await;
        assert_eq!(said(&relay, &group), ["other words", "later words"]);
    }
}

/// Tests and pictures a page as wide as a phone and as wide as a desk.
async fn seen(browser: &Browser, name: &str) {
    for (width, device) in [(390, "phone"), (1280, "desk")] {
        browser.width(width).await;
        browser.is_accessible(&format!("{name} on a {device}")).await;
        browser.picture(&format!("{name}-{device}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Chromium: tests/run installs it"]
async fn in_a_browser() {
    let Some(browser) = Browser::start().await else { return };
    let bench = Engine::Embedded.bench().unwrap();
    let relay = Plan::on(&bench).set("admin.token", TOKEN).set("admin.edit", "true").start().await;
    let console = ConsoleClient::of(&relay);
    let (one, two) = (relay.open("c-1").await, relay.open("c-2").await);
    refuse(&relay);
    let hostile =
        "</pre><script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">";
    for (conversation, text) in [("c-1", hostile), ("c-1", "the second"), ("c-2", "hello")] {
        say(&relay, conversation, text).await;
    }
    console.lists(3).await;
    relay.sandbox.script().clear();

    browser.open(&format!("{}/desk/letters?conversation=c-1", console.url)).await;
    browser.write("input[name=token]", "guess").await;
    browser.button("Log in").await;
    browser.reads("The token is wrong").await;
    seen(&browser, "login").await;
    browser.write("input[name=token]", TOKEN).await;
    browser.button("Log in").await;
    browser.reads("2 dead letters").await;
    browser.follow("All").await;
    browser.reads("3 dead letters").await;
    assert!(browser.text().await.contains("the platform refused it for good"));
    seen(&browser, "letters").await;
    // Two pages of two lines, in both directions.
    browser.open(&format!("{}/desk/letters?limit=2", console.url)).await;
    browser.reads("The newest 1 to 2: 3 dead letters").await;
    browser.follow("Next page").await;
    browser.reads("The newest 3 to 3").await;
    browser.follow("Previous page").await;
    browser.reads("The newest 1 to 2").await;
    browser.follow("Oldest first").await;
    browser.reads("The oldest 1 to 2").await;

    browser.in_zone("Asia/Kolkata").await;
    browser.follow("Newest first").await;
    browser.reads("GMT+5:30").await;
    assert!(browser.text().await.contains("All times are UTC"), "the local time is an addition");
    browser.in_zone("UTC").await;

    browser.follow("Status").await;
    browser.reads("rejected 3").await;
    assert!(
        browser.text().await.contains("Stop loading it again"),
        "the page is loaded again until a user stops it"
    );
    browser.follow("Stop loading it again").await;
    browser.reads("Load this page again every 10 seconds").await;
    assert!(browser.text().await.contains(&bench.folder().display().to_string()), "the deployment is named");
    seen(&browser, "status").await;
    browser.write("input[name=name]", "c-1").await;
    browser.button("Find").await;
    browser.reads("dead_lettered").await;

    browser.open(&format!("{}/desk/letters?conversation=c-1&sort=oldest", console.url)).await;
    browser.follow("handoff.message").await;
    browser.reads("bytes, hidden").await;
    assert!(browser.text().await.contains("400"), "the story tells its attempt");
    browser.follow("Show the text").await;
    browser.reads("document.title = 'owned'").await;
    assert_eq!(browser.in_the_dark().await, "\"rgb(22, 24, 27)\"", "whoever asks for the dark gets it");
    seen(&browser, "letter").await;
    assert_eq!(browser.title().await, "handoff.message · Causeway", "hostile text is only text");

    browser.follow("c-1").await;
    browser.reads("Its dead letters, in both directions").await;
    assert!(browser.text().await.contains(&one), "the conversation shows its chat");
    assert!(browser.text().await.contains("to the agent (servicenow)"), "the conversation shows its course");
    seen(&browser, "conversation").await;
    browser.follow("Conversations").await;
    browser.reads("2 found").await;
    seen(&browser, "conversations").await;
    browser.write("input[name=name]", &two).await;
    browser.button("Search").await;
    browser.reads("1 found").await;
    assert!(!browser.text().await.contains("c-1"), "the search leaves the others out");
    // The message of c-2 is selected by keyboard, and the plan names it alone.
    browser.open(&format!("{}/desk/letters?conversation=c-2", console.url)).await;
    browser.press("input[type=checkbox]").await;
    browser.keys("  ").await;
    browser.button("Replay the selected").await;
    browser.reads("1 replayed, 0 removed, 0 kept").await;
    browser.follow("Cancel").await;
    browser.open(&format!("{}/desk/letters?conversation=c-1", console.url)).await;
    browser.follow("handoff.message").await;
    browser.follow("all its dead letters").await;
    browser.follow("Replay 2 dead letters").await;
    browser.reads("Nothing has been changed yet").await;
    seen(&browser, "plan").await;
    assert_eq!(said(&relay, &one).len(), 0);
    browser.button("Replay 2 dead letters").await;
    browser.reads("done, 2 of 2 replayed: delivered 2, died again 0").await;
    seen(&browser, "progress").await;
    relay
        .until("both, in their order", |relay| match said(relay, &one).as_slice() {
            [first, second] if first.contains("script") && second == "the second" => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;

    browser.follow("Back to the dead letters").await;
    browser.follow("Discard").await;
    browser.reads("Remove 1 dead letter for good?").await;
    seen(&browser, "discard").await;
    browser.follow("Keep them").await;
    browser.reads("1 dead letter").await;
    browser.follow("handoff.message").await;
    browser.follow("Edit and replay").await;
    browser.reads("is sent under a new id").await;
    seen(&browser, "edit").await;
    browser.follow("Dead letters").await;
    browser.follow("Discard").await;
    browser.button("Remove 1 dead letter").await;
    browser.reads("Removed 1 dead letter.").await;
    browser.follow("Back to the dead letters").await;
    browser.reads("There are no dead letters").await;
    assert_eq!(said(&relay, &two).len(), 0);
    browser.button("Log out").await;
    browser.reads("Token").await;
}
