//! A whole read model as it stood at some moment, laid down in a schema of its own, for SQL.
//!
//! It is built under another name and gets its own when it is whole: a schema of that name is never half built.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use event_store::{EventStore, log};
use sqlx::Executor;

use super::pace::Speed;
use super::run::parked_in;
use super::swap::{ASIDE, OLD};
use super::{Progress, RebuildError, build, connect, database};
use crate::erasure;
use crate::schema::{LAYING, LIVE, NEXT, PREVIOUS, SCRATCH, quoted};

/// Up to where history counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Up to this position.
    Position(i64),
    /// Up to the last position that was recorded by this time.
    Time(DateTime<Utc>),
}

impl FromStr for Until {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let position = text.parse().ok().filter(|_| digits).map(Self::Position);
        let time = || DateTime::parse_from_rfc3339(text).ok().map(|time| Self::Time(time.to_utc()));
        position.or_else(time).ok_or("must be a position, or a time as 2026-11-24T09:00:00Z")
    }
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Position(position) => write!(f, "position {position}"),
            Self::Time(time) => f.write_str(&time.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
        }
    }
}

/// The name of a schema that is nobody else's: neither PostgreSQL's nor the program's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaName(String);

impl SchemaName {
    const RESERVED: [&str; 11] =
        [LIVE, NEXT, PREVIOUS, SCRATCH, LAYING, OLD, ASIDE, "log", "ops", "public", "information_schema"];

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SchemaName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let begins = |b: &u8| b.is_ascii_lowercase() || *b == b'_';
        let goes_on = |b: &u8| begins(b) || b.is_ascii_digit();
        // PostgreSQL cuts off what is longer.
        let plain = text.len() <= 63 && text.as_bytes().first().is_some_and(begins);
        if !plain || !text.as_bytes().iter().all(goes_on) {
            return Err("must be 1 to 63 of a-z 0-9 _, and not begin with a digit");
        }
        if Self::RESERVED.contains(&text) || text.starts_with("pg_") {
            return Err("is a name that PostgreSQL or Minutebook has for itself");
        }
        Ok(Self(text.to_owned()))
    }
}

/// What is laid down, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayDown {
    schema: SchemaName,
    position: i64,
    moment: Option<DateTime<Utc>>,
}

impl LayDown {
    /// Finds the position of a moment. Fails if the moment has not come yet, or if the schema is there.
    pub async fn plan(store: &EventStore, until: Until, schema: SchemaName) -> Result<Self, RebuildError> {
        let failed = database("looking for the position");
        let taken: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)")
            .bind(schema.as_str())
            .fetch_one(store.pool())
            .await
            .map_err(&failed)?;
        if taken {
            return Err(taken_error(&schema));
        }
        let head = log::head(store.pool()).await.map_err(&failed)?;
        let not_yet = || RebuildError::NotYet { until: until.to_string(), head };
        let (position, moment) = match until {
            Until::Position(position) if position > head => return Err(not_yet()),
            Until::Position(position) => {
                (position, log::recorded_at(store.pool(), position).await.map_err(&failed)?)
            }
            Until::Time(time) => {
                let position = log::position_at(store.pool(), time).await.map_err(&failed)?;
                (position.ok_or_else(not_yet)?, Some(time))
            }
        };
        Ok(Self { schema, position, moment })
    }

    /// Returns the schema's name.
    pub const fn schema(&self) -> &SchemaName {
        &self.schema
    }

    /// Returns the last position that counts.
    pub const fn position(&self) -> i64 {
        self.position
    }

    /// Returns the moment at which the tables stood like this; none at position 0, before everything.
    pub const fn moment(&self) -> Option<DateTime<Utc>> {
        self.moment
    }

    /// Lays it down; returns which events it does not show although they are history, and why.
    pub(super) async fn carry_out(
        &self,
        store: &EventStore,
        speed: Speed,
        progress: &Arc<impl Progress + 'static>,
    ) -> Result<Vec<String>, RebuildError> {
        build(store, LAYING, self.position, self.moment, speed, progress).await?;
        let parked = parked_in(store, LAYING).await?;
        let mut connection = connect(store, LIVE).await?;
        let forgotten = erasure::leave_out_erased(store, &mut connection, LAYING, self.position);
        forgotten.await.map_err(database("leaving out whoever was forgotten since"))?;
        // It is never live: nobody will decide on what it has parked.
        let never_live = format!(
            "DELETE FROM ops.parked_events WHERE generation = (SELECT generation FROM {LAYING}.checkpoint);
             UPDATE {LAYING}.checkpoint SET generation = 0"
        );
        connection.execute(never_live.as_str()).await.map_err(database("marking it as never live"))?;
        let rename = format!("ALTER SCHEMA {LAYING} RENAME TO {}", quoted(self.schema.as_str()));
        match connection.execute(rename.as_str()).await {
            Ok(_) => Ok(parked),
            Err(error) if is_duplicate(&error) => Err(taken_error(&self.schema)),
            Err(error) => Err(database("giving the schema its name")(error)),
        }
    }
}

fn taken_error(schema: &SchemaName) -> RebuildError {
    RebuildError::SchemaExists { schema: quoted(schema.as_str()) }
}

/// Somebody made a schema of that name meanwhile.
fn is_duplicate(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.as_deref() == Some("42P06")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_s_name_is_plain_and_nobody_else_s() {
        let longest = "a".repeat(63);
        for name in ["march", "_", "a1", "read_2025", "logs", &longest] {
            assert!(name.parse::<SchemaName>().is_ok(), "{name}");
        }
        let too_long = "a".repeat(64);
        for name in ["", "1a", "A", "a b", "a-b", "a\"", "ä", "a;", "pg_x", "pg_", &too_long] {
            assert!(name.parse::<SchemaName>().is_err(), "{name}");
        }
        assert!(SchemaName::RESERVED.iter().all(|name| name.parse::<SchemaName>().is_err()));
    }

    #[test]
    fn a_moment_is_a_position_or_a_time_with_its_zone() {
        assert_eq!("0".parse(), Ok(Until::Position(0)));
        assert_eq!("2026".parse(), Ok(Until::Position(2026)));
        let time = "2026-11-24T10:00:00+01:00".parse::<Until>().unwrap();
        assert_eq!(time.to_string(), "2026-11-24T09:00:00Z");
        for text in ["", "-1", "+1", "1.5", "now", "2026-11-24", "2026-11-24T09:00:00", "9223372036854775808"]
        {
            assert!(text.parse::<Until>().is_err(), "{text}");
        }
    }
}
