//! The arrival of orders' events at a client, by the markers that orders have as their amount. Pure: callers pass
//! times in.

use std::ops::Range;
use std::time::Instant;

use anyhow::{Context, Result};

/// Returns the marker in a line of an order's event: its amount in cents.
pub(super) fn marker_of(line: &str) -> Option<u64> {
    let (_, rest) = line.strip_prefix("data:")?.split_once("\"amount\":")?;
    let amount = &rest[..rest.find([',', '}'])?];
    Some((amount.parse::<f64>().ok()? * 100.0).round() as u64)
}

/// When the event of each marker of a range arrived.
#[derive(Debug)]
pub(super) struct MarkerTimes {
    markers: Range<u64>,
    /// The distance of two markers of the same order.
    orders: u64,
    at: Vec<Option<Instant>>,
}

impl MarkerTimes {
    pub(super) fn new(markers: Range<u64>, orders: u64) -> Self {
        let count = usize::try_from(markers.end - markers.start).expect("as many as fit into memory");
        Self { markers, orders, at: vec![None; count] }
    }

    /// Records an event. The event also counts for older markers of its order without an event: a result that changes
    /// twice in an epoch is sent once. Returns whether the marker is the one after the last.
    pub(super) fn take(&mut self, marker: u64, now: Instant) -> bool {
        let mut older = Some(marker);
        while let Some(marker) = older.filter(|marker| *marker >= self.markers.start) {
            if self.markers.contains(&marker) {
                let index = usize::try_from(marker - self.markers.start).expect("an index");
                if self.at[index].is_some() {
                    break;
                }
                self.at[index] = Some(now);
            }
            older = marker.checked_sub(self.orders);
        }
        marker == self.markers.end
    }

    /// Returns the times of all markers in order, or an error if some events are missing.
    pub(super) fn times(&self) -> Result<impl Iterator<Item = Instant>> {
        let missing = self.at.iter().filter(|at| at.is_none()).count();
        let all: Option<Vec<Instant>> = self.at.iter().copied().collect();
        let all = all.with_context(|| format!("{missing} of {} changes never came", self.at.len()))?;
        Ok(all.into_iter())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_amount_is_the_marker() {
        let line = r#"data: {"query":"w1","key":"o1","rows":[{"id":"o1","amount":1000000.07,"name":"Ada"}]}"#;
        assert_eq!(marker_of(line), Some(100_000_007));
        let ends = ["id: a.1.1", ": heartbeat", r#"data: {"rows":[]}"#, r#"data: {"amount":null}"#];
        assert_eq!(ends.map(marker_of), [None; 4]);
    }

    #[test]
    fn a_newer_marker_of_an_order_stands_for_older_ones() {
        let start = Instant::now();
        let at = |n: u64| start + Duration::from_millis(n);
        // Orders 0, 1, 2 carry 10 and 13, 11 and 14, 12 and 15; 16 ends the round.
        let mut markers = MarkerTimes::new(10..16, 3);
        for (n, marker) in [11, 13, 14, 12, 15].into_iter().enumerate() {
            assert!(!markers.take(marker, at(n as u64)));
        }
        assert!(markers.take(16, at(9)));
        let times: Vec<Instant> = markers.times().expect("all came").collect();
        assert_eq!(times, [1, 0, 3, 1, 2, 4].map(at));
    }

    #[test]
    fn a_marker_whose_event_did_not_come_is_missed() {
        let mut markers = MarkerTimes::new(10..13, 100);
        assert!(!markers.take(11, Instant::now()) && !markers.take(12, Instant::now()));
        let error = markers.times().err().expect("10 is missing");
        assert_eq!(error.to_string(), "1 of 3 changes never came");
    }
}
