//! Minutebook through its built program, and its parts against a real PostgreSQL. One binary: it links once.
//! `./test` builds the program, starts PostgreSQL, and runs this.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail at once")]

mod architecture;
mod asyncapi;
mod auth;
mod backup;
mod browser;
mod changes;
mod cli;
mod command_bus;
mod compose;
mod embedded;
mod erasure;
mod http;
mod import;
mod kill;
mod log;
mod logs;
mod nats_harness;
mod openapi;
mod pages;
mod publisher;
mod read_models;
mod real_voices;
mod rebuild;
mod roles;
mod sealing;
mod smoke;
mod subscriber;
mod voice_index;
