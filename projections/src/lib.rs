//! What is derived from the log: the six tables, and the projector that keeps them up to date.
//!
//! [`fold`](fold::fold) turns events into rows in memory and knows no database; `tables` reads and writes
//! rows, set by set; [`projector`] is the live way from the log through the fold to the tables.

pub mod access;
pub mod audit;
pub mod backup;
mod changes;
pub mod erasure;
pub mod feed;
pub mod fold;
pub mod freshness;
pub mod heal;
pub mod history;
pub mod parked;
pub mod projector;
pub mod queries;
pub mod rebuild;
pub mod schema;
mod stored_rows;
pub mod sweeper;
pub mod tables;
pub mod voice_index;
