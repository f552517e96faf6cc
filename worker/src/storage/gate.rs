//! Where epochs are cut. Writers pass the gate only around COMMIT; a cut closes it for as long as it takes to
//! read one number a shard. So an epoch is a vector of sequence numbers: everything committed up to them is in it.
//!
//! Invariant: a commit that is told epoch E is contained in the cut that gets number E, and in no earlier one.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError, RwLock};
use std::time::Duration;

/// One epoch: for each shard, the last sequence number of its `_chg` that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) epoch: u64,
    pub(crate) seqs: Vec<i64>,
    /// Whether rows in it left by retention only, so that their results leave without an event.
    pub(crate) quiet: bool,
}

/// Counts epochs and holds writers for the moment of a cut.
#[derive(Debug)]
pub(crate) struct EpochGate {
    passage: RwLock<Passage>,
    signal: Mutex<Signal>,
    rung: Condvar,
}

/// What a writer reads and changes while it passes; the lock inside is for the few numbers alone.
#[derive(Debug)]
struct Passage {
    next_epoch: u64,
    /// Sequence numbers of the last cut.
    cut: Vec<i64>,
    committed: Vec<Mutex<i64>>,
    /// Whether writers are removing expired rows: those get a cut of their own, which only the cleaner makes.
    expiring: bool,
}

#[derive(Debug, Default)]
struct Signal {
    dirty: bool,
    stopped: bool,
    halted: bool,
    /// Cuts made by the retention cleaner, which come before any new one.
    queued: VecDeque<Cut>,
}

/// Cuts of the retention cleaner that may wait for the evaluator.
const QUEUED_CUTS_MAX: usize = 4;

/// Why [`EpochGate::wait`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// Something was committed.
    Dirty,
    /// Nothing was, for the whole time-out.
    Idle,
    /// There will be no more commits.
    Stopped,
}

impl EpochGate {
    /// Starts with `next_epoch` for the next cut, and `seqs` as what the last one contained.
    pub(crate) fn new(next_epoch: u64, seqs: Vec<i64>) -> Self {
        let committed = seqs.iter().copied().map(Mutex::new).collect();
        Self {
            passage: RwLock::new(Passage { next_epoch, cut: seqs, committed, expiring: false }),
            signal: Mutex::default(),
            rung: Condvar::new(),
        }
    }

    /// Runs `commit`, after which `last_seq` is the shard's newest sequence number, and returns the epoch in
    /// which all that the shard has committed is seen.
    pub(crate) fn pass<E>(
        &self,
        shard_index: usize,
        last_seq: i64,
        commit: impl FnOnce() -> Result<(), E>,
    ) -> Result<u64, E> {
        let passage = self.passage.read().unwrap_or_else(PoisonError::into_inner);
        commit()?;
        *passage.committed[shard_index].lock().unwrap_or_else(PoisonError::into_inner) = last_seq;
        let changed = last_seq > passage.cut[shard_index];
        let epoch = if changed { passage.next_epoch } else { passage.next_epoch - 1 };
        drop(passage);
        if changed {
            self.ring(|signal| signal.dirty = true);
        }
        Ok(epoch)
    }

    /// Cuts an epoch if anything was committed since the last one. What the cleaner has cut comes first.
    pub(crate) fn cut(&self) -> Option<Cut> {
        let mut passage = self.passage.write().unwrap_or_else(PoisonError::into_inner);
        let queued = self.signal.lock().unwrap_or_else(PoisonError::into_inner).queued.pop_front();
        if queued.is_some() {
            self.rung.notify_all();
            return queued;
        }
        if passage.expiring { None } else { passage.cut(false) }
    }

    /// Cuts an epoch of what was before the retention cleaner, which has stopped all writers. Until
    /// [`Self::end_expiry`] nobody else cuts one.
    pub(crate) fn begin_expiry(&self) {
        self.queue_cut(true, false);
    }

    /// Cuts an epoch that holds nothing but what has expired since [`Self::begin_expiry`].
    pub(crate) fn end_expiry(&self, quiet: bool) {
        self.queue_cut(false, quiet);
    }

    fn queue_cut(&self, expiring: bool, quiet: bool) {
        // Held until the cut is in the queue, so that the evaluator can't overtake it with a later one.
        let mut passage = self.passage.write().unwrap_or_else(PoisonError::into_inner);
        passage.expiring = expiring;
        if let Some(cut) = passage.cut(quiet) {
            self.ring(|signal| {
                signal.queued.push_back(cut);
                signal.dirty = true;
            });
        }
    }

    /// Waits until few cuts are queued, at most for `timeout`; returns whether another pass may queue its own.
    pub(crate) fn wait_for_queue(&self, timeout: Duration) -> bool {
        let signal = self.signal.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |signal: &mut Signal| signal.queued.len() >= QUEUED_CUTS_MAX && !signal.stopped;
        let (signal, waited) =
            self.rung.wait_timeout_while(signal, timeout, full).unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out() && !signal.stopped
    }

    /// Takes a number for an epoch in which no topic changed, only results did (a new query, the passing of time).
    pub(crate) fn empty_cut(&self) -> Cut {
        let mut passage = self.passage.write().unwrap_or_else(PoisonError::into_inner);
        let epoch = passage.next_epoch;
        passage.next_epoch += 1;
        Cut { epoch, seqs: passage.cut.clone(), quiet: false }
    }

    /// Runs `work` while no commit can pass, and returns what each shard has committed by then, with the number of
    /// the next cut.
    pub(crate) fn hold<E>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<(Vec<i64>, u64), E> {
        let passage = self.passage.write().unwrap_or_else(PoisonError::into_inner);
        work()?;
        let committed =
            passage.committed.iter().map(|seq| *seq.lock().unwrap_or_else(PoisonError::into_inner));
        Ok((committed.collect(), passage.next_epoch))
    }

    /// The number of the next cut.
    pub(crate) fn next_epoch(&self) -> u64 {
        self.passage.read().unwrap_or_else(PoisonError::into_inner).next_epoch
    }

    /// Waits until something is committed, at most for `timeout`.
    pub(crate) fn wait(&self, timeout: Duration) -> Wake {
        let signal = self.signal.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut signal, _) = self
            .rung
            .wait_timeout_while(signal, timeout, |signal| !signal.dirty && !signal.stopped && !signal.halted)
            .unwrap_or_else(PoisonError::into_inner);
        if signal.dirty {
            signal.dirty = !signal.queued.is_empty();
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

    /// Says that no commit will follow: the evaluator finishes what is there and ends.
    pub(crate) fn stop(&self) {
        self.ring(|signal| signal.stopped = true);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.signal.lock().unwrap_or_else(PoisonError::into_inner).stopped
    }

    /// Asks the evaluator to end after the epoch that it is at, while commits go on: another is to take over.
    pub(crate) fn halt(&self) {
        self.ring(|signal| signal.halted = true);
    }

    /// Says that another evaluator has taken over.
    pub(crate) fn resume(&self) {
        self.ring(|signal| signal.halted = false);
    }

    /// Whether the evaluator is to end here; not before it has had what the retention cleaner cut.
    pub(crate) fn is_halted(&self) -> bool {
        let signal = self.signal.lock().unwrap_or_else(PoisonError::into_inner);
        signal.halted && signal.queued.is_empty()
    }

    fn ring(&self, change: impl FnOnce(&mut Signal)) {
        change(&mut self.signal.lock().unwrap_or_else(PoisonError::into_inner));
        self.rung.notify_all();
    }
}

impl Passage {
    /// Cuts an epoch, unless nothing was committed since the last one.
    fn cut(&mut self, quiet: bool) -> Option<Cut> {
        let seqs: Vec<i64> =
            self.committed.iter().map(|seq| *seq.lock().unwrap_or_else(PoisonError::into_inner)).collect();
        if seqs == self.cut {
            return None;
        }
        let epoch = self.next_epoch;
        self.next_epoch += 1;
        self.cut.clone_from(&seqs);
        Some(Cut { epoch, seqs, quiet })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(gate: &EpochGate, shard_index: usize, seq: i64) -> u64 {
        gate.pass::<()>(shard_index, seq, || Ok(())).expect("the commit succeeds")
    }

    #[test]
    fn a_commit_is_told_the_first_cut_that_contains_it() {
        let gate = EpochGate::new(7, vec![0, 0]);
        assert_eq!(gate.cut(), None, "nothing was committed");
        assert_eq!(commit(&gate, 0, 3), 7);
        assert_eq!(commit(&gate, 1, 1), 7);
        assert_eq!(gate.cut(), Some(Cut { epoch: 7, seqs: vec![3, 1], quiet: false }));
        assert_eq!(commit(&gate, 0, 3), 7, "it changed nothing, so the epoch before has it all");
        assert_eq!(commit(&gate, 0, 4), 8);
    }

    #[test]
    fn a_quiet_cut_comes_before_later_commits() {
        let gate = EpochGate::new(1, vec![0]);
        commit(&gate, 0, 1);
        gate.begin_expiry();
        commit(&gate, 0, 2);
        gate.end_expiry(true);
        commit(&gate, 0, 3);
        let cuts: Vec<_> =
            std::iter::from_fn(|| gate.cut()).map(|cut| (cut.epoch, cut.seqs[0], cut.quiet)).collect();
        assert_eq!(cuts, [(1, 1, false), (2, 2, true), (3, 3, false)]);
    }

    #[test]
    fn an_evaluator_that_wakes_amid_an_expiry_leaves_its_rows_to_the_cleaner() {
        let gate = EpochGate::new(1, vec![0]);
        gate.begin_expiry();
        commit(&gate, 0, 1);
        assert_eq!(gate.cut(), None, "it would be told as if somebody had deleted the rows");
        gate.end_expiry(true);
        assert_eq!(gate.cut(), Some(Cut { epoch: 1, seqs: vec![1], quiet: true }));
        commit(&gate, 0, 2);
        assert_eq!(gate.cut(), Some(Cut { epoch: 2, seqs: vec![2], quiet: false }));
    }

    #[test]
    fn a_halt_comes_after_what_the_cleaner_has_cut() {
        let gate = EpochGate::new(1, vec![0]);
        gate.begin_expiry();
        commit(&gate, 0, 1);
        gate.end_expiry(true);
        gate.halt();
        assert!(!gate.is_halted(), "the quiet cut would be told as if somebody had deleted the rows");
        assert!(gate.cut().is_some_and(|cut| cut.quiet));
        assert!(gate.is_halted());
        commit(&gate, 0, 2);
        gate.resume();
        assert!(!gate.is_halted());
        assert_eq!(gate.cut(), Some(Cut { epoch: 2, seqs: vec![2], quiet: false }), "commits went on");
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
