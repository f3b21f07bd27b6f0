//! How long to wait before trying again.

use std::time::Duration;

/// Returns the pause before try number `attempt` (the first retry is 1): doubling from `first` up to
/// `most`, of which a random half is taken away, so that rivals do not meet again.
pub fn backoff(attempt: u32, first: Duration, most: Duration) -> Duration {
    let full = first.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1))).min(most);
    full.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// Says whether an error speaks of the connection or the server's state, so that the same may succeed on
/// another try, rather than of what was sent.
pub fn is_transient(error: &sqlx::Error) -> bool {
    match error.as_database_error().and_then(|e| e.code()) {
        // Connection exceptions, lack of resources, operator intervention, lock and serialization
        // failures, and statements cancelled by a time-out.
        Some(code) => {
            ["08", "53", "57", "40", "55"].iter().any(|class| code.starts_with(class)) || code == "25006"
        }
        None => matches!(
            error,
            sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::WorkerCrashed
        ),
    }
}

/// Says whether an error speaks of the connection or of the server's end, so that nothing at all succeeds now.
pub fn is_away(error: &sqlx::Error) -> bool {
    match error.as_database_error().and_then(|e| e.code()) {
        Some(code) => code.starts_with("08") || code.starts_with("57P"),
        None => is_transient(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_bounded() {
        let (first, most) = (Duration::from_millis(10), Duration::from_millis(500));
        for attempt in 1..200 {
            let pause = backoff(attempt, first, most);
            assert!(pause >= first / 2 && pause <= most, "{attempt}: {pause:?}");
        }
        assert!(backoff(20, first, most) >= most / 2);
    }
}
