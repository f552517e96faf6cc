//! Compiles `src/clock.c`, which puts a worker's clock wrong.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=src/clock.c");
    let library = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it")).join("clock.so");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "src/clock.c", "-o"]);
    let status = compiler.arg(library).status().expect("there is a C compiler, as SQLite needs it too");
    assert!(status.success(), "src/clock.c could not be compiled");
}
