//! Sockets that the manifest names, all opened before anything else: a port in use stops the start or the reload,
//! not the run. A socket stays open for as long as the config names its address, whichever part listens on it.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;

use litejoin_crds::address::Address;
use litejoin_crds::plan::{Listening, Plan};
use tokio::net::TcpListener;

use crate::serve::listen::{ListenError, listen};

/// The open sockets by what listens on them: `source ingest`, `sink live`, `admin`.
#[derive(Default)]
pub(super) struct Listeners {
    sockets: BTreeMap<String, Socket>,
}

#[derive(Clone)]
struct Socket {
    /// As the manifest has it.
    addr: String,
    listener: Arc<StdListener>,
}

impl Listeners {
    /// Opens what the plan names, but for what is among `open` already. An address may go from one part to another:
    /// its socket goes with it, and no client is turned away.
    pub(super) async fn open(plan: &Plan, open: &Self) -> Result<Self, ListenError> {
        let mut sockets = BTreeMap::new();
        for Listening { what, addr, .. } in plan.listening() {
            let socket = match open.find(&what, addr) {
                Some(socket) => socket.clone(),
                None => open.bind(&what, addr).await?,
            };
            sockets.insert(what, socket);
        }
        Ok(Self { sockets })
    }

    /// A listener of its own on the socket of `what`, with the address that it has.
    pub(super) fn listener(&self, what: &str) -> Result<(TcpListener, SocketAddr), ListenError> {
        let Socket { addr, listener } = &self.sockets[what];
        let share = || -> std::io::Result<_> {
            Ok((TcpListener::from_std(listener.try_clone()?)?, listener.local_addr()?))
        };
        share().map_err(|error| ListenError::new(what, addr, format!("could not share the socket ({error})")))
    }

    /// The socket of this address. Where the system chooses the port, it is one for each that asks.
    fn find(&self, what: &str, addr: &str) -> Option<&Socket> {
        let own = self.sockets.get(what).filter(|socket| socket.addr == addr);
        let fixed = || Address::parse(addr).is_ok_and(|address| address.port != 0);
        own.or_else(|| self.sockets.values().find(|socket| socket.addr == addr && fixed()))
    }

    async fn bind(&self, what: &str, addr: &str) -> Result<Socket, ListenError> {
        let opened = listen(what, addr).await.map_err(|error| match self.in_the_way(addr) {
            Some((other, other_addr)) => ListenError::new(
                what,
                addr,
                format!(
                    "{other} of the running config still has the port, as {other_addr}; write that, take another \
                     port, or restart to apply"
                ),
            ),
            None => error,
        });
        let listener = opened?.0.into_std();
        let listener =
            listener.map_err(|error| ListenError::new(what, addr, format!("could not listen ({error})")))?;
        Ok(Socket { addr: addr.to_owned(), listener: Arc::new(listener) })
    }

    /// An open socket that keeps this address from being opened, with its own.
    fn in_the_way(&self, addr: &str) -> Option<(&str, &str)> {
        let address = Address::parse(addr).ok()?;
        let meets = |socket: &Socket| Address::parse(&socket.addr).is_ok_and(|other| other.meets(&address));
        let (what, socket) = self.sockets.iter().find(|(_, socket)| meets(socket))?;
        Some((what, &socket.addr))
    }
}
