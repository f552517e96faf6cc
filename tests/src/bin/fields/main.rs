//! Checks for each field of the connectors that some test fails if the field is ignored: tests that write the field
//! run without it, one after another, until one fails.

mod suite;

use std::collections::BTreeMap;
use std::io::{Write, stdout};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;

use anyhow::{Result, ensure};
use clap::Parser;
use litejoin_crds::kind::Kind;
use litejoin_tests::fields;

use suite::{Suite, Verdict};

/// Each kind of source and sink, the delivery of results, and the admin endpoint.
const CONNECTORS: [&str; 4] = ["Source.spec", "Sink.spec", "Pipeline.spec.delivery", "Pipeline.spec.admin"];

/// Fields, with all below them, that running workers don't use, and the tests that cover them.
const ELSEWHERE: [(&str, &str); 4] = [
    ("Source.spec.pipelineRef", "needed where documents stand alone: tests/cases/documents"),
    ("Sink.spec.pipelineRef", "needed where documents stand alone: tests/cases/documents"),
    ("Source.spec.kafka.tls.serverName", "refused, for each broker has a name of its own: crds/src/validate"),
    ("Sink.spec.kafka.tls.serverName", "refused, for each broker has a name of its own: crds/src/validate"),
];

/// Ignores one field of manifests after another, and says which test fails for it
///
/// First every test that is not known yet is run, to see which fields it writes; target/fields keeps that. A field
/// without which manifests are refused is needed, and can't be ignored.
#[derive(Debug, Parser)]
#[command(name = "fields")]
struct FieldsArguments {
    /// Fields with all below them, such as Sink.spec.http; those of the connectors if none is given
    fields: Vec<String>,
    /// How many are ignored at once, each by tests of its own
    #[arg(long, default_value_t = 3)]
    jobs: usize,
}

fn main() -> Result<ExitCode> {
    let arguments = FieldsArguments::parse();
    let suite = Suite::build()?;
    let asked: Vec<&str> = match &arguments.fields[..] {
        [] => CONNECTORS.to_vec(),
        fields => fields.iter().map(String::as_str).collect(),
    };
    let mut fields: Vec<String> = Kind::ALL.into_iter().flat_map(fields::all).collect();
    fields.retain(|field| asked.iter().any(|prefix| within(field, prefix)));
    ensure!(
        !fields.is_empty(),
        "no field of any kind is called {asked:?}; take one of crds/*.yaml, such as Sink.spec.http"
    );

    let queue = Mutex::new(fields.iter());
    let counts = Mutex::new(BTreeMap::<&str, usize>::new());
    thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(|| {
                while let Some(field) = next(&queue) {
                    let elsewhere = ELSEWHERE.iter().find(|(prefix, _)| within(field, prefix));
                    let verdict = match elsewhere {
                        Some((_, where_else)) => Verdict::Elsewhere(where_else),
                        None => suite.verdict(field),
                    };
                    writeln!(stdout(), "{field:46} {verdict}").expect("standard output is open");
                    *counts.lock().expect("nobody panics").entry(verdict.word()).or_default() += 1;
                }
            });
        }
    });
    let counts = counts.into_inner().expect("nobody panics");
    writeln!(stdout(), "of {} fields: {counts:?}", fields.len())?;
    let missed = [Verdict::Survived { tests: 0 }, Verdict::Unwritten]
        .iter()
        .any(|missed| counts.contains_key(missed.word()));
    Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Returns whether a field has this name or is below it.
fn within(field: &str, prefix: &str) -> bool {
    field.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn next<'f>(queue: &Mutex<impl Iterator<Item = &'f String>>) -> Option<&'f String> {
    queue.lock().expect("nobody panics").next()
}
