//! Temporary.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail at once")]
mod read_models;
mod kill;
mod cli;
mod import;
