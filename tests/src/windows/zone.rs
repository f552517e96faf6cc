//! What clocks on the wall show in a few places in 2026, by a table rather than by a library of time zones. Source: the
//! IANA time zone database, and its rules EU and US.

/// A place whose clock windows may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zone {
    Berlin,
    NewYork,
    Kolkata,
}

/// All instants at which a clock of these places changes in 2026, in seconds since the Unix epoch.
pub const CHANGES: [i64; 4] = [NEW_YORK_SUMMER.0, BERLIN_SUMMER.0, BERLIN_SUMMER.1, NEW_YORK_SUMMER.1];

/// From 2026-03-29T01:00:00Z to 2026-10-25T01:00:00Z.
const BERLIN_SUMMER: (i64, i64) = (1_774_746_000, 1_792_890_000);

/// From 2026-03-08T07:00:00Z to 2026-11-01T06:00:00Z.
const NEW_YORK_SUMMER: (i64, i64) = (1_772_953_200, 1_793_512_800);

const HOUR: i64 = 3_600;

impl Zone {
    pub const ALL: [Self; 3] = [Self::Berlin, Self::NewYork, Self::Kolkata];

    /// The IANA name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Berlin => "Europe/Berlin",
            Self::NewYork => "America/New_York",
            Self::Kolkata => "Asia/Kolkata",
        }
    }

    /// The clock on the wall at an instant of 2026, in seconds since midnight of 1 January 1970 by such a clock.
    pub fn wall(self, instant: i64) -> i64 {
        let is_within = |(first, end): (i64, i64)| first <= instant && instant < end;
        let offset = match self {
            Self::Berlin if is_within(BERLIN_SUMMER) => 2 * HOUR,
            Self::Berlin => HOUR,
            Self::NewYork if is_within(NEW_YORK_SUMMER) => -4 * HOUR,
            Self::NewYork => -5 * HOUR,
            Self::Kolkata => 5 * HOUR + HOUR / 2,
        };
        instant + offset
    }
}
