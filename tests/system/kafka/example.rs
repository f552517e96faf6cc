//! examples/kafka as its README starts it.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use litejoin_tests::child::ProcessGroup;
use litejoin_tests::ports::PortBlock;
use litejoin_tests::results::Event;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{WorkerSite, program};

#[tokio::test]
async fn delayed_flights_go_from_kafka_to_kafka() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let ports = PortBlock::free();
    let port = ports.number(0);
    let site = WorkerSite::new();
    for file in
        ["kafka/run", "kafka/feed.yaml", "kafka/pipeline.yaml", "flights/flights.csv", "flights/airlines.csv"]
    {
        let (from, to) = (repository.join("examples").join(file), site.path().join(file));
        fs::create_dir_all(to.parent().expect("it is in a folder")).expect("a folder can be made");
        fs::copy(&from, &to).expect("a file can be copied");
        if file.ends_with(".yaml") {
            let text = fs::read_to_string(&from).expect("a manifest is text");
            let text = text.replace("127.0.0.1:9092", &format!("127.0.0.1:{port}"));
            site.write(
                file,
                text.replace("127.0.0.1:9090", "127.0.0.1:0").replace("127.0.0.1:9091", "127.0.0.1:0"),
            );
        }
    }
    let mut command = Command::new("kafka/run");
    command.process_group(0).env("LITEJOIN", program());
    command.env("BROKER", repository.join("tests/kafka/serve"));
    let script = site.launch(command).spawn();
    let _group = ProcessGroup(script.pid());
    until("a delayed flight with its airline", async || {
        let lines = script.stdout();
        let mut events = lines.iter().map(|line| Event::read(line));
        events.any(|event| event.rows[0]["airline"] == "Envoy Air").then_some(())
    })
    .await;
    script.signal("TERM");
    assert_eq!(script.ended().await.code, Some(130));
}
