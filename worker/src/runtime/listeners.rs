//! Sockets that the manifest names, all opened before anything else: a port in use stops the start, not the run.

use std::collections::HashMap;
use std::net::SocketAddr;

use litejoin_crds::plan::{Plan, SinkKind, SourceKind};
use tokio::net::TcpListener;

use crate::listen::{ListenError, listen};

/// Sockets that were opened before anything else.
pub(super) struct Listeners {
    /// By name of the source.
    pub(super) sources: HashMap<String, (TcpListener, SocketAddr)>,
    /// By name of the sink.
    pub(super) sinks: HashMap<String, (TcpListener, SocketAddr)>,
    pub(super) admin: (TcpListener, SocketAddr),
}

impl Listeners {
    pub(super) async fn open(plan: &Plan) -> Result<Self, ListenError> {
        let mut sources = HashMap::new();
        for source in &plan.sources {
            if let SourceKind::Http(spec) = &source.kind {
                let opened = listen(&format!("source {}", source.name), &spec.addr).await?;
                sources.insert(source.name.clone(), opened);
            }
        }
        let mut sinks = HashMap::new();
        for sink in &plan.sinks {
            if let SinkKind::Sse(spec) = &sink.kind {
                sinks.insert(sink.name.clone(), listen(&format!("sink {}", sink.name), &spec.addr).await?);
            }
        }
        let admin = listen("admin", &plan.admin.addr).await?;
        Ok(Self { sources, sinks, admin })
    }
}
