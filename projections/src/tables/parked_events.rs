//! `ops.parked_events`: the events that a generation does not show although its checkpoint has passed them.
//! Written with the generation's tables, in the same transactions.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{FromRow, PgConnection, PgExecutor};

use super::{Statement, column};

/// An event that is to be parked.
#[derive(Debug, Clone)]
pub struct Parked {
    /// Its place in the log.
    pub position: i64,
    /// The type of its aggregate, as the log has it.
    pub aggregate_type: String,
    /// Its aggregate, as the log has it.
    pub aggregate_id: String,
    /// Its place among the aggregate's events.
    pub sequence: i64,
    /// Its name.
    pub event_type: String,
    /// Why it cannot be applied, without any of its content; none if it waits for one before it.
    pub reason: Option<String>,
}

/// An event that is parked.
#[derive(Debug, Clone, Serialize, FromRow)]
pub struct ParkedRow {
    /// Its place in the log.
    pub position: i64,
    /// The type of its aggregate.
    pub aggregate_type: String,
    /// Its aggregate.
    pub aggregate_id: String,
    /// Its place among the aggregate's events.
    pub sequence: i64,
    /// Its name.
    pub event_type: String,
    /// Why it cannot be applied; none if it waits for one before it.
    pub reason: Option<String>,
    /// Since when.
    pub parked_at: DateTime<Utc>,
}

/// Returns the statement that parks events of a generation, if there are any.
pub(crate) fn insert(generation: i64, parked: &[Parked]) -> Option<Statement> {
    if parked.is_empty() {
        return None;
    }
    let statement = Statement::new(
        "INSERT INTO ops.parked_events
                (generation, position, aggregate_type, aggregate_id, sequence, event_type, reason)
         SELECT $1, position, aggregate_type, aggregate_id, sequence, event_type, reason
           FROM UNNEST ($2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::text[])
             AS new (position, aggregate_type, aggregate_id, sequence, event_type, reason)",
    )
    .bind(generation)
    .bind(column!(parked, event => event.position))
    .bind(column!(parked, event => event.aggregate_type.as_str()))
    .bind(column!(parked, event => event.aggregate_id.as_str()))
    .bind(column!(parked, event => event.sequence))
    .bind(column!(parked, event => event.event_type.as_str()))
    .bind(column!(parked, event => event.reason.as_deref()));
    Some(statement)
}

/// Returns the aggregates of which a generation has parked events.
pub(crate) async fn aggregates(
    executor: impl PgExecutor<'_>,
    generation: i64,
) -> Result<Vec<(String, String)>, sqlx::Error> {
    sqlx::query_as(
        "SELECT DISTINCT aggregate_type, aggregate_id FROM ops.parked_events WHERE generation = $1",
    )
    .bind(generation)
    .fetch_all(executor)
    .await
}

/// Returns the first parked event of each aggregate of a generation after position `after`, in order.
pub async fn heads(
    executor: impl PgExecutor<'_>,
    generation: i64,
    after: i64,
    limit: i64,
) -> Result<Vec<ParkedRow>, sqlx::Error> {
    sqlx::query_as(
        "SELECT position, aggregate_type, aggregate_id, sequence, event_type, reason, parked_at
           FROM ops.parked_events
          WHERE generation = $1 AND position > $2 AND reason IS NOT NULL ORDER BY position LIMIT $3",
    )
    .bind(generation)
    .bind(after)
    .bind(limit)
    .fetch_all(executor)
    .await
}

/// Returns the parked events of one aggregate, in order.
pub async fn of_aggregate(
    executor: impl PgExecutor<'_>,
    generation: i64,
    aggregate_type: &str,
    aggregate_id: &str,
) -> Result<Vec<ParkedRow>, sqlx::Error> {
    sqlx::query_as(
        "SELECT position, aggregate_type, aggregate_id, sequence, event_type, reason, parked_at
           FROM ops.parked_events
          WHERE generation = $1 AND aggregate_type = $2 AND aggregate_id = $3 ORDER BY position",
    )
    .bind(generation)
    .bind(aggregate_type)
    .bind(aggregate_id)
    .fetch_all(executor)
    .await
}

/// Returns the parked event at a position.
pub async fn at(
    executor: impl PgExecutor<'_>,
    generation: i64,
    position: i64,
) -> Result<Option<ParkedRow>, sqlx::Error> {
    sqlx::query_as(
        "SELECT position, aggregate_type, aggregate_id, sequence, event_type, reason, parked_at
           FROM ops.parked_events WHERE generation = $1 AND position = $2",
    )
    .bind(generation)
    .bind(position)
    .fetch_optional(executor)
    .await
}

/// Returns the sequence of the first parked event of an aggregate in the generation of the connection's
/// `search_path`.
pub(crate) async fn first_of(
    executor: impl PgExecutor<'_>,
    aggregate_type: &str,
    aggregate_id: &str,
) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT min(sequence) FROM ops.parked_events
          WHERE generation = (SELECT generation FROM checkpoint) AND aggregate_type = $1 AND aggregate_id = $2",
    )
    .bind(aggregate_type)
    .bind(aggregate_id)
    .fetch_one(executor)
    .await
}

/// Takes events from among the parked.
pub(crate) async fn delete(
    connection: &mut PgConnection,
    generation: i64,
    positions: &[i64],
) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM ops.parked_events WHERE generation = $1 AND position = ANY ($2)")
        .bind(generation)
        .bind(positions)
        .execute(connection)
        .await?;
    Ok(())
}

/// Takes note why an event cannot be applied.
pub(crate) async fn note_reason(
    connection: &mut PgConnection,
    generation: i64,
    position: i64,
    reason: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE ops.parked_events SET reason = $3 WHERE generation = $1 AND position = $2")
        .bind(generation)
        .bind(position)
        .bind(reason)
        .execute(connection)
        .await?;
    Ok(())
}

/// How many events wait.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, FromRow)]
pub struct Waiting {
    /// Events that are parked.
    pub events: i64,
    /// Aggregates to which they belong.
    pub aggregates: i64,
    /// How long the oldest has been parked, in seconds; 0 without any.
    pub seconds: f64,
}

/// Counts the events that the generation of the connection's `search_path` has parked.
pub async fn waiting(executor: impl PgExecutor<'_>) -> Result<Waiting, sqlx::Error> {
    sqlx::query_as(
        "SELECT count(*) AS events, count(reason) AS aggregates,
                coalesce(extract(epoch FROM now() - min(parked_at)), 0)::float8 AS seconds
           FROM ops.parked_events WHERE generation = (SELECT generation FROM checkpoint)",
    )
    .fetch_one(executor)
    .await
}
