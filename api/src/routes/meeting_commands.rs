//! `/v1/meetings`: the commands that lead a meeting through its life.

use axum::extract::State;
use axum::response::Response;
use chrono::TimeDelta;
use domain::artifact::{ArtifactType, Meta, S3Key};
use domain::file::{ContentFp, DurationSeconds, File, MimeType, Sha256, SizeBytes};
use domain::ids::{FileId, MeetingId, OwnerId};
use domain::meeting::{FailMeeting, MeetingCommand, RegisterMeeting};
use domain::speaker::{Cluster, ClusterId, Diarization, Segment};
use domain::text::{Language, Reason, Stage, WorkerId};
use domain::voice::{KeptVoice, ModelId, VoiceError, VoiceModels};
use domain::{Timestamp, ValueError};
use event_store::command_bus::{Accepted, CommandError, Context};
use serde::Deserialize;
use tokio::time::Instant;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{CommandAnswer, CommandHeaders, CommandProblems, Nothing};
use crate::app::AppState;
use crate::clock::now;
use crate::error::Problem;
use crate::extract::{Command, Id, Object, Parser, PathOf, read_body};

/// The bodies that are read here.
pub(super) const BODIES: &[Parser] = &[
    ("body_register", read_body::<Register>),
    ("body_begin", read_body::<Begin>),
    ("body_fingerprint", read_body::<Fingerprint>),
    ("body_spoken", read_body::<Spoken>),
    ("body_speakers", read_body::<Speakers>),
    ("body_stored_artifact", read_body::<StoredArtifact>),
    ("body_cached_result", read_body::<CachedResult>),
    ("body_failure", read_body::<Failure>),
    ("body_nothing", read_body::<Nothing>),
];

/// Returns the routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(register))
        .routes(routes!(start))
        .routes(routes!(retry))
        .routes(routes!(reprocess))
        .routes(routes!(fingerprint))
        .routes(routes!(language))
        .routes(routes!(speakers))
        .routes(routes!(artifacts))
        .routes(routes!(cache))
        .routes(routes!(complete))
        .routes(routes!(fail))
}

/// An uploaded file.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Register {
    /// The SHA-256 of the file's bytes.
    #[schema(value_type = String, pattern = "^[0-9a-fA-F]{64}$",
             example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    sha256: Sha256,
    /// Its media type.
    #[schema(value_type = Option<String>, max_length = 100, example = "audio/flac")]
    mime: Option<MimeType>,
    /// Its size in bytes.
    #[schema(value_type = Option<i64>, minimum = 0, example = 31_457_280)]
    size: Option<SizeBytes>,
    /// Its length in seconds.
    #[schema(value_type = Option<i32>, minimum = 0, example = 1800)]
    duration: Option<DurationSeconds>,
    /// Who may see it.
    #[schema(value_type = Option<Uuid>)]
    owner: Option<OwnerId>,
}

/// Enter an uploaded file's meeting in the book
///
/// One file of one owner is one meeting: the same upload again finds it, and has no effect.
#[utoipa::path(post, operation_id = "registerMeeting", path = "/v1/meetings", tag = "meetings", params(CommandHeaders), request_body = Register,
    responses((status = 201, body = CommandAnswer), (status = 200, body = CommandAnswer,
        description = "It was there already"), CommandProblems))]
async fn register(State(state): State<AppState>, command: Command<Register>) -> Result<Response, Problem> {
    let Command { body: Register { sha256, mime, size, duration, owner }, context } = command;
    let allowed = state.config.files.check_file(mime.as_ref(), size);
    if let Some(accepted) = unless_repeated(&state, allowed, &context).await? {
        return CommandAnswer::created(accepted, "/v1/meetings");
    }
    let secret = &state.book.store.identity().secret;
    let meeting_id = MeetingId::derive(secret, owner, &sha256);
    let file = File { id: FileId::derive(secret, owner, &sha256), sha256, mime, size, duration, owner };
    let register = MeetingCommand::Register(RegisterMeeting { meeting_id, file, at: now() });
    let context = Context { probably_new: true, ..context };
    CommandAnswer::created(state.book.bus.meeting(meeting_id, register, &context).await?, "/v1/meetings")
}

/// Refuses what a rule refuses; but once accepted a command has its answer, whatever the rules are by now.
async fn unless_repeated(
    state: &AppState,
    allowed: Result<(), Problem>,
    context: &Context,
) -> Result<Option<Accepted>, Problem> {
    match allowed {
        Ok(()) => Ok(None),
        Err(problem) => state.book.bus.first_answer(context).await?.map(Some).ok_or(problem),
    }
}

/// Sends a command to a meeting.
async fn send(
    state: &AppState,
    id: MeetingId,
    command: MeetingCommand,
    context: &Context,
) -> Result<CommandAnswer, Problem> {
    CommandAnswer::new(state.book.bus.meeting(id, command, context).await?)
}

/// Who takes a meeting on.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Begin {
    /// The worker, as an opaque id. The same one may ask twice.
    #[schema(value_type = String, min_length = 1, max_length = 100, example = "gpu-7")]
    worker: WorkerId,
}

/// Take on a pending meeting
#[utoipa::path(post, operation_id = "startMeeting", path = "/v1/meetings/{id}/start", tag = "meetings", params(("id" = Uuid, Path), CommandHeaders),
    request_body = Begin, responses((status = 200, body = CommandAnswer), CommandProblems))]
async fn start(
    State(state): State<AppState>,
    Id(id): Id<MeetingId>,
    Command { body, context }: Command<Begin>,
) -> Result<CommandAnswer, Problem> {
    send(&state, id, MeetingCommand::Start { worker: body.worker, at: now() }, &context).await
}

/// Take on a failed meeting once more
#[utoipa::path(post, operation_id = "retryMeeting", path = "/v1/meetings/{id}/retry", tag = "meetings", params(("id" = Uuid, Path), CommandHeaders),
    request_body = Begin, responses((status = 200, body = CommandAnswer), CommandProblems))]
async fn retry(
    State(state): State<AppState>,
    Id(id): Id<MeetingId>,
    Command { body, context }: Command<Begin>,
) -> Result<CommandAnswer, Problem> {
    send(&state, id, MeetingCommand::Retry { worker: body.worker, at: now() }, &context).await
}

/// Take on a completed meeting anew
///
/// What the new attempt yields takes the place of what the earlier one did.
#[utoipa::path(post, operation_id = "reprocessMeeting", path = "/v1/meetings/{id}/reprocess", tag = "meetings", params(("id" = Uuid, Path), CommandHeaders),
    request_body = Begin, responses((status = 200, body = CommandAnswer), CommandProblems))]
async fn reprocess(
    State(state): State<AppState>,
    Id(id): Id<MeetingId>,
    Command { body, context }: Command<Begin>,
) -> Result<CommandAnswer, Problem> {
    send(&state, id, MeetingCommand::Reprocess { worker: body.worker, at: now() }, &context).await
}

/// The audio's fingerprint.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Fingerprint {
    /// The same for a file that was re-encoded without loss.
    #[schema(value_type = String, min_length = 1, max_length = 128, example = "pcm16k:5f70bf18a086007016e948b04aed3b82")]
    content_fp: ContentFp,
}

/// Note the audio's own fingerprint
#[utoipa::path(post, operation_id = "recordFingerprint", path = "/v1/meetings/{id}/fingerprint", tag = "meetings",
    params(("id" = Uuid, Path), CommandHeaders), request_body = Fingerprint,
    responses((status = 200, body = CommandAnswer), CommandProblems))]
async fn fingerprint(
    State(state): State<AppState>,
    Id(id): Id<MeetingId>,
    Command { body, context }: Command<Fingerprint>,
) -> Result<CommandAnswer, Problem> {
    send(&state, id, MeetingCommand::RecordFingerprint { content_fp: body.content_fp }, &context).await
}

/// The language spoken.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Spoken {
    /// A BCP 47 tag.
    #[schema(value_type = String, min_length = 1, max_length = 10, example = "en-GB")]
    language: Language,
}

/// Note the language spoken
#[utoipa::path(post, operation_id = "recordLanguage", path = "/v1/meetings/{id}/language", tag = "meetings",
    params(("id" = Uuid, Path), CommandHeaders), request_body = Spoken,
    responses((status = 200, body = CommandAnswer), CommandProblems))]
async fn language(
    State(state): State<AppState>,
    Id(id): Id<MeetingId>,
    Command { body, context }: Command<Spoken>,
) -> Result<CommandAnswer, Problem> {
    send(&state, id, MeetingCommand::RecordLanguage { language: body.language }, &context).await
}

/// A diarization.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Speakers {
    /// The voices told apart, in any order.
    #[schema(value_type = Vec<SpeakerCluster>, max_items = 500)]
    clusters: Vec<Object<SpeakerCluster>>,
}

/// One voice with all its speech.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SpeakerCluster {
    /// Its label, unique within the diarization.
    #[schema(value_type = String, min_length = 1, max_length = 50, example = "spk00")]
    cluster_id: ClusterId,
    /// Its speech.
    #[serde(default)]
    #[schema(value_type = Vec<SpeechSegment>)]
    segments: Vec<Object<SpeechSegment>>,
    /// How long it speaks in all, in milliseconds, where there are no segments.
    #[schema(example = 412_500)]
    speech_ms: Option<u32>,
    /// Its voice: by it the speaker is named, if the voice is that of somebody known.
    #[schema(value_type = Option<SpeakerVoice>)]
    voice: Option<Object<SpeakerVoice>>,
}

/// What a voice is like.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SpeakerVoice {
    /// The embedding model.
    #[schema(value_type = String, min_length = 1, max_length = 100, example = "resemblyzer-0.1.4")]
    model: ModelId,
    /// The embedding: as many finite numbers as the model gives, not all zero.
    #[schema(value_type = Vec<f32>, max_items = 2048, example = json!([0.0917, -0.0312]))]
    vector: Vec<f64>,
}

/// A stretch of speech.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SpeechSegment {
    /// When it starts, in milliseconds from the start of the recording.
    #[schema(example = 50_420)]
    start_ms: u32,
    /// How long it lasts, in milliseconds.
    #[schema(example = 570)]
    duration_ms: u32,
}

impl Speakers {
    fn diarization(self, models: &VoiceModels) -> Result<Diarization, Problem> {
        let segment =
            |Object(s): Object<SpeechSegment>| Segment { start_ms: s.start_ms, duration_ms: s.duration_ms };
        let voice = |Object(SpeakerVoice { model, vector })| models.voice(model, &vector);
        let cluster = |Object(cluster): Object<SpeakerCluster>| {
            Ok(Cluster {
                cluster_id: cluster.cluster_id,
                segments: cluster.segments.into_iter().map(segment).collect(),
                speech_ms: cluster.speech_ms,
                voice: cluster.voice.map(voice).transpose()?.map(KeptVoice::from),
            })
        };
        let clusters = self.clusters.into_iter().map(cluster).collect::<Result<Vec<_>, VoiceError>>()?;
        Ok(clusters.try_into()?)
    }
}

/// How often clusters are matched anew because somebody whom they matched was forgotten meanwhile.
const MATCHINGS: u32 = 3;

/// Note who spoke when
///
/// Takes the place of an earlier diarization. Clusters that come with a voice are compared with everybody known
/// by then, all together, and named where the model's policy calls it sure; the evidence is kept either way. The
/// same clusters again have no effect, whoever has become known meanwhile.
#[utoipa::path(post, operation_id = "recordSpeakers", path = "/v1/meetings/{id}/speakers", tag = "meetings",
    params(("id" = Uuid, Path), CommandHeaders), request_body = Speakers,
    responses((status = 200, body = CommandAnswer), CommandProblems))]
async fn speakers(
    State(state): State<AppState>,
    Id(id): Id<MeetingId>,
    Command { body, context }: Command<Speakers>,
) -> Result<CommandAnswer, Problem> {
    let clusters = body.diarization(&state.config.voice_models())?;
    // Once accepted it has its answer, however the voices are by now.
    if let Some(accepted) = state.book.bus.first_answer(&context).await? {
        return CommandAnswer::new(accepted);
    }
    let deadline = Instant::now() + state.config.position_timeout;
    let mut tries = MATCHINGS;
    loop {
        let (clusters, decisions) =
            state.matching.name(state.book.pool(), deadline, clusters.clone()).await?;
        let record = MeetingCommand::RecordSpeakers { clusters, decisions };
        match state.book.bus.meeting(id, record, &context).await {
            // Somebody was known by voice and forgotten in that moment: the voices are those of the log, so the next
            // comparison is without them.
            Err(CommandError::Forgotten) if tries > 1 => tries -= 1,
            recorded => return CommandAnswer::new(recorded?),
        }
    }
}

/// A document that the pipeline wrote.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct StoredArtifact {
    /// What it is.
    #[serde(rename = "type")]
    #[schema(value_type = String, pattern = "^(transcript\\.(md|vtt|srt)|summary\\.json)$", example = "transcript.vtt")]
    artifact_type: ArtifactType,
    /// Where it is in the object store: a relative path.
    #[schema(value_type = String, min_length = 1, max_length = 500, example = "meetings/6a1f4d43/transcript.vtt")]
    s3_key: S3Key,
    /// What else is known of it: an object of at most 16 KiB.
    #[schema(value_type = Option<Object>, example = json!({"words": 5213}))]
    meta: Option<Meta>,
}

/// Note where a transcript or summary was written
///
/// Takes the place of an earlier one of its type.
#[utoipa::path(post, operation_id = "storeArtifact", path = "/v1/meetings/{id}/artifacts", tag = "meetings",
    params(("id" = Uuid, Path), CommandHeaders), request_body = StoredArtifact,
    responses((status = 200, body = CommandAnswer), CommandProblems))]
async fn artifacts(
    State(state): State<AppState>,
    Id(id): Id<MeetingId>,
    Command { body, context }: Command<StoredArtifact>,
) -> Result<CommandAnswer, Problem> {
    let StoredArtifact { artifact_type, s3_key, meta } = body;
    let allowed = state.config.files.check_key(id, &s3_key);
    if let Some(accepted) = unless_repeated(&state, allowed, &context).await? {
        return CommandAnswer::new(accepted);
    }
    send(&state, id, MeetingCommand::StoreArtifact { artifact_type, s3_key, meta }, &context).await
}

/// A stage's result.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CachedResult {
    /// The result, at most 1 MiB. Profile ids, never names.
    #[schema(max_length = 1_048_576, example = "{\"words\": []}")]
    value: String,
    /// For how long it is used: at most a year; 30 days if not said.
    #[schema(minimum = 1, maximum = 31_536_000, example = 604_800)]
    ttl_seconds: Option<i64>,
}

/// How long a result is used if the request does not say.
const DEFAULT_TTL: TimeDelta = TimeDelta::days(30);

impl CachedResult {
    fn expires_at(&self, at: Timestamp) -> Result<Timestamp, ValueError> {
        let ttl = match self.ttl_seconds {
            None => DEFAULT_TTL,
            Some(seconds @ 1..=31_536_000) => TimeDelta::seconds(seconds),
            Some(_) => return Err(ValueError::new("ttl_seconds", "must be 1 to 31536000")),
        };
        Ok(at + ttl)
    }
}

/// The path of a cached result.
#[derive(Debug, Deserialize)]
struct CachePath {
    id: MeetingId,
    stage: Stage,
}

/// Keep a stage's result for whoever meets the same audio again
///
/// Its key is `<stage>:<content_fp>`, so the fingerprint must be known.
#[utoipa::path(put, operation_id = "cacheStageResult", path = "/v1/meetings/{id}/cache/{stage}", tag = "meetings",
    params(("id" = Uuid, Path), ("stage" = String, Path, pattern = "^[a-z0-9._-]{1,100}$"), CommandHeaders),
    request_body = CachedResult, responses((status = 200, body = CommandAnswer), CommandProblems))]
async fn cache(
    State(state): State<AppState>,
    PathOf(CachePath { id, stage }): PathOf<CachePath>,
    Command { body, context }: Command<CachedResult>,
) -> Result<CommandAnswer, Problem> {
    let at = now();
    let expires_at = Some(body.expires_at(at)?);
    let cache = MeetingCommand::CacheStageResult { stage, value: body.value, expires_at, at };
    send(&state, id, cache, &context).await
}

/// Close the attempt
#[utoipa::path(post, operation_id = "completeMeeting", path = "/v1/meetings/{id}/complete", tag = "meetings", params(("id" = Uuid, Path), CommandHeaders),
    responses((status = 200, body = CommandAnswer), CommandProblems))]
async fn complete(
    State(state): State<AppState>,
    Id(id): Id<MeetingId>,
    Command { context, .. }: Command<Nothing>,
) -> Result<CommandAnswer, Problem> {
    send(&state, id, MeetingCommand::Complete { at: now() }, &context).await
}

/// Why an attempt broke off.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Failure {
    /// Where.
    #[schema(value_type = String, pattern = "^[a-z0-9._-]{1,100}$", example = "transcribe")]
    stage: Stage,
    /// Why.
    #[schema(value_type = String, min_length = 1, max_length = 1000, example = "out of memory")]
    reason: Reason,
}

/// Break the attempt off
#[utoipa::path(post, operation_id = "failMeeting", path = "/v1/meetings/{id}/fail", tag = "meetings", params(("id" = Uuid, Path), CommandHeaders),
    request_body = Failure, responses((status = 200, body = CommandAnswer), CommandProblems))]
async fn fail(
    State(state): State<AppState>,
    Id(id): Id<MeetingId>,
    Command { body, context }: Command<Failure>,
) -> Result<CommandAnswer, Problem> {
    let Failure { stage, reason } = body;
    send(&state, id, MeetingCommand::Fail(FailMeeting { stage, reason, at: now() }), &context).await
}
