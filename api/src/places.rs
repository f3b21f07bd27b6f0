//! Places for what is under way at a time: requests, and answers that have no end of their own. One caller has a part
//! of them, so that nobody takes them all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::auth::Caller;

/// The places; cloning it is cheap.
#[derive(Clone)]
pub struct Places(Arc<Inner>);

struct Inner {
    most: usize,
    most_of_one: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    /// How many each has; whoever has none is not in it.
    of: HashMap<Holder, usize>,
}

/// Who has a place, by kind and subject; strangers are one.
type Holder = Option<(&'static str, Arc<str>)>;

impl Places {
    /// Returns so many places, of which one caller has at most `most_of_one`.
    pub fn new(most: usize, most_of_one: usize) -> Self {
        Self(Arc::new(Inner { most, most_of_one, taken: Mutex::default() }))
    }

    /// Gives a place to a caller, or to a stranger, if one is free.
    pub fn enter(&self, caller: Option<&Caller>) -> Option<Place> {
        let holder = caller.map(|caller| (caller.kind.name(), Arc::clone(&caller.subject)));
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.of.get(&holder).copied().unwrap_or_default();
        if own >= self.0.most_of_one || taken.all >= self.0.most {
            return None;
        }
        taken.all += 1;
        taken.of.insert(holder.clone(), own + 1);
        drop(taken);
        Some(Place { places: self.clone(), holder })
    }
}

/// A place; it is free again once this is dropped.
pub struct Place {
    places: Places,
    holder: Holder,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        if let Some(own) = taken.of.get_mut(&self.holder) {
            *own -= 1;
            if *own == 0 {
                taken.of.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Kind, Role};

    #[test]
    fn one_caller_leaves_places_to_others_and_a_place_left_is_free_again() {
        let caller = |subject: &str| Caller {
            subject: subject.into(),
            kind: Kind::Person,
            role: Role::Member,
            owner: None,
            expires_at: 0,
            key: "".into(),
        };
        let places = Places::new(4, 2);
        let first = places.enter(Some(&caller("a")));
        let second = places.enter(Some(&caller("a")));
        assert!(first.is_some() && second.is_some() && places.enter(Some(&caller("a"))).is_none());
        let other = places.enter(Some(&caller("b")));
        let stranger = places.enter(None);
        assert!(other.is_some() && stranger.is_some());
        assert!(places.enter(Some(&caller("c"))).is_none(), "all are taken");
        drop((first, second));
        assert!(places.enter(Some(&caller("c"))).is_some());
        drop((other, stranger));
        let taken = places.0.taken.lock().unwrap();
        assert!(taken.all == 0 && taken.of.is_empty());
    }
}
