//! What becomes of a command to a meeting. A command that has already had its effect yields no event;
//! one that the meeting's status does not allow is refused.

use std::collections::{BTreeMap, BTreeSet};

use super::carry_over::{CarryOver, HumanWord, Overlap, Speech, carry_over};
use super::command::{FailMeeting, MeetingCommand, RegisterMeeting};
use super::event::{CarriedFrom, Cause, MeetingCompleted, MeetingEvent, MeetingRegistered, OutdatedArtifact};
use super::state::{Correction, Meeting, Origin, Record, Status};
use crate::Timestamp;
use crate::artifact::{Artifact, ArtifactType, Meta, S3Key};
use crate::digest::Digest;
use crate::ids::{ProfileId, SpeakerId};
use crate::personal_data::Personal;
use crate::speaker::{Cluster, ClusterId, Decision, Diarization, Link, LinkedBy, MAX_CANDIDATES, Speaker};
use crate::text::{Reason, Stage, WorkerId};

/// The most stages whose results one meeting caches.
pub const MAX_STAGES: usize = 100;
/// The reason that events give which follow from a person's erasure.
pub const FORGOTTEN: &str = "the person was forgotten";
/// The most bytes of a cached result.
pub const MAX_CACHED_BYTES: usize = 1024 * 1024;

/// Why a command to a meeting was refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeetingError {
    /// No meeting has this id.
    #[error("there is no such meeting")]
    NotFound,
    /// The meeting was removed.
    #[error("the meeting was erased")]
    Erased,
    /// The status does not allow the command.
    #[error("a {status} meeting does not take the command {command}")]
    IllegalTransition {
        /// Where the meeting stands.
        status: &'static str,
        /// What was asked.
        command: &'static str,
    },
    /// Another worker is on it.
    #[error("another worker is processing the meeting")]
    TakenByAnotherWorker,
    /// The id stands for another file.
    #[error("the meeting belongs to another file")]
    AnotherFile,
    /// A result is cached under the audio's fingerprint, which is not known yet.
    #[error("the meeting has no content fingerprint yet, under which a result could be cached")]
    FingerprintMissing,
    /// The result is too long or holds what the table cannot.
    #[error("value must be at most 1 MiB, without NUL")]
    UnfitValue,
    /// No speaker of the meeting has this id.
    #[error("the meeting has no such speaker")]
    UnknownSpeaker,
    /// A decision names a cluster that the diarization lacks.
    #[error("a decision names a cluster that is not among the clusters")]
    UnknownCluster,
    /// Two decisions are about one cluster, or one keeps too many candidates.
    #[error("a cluster takes one decision with at most three candidates")]
    UnfitDecision,
    /// The meeting has cached as many stages as it may.
    #[error("a meeting caches the results of at most 100 stages")]
    TooManyStages,
    /// Somebody else has decided about the speaker meanwhile.
    #[error("the speaker is somebody else by now than the command expects; read again and decide anew")]
    SpeakerChanged,
    /// Nobody has reassigned the speaker.
    #[error("the speaker was never reassigned, so there is nothing to undo")]
    NothingToUndo,
    /// Another diarization would give the id of a speaker about whom a person decided to somebody else.
    #[error("a person has already named speakers of this attempt; reprocess the meeting to diarize it anew")]
    SpeakersCorrected,
    /// No decision about this speaker waits for a person.
    #[error("no correction of this speaker is pending")]
    NothingPending,
}

impl MeetingError {
    /// Returns the refusal's stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotFound => "meeting_not_found",
            Self::Erased => "meeting_erased",
            Self::IllegalTransition { .. } => "illegal_transition",
            Self::TakenByAnotherWorker => "taken_by_another_worker",
            Self::AnotherFile => "another_file",
            Self::FingerprintMissing => "fingerprint_missing",
            Self::UnfitValue => "invalid_value",
            Self::UnknownSpeaker => "speaker_not_found",
            Self::UnknownCluster => "unknown_cluster",
            Self::UnfitDecision => "invalid_decision",
            Self::TooManyStages => "too_many_stages",
            Self::SpeakerChanged => "speaker_changed",
            Self::NothingToUndo => "nothing_to_undo",
            Self::SpeakersCorrected => "speakers_corrected",
            Self::NothingPending => "correction_not_found",
        }
    }
}

type Decided = Result<Vec<MeetingEvent>, MeetingError>;

/// Decides what becomes of `command`: the events that follow from it, none if it has already had its
/// effect, or a refusal.
pub fn decide(meeting: &Meeting, command: &MeetingCommand) -> Decided {
    let record = match meeting {
        Meeting::Active(record) => record,
        Meeting::Unregistered | Meeting::Erased { .. } => return decide_without_record(meeting, command),
    };
    let illegal =
        || Err(MeetingError::IllegalTransition { status: record.status.name(), command: command.name() });
    match command {
        MeetingCommand::Register(RegisterMeeting { file, .. }) => {
            if file.id == record.file.id {
                Ok(vec![])
            } else {
                Err(MeetingError::AnotherFile)
            }
        }
        MeetingCommand::Start { worker, at } => match &record.status {
            Status::Pending => start(record, worker, *at),
            Status::Processing { worker: current, from: Origin::Pending, .. } => restart(current, worker),
            Status::Processing { .. } | Status::Completed | Status::Failed { .. } => illegal(),
        },
        MeetingCommand::Retry { worker, at } => match &record.status {
            Status::Failed { .. } => start(record, worker, *at),
            Status::Processing { worker: current, from: Origin::Failed, .. } => restart(current, worker),
            Status::Processing { .. } | Status::Completed | Status::Pending => illegal(),
        },
        MeetingCommand::Reprocess { worker, at } => match &record.status {
            Status::Completed => start(record, worker, *at),
            Status::Processing { worker: current, from: Origin::Completed, .. } => restart(current, worker),
            Status::Processing { .. } | Status::Failed { .. } | Status::Pending => illegal(),
        },
        MeetingCommand::RecordFingerprint { content_fp } => match &record.status {
            _ if record.content_fp.as_ref() == Some(content_fp) => Ok(vec![]),
            Status::Processing { .. } => Ok(vec![MeetingEvent::ContentFingerprinted {
                attempt: record.attempts,
                content_fp: content_fp.clone(),
            }]),
            Status::Pending | Status::Completed | Status::Failed { .. } => illegal(),
        },
        MeetingCommand::RecordLanguage { language } => match &record.status {
            _ if record.language.as_ref() == Some(language) => Ok(vec![]),
            Status::Processing { .. } => Ok(vec![MeetingEvent::LanguageDetected {
                attempt: record.attempts,
                language: language.clone(),
            }]),
            Status::Pending | Status::Completed | Status::Failed { .. } => illegal(),
        },
        MeetingCommand::RecordSpeakers { clusters, decisions } => match &record.status {
            // The first answer stands, whoever has become known meanwhile.
            _ if record.diarized == Some((record.attempts, Digest::of(clusters))) => Ok(vec![]),
            Status::Processing { .. } => record_speakers(record, clusters, decisions),
            Status::Pending | Status::Completed | Status::Failed { .. } => illegal(),
        },
        MeetingCommand::ReassignSpeaker { speaker_id, to, expected, reason } => {
            reassign(record, *speaker_id, *to, *expected, reason)
        }
        MeetingCommand::UndoReassignment { speaker_id, expected, reason } => {
            match record.reassigned_from.get(speaker_id) {
                Some(before) => reassign(record, *speaker_id, *before, *expected, reason),
                None if record.speakers.contains_key(speaker_id) => Err(MeetingError::NothingToUndo),
                None => Err(MeetingError::UnknownSpeaker),
            }
        }
        MeetingCommand::DismissCorrection { speaker_id, reason } => {
            match record.corrections.get(speaker_id) {
                Some(correction) if correction.holds_for.is_none() => {
                    Ok(vec![MeetingEvent::CorrectionDismissed {
                        speaker_id: *speaker_id,
                        reason: reason.clone().into(),
                        cause: None,
                    }])
                }
                Some(_) | None => Err(MeetingError::NothingPending),
            }
        }
        MeetingCommand::ForgetPerson { profile_id } => Ok(forget(record, *profile_id)),
        MeetingCommand::StoreArtifact { artifact_type, s3_key, meta } => {
            let artifact = artifact(record, *artifact_type, s3_key, meta.as_ref());
            match &record.status {
                // Written again under the same key, it is news that it has today's names.
                _ if record.artifacts.get(artifact_type) == Some(&artifact)
                    && !record.outdated.contains(artifact_type) =>
                {
                    Ok(vec![])
                }
                Status::Processing { .. } | Status::Completed => {
                    Ok(vec![MeetingEvent::ArtifactStored { artifact }])
                }
                Status::Pending | Status::Failed { .. } => illegal(),
            }
        }
        MeetingCommand::CacheStageResult { stage, value, expires_at, at } => match &record.status {
            _ if is_cached(record, stage, value, *at) => Ok(vec![]),
            Status::Processing { .. } | Status::Completed => cache(record, stage, value, *expires_at),
            Status::Pending | Status::Failed { .. } => illegal(),
        },
        MeetingCommand::Complete { at } => match &record.status {
            Status::Processing { started_at, .. } => Ok(vec![complete(record, *started_at, *at)]),
            Status::Completed => Ok(vec![]),
            Status::Pending | Status::Failed { .. } => illegal(),
        },
        MeetingCommand::Fail(FailMeeting { stage, reason, at }) => match &record.status {
            Status::Processing { .. } => Ok(vec![MeetingEvent::MeetingFailed {
                attempt: record.attempts,
                stage: stage.clone(),
                reason: reason.clone().into(),
                failed_at: *at,
            }]),
            Status::Failed { stage: s, reason: r } if s == stage && r.is(reason) => Ok(vec![]),
            Status::Pending | Status::Completed | Status::Failed { .. } => illegal(),
        },
        MeetingCommand::Erase { reason, at, .. } => {
            let (reason, cached) = (reason.clone(), record.cache_keys.clone());
            Ok(vec![MeetingEvent::MeetingErased { reason, erased_at: *at, cached }])
        }
    }
}

/// Only a registration finds something to do where there is no record, and an erasure where the record was lost;
/// erasing twice is harmless.
fn decide_without_record(meeting: &Meeting, command: &MeetingCommand) -> Decided {
    match (meeting, command) {
        (_, MeetingCommand::Register(RegisterMeeting { meeting_id, file, at })) => {
            let registered =
                MeetingRegistered { meeting_id: *meeting_id, file: file.clone(), registered_at: *at };
            Ok(vec![MeetingEvent::MeetingRegistered(registered)])
        }
        (Meeting::Unregistered, MeetingCommand::Erase { reason, at, lost: Some(cached) }) => {
            let (reason, cached) = (reason.clone(), cached.clone());
            Ok(vec![MeetingEvent::MeetingErased { reason, erased_at: *at, cached }])
        }
        (Meeting::Erased { .. }, MeetingCommand::Erase { .. }) => Ok(vec![]),
        // Nobody is anybody where there is no record.
        (_, MeetingCommand::ForgetPerson { .. }) => Ok(vec![]),
        (Meeting::Erased { .. }, _) => Err(MeetingError::Erased),
        (Meeting::Unregistered | Meeting::Active(_), _) => Err(MeetingError::NotFound),
    }
}

fn start(record: &Record, worker: &WorkerId, at: Timestamp) -> Decided {
    let attempt = record.attempts + 1;
    Ok(vec![MeetingEvent::ProcessingStarted { attempt, worker: worker.clone(), started_at: at }])
}

/// A worker that asks twice has what it wants; another one must know that it came second.
fn restart(current: &WorkerId, asking: &WorkerId) -> Decided {
    if current == asking { Ok(vec![]) } else { Err(MeetingError::TakenByAnotherWorker) }
}

fn record_speakers(record: &Record, clusters: &Diarization, decisions: &[(ClusterId, Decision)]) -> Decided {
    // What a person said of a speaker of this very attempt cannot be carried over: the id is made of attempt
    // and label, so the same one may stand for another voice afterwards.
    if record.corrections.values().any(|correction| correction.attempt == record.attempts) {
        return Err(MeetingError::SpeakersCorrected);
    }
    let diarized = MeetingEvent::SpeakersDiarized { attempt: record.attempts, clusters: clusters.clone() };
    let mut events = vec![diarized];
    events.extend(decision_events(record, clusters, decisions)?);
    let links = events.iter().filter_map(link_by_machine).collect();
    events.extend(carry_corrections_over(record, clusters, links));
    events.extend(outdated_by(record, &events));
    Ok(events)
}

fn link_by_machine(event: &MeetingEvent) -> Option<(SpeakerId, Link)> {
    if let MeetingEvent::SpeakerIdentified { speaker_id, profile_id, confidence, .. } = event {
        let by = LinkedBy::Machine;
        Some((*speaker_id, Link { profile_id: *profile_id, confidence: Some(*confidence), by }))
    } else {
        None
    }
}

fn decision_events(record: &Record, clusters: &Diarization, decisions: &[(ClusterId, Decision)]) -> Decided {
    let mut events = vec![];
    let mut decided = BTreeSet::new();
    for (cluster_id, decision) in decisions {
        if !decided.insert(cluster_id) || decision.evidence().candidates.len() > MAX_CANDIDATES {
            return Err(MeetingError::UnfitDecision);
        }
        if !clusters.clusters().iter().any(|cluster| &cluster.cluster_id == cluster_id) {
            return Err(MeetingError::UnknownCluster);
        }
        let speaker_id = record.id.speaker(record.attempts, cluster_id);
        events.push(match decision.clone() {
            Decision::Identified { profile_id, confidence, evidence } => {
                MeetingEvent::SpeakerIdentified { speaker_id, profile_id, confidence, evidence }
            }
            Decision::NotIdentified { evidence } => {
                MeetingEvent::SpeakerNotIdentified { speaker_id, evidence }
            }
        });
    }
    Ok(events)
}

/// Tells what becomes of each decision of a person: it holds for a new speaker, against whatever the machine
/// made of it (`links`), or it waits for a person. None is lost, none is guessed.
fn carry_corrections_over(
    record: &Record,
    clusters: &Diarization,
    mut links: BTreeMap<SpeakerId, Link>,
) -> Vec<MeetingEvent> {
    if record.corrections.is_empty() {
        return vec![];
    }
    let new_speaker = |cluster: &Cluster| {
        let speaker_id = record.id.speaker(record.attempts, &cluster.cluster_id);
        (speaker_id, Speech::from(cluster.segments.clone()))
    };
    let speakers: BTreeMap<_, _> = clusters.clusters().iter().map(new_speaker).collect();
    let decided: Vec<_> = record
        .corrections
        .values()
        .map(|correction| HumanWord { to: correction.to, speech: correction.speech.clone() })
        .collect();
    let outcomes = carry_over(&decided, &speakers);
    let mut event = |decided_about: SpeakerId, correction: &Correction, outcome| match outcome {
        CarryOver::Carried(Overlap { speaker_id, overlap_ms }) => {
            let by_person = |profile_id| Link { profile_id, confidence: None, by: LinkedBy::Person };
            let until_now = match correction.to.map(by_person) {
                Some(link) => links.insert(speaker_id, link),
                None => links.remove(&speaker_id),
            };
            let carried_from =
                CarriedFrom { speaker_id: decided_about, attempt: correction.attempt, overlap_ms };
            reassigned(speaker_id, until_now, correction.to, &correction.reason, Some(carried_from))
        }
        CarryOver::Ambiguous(candidates) => {
            MeetingEvent::CorrectionNotCarried { speaker_id: decided_about, to: correction.to, candidates }
        }
    };
    let corrections = record.corrections.iter().zip(outcomes);
    corrections
        .map(|((decided_about, correction), outcome)| event(*decided_about, correction, outcome))
        .collect()
}

fn reassign(
    record: &Record,
    speaker_id: SpeakerId,
    to: Option<ProfileId>,
    expected: Option<Option<ProfileId>>,
    reason: &Reason,
) -> Decided {
    let Some(speaker) = record.speakers.get(&speaker_id) else {
        return Err(MeetingError::UnknownSpeaker);
    };
    let from = speaker.link.map(|link| link.profile_id);
    // Whoever asks for what is so already has what they want, whatever they expected; unless an earlier
    // decision waits for just this word.
    let settles = record.corrections.values().any(|correction| correction.is_settled_by(speaker_id, to));
    if from == to && !settles {
        return Ok(vec![]);
    }
    if expected.is_some_and(|expected| expected != from) {
        return Err(MeetingError::SpeakerChanged);
    }
    let mut word = reassigned(speaker_id, speaker.link, to, &reason.clone().into(), None);
    if let MeetingEvent::SpeakerReassigned { previous_by: previous_by @ None, .. } = &mut word
        && record.reassigned_from.contains_key(&speaker_id)
    {
        // That it is nobody known was somebody's word too.
        *previous_by = Some(LinkedBy::Person);
    }
    let mut events = vec![word];
    events.extend(outdated_by(record, &events));
    Ok(events)
}

fn reassigned(
    speaker_id: SpeakerId,
    until_now: Option<Link>,
    to: Option<ProfileId>,
    reason: &Personal<Reason>,
    carried_from: Option<CarriedFrom>,
) -> MeetingEvent {
    MeetingEvent::SpeakerReassigned {
        speaker_id,
        from: until_now.map(|link| link.profile_id),
        to,
        reason: reason.clone(),
        previous_confidence: until_now.and_then(|link| link.confidence),
        previous_by: until_now.map(|link| link.by),
        carried_from,
        cause: None,
    }
}

/// Tells that no speaker is the person any more, and that what was decided about the person, and waits, is about
/// nobody. Whose word it was makes no difference, and nobody's word takes its place. What stages made of the
/// recording may have the voice in it, whoever is a speaker by now.
fn forget(record: &Record, profile_id: ProfileId) -> Vec<MeetingEvent> {
    let forgotten = Some(profile_id);
    let reason = Personal::Known(FORGOTTEN.parse::<Reason>().expect("it is short and not blank"));
    let is_linked = |speaker: &Speaker| speaker.link.is_some_and(|link| link.profile_id == profile_id);
    let linked = record.speakers.values().filter(|speaker| is_linked(speaker));
    let linked = linked.map(|speaker| (speaker.id, speaker.link));
    // In the result of before, which is in the cache still.
    let earlier = record.result.iter().filter(|(speaker, profile)| {
        **profile == profile_id && !record.speakers.get(speaker).is_some_and(is_linked)
    });
    let earlier = earlier.map(|(speaker, _)| (*speaker, None));
    let mut events: Vec<_> = linked
        .chain(earlier)
        .map(|(speaker_id, link): (SpeakerId, Option<Link>)| MeetingEvent::SpeakerReassigned {
            speaker_id,
            from: forgotten,
            to: None,
            reason: reason.clone(),
            previous_confidence: link.and_then(|link| link.confidence),
            previous_by: link.map(|link| link.by),
            carried_from: None,
            cause: Some(Cause::ProfileErased),
        })
        .collect();
    let holds = |about: &SpeakerId, correction: &Correction| {
        let mut speakers = [Some(*about), correction.holds_for].into_iter().flatten();
        speakers.any(|speaker| record.speakers.get(&speaker).is_some_and(is_linked))
    };
    let waiting = record
        .corrections
        .iter()
        .filter(|(about, correction)| correction.to == forgotten && !holds(about, correction));
    events.extend(waiting.map(|(about, _)| MeetingEvent::CorrectionDismissed {
        speaker_id: *about,
        reason: reason.clone(),
        cause: Some(Cause::ProfileErased),
    }));
    events.extend(outdated_by(record, &events));
    if !record.cache_keys.is_empty() {
        let cached = record.cache_keys.clone();
        events.push(MeetingEvent::StageResultsDropped { cached, cause: Cause::ProfileErased });
    }
    events
}

/// Tells which artifacts have other names in them than speakers have after `events`, unless it was told before.
fn outdated_by(record: &Record, events: &[MeetingEvent]) -> Option<MeetingEvent> {
    let renamed = events.iter().find_map(|event| {
        if let MeetingEvent::SpeakerReassigned { speaker_id, from, to, .. } = event {
            (from != to).then_some(*speaker_id)
        } else {
            None
        }
    });
    let artifacts =
        record.artifacts.values().filter(|artifact| !record.outdated.contains(&artifact.artifact_type));
    let artifacts: Vec<_> = artifacts
        .map(|artifact| OutdatedArtifact { id: artifact.id, artifact_type: artifact.artifact_type })
        .collect();
    let speaker_id = renamed.filter(|_| !artifacts.is_empty())?;
    Some(MeetingEvent::ArtifactsOutdated { speaker_id, artifacts })
}

fn artifact(record: &Record, artifact_type: ArtifactType, s3_key: &S3Key, meta: Option<&Meta>) -> Artifact {
    Artifact {
        id: record.id.artifact(record.attempts, artifact_type),
        attempt: record.attempts,
        artifact_type,
        s3_key: s3_key.clone(),
        meta: meta.cloned().map(Personal::Known),
    }
}

/// A result that has expired is gone from the table: storing it again is no repetition.
fn is_cached(record: &Record, stage: &Stage, value: &str, at: Timestamp) -> bool {
    match (&record.content_fp, record.cached.get(stage)) {
        (Some(content_fp), Some((known, until))) => {
            until.is_none_or(|until| at < until) && *known == Record::cached_digest(content_fp, value)
        }
        (None, _) | (_, None) => false,
    }
}

fn cache(record: &Record, stage: &Stage, value: &str, expires_at: Option<Timestamp>) -> Decided {
    let Some(content_fp) = &record.content_fp else {
        return Err(MeetingError::FingerprintMissing);
    };
    if value.len() > MAX_CACHED_BYTES || value.contains('\0') {
        return Err(MeetingError::UnfitValue);
    }
    if record.cached.len() >= MAX_STAGES && !record.cached.contains_key(stage) {
        return Err(MeetingError::TooManyStages);
    }
    Ok(vec![MeetingEvent::StageResultCached {
        stage: stage.clone(),
        content_fp: content_fp.clone(),
        value: value.to_owned().into(),
        expires_at,
    }])
}

fn complete(record: &Record, started_at: Timestamp, at: Timestamp) -> MeetingEvent {
    let of_this_attempt = record.diarized.as_ref().is_some_and(|(attempt, _)| *attempt == record.attempts);
    let mut speakers = if of_this_attempt { record.speakers.values().cloned().collect() } else { Vec::new() };
    speakers.sort_by(|a, b| a.cluster_id.cmp(&b.cluster_id));
    let artifacts =
        record.artifacts.values().filter(|artifact| artifact.attempt == record.attempts).cloned().collect();
    MeetingEvent::MeetingCompleted(MeetingCompleted {
        meeting_id: record.id,
        file_id: record.file.id,
        owner: record.file.owner,
        language: record.language.clone(),
        attempt: record.attempts,
        started_at,
        finished_at: at,
        speakers,
        artifacts,
    })
}
