//! Which results a transaction has written, in a text that fits beside an offset in Kafka: so whoever comes after a crash
//! knows what was committed and what was not. Pure.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use crate::results::event::{Position, ResultId};

/// Longest text that brokers keep beside an offset, unless they are told otherwise (`offset.metadata.max.bytes`).
pub(super) const TEXT_BYTES_MAX: usize = 4_096;

/// Ids of results.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told(HashSet<String>);

impl Told {
    pub(super) fn of<'i>(ids: impl Iterator<Item = &'i str>) -> Self {
        Self(ids.map(str::to_owned).collect())
    }

    pub(super) fn has(&self, id: &str) -> bool {
        self.0.contains(id)
    }

    /// The ids as a text; by lineage, in their order, each as its distance from the one before.
    pub(super) fn text(&self) -> String {
        let mut lineages: BTreeMap<&str, BTreeSet<Position>> = BTreeMap::new();
        for id in &self.0 {
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
        let mut ids = HashSet::new();
        for (lineage, encoded) in text.split(',').filter_map(|part| part.split_once(':')) {
            let Ok(bytes) = BASE64_URL_SAFE_NO_PAD.decode(encoded) else { continue };
            let mut bytes = bytes.into_iter();
            let mut last = Position::default();
            while let (Some(epochs), Some(n)) = (read_number(&mut bytes), read_number(&mut bytes)) {
                last = match epochs {
                    0 => Position { epoch: last.epoch, n: last.n + n },
                    epochs => Position { epoch: last.epoch + epochs, n },
                };
                ids.insert(ResultId { lineage, position: last }.to_string());
            }
        }
        Self(ids)
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

    fn told(positions: impl Iterator<Item = (u64, u64)>) -> Told {
        let ids: Vec<String> = positions.map(|(epoch, n)| format!("abc.{epoch}.{n}")).collect();
        Told::of(ids.iter().map(String::as_str))
    }

    #[test]
    fn texts_read_back() {
        for told in [
            Told::default(),
            told((0..500).map(|n| (7, n))),
            told((0..500).map(|n| (n * n * 1_000, n))),
            told([(0, 0), (0, 1), (u64::from(u32::MAX), 9)].into_iter()),
            Told::of(["old.1.2", "new.1.2", "new.9.0"].into_iter()),
        ] {
            assert_eq!(Told::read(&told.text()), told);
        }
        assert_eq!(Told::read("what:ever is this"), Told::default());
    }

    #[test]
    fn a_page_of_results_fits_beside_an_offset() {
        let one_epoch = told((0..500).map(|n| (1_000_000, n * 3))).text();
        assert!(one_epoch.len() < 1_400, "{}", one_epoch.len());
        let scattered = told((0..500).map(|n| (1_000_000 + n * 1_999, n * 7))).text();
        assert!(scattered.len() < TEXT_BYTES_MAX, "{}", scattered.len());
    }
}
