//! Whether a sink is worth trying. After some failures in a row its circuit opens: nothing is sent until a wait
//! has passed, then a single result, the probe. If that succeeds the circuit closes. Pure: the caller brings
//! the time.

use std::time::{Duration, Instant};

/// The circuit of one sink.
#[derive(Debug)]
pub(crate) struct Circuit {
    failures_max: u32,
    failures: u32,
    open_until: Option<Instant>,
}

/// How much may be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Allowance {
    /// As much as there is.
    Open,
    /// One result, to see whether the sink is back.
    Probe,
    /// Nothing before that time.
    Wait(Instant),
}

impl Circuit {
    pub(crate) fn new(failures_max: u32) -> Self {
        Self { failures_max: failures_max.max(1), failures: 0, open_until: None }
    }

    pub(crate) fn allowance(&self, now: Instant) -> Allowance {
        match self.open_until {
            None => Allowance::Open,
            Some(until) if until <= now => Allowance::Probe,
            Some(until) => Allowance::Wait(until),
        }
    }

    /// Whether the sink is being left alone (or probed).
    pub(crate) fn is_open(&self) -> bool {
        self.open_until.is_some()
    }

    /// How often in a row the open circuit's probe has failed, for the schedule of the next one.
    pub(crate) fn probes_failed(&self) -> u32 {
        (self.failures + 1).saturating_sub(self.failures_max)
    }

    /// Leaves the sink alone for as long as it has asked for. Returns whether this opens the circuit.
    pub(crate) fn hold(&mut self, now: Instant, wait: Duration) -> bool {
        let was_open = self.is_open();
        self.open_until = Some(now + wait);
        !was_open
    }

    /// Ends a wait early, since the user says that the sink is well. The next result is the probe.
    pub(crate) fn probe_at(&mut self, now: Instant) {
        self.open_until = self.open_until.map(|until| until.min(now));
    }

    /// Notes a delivery. Returns whether this closes the circuit.
    pub(crate) fn succeeded(&mut self) -> bool {
        self.failures = 0;
        self.open_until.take().is_some()
    }

    /// Notes a failure that may pass with time; `wait` is how long the sink is left alone if this opens the
    /// circuit, or keeps it open. Returns whether it opens now. Further failures of the call that has opened it say
    /// nothing new.
    pub(crate) fn failed(&mut self, now: Instant, wait: Duration) -> bool {
        if matches!(self.allowance(now), Allowance::Wait(_)) {
            return false;
        }
        let was_open = self.is_open();
        self.failures = self.failures.saturating_add(1);
        if self.failures >= self.failures_max {
            self.open_until = Some(now + wait);
        }
        !was_open && self.is_open()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_and_closes_with_a_probe() {
        let start = Instant::now();
        let wait = Duration::from_secs(30);
        let mut circuit = Circuit::new(2);
        assert!(!circuit.failed(start, wait));
        assert!(!circuit.succeeded(), "it was not open");
        assert!(!circuit.failed(start, wait));
        assert!(circuit.failed(start, wait), "the second in a row");
        assert!(!circuit.failed(start, 2 * wait), "of the same call");
        assert_eq!(circuit.allowance(start), Allowance::Wait(start + wait));
        assert_eq!(circuit.allowance(start + wait), Allowance::Probe);
        assert!(!circuit.failed(start + wait, wait), "it was open already");
        assert_eq!(circuit.probes_failed(), 2);
        assert_eq!(circuit.allowance(start + wait), Allowance::Wait(start + 2 * wait));
        circuit.probe_at(start);
        assert_eq!(circuit.allowance(start), Allowance::Probe, "somebody has asked for it");
        assert!(circuit.succeeded());
        assert_eq!(circuit.allowance(start), Allowance::Open);
        circuit.probe_at(start);
        assert!(circuit.hold(start, wait), "a sink that asks for time opens it at once");
        assert_eq!(circuit.allowance(start), Allowance::Wait(start + wait));
    }
}
