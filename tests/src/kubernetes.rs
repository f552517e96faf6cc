//! Real Kubernetes for tests: an API server with etcd and a proxy before it that counts and disturbs calls, where no
//! pods are needed; and a whole node where they are. The processes are gone when the last test that uses them is.

pub mod api_server;
pub mod image;
pub mod node;
pub mod operator;
pub mod programs;
pub mod proxy;
pub mod volumes;
