//! The HTTP client of the tests.

/// A client that goes straight to the server, whatever proxies the environment names, and trusts nobody: reading all
/// authorities of the machine takes longer than most of what it is made for.
pub fn client() -> reqwest::Client {
    client_with(|builder| builder.tls_certs_only([]))
}

/// One with other settings.
pub fn client_with(set: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder) -> reqwest::Client {
    // One that is installed already would be the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    set(reqwest::Client::builder().no_proxy()).build().expect("a client can be made")
}
