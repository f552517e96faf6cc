//! Random topics, and random messages for them. Domains are small, so that conditions hit, and mixed on purpose:
//! NULL and missing fields, numbers as text, letters that only some collations tell apart.

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use serde_json::{Value, json};

/// Topics of a round, and what their messages hold.
#[derive(Debug, Clone)]
pub struct Schema {
    pub topics: Vec<Topic>,
    /// Keys that messages have, in every topic: so keys equal keys, and links find them.
    keys: Vec<String>,
}

/// A topic, and what its messages call their fields.
#[derive(Debug, Clone)]
pub struct Topic {
    pub name: String,
    /// Holds keys of topics, as text or as the number that reads the same.
    pub link: &'static str,
    /// Holds numbers whose sums are exact, some as text. No integer stands there as a real, too, so equal values
    /// look the same.
    pub number: &'static str,
    /// Holds few values of every type; equal ones look the same.
    pub category: &'static str,
    /// Holds arrays, mostly.
    pub list: &'static str,
    /// Whether messages bring their own time. Else only the worker knows `timestamp`, and no query may read it.
    pub is_timed: bool,
}

/// A message as it is sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub topic: String,
    pub key: String,
    /// None deletes.
    pub payload: Option<Value>,
    pub timestamp: Option<i64>,
}

/// Names of topics: in any case, and some that SQL reads as words of its own unless they are quoted.
const TOPICS: [&str; 9] =
    ["orders", "Customers", "NOTES", "t_1", "Group", "values", "key", "payload", "itemsOfOrders"];

const KEYS: [&str; 20] = [
    "1", "2", "5", "5.0", "07", "1e1", "k1", "K1", "é", "e\u{301}", "日本", "it's", "a\"b", " ", "true",
    "null", "-3", "🦀", "x|y", "%",
];

const CATEGORIES: [&str; 11] = [
    r#""tea""#,
    r#""TEA""#,
    r#""Tee ☕""#,
    r#""""#,
    r#""7""#,
    "7",
    "2.5",
    "true",
    "false",
    "null",
    r#"{"a":[1,null]}"#,
];

impl Schema {
    /// Two to four topics over a few keys or some dozens.
    pub fn random(chance: &mut StdRng) -> Self {
        let mut names = TOPICS;
        names.shuffle(chance);
        let topics = names[..chance.random_range(2..=4)].iter().map(|name| Topic::random(name, chance));
        let topics = topics.collect();
        let key_count = *[5, 12, 30].choose(chance).expect("not empty");
        let mut odd = KEYS;
        odd.shuffle(chance);
        let odd = odd.iter().take(key_count / 2 + 1).map(|key| (*key).to_owned());
        let keys = odd.chain((2..).map(|n| format!("k{n}"))).take(key_count).collect();
        Self { topics, keys }
    }

    /// As many messages, of the time `now`.
    pub fn messages(&self, count: usize, now: i64, chance: &mut StdRng) -> Vec<Message> {
        (0..count).map(|_| self.message(now, chance)).collect()
    }

    /// Messages that fill all topics.
    pub fn fill(&self, chance: &mut StdRng) -> Vec<Message> {
        self.messages(self.keys.len() * self.topics.len(), 0, chance)
    }

    fn message(&self, now: i64, chance: &mut StdRng) -> Message {
        let topic = self.topics.choose(chance).expect("not empty");
        let payload = match chance.random_range(0..40) {
            0..8 => None,
            8 => Some(one_of(&["5", r#""k1""#, "2.5", "true", r#""tea""#, "[7]"], chance)),
            _ => Some(self.object(topic, chance)),
        };
        let name = match chance.random_range(0..10) {
            0 => topic.name.to_ascii_uppercase(),
            1 => topic.name.to_ascii_lowercase(),
            _ => topic.name.clone(),
        };
        let timestamp = topic.is_timed.then(|| now + chance.random_range(0..=2));
        Message { topic: name, key: self.key(chance).clone(), payload, timestamp }
    }

    fn object(&self, topic: &Topic, chance: &mut StdRng) -> Value {
        let mut object = json!({});
        let mut set = |field: &str, value: Option<Value>| {
            if let Some(value) = value {
                object[field] = value;
            }
        };
        set(topic.link, self.link(chance));
        set(topic.number, number(chance));
        set(topic.category, category(chance));
        set(topic.list, list(chance));
        object
    }

    fn key(&self, chance: &mut StdRng) -> &String {
        self.keys.choose(chance).expect("not empty")
    }

    fn link(&self, chance: &mut StdRng) -> Option<Value> {
        let key = self.key(chance);
        let number: Option<i64> = key.parse().ok();
        Some(match (chance.random_range(0..20), number) {
            (0, _) => return None,
            (1, _) => Value::Null,
            (2, _) => one_of(&["true", "false", "9007199254740993", r#"["k2"]"#, r#"{"k":1}"#], chance),
            (3..9, Some(number)) => json!(number),
            (9..12, Some(number)) => json!(number as f64),
            _ => json!(key),
        })
    }
}

impl Topic {
    fn random(name: &str, chance: &mut StdRng) -> Self {
        let mut one_of = |names: &[&'static str]| *names.choose(chance).expect("not empty");
        Self {
            name: name.to_owned(),
            link: one_of(&["cust", "ref", "Ref", "a.b"]),
            number: one_of(&["n", "amount", "größe"]),
            category: one_of(&["cat", "Kind", "group"]),
            list: one_of(&["tags", "the list"]),
            is_timed: chance.random_ratio(1, 3),
        }
    }
}

fn number(chance: &mut StdRng) -> Option<Value> {
    Some(match chance.random_range(0..20) {
        0 => return None,
        1 => Value::Null,
        2 => one_of(&[r#""7""#, r#""07""#, r#""1.5""#, r#""abc""#, r#""""#], chance),
        3 => json!(true),
        4..7 => one_of(&["0.5", "1.25", "-2.75", "7.5"], chance),
        _ => json!(chance.random_range(-3..15)),
    })
}

fn category(chance: &mut StdRng) -> Option<Value> {
    chance.random_ratio(9, 10).then(|| one_of(&CATEGORIES, chance))
}

fn list(chance: &mut StdRng) -> Option<Value> {
    Some(match chance.random_range(0..10) {
        0 => return None,
        1 => json!({"a": 1, "b": "k1"}),
        2 => json!("k2"),
        _ => {
            let count = chance.random_range(0..4);
            (0..count)
                .map(|_| one_of(&["1", "2", "7", r#""k1""#, r#""k2""#, r#""tea""#, "null"], chance))
                .collect()
        }
    })
}

/// One of some values, which are written as JSON.
fn one_of(choices: &[&str], chance: &mut StdRng) -> Value {
    let json = choices.choose(chance).expect("there is a choice");
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"))
}

impl Message {
    /// The message as `POST /ingest` takes it. Bare text would be taken for JSON in a string.
    pub fn body(&self) -> Value {
        let payload = match &self.payload {
            Some(Value::String(text)) => json!(json!(text).to_string()),
            other => json!(other),
        };
        let mut message = crate::ingest::message(&self.topic, &self.key, payload);
        if let Some(timestamp) = self.timestamp {
            message["timestamp"] = json!(timestamp);
        }
        message
    }
}
