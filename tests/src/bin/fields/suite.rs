//! The tests of the real program: their names, the fields that each writes, and the outcome of each without one field.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use litejoin_tests::fields::NEEDED;
use litejoin_tests::programs::repository;
use serde_json::Value;

/// Seconds that one test may take; a test that hangs has failed.
const TIMEOUT_SECONDS: &str = "300";

/// The exit code of the test program after a failure.
const FAILED: i32 = 101;

/// The built tests.
pub(crate) struct Suite {
    program: PathBuf,
    tests: Vec<Test>,
}

struct Test {
    name: String,
    /// The fields that the test writes, by its notes.
    fields: BTreeSet<String>,
    /// The lines of the test itself, without those of functions that it calls.
    text: String,
}

/// The outcome for an ignored field.
pub(crate) enum Verdict {
    /// A test fails.
    Killed { test: String, at: String },
    /// No manifest is accepted without the field.
    Needed,
    /// Every test that writes the field passes.
    Survived { tests: usize },
    /// No test writes the field.
    Unwritten,
    /// The field is tested elsewhere.
    Elsewhere(&'static str),
}

impl Verdict {
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Verdict::Killed { .. } => "killed",
            Verdict::Needed => "needed",
            Verdict::Survived { .. } => "SURVIVED",
            Verdict::Unwritten => "UNWRITTEN",
            Verdict::Elsewhere(_) => "elsewhere",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{:9}", self.word())?;
        match self {
            Verdict::Killed { test, at } => write!(to, " {test}: {at}"),
            Verdict::Elsewhere(where_else) => write!(to, " {where_else}"),
            Verdict::Survived { tests } => write!(to, " {tests} tests"),
            Verdict::Needed | Verdict::Unwritten => Ok(()),
        }
    }
}

impl Suite {
    /// Builds the tests and the programs that they run, and finds out which fields new tests write.
    pub(crate) fn build() -> Result<Self> {
        cargo(&["build"])?;
        let messages = cargo(&["test", "--test", "system", "--no-run", "--message-format", "json"])?;
        let mut messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let program = messages.find_map(|message| {
            let program = message["executable"].as_str()?;
            (message["target"]["name"] == "system").then(|| PathBuf::from(program))
        });
        Self::known(program.context("cargo names no program of the tests")?)
    }

    fn known(program: PathBuf) -> Result<Self> {
        let folder = repository().join("target/fields");
        fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
        let list = Command::new(&program).args(["--list", "--format", "terse"]).output();
        let list = String::from_utf8(list.context("could not list the tests")?.stdout)?;
        let tests: Vec<&str> = list.lines().filter_map(|line| line.strip_suffix(": test")).collect();
        let unknown: Vec<&str> = tests.iter().copied().filter(|test| !folder.join(test).exists()).collect();
        if !unknown.is_empty() {
            survey(&program, &unknown, &folder)?;
        }
        let texts = texts(&repository().join("tests/system"))?;
        let known = tests.into_iter().filter_map(|name| {
            let fields = fs::read_to_string(folder.join(name)).ok()?;
            let fields = fields.lines().map(str::to_owned).collect();
            let short = name.rsplit("::").next().unwrap_or(name);
            Some(Test { name: name.to_owned(), fields, text: texts.get(short).cloned().unwrap_or_default() })
        });
        Ok(Self { tests: known.collect(), program })
    }

    /// Runs the tests that write a field without it, until one fails; tests whose lines contain the field's name come
    /// first.
    pub(crate) fn verdict(&self, field: &str) -> Verdict {
        let with = |line: &str| self.tests.iter().filter(move |test| test.fields.contains(line)).collect();
        let mut tests: Vec<&Test> = with(field);
        let name = field.rsplit('.').next().unwrap_or(field);
        tests.sort_by_key(|test| (!test.text.contains(&format!("{name}:")), !test.text.contains(name)));
        let failed = tests.iter().find_map(|test| {
            let at = self.failure(&test.name, Some(field))?;
            // On an overloaded machine a test may fail for other reasons.
            let by_itself = self.failure(&test.name, None);
            by_itself.iter().for_each(|at| eprintln!("{} fails by itself: {at}", test.name));
            by_itself.is_none().then_some((test, at))
        });
        match failed {
            Some((test, at)) => Verdict::Killed { test: test.name.clone(), at },
            None if !tests.is_empty() => Verdict::Survived { tests: tests.len() },
            None if !with(&format!("{field}{NEEDED}")).is_empty() => Verdict::Needed,
            None => Verdict::Unwritten,
        }
    }

    /// Runs a test, without `field` if given; returns the place and reason of its failure.
    fn failure(&self, test: &str, field: Option<&str>) -> Option<String> {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", TIMEOUT_SECONDS]).arg(&self.program);
        command.args(["--exact", test, "--nocapture"]).envs(field.map(|field| ("LITEJOIN_IGNORE", field)));
        let output = command.output().expect("a test can be run");
        if output.status.success() {
            return None;
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let mut lines = said.lines().skip_while(|line| !line.contains("panicked at "));
        let place = lines.next().and_then(|line| line.split_once("panicked at "));
        Some(match place {
            Some((_, place)) => format!("{place} {}", lines.next().unwrap_or_default()),
            None if output.status.code() == Some(FAILED) => "a text is another than expected".to_owned(),
            None => "it hangs".to_owned(),
        })
    }
}

fn cargo(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("cargo");
    command.args(arguments).args(["--workspace", "--locked"]).stderr(Stdio::inherit());
    let output = command.output().context("could not run cargo")?;
    ensure!(output.status.success(), "cargo {arguments:?} has failed");
    String::from_utf8(output.stdout).context("cargo speaks UTF-8")
}

/// Runs these tests with complete manifests that are serialized again, and keeps a file of fields for each that
/// passes.
fn survey(program: &Path, tests: &[&str], folder: &Path) -> Result<()> {
    eprintln!("{} tests are run to see which fields they write", tests.len());
    let mut command = Command::new(program);
    command.arg("--exact").args(tests).env("LITEJOIN_FIELDS", folder).stdout(Stdio::piped());
    let mut run = command.spawn().context("could not run the tests")?;
    let output = run.stdout.take().context("standard output is a pipe")?;
    let lines: Vec<String> =
        BufReader::new(output).lines().collect::<Result<_, _>>().context("could not read on")?;
    run.wait().context("could not wait for the tests")?;
    for test in tests {
        let file = folder.join(test);
        let passed = lines.contains(&format!("test {test} ... ok"));
        OpenOptions::new().create(true).append(true).open(&file).context("could not note the test")?;
        if !passed {
            eprintln!("{test} fails when its manifests are written anew, and tells nothing");
            fs::remove_file(&file).context("could not forget the test")?;
        }
    }
    Ok(())
}

/// Returns the lines of each test by its name: up to the next test.
fn texts(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut texts = BTreeMap::new();
    for entry in fs::read_dir(folder).with_context(|| format!("could not look into {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            texts.append(&mut self::texts(&path)?);
            continue;
        }
        for part in fs::read_to_string(&path)?.split("test]\n").skip(1) {
            let name = part.split_once("fn ").and_then(|(_, part)| part.split_once('('));
            texts.extend(name.map(|(name, _)| (name.to_owned(), part.to_owned())));
        }
    }
    Ok(texts)
}
