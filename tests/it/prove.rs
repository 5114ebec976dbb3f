//! Tests that `causeway prove` breaks a real deployment in every known way and finds no loss, no overtake and a reason
//! for every repeat. The command fails when a promise is broken.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::harness::binary::{Causeway, Finished};

/// Far more than a run and its wait for quiet take on a slow machine.
const LONG: Duration = Duration::from_secs(240);

/// A run without influence of the environment, with its own folder for its files.
async fn prove(folder: &Path, args: &[&str]) -> Finished {
    let temporary = folder.join("tmp");
    std::fs::create_dir_all(&temporary).unwrap();
    let run =
        Causeway::new(["prove"]).args(args).in_folder(folder).env("TMPDIR", temporary.to_str().unwrap());
    run.set("servicenow.host_url", "https://example.service-now.com").set("no.such.key", "1").run(LONG).await
}

fn ledger(run: &Finished) -> Value {
    serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {}{}", run.stdout, run.stderr))
}

fn left_behind(folder: &Path) -> usize {
    std::fs::read_dir(folder.join("tmp")).unwrap().count()
}

on_every_engine! {
    async fn nothing_is_lost_or_overtaken_and_every_repeat_has_its_reason(bench: Bench) {
        let url = bench.vhost().map(|vhost| vhost.url());
        let mut args = vec!["--seed", "11", "--duration", "28s", "--rate", "60", "--json"];
        if let Some(url) = &url {
            args.extend(["--queue-url", url]);
        }
        let run = prove(bench.folder(), &args).await;
        assert_eq!(run.code, Some(0), "{}{}", run.stdout, run.stderr);
        let ledger = ledger(&run);
        for promise in ["lost", "overtaken", "unexplained_repeats", "refused", "told_to_repeat", "taken_on_a_full_disk"] {
            assert_eq!(ledger[promise], 0, "{promise}: {ledger:#}");
        }
        for direction in ["servicenow", "xo"] {
            let of = &ledger["directions"][direction];
            let number = |name: &str| of[name].as_u64().unwrap();
            assert!(number("accepted") > 500, "{of:#}");
            assert_eq!(number("accepted"), number("delivered") + number("dead_lettered"), "{of:#}");
        }
        let faults = ledger["faults"].as_object().unwrap();
        assert!(faults.len() >= if url.is_some() { 20 } else { 15 }, "{faults:#?}");
        for (kind, count) in faults {
            assert!(count["planned"].as_u64() > Some(0), "{kind}");
            assert_eq!(count["made"], count["planned"], "{kind}");
        }
        assert_eq!(left_behind(bench.folder()), 0);
    }
}

on_every_rabbit! {
    async fn a_callback_that_is_told_to_repeat_is_found_out(bench: Bench) {
        let url = bench.vhost().unwrap().url();
        let faults = "cut-ingress-broker,hole-ingress-broker";
        let args = ["--seed", "5", "--duration", "8s", "--rate", "60", "--faults", faults, "--no-spool"];
        let run = prove(bench.folder(), &[&args[..], &["--queue-url", &url]].concat()).await;
        assert_eq!(run.code, Some(1), "{}{}", run.stdout, run.stderr);
        assert!(run.stdout.contains("told to repeat"), "{}", run.stdout);
        assert!(run.stdout.contains("Broken: 0 lost, 0 overtaken"), "{}", run.stdout);
    }
}

#[tokio::test]
async fn a_destination_that_forgets_what_it_took_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    // One message is answered 200 and has no effect.
    let args = [
        "--swallow-one",
        "--give-up-after",
        "10s",
        "--duration",
        "5s",
        "--rate",
        "50",
        "--faults",
        "none",
        "--poisoned",
        "0",
        "--seed",
        "3",
    ];
    let run = prove(folder.path(), &args).await;
    assert_eq!(run.code, Some(1), "{}{}", run.stdout, run.stderr);
    assert!(run.stdout.contains("Broken: 1 lost, 0 overtaken"), "{}", run.stdout);
    assert!(run.stdout.contains("to xo: message 0 lost"), "its history is told:\n{}", run.stdout);
    assert_eq!(left_behind(folder.path()), 1, "what the processes logged stays");
}

#[tokio::test]
async fn an_impossible_plan_is_a_usage_error() {
    let folder = tempfile::tempdir().unwrap();
    for (args, words) in [
        (["--faults", "kill-broker"], "--queue-url"),
        (["--faults", "earthquake"], "none of"),
        (["--duration", "1s"], "5 s"),
        (["--queue-url", "http://localhost"], "amqp://"),
    ] {
        let run = prove(folder.path(), &args).await;
        assert_eq!(run.code, Some(2), "{args:?}: {}{}", run.stdout, run.stderr);
        assert!(run.stderr.contains(words), "{args:?}: {}", run.stderr);
    }
}
