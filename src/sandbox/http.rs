//! The sandbox's own HTTP client. The sandbox simulates the other side, so it does not share Causeway's client.

use reqwest::{Client, redirect};

/// A client for plain HTTP that follows no redirects. `None` if there is no TLS provider: reqwest needs one even for
/// plain HTTP.
#[expect(clippy::disallowed_methods, reason = "the sandbox is the other side and must not share the client")]
pub(super) fn client(user_agent: &str) -> Option<Client> {
    // The call fails if a provider is installed already. That provider is used then.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().user_agent(user_agent).redirect(redirect::Policy::none()).no_proxy().build().ok()
}
