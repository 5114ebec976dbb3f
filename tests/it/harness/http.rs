//! The HTTP client of the tests: plain, on loopback, without the rules of the product's client.

use std::time::Duration;

/// A client that follows no redirect and has a timeout of 30 s. Create one for each test, because a connection pool
/// ends with its runtime.
pub(crate) fn client() -> reqwest::Client {
    // Another test of this process may have installed the provider already. All tests install the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    #[expect(clippy::disallowed_methods, reason = "a test is somebody else's client, not the product's")]
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(Duration::from_secs(30))
        .build()
        .expect("an HTTP client")
}
