//! What a subscriber has had, of one type of event: the proof that nothing is missing, and the memory that
//! makes a repetition harmless.
//!
//! Each event names the position before it of its type, so a chain of events proves itself. Where a link is
//! missing there is a gap; events that come later, out of a refill, close it piece by piece.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The positions had, of one type, in one epoch of the log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ledger {
    epoch: Option<Uuid>,
    /// The newest position had; none before the first event of a subscriber that began in the middle.
    position: Option<i64>,
    /// What is missing before it.
    missing: Vec<Missing>,
}

/// What is still missing of a gap: one of the pieces into which events that came later have cut it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Missing {
    after: i64,
    up_to: i64,
    /// The gap as it was told.
    of: Gap,
}

/// Positions of which at least one event is missing: after the one, up to and with the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The newest position before the gap that was had.
    pub after: i64,
    /// The newest position that is missing, for certain.
    pub up_to: i64,
}

impl Gap {
    /// Returns the command that puts the missing events back on the stream.
    pub fn mending_command(&self) -> String {
        format!("minutebook publish --from {} --to {}", self.after + 1, self.up_to)
    }
}

/// What entering an event made of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Entry {
    /// It was entered before, so its effect is there.
    pub repeated: bool,
    /// It showed that events are missing.
    pub opened: Option<Gap>,
    /// It was the last that was missing of this gap, which is as it was when it opened.
    pub closed: Option<Gap>,
    /// The log's epoch is another one: positions have been given out again.
    pub new_epoch: bool,
}

impl Ledger {
    /// Returns the ledger of a subscriber that wants every event from the first on.
    pub const fn from_the_beginning() -> Self {
        Self { epoch: None, position: Some(0), missing: vec![] }
    }

    /// Returns the ledger of a subscriber that begins with whatever comes next.
    pub const fn from_now() -> Self {
        Self { epoch: None, position: None, missing: vec![] }
    }

    /// Returns the newest position had, 0 before the first.
    pub fn position(&self) -> i64 {
        self.position.unwrap_or(0)
    }

    /// Returns the epoch of that position.
    pub const fn epoch(&self) -> Option<Uuid> {
        self.epoch
    }

    /// Returns the gaps of which something is missing, each as it was when it opened.
    pub fn gaps(&self) -> Vec<Gap> {
        let mut gaps = self.missing.iter().map(|missing| missing.of).collect::<Vec<_>>();
        gaps.sort_unstable_by_key(|gap| gap.after);
        gaps.dedup();
        gaps
    }

    /// Enters the event at `position`, whose type had its event before at `previous`.
    pub fn enter(&mut self, epoch: Uuid, position: i64, previous: i64) -> Entry {
        let mut entry = Entry::default();
        if self.epoch.is_some_and(|known| known != epoch) {
            // Which of the old positions still hold is not known here.
            *self = Self::from_now();
            entry.new_epoch = true;
        }
        self.epoch = Some(epoch);
        let newest = *self.position.get_or_insert(previous);
        if position > newest {
            if previous > newest {
                let gap = Gap { after: newest, up_to: previous };
                self.open(gap);
                entry.opened = Some(gap);
            }
            self.position = Some(position);
        } else if let Some(at) =
            self.missing.iter().position(|gap| gap.after < position && position <= gap.up_to)
        {
            let Missing { after, up_to, of } = self.missing[at];
            let before = (previous > after).then_some(Missing { after, up_to: previous, of });
            let behind = (position < up_to).then_some(Missing { after: position, up_to, of });
            self.missing.splice(at..=at, before.into_iter().chain(behind));
            entry.closed = self.missing.iter().all(|missing| missing.of != of).then_some(of);
        } else {
            entry.repeated = true;
        }
        entry
    }

    /// Says whether the event at `position` was entered.
    pub fn has(&self, epoch: Uuid, position: i64) -> bool {
        self.epoch == Some(epoch)
            && position <= self.position()
            && !self.missing.iter().any(|gap| gap.after < position && position <= gap.up_to)
    }

    /// Says whether it is not known yet where the subscriber begins.
    pub const fn is_open(&self) -> bool {
        self.position.is_none()
    }

    /// Takes note that the subscriber begins after position `newest`.
    pub fn begin(&mut self, epoch: Uuid, newest: i64) {
        self.epoch = Some(epoch);
        self.position = Some(newest);
    }

    /// Takes note that the newest event of the type is at `newest`, and was not had in time.
    pub fn miss(&mut self, epoch: Uuid, newest: i64) -> Option<Gap> {
        let position = self.position?;
        if self.epoch.is_some_and(|known| known != epoch) || newest <= position {
            return None;
        }
        self.epoch = Some(epoch);
        let gap = Gap { after: position, up_to: newest };
        self.open(gap);
        self.position = Some(newest);
        Some(gap)
    }

    fn open(&mut self, gap: Gap) {
        let Gap { after, up_to } = gap;
        self.missing.push(Missing { after, up_to, of: gap });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Uuid = Uuid::from_u128(1);

    fn entered(positions: &[(i64, i64)]) -> (Ledger, Vec<Entry>) {
        let mut ledger = Ledger::from_the_beginning();
        let entries = positions.iter().map(|(at, previous)| ledger.enter(EPOCH, *at, *previous)).collect();
        (ledger, entries)
    }

    #[test]
    fn a_chain_without_a_missing_link_has_no_gap_and_repetitions_are_known() {
        let (ledger, entries) = entered(&[(3, 0), (7, 3), (7, 3), (3, 0), (9, 7)]);
        assert!(ledger.gaps().is_empty());
        let repeated = entries.iter().map(|entry| entry.repeated).collect::<Vec<_>>();
        assert_eq!(repeated, [false, false, true, true, false]);
    }

    #[test]
    fn a_missing_link_is_a_gap_and_closes_when_the_events_come_later_in_any_order() {
        let gap = Gap { after: 3, up_to: 9 };
        // 5, 7 and 9 are missing.
        for order in [[5, 7, 9], [9, 7, 5], [7, 5, 9], [7, 9, 5]] {
            let (mut ledger, entries) = entered(&[(3, 0), (12, 9)]);
            assert_eq!(entries[1].opened, Some(gap));
            assert_eq!(gap.mending_command(), "minutebook publish --from 4 --to 9");
            let mut closed = vec![];
            for position in order {
                assert!(!ledger.has(EPOCH, position));
                let entry = ledger.enter(EPOCH, position, position - 2);
                assert!(!entry.repeated && entry.opened.is_none());
                closed.extend(entry.closed);
                assert!(ledger.has(EPOCH, position));
                assert!(ledger.enter(EPOCH, position, position - 2).repeated);
            }
            assert!(ledger.gaps().is_empty(), "{ledger:?}");
            assert_eq!(closed, [gap], "it is closed once, as it was opened");
        }
    }

    #[test]
    fn a_missing_last_event_is_a_gap_that_it_closes_itself() {
        let (mut ledger, _) = entered(&[(3, 0)]);
        assert_eq!(ledger.miss(EPOCH, 3), None);
        assert_eq!(ledger.miss(EPOCH, 8), Some(Gap { after: 3, up_to: 8 }));
        assert_eq!(ledger.miss(EPOCH, 8), None);
        let entry = ledger.enter(EPOCH, 8, 3);
        assert_eq!((entry.repeated, entry.closed), (false, Some(Gap { after: 3, up_to: 8 })));
    }

    #[test]
    fn whoever_begins_in_the_middle_misses_nothing_before_it() {
        let mut ledger = Ledger::from_now();
        assert_eq!(ledger.enter(EPOCH, 50, 40), Entry::default());
        assert_eq!(ledger.enter(EPOCH, 60, 55).opened, Some(Gap { after: 50, up_to: 55 }));
    }

    #[test]
    fn another_epoch_begins_anew() {
        let (mut ledger, _) = entered(&[(3, 0), (9, 5)]);
        let entry = ledger.enter(Uuid::from_u128(2), 4, 3);
        assert!(entry.new_epoch && !entry.repeated);
        assert!(ledger.gaps().is_empty());
        assert_eq!(ledger.position(), 4);
    }
}
