//! The one clock that times of commands come from.

use chrono::{SubsecRound, Utc};
use domain::Timestamp;

/// Returns the current time in whole microseconds, as PostgreSQL keeps it.
pub fn now() -> Timestamp {
    Utc::now().trunc_subsecs(6)
}
