//! The plan that a whole manifest becomes.

use super::*;

use expect_test::expect_file;

const ORDERS: &str = r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: orders}
spec:
  storage: {shardCount: 8, dataDir: ./data}
  sources:
    - name: ingest
      http: {addr: ":8080", topics: [orders, customers]}
  joins:
    - name: enriched
      query: |
        SELECT o.key AS order_id, json_extract(o.payload,'$.amount') AS amount, json_extract(c.payload,'$.name') AS customer
        FROM orders o LEFT JOIN customers c ON c.key = json_extract(o.payload,'$.customer_id')
      keyColumn: order_id
      sinks: [live]
  sinks:
    - name: live
      sse: {addr: ":9100"}
---
apiVersion: litejoin.io/v1alpha1
kind: Sink
metadata: {name: console}
spec:
  pipelineRef: {name: orders}
  joins: [enriched]        # a stand-alone sink may say what it takes; a join may name its sinks; both add up
  stdout: {}
"#;

#[test]
fn the_first_example_becomes_its_plan() {
    let (plan, warnings) = validate(&documents(ORDERS)).unwrap();
    assert_eq!(warnings, []);
    expect_file!["orders.txt"].assert_debug_eq(&plan);
}
