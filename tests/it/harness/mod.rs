//! The tools of the integration tests: real brokers and databases that clean up after themselves, a proxy that breaks
//! on command, the real binary as a child process, and the functions to wait.
//!
//! Rules:
//! - No tool knows the inside of Causeway. The tools only start, break and watch.
//! - Every process that a tool starts ends with the test process, however the test process ends (see `leash`).
//! - A server that is absent on this machine fails the test, and `tests/run` installs it.
//! - Only [`wait`] may let time pass.

// A tool that no test uses yet is not dead code.
#![allow(dead_code, reason = "tools wait here until a test picks them up")]

pub(crate) mod amqp;
pub(crate) mod authority;
pub(crate) mod binary;
pub(crate) mod broker;
pub(crate) mod browser;
pub(crate) mod business_rule;
pub(crate) mod forward_proxy;
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

/// The variables of `tests/run` in the environment.
pub(crate) fn told(name: &str) -> Option<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "not a setting of Causeway: this is how tests/run lends its brokers"
    )]
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Spawns a task of the test itself, outside of the product's list of tasks.
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
