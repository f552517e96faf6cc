//! Sources, sinks and joins: the fields that each kind needs, and those that exclude each other.

use super::*;

#[test]
fn sources_have_one_kind_and_what_it_needs() {
    check(
        &pipeline(
            r#"sources:
- {name: none}
- {name: both, http: {addr: ":0"}, file: {path: x.csv, topic: t, keyColumns: [id]}}
- {name: misspelt, htpp: {addr: ":0"}}
- {name: topic, http: {addr: ":0"}, topic: orders}
- {name: keyless, file: {path: x.csv, topic: orders}}
- {name: bare, file: {path: x.csv}}
- {name: keys, file: {path: x.jsonl, keyColumns: [id]}}
- {name: stdin, file: {path: "-"}}
- {name: again, file: {path: "-", format: ndjson}}
- {name: text, file: {path: data.txt, topic: orders, keyColumns: [id]}}
- {name: rate, file: {path: x.ndjson, rate: 0}}
- {name: acked, http: {addr: ":0"}, ack: replicated}
- {name: told, file: {path: x.ndjson}, ack: replicated}
- {name: tiny, http: {addr: ":0", maxBodyBytes: 10}}"#,
        ),
        expect![[r#"
            0 spec.sources[2].htpp: UnknownField: unknown field "htpp"; did you mean "http"?
            0 spec.sources[10].file.rate: OutOfRange: got 0, allowed 1 to 10000000
            0 spec.sources[0]: NotExactlyOne: says nothing to read; add exactly one of http, file, api and kafka
            0 spec.sources[1]: NotExactlyOne: got http and file; a source has exactly one, make others of the rest
            0 spec.sources[3].topic: Conflict: topic belongs to api and kafka sources; write http.topics instead
            0 spec.sources[4].file.keyColumns: Conflict: topic needs keyColumns; add the columns whose values are the key, such as keyColumns: [id]
            0 spec.sources[5].file.topic: Conflict: a csv file needs topic and keyColumns; its lines carry neither topic nor key
            0 spec.sources[6].file.keyColumns: Conflict: keyColumns needs topic; without it each line brings its own topic and key
            0 spec.sources[7].file.format: Conflict: standard input has no ending that says its format; add format: csv or format: ndjson
            0 spec.sources[8].file.path: Conflict: sources "stdin" and "again" both read standard input; give one a file
            0 spec.sources[9].file.format: Conflict: the ending of "data.txt" says no format (.csv, .ndjson, .jsonl); add format: csv or format: ndjson
            0 spec.sources[11].ack: Conflict: replicated needs replication.enabled: true in the Pipeline; else write committed
            0 spec.sources[12].ack: Conflict: an api or file source acknowledges nothing to anybody: how far it is lies with its rows, and both come back together, so replicated would change nothing; write committed
            0 spec.sources[13].http.maxBodyBytes: OutOfRange: got 10 bytes, allowed at least 64
        "#]],
    );
}

#[test]
fn sinks_have_one_kind_and_what_it_needs() {
    check(
        &pipeline(
            r#"sinks:
- {name: none, joins: []}
- {name: both, sse: {addr: ":0"}, stdout: {}}
- {name: origins, sse: {addr: ":0", corsOrigins: ["*", "https://a.example", "a.example/x"], heartbeatInterval: 0s, maxClients: 0}}
- {name: post, http: {url: "ftp://x", headers: {Authorization: x, "a b": y}, auth: {bearer: {}, basic: {username: {env: "${U}"}, password: {env: "${P}", secretKeyRef: {name: s, key: k}}}}}}
- name: own
  http:
    url: "https://x.example/"
    headers: {Content-Length: "3", idempotency-key: k, Content-Type: text/plain, Host: h, TE: trailers, X-Team: blue}
    auth: {header: {name: Connection, value: {env: "${C}"}}}
- {name: creds, http: {url: "https://me:pw@x.example/"}}
- {name: topic, kafka: {brokers: "a:9092, b", topic: t, tls: {cert: {path: c.pem}}}}"#,
        ),
        expect![[r#"
            0 spec.sinks[2].sse.maxClients: OutOfRange: got 0, allowed 1 to 1000000
            0 spec.sinks[0]: NotExactlyOne: says nowhere to deliver to; add exactly one of sse, stdout, http, kafka and sqlite
            0 spec.sinks[1]: NotExactlyOne: got sse and stdout; a sink has exactly one, make others of the rest
            0 spec.sinks[2].sse.corsOrigins[2]: InvalidValue: got "a.example/x", write scheme and host as a browser sends them, such as "https://app.example.com"
            0 spec.sinks[2].sse.heartbeatInterval: InvalidDuration: got "0s", allowed only more than zero
            0 spec.sinks[3].http.url: InvalidValue: is no URL; write for example https://api.example.com/orders
            0 spec.sinks[3].http.headers.Authorization: InvalidValue: a credential has no place among the headers; use auth, which takes a Secret or ${ENV}
            0 spec.sinks[3].http.headers["a b"]: InvalidName: got "a b", which is no name of a header; write for example "Accept"
            0 spec.sinks[3].http.auth: NotExactlyOne: got bearer and basic; write exactly one of bearer, basic, header
            0 spec.sinks[3].http.auth.bearer: NotExactlyOne: got none of secretKeyRef, env; write exactly one
            0 spec.sinks[3].http.auth.basic.password: NotExactlyOne: got secretKeyRef and env; write exactly one of secretKeyRef, env
            0 spec.sinks[4].http.headers.Content-Length: Conflict: got "Content-Length", which the sink writes itself: each request has its own; remove it
            0 spec.sinks[4].http.headers.Content-Type: Conflict: got "Content-Type", which the sink writes itself: results are application/json; remove it
            0 spec.sinks[4].http.headers.Host: Conflict: got "Host", which the sink writes itself: each request has its own; remove it
            0 spec.sinks[4].http.headers.TE: Conflict: got "TE", which the sink writes itself: it is about the connection, which the worker keeps; remove it
            0 spec.sinks[4].http.headers.idempotency-key: Conflict: got "idempotency-key", which the sink writes itself: each request has a key of its own, by which the server knows a result that comes twice; remove it
            0 spec.sinks[4].http.auth.header.name: Conflict: got "Connection", which the sink writes itself: it is about the connection, which the worker keeps; remove it
            0 spec.sinks[5].http.url: InvalidValue: holds a user or password; remove it and use auth, which takes a Secret or ${ENV}
            0 spec.sinks[6].kafka.brokers: InvalidAddress: got "b", write host:port, with commas between several, such as "kafka-0:9092,kafka-1:9092"
            0 spec.sinks[6].kafka.tls: Conflict: cert and key go together; add the other or remove both
        "#]],
    );
}

#[test]
fn connectors_need_their_companions() {
    check(
        &pipeline(
            r#"sources:
- {name: a, api: {url: "https://x.example", interval: 30s, keyPath: id}}
- {name: b, topic: b, api: {url: "https://x.example", interval: 30s, keyPath: id, body: x, watermark: {strategy: cursor, path: next}, pagination: {type: offset, path: x, sizeParam: limit}}}
- {name: c, topic: c, api: {url: "${URL}", interval: 0s, keyPath: id, watermark: {strategy: etag, param: x}, pagination: {type: cursor}, rateLimit: {requests: 5, per: 0s}}}
- {name: d, kafka: {brokers: "k:9092", topics: [orders.v1, "^x.*", plain], topicNames: {other: not-plain}}}
- {name: e, topic: e, kafka: {brokers: "k:9092", topics: [orders.v1], topicNames: {orders.v1: e}}}
- {name: f, topic: f, api: {url: "https://x.example", interval: 30, keyPath: id, rateLimit: {requests: 0, per: 1s}}}
- {name: g, topic: g, api: {url: "https://x.example", interval: 30s, keyPath: "@keys.0", responsePath: "a.@values", watermark: {strategy: etag, maxSkew: 1h}, pagination: {type: nextUrl, hosts: [b.example, "b.example:8443", "[::1]:80", "https://c.example", "d.example/x", "e:99999", "*.f"]}}}
- {name: h, topic: h, api: {url: "https://x.example", interval: 30s, keyPath: id, responsePath: "a.@values.0", watermark: {strategy: timestamp, path: at, param: since, maxSkew: 0s}, pagination: {type: link, hosts: [b], morePath: "a.@dig:b", totalPath: "@group"}}}
- {name: i, topic: i, api: {url: "https://x.example", interval: 30s, keyPath: id, pagination: {type: page, param: p, hosts: [b]}}}"#,
        ),
        expect![[r#"
            0 spec.sources[5].api.interval: InvalidDuration: got "30", write a unit: "30s", "30ms", "30m" or "30h"
            0 spec.sources[5].api.rateLimit.requests: OutOfRange: got 0, allowed 1 to 1000000
            0 spec.sources[0].topic: Conflict: an api source needs a topic to fill; add topic beside api
            0 spec.sources[1].api.body: Conflict: a GET has no body; remove it or write method: POST
            0 spec.sources[1].api.watermark.param: Conflict: strategy cursor needs param; add api.watermark.param
            0 spec.sources[1].api.pagination.param: Conflict: type offset needs param; add api.pagination.param
            0 spec.sources[1].api.pagination.path: Conflict: type offset has no path; remove it
            0 spec.sources[1].api.pagination.size: Conflict: type offset needs size, the records on a page; add api.pagination.size
            0 spec.sources[1].api.pagination.sizeParam: Conflict: sizeParam needs size, what it sends; add api.pagination.size
            0 spec.sources[2].api.interval: InvalidDuration: got "0s", allowed only more than zero
            0 spec.sources[2].api.watermark.param: Conflict: strategy etag has no param; remove it or write strategy: timestamp or cursor
            0 spec.sources[2].api.pagination.param: Conflict: type cursor needs param; add api.pagination.param
            0 spec.sources[2].api.pagination.path: Conflict: type cursor needs path; add api.pagination.path
            0 spec.sources[2].api.rateLimit.per: InvalidDuration: got "0s", allowed only more than zero
            0 spec.sources[3].kafka.topicNames.other: InvalidName: got "not-plain", a topic is a table: letters, digits and _, a letter first; write for example "not_plain"
            0 spec.sources[3].kafka.topics[0]: InvalidName: the Kafka topic "orders.v1" cannot be a table of that name; add topicNames: {orders.v1: orders_v1}
            0 spec.sources[4].kafka.topicNames: Conflict: topic sends all records to one topic; remove topic or topicNames
            0 spec.sources[6].api.keyPath: InvalidValue: got @keys, a modifier of gjson that is not there; there are @this, @valid, @flatten, @join, @reverse, @pretty and @ugly, and a field of that name is written \@keys
            0 spec.sources[6].api.watermark.maxSkew: Conflict: strategy etag has no maxSkew; remove it or write strategy: timestamp
            0 spec.sources[6].api.pagination.path: Conflict: type nextUrl needs path; add api.pagination.path
            0 spec.sources[6].api.pagination.hosts[3]: InvalidAddress: got "https://c.example", write host or host:port, such as "api.example.com"
            0 spec.sources[6].api.pagination.hosts[4]: InvalidAddress: got "d.example/x", write host or host:port, such as "api.example.com"
            0 spec.sources[6].api.pagination.hosts[5]: InvalidAddress: got "e:99999", write host or host:port, such as "api.example.com"
            0 spec.sources[6].api.pagination.hosts[6]: InvalidAddress: got "*.f", write host or host:port, such as "api.example.com"
            0 spec.sources[7].api.responsePath: InvalidValue: got @values, a modifier of gjson that is not there; end responsePath in it to have the values of an object as records, and a field of that name is written \@values
            0 spec.sources[7].api.pagination.morePath: InvalidValue: got @dig, a modifier of gjson that is not there; there are @this, @valid, @flatten, @join, @reverse, @pretty and @ugly, and a field of that name is written \@dig
            0 spec.sources[7].api.pagination.totalPath: InvalidValue: got @group, a modifier of gjson that is not there; there are @this, @valid, @flatten, @join, @reverse, @pretty and @ugly, and a field of that name is written \@group
            0 spec.sources[8].api.pagination.hosts: Conflict: type page stays on the server of url; remove it or write type: link or nextUrl
        "#]],
    );
}

#[test]
fn kafka_needs_what_its_clients_need() {
    check(
        &pipeline(
            r#"sources:
- {name: a, topic: t, kafka: {brokers: "k:9092", topics: ["^(", "a b", ..], sasl: {mechanism: PLAIN, username: {env: "${U}"}, password: {}}}}
- {name: b, kafka: {brokers: ":9092,k", topics: [t], groupId: ""}}
- {name: c, kafka: {brokers: "k:9092", topics: [t], tls: {serverName: k}}}
- {name: p, kafka: {brokers: "k:9092", topics: [t], keyPath: after.id, recordKeyPath: id}}
sinks:
- {name: s, kafka: {brokers: "k:9092", topic: "a/b", sasl: {mechanism: SCRAM-SHA-1, username: {env: "${U}"}, password: {env: "${P}"}}}}
- {name: t, kafka: {brokers: "k:9092", topic: "a/b", sasl: {mechanism: SCRAM-SHA-256, username: {env: "${U}"}, password: {env: "${P}"}}}}"#,
        ),
        expect![[r#"
            0 spec.sinks[0].kafka.sasl.mechanism: InvalidValue: got "SCRAM-SHA-1", allowed: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512; did you mean "SCRAM-SHA-512"?
            0 spec.sources[1].kafka.groupId: OutOfRange: got "", must not be empty
            0 spec.sources[0].kafka.topics[0]: InvalidValue: got "^(", no pattern (unclosed group); write for example "^orders[.].*$"
            0 spec.sources[0].kafka.topics[1]: InvalidName: got "a b", a Kafka topic has letters, digits, '.', '_' and '-', 249 at most
            0 spec.sources[0].kafka.topics[2]: InvalidName: got "..", a Kafka topic has letters, digits, '.', '_' and '-', 249 at most
            0 spec.sources[0].kafka.sasl.password: NotExactlyOne: got none of secretKeyRef, env; write exactly one
            0 spec.sources[0].kafka.sasl.mechanism: Conflict: PLAIN sends the password itself; add kafka.tls, or write SCRAM-SHA-256 or SCRAM-SHA-512
            0 spec.sources[1].kafka.brokers: InvalidAddress: got ":9092", write host:port, with commas between several, such as "kafka-0:9092,kafka-1:9092"
            0 spec.sources[1].kafka.brokers: InvalidAddress: got "k", write host:port, with commas between several, such as "kafka-0:9092,kafka-1:9092"
            0 spec.sources[2].kafka.tls.serverName: Conflict: each broker is checked by the host that it tells; remove serverName, and let the brokers advertise the names of their certificates
            0 spec.sources[3].kafka.recordKeyPath: Conflict: a message has one key; remove keyPath, which takes it from the payload, or recordKeyPath, which takes it from the record's own key
            0 spec.sinks[1].kafka.topic: InvalidName: got "a/b", a Kafka topic has letters, digits, '.', '_' and '-', 249 at most
        "#]],
    );
}

#[test]
fn a_kafka_topic_of_several_joins_is_a_warning() {
    check(
        &pipeline(
            r#"joins:
- {name: a, query: "SELECT 1", sinks: [one, both]}
- {name: b, query: "SELECT 1", sinks: [both]}
sinks:
- {name: one, kafka: {brokers: "k:9092", topic: one}}
- {name: both, kafka: {brokers: "k:9092", topic: both}}"#,
        ),
        expect![[r#"
            0 spec.sinks[1].kafka.topic: warning Conflict: the Kafka topic "both" takes several joins, and results of equal keys are records of one key: compaction would keep one of them; give each join a sink with a topic of its own
        "#]],
    );
}

#[test]
fn results_keep_their_own_fields() {
    check(
        &pipeline(
            r#"joins:
- {name: a, query: " ", resultKey: rows, sinks: [out]}
sinks: [{name: out, stdout: {}}]"#,
        ),
        expect![[r#"
            0 spec.joins[0].query: InvalidValue: got an empty query; write one SELECT
            0 spec.joins[0].resultKey: InvalidName: got "rows", which is a field of every result; choose another name
        "#]],
    );
}

#[test]
fn what_connectors_cannot_do_together_is_said() {
    check(
        &pipeline(
            r#"admin: {addr: ":0", auth: {bearer: {}}, clientTimeout: 0s}
sources:
- {name: api, topic: items, api: {url: "http://a/", interval: 1s, keyPath: id, detectDeletes: true}}
- {name: also, topic: items, api: {url: "http://a/", interval: 1s, keyPath: id}}
- {name: new, topic: news, api: {url: "http://a/", interval: 1s, keyPath: id, detectDeletes: true, watermark: {strategy: timestamp, path: at, param: since}}}
- {name: push, http: {addr: ":0", topics: [t], tls: {cert: {path: a, secretKeyRef: {name: s, key: k}}, key: {path: b}, clientCa: {}}}}
joins:
- {name: j, query: SELECT key FROM items, sinks: [a, b]}
sinks:
- {name: a, sqlite: {path: out.db}}
- {name: b, sqlite: {path: out.db}}"#,
        ),
        expect![[r#"
            0 spec.sources[1]: Conflict: detectDeletes of "api" removes every row of "items" that its API does not have, also those of "also"; give them topics of their own
            0 spec.sources[2].api.detectDeletes: Conflict: a poll that asks only for what is new does not show what is gone; remove it or the watermark
            0 spec.sources[3].http.tls.cert: NotExactlyOne: got secretKeyRef and path; write exactly one of secretKeyRef, path
            0 spec.sources[3].http.tls.clientCa: NotExactlyOne: got none of secretKeyRef, path; write exactly one
            0 spec.sinks[1].sqlite.path: Conflict: sinks "a" and "b" both write this file; give one another, or let one take all joins
            0 spec.admin.auth.bearer: NotExactlyOne: got none of secretKeyRef, env; write exactly one
            0 spec.admin.clientTimeout: InvalidDuration: got "0s", allowed only more than zero
        "#]],
    );
}
