//! Decisions of people about speakers of an earlier diarization that wait for a person, as a meeting's page lists
//! them, and the form that dismisses one.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use domain::ids::MeetingId;
use projections::queries;
use serde::Deserialize;
use uuid::Uuid;

use super::form::{FormOf, on_page, parse_reason};
use super::meeting::{self, Shown};
use super::show::{self, Moment};
use super::speaker::Names;
use super::visit::Visit;
use super::{capitalized, sentence};
use crate::app::AppState;
use crate::error::Problem;
use crate::extract::{PathOf, form_key};
use crate::routes::pending_corrections::{
    CandidateSpeaker, Dismissal, PendingCorrection, PendingPath, set_aside, waiting,
};

/// How many of them a page has at most; more come up as these are settled.
pub(super) const MOST_WAITING: usize = 50;

/// A decision that waits.
pub(super) struct PendingRow {
    /// The speaker about whom it was.
    pub(super) speaker: String,
    /// The attempt whose diarization has that speaker.
    pub(super) attempt: u32,
    /// Who it is by the decision.
    pub(super) who: String,
    /// Why.
    pub(super) reason: Option<String>,
    /// Who decided.
    pub(super) actor: String,
    /// When.
    pub(super) at: Option<Moment>,
    /// Whom it may be about now.
    pub(super) candidates: Vec<CandidateRow>,
    /// The key of the form that dismisses it.
    pub(super) key: Uuid,
    /// What somebody has written into that form and is shown again, because it was refused.
    pub(super) refused: Option<String>,
}

/// A speaker whom a decision may be about.
pub(super) struct CandidateRow {
    /// The speaker.
    pub(super) id: String,
    /// The label in the diarization.
    pub(super) cluster_id: String,
    /// Who it is now.
    pub(super) who: String,
    /// How long both speak at once.
    pub(super) overlap: String,
}

/// What was written into the form that dismisses a decision, and why that was refused.
pub(super) struct Refused {
    speaker: Uuid,
    reason: String,
    /// The problem.
    pub(super) problem: Problem,
}

/// Returns what waits in a meeting, at most [`MOST_WAITING`].
pub(super) async fn rows(
    state: &AppState,
    id: MeetingId,
    refused: Option<&Refused>,
) -> Result<Vec<PendingRow>, Problem> {
    let pending = waiting(state, id, None, MOST_WAITING).await?;
    let names = queries::display_names(state.book.pool(), &profiles_in(&pending)).await?;
    let row = |waits| PendingRow::of(waits, &names, refused);
    Ok(pending.into_iter().map(row).collect())
}

fn profiles_in(pending: &[PendingCorrection]) -> Vec<Uuid> {
    let candidates = pending.iter().flat_map(|waits| &waits.candidates);
    let candidates = candidates.map(|candidate| candidate.profile_id);
    pending.iter().map(|waits| waits.profile_id).chain(candidates).flatten().collect()
}

impl PendingRow {
    fn of(waits: PendingCorrection, names: &BTreeMap<Uuid, String>, refused: Option<&Refused>) -> Self {
        let PendingCorrection {
            speaker_id, attempt, profile_id, reason, recorded_at, actor, candidates, ..
        } = waits;
        let names = Names(names);
        let refused = refused.filter(|refused| refused.speaker == speaker_id);
        Self {
            speaker: speaker_id.to_string(),
            attempt,
            who: capitalized(&names.of(profile_id)),
            reason,
            actor: actor.unwrap_or_else(|| "somebody".to_owned()),
            at: recorded_at.map(show::precise),
            candidates: candidates.into_iter().map(|candidate| CandidateRow::of(candidate, &names)).collect(),
            key: Uuid::now_v7(),
            refused: refused.map(|refused| refused.reason.clone()),
        }
    }
}

impl CandidateRow {
    fn of(candidate: CandidateSpeaker, names: &Names<'_>) -> Self {
        let CandidateSpeaker { speaker_id, cluster_id, profile_id, overlap_ms } = candidate;
        Self {
            id: speaker_id.to_string(),
            cluster_id: cluster_id.unwrap_or_else(|| show::short(speaker_id)),
            who: names.of(profile_id),
            overlap: show::speech(overlap_ms),
        }
    }
}

/// A form that dismisses a decision.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DismissForm {
    reason: String,
    key: Uuid,
}

/// Says that a decision which waits is about nobody by now.
pub(super) async fn dismiss(
    State(state): State<AppState>,
    PathOf(path): PathOf<PendingPath>,
    visit: Visit,
    FormOf(DismissForm { reason, key }): FormOf<DismissForm>,
) -> Result<Response, Problem> {
    let mut context = visit.context()?;
    context.key = Some(form_key(&state, &context, &visit.here, key, &[&reason]));
    let dismissed = async {
        let body = Dismissal { reason: parse_reason(&reason)? };
        set_aside(&state, &path, body, &context).await
    };
    match dismissed.await {
        Ok(accepted) => {
            let (id, position) = (path.id, accepted.position);
            Ok(Redirect::to(&format!("/meetings/{id}?shown={position}&dismissed=true")).into_response())
        }
        Err(problem) => {
            let refused = Refused { speaker: path.speaker.as_uuid(), reason, problem: settled(problem)? };
            let shown = Shown { refused: Some(refused), ..Shown::default() };
            meeting::render(&state, path.id, visit, shown).await
        }
    }
}

/// Of what does not wait any more, the meeting's page tells more than a page about what is not there.
fn settled(problem: Problem) -> Result<Problem, Problem> {
    if problem.code() == "correction_not_found" { Ok(problem) } else { on_page(problem) }
}

/// Says in plain words why a form was refused.
pub(super) fn told(refused: &Refused) -> String {
    match refused.problem.code() {
        "correction_not_found" => {
            "This decision does not wait any more: somebody has settled or dismissed it, or a new diarization \
             left no doubt."
                .to_owned()
        }
        _ => sentence(refused.problem.detail()),
    }
}
