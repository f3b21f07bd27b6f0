//! What may be asked of a meeting. Ids and times come in with the command.

use std::collections::BTreeSet;

use super::event::CacheKey;
use crate::Timestamp;
use crate::artifact::{ArtifactType, Meta, S3Key};
use crate::file::{ContentFp, File};
use crate::ids::{MeetingId, ProfileId, SpeakerId};
use crate::speaker::{ClusterId, Decision, Diarization};
use crate::text::{Language, Reason, Stage, WorkerId};

/// A command to a meeting.
#[derive(Debug, Clone, PartialEq)]
pub enum MeetingCommand {
    /// Enter an uploaded file's meeting in the book.
    Register(RegisterMeeting),
    /// Take on a pending meeting.
    Start {
        /// Who works on it.
        worker: WorkerId,
        /// Now.
        at: Timestamp,
    },
    /// Take on a failed meeting once more.
    Retry {
        /// Who works on it.
        worker: WorkerId,
        /// Now.
        at: Timestamp,
    },
    /// Take on a completed meeting anew.
    Reprocess {
        /// Who works on it.
        worker: WorkerId,
        /// Now.
        at: Timestamp,
    },
    /// Note the audio's fingerprint.
    RecordFingerprint {
        /// The fingerprint.
        content_fp: ContentFp,
    },
    /// Note the language spoken.
    RecordLanguage {
        /// The language.
        language: Language,
    },
    /// Note who spoke when, and whom a machine knew by voice.
    RecordSpeakers {
        /// The voices, each with its speech.
        clusters: Diarization,
        /// What the matching of voices makes of them now, for any of the clusters. It counts when the clusters
        /// are new only: the first answer stands.
        decisions: Vec<(ClusterId, Decision)>,
    },
    /// Say who a speaker is.
    ReassignSpeaker {
        /// Which speaker.
        speaker_id: SpeakerId,
        /// Who it is, or nobody known.
        to: Option<ProfileId>,
        /// Who it must have been until now, if that matters: somebody else may have decided meanwhile.
        expected: Option<Option<ProfileId>>,
        /// Why.
        reason: Reason,
    },
    /// Say that a speaker is whoever it was before the latest reassignment.
    UndoReassignment {
        /// Which speaker.
        speaker_id: SpeakerId,
        /// Who it must have been until now, if that matters.
        expected: Option<Option<ProfileId>>,
        /// Why.
        reason: Reason,
    },
    /// Say that a decision which waits for a person is about none of the speakers there are now.
    DismissCorrection {
        /// About whom the decision was: a speaker of an earlier diarization.
        speaker_id: SpeakerId,
        /// Why.
        reason: Reason,
    },
    /// Let nobody be the person who was forgotten: no speaker, and no decision that waits. What stages cached goes
    /// too, for it may have the person's voice in it.
    ForgetPerson {
        /// Who was forgotten.
        profile_id: ProfileId,
    },
    /// Note where a transcript or summary was written.
    StoreArtifact {
        /// What it is.
        artifact_type: ArtifactType,
        /// Where it is.
        s3_key: S3Key,
        /// What else is known of it.
        meta: Option<Meta>,
    },
    /// Keep a stage's result for whoever meets the same audio again.
    CacheStageResult {
        /// The stage.
        stage: Stage,
        /// Its result: holds profile ids, never names.
        value: String,
        /// From when on it is no longer used; never if absent.
        expires_at: Option<Timestamp>,
        /// Now.
        at: Timestamp,
    },
    /// Close the attempt.
    Complete {
        /// Now.
        at: Timestamp,
    },
    /// Break the attempt off.
    Fail(FailMeeting),
    /// Remove the meeting.
    Erase {
        /// Why.
        reason: Reason,
        /// Now.
        at: Timestamp,
        /// Where there is a history, though nothing is known from it, because what it began with was skipped: under
        /// which keys it cached results.
        lost: Option<BTreeSet<CacheKey>>,
    },
}

/// The command that enters a meeting in the book.
#[derive(Debug, Clone, PartialEq)]
pub struct RegisterMeeting {
    /// The meeting, derived from owner and content.
    pub meeting_id: MeetingId,
    /// The file, and who may see it.
    pub file: File,
    /// Now.
    pub at: Timestamp,
}

/// The command that breaks an attempt off.
#[derive(Debug, Clone, PartialEq)]
pub struct FailMeeting {
    /// Where it failed.
    pub stage: Stage,
    /// Why.
    pub reason: Reason,
    /// Now.
    pub at: Timestamp,
}

impl MeetingCommand {
    /// Returns the command's name, as refusals and metrics give it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Register(_) => "register",
            Self::Start { .. } => "start",
            Self::Retry { .. } => "retry",
            Self::Reprocess { .. } => "reprocess",
            Self::RecordFingerprint { .. } => "fingerprint",
            Self::RecordLanguage { .. } => "language",
            Self::RecordSpeakers { .. } => "speakers",
            Self::ReassignSpeaker { .. } => "reassign",
            Self::UndoReassignment { .. } => "undo",
            Self::DismissCorrection { .. } => "dismiss",
            Self::ForgetPerson { .. } => "forget",
            Self::StoreArtifact { .. } => "artifacts",
            Self::CacheStageResult { .. } => "cache",
            Self::Complete { .. } => "complete",
            Self::Fail(_) => "fail",
            Self::Erase { .. } => "erase",
        }
    }
}
