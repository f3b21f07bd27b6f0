//! `/v1/meetings/{id}/speakers`: who the speakers are, and `/{speaker}`: said by people, and every decision about it.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use domain::Event;
use domain::ids::{MeetingId, ProfileId, SpeakerId};
use domain::meeting::{CarriedFrom, Meeting, MeetingCommand, MeetingError, MeetingEvent};
use domain::profile::{Profile, ProfileError};
use domain::speaker::{Cluster, Evidence, LinkedBy};
use domain::text::Reason;
use event_store::command_bus::{Accepted, CommandError, Context};
use event_store::log::{self, BatchLimits, Provenance};
use event_store::sealing;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::{
    CommandAnswer, CommandHeaders, CommandProblems, PastReadProblems, ReadHeaders, ReadProblems, meetings,
    position_header,
};
use crate::app::AppState;
use crate::as_of::AsOf;
use crate::auth::Caller;
use crate::error::Problem;
use crate::extract::{Command, Fresh, Id, NoQuery, Parser, PathOf, QueryOf, read_body};
use crate::speakers::{self, Detail, MeetingSpeakers};

/// How many of a meeting's events are read at once.
const BATCH: BatchLimits = BatchLimits { events: 200, bytes: 4 * 1024 * 1024 };
/// The most decisions that a history shows: the latest.
const MOST_DECISIONS: usize = 500;

/// The bodies that are read here.
pub(super) const BODIES: &[Parser] =
    &[("body_reassignment", read_body::<Reassignment>), ("body_undoing", read_body::<Undoing>)];

/// Returns the routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(reassign))
        .routes(routes!(undo))
        .routes(routes!(history))
}

/// What to show of the speakers.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    /// Whether each speaker comes with all segments of its speech.
    #[serde(default)]
    segments: bool,
    /// Shows them as they stood then, as of a meeting, with the names of today.
    #[param(value_type = Option<String>, example = "2026-11-24T09:00:00Z")]
    as_of: Option<AsOf>,
}

/// Show who speaks in a meeting, and why that is said
///
/// Of a meeting that has been erased since nobody is shown with `as_of` either (404 `meeting_erased`).
#[utoipa::path(get, operation_id = "listSpeakers", path = "/v1/meetings/{id}/speakers", tag = "meetings",
    params(("id" = Uuid, Path), ListQuery, ReadHeaders), responses((status = 200, body = MeetingSpeakers), PastReadProblems))]
async fn list(
    State(state): State<AppState>,
    caller: Caller,
    Id(id): Id<MeetingId>,
    QueryOf(query): QueryOf<ListQuery>,
    _fresh: Fresh,
) -> Result<Response, Problem> {
    let detail = Detail { segments: query.segments, candidates: caller.sees_candidates() };
    let store = &state.book.store;
    let shown = match query.as_of {
        None => speakers::of_meeting(store, id, detail).await?,
        Some(as_of) => {
            // Whether there is something to show is told as it is of the meeting.
            let position = meetings::find(&state, id, Some(as_of)).await?.position;
            speakers::of_meeting_at(store, id, position, detail).await?
        }
    };
    Ok((position_header(shown.position), Json(shown)).into_response())
}

/// The path of a speaker.
#[derive(Debug, Deserialize)]
pub(crate) struct SpeakerPath {
    pub(crate) id: MeetingId,
    pub(crate) speaker: SpeakerId,
}

/// Who a speaker is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reassignment {
    /// Who it is; null if it is nobody known.
    #[serde(deserialize_with = "said")]
    #[schema(value_type = Option<Uuid>, required, example = "018f0000-0000-7000-8000-000000000001")]
    pub(crate) profile_id: Option<ProfileId>,
    /// Why.
    #[schema(value_type = String, min_length = 1, max_length = 1000, example = "I was there")]
    pub(crate) reason: Reason,
    /// Who it must have been until now, null for nobody; left out if that does not matter. Guards against two
    /// reviewers at once.
    #[serde(default, deserialize_with = "expected")]
    #[schema(value_type = Option<Uuid>)]
    pub(crate) expected_profile_id: Option<Option<ProfileId>>,
}

/// Why the latest reassignment is undone.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Undoing {
    /// Why.
    #[schema(value_type = String, min_length = 1, max_length = 1000, example = "that was the other one")]
    pub(crate) reason: Reason,
    /// Who it must have been until now, as for a reassignment.
    #[serde(default, deserialize_with = "expected")]
    #[schema(value_type = Option<Uuid>)]
    pub(crate) expected_profile_id: Option<Option<ProfileId>>,
}

/// A field that may be null, but may not be left out.
fn said<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ProfileId>, D::Error> {
    Option::deserialize(deserializer)
}

/// Tells a field that is null from one that is left out.
fn expected<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<ProfileId>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Say who a speaker is
///
/// By a person: the token's `kind` is `person`. Two clusters may be one person. Saying what is so already has
/// no effect.
#[utoipa::path(post, operation_id = "reassignSpeaker", path = "/v1/meetings/{id}/speakers/{speaker}/reassign",
    tag = "meetings", params(("id" = Uuid, Path), ("speaker" = Uuid, Path), CommandHeaders),
    request_body = Reassignment, responses((status = 200, body = CommandAnswer),
        CommandProblems))]
async fn reassign(
    State(state): State<AppState>,
    PathOf(SpeakerPath { id, speaker }): PathOf<SpeakerPath>,
    Command { body, context }: Command<Reassignment>,
) -> Result<CommandAnswer, Problem> {
    CommandAnswer::new(say_who(&state, id, speaker, body, &context).await?)
}

/// Says who a speaker is.
pub(crate) async fn say_who(
    state: &AppState,
    id: MeetingId,
    speaker: SpeakerId,
    body: Reassignment,
    context: &Context,
) -> Result<Accepted, Problem> {
    check_person(context)?;
    // Once accepted it has its answer, whoever is known and speaks by now.
    if let Some(accepted) = state.book.bus.first_answer(context).await? {
        return Ok(accepted);
    }
    check_speaker(state, id, speaker).await?;
    let Reassignment { profile_id, reason, expected_profile_id } = body;
    if let Some(profile) = profile_id {
        check_profile(state, profile).await?;
    }
    let command = MeetingCommand::ReassignSpeaker {
        speaker_id: speaker,
        to: profile_id,
        expected: expected_profile_id,
        reason,
    };
    Ok(state.book.bus.meeting(id, command, context).await?)
}

/// Undo the latest reassignment of a speaker
///
/// By a person, and an event like any other: undone twice, it is as it was.
#[utoipa::path(post, operation_id = "undoReassignment", path = "/v1/meetings/{id}/speakers/{speaker}/undo",
    tag = "meetings", params(("id" = Uuid, Path), ("speaker" = Uuid, Path), CommandHeaders),
    request_body = Undoing, responses((status = 200, body = CommandAnswer),
        CommandProblems))]
async fn undo(
    State(state): State<AppState>,
    PathOf(SpeakerPath { id, speaker }): PathOf<SpeakerPath>,
    Command { body, context }: Command<Undoing>,
) -> Result<CommandAnswer, Problem> {
    CommandAnswer::new(take_back(&state, id, speaker, body, &context).await?)
}

/// Undoes the latest reassignment of a speaker.
pub(crate) async fn take_back(
    state: &AppState,
    id: MeetingId,
    speaker: SpeakerId,
    body: Undoing,
    context: &Context,
) -> Result<Accepted, Problem> {
    check_person(context)?;
    let Undoing { reason, expected_profile_id } = body;
    let command =
        MeetingCommand::UndoReassignment { speaker_id: speaker, expected: expected_profile_id, reason };
    Ok(state.book.bus.meeting(id, command, context).await?)
}

/// Machines have their own word, with evidence.
pub(super) fn check_person(context: &Context) -> Result<(), Problem> {
    if context.actor_kind == "person" {
        return Ok(());
    }
    let detail = "a person says who a speaker is: the token must be a person's, not a machine's";
    Err(Problem::new(axum::http::StatusCode::FORBIDDEN, "person_required", detail))
}

async fn check_profile(state: &AppState, profile: ProfileId) -> Result<(), Problem> {
    let (known, _) = state.book.bus.load_profile(profile).await?;
    match known {
        Profile::Active { .. } => Ok(()),
        Profile::Unknown => {
            Err(Problem::invalid("unknown_profile", "there is no profile with this profile_id"))
        }
        Profile::Erased => Err(ProfileError::Erased.into()),
    }
}

/// What was decided about a speaker.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SpeakerDecision {
    /// The event's place in the log; with `as_of` one less, the meeting is shown as it was just before.
    #[schema(example = 42)]
    pub(crate) position: i64,
    /// When it was recorded.
    #[schema(example = "2026-11-24T09:00:00Z")]
    pub(crate) recorded_at: DateTime<Utc>,
    /// `identified`, `not_identified` or `reassigned`; of a speaker whom a later diarization replaced also
    /// `not_carried`, if it left open whom the decision is about from then on, and `dismissed`.
    #[schema(example = "reassigned")]
    pub(crate) decision: &'static str,
    /// Who it was before, where a person decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) from: Option<Uuid>,
    /// Who it is from then on; null for nobody known.
    pub(crate) to: Option<Uuid>,
    /// Who decided.
    #[schema(example = "reviewer-7")]
    pub(crate) actor: Option<String>,
    /// `person`, `service` or `system`.
    #[schema(example = "person")]
    pub(crate) actor_kind: Option<String>,
    /// Why, where a person decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// How sure the machine was of its link, this one or the one that was replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) confidence: Option<f64>,
    /// Who had made the link that was replaced: `machine` or `person`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(crate) previous_by: Option<LinkedBy>,
    /// The speaker about whom a person had decided, where the decision was carried over to this one; who that
    /// was, and when, is in that speaker's history. Then `actor` is who recorded the diarization.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub(crate) carried_from: Option<CarriedFrom>,
    /// What a machine's decision rests on: model, policy, margin and candidates; a member is told no candidates.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub(crate) evidence: Option<Evidence>,
}

/// Every decision about a speaker since the diarization.
#[derive(Debug, Serialize, ToSchema)]
struct SpeakerHistory {
    /// In order, the latest 500.
    decisions: Vec<SpeakerDecision>,
}

/// Show every decision about a speaker, with its evidence
///
/// Also of a speaker whom a later diarization replaced.
#[utoipa::path(get, operation_id = "showSpeakerHistory", path = "/v1/meetings/{id}/speakers/{speaker}/history",
    tag = "meetings", params(("id" = Uuid, Path), ("speaker" = Uuid, Path), ReadHeaders),
    responses((status = 200, body = SpeakerHistory), ReadProblems))]
async fn history(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(SpeakerPath { id, speaker }): PathOf<SpeakerPath>,
    _query: NoQuery,
    _fresh: Fresh,
) -> Result<Json<SpeakerHistory>, Problem> {
    let Decided { decisions, .. } = decisions(&state, id, speaker, caller.sees_candidates()).await?;
    Ok(Json(SpeakerHistory { decisions }))
}

/// A speaker of any diarization, and what was decided about it.
pub(crate) struct Decided {
    /// The attempt that made the diarization.
    pub(crate) attempt: u32,
    /// The label in it.
    pub(crate) cluster_id: String,
    /// The decisions in order, the latest [`MOST_DECISIONS`].
    pub(crate) decisions: Vec<SpeakerDecision>,
}

/// Returns the decisions about a speaker; with whom the voice merely resembled, if `candidates`, but for whoever was
/// forgotten.
pub(crate) async fn decisions(
    state: &AppState,
    id: MeetingId,
    speaker: SpeakerId,
    candidates: bool,
) -> Result<Decided, Problem> {
    check_meeting(state, id).await?;
    let (mut decisions, mut known) = (vec![], None);
    let mut after = 0;
    loop {
        let (events, more) = log::read_aggregate(
            state.book.pool(),
            state.book.store.keyring(),
            "meeting",
            id.as_uuid(),
            after,
            BATCH,
        )
        .await?;
        for stored in &events {
            let Ok(recorded) = stored.decode() else { continue };
            let Event::Meeting(_, event) = recorded.event else { continue };
            if let MeetingEvent::SpeakersDiarized { attempt, clusters } = &event {
                let is_this = |cluster: &Cluster| id.speaker(*attempt, &cluster.cluster_id) == speaker;
                let cluster = clusters.clusters().iter().find(|cluster| is_this(cluster));
                let found = cluster.map(|cluster| (*attempt, cluster.cluster_id.as_str().to_owned()));
                known = found.or(known);
            }
            if let MeetingEvent::MeetingErased { .. } = event {
                // What was before is nobody's to read.
                (decisions, known) = (vec![], None);
            }
            if let Some(decision) = decision_about(speaker, &event) {
                decisions.push(of(stored, decision));
            }
        }
        match events.last() {
            Some(last) if more => after = last.sequence,
            Some(_) | None => break,
        }
    }
    let Some((attempt, cluster_id)) = known else {
        return Err(MeetingError::UnknownSpeaker.into());
    };
    let surplus = decisions.len().saturating_sub(MOST_DECISIONS);
    decisions.drain(..surplus);
    let mut evidence =
        decisions.iter_mut().filter_map(|decision| decision.evidence.as_mut()).collect::<Vec<_>>();
    if !candidates {
        evidence.iter_mut().for_each(|evidence| evidence.candidates.clear());
    }
    let people = evidence.iter().flat_map(|evidence| &evidence.candidates);
    let people = people.map(|candidate| candidate.profile_id.as_uuid()).collect::<Vec<_>>();
    let forgotten = sealing::forgotten(state.book.pool(), &people).await?;
    for evidence in evidence {
        evidence.candidates.retain(|candidate| !forgotten.contains(&candidate.profile_id.as_uuid()));
    }
    Ok(Decided { attempt, cluster_id, decisions })
}

async fn check_meeting(state: &AppState, id: MeetingId) -> Result<(), Problem> {
    match state.book.bus.load_meeting(id).await?.0 {
        Meeting::Active(_) => Ok(()),
        Meeting::Erased { .. } => Err(MeetingError::Erased.into()),
        Meeting::Unregistered => Err(MeetingError::NotFound.into()),
    }
}

async fn check_speaker(state: &AppState, id: MeetingId, speaker: SpeakerId) -> Result<(), Problem> {
    let loaded = state.book.bus.load_meeting(id).await?;
    match loaded.0 {
        Meeting::Active(record) if record.speakers.contains_key(&speaker) => Ok(()),
        Meeting::Active(_) => Err(MeetingError::UnknownSpeaker.into()),
        Meeting::Erased { .. } => Err(CommandError::Refused(MeetingError::Erased).into()),
        Meeting::Unregistered => Err(MeetingError::NotFound.into()),
    }
}

fn decision_about(speaker: SpeakerId, event: &MeetingEvent) -> Option<SpeakerDecision> {
    let nothing = SpeakerDecision {
        position: 0,
        recorded_at: DateTime::UNIX_EPOCH,
        decision: "",
        from: None,
        to: None,
        actor: None,
        actor_kind: None,
        reason: None,
        confidence: None,
        previous_by: None,
        carried_from: None,
        evidence: None,
    };
    match event {
        MeetingEvent::SpeakerIdentified { speaker_id, profile_id, confidence, evidence }
            if *speaker_id == speaker =>
        {
            Some(SpeakerDecision {
                decision: "identified",
                to: Some(profile_id.as_uuid()),
                confidence: Some(confidence.get()),
                evidence: Some(evidence.clone()),
                ..nothing
            })
        }
        MeetingEvent::SpeakerNotIdentified { speaker_id, evidence } if *speaker_id == speaker => {
            Some(SpeakerDecision { decision: "not_identified", evidence: Some(evidence.clone()), ..nothing })
        }
        MeetingEvent::SpeakerReassigned {
            speaker_id,
            from,
            to,
            reason,
            previous_confidence,
            previous_by,
            carried_from,
            cause: _,
        } if *speaker_id == speaker => Some(SpeakerDecision {
            decision: "reassigned",
            from: from.map(|profile| profile.as_uuid()),
            to: to.map(|profile| profile.as_uuid()),
            reason: reason.known().map(|reason| reason.as_str().to_owned()),
            confidence: previous_confidence.map(domain::speaker::Confidence::get),
            previous_by: *previous_by,
            carried_from: *carried_from,
            ..nothing
        }),
        MeetingEvent::CorrectionNotCarried { speaker_id, to, .. } if *speaker_id == speaker => {
            let to = to.map(|profile| profile.as_uuid());
            Some(SpeakerDecision { decision: "not_carried", to, ..nothing })
        }
        MeetingEvent::CorrectionDismissed { speaker_id, reason, .. } if *speaker_id == speaker => {
            let reason = reason.known().map(|reason| reason.as_str().to_owned());
            Some(SpeakerDecision { decision: "dismissed", reason, ..nothing })
        }
        MeetingEvent::SpeakerIdentified { .. }
        | MeetingEvent::SpeakerNotIdentified { .. }
        | MeetingEvent::SpeakerReassigned { .. }
        | MeetingEvent::CorrectionNotCarried { .. }
        | MeetingEvent::CorrectionDismissed { .. }
        | MeetingEvent::MeetingRegistered(_)
        | MeetingEvent::ProcessingStarted { .. }
        | MeetingEvent::ContentFingerprinted { .. }
        | MeetingEvent::LanguageDetected { .. }
        | MeetingEvent::SpeakersDiarized { .. }
        | MeetingEvent::ArtifactStored { .. }
        | MeetingEvent::ArtifactsOutdated { .. }
        | MeetingEvent::StageResultCached { .. }
        | MeetingEvent::StageResultsDropped { .. }
        | MeetingEvent::MeetingCompleted(_)
        | MeetingEvent::MeetingFailed { .. }
        | MeetingEvent::MeetingErased { .. } => None,
    }
}

fn of(stored: &log::StoredEvent, decision: SpeakerDecision) -> SpeakerDecision {
    let Provenance { actor, actor_kind, .. } = Provenance::of(&stored.metadata);
    let (position, recorded_at) = (stored.position, stored.recorded_at);
    SpeakerDecision { position, recorded_at, actor, actor_kind, ..decision }
}
