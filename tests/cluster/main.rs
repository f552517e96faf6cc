//! LiteJoin on a real node, as users meet it: charts, `kubectl`, Services, killed pods. The tests need root, and each
//! has a cluster of its own. Build first: `cargo build --workspace`.

mod argocd;
mod install;
mod losses;
mod lost_volume;
mod readme;
mod reshard;
mod servers;
