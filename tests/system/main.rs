//! The built worker as its users meet it: a process with a manifest, sockets, files and signals. A file for each
//! subject. Build it first: `cargo build --workspace && cargo test --workspace --test system`.

mod api_source;
mod audit;
mod classes;
mod cost;
mod dead_letters;
mod disk_full;
mod downgrade;
mod earlier;
mod edits;
mod explain;
mod faults;
mod files;
mod first_run;
mod golden;
mod http_sink;
mod kafka;
mod kill;
mod lifecycle;
mod manifests;
mod messages;
mod reload;
mod replication;
mod reshard;
mod serving;
mod sqlite_sink;
mod starting;
mod stores;
mod subscribers;
mod time;
mod time_bounds;
mod weather_alerts;
mod window_cost;
mod window_examples;
mod window_feeds;
mod windows;
