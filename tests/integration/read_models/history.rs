//! Events as they are stored, to give to the tables.

use api::book::Book;
use domain::ids::MeetingId;
use event_store::append::{Append, NewEvent, Outcome};
use event_store::log;
use serde_json::{Value, json};
use uuid::Uuid;

/// An event of an aggregate, not yet in the log.
#[derive(Clone)]
pub(crate) struct Given {
    aggregate_type: &'static str,
    aggregate_id: Uuid,
    /// `{"<event type>": {…}}`, as it is stored.
    payload: Value,
}

impl Given {
    /// Puts another payload in the place of this one.
    pub(crate) fn spoil(&mut self, payload: Value) {
        self.payload = payload;
    }
}

/// Appends an event, whatever the domain would say; returns its position.
pub(crate) async fn append(book: &Book, given: &Given) -> i64 {
    let Given { aggregate_type, aggregate_id, payload } = given;
    let version = log::version_at(book.pool(), aggregate_type, *aggregate_id, i64::MAX).await.unwrap();
    let event_type = payload.as_object().unwrap().keys().next().unwrap().clone();
    let event_version = domain::upcast::newest_version(&event_type).to_owned();
    let append = Append {
        command_id: Uuid::now_v7(),
        request_hmac: vec![],
        aggregate_type,
        aggregate_id: aggregate_id.to_string(),
        expected_version: version,
        metadata: json!({"actor": "test", "actor_kind": "system"}).to_string(),
        events: vec![NewEvent { event_type, event_version, payload: payload.to_string().into() }],
    };
    match book.store.appender().append(append).await.unwrap() {
        Outcome::Appended(place) => place.last_position,
        outcome @ (Outcome::Conflict { .. } | Outcome::Duplicate { .. } | Outcome::Forgotten) => {
            panic!("{outcome:?}")
        }
    }
}

/// Returns a speaker's id, as events and rows have it.
pub(crate) fn speaker(meeting: Uuid, attempt: u32, cluster: &str) -> Uuid {
    MeetingId::from(meeting).speaker(attempt, &cluster.parse().unwrap()).as_uuid()
}

/// Returns an artifact's id, as events and rows have it.
pub(crate) fn artifact_id(meeting: Uuid, attempt: u32, artifact_type: &str) -> Uuid {
    let artifact_type = serde_json::from_value(json!(artifact_type)).unwrap();
    MeetingId::from(meeting).artifact(attempt, artifact_type).as_uuid()
}

/// Returns the file's id of a meeting of these tests.
pub(crate) fn file_id(meeting: Uuid) -> Uuid {
    Uuid::from_u128(meeting.as_u128() + 0xf000)
}

fn of_meeting(meeting: Uuid, payload: Value) -> Given {
    Given { aggregate_type: "meeting", aggregate_id: meeting, payload }
}

pub(crate) fn registered(meeting: Uuid) -> Given {
    registered_for(meeting, Some(Uuid::from_u128(7)))
}

pub(crate) fn registered_for(meeting: Uuid, owner: Option<Uuid>) -> Given {
    let file = json!({"id": file_id(meeting), "sha256": "ab".repeat(32), "mime": "audio/flac",
                      "size": 5_000_000_000_i64, "duration": 1800, "owner": owner});
    let registered =
        json!({"meeting_id": meeting, "file": file, "registered_at": "2026-01-01T09:00:00.000001Z"});
    of_meeting(meeting, json!({"MeetingRegistered": registered}))
}

/// Registers a meeting of its own, of a file whose hash repeats `byte`.
pub(crate) fn registered_with(byte: &str) -> Given {
    let meeting = Uuid::from_u128(u128::from_str_radix(byte, 16).unwrap());
    let mut given = registered(meeting);
    given.payload["MeetingRegistered"]["file"]["sha256"] = byte.repeat(32).into();
    given
}

pub(crate) fn started(meeting: Uuid, attempt: u32) -> Given {
    let at = format!("2026-01-01T1{attempt}:00:00Z");
    of_meeting(meeting, json!({"ProcessingStarted": {"attempt": attempt, "worker": "w", "started_at": at}}))
}

pub(crate) fn fingerprinted(meeting: Uuid, attempt: u32, content_fp: &str) -> Given {
    let payload = json!({"ContentFingerprinted": {"attempt": attempt, "content_fp": content_fp}});
    of_meeting(meeting, payload)
}

pub(crate) fn language(meeting: Uuid, attempt: u32, language: &str) -> Given {
    of_meeting(meeting, json!({"LanguageDetected": {"attempt": attempt, "language": language}}))
}

pub(crate) fn diarized(meeting: Uuid, attempt: u32, clusters: &[&str]) -> Given {
    let cluster = |label: &&str| json!({"cluster_id": label, "segments": "0+500 700+10"});
    let clusters = clusters.iter().map(cluster).collect::<Vec<_>>();
    of_meeting(meeting, json!({"SpeakersDiarized": {"attempt": attempt, "clusters": clusters}}))
}

/// Tells one voice apart, and says how it sounds.
pub(crate) fn diarized_with_voice(meeting: Uuid, attempt: u32, cluster: &str, vector: &[f64]) -> Given {
    let voice = json!({"model": "resemblyzer-0.1.4", "vector": vector});
    let cluster = json!({"cluster_id": cluster, "segments": "0+500", "voice": voice});
    of_meeting(meeting, json!({"SpeakersDiarized": {"attempt": attempt, "clusters": [cluster]}}))
}

fn evidence() -> Value {
    json!({"model": "resemblyzer-0.1.4", "policy_version": "1", "candidates": []})
}

pub(crate) fn identified(
    meeting: Uuid,
    attempt: u32,
    cluster: &str,
    profile: Uuid,
    confidence: f64,
) -> Given {
    let identified = json!({"speaker_id": speaker(meeting, attempt, cluster), "profile_id": profile,
                            "confidence": confidence, "evidence": evidence()});
    of_meeting(meeting, json!({"SpeakerIdentified": identified}))
}

pub(crate) fn not_identified(meeting: Uuid, attempt: u32, cluster: &str) -> Given {
    let not = json!({"speaker_id": speaker(meeting, attempt, cluster), "evidence": evidence()});
    of_meeting(meeting, json!({"SpeakerNotIdentified": not}))
}

pub(crate) fn reassigned(meeting: Uuid, attempt: u32, cluster: &str, to: Option<Uuid>) -> Given {
    let reassigned = json!({"speaker_id": speaker(meeting, attempt, cluster), "from": null, "to": to,
                            "reason": "heard it"});
    of_meeting(meeting, json!({"SpeakerReassigned": reassigned}))
}

/// Somebody sets right what a machine was that sure of.
pub(crate) fn reassigned_from_machine(
    meeting: Uuid,
    attempt: u32,
    cluster: &str,
    from: Uuid,
    confidence: f64,
    to: Option<Uuid>,
) -> Given {
    let mut given = reassigned(meeting, attempt, cluster, to);
    let reassigned = &mut given.payload["SpeakerReassigned"];
    reassigned["from"] = json!(from);
    reassigned["previous_confidence"] = json!(confidence);
    reassigned["previous_by"] = json!("machine");
    given
}

fn artifact(meeting: Uuid, attempt: u32, artifact_type: &str, s3_key: &str) -> Value {
    json!({"id": artifact_id(meeting, attempt, artifact_type), "attempt": attempt, "type": artifact_type,
           "s3_key": s3_key, "meta": {"words": 12}})
}

/// Says that a speaker's name is newer than these artifacts of the attempt.
pub(crate) fn outdated(meeting: Uuid, attempt: u32, cluster: &str, types: &[&str]) -> Given {
    let artifact = |kind: &&str| json!({"id": artifact_id(meeting, attempt, kind), "type": kind});
    let artifacts = types.iter().map(artifact).collect::<Vec<_>>();
    let speaker_id = speaker(meeting, attempt, cluster);
    of_meeting(meeting, json!({"ArtifactsOutdated": {"speaker_id": speaker_id, "artifacts": artifacts}}))
}

pub(crate) fn stored(meeting: Uuid, attempt: u32, artifact_type: &str, s3_key: &str) -> Given {
    let artifact = artifact(meeting, attempt, artifact_type, s3_key);
    of_meeting(meeting, json!({"ArtifactStored": {"artifact": artifact}}))
}

pub(crate) fn cached(
    meeting: Uuid,
    stage: &str,
    content_fp: &str,
    value: &str,
    expires_at: Option<&str>,
) -> Given {
    let cached = json!({"stage": stage, "content_fp": content_fp, "value": value, "expires_at": expires_at});
    of_meeting(meeting, json!({"StageResultCached": cached}))
}

/// Completes an attempt that has these clusters, nobody known among them, and these artifacts.
pub(crate) fn completed(meeting: Uuid, attempt: u32, clusters: &[&str], artifacts: &[(&str, &str)]) -> Given {
    let speaker = |label: &&str| json!({"id": speaker(meeting, attempt, label), "cluster_id": label});
    let artifact = |(artifact_type, s3_key): &(&str, &str)| artifact(meeting, attempt, artifact_type, s3_key);
    let completed = json!({
        "meeting_id": meeting, "file_id": file_id(meeting), "language": "de-CH", "attempt": attempt,
        "started_at": format!("2026-01-01T1{attempt}:00:00Z"),
        "finished_at": format!("2026-01-01T1{attempt}:30:00Z"),
        "speakers": clusters.iter().map(speaker).collect::<Vec<_>>(),
        "artifacts": artifacts.iter().map(artifact).collect::<Vec<_>>(),
    });
    of_meeting(meeting, json!({"MeetingCompleted": completed}))
}

pub(crate) fn failed(meeting: Uuid, attempt: u32) -> Given {
    let at = format!("2026-01-01T1{attempt}:20:00Z");
    let failed = json!({"attempt": attempt, "stage": "decode", "reason": "noise", "failed_at": at});
    of_meeting(meeting, json!({"MeetingFailed": failed}))
}

pub(crate) fn erased(meeting: Uuid) -> Given {
    let erased = json!({"reason": "on request", "erased_at": "2026-02-01T00:00:00Z"});
    of_meeting(meeting, json!({"MeetingErased": erased}))
}

/// A meeting that had cached a result is erased: the result goes with its key.
pub(crate) fn erased_with_cached(meeting: Uuid, stage: &str, content_fp: &str) -> Given {
    let cached = json!([{"stage": stage, "content_fp": content_fp}]);
    let erased = json!({"reason": "on request", "erased_at": "2026-02-01T00:00:00Z", "cached": cached});
    of_meeting(meeting, json!({"MeetingErased": erased}))
}

fn of_profile(profile: Uuid, payload: Value) -> Given {
    Given { aggregate_type: "profile", aggregate_id: profile, payload }
}

pub(crate) fn created(profile: Uuid, display_name: &str) -> Given {
    let created =
        json!({"profile_id": profile, "display_name": display_name, "created_at": "2026-01-01T08:00:00Z"});
    of_profile(profile, json!({"ProfileCreated": created}))
}

pub(crate) fn renamed(profile: Uuid, display_name: &str) -> Given {
    of_profile(profile, json!({"ProfileRenamed": {"display_name": display_name}}))
}

pub(crate) fn enrolled(profile: Uuid, sample: Uuid) -> Given {
    let voice = json!({"model": "resemblyzer-0.1.4", "vector": [0.1, -0.25, 1e-7]});
    let enrolled =
        json!({"sample_id": sample, "voice": voice, "source": "call", "enrolled_at": "2026-01-01T08:01:00Z"});
    of_profile(profile, json!({"VoiceEnrolled": enrolled}))
}

pub(crate) fn voice_removed(profile: Uuid, sample: Uuid) -> Given {
    of_profile(profile, json!({"VoiceRemoved": {"sample_id": sample}}))
}

pub(crate) fn profile_erased(profile: Uuid) -> Given {
    of_profile(profile, json!({"ProfileErased": {"erased_at": "2026-02-01T00:00:00Z"}}))
}
