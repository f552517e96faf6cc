//! A worker under measurement: its manifest, its process, and what its log says of its progress.

use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process;

/// Builds the worker as this program was built, and returns where it is.
pub(crate) fn build() -> Result<PathBuf> {
    let this = std::env::current_exe().context("could not find this program")?;
    let binary = this.with_file_name("litejoin");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--package=litejoin-worker"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let built = cargo.status().context("could not start cargo")?;
    if !built.success() {
        bail!("the worker does not build; see above");
    }
    Ok(binary)
}

/// A running worker. It is killed when dropped, as hard as can be: what it has acknowledged must be there still.
pub(crate) struct Worker {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    /// Where the first http source listens.
    pub(crate) http_addr: Option<String>,
}

impl Worker {
    /// Starts `binary` with a pipeline of these `sources` (YAML, a list), and waits until it runs.
    pub(crate) fn start(binary: &Path, dir: &Path, shard_count: usize, sources: &str) -> Result<Self> {
        let manifest = dir.join("pipeline.yaml");
        let text = format!(
            "apiVersion: litejoin.io/v1alpha1\nkind: Pipeline\nmetadata: {{name: bench}}\nspec:\n  \
             storage: {{shardCount: {shard_count}}}\n  admin: {{addr: \"127.0.0.1:0\"}}\n  sources:\n{sources}"
        );
        std::fs::write(&manifest, text)?;
        let mut child = Command::new(binary)
            .arg("run")
            .arg("--file")
            .arg(&manifest)
            .arg("--data-dir")
            .arg(data_dir(dir))
            .args(["--log=info", "--log-format=json"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("could not start {}", binary.display()))?;
        let stderr = child.stderr.take().expect("it is piped");
        let mut worker = Self { child, log: BufReader::new(stderr).lines(), http_addr: None };
        while let Some(line) = worker.wait_for(&["taking messages", "the pipeline runs"])? {
            if line["message"].as_str().is_some_and(|message| message.starts_with("the pipeline")) {
                break;
            }
            worker.http_addr = line["address"].as_str().map(str::to_owned);
        }
        Ok(worker)
    }

    /// Waits for a line of the log whose message begins with one of `messages`.
    pub(crate) fn wait_for(&mut self, messages: &[&str]) -> Result<Option<serde_json::Value>> {
        for line in self.log.by_ref() {
            let line = line?;
            let Ok(entry) = serde_json::from_str::<serde_json::Value>(&line) else {
                bail!("the worker says {line}");
            };
            let message = entry["message"].as_str().unwrap_or_default();
            if messages.iter().any(|wanted| message.starts_with(wanted)) {
                return Ok(Some(entry));
            }
            if entry["level"].as_str().is_some_and(|level| level == "ERROR" || level == "WARN") {
                bail!("the worker says {line}");
            }
        }
        bail!("the worker has ended before it said {:?}", messages.join(" or "))
    }

    /// CPU time that it has used so far.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        process::cpu_time(self.child.id())
    }

    /// The most memory that it has had, in bytes.
    pub(crate) fn peak_memory_bytes(&self) -> Result<u64> {
        process::peak_memory_bytes(self.child.id())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a worker in `dir` keeps its shards.
pub(crate) fn data_dir(dir: &Path) -> PathBuf {
    dir.join("data")
}
