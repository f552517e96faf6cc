//! The HTTP client of the tests.

/// A client that goes straight to the server, whatever proxies the environment names.
pub fn client() -> reqwest::Client {
    client_with(|builder| builder)
}

/// The same with other settings.
pub fn client_with(set: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder) -> reqwest::Client {
    // One that is installed already would be the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    set(reqwest::Client::builder().no_proxy()).build().expect("a client can be made")
}
