//! Places for those whose answer has no end of its own: they follow the changes, or take the whole audit. One caller
//! has a few of them, so that nobody takes them all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::auth::Caller;

/// The places; cloning it is cheap.
#[derive(Clone)]
pub struct Followers(Arc<Inner>);

struct Inner {
    most: usize,
    most_of_one: usize,
    /// By kind and subject, how many each has; whoever has none is not in it.
    taken: Mutex<HashMap<(&'static str, String), usize>>,
}

impl Followers {
    /// Returns so many places, of which one caller has at most `most_of_one`.
    pub fn new(most: usize, most_of_one: usize) -> Self {
        Self(Arc::new(Inner { most, most_of_one, taken: Mutex::default() }))
    }

    /// Gives a place to a caller, if one is free.
    pub fn enter(&self, caller: &Caller) -> Option<Place> {
        let who = (caller.kind.name(), caller.subject.clone());
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.get(&who).copied().unwrap_or_default();
        if own >= self.0.most_of_one || taken.values().sum::<usize>() >= self.0.most {
            return None;
        }
        taken.insert(who.clone(), own + 1);
        drop(taken);
        Some(Place { followers: self.clone(), who })
    }
}

/// A place; it is free again once this is dropped.
pub struct Place {
    followers: Followers,
    who: (&'static str, String),
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.followers.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.who) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.who);
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
            subject: subject.to_owned(),
            kind: Kind::Person,
            role: Role::Member,
            owner: None,
            expires_at: 0,
            key: String::new(),
        };
        let followers = Followers::new(3, 2);
        let first = followers.enter(&caller("a"));
        let second = followers.enter(&caller("a"));
        assert!(first.is_some() && second.is_some() && followers.enter(&caller("a")).is_none());
        let other = followers.enter(&caller("b"));
        assert!(other.is_some() && followers.enter(&caller("c")).is_none(), "all are taken");
        drop((first, second));
        assert!(followers.enter(&caller("c")).is_some());
        drop(other);
        assert!(followers.0.taken.lock().unwrap().is_empty());
    }
}
