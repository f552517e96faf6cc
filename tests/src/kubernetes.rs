//! Real Kubernetes for tests: an API server with etcd, and a proxy before it that counts and disturbs calls. Each
//! test has a namespace of its own; the processes are gone when the last test that uses them is.

pub mod api_server;
pub mod operator;
pub mod programs;
pub mod proxy;
