//! The states of aggregates that commands came to last. Bounded by number, and by the bytes of the few that are
//! large: a meeting keeps when each of its speakers speaks, eight bytes a segment. An hour's meeting has some
//! hundreds, the longest that is taken 50,000.

use std::num::NonZeroUsize;

use domain::meeting::Meeting;
use domain::profile::Profile;
use lru::LruCache;

/// How many states of each kind of aggregate are kept.
const CACHED: NonZeroUsize = NonZeroUsize::new(20_000).expect("not zero");
/// How many bytes they may have of what is large in them.
const CACHED_BYTES: usize = 64 * 1024 * 1024;

/// A state and the number of events that it is made of.
#[derive(Clone)]
pub(crate) struct Versioned<A> {
    /// The state.
    pub(crate) state: A,
    /// How many events it is made of.
    pub(crate) version: i64,
}

/// What knows how large it is.
pub(crate) trait Weighed {
    /// Returns the bytes of the part of it that may be large.
    fn bytes(&self) -> usize;
}

impl Weighed for Meeting {
    fn bytes(&self) -> usize {
        self.speech_bytes()
    }
}

impl Weighed for Profile {
    fn bytes(&self) -> usize {
        0
    }
}

/// States by the ids of their aggregates.
pub(crate) struct StateCache<A> {
    states: LruCache<String, Versioned<A>>,
    bytes: usize,
}

impl<A> Default for StateCache<A> {
    fn default() -> Self {
        Self { states: LruCache::new(CACHED), bytes: 0 }
    }
}

impl<A: Clone + Weighed> StateCache<A> {
    /// Returns the state of an aggregate, if it is here.
    pub(crate) fn get(&mut self, id: &str) -> Option<&Versioned<A>> {
        self.states.get(id)
    }

    /// Keeps a state. A slower load or append of an older version never takes a newer one's place. One of the
    /// same version does: an event that it was made of may have been skipped.
    pub(crate) fn put(&mut self, id: &str, new: Versioned<A>) {
        if self.states.peek(id).is_some_and(|known| known.version > new.version) {
            return;
        }
        self.bytes += new.state.bytes();
        // Either the one whose place it takes, or the one that went longest unasked for.
        if let Some((_, old)) = self.states.push(id.to_owned(), new) {
            self.bytes -= old.state.bytes();
        }
        while self.bytes > CACHED_BYTES
            && let Some((_, oldest)) = self.states.pop_lru()
        {
            self.bytes -= oldest.state.bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Large(usize);

    impl Weighed for Large {
        fn bytes(&self) -> usize {
            self.0
        }
    }

    #[test]
    fn what_is_kept_is_bounded_by_bytes_and_the_newest_version_stays() {
        let mut cache = StateCache::default();
        let mut put = |id: &str, version, bytes| {
            cache.put(id, Versioned { state: Large(bytes), version });
            assert!(cache.bytes <= CACHED_BYTES);
            assert_eq!(cache.bytes, cache.states.iter().map(|(_, kept)| kept.state.0).sum::<usize>());
            cache.states.len()
        };
        assert_eq!(put("a", 1, CACHED_BYTES / 2), 1);
        assert_eq!(put("a", 2, CACHED_BYTES / 2), 1);
        assert_eq!(put("a", 1, 7), 1);
        assert_eq!(put("b", 1, CACHED_BYTES / 2), 2);
        assert_eq!(put("c", 1, 1), 2, "the oldest has gone");
        assert_eq!(put("d", 1, CACHED_BYTES + 1), 0, "what is too large is not kept");
        for n in 0..=CACHED.get() {
            put(&n.to_string(), 1, 1);
        }
        assert_eq!(cache.states.len(), CACHED.get());
        assert!(cache.get("0").is_none() && cache.get("1").is_some_and(|kept| kept.version == 1));
    }
}
