//! What every integration test stands on: real brokers and databases that clean up after themselves, a proxy that breaks on
//! command, the real binary as a child process, and the one way to wait.
//!
//! Rules of the house:
//! - Nothing here knows how Causeway works inside; it only starts things, breaks things and watches.
//! - Whatever is started ends with the test process, however that ends (see `leash`).
//! - What is not on this machine is `None`, said on stderr, and no failure: `tests/run` is what installs it.
//! - Only [`wait`] may let time pass.

// A harness is a set of tools: one that no test has picked up yet is not dead code.
#![allow(dead_code, reason = "tools wait here until a test picks them up")]

pub(crate) mod amqp;
pub(crate) mod binary;
pub(crate) mod broker;
pub(crate) mod browser;
pub(crate) mod http;
pub(crate) mod leash;
pub(crate) mod load;
mod management;
#[macro_use]
pub(crate) mod matrix;
pub(crate) mod ports;
pub(crate) mod postgres;
pub(crate) mod proxy;
pub(crate) mod relay;
pub(crate) mod wait;
pub(crate) mod xo;

/// What `tests/run` tells the tests through the environment.
pub(crate) fn told(name: &str) -> Option<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "not a setting of Causeway: this is how tests/run lends its brokers"
    )]
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A task of the test itself, outside the product's task book.
pub(crate) fn spawn<F>(future: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    #[expect(
        clippy::disallowed_methods,
        reason = "tests have no task book to keep; what they spawn ends with their runtime"
    )]
    tokio::spawn(future)
}
