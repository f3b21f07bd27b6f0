//! What other generations of the tables than the live one have of whoever was forgotten: it is deleted there.

use event_store::{EventStore, locks};
use sqlx::{Executor, PgConnection};
use uuid::Uuid;

use super::{EraseError, Erasure, ErasureKind, database};
use crate::schema::{self, LIVE, quoted};
use crate::tables::checkpoint;

/// Deletes the rows that other generations have of the subject: the previous one, and tables laid down as they
/// stood. One that is as far as the erasure has forgotten by itself. A rebuild that runs is waited for: it may
/// have read what it has not written yet.
pub(super) async fn clean_generations(
    store: &EventStore,
    erasure: &Erasure,
) -> Result<Option<String>, EraseError> {
    let failed = database("cleaning other generations");
    let mut transaction = store.pool().begin().await.map_err(&failed)?;
    transaction.execute("SET LOCAL lock_timeout = '10s'").await.map_err(&failed)?;
    let alone: bool = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)")
        .bind(locks::REBUILD)
        .fetch_one(&mut *transaction)
        .await
        .map_err(&failed)?;
    if !alone {
        return Ok(Some("a rebuild, which runs".to_owned()));
    }
    let schemas = schema::generations(&mut *transaction).await.map_err(&failed)?;
    for schema in schemas.into_iter().filter(|schema| schema != LIVE) {
        clean(&mut transaction, &schema, erasure).await.map_err(&failed)?;
    }
    transaction.commit().await.map_err(&failed)?;
    Ok(None)
}

async fn clean(transaction: &mut PgConnection, schema: &str, erasure: &Erasure) -> Result<(), sqlx::Error> {
    // Without its tables it is none any more.
    if !schema::exists(transaction, schema).await? {
        return Ok(());
    }
    transaction.execute(format!("SET LOCAL search_path = {}", quoted(schema)).as_str()).await?;
    if checkpoint::lock(transaction).await?.position >= erasure.position {
        return Ok(());
    }
    match erasure.kind {
        ErasureKind::Profile => {
            sqlx::query("DELETE FROM user_profiles WHERE id = $1")
                .bind(erasure.subject)
                .execute(transaction)
                .await?;
        }
        ErasureKind::Meeting => clean_of_meeting(transaction, erasure.subject).await?,
    }
    Ok(())
}

/// Deletes what a generation has of a meeting, and what is cached under a key under which the meeting ever cached
/// a result.
async fn clean_of_meeting(transaction: &mut PgConnection, meeting: Uuid) -> Result<(), sqlx::Error> {
    for delete in [
        "DELETE FROM stale_artifacts WHERE meeting_id = $1",
        "DELETE FROM speaker_reassignments WHERE meeting_id = $1",
        "DELETE FROM artifacts WHERE meeting_id = $1",
        "DELETE FROM speakers WHERE meeting_id = $1",
        "WITH deleted AS (DELETE FROM meetings WHERE id = $1 RETURNING file_id)
         DELETE FROM files USING deleted WHERE files.id = deleted.file_id",
    ] {
        sqlx::query(delete).bind(meeting).execute(&mut *transaction).await?;
    }
    sqlx::query(
        "DELETE FROM cache WHERE key = 'meeting:' || $1 OR key IN (
             SELECT concat_ws(':', payload #>> '{StageResultCached,stage}',
                              payload #>> '{StageResultCached,content_fp}')
               FROM log.events
              WHERE aggregate_type = 'meeting' AND aggregate_id = $1 AND event_type = 'StageResultCached')",
    )
    .bind(meeting.to_string())
    .execute(transaction)
    .await?;
    Ok(())
}
