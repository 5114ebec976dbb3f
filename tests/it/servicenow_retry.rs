//! Tests that no message of an agent is lost while Causeway is away, that no message overtakes another message of its chat,
//! and that each message arrives once. RESTMessageV2 has no retry (`src/platform/servicenow/FACTS.md`, SN-5), so an event sends
//! a callback again that was not answered 2xx. ServiceNow promises no order of events, so the tests fire events in several orders.

use reqwest::Client;
use serde_json::{Value, json};

use crate::harness::business_rule::{Instance, SECRET, settings};
use crate::harness::http;
use crate::harness::matrix::Engine;
use crate::harness::relay::{Plan, Relay};

const ORDERS: [&str; 2] = ["byTime", "byTimeLast"];

/// An instance that marks an event as processed `early` (before its script runs) or late. ServiceNow says nothing about it.
fn instance(early: bool) -> Instance {
    let mut settings = settings();
    settings["early"] = json!(early);
    Instance::new(&settings)
}

fn in_every_way(check: impl Fn(&Instance, &str, &str)) {
    for early in [false, true] {
        for order in ORDERS {
            check(&instance(early), order, &format!("{order}, early: {early}"));
        }
    }
}

#[test]
fn while_causeway_is_away_nothing_is_lost_and_nothing_overtakes() {
    in_every_way(|instance, order, way| {
        let done = instance.run(&format!(
            "instance.status = 503;
             insert('g1', 'a'); insert('g1', 'b'); insert('g2', 'x'); insert('g1', 'c');
             var first = tried().join('');
             fireUntil(clock + 60000, {order});
             var calls = sent.length;
             instance.status = 202;
             insert('g1', 'd');
             var early = taken().join('');
             fireAll({order});
             insert('g1', 'e');
             var again = sent.filter(function (request) {{ return request.status === 202; }}).length;
             result = {{ first: first, calls: calls, early: early, g1: taken('g1').join(''), g2: taken('g2').join(''), again: again,
                         left: ready().length, last: tried().pop() }};"
        ));
        let expected = json!({
            // While `a` waits, nobody calls for `b` and `c`.
            "first": "ax", "calls": 8, "early": "", "g1": "abcde", "g2": "x",
            // Causeway suppresses repeats; here there are none.
            "again": 6, "left": 0, "last": "e",
        });
        assert_eq!(done, expected, "{way}");
    });
}

/// Causeway may come back in the middle of a retry.
#[test]
fn a_retry_stops_at_the_first_failure() {
    in_every_way(|instance, order, way| {
        let done = instance.run(&format!(
            "instance.status = 503;
             insert('g1', 'a'); insert('g1', 'b'); insert('g1', 'c');
             during = function () {{ during = function () {{ instance.status = 202; }}; }};
             fire(ready()[0]);
             var after = tried().join('');
             during = null; instance.status = 202;
             fireAll({order});
             result = {{ after: after, taken: taken().join('') }};"
        ));
        assert_eq!(done, json!({ "after": "aa", "taken": "abc" }), "{way}");
    });
}

/// Outages come and go, and some events never come due since their node was stopped.
#[test]
fn whatever_comes_together_each_chat_keeps_its_order() {
    for seed in 1..=12 {
        for early in [false, true] {
            let done = instance(early).run(&format!(
                "var seed = {seed}, written = {{}}, groups = ['g1', 'g2', 'g3'];
                 function random(below) {{ seed = (seed * 48271) % 2147483647; return seed % below; }}
                 function shuffled() {{ return random(3) - 1; }}
                 for (var n = 0; n < 40; n++) {{
                   if (random(4) === 0) {{ instance.status = random(2) ? 202 : 503; }}
                   var group = groups[random(3)], id = 'm' + n;
                   (written[group] = written[group] || []).push(id);
                   insert(group, id);
                   fireUntil(clock + random(20) * 1000, shuffled);
                   var open = ready();
                   if (open.length > 0 && random(5) === 0) {{ open[random(open.length)].state = 'processing'; }}
                 }}
                 instance.status = 202;
                 // Each message whose own event hangs is sent by the event of a later message of its chat.
                 clock += 600000;
                 groups.forEach(function (group) {{ written[group].push('last-' + group); insert(group, 'last-' + group); }});
                 fireAll(shuffled);
                 result = groups.map(function (group) {{ return [written[group], taken(group)]; }});"
            ));
            for chat in done.as_array().unwrap() {
                assert_eq!(chat[0], chat[1], "seed {seed}, early: {early}");
            }
        }
    }
}

/// Two nodes may process events of one chat at once, and an agent writes meanwhile.
#[test]
fn later_messages_do_not_overtake_a_retry() {
    in_every_way(|instance, order, way| {
        let done = instance.run(&format!(
            "instance.status = 503;
             insert('g1', 'a'); insert('g1', 'b'); insert('g1', 'c');
             instance.status = 202;
             var claimed = ready();
             during = function () {{
               insert('g1', 'd');
               claimed.slice(1).reverse().forEach(function (event) {{ fire(event); }});
             }};
             fire(claimed[0]);
             fireAll({order});
             result = {{ taken: taken().join(''), left: ready().length }};"
        ));
        assert_eq!(done, json!({ "taken": "abcd", "left": 0 }), "{way}");
    });
}

#[test]
fn an_event_that_another_node_claimed_is_no_repeat() {
    in_every_way(|instance, _, way| {
        let done = instance.run(
            "instance.status = 503; insert('g1', 'a'); insert('g1', 'b'); instance.status = 202;
             var claimed = ready(), read = claimed.map(copyOf);
             claimed.forEach(function (event, n) { fire(event, read[n]); });
             result = tried().join('');",
        );
        assert_eq!(done, "aab", "{way}");
    });
}

/// A node may be stopped in the middle of a retry.
#[test]
fn the_next_retry_is_queued_before_the_call() {
    in_every_way(|instance, order, way| {
        let done = instance.run(&format!(
            "instance.status = 503; insert('g1', 'a'); insert('g1', 'b');
             var kept;
             during = function () {{ kept = JSON.stringify(events); }};
             fire(ready()[0]);
             // The instance as it was at the call: the event that was being processed hangs.
             events = JSON.parse(kept); sent = []; instance.status = 202;
             fireAll({order});
             result = taken().join('');"
        ));
        assert_eq!(done, "ab", "{way}");
    });
}

#[test]
fn a_removed_row_delays_no_message() {
    in_every_way(|instance, order, way| {
        let done = instance.run(&format!(
            "instance.status = 503; insert('g1', 'a'); insert('g1', 'b'); insert('g1', 'c'); instance.status = 202;
             instance.history = instance.history.filter(function (row) {{ return row.sys_id !== 'a'; }});
             var queued = gs.queued;
             fireAll({order});
             queued = gs.queued - queued;
             // The same while the event of the removed row hangs.
             instance.status = 503; insert('g2', 'x'); insert('g2', 'y'); instance.status = 202;
             ready()[0].state = 'processing';
             instance.history = instance.history.filter(function (row) {{ return row.sys_id !== 'x'; }});
             fireAll({order});
             result = {{ taken: taken().join(''), left: ready().length, queued: queued }};"
        ));
        // One retry for each message that still exists, at most.
        let queued = done["queued"].as_u64().unwrap();
        assert!(done["taken"] == "bcy" && done["left"] == 0 && queued <= 2, "{way}: {done}");
    });
}

#[test]
fn an_event_of_another_name_is_no_retry() {
    let done = instance(false).run(
        "var written = { group: 'g1', formatted_message: 'hi', sys_created_by: 'beth.anglin', sys_id: 'a', internal: '0' };
         rule(recordOf(written), { name: 'incident.inserted', instance: 'i1', parm1: '', parm2: '' });
         result = tried();",
    );
    assert_eq!(done, json!(["a"]));
}

#[test]
fn nothing_escapes_from_a_retry() {
    for breaks in ["message", "execute", "mac", "query", "queue", "log", "update"] {
        let done = instance(false).run(&format!(
            "instance.status = 503; insert('g1', 'a');
             instance.breaks = '{breaks}'; instance.status = 202;
             fire(ready()[0]);
             instance.breaks = '';
             fireAll(byTime);
             result = taken();"
        ));
        assert_eq!(done, json!(["a"]), "{breaks}");
    }
}

#[test]
fn after_a_day_the_rule_gives_up_and_says_so() {
    let done = instance(false).run(
        "instance.status = 503; insert('g1', 'a'); fireAll(byTime);
         result = { hours: Math.round((clock - instance.now) / 3600000), tries: sent.length, error: errors.pop() };",
    );
    assert_eq!(done["hours"], 24);
    assert!(done["tries"].as_u64().is_some_and(|tries| (1_300..1_500).contains(&tries)), "{done}");
    assert_eq!(done["error"], "Causeway: live_message a was never taken; no more retries");
}

/// The pure callback relay keeps no directory and reads no chat back: the retry in ServiceNow is all it has.
#[tokio::test(flavor = "multi_thread")]
async fn the_pure_callback_relay_that_is_away_for_a_minute_loses_nothing() {
    let Some(bench) = Engine::Embedded.bench() else { return };
    let unset = ["servicenow.host_url", "servicenow.username", "servicenow.password", "servicenow.queue_id"];
    let unset = unset.iter().chain(&["handoffs.events_url", "ingress.handoffs.token"]);
    let plan = Plan::on(&bench).set("ingress.servicenow.hmac_secret", SECRET);
    let mut relay = unset.fold(plan, |plan, key| plan.set(key, "")).start().await;
    let mut settings = settings();
    settings["substitutes"] = json!(true);
    settings["now"] = json!(causeway::clock::now().as_millisecond());
    let instance = Instance::new(&settings);
    connect(&instance, &relay);

    instance.run("insert('g1', 'a1', 'set ${HOME}'); insert('g2', 'b1'); insert('g1', 'a2');");
    assert_eq!(relay.stop().await, [Some(0)]);
    let away = instance.run(
        "var end = clock + 60000;
         insert('g1', 'a3', '${one} is lost?'); insert('g2', 'b2'); fireUntil(clock + 7000, byTimeLast);
         insert('g1', 'a4', 'a \"quote\" & <b>'); insert('g1', 'a5'); fireUntil(end, byTimeLast);
         result = { open: ready().length, calls: sent.length };",
    );
    assert_eq!(away["open"], 4, "{away}");
    relay.processes[0].restart();
    relay.ready().await;
    // Written before a retry: behind what waits.
    let back = instance.run(
        "insert('g1', 'a6'); insert('g2', 'b3'); fireAll(byTimeLast); insert('g1', 'a7');
         result = { open: ready().length, seconds: (clock - end) / 1000 };",
    );
    assert_eq!(back["open"], 0, "{back}");
    assert!(back["seconds"].as_u64().is_some_and(|seconds| seconds <= 70), "{back}");
    let first = ["set ${HOME}", "a2", "${one} is lost?", "a \"quote\" & <b>", "a5", "a6", "a7"];
    relay
        .until("every text at XO", |relay| {
            let seen = relay.called_back();
            let texts = |group: &str| seen.get(group).cloned().unwrap_or_default();
            if texts("g1") == first && texts("g2") == ["b1", "b2", "b3"] {
                Ok(())
            } else {
                Err(format!("{seen:?}"))
            }
        })
        .await;
    assert_eq!(relay.dead_letters().await.len(), 0);
}

/// Lets the rule call the relay's ingress.
fn connect(instance: &Instance, relay: &Relay) {
    let url = format!("{}/v1/callbacks/servicenow", relay.processes[0].public_url());
    let (client, runtime) = (http::client(), tokio::runtime::Handle::current());
    instance.network(move |request| {
        tokio::task::block_in_place(|| runtime.block_on(post(&client, &url, &request)))
    });
}

/// The status of the answer; 0 without an answer.
async fn post(client: &Client, url: &str, request: &Value) -> i32 {
    let headers = request["headers"].as_object().unwrap().iter();
    let posted = headers.fold(client.post(url), |posted, (name, value)| {
        posted.header(name.as_str(), value.as_str().unwrap())
    });
    let answer = posted.body(request["body"].as_str().unwrap().to_owned()).send().await;
    answer.map_or(0, |answer| i32::from(answer.status().as_u16()))
}
