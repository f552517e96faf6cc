//! Opening the addresses that manifests name, before anything else is started.

use std::net::SocketAddr;

use litejoin_crds::address::Address;
use tokio::net::TcpListener;

/// An address that could not be opened, with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {addr}: {problem}")]
pub(crate) struct ListenError {
    what: String,
    addr: String,
    problem: String,
}

impl ListenError {
    pub(crate) fn new(what: &str, addr: &str, problem: impl Into<String>) -> Self {
        Self { what: what.to_owned(), addr: addr.to_owned(), problem: problem.into() }
    }
}

/// Listens on `addr` (`host:port`, `:port` for every interface) for `what`, such as `source ingest`.
pub(crate) async fn listen(what: &str, addr: &str) -> Result<(TcpListener, SocketAddr), ListenError> {
    let failed = |problem: String| ListenError::new(what, addr, problem);
    let address = Address::parse(addr).map_err(failed)?;
    let host = address.host.as_deref().unwrap_or("0.0.0.0");
    let listener = TcpListener::bind((host, address.port)).await.map_err(|error| {
        failed(match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                "the port is in use; stop the program that has it, or write another addr".to_owned()
            }
            std::io::ErrorKind::PermissionDenied => {
                "this user may not listen there; use a port above 1023".to_owned()
            }
            std::io::ErrorKind::AddrNotAvailable => {
                "no interface of this machine has that address; write another addr".to_owned()
            }
            _ => format!("could not listen ({error}); write another addr"),
        })
    })?;
    let local = listener.local_addr().map_err(|error| failed(error.to_string()))?;
    Ok((listener, local))
}
