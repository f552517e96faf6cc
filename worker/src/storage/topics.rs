//! Which topics there are. Declared ones are known from the start; a source that takes any topic adds more,
//! up to a limit. Names are SQL identifiers, so they compare without case.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use litejoin_crds::names::{self, NAME_LENGTH_MAX};

/// Topics at once, over all sources.
pub(crate) const TOPICS_MAX: usize = 100;

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
    inner: RwLock<Inner>,
    /// Lower-case names of joins, which no topic may have.
    joins: Vec<String>,
}

#[derive(Debug, Default)]
struct Inner {
    names: Vec<Arc<str>>,
    /// By every spelling seen so far.
    ids: HashMap<Box<str>, TopicId>,
}

impl Topics {
    /// Starts with the declared `names`, which were validated; none may be called like one of `joins`.
    pub(crate) fn new<'a>(
        names: impl IntoIterator<Item = &'a str>,
        joins: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let topics = Self {
            inner: RwLock::default(),
            joins: joins.into_iter().map(str::to_ascii_lowercase).collect(),
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

    /// Gives the topic of that name, adding it if it is new.
    pub(crate) fn find_or_add(&self, name: &str) -> Result<TopicId, TopicError> {
        if let Some(topic) = self.find(name) {
            return Ok(topic);
        }
        let owned = || name.to_owned();
        if names::topic_trouble(name).is_some() {
            return Err(TopicError::Name { name: owned() });
        }
        if self.joins.contains(&name.to_ascii_lowercase()) {
            return Err(TopicError::Join { name: owned() });
        }
        if self.inner.read().unwrap_or_else(PoisonError::into_inner).names.len() >= TOPICS_MAX {
            return Err(TopicError::TooMany { name: owned() });
        }
        Ok(self.declare(name))
    }

    /// Adds a topic that was checked before, or that lies on disk already.
    pub(crate) fn declare(&self, name: &str) -> TopicId {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let lower = name.to_ascii_lowercase();
        if let Some(topic) = inner.ids.get(lower.as_str()).copied() {
            inner.ids.insert(name.into(), topic);
            return topic;
        }
        let topic = TopicId(u16::try_from(inner.names.len()).expect("far fewer than 65,536 topics"));
        inner.names.push(name.into());
        inner.ids.insert(name.into(), topic);
        inner.ids.insert(lower.into(), topic);
        topic
    }

    /// The spelling under which the topic was first seen.
    pub(crate) fn name(&self, topic: TopicId) -> Arc<str> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).names[usize::from(topic.0)].clone()
    }

    /// Every topic, in the order in which they were first seen.
    pub(crate) fn all(&self) -> Vec<(TopicId, Arc<str>)> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        (0..).map(TopicId).zip(inner.names.iter().cloned()).collect()
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
        for name in ["sqlite_x", "_x", ""] {
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
