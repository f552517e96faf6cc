//! A worker under measurement: its manifest, its process, and its progress by its log.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Lines};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use litejoin_tests::stores::{Store, litestream};
use litejoin_tests::worker::addresses;
use serde_json::Value;

use crate::client;
use crate::memory::{Memory, MemoryWatch};
use crate::process;

/// The line that a worker logs once it serves.
const RUNS: &str = "the pipeline runs";

/// Builds the worker with the profile of this program, and returns its path.
pub(crate) fn build() -> Result<PathBuf> {
    let this = std::env::current_exe().context("could not find this program")?;
    let binary = this.with_file_name("litejoin");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--package=litejoin-worker"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    // The folder of a profile has its name, except that of `dev`.
    let folder = this.parent().and_then(Path::file_name).and_then(OsStr::to_str).unwrap_or_default();
    cargo.args(["--profile", if folder == "debug" { "dev" } else { folder }]);
    let built = cargo.status().context("could not start cargo")?;
    if !built.success() {
        bail!("the worker does not build; see above");
    }
    Ok(binary)
}

/// The pipeline of a worker.
#[derive(Clone, Copy)]
pub(crate) struct Pipeline<'p> {
    pub(crate) shard_count: usize,
    pub(crate) flush_interval: Duration,
    /// A list in YAML.
    pub(crate) sources: &'p str,
    /// Names and queries of joins, which have an SSE sink.
    pub(crate) joins: &'p [(&'p str, &'p str)],
    /// Windows without their sinks, which are those of the joins.
    pub(crate) windows: &'p [Value],
    /// Name and YAML of a second sink for joins and windows.
    pub(crate) sink: Option<(&'p str, &'p str)>,
    /// The shards that the data gets while it is served, if it is to be moved.
    pub(crate) online: Option<usize>,
    /// The store for the replica, if the pipeline is replicated.
    pub(crate) store: Option<&'p Store>,
}

/// An http source that accepts any topic.
pub(crate) const HTTP_SOURCE: &str = "    - name: ingest\n      http: {addr: \"127.0.0.1:0\"}\n";

/// How long a message may wait for others: the worker's default.
pub(crate) const FLUSH_INTERVAL: Duration = Duration::from_millis(10);

impl Pipeline<'_> {
    /// Returns a pipeline with only an http source.
    pub(crate) fn new(shard_count: usize) -> Self {
        let (flush_interval, sources) = (FLUSH_INTERVAL, HTTP_SOURCE);
        Self {
            shard_count,
            flush_interval,
            sources,
            joins: &[],
            windows: &[],
            sink: None,
            online: None,
            store: None,
        }
    }

    fn manifest(&self) -> String {
        let Self { shard_count, flush_interval, sources, joins, windows, sink, online, store } = self;
        let reshard = online.map_or_else(String::new, |to| {
            format!(", reshard: {{fromShardCount: {shard_count}, toShardCount: {to}, strategy: Online}}")
        });
        let mut text = format!(
            "apiVersion: litejoin.io/v1alpha1\nkind: Pipeline\nmetadata: {{name: bench}}\nspec:\n  \
             storage: {{shardCount: {}, flushInterval: {}ms{reshard}}}\n  admin: {{addr: \"127.0.0.1:0\"}}\n  \
             sources:\n{sources}",
            online.unwrap_or(*shard_count),
            flush_interval.as_millis()
        );
        if let Some(store) = store {
            let mut replication = store.settings("replicas");
            replication["mode"] = "embedded".into();
            let _ = writeln!(text, "  replication: {replication}");
        }
        if !joins.is_empty() || !windows.is_empty() {
            text.push_str("  sinks:\n    - name: live\n      sse: {addr: \"127.0.0.1:0\"}\n");
            text.push_str(sink.map_or("", |(_, yaml)| yaml));
        }
        if !joins.is_empty() {
            text.push_str("  joins:\n");
        }
        let taken_by = sink.map_or_else(|| "live".to_owned(), |(name, _)| format!("live, {name}"));
        for (name, sql) in *joins {
            // A JSON string is a YAML string too.
            let sql = serde_json::json!(sql);
            let _ = writeln!(text, "    - {{name: {name}, sinks: [{taken_by}], query: {sql}}}");
        }
        if !windows.is_empty() {
            text.push_str("  windows:\n");
        }
        for window in *windows {
            let mut window = window.clone();
            window["sinks"] = taken_by.split(", ").collect();
            // JSON is YAML, too.
            let _ = writeln!(text, "    - {window}");
        }
        text
    }
}

/// A running worker. Dropping it sends SIGKILL: acknowledged messages must survive that.
pub(crate) struct BenchWorker {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    memory: MemoryWatch,
    addresses: BTreeMap<String, SocketAddr>,
}

impl BenchWorker {
    /// Starts `binary` in `dir`, which may hold data of an earlier run, and waits until the worker serves.
    pub(crate) fn start(binary: &Path, dir: &Path, pipeline: &Pipeline<'_>) -> Result<Self> {
        let manifest = dir.join("pipeline.yaml");
        std::fs::write(&manifest, pipeline.manifest())?;
        let mut command = Command::new(binary);
        if let Some(store) = pipeline.store {
            command.envs(store.environment()).env("LITEJOIN_LITESTREAM", litestream());
            // Litestream's S3 client fails on this variable.
            command.env_remove("AWS_CA_BUNDLE");
        }
        let mut child = command
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
        let memory = MemoryWatch::start(child.id());
        let mut worker =
            Self { child, log: BufReader::new(stderr).lines(), memory, addresses: BTreeMap::new() };
        let mut lines = worker.read_until(RUNS)?;
        lines.retain(|line| line.contains("address"));
        worker.addresses = addresses(&lines);
        Ok(worker)
    }

    /// Waits for a line of the log whose message begins with `wanted`, and returns all lines up to that line.
    pub(crate) fn read_until(&mut self, wanted: &str) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for line in self.log.by_ref() {
            let line = line?;
            let Ok(entry) = serde_json::from_str::<Value>(&line) else {
                bail!("the worker says {line}");
            };
            let begins =
                |field: &str, text: &str| entry[field].as_str().is_some_and(|said| said.starts_with(text));
            // A new replica logs this warning.
            let is_bad = begins("level", "ERROR") || begins("level", "WARN");
            if is_bad && !begins("message", "starting empty") {
                bail!("the worker says {line}");
            }
            lines.push(line);
            if begins("message", wanted) {
                return Ok(lines);
            }
        }
        bail!("the worker has ended before it said {wanted:?}")
    }

    /// Returns the address of [`HTTP_SOURCE`].
    pub(crate) fn ingest(&self) -> Result<SocketAddr> {
        self.address("source ingest")
    }

    /// Returns the address of the SSE sink.
    pub(crate) fn live(&self) -> Result<SocketAddr> {
        self.address("sink live")
    }

    /// Returns the admin address.
    pub(crate) fn admin(&self) -> Result<SocketAddr> {
        self.address("admin")
    }

    fn address(&self, what: &str) -> Result<SocketAddr> {
        self.addresses
            .get(what)
            .copied()
            .with_context(|| format!("the log does not say where {what} listens"))
    }

    /// Returns `/status`.
    pub(crate) fn status(&self) -> Result<Value> {
        let (_, body) = client::get_all(self.admin()?, "/status")?;
        serde_json::from_slice(&body).context("/status is no JSON")
    }

    /// Returns the CPU time used so far.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        process::cpu_time(self.child.id())
    }

    /// Has the worker take another pipeline over.
    pub(crate) fn reload(&self, dir: &Path, pipeline: &Pipeline<'_>) -> Result<()> {
        std::fs::write(dir.join("pipeline.yaml"), pipeline.manifest())?;
        process::hang_up(self.child.id())
    }

    /// Stops the worker as planned, with its Litestream: after a kill, Litestream would still write for a while.
    pub(crate) fn stop(mut self) -> Result<()> {
        process::terminate(self.child.id())?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the worker has ended with {status}");
        Ok(())
    }

    /// Returns the peak memory so far.
    pub(crate) fn memory(&self) -> Result<Memory> {
        self.memory.peak()
    }
}

impl Drop for BenchWorker {
    fn drop(&mut self) {
        // The worker may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the data directory of a worker in `dir`.
pub(crate) fn data_dir(dir: &Path) -> PathBuf {
    dir.join("data")
}
