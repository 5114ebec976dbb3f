//! Every integration test, in one binary: each module is named after the promise it shows.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "the helpers around a test fail it the way the test itself would, and say what a machine lacks"
)]

#[macro_use]
mod harness;

mod cli;
mod config;
mod directory;
mod queue_contract;
mod queue_embedded;
mod replay;
mod tidy;
