//! Times for commands.

use domain::Timestamp;

/// Returns the current time, as commands carry it.
pub fn now() -> Timestamp {
    api::clock::now()
}
