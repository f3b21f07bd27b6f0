//! How much one caller may ask of this process: so many requests a second, and as many at once. It is for accidents, a
//! loop without a pause; how many callers there are is the issuer's to say.

use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How often callers who have not asked for a while are forgotten.
const FORGET: Duration = Duration::from_secs(60);

/// Counts what callers ask; cloning it is cheap.
#[derive(Clone)]
pub struct RateLimit(Option<Arc<Inner>>);

struct Inner {
    // By a keyed hash of who it is: nothing is allocated, and nobody can aim at another's.
    counts: DefaultKeyedRateLimiter<u64>,
    hasher: RandomState,
    clock: DefaultClock,
}

impl RateLimit {
    /// Returns a limit of so many requests a second; 0 is none.
    pub fn new(per_second: u32) -> Self {
        let inner = |per_second| Inner {
            counts: RateLimiter::keyed(Quota::per_second(per_second)),
            hasher: RandomState::new(),
            clock: DefaultClock::default(),
        };
        Self(NonZeroU32::new(per_second).map(|per_second| Arc::new(inner(per_second))))
    }

    /// Counts a request; says after how many seconds to come back if it is one too many.
    pub fn check(&self, kind: &str, subject: &str) -> Result<(), u32> {
        let Some(Inner { counts, hasher, clock }) = self.0.as_deref() else { return Ok(()) };
        counts.check_key(&hasher.hash_one((kind, subject))).map_err(|until| {
            let wait = until.wait_time_from(clock.now());
            u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1)
        })
    }

    /// Forgets callers who have not asked for a while, again and again until `shutdown`.
    pub async fn forget(self, shutdown: CancellationToken) {
        let Some(inner) = self.0 else { return };
        let mut ticks = interval(FORGET);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            inner.counts.retain_recent();
            inner.counts.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_too_many_keeps_nobody_else_waiting() {
        let limit = RateLimit::new(5);
        let taken = (0..50).filter(|_| limit.check("person", "a").is_ok()).count();
        assert!((5..50).contains(&taken), "{taken}");
        assert_eq!(limit.check("person", "a"), Err(1));
        assert_eq!(limit.check("person", "b"), Ok(()));
        assert_eq!(limit.check("service", "a"), Ok(()), "another kind of somebody is somebody else");
        let none = RateLimit::new(0);
        assert!((0..10_000).all(|_| none.check("person", "a").is_ok()));
    }
}
