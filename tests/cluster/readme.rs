//! The commands in the README for Kubernetes, run as they are written there.

use std::fs;

use litejoin_tests::kubernetes::image;
use litejoin_tests::kubernetes::node::{self, Node};
use litejoin_tests::programs::repository;
use litejoin_tests::stores::litestream;
use litejoin_tests::worker::program;

/// The heading of the README's section.
const SECTION: &str = "\n## On Kubernetes\n";

// Volumes are made while a command waits for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_of_the_readme_run_as_written() {
    if !node::inside("readme::the_commands_of_the_readme_run_as_written") {
        return;
    }
    let node = Node::start().await;
    let _fares = Fares(&node);
    let mut said = String::new();
    for command in commands() {
        said += &match command.split(' ').collect::<Vec<_>>()[..] {
            ["docker", "build", "-f", dockerfile, "-t", name, "."] => build(&node, dockerfile, name),
            _ => node.shell(&command),
        };
    }
    for part in ["2. Run a pipeline:     kubectl apply -f examples/orders", "orders condition met", "console"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
}

/// Tells how the pipeline fares, if a command fails.
struct Fares<'n>(&'n Node);

impl Drop for Fares<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for what in ["describe pipeline orders", "describe pods", "get pods -A"] {
                eprintln!("{}", self.0.kubectl(&what.split(' ').collect::<Vec<_>>()));
            }
        }
    }
}

/// The lines of the section's first block, without what is said about them.
fn commands() -> Vec<String> {
    let readme = fs::read_to_string(repository().join("README.md")).expect("there is a README");
    let (_, section) = readme.split_once(SECTION).expect("it has the section");
    let (_, block) = section.split_once("```sh\n").expect("the section has commands");
    let (block, _) = block.split_once("```").expect("the block ends");
    let commands = block.lines().map(|line| line.split(" #").next().unwrap_or_default().trim());
    let commands: Vec<_> = commands.filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert!(commands.len() > 5, "{commands:?}");
    commands.into_iter().map(str::to_owned).collect()
}

/// Builds an image of the programs that were built for this test, and loads it into the node.
fn build(node: &Node, dockerfile: &str, name: &str) -> String {
    let folder_of = |program: std::path::PathBuf| program.parent().expect("it is in a folder").to_owned();
    let (programs, litestream) = (folder_of(program()), folder_of(litestream()));
    let name = format!("docker.io/library/{name}");
    let image =
        image::of_dockerfile(&name, &repository().join(dockerfile), &[&programs, &litestream], node.folder());
    node.import(&image);
    String::new()
}
