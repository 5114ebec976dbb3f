//! Benchmarks of the pure parts of the hot path, each measured alone: time (criterion) and number of instructions.
//!
//! `cargo bench --bench hot_path` measures time, which needs a quiet machine. `tests/bench/instructions` counts
//! instructions, which do not depend on the load. Private parts of a module are compiled in from their own source
//! files, so that the product does not have to export them.

#[path = "hot_path/parts.rs"]
mod parts;

// The source files refer to other modules by `crate::`. Their unit tests are compiled, too, but no harness runs them.
use causeway::ingress::CallbackAuth;
use causeway::message;

#[path = "../../src/ingress/callback_credentials.rs"]
#[allow(dead_code, unused_imports, reason = "a part of its room, with its tests")]
mod callback_credentials;
#[path = "../../src/ingress/callback_fields.rs"]
#[allow(dead_code, unused_imports, reason = "a part of its room, with its tests")]
mod callback_fields;
/// The part of the room that `callback_credentials` uses.
#[path = "hot_path"]
mod http_server {
    pub(crate) use causeway::http_server as secrets;

    #[path = "../../../src/http_server/credentials.rs"]
    #[allow(dead_code, unused_imports, reason = "a part of its room, with its tests")]
    pub(crate) mod credentials;
}
#[path = "../../src/ingress/lenient.rs"]
#[allow(dead_code, unused_imports, reason = "a part of its room, with its tests")]
mod lenient;
#[path = "../../src/worker/policy.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "a part of its room, with its tests")]
mod policy;
#[path = "../../src/queue/rabbit/wire.rs"]
#[allow(dead_code, unused_imports, reason = "a part of its room, with its tests")]
mod wire;

use std::hint::black_box;

use anyhow::Context as _;
use criterion::Criterion;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [_, "--parts", ..] => names(),
        [_, "--count", name, times, ..] => return count(name, times.parse()?),
        _ => time(),
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "for the script that counts")]
fn names() {
    for (name, _) in parts::all() {
        println!("{name}");
    }
}

/// Runs the part the given number of times, with nothing else except its preparation.
fn count(name: &str, times: u32) -> anyhow::Result<()> {
    let mut parts = parts::all();
    let found = parts.iter_mut().find(|(part, _)| *part == name);
    let (_, part) = found.with_context(|| format!("there is no part {name:?}"))?;
    for _ in 0..times {
        black_box(&mut *part)();
    }
    Ok(())
}

fn time() {
    let mut criterion = Criterion::default().configure_from_args();
    for (name, mut part) in parts::all() {
        criterion.bench_function(name, |bencher| bencher.iter(&mut part));
    }
    criterion.final_summary();
}
