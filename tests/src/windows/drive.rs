//! Plays a script to the built worker, and holds snapshots, events and dead letters of each window to its model.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::definition::{Definition, TOPIC};
use super::frames::WindowMessage;
use super::generator::{Hazard, SOURCES, WindowRound, WindowScript};
use super::model::{Model, ShownResult};
use crate::ingest::{Ingest, message};
use crate::results::Event;
use crate::sse::Subscription;
use crate::wait::{TIMEOUT, until};
use crate::worker::{Worker, WorkerSite, get};

/// A topic and a join of our own. A message to them that comes back says that everything before it has come, too.
const MARKS: &str = "lj_marks";
const LAST_MARK: &str = "lj_last_mark";

/// Longer than any script lasts by its clock.
const FOREVER: &str = "43800h";

/// Rounds that a failure shows, the one that failed among them.
const ROUNDS_SHOWN: usize = 3;

/// Results that a difference shows.
const DIFFERENCES_SHOWN: usize = 4;

/// A fault that the worker puts into its windows on demand, to see whether it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowSabotage {
    /// The image of a row before a change is not looked at.
    NoRetraction,
    /// The watermark follows its partitions back.
    WatermarkBack,
    /// Results are told as final again.
    CloseTwice,
}

impl WindowSabotage {
    pub const ALL: [Self; 3] = [Self::NoRetraction, Self::WatermarkBack, Self::CloseTwice];

    /// The value of `LITEJOIN_SABOTAGE` that asks for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoRetraction => "no-retraction",
            Self::WatermarkBack => "watermark-back",
            Self::CloseTwice => "close-twice",
        }
    }
}

/// A window that is wrong, by its number, and what is wrong with it.
type WrongWindow = (usize, String);

/// Results of one window by their keys.
type ShownResults = BTreeMap<String, ShownResult>;

/// Plays the script to its end, or to the first difference.
///
/// # Panics
/// If the worker fails in another way.
pub async fn play(script: &WindowScript, sabotage: Option<WindowSabotage>) -> Result<(), String> {
    let mut run = WindowRun::start(script, sabotage).await;
    for (number, round) in script.rounds.iter().enumerate() {
        if let Err(wrong) = run.round(round).await {
            let rounds = &script.rounds[(number + 1).saturating_sub(ROUNDS_SHOWN)..=number];
            let rounds: Vec<String> = rounds.iter().map(ToString::to_string).collect();
            let place = format!("round {}, the last of\n{}", number + 1, rounds.join("\n"));
            return Err(run.report(&place, wrong));
        }
    }
    run.end().await.map_err(|wrong| run.report("the end", wrong))
}

/// A script under way.
struct WindowRun {
    sabotage: Option<WindowSabotage>,
    shard_count: usize,
    site: WorkerSite,
    worker: Worker,
    client: Subscription,
    models: Vec<Model>,
    /// What the events of each window fold into.
    told: Vec<ShownResults>,
    /// Result keys of each window that an event has called final.
    told_final: Vec<BTreeSet<String>>,
    /// Marks that were sent.
    marks: u64,
}

impl WindowRun {
    async fn start(script: &WindowScript, sabotage: Option<WindowSabotage>) -> Self {
        let models = script.windows.iter().map(|window| Model::new(window.clone(), script.start));
        let models: Vec<Model> = models.collect();
        let site = WorkerSite::with(&manifest(script.shard_count, &models));
        site.set_clock(script.start);
        let worker = launch(&site, sabotage).await;
        let client = subscribe(&worker, None).await;
        let told = vec![ShownResults::new(); models.len()];
        let told_final = vec![BTreeSet::new(); models.len()];
        let shard_count = script.shard_count;
        let mut run =
            Self { sabotage, shard_count, site, worker, client, models, told, told_final, marks: 0 };
        run.hear_replay().await.expect("a pipeline without messages has no results");
        // A clock that is set back stands still from what the worker has seen of it.
        run.see_clock(script.start).await;
        run
    }

    async fn round(&mut self, round: &WindowRound) -> Result<(), WrongWindow> {
        let WindowRound { hazard, clock, messages } = round;
        match hazard {
            Hazard::Stop => self.end_worker("TERM").await?,
            Hazard::Kill => self.end_worker("KILL").await?,
            Hazard::Reload { window, definition } => self.reload(*window, definition).await?,
            Hazard::Nothing | Hazard::KilledMidway { .. } => {}
        }
        self.site.set_clock(*clock);
        for model in &mut self.models {
            model.tick(*clock);
        }
        if matches!(hazard, Hazard::Stop | Hazard::Kill) {
            self.begin_worker().await?;
        }
        // Rows are judged by the watermark that this moment of the clock makes.
        self.see_clock(*clock).await;
        self.reach_watermarks().await?;
        if let Hazard::KilledMidway { moment } = hazard {
            // By arrival a watermark is stored with the next epoch, and a worker that is killed before that forgets it.
            self.hear_all().await?;
            self.send_to_the_doomed(messages, *moment).await;
            self.end_worker("KILL").await?;
            self.begin_worker().await?;
        }
        let epoch = self.send(messages).await;
        for model in &mut self.models {
            model.take(messages);
        }
        self.compare(epoch).await
    }

    /// Sends messages, which must all be taken, and returns an epoch in which they are seen.
    async fn send(&self, messages: &[WindowMessage]) -> u64 {
        let mut epoch = 0;
        for (source, bodies) in requests(messages) {
            epoch = self.ingest(source).send(&bodies).await.max(epoch);
        }
        epoch
    }

    /// Sends messages, and kills the worker some moments later, whatever the answers are.
    async fn send_to_the_doomed(&self, messages: &[WindowMessage], moment: u32) {
        let send = async {
            for (source, bodies) in requests(messages) {
                let _ = self.ingest(source).try_send(&bodies).await;
            }
        };
        let kill = async {
            for _ in 0..moment {
                tokio::task::yield_now().await;
            }
            self.worker.signal("KILL");
        };
        tokio::join!(send, kill);
    }

    fn ingest(&self, source: &str) -> Ingest {
        Ingest::new(self.worker.address(&format!("source {source}")))
    }

    /// Waits until each window has seen what the clock shows. One that is set back stands still from what was seen of it.
    async fn see_clock(&self, clock: i64) {
        for model in &self.models {
            let name = &model.log.definition().name;
            until(&format!("{name} to see the clock"), async || {
                (self.worker.status().await["joins"][name]["asOf"].as_i64()? >= clock).then_some(())
            })
            .await;
        }
    }

    /// Waits until each window has its watermark.
    async fn reach_watermarks(&self) -> Result<(), WrongWindow> {
        for (number, model) in self.models.iter().enumerate() {
            let (name, expected) = (&model.log.definition().name, model.log.watermark());
            let as_of = async || self.worker.status().await["joins"][name]["window"]["watermark"].as_i64();
            let what = format!("the watermark of {name}");
            let reached = until(&what, async || (as_of().await == expected).then_some(()));
            if tokio::time::timeout(TIMEOUT / 4, reached).await.is_err() {
                let found = as_of().await;
                eprintln!("{:#}", self.worker.status().await["joins"][name]);
                return Err((number, format!("the watermark is {found:?}, expected {expected:?}")));
            }
        }
        Ok(())
    }

    /// Holds what each window shows at `epoch`, and what was told of it, to its model.
    async fn compare(&mut self, epoch: u64) -> Result<(), WrongWindow> {
        self.reach_watermarks().await?;
        for model in &self.models {
            let name = &model.log.definition().name;
            until(&format!("no frame of {name} to wait"), async || {
                let window = &self.worker.status().await["joins"][name]["window"];
                (window["isCurrent"] == true).then_some(())
            })
            .await;
        }
        for (number, model) in self.models.iter().enumerate() {
            let shown = snapshot(&self.worker, &model.log.definition().name, epoch).await;
            hold(&shown, model.results()).map_err(|wrong| (number, format!("the snapshot:\n{wrong}")))?;
        }
        self.hear_all().await?;
        for (number, model) in self.models.iter().enumerate() {
            let told = &self.told[number];
            hold(told, model.results()).map_err(|wrong| (number, format!("the events:\n{wrong}")))?;
        }
        Ok(())
    }

    /// Sends the next mark, and returns its epoch. It brings a time of its own, since the clock may be set back.
    async fn mark(&mut self) -> u64 {
        self.marks += 1;
        let mut mark = message(MARKS, "mark", json!({"n": self.marks}));
        mark["timestamp"] = json!(self.marks);
        self.ingest(SOURCES[0]).send(&[mark]).await
    }

    /// Takes in all that was told up to now.
    async fn hear_all(&mut self) -> Result<(), WrongWindow> {
        self.mark().await;
        loop {
            let received = self.client.expect_next().await;
            // A subscriber that has never heard anything begins with the state.
            if received.event == "replayed" {
                continue;
            }
            let event = received.result();
            if event.query == LAST_MARK && event.rows[0]["n"] == self.marks {
                return Ok(());
            }
            self.hear(&event)?;
        }
    }

    /// Folds one event, which must change what was told before.
    fn hear(&mut self, event: &Event) -> Result<(), WrongWindow> {
        if event.query == LAST_MARK {
            return Ok(());
        }
        let number = self.models.iter().position(|model| model.log.definition().name == event.query);
        let number = number.unwrap_or_else(|| panic!("told of a window that does not exist: {event:?}"));
        let key = event.key.to_string();
        let result = shown(event);
        let before = self.told[number].get(&key);
        let op = match before {
            None if event.rows.is_empty() => "nothing",
            None => "created",
            Some(_) if event.rows.is_empty() => "deleted",
            Some(before) if *before == result => "nothing",
            Some(_) => "updated",
        };
        // A replay has the last change of each result.
        if event.op != op && event.whole["_replay"] != true {
            return Err((number, format!("{} changes {op}; before it was {before:?}", event.whole)));
        }
        if event.rows.is_empty() {
            self.told[number].remove(&key);
            return Ok(());
        }
        if result.window["final"] == true {
            self.told_final[number].insert(key.clone());
        }
        self.told[number].insert(key, result);
        Ok(())
    }

    /// Ends the worker by a signal, and takes in what it has told by then.
    async fn end_worker(&mut self, signal: &str) -> Result<(), WrongWindow> {
        self.worker.signal(signal);
        let code = self.worker.wait().await;
        assert!(signal == "KILL" || code == Some(0), "a planned stop ends with 0, not {code:?}");
        for received in self.client.rest().await {
            if received.event != "replayed" {
                self.hear(&received.result())?;
            }
        }
        Ok(())
    }

    async fn begin_worker(&mut self) -> Result<(), WrongWindow> {
        self.worker = launch(&self.site, self.sabotage).await;
        self.subscribe_again().await
    }

    /// Subscribes with the last id that was seen, if any was.
    async fn subscribe_again(&mut self) -> Result<(), WrongWindow> {
        let last_event_id = self.client.last_event_id.take();
        self.client = subscribe(&self.worker, last_event_id.as_deref()).await;
        if last_event_id.is_some() { Ok(()) } else { self.hear_replay().await }
    }

    /// Takes in the present results, with which a subscriber begins that has never heard anything. A result that changes
    /// while they are read comes after them, as a change of one that the subscriber does not know.
    async fn hear_replay(&mut self) -> Result<(), WrongWindow> {
        loop {
            let received = self.client.expect_next().await;
            if received.event == "replayed" {
                return Ok(());
            }
            self.hear(&received.result())?;
        }
    }

    /// Changes a window. The subscriber comes back, as one of a changed pipeline does.
    async fn reload(&mut self, window: usize, definition: &Definition) -> Result<(), WrongWindow> {
        if !self.models[window].log.definition().has_same_frames(definition) {
            self.told_final[window].clear();
        }
        self.models[window].redefine(definition);
        self.site.write("pipeline.yaml", manifest(self.shard_count, &self.models));
        let config = self.worker.reload().await;
        assert_ne!(config["lastReload"]["outcome"], "refused", "{config}");
        self.subscribe_again().await?;
        let epoch = self.mark().await;
        self.compare(epoch).await
    }

    /// Ends the worker, and holds the dead letters and the final events to the models.
    async fn end(&mut self) -> Result<(), WrongWindow> {
        self.end_worker("TERM").await?;
        for (number, model) in self.models.iter().enumerate() {
            let name = &model.log.definition().name;
            let untold: Vec<&String> = model.finals().difference(&self.told_final[number]).collect();
            if !untold.is_empty() {
                return Err((number, format!("no event was final of {untold:?}")));
            }
            let found = self.dead_letters(name).await;
            let expected = model.dead_letters().iter().map(|(key, _)| format!("{TOPIC}/{key}"));
            let expected: Vec<String> = expected.collect();
            if found != expected {
                return Err((number, format!("dead letters\n  {found:?}\nexpected\n  {expected:?}")));
            }
        }
        self.audit().await
    }

    /// Holds the results to those that the worker finds anew from the rows, once it has ended.
    async fn audit(&self) -> Result<(), WrongWindow> {
        let arguments = ["audit", "--data-dir", "data", "-f", "pipeline.yaml", "--output", "json"];
        let ended = self.site.command(arguments).end().await;
        let findings: Vec<Value> = ended
            .stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .collect();
        for (number, model) in self.models.iter().enumerate() {
            let name = &model.log.definition().name;
            let finding = findings.iter().find(|finding| finding["join"] == **name);
            let finding = finding.unwrap_or_else(|| panic!("{name} was not audited: {}", ended.stderr));
            if finding["differences"] != 0 || !finding["skipped"].is_null() || !finding["error"].is_null() {
                return Err((number, format!("the audit: {finding}")));
            }
        }
        Ok(())
    }

    /// Places of the dead letters of a window, sorted.
    async fn dead_letters(&self, window: &str) -> Vec<String> {
        let list = ["dlq", "list", "--data-dir", "data", "--output", "json", "--source", window];
        let ended = self.site.command(list).end().await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let position = |line: &str| {
            let entry: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            entry["position"].as_str().unwrap_or_else(|| panic!("no position: {line}")).to_owned()
        };
        let mut positions: Vec<String> = ended.stdout.lines().map(position).collect();
        positions.sort_unstable();
        positions
    }

    fn report(&self, place: &str, (number, difference): WrongWindow) -> String {
        let log = &self.models[number].log;
        let (window, watermark) = (log.definition().manifest(), log.watermark());
        format!("{place}\nwindow {window}\nby a watermark of {watermark:?}, {difference}")
    }
}

async fn launch(site: &WorkerSite, sabotage: Option<WindowSabotage>) -> Worker {
    let mut launch = site.run([]);
    if let Some(sabotage) = sabotage {
        launch = launch.with_variable("LITEJOIN_SABOTAGE", sabotage.name());
    }
    launch.start().await
}

async fn subscribe(worker: &Worker, last_event_id: Option<&str>) -> Subscription {
    Subscription::open(worker.address("sink live"), "join=*&replay=true", last_event_id).await
}

/// Bodies of messages by their source.
fn requests(messages: &[WindowMessage]) -> BTreeMap<&'static str, Vec<Value>> {
    let mut requests = BTreeMap::<_, Vec<Value>>::new();
    for WindowMessage { source, key, payload, timestamp, .. } in messages {
        let mut body = message(TOPIC, key, json!(payload));
        if let Some(timestamp) = timestamp {
            body["timestamp"] = json!(timestamp);
        }
        requests.entry(*source).or_default().push(body);
    }
    requests
}

/// The results that `/snapshot` has of a window.
async fn snapshot(worker: &Worker, window: &str, min_epoch: u64) -> ShownResults {
    let url = worker.url("sink live", &format!("/snapshot?join={window}&minEpoch={min_epoch}"));
    let (status, text) = get(&url).await;
    assert_eq!(status, 200, "{url}: {text}");
    let answer: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let events = answer["results"].as_array().expect("results is a list").iter();
    let events = events.map(|event| Event::read(&event.to_string()));
    events.map(|event| (event.key.to_string(), shown(&event))).collect()
}

fn shown(event: &Event) -> ShownResult {
    let mut rows: Vec<String> = event.rows.iter().map(Value::to_string).collect();
    rows.sort_unstable();
    ShownResult { rows, window: event.whole["window"].clone() }
}

/// The error says which results differ.
fn hold(found: &ShownResults, expected: &ShownResults) -> Result<(), String> {
    let keys: BTreeSet<&String> = found.keys().chain(expected.keys()).collect();
    let different = keys.into_iter().filter(|key| found.get(*key) != expected.get(*key));
    let line = |key: &String| {
        let text = |result: Option<&ShownResult>| {
            result.map_or_else(
                || "nothing".to_owned(),
                |result| format!("{} [{}]", result.window, result.rows.join(", ")),
            )
        };
        format!(
            "  key {key}\n    found    {}\n    expected {}",
            text(found.get(key)),
            text(expected.get(key))
        )
    };
    let lines: Vec<String> = different.map(line).take(DIFFERENCES_SHOWN).collect();
    if lines.is_empty() { Ok(()) } else { Err(lines.join("\n")) }
}

fn manifest(shard_count: usize, models: &[Model]) -> String {
    let source =
        |name: &&str| json!({"name": name, "http": {"addr": "127.0.0.1:0", "topics": [TOPIC, MARKS]}});
    json!({
        "apiVersion": "litejoin.io/v1alpha1",
        "kind": "Pipeline",
        "metadata": {"name": "fuzz"},
        "spec": {
            "storage": {"shardCount": shard_count, "flushInterval": "1ms"},
            // The clock jumps by weeks, and nothing shall leave for it.
            "retention": {"duration": FOREVER, "tombstoneDuration": FOREVER, "cleanInterval": "24h"},
            "delivery": {"replayWindow": FOREVER, "dlq": {"ttl": FOREVER}},
            "admin": {"addr": "127.0.0.1:0"},
            "sources": SOURCES.iter().map(source).collect::<Vec<_>>(),
            "joins": [{
                "name": LAST_MARK,
                "query": format!("SELECT key, payload->>'n' AS n FROM {MARKS}"),
                "sinks": ["live"],
            }],
            "windows": models.iter().map(|model| model.log.definition().manifest()).collect::<Vec<_>>(),
            "sinks": [{"name": "live", "sse": {"addr": "127.0.0.1:0"}}],
        },
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use litejoin_crds::document::Document;

    use super::*;

    #[test]
    fn manifests_are_valid() {
        for seed in 1..=6 {
            let script = WindowScript::random(seed);
            let models = script.windows.iter().map(|window| Model::new(window.clone(), script.start));
            let manifest = manifest(script.shard_count, &models.collect::<Vec<_>>());
            let value = serde_json::from_str(&manifest).expect("a manifest is JSON");
            let complaints = match litejoin_crds::validate::validate(&[Document { value }]) {
                Ok((_, warnings)) => warnings,
                Err(complaints) => complaints,
            };
            assert!(complaints.is_empty(), "seed {seed}: {complaints:?}\n{manifest}");
        }
    }
}
