//! The settings of a Pipeline: their bounds, and those that need each other.

use super::*;

#[test]
fn settings_keep_their_bounds() {
    check(
        &pipeline(
            r#"replicas: 2
storage: {flushInterval: 5m, maxBytes: 64Ki, ephemeral: true, onNodeLoss: Replace, reshard: {fromShardCount: 8, toShardCount: 8}}
retention: {duration: 100ms, cleanInterval: 0s, tombstoneDuration: 100000h}
delivery: {after: replicated, outboxMaxBytes: 1Ki, dlq: {retryInterval: 10m}}
replication: {replicaUrl: "http://x", identity: "../x", restore: {timestamp: yesterday, fromUrl: "s3://"}}
admin: {addr: "9090"}"#,
        ),
        expect![[r#"
            0 spec.retention.tombstoneDuration: InvalidDuration: got "100000h", allowed at most "87600h" (ten years)
            0 spec.admin.addr: InvalidAddress: got "9090", which lacks a colon; write ":9090"
            0 spec.replicas: OutOfRange: got 2, allowed 0 or 1: one pod holds all shards; give it more cores by resources
            0 spec.storage.reshard: Conflict: from and to are both 8; write the number of shards that the data has and the one it is to have
            0 spec.storage.flushInterval: InvalidDuration: got "5m", allowed at most "1m"
            0 spec.storage.maxBytes: OutOfRange: got 65536 bytes, allowed at least 1048576
            0 spec.retention.duration: InvalidDuration: got "100ms", allowed at least "1s"
            0 spec.retention.cleanInterval: InvalidDuration: got "0s", allowed only more than zero
            0 spec.delivery.dlq.maxBackoff: Conflict: got "5m", shorter than retryInterval "10m"; write at least as long a time
            0 spec.delivery.outboxMaxBytes: OutOfRange: got 1024 bytes, allowed at least 1048576
            0 spec.replication.replicaUrl: InvalidValue: got "http://x", allowed: s3://…, gcs://…, abs://…, sftp://… or file://…
            0 spec.replication.restore.fromUrl: InvalidValue: got "s3://", allowed: s3://…, gcs://…, abs://…, sftp://… or file://…
            0 spec.replication.restore.timestamp: InvalidValue: got "yesterday", write a time with its zone, such as "2026-05-01T12:00:00Z"
            0 spec.replication.identity: InvalidValue: got "../x", which is no path; write for example "production/orders"
            0 spec.storage.ephemeral: Conflict: needs replication.enabled: true, else every restart loses the data
            0 spec.storage.onNodeLoss: Conflict: Replace needs replication.enabled: true to restore from; else write Wait
            0 spec.delivery.after: Conflict: replicated needs replication.enabled: true; else write committed
        "#]],
    );
    check(
        &pipeline(
            "storage: {shardCount: 4, reshard: {fromShardCount: 2, toShardCount: 8, strategy: Online}}",
        ),
        expect![[r#"
            0 spec.storage.reshard.toShardCount: Conflict: the data is to have 8 shards by this, and 4 by storage.shardCount; write the same number in both, or take storage.reshard away
        "#]],
    );
    check(
        &pipeline("replication: {enabled: true}\nstorage: {ephemeral: true, onNodeLoss: Replace}"),
        expect![[r#"
            0 spec.replication.enabled: Conflict: replication is enabled without a replicaUrl; add the place the copies go to, such as replicaUrl: s3://bucket/prefix
        "#]],
    );
}

#[test]
fn a_join_is_not_run_again_more_often_than_each_second() {
    check(
        &pipeline(
            r#"joins: [{name: aging, query: SELECT 1 AS id, refresh: 500ms, sinks: [live]}]
sinks: [{name: live, sse: {addr: ":8080"}}]"#,
        ),
        expect![[r#"
            0 spec.joins[0].refresh: InvalidDuration: got "500ms", allowed at least "1s"
        "#]],
    );
}

#[test]
fn an_s3_store_is_asked_to_encrypt_by_keys_that_it_can_have() {
    let encrypted = |url: &str, encryption: &str| {
        pipeline(&format!(
            "replication: {{enabled: true, replicaUrl: {url}, serverSideEncryption: {{{encryption}}}}}"
        ))
    };
    check(&encrypted("s3://b/x", "algorithm: sse-c"), expect![[r#""#]]);
    check(&encrypted("s3://b/x", "algorithm: aws:kms, keyId: alias/k"), expect![[r#""#]]);
    check(
        &encrypted("gcs://b/x", "algorithm: sse-c"),
        expect![[r#"
        0 spec.replication.serverSideEncryption: InvalidValue: got algorithm "sse-c" without a keyId, allowed: aws:kms with a keyId, or sse-c without one, on s3://; for others remove this and set the default encryption of the bucket
    "#]],
    );
    check(
        &encrypted("s3://b/x", "algorithm: sse-c, keyId: alias/k"),
        expect![[r#"
        0 spec.replication.serverSideEncryption: InvalidValue: got algorithm "sse-c" with a keyId, allowed: aws:kms with a keyId, or sse-c without one, on s3://; for others remove this and set the default encryption of the bucket
    "#]],
    );
    check(
        &encrypted("s3://b/x", "algorithm: AES256"),
        expect![[r#"
        0 spec.replication.serverSideEncryption: InvalidValue: got algorithm "AES256" without a keyId, allowed: aws:kms with a keyId, or sse-c without one, on s3://; for others remove this and set the default encryption of the bucket
    "#]],
    );
}

#[test]
fn listeners_do_not_meet() {
    check(
        &pipeline(
            r#"sources:
- {name: a, http: {addr: ":9090"}}
- {name: b, http: {addr: "127.0.0.1:8080"}}
- {name: c, http: {addr: ":0"}}
sinks:
- {name: d, sse: {addr: "localhost:8080"}}
- {name: e, sse: {addr: ":0"}}
- {name: f, sse: {addr: "10.0.0.1:8080"}}
- {name: g, sse: {addr: ":99999"}}"#,
        ),
        expect![[r#"
            0 spec.sources[0].http.addr: DuplicateAddress: source "a" and spec.admin both listen on port 9090; give one another port
            0 spec.sinks[0].sse.addr: DuplicateAddress: sink "d" and source "b" both listen on port 8080; give one another port
            0 spec.sinks[3].sse.addr: InvalidAddress: got port 99999, allowed 0 to 65535
        "#]],
    );
}
