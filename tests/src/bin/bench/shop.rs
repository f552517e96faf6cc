//! A shop: 10,000 customers, then updates of orders, with now and then a customer among them. Made from a seed, so
//! every run of every version has the same.

use std::fmt::Write as _;

use crate::row::{Dice, Row};

/// The two topics.
pub(crate) const CUSTOMERS: &str = "customers";
pub(crate) const ORDERS: &str = "orders";

/// Customers, all written before the first order.
pub(crate) const CUSTOMER_COUNT: u64 = 10_000;

/// Orders that the events go over.
pub(crate) const ORDER_COUNT: u64 = 100_000;

/// One event in so many updates a customer; one order in so many moves to another customer.
const RARE: u64 = 100;

/// Bytes of each payload.
const PAYLOAD_BYTES: usize = 189;

/// Makes the customers and then `events` more rows.
pub(crate) fn rows(events: u64, seed: u64) -> Vec<Row> {
    let mut shop = Shop::new(ORDER_COUNT, seed);
    let mut rows = shop.customers();
    rows.extend((0..events).map(|_| shop.event()));
    rows
}

/// The customer of each order, and the dice.
#[derive(Debug)]
pub(crate) struct Shop {
    owners: Vec<u64>,
    dice: Dice,
}

impl Shop {
    /// A shop with so many orders, none of which is written yet.
    pub(crate) fn new(order_count: u64, seed: u64) -> Self {
        let mut dice = Dice(seed);
        Self { owners: (0..order_count).map(|_| dice.below(CUSTOMER_COUNT)).collect(), dice }
    }

    /// A row for each customer.
    pub(crate) fn customers(&mut self) -> Vec<Row> {
        (0..CUSTOMER_COUNT).map(|id| self.customer(id)).collect()
    }

    /// A row for each order.
    pub(crate) fn orders(&mut self) -> Vec<Row> {
        (0..self.owners.len()).map(|id| self.order(id)).collect()
    }

    /// An update of some order or, now and then, customer.
    pub(crate) fn event(&mut self) -> Row {
        self.rare_customer().unwrap_or_else(|| {
            let id = self.dice.pick(self.owners.len());
            self.order(id)
        })
    }

    /// An update of some customer, now and then.
    pub(crate) fn rare_customer(&mut self) -> Option<Row> {
        self.dice.once_in(RARE).then(|| {
            let id = self.dice.below(CUSTOMER_COUNT);
            self.customer(id)
        })
    }

    /// A customer under another name.
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

    /// An order of this amount, which may have moved to another customer.
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

    /// Closes the object with a field of random letters that brings it to its length.
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
