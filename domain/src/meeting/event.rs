//! What happened to a meeting. Names of cases and fields are the storage format: they never change; a new
//! shape is a new version with an upcaster (see `upcast`) and a file in `fixtures/events`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::carry_over::Overlap;
use crate::Timestamp;
use crate::artifact::{Artifact, ArtifactType};
use crate::file::{ContentFp, File};
use crate::ids::{ArtifactId, FileId, MeetingId, OwnerId, ProfileId, SpeakerId};
use crate::personal_data::Personal;
use crate::speaker::{Confidence, Diarization, Evidence, LinkedBy, Speaker};
use crate::text::{Language, Reason, Stage, WorkerId};

/// An event of a meeting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum MeetingEvent {
    /// A file was uploaded, and its meeting waits to be processed.
    MeetingRegistered(MeetingRegistered),
    /// A worker took the meeting on: first, again after a failure, or anew after completion.
    ProcessingStarted {
        /// 1 for the first attempt, and one more each time.
        attempt: u32,
        /// Who works on it.
        worker: WorkerId,
        /// When it began.
        started_at: Timestamp,
    },
    /// The audio's own fingerprint is known.
    ContentFingerprinted {
        /// The attempt that computed it.
        attempt: u32,
        /// The fingerprint.
        content_fp: ContentFp,
    },
    /// The language spoken is known.
    LanguageDetected {
        /// The attempt that found it.
        attempt: u32,
        /// The language.
        language: Language,
    },
    /// The recording was split into voices. It takes the place of any earlier diarization.
    SpeakersDiarized {
        /// The attempt that did it.
        attempt: u32,
        /// The voices, each with its speech.
        clusters: Diarization,
    },
    /// A machine knew a speaker by voice.
    SpeakerIdentified {
        /// Which speaker.
        speaker_id: SpeakerId,
        /// Who it is.
        profile_id: ProfileId,
        /// How sure the machine was.
        confidence: Confidence,
        /// Why.
        evidence: Evidence,
    },
    /// A machine knew nobody of this voice surely enough.
    SpeakerNotIdentified {
        /// Which speaker.
        speaker_id: SpeakerId,
        /// Why, and who came closest.
        evidence: Evidence,
    },
    /// Somebody said who a speaker is, or that it is nobody known.
    SpeakerReassigned {
        /// Which speaker.
        speaker_id: SpeakerId,
        /// Who it was until now.
        from: Option<ProfileId>,
        /// Who it is from now on.
        to: Option<ProfileId>,
        /// Why.
        reason: Personal<Reason>,
        /// How sure the machine was of the link until now, if it was a machine's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        previous_confidence: Option<Confidence>,
        /// Who had made the link until now, or had said that it is nobody known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        previous_by: Option<LinkedBy>,
        /// Of what decision this is the continuation: a new diarization found the speaker about whom a person
        /// had decided once more. The metadata is then of whoever recorded the diarization.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        carried_from: Option<CarriedFrom>,
        /// What brought it about, where it was nobody's word: then it is no decision that could be carried over
        /// or taken back.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cause: Option<Cause>,
    },
    /// A new diarization leaves it open which of its speakers, if any, a person's decision is about. It waits
    /// for a person.
    CorrectionNotCarried {
        /// About whom the person decided: a speaker of an earlier diarization.
        speaker_id: SpeakerId,
        /// Who that was, by the person's word.
        to: Option<ProfileId>,
        /// Whom it may be about: those with the most speech in common, first the most.
        candidates: Vec<Overlap>,
    },
    /// A decision which waited is about nobody by now: a person said so, or whoever it named was forgotten.
    CorrectionDismissed {
        /// About whom the decision was: a speaker of an earlier diarization.
        speaker_id: SpeakerId,
        /// Why.
        reason: Personal<Reason>,
        /// What brought it about, where it was nobody's word.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cause: Option<Cause>,
    },
    /// A transcript or summary was written. It takes the place of an earlier one of its type.
    ArtifactStored {
        /// What and where.
        artifact: Artifact,
    },
    /// A speaker is called otherwise than when these artifacts were stored. They are until one of their type
    /// is stored again.
    ArtifactsOutdated {
        /// Whose other name was the first to make them so.
        speaker_id: SpeakerId,
        /// Those that were not outdated before, in order of type.
        artifacts: Vec<OutdatedArtifact>,
    },
    /// A stage's result was kept for whoever meets the same audio again.
    StageResultCached {
        /// The stage, first part of the cache key.
        stage: Stage,
        /// The fingerprint, second part of the cache key.
        content_fp: ContentFp,
        /// The result. Holds profile ids, never names.
        value: Personal<String>,
        /// From when on the result is no longer used; never if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires_at: Option<Timestamp>,
    },
    /// What was kept of stages was dropped again: whoever meets the same audio works anew.
    StageResultsDropped {
        /// Under which keys it was.
        cached: BTreeSet<CacheKey>,
        /// What brought it about.
        cause: Cause,
    },
    /// The attempt came to its end.
    MeetingCompleted(MeetingCompleted),
    /// The attempt broke off.
    MeetingFailed {
        /// The attempt that failed.
        attempt: u32,
        /// Where it failed.
        stage: Stage,
        /// Why.
        reason: Personal<Reason>,
        /// When.
        failed_at: Timestamp,
    },
    /// The meeting was removed on request or by age.
    MeetingErased {
        /// Why, in the words of whoever runs the book. It is not sealed: it outlives the meeting, so it names nobody.
        reason: Reason,
        /// When.
        erased_at: Timestamp,
        /// Under which keys it had cached results: they go too.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        cached: BTreeSet<CacheKey>,
    },
}

/// What brings an event about that is nobody's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The person was forgotten.
    ProfileErased,
}

/// The key under which a stage's result is cached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CacheKey {
    /// The stage.
    pub stage: Stage,
    /// The fingerprint of the audio.
    pub content_fp: ContentFp,
}

impl std::fmt::Display for CacheKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.stage, self.content_fp)
    }
}

/// Where a decision comes from that was carried over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedFrom {
    /// About whom the person decided: a speaker of an earlier diarization.
    pub speaker_id: SpeakerId,
    /// The attempt that made that diarization.
    pub attempt: u32,
    /// How long both speak at once, in milliseconds.
    pub overlap_ms: u32,
}

/// An artifact that is older than a speaker's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutdatedArtifact {
    /// The artifact.
    pub id: ArtifactId,
    /// What it is.
    #[serde(rename = "type")]
    pub artifact_type: ArtifactType,
}

/// The facts of a registration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeetingRegistered {
    /// The meeting, derived from owner and content.
    pub meeting_id: MeetingId,
    /// The file, and who may see it.
    pub file: File,
    /// When.
    pub registered_at: Timestamp,
}

/// All that a reader needs to act on a completed meeting without asking back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeetingCompleted {
    /// The meeting itself.
    pub meeting_id: MeetingId,
    /// Its file.
    pub file_id: FileId,
    /// Who may see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerId>,
    /// The language spoken, where it was detected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<Language>,
    /// The attempt that completed.
    pub attempt: u32,
    /// The attempt's start.
    pub started_at: Timestamp,
    /// The attempt's end.
    pub finished_at: Timestamp,
    /// This attempt's speakers, in order of cluster.
    pub speakers: Vec<Speaker>,
    /// This attempt's artifacts, in order of type.
    pub artifacts: Vec<Artifact>,
}

impl MeetingEvent {
    /// The names of all events of a meeting, as they are stored.
    pub const NAMES: [&'static str; 17] = [
        "MeetingRegistered",
        "ProcessingStarted",
        "ContentFingerprinted",
        "LanguageDetected",
        "SpeakersDiarized",
        "SpeakerIdentified",
        "SpeakerNotIdentified",
        "SpeakerReassigned",
        "CorrectionNotCarried",
        "CorrectionDismissed",
        "ArtifactStored",
        "ArtifactsOutdated",
        "StageResultCached",
        "StageResultsDropped",
        "MeetingCompleted",
        "MeetingFailed",
        "MeetingErased",
    ];

    /// Returns the name under which the event is stored.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::MeetingRegistered(_) => "MeetingRegistered",
            Self::ProcessingStarted { .. } => "ProcessingStarted",
            Self::ContentFingerprinted { .. } => "ContentFingerprinted",
            Self::LanguageDetected { .. } => "LanguageDetected",
            Self::SpeakersDiarized { .. } => "SpeakersDiarized",
            Self::SpeakerIdentified { .. } => "SpeakerIdentified",
            Self::SpeakerNotIdentified { .. } => "SpeakerNotIdentified",
            Self::SpeakerReassigned { .. } => "SpeakerReassigned",
            Self::CorrectionNotCarried { .. } => "CorrectionNotCarried",
            Self::CorrectionDismissed { .. } => "CorrectionDismissed",
            Self::ArtifactStored { .. } => "ArtifactStored",
            Self::ArtifactsOutdated { .. } => "ArtifactsOutdated",
            Self::StageResultCached { .. } => "StageResultCached",
            Self::StageResultsDropped { .. } => "StageResultsDropped",
            Self::MeetingCompleted(_) => "MeetingCompleted",
            Self::MeetingFailed { .. } => "MeetingFailed",
            Self::MeetingErased { .. } => "MeetingErased",
        }
    }

    /// Returns the version of the shape in which the event is stored today.
    pub const fn version(&self) -> u32 {
        match self {
            // 1 had segments as pairs of numbers.
            Self::SpeakersDiarized { .. } => 2,
            Self::MeetingRegistered(_)
            | Self::ProcessingStarted { .. }
            | Self::ContentFingerprinted { .. }
            | Self::LanguageDetected { .. }
            | Self::SpeakerIdentified { .. }
            | Self::SpeakerNotIdentified { .. }
            | Self::SpeakerReassigned { .. }
            | Self::CorrectionNotCarried { .. }
            | Self::CorrectionDismissed { .. }
            | Self::ArtifactStored { .. }
            | Self::ArtifactsOutdated { .. }
            | Self::StageResultCached { .. }
            | Self::StageResultsDropped { .. }
            | Self::MeetingCompleted(_)
            | Self::MeetingFailed { .. }
            | Self::MeetingErased { .. } => 1,
        }
    }
}
