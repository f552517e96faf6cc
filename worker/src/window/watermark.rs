//! The watermark: how far the time of a window has come. Pure.

use litejoin_crds::plan::EventClock;

use super::TimeAxis;
use crate::storage::shard::PartitionTime;

/// Returns the watermark by event time at the moment `now`, not before `reached`; `None` before the first time was seen.
/// All in seconds since the Unix epoch.
pub(crate) fn by_event_time(
    clock: &EventClock,
    partitions: impl Iterator<Item = PartitionTime> + Clone,
    now: i64,
    reached: Option<i64>,
    axis: &TimeAxis,
) -> Option<i64> {
    let known = partitions.filter(|partition| partition.newest.is_some());
    let active = known.clone().filter(|partition| now.saturating_sub(partition.arrived) < clock.idle_timeout);
    // A partition of which nothing is sure holds time back.
    let candidate = match active.map(|partition| partition.sure).min() {
        Some(least) => least.map(|least| least - clock.watermark_delay),
        None => {
            let newest = known.clone().filter_map(|partition| partition.newest).max();
            let silent_since = known.map(|partition| partition.arrived).max();
            newest.zip(silent_since).map(|(newest, since)| {
                // Time goes on as far as it closes the frames of what has come: a replay may only have paused. It goes by
                // whole frames, since each step is stored.
                let base = newest - clock.watermark_delay;
                let passed = now.saturating_sub(since).saturating_sub(clock.idle_timeout);
                let by_clock = base.saturating_add(passed);
                let last_end = axis.last_end(newest);
                if by_clock >= last_end {
                    return base.max(last_end);
                }
                axis.frames(by_clock).last().map_or(base, |frame| frame.start.clamp(base, by_clock))
            })
        }
    };
    candidate.max(reached)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::grid::Grid;

    fn clock() -> EventClock {
        EventClock {
            path: None,
            unit: litejoin_crds::window::TimeUnit::Rfc3339,
            watermark_delay: 5,
            idle_timeout: 60,
            allowed_lateness: 0,
            ignores_stale: false,
        }
    }

    fn at(partitions: &[(i64, i64)], now: i64, reached: Option<i64>) -> Option<i64> {
        let partitions = partitions.iter().map(|(newest, arrived)| PartitionTime {
            newest: Some(*newest),
            sure: Some(*newest),
            arrived: *arrived,
        });
        let every_20s = TimeAxis::Grid(Grid::new(100, 20, 0, None).expect("it has no time zone"));
        by_event_time(&clock(), partitions, now, reached, &every_20s)
    }

    #[test]
    fn the_partition_that_is_behind_counts_unless_it_is_idle() {
        assert_eq!(at(&[], 1_000, None), None);
        assert_eq!(at(&[(500, 1_000), (300, 990)], 1_000, None), Some(295));
        assert_eq!(at(&[(500, 1_000), (300, 940)], 1_000, None), Some(495));
        assert_eq!(at(&[(500, 1_000), (300, 990)], 1_000, Some(400)), Some(400), "it never goes back");
    }

    #[test]
    fn the_clock_closes_the_last_frame_and_goes_no_further() {
        let silent = [(500, 1_000), (300, 990)];
        assert_eq!(at(&silent, 1_060, None), Some(495));
        assert_eq!(at(&silent, 1_084, None), Some(500));
        assert_eq!(at(&silent, 1_085, None), Some(520), "by whole frames");
        assert_eq!(at(&silent, 9_000, None), Some(600));
    }
}
