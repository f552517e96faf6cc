//! examples/weather-alerts: an API that is polled, a webhook that is called. As its README starts it, and for a week of
//! the worker's clock.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use litejoin_tests::child::ProcessGroup;
use litejoin_tests::results::{Event, Results};
use litejoin_tests::server::{Reply, Server};
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite, program};
use serde_json::{Value, json};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

#[tokio::test]
async fn the_webhook_hears_of_the_wind_and_of_its_end() {
    let examples = examples();
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

/// Midnight of the first of January 2013.
const START: i64 = 1_356_998_400;
const HOUR: i64 = 3_600;

/// The API of the example, whose hour a test sets: the hours of weather.csv, over and over.
struct WeatherApi {
    server: Server,
    hour: Arc<AtomicUsize>,
    /// How many polls were answered 304 since the hour began.
    unchanged: Arc<AtomicUsize>,
    /// The wind at each airport, hour by hour.
    hours: Arc<Vec<BTreeMap<String, Option<f64>>>>,
}

impl WeatherApi {
    async fn start() -> Self {
        let text = fs::read_to_string(examples().join("flights/weather.csv")).expect("the weather is text");
        let mut hours: BTreeMap<&str, BTreeMap<String, Option<f64>>> = BTreeMap::new();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split(',').collect();
            let wind = fields[9].parse::<f64>().ok().map(|wind| (wind * 10.0).round() / 10.0);
            hours.entry(fields[14]).or_default().insert(fields[0].to_owned(), wind);
        }
        let api = Self {
            server: Server::start().await,
            hour: Arc::default(),
            unchanged: Arc::default(),
            hours: Arc::new(hours.into_values().collect()),
        };
        let (hour, unchanged, hours) =
            (Arc::clone(&api.hour), Arc::clone(&api.unchanged), Arc::clone(&api.hours));
        api.server.behave(move |request| {
            assert_eq!(request.header("authorization"), Some("Bearer only-an-example"));
            let hour = hour.load(Ordering::SeqCst);
            let tag = format!("\"{hour}\"");
            if request.header("if-none-match") == Some(&tag) {
                unchanged.fetch_add(1, Ordering::SeqCst);
                return Reply::status(304);
            }
            let observations = observations(&hours, hour);
            Reply::json(&json!({"observations": observations})).with_header("ETag", &tag)
        });
        api
    }

    /// Begins an hour, and waits until the worker has all of it: from then on the answer is 304.
    async fn begin(&self, hour: usize) {
        self.hour.store(hour, Ordering::SeqCst);
        self.is_unchanged().await;
    }

    /// Waits for a poll from now on that is answered 304; one before it may have been under way.
    async fn is_unchanged(&self) {
        self.unchanged.store(0, Ordering::SeqCst);
        until("a poll of what has not changed", async || {
            (self.unchanged.load(Ordering::SeqCst) > 1).then_some(())
        })
        .await;
    }

    /// The results of the join in an hour, under these limits.
    fn windy(&self, hour: usize, limits: &BTreeMap<&str, u32>) -> Results {
        let mut results = Results::default();
        for mut row in observations(&self.hours, hour) {
            let airport = row["airport"].as_str().expect("a text").to_owned();
            let Some(limit) = limits.get(airport.as_str()) else { continue };
            if row["wind_mph"].as_f64().is_some_and(|wind| wind > f64::from(*limit)) {
                row["limit_mph"] = (*limit).into();
                results.set(("windy".to_owned(), json!(airport).to_string()), [&row]);
            }
        }
        results
    }
}

fn observations(hours: &[BTreeMap<String, Option<f64>>], hour: usize) -> Vec<Value> {
    let time = format!("2013-01-{:02}T{:02}:00:00Z", 1 + hour / 24, hour % 24);
    let winds = hours[hour % hours.len()].iter();
    winds.map(|(airport, wind)| json!({"airport": airport, "hour": time, "wind_mph": wind})).collect()
}

/// The manifest of the example, polled quicker and cleaned more often. A second sink has the snapshot, and the rows of a
/// topic that go after an hour tell that the cleaner has been through.
fn for_a_week() -> String {
    let manifest = fs::read_to_string(examples().join("weather-alerts/pipeline.yaml")).expect("it is text");
    let replaced = [
        ("127.0.0.1:9090", "127.0.0.1:0".to_owned()),
        ("interval: 500ms", "interval: 20ms".to_owned()),
        (
            "  sources:\n",
            "  retention: {cleanInterval: 100ms}\n  topics: [{name: passing, retention: 1h}]\n  sources:\n    \
             - {name: ingest, http: {addr: \"127.0.0.1:0\", topics: [passing]}}\n"
                .to_owned(),
        ),
        ("sinks: [webhook]", "sinks: [webhook, live]".to_owned()),
    ];
    let mut all = manifest + "    - {name: live, sse: {addr: \"127.0.0.1:0\"}}\n";
    for (old, new) in replaced {
        assert!(all.contains(old), "the example has no {old:?}");
        all = all.replace(old, &new);
    }
    all
}

#[tokio::test]
async fn a_week_of_weather_is_alerted_to_its_last_day() {
    let (api, hook) = (WeatherApi::start().await, Server::start().await);
    let site = WorkerSite::with(&for_a_week());
    let limits_file = fs::read_to_string(examples().join("weather-alerts/limits.csv")).expect("it is text");
    site.write("limits.csv", &limits_file);
    let mut limits = BTreeMap::from([("EWR", 17), ("JFK", 20), ("LGA", 18)]);
    site.set_clock(START);
    let environment = [
        ("WEATHER", api.server.url("")),
        ("WEBHOOK", hook.url("/webhook")),
        ("WEATHER_TOKEN", "only-an-example".to_owned()),
        ("WEBHOOK_KEY", "only-an-example".to_owned()),
    ];
    let start = async || {
        let mut launch = site.run([]);
        for (name, value) in &environment {
            launch = launch.with_variable(name, value);
        }
        launch.start().await
    };
    let mut worker = start().await;
    let (mut told, mut strong_days) = (Results::default(), BTreeSet::new());
    let mut agrees = async |worker: &Worker, hour: usize, expected: &Results| {
        let what = format!("/snapshot and the webhook to have the wind of hour {hour}");
        until(&what, async || {
            for request in hook.take() {
                let event = Event::read(request.text());
                if event.op == "created" {
                    strong_days.insert(hour / 24);
                }
                told.fold([&event]);
            }
            let shown = worker.snapshot("live", "windy", 0).await.1;
            (shown == *expected && told == shown).then_some(())
        })
        .await;
    };
    let mut hour = 0;
    loop {
        site.set_clock(moment(hour));
        // The place in limits.csv is stored, so a restart does not read its rows again.
        if hour == 60 {
            worker.stop().await;
            worker = start().await;
        }
        api.begin(hour).await;
        let expected = api.windy(hour, &limits);
        agrees(&worker, hour, &expected).await;
        hour += 1;
        if hour >= 7 * 24 && !expected.rows.is_empty() {
            break;
        }
    }
    // The API has nothing new for two days more.
    let last = hour - 1;
    worker.ingest().put("passing", "hour", json!({})).await;
    site.set_clock(moment(hour + 48));
    let passing = async || worker.status().await["topics"]["passing"]["expired"] == 1;
    until("the cleaner to pass", async || passing().await.then_some(())).await;
    api.is_unchanged().await;
    agrees(&worker, last, &api.windy(last, &limits)).await;
    // Another limit is joined with weather of two days ago, and other limits stay.
    limits.insert("JFK", 0);
    site.write("limits.csv", limits_file + "JFK,0\n");
    agrees(&worker, last, &api.windy(last, &limits)).await;
    assert_eq!(strong_days, (0..=last / 24).collect(), "days with strong wind");
    worker.stop().await;
}

/// The time at the beginning of an hour of the week.
fn moment(hour: usize) -> i64 {
    START + HOUR * i64::try_from(hour).expect("hours are few")
}
