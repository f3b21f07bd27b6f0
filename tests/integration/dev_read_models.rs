//! Temporary.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail at once")]
mod cli;
mod import;
mod kill;
mod read_models;
