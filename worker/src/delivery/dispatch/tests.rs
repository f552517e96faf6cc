//! Simulated sinks.
