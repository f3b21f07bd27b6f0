//! What may happen: the aggregates [`Meeting`](meeting::Meeting) and [`Profile`](profile::Profile),
//! their commands and events, and the value types that both are made of.
//!
//! Nothing here does I/O, reads a clock or draws a random number: ids and times come in with a command.
//! `decide` turns a state and a command into events or a refusal, `evolve` turns a state and an event
//! into the next state. Both are free functions; the cqrs-es traits are a bridge over them.

pub mod artifact;
pub mod digest;
pub mod event;
pub mod file;
pub mod ids;
pub mod meeting;
pub mod personal_data;
pub mod profile;
pub mod speaker;
pub mod speaker_matching;
pub mod text;
pub mod upcast;
pub mod value;
pub mod voice;

pub use event::Event;
pub use value::ValueError;

/// A moment in UTC, in whole microseconds: what PostgreSQL keeps and JSON carries without loss.
pub type Timestamp = chrono::DateTime<chrono::Utc>;
