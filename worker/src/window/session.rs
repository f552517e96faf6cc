//! Sessions: rows of which each is at most a gap behind the one before. Pure.

use super::Frame;

/// A session by the times of its first and last row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Session {
    pub(crate) first: i64,
    pub(crate) last: i64,
}

impl Session {
    pub(crate) fn of(frame: Frame, gap: i64) -> Self {
        Self { first: frame.start, last: frame.end - gap }
    }

    pub(crate) fn frame(self, gap: i64) -> Frame {
        Frame { start: self.first, end: self.last + gap }
    }

    pub(crate) fn has(self, time: i64) -> bool {
        self.first <= time && time <= self.last
    }
}

/// Sessions and changed rows that are near each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionCluster {
    /// From the first to the last of them.
    pub(crate) span: Session,
    /// The sessions as they were.
    pub(crate) sessions: Vec<Session>,
    /// Whether a row has left, so that the sessions have to be found anew from the rows.
    pub(crate) is_thinned: bool,
}

/// Returns the sessions that times in ascending order make.
pub(crate) fn islands(times: impl IntoIterator<Item = i64>, gap: i64) -> Vec<Session> {
    let mut islands: Vec<Session> = Vec::new();
    for time in times {
        match islands.last_mut() {
            Some(island) if time - island.last <= gap => island.last = time,
            _ => islands.push(Session { first: time, last: time }),
        }
    }
    islands
}

/// Groups `sessions` with the times of rows that `came` and `went`, each with all that is at most a gap away from it. A row
/// that went and was in none of the sessions is passed over.
pub(crate) fn clusters(sessions: &[Session], came: &[i64], went: &[i64], gap: i64) -> Vec<SessionCluster> {
    let held = |time: &&i64| sessions.iter().any(|session| session.has(**time));
    let mut items: Vec<(Session, Option<Session>, bool)> =
        sessions.iter().map(|session| (*session, Some(*session), false)).collect();
    let at = |time: &i64| Session { first: *time, last: *time };
    items.extend(came.iter().map(|time| (at(time), None, false)));
    items.extend(went.iter().filter(held).map(|time| (at(time), None, true)));
    items.sort_unstable();
    let mut clusters: Vec<SessionCluster> = Vec::new();
    for (span, session, went) in items {
        match clusters.last_mut() {
            Some(cluster) if span.first - cluster.span.last <= gap => {
                cluster.span.last = cluster.span.last.max(span.last);
                cluster.sessions.extend(session);
                cluster.is_thinned |= went;
            }
            _ => clusters.push(SessionCluster {
                span,
                sessions: session.into_iter().collect(),
                is_thinned: went,
            }),
        }
    }
    clusters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(first: i64, last: i64) -> Session {
        Session { first, last }
    }

    #[test]
    fn two_rows_one_gap_apart_are_one_session() {
        assert_eq!(islands([0, 10, 21, 25], 10), [session(0, 10), session(21, 25)]);
        assert_eq!(islands([], 10), []);
    }

    #[test]
    fn a_row_between_two_sessions_joins_them() {
        let found = clusters(&[session(0, 5), session(20, 30), session(60, 60)], &[12], &[], 10);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].span, session(0, 30));
        assert_eq!(found[0].sessions, [session(0, 5), session(20, 30)]);
        assert!(!found[0].is_thinned);
    }

    #[test]
    fn only_a_row_that_was_in_a_session_thins_it() {
        let found = clusters(&[session(20, 30)], &[], &[5, 25], 10);
        assert_eq!(
            found,
            [SessionCluster { span: session(20, 30), sessions: vec![session(20, 30)], is_thinned: true }]
        );
    }
}
