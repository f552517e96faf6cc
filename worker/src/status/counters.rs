//! The counters that other parts of the status are made of: numbers that rooms raise and that two outlets read.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters by a label of few values.
#[derive(Debug, Default)]
pub(crate) struct CounterByLabel(Mutex<BTreeMap<&'static str, u64>>);

impl CounterByLabel {
    pub(crate) fn add(&self, label: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(label).or_default() += 1;
    }

    pub(crate) fn values(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A counter that also knows how fast it grows.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    count: Counter,
    sampled: AtomicU64,
    /// Bits of the rate, an `f64`.
    per_second: AtomicU64,
}

impl Meter {
    pub(crate) fn add(&self, count: u64) {
        self.count.add(count);
    }

    pub(crate) fn value(&self) -> u64 {
        self.count.value()
    }

    /// The rate over the last few seconds.
    pub(crate) fn per_second(&self) -> f64 {
        f64::from_bits(self.per_second.load(Ordering::Relaxed))
    }

    /// Takes note of what was counted in the last `seconds`; the rate follows a change within a few samples.
    pub(super) fn sample(&self, seconds: f64) {
        let count = self.value();
        let before = self.sampled.swap(count, Ordering::Relaxed);
        let rate = (count - before) as f64 / seconds;
        let smooth = self.per_second() + RATE_WEIGHT * (rate - self.per_second());
        // An exponential never gets to nothing.
        let smooth = if smooth < 0.01 { 0.0 } else { smooth };
        self.per_second.store(smooth.to_bits(), Ordering::Relaxed);
    }
}

/// Weight of the newest sample in a rate.
const RATE_WEIGHT: f64 = 0.3;

/// A number that goes up and down.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicI64);

impl Gauge {
    pub(crate) fn set(&self, value: u64) {
        self.0.store(i64::try_from(value).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn add(&self, change: i64) -> i64 {
        self.0.fetch_add(change, Ordering::Relaxed) + change
    }

    pub(crate) fn value(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The last thing that went wrong, until it goes right again.
#[derive(Debug, Default)]
pub(crate) struct LastError(Mutex<Option<String>>);

impl LastError {
    /// Returns whether this is news.
    pub(crate) fn set(&self, error: &str) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let news = last.as_deref() != Some(error);
        *last = Some(error.to_owned());
        news
    }

    /// Returns whether there was an error.
    pub(crate) fn clear(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }

    pub(crate) fn text(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Counters by the name of what they count; those of a name stay the same for as long as the config has it.
#[derive(Debug)]
pub(super) struct ByName<T>(RwLock<BTreeMap<String, Arc<T>>>);

impl<T> Default for ByName<T> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<T: Default> ByName<T> {
    /// Makes counters for the names that have none, and forgets those of all others.
    pub(super) fn keep<'n>(&self, names: impl Iterator<Item = &'n str>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *all);
        all.extend(names.map(|name| (name.to_owned(), before.remove(name).unwrap_or_default())));
    }

    /// The counters of a name that the config has.
    pub(super) fn of(&self, name: &str) -> Arc<T> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)[name])
    }

    /// The counters of a name that the config may have.
    pub(super) fn find(&self, name: &str) -> Option<Arc<T>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    pub(super) fn map<V>(&self, value: impl Fn(&T) -> V) -> Vec<(String, V)> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(name, counters)| (name.clone(), value(counters))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_follows_what_is_counted() {
        let meter = Meter::default();
        for _ in 0..30 {
            meter.add(200);
            meter.sample(2.0);
        }
        assert!((meter.per_second() - 100.0).abs() < 1.0, "{}", meter.per_second());
        for _ in 0..60 {
            meter.sample(2.0);
        }
        assert_eq!((meter.per_second(), meter.value()), (0.0, 6_000));
    }
}
