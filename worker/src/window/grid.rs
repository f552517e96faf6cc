//! Tumbling and sliding frames: stretches of one length that begin at regular times, by the clock of UTC or of a place.
//! Pure.
//!
//! Frames are regular on the *wall time* of the place: seconds since the Unix epoch as its clocks show them. Wall time is
//! taken to stand still while clocks that were set back repeat an hour, and to jump where they are set forward, so that it
//! never goes back. A frame lasts from the first moment of its first second of wall time to that of the next frame's.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};

use super::Frame;

const DAY: i64 = 86_400;
const WEEK: i64 = 7 * DAY;
/// The Unix epoch is a Thursday; the Monday before it.
const MONDAY: i64 = -3 * DAY;

/// Frames that begin every `slide` seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grid {
    size: i64,
    slide: i64,
    /// Wall time of one start.
    base: i64,
    /// `None` is UTC.
    zone: Option<TimeZone>,
}

impl Grid {
    /// Returns `None` if the name of the place is unknown.
    pub(crate) fn new(size: i64, slide: i64, offset: i64, timezone: Option<&str>) -> Option<Self> {
        let zone = timezone.map(|name| jiff::tz::db().get(name)).transpose().ok()?;
        let base = if zone.is_some() && size % WEEK == 0 { MONDAY + offset } else { offset };
        Some(Self { size, slide, base, zone })
    }

    /// Returns the frames of a row's time, the earliest first.
    pub(crate) fn frames(&self, time: i64) -> Vec<Frame> {
        let wall = self.wall(time);
        let last = (wall - self.base).div_euclid(self.slide);
        let first = (wall - self.base - self.size).div_euclid(self.slide) + 1;
        let frame = |number: i64| {
            let start = self.base + number * self.slide;
            Frame { start: self.instant(start), end: self.instant(start + self.size) }
        };
        (first..=last).map(frame).collect()
    }

    /// Returns the pane of a row's time: the longest stretch of which all times are in the same frames.
    pub(crate) fn pane(&self, time: i64) -> Frame {
        let length = greatest_common_divisor(self.size, self.slide);
        let number = (self.wall(time) - self.base).div_euclid(length);
        let start = self.base + number * length;
        Frame { start: self.instant(start), end: self.instant(start + length) }
    }

    /// Returns the greatest end of the frames of a row's time.
    pub(crate) fn last_end(&self, time: i64) -> i64 {
        let last = (self.wall(time) - self.base).div_euclid(self.slide);
        self.instant(self.base + last * self.slide + self.size)
    }

    /// Returns the frame that begins next.
    pub(crate) fn next(&self, frame: Frame) -> Frame {
        let mut time = self.pane(frame.start).end;
        loop {
            if let Some(next) = self.frames(time).into_iter().find(|next| next.start > frame.start) {
                return next;
            }
            time = self.pane(time).end;
        }
    }

    /// Returns the frame that begins before.
    pub(crate) fn previous(&self, frame: Frame) -> Frame {
        self.frames(frame.start - 1).pop().unwrap_or(frame)
    }

    /// Returns the wall time at a moment.
    fn wall(&self, time: i64) -> i64 {
        let Some((zone, moment)) = self.zone.as_ref().zip(Timestamp::from_second(time).ok()) else {
            return time;
        };
        let wall = time + i64::from(zone.to_offset(moment).seconds());
        // While an hour is repeated, wall time stands at the last second before the clocks were set back.
        let before = Timestamp::from_second(time + 1).ok().and_then(|next| zone.preceding(next).next());
        let repeated_until = before.map(|transition| {
            let at = transition.timestamp().as_second();
            let earlier = Timestamp::from_second(at - 1).map_or(0, |moment| zone.to_offset(moment).seconds());
            at + i64::from(earlier)
        });
        repeated_until.map_or(wall, |until| wall.max(until - 1))
    }

    /// Returns the first moment at which wall time has come to `wall`.
    fn instant(&self, wall: i64) -> i64 {
        let Some((zone, civil)) = self.zone.as_ref().zip(civil(wall)) else { return wall };
        match zone.to_ambiguous_timestamp(civil).offset() {
            AmbiguousOffset::Unambiguous { offset } => wall - i64::from(offset.seconds()),
            AmbiguousOffset::Fold { before, .. } => wall - i64::from(before.seconds()),
            AmbiguousOffset::Gap { after, .. } => {
                // The clocks jump over it: time has come to it with the jump.
                let earlier = wall - i64::from(after.seconds());
                let jump =
                    Timestamp::from_second(earlier).ok().and_then(|moment| zone.following(moment).next());
                jump.map_or(earlier, |transition| transition.timestamp().as_second())
            }
        }
    }
}

fn civil(wall: i64) -> Option<DateTime> {
    Timestamp::from_second(wall).ok().map(|moment| TimeZone::UTC.to_datetime(moment))
}

fn greatest_common_divisor(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_second()
    }

    fn only(grid: &Grid, text: &str) -> String {
        let frames = grid.frames(moment(text));
        assert_eq!(frames.len(), 1);
        let hours = (frames[0].end - frames[0].start) / 3_600;
        format!("{} {hours}h", Timestamp::from_second(frames[0].start).unwrap())
    }

    #[test]
    fn frames_begin_every_slide() {
        let grid = Grid::new(60, 20, 5, None).unwrap();
        let frames: Vec<_> = grid.frames(70).into_iter().map(|frame| (frame.start, frame.end)).collect();
        assert_eq!(frames, [(25, 85), (45, 105), (65, 125)]);
        assert_eq!(grid.frames(65)[0].start, 25, "the end is no part of a frame");
        assert_eq!(grid.pane(70), Frame { start: 65, end: 85 });
        assert_eq!(grid.last_end(70), 125);
        assert_eq!(grid.next(Frame { start: 45, end: 105 }), Frame { start: 65, end: 125 });
        assert_eq!(grid.previous(Frame { start: 45, end: 105 }), Frame { start: 25, end: 85 });
        assert_eq!(Grid::new(60, 60, 0, None).unwrap().frames(-1), [Frame { start: -60, end: 0 }]);
    }

    #[test]
    fn local_days_have_23_to_25_hours() {
        let days = Grid::new(DAY, DAY, 0, Some("Europe/Berlin")).unwrap();
        assert_eq!(only(&days, "2026-03-28T22:59:59Z"), "2026-03-27T23:00:00Z 24h");
        assert_eq!(only(&days, "2026-03-29T10:00:00Z"), "2026-03-28T23:00:00Z 23h");
        assert_eq!(only(&days, "2026-10-25T22:59:59Z"), "2026-10-24T22:00:00Z 25h");
        assert_eq!(only(&days, "2026-10-25T23:00:00Z"), "2026-10-25T23:00:00Z 24h");
        let weeks = Grid::new(WEEK, WEEK, 0, Some("UTC")).unwrap();
        assert_eq!(only(&weeks, "2026-11-29T20:00:00Z"), "2026-11-23T00:00:00Z 168h");
    }

    #[test]
    fn frames_of_a_place_cover_each_moment_once() {
        for (place, from) in [
            ("Europe/Berlin", "2026-10-24T20:00:00Z"),
            ("Europe/Berlin", "2026-03-28T20:00:00Z"),
            ("Australia/Lord_Howe", "2026-04-04T10:00:00Z"),
            ("America/New_York", "2026-11-01T00:00:00Z"),
        ] {
            for (size, slide) in [(900, 900), (1_800, 1_800), (3_600, 3_600), (5_400, 900), (7_200, 3_600)] {
                let grid = Grid::new(size, slide, 0, Some(place)).unwrap();
                let mut before = Vec::new();
                for time in (moment(from)..moment(from) + 2 * DAY).step_by(60) {
                    let frames = grid.frames(time);
                    assert!(
                        frames.iter().all(|frame| frame.start <= time && time < frame.end),
                        "{place} {time}"
                    );
                    assert_eq!(grid.last_end(time), frames.iter().map(|frame| frame.end).max().unwrap());
                    let pane = grid.pane(time);
                    assert!(pane.start <= time && time < pane.end, "{place} {time}");
                    assert_eq!(grid.frames(pane.start), frames, "{place} {time}");
                    let ended = before.iter().filter(|frame: &&Frame| frame.end > time);
                    assert!(ended.into_iter().all(|frame| frames.contains(frame)), "{place} {time}");
                    before = frames;
                }
            }
        }
    }
}
