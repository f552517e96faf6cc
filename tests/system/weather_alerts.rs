//! examples/weather-alerts as its README starts it: an API that is polled, a webhook that is called.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use litejoin_tests::child::ProcessGroup;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{WorkerSite, program};

#[tokio::test]
async fn the_webhook_hears_of_the_wind_and_of_its_end() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let site = WorkerSite::new();
    for file in
        ["weather-alerts/run", "weather-alerts/serve.py", "weather-alerts/limits.csv", "flights/weather.csv"]
    {
        let to = site.path().join(file);
        fs::create_dir_all(to.parent().expect("it is in a folder")).expect("a folder can be made");
        fs::copy(examples.join(file), to).expect("a file can be copied");
    }
    let manifest =
        fs::read_to_string(examples.join("weather-alerts/pipeline.yaml")).expect("the manifest is text");
    site.write("weather-alerts/pipeline.yaml", manifest.replace("127.0.0.1:9090", "127.0.0.1:0"));
    let free =
        TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port is free");

    let mut command = Command::new("weather-alerts/run");
    command.args(["--data-dir", "data"]).process_group(0);
    command.env("PORT", free.port().to_string()).env("LITEJOIN", program());
    let script = site.launch(command).spawn();
    let _group = ProcessGroup(script.pid());
    // The first strong wind of the year; another one follows when the limit is lowered while all runs.
    let printed = |line: &'static str| {
        let script = &script;
        async move {
            until(line, async || script.stdout().iter().any(|printed| printed == line).then_some(())).await
        }
    };
    printed("2013-01-01T14:00:00Z LGA: 18.4 mph, more than 18").await;
    printed("LGA: calm again").await;
    let limits = site.path().join("weather-alerts/limits.csv");
    let lower = fs::read_to_string(&limits).expect("the limits are text") + "JFK,0\n";
    fs::write(&limits, lower).expect("the limits can be written");
    until("the lower limit", async || {
        script
            .stdout()
            .iter()
            .any(|line| line.contains(" JFK: ") && line.ends_with("more than 0"))
            .then_some(())
    })
    .await;
    script.signal("TERM");
    assert_eq!(script.ended().await.code, Some(130));
}
