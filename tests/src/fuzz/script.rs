//! All that happens in one round, as data: it follows from a seed alone, can be cut down, and played again.

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::queries::{CLASSES, Pen};
use super::schema::{Message, Schema};
use crate::repetition::chance;

/// Batches of a round. After some dozens a schema has shown most of what it can.
pub const BATCHES_A_ROUND: u64 = 50;

/// Rounds of a run in CI, by the seeds from 1 on: 2,000 batches.
pub const ROUNDS: u64 = 2_000 / BATCHES_A_ROUND;

/// Rounds of a long run: 100,000 batches.
pub const ROUNDS_LONG: u64 = 100_000 / BATCHES_A_ROUND;

/// A join as it is written into the manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct Join {
    pub name: String,
    /// The class of SQL that it was made for.
    pub class: &'static str,
    pub query: String,
    pub key_column: Option<String>,
    /// Names of the columns that the query yields.
    pub columns: Vec<String>,
    /// The join that it reads by name.
    pub reads: Option<String>,
    /// Whether it reads the clock, itself or through the join that it reads.
    pub reads_clock: bool,
    /// Whether nobody is told of its results: it is there for other joins.
    pub is_hidden: bool,
}

/// A round.
#[derive(Debug, Clone)]
pub struct Script {
    pub shard_count: usize,
    /// Whether the worker is shown a clock, which begins at 0.
    pub has_clock: bool,
    /// Whether queries fail for some rows, whose results then stay as they were until the end of the round mends them.
    pub is_poisoned: bool,
    pub topics: Vec<String>,
    /// Joins at the start.
    pub joins: Vec<Join>,
    pub steps: Vec<Step>,
}

/// What happens to the worker.
#[derive(Debug, Clone)]
pub enum Step {
    /// One request with these messages.
    Batch { messages: Vec<Message>, fate: Fate },
    /// The clock shows this moment from now on, in seconds since the Unix epoch.
    Clock(i64),
    /// SIGTERM, and a new start.
    Stop,
    /// SIGKILL, and a new start.
    Kill,
    /// From now on these are the joins: by a new start, or by having the running worker read its manifest again.
    Configure { joins: Vec<Join>, by_signal: bool },
}

/// What comes of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Results are compared once it is seen in them.
    Watched,
    /// The next step follows the answer at once, so both may be seen in one epoch, or neither before a kill.
    Unwatched,
    /// The worker is killed while the batch is on its way, some moments after it was sent. It is sent again to the
    /// next one.
    Killed { moment: u32 },
}

impl Step {
    /// The messages that are sent in it.
    pub fn messages(&self) -> &[Message] {
        if let Self::Batch { messages, .. } = self { messages } else { &[] }
    }
}

impl Script {
    /// The round of a seed.
    pub fn random(seed: u64) -> Self {
        let mut chance = chance(seed);
        let chance = &mut chance;
        let mut schema = Schema::random(chance);
        schema.has_clock = seed % 3 == 1;
        schema.is_poisoned = seed % 6 == 2;
        let mut deck = Deck { schema: &schema, dealt: Vec::new(), joins_made: 0 };
        let mut joins = Vec::new();
        for _ in 0..chance.random_range(10..=20) {
            joins.push(deck.join(&joins, chance));
        }
        let mut present = joins.clone();
        let mut steps = Vec::new();
        if chance.random_ratio(3, 4) {
            steps.push(Step::Batch { messages: schema.fill(chance), fate: Fate::Watched });
        }
        let mut batches = steps.len() as u64;
        while batches < BATCHES_A_ROUND {
            let now = i64::try_from(batches / 3).expect("few batches");
            if schema.has_clock {
                steps.extend(moments(now, batches.is_multiple_of(3), chance));
            }
            let count = if chance.random_ratio(1, 50) {
                chance.random_range(100..=400)
            } else {
                chance.random_range(1..=8)
            };
            let messages = schema.messages(count, now, chance);
            let fate = match chance.random_range(0..30) {
                0 => Fate::Killed { moment: chance.random_range(0..2_000) },
                1..6 => Fate::Unwatched,
                _ => Fate::Watched,
            };
            steps.push(Step::Batch { messages, fate });
            batches += 1;
            match chance.random_range(0..40) {
                0 => steps.push(Step::Stop),
                1 => steps.push(Step::Kill),
                2 => {
                    edit(&mut present, &mut deck, chance);
                    steps.push(Step::Configure { joins: present.clone(), by_signal: chance.random() });
                }
                _ => {}
            }
        }
        let topics = schema.topics.iter().map(|topic| topic.name.clone()).collect();
        let shard_count = if chance.random() { 8 } else { 1 };
        let Schema { has_clock, is_poisoned, .. } = schema;
        Self { shard_count, has_clock, is_poisoned, topics, joins, steps }
    }
}

/// What the clock shows before a batch: the next second, now and then more, and rarely another time in between. The
/// worker follows a clock that is set back only if that is by more than a minute.
fn moments(now: i64, is_next: bool, chance: &mut StdRng) -> Vec<Step> {
    if chance.random_ratio(1, 40) {
        return vec![Step::Clock(now + 100_000), Step::Clock(now)];
    }
    if is_next && chance.random_ratio(3, 4) { vec![Step::Clock(now)] } else { Vec::new() }
}

/// Deals classes of SQL so that none comes twice before all came once.
struct Deck<'s> {
    schema: &'s Schema,
    dealt: Vec<usize>,
    joins_made: usize,
}

impl Deck<'_> {
    /// A join that may read `others`.
    fn join(&mut self, others: &[Join], chance: &mut StdRng) -> Join {
        if self.dealt.is_empty() {
            self.dealt = (0..CLASSES.len()).collect();
            self.dealt.shuffle(chance);
        }
        let (class, make) = CLASSES[self.dealt.pop().expect("just filled")];
        let query = make(&mut Pen::new(self.schema, others, chance));
        let reads_clock = query.reads_clock(others);
        self.joins_made += 1;
        let separator = if chance.random() { '-' } else { '_' };
        let name = format!("{class}{separator}{}", self.joins_made);
        Join {
            name,
            class,
            query: query.sql,
            key_column: query.key_column,
            columns: query.columns,
            reads: query.reads,
            reads_clock,
            is_hidden: chance.random_ratio(1, 15),
        }
    }
}

/// Adds, changes and removes joins, but none that others read.
fn edit(joins: &mut Vec<Join>, deck: &mut Deck<'_>, chance: &mut StdRng) {
    for _ in 0..chance.random_range(1..=3) {
        let index = chance.random_range(0..joins.len());
        let is_read = joins.iter().any(|join| join.reads.as_ref() == Some(&joins[index].name));
        match chance.random_range(0..3) {
            0 if !is_read && joins.len() > 2 => {
                joins.remove(index);
            }
            1 if !is_read => {
                let others: Vec<Join> = joins[..index].iter().chain(&joins[index + 1..]).cloned().collect();
                let Join { name, is_hidden, .. } = joins[index].clone();
                joins[index] = Join { name, is_hidden, ..deck.join(&others, chance) };
            }
            _ => {
                let join = deck.join(joins, chance);
                joins.push(join);
            }
        }
    }
}
