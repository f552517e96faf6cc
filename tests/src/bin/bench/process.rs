//! CPU time and memory of processes and threads, as Linux counts them.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Clock ticks a second in `/proc`; equal on every common Linux.
const TICKS: u64 = 100;

/// Sends SIGTERM to a process.
pub(crate) fn terminate(pid: u32) -> Result<()> {
    signal(pid, "-TERM")
}

/// Sends SIGHUP to a process.
pub(crate) fn hang_up(pid: u32) -> Result<()> {
    signal(pid, "-HUP")
}

fn signal(pid: u32, name: &str) -> Result<()> {
    let status =
        Command::new("kill").args([name, &pid.to_string()]).status().context("could not run kill")?;
    ensure!(status.success(), "could not send {name} to process {pid}");
    Ok(())
}

/// Returns the CPU time of a process with all its threads, user and system.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("could not read {path}"))?;
    // The name in parentheses may contain spaces.
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 1_000 / TICKS))
}

/// Returns the CPU time of the calling thread.
pub(crate) fn thread_cpu_time() -> Result<Duration> {
    let path = "/proc/thread-self/schedstat";
    let stat = std::fs::read_to_string(path).with_context(|| format!("could not read {path}"))?;
    let nanoseconds = stat.split_whitespace().next().and_then(|n| n.parse().ok());
    Ok(Duration::from_nanos(nanoseconds.with_context(|| format!("{path} begins with no number"))?))
}

/// Returns the CPU time of all processes on this machine.
pub(crate) fn machine_cpu_time() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/stat").context("could not read /proc/stat")?;
    // The fields are user, nice, system, idle, iowait, interrupts.
    let busy = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).enumerate();
    let ticks: u64 = busy
        .filter(|(column, _)| matches!(column, 0..=2 | 5 | 6))
        .filter_map(|(_, n)| n.parse::<u64>().ok())
        .sum();
    Ok(Duration::from_millis(ticks * 1_000 / TICKS))
}

/// Returns a memory line of `/proc/PID/status`, such as `VmHWM` (the peak) or `RssAnon`, in bytes.
pub(crate) fn memory_bytes(pid: u32, name: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("could not read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kibibytes.with_context(|| format!("{path} has no {name}"))? * 1_024)
}
