//! What subscribers are told: types of their own, apart from the stored events. A stored event may change
//! its shape behind an upcaster; these are a promise to others, with a version in their name.
//!
//! No name, no vector, no free text leaves: a name may have to be forgotten, and what has left cannot be
//! called back. Counts and keys stand for what is too large; the API has the rest.

use chrono::{DateTime, Utc};
use domain::Event;
use domain::artifact::Artifact as StoredArtifact;
use domain::meeting::MeetingEvent;
use domain::profile::ProfileEvent;
use domain::speaker::Speaker as StoredSpeaker;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A kind of event, as subscribers name it.
#[derive(Debug)]
pub struct EventType {
    /// `meeting` or `profile`: the second token of a subject.
    pub aggregate: &'static str,
    /// What happened: the last token of a subject.
    pub name: &'static str,
    /// The name under which the log has it.
    pub stored: &'static str,
    /// `minutebook.meeting.completed.v1`: the CloudEvents type.
    pub full: &'static str,
    /// Returns the JSON Schema of its data.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
}

impl PartialEq for EventType {
    fn eq(&self, other: &Self) -> bool {
        self.full == other.full
    }
}

impl Eq for EventType {}

macro_rules! event_types {
    ($(($aggregate:literal, $name:literal, $stored:literal, $data:ty)),* $(,)?) => {
        /// Every kind of event there is. A place in this list stands for a kind in memory only.
        pub static EVENT_TYPES: &[EventType] = &[$(EventType {
            aggregate: $aggregate,
            name: $name,
            stored: $stored,
            full: concat!("minutebook.", $aggregate, ".", $name, ".v1"),
            schema: |generator| generator.root_schema_for::<$data>(),
        }),*];
    };
}

event_types![
    ("meeting", "registered", "MeetingRegistered", MeetingRegistered),
    ("meeting", "processing_started", "ProcessingStarted", MeetingProcessingStarted),
    ("meeting", "content_fingerprinted", "ContentFingerprinted", MeetingContentFingerprinted),
    ("meeting", "language_detected", "LanguageDetected", MeetingLanguageDetected),
    ("meeting", "speakers_diarized", "SpeakersDiarized", MeetingSpeakersDiarized),
    ("meeting", "speaker_identified", "SpeakerIdentified", MeetingSpeakerIdentified),
    ("meeting", "speaker_not_identified", "SpeakerNotIdentified", MeetingSpeakerNotIdentified),
    ("meeting", "speaker_reassigned", "SpeakerReassigned", MeetingSpeakerReassigned),
    ("meeting", "correction_not_carried", "CorrectionNotCarried", MeetingCorrectionNotCarried),
    ("meeting", "correction_dismissed", "CorrectionDismissed", MeetingCorrectionDismissed),
    ("meeting", "artifact_stored", "ArtifactStored", MeetingArtifactStored),
    ("meeting", "artifacts_outdated", "ArtifactsOutdated", MeetingArtifactsOutdated),
    ("meeting", "stage_result_cached", "StageResultCached", MeetingStageResultCached),
    ("meeting", "stage_results_dropped", "StageResultsDropped", MeetingStageResultsDropped),
    ("meeting", "completed", "MeetingCompleted", MeetingCompleted),
    ("meeting", "failed", "MeetingFailed", MeetingFailed),
    ("meeting", "erased", "MeetingErased", MeetingErased),
    ("profile", "created", "ProfileCreated", ProfileCreated),
    ("profile", "renamed", "ProfileRenamed", ProfileRenamed),
    ("profile", "voice_enrolled", "VoiceEnrolled", ProfileVoiceEnrolled),
    ("profile", "voice_removed", "VoiceRemoved", ProfileVoiceRemoved),
    ("profile", "erased", "ProfileErased", ProfileErased),
];

impl EventType {
    /// Returns the kind of a stored event.
    pub fn of(event: &Event) -> &'static Self {
        let stored = event.name();
        let found = EVENT_TYPES.iter().find(|known| known.stored == stored);
        found.expect("a test holds this list against the names of all stored events")
    }

    /// Finds a kind by the name under which the log has it.
    pub fn stored(name: &str) -> Option<&'static Self> {
        EVENT_TYPES.iter().find(|known| known.stored == name)
    }

    /// Finds a kind by what people call it: `meeting.completed`, `minutebook.meeting.completed.v1`, or
    /// `MeetingCompleted`.
    pub fn named(name: &str) -> Option<&'static Self> {
        EVENT_TYPES.iter().find(|known| {
            name == known.full
                || name == known.stored
                || name.split_once('.') == Some((known.aggregate, known.name))
        })
    }

    /// Returns its short name: `meeting.completed`.
    pub fn short(&self) -> String {
        format!("{}.{}", self.aggregate, self.name)
    }

    /// Returns the CloudEvents type of one that was skipped.
    pub fn skipped(&self) -> String {
        format!("minutebook.{}.skipped.v1", self.aggregate)
    }

    /// Returns the URI that names the JSON Schema of its data.
    pub fn schema_uri(&self) -> String {
        schema_uri(self.full)
    }
}

/// Returns the URI that names the JSON Schema of the data of a CloudEvents type.
pub fn schema_uri(full: &str) -> String {
    format!("urn:minutebook:schema:{full}")
}

/// The data of a public event.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
#[expect(missing_docs, reason = "each case is documented at its type")]
pub enum PublicEvent {
    MeetingRegistered(MeetingRegistered),
    MeetingProcessingStarted(MeetingProcessingStarted),
    MeetingContentFingerprinted(MeetingContentFingerprinted),
    MeetingLanguageDetected(MeetingLanguageDetected),
    MeetingSpeakersDiarized(MeetingSpeakersDiarized),
    MeetingSpeakerIdentified(MeetingSpeakerIdentified),
    MeetingSpeakerNotIdentified(MeetingSpeakerNotIdentified),
    MeetingSpeakerReassigned(MeetingSpeakerReassigned),
    MeetingCorrectionNotCarried(MeetingCorrectionNotCarried),
    MeetingCorrectionDismissed(MeetingCorrectionDismissed),
    MeetingArtifactStored(MeetingArtifactStored),
    MeetingArtifactsOutdated(MeetingArtifactsOutdated),
    MeetingStageResultCached(MeetingStageResultCached),
    MeetingStageResultsDropped(MeetingStageResultsDropped),
    MeetingCompleted(MeetingCompleted),
    MeetingFailed(MeetingFailed),
    MeetingErased(MeetingErased),
    ProfileCreated(ProfileCreated),
    ProfileRenamed(ProfileRenamed),
    ProfileVoiceEnrolled(ProfileVoiceEnrolled),
    ProfileVoiceRemoved(ProfileVoiceRemoved),
    ProfileErased(ProfileErased),
}

macro_rules! public {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }
    )*};
}

public! {
    /// An event that could not be applied was taken out by an operator: it has no effect. It comes where the
    /// event would have come, so that whoever counts positions misses none.
    EventSkipped {
        /// The meeting or the profile.
        id: Uuid,
        /// The type that the event had.
        event_type: String,
    }

    /// A file was uploaded, and its meeting waits to be processed.
    MeetingRegistered {
        /// The meeting.
        meeting_id: Uuid,
        /// Its file.
        file_id: Uuid,
        /// Who may see it.
        owner: Option<Uuid>,
        /// The file's media type.
        mime: Option<String>,
        /// The file's size in bytes.
        size: Option<i64>,
        /// The recording's length in seconds.
        duration: Option<i32>,
        /// When.
        registered_at: DateTime<Utc>,
    }

    /// A worker took the meeting on: first, again after a failure, or anew after completion.
    MeetingProcessingStarted {
        /// The meeting.
        meeting_id: Uuid,
        /// 1 for the first attempt, and one more each time.
        attempt: u32,
        /// When it began.
        started_at: DateTime<Utc>,
    }

    /// The audio's own fingerprint is known.
    MeetingContentFingerprinted {
        /// The meeting.
        meeting_id: Uuid,
        /// The attempt that computed it.
        attempt: u32,
        /// The fingerprint.
        content_fp: String,
    }

    /// The language spoken is known.
    MeetingLanguageDetected {
        /// The meeting.
        meeting_id: Uuid,
        /// The attempt that found it.
        attempt: u32,
        /// A BCP 47 tag.
        language: String,
    }

    /// The recording was split into voices; the speakers of an earlier attempt are gone.
    MeetingSpeakersDiarized {
        /// The meeting.
        meeting_id: Uuid,
        /// The attempt that did it.
        attempt: u32,
        /// The voices, without their speech.
        speakers: Vec<DiarizedSpeaker>,
    }

    /// A voice that the diarization told apart.
    DiarizedSpeaker {
        /// The speaker.
        speaker_id: Uuid,
        /// The label in the diarization.
        cluster_id: String,
        /// How many stretches of speech it has.
        segments: usize,
        /// How long it speaks in all, in milliseconds.
        speech_ms: u64,
    }

    /// A machine knew a speaker by voice.
    MeetingSpeakerIdentified {
        /// The meeting.
        meeting_id: Uuid,
        /// Which speaker.
        speaker_id: Uuid,
        /// Who it is.
        profile_id: Uuid,
        /// How sure the machine was, 0 to 1.
        confidence: f64,
    }

    /// A machine knew nobody of this voice surely enough.
    MeetingSpeakerNotIdentified {
        /// The meeting.
        meeting_id: Uuid,
        /// Which speaker.
        speaker_id: Uuid,
    }

    /// Somebody said who a speaker is, or that it is nobody known.
    MeetingSpeakerReassigned {
        /// The meeting.
        meeting_id: Uuid,
        /// Which speaker.
        speaker_id: Uuid,
        /// Who it was until now.
        from: Option<Uuid>,
        /// Who it is from now on.
        to: Option<Uuid>,
        /// The speaker of an earlier attempt about whom it was decided, where the decision was carried over.
        carried_from: Option<Uuid>,
    }

    /// A new diarization leaves it open which of its speakers, if any, a person's decision is about. It waits
    /// for a person.
    MeetingCorrectionNotCarried {
        /// The meeting.
        meeting_id: Uuid,
        /// The speaker of an earlier attempt about whom it was decided.
        speaker_id: Uuid,
        /// Who that was, by the person's word.
        to: Option<Uuid>,
        /// The speakers whom it may be about, the likeliest first.
        candidates: Vec<Uuid>,
    }

    /// A person said that a decision which waited is about nobody by now.
    MeetingCorrectionDismissed {
        /// The meeting.
        meeting_id: Uuid,
        /// The speaker of an earlier attempt about whom it was decided.
        speaker_id: Uuid,
    }

    /// A transcript or summary was written; an earlier one of its type is gone.
    MeetingArtifactStored {
        /// The meeting.
        meeting_id: Uuid,
        /// What and where.
        artifact: Artifact,
    }

    /// A speaker is called otherwise than when these artifacts were stored: whoever has names from them renders
    /// them anew. They are outdated until one of their type is stored again.
    MeetingArtifactsOutdated {
        /// The meeting.
        meeting_id: Uuid,
        /// Whose other name was the first to make them so.
        speaker_id: Uuid,
        /// Those that were not outdated before, in order of type.
        artifacts: Vec<OutdatedArtifact>,
    }

    /// An artifact that is older than a speaker's name.
    OutdatedArtifact {
        /// The artifact.
        artifact_id: Uuid,
        /// `transcript.md`, `transcript.vtt`, `transcript.srt` or `summary.json`.
        #[serde(rename = "type")]
        artifact_type: String,
    }

    /// A document about a meeting, in the object store.
    Artifact {
        /// The artifact.
        artifact_id: Uuid,
        /// `transcript.md`, `transcript.vtt`, `transcript.srt` or `summary.json`.
        #[serde(rename = "type")]
        artifact_type: String,
        /// Where it is.
        s3_key: String,
    }

    /// A stage's result was kept; the cache has it under `<stage>:<content_fp>`.
    MeetingStageResultCached {
        /// The meeting.
        meeting_id: Uuid,
        /// The stage.
        stage: String,
        /// The fingerprint of the audio.
        content_fp: String,
        /// From when on it is no longer used.
        expires_at: Option<DateTime<Utc>>,
    }

    /// What was kept of stages was taken out of the cache again, because somebody was forgotten: whoever has copies
    /// drops them too.
    MeetingStageResultsDropped {
        /// The meeting.
        meeting_id: Uuid,
        /// Under which keys the cache had it, `<stage>:<content_fp>`.
        keys: Vec<String>,
    }

    /// The meeting is processed: all that is needed to act on it without asking back.
    MeetingCompleted {
        /// The meeting.
        meeting_id: Uuid,
        /// Its file.
        file_id: Uuid,
        /// Who may see it.
        owner: Option<Uuid>,
        /// The language spoken, a BCP 47 tag.
        language: Option<String>,
        /// The attempt that completed.
        attempt: u32,
        /// The attempt's start.
        started_at: DateTime<Utc>,
        /// The attempt's end.
        finished_at: DateTime<Utc>,
        /// Who spoke, in order of cluster.
        speakers: Vec<Speaker>,
        /// What was written, in order of type.
        artifacts: Vec<Artifact>,
    }

    /// Somebody who spoke.
    Speaker {
        /// The speaker.
        speaker_id: Uuid,
        /// The label in the diarization.
        cluster_id: String,
        /// Who it is, where that is known.
        profile_id: Option<Uuid>,
        /// How sure the machine was, 0 to 1; null where a person said so or nobody is known.
        confidence: Option<f64>,
    }

    /// The attempt broke off.
    MeetingFailed {
        /// The meeting.
        meeting_id: Uuid,
        /// The attempt that failed.
        attempt: u32,
        /// Where it failed. Why is in the log.
        stage: String,
        /// When.
        failed_at: DateTime<Utc>,
    }

    /// The meeting was removed on request or by age: whatever was kept of it elsewhere has to go too.
    MeetingErased {
        /// The meeting.
        meeting_id: Uuid,
        /// When.
        erased_at: DateTime<Utc>,
    }

    /// A person was entered in the book. The name is in the API, for those who may see it.
    ProfileCreated {
        /// The person.
        profile_id: Uuid,
        /// When.
        created_at: DateTime<Utc>,
    }

    /// The person is called otherwise.
    ProfileRenamed {
        /// The person.
        profile_id: Uuid,
    }

    /// A sample of the person's voice was added.
    ProfileVoiceEnrolled {
        /// The person.
        profile_id: Uuid,
        /// The sample.
        sample_id: Uuid,
        /// The embedding model of the sample.
        model: String,
        /// When.
        enrolled_at: DateTime<Utc>,
    }

    /// A sample of the person's voice was taken away.
    ProfileVoiceRemoved {
        /// The person.
        profile_id: Uuid,
        /// The sample.
        sample_id: Uuid,
    }

    /// The person was forgotten: whatever was kept of them elsewhere has to go too.
    ProfileErased {
        /// The person.
        profile_id: Uuid,
        /// When.
        erased_at: DateTime<Utc>,
    }

    /// Where the feed stands: sent every few seconds on `minutebook-progress`, outside the stream.
    Progress {
        /// The log's epoch; another one means that positions have begun anew.
        epoch: Uuid,
        /// Everything up to this position has been published.
        position: i64,
        /// The newest position of each type, by its full name, up to there; 0 where there is none.
        newest: std::collections::BTreeMap<String, i64>,
    }
}

impl From<&Event> for PublicEvent {
    fn from(event: &Event) -> Self {
        match event {
            Event::Meeting(id, event) => meeting_event(*id, event),
            Event::Profile(id, event) => profile_event(id.as_uuid(), event),
        }
    }
}

fn meeting_event(id: domain::ids::MeetingId, event: &MeetingEvent) -> PublicEvent {
    let meeting_id = id.as_uuid();
    match event {
        MeetingEvent::MeetingRegistered(registered) => {
            let file = &registered.file;
            PublicEvent::MeetingRegistered(MeetingRegistered {
                meeting_id,
                file_id: file.id.as_uuid(),
                owner: file.owner.map(|owner| owner.as_uuid()),
                mime: file.mime.as_ref().map(|mime| mime.as_str().to_owned()),
                size: file.size.map(domain::file::SizeBytes::get),
                duration: file.duration.map(domain::file::DurationSeconds::get),
                registered_at: registered.registered_at,
            })
        }
        MeetingEvent::ProcessingStarted { attempt, worker: _, started_at } => {
            PublicEvent::MeetingProcessingStarted(MeetingProcessingStarted {
                meeting_id,
                attempt: *attempt,
                started_at: *started_at,
            })
        }
        MeetingEvent::ContentFingerprinted { attempt, content_fp } => {
            PublicEvent::MeetingContentFingerprinted(MeetingContentFingerprinted {
                meeting_id,
                attempt: *attempt,
                content_fp: content_fp.as_str().to_owned(),
            })
        }
        MeetingEvent::LanguageDetected { attempt, language } => {
            PublicEvent::MeetingLanguageDetected(MeetingLanguageDetected {
                meeting_id,
                attempt: *attempt,
                language: language.as_str().to_owned(),
            })
        }
        MeetingEvent::SpeakersDiarized { attempt, clusters } => {
            let speaker = |cluster: &domain::speaker::Cluster| DiarizedSpeaker {
                speaker_id: id.speaker(*attempt, &cluster.cluster_id).as_uuid(),
                cluster_id: cluster.cluster_id.as_str().to_owned(),
                segments: cluster.segments.len(),
                speech_ms: cluster.segments.iter().map(|segment| u64::from(segment.duration_ms)).sum(),
            };
            PublicEvent::MeetingSpeakersDiarized(MeetingSpeakersDiarized {
                meeting_id,
                attempt: *attempt,
                speakers: clusters.clusters().iter().map(speaker).collect(),
            })
        }
        MeetingEvent::SpeakerIdentified { speaker_id, profile_id, confidence, evidence: _ } => {
            PublicEvent::MeetingSpeakerIdentified(MeetingSpeakerIdentified {
                meeting_id,
                speaker_id: speaker_id.as_uuid(),
                profile_id: profile_id.as_uuid(),
                confidence: confidence.get(),
            })
        }
        MeetingEvent::SpeakerNotIdentified { speaker_id, evidence: _ } => {
            PublicEvent::MeetingSpeakerNotIdentified(MeetingSpeakerNotIdentified {
                meeting_id,
                speaker_id: speaker_id.as_uuid(),
            })
        }
        MeetingEvent::SpeakerReassigned {
            speaker_id,
            from,
            to,
            reason: _,
            previous_confidence: _,
            previous_by: _,
            carried_from,
            cause: _,
        } => PublicEvent::MeetingSpeakerReassigned(MeetingSpeakerReassigned {
            meeting_id,
            speaker_id: speaker_id.as_uuid(),
            from: from.map(|profile| profile.as_uuid()),
            to: to.map(|profile| profile.as_uuid()),
            carried_from: carried_from.map(|from| from.speaker_id.as_uuid()),
        }),
        MeetingEvent::CorrectionNotCarried { speaker_id, to, candidates } => {
            PublicEvent::MeetingCorrectionNotCarried(MeetingCorrectionNotCarried {
                meeting_id,
                speaker_id: speaker_id.as_uuid(),
                to: to.map(|profile| profile.as_uuid()),
                candidates: candidates.iter().map(|candidate| candidate.speaker_id.as_uuid()).collect(),
            })
        }
        MeetingEvent::CorrectionDismissed { speaker_id, reason: _, cause: _ } => {
            PublicEvent::MeetingCorrectionDismissed(MeetingCorrectionDismissed {
                meeting_id,
                speaker_id: speaker_id.as_uuid(),
            })
        }
        MeetingEvent::ArtifactStored { artifact: stored } => {
            PublicEvent::MeetingArtifactStored(MeetingArtifactStored {
                meeting_id,
                artifact: artifact(stored),
            })
        }
        MeetingEvent::ArtifactsOutdated { speaker_id, artifacts } => {
            let outdated = |artifact: &domain::meeting::OutdatedArtifact| OutdatedArtifact {
                artifact_id: artifact.id.as_uuid(),
                artifact_type: artifact.artifact_type.as_str().to_owned(),
            };
            PublicEvent::MeetingArtifactsOutdated(MeetingArtifactsOutdated {
                meeting_id,
                speaker_id: speaker_id.as_uuid(),
                artifacts: artifacts.iter().map(outdated).collect(),
            })
        }
        MeetingEvent::StageResultCached { stage, content_fp, value: _, expires_at } => {
            PublicEvent::MeetingStageResultCached(MeetingStageResultCached {
                meeting_id,
                stage: stage.as_str().to_owned(),
                content_fp: content_fp.as_str().to_owned(),
                expires_at: *expires_at,
            })
        }
        MeetingEvent::StageResultsDropped { cached, cause: _ } => {
            PublicEvent::MeetingStageResultsDropped(MeetingStageResultsDropped {
                meeting_id,
                keys: cached.iter().map(ToString::to_string).collect(),
            })
        }
        MeetingEvent::MeetingCompleted(completed) => PublicEvent::MeetingCompleted(MeetingCompleted {
            meeting_id,
            file_id: completed.file_id.as_uuid(),
            owner: completed.owner.map(|owner| owner.as_uuid()),
            language: completed.language.as_ref().map(|language| language.as_str().to_owned()),
            attempt: completed.attempt,
            started_at: completed.started_at,
            finished_at: completed.finished_at,
            speakers: completed.speakers.iter().map(speaker).collect(),
            artifacts: completed.artifacts.iter().map(artifact).collect(),
        }),
        MeetingEvent::MeetingFailed { attempt, stage, reason: _, failed_at } => {
            PublicEvent::MeetingFailed(MeetingFailed {
                meeting_id,
                attempt: *attempt,
                stage: stage.as_str().to_owned(),
                failed_at: *failed_at,
            })
        }
        MeetingEvent::MeetingErased { reason: _, erased_at, cached: _ } => {
            PublicEvent::MeetingErased(MeetingErased { meeting_id, erased_at: *erased_at })
        }
    }
}

fn speaker(stored: &StoredSpeaker) -> Speaker {
    Speaker {
        speaker_id: stored.id.as_uuid(),
        cluster_id: stored.cluster_id.as_str().to_owned(),
        profile_id: stored.link.map(|link| link.profile_id.as_uuid()),
        confidence: stored.link.and_then(|link| link.confidence).map(domain::speaker::Confidence::get),
    }
}

fn artifact(stored: &StoredArtifact) -> Artifact {
    Artifact {
        artifact_id: stored.id.as_uuid(),
        artifact_type: stored.artifact_type.as_str().to_owned(),
        s3_key: stored.s3_key.as_str().to_owned(),
    }
}

fn profile_event(profile_id: Uuid, event: &ProfileEvent) -> PublicEvent {
    match event {
        ProfileEvent::ProfileCreated { profile_id: _, display_name: _, created_at } => {
            PublicEvent::ProfileCreated(ProfileCreated { profile_id, created_at: *created_at })
        }
        ProfileEvent::ProfileRenamed { display_name: _ } => {
            PublicEvent::ProfileRenamed(ProfileRenamed { profile_id })
        }
        ProfileEvent::VoiceEnrolled { sample_id, voice, source: _, enrolled_at } => {
            PublicEvent::ProfileVoiceEnrolled(ProfileVoiceEnrolled {
                profile_id,
                sample_id: sample_id.as_uuid(),
                model: voice.model.as_str().to_owned(),
                enrolled_at: *enrolled_at,
            })
        }
        ProfileEvent::VoiceRemoved { sample_id } => PublicEvent::ProfileVoiceRemoved(ProfileVoiceRemoved {
            profile_id,
            sample_id: sample_id.as_uuid(),
        }),
        ProfileEvent::ProfileErased { erased_at } => {
            PublicEvent::ProfileErased(ProfileErased { profile_id, erased_at: *erased_at })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stored_event_has_a_type_named_after_it() {
        let stored = MeetingEvent::NAMES.iter().chain(&ProfileEvent::NAMES);
        assert!(stored.eq(EVENT_TYPES.iter().map(|known| &known.stored)));
        for known in EVENT_TYPES {
            let pascal = |text: &str| -> String {
                let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
                text.split('_').map(capital).collect()
            };
            // The token is the event's name without its aggregate.
            let without = known.stored.trim_start_matches(&pascal(known.aggregate));
            assert_eq!(pascal(known.name), without, "{known:?}");
            assert_eq!(EventType::named(&known.short()), Some(known));
            assert_eq!(EventType::named(known.full), Some(known));
        }
        assert_eq!(EventType::named("meeting.exploded"), None);
    }
}
