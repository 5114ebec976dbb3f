//! Tests that a start waits in the queue that the routes choose, by language, channel, metadata or any value of the
//! bot's payload. A wrong Queue ID is reported before the first user is affected.

use causeway::sandbox::SandboxQueue;
use serde_json::json;

use crate::harness::relay::{PATIENCE, Plan};
use crate::harness::xo::FakeXo;

fn queue(id: &str) -> SandboxQueue {
    SandboxQueue { id: id.to_owned(), name: id.to_owned(), ..SandboxQueue::default() }
}

on_every_engine! {
    async fn a_start_waits_in_the_queue_of_its_route(bench: Bench) {
        let xo = FakeXo::start().await;
        let plan = xo.settings(Plan::on(&bench))
            .set("servicenow.routes.0.when", "language=fr, channel=rtm")
            .set("servicenow.routes.0.queue_id", "q-fr")
            .set("servicenow.routes.1.when", "context.session.UserContext.customData.region=EU")
            .set("servicenow.routes.1.queue_id", "q-eu")
            .set("servicenow.routes.2.when.department", "hr")
            .set("servicenow.routes.2.queue_id", "q-hr")
            .sandbox(|sandbox| sandbox.queues.extend(["q-fr", "q-eu", "q-hr"].map(queue)));
        let relay = plan.start().await;
        // The payload's context is in `src/platform/xo/FACTS.md`; the language is read as in public integrations.
        for (user, path, value) in [
            ("u-fr", "/context/session/BotUserSession/currentLanguage", json!("fr-CA")),
            ("u-eu", "/context/session/UserContext/customData", json!({"region": "EU"})),
            ("u-de", "/context/session/BotUserSession/currentLanguage", json!("de")),
        ] {
            let mut event = xo.event(user, true);
            let (parent, name) = path.rsplit_once('/').unwrap();
            event.pointer_mut(parent).unwrap()[name] = value;
            xo.posts(&relay, "on_agent_transfer", &event).await;
        }
        relay.handoff(json!({"type": "start", "conversation_id": "c-hr", "message": "hi", "metadata": {"department": "hr"}})).await.id();
        relay.handoff(json!({"type": "start", "conversation_id": "c-own", "message": "hi", "queue_id": "q-eu", "metadata": {"department": "hr"}})).await.id();
        let asked = |queue: &str| {
            let path = format!("/queues/{queue}/sessions");
            relay.sandbox.ledger().count(|entry| entry.path.contains(&path) && entry.applied)
        };
        let counts = || [asked("q-fr"), asked("q-eu"), asked("q-hr"), asked(&SandboxQueue::default().id)];
        relay.until("five chats", |relay| match counts().iter().sum() {
            5 => Ok(()),
            some => Err(format!("{some}; {}", relay.processes[0].running.stderr())),
        }).await;
        assert_eq!(counts(), [1, 2, 1, 1]);
    }

    async fn a_wrong_queue_is_told_before_a_user_meets_it(bench: Bench) {
        let plan = Plan::on(&bench)
            .set("servicenow.routes.0.when", "language=fr")
            .set("servicenow.routes.0.queue_id", "q-typo")
            .set("log.level", "error");
        let relay = plan.start().await;
        relay.until("the worker to say it", |relay| {
            let said = relay.processes[0].running.stderr() + &relay.processes[0].running.stdout();
            let told = said.contains("servicenow.routes.0.queue_id") && said.contains("q-typo");
            if told { Ok(()) } else { Err(said) }
        }).await;
        let check = relay.tool(["check"]).run(PATIENCE).await;
        assert_eq!(check.code, Some(1), "{}", check.stdout);
        let line = check.stdout.lines().find(|line| line.contains("servicenow.routes.0.queue_id")).unwrap_or_default();
        assert!(line.starts_with("FAIL"), "{}", check.stdout);
    }
}
