//! The operator's program. It says which version it is; reconciling comes with the controller.

use clap::Parser;

/// Turns LiteJoin's custom resources into StatefulSets that run the worker.
#[derive(Parser)]
#[command(name = "litejoin-operator", version, arg_required_else_help = true)]
struct Arguments {}

fn main() {
    Arguments::parse();
}
