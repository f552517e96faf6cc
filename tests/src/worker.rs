//! The built worker as a child process, in a folder of its own. Dropping it kills the process; a panic that drops it
//! prints its log.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tempfile::TempDir;

use crate::client::client;
use crate::fields;
use crate::ingest::Ingest;
use crate::results::{Event, Results};
use crate::wait::{TIMEOUT, until};

/// The line that a worker logs once it serves.
const RUNS: &str = "the pipeline runs; stop it with ctrl-C";

/// A folder with manifests, input and data, which outlives the workers that run in it.
pub struct WorkerSite {
    folder: TempDir,
}

/// The end of a worker.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    /// The log, and lines from before logging was set up.
    pub stderr: String,
}

/// A command that starts a worker.
pub struct Launch {
    command: Command,
    stdin: Stdio,
    stdout: Option<Stdio>,
}

/// A running worker.
pub struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Lines,
    stderr: Lines,
}

/// Lines that a thread reads from a pipe.
#[derive(Clone, Default)]
struct Lines {
    lines: Arc<Mutex<Vec<String>>>,
    ended: Arc<Mutex<bool>>,
}

/// Returns the program under test, which was built together with this test.
pub fn program() -> PathBuf {
    let test = std::env::current_exe().expect("a process knows its executable");
    let profile = test.ancestors().nth(2).expect("tests lie in target/<profile>/deps");
    let program = profile.join("litejoin");
    assert!(program.is_file(), "{} is missing; run `cargo build --workspace` first", program.display());
    program
}

impl WorkerSite {
    /// Creates an empty folder.
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder can be made") }
    }

    /// Creates a folder with this manifest as `pipeline.yaml`.
    pub fn with(manifest: &str) -> Self {
        let site = Self::new();
        site.write("pipeline.yaml", manifest);
        site
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the data directory of this site's workers, unless the command line names another.
    pub fn data_dir(&self) -> PathBuf {
        self.path().join("data")
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path().join(name);
        let is_manifest = path.extension().is_some_and(|extension| extension == "yaml");
        let content = content.as_ref();
        let written = if is_manifest { fields::written(content) } else { content.to_vec() };
        fs::write(path, written).expect("a file can be written");
    }

    /// Sets the moment that workers of this site take for now, in seconds since the Unix epoch, running ones too. Until the
    /// first call they go by the system clock.
    pub fn set_clock(&self, now: i64) {
        let path = self.path().join("clock.new");
        fs::write(&path, now.to_string()).expect("the folder is ours");
        fs::rename(path, self.clock()).expect("the folder is ours");
    }

    fn clock(&self) -> PathBuf {
        self.path().join("clock")
    }

    /// Returns a command line for the program, in the site's folder and without variables of LiteJoin.
    pub fn command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Launch {
        let mut command = Command::new(program());
        command.args(arguments);
        self.launch(command)
    }

    /// Returns `litejoin run -f pipeline.yaml` with `./data` and more `arguments`.
    pub fn run<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Launch {
        self.command(
            ["run", "-f", "pipeline.yaml", "--data-dir", "data", "--log-format", "json"]
                .into_iter()
                .chain(arguments),
        )
    }

    /// Returns a launch of any command in the site's folder.
    pub fn launch(&self, mut command: Command) -> Launch {
        command.current_dir(self.path());
        for variable in ["LITEJOIN_LOG", "LITEJOIN_LOG_FORMAT", "LITEJOIN_DATA_DIR", "LITEJOIN_SECRETS_DIR"] {
            command.env_remove(variable);
        }
        for variable in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
            command.env_remove(variable).env_remove(variable.to_lowercase());
        }
        if self.clock().is_file() {
            command.env("LITEJOIN_CLOCK", self.clock());
        }
        Launch { command, stdin: Stdio::null(), stdout: None }
    }

    /// Starts the pipeline and waits until it serves.
    pub async fn start(&self) -> Worker {
        self.run([]).start().await
    }
}

impl Default for WorkerSite {
    fn default() -> Self {
        Self::new()
    }
}

impl Launch {
    /// Connects the worker's standard input to a pipe; see [`Worker::stdin`].
    #[must_use]
    pub fn with_stdin(mut self) -> Self {
        self.stdin = Stdio::piped();
        self
    }

    /// Sets the worker's standard input.
    #[must_use]
    pub fn with_stdin_from(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// Sets a variable of the worker's environment.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Shifts the worker's clock by so many seconds. Litestream's clock is unchanged, since Go reads it in another
    /// way.
    #[must_use]
    pub fn with_clock_off_by(self, seconds: i64) -> Self {
        self.with_variable("LD_PRELOAD", concat!(env!("OUT_DIR"), "/clock.so"))
            .with_variable("LITEJOIN_CLOCK_OFFSET", &seconds.to_string())
    }

    /// Sets the worker's standard output, which the harness then does not read.
    #[must_use]
    pub fn with_stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdout = Some(stdout.into());
        self
    }

    /// Starts the worker and waits until it serves.
    pub async fn start(self) -> Worker {
        let mut worker = self.spawn();
        worker.wait_until_it_runs().await;
        worker
    }

    /// Starts the program without waiting.
    pub fn spawn(mut self) -> Worker {
        self.command.stdin(self.stdin).stderr(Stdio::piped());
        self.command.stdout(self.stdout.unwrap_or_else(Stdio::piped));
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("{:?}: {error}", self.command));
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().map_or_else(Lines::closed, Lines::of);
        let stderr = Lines::of(child.stderr.take().expect("standard error is a pipe"));
        Worker { child, stdin, stdout, stderr }
    }

    /// Runs the program to its end.
    pub async fn end(self) -> Ended {
        self.spawn().ended().await
    }
}

impl Worker {
    /// Waits until the log says that the pipeline runs.
    pub async fn wait_until_it_runs(&mut self) {
        assert!(self.comes_to_run().await, "the worker ended before it ran");
    }

    /// Waits until the log says that the pipeline runs; returns `false` if the process ends before that.
    pub async fn comes_to_run(&mut self) -> bool {
        until("the worker to run", async || {
            let log = self.stderr.all();
            if log.iter().any(|line| line.contains(RUNS)) {
                return Some(true);
            }
            if self.child.try_wait().expect("a child can be asked").is_some() {
                self.stderr.wait_for_end().await;
                return Some(false);
            }
            None
        })
        .await
    }

    /// Returns the latest address of `what` in the log: `source ingest`, `sink live`, `admin`.
    pub fn address(&self, what: &str) -> SocketAddr {
        let addresses = addresses(&self.stderr.all());
        *addresses.get(what).unwrap_or_else(|| panic!("no {what} among {addresses:?}"))
    }

    /// Returns a URL at that address, such as `url("sink live", "/snapshot")`.
    pub fn url(&self, what: &str, path: &str) -> String {
        format!("http://{}{path}", self.address(what))
    }

    /// Returns a client of the http source named `ingest`.
    pub fn ingest(&self) -> Ingest {
        Ingest::new(self.address("source ingest"))
    }

    /// Returns `/status` of the admin endpoint.
    pub async fn status(&self) -> Value {
        let text = get(&self.url("admin", "/status")).await.1;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Waits until the results of a join that reads the clock are as of this moment, in seconds since the Unix epoch.
    pub async fn reaches(&self, join: &str, moment: i64) {
        until(&format!("the results of {join} at {moment}"), async || {
            (self.status().await["joins"][join]["asOf"].as_i64()? == moment).then_some(())
        })
        .await;
    }

    /// Returns the results of one join by `/snapshot` of a sink, at least as new as `min_epoch`, and their epoch.
    pub async fn snapshot(&self, sink: &str, join: &str, min_epoch: u64) -> (u64, Results) {
        let url = self.url(&format!("sink {sink}"), &format!("/snapshot?join={join}&minEpoch={min_epoch}"));
        let (status, text) = get(&url).await;
        assert_eq!(status, 200, "{url}: {text}");
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!(answer["join"], join);
        let events = answer["results"].as_array().expect("results is a list");
        let results =
            Results::folded(&events.iter().map(|e| Event::read(&e.to_string())).collect::<Vec<_>>());
        (answer["epoch"].as_u64().expect("a snapshot has an epoch"), results)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Takes the worker's standard input; dropping it closes it.
    pub fn stdin(&mut self) -> ChildStdin {
        self.stdin.take().expect("started with_stdin, and not taken before")
    }

    /// Returns the worker's current memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// Returns the worker's peak memory in bytes.
    pub fn peak_memory_bytes(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, line_start: &str) -> u64 {
        let path = format!("/proc/{}/status", self.pid());
        let status = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let line =
            status.lines().find_map(|line| line.strip_prefix(line_start)).expect("a process has memory");
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kibibytes * 1_024
    }

    /// Returns the log so far.
    pub fn log(&self) -> String {
        self.stderr.all().join("\n")
    }

    /// Waits until the worker has logged `count` lines.
    pub async fn wait_for_log(&self, count: usize) {
        let what = format!("{count} lines in the log");
        until(&what, async || (self.stderr.all().len() >= count).then_some(())).await;
    }

    /// Returns the lines of standard output so far.
    pub fn stdout(&self) -> Vec<String> {
        self.stdout.all()
    }

    /// Returns the lines of standard output from the `first` on, counted from 0.
    pub fn stdout_from(&self, first: usize) -> Vec<String> {
        self.stdout.from(first)
    }

    /// Waits until standard output has `count` lines, and returns all lines.
    pub async fn wait_for_stdout(&self, count: usize) -> Vec<String> {
        let what = format!("{count} lines of output");
        until(&what, async || Some(self.stdout()).filter(|lines| lines.len() >= count)).await
    }

    /// Sends a signal by its name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let arguments = [format!("-{name}"), self.pid().to_string()];
        let sent = Command::new("kill").args(arguments).status().expect("kill is there");
        assert!(sent.success(), "SIG{name} could not be sent");
    }

    /// Makes the worker reload its manifests, and returns the config in `/status` after that.
    pub async fn reload(&self) -> Value {
        let before = self.reloads().await;
        self.signal("HUP");
        self.reloaded(before + 1).await
    }

    /// Waits for the end of the reload of this number, and returns the config in `/status` after that.
    pub async fn reloaded(&self, number: u64) -> Value {
        until("the reload", async || (self.reloads().await >= number).then_some(())).await;
        self.status().await["config"].clone()
    }

    /// Returns how many reloads have ended.
    pub async fn reloads(&self) -> u64 {
        let status = self.status().await;
        let counts = status["config"]["reloads"].as_object().expect("reloads are counted by outcome");
        counts.values().filter_map(Value::as_u64).sum()
    }

    /// Requests a planned stop, waits for it, and asserts that it succeeded.
    pub async fn stop(self) -> Ended {
        self.signal("TERM");
        let ended = self.ended().await;
        assert_eq!(ended.code, Some(0), "a planned stop ends with 0; the log:\n{}", ended.stderr);
        ended
    }

    /// Kills the worker.
    pub async fn kill(mut self) -> Ended {
        self.child.kill().expect("a child can be killed");
        self.ended().await
    }

    /// Returns whether the process is still running.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be asked").is_none()
    }

    /// Waits for the end of the process, and returns its exit code; `None` if a signal has ended it.
    pub async fn wait(&mut self) -> Option<i32> {
        let ended = async || self.child.try_wait().expect("a child can be asked");
        until("the end of the worker", ended).await.code()
    }

    /// Waits for the end of the process and of its output.
    pub async fn ended(mut self) -> Ended {
        let code = self.wait().await;
        self.stdout.wait_for_end().await;
        self.stderr.wait_for_end().await;
        let text = |lines: &Lines| lines.all().iter().map(|line| format!("{line}\n")).collect();
        Ended { code, stdout: text(&self.stdout), stderr: text(&self.stderr) }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the worker's log:\n{}\n", self.log());
        }
    }
}

/// Gets a URL; returns status and body.
///
/// # Panics
/// If no answer comes.
pub async fn get(url: &str) -> (u16, String) {
    try_get(url).await.unwrap_or_else(|error| panic!("GET {url}: {error:?}"))
}

/// Gets a URL that may give no answer; returns status and body.
///
/// # Errors
/// If no answer comes.
pub async fn try_get(url: &str) -> reqwest::Result<(u16, String)> {
    let response = client().get(url).timeout(TIMEOUT).send().await?;
    let status = response.status().as_u16();
    Ok((status, response.text().await?))
}

impl Lines {
    fn of(pipe: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let filled = lines.clone();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(pipe);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                filled.lines.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                line.clear();
            }
            *filled.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        });
        lines
    }

    fn closed() -> Self {
        let lines = Self::default();
        *lines.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        lines
    }

    fn all(&self) -> Vec<String> {
        self.from(0)
    }

    fn from(&self, first: usize) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)[first..].to_vec()
    }

    async fn wait_for_end(&self) {
        let ended = || *self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        until("the end of the output", async || ended().then_some(())).await;
    }
}

/// Returns the listening addresses in log lines: `source NAME`, `sink NAME`, `admin`.
pub fn addresses(log: &[String]) -> BTreeMap<String, SocketAddr> {
    let mut addresses = BTreeMap::new();
    for line in log {
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        let Some(address) = line["address"].as_str() else { continue };
        let named = ["source", "sink"]
            .into_iter()
            .find_map(|kind| line[kind].as_str().map(|name| format!("{kind} {name}")));
        let address = address.parse().unwrap_or_else(|_| panic!("no address: {address}"));
        addresses.insert(named.unwrap_or_else(|| "admin".to_owned()), address);
    }
    addresses
}
