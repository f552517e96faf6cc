//! Ports for servers that tests start.

use std::net::TcpListener;
use std::sync::Arc;

use rand::RngExt;

/// Below those that the system gives to connections, so that one is still free after a kill.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Ports in a row that are ours for as long as this lives. The first is held open, for nothing but to keep other tests
/// from the rest, also while a broker is down.
#[derive(Debug, Clone)]
pub struct PortBlock {
    first: u16,
    _held: Arc<TcpListener>,
}

/// Ports in a row.
const BLOCK: u16 = 8;

impl PortBlock {
    /// Free ports.
    pub fn free() -> Self {
        loop {
            let first = PORTS.start + BLOCK * rand::rng().random_range(0..(PORTS.end - PORTS.start) / BLOCK);
            let Ok(held) = TcpListener::bind(("127.0.0.1", first)) else { continue };
            if (first + 1..first + BLOCK).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
                return Self { first, _held: Arc::new(held) };
            }
        }
    }

    /// One of them, by its number from 0 to 6.
    pub fn number(&self, number: u16) -> u16 {
        self.first + 1 + number
    }
}
