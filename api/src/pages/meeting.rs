//! A meeting: who spoke when, who says so, and what is known of it; also as it stood.

use askama::Template;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use chrono::{DateTime, Utc};
use domain::ids::MeetingId;
use domain::speaker::LinkedBy;
use event_store::log;
use projections::queries::{ArtifactView, FileView, MeetingDetails};
use serde::Deserialize;

use super::form::filter;
use super::page;
use super::pending::{self, MOST_WAITING, PendingRow, Refused};
use super::show::{self, Moment};
use super::timeline::{self, Timeline};
use super::visit::{Shell, Visit};
use crate::app::AppState;
use crate::as_of::AsOf;
use crate::error::Problem;
use crate::extract::{Id, wait_until_shown};
use crate::routes::meetings::find;
use crate::speakers::{self, Detail, NamedProfile, SpeakerDetails, SpeakerEvidence};

/// How to show a meeting.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShowQuery {
    /// As it stood then.
    as_of: Option<AsOf>,
    /// The position of a command whose effect must be seen.
    shown: Option<i64>,
    /// Whether that command dismissed a decision that waited.
    #[serde(default)]
    dismissed: bool,
}

#[derive(Template)]
#[template(path = "meeting.html")]
struct MeetingPage {
    shell: Shell,
    id: String,
    short: String,
    status: String,
    language: Option<String>,
    started: Option<Moment>,
    finished: Option<Moment>,
    took: Option<String>,
    /// When it is shown as it stood.
    past: Option<Past>,
    notice: Option<&'static str>,
    problem: Option<String>,
    /// What waits for a person today.
    pending: Vec<PendingRow>,
    /// Whether that is all that a page has.
    full: bool,
    position: String,
    version: i64,
    file: Option<FileFacts>,
    speakers: Vec<SpeakerRow>,
    timeline: Option<Timeline>,
    artifacts: Vec<ArtifactRow>,
    /// Whether one of them is older than a name.
    stale: bool,
}

struct Past {
    position: String,
    recorded: Option<Moment>,
}

struct FileFacts {
    sha256: String,
    content_fp: Option<String>,
    mime: Option<String>,
    duration: Option<String>,
    size: Option<String>,
    owner: Option<String>,
}

impl From<FileView> for FileFacts {
    fn from(file: FileView) -> Self {
        let FileView { sha256, content_fp, mime, duration, size, owner, .. } = file;
        let seconds = duration.and_then(|seconds| u64::try_from(seconds).ok());
        Self {
            sha256,
            content_fp,
            mime,
            duration: seconds.map(show::length),
            size: size.map(show::size),
            owner: owner.map(|owner| owner.to_string()),
        }
    }
}

struct ArtifactRow {
    artifact_type: String,
    s3_key: String,
    meta: String,
    stale: bool,
}

impl From<ArtifactView> for ArtifactRow {
    fn from(artifact: ArtifactView) -> Self {
        let ArtifactView { artifact_type, s3_key, meta, stale, .. } = artifact;
        let meta = meta.map(|meta| meta.to_string()).unwrap_or_default();
        Self { artifact_type, s3_key: s3_key.unwrap_or_default(), meta, stale }
    }
}

/// A speaker, as a table's row or a page's heading shows it.
pub(super) struct SpeakerRow {
    /// The speaker.
    pub(super) id: String,
    /// The label in the diarization.
    pub(super) cluster_id: String,
    /// The colour.
    pub(super) voice: String,
    /// Who it is; nothing for nobody known.
    pub(super) name: Option<String>,
    /// How long the speaker speaks.
    pub(super) speech: String,
    /// How much of all speech that is.
    share: Option<String>,
    /// How sure the machine was.
    pub(super) confidence: Option<String>,
    /// Why that is said.
    pub(super) why: String,
    /// In the words of whoever said so.
    pub(super) reason: Option<String>,
    /// Who else it may be.
    candidates: Vec<(String, String)>,
}

impl SpeakerRow {
    /// Returns the row of a meeting's speaker number `number`; `all_ms` is the speech of all.
    pub(super) fn of(number: usize, speaker: &SpeakerDetails, all_ms: u64) -> Self {
        let now = speaker.profile.as_ref().map(|profile| profile.id);
        let candidates = speaker.evidence.iter().flat_map(|evidence| &evidence.candidates);
        let others = candidates.filter(|candidate| Some(candidate.profile.id) != now);
        let share = speaker.speech_ms as f64 / all_ms as f64;
        Self {
            id: speaker.id.to_string(),
            cluster_id: speaker.cluster_id.clone(),
            voice: timeline::voice(number),
            name: speaker.profile.as_ref().map(name),
            speech: show::length(speaker.speech_ms / 1000),
            share: (all_ms > 0).then(|| show::percent(share)),
            confidence: speaker.confidence.map(show::percent),
            why: why(speaker),
            reason: speaker.latest_decision.as_ref().and_then(|latest| latest.reason.clone()),
            candidates: others
                .map(|candidate| (name(&candidate.profile), show::percent(candidate.score)))
                .collect(),
        }
    }
}

/// Returns how a person is called.
pub(super) fn name(profile: &NamedProfile) -> String {
    profile.display_name.clone().unwrap_or_else(|| "somebody forgotten since".to_owned())
}

fn why(speaker: &SpeakerDetails) -> String {
    let latest = speaker.latest_decision.as_ref();
    if latest.is_some_and(|latest| latest.carried_from.is_some()) {
        return "said by a person of an earlier speaker, and carried over".to_owned();
    }
    match (latest.map(|latest| latest.decision), speaker.by) {
        (Some("reassigned"), _) => {
            let actor = latest.and_then(|latest| latest.actor.as_deref()).unwrap_or("somebody");
            format!("said by {actor}")
        }
        (_, Some(LinkedBy::Machine)) => match &speaker.evidence {
            Some(evidence) => format!("by voice{}", ahead(evidence)),
            None => "by voice".to_owned(),
        },
        (_, Some(LinkedBy::Person)) => "said by a person".to_owned(),
        (Some(_), None) => match &speaker.evidence {
            Some(evidence) if !evidence.candidates.is_empty() => {
                format!("nobody is close enough{}", ahead(evidence))
            }
            Some(_) | None => "nobody known sounds like it".to_owned(),
        },
        (None, None) => "the voice was not compared".to_owned(),
    }
}

fn ahead(evidence: &SpeakerEvidence) -> String {
    evidence.margin.map(|margin| format!(", {margin:.2} ahead of the next")).unwrap_or_default()
}

/// Shows a meeting.
pub(super) async fn show(
    State(state): State<AppState>,
    Id(id): Id<MeetingId>,
    visit: Visit,
    uri: Uri,
) -> Result<Response, Problem> {
    let ShowQuery { as_of, shown, dismissed } = filter(&uri)?;
    if let Some(position) = shown {
        wait_until_shown(&state, position).await?;
    }
    render(&state, id, visit, Shown { as_of, dismissed, refused: None }).await
}

/// What a page shows besides how it stands.
#[derive(Default)]
pub(super) struct Shown {
    /// As it stood then.
    pub(super) as_of: Option<AsOf>,
    /// Whether a decision that waited was dismissed just now.
    pub(super) dismissed: bool,
    /// What was refused just now.
    pub(super) refused: Option<Refused>,
}

/// Renders the page of a meeting.
pub(super) async fn render(
    state: &AppState,
    id: MeetingId,
    visit: Visit,
    shown: Shown,
) -> Result<Response, Problem> {
    let Shown { as_of, dismissed, refused } = shown;
    let meeting = find(state, id, as_of).await?;
    let pool = state.book.pool();
    let detail = Detail { segments: true, candidates: visit.sees_candidates() };
    let told = speakers::of_meeting_at(&state.book.store, id, meeting.position, detail).await?;
    let (past, pending) = match as_of {
        None => (None, pending::rows(state, id, refused.as_ref()).await?),
        Some(_) => (Some(log::recorded_at(pool, meeting.position).await?), vec![]),
    };
    let status = refused.as_ref().map_or(StatusCode::OK, |refused| refused.problem.status());
    let visit = if refused.is_some() { visit.returning_to(format!("/meetings/{id}")) } else { visit };
    let notice = dismissed.then_some("Dismissed: this decision is about nobody from now on.");
    let told_problem = refused.as_ref().map(pending::told);
    let base = meeting_page(visit, meeting, &told.speakers, past);
    let full = pending.len() == MOST_WAITING;
    Ok(page(status, &MeetingPage { notice, problem: told_problem, pending, full, ..base }))
}

fn meeting_page(
    visit: Visit,
    meeting: MeetingDetails,
    speakers: &[SpeakerDetails],
    past: Option<Option<DateTime<Utc>>>,
) -> MeetingPage {
    let MeetingDetails {
        id,
        version,
        position,
        status,
        language,
        started_at,
        finished_at,
        file,
        artifacts,
        ..
    } = meeting;
    let numbered = speakers.iter().enumerate().collect::<Vec<_>>();
    let all_ms = speakers.iter().map(|speaker| speaker.speech_ms).sum();
    let short = show::short(id);
    MeetingPage {
        shell: visit.shell(format!("Meeting {short}"), "meetings"),
        id: id.to_string(),
        status,
        language,
        started: started_at.map(show::moment),
        finished: finished_at.map(show::moment),
        took: started_at.zip(finished_at).map(|(started, finished)| show::took(finished - started)),
        past: past.map(|at| Past { position: show::number(position), recorded: at.map(show::precise) }),
        position: show::number(position),
        version,
        timeline: Timeline::of(&numbered),
        speakers: numbered.iter().map(|(number, speaker)| SpeakerRow::of(*number, speaker, all_ms)).collect(),
        file: file.map(FileFacts::from),
        notice: None,
        problem: None,
        pending: vec![],
        full: false,
        stale: artifacts.iter().any(|artifact| artifact.stale),
        artifacts: artifacts.into_iter().map(ArtifactRow::from).collect(),
        short,
    }
}
