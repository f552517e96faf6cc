//! Batches on their way into the shards, by the partition of a source that they come from. A batch is spread over shards,
//! which store their parts one after the other, and a cut may fall in between. Its event times count for a watermark once
//! all parts are stored, of this batch and of those before it; or the rest of it would come late.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashMap;

use super::gate::EpochGate;

/// Newest event times by the name of their clock, in seconds since the Unix epoch.
type Times = BTreeMap<Arc<str>, i64>;

/// The batches of all sources.
#[derive(Debug)]
pub(crate) struct Arrivals {
    gate: Arc<EpochGate>,
    partitions: Mutex<HashMap<Arc<str>, PartitionQueue>>,
}

/// The batches of one partition in the order in which they began.
#[derive(Debug, Default)]
struct PartitionQueue {
    next: u64,
    /// Batches that are not stored, and those behind one of them with their event times.
    waiting: BTreeMap<u64, Option<Times>>,
    sure: Times,
}

/// One batch, until all that have to do with it have dropped it.
#[derive(Debug)]
pub(crate) struct BatchArrival {
    arrivals: Arc<Arrivals>,
    partition: Arc<str>,
    number: u64,
    times: Mutex<Times>,
}

/// Event times that count, by clock and by partition.
pub(crate) type SureTimes = BTreeMap<Arc<str>, BTreeMap<Arc<str>, i64>>;

impl Arrivals {
    pub(crate) fn new(gate: Arc<EpochGate>) -> Arc<Self> {
        Arc::new(Self { gate, partitions: Mutex::default() })
    }

    /// Notes that a batch of a partition is about to be spread over the shards.
    pub(crate) fn begin(self: &Arc<Self>, partition: &Arc<str>) -> Arc<BatchArrival> {
        let mut partitions = self.partitions.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = partitions.entry(Arc::clone(partition)).or_default();
        let number = queue.next;
        queue.next += 1;
        queue.waiting.insert(number, None);
        let (arrivals, partition) = (Arc::clone(self), Arc::clone(partition));
        Arc::new(BatchArrival { arrivals, partition, number, times: Mutex::default() })
    }

    /// Returns the event times that count by now. A cut from here on has all rows that brought them.
    pub(crate) fn sure(&self) -> SureTimes {
        let partitions = self.partitions.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = SureTimes::new();
        for (partition, queue) in partitions.iter() {
            for (clock, time) in &queue.sure {
                all.entry(Arc::clone(clock)).or_default().insert(Arc::clone(partition), *time);
            }
        }
        all
    }

    fn end(&self, partition: &Arc<str>, number: u64, times: Times) {
        let mut partitions = self.partitions.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(queue) = partitions.get_mut(partition) else { return };
        queue.waiting.insert(number, Some(times));
        let mut is_news = false;
        while let Some(first) = queue.waiting.first_entry()
            && first.get().is_some()
        {
            for (clock, time) in first.remove().into_iter().flatten() {
                is_news = true;
                queue.sure.entry(clock).and_modify(|known| *known = time.max(*known)).or_insert(time);
            }
        }
        drop(partitions);
        if is_news {
            self.gate.ring();
        }
    }
}

impl BatchArrival {
    /// Notes an event time of a part that is stored.
    pub(crate) fn note(&self, clock: &Arc<str>, time: i64) {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        times.entry(Arc::clone(clock)).and_modify(|known| *known = time.max(*known)).or_insert(time);
    }
}

impl Drop for BatchArrival {
    fn drop(&mut self) {
        let times = std::mem::take(self.times.get_mut().unwrap_or_else(PoisonError::into_inner));
        self.arrivals.end(&self.partition, self.number, times);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_counts_once_all_before_it_is_stored() {
        let arrivals = Arrivals::new(Arc::new(EpochGate::new(1, vec![0])));
        let (partition, clock): (Arc<str>, Arc<str>) = ("s".into(), "c".into());
        let sure = || arrivals.sure().get(&clock).and_then(|times| times.get(&partition).copied());
        let (first, second) = (arrivals.begin(&partition), arrivals.begin(&partition));
        first.note(&clock, 10);
        second.note(&clock, 20);
        let part = Arc::clone(&second);
        drop(second);
        drop(part);
        assert_eq!(sure(), None, "the first is on its way");
        drop(first);
        assert_eq!(sure(), Some(20));
        drop(arrivals.begin(&partition));
        assert_eq!(sure(), Some(20), "a batch without a time changes nothing");
    }
}
