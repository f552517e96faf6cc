//! The rows that every way of ingest stores: 10,000 customers, then updates of 100,000 orders, with now and then a
//! customer among them. Made from a seed, so every run of every version has the same.

use std::fmt::Write as _;

/// Customers, all written before the first order.
pub(crate) const CUSTOMERS: u64 = 10_000;

/// Orders that the events go over.
const ORDERS: u64 = 100_000;

/// One event in so many updates a customer; one order in so many moves to another customer.
const RARE: u64 = 100;

/// Bytes of each payload.
const PAYLOAD_BYTES: usize = 189;

/// The two topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Topic {
    Customers,
    Orders,
}

impl Topic {
    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Customers => "customers",
            Self::Orders => "orders",
        }
    }
}

/// One upsert.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) topic: Topic,
    pub(crate) key: Box<str>,
    /// An object of exactly 189 bytes; its first field is the key.
    pub(crate) payload: Box<str>,
}

/// Makes the customers and then `events` more rows.
pub(crate) fn rows(events: u64, seed: u64) -> Vec<Row> {
    let mut dice = Dice(seed);
    let mut owners: Vec<u64> = (0..ORDERS).map(|_| dice.below(CUSTOMERS)).collect();
    let mut rows: Vec<Row> = (0..CUSTOMERS).map(|id| customer(id, &mut dice)).collect();
    for _ in 0..events {
        if dice.below(RARE) == 0 {
            let id = dice.below(CUSTOMERS);
            rows.push(customer(id, &mut dice));
        } else {
            let id = dice.below(ORDERS);
            let owner = &mut owners[usize::try_from(id).expect("a small number")];
            if dice.below(RARE) == 0 {
                *owner = dice.below(CUSTOMERS);
            }
            rows.push(order(id, *owner, &mut dice));
        }
    }
    rows
}

fn customer(id: u64, dice: &mut Dice) -> Row {
    let region = ["north", "east", "south", "west"][usize::try_from(dice.below(4)).expect("below 4")];
    let fields = format!(
        r#""id":"c{id:05}","name":"Customer {id}","region":"{region}","score":{}"#,
        dice.below(1_000_000)
    );
    Row { topic: Topic::Customers, key: format!("c{id:05}").into_boxed_str(), payload: padded(&fields, dice) }
}

fn order(id: u64, owner: u64, dice: &mut Dice) -> Row {
    let fields = format!(
        r#""id":"o{id:06}","customer_id":"c{owner:05}","amount":{}.{:02},"quantity":{}"#,
        dice.below(10_000),
        dice.below(100),
        1 + dice.below(20),
    );
    Row { topic: Topic::Orders, key: format!("o{id:06}").into_boxed_str(), payload: padded(&fields, dice) }
}

/// Closes the object with a field of random letters that brings it to its length.
fn padded(fields: &str, dice: &mut Dice) -> Box<str> {
    let mut payload = String::with_capacity(PAYLOAD_BYTES);
    let _ = write!(payload, "{{{fields},\"note\":\"");
    while payload.len() < PAYLOAD_BYTES - 2 {
        payload.push(char::from(b'a' + u8::try_from(dice.below(26)).expect("below 26")));
    }
    payload.push_str("\"}");
    payload.into_boxed_str()
}

/// SplitMix64: it never changes, as the generators of a crate may.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_payload_is_an_object_of_the_same_length() {
        for row in rows(1_000, 42) {
            let payload: serde_json::Value = serde_json::from_str(&row.payload).expect("JSON");
            assert_eq!((row.payload.len(), payload["id"].as_str()), (PAYLOAD_BYTES, Some(&*row.key)));
        }
    }
}
