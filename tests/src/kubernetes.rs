//! Real Kubernetes for tests: for tests without pods, an API server with etcd and a proxy that counts and disturbs
//! calls; for the others, a whole node. The processes end with the last test that uses them.

pub mod api_server;
pub mod image;
pub mod node;
pub mod operator;
pub mod programs;
pub mod proxy;
mod registry;
pub mod volumes;
