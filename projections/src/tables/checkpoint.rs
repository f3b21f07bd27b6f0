//! `checkpoint`: up to which position a generation's tables show the history.

use sqlx::{PgConnection, PgExecutor, Row};

use crate::schema::quoted;

/// A generation and how far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which generation.
    pub generation: i64,
    /// The last position that its tables show.
    pub position: i64,
}

/// Returns the checkpoint of the generation that the connection's `search_path` names.
pub async fn read(executor: impl PgExecutor<'_>) -> Result<Checkpoint, sqlx::Error> {
    checkpoint(&sqlx::query("SELECT generation, position FROM checkpoint").fetch_one(executor).await?)
}

/// Returns the checkpoint and holds its row to the end of the transaction: nobody else moves it, and no
/// swap of generations comes in between.
pub async fn lock(connection: &mut PgConnection) -> Result<Checkpoint, sqlx::Error> {
    let row = sqlx::query("SELECT generation, position FROM checkpoint FOR UPDATE");
    checkpoint(&row.fetch_one(connection).await?)
}

/// Moves the checkpoint on to `position` if it still is `from`; says whether it was.
pub async fn advance(
    connection: &mut PgConnection,
    from: Checkpoint,
    position: i64,
) -> Result<bool, sqlx::Error> {
    let moved = sqlx::query("UPDATE checkpoint SET position = $3 WHERE generation = $1 AND position = $2")
        .bind(from.generation)
        .bind(from.position)
        .bind(position)
        .execute(connection)
        .await?;
    Ok(moved.rows_affected() == 1)
}

/// Gives the generation in `schema` a number that none has had: whoever has worked out what to write to it
/// has to look again. The events that it has parked go with it. Returns the number.
pub async fn renew(connection: &mut PgConnection, schema: &str) -> Result<i64, sqlx::Error> {
    let schema = quoted(schema);
    let before: i64 = sqlx::query_scalar(&format!("SELECT generation FROM {schema}.checkpoint FOR UPDATE"))
        .fetch_one(&mut *connection)
        .await?;
    let renew = format!(
        "UPDATE {schema}.checkpoint SET generation = nextval('ops.generations') RETURNING generation"
    );
    let renewed = sqlx::query_scalar(&renew).fetch_one(&mut *connection).await?;
    sqlx::query("UPDATE ops.parked_events SET generation = $2 WHERE generation = $1")
        .bind(before)
        .bind(renewed)
        .execute(connection)
        .await?;
    Ok(renewed)
}

fn checkpoint(row: &sqlx::postgres::PgRow) -> Result<Checkpoint, sqlx::Error> {
    Ok(Checkpoint { generation: row.try_get(0)?, position: row.try_get(1)? })
}
