//! What other generations of the tables than the live one have of whoever was forgotten: it is taken out there.

use std::collections::BTreeSet;

use event_store::{EventStore, locks};
use sqlx::{Connection, Executor, PgConnection};
use uuid::Uuid;

use super::receipt::not_shown_at;
use super::voices::links;
use super::{EraseError, Erasure, ErasureKind, database};
use crate::schema::{self, LIVE, quoted};
use crate::tables::checkpoint;

/// Takes out what other generations have of the subject: the previous one, and tables laid down as they stood. A
/// rebuild that runs is waited for: it may have read what it has not written yet.
pub(super) async fn clean_generations(
    store: &EventStore,
    erasure: &Erasure,
    meetings: &[String],
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
        clean(&mut transaction, &schema, erasure, meetings).await.map_err(&failed)?;
    }
    transaction.commit().await.map_err(&failed)?;
    Ok(None)
}

/// Takes out of tables that are laid down as they stood at `position` what they have of whoever was forgotten since.
/// An erasure that comes meanwhile waits for them.
pub(crate) async fn leave_out_erased(
    store: &EventStore,
    connection: &mut PgConnection,
    schema: &str,
    position: i64,
) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    for erasure in not_shown_at(store.pool(), position).await? {
        let meetings = match erasure.kind {
            ErasureKind::Profile => {
                let links = links(store.pool(), &erasure).await?;
                links.into_iter().map(|(meeting, _)| meeting).collect::<BTreeSet<_>>()
            }
            ErasureKind::Meeting => BTreeSet::from([erasure.subject]),
        };
        let meetings = meetings.iter().map(Uuid::to_string).collect::<Vec<_>>();
        clean(&mut transaction, schema, &erasure, &meetings).await?;
    }
    transaction.commit().await
}

/// Takes out the subject, and what stages cached in `meetings`, those of the subject, up to the erasure.
async fn clean(
    transaction: &mut PgConnection,
    schema: &str,
    erasure: &Erasure,
    meetings: &[String],
) -> Result<(), sqlx::Error> {
    // Without its tables it is none any more.
    if !schema::exists(transaction, schema).await? {
        return Ok(());
    }
    transaction.execute(format!("SET LOCAL search_path = {}", quoted(schema)).as_str()).await?;
    let shown = checkpoint::lock(transaction).await?.position;
    match erasure.kind {
        ErasureKind::Profile => clean_of_person(transaction, erasure.subject, meetings).await?,
        ErasureKind::Meeting if shown < erasure.position => {
            clean_of_meeting(transaction, erasure.subject).await?;
        }
        // It has forgotten by itself, and may show the meeting's next life.
        ErasureKind::Meeting => {}
    }
    sqlx::query(
        "DELETE FROM cache USING cache_origin origin
          WHERE origin.key = cache.key AND origin.position < $2
            AND cache.key IN (
                SELECT concat_ws(':', payload #>> '{StageResultCached,stage}',
                                 payload #>> '{StageResultCached,content_fp}')
                  FROM log.events
                 WHERE aggregate_type = 'meeting' AND aggregate_id = ANY ($1) AND event_type = 'StageResultCached')",
    )
    .bind(meetings)
    .bind(erasure.position)
    .execute(transaction)
    .await?;
    Ok(())
}

/// Takes a person out, and the links of speakers to the person: what comes later in the log says nothing of either but
/// that they are gone. Results of `meetings` that name the person are folded anew by the same events.
async fn clean_of_person(
    transaction: &mut PgConnection,
    person: Uuid,
    meetings: &[String],
) -> Result<(), sqlx::Error> {
    for statement in [
        "DELETE FROM user_profiles WHERE id = $1",
        "UPDATE speakers SET user_profile_id = NULL, confidence = NULL WHERE user_profile_id = $1",
    ] {
        sqlx::query(statement).bind(person).execute(&mut *transaction).await?;
    }
    sqlx::query(
        "DELETE FROM cache USING UNNEST ($1::text[]) AS meetings (id)
          WHERE key = 'meeting:' || meetings.id AND strpos(value, $2::text) > 0",
    )
    .bind(meetings)
    .bind(person.to_string())
    .execute(transaction)
    .await?;
    Ok(())
}

/// Deletes what a generation has of a meeting.
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
    sqlx::query("DELETE FROM cache WHERE key = 'meeting:' || $1")
        .bind(meeting.to_string())
        .execute(transaction)
        .await?;
    Ok(())
}
