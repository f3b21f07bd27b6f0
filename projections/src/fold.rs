//! The one fold: events into rows, in memory. The live projector and every rebuild go through it, so that
//! they agree by construction.
//!
//! The rows of an aggregate depend on its own events alone, and rows are all the state that the fold has:
//! whoever has loaded them from the tables can fold on.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use domain::Event;
use domain::artifact::Artifact;
use domain::ids::{MeetingId, ProfileId};
use domain::meeting::{CacheKey, MeetingCompleted, MeetingEvent, MeetingRegistered};
use domain::personal_data::Personal;
use domain::profile::ProfileEvent;
use domain::speaker::Speaker;
use event_store::log::{Provenance, Recorded};
use serde::Serialize;
use uuid::Uuid;

use crate::tables::artifacts::ArtifactRow;
use crate::tables::cache::CacheWrite;
use crate::tables::files::FileRow;
use crate::tables::meetings::MeetingRow;
use crate::tables::speaker_reassignments::ReassignmentRow;
use crate::tables::speakers::SpeakerRow;
use crate::tables::stale_artifacts::StaleArtifactRow;
use crate::tables::user_profiles::{Embedding, UserProfileRow};

/// How long a completed meeting's result stays in the cache, counted from the event that renewed it.
const RESULT_TTL: TimeDelta = TimeDelta::days(30);

/// How events become rows: [`fold`] but where a test plants a fault.
pub type Fold = fn(&mut Rows, &Recorded);

/// The rows of one aggregate.
#[derive(Debug, Clone, PartialEq)]
pub enum Rows {
    /// Of a meeting.
    Meeting(Box<MeetingRows>),
    /// Of a profile.
    Profile(ProfileRows),
}

/// The rows of one meeting.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MeetingRows {
    /// Its file.
    pub file: Option<FileRow>,
    /// Itself.
    pub meeting: Option<MeetingRow>,
    /// Its speakers by id.
    pub speakers: BTreeMap<Uuid, SpeakerRow>,
    /// Its artifacts by id.
    pub artifacts: BTreeMap<Uuid, ArtifactRow>,
    /// Which of them are older than a speaker's name, by id.
    pub stale_artifacts: BTreeMap<Uuid, StaleArtifactRow>,
    /// What it wrote to the cache since the rows were loaded, by key: the only keys that meetings share.
    pub cache: BTreeMap<String, CacheWrite>,
    /// What was said of its speakers since the rows were loaded, by position. Such a row never changes, so that
    /// nothing before has to be loaded.
    pub reassignments: BTreeMap<i64, ReassignmentRow>,
    /// Whether all that was said before is forgotten, because it was erased since the rows were loaded.
    pub forgets_reassignments: bool,
}

/// The row of one profile.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ProfileRows {
    /// The person.
    pub profile: Option<UserProfileRow>,
}

impl MeetingRows {
    /// Takes for written what is written once, and never looked at to fold on.
    pub fn forget_written(&mut self) {
        self.cache.clear();
        self.reassignments.clear();
        self.forgets_reassignments = false;
    }
}

impl Rows {
    /// Returns the rows of the aggregate of `event` before its first event: none.
    pub fn empty_for(event: &Event) -> Self {
        match event {
            Event::Meeting(..) => Self::Meeting(Box::default()),
            Event::Profile(..) => Self::Profile(ProfileRows::default()),
        }
    }
}

/// Takes an event into the rows of its aggregate.
pub fn fold(rows: &mut Rows, recorded: &Recorded) {
    match (rows, &recorded.event) {
        (Rows::Meeting(rows), Event::Meeting(id, event)) => fold_meeting(rows, *id, event, recorded),
        (Rows::Profile(rows), Event::Profile(id, event)) => fold_profile(rows, *id, event, recorded),
        (Rows::Meeting(_), Event::Profile(..)) | (Rows::Profile(_), Event::Meeting(..)) => {
            debug_assert!(false, "rows and event are of one aggregate");
        }
    }
}

fn fold_meeting(rows: &mut MeetingRows, id: MeetingId, event: &MeetingEvent, recorded: &Recorded) {
    match event {
        MeetingEvent::MeetingRegistered(registered) => register(rows, registered),
        MeetingEvent::ProcessingStarted { started_at, .. } => {
            if let Some(meeting) = &mut rows.meeting {
                "processing".clone_into(&mut meeting.status);
                meeting.started_at = Some(*started_at);
                meeting.finished_at = None;
            }
        }
        MeetingEvent::ContentFingerprinted { content_fp, .. } => {
            if let Some(file) = &mut rows.file {
                file.content_fp = Some(content_fp.as_str().to_owned());
            }
        }
        MeetingEvent::LanguageDetected { language, .. } => {
            if let Some(meeting) = &mut rows.meeting {
                meeting.language = Some(language.as_str().to_owned());
            }
        }
        // Without a meeting there is nothing to which a row could belong: its registration was skipped.
        MeetingEvent::SpeakersDiarized { .. }
        | MeetingEvent::SpeakerReassigned { .. }
        | MeetingEvent::ArtifactStored { .. }
        | MeetingEvent::MeetingCompleted(_)
            if rows.meeting.is_none() => {}
        MeetingEvent::SpeakersDiarized { attempt, clusters } => {
            let speaker = |cluster: &domain::speaker::Cluster| {
                let speaker_id = id.speaker(*attempt, &cluster.cluster_id);
                speaker_row(
                    id,
                    &Speaker { id: speaker_id, cluster_id: cluster.cluster_id.clone(), link: None },
                )
            };
            rows.speakers = clusters.clusters().iter().map(speaker).map(|row| (row.id, row)).collect();
        }
        MeetingEvent::SpeakerIdentified { speaker_id, profile_id, confidence, .. } => {
            link(rows, speaker_id.as_uuid(), Some(profile_id.as_uuid()), Some(confidence.get()));
        }
        MeetingEvent::SpeakerNotIdentified { speaker_id, .. } => {
            link(rows, speaker_id.as_uuid(), None, None);
        }
        MeetingEvent::SpeakerReassigned {
            speaker_id,
            from,
            to,
            reason,
            previous_confidence,
            previous_by,
            carried_from,
            cause,
        } => {
            let (speaker_id, to_profile_id) = (speaker_id.as_uuid(), to.map(|profile| profile.as_uuid()));
            let speaker = rows.speakers.get(&speaker_id);
            let Provenance { actor, actor_kind, correlation_id } =
                recorded.provenance.clone().unwrap_or_default();
            let row = ReassignmentRow {
                position: recorded.position,
                recorded_at: recorded.recorded_at,
                meeting_id: id.as_uuid(),
                sequence: recorded.sequence,
                speaker_id,
                cluster_id: speaker.and_then(|speaker| speaker.cluster_id.clone()),
                from_profile_id: from.map(|profile| profile.as_uuid()),
                to_profile_id,
                reason: reason.known().map(|reason| reason.as_str().to_owned()),
                actor,
                actor_kind,
                previous_by: previous_by.map(|by| by.as_str().to_owned()),
                previous_confidence: previous_confidence.map(domain::speaker::Confidence::get),
                correlation_id,
                carried_from: carried_from.map(|earlier| earlier.speaker_id.as_uuid()),
            };
            rows.reassignments.insert(row.position, row);
            // A person's word has no degree of confidence.
            link(rows, speaker_id, to_profile_id, None);
            if cause.is_some() && !is_completed(rows) {
                // While it is processed anew, the result of before is in the cache, with the person in it.
                remove_from_cache(rows, result_key(id), recorded.position);
            }
        }
        MeetingEvent::ArtifactStored { artifact } => {
            let row = artifact_row(id, artifact);
            rows.artifacts.retain(|_, other| other.artifact_type != row.artifact_type);
            rows.artifacts.insert(row.id, row);
            keep_stale(rows, |stale| stale != artifact.id.as_uuid());
        }
        // What happens to a speaker's name is in `SpeakerReassigned`; who has to decide asks the meeting itself.
        MeetingEvent::CorrectionNotCarried { .. } | MeetingEvent::CorrectionDismissed { .. } => {}
        MeetingEvent::ArtifactsOutdated { artifacts, .. } => {
            for artifact in artifacts.iter().map(|artifact| artifact.id.as_uuid()) {
                if rows.artifacts.contains_key(&artifact) {
                    let row = StaleArtifactRow {
                        artifact_id: artifact,
                        meeting_id: id.as_uuid(),
                        position: recorded.position,
                    };
                    rows.stale_artifacts.insert(artifact, row);
                }
            }
        }
        MeetingEvent::StageResultCached { stage, content_fp, value, expires_at } => {
            let key = format!("{stage}:{content_fp}");
            // What is destroyed still takes the place of what was there before it.
            let entry = value.known().map(|value| (value.clone(), *expires_at));
            rows.cache.insert(key.clone(), CacheWrite { key, position: recorded.position, entry });
        }
        MeetingEvent::StageResultsDropped { cached, .. } => {
            drop_results(rows, cached, recorded.position);
        }
        MeetingEvent::MeetingCompleted(completed) => complete(rows, id, completed),
        MeetingEvent::MeetingFailed { failed_at, .. } => {
            if let Some(meeting) = &mut rows.meeting {
                "failed".clone_into(&mut meeting.status);
                meeting.finished_at = Some(*failed_at);
            }
        }
        MeetingEvent::MeetingErased { cached, .. } => {
            rows.file = None;
            rows.meeting = None;
            rows.speakers.clear();
            rows.artifacts.clear();
            rows.stale_artifacts.clear();
            rows.reassignments.clear();
            rows.forgets_reassignments = true;
            drop_results(rows, cached, recorded.position);
            remove_from_cache(rows, result_key(id), recorded.position);
        }
    }
    if renews_result(event) {
        cache_result(rows, id, recorded);
    }
}

fn register(rows: &mut MeetingRows, registered: &MeetingRegistered) {
    let file = &registered.file;
    rows.file = Some(FileRow {
        id: file.id.as_uuid(),
        sha256: file.sha256.as_str().to_owned(),
        content_fp: None,
        mime: file.mime.as_ref().map(|mime| mime.as_str().to_owned()),
        duration: file.duration.map(domain::file::DurationSeconds::get),
        size: file.size.map(domain::file::SizeBytes::get),
        owner: file.owner.map(|owner| owner.as_uuid()),
        created_at: Some(registered.registered_at),
    });
    rows.meeting = Some(MeetingRow {
        id: registered.meeting_id.as_uuid(),
        file_id: Some(file.id.as_uuid()),
        status: "pending".to_owned(),
        language: None,
        started_at: Some(registered.registered_at),
        finished_at: None,
    });
}

/// The event says which speakers and artifacts are the attempt's; those of earlier attempts go.
fn complete(rows: &mut MeetingRows, id: MeetingId, completed: &MeetingCompleted) {
    if let Some(meeting) = &mut rows.meeting {
        "completed".clone_into(&mut meeting.status);
        meeting.language = completed.language.as_ref().map(|language| language.as_str().to_owned());
        meeting.started_at = Some(completed.started_at);
        meeting.finished_at = Some(completed.finished_at);
    }
    let speakers = completed.speakers.iter().map(|speaker| speaker_row(id, speaker));
    rows.speakers = speakers.map(|row| (row.id, row)).collect();
    let artifacts = completed.artifacts.iter().map(|artifact| artifact_row(id, artifact));
    rows.artifacts = artifacts.map(|row| (row.id, row)).collect();
    keep_stale(rows, |_| true);
}

/// Only what is there can be stale, and only what `still` says.
fn keep_stale(rows: &mut MeetingRows, still: impl Fn(Uuid) -> bool) {
    rows.stale_artifacts.retain(|id, _| rows.artifacts.contains_key(id) && still(*id));
}

fn speaker_row(meeting: MeetingId, speaker: &Speaker) -> SpeakerRow {
    SpeakerRow {
        id: speaker.id.as_uuid(),
        meeting_id: Some(meeting.as_uuid()),
        cluster_id: Some(speaker.cluster_id.as_str().to_owned()),
        user_profile_id: speaker.link.map(|link| link.profile_id.as_uuid()),
        confidence: speaker.link.and_then(|link| link.confidence).map(domain::speaker::Confidence::get),
    }
}

fn artifact_row(meeting: MeetingId, artifact: &Artifact) -> ArtifactRow {
    ArtifactRow {
        id: artifact.id.as_uuid(),
        meeting_id: Some(meeting.as_uuid()),
        artifact_type: artifact.artifact_type.as_str().to_owned(),
        s3_key: Some(artifact.s3_key.as_str().to_owned()),
        meta: artifact.meta.as_ref().and_then(Personal::known).map(|meta| meta.as_value().clone()),
    }
}

fn link(rows: &mut MeetingRows, speaker: Uuid, profile: Option<Uuid>, confidence: Option<f64>) {
    if let Some(speaker) = rows.speakers.get_mut(&speaker) {
        speaker.user_profile_id = profile;
        speaker.confidence = confidence;
    }
}

/// Says whether an event may change what a completed meeting's result shows.
const fn renews_result(event: &MeetingEvent) -> bool {
    match event {
        MeetingEvent::MeetingCompleted(_)
        | MeetingEvent::ArtifactStored { .. }
        | MeetingEvent::SpeakerIdentified { .. }
        | MeetingEvent::SpeakerNotIdentified { .. }
        | MeetingEvent::SpeakerReassigned { .. } => true,
        MeetingEvent::MeetingRegistered(_)
        | MeetingEvent::ProcessingStarted { .. }
        | MeetingEvent::ContentFingerprinted { .. }
        | MeetingEvent::LanguageDetected { .. }
        | MeetingEvent::SpeakersDiarized { .. }
        | MeetingEvent::CorrectionNotCarried { .. }
        | MeetingEvent::CorrectionDismissed { .. }
        | MeetingEvent::ArtifactsOutdated { .. }
        | MeetingEvent::StageResultCached { .. }
        | MeetingEvent::StageResultsDropped { .. }
        | MeetingEvent::MeetingFailed { .. }
        | MeetingEvent::MeetingErased { .. } => false,
    }
}

fn is_completed(rows: &MeetingRows) -> bool {
    rows.meeting.as_ref().is_some_and(|meeting| meeting.status == "completed")
}

/// Takes out what stages cached, also what another meeting cached under the same key since: it is found again by
/// working again.
fn drop_results(rows: &mut MeetingRows, cached: &BTreeSet<CacheKey>, position: i64) {
    for key in cached {
        remove_from_cache(rows, key.to_string(), position);
    }
}

fn remove_from_cache(rows: &mut MeetingRows, key: String, position: i64) {
    rows.cache.insert(key.clone(), CacheWrite { key, position, entry: None });
}

fn result_key(id: MeetingId) -> String {
    format!("meeting:{id}")
}

/// What `meeting:<id>` holds. Profile ids, never names: a name may have to be forgotten.
#[derive(Serialize)]
struct MeetingResult<'a> {
    meeting_id: Uuid,
    file_id: Option<Uuid>,
    status: &'a str,
    language: Option<&'a str>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
    speakers: Vec<&'a SpeakerRow>,
    artifacts: Vec<&'a ArtifactRow>,
}

fn cache_result(rows: &mut MeetingRows, id: MeetingId, recorded: &Recorded) {
    let Some(meeting) = rows.meeting.as_ref().filter(|meeting| meeting.status == "completed") else {
        return;
    };
    let mut speakers = rows.speakers.values().collect::<Vec<_>>();
    speakers.sort_by(|a, b| a.cluster_id.cmp(&b.cluster_id));
    let mut artifacts = rows.artifacts.values().collect::<Vec<_>>();
    artifacts.sort_by(|a, b| a.artifact_type.cmp(&b.artifact_type));
    let result = MeetingResult {
        meeting_id: meeting.id,
        file_id: meeting.file_id,
        status: &meeting.status,
        language: meeting.language.as_deref(),
        started_at: meeting.started_at,
        finished_at: meeting.finished_at,
        speakers,
        artifacts,
    };
    let value = serde_json::to_string(&result).expect("rows have string keys and serialize");
    let key = result_key(id);
    let entry = Some((value, Some(recorded.recorded_at + RESULT_TTL)));
    rows.cache.insert(key.clone(), CacheWrite { key, position: recorded.position, entry });
}

fn fold_profile(rows: &mut ProfileRows, id: ProfileId, event: &ProfileEvent, recorded: &Recorded) {
    match event {
        ProfileEvent::ProfileCreated { display_name, created_at, .. } => {
            // Whoever's name is destroyed was forgotten, and has no row.
            rows.profile = display_name.known().map(|display_name| UserProfileRow {
                id: id.as_uuid(),
                display_name: display_name.as_str().to_owned(),
                embeddings: vec![],
                created_at: Some(*created_at),
            });
        }
        ProfileEvent::ProfileRenamed { display_name } => match (&mut rows.profile, display_name.known()) {
            (Some(profile), Some(name)) => name.as_str().clone_into(&mut profile.display_name),
            (Some(_), None) => rows.profile = None,
            (None, _) => {}
        },
        ProfileEvent::VoiceEnrolled { sample_id, voice, source, enrolled_at } => {
            if let (Some(profile), Some(vector)) = (&mut rows.profile, voice.vector.known()) {
                let Provenance { actor, actor_kind, .. } = recorded.provenance.clone().unwrap_or_default();
                profile.embeddings.retain(|sample| sample.sample_id != sample_id.as_uuid());
                profile.embeddings.push(Embedding {
                    sample_id: sample_id.as_uuid(),
                    model: voice.model.as_str().to_owned(),
                    dimension: vector.as_slice().len(),
                    vector: vector.as_slice().to_vec(),
                    source: source
                        .as_ref()
                        .and_then(Personal::known)
                        .map(|source| source.as_str().to_owned()),
                    actor,
                    actor_kind,
                    enrolled_at: *enrolled_at,
                });
            }
        }
        ProfileEvent::VoiceRemoved { sample_id } => {
            if let Some(profile) = &mut rows.profile {
                profile.embeddings.retain(|sample| sample.sample_id != sample_id.as_uuid());
            }
        }
        ProfileEvent::ProfileErased { .. } => rows.profile = None,
    }
}
