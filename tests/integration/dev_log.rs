//! Temporary.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail at once")]
mod command_bus;
mod log;
