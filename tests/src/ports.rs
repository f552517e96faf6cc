//! Ports for servers in tests.

use std::net::TcpListener;
use std::sync::Arc;

use rand::RngExt;

use crate::wait::until;

/// Below the ephemeral ports of the system, so that a port is still free after a kill.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Consecutive ports that are reserved until drop. The first is held open, only to keep other tests away from the
/// rest, also while a broker is down.
#[derive(Debug, Clone)]
pub struct PortBlock {
    first: u16,
    _held: Arc<TcpListener>,
}

/// The number of ports in a block.
const BLOCK: u16 = 8;

impl PortBlock {
    /// Returns a block of free ports.
    pub fn free() -> Self {
        loop {
            let first = PORTS.start + BLOCK * rand::rng().random_range(0..(PORTS.end - PORTS.start) / BLOCK);
            let Ok(held) = TcpListener::bind(("127.0.0.1", first)) else { continue };
            if (first + 1..first + BLOCK).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
                return Self { first, _held: Arc::new(held) };
            }
        }
    }

    /// Waits for the block that begins at this port, which kept documents name: other tests never take it.
    pub async fn kept(first: u16) -> Self {
        assert!(!PORTS.contains(&first), "{first} is one of the ports that tests take");
        let held = async || TcpListener::bind(("127.0.0.1", first)).ok();
        let held = until("the ports of another run of this test", held).await;
        Self { first, _held: Arc::new(held) }
    }

    /// Returns one of the ports, by its number from 0 to 6.
    pub fn number(&self, number: u16) -> u16 {
        self.first + 1 + number
    }
}
