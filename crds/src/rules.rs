//! The rules (CEL) that an API server holds documents against, beyond their schema. Each message names the
//! remedy. `validate` says the same on a laptop; one table of cases tests both.
//!
//! Rules that look at one object sit on its type, and so apply inline and stand-alone alike. Rules that compare
//! old and new sit on the spec or the root, which are always there: one on a field would be skipped when the
//! field vanishes.

use serde_json::{Value, json};

use crate::defaults::{ACCESS_MODE, SHARD_COUNT};
use crate::kind::{SINK_KINDS, SOURCE_KINDS};
use crate::names::VARIABLE_MESSAGE;
use crate::schedule::{SCHEDULE_MESSAGE, SHORT_FORMS};
use crate::status::RESHARD_PHASES_ACTIVE;

/// The message about a drill without a replica that another pod reaches.
pub(crate) const DRILL_MESSAGE: &str = "drill needs replication.enabled: true and a replicaUrl that another pod reaches, \
                                        which file:// is not; there, run litejoin restore --verify in the pod";

/// The value of `x-kubernetes-validations`.
fn rules(rules: &[(&str, &str)]) -> Value {
    rules.iter().map(|(rule, message)| json!({ "rule": rule, "message": message })).collect()
}

/// The rule that exactly one of some fields is there.
fn exactly_one(fields: &[&str]) -> String {
    let each: Vec<String> = fields.iter().map(|field| format!("has(self.{field})")).collect();
    format!("[{}].exists_one(x, x)", each.join(", "))
}

pub(crate) fn source_body() -> Value {
    rules(&[
        (&exactly_one(&SOURCE_KINDS), "a source has exactly one of http, file, api and kafka"),
        ("!has(self.api) || has(self.topic)", "an api source needs a topic to fill: add topic beside api"),
        (
            "!has(self.topic) || !(has(self.http) || has(self.file))",
            "topic belongs to api and kafka sources: write http.topics or file.topic instead",
        ),
    ])
}

pub(crate) fn file_source() -> Value {
    rules(&[
        (
            "!has(self.topic) || (has(self.keyColumns) && size(self.keyColumns) > 0)",
            "topic needs keyColumns: the columns whose values are the key",
        ),
        (
            "!has(self.keyColumns) || size(self.keyColumns) == 0 || has(self.topic)",
            "keyColumns needs topic: without it each line brings its own topic and key",
        ),
        (
            "has(self.format) || ['.csv', '.ndjson', '.jsonl'].exists(e, self.path.endsWith(e))",
            "the ending of path says no format: add format: csv or format: ndjson",
        ),
        (
            "has(self.topic) || !(has(self.format) ? self.format == 'csv' : self.path.endsWith('.csv'))",
            "a csv file needs topic and keyColumns: its lines carry neither",
        ),
        (
            "!has(self.types) || (has(self.format) ? self.format == 'csv' : self.path.endsWith('.csv'))",
            "types is for csv: the values of ndjson have types of their own",
        ),
        (
            "!has(self.infer) || (has(self.format) ? self.format == 'csv' : self.path.endsWith('.csv'))",
            "infer is for csv: the values of ndjson have types of their own",
        ),
    ])
}

pub(crate) fn sink_body() -> Value {
    rules(&[(&exactly_one(&SINK_KINDS), "a sink has exactly one of sse, stdout, http, kafka and sqlite")])
}

pub(crate) fn window_body() -> Value {
    rules(&[
        ("self.type == 'session' || has(self.size)", "a tumbling or sliding window needs size"),
        ("self.type != 'sliding' || has(self.slide)", "a sliding window needs slide"),
        ("self.type != 'session' || has(self.gap)", "a session window needs gap"),
        ("self.type != 'session' || !has(self.size)", "a session window has no size: it ends by gap"),
        ("self.type == 'sliding' || !has(self.slide)", "only a sliding window has slide"),
        ("self.type == 'session' || !has(self.gap)", "only a session window has gap"),
        (
            "!has(self.size) || !has(self.slide) || duration(self.slide) <= duration(self.size)",
            "slide is longer than size: write a slide of at most size",
        ),
        (
            "!has(self.offset) || !has(self.size) || duration(self.offset) < duration(has(self.slide) ? self.slide : self.size)",
            "offset is too long: write less than slide, or than size where there is no slide",
        ),
        (
            "self.type != 'session' || !has(self.offset)",
            "a session window has no offset: its messages say when it begins",
        ),
        (
            "self.type != 'session' || !has(self.timezone)",
            "a session window has no timezone: its messages say when it begins",
        ),
        (
            "self.type != 'session' || !has(self.emitEmpty) || self.emitEmpty == 0",
            "a session window has no emitEmpty: its messages say when it begins",
        ),
    ])
}

pub(crate) fn event_time() -> Value {
    rules(&[(
        "!has(self.unit) || self.unit == 'rfc3339' || has(self.path)",
        "eventTime.unit needs path, the place of the time in the payload: the timestamp of a message has no unit",
    )])
}

pub(crate) fn credential() -> Value {
    rules(&[(&exactly_one(&["secretKeyRef", "env"]), "a credential has exactly one of secretKeyRef and env")])
}

/// A reference to an environment variable.
pub(crate) fn variable() -> Value {
    rules(&[(r"self.matches(r'^\$\{[A-Za-z_][A-Za-z0-9_]*\}$')", VARIABLE_MESSAGE)])
}

pub(crate) fn pem_source() -> Value {
    rules(&[(&exactly_one(&["secretKeyRef", "path"]), "a PEM text has exactly one of secretKeyRef and path")])
}

pub(crate) fn auth() -> Value {
    rules(&[(
        &exactly_one(&["bearer", "basic", "header"]),
        "auth has exactly one of bearer, basic and header",
    )])
}

pub(crate) fn replication() -> Value {
    rules(&[
        (
            "!(has(self.enabled) && self.enabled) || has(self.replicaUrl)",
            "replication needs replicaUrl: the place the copies go to, such as s3://bucket/prefix",
        ),
        (
            "!has(self.replicaUrl) || ['s3://', 'gcs://', 'abs://', 'sftp://', 'file://'].exists(s, self.replicaUrl.startsWith(s))",
            "replicaUrl begins with s3://, gcs://, abs://, sftp:// or file://",
        ),
        (
            "!has(self.drill) || (has(self.enabled) && self.enabled && has(self.replicaUrl) && !self.replicaUrl.startsWith('file://'))",
            DRILL_MESSAGE,
        ),
    ])
}

pub(crate) fn drill() -> Value {
    let short = SHORT_FORMS.map(|schedule| format!("'{schedule}'")).join(", ");
    let rule = format!(
        "self.schedule in [{short}] || self.schedule.matches('^[0-9A-Za-z*,/-]+( [0-9A-Za-z*,/-]+){{4}}$')"
    );
    rules(&[(&rule, SCHEDULE_MESSAGE)])
}

pub(crate) fn pipeline_spec() -> Value {
    let replicated = "has(self.replication) && has(self.replication.enabled) && self.replication.enabled";
    let storage = |field: &str, value: &str| {
        format!("has(self.storage) && has(self.storage.{field}) && self.storage.{field} == {value}")
    };
    let fixed = |field: &str, absent: &str| {
        let side = |this: &str| {
            format!(
                "(has({this}.storage) && has({this}.storage.{field}) ? {this}.storage.{field} : {absent})"
            )
        };
        format!("{} == {}", side("self"), side("oldSelf"))
    };
    rules(&[
        (
            "!has(self.replicas) || self.replicas <= 1",
            "replicas is 0 or 1: one pod holds all shards; give it more cores by resources",
        ),
        (
            &format!("!({}) || ({replicated})", storage("ephemeral", "true")),
            "storage.ephemeral needs replication.enabled: true, else every restart loses the data",
        ),
        (
            &format!("!({}) || ({replicated})", storage("onNodeLoss", "'Replace'")),
            "storage.onNodeLoss: Replace needs replication.enabled: true to restore from; else write Wait",
        ),
        (
            &format!(
                "!(has(self.delivery) && has(self.delivery.after) && self.delivery.after == 'replicated') || ({replicated})"
            ),
            "delivery.after: replicated needs replication.enabled: true; else write committed",
        ),
        (
            &fixed("storageClassName", "''"),
            "storage.storageClassName is fixed once the volume is there: make a new Pipeline, or put the old value back",
        ),
        (
            &fixed("accessMode", &format!("'{ACCESS_MODE}'")),
            "storage.accessMode is fixed once the volume is there: make a new Pipeline, or put the old value back",
        ),
        (
            &fixed("ephemeral", "false"),
            "storage.ephemeral is fixed once the pod is there: make a new Pipeline with this one's replication.identity, or put the old value back",
        ),
        (
            "!has(oldSelf.storage) || !has(oldSelf.storage.size) || (has(self.storage) && has(self.storage.size) && quantity(self.storage.size).compareTo(quantity(oldSelf.storage.size)) >= 0)",
            "storage.size can only grow: a volume does not shrink; write at least the old size",
        ),
    ])
}

/// Rules on the root of a Pipeline. `shardCount` may differ from before only when it goes back to what the data
/// has, or with consent for just this change while none is under way. The way back is open at any time: where it comes
/// too late, the status says so. Without known data any number will do: a worker that finds other shards says what to write.
pub(crate) fn pipeline_root() -> Value {
    let count = |this: &str| {
        format!(
            "(has({this}.spec.storage) && has({this}.spec.storage.shardCount) ? {this}.spec.storage.shardCount : {SHARD_COUNT})"
        )
    };
    let (new, old) = (count("self"), count("oldSelf"));
    let active: Vec<String> = RESHARD_PHASES_ACTIVE.iter().map(|phase| format!("'{phase}'")).collect();
    let guard = format!(
        "{new} == {old} || !(has(self.status) && has(self.status.layout)) \
         || self.status.layout.shardCount == {new} \
         || (has(self.spec.storage) && has(self.spec.storage.reshard) \
         && self.spec.storage.reshard.fromShardCount == self.status.layout.shardCount \
         && self.spec.storage.reshard.toShardCount == {new} \
         && !(has(self.status) && has(self.status.reshard) && self.status.reshard.phase in [{}]))",
        active.join(", ")
    );
    rules(&[
        (
            "size(self.metadata.name) <= 52 && self.metadata.name.matches('^[a-z]([a-z0-9-]*[a-z0-9])?$')",
            "the name of a Pipeline has at most 52 lower-case letters, digits and -, a letter first: its pods add a suffix",
        ),
        (
            &guard,
            "storage.shardCount cannot simply be edited: the data must be moved. Add storage.reshard: {fromShardCount: <status.layout.shardCount>, toShardCount: <the new number>} in the same change, or put the old number back; while a re-shard runs, wait for its end",
        ),
    ])
}

/// Rules on the root of a stand-alone child.
pub(crate) fn child_root() -> Value {
    rules(&[
        (
            "size(self.metadata.name) <= 63 && self.metadata.name.matches('^[a-z][a-z0-9-]*$')",
            "the name is used in queries and results: at most 63 lower-case letters, digits and -, a letter first",
        ),
        (
            "self.spec.pipelineRef.name == oldSelf.spec.pipelineRef.name",
            "spec.pipelineRef cannot be changed: delete this object and create it anew for the other Pipeline",
        ),
    ])
}
