//! Chromium, without a window, steered through chromedriver: <https://www.w3.org/TR/webdriver2/>.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use litejoin_tests::client::client;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A browser with one page; it is gone when this is dropped.
pub(crate) struct Browser {
    _driver: Driver,
    client: reqwest::Client,
    session: String,
    _profile: TempDir,
}

impl Browser {
    /// Starts a browser with an empty profile.
    ///
    /// # Panics
    /// If there is no chromedriver or no Chromium.
    pub(crate) async fn start() -> Self {
        let mut driver = Driver(
            Command::new("chromedriver")
                .arg("--port=0")
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("chromedriver is there: tests/run installs Debian's chromium and chromium-driver"),
        );
        let lines = BufReader::new(driver.0.stdout.take().expect("standard output is a pipe")).lines();
        let port = lines
            .map_while(Result::ok)
            .filter_map(|line| line.split(" on port ").nth(1)?.trim_end_matches('.').parse::<u16>().ok())
            // Its first line says what it was asked for.
            .find(|port| *port != 0)
            .expect("chromedriver says on which port it listens");
        let profile = tempfile::tempdir().expect("a folder can be made");
        // Without the flags about the background, it looks for its maker's servers at every start.
        let arguments = [
            "--headless".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-quic".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--no-first-run".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--disable-sync".to_owned(),
            format!("--user-data-dir={}", profile.path().display()),
        ];
        let options = json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": {"args": arguments}}}});
        let client = client();
        let base = format!("http://127.0.0.1:{port}/session");
        let answer = call(&client, &base, &options).await;
        let session = format!("{base}/{}", answer["sessionId"].as_str().expect("a session has an id"));
        Self { _driver: driver, client, session, _profile: profile }
    }

    pub(crate) async fn open(&self, url: &str) {
        call(&self.client, &format!("{}/url", self.session), &json!({"url": url})).await;
    }

    /// Runs a script in the page and gives what it returns.
    pub(crate) async fn run(&self, script: &str, arguments: Value) -> Value {
        let body = json!({"script": script, "args": arguments});
        call(&self.client, &format!("{}/execute/sync", self.session), &body).await
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Only the end of its session ends the browser too; the answer comes when it is gone.
        let end = || -> std::io::Result<()> {
            let (address, path) = self.session["http://".len()..].split_once('/').unwrap_or_default();
            let mut connection = TcpStream::connect(address)?;
            write!(connection, "DELETE /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
            connection.read_exact(&mut [0])
        };
        if let Err(error) = end() {
            eprintln!("the browser could not be ended: {error}");
        }
    }
}

/// A child that is killed when this is dropped.
struct Driver(Child);

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn call(client: &reqwest::Client, url: &str, body: &Value) -> Value {
    let response =
        client.post(url).json(body).send().await.unwrap_or_else(|error| panic!("POST {url}: {error:?}"));
    let status = response.status();
    let mut answer: Value = response.json().await.unwrap_or_else(|error| panic!("POST {url}: {error:?}"));
    assert!(status.is_success(), "POST {url}: {answer}");
    answer["value"].take()
}
