//! Minutebook through its built program, and its parts against a real PostgreSQL. One binary: it links once.
//! `./test` builds the program, starts PostgreSQL, and runs this.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail at once")]

mod embedded;
mod smoke;
