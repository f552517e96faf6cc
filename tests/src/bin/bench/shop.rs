//! A shop: 10,000 customers, then updates of orders, with a customer among them now and then. The rows depend only on
//! a seed, so every run of every version has the same ones.

use std::fmt::Write as _;

use crate::row::{Dice, Row};

/// The two topics.
pub(crate) const CUSTOMERS: &str = "customers";
pub(crate) const ORDERS: &str = "orders";

/// Customers, all written before the first order.
pub(crate) const CUSTOMER_COUNT: u64 = 10_000;

/// Orders that the updates are spread over.
pub(crate) const ORDER_COUNT: u64 = 100_000;

/// One update in this many is of a customer; one order in this many moves to another customer.
const RARE: u64 = 100;

/// Bytes of each payload.
const PAYLOAD_BYTES: usize = 189;

/// Returns the customers and then `events` more rows.
pub(crate) fn rows(events: u64, seed: u64) -> Vec<Row> {
    let mut shop = Shop::new(ORDER_COUNT, seed);
    let mut rows = shop.customers();
    rows.extend((0..events).map(|_| shop.event()));
    rows
}

/// The customer of each order, and the random numbers.
#[derive(Debug)]
pub(crate) struct Shop {
    owners: Vec<u64>,
    dice: Dice,
}

impl Shop {
    /// Returns a shop with this many orders, all still to be written.
    pub(crate) fn new(order_count: u64, seed: u64) -> Self {
        let mut dice = Dice(seed);
        Self { owners: (0..order_count).map(|_| dice.below(CUSTOMER_COUNT)).collect(), dice }
    }

    /// Returns a row for each customer.
    pub(crate) fn customers(&mut self) -> Vec<Row> {
        (0..CUSTOMER_COUNT).map(|id| self.customer(id)).collect()
    }

    /// Returns a row for each order.
    pub(crate) fn orders(&mut self) -> Vec<Row> {
        (0..self.owners.len()).map(|id| self.order(id)).collect()
    }

    /// Returns an update of some order or, now and then, of a customer.
    pub(crate) fn event(&mut self) -> Row {
        self.rare_customer().unwrap_or_else(|| {
            let id = self.dice.pick(self.owners.len());
            self.order(id)
        })
    }

    /// Returns an update of some customer, now and then.
    pub(crate) fn rare_customer(&mut self) -> Option<Row> {
        self.dice.once_in(RARE).then(|| {
            let id = self.dice.below(CUSTOMER_COUNT);
            self.customer(id)
        })
    }

    /// Returns a customer under another name.
    fn customer(&mut self, id: u64) -> Row {
        let region = ["north", "east", "south", "west"][self.dice.pick(4)];
        let score = self.dice.below(1_000_000);
        let fields = format!(
            r#""id":"c{id:05}","name":"Customer {id} the {score}th","region":"{region}","score":{score}"#
        );
        self.row(CUSTOMERS, format!("c{id:05}"), &fields)
    }

    fn order(&mut self, id: usize) -> Row {
        let cents = self.dice.below(1_000_000);
        self.order_of(id, cents)
    }

    /// Returns an order of this amount, which may move to another customer.
    pub(crate) fn order_of(&mut self, id: usize, cents: u64) -> Row {
        if self.dice.once_in(RARE) {
            self.owners[id] = self.dice.below(CUSTOMER_COUNT);
        }
        let fields = format!(
            r#""id":"o{id:06}","customer_id":"c{:05}","amount":{}.{:02},"quantity":{}"#,
            self.owners[id],
            cents / 100,
            cents % 100,
            1 + self.dice.below(20),
        );
        self.row(ORDERS, format!("o{id:06}"), &fields)
    }

    /// Closes the object with a field of random letters that pads the payload to its length.
    fn row(&mut self, topic: &'static str, key: String, fields: &str) -> Row {
        let mut payload = String::with_capacity(PAYLOAD_BYTES);
        let _ = write!(payload, "{{{fields},\"note\":\"");
        while payload.len() < PAYLOAD_BYTES - 2 {
            payload.push(char::from(b'a' + u8::try_from(self.dice.below(26)).expect("below 26")));
        }
        payload.push_str("\"}");
        Row { topic, key: key.into_boxed_str(), payload: Some(payload.into_boxed_str()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_payload_is_an_object_of_the_same_length() {
        for row in rows(1_000, 42) {
            let text = row.payload.expect("nothing is deleted");
            let payload: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!((text.len(), payload["id"].as_str()), (PAYLOAD_BYTES, Some(&*row.key)));
        }
    }
}
