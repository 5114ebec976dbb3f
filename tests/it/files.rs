//! Tests that a user's file reaches the agent, and an agent's file reaches the user as a link that opens. No credential
//! is sent to a foreign host, and a link opens one file for a limited time.

use causeway::sandbox::{CallbackCredential, CallbackSettings, FaultRule, Operation, Side};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::http;
use crate::harness::matrix::Engine;
use crate::harness::ports;
use crate::harness::relay::{Plan, Relay};
use crate::harness::xo::{FakeXo, FileAnswer};

const PICTURE: &[u8] = b"\x89PNG\r\n\x1a\n not really";

/// A relay that creates links, whose agent's messages come back as callbacks.
async fn relay(plan: Plan, xo: &FakeXo) -> Relay {
    let relay = xo.settings(plan).start().await;
    let credential =
        CallbackCredential::Header { name: "x-causeway-token".into(), value: "callback-token".into() };
    let url = format!("{}/v1/callbacks/servicenow", relay.processes[0].public_url());
    relay.sandbox.set_callback(Some(CallbackSettings { credential, ..CallbackSettings::to(url) }));
    relay
}

/// A plan with a public address that the test knows before the process starts.
fn with_links(plan: Plan) -> (Plan, String) {
    let [port] = ports::free_ports();
    let url = format!("http://127.0.0.1:{port}");
    (plan.set("files.public_url", url.clone()).set("files.listen", format!("127.0.0.1:{port}")), url)
}

async fn chat(relay: &Relay, xo: &FakeXo) -> String {
    xo.transfers(relay, "u-1", "my screen is broken").await;
    relay
        .until("a chat", |relay| match relay.sandbox.groups().len() {
            1 => Ok(()),
            some => Err(format!("{some} chats; {}", relay.processes[0].running.stderr())),
        })
        .await;
    let group = relay.sandbox.groups().remove(0);
    told(relay, xo, "Please wait").await;
    group
}

async fn told(relay: &Relay, xo: &FakeXo, part: &str) -> String {
    relay
        .until(&format!("the user to hear {part:?}"), |relay| {
            let told = xo.told();
            let story = || format!("{told:?}\n{}", relay.processes[0].running.stderr());
            if told.iter().any(|text| text.contains(part)) { Ok(()) } else { Err(story()) }
        })
        .await;
    xo.told().into_iter().find(|text| text.contains(part)).unwrap_or_default()
}

async fn said(relay: &Relay, group: &str, count: usize) -> Vec<String> {
    relay
        .until(&format!("{count} texts"), |relay| {
            let said = relay.said(group);
            let story = || format!("{said:?}\n{}", relay.processes[0].running.stderr());
            if said.len() >= count { Ok(()) } else { Err(story()) }
        })
        .await;
    relay.said(group)
}

/// The format is in `src/platform/xo/FACTS.md`: `channel.attachments[]` of `{fileName, fileUrl}`; `message` is absent
/// if the user sent only a file.
async fn sends_file(relay: &Relay, xo: &FakeXo, words: Option<&str>, name: &str, url: &str) {
    let file = json!({"fileName": name, "fileUrl": url});
    xo.says(relay, "u-1", words, |event| event["channel"]["attachments"] = json!([file])).await;
}

/// The status, the `x-request-id`, the `allow` and the problem of an answer about a file.
async fn refused(method: Method, url: &str, id: &str) -> (StatusCode, [String; 2], Value) {
    let request = http::client().request(method, url).header("x-request-id", id);
    let answer = request.send().await.expect("an answer");
    let header = |name: &str| {
        answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let (status, headers) = (answer.status(), [header("x-request-id"), header("allow")]);
    (status, headers, serde_json::from_str(&answer.text().await.unwrap_or_default()).unwrap_or_default())
}

async fn opened(url: &str) -> (StatusCode, Value, Vec<u8>) {
    let answer = http::client().get(url).send().await.expect("an answer");
    let (status, headers) = (answer.status(), answer.headers().clone());
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let shown = json!({"type": header("content-type"), "disposition": header("content-disposition"),
        "sniff": header("x-content-type-options")});
    (status, shown, answer.bytes().await.map(Vec::from).unwrap_or_default())
}

on_every_engine! {
    // The calls are in `src/platform/servicenow/FACTS.md`: upload to live_group_profile/{group}, then one message with
    // `attachments` and `File: <name>`.
    async fn a_users_file_is_uploaded_into_the_chat(bench: Bench) {
        let xo = FakeXo::start().await;
        xo.set(|behaviour| {
            let png = FileAnswer::of("image/png", PICTURE);
            let chunked = FileAnswer { chunked: true, ..FileAnswer::of("text/html", "<script>alert(1)</script>") };
            behaviour.files = [("/f/a.png".to_owned(), png), ("/f/b".to_owned(), chunked)].into();
        });
        let relay = relay(Plan::on(&bench), &xo).await;
        let group = chat(&relay, &xo).await;
        sends_file(&relay, &xo, None, "a.png", &format!("{}/f/a.png", xo.url)).await;
        sends_file(&relay, &xo, Some("and this"), "../../b\r\n.html", &format!("{}/f/b", xo.url)).await;
        let said = said(&relay, &group, 3).await;
        assert_eq!(said[1..], ["File: a.png".to_owned(), "and this\nFile: b.html".to_owned()]);
        let files = relay.sandbox.files();
        let mut stored: Vec<_> = files.iter().map(|file| (file.name.as_str(), file.content_type.as_str(), file.bytes.len())).collect();
        stored.sort_unstable();
        // An HTML page is stored as an opaque file at ServiceNow, whatever type its sender claims.
        assert_eq!(stored, [("a.png", "image/png", PICTURE.len()), ("b.html", "application/octet-stream", 25)]);
        assert!(files.iter().all(|file| file.group == group));
        assert!(xo.asked("/f/").iter().all(|asked| asked.signed), "the app's token opens them");
        let messages = relay.sandbox.ledger().find(|entry| entry.path.ends_with("/messages") && entry.applied);
        let body: Value = serde_json::from_str(&messages[0].body).expect("JSON");
        assert_eq!(body["attachments"].as_array().map(Vec::len), Some(1), "{body}");
    }

    async fn a_file_that_cannot_be_uploaded_is_named_and_nothing_is_lost(bench: Bench) {
        let (xo, foreign) = (FakeXo::start().await, FakeXo::start().await);
        xo.set(|behaviour| {
            let empty = FileAnswer::of("image/png", "");
            let large = FileAnswer { chunked: true, ..FileAnswer::of("image/png", vec![7; 3 << 20]) };
            let away = FileAnswer { status: 302, headers: vec![("location", format!("{}/stolen", foreign.url))], ..empty.clone() };
            let gone = FileAnswer { status: 404, ..empty.clone() };
            let named = [("/f/empty", empty), ("/f/large", large), ("/f/away", away), ("/f/gone", gone)];
            behaviour.files = named.map(|(path, file)| (path.to_owned(), file)).into();
        });
        let relay = relay(Plan::on(&bench).set("files.max_size", "1 MiB"), &xo).await;
        let group = chat(&relay, &xo).await;
        for name in ["empty", "large", "away", "gone"] {
            sends_file(&relay, &xo, None, &format!("{name}.png"), &format!("{}/f/{name}", xo.url)).await;
        }
        sends_file(&relay, &xo, None, "other.png", &format!("{}/f/other.png", foreign.url)).await;
        xo.says(&relay, "u-1", None, |event| event["channel"]["attachments"] = json!([{"fileName": "nowhere.png"}])).await;
        let said = said(&relay, &group, 7).await;
        assert_eq!(said[1], format!("File: empty.png {}/f/empty (empty)", xo.url));
        assert_eq!(said[2], format!("File: large.png {}/f/large (too large to be passed on)", xo.url));
        assert_eq!(said[3..6], [
            format!("File: away.png {}/f/away", xo.url), format!("File: gone.png {}/f/gone", xo.url),
            format!("File: other.png {}/f/other.png", foreign.url),
        ]);
        assert_eq!(said[6], "File: nowhere.png");
        assert_eq!(foreign.asked("").len(), 0, "no foreign host is asked, after a redirect neither");
        assert_eq!(relay.dead_letters().await, Vec::<Value>::new());
    }

    // A 404 on the upload means no right to the conversation's record (`src/platform/servicenow/FACTS.md`). The name
    // and an address are then sent as text.
    async fn where_servicenow_takes_no_file_a_link_opens_it(bench: Bench) {
        let xo = FakeXo::start().await;
        xo.set(|behaviour| behaviour.files = [("/f/a.png".to_owned(), FileAnswer::of("image/png", PICTURE))].into());
        let (plan, public) = with_links(Plan::on(&bench));
        let relay = relay(plan, &xo).await;
        let group = chat(&relay, &xo).await;
        relay.sandbox.script().fail(FaultRule::new(Side::ServiceNow).operation(Operation::Other).status(404));
        sends_file(&relay, &xo, Some("see"), "a.png", &format!("{}/f/a.png", xo.url)).await;
        let text = said(&relay, &group, 2).await.remove(1);
        let link = text.strip_prefix("see\nFile: a.png ").unwrap_or_default().to_owned();
        assert!(link.starts_with(&format!("{public}/v1/files/")), "{text}");
        let (status, shown, bytes) = opened(&link).await;
        assert_eq!((status, bytes.as_slice()), (StatusCode::OK, PICTURE));
        assert_eq!(shown, json!({"type": "image/png", "sniff": "nosniff",
            "disposition": "attachment; filename=\"a.png\"; filename*=UTF-8''a.png"}));
        // The holder of a link cannot choose another file.
        let (token, mac) = link.rsplit_once('.').expect("a signature");
        let flipped = if token.ends_with('A') { 'B' } else { 'A' };
        for forged in [format!("{}{flipped}.{mac}", &token[..token.len() - 1]), format!("{token}."), format!("{public}/v1/files/x")] {
            let (status, shown, _) = opened(&forged).await;
            assert_eq!((status, &shown["type"]), (StatusCode::NOT_FOUND, &json!("application/problem+json")), "{forged}");
        }
    }

    // The file is in `attachments` of the row, and the callback says `File: <name>`
    // (`src/platform/servicenow/FACTS.md`). The web channel gets an image template, other files become a Markdown link
    // (`src/platform/xo/FACTS.md`).
    async fn an_agents_file_is_a_link_that_opens(bench: Bench) {
        let xo = FakeXo::start().await;
        let (plan, public) = with_links(Plan::on(&bench).set("files.expires", "1h"));
        let relay = relay(plan, &xo).await;
        let group = chat(&relay, &xo).await;
        relay.sandbox.agent_accept(&group).await.expect("it waits");
        relay.sandbox.agent_sends_file(&group, "plan.png", "image/png", PICTURE).await.expect("a file");
        relay.sandbox.agent_sends_file(&group, "bill.pdf", "application/pdf", b"%PDF-1.7").await.expect("a file");
        relay.sandbox.agent_says(&group, "that is all").await.expect("words");
        told(&relay, &xo, "that is all").await;
        let told = xo.told();
        let image = told.iter().find(|text| text.contains("\"image\"")).cloned().unwrap_or_default();
        let image: Value = serde_json::from_str(&image).unwrap_or_default();
        let link = image["payload"]["url"].as_str().unwrap_or_default();
        assert!(image["type"] == "image" && link.starts_with(&public), "{told:?}");
        let (status, _, bytes) = opened(link).await;
        assert_eq!((status, bytes.as_slice()), (StatusCode::OK, PICTURE));
        let pdf = told.iter().find(|text| text.contains("[bill.pdf](")).cloned().unwrap_or_default();
        let link = pdf.split_once("[bill.pdf](").map(|(_, rest)| rest.split(')').next().unwrap_or_default()).unwrap_or_default();
        let (status, shown, bytes) = opened(link).await;
        assert_eq!((status, &shown["type"], bytes.as_slice()), (StatusCode::OK, &json!("application/pdf"), b"%PDF-1.7".as_slice()));
        let place = |part: &str| told.iter().position(|text| text.contains(part));
        assert!(place("\"image\"") < place("bill.pdf") && place("bill.pdf") < place("that is all"), "{told:?}");
    }

    async fn a_link_ends_in_time(bench: Bench) {
        let xo = FakeXo::start().await;
        let (plan, _) = with_links(Plan::on(&bench).set("files.expires", "1s"));
        let relay = relay(plan, &xo).await;
        let group = chat(&relay, &xo).await;
        relay.sandbox.agent_accept(&group).await.expect("it waits");
        relay.sandbox.agent_sends_file(&group, "bill.pdf", "application/pdf", b"%PDF-1.7").await.expect("a file");
        let text = told(&relay, &xo, "[bill.pdf](").await;
        let link = text.split_once('(').map(|(_, rest)| rest.trim_end_matches('"').split(')').next().unwrap_or_default()).unwrap_or_default().to_owned();
        crate::harness::wait::eventually("the link to end", crate::harness::relay::PATIENCE, async || {
            let (status, _, _) = opened(&link).await;
            if status == StatusCode::GONE { Ok(()) } else { Err(status.to_string()) }
        }).await;
    }

    // Without a public address the name is shown.
    async fn without_a_public_address_the_name_stays(bench: Bench) {
        let xo = FakeXo::start().await;
        let relay = relay(Plan::on(&bench), &xo).await;
        let group = chat(&relay, &xo).await;
        relay.sandbox.agent_accept(&group).await.expect("it waits");
        relay.sandbox.agent_sends_file(&group, "bill.pdf", "application/pdf", b"%PDF-1.7").await.expect("a file");
        told(&relay, &xo, "File: bill.pdf").await;
        let url = format!("{}/v1/files/x.y", relay.processes[0].public_url());
        assert_eq!(opened(&url).await.0, StatusCode::NOT_FOUND);
    }

    // The field is in `src/platform/servicenow/FACTS.md`: `message.attachment{url, contentType, fileName}` with an
    // address that ServiceNow can fetch.
    async fn over_the_virtual_agent_api_a_file_goes_by_a_link(bench: Bench) {
        let xo = FakeXo::start().await;
        xo.set(|behaviour| behaviour.files = [("/f/a.png".to_owned(), FileAnswer::of("image/png", PICTURE))].into());
        let (plan, public) = with_links(Plan::on(&bench).set("servicenow.api", "virtual_agent"));
        let relay = relay(plan, &xo).await;
        let group = chat(&relay, &xo).await;
        relay.sandbox.agent_accept(&group).await.expect("it waits");
        sends_file(&relay, &xo, None, "a.png", &format!("{}/f/a.png", xo.url)).await;
        let requests = |relay: &Relay| -> Vec<Value> {
            let found = relay.sandbox.ledger().find(|entry| entry.path.contains("sn_va_as_service") && !entry.outbound);
            found.iter().filter_map(|entry| serde_json::from_str(&entry.body).ok()).collect()
        };
        relay.until("the file", |relay| {
            let all = requests(relay);
            if all.iter().any(|request| request["message"]["attachment"].is_object()) { Ok(()) } else { Err(format!("{all:?}")) }
        }).await;
        let request = requests(&relay).into_iter().find(|request| request["message"]["attachment"].is_object()).unwrap_or_default();
        let attachment = &request["message"]["attachment"];
        assert_eq!((&attachment["contentType"], &attachment["fileName"]), (&json!("image/png"), &json!("a.png")));
        assert_eq!(request["message"]["text"], "File: a.png");
        let link = attachment["url"].as_str().unwrap_or_default();
        assert!(link.starts_with(&public), "{link}");
        assert_eq!(opened(link).await.2, PICTURE, "ServiceNow fetches it without XO's token");
        // The agent's media, which only our user can open.
        let id = relay.sandbox.keep_file(&group, "plan", "image/png", PICTURE);
        let value = format!("{}/api/now/v1/cs/media/{id}", relay.sandbox.servicenow_url());
        let item = json!({"uiType": "OutputImage", "altText": "a plan", "value": value, "messageId": "i-1",
            "agentInfo": {"sentFromAgent": true, "agentName": "Beth Anglin"}});
        relay.sandbox.virtual_agent_posts(&group, vec![item]).await.expect("an item");
        let text = told(&relay, &xo, "a plan").await;
        let at = text.find(&public).unwrap_or_else(|| panic!("no link: {text}"));
        let link: String = text[at..].chars().take_while(|letter| !letter.is_whitespace() && *letter != '"' && *letter != '\\').collect();
        assert_eq!(opened(&link).await.2, PICTURE);
    }
}

/// A file that is refused is answered like every other refused request, also on a listener of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_file_can_be_found_in_the_logs() {
    let bench = Engine::Embedded.bench().expect("it is always there");
    let xo = FakeXo::start().await;
    let (plan, own) = with_links(Plan::on(&bench));
    let alone = relay(plan, &xo).await;
    let other = Engine::Embedded.bench().expect("it is always there");
    let shared = Plan::on(&other).set("files.public_url", "http://files.example");
    let shared = relay(shared, &FakeXo::start().await).await;
    for base in [own, shared.processes[0].public_url()] {
        let forged = format!("{base}/v1/files/forged");
        for (method, url, status, kind, allow) in [
            (Method::GET, &forged, 404, "unknown_file", ""),
            (Method::GET, &format!("{base}/v1/files/%ff"), 404, "unknown_file", ""),
            (Method::POST, &forged, 405, "wrong_method", "GET, HEAD"),
            (Method::GET, &format!("{base}/v1/file"), 404, "unknown_route", ""),
        ] {
            let (answered, headers, problem) = refused(method, url, "req-7").await;
            assert_eq!(
                (answered.as_u16(), headers),
                (status, ["req-7".to_owned(), allow.to_owned()]),
                "{url}"
            );
            assert_eq!(problem["type"], format!("urn:causeway:problem:{kind}"), "{url}");
            assert_eq!(problem["request_id"], "req-7", "{url}");
        }
        let (_, [made, _], problem) = refused(Method::GET, &forged, "not sane").await;
        assert!(made.len() == 36 && problem["request_id"] == made.as_str(), "{made} {problem}");
    }
    drop(alone);
}
