//! Which shard a key lives in. A change here needs a new [`HASH_VERSION`]: files of another version are refused.

use std::hash::Hasher;

use fnv::FnvHasher;

/// Written into the layout manifest.
pub(crate) const HASH_VERSION: u32 = 1;

/// Returns the shard of `message_key`, in `0..shard_count`: FNV-1a of its bytes, folded before the modulo.
/// Without the fold a power of two sees only the low bits, and keys over {a, c, e, g} fill half of 8 shards.
pub(crate) fn shard_index(message_key: &str, shard_count: usize) -> usize {
    let mut hasher = FnvHasher::default();
    hasher.write(message_key.as_bytes());
    let hash = hasher.finish();
    let folded = hash ^ (hash >> 15) ^ (hash >> 32);
    (folded % shard_count as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_few_letters_fill_every_shard() {
        let letters = ["a", "c", "e", "g"];
        let mut counts = [0_usize; 8];
        for a in letters {
            for b in letters {
                for c in letters {
                    for d in letters {
                        for e in letters {
                            counts[shard_index(&[a, b, c, d, e].concat(), 8)] += 1;
                        }
                    }
                }
            }
        }
        assert!(counts.iter().all(|&count| count > 64), "1,024 keys over 8 shards: {counts:?}");
    }

    #[test]
    fn placement_never_changes_within_a_version() {
        let placed: Vec<usize> =
            ["", "a", "order_123", "é", "日本"].iter().map(|key| shard_index(key, 8)).collect();
        assert_eq!((HASH_VERSION, placed), (1, vec![5, 3, 1, 6, 3]));
    }
}
