//! The voices that go with an erasure: whose they are, by what the log ever said, and the destruction of their keys.

use std::collections::BTreeSet;

use domain::ids::{MeetingId, SpeakerId};
use domain::personal_data::Subject;
use domain::speaker::ClusterId;
use event_store::EventStore;
use sqlx::PgPool;
use uuid::Uuid;

use super::{EraseError, Erasure, database};

/// How many keys are destroyed in one transaction: appends wait for it.
const KEYS_AT_ONCE: usize = 2000;

/// Returns who was ever said to be the person, each with the meeting: by a machine or by somebody.
pub(super) async fn links(pool: &PgPool, erasure: &Erasure) -> Result<Vec<(Uuid, Uuid)>, sqlx::Error> {
    let links: Vec<(String, Option<String>)> = sqlx::query_as(
        "SELECT aggregate_id, payload #>> '{SpeakerIdentified,speaker_id}'
           FROM log.events
          WHERE event_type = 'SpeakerIdentified' AND payload #>> '{SpeakerIdentified,profile_id}' = $1
         UNION
         SELECT aggregate_id, payload #>> '{SpeakerReassigned,speaker_id}'
           FROM log.events
          WHERE event_type = 'SpeakerReassigned' AND payload #>> '{SpeakerReassigned,to}' = $1",
    )
    .bind(erasure.subject.to_string())
    .fetch_all(pool)
    .await?;
    // What cannot be read links nobody.
    let link =
        |(meeting, speaker): (String, Option<String>)| Some((meeting.parse().ok()?, speaker?.parse().ok()?));
    Ok(links.into_iter().filter_map(link).collect())
}

/// Returns who spoke in a meeting up to its erasure, in any diarization.
pub(super) async fn speakers(pool: &PgPool, erasure: &Erasure) -> Result<BTreeSet<Uuid>, sqlx::Error> {
    let clusters: Vec<(Option<String>, Option<String>)> = sqlx::query_as(
        "SELECT payload #>> '{SpeakersDiarized,attempt}', cluster #>> '{cluster_id}'
           FROM log.events, jsonb_path_query(payload, '$.SpeakersDiarized.clusters[*]') AS cluster
          WHERE aggregate_type = 'meeting' AND aggregate_id = $1 AND position < $2
            AND event_type = 'SpeakersDiarized'",
    )
    .bind(erasure.subject.to_string())
    .bind(erasure.position)
    .fetch_all(pool)
    .await?;
    let meeting = MeetingId::from(erasure.subject);
    let speaker = |(attempt, label): (Option<String>, Option<String>)| {
        // What is no label has no speaker, and so no key.
        let (attempt, cluster): (u32, ClusterId) = (attempt?.parse().ok()?, label?.parse().ok()?);
        Some(meeting.speaker(attempt, &cluster).as_uuid())
    };
    Ok(clusters.into_iter().filter_map(speaker).collect())
}

/// Destroys the keys of speakers' voices, and notes how many there were with it.
pub(super) async fn destroy_voices(
    store: &EventStore,
    erasure: &Erasure,
    speakers: &BTreeSet<Uuid>,
    meetings: usize,
) -> Result<(), EraseError> {
    let failed = database("destroying the keys of voices");
    let ids: Vec<Uuid> = sqlx::query_scalar(
        "SELECT id FROM UNNEST ($1::uuid[]) AS speakers (id)
          WHERE NOT EXISTS (SELECT FROM keys.subjects k
                             WHERE k.kind = 'speaker' AND k.id = speakers.id AND k.destroyed_at IS NOT NULL)",
    )
    .bind(speakers.iter().copied().collect::<Vec<_>>())
    .fetch_all(store.pool())
    .await
    .map_err(&failed)?;
    for ids in ids.chunks(KEYS_AT_ONCE) {
        let mut transaction = store.pool().begin().await.map_err(&failed)?;
        let voices = ids.iter().map(|id| Subject::Speaker(SpeakerId::from(*id))).collect::<Vec<_>>();
        let keys = store.keyring().destroy(&mut transaction, &voices).await.map_err(&failed)?;
        sqlx::query("UPDATE keys.erasures SET keys = keys + $2 WHERE number = $1")
            .bind(erasure.number)
            .bind(keys)
            .execute(&mut *transaction)
            .await
            .map_err(&failed)?;
        transaction.commit().await.map_err(&failed)?;
        store.keyring().forgot().await.map_err(&failed)?;
    }
    sqlx::query("UPDATE keys.erasures SET speakers = $2, meetings = $3 WHERE number = $1")
        .bind(erasure.number)
        .bind(i64::try_from(speakers.len()).unwrap_or(i64::MAX))
        .bind(i64::try_from(meetings).unwrap_or(i64::MAX))
        .execute(store.pool())
        .await
        .map_err(failed)?;
    Ok(())
}
