//! LiteJoin on a real node, as its users meet it: charts, `kubectl`, Services, pods that are killed. It needs root, and
//! each test has a cluster of its own. Build first: `cargo build --workspace`.

mod install;
mod lost_volume;
