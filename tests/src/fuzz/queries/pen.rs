//! Writes pieces of SQL over a random schema: what is read, under which names, spelled in which way.

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};

use crate::fuzz::schema::{BODY, Schema, Topic};
use crate::fuzz::script::Join;

/// A query, and what has to be known of it.
#[derive(Debug, Clone)]
pub struct Query {
    pub sql: String,
    /// None for the first column.
    pub key_column: Option<String>,
    pub columns: Vec<String>,
    /// The join that it reads by name.
    pub reads: Option<String>,
}

impl Query {
    /// Whether the query reads the clock, itself or through one of `joins`.
    pub fn reads_clock(&self, joins: &[Join]) -> bool {
        let is_read = |join: &&Join| self.reads.as_ref() == Some(&join.name);
        let says_now = NOW.iter().any(|now| self.sql.contains(now));
        says_now || joins.iter().find(is_read).is_some_and(|join| join.reads_clock)
    }
}

/// Forms of now in seconds since the Unix epoch, as numbers and as texts.
const NOW: [&str; 6] = [
    "unixepoch()",
    "unixepoch('now', '-2 seconds')",
    "strftime('%s', 'now')",
    "CAST(strftime('%s', 'NOW') AS INTEGER)",
    "CAST(unixepoch('now') AS TEXT)",
    "unixepoch(CURRENT_TIMESTAMP)",
];

/// The beginning of a call that fails for some rows. The comment tells the oracle to let it yield NULL instead.
pub const INNER: &str = "json_extract(/*inner*/";

/// A topic in a FROM clause.
#[derive(Debug, Clone)]
pub struct Source<'a> {
    pub topic: &'a Topic,
    pub alias: String,
}

/// The hand that writes queries. Each piece is spelled in a way of its own.
pub struct Pen<'a> {
    schema: &'a Schema,
    joins: &'a [Join],
    chance: &'a mut StdRng,
    aliases: Vec<&'static str>,
}

/// What sources and columns are called.
const ALIASES: [&str; 12] =
    ["a", "b", "c", "x", "y", "z", "o", "T2", "left_side", "\"the one\"", "[v]", "\"é\""];
const COLUMNS: [&str; 10] = ["b", "c", "n", "Name", "of it", "größe", "total", "key", "x-y", "select"];

impl<'a> Pen<'a> {
    /// A pen for one query, which may read `joins` by name.
    pub fn new(schema: &'a Schema, joins: &'a [Join], chance: &'a mut StdRng) -> Self {
        let mut aliases = ALIASES.to_vec();
        aliases.shuffle(chance);
        Self { schema, joins, chance, aliases }
    }

    pub fn one_in(&mut self, count: u32) -> bool {
        self.chance.random_ratio(1, count)
    }

    pub fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices.choose(self.chance).expect("there is a choice").clone()
    }

    pub fn number_from(&mut self, range: std::ops::RangeInclusive<i64>) -> i64 {
        self.chance.random_range(range)
    }

    /// A name that this query has not used yet.
    pub fn alias(&mut self) -> String {
        self.aliases.pop().expect("no query has so many sources").to_owned()
    }

    /// A random topic.
    pub fn source(&mut self) -> Source<'a> {
        let topic = self.schema.topics.choose(self.chance).expect("there are topics");
        self.source_of(topic)
    }

    /// The topic once more.
    pub fn source_of(&mut self, topic: &'a Topic) -> Source<'a> {
        Source { topic, alias: self.alias() }
    }

    /// Two random topics, which differ.
    pub fn topics(&mut self) -> [&'a Topic; 2] {
        let topics: Vec<&Topic> = self.schema.topics.sample(self.chance, 2).collect();
        [topics[0], topics[1]]
    }

    /// A join that may be read by name.
    pub fn join(&mut self) -> Option<&'a Join> {
        self.joins.choose(self.chance)
    }

    /// A name in quotes of some kind.
    pub fn quoted(&mut self, name: &str) -> String {
        let [open, close] = self.pick(&[["\"", "\""], ["[", "]"], ["`", "`"]]);
        format!("{open}{name}{close}")
    }

    /// A topic by its name, in any case.
    pub fn table(&mut self, name: &str) -> String {
        let name = match self.chance.random_range(0..5) {
            0 => name.to_ascii_uppercase(),
            1 => name.to_ascii_lowercase(),
            _ => name.to_owned(),
        };
        // Names that SQL reads as words of its own need quotes.
        let is_word = ["group", "values", "key"].contains(&name.to_ascii_lowercase().as_str());
        if is_word || self.one_in(2) { self.quoted(&name) } else { name }
    }

    /// The source in a FROM clause.
    pub fn read(&mut self, source: &Source<'_>) -> String {
        let table = self.table(&source.topic.name);
        let is_as = self.pick(&[" AS", ""]);
        format!("{table}{is_as} {}", source.alias)
    }

    pub fn key(&mut self, source: &Source<'_>) -> String {
        let key = self.pick(&["key", "key", "KEY", "\"key\"", "[Key]"]);
        format!("{}.{key}", source.alias)
    }

    pub fn link(&mut self, source: &Source<'_>) -> String {
        self.field(source, source.topic.link.name)
    }

    pub fn number(&mut self, source: &Source<'_>) -> String {
        self.field(source, source.topic.number.name)
    }

    pub fn category(&mut self, source: &Source<'_>) -> String {
        self.field(source, source.topic.category.name)
    }

    /// A number in JSON that stands in a text; the query fails where the text is none.
    fn inner(&mut self, source: &Source<'_>) -> String {
        format!("{INNER}{}.payload->>'{BODY}', '$.n')", source.alias)
    }

    /// Whether this piece of a query is to fail for some rows.
    fn is_poisoned(&mut self) -> bool {
        self.schema.is_poisoned && self.one_in(3)
    }

    /// A field of the payload as an SQL value.
    fn field(&mut self, source: &Source<'_>, name: &str) -> String {
        let alias = &source.alias;
        match self.chance.random_range(0..5) {
            0 => format!("json_extract({alias}.payload, '$.\"{name}\"')"),
            1 => format!("{alias}.payload->>'$.\"{name}\"'"),
            2 => format!("({alias}.\"payload\" ->> '{name}')"),
            _ => format!("{alias}.payload->>'{name}'"),
        }
    }

    /// A number whose sum is exact and never overflows, in whatever order the rows come.
    pub fn summand(&mut self, source: &Source<'_>) -> String {
        if self.is_poisoned() {
            return self.inner(source);
        }
        let number = self.number(source);
        if !source.topic.number.is_large {
            return number;
        }
        match self.chance.random_range(0..3) {
            0 => format!("CAST({number} AS INTEGER) % 1000"),
            1 => format!("max(-1000, min(1000, CAST({number} AS INTEGER)))"),
            _ => format!("CASE WHEN {number} BETWEEN -1000 AND 1000 THEN {number} END"),
        }
    }

    /// The same as an integer.
    pub fn whole_summand(&mut self, source: &Source<'_>) -> String {
        let number = self.number(source);
        let limit = if source.topic.number.is_large { " % 1000" } else { "" };
        format!("CAST({number} AS INTEGER){limit}")
    }

    /// A field as it is: its values are equal to others that look different.
    pub fn bare(&mut self, source: &Source<'_>) -> String {
        match self.chance.random_range(0..3) {
            0 => self.link(source),
            1 => self.number(source),
            _ => self.category(source),
        }
    }

    /// A value by which rows can be grouped. Which of several equal ones a group shows is left open.
    pub fn group(&mut self, source: &Source<'_>) -> String {
        let (key, link) = (self.key(source), self.link(source));
        let (number, category) = (self.number(source), self.category(source));
        match self.chance.random_range(0..12) {
            0 => format!("CAST({link} AS TEXT)"),
            1 => format!("typeof({link})"),
            2 => format!("mod(CAST({number} AS INTEGER), 3)"),
            3 => format!("substr({key}, 1, 1)"),
            4 | 5 => number,
            6 => format!("lower({category})"),
            7 => link,
            _ => category,
        }
    }

    /// Two to four values of the sources; the first ones are likely result keys.
    pub fn values(&mut self, sources: &[&Source<'_>]) -> Vec<String> {
        let mut values = Vec::new();
        let keys: Vec<String> = sources.iter().map(|source| self.key(source)).collect();
        values.push(match self.chance.random_range(0..10) {
            0 => self.link(sources[0]),
            1 => self.number(sources[0]),
            2 => self.category(sources[0]),
            3 => format!("coalesce({})", [keys.clone(), vec!["'none'".to_owned()]].concat().join(", ")),
            4 => keys.iter().map(|key| format!("ifnull({key}, '-')")).collect::<Vec<_>>().join(" || '/' || "),
            5 => self.pick(&keys),
            _ => keys[0].clone(),
        });
        for _ in 0..self.chance.random_range(1..=3) {
            let source = self.pick(sources);
            values.push(match self.chance.random_range(0..8) {
                0 => self.link(source),
                1 => self.number(source),
                2 => self.category(source),
                3 if self.schema.has_clock => self.timely(source),
                3 => format!("{}.payload", source.alias),
                4 if source.topic.is_timed => format!("{}.timestamp", source.alias),
                5 => self.group(source),
                _ => self.key(source),
            });
        }
        if self.is_poisoned() {
            let source = self.pick(sources);
            values.push(self.inner(source));
        }
        values
    }

    /// A list of result columns, and their names.
    pub fn columns(&mut self, values: &[String]) -> (String, Vec<String>) {
        let mut names = COLUMNS;
        names.shuffle(self.chance);
        let names: Vec<String> =
            ["id"].iter().chain(&names).take(values.len()).map(|name| (*name).to_owned()).collect();
        let columns: Vec<String> =
            values.iter().zip(&names).map(|(value, name)| format!("{value} AS \"{name}\"")).collect();
        (columns.join(", "), names)
    }

    /// `SELECT` of these values, and what comes after them.
    pub fn select(&mut self, values: &[String], rest: &str) -> Query {
        let (list, names) = self.columns(values);
        self.query(format!("SELECT {list} {rest}"), names)
    }

    /// A query that yields these columns; one of them is the result key.
    pub fn query(&mut self, sql: String, columns: Vec<String>) -> Query {
        let key_column = self.one_in(3).then(|| self.pick(&columns));
        Query { sql, key_column, columns, reads: None }
    }

    /// A condition under which rows of two sources belong together: an equality of some kind.
    pub fn equal(&mut self, left: &Source<'_>, right: &Source<'_>) -> String {
        let (a, b) = if self.one_in(2) { (left, right) } else { (right, left) };
        let (a_key, b_key) = (self.key(a), self.key(b));
        let (a_link, b_link) = (self.link(a), self.link(b));
        match self.chance.random_range(0..20) {
            0 => format!("{a_link} = {b_key}"),
            1 => format!("CAST({a_link} AS TEXT) = {b_key}"),
            2 => format!("{a_link} = {b_link}"),
            3 => format!("{a_link} IS {b_link}"),
            4 => format!("{a_key} = {b_key}"),
            5 => format!("{a_key} = {b_key} COLLATE NOCASE"),
            6 => format!("lower({a_key}) = {b_link}"),
            7 => format!("{} = {}", self.category(a), self.category(b)),
            8 => format!("{} COLLATE NOCASE = {}", self.category(a), self.category(b)),
            9 => format!(
                "{0}.payload->'{1}' = {2}.payload->'{3}'",
                a.alias, a.topic.link.name, b.alias, b.topic.link.name
            ),
            10 => format!("{b_key} = {a_link} AND {} = {}", self.category(a), self.category(b)),
            11 => format!("({a_link}, {}) = ({b_key}, {})", self.category(a), self.category(b)),
            12 => format!("{b_key} IN ({a_link}, {})", self.category(a)),
            13 => format!("({a_link} = {b_key} OR {a_key} = {b_link})"),
            14 if b.topic.is_timed => format!("{} = {}.timestamp", self.number(a), b.alias),
            15 if b.topic.is_timed => format!("CAST({} AS INTEGER) = {}.timestamp", self.number(a), b.alias),
            14 => format!("CAST({} AS INTEGER) = CAST({} AS INTEGER)", self.number(a), self.number(b)),
            15 => format!("CAST({a_link} AS REAL) = CAST({b_key} AS REAL)"),
            _ => format!("{b_key} = {a_link}"),
        }
    }

    /// A condition on two sources that is no equality.
    pub fn compare(&mut self, a: &Source<'_>, b: &Source<'_>) -> String {
        let (x, y) = (self.number(a), self.number(b));
        let (a_key, b_key) = (self.key(a), self.key(b));
        match self.chance.random_range(0..8) {
            0 => format!("{x} <= {y}"),
            1 => format!("{x} BETWEEN {y} AND {y} + 2"),
            2 => format!("{a_key} <> {b_key}"),
            3 => format!("({x} > {y} OR {x} IS NULL)"),
            4 if b.topic.is_timed => format!("{x} > {}.timestamp", b.alias),
            5 => format!("({a_key}, {x}) > ({b_key}, {y})"),
            6 => format!("{} IS NOT {}", self.category(a), self.category(b)),
            _ => format!("{x} < {y}"),
        }
    }

    /// A comparison with the clock, which rows come to fulfil, or cease to, without a message.
    pub fn timely(&mut self, source: &Source<'_>) -> String {
        let now = self.pick(&NOW);
        let distance = self.pick(&["", " - 2", " + 1", " - 0.5"]);
        let clock = format!("{now}{distance}");
        let number = self.number(source);
        let value = match self.chance.random_range(0..6) {
            0 => format!("CAST({number} AS INTEGER)"),
            1 => format!("CAST({number} AS TEXT)"),
            2 => number,
            3 => format!("unixepoch({number}, 'unixepoch')"),
            _ if source.topic.is_timed => format!("{}.timestamp", source.alias),
            _ => number,
        };
        let operator = self.pick(&[">", ">=", "<", "<=", "=", "<>", "IS", "IS NOT"]);
        match self.chance.random_range(0..8) {
            0 => format!("{value} BETWEEN {clock} - 3 AND {clock}"),
            1 => format!("{clock} NOT BETWEEN {value} AND {value} + 4"),
            2 => format!("{clock} {operator} {value}"),
            // No row says when this changes.
            3 => format!("({value} > 4 OR {now} - {value} < 3)"),
            4 => format!("NOT ({value} {operator} ({clock}))"),
            _ => format!("{value} {operator} {clock}"),
        }
    }

    /// A condition on one source.
    pub fn filter(&mut self, source: &Source<'_>) -> String {
        if self.schema.has_clock && self.one_in(2) {
            return format!("({})", self.timely(source));
        }
        if self.is_poisoned() {
            return format!("{} > 3", self.inner(source));
        }
        let (key, link) = (self.key(source), self.link(source));
        let (number, category) = (self.number(source), self.category(source));
        match self.chance.random_range(0..14) {
            0 => format!("{number} > 3"),
            1 => format!("{number} BETWEEN 0 AND 8"),
            2 => format!("{category} NOT REGEXP '(?i)^TEA$'"),
            3 => format!("{category} IN ('tea', 7, 2.5)"),
            4 => format!("{category} = 'TEA' COLLATE NOCASE"),
            5 => format!("({link} LIKE 'k%' OR regexp('^[0-9]+$', {link}))"),
            6 => format!("{key} GLOB 'k*'"),
            7 => format!("typeof({link}) = 'text'"),
            8 => format!("NOT (floor({number}) < 5)"),
            9 => format!("({category} = '7' OR {number} > '5')"),
            10 => format!("json_type({}.payload) = 'object'", source.alias),
            11 => format!("{key} NOT IN ('1', '5', 'k1')"),
            12 if source.topic.is_timed => format!("{}.timestamp > {number}", source.alias),
            _ => format!("{number} IS NOT NULL"),
        }
    }

    /// A WHERE clause on some of the sources, or none.
    pub fn condition(&mut self, sources: &[&Source<'_>]) -> String {
        if self.one_in(2) {
            return String::new();
        }
        let source = self.pick(sources);
        format!(" WHERE {}", self.filter(source))
    }

    /// Terms of an order that leaves nothing open.
    pub fn order(&mut self, sources: &[&Source<'_>]) -> String {
        let mut terms = Vec::new();
        if !self.one_in(3) {
            let source = self.pick(sources);
            let value = if self.one_in(2) { self.number(source) } else { self.category(source) };
            let direction = self.pick(&["", " ASC", " DESC", " NULLS LAST", " DESC NULLS FIRST"]);
            terms.push(format!("{value}{direction}"));
        }
        for source in sources {
            let key = self.key(source);
            terms.push(key + self.pick(&["", " DESC"]));
        }
        terms.join(", ")
    }
}
