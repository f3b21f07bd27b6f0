//! `/v1/meetings/{id}/pending-corrections`: what people decided about speakers of an earlier diarization, and
//! what nobody has said yet whom it is about now.

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use domain::ids::{MeetingId, SpeakerId};
use domain::meeting::carry_over::Overlap;
use domain::meeting::{Correction, Meeting, MeetingCommand, MeetingError, Record};
use domain::text::Reason;
use event_store::command_bus::{Accepted, Context};
use projections::queries;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::speakers::check_person;
use super::{CommandAnswer, CommandHeaders, CommandProblems, IdPageQuery, Page, ReadHeaders, ReadProblems};
use crate::app::AppState;
use crate::error::Problem;
use crate::extract::{Command, Cursor, Fresh, Id, Parser, PathOf, QueryOf, read_body};

/// The bodies that are read here.
pub(super) const BODIES: &[Parser] = &[("body_dismissal", read_body::<Dismissal>)];

/// Returns the routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(dismiss))
}

/// A decision that waits for a person.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PendingCorrection {
    /// The speaker about whom it was decided, of an earlier diarization; its history has the decision.
    #[schema(example = "6a1f4d43-6b8e-5b0c-9a3c-1f6f3f0e6c11")]
    pub(crate) speaker_id: Uuid,
    /// The attempt that made that diarization.
    #[schema(example = 1)]
    pub(crate) attempt: u32,
    /// Who the speaker is by the person's word; null for nobody known.
    #[schema(example = "018f0000-0000-7000-8000-000000000001")]
    pub(crate) profile_id: Option<Uuid>,
    /// Why; null for a reason that was destroyed.
    #[schema(example = "I was there")]
    pub(crate) reason: Option<String>,
    /// The place in the log of the decision; null while the tables do not show it.
    #[schema(example = 42)]
    pub(crate) position: Option<i64>,
    /// When it was recorded.
    #[schema(example = "2026-11-24T09:00:00Z")]
    pub(crate) recorded_at: Option<DateTime<Utc>>,
    /// Who decided.
    #[schema(example = "reviewer-7")]
    pub(crate) actor: Option<String>,
    /// Whom it may be about now: the speakers with speech in common, first the one with the most, at most ten.
    /// To say of one of them that it is this person settles the decision.
    pub(crate) candidates: Vec<CandidateSpeaker>,
}

/// A speaker whom a decision may be about.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CandidateSpeaker {
    /// The speaker.
    #[schema(example = "0d3f4d43-6b8e-5b0c-9a3c-1f6f3f0e6c11")]
    pub(crate) speaker_id: Uuid,
    /// Its label in the diarization.
    #[schema(example = "spk00")]
    pub(crate) cluster_id: Option<String>,
    /// Who it is today, where that is known.
    #[schema(example = "018f0000-0000-7000-8000-000000000002")]
    pub(crate) profile_id: Option<Uuid>,
    /// For how many milliseconds both speak at once.
    #[schema(example = 8460)]
    pub(crate) overlap_ms: u32,
}

/// List decisions of people that wait for a person
///
/// A new diarization has other speakers. What people decided is carried over where speech in common leaves no
/// doubt, and is listed here where it does, until a person says of a candidate what was decided, dismisses it,
/// or a further diarization leaves no doubt.
#[utoipa::path(get, operation_id = "listPendingCorrections", path = "/v1/meetings/{id}/pending-corrections",
    tag = "meetings", params(("id" = Uuid, Path), IdPageQuery, ReadHeaders),
    responses((status = 200, body = Page<PendingCorrection>), ReadProblems))]
async fn list(
    State(state): State<AppState>,
    Id(id): Id<MeetingId>,
    QueryOf(query): QueryOf<IdPageQuery>,
    _fresh: Fresh,
) -> Result<Json<Page<PendingCorrection>>, Problem> {
    let limit = query.limit.get();
    let after = query.cursor.map(|cursor| SpeakerId::from(cursor.0));
    let rows = waiting(&state, id, after, limit.saturating_add(1).try_into().unwrap_or(usize::MAX)).await?;
    Ok(Json(Page::of(rows, limit, |row: &PendingCorrection| Cursor(row.speaker_id).to_string())))
}

/// Returns the decisions that wait, in order of speaker, after `after`, at most `most`.
pub(crate) async fn waiting(
    state: &AppState,
    id: MeetingId,
    after: Option<SpeakerId>,
    most: usize,
) -> Result<Vec<PendingCorrection>, Problem> {
    let record = match state.book.bus.load_meeting(id).await?.0 {
        Meeting::Active(record) => record,
        Meeting::Erased { .. } => return Err(MeetingError::Erased.into()),
        Meeting::Unregistered => return Err(MeetingError::NotFound.into()),
    };
    let pending: Vec<(SpeakerId, &Correction)> = record
        .pending_corrections()
        .filter(|(speaker, _)| after.is_none_or(|after| *speaker > after))
        .take(most)
        .collect();
    let ids: Vec<Uuid> = pending.iter().map(|(speaker, _)| speaker.as_uuid()).collect();
    let decisions = queries::latest_reassignments(state.book.pool(), id.as_uuid(), &ids).await?;
    let mut decisions: HashMap<Uuid, _> =
        decisions.into_iter().map(|decision| (decision.speaker_id, decision)).collect();
    let view = |(speaker, correction): (SpeakerId, &Correction)| {
        let decision = decisions.remove(&speaker.as_uuid());
        PendingCorrection {
            speaker_id: speaker.as_uuid(),
            attempt: correction.attempt,
            profile_id: correction.to.map(|profile| profile.as_uuid()),
            reason: correction.reason.known().map(|reason| reason.as_str().to_owned()),
            position: decision.as_ref().map(|decision| decision.position),
            recorded_at: decision.as_ref().map(|decision| decision.recorded_at),
            actor: decision.and_then(|decision| decision.actor),
            candidates: correction.candidates.iter().map(|candidate| shown(&record, candidate)).collect(),
        }
    };
    Ok(pending.into_iter().map(view).collect())
}

fn shown(record: &Record, candidate: &Overlap) -> CandidateSpeaker {
    let speaker = record.speakers.get(&candidate.speaker_id);
    CandidateSpeaker {
        speaker_id: candidate.speaker_id.as_uuid(),
        cluster_id: speaker.map(|speaker| speaker.cluster_id.as_str().to_owned()),
        profile_id: speaker.and_then(|speaker| speaker.link).map(|link| link.profile_id.as_uuid()),
        overlap_ms: candidate.overlap_ms,
    }
}

/// Why a decision is about nobody by now.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dismissal {
    /// Why.
    #[schema(value_type = String, min_length = 1, max_length = 1000, example = "that was noise")]
    pub(crate) reason: Reason,
}

/// The path of a decision that waits.
#[derive(Debug, Deserialize)]
pub(crate) struct PendingPath {
    pub(crate) id: MeetingId,
    pub(crate) speaker: SpeakerId,
}

/// Say that a decision which waits is about nobody by now
///
/// By a person: the token's `kind` is `person`. The decision is not carried over any more.
#[utoipa::path(post, operation_id = "dismissPendingCorrection",
    path = "/v1/meetings/{id}/pending-corrections/{speaker}/dismiss", tag = "meetings",
    params(("id" = Uuid, Path), ("speaker" = Uuid, Path), CommandHeaders),
    request_body = Dismissal, responses((status = 200, body = CommandAnswer),
        CommandProblems))]
async fn dismiss(
    State(state): State<AppState>,
    PathOf(path): PathOf<PendingPath>,
    Command { body, context }: Command<Dismissal>,
) -> Result<CommandAnswer, Problem> {
    CommandAnswer::new(set_aside(&state, &path, body, &context).await?)
}

/// Says that a decision which waits is about nobody by now.
pub(crate) async fn set_aside(
    state: &AppState,
    path: &PendingPath,
    body: Dismissal,
    context: &Context,
) -> Result<Accepted, Problem> {
    check_person(context)?;
    let command = MeetingCommand::DismissCorrection { speaker_id: path.speaker, reason: body.reason };
    Ok(state.book.bus.meeting(path.id, command, context).await?)
}
