//! The HTTP client of the tests: plain, on loopback, without the manners of the product's own.

use std::time::Duration;

/// A client that follows no redirect and gives up after 30 s. Make one for each test: a pool dies with its runtime.
pub(crate) fn client() -> reqwest::Client {
    // Another test of this process may have chosen the provider already; they all choose this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    #[expect(clippy::disallowed_methods, reason = "a test is somebody else's client, not the product's")]
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(Duration::from_secs(30))
        .build()
        .expect("an HTTP client")
}
