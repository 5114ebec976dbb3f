//! The pure parts of the hot path, each by itself: how long they take (criterion), and how many instructions.
//!
//! `cargo bench --bench hot_path` for the time, which says something on a quiet machine only; `tests/bench/instructions` for the
//! instructions, which are the same on a busy one. Parts that are private to their room are compiled in from their own source file,
//! so that the product shows no more than it has to.

#[path = "hot_path/parts.rs"]
mod parts;

// The rooms' own files name their neighbours by `crate::`. Their tests come along, without a harness that would run them.
use causeway::ingress::{Accepted, ServiceNowDoor};
use causeway::message;

#[path = "../../src/ingress/callback_fields.rs"]
#[allow(dead_code, unused_imports, reason = "a part of its room, with its tests")]
mod callback_fields;
#[path = "../../src/ingress/lenient.rs"]
#[allow(dead_code, unused_imports, reason = "a part of its room, with its tests")]
mod lenient;
#[path = "../../src/worker/settle.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "a part of its room, with its tests")]
mod settle;
#[path = "../../src/ingress/verify.rs"]
#[allow(dead_code, unused_imports, reason = "a part of its room, with its tests")]
mod verify;
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

/// Does the part so many times, and nothing else beside its preparation.
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
