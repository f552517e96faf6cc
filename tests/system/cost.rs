//! The cost of one changed row, counted in steps of SQLite's virtual machine: the same however many rows there are,
//! for each class of query that is kept current by key, and little more for each further shard. Steps are exact, so
//! nothing here depends on the machine.

use std::collections::BTreeMap;

use litejoin_tests::ingest::message;
use litejoin_tests::oracle::Oracle;
use litejoin_tests::repetition::is_long;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite};
use serde_json::{Value, json};

/// A join of each class, all in one pipeline. Result keys are the first columns.
const JOINS: [(&str, &str); 27] = [
    ("projection", "SELECT key, payload->>'amount' AS amount FROM orders WHERE payload->>'amount' >= 0"),
    (
        "inner_join",
        "SELECT o.key AS id, o.payload->>'amount' AS amount, c.payload->>'name' AS name
         FROM orders o JOIN customers c ON c.key = o.payload->>'customer'",
    ),
    (
        "inner_join_by_customer",
        "SELECT c.key AS id, o.key AS number, c.payload->>'name' AS name
         FROM orders o JOIN customers c ON c.key = o.payload->>'customer'",
    ),
    (
        "left_join",
        "SELECT o.key AS id, c.payload->>'name' AS name
         FROM orders o LEFT JOIN customers c ON c.key = o.payload->>'customer'",
    ),
    (
        "left_join_of_many",
        "SELECT c.key AS id, o.key AS number FROM customers c LEFT JOIN orders o ON o.payload->>'customer' = c.key",
    ),
    (
        "anti_join",
        "SELECT o.key AS id FROM orders o LEFT JOIN payments p ON p.payload->>'number' = o.key WHERE p.key IS NULL",
    ),
    (
        "full_join",
        "SELECT coalesce(o.key, CAST(p.payload->>'number' AS TEXT)) AS id, o.payload->>'amount' AS amount,
             p.payload->>'cents' AS cents
         FROM orders o FULL JOIN payments p ON CAST(p.payload->>'number' AS TEXT) = o.key",
    ),
    (
        "self_join",
        "SELECT a.key AS id, b.key AS earlier
         FROM orders a JOIN orders b ON b.payload->>'customer' = a.payload->>'customer' AND b.key < a.key",
    ),
    (
        "chain",
        "SELECT o.key AS id, c.payload->>'name' AS name, r.payload->>'name' AS region
         FROM orders o JOIN customers c ON c.key = o.payload->>'customer'
         JOIN regions r ON r.key = c.payload->>'region'",
    ),
    (
        "star",
        "SELECT o.key AS id, c.payload->>'name' AS name, p.payload->>'cents' AS cents
         FROM orders o LEFT JOIN customers c ON c.key = o.payload->>'customer'
         LEFT JOIN payments p ON p.payload->>'number' = o.key",
    ),
    (
        "group_by",
        "SELECT payload->>'customer' AS customer, count(*) AS orders, sum(payload->>'amount') AS total
         FROM orders GROUP BY 1 HAVING count(*) > 5",
    ),
    (
        "group_by_of_join",
        "SELECT c.payload->>'region' AS region, count(*) AS orders, max(o.payload->>'amount') AS most
         FROM orders o JOIN customers c ON c.key = o.payload->>'customer' GROUP BY c.payload->>'region'",
    ),
    ("distinct_rows", "SELECT DISTINCT payload->>'customer' AS customer FROM orders"),
    (
        "union_of_two",
        "SELECT payload->>'customer' AS id FROM orders UNION SELECT key AS id FROM customers",
    ),
    ("except", "SELECT key AS id FROM orders EXCEPT SELECT payload->>'number' AS id FROM payments"),
    (
        "exists",
        "SELECT c.key AS id FROM customers c
         WHERE EXISTS (SELECT 1 FROM orders o WHERE o.payload->>'customer' = c.key AND o.payload->>'amount' > 5)",
    ),
    (
        "not_exists",
        "SELECT o.key AS id FROM orders o
         WHERE NOT EXISTS (SELECT 1 FROM payments p WHERE p.payload->>'number' = o.key)",
    ),
    (
        "within",
        "SELECT o.key AS id FROM orders o
         WHERE o.payload->>'customer' IN (SELECT json_extract(c.payload, '$.id') FROM customers c)",
    ),
    (
        "scalar_subquery",
        "SELECT c.key AS id, (SELECT sum(o.payload->>'amount') FROM orders o WHERE o.payload->>'customer' = c.key) AS total
         FROM customers c",
    ),
    (
        "groups_in_from",
        "SELECT c.key AS id, g.orders FROM customers c
         LEFT JOIN (SELECT payload->>'customer' AS customer, count(*) AS orders FROM orders GROUP BY 1) g
         ON g.customer = c.key",
    ),
    (
        "common_table_expression",
        "WITH paid AS (SELECT payload->>'number' AS number, payload->>'cents' AS cents FROM payments)
         SELECT o.key AS id, paid.cents FROM orders o JOIN paid ON paid.number = o.key",
    ),
    (
        "window_function",
        "SELECT payload->>'customer' AS customer, key AS id,
             sum(payload->>'amount') OVER (PARTITION BY payload->>'customer' ORDER BY key) AS running
         FROM orders",
    ),
    ("list", "SELECT o.key AS id, e.value AS line FROM orders o, json_each(o.payload, '$.lines') e"),
    (
        "list_of_join",
        "SELECT o.key AS id, c.payload->>'name' AS name, e.value AS line
         FROM orders o JOIN customers c ON c.key = o.payload->>'customer', json_each(o.payload, '$.lines') e",
    ),
    ("of_a_join", "SELECT id, name FROM inner_join WHERE amount > 3"),
    (
        "join_with_a_join",
        "SELECT p.key AS payment, j.name FROM payments p LEFT JOIN inner_join j ON j.id = p.payload->>'number'",
    ),
    ("group_by_of_a_join", "SELECT name, count(*) AS orders FROM inner_join GROUP BY name"),
];

const TOPICS: [&str; 4] = ["regions", "customers", "orders", "payments"];

/// Orders of a customer, and customers of a region.
const FAN_OUT: u64 = 10;

/// The cost with the most rows, as a multiple of the cost with the fewest, may not exceed this.
const GROWTH_MAX: f64 = 1.5;

/// Steps that each further shard may add to a look-up.
const STEPS_A_SHARD_MAX: u64 = 40;

/// Messages in one body.
const BATCH: usize = 5_000;

/// Steps and look-ups.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    steps: u64,
    probes: u64,
}

/// Costs by join and by changed topic.
type Costs = BTreeMap<(&'static str, &'static str), Cost>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_row_costs_the_same_however_many_rows_there_are() {
    let orders: &[u64] = if is_long() { &[1_000, 100_000, 1_000_000] } else { &[1_000, 100_000] };
    let mut measured = Vec::new();
    for count in orders {
        measured.push(measure(*count, 8).await);
    }
    let mut wrong = Vec::new();
    for (what, _) in &measured[0] {
        let steps: Vec<u64> = measured.iter().map(|costs| costs[what].steps).collect();
        let (least, most) = (steps.iter().min().unwrap_or(&0), steps.iter().max().unwrap_or(&0));
        if *most as f64 > *least as f64 * GROWTH_MAX {
            wrong.push(format!("{} after {}: {steps:?} steps for {orders:?} orders", what.0, what.1));
        }
    }
    assert!(wrong.is_empty(), "cost grows with the rows that are stored:\n{}", wrong.join("\n"));
    eprintln!("{}", compared(&measured[0], &measured[measured.len() - 1]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_further_shard_adds_a_few_steps_to_a_look_up() {
    let one = measure(1_000, 1).await;
    let mut wrong = Vec::new();
    for shard_count in [2, 8] {
        let many = measure(1_000, shard_count).await;
        for (what, one) in &one {
            let added = many[what].steps.saturating_sub(one.steps);
            let allowed = one.probes * (shard_count - 1) * STEPS_A_SHARD_MAX;
            if added > allowed {
                wrong.push(format!(
                    "{} after {}: {} steps for {} look-ups in 1 shard, {added} more in {shard_count}, {allowed} allowed",
                    what.0, what.1, one.steps, one.probes
                ));
            }
        }
        eprintln!("1 shard and {shard_count}: {}", compared(&one, &many));
    }
    assert!(wrong.is_empty(), "shards cost too much:\n{}", wrong.join("\n"));
}

/// Prints all steps; read them with `--nocapture`.
fn compared(before: &Costs, after: &Costs) -> String {
    let sum = |costs: &Costs| costs.values().map(|cost| cost.steps).sum::<u64>();
    format!("{} changes of {} joins: {} steps, then {}", before.len(), JOINS.len(), sum(before), sum(after))
}

/// Stores so many orders with their customers and payments, and changes some rows one by one.
async fn measure(order_count: u64, shard_count: u64) -> Costs {
    let is_small = order_count <= 1_000;
    let site = WorkerSite::with(&manifest(shard_count, &JOINS, is_small));
    let worker = site.start().await;
    let mut rows = TOPICS.into_iter().flat_map(|topic| rows(topic, order_count));
    let mut before = BTreeMap::new();
    loop {
        let batch: Vec<Value> = rows.by_ref().take(BATCH).collect();
        if batch.is_empty() {
            break;
        }
        let epoch = worker.ingest().send(&batch).await;
        before = applied(&worker, epoch).await;
    }
    let mut costs = Costs::new();
    for (what, message) in changes(order_count) {
        let epoch = worker.ingest().send(&[message]).await;
        let after = applied(&worker, epoch).await;
        for (name, _) in JOINS {
            let cost = costs.entry((name, what)).or_default();
            cost.steps += after[name].steps - before[name].steps;
            cost.probes += after[name].probes - before[name].probes;
        }
        before = after;
    }
    costs.retain(|_, cost| cost.steps > 0);
    let is_keyed = |name: &str| costs.keys().any(|(join, _)| *join == name);
    let full: Vec<&str> = JOINS.into_iter().map(|(name, _)| name).filter(|name| !is_keyed(name)).collect();
    assert!(full.is_empty(), "not kept current by key: {}", full.join(", "));
    if is_small {
        assert_right(&site, &worker).await;
    }
    worker.stop().await;
    costs
}

/// Waits until every join has come to the epoch, and returns what each has cost so far.
async fn applied(worker: &Worker, epoch: u64) -> BTreeMap<String, Cost> {
    let status = until("all joins to be applied", async || {
        Some(worker.status().await).filter(|status| status["epoch"].as_u64() >= Some(epoch))
    })
    .await;
    let cost = |name: &str| {
        let join = &status["joins"][name];
        assert_eq!(join["lastError"], Value::Null, "{name}");
        let count =
            |what: &str| join[what].as_u64().unwrap_or_else(|| panic!("{name} has no {what}: {join}"));
        (name.to_owned(), Cost { steps: count("steps"), probes: count("probes") })
    };
    JOINS.iter().map(|(name, _)| cost(name)).collect()
}

/// Holds all results to SQLite.
async fn assert_right(site: &WorkerSite, worker: &Worker) {
    let oracle = Oracle::read(&site.data_dir(), TOPICS);
    for (name, query) in JOINS {
        oracle.define(name, query);
        let (_, results) = worker.snapshot("live", name, 0).await;
        results.assert_same(&oracle.results(name, query, None), name);
    }
}

/// The rows of a topic. Every second order is paid.
fn rows(topic: &str, order_count: u64) -> Box<dyn Iterator<Item = Value> + Send> {
    match topic {
        "regions" => Box::new((0..order_count / FAN_OUT / FAN_OUT).map(region)),
        "customers" => Box::new((0..order_count / FAN_OUT).map(customer)),
        "orders" => Box::new((0..order_count).map(order)),
        _ => Box::new((0..order_count).step_by(2).map(payment)),
    }
}

fn region(number: u64) -> Value {
    message("regions", &format!("r{number}"), json!({"name": format!("Region {number}")}))
}

fn customer(number: u64) -> Value {
    let (id, name) = (format!("c{number}"), format!("Customer {number}"));
    message("customers", &id, json!({"id": id, "name": name, "region": format!("r{}", number / FAN_OUT)}))
}

fn order(number: u64) -> Value {
    let customer = format!("c{}", number / FAN_OUT);
    let payload = json!({"customer": customer, "amount": number % 10, "lines": ["tea", "milk"]});
    message("orders", &format!("o{number}"), payload)
}

fn payment(number: u64) -> Value {
    message("payments", &format!("p{number}"), json!({"number": format!("o{number}"), "cents": number % 97}))
}

/// Changes of one row each, of every kind and in several places; each row ends with its first value.
fn changes(order_count: u64) -> Vec<(&'static str, Value)> {
    let with = |message: &Value, field: &str, value: Value| {
        let mut message = message.clone();
        message["payload"][field] = value;
        message
    };
    let without = |message: &Value| {
        let mut message = message.clone();
        message["payload"] = Value::Null;
        message
    };
    let mut changes = Vec::new();
    for quarter in 1..=3 {
        let customer_number = quarter * order_count / FAN_OUT / 4;
        let number = customer_number * FAN_OUT + 4;
        let (order, payment) = (order(number), payment(number));
        let (customer, region) = (customer(customer_number), region(customer_number / FAN_OUT));
        let next_customer = format!("c{}", customer_number + 1);
        let next_region = format!("r{}", customer_number / FAN_OUT + 1);
        changes.extend([
            ("orders: another amount", with(&order, "amount", json!(7))),
            ("orders: another customer", with(&order, "customer", json!(next_customer))),
            ("orders: delete", without(&order)),
            ("orders: insert", order),
            ("payments: another sum", with(&payment, "cents", json!(-1))),
            ("payments: another order", with(&payment, "number", json!(format!("o{}", number + 1)))),
            ("payments: delete", without(&payment)),
            ("payments: insert", payment),
            ("customers: another name", with(&customer, "name", json!(format!("Somebody {quarter}")))),
            ("customers: another region", with(&customer, "region", json!(next_region))),
            ("customers: delete", without(&customer)),
            ("customers: insert", customer),
            ("regions: another name", with(&region, "name", json!("Elsewhere"))),
            ("regions: delete", without(&region)),
            ("regions: insert", region),
        ]);
    }
    changes
}

fn manifest(shard_count: u64, joins: &[(&str, &str)], are_sent: bool) -> String {
    let sinks: &[&str] = if are_sent { &["live"] } else { &[] };
    let joins = joins.iter().map(|(name, query)| json!({"name": name, "query": query, "sinks": sinks}));
    json!({
        "apiVersion": "litejoin.io/v1alpha1",
        "kind": "Pipeline",
        "metadata": {"name": "cost"},
        "spec": {
            "storage": {"shardCount": shard_count, "flushInterval": "1ms"},
            "admin": {"addr": "127.0.0.1:0"},
            "sources": [{"name": "ingest", "http": {"addr": "127.0.0.1:0", "topics": TOPICS}}],
            "joins": joins.collect::<Vec<_>>(),
            "sinks": [{"name": "live", "sse": {"addr": "127.0.0.1:0"}}],
        },
    })
    .to_string()
}
