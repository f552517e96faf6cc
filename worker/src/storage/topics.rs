//! Which topics there are. Declared ones are known from the start; a source that takes any topic adds more,
//! up to a limit. Names are SQL identifiers, so they compare without case.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use litejoin_crds::names::{self, NAME_LENGTH_MAX};
use litejoin_crds::plan::Retention;

/// Topics at once, over all sources.
pub(crate) const TOPICS_MAX: usize = 100;

/// The beginning of the name of a feed. No other topic's name begins with an underscore.
const FEED_PREFIX: &str = "_of_";

/// Returns the name of the topic that holds the rows of a join or window, for others that read it as a topic.
pub(crate) fn feed_of(output: &str) -> String {
    format!("{FEED_PREFIX}{output}")
}

/// Returns the name of the join or window whose rows a topic holds; `None` for a topic that sources fill.
pub(crate) fn fed_by(topic: &str) -> Option<&str> {
    topic.strip_prefix(FEED_PREFIX)
}

/// A topic of this process; its number means nothing on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TopicId(pub(crate) u16);

/// Why there can be no topic of that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TopicError {
    #[error(
        "topic {name:?} is no plain name; use a letter, then letters, digits and _, {NAME_LENGTH_MAX} at most, and no \
         sqlite_ in front"
    )]
    Name { name: String },
    #[error("topic {name:?} is the name of a join; send to another topic")]
    Join { name: String },
    #[error("topic {name:?} would be one more than the {TOPICS_MAX} allowed; use one of the present ones")]
    TooMany { name: String },
}

/// All topics by name.
#[derive(Debug)]
pub(crate) struct Topics {
    inner: RwLock<TopicNames>,
    retention: RwLock<Option<Retention>>,
}

/// Parts of the age at which a row expires: a row that messages repeat has a timestamp that is one part behind at most.
const REFRESHES: i64 = 16;

/// How far a timestamp may be behind where rows stay for ever, in seconds.
const REFRESH_SECONDS_MAX: i64 = 3_600;

#[derive(Debug, Default)]
struct TopicNames {
    names: Vec<Arc<str>>,
    /// By every spelling seen so far.
    ids: HashMap<Box<str>, TopicId>,
    /// Lower-case names of joins, which no topic may have.
    joins: HashSet<String>,
}

impl Topics {
    /// Starts with the declared `names`, which were validated; none may be called like one of `joins`.
    pub(crate) fn new<'a>(
        names: impl IntoIterator<Item = &'a str>,
        joins: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let joins = joins.into_iter().map(str::to_ascii_lowercase).collect();
        let topics = Self {
            inner: RwLock::new(TopicNames { joins, ..TopicNames::default() }),
            retention: RwLock::default(),
        };
        for name in names {
            topics.declare(name);
        }
        topics
    }

    /// Gives the topic of that name, if there is one.
    pub(crate) fn find(&self, name: &str) -> Option<TopicId> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.ids.get(name).or_else(|| inner.ids.get(name.to_ascii_lowercase().as_str())).copied()
    }

    /// Gives the topic of that name, adding it if it is new. Feeds are not found: no source fills one.
    pub(crate) fn find_or_add(&self, name: &str) -> Result<TopicId, TopicError> {
        if let Some(topic) = self.find(name).filter(|_| fed_by(name).is_none()) {
            return Ok(topic);
        }
        let owned = || name.to_owned();
        if names::topic_trouble(name).is_some() {
            return Err(TopicError::Name { name: owned() });
        }
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        if inner.joins.contains(&name.to_ascii_lowercase()) {
            return Err(TopicError::Join { name: owned() });
        }
        if inner.names.iter().filter(|name| fed_by(name).is_none()).count() >= TOPICS_MAX {
            return Err(TopicError::TooMany { name: owned() });
        }
        Ok(inner.declare(name))
    }

    /// Reserves the names of `joins`, and of no others, from now on; or gives the first that is not free, since a
    /// topic has it already and no join had it before. Then nothing has changed.
    pub(crate) fn reserve<'a>(
        &self,
        joins: impl IntoIterator<Item = &'a str> + Clone,
    ) -> Result<(), &'a str> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let is_taken = |name: &&str| {
            let lower = name.to_ascii_lowercase();
            inner.ids.contains_key(lower.as_str()) && !inner.joins.contains(&lower)
        };
        if let Some(taken) = joins.clone().into_iter().find(is_taken) {
            return Err(taken);
        }
        inner.joins = joins.into_iter().map(str::to_ascii_lowercase).collect();
        Ok(())
    }

    /// Adds a topic that was checked before, or that lies on disk already.
    pub(crate) fn declare(&self, name: &str) -> TopicId {
        self.inner.write().unwrap_or_else(PoisonError::into_inner).declare(name)
    }

    /// The spelling under which the topic was first seen.
    pub(crate) fn name(&self, topic: TopicId) -> Arc<str> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).names[usize::from(topic.0)].clone()
    }

    /// Notes how long rows are kept from now on.
    pub(crate) fn keep_for(&self, retention: &Retention) {
        *self.retention.write().unwrap_or_else(PoisonError::into_inner) = Some(retention.clone());
    }

    /// Returns whether rows of a topic expire.
    pub(crate) fn expires(&self, topic: TopicId) -> bool {
        let retention = self.retention.read().unwrap_or_else(PoisonError::into_inner);
        retention.as_ref().is_some_and(|retention| retention.of(&self.name(topic)).is_some())
    }

    /// Returns after how many seconds a message that repeats a row's payload gives the row a new timestamp, where no query
    /// reads it: often enough for the row's age, and seldom enough that a source which repeats all of its rows writes few.
    pub(crate) fn refresh_after(&self, topic: TopicId) -> i64 {
        let retention = self.retention.read().unwrap_or_else(PoisonError::into_inner);
        let age = retention.as_ref().and_then(|retention| retention.of(&self.name(topic)));
        let seconds = age.map(|age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX) / REFRESHES);
        seconds.map_or(REFRESH_SECONDS_MAX, |seconds| seconds.clamp(1, REFRESH_SECONDS_MAX))
    }

    /// Every topic, in the order in which they were first seen.
    pub(crate) fn all(&self) -> Vec<(TopicId, Arc<str>)> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        (0..).map(TopicId).zip(inner.names.iter().cloned()).collect()
    }
}

impl TopicNames {
    fn declare(&mut self, name: &str) -> TopicId {
        let lower = name.to_ascii_lowercase();
        if let Some(topic) = self.ids.get(lower.as_str()).copied() {
            self.ids.insert(name.into(), topic);
            return topic;
        }
        let topic = TopicId(u16::try_from(self.names.len()).expect("far fewer than 65,536 topics"));
        self.names.push(name.into());
        self.ids.insert(name.into(), topic);
        self.ids.insert(lower.into(), topic);
        topic
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_compare_without_case_and_keep_their_first_spelling() {
        let topics = Topics::new(["Orders"], []);
        assert_eq!(topics.find("ORDERS"), topics.find("Orders"));
        assert_eq!(topics.find_or_add("orders"), Ok(TopicId(0)));
        assert_eq!(&*topics.name(TopicId(0)), "Orders");
    }

    #[test]
    fn names_of_joins_are_reserved_and_set_free() {
        let topics = Topics::new(["orders"], ["enriched"]);
        assert_eq!(topics.reserve(["enriched", "ORDERS"]), Err("ORDERS"));
        assert_eq!(topics.reserve(["totals"]), Ok(()));
        assert!(topics.find_or_add("enriched").is_ok(), "its join is gone");
        assert_eq!(topics.find_or_add("Totals"), Err(TopicError::Join { name: "Totals".to_owned() }));
        assert_eq!(topics.reserve(["totals", "enriched"]), Err("enriched"));
    }

    #[test]
    fn names_that_are_not_topics_say_why() {
        let topics = Topics::new([], ["enriched"]);
        let message = |name: &str| topics.find_or_add(name).expect_err("refused").to_string();
        assert_eq!(
            message("a b"),
            "topic \"a b\" is no plain name; use a letter, then letters, digits and _, 63 at most, and no sqlite_ in \
             front"
        );
        assert_eq!(message("Enriched"), "topic \"Enriched\" is the name of a join; send to another topic");
        assert_eq!(names::topic_trouble("t_1"), None);
        topics.declare(&feed_of("enriched"));
        for name in ["sqlite_x", "_x", "_of_enriched", ""] {
            assert!(matches!(topics.find_or_add(name), Err(TopicError::Name { .. })), "{name:?}");
        }
        for index in 0..TOPICS_MAX {
            topics.find_or_add(&format!("t{index}")).expect("within the limit");
        }
        assert_eq!(
            message("one_more"),
            "topic \"one_more\" would be one more than the 100 allowed; use one of the present ones"
        );
    }
}
