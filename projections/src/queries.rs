//! What readers ask the tables. An answer that needs several statements is given from one snapshot.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use event_store::log;
use serde::Serialize;
use serde_json::Value;
use sqlx::{Connection, FromRow, PgConnection, PgPool, Postgres, Row, Transaction};
use uuid::Uuid;

use crate::fold::MeetingRows;
use crate::tables::artifacts::{self, ArtifactRow};
use crate::tables::checkpoint;
use crate::tables::files::FileRow;
use crate::tables::meetings::MeetingRow;
use crate::tables::read_twice;
use crate::tables::speakers::{self, SpeakerRow};
use crate::tables::stale_artifacts;
use crate::tables::user_profiles::{self, Embedding, UserProfileRow};

/// A file as readers see it.
#[derive(Debug, Serialize, FromRow, utoipa::ToSchema)]
pub struct FileView {
    /// The file.
    #[schema(example = "6a1f4d43-6b8e-8b0c-9a3c-1f6f3f0e6c11")]
    pub id: Uuid,
    /// The hash of its bytes.
    #[schema(example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    pub sha256: String,
    /// The fingerprint of its audio.
    #[schema(example = "pcm16k:5f70bf18a086007016e948b04aed3b82")]
    pub content_fp: Option<String>,
    /// Its media type.
    #[schema(example = "audio/flac")]
    pub mime: Option<String>,
    /// Its length in seconds.
    #[schema(example = 1800)]
    pub duration: Option<i32>,
    /// Its size in bytes.
    #[schema(example = 31_457_280)]
    pub size: Option<i64>,
    /// Who may see it.
    #[schema(example = "018f0000-0000-7000-8000-00000000000a")]
    pub owner: Option<Uuid>,
    /// When its meeting was registered.
    #[schema(example = "2026-11-24T09:00:00Z")]
    pub created_at: Option<DateTime<Utc>>,
}

impl From<FileRow> for FileView {
    fn from(row: FileRow) -> Self {
        let FileRow { id, sha256, content_fp, mime, duration, size, owner, created_at } = row;
        Self { id, sha256, content_fp, mime, duration, size, owner, created_at }
    }
}

/// A meeting in a list.
#[derive(Debug, Serialize, FromRow, utoipa::ToSchema)]
pub struct MeetingSummary {
    /// The meeting.
    #[schema(example = "6a1f4d43-6b8e-8b0c-9a3c-1f6f3f0e6c11")]
    pub id: Uuid,
    /// Its file.
    #[schema(example = "0d3f4d43-6b8e-8b0c-9a3c-1f6f3f0e6c11")]
    pub file_id: Option<Uuid>,
    /// Who may see it.
    #[schema(example = "018f0000-0000-7000-8000-00000000000a")]
    pub owner: Option<Uuid>,
    /// `pending`, `processing`, `completed` or `failed`.
    #[schema(example = "completed")]
    pub status: String,
    /// The language spoken.
    #[schema(example = "en-GB")]
    pub language: Option<String>,
    /// The registration until processing starts, then the start of the latest attempt.
    #[schema(example = "2026-11-24T09:00:00Z")]
    pub started_at: Option<DateTime<Utc>>,
    /// The end of the latest attempt, be it completed or failed.
    #[schema(example = "2026-11-24T09:04:10Z")]
    pub finished_at: Option<DateTime<Utc>>,
}

/// A meeting with all that belongs to it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct MeetingDetails {
    /// The meeting.
    #[schema(example = "6a1f4d43-6b8e-8b0c-9a3c-1f6f3f0e6c11")]
    pub id: Uuid,
    /// Its version: the number of its events up to `position`; also the ETag.
    #[schema(example = 8)]
    pub version: i64,
    /// Up to which position of the log this shows the history.
    #[schema(example = 42)]
    pub position: i64,
    /// `pending`, `processing`, `completed` or `failed`.
    #[schema(example = "completed")]
    pub status: String,
    /// The language spoken.
    #[schema(example = "en-GB")]
    pub language: Option<String>,
    /// The registration until processing starts, then the start of the latest attempt.
    #[schema(example = "2026-11-24T09:00:00Z")]
    pub started_at: Option<DateTime<Utc>>,
    /// The end of the latest attempt, be it completed or failed.
    #[schema(example = "2026-11-24T09:04:10Z")]
    pub finished_at: Option<DateTime<Utc>>,
    /// Its file.
    pub file: Option<FileView>,
    /// Its speakers, in order of cluster.
    pub speakers: Vec<SpeakerView>,
    /// Its artifacts, in order of type.
    pub artifacts: Vec<ArtifactView>,
}

impl MeetingDetails {
    /// Returns what readers see of a meeting's rows; nothing if it has none.
    pub(crate) fn of(rows: MeetingRows, version: i64, position: i64) -> Option<Self> {
        let MeetingRow { id, status, language, started_at, finished_at, .. } = rows.meeting?;
        let mut speakers = rows.speakers.into_values().map(SpeakerView::from).collect::<Vec<_>>();
        speakers.sort_by(|a, b| a.cluster_id.cmp(&b.cluster_id));
        let stale = rows.stale_artifacts;
        let view = |row: ArtifactRow| ArtifactView { stale: stale.contains_key(&row.id), ..row.into() };
        let mut artifacts = rows.artifacts.into_values().map(view).collect::<Vec<_>>();
        artifacts.sort_by(|a, b| a.artifact_type.cmp(&b.artifact_type));
        let file = rows.file.map(FileView::from);
        Some(Self {
            id,
            version,
            position,
            status,
            language,
            started_at,
            finished_at,
            file,
            speakers,
            artifacts,
        })
    }
}

/// A speaker of a meeting.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct SpeakerView {
    /// The speaker.
    #[schema(example = "6a1f4d43-6b8e-8b0c-9a3c-1f6f3f0e6c11")]
    pub id: Uuid,
    /// The label in the diarization.
    #[schema(example = "spk00")]
    pub cluster_id: Option<String>,
    /// Who it is, where that is known.
    #[schema(example = "018f0000-0000-7000-8000-000000000001")]
    pub user_profile_id: Option<Uuid>,
    /// How sure the machine was, 0 to 1; null where a person said so.
    #[schema(example = 0.87)]
    pub confidence: Option<f64>,
}

impl From<SpeakerRow> for SpeakerView {
    fn from(row: SpeakerRow) -> Self {
        let SpeakerRow { id, cluster_id, user_profile_id, confidence, .. } = row;
        Self { id, cluster_id, user_profile_id, confidence }
    }
}

/// An artifact of a meeting.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ArtifactView {
    /// The artifact.
    #[schema(example = "6a1f4d43-6b8e-8b0c-9a3c-1f6f3f0e6c11")]
    pub id: Uuid,
    /// `transcript.md`, `transcript.vtt`, `transcript.srt` or `summary.json`.
    #[serde(rename = "type")]
    #[schema(example = "transcript.vtt")]
    pub artifact_type: String,
    /// Where it is in the object store.
    #[schema(example = "meetings/6a1f4d43/transcript.vtt")]
    pub s3_key: Option<String>,
    /// What else is known of it.
    #[schema(value_type = Option<Object>, example = json!({"words": 5213}))]
    pub meta: Option<Value>,
    /// Whether a speaker has been called otherwise since it was stored: it may show an old name until one of
    /// its type is stored again.
    #[schema(example = false)]
    pub stale: bool,
}

impl From<ArtifactRow> for ArtifactView {
    fn from(row: ArtifactRow) -> Self {
        let ArtifactRow { id, artifact_type, s3_key, meta, .. } = row;
        Self { id, artifact_type, s3_key, meta, stale: false }
    }
}

/// A person known by name. Voices stay in the table.
#[derive(Serialize, FromRow, utoipa::ToSchema)]
pub struct ProfileSummary {
    /// The profile.
    #[schema(example = "6a1f4d43-6b8e-8b0c-9a3c-1f6f3f0e6c11")]
    pub id: Uuid,
    /// How the person is called.
    #[schema(example = "Ada Lovelace")]
    pub display_name: String,
    /// How many samples of the person's voice there are.
    #[schema(example = 3)]
    pub voice_samples: i32,
    /// When the person was entered in the book.
    #[schema(example = "2026-11-24T09:00:00Z")]
    pub created_at: Option<DateTime<Utc>>,
}

impl From<UserProfileRow> for ProfileSummary {
    fn from(row: UserProfileRow) -> Self {
        let UserProfileRow { id, display_name, embeddings, created_at } = row;
        let voice_samples = i32::try_from(embeddings.len()).unwrap_or(i32::MAX);
        Self { id, display_name, voice_samples, created_at }
    }
}

/// A row, and which version of its aggregate it shows.
pub struct Found<T> {
    /// The row.
    pub row: T,
    /// The aggregate's number of events up to `position`.
    pub version: i64,
    /// Up to which position of the log the row shows the history.
    pub position: i64,
}

/// A cached result.
#[derive(Debug, Serialize, FromRow, utoipa::ToSchema)]
pub struct CacheView {
    /// The key.
    #[schema(example = "transcribe:pcm16k:5f70bf18a086007016e948b04aed3b82")]
    pub key: String,
    /// The result.
    #[schema(example = "{\"words\": []}")]
    pub value: String,
    /// From when on it is no longer used.
    #[sqlx(rename = "ttl")]
    #[schema(example = "2026-12-24T09:00:00Z")]
    pub expires_at: Option<DateTime<Utc>>,
}

/// Begins a transaction that sees one snapshot.
async fn snapshot(connection: &mut PgConnection) -> Result<Transaction<'_, Postgres>, sqlx::Error> {
    connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await
}

/// Returns a meeting with its file, speakers and artifacts.
pub async fn meeting(pool: &PgPool, id: Uuid) -> Result<Option<MeetingDetails>, sqlx::Error> {
    read_twice!(pool, connection => meeting_once(&mut connection, id))
}

async fn meeting_once(
    connection: &mut PgConnection,
    id: Uuid,
) -> Result<Option<MeetingDetails>, sqlx::Error> {
    let mut snapshot = snapshot(connection).await?;
    let row = sqlx::query(
        "SELECT m.file_id, m.status, m.language, m.started_at, m.finished_at,
                f.id, f.sha256, f.content_fp, f.mime, f.duration, f.size, f.owner, f.created_at
           FROM meetings m LEFT JOIN files f ON f.id = m.file_id WHERE m.id = $1",
    )
    .bind(id)
    .fetch_optional(&mut *snapshot)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let position = checkpoint::read(&mut *snapshot).await?.position;
    let version = log::version_at(&mut *snapshot, "meeting", id, position).await?;
    let speakers = speakers::of_meetings(&mut snapshot, &[id]).await?;
    let artifacts = artifacts::of_meetings(&mut snapshot, &[id]).await?;
    let stale = stale_artifacts::of_meetings(&mut snapshot, &[id]).await?;
    snapshot.commit().await?;
    let has_file = row.try_get::<Option<Uuid>, _>("id")?.is_some();
    let meeting = MeetingRow {
        id,
        file_id: row.try_get("file_id")?,
        status: row.try_get("status")?,
        language: row.try_get("language")?,
        started_at: row.try_get("started_at")?,
        finished_at: row.try_get("finished_at")?,
    };
    let rows = MeetingRows {
        file: if has_file { Some(FileRow::from_row(&row)?) } else { None },
        meeting: Some(meeting),
        speakers: speakers.into_iter().map(|speaker| (speaker.id, speaker)).collect(),
        artifacts: artifacts.into_iter().map(|artifact| (artifact.id, artifact)).collect(),
        stale_artifacts: stale.into_iter().map(|row| (row.artifact_id, row)).collect(),
        ..MeetingRows::default()
    };
    Ok(MeetingDetails::of(rows, version, position))
}

/// When somebody last said who a speaker is, and who said so.
#[derive(Debug, FromRow)]
pub struct LatestReassignment {
    /// The speaker.
    pub speaker_id: Uuid,
    /// The event's place in the log.
    pub position: i64,
    /// When it was recorded.
    pub recorded_at: DateTime<Utc>,
    /// Who said so, as an opaque id.
    pub actor: Option<String>,
}

/// Returns the latest reassignment of each of `speakers` of a meeting that has one.
pub async fn latest_reassignments(
    pool: &PgPool,
    meeting: Uuid,
    speakers: &[Uuid],
) -> Result<Vec<LatestReassignment>, sqlx::Error> {
    read_twice!(pool, connection => sqlx::query_as(
        "SELECT DISTINCT ON (speaker_id) speaker_id, position, recorded_at, actor
           FROM speaker_reassignments WHERE meeting_id = $1 AND speaker_id = ANY ($2)
          ORDER BY speaker_id, position DESC",
    )
    .bind(meeting)
    .bind(speakers)
    .fetch_all(&mut *connection))
}

/// Which meetings a list has; what is absent does not matter.
#[derive(Debug, Default)]
pub struct MeetingFilter<'a> {
    /// Where they stand.
    pub status: Option<&'a str>,
    /// Whose they are.
    pub owner: Option<Uuid>,
    /// In which language.
    pub language: Option<&'a str>,
}

/// Returns meetings in order of id, after `after`, at most `limit`.
pub async fn meetings(
    pool: &PgPool,
    filter: &MeetingFilter<'_>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<MeetingSummary>, sqlx::Error> {
    // Also without a cache: the tables may change between planning it and carrying it out.
    read_twice!(pool, connection => sqlx::query_as(
        "SELECT m.id, m.file_id, f.owner, m.status, m.language, m.started_at, m.finished_at
           FROM meetings m LEFT JOIN files f ON f.id = m.file_id
          WHERE ($1::text IS NULL OR m.status = $1)
            AND ($2::uuid IS NULL OR f.owner = $2)
            AND ($3::text IS NULL OR m.language = $3)
            AND ($4::uuid IS NULL OR m.id > $4)
          ORDER BY m.id LIMIT $5",
    )
    .bind(filter.status)
    .bind(filter.owner)
    .bind(filter.language)
    .bind(after)
    .bind(limit)
    // Planned for these very values, so that an absent filter costs nothing and a rare one uses its index.
    .persistent(false)
    .fetch_all(&mut *connection))
}

/// Returns a file.
pub async fn file(pool: &PgPool, id: Uuid) -> Result<Option<FileView>, sqlx::Error> {
    read_twice!(pool, connection => sqlx::query_as(
        "SELECT id, sha256, content_fp, mime, duration, size, owner, created_at FROM files WHERE id = $1",
    )
    .bind(id)
    .fetch_optional(&mut *connection))
}

/// Returns the meeting that a file belongs to.
pub async fn meeting_of_file(pool: &PgPool, file: Uuid) -> Result<Option<Uuid>, sqlx::Error> {
    sqlx::query_scalar("SELECT id FROM meetings WHERE file_id = $1").bind(file).fetch_optional(pool).await
}

/// Which files are looked for.
#[derive(Debug, Clone, Copy)]
pub enum WhichFiles<'a> {
    /// Those of these very bytes, by their SHA-256.
    Content(&'a str),
    /// Those of this very sound, by its fingerprint.
    Sound(&'a str),
}

/// Returns files in order of id, those of one owner if one is named, after `after`, at most `limit`.
pub async fn files(
    pool: &PgPool,
    which: WhichFiles<'_>,
    only: Option<Uuid>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<FileView>, sqlx::Error> {
    let (statement, value) = match which {
        WhichFiles::Content(sha256) => (
            "SELECT id, sha256, content_fp, mime, duration, size, owner, created_at
               FROM files WHERE sha256 = $1 AND ($2::uuid IS NULL OR owner = $2) AND ($3::uuid IS NULL OR id > $3)
              ORDER BY id LIMIT $4",
            sha256,
        ),
        WhichFiles::Sound(content_fp) => (
            "SELECT id, sha256, content_fp, mime, duration, size, owner, created_at
               FROM files WHERE content_fp = $1 AND ($2::uuid IS NULL OR owner = $2) AND ($3::uuid IS NULL OR id > $3)
              ORDER BY id LIMIT $4",
            content_fp,
        ),
    };
    read_twice!(pool, connection => sqlx::query_as(statement)
        .bind(value)
        .bind(only)
        .bind(after)
        .bind(limit)
        .fetch_all(&mut *connection))
}

/// Returns a person.
pub async fn profile(pool: &PgPool, id: Uuid) -> Result<Option<Found<ProfileSummary>>, sqlx::Error> {
    read_twice!(pool, connection => profile_once(&mut connection, id))
}

async fn profile_once(
    connection: &mut PgConnection,
    id: Uuid,
) -> Result<Option<Found<ProfileSummary>>, sqlx::Error> {
    let mut snapshot = snapshot(connection).await?;
    let row = sqlx::query_as(
        "SELECT id, display_name, coalesce(jsonb_array_length(embeddings), 0) AS voice_samples, created_at
           FROM user_profiles WHERE id = $1",
    )
    .bind(id)
    .fetch_optional(&mut *snapshot)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let position = checkpoint::read(&mut *snapshot).await?.position;
    let version = log::version_at(&mut *snapshot, "profile", id, position).await?;
    snapshot.commit().await?;
    Ok(Some(Found { row, version, position }))
}

/// A sample of a voice, without the vector.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct VoiceSample {
    /// The sample.
    #[schema(example = "018f0000-0000-7000-8000-000000000001")]
    pub sample_id: Uuid,
    /// The embedding model.
    #[schema(example = "resemblyzer-0.1.4")]
    pub model: String,
    /// How many numbers the vector has.
    #[schema(example = 256)]
    pub dimension: usize,
    /// Where it came from.
    pub source: Option<String>,
    /// Who enrolled it: an opaque id.
    #[schema(example = "pipeline-1")]
    pub actor: Option<String>,
    /// `person`, `service` or `system`.
    #[schema(example = "service")]
    pub actor_kind: Option<String>,
    /// When it was enrolled.
    #[schema(example = "2026-11-24T09:00:00Z")]
    pub enrolled_at: DateTime<Utc>,
}

/// Returns the samples of a person's voice, in the order of their enrolment; nothing if there is no such person.
pub async fn voice_samples(pool: &PgPool, id: Uuid) -> Result<Option<Vec<VoiceSample>>, sqlx::Error> {
    let mut rows = read_twice!(pool, connection => user_profiles::load(&mut connection, &[id]))?;
    let sample = |embedding: Embedding| {
        let Embedding { sample_id, model, dimension, source, actor, actor_kind, enrolled_at, vector: _ } =
            embedding;
        VoiceSample { sample_id, model, dimension, source, actor, actor_kind, enrolled_at }
    };
    Ok(rows.pop().map(|row| row.embeddings.into_iter().map(sample).collect()))
}

/// A sample of a voice with the vector.
#[derive(Serialize, utoipa::ToSchema)]
pub struct VoiceVector {
    /// The sample.
    #[schema(example = "018f0000-0000-7000-8000-000000000001")]
    pub sample_id: Uuid,
    /// The embedding model.
    #[schema(example = "resemblyzer-0.1.4")]
    pub model: String,
    /// The embedding, as it was sent.
    #[schema(example = json!([0.0917, -0.0312]))]
    pub vector: Vec<f32>,
}

/// Returns a sample of a person's voice; nothing if there is no such person or sample.
pub async fn voice_vector(pool: &PgPool, id: Uuid, sample: Uuid) -> Result<Option<VoiceVector>, sqlx::Error> {
    let rows = read_twice!(pool, connection => user_profiles::load(&mut connection, &[id]))?;
    let mut samples = rows.into_iter().flat_map(|row| row.embeddings);
    let found = samples.find(|embedding| embedding.sample_id == sample);
    Ok(found.map(|Embedding { sample_id, model, vector, .. }| VoiceVector { sample_id, model, vector }))
}

/// A speaker who is nobody known.
#[derive(Debug, Clone, Copy, FromRow)]
pub struct UnnamedSpeaker {
    /// The meeting.
    pub meeting_id: Uuid,
    /// The speaker.
    pub id: Uuid,
}

/// Returns the speakers who are nobody known of at most `meetings` meetings that have such, in order of the
/// meetings' ids, after `after`.
pub async fn unnamed_speakers(
    pool: &PgPool,
    after: Option<Uuid>,
    meetings: i64,
) -> Result<Vec<UnnamedSpeaker>, sqlx::Error> {
    read_twice!(pool, connection => sqlx::query_as(
        "SELECT s.meeting_id, s.id
           FROM (SELECT DISTINCT meeting_id FROM speakers
                  WHERE user_profile_id IS NULL AND meeting_id IS NOT NULL AND ($1::uuid IS NULL OR meeting_id > $1)
                  ORDER BY meeting_id LIMIT $2) m
           JOIN speakers s ON s.meeting_id = m.meeting_id
          WHERE s.user_profile_id IS NULL
          ORDER BY s.meeting_id, s.id",
    )
    .bind(after)
    .bind(meetings)
    .persistent(false)
    .fetch_all(&mut *connection))
}

/// Returns how those of `profiles` are called that there are.
pub async fn display_names(pool: &PgPool, profiles: &[Uuid]) -> Result<BTreeMap<Uuid, String>, sqlx::Error> {
    let names: Vec<(Uuid, String)> = read_twice!(pool, connection =>
        sqlx::query_as("SELECT id, display_name FROM user_profiles WHERE id = ANY ($1)")
            .bind(profiles)
            .fetch_all(&mut *connection))?;
    Ok(names.into_iter().collect())
}

/// Returns people who have `part` in their names, in order of name, at most `limit`: who, and how they are
/// called.
pub async fn profiles_named(
    pool: &PgPool,
    part: &str,
    limit: i64,
) -> Result<Vec<(Uuid, String)>, sqlx::Error> {
    read_twice!(pool, connection => sqlx::query_as(
        "SELECT id, display_name FROM user_profiles WHERE strpos(lower(display_name), lower($1)) > 0
          ORDER BY lower(display_name), id LIMIT $2",
    )
    .bind(part)
    .bind(limit)
    .fetch_all(&mut *connection))
}

/// Returns people in order of id, after `after`, at most `limit`.
pub async fn profiles(
    pool: &PgPool,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<ProfileSummary>, sqlx::Error> {
    read_twice!(pool, connection => sqlx::query_as(
        "SELECT id, display_name, coalesce(jsonb_array_length(embeddings), 0) AS voice_samples, created_at
           FROM user_profiles WHERE ($1::uuid IS NULL OR id > $1) ORDER BY id LIMIT $2",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(&mut *connection))
}

/// Returns a cached result that has not expired at `now`.
pub async fn cached(pool: &PgPool, key: &str, now: DateTime<Utc>) -> Result<Option<CacheView>, sqlx::Error> {
    read_twice!(pool, connection =>
        sqlx::query_as("SELECT key, value, ttl FROM cache WHERE key = $1 AND (ttl IS NULL OR ttl > $2)")
            .bind(key)
            .bind(now)
            .fetch_optional(&mut *connection))
}

/// How many meetings stand where.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MeetingCounts {
    /// Waiting for a worker.
    pub pending: i64,
    /// Being worked on.
    pub processing: i64,
    /// Done.
    pub completed: i64,
    /// Broken off.
    pub failed: i64,
}

/// Counts the meetings by status.
pub async fn meeting_counts(pool: &PgPool) -> Result<MeetingCounts, sqlx::Error> {
    let rows = read_twice!(pool, connection =>
        sqlx::query("SELECT status, count(*) FROM meetings GROUP BY status").fetch_all(&mut *connection))?;
    let mut counts = MeetingCounts::default();
    for row in rows {
        let (status, count): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
        match status.as_str() {
            "pending" => counts.pending = count,
            "processing" => counts.processing = count,
            "completed" => counts.completed = count,
            "failed" => counts.failed = count,
            _ => {}
        }
    }
    Ok(counts)
}
