//! examples/windows as its README shows it: each command with its output, and all that the worker prints after it.

use std::fs;
use std::path::Path;
use std::process::Command;

use litejoin_tests::worker::{Worker, WorkerSite, program};

use crate::first_run::is_shortened;

/// A command of the README.
#[derive(Debug, Default, PartialEq)]
struct ReplayStep {
    command: String,
    output: Vec<String>,
    /// What the worker prints after it.
    results: Vec<String>,
}

#[tokio::test]
async fn windows_are_told_as_the_readme_shows() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/windows");
    let text =
        |name: &str| fs::read_to_string(example.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let site = WorkerSite::new();
    fs::create_dir_all(site.path().join("examples/windows")).expect("a folder can be made");
    site.write("examples/windows/morning.ndjson", text("morning.ndjson"));
    let manifest = ["8080", "9090", "9100"].iter().fold(text("pipeline.yaml"), |manifest, port| {
        manifest.replace(&format!("127.0.0.1:{port}"), "127.0.0.1:0")
    });
    site.write("examples/windows/pipeline.yaml", manifest);

    let mut steps = steps(&text("README.md")).into_iter();
    let first = steps.next().expect("the README has commands");
    assert_eq!(
        first,
        ReplayStep { command: "litejoin run -f examples/windows".to_owned(), ..ReplayStep::default() }
    );
    let worker = site.command(first.command.split(' ').skip(1)).start().await;
    let mut seen = 0;
    for step in steps {
        let output = run(&site, &worker, &step.command).await;
        assert_shown(&step.output, output.lines(), &step.command);
        let printed = worker.wait_for_stdout(seen + step.results.len()).await;
        assert_shown(&step.results, printed[seen..].iter().map(String::as_str), &step.command);
        seen = printed.len();
    }
    let ended = worker.stop().await;
    assert_shown(&[], ended.stdout.lines().skip(seen), "the stop");
}

/// Runs a command of the README against the addresses of this worker; returns what it prints.
async fn run(site: &WorkerSite, worker: &Worker, command: &str) -> String {
    let command = command
        .replace("127.0.0.1:8080", &worker.address("source ingest").to_string())
        .replace("127.0.0.1:9100", &worker.address("sink live").to_string());
    let program = program();
    let folder = program.parent().expect("a file is in a folder").display();
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("PATH=\"{folder}:$PATH\"; {command}")]);
    let ended = site.launch(shell).end().await;
    assert_eq!(ended.code, Some(0), "{command}: {}", ended.stderr);
    ended.stdout
}

/// Asserts that these lines are printed, in any order, and no others.
fn assert_shown<'l>(shown: &[String], printed: impl Iterator<Item = &'l str>, what: &str) {
    let mut missing: Vec<&String> = shown.iter().collect();
    let mut others = Vec::new();
    for line in printed {
        match missing.iter().position(|shown| is_shortened(shown, line)) {
            Some(index) => drop(missing.remove(index)),
            None => others.push(line),
        }
    }
    assert!(
        missing.is_empty() && others.is_empty(),
        "after {what} the README shows\n{missing:#?}\nand what is printed instead is\n{others:#?}"
    );
}

/// The commands of a document: a block has commands, each behind `$ ` and before its output, or what the worker prints
/// after the last command.
fn steps(document: &str) -> Vec<ReplayStep> {
    let mut steps: Vec<ReplayStep> = Vec::new();
    for block in document.split("```").skip(1).step_by(2) {
        let mut lines = block.lines().skip(1).peekable();
        let has_commands = lines.peek().is_some_and(|line| line.starts_with("$ "));
        while let Some(line) = lines.next() {
            if let Some(command) = line.strip_prefix("$ ") {
                let mut command = command.to_owned();
                // A command goes on behind a backslash, and within quotes.
                while command.ends_with('\\') || command.matches('\'').count() % 2 == 1 {
                    command = format!("{command}\n{}", lines.next().expect("a command ends"));
                }
                steps.push(ReplayStep { command, ..ReplayStep::default() });
                continue;
            }
            let last = steps.last_mut().expect("a command comes first");
            let printed = if has_commands { &mut last.output } else { &mut last.results };
            printed.push(line.to_owned());
        }
    }
    steps
}
