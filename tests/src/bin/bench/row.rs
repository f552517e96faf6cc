//! The parts of a workload: changes of keys, and the dice that choose them.

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) topic: &'static str,
    pub(crate) key: Box<str>,
    /// JSON; `None` deletes the key.
    pub(crate) payload: Option<Box<str>>,
}

/// SplitMix64, whose numbers never change, unlike those of a crate's generator.
#[derive(Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// Returns a number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    /// Returns an index below `count`.
    pub(crate) fn pick(&mut self, count: usize) -> usize {
        usize::try_from(self.below(count as u64)).expect("below a usize")
    }

    /// Returns `true` once in `rare` calls on average.
    pub(crate) fn once_in(&mut self, rare: u64) -> bool {
        self.below(rare) == 0
    }
}
