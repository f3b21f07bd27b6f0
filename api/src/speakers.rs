//! Who speaks in a meeting, and why that is said: its speakers with their speech, their names, and the evidence
//! of the decisions about them. For HTTP and the pages alike.
//!
//! What the tables do not keep (the evidence, the speech) is in the log, so that is where all of it comes from,
//! in one reading; only the names are asked of the tables, in one query for all.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use domain::Event;
use domain::ids::{MeetingId, ProfileId, SpeakerId};
use domain::meeting::{CarriedFrom, Meeting, MeetingError, MeetingEvent, evolve};
use domain::speaker::{Cluster, Evidence, LinkedBy};
use event_store::EventStore;
use event_store::log::{self, BatchLimits, Provenance, StoredEvent};
use event_store::sealing;
use projections::queries;
use serde::Serialize;
use tracing::warn;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::error::Problem;

/// How many of a meeting's events are read at once.
const BATCH: BatchLimits = BatchLimits { events: 500, bytes: 8 * 1024 * 1024 };

/// The speakers of a meeting's latest diarization.
#[derive(Debug, Serialize, ToSchema)]
pub struct MeetingSpeakers {
    /// The meeting.
    #[schema(example = "6a1f4d43-6b8e-8b0c-9a3c-1f6f3f0e6c11")]
    pub meeting_id: Uuid,
    /// Up to which position of the log this shows the history.
    #[schema(example = 42)]
    pub position: i64,
    /// In order of cluster.
    pub speakers: Vec<SpeakerDetails>,
}

/// A speaker, who it is, and why that is said.
#[derive(Debug, Serialize, ToSchema)]
pub struct SpeakerDetails {
    /// The speaker.
    #[schema(example = "6a1f4d43-6b8e-5b0c-9a3c-1f6f3f0e6c11")]
    pub id: Uuid,
    /// The label in the diarization.
    #[schema(example = "spk00")]
    pub cluster_id: String,
    /// How long the speaker speaks in all, in milliseconds.
    #[schema(example = 412_500)]
    pub speech_ms: u64,
    /// Who it is; null for nobody known.
    pub profile: Option<NamedProfile>,
    /// Who said so: `machine` or `person`.
    #[schema(value_type = Option<String>, example = "machine")]
    pub by: Option<LinkedBy>,
    /// How sure the machine was, 0 to 1; null where a person said so.
    #[schema(example = 0.87)]
    pub confidence: Option<f64>,
    /// What the machine's latest decision rests on, also where a person has decided otherwise since; null where
    /// the voice was not compared.
    pub evidence: Option<SpeakerEvidence>,
    /// The latest decision about the speaker, whoever made it.
    pub latest_decision: Option<LatestDecision>,
    /// When the speaker speaks, in order; left out unless asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segments: Option<Vec<SpokenSegment>>,
}

/// A person, by name.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct NamedProfile {
    /// The profile.
    #[schema(example = "018f0000-0000-7000-8000-000000000001")]
    pub id: Uuid,
    /// How the person is called; null for one who was forgotten.
    #[schema(example = "Ada Lovelace")]
    pub display_name: Option<String>,
}

/// What a machine's decision rests on.
#[derive(Debug, Serialize, ToSchema)]
pub struct SpeakerEvidence {
    /// The model whose vectors were compared.
    #[schema(example = "resemblyzer-0.1.4")]
    pub model: String,
    /// The version of the policy that was followed.
    #[schema(example = "default-1")]
    pub policy_version: String,
    /// How far the best other person is behind, where there is one.
    #[schema(example = 0.21)]
    pub margin: Option<f64>,
    /// Who comes closest, best first, at most three; a member is told nobody.
    pub candidates: Vec<NamedCandidate>,
}

/// Somebody whom a speaker resembles.
#[derive(Debug, Serialize, ToSchema)]
pub struct NamedCandidate {
    /// Who.
    pub profile: NamedProfile,
    /// How much: a cosine similarity, 0 to 1.
    #[schema(example = 0.78)]
    pub score: f64,
}

/// The latest decision about a speaker.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct LatestDecision {
    /// Its event's place in the log.
    #[schema(example = 41)]
    pub position: i64,
    /// When it was recorded.
    #[schema(example = "2026-11-24T09:00:00Z")]
    pub recorded_at: DateTime<Utc>,
    /// `identified`, `not_identified` or `reassigned`.
    #[schema(example = "identified")]
    pub decision: &'static str,
    /// Who decided, or for whom the machine did.
    #[schema(example = "pipeline-1")]
    pub actor: Option<String>,
    /// `person`, `service` or `system`.
    #[schema(example = "service")]
    pub actor_kind: Option<String>,
    /// Why, where a person decided.
    #[schema(example = "I was there")]
    pub reason: Option<String>,
    /// The speaker about whom a person had decided, where the decision was carried over to this one. Then
    /// `actor` is who recorded the diarization.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub carried_from: Option<CarriedFrom>,
}

/// A stretch of speech.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct SpokenSegment {
    /// When it starts, in milliseconds from the start of the recording.
    #[schema(example = 50_420)]
    pub start_ms: u32,
    /// How long it lasts, in milliseconds.
    #[schema(example = 570)]
    pub duration_ms: u32,
}

/// What of the speakers is shown.
#[derive(Debug, Clone, Copy)]
pub struct Detail {
    /// Whether each comes with all segments of its speech.
    pub segments: bool,
    /// Whether people are named whom a voice merely resembles; see [`crate::auth::Caller::sees_candidates`].
    pub candidates: bool,
}

/// Returns the speakers of a meeting.
pub async fn of_meeting(
    store: &EventStore,
    id: MeetingId,
    detail: Detail,
) -> Result<MeetingSpeakers, Problem> {
    // The head first: whatever is read afterwards has all of the meeting up to there.
    let position = log::head(store.pool()).await?;
    of_meeting_at(store, id, position, detail).await
}

/// Returns the speakers of a meeting as they stood at `position`, with the names of today.
pub async fn of_meeting_at(
    store: &EventStore,
    id: MeetingId,
    position: i64,
    detail: Detail,
) -> Result<MeetingSpeakers, Problem> {
    let mut told = read(store, id, position).await?;
    if !detail.candidates {
        told.evidence.values_mut().for_each(|evidence| evidence.candidates.clear());
    }
    let profiles = told.profiles();
    told.forget(&sealing::forgotten(store.pool(), &profiles).await?);
    let names = queries::display_names(store.pool(), &profiles).await?;
    told.shown(id, position, &names, detail.segments)
}

/// What a meeting's events tell of its speakers.
#[derive(Default)]
struct Told {
    meeting: Meeting,
    clusters: BTreeMap<SpeakerId, Cluster>,
    evidence: BTreeMap<SpeakerId, Evidence>,
    latest: BTreeMap<SpeakerId, LatestDecision>,
}

async fn read(store: &EventStore, id: MeetingId, until: i64) -> Result<Told, sqlx::Error> {
    let (pool, keyring) = (store.pool(), store.keyring());
    let skipped = log::skipped_sequences(pool, "meeting", &id.to_string()).await?;
    let mut told = Told::default();
    let mut after = 0;
    loop {
        // Results for the cache are large, and say nothing of speakers.
        let without = Some("StageResultCached");
        let (events, more) =
            log::read_aggregate_but(pool, keyring, "meeting", id.as_uuid(), after, without, BATCH).await?;
        for stored in events.iter().filter(|event| event.position <= until) {
            if skipped.contains(&stored.sequence) {
                continue;
            }
            match stored.decode() {
                Ok(recorded) => {
                    if let Event::Meeting(_, event) = recorded.event {
                        told.note(id, stored, event);
                    }
                }
                // What comes after it waits, here as in the tables.
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    warn!(error, "speakers are shown up to an event that cannot be read");
                    return Ok(told);
                }
            }
        }
        match events.last() {
            Some(last) if more => after = last.sequence,
            Some(_) | None => return Ok(told),
        }
    }
}

impl Told {
    fn note(&mut self, id: MeetingId, stored: &StoredEvent, event: MeetingEvent) {
        evolve(&mut self.meeting, &event);
        match event {
            MeetingEvent::SpeakersDiarized { attempt, clusters } => {
                let clusters = Vec::from(clusters).into_iter();
                let by_speaker = |cluster: Cluster| {
                    // Nobody is shown a voice.
                    (id.speaker(attempt, &cluster.cluster_id), Cluster { voice: None, ..cluster })
                };
                self.clusters = clusters.map(by_speaker).collect();
                self.evidence.clear();
                self.latest.clear();
            }
            MeetingEvent::SpeakerIdentified { speaker_id, evidence, .. } => {
                self.evidence.insert(speaker_id, evidence);
                self.latest.insert(speaker_id, decision(stored, "identified", None));
            }
            MeetingEvent::SpeakerNotIdentified { speaker_id, evidence } => {
                self.evidence.insert(speaker_id, evidence);
                self.latest.insert(speaker_id, decision(stored, "not_identified", None));
            }
            MeetingEvent::SpeakerReassigned { speaker_id, reason, carried_from, .. } => {
                let reason = reason.known().map(|reason| reason.as_str().to_owned());
                let latest = LatestDecision { carried_from, ..decision(stored, "reassigned", reason) };
                self.latest.insert(speaker_id, latest);
            }
            MeetingEvent::MeetingRegistered(_)
            | MeetingEvent::ProcessingStarted { .. }
            | MeetingEvent::ContentFingerprinted { .. }
            | MeetingEvent::LanguageDetected { .. }
            | MeetingEvent::CorrectionNotCarried { .. }
            | MeetingEvent::CorrectionDismissed { .. }
            | MeetingEvent::ArtifactStored { .. }
            | MeetingEvent::ArtifactsOutdated { .. }
            | MeetingEvent::StageResultCached { .. }
            | MeetingEvent::StageResultsDropped { .. }
            | MeetingEvent::MeetingCompleted(_)
            | MeetingEvent::MeetingFailed { .. }
            | MeetingEvent::MeetingErased { .. } => {}
        }
    }

    /// Takes out whoever was forgotten: they are nobody's voice, and resemble none.
    fn forget(&mut self, forgotten: &BTreeSet<Uuid>) {
        let is_forgotten = |profile: ProfileId| forgotten.contains(&profile.as_uuid());
        if let Meeting::Active(record) = &mut self.meeting {
            for speaker in record.speakers.values_mut() {
                speaker.link = speaker.link.take().filter(|link| !is_forgotten(link.profile_id));
            }
        }
        for evidence in self.evidence.values_mut() {
            evidence.candidates.retain(|candidate| !is_forgotten(candidate.profile_id));
        }
    }

    /// Returns everybody who is named or a candidate.
    fn profiles(&self) -> Vec<Uuid> {
        let linked = match &self.meeting {
            Meeting::Active(record) => record.speakers.values().filter_map(|speaker| speaker.link).collect(),
            Meeting::Unregistered | Meeting::Erased { .. } => vec![],
        };
        let candidates = self.evidence.values().flat_map(|evidence| &evidence.candidates);
        let ids = candidates.map(|candidate| candidate.profile_id);
        let ids = ids.chain(linked.into_iter().map(|link| link.profile_id));
        ids.map(|profile| profile.as_uuid()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn shown(
        mut self,
        id: MeetingId,
        position: i64,
        names: &BTreeMap<Uuid, String>,
        with_segments: bool,
    ) -> Result<MeetingSpeakers, Problem> {
        let record = match std::mem::take(&mut self.meeting) {
            Meeting::Active(record) => record,
            Meeting::Erased { .. } => return Err(MeetingError::Erased.into()),
            Meeting::Unregistered => return Err(MeetingError::NotFound.into()),
        };
        let named = |profile: ProfileId| {
            let id = profile.as_uuid();
            NamedProfile { id, display_name: names.get(&id).cloned() }
        };
        let shown = |speaker: domain::speaker::Speaker| {
            let cluster = self.clusters.remove(&speaker.id);
            let speech_ms = cluster.as_ref().map_or(0, Cluster::total_speech_ms);
            let segment = |s: &domain::speaker::Segment| SpokenSegment {
                start_ms: s.start_ms,
                duration_ms: s.duration_ms,
            };
            let segments = cluster.filter(|_| with_segments);
            SpeakerDetails {
                id: speaker.id.as_uuid(),
                cluster_id: speaker.cluster_id.as_str().to_owned(),
                speech_ms,
                profile: speaker.link.map(|link| named(link.profile_id)),
                by: speaker.link.map(|link| link.by),
                confidence: speaker.link.and_then(|link| link.confidence).map(f64::from),
                evidence: self.evidence.remove(&speaker.id).map(|evidence| shown_evidence(evidence, named)),
                latest_decision: self.latest.remove(&speaker.id),
                segments: segments.map(|cluster| cluster.segments.iter().map(segment).collect()),
            }
        };
        let mut speakers = record.speakers.into_values().map(shown).collect::<Vec<_>>();
        speakers.sort_by(|a, b| a.cluster_id.cmp(&b.cluster_id));
        Ok(MeetingSpeakers { meeting_id: id.as_uuid(), position, speakers })
    }
}

fn shown_evidence(evidence: Evidence, named: impl Fn(ProfileId) -> NamedProfile) -> SpeakerEvidence {
    let candidates = evidence.candidates.into_iter();
    let candidates = candidates.map(|candidate| NamedCandidate {
        profile: named(candidate.profile_id),
        score: candidate.score.get(),
    });
    SpeakerEvidence {
        model: evidence.model.as_str().to_owned(),
        policy_version: evidence.policy_version.as_str().to_owned(),
        margin: evidence.margin.map(f64::from),
        candidates: candidates.collect(),
    }
}

fn decision(stored: &StoredEvent, decision: &'static str, reason: Option<String>) -> LatestDecision {
    let Provenance { actor, actor_kind, .. } = Provenance::of(&stored.metadata);
    let (position, recorded_at) = (stored.position, stored.recorded_at);
    LatestDecision { position, recorded_at, decision, actor, actor_kind, reason, carried_from: None }
}
