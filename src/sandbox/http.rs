//! The sandbox's own HTTP client. It is the other side of the conversation, so it shares none with Causeway.

use reqwest::{Client, redirect};

/// A client that speaks plain HTTP and follows nothing; none where the process has no TLS provider to offer
/// to reqwest, which wants one even for plain HTTP.
#[expect(clippy::disallowed_methods, reason = "the sandbox is the other side and must not share the client")]
pub(super) fn client(user_agent: &str) -> Option<Client> {
    // Refused when somebody has chosen already: then that one serves.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().user_agent(user_agent).redirect(redirect::Policy::none()).no_proxy().build().ok()
}
