//! The ids of the results that were written last, as a text that fits beside an offset in Kafka: so the session after a
//! crash knows which results were committed. Pure.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use crate::results::event::{Position, ResultId};

/// Longest text that brokers keep beside an offset, unless they are told otherwise (`offset.metadata.max.bytes`).
const TEXT_BYTES_MAX: usize = 4_096;

/// Ids that are let go of at a time.
const SPARE_STEP: usize = 50;

/// Ids that are kept: more than a sink is handed before its cursor moves, which may take several transactions.
const IDS_MAX: usize = 1_000;

/// Ids of results.
#[derive(Debug, Clone, Default)]
pub(super) struct DeliveredIds {
    /// The oldest first.
    ids: VecDeque<String>,
    set: HashSet<String>,
}

impl DeliveredIds {
    /// Adds ids, and lets go of the oldest so that the text fits. Returns nothing if the new ones alone don't.
    pub(super) fn with<'i>(&self, new: impl Iterator<Item = &'i str>) -> Option<Self> {
        let mut delivered = self.clone();
        let mut added = 0;
        for id in new {
            if delivered.set.insert(id.to_owned()) {
                delivered.ids.push_back(id.to_owned());
                added += 1;
            }
        }
        while delivered.ids.len() > added
            && (delivered.ids.len() > IDS_MAX || delivered.text().len() > TEXT_BYTES_MAX)
        {
            let spare = delivered.ids.len() - added;
            for id in delivered.ids.drain(..spare.min(SPARE_STEP)) {
                delivered.set.remove(&id);
            }
        }
        (delivered.text().len() <= TEXT_BYTES_MAX).then_some(delivered)
    }

    pub(super) fn has(&self, id: &str) -> bool {
        self.set.contains(id)
    }

    /// The ids as a text; by lineage, in their order, each as its distance from the one before.
    pub(super) fn text(&self) -> String {
        let mut lineages: BTreeMap<&str, BTreeSet<Position>> = BTreeMap::new();
        for id in &self.ids {
            let id = ResultId::parse(id).expect("ids of results are ours");
            lineages.entry(id.lineage).or_default().insert(id.position);
        }
        let parts = lineages.into_iter().map(|(lineage, positions)| {
            let mut bytes = Vec::new();
            let mut last = Position::default();
            for position in positions {
                let epochs = position.epoch - last.epoch;
                write_number(&mut bytes, epochs);
                write_number(&mut bytes, if epochs == 0 { position.n - last.n } else { position.n });
                last = position;
            }
            format!("{lineage}:{}", BASE64_URL_SAFE_NO_PAD.encode(bytes))
        });
        parts.collect::<Vec<_>>().join(",")
    }

    /// Reads the text back; what can't be read is nothing.
    pub(super) fn read(text: &str) -> Self {
        let mut delivered = Self::default();
        for (lineage, encoded) in text.split(',').filter_map(|part| part.split_once(':')) {
            let Ok(bytes) = BASE64_URL_SAFE_NO_PAD.decode(encoded) else { continue };
            let mut bytes = bytes.into_iter();
            let mut last = Position::default();
            while let (Some(epochs), Some(n)) = (read_number(&mut bytes), read_number(&mut bytes)) {
                last = match epochs {
                    0 => Position { epoch: last.epoch, n: last.n + n },
                    epochs => Position { epoch: last.epoch + epochs, n },
                };
                let id = ResultId { lineage, position: last }.to_string();
                delivered.ids.push_back(id.clone());
                delivered.set.insert(id);
            }
        }
        delivered
    }
}

/// Writes a number in as few bytes as it needs: seven bits each, the lowest first.
fn write_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number as u8 & 0x7f) | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn read_number(bytes: &mut impl Iterator<Item = u8>) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = bytes.next()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(positions: impl Iterator<Item = (u64, u64)>) -> Vec<String> {
        positions.map(|(epoch, n)| format!("abc.{epoch}.{n}")).collect()
    }

    fn delivered(ids: &[String]) -> DeliveredIds {
        DeliveredIds::default().with(ids.iter().map(String::as_str)).expect("they fit")
    }

    #[test]
    fn texts_read_back() {
        for ids in [
            Vec::new(),
            ids((0..500).map(|n| (7, n))),
            ids((0..500).map(|n| (n * n * 1_000, n))),
            ids([(0, 0), (0, 1), (u64::from(u32::MAX), 9)].into_iter()),
            ["old.1.2", "new.1.2", "new.9.0"].map(str::to_owned).into(),
        ] {
            let delivered = delivered(&ids);
            assert_eq!(DeliveredIds::read(&delivered.text()).set, delivered.set);
            assert!(ids.iter().all(|id| delivered.has(id)));
        }
        assert_eq!(DeliveredIds::read("what:ever is this").set, HashSet::new());
    }

    #[test]
    fn the_newest_stay_and_the_text_fits() {
        let mut last = DeliveredIds::default();
        let scattered: Vec<String> = ids((0..3_000).map(|n| (1_000_000 + n * 199_999, n * 7)));
        for some in scattered.chunks(40) {
            last = last.with(some.iter().map(String::as_str)).expect("40 fit");
            assert!(last.text().len() <= TEXT_BYTES_MAX && some.iter().all(|id| last.has(id)));
        }
        assert!((400..1_000).contains(&last.ids.len()), "{} are kept", last.ids.len());
        assert_eq!(last.set.len(), last.ids.len());
        let too_many = DeliveredIds::default().with(scattered.iter().map(String::as_str));
        assert!(too_many.is_none());
        let dense = delivered(&ids((0..1_000).map(|n| (1_000_000, n * 3))));
        assert_eq!(dense.ids.len(), 1_000, "an epoch's results take little room");
    }
}
