//! The tables: each file has its row, and reads and writes it set by set. Statements name no schema: the
//! connection's `search_path` says which generation is meant.

pub mod artifacts;
pub mod cache;
pub mod checkpoint;
pub mod copy;
pub mod files;
pub mod meetings;
pub mod parked_events;
pub mod speaker_reassignments;
pub mod speakers;
pub mod user_profiles;

use sqlx::error::BoxDynError;
use sqlx::postgres::PgArguments;
use sqlx::{Arguments, Encode, PgConnection, Postgres, Type};

/// A statement with its values, encoded: whoever executes it has nothing left to work out.
pub struct Statement {
    sql: &'static str,
    arguments: Result<PgArguments, BoxDynError>,
}

impl Statement {
    fn new(sql: &'static str) -> Self {
        Self { sql, arguments: Ok(PgArguments::default()) }
    }

    fn bind<'a, T: 'a + Encode<'a, Postgres> + Type<Postgres>>(mut self, value: T) -> Self {
        if let Ok(arguments) = &mut self.arguments
            && let Err(error) = arguments.add(value)
        {
            self.arguments = Err(error);
        }
        self
    }

    /// Executes it.
    pub async fn execute(self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let arguments = self.arguments.map_err(sqlx::Error::Encode)?;
        sqlx::query_with(self.sql, arguments).execute(connection).await?;
        Ok(())
    }
}

/// Says whether the tables have changed their shape behind a statement that the connection had prepared: a
/// new generation may have another column, or a wider one.
pub fn is_stale_plan(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref() == Some("0A000")
}

/// Reads on a connection of a pool; once more where what it had prepared does not fit the tables any longer.
macro_rules! read_twice {
    ($pool:expr, $connection:ident => $read:expr) => {{
        let mut $connection = $pool.acquire().await?;
        let mut answer = $read.await;
        if answer.as_ref().is_err_and($crate::tables::is_stale_plan) {
            sqlx::Connection::clear_cached_statements(&mut *$connection).await?;
            answer = $read.await;
        }
        answer
    }};
}
pub(crate) use read_twice;

/// Returns the statement that deletes the rows with these ids, if there are any.
fn delete(sql: &'static str, ids: &[uuid::Uuid]) -> Option<Statement> {
    (!ids.is_empty()).then(|| Statement::new(sql).bind(ids))
}

/// Turns rows into the columns that `UNNEST` takes.
macro_rules! column {
    ($rows:expr, $row:ident => $value:expr) => {
        $rows.iter().map(|$row| $value).collect::<Vec<_>>()
    };
}
pub(crate) use column;
