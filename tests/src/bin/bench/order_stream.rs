//! A stream of orders that come once, each with its time: a thousand in a second, some a few seconds late. Some are
//! corrected or cancelled soon after. The rows depend only on a seed.

use std::collections::VecDeque;
use std::fmt::Write as _;

use crate::row::{Dice, Row};
use crate::shop::{CUSTOMER_COUNT, ORDERS};

/// The time of the first order, in seconds since the epoch.
const FIRST_TIME: u64 = 1_767_225_600;

/// Orders in a second.
const PACE: u64 = 1_000;

/// An order may come this many seconds late.
const LATE_MAX: u64 = 5;

/// One order in this many is followed by a correction, or by a cancellation, of one of the [`RECENT`].
const CORRECTED: u64 = 20;
const CANCELLED: u64 = 200;
const RECENT: usize = 10_000;

/// Bytes of each payload.
const PAYLOAD_BYTES: usize = 189;

/// An order as it was placed.
#[derive(Debug, Clone, Copy)]
struct PlacedOrder {
    number: u64,
    customer: u64,
    /// Seconds since the epoch.
    at: u64,
}

/// Returns `events` changes of orders.
pub(crate) fn rows(events: u64, seed: u64) -> Vec<Row> {
    let events = usize::try_from(events).expect("as many as fit into memory");
    let mut dice = Dice(seed);
    let mut recent: VecDeque<PlacedOrder> = VecDeque::with_capacity(RECENT);
    let mut rows = Vec::with_capacity(events + 2);
    let mut number = 0;
    while rows.len() < events {
        let at = FIRST_TIME + LATE_MAX + number / PACE - dice.below(LATE_MAX);
        let order = PlacedOrder { number, customer: dice.below(CUSTOMER_COUNT), at };
        rows.push(order.row(&mut dice));
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(order);
        if dice.once_in(CORRECTED) {
            rows.push(recent[dice.pick(recent.len())].row(&mut dice));
        }
        if dice.once_in(CANCELLED) {
            let cancelled = recent.remove(dice.pick(recent.len())).expect("it was picked among them");
            rows.push(Row { payload: None, ..cancelled.row(&mut dice) });
        }
        number += 1;
    }
    rows.truncate(events);
    rows
}

/// Returns the time of an order that is placed `seconds` after all of so many events.
pub(crate) fn time_after(events: u64, seconds: u64) -> u64 {
    FIRST_TIME + LATE_MAX + events / PACE + seconds
}

/// Returns an order of no customer, which is placed at a moment.
pub(crate) fn last_order(at: u64) -> Row {
    Row { topic: ORDERS, key: "last".into(), payload: Some(format!(r#"{{"at":"{}"}}"#, text(at)).into()) }
}

impl PlacedOrder {
    /// Returns the order with an amount of its own. A field of random letters pads the payload to its length.
    fn row(self, dice: &mut Dice) -> Row {
        let Self { number, customer, at } = self;
        let cents = dice.below(1_000_000);
        let mut payload = format!(
            r#"{{"id":"o{number:07}","customer_id":"c{customer:05}","cents":{cents},"amount":{}.{:02},"at":"{}","note":""#,
            cents / 100,
            cents % 100,
            text(at),
        );
        while payload.len() < PAYLOAD_BYTES - 2 {
            payload.push(char::from(b'a' + u8::try_from(dice.below(26)).expect("below 26")));
        }
        let _ = write!(payload, "\"}}");
        Row { topic: ORDERS, key: format!("o{number:07}").into(), payload: Some(payload.into()) }
    }
}

/// Writes a time by RFC 3339.
fn text(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).expect("a time of this century");
    jiff::Timestamp::from_second(seconds).expect("a time of this century").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_orders_none_of_them_long_after_their_time() {
        let made = rows(30_000, 42);
        assert_eq!(made, rows(30_000, 42));
        let end = time_after(30_000, 0);
        let mut deleted = 0;
        for row in &made {
            let Some(payload) = &row.payload else {
                deleted += 1;
                continue;
            };
            let fields: serde_json::Value = serde_json::from_str(payload).expect("JSON");
            assert_eq!((payload.len(), fields["id"].as_str()), (PAYLOAD_BYTES, Some(&*row.key)));
            let at: jiff::Timestamp = fields["at"].as_str().expect("a text").parse().expect("a time");
            assert!(at.as_second() <= i64::try_from(end).expect("a time"));
        }
        assert!(deleted > 100, "{deleted}");
    }
}
