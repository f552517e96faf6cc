//! The HTTP client of the tests.

/// Returns a client that ignores the environment's proxies and trusts no authority: reading all authorities of the
/// machine takes longer than most requests.
pub fn client() -> reqwest::Client {
    client_with(|builder| builder.tls_certs_only([]))
}

/// Returns a client with further settings.
pub fn client_with(set: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder) -> reqwest::Client {
    // An error means that the provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    set(reqwest::Client::builder().no_proxy()).build().expect("a client can be made")
}
