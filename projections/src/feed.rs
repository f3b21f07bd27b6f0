//! The change feed: what happened, told to others, once the tables show it.
//!
//! [`source`] turns the log into public events; [`publisher`] puts them on JetStream, [`refill`] puts them
//! there again where the broker lost them; [`subscriber`] is the other end. Postgres is the truth, the
//! stream a copy.

pub mod cloud_event;
pub mod ledger;
pub mod public_event;
pub mod publication;
pub mod publisher;
pub mod refill;
pub mod schemas;
pub mod sending;
pub mod source;
pub mod stream;
pub mod subscriber;
pub mod withheld;
