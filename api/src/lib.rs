//! How it is reached: HTTP and the command line. The only room that knows an HTTP status.
//!
//! `cli` names the commands; each is a module here. Whatever needs the database opens the [`book`]; `serve`
//! builds the [`app`] over it, whose `routes` extract, make a command, and respond.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub mod access;
pub mod app;
pub mod as_of;
pub mod audit;
pub mod auth;
pub mod backup;
pub mod book;
pub mod cli;
pub mod clock;
pub mod config;
pub mod connections;
pub mod demo;
pub mod embedded;
pub mod erase;
pub mod error;
pub mod events;
pub mod extract;
pub mod file_rules;
pub mod foreign;
pub mod import;
pub mod keys;
pub mod matching;
pub mod pages;
pub mod parked;
pub mod places;
pub mod profile;
pub mod proposals;
pub mod publish;
pub mod rate_limit;
pub mod rebuild;
pub mod retention;
pub mod routes;
pub mod security_headers;
pub mod serve;
pub mod speakers;
pub mod status;
pub mod subscribe;
pub mod telemetry;
pub mod terminal;
pub mod token;
