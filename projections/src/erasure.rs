//! Forgetting a person or a meeting everywhere, and the receipt that says how far that is.
//!
//! It begins with an event. In its transaction the subject's key is destroyed, so that from the next append on
//! nothing is sealed for the subject and nobody is linked to it (`0010_erasures.sql`). What remains is carried
//! out by whoever projects the log, from the receipt that the event left, step by step; each step may be
//! repeated, so that it does not matter when a process dies:
//!
//! 1. the keys of all voices go that were ever said to be the person's, or speak in the meeting;
//! 2. a person is no speaker any more, in any meeting, by events that say why;
//! 3. what is parked of the subject itself is skipped, for it would keep the erasure from the tables;
//! 4. the tables show all of that;
//! 5. every other generation loses the rows that it has of the subject.
//!
//! Positions never run backwards: what links the person is before the event, so all of it is found.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use domain::Timestamp;
use domain::ids::{MeetingId, ProfileId, SpeakerId};
use domain::meeting::{MeetingCommand, MeetingError};
use domain::personal_data::Subject;
use domain::profile::{ProfileCommand, ProfileError};
use domain::speaker::ClusterId;
use domain::text::Reason;
use event_store::EventStore;
use event_store::command_bus::{Accepted, CommandBus, CommandError, Context};
use event_store::retry::backoff;
use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use sqlx::{Connection, Executor, FromRow, PgConnection, PgPool};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::parked::{self, ParkedError};
use crate::schema::{self, LIVE, quoted};
use crate::tables::{checkpoint, parked_events};

/// How often it is looked whether an erasure has begun, while the log moves.
const POLL: Duration = Duration::from_millis(50);
/// How soon one is tried again that waits for something.
const AGAIN: Duration = Duration::from_millis(500);
/// How late at most.
const LATER: Duration = Duration::from_secs(30);
/// How often it is looked although the log does not move.
const IDLE: Duration = Duration::from_secs(5);
/// How many meetings are told at once that somebody was forgotten: as many as one group of appends takes.
const AT_ONCE: usize = 256;
/// How many keys are destroyed in one transaction: appends wait for it.
const KEYS_AT_ONCE: usize = 2000;
/// How long one pass waits for the tables.
const SHOWN: Duration = Duration::from_secs(10);
/// How long one pass over what is under way may take.
const PASS: Duration = Duration::from_secs(600);
/// How many events of one aggregate are set aside to erase it.
const UNREADABLE: usize = 100;

/// What was forgotten: the receipt of an erasure.
#[derive(Debug, Clone, Serialize, FromRow, ToSchema)]
pub struct Erasure {
    /// Its number.
    #[schema(example = 7)]
    pub number: i64,
    /// `profile` or `meeting`.
    #[schema(example = "profile")]
    pub kind: String,
    /// The profile or the meeting.
    #[schema(example = "018f0000-0000-7000-8000-000000000001")]
    pub subject: Uuid,
    /// `complete` once it is carried out everywhere; `under_way` until then.
    #[schema(example = "complete")]
    pub state: String,
    /// The place in the log of the event that says so.
    #[schema(example = 42)]
    pub position: i64,
    /// When it was recorded; from then on the subject's own key is destroyed.
    #[schema(example = "2026-11-24T09:00:00Z")]
    pub erased_at: DateTime<Utc>,
    /// When the rest was carried out.
    pub completed_at: Option<DateTime<Utc>>,
    /// Who asked for it.
    #[schema(example = "admin-1")]
    pub actor: Option<String>,
    /// `person`, `service` or `system`.
    #[schema(example = "person")]
    pub actor_kind: Option<String>,
    /// Why, of a meeting.
    pub reason: Option<String>,
    /// How many keys were destroyed.
    #[schema(example = 1001)]
    pub keys: i64,
    /// How many speakers had ever been said to be the person, or speak in the meeting.
    #[schema(example = 1000)]
    pub speakers: i64,
    /// In how many meetings.
    #[schema(example = 1000)]
    pub meetings: i64,
    /// What keeps it from its end, where something does.
    pub waits_for: Option<String>,
}

/// Why an erasure did not come further.
#[derive(Debug, thiserror::Error)]
pub enum EraseError {
    /// The database cannot be used.
    #[error("the database cannot be used: {phase}")]
    Database {
        /// What was tried.
        phase: &'static str,
        /// What came of it.
        #[source]
        source: sqlx::Error,
    },
    /// A meeting does not take it.
    #[error("meeting {id} cannot be told that the person was forgotten")]
    Meeting {
        /// Which one.
        id: MeetingId,
        /// Why.
        #[source]
        source: Box<CommandError<MeetingError>>,
    },
    /// Parked events of the subject stand in the way.
    #[error(transparent)]
    Parked(#[from] ParkedError),
    /// It takes too long.
    #[error("it took too long")]
    TimedOut,
}

fn database(phase: &'static str) -> impl Fn(sqlx::Error) -> EraseError {
    move |source| EraseError::Database { phase, source }
}

/// Selects receipts.
macro_rules! select {
    ($which:literal) => {
        concat!(
            "SELECT number, kind, subject, position, erased_at, completed_at, actor, actor_kind, reason, keys,
                    speakers, meetings, waits_for,
                    CASE WHEN completed_at IS NULL THEN 'under_way' ELSE 'complete' END AS state
               FROM keys.erasures ",
            $which
        )
    };
}

/// Returns the latest erasure of a profile or a meeting.
pub async fn of_subject(pool: &PgPool, subject: Uuid) -> Result<Option<Erasure>, sqlx::Error> {
    sqlx::query_as(select!("WHERE subject = $1 ORDER BY number DESC LIMIT 1"))
        .bind(subject)
        .fetch_optional(pool)
        .await
}

/// Returns erasures, the newest first: those before the one with the number `before`, if it is given.
pub async fn latest(pool: &PgPool, before: Option<i64>, limit: i64) -> Result<Vec<Erasure>, sqlx::Error> {
    sqlx::query_as(select!("WHERE $1 IS NULL OR number < $1 ORDER BY number DESC LIMIT $2"))
        .bind(before)
        .bind(limit)
        .fetch_all(pool)
        .await
}

async fn under_way(pool: &PgPool) -> Result<Vec<Erasure>, sqlx::Error> {
    sqlx::query_as(select!("WHERE completed_at IS NULL ORDER BY waits_for IS NOT NULL, number LIMIT 100"))
        .fetch_all(pool)
        .await
}

/// How many erasures are not carried out yet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, FromRow)]
pub struct Unfinished {
    /// Erasures that are under way.
    pub erasures: i64,
    /// How long ago the oldest began, in seconds; 0 without any.
    pub seconds: f64,
}

/// Counts the erasures that are under way.
pub async fn unfinished(pool: &PgPool) -> Result<Unfinished, sqlx::Error> {
    sqlx::query_as(
        "SELECT count(*) AS erasures,
                coalesce(extract(epoch FROM now() - min(erased_at)), 0)::float8 AS seconds
           FROM keys.erasures WHERE completed_at IS NULL",
    )
    .fetch_one(pool)
    .await
}

/// Waits until an erasure is carried out, or `deadline`; returns how it stands then.
pub async fn wait(pool: &PgPool, subject: Uuid, deadline: Instant) -> Result<Option<Erasure>, sqlx::Error> {
    loop {
        let erasure = of_subject(pool, subject).await?;
        let under_way = erasure.as_ref().is_some_and(|erasure| erasure.completed_at.is_none());
        if !under_way || Instant::now() >= deadline {
            return Ok(erasure);
        }
        sleep(POLL).await;
    }
}

/// Something that was kept elsewhere of an erased meeting, for whoever has to delete it there.
#[derive(Debug, Clone, Serialize, FromRow, ToSchema)]
pub struct KeptElsewhere {
    /// The place among the meeting's events of the one that told of it.
    #[schema(example = 9)]
    pub sequence: i64,
    /// `recording` (the file's SHA-256), `artifact` (its s3_key) or `cache` (its key in the cache).
    #[schema(example = "artifact")]
    pub kind: String,
    /// Under which name it was kept.
    #[schema(example = "meetings/6a1f4d43/transcript.vtt")]
    pub key: String,
}

/// Returns what was kept elsewhere of an erased meeting, in all of its lives up to the erasure, in the order in
/// which it was told of.
pub async fn kept_elsewhere(
    pool: &PgPool,
    erasure: &Erasure,
    after: i64,
    limit: i64,
) -> Result<Vec<KeptElsewhere>, sqlx::Error> {
    sqlx::query_as(
        "SELECT sequence,
                CASE event_type WHEN 'ArtifactStored' THEN 'artifact'
                                WHEN 'StageResultCached' THEN 'cache' ELSE 'recording' END AS kind,
                CASE event_type
                    WHEN 'ArtifactStored' THEN coalesce(payload #>> '{ArtifactStored,artifact,s3_key}', '')
                    WHEN 'StageResultCached' THEN concat_ws(':', payload #>> '{StageResultCached,stage}',
                                                            payload #>> '{StageResultCached,content_fp}')
                    ELSE coalesce(payload #>> '{MeetingRegistered,file,sha256}', '') END AS key
           FROM log.events
          WHERE aggregate_type = 'meeting' AND aggregate_id = $1 AND sequence > $2 AND position <= $3
            AND event_type IN ('MeetingRegistered', 'ArtifactStored', 'StageResultCached')
          ORDER BY sequence LIMIT $4",
    )
    .bind(erasure.subject.to_string())
    .bind(after)
    .bind(erasure.position)
    .bind(limit)
    .fetch_all(pool)
    .await
}

/// Forgets a person. What does not take effect at once is carried out by whoever projects the log.
pub async fn erase_profile(
    store: &EventStore,
    bus: &CommandBus,
    id: ProfileId,
    at: Timestamp,
    context: &Context,
) -> Result<Accepted, CommandError<ProfileError>> {
    let erase = || bus.profile(id, ProfileCommand::Erase { at }, context);
    let mut erased = erase().await;
    for _ in 0..UNREADABLE {
        match erased {
            Err(CommandError::Unreadable { position, .. }) if set_aside(store, position).await => {
                erased = erase().await;
            }
            other => return other,
        }
    }
    erased
}

/// Forgets a meeting, as [`erase_profile`] does a person.
pub async fn erase_meeting(
    store: &EventStore,
    bus: &CommandBus,
    id: MeetingId,
    reason: Reason,
    at: Timestamp,
    context: &Context,
) -> Result<Accepted, CommandError<MeetingError>> {
    let erase = || bus.meeting(id, MeetingCommand::Erase { reason: reason.clone(), at }, context);
    let mut erased = erase().await;
    for _ in 0..UNREADABLE {
        match erased {
            Err(CommandError::Unreadable { position, .. }) if set_aside(store, position).await => {
                erased = erase().await;
            }
            other => return other,
        }
    }
    erased
}

/// Skips an event that cannot be read: nobody keeps what is to be forgotten by being damaged. Says whether it was
/// parked.
async fn set_aside(store: &EventStore, position: i64) -> bool {
    match parked::skip(store, position, "what it is about is to be erased", "system:erasure").await {
        Ok(_) => true,
        Err(error) => {
            warn!(
                position,
                error = &error as &dyn std::error::Error,
                "an event cannot be set aside to erase"
            );
            false
        }
    }
}

/// Carries out what is under way, until `shutdown`. Of several processes that do so one works at a time.
pub async fn run(store: EventStore, bus: CommandBus, shutdown: CancellationToken) {
    let carrying_out = async {
        let mut head = store.head().subscribe();
        let (mut failures, mut waits) = (0, 0);
        let mut looked_back = false;
        loop {
            // Marked as seen before looking: an erasure that is appended while we look wakes us again.
            head.borrow_and_update();
            let pass = async {
                if !looked_back {
                    erase_again(&store, &bus).await?;
                    looked_back = true;
                }
                carry_out(&store, &bus).await
            };
            let pause = match timeout(PASS, pass).await.unwrap_or(Err(EraseError::TimedOut)) {
                Ok(true) => {
                    (failures, waits) = (0, 0);
                    IDLE
                }
                Ok(false) => {
                    (failures, waits) = (0, waits + 1);
                    backoff(waits, AGAIN, LATER)
                }
                Err(error) => {
                    failures += 1;
                    if failures == 1 {
                        let error = &error as &dyn std::error::Error;
                        warn!(error, "an erasure was interrupted and will be carried on");
                    }
                    backoff(failures, AGAIN, LATER)
                }
            };
            wait_for_more(store.pool(), &mut head, pause).await;
        }
    };
    shutdown.run_until_cancelled(carrying_out).await;
}

/// Waits until an erasure has begun, at most so long.
async fn wait_for_more(pool: &PgPool, head: &mut watch::Receiver<i64>, pause: Duration) {
    let until = Instant::now() + pause;
    while let Ok(Ok(())) = timeout_at(until, head.changed()).await {
        let new =
            "SELECT EXISTS (SELECT FROM keys.erasures WHERE completed_at IS NULL AND waits_for IS NULL)";
        // What cannot be looked up now is found at the end of the pause.
        if let Ok(Ok(true)) = timeout(AGAIN, sqlx::query_scalar(new).fetch_one(pool)).await {
            return;
        }
        // Under load the log moves all the time.
        sleep(POLL).await;
    }
}

/// Carries out what is under way, as far as it goes now; says whether nothing is left.
pub async fn carry_out(store: &EventStore, bus: &CommandBus) -> Result<bool, EraseError> {
    let failed = database("looking for erasures under way");
    if under_way(store.pool()).await.map_err(&failed)?.is_empty() {
        return Ok(true);
    }
    // Outside the pool, for the lock is as long as the connection.
    let options = store.pool().connect_options().as_ref().clone();
    let mut lock = PgConnection::connect_with(&options).await.map_err(&failed)?;
    let alone: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock(7165932018841088006)")
        .fetch_one(&mut lock)
        .await
        .map_err(&failed)?;
    let mut whole = alone;
    if alone {
        let deadline = Instant::now() + SHOWN;
        for erasure in under_way(store.pool()).await.map_err(&failed)? {
            let carried_out = match erasure.kind.as_str() {
                "profile" => profile(store, bus, &erasure, deadline).await,
                _ => meeting(store, &erasure, deadline).await,
            };
            let waits_for = match carried_out {
                Ok(waits_for) => waits_for,
                Err(error @ EraseError::Database { .. }) => return Err(error),
                // It must not keep others from being forgotten.
                Err(error) => {
                    let (subject, error) = (erasure.subject, &error as &dyn std::error::Error);
                    warn!(%subject, error, "an erasure goes no further and will be tried again");
                    Some("a failure, of which the log of the process tells".to_owned())
                }
            };
            note(store.pool(), &erasure, waits_for.as_deref())
                .await
                .map_err(database("noting how far it is"))?;
            whole &= waits_for.is_none();
        }
    }
    let _ = lock.close().await;
    Ok(whole)
}

/// Erases once more what has a tombstone and lacks the event: a log that was restored from before the erasure.
async fn erase_again(store: &EventStore, bus: &CommandBus) -> Result<(), EraseError> {
    let failed = database("looking for what was erased before a restore");
    let left: Vec<(String, Uuid)> = sqlx::query_as(
        "SELECT kind, id FROM (
             SELECT kind, id, life FROM keys.subjects
              WHERE destroyed_at IS NOT NULL AND kind IN ('profile', 'meeting')) AS destroyed
          WHERE life > (SELECT count(*) FROM log.events
                             WHERE aggregate_type = kind AND aggregate_id = id::text
                               AND event_type IN ('ProfileErased', 'MeetingErased'))
            AND EXISTS (SELECT FROM log.events WHERE aggregate_type = kind AND aggregate_id = id::text)",
    )
    .fetch_all(store.pool())
    .await
    .map_err(&failed)?;
    if left.is_empty() {
        return Ok(());
    }
    let at: Timestamp =
        sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(store.pool()).await.map_err(&failed)?;
    let reason: Reason = "erased before the log was restored".parse().expect("it is short and not blank");
    for (kind, id) in left {
        let context = Context::of_erasure(id);
        let failure = if kind == "profile" {
            let erased = erase_profile(store, bus, id.into(), at, &context).await;
            erased.err().map(|error| error.to_string())
        } else {
            let erased = erase_meeting(store, bus, id.into(), reason.clone(), at, &context).await;
            erased.err().map(|error| error.to_string())
        };
        match failure {
            None => info!(kind, %id, "erased again after a restore"),
            Some(error) => warn!(kind, %id, error, "what was erased before a restore is not erased again"),
        }
    }
    Ok(())
}

async fn note(pool: &PgPool, erasure: &Erasure, waits_for: Option<&str>) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE keys.erasures
            SET waits_for = $2, completed_at = CASE WHEN $2 IS NULL THEN clock_timestamp() END
          WHERE number = $1",
    )
    .bind(erasure.number)
    .bind(waits_for)
    .execute(pool)
    .await?;
    let (kind, subject) = (erasure.kind.as_str(), erasure.subject);
    match waits_for {
        None => info!(kind, %subject, position = erasure.position, "an erasure is complete"),
        Some(waits_for) if erasure.waits_for.as_deref() != Some(waits_for) => {
            warn!(kind, %subject, position = erasure.position, waits_for, "an erasure waits");
        }
        Some(_) => {}
    }
    Ok(())
}

/// Carries out the erasure of a person; returns what it waits for, if it does.
async fn profile(
    store: &EventStore,
    bus: &CommandBus,
    erasure: &Erasure,
    deadline: Instant,
) -> Result<Option<String>, EraseError> {
    let links = links(store.pool(), erasure).await.map_err(database("looking for the person's speakers"))?;
    let speakers: BTreeSet<Uuid> = links.iter().map(|(_, speaker)| *speaker).collect();
    let meetings: BTreeSet<Uuid> = links.iter().map(|(meeting, _)| *meeting).collect();
    destroy_voices(store, erasure, &speakers, meetings.len()).await?;

    let profile_id = ProfileId::from(erasure.subject);
    let context = Context::of_erasure(erasure.subject);
    let forget = |meeting: Uuid| {
        let (id, context) = (MeetingId::from(meeting), &context);
        async move {
            match bus.meeting(id, MeetingCommand::ForgetPerson { profile_id }, context).await {
                Ok(accepted) => Ok((accepted.position, None)),
                // Decided on with those who look after parked events; here the others go on.
                Err(CommandError::Unreadable { position, .. }) => Ok((0, Some(position))),
                Err(source) => Err(EraseError::Meeting { id, source: Box::new(source) }),
            }
        }
    };
    let told: Vec<(i64, Option<i64>)> =
        stream::iter(meetings.iter().copied().map(forget)).buffer_unordered(AT_ONCE).try_collect().await?;
    if let Some(position) = told.iter().find_map(|(_, unreadable)| *unreadable) {
        return Ok(Some(format!("the event at position {position}, which cannot be read")));
    }
    let last = told.iter().map(|(position, _)| *position).max().unwrap_or(0).max(erasure.position);

    skip_parked(store, erasure).await?;
    if !shown(store.pool(), last, deadline).await.map_err(database("waiting for the tables"))? {
        return Ok(Some("the tables, which do not show it yet".to_owned()));
    }
    let ids: Vec<String> = meetings.iter().map(Uuid::to_string).collect();
    let parked = parked_of(store.pool(), &ids, last).await.map_err(database("looking for parked events"))?;
    if let Some(position) = parked {
        return Ok(Some(format!("the event at position {position}, which is parked")));
    }
    clean_generations(store, erasure).await
}

/// Carries out the erasure of a meeting; returns what it waits for, if it does.
async fn meeting(
    store: &EventStore,
    erasure: &Erasure,
    deadline: Instant,
) -> Result<Option<String>, EraseError> {
    let speakers =
        speakers(store.pool(), erasure).await.map_err(database("looking for the meeting's speakers"))?;
    destroy_voices(store, erasure, &speakers, 1).await?;
    skip_parked(store, erasure).await?;
    if !shown(store.pool(), erasure.position, deadline).await.map_err(database("waiting for the tables"))? {
        return Ok(Some("the tables, which do not show it yet".to_owned()));
    }
    clean_generations(store, erasure).await
}

/// Returns who was ever said to be the person, each with the meeting: by a machine or by somebody.
async fn links(pool: &PgPool, erasure: &Erasure) -> Result<Vec<(Uuid, Uuid)>, sqlx::Error> {
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
async fn speakers(pool: &PgPool, erasure: &Erasure) -> Result<BTreeSet<Uuid>, sqlx::Error> {
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
async fn destroy_voices(
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

/// Takes all effect from parked events of the subject itself: the erasure waits behind them.
async fn skip_parked(store: &EventStore, erasure: &Erasure) -> Result<(), EraseError> {
    let failed = database("looking for parked events");
    loop {
        let generation = checkpoint::read(store.pool()).await.map_err(&failed)?.generation;
        let id = erasure.subject.to_string();
        let parked = parked_events::of_aggregate(store.pool(), generation, &erasure.kind, &id)
            .await
            .map_err(&failed)?;
        let Some(head) = parked.first().filter(|head| head.position < erasure.position) else {
            return Ok(());
        };
        match parked::skip(store, head.position, "what it is about was erased", "system:erasure").await {
            // Somebody else has decided on it meanwhile.
            Ok(_) | Err(ParkedError::NotParked { .. } | ParkedError::Waits { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until the live tables show `position`, at most until `deadline`; says whether they do.
async fn shown(pool: &PgPool, position: i64, deadline: Instant) -> Result<bool, sqlx::Error> {
    loop {
        if checkpoint::read(pool).await?.position >= position {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        sleep(POLL / 5).await;
    }
}

/// Returns the first parked event of these meetings up to `until`: behind it the tables still show the person.
async fn parked_of(pool: &PgPool, meetings: &[String], until: i64) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT min(position) FROM ops.parked_events
          WHERE generation = (SELECT generation FROM checkpoint) AND aggregate_type = 'meeting'
            AND aggregate_id = ANY ($1) AND position <= $2",
    )
    .bind(meetings)
    .bind(until)
    .fetch_one(pool)
    .await
}

/// Deletes the rows that other generations have of the subject: the previous one, and tables laid down as they
/// stood. One that is as far as the erasure has forgotten by itself. A rebuild that runs is waited for: it may
/// have read what it has not written yet.
async fn clean_generations(store: &EventStore, erasure: &Erasure) -> Result<Option<String>, EraseError> {
    let failed = database("cleaning other generations");
    let mut transaction = store.pool().begin().await.map_err(&failed)?;
    transaction.execute("SET LOCAL lock_timeout = '10s'").await.map_err(&failed)?;
    let alone: bool = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock(7165932018841088005)")
        .fetch_one(&mut *transaction)
        .await
        .map_err(&failed)?;
    if !alone {
        return Ok(Some("a rebuild, which runs".to_owned()));
    }
    let schemas: Vec<String> = sqlx::query_scalar(
        "SELECT nspname::text FROM pg_namespace
          WHERE obj_description(oid, 'pg_namespace') LIKE 'minutebook shape %' AND nspname <> $1 ORDER BY 1",
    )
    .bind(LIVE)
    .fetch_all(&mut *transaction)
    .await
    .map_err(&failed)?;
    for schema in schemas {
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
    match erasure.kind.as_str() {
        "profile" => {
            sqlx::query("DELETE FROM user_profiles WHERE id = $1")
                .bind(erasure.subject)
                .execute(transaction)
                .await?;
        }
        _ => clean_of_meeting(transaction, erasure.subject).await?,
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
