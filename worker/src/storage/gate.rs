//! Where epochs are cut. Writers pass the gate only around COMMIT; a cut closes it for as long as it takes to
//! read one number a shard and to fix what the evaluator's readers see. So an epoch is a vector of sequence
//! numbers, with a snapshot of the topics at that very moment.
//!
//! Invariant: a commit that is told epoch E is contained in the cut that gets number E, and so is every commit that
//! came before it. One that changed something is in no earlier cut.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError, RwLock};
use std::time::Duration;

use crate::clock::SteadyClock;

/// One epoch: for each shard, the last sequence number of its `_chg` that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) epoch: u64,
    pub(crate) seqs: Vec<i64>,
    /// A second of the clock, since the Unix epoch: what arrives behind the cut has no earlier timestamp, unless the clock
    /// is set back.
    pub(crate) arrived: i64,
}

/// Bytes of changes that may wait to be cut. Above it each commit waits for a cut, so that what the evaluator takes in at
/// a time stays bounded.
const UNCUT_BYTES_MAX: usize = 11 << 20;

/// How long one commit waits for a cut at most: an evaluator in trouble slows writers down and stops none.
const UNCUT_WAIT_MAX: Duration = Duration::from_secs(1);

/// Counts epochs and holds writers for the moment of a cut.
#[derive(Debug)]
pub(crate) struct EpochGate {
    passage: RwLock<Passage>,
    signal: Mutex<Signal>,
    rung: Condvar,
}

/// The numbers that a writer reads and changes while it passes; the lock inside is for the few numbers alone.
#[derive(Debug)]
struct Passage {
    next_epoch: u64,
    /// Sequence numbers of the last cut, and its epoch.
    cut: Vec<i64>,
    cut_epoch: u64,
    committed: Vec<Mutex<i64>>,
    /// By shard, the timestamp of the messages that are being written; [`NO_STAMP`] while none are.
    stamps: Vec<AtomicI64>,
    clock: SteadyClock,
    /// Whether some shard has committed what is in no cut yet.
    is_uncut: AtomicBool,
}

/// Stands for a writer at rest.
const NO_STAMP: i64 = i64::MAX;

#[derive(Debug, Default)]
struct Signal {
    dirty: bool,
    stopped: bool,
    halted: bool,
    /// Bytes of the changes committed, or about to be, since the last cut.
    uncut_bytes: usize,
    backpressure_suspended: bool,
}

/// Why [`EpochGate::wait`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// Something was committed, or [`EpochGate::ring`] was called.
    Dirty,
    /// Nothing was, for the whole time-out.
    Idle,
    /// There will be no more commits.
    Stopped,
}

impl EpochGate {
    /// Starts with `next_epoch` for the next cut, and `seqs` as what the last one contained.
    pub(crate) fn new(next_epoch: u64, seqs: Vec<i64>) -> Self {
        let committed: Vec<Mutex<i64>> = seqs.iter().copied().map(Mutex::new).collect();
        let cut_epoch = next_epoch.saturating_sub(1);
        Self {
            passage: RwLock::new(Passage {
                next_epoch,
                cut: seqs,
                cut_epoch,
                stamps: committed.iter().map(|_| AtomicI64::new(NO_STAMP)).collect(),
                clock: SteadyClock::new(None),
                committed,
                is_uncut: AtomicBool::new(false),
            }),
            signal: Mutex::default(),
            rung: Condvar::new(),
        }
    }

    /// Returns the timestamp of messages that a writer is about to store: seconds since the Unix epoch. Cuts tell no later
    /// time until [`Self::stamped`].
    pub(crate) fn stamp(&self, shard_index: usize) -> i64 {
        let passage = self.passage.read().unwrap_or_else(PoisonError::into_inner);
        let now = passage.clock.now();
        passage.stamps[shard_index].store(now, Ordering::SeqCst);
        now
    }

    /// Says that the messages with that timestamp are stored, or are not going to be.
    pub(crate) fn stamped(&self, shard_index: usize) {
        let passage = self.passage.read().unwrap_or_else(PoisonError::into_inner);
        passage.stamps[shard_index].store(NO_STAMP, Ordering::SeqCst);
    }

    /// Runs `commit` of changes of so many bytes, after which `last_seq` is the shard's newest sequence number, and
    /// returns the epoch in which all that was committed by now is seen, in whichever shard.
    pub(crate) fn pass<E>(
        &self,
        shard_index: usize,
        last_seq: i64,
        bytes: usize,
        commit: impl FnOnce() -> Result<(), E>,
    ) -> Result<u64, E> {
        self.wait_for_room(bytes);
        let passage = self.passage.read().unwrap_or_else(PoisonError::into_inner);
        commit().inspect_err(|_| {
            self.ring_with(|signal| signal.uncut_bytes = signal.uncut_bytes.saturating_sub(bytes));
        })?;
        *passage.committed[shard_index].lock().unwrap_or_else(PoisonError::into_inner) = last_seq;
        let changed = last_seq > passage.cut[shard_index];
        if changed {
            passage.is_uncut.store(true, Ordering::SeqCst);
            self.ring_with(|signal| signal.dirty = true);
        }
        let is_uncut = passage.is_uncut.load(Ordering::SeqCst);
        Ok(if is_uncut { passage.next_epoch } else { passage.cut_epoch })
    }

    /// Runs `hold` while no commit can pass, and cuts an epoch of all that was committed by then; the last epoch
    /// again if nothing was since.
    pub(crate) fn cut<E>(&self, hold: impl FnOnce() -> Result<(), E>) -> Result<Cut, E> {
        let mut passage = self.passage.write().unwrap_or_else(PoisonError::into_inner);
        hold()?;
        let seqs = passage.committed();
        if seqs != passage.cut {
            passage.cut_epoch = passage.next_epoch;
            passage.next_epoch += 1;
            passage.cut.clone_from(&seqs);
            passage.is_uncut.store(false, Ordering::SeqCst);
            self.ring_with(|signal| signal.uncut_bytes = 0);
        }
        Ok(Cut { epoch: passage.cut_epoch, seqs, arrived: passage.arrived() })
    }

    /// Says whether commits pass that would have to wait for a cut: an evaluator that waits for their writers must not
    /// be waited for.
    pub(crate) fn suspend_backpressure(&self, suspended: bool) {
        self.ring_with(|signal| signal.backpressure_suspended = suspended);
    }

    /// Whether commits wait for a cut, or soon will.
    pub(crate) fn backpressure_near(&self) -> bool {
        self.signal.lock().unwrap_or_else(PoisonError::into_inner).uncut_bytes > UNCUT_BYTES_MAX / 2
    }

    /// The last sequence number that each shard has committed by now.
    pub(crate) fn committed(&self) -> Vec<i64> {
        self.passage.read().unwrap_or_else(PoisonError::into_inner).committed()
    }

    /// Whether something was committed since the last cut.
    pub(crate) fn is_uncut(&self) -> bool {
        self.passage.read().unwrap_or_else(PoisonError::into_inner).is_uncut.load(Ordering::SeqCst)
    }

    /// The number of the next cut.
    pub(crate) fn next_epoch(&self) -> u64 {
        self.passage.read().unwrap_or_else(PoisonError::into_inner).next_epoch
    }

    /// Waits until something is committed or [`Self::ring`] is called, at most for `timeout`.
    pub(crate) fn wait(&self, timeout: Duration) -> Wake {
        let signal = self.signal.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut signal, _) = self
            .rung
            .wait_timeout_while(signal, timeout, |signal| !signal.dirty && !signal.stopped && !signal.halted)
            .unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut signal.dirty) {
            Wake::Dirty
        } else if signal.stopped {
            Wake::Stopped
        } else {
            Wake::Idle
        }
    }

    /// Waits for at most `timeout`, or until [`Self::stop`] or [`Self::halt`]; commits do not end it. For pauses after
    /// a failure.
    pub(crate) fn pause(&self, timeout: Duration) {
        let signal = self.signal.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self.rung.wait_timeout_while(signal, timeout, |signal| !signal.stopped && !signal.halted);
    }

    /// Wakes the thread that waits for a commit.
    pub(crate) fn ring(&self) {
        self.ring_with(|signal| signal.dirty = true);
    }

    /// Says that no commit will follow: the evaluator finishes what is there and ends.
    pub(crate) fn stop(&self) {
        self.ring_with(|signal| signal.stopped = true);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.signal.lock().unwrap_or_else(PoisonError::into_inner).stopped
    }

    /// Asks the evaluator to end after the epoch that it is at, while commits go on: another is to take over.
    pub(crate) fn halt(&self) {
        self.ring_with(|signal| signal.halted = true);
    }

    /// Says that another evaluator has taken over.
    pub(crate) fn resume(&self) {
        self.ring_with(|signal| signal.halted = false);
    }

    /// Whether the evaluator is to end here.
    pub(crate) fn is_halted(&self) -> bool {
        self.signal.lock().unwrap_or_else(PoisonError::into_inner).halted
    }

    /// Waits until so many bytes more may wait to be cut; however many they are, when nothing else waits.
    fn wait_for_room(&self, bytes: usize) {
        let signal = self.signal.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = |signal: &mut Signal| {
            let is_above = signal.uncut_bytes > 0 && signal.uncut_bytes + bytes > UNCUT_BYTES_MAX;
            is_above && !signal.backpressure_suspended && !signal.stopped
        };
        let (mut signal, _) = self
            .rung
            .wait_timeout_while(signal, UNCUT_WAIT_MAX, is_full)
            .unwrap_or_else(PoisonError::into_inner);
        signal.uncut_bytes += bytes;
    }

    fn ring_with(&self, change: impl FnOnce(&mut Signal)) {
        change(&mut self.signal.lock().unwrap_or_else(PoisonError::into_inner));
        self.rung.notify_all();
    }
}

impl Passage {
    /// See [`Cut::arrived`]; the caller has the passage to itself.
    fn arrived(&self) -> i64 {
        let stamps = self.stamps.iter().map(|stamp| stamp.load(Ordering::SeqCst));
        stamps.min().unwrap_or(NO_STAMP).min(self.clock.now())
    }

    fn committed(&self) -> Vec<i64> {
        self.committed.iter().map(|seq| *seq.lock().unwrap_or_else(PoisonError::into_inner)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(gate: &EpochGate, shard_index: usize, seq: i64) -> u64 {
        gate.pass::<()>(shard_index, seq, 1, || Ok(())).expect("the commit succeeds")
    }

    fn cut(gate: &EpochGate) -> (u64, Vec<i64>) {
        let cut = gate.cut::<()>(|| Ok(())).expect("nothing fails");
        (cut.epoch, cut.seqs)
    }

    #[test]
    fn a_commit_is_told_the_first_cut_that_contains_it() {
        let gate = EpochGate::new(7, vec![0, 0]);
        assert_eq!(cut(&gate), (6, vec![0, 0]), "nothing was committed");
        assert_eq!(commit(&gate, 0, 3), 7);
        assert_eq!(commit(&gate, 1, 1), 7);
        assert_eq!(cut(&gate), (7, vec![3, 1]));
        assert_eq!(commit(&gate, 0, 3), 7, "it changed nothing, so the epoch before has it all");
        assert_eq!(commit(&gate, 0, 4), 8);
        assert_eq!(commit(&gate, 1, 1), 8, "whoever sent both reads both, whichever answer came last");
    }

    #[test]
    fn waiting_ends_with_a_commit_or_with_the_stop() {
        let gate = EpochGate::new(1, vec![0]);
        assert_eq!(gate.wait(Duration::ZERO), Wake::Idle);
        commit(&gate, 0, 1);
        assert_eq!(gate.wait(Duration::ZERO), Wake::Dirty);
        gate.stop();
        assert_eq!(gate.wait(Duration::from_secs(60)), Wake::Stopped);
    }
}
