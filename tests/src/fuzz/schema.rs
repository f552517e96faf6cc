//! Random topics, and random messages for them. Domains are small, so that conditions hit, and mixed on purpose: every
//! field holds any JSON value now and then, NULL and missing among them, numbers that are equal and look different,
//! numbers as text, numbers that a real can't hold, letters that only some collations tell apart.

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use serde_json::{Value, json};

/// Topics of a round, and what their messages hold.
#[derive(Debug, Clone)]
pub struct Schema {
    pub topics: Vec<Topic>,
    /// Whether queries read the clock, which begins at 0.
    pub has_clock: bool,
    /// Whether rows hold JSON in a text, of which a twentieth is malformed, so that queries over it fail.
    pub is_poisoned: bool,
    /// Keys that messages have, in every topic: so keys equal keys, and links find them.
    keys: Vec<String>,
}

/// A topic, and what its messages call their fields.
#[derive(Debug, Clone)]
pub struct Topic {
    pub name: String,
    /// Holds keys of topics, as text or as the number that reads the same.
    pub link: Field,
    /// Holds numbers, mostly.
    pub number: Field,
    /// Holds few values of every type.
    pub category: Field,
    /// Holds arrays, mostly.
    pub list: Field,
    /// What stands in place of an object now and then.
    payload: Field,
    /// Whether messages bring their own time. Else only the worker knows `timestamp`, and no query may read it.
    pub is_timed: bool,
}

/// A field, and what it holds in place of its ordinary values.
#[derive(Debug, Clone)]
pub struct Field {
    pub name: &'static str,
    /// One value out of so many is odd.
    one_in: u32,
    /// Odd values as JSON; the empty text is a missing field.
    odd: Vec<&'static str>,
    /// Whether numbers beyond 2^53 are among them: plain sums of it may overflow, and depend on the order of rows.
    pub is_large: bool,
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

/// Keys, those side by side that are alike: as numbers, or as letters. The numbers are those of [`NUMBERS`].
const KEYS: [&[&str]; 20] = [
    &["5", "5.0"],
    &["7", "07", "7.0"],
    &["1e1", "10", "10.0"],
    &["1", "true", "1.0"],
    &["0", "0.0", "-0.0", "false"],
    &["9007199254740993", "9007199254740992", "9007199254740992.0", "9.00719925474099e+15"],
    &["9.2e18", "9.2e+18", "9200000000000000000"],
    &["9223372036854775807", "-9223372036854775808"],
    &["k1", "K1"],
    &["é", "e\u{301}"],
    &["tea", "TEA"],
    &["2.5", "-3"],
    &["null"],
    &["[5,5.0]", r#"{"a":5}"#],
    &["日本", "🦀"],
    &["it's"],
    &["a\"b"],
    &[" "],
    &["x|y"],
    &["%"],
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

/// Numbers that stand in any field, those side by side that are equal or look it.
const NUMBERS: [&[&str]; 8] = [
    &["5", "5.0", "5", "5.0", r#""5""#, r#""5.0""#],
    &["7", "7.0", "7", "7.0", r#""7""#, r#""07""#],
    &["10", "10.0", "10", "10.0", r#""10""#, r#""1e1""#],
    &["1", "1.0", "true", r#""1""#],
    &["0", "0.0", "-0.0", "false", r#""-0.0""#],
    &["9007199254740993", "9007199254740992", "9007199254740992.0", r#""9007199254740993""#],
    &["9.2e18", "9200000000000000000", r#""9.2e18""#],
    &["9223372036854775807", "-9223372036854775808", "9223372036854775808", "-9.223372036854775808e18"],
];

/// Those of them from here on are beyond what reals can tell apart.
const LARGE_FROM: usize = 5;

/// Other values that stand in any field; the empty text is a missing one.
const OTHERS: [&[&str]; 3] = [
    &["", "null", r#""null""#],
    &[r#""tea""#, r#""TEA""#, r#""k2""#, r#""K2""#, r#""""#],
    &["[5,5.0]", "[5.0,5]", "[]", r#"{"a":5}"#, r#"{"a":5.0}"#, r#"{"a":{"b":[null]}}"#],
];

impl Schema {
    /// Two to four topics over a few keys or some dozens. In half of the rounds a number or two are everywhere, in every
    /// spelling.
    pub fn random(chance: &mut StdRng) -> Self {
        let mut numbers: Vec<usize> = (0..NUMBERS.len()).collect();
        numbers.shuffle(chance);
        numbers.truncate(if chance.random() { chance.random_range(1..=2) } else { 0 });
        let mut names = TOPICS;
        names.shuffle(chance);
        let count = chance.random_range(2..=4);
        let topics = names[..count].iter().map(|name| Topic::random(name, &numbers, chance));
        let topics = topics.collect();
        let key_count = *[5, 12, 30].choose(chance).expect("not empty");
        let mut odd: Vec<usize> = (0..KEYS.len()).collect();
        odd.shuffle(chance);
        odd.sort_by_key(|index| !numbers.contains(index));
        let odd = odd.into_iter().flat_map(|index| KEYS[index]).take(key_count / 2 + 1);
        let odd = odd.map(|key| (*key).to_owned());
        let keys = odd.chain((2..).map(|n| format!("k{n}"))).take(key_count).collect();
        Self { topics, has_clock: false, is_poisoned: false, keys }
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
        let payload = if chance.random_ratio(1, 5) {
            None
        } else {
            // Null deletes, too.
            topic.payload.odd(chance).or_else(|| Some(self.object(topic, chance)))
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
        set(topic.link.name, self.link(&topic.link, chance));
        set(topic.number.name, topic.number.value(chance, number));
        set(topic.category.name, topic.category.value(chance, category));
        set(topic.list.name, list(&topic.list, chance));
        if self.is_poisoned {
            object[BODY] = json!(body(chance));
        }
        object
    }

    fn key(&self, chance: &mut StdRng) -> &String {
        self.keys.choose(chance).expect("not empty")
    }

    fn link(&self, field: &Field, chance: &mut StdRng) -> Option<Value> {
        let key = self.key(chance);
        let is_odd = chance.random_ratio(1, field.one_in);
        if is_odd && chance.random() {
            return field.any(chance);
        }
        let integer = key.parse::<i64>().ok();
        let real = key.parse::<f64>().ok();
        Some(match (chance.random_range(0..20), integer, real) {
            (0, ..) => return None,
            (1, ..) => Value::Null,
            (_, Some(integer), _) if is_odd && chance.random() => json!(integer),
            (_, _, Some(real)) if is_odd => json!(real),
            (2..11, Some(integer), _) => json!(integer),
            _ => json!(key),
        })
    }
}

impl Topic {
    fn random(name: &str, numbers: &[usize], chance: &mut StdRng) -> Self {
        let mut field = |names| Field::random(names, numbers, chance);
        Self {
            name: name.to_owned(),
            link: field(&["cust", "ref", "Ref", "a.b"]),
            number: field(&["n", "amount", "größe"]),
            category: field(&["cat", "Kind", "group"]),
            list: field(&["tags", "the list"]),
            payload: Field { one_in: 40, ..field(&["payload"]) },
            is_timed: chance.random_ratio(1, 3),
        }
    }
}

impl Field {
    /// A field of one of these names, that often holds `numbers` (some of [`NUMBERS`]) if there are any.
    fn random(names: &[&'static str], numbers: &[usize], chance: &mut StdRng) -> Self {
        let name = names.choose(chance).expect("not empty");
        let mut numbers = numbers.to_vec();
        // What is accumulated lives for as long as nothing odd comes.
        let rates: &[u32] = if numbers.is_empty() { &[200, 200, 200, 12, 4] } else { &[2] };
        let mut others = OTHERS.to_vec();
        if numbers.is_empty() {
            let count = *[2, LARGE_FROM, NUMBERS.len()].choose(chance).expect("not empty");
            numbers.extend(0..count);
        } else {
            others.clear();
        }
        let is_large = numbers.iter().any(|number| *number >= LARGE_FROM);
        let alike = numbers.into_iter().map(|number| NUMBERS[number]).chain(others);
        let odd = alike.flatten().copied().collect();
        Self { name, one_in: *rates.choose(chance).expect("not empty"), odd, is_large }
    }

    /// Any of the odd values; none is a missing field.
    fn any(&self, chance: &mut StdRng) -> Option<Value> {
        let json = self.odd.choose(chance).expect("not empty");
        (!json.is_empty()).then(|| read(json))
    }

    /// An odd value that is not null, now and then.
    fn odd(&self, chance: &mut StdRng) -> Option<Value> {
        if !chance.random_ratio(1, self.one_in) {
            return None;
        }
        self.any(chance).filter(|value| !value.is_null())
    }

    /// An ordinary value, or now and then an odd one, or the ordinary one as a real.
    fn value(
        &self,
        chance: &mut StdRng,
        ordinary: impl FnOnce(&mut StdRng) -> Option<Value>,
    ) -> Option<Value> {
        if !chance.random_ratio(1, self.one_in) {
            return ordinary(chance);
        }
        let value = if chance.random() { ordinary(chance) } else { self.any(chance) };
        match value.as_ref().and_then(Value::as_i64) {
            Some(integer) if chance.random() => Some(json!(integer as f64)),
            _ => value,
        }
    }
}

/// The field of a poisoned row that holds JSON in a text.
pub const BODY: &str = "body";

/// JSON in a text, or once in twenty a text that is none.
fn body(chance: &mut StdRng) -> String {
    match chance.random_range(0..20) {
        0 => "{\"n\":".to_owned(),
        _ => json!({"n": chance.random_range(-3..15)}).to_string(),
    }
}

/// The payload with JSON in place of a text that is none; `None` where there is nothing to mend.
pub fn mended(payload: &Value) -> Option<Value> {
    let body = payload.get(BODY)?.as_str()?;
    serde_json::from_str::<Value>(body).err()?;
    let mut mended = payload.clone();
    mended[BODY] = json!("{\"n\":1}");
    Some(mended)
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

fn list(field: &Field, chance: &mut StdRng) -> Option<Value> {
    let element = |chance: &mut StdRng| {
        Some(one_of(&["1", "2", "7", r#""k1""#, r#""k2""#, r#""tea""#, "null"], chance))
    };
    Some(match chance.random_range(0..20) {
        0 | 1 => return None,
        2 | 3 => json!({"a": 1, "b": "k1"}),
        4 => json!("k2"),
        5 => return field.value(chance, element),
        _ => {
            let count = chance.random_range(0..4);
            (0..count).map(|_| field.value(chance, element).unwrap_or_default()).collect()
        }
    })
}

/// One of some values, which are written as JSON.
fn one_of(choices: &[&str], chance: &mut StdRng) -> Value {
    read(choices.choose(chance).expect("there is a choice"))
}

fn read(json: &str) -> Value {
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
