//! Nexmark: persons, auctions and bids from the benchmark's own generator, with changes that a stream of events lacks:
//! persons who move, auctions that change, bids that are raised or withdrawn.

use nexmark::EventGenerator;
use nexmark::config::NexmarkConfig;
use nexmark::event::{Auction, Bid, Event, EventType, Person};
use serde::Serialize;

use crate::row::{Dice, Row};

/// The three topics.
pub(crate) const PERSONS: &str = "persons";
pub(crate) const AUCTIONS: &str = "auctions";
pub(crate) const BIDS: &str = "bids";

/// One new row in this many is followed by a change of an older one.
const PERSON_MOVES: u64 = 20;
const AUCTION_CHANGES: u64 = 10;
const AUCTION_ENDS: u64 = 100;
const BID_RISES: u64 = 20;
const BID_GOES: u64 = 50;

/// The start of the generator's clock, in milliseconds since the epoch.
const BASE_TIME: u64 = 1_700_000_000_000;

/// Returns `events` changes of `topics`, in the benchmark's proportions; rows of other topics are left out.
pub(crate) fn rows(topics: &[&str], events: u64, seed: u64) -> Vec<Row> {
    filled(House::new(seed, true), topics, events)
}

/// Returns `events` new rows of `topics`, in the benchmark's proportions, and no changes of older ones.
pub(crate) fn new_rows(topics: &[&str], events: u64) -> Vec<Row> {
    filled(House::new(0, false), topics, events)
}

/// Returns the time of the latest of these rows, in seconds since the epoch.
pub(crate) fn last_time(rows: &[Row]) -> u64 {
    let time = |row: &Row| {
        let payload: serde_json::Value = serde_json::from_str(row.payload.as_deref()?).ok()?;
        payload["date_time"].as_u64()
    };
    rows.iter().filter_map(time).max().expect("rows have times") / 1_000
}

/// Returns a row with nothing but a time, in seconds since the epoch.
pub(crate) fn last_row(topic: &'static str, time: u64) -> Row {
    upsert(topic, "last".to_owned(), &serde_json::json!({"date_time": time * 1_000}))
}

fn filled(mut house: House, topics: &[&str], events: u64) -> Vec<Row> {
    let config = NexmarkConfig { base_time: BASE_TIME, ..NexmarkConfig::default() };
    let (persons, auctions, bids) =
        (config.person_proportion, config.auction_proportion, config.bid_proportion);
    let generator = |kind| EventGenerator::new(config.clone()).with_type_filter(kind);
    let mut sources = [
        (PERSONS, persons, generator(EventType::Person)),
        (AUCTIONS, auctions, generator(EventType::Auction)),
        (BIDS, bids, generator(EventType::Bid)),
    ];
    let events = usize::try_from(events).expect("as many as fit into memory");
    while house.rows.len() < events {
        for (topic, count, source) in &mut sources {
            if topics.contains(topic) {
                source.take(*count).for_each(|event| house.take(event));
            }
        }
    }
    house.rows.truncate(events);
    house.rows
}

/// The persons and auctions so far, which later rows change.
struct House {
    dice: Dice,
    /// Whether older rows change.
    is_changing: bool,
    persons: Vec<Person>,
    auctions: Vec<Auction>,
    /// Bids, each with the number that makes its key unique.
    bids: Vec<(usize, Bid)>,
    bids_so_far: usize,
    rows: Vec<Row>,
}

impl House {
    fn new(seed: u64, is_changing: bool) -> Self {
        let (persons, auctions, bids) = (Vec::new(), Vec::new(), Vec::new());
        Self { dice: Dice(seed), is_changing, persons, auctions, bids, bids_so_far: 0, rows: Vec::new() }
    }

    /// Returns whether an older row changes after a new one.
    fn changes_once_in(&mut self, rare: u64) -> bool {
        self.is_changing && self.dice.once_in(rare)
    }

    /// Adds a new row, and sometimes a change of an older one.
    fn take(&mut self, event: Event) {
        match event {
            Event::Person(person) => self.person(person),
            Event::Auction(auction) => self.auction(auction),
            Event::Bid(bid) => self.bid(bid),
        }
    }

    fn person(&mut self, person: Person) {
        self.rows.push(upsert(PERSONS, person.id.to_string(), &person));
        self.persons.push(person);
        if self.changes_once_in(PERSON_MOVES) {
            let [index, neighbour] = [(); 2].map(|()| self.dice.pick(self.persons.len()));
            let (city, state) = (self.persons[neighbour].city.clone(), self.persons[neighbour].state.clone());
            let person = &mut self.persons[index];
            (person.city, person.state) = (city, state);
            self.rows.push(upsert(PERSONS, person.id.to_string(), person));
        }
    }

    fn auction(&mut self, auction: Auction) {
        self.rows.push(upsert(AUCTIONS, auction.id.to_string(), &auction));
        self.auctions.push(auction);
        if self.changes_once_in(AUCTION_CHANGES) {
            let [index, alike] = [(); 2].map(|()| self.dice.pick(self.auctions.len()));
            let category = self.auctions[alike].category;
            let auction = &mut self.auctions[index];
            auction.category = category;
            auction.reserve += 1;
            self.rows.push(upsert(AUCTIONS, auction.id.to_string(), auction));
        }
        if self.changes_once_in(AUCTION_ENDS) {
            let index = self.dice.pick(self.auctions.len());
            let auction = self.auctions.swap_remove(index);
            self.rows.push(delete(AUCTIONS, auction.id.to_string()));
        }
    }

    fn bid(&mut self, bid: Bid) {
        let n = self.bids_so_far;
        self.bids_so_far += 1;
        self.rows.push(upsert(BIDS, bid_key(n, &bid), &bid));
        self.bids.push((n, bid));
        if self.changes_once_in(BID_RISES) {
            let index = self.dice.pick(self.bids.len());
            let (n, bid) = &mut self.bids[index];
            bid.price += 1 + bid.price / 10;
            self.rows.push(upsert(BIDS, bid_key(*n, bid), bid));
        }
        if self.changes_once_in(BID_GOES) {
            let index = self.dice.pick(self.bids.len());
            let (n, bid) = self.bids.swap_remove(index);
            self.rows.push(delete(BIDS, bid_key(n, &bid)));
        }
    }
}

fn bid_key(n: usize, bid: &Bid) -> String {
    format!("{}-{}-{n}", bid.auction, bid.bidder)
}

fn upsert(topic: &'static str, key: String, payload: &impl Serialize) -> Row {
    let payload = serde_json::to_string(payload).expect("texts and numbers are JSON");
    Row { topic, key: key.into_boxed_str(), payload: Some(payload.into_boxed_str()) }
}

fn delete(topic: &'static str, key: String) -> Row {
    Row { topic, key: key.into_boxed_str(), payload: None }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_rows_of_the_topics_asked_for() {
        let made = rows(&[AUCTIONS, BIDS], 5_000, 42);
        assert_eq!((made.len(), &made), (5_000, &rows(&[AUCTIONS, BIDS], 5_000, 42)));
        assert!(made.iter().all(|row| row.topic != PERSONS));
    }

    #[test]
    fn only_what_is_there_is_deleted() {
        let mut there = HashSet::new();
        let mut deleted = 0;
        for row in rows(&[PERSONS, AUCTIONS, BIDS], 20_000, 42) {
            let key = (row.topic, row.key);
            if row.payload.is_some() {
                there.insert(key);
            } else {
                assert!(there.remove(&key), "{key:?}");
                deleted += 1;
            }
        }
        assert!(deleted > 100, "{deleted}");
    }
}
