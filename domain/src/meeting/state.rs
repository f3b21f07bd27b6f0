//! What a meeting's events add up to: no more than decisions need. Voices and cached values stay in the log;
//! of them a digest is kept, by which a repeated command is known. Segments are kept: when a person decides
//! about a speaker, what that person heard must be known, or the decision could not outlive the diarization.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::carry_over::{Overlap, Speech};
use super::event::{CacheKey, CarriedFrom, Cause, MeetingCompleted, MeetingEvent, MeetingRegistered};
use crate::Timestamp;
use crate::artifact::{Artifact, ArtifactType};
use crate::digest::Digest;
use crate::file::{ContentFp, File};
use crate::ids::{MeetingId, ProfileId, SpeakerId};
use crate::personal_data::Personal;
use crate::speaker::{Cluster, Diarization, Link, LinkedBy, Speaker};
use crate::text::{Language, Reason, Stage, WorkerId};

/// A meeting as it stands.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub enum Meeting {
    /// No event yet.
    #[default]
    Unregistered,
    /// Registered, and at some point of its life.
    Active(Box<Record>),
    /// Removed. Registered again it goes on in the same stream, and its attempts count on, so that no
    /// speaker's id is given twice.
    Erased {
        /// The attempts made before.
        attempts: u32,
    },
}

/// What is known of an active meeting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The meeting.
    pub id: MeetingId,
    /// The uploaded file.
    pub file: File,
    /// Where it stands.
    pub status: Status,
    /// The attempts so far; the number of the latest one.
    pub attempts: u32,
    /// The audio's fingerprint.
    pub content_fp: Option<ContentFp>,
    /// The language spoken.
    pub language: Option<Language>,
    /// The latest diarization's digest and the attempt that made it.
    pub diarized: Option<(u32, Digest)>,
    /// The latest diarization's speakers.
    pub speakers: BTreeMap<SpeakerId, Speaker>,
    /// When each of them speaks.
    pub speech: BTreeMap<SpeakerId, Speech>,
    /// Who each of them was before the latest reassignment, if there was one.
    pub reassigned_from: BTreeMap<SpeakerId, Option<ProfileId>>,
    /// What people decided and nobody has settled otherwise since, by the speaker about whom they decided, be
    /// it one of an earlier diarization.
    pub corrections: BTreeMap<SpeakerId, Correction>,
    /// Those of an earlier diarization that a word about one of the latest one's speakers has settled, each with
    /// that speaker: taken back, it settles nothing.
    pub settled: BTreeMap<SpeakerId, (SpeakerId, Correction)>,
    /// The latest artifact of each type.
    pub artifacts: BTreeMap<ArtifactType, Artifact>,
    /// Which of them are older than a speaker's name.
    pub outdated: BTreeSet<ArtifactType>,
    /// The cached stages: digest of fingerprint and value, and when it expires.
    pub cached: BTreeMap<Stage, (Digest, Option<Timestamp>)>,
    /// Every key under which it cached a result that was not dropped, also those of earlier attempts.
    pub cache_keys: BTreeSet<CacheKey>,
    /// Who speaks in the result of the latest completion, which stays in the cache while it is processed anew.
    pub result: BTreeMap<SpeakerId, ProfileId>,
}

/// What a person decided about a speaker.
///
/// It stays with the speech that the person heard, however often it is carried over: nothing adds up that
/// differs from one diarization to the next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Correction {
    /// The attempt of whose diarization the speaker is.
    pub attempt: u32,
    /// Who it is, or nobody known.
    pub to: Option<ProfileId>,
    /// Why.
    pub reason: Personal<Reason>,
    /// When the speaker speaks.
    pub speech: Speech,
    /// For which of the latest diarization's speakers it holds; absent while it waits for a person.
    pub holds_for: Option<SpeakerId>,
    /// While it waits, whom it may be about: those with the most speech in common, first the most.
    pub candidates: Vec<Overlap>,
}

impl Correction {
    /// Says whether it waits for a person to say that `speaker_id` is `to`.
    pub(super) fn is_settled_by(&self, speaker_id: SpeakerId, to: Option<ProfileId>) -> bool {
        self.holds_for.is_none()
            && self.to == to
            && self.candidates.iter().any(|candidate| candidate.speaker_id == speaker_id)
    }
}

/// Where an active meeting stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Status {
    /// Waits for a worker.
    Pending,
    /// A worker is on it.
    Processing {
        /// Who.
        worker: WorkerId,
        /// Since when.
        started_at: Timestamp,
        /// Where it stood before, which tells a start from a retry and a reprocessing.
        from: Origin,
    },
    /// The latest attempt came to its end.
    Completed,
    /// The latest attempt broke off.
    Failed {
        /// Where.
        stage: Stage,
        /// Why.
        reason: Personal<Reason>,
    },
}

/// Where a meeting stood before its latest attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// The first attempt.
    Pending,
    /// A retry.
    Failed,
    /// A reprocessing.
    Completed,
}

impl Status {
    /// Returns the status as it is shown and stored in the tables.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Processing { .. } => "processing",
            Self::Completed => "completed",
            Self::Failed { .. } => "failed",
        }
    }
}

impl Meeting {
    /// Returns how much room the segments that it keeps take, in bytes: of all that it is, the only part that
    /// may be large.
    pub fn speech_bytes(&self) -> usize {
        match self {
            Self::Unregistered | Self::Erased { .. } => 0,
            Self::Active(record) => {
                let settled = record.settled.values().map(|(_, correction)| correction);
                let corrections = record.corrections.values().chain(settled);
                let of_corrections = corrections.map(|correction| &correction.speech);
                record.speech.values().chain(of_corrections).map(Speech::bytes).sum()
            }
        }
    }
}

impl Record {
    /// Returns what people decided about speakers of an earlier diarization and what is about none of the
    /// latest one's yet: it waits for a person, or for the next diarization.
    pub fn pending_corrections(&self) -> impl Iterator<Item = (SpeakerId, &Correction)> {
        self.corrections
            .iter()
            .filter(|(_, correction)| correction.holds_for.is_none())
            .map(|(id, correction)| (*id, correction))
    }

    /// Returns everybody whom a speaker or a decision names.
    pub fn people(&self) -> BTreeSet<ProfileId> {
        let linked = self.speakers.values().filter_map(|speaker| speaker.link).map(|link| link.profile_id);
        let decided = self.corrections.values().filter_map(|correction| correction.to);
        linked.chain(decided).chain(self.result.values().copied()).collect()
    }

    /// Returns the digest by which a cached result is known.
    pub(super) fn cached_digest(content_fp: &ContentFp, value: &(impl Serialize + ?Sized)) -> Digest {
        Digest::of(&(content_fp, value))
    }
}

/// Takes `event` into `meeting`. Never fails: what was decided is a fact, and an event that does not fit
/// the state (which only damage could bring about) changes nothing.
pub fn evolve(meeting: &mut Meeting, event: &MeetingEvent) {
    if let MeetingEvent::MeetingRegistered(registered) = event {
        *meeting = Meeting::Active(Box::new(register(meeting, registered)));
    } else if let Meeting::Active(record) = meeting {
        if let MeetingEvent::MeetingErased { .. } = event {
            *meeting = Meeting::Erased { attempts: record.attempts };
        } else {
            evolve_record(record, event);
        }
    } else if let (MeetingEvent::MeetingErased { .. }, Meeting::Unregistered) = (event, &*meeting) {
        // Its registration was skipped.
        *meeting = Meeting::Erased { attempts: 0 };
    }
}

fn register(meeting: &Meeting, registered: &MeetingRegistered) -> Record {
    let attempts = match meeting {
        Meeting::Unregistered => 0,
        Meeting::Active(record) => record.attempts,
        Meeting::Erased { attempts } => *attempts,
    };
    Record {
        id: registered.meeting_id,
        file: registered.file.clone(),
        status: Status::Pending,
        attempts,
        content_fp: None,
        language: None,
        diarized: None,
        speakers: BTreeMap::new(),
        speech: BTreeMap::new(),
        reassigned_from: BTreeMap::new(),
        corrections: BTreeMap::new(),
        settled: BTreeMap::new(),
        artifacts: BTreeMap::new(),
        outdated: BTreeSet::new(),
        cached: BTreeMap::new(),
        cache_keys: BTreeSet::new(),
        result: BTreeMap::new(),
    }
}

fn evolve_record(record: &mut Record, event: &MeetingEvent) {
    match event {
        MeetingEvent::MeetingRegistered(_) | MeetingEvent::MeetingErased { .. } => {}
        MeetingEvent::ProcessingStarted { attempt, worker, started_at } => {
            let from = match record.status {
                Status::Pending | Status::Processing { .. } => Origin::Pending,
                Status::Completed => Origin::Completed,
                Status::Failed { .. } => Origin::Failed,
            };
            record.attempts = *attempt;
            record.status = Status::Processing { worker: worker.clone(), started_at: *started_at, from };
        }
        MeetingEvent::ContentFingerprinted { content_fp, .. } => record.content_fp = Some(content_fp.clone()),
        MeetingEvent::LanguageDetected { language, .. } => record.language = Some(language.clone()),
        MeetingEvent::SpeakersDiarized { attempt, clusters } => {
            record.diarized = Some((*attempt, Digest::of(clusters)));
            record.speakers = speakers_of(record.id, *attempt, clusters);
            record.speech = speech_of(record.id, *attempt, clusters);
            record.reassigned_from.clear();
            record.settled.clear();
            // What becomes of each is told by the events that follow.
            for correction in record.corrections.values_mut() {
                correction.holds_for = None;
                correction.candidates.clear();
            }
        }
        MeetingEvent::SpeakerIdentified { speaker_id, profile_id, confidence, .. } => {
            let link = Link { profile_id: *profile_id, confidence: Some(*confidence), by: LinkedBy::Machine };
            relink(record, *speaker_id, Some(link));
        }
        MeetingEvent::SpeakerNotIdentified { speaker_id, .. } => relink(record, *speaker_id, None),
        MeetingEvent::SpeakerReassigned { speaker_id, from, cause: Some(Cause::ProfileErased), .. } => {
            relink(record, *speaker_id, None);
            forget(record, *speaker_id, *from);
        }
        MeetingEvent::SpeakerReassigned {
            speaker_id, from, to, reason, carried_from, cause: None, ..
        } => {
            // An event that gives another author to what is so already leaves nothing to undo.
            if from != to || !record.reassigned_from.contains_key(speaker_id) {
                record.reassigned_from.insert(*speaker_id, *from);
            }
            let link = to.map(|profile_id| Link { profile_id, confidence: None, by: LinkedBy::Person });
            relink(record, *speaker_id, link);
            match carried_from {
                Some(CarriedFrom { speaker_id: decided_about, .. }) => {
                    if let Some(correction) = record.corrections.get_mut(decided_about) {
                        correction.holds_for = Some(*speaker_id);
                        correction.candidates.clear();
                    }
                }
                None => correct(record, *speaker_id, *to, reason),
            }
        }
        MeetingEvent::CorrectionNotCarried { speaker_id, candidates, .. } => {
            if let Some(correction) = record.corrections.get_mut(speaker_id) {
                correction.candidates.clone_from(candidates);
            }
        }
        MeetingEvent::CorrectionDismissed { speaker_id, .. } => {
            record.corrections.remove(speaker_id);
        }
        MeetingEvent::ArtifactStored { artifact } => {
            record.outdated.remove(&artifact.artifact_type);
            record.artifacts.insert(artifact.artifact_type, artifact.clone());
        }
        MeetingEvent::ArtifactsOutdated { artifacts, .. } => {
            record.outdated.extend(artifacts.iter().map(|artifact| artifact.artifact_type));
        }
        MeetingEvent::StageResultCached { stage, content_fp, value, expires_at } => {
            let digest = Record::cached_digest(content_fp, value);
            record.cache_keys.insert(CacheKey { stage: stage.clone(), content_fp: content_fp.clone() });
            record.cached.insert(stage.clone(), (digest, *expires_at));
        }
        MeetingEvent::StageResultsDropped { cached, .. } => {
            record.cache_keys.retain(|key| !cached.contains(key));
            record.cached.clear();
        }
        MeetingEvent::MeetingCompleted(MeetingCompleted { speakers, artifacts, .. }) => {
            record.status = Status::Completed;
            record.speakers = speakers.iter().map(|speaker| (speaker.id, speaker.clone())).collect();
            let link = |speaker: &Speaker| speaker.link.map(|link| (speaker.id, link.profile_id));
            record.result = speakers.iter().filter_map(link).collect();
            record.artifacts =
                artifacts.iter().map(|artifact| (artifact.artifact_type, artifact.clone())).collect();
            record.outdated.retain(|artifact_type| record.artifacts.contains_key(artifact_type));
            // An attempt that diarized nothing leaves nobody about whom a decision could be.
            record.speech.retain(|id, _| record.speakers.contains_key(id));
            for correction in record.corrections.values_mut() {
                correction.holds_for = correction.holds_for.filter(|id| record.speakers.contains_key(id));
                correction.candidates.retain(|candidate| record.speakers.contains_key(&candidate.speaker_id));
            }
        }
        MeetingEvent::MeetingFailed { stage, reason, .. } => {
            record.status = Status::Failed { stage: stage.clone(), reason: reason.clone() };
        }
    }
}

/// Speakers are unnamed until a decision follows.
fn speakers_of(meeting: MeetingId, attempt: u32, clusters: &Diarization) -> BTreeMap<SpeakerId, Speaker> {
    let speaker = |cluster: &Cluster| {
        let id = meeting.speaker(attempt, &cluster.cluster_id);
        (id, Speaker { id, cluster_id: cluster.cluster_id.clone(), link: None })
    };
    clusters.clusters().iter().map(speaker).collect()
}

fn speech_of(meeting: MeetingId, attempt: u32, clusters: &Diarization) -> BTreeMap<SpeakerId, Speech> {
    let speech = |cluster: &Cluster| {
        (meeting.speaker(attempt, &cluster.cluster_id), Speech::from(cluster.segments.clone()))
    };
    clusters.clusters().iter().map(speech).collect()
}

/// A person's word about a speaker takes the place of what was carried over to it, and settles what waited for
/// just this word; what another word about that speaker had settled waits again.
fn correct(record: &mut Record, speaker_id: SpeakerId, to: Option<ProfileId>, reason: &Personal<Reason>) {
    let (reopened, settled) = std::mem::take(&mut record.settled)
        .into_iter()
        .partition::<BTreeMap<_, _>, _>(|(_, (by, correction))| *by == speaker_id && correction.to != to);
    record.settled = settled;
    for (decided_about, correction) in std::mem::take(&mut record.corrections) {
        if correction.is_settled_by(speaker_id, to) {
            record.settled.insert(decided_about, (speaker_id, correction));
        } else if correction.holds_for != Some(speaker_id) {
            record.corrections.insert(decided_about, correction);
        }
    }
    record.corrections.extend(reopened.into_iter().map(|(about, (_, correction))| (about, correction)));
    if let (Some((attempt, _)), Some(speech)) = (&record.diarized, record.speech.get(&speaker_id)) {
        let correction = Correction {
            attempt: *attempt,
            to,
            reason: reason.clone(),
            speech: speech.clone(),
            holds_for: Some(speaker_id),
            candidates: vec![],
        };
        record.corrections.insert(speaker_id, correction);
    }
}

/// Whoever is forgotten is not what anybody decided: nothing of it is carried over, nothing brings it back.
fn forget(record: &mut Record, speaker_id: SpeakerId, forgotten: Option<ProfileId>) {
    record.result.remove(&speaker_id);
    record.reassigned_from.remove(&speaker_id);
    record.reassigned_from.retain(|_, before| before.is_none() || *before != forgotten);
    record.corrections.retain(|about, correction| {
        let holds_here = *about == speaker_id || correction.holds_for == Some(speaker_id);
        !holds_here || correction.to != forgotten
    });
    record.settled.retain(|_, (_, correction)| correction.to != forgotten);
}

fn relink(record: &mut Record, speaker_id: SpeakerId, link: Option<Link>) {
    if let Some(speaker) = record.speakers.get_mut(&speaker_id) {
        speaker.link = link;
        if record.status == Status::Completed {
            record.result.remove(&speaker_id);
            record.result.extend(link.map(|link| (speaker_id, link.profile_id)));
        }
    }
}
