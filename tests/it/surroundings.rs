//! Promise: Causeway says what is wrong around it (the state of PostgreSQL, a policy of the broker, a wrong clock), goes on
//! with everything else, and heals without a restart.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::harness::http;
use crate::harness::postgres::Database;
use crate::harness::proxy::Proxy;
use crate::harness::relay::{PATIENCE, Plan, Process, Relay};
use crate::harness::wait::eventually;

/// A library that moves the wall clock of a process.
const SHIFTED_CLOCK: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, time);
    const char *ahead = getenv("TEST_CLOCK_AHEAD");
    if (clock == CLOCK_REALTIME && ahead) time->tv_sec += atol(ahead);
    return result;
}
"#;

fn shifted_clock(folder: &Path) -> PathBuf {
    let (source, library) = (folder.join("clock.c"), folder.join("clock.so"));
    std::fs::write(&source, SHIFTED_CLOCK).unwrap();
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl").status();
    assert!(built.unwrap().success(), "the linker of Rust compiles C, too");
    library
}

on_every_rabbit! {
    // A start waits for 120 s at most, and the worker's clock is an hour ahead.
    async fn a_wrong_clock_expires_no_message(bench: Bench) {
        let library = shifted_clock(bench.folder());
        let relay = Plan::on(&bench).apart(0).start().await;
        for ahead in ["3600", "-3600"] {
            let wrong = |args| {
                relay
                    .tool(args)
                    .env("LD_PRELOAD", library.to_str().unwrap())
                    .env("TEST_CLOCK_AHEAD", ahead)
                    .set("admin.listen", "127.0.0.1:0")
            };
            let mut worker = wrong(["worker"]).spawn();
            let line = worker.line("the clock of this machine differs from the broker's", PATIENCE).await;
            let seconds: i64 = ahead.parse().unwrap();
            let near = (seconds - 3..=seconds + 3).any(|near| line.contains(&near.to_string()));
            assert!(line.contains("WARN") && near, "{line}");
            let conversation = format!("c{ahead}");
            let group = relay.open(&conversation).await;
            relay.say(&conversation, "in time").await;
            relay.until("both texts", |relay| {
                let said = relay.said(&group);
                if said.len() == 2 { Ok(()) } else { Err(format!("{said:?}")) }
            }).await;
            let checked = wrong(["check"]).run(PATIENCE).await;
            let way = if seconds > 0 { "s ahead of the broker's" } else { "s behind the broker's" };
            assert!(checked.stdout.contains(way), "{}", checked.stdout);
            worker.sigterm();
            assert_eq!(worker.exit(PATIENCE).await.code(), Some(0));
        }
        assert_eq!(relay.dead_letters().await.len(), 0);
        let right = relay.tool(["check"]).run(PATIENCE).await;
        assert!(!right.stdout.contains("the broker's"), "{}", right.stdout);
    }

    // The user of the ingress has no right on temporary queues, as in a deployment that was set up by hand.
    async fn without_the_right_to_compare_the_clock_everything_else_works(bench: Bench) {
        let everything = Plan::on(&bench).apart(0).start().await;
        drop(everything);
        let url = bench.vhost().unwrap().url_with_rights("ingress", "^$", r"^causeway\.(in|dlx)$", "^$");
        let mut relay = Plan::on(&bench).apart(0).set("queue.url", url).set("queue.declare", "check").start().await;
        relay.callback("a-group", "words", "m-1").await;
        assert_eq!(relay.stop().await, [Some(0)]);
    }

    async fn a_policy_that_deletes_dead_letters_is_reported(bench: Bench) {
        let vhost = bench.vhost().unwrap();
        let mut relay = Plan::on(&bench).set("queue.management_url", vhost.management_url()).start().await;
        let count = "causeway_queues_with_unsafe_policy";
        relay.metric_is(count, &[], |count| count == 0.0).await;
        let well = relay.tool(["check"]).run(PATIENCE).await;
        assert!(well.stdout.contains("no policy of the broker deletes messages"), "{}", well.stdout);
        vhost.set_policy("^causeway.dlq", json!({ "max-length": 10, "overflow": "drop-head" }));
        relay.metric_is(count, &[], |count| count > 0.0).await;
        relay.processes[0].running.line("a policy of the broker deletes messages", PATIENCE).await;
        let checked = relay.tool(["check"]).run(PATIENCE).await;
        assert_eq!(checked.code, Some(1), "{}", checked.stdout);
        for part in ["a policy deletes messages: causeway.dlq.xo: max-length of the policy of-a-test", "operator policy"] {
            assert!(checked.stdout.contains(part), "{part}: {}", checked.stdout);
        }
        let status = relay.tool(["status"]).run(PATIENCE).await;
        assert!(status.stdout.contains("a policy of the broker deletes messages"), "{}", status.stdout);
        vhost.set_policy("^causeway.dlq", json!({ "max-length": 10 }));
        relay.metric_is(count, &[], |count| count == 0.0).await;
    }
}

async fn sql(url: &str, text: String) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(text))).await.unwrap();
    connection.close().await.unwrap();
}

async fn readiness(relay: &Relay) -> (u16, String) {
    let url = format!("{}/readyz", relay.processes[1].admin_url());
    match http::client().get(url).send().await {
        Ok(answer) => (answer.status().as_u16(), answer.text().await.unwrap()),
        // The process has just been started.
        Err(error) => (0, error.to_string()),
    }
}

async fn becomes(relay: &Relay, status: u16) -> String {
    eventually(&format!("/readyz of the worker to be {status}"), Duration::from_secs(20), async || {
        let (found, text) = readiness(relay).await;
        if found == status { Ok(text) } else { Err(format!("{found} {text}")) }
    })
    .await
}

on_newest_rabbit! {
    async fn a_start_without_postgresql_waits_for_it(bench: Bench) {
        let database = Database::create().await;
        let proxy = Proxy::start(database.address()).await;
        let url = database.url_through(proxy.addr());
        let mut relay = Plan::on(&bench).apart(1).set("directory.url", url).start().await;
        relay.stop().await;
        proxy.refuse().await;
        relay.processes.iter_mut().for_each(Process::restart);
        eventually("/readyz of the worker to say why", PATIENCE, async || match readiness(&relay).await {
            (503, text) if text.contains("the directory is not usable") => Ok(()),
            (status, text) => Err(format!("{status} {text}")),
        })
        .await;
        eventually("the ingress to take a callback", PATIENCE, async || {
            let answer = relay.try_callback("a-group", "words", "m-1").await?;
            if answer.status == 202 { Ok(()) } else { Err(format!("{answer:?}")) }
        })
        .await;
        for process in &mut relay.processes {
            let warned = process.running.line("the directory cannot be used", PATIENCE).await;
            assert!(warned.contains("WARN"), "{warned}");
        }
        proxy.heal().await;
        relay.ready().await;
        relay.open("c-1").await;
    }

    async fn each_state_of_postgresql_is_named_and_heals(bench: Bench) {
        let database = Database::create().await;
        let (url, name) = (database.url(), database.url().rsplit('/').next().unwrap().to_owned());
        let admin = url.replace(&name, "postgres");
        let relay = Plan::on(&bench).apart(1).set("directory.url", url.as_str()).start().await;
        let group = relay.open("c-1").await;
        let end_sessions = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()"
        );
        for (number, (state, begin, end)) in [
            (
                "read-only",
                format!("ALTER DATABASE {name} SET default_transaction_read_only = on; {end_sessions}"),
                // The sessions stay read-only, as those with a demoted server do. Causeway has to leave them.
                format!("ALTER DATABASE {name} RESET default_transaction_read_only"),
            ),
            (
                "refused",
                format!("{end_sessions}; ALTER DATABASE {name} RENAME TO {name}_away"),
                format!("ALTER DATABASE {name}_away RENAME TO {name}"),
            ),
            ("tables", String::new(), String::new()),
        ]
        .into_iter()
        .enumerate()
        {
            let of_table = state == "tables";
            // A session that comes in between makes the new name impossible, so the attempt is repeated.
            if of_table {
                sql(&url, "ALTER TABLE conversations RENAME TO elsewhere".to_owned()).await;
            } else {
                eventually("the change of the database", PATIENCE, async || {
                    let mut connection =
                        PgConnection::connect(&admin).await.map_err(|error| error.to_string())?;
                    for part in begin.split("; ") {
                        let statement = sqlx::raw_sql(sqlx::AssertSqlSafe(part.to_owned()));
                        connection.execute(statement).await.map_err(|error| error.to_string())?;
                    }
                    Ok(())
                })
                .await;
            }
            let text = becomes(&relay, 503).await;
            assert!(text.contains("the directory is not usable"), "{state}: {text}");
            eventually("one line for each state", PATIENCE, async || {
                let log = relay.processes[1].running.stderr();
                let warned = |line: &&str| line.contains("WARN") && line.contains("the directory cannot be used");
                let lines: Vec<_> = log.lines().filter(warned).collect();
                let is_new = lines.len() == number + 1 && lines[number].contains(state);
                if is_new { Ok(()) } else { Err(format!("{state}: {lines:#?}")) }
            })
            .await;
            if of_table {
                sql(&url, "ALTER TABLE elsewhere RENAME TO conversations".to_owned()).await;
            } else {
                sql(&admin, end).await;
            }
            becomes(&relay, 200).await;
            relay.say("c-1", &format!("after {state}")).await;
        }
        relay
            .until("every text", |relay| {
                let said = relay.said(&group);
                if said.len() == 4 { Ok(()) } else { Err(format!("{said:?}")) }
            })
            .await;
    }
}
