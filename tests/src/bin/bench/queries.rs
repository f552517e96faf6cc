//! The measured joins: their topics, their text and their rows.

use clap::ValueEnum;

use crate::auction_house::{self, AUCTIONS, BIDS, PERSONS};
use crate::row::Row;
use crate::shop::{self, CUSTOMERS, ORDERS};

/// A join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchQuery {
    /// Orders with the name of their customer, joined on a field that is no key
    W1,
    /// Count and sum of each customer's orders, with the customer's name
    W2,
    /// Nexmark 3: who sells in a category in three states; persons and auctions
    Q3,
    /// Nexmark 4: average of winning prices by category; auctions and bids
    Q4,
    /// Nexmark 9: the winning bid of each auction; auctions and bids
    Q9,
    /// Nexmark 20: bids with their auction, of one category; auctions and bids
    Q20,
}

impl BenchQuery {
    /// Returns the name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::W1 => "w1",
            Self::W2 => "w2",
            Self::Q3 => "q3",
            Self::Q4 => "q4",
            Self::Q9 => "q9",
            Self::Q20 => "q20",
        }
    }

    /// Returns name and text.
    pub(crate) fn join(self) -> (&'static str, &'static str) {
        (self.name(), self.sql())
    }

    pub(crate) fn sql(self) -> &'static str {
        match self {
            Self::W1 => include_str!("queries/w1.sql"),
            Self::W2 => include_str!("queries/w2.sql"),
            Self::Q3 => include_str!("queries/q3.sql"),
            Self::Q4 => include_str!("queries/q4.sql"),
            Self::Q9 => include_str!("queries/q9.sql"),
            Self::Q20 => include_str!("queries/q20.sql"),
        }
    }

    /// Returns the topics that the query reads.
    pub(crate) fn topics(self) -> &'static [&'static str] {
        match self {
            Self::W1 | Self::W2 => &[CUSTOMERS, ORDERS],
            Self::Q3 => &[PERSONS, AUCTIONS],
            Self::Q4 | Self::Q9 | Self::Q20 => &[AUCTIONS, BIDS],
        }
    }

    /// Returns `events` changes of these topics; a query that reads customers gets all customers first.
    pub(crate) fn rows(self, events: u64, seed: u64) -> Vec<Row> {
        match self {
            Self::W1 | Self::W2 => shop::rows(events, seed),
            _ => auction_house::rows(self.topics(), events, seed),
        }
    }
}
