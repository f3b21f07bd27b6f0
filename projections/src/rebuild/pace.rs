//! How fast a generation is built: while nobody appends, or on demand, as fast as the machine can; while somebody does,
//! in small pieces with rests between them, on one core. Catching up, and what is done under a lock or within a
//! snapshot, is not held up.

use std::time::{Duration, Instant};

use event_store::log::BatchLimits;
use sqlx::{Executor, PgConnection};
use tokio::sync::watch;
use tokio::time::sleep;

/// For how long nobody must have appended for the machine to be ours.
pub(super) const QUIET: Duration = Duration::from_millis(100);
/// How much of the log is folded and written at once while nobody appends.
const LARGE: BatchLimits = crate::projector::BATCH;
/// The same while somebody does, whose command waits for a core, and for the flush of what was written before it. This
/// size and the length of rests are what the benchmark `rebuild` found to keep a command's p99 below twice its value.
const SMALL: BatchLimits = BatchLimits { events: 64, bytes: 256 * 1024 };
/// How long a rest is, in terms of the piece of work before it.
const REST: u32 = 3;
/// How long it is at most: the index of a large table takes its time.
const LONGEST_REST: Duration = Duration::from_secs(5);

/// What a rebuild leaves to those who append meanwhile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Speed {
    /// It makes way for them.
    #[default]
    Throttled,
    /// It is as fast as the machine, and they wait for a core and for the disk.
    Full,
}

impl Speed {
    /// Returns full speed if that is asked for.
    pub const fn full_if(asked_for: bool) -> Self {
        if asked_for { Self::Full } else { Self::Throttled }
    }
}

/// The pace of one worker.
pub(super) struct Pace {
    /// Tells when somebody has appended, where that counts.
    head: Option<watch::Receiver<i64>>,
    /// When somebody was last seen to have appended.
    appended: Option<Instant>,
    /// When the piece of work in hand began.
    began: Instant,
}

impl Pace {
    /// Returns the pace of a worker who looks at the log's end, and takes it that somebody has just appended, unless
    /// that makes no difference.
    pub(super) fn new(head: watch::Receiver<i64>, speed: Speed) -> Self {
        let began = Instant::now();
        match speed {
            Speed::Throttled => Self { head: Some(head), appended: Some(began), began },
            Speed::Full => Self { head: None, appended: None, began },
        }
    }

    /// Says whether somebody appends.
    pub(super) fn somebody_appends(&mut self) -> bool {
        self.somebody_appends_at(Instant::now())
    }

    /// Begins a piece of work; returns how much of the log it is.
    pub(super) fn batch(&mut self) -> BatchLimits {
        self.began = Instant::now();
        if self.somebody_appends() { SMALL } else { LARGE }
    }

    /// Begins a piece of work that is one statement: it may use more than one core if nobody appends.
    pub(super) async fn statement(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        self.began = Instant::now();
        let cores = if self.somebody_appends() {
            "SET max_parallel_maintenance_workers = 0; SET max_parallel_workers_per_gather = 0"
        } else {
            "RESET max_parallel_maintenance_workers; RESET max_parallel_workers_per_gather"
        };
        connection.execute(cores).await?;
        Ok(())
    }

    /// Ends a piece of work: rests if somebody appends.
    pub(super) async fn rest(&mut self) {
        let due = self.due(Instant::now());
        if !due.is_zero() {
            sleep(due).await;
        }
    }

    /// Returns how long to rest after a piece of work that ends at `now`.
    fn due(&mut self, now: Instant) -> Duration {
        if self.somebody_appends_at(now) {
            ((now - self.began) * REST).min(LONGEST_REST)
        } else {
            Duration::ZERO
        }
    }

    fn somebody_appends_at(&mut self, now: Instant) -> bool {
        if let Some(head) = &mut self.head {
            // An end that nobody tells of any more has not changed.
            if head.has_changed().unwrap_or(false) {
                head.mark_unchanged();
                self.appended = Some(now);
            }
        }
        self.appended.is_some_and(|appended| now - appended < QUIET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_appends_finds_rests_between_pieces_of_work_until_it_is_quiet() {
        let head = watch::Sender::new(1);
        let began = Instant::now();
        let mut pace = Pace { head: Some(head.subscribe()), appended: None, began };
        let worked = Duration::from_millis(10);
        assert_eq!(pace.due(began + worked), Duration::ZERO, "nobody has appended");
        head.send_replace(2);
        assert_eq!(pace.due(began + worked), worked * REST);
        assert!(pace.somebody_appends_at(began + worked), "it was a moment ago");
        assert_eq!(pace.due(began + worked + QUIET), Duration::ZERO, "it is quiet again");
        head.send_replace(3);
        assert_eq!(pace.due(began + LONGEST_REST), LONGEST_REST, "a rest has an end");
        drop(head);
        assert!(!pace.somebody_appends_at(began + LONGEST_REST + QUIET), "nobody is left to tell of it");
    }

    #[test]
    fn what_was_waited_before_a_piece_of_work_is_no_work_and_pieces_are_small_while_somebody_appends() {
        let head = watch::Sender::new(1);
        let long_ago = Instant::now().checked_sub(LONGEST_REST);
        let mut pace =
            Pace { head: Some(head.subscribe()), appended: None, began: long_ago.expect("it runs longer") };
        assert_eq!(pace.batch().events, LARGE.events);
        head.send_replace(2);
        assert_eq!(pace.batch().events, SMALL.events);
        assert!(pace.due(Instant::now()) < LONGEST_REST);
    }

    #[test]
    fn at_full_speed_nobody_is_made_way_for() {
        let head = watch::Sender::new(1);
        for (speed, events) in [(Speed::Throttled, SMALL.events), (Speed::Full, LARGE.events)] {
            let mut pace = Pace::new(head.subscribe(), speed);
            assert_eq!(pace.batch().events, events, "{speed:?}: it may be that somebody has just appended");
            pace.appended = None;
            head.send_replace(2);
            assert_eq!(pace.batch().events, events, "{speed:?}: somebody has");
            let worked = Duration::from_millis(10);
            let rest = if speed == Speed::Full { Duration::ZERO } else { worked * REST };
            assert_eq!(pace.due(pace.began + worked), rest, "{speed:?}");
        }
    }
}
