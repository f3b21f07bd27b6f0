//! What each command does to a meeting in each status, and why.

use std::collections::BTreeSet;

use domain::Timestamp;
use domain::artifact::{Artifact, ArtifactType};
use domain::file::{DurationSeconds, File, SizeBytes};
use domain::ids::{FileId, MeetingId, OwnerId, ProfileId, SpeakerId};
use domain::meeting::{
    CacheKey, Cause, FORGOTTEN, FailMeeting, MAX_CACHED_BYTES, MAX_STAGES, Meeting, MeetingCommand,
    MeetingCompleted, MeetingError, MeetingEvent, MeetingRegistered, Origin, OutdatedArtifact,
    RegisterMeeting, Status,
};
use domain::speaker::{
    Candidate, Cluster, ClusterId, Confidence, Decision, Diarization, Evidence, Link, LinkedBy,
    MAX_CANDIDATES, Speaker,
};

use crate::given::{Decider, at, given, id, parsed, story};

pub(crate) fn meeting_id() -> MeetingId {
    id(0x3ee7)
}

fn file(n: u128) -> File {
    File {
        id: id(n),
        sha256: parsed(&"ab".repeat(32)),
        mime: Some(parsed("audio/flac")),
        size: SizeBytes::try_from(48_211_946).ok(),
        duration: DurationSeconds::try_from(2718).ok(),
        owner: Some(id(0x0)),
    }
}

pub(crate) fn register(file_id: u128) -> MeetingCommand {
    MeetingCommand::Register(RegisterMeeting { meeting_id: meeting_id(), file: file(file_id), at: at(0) })
}

pub(crate) fn start(worker: &str) -> MeetingCommand {
    MeetingCommand::Start { worker: parsed(worker), at: at(10) }
}

pub(crate) fn retry(worker: &str) -> MeetingCommand {
    MeetingCommand::Retry { worker: parsed(worker), at: at(20) }
}

pub(crate) fn reprocess(worker: &str) -> MeetingCommand {
    MeetingCommand::Reprocess { worker: parsed(worker), at: at(30) }
}

pub(crate) fn fingerprint(content_fp: &str) -> MeetingCommand {
    MeetingCommand::RecordFingerprint { content_fp: parsed(content_fp) }
}

pub(crate) fn language(language: &str) -> MeetingCommand {
    MeetingCommand::RecordLanguage { language: parsed(language) }
}

/// Diarizes into clusters, each with the person whom a machine knew or none.
pub(crate) fn speakers(clusters: &[(&str, Option<u128>)]) -> MeetingCommand {
    let labels: Vec<&str> = clusters.iter().map(|(label, _)| *label).collect();
    let decide = |(label, person): &(&str, Option<u128>)| {
        let decision = match person {
            Some(n) => Decision::Identified {
                profile_id: id(*n),
                confidence: confidence(0.91),
                evidence: evidence(),
            },
            None => Decision::NotIdentified { evidence: evidence() },
        };
        (parsed(label), decision)
    };
    MeetingCommand::RecordSpeakers {
        clusters: diarization(&labels),
        decisions: clusters.iter().map(decide).collect(),
    }
}

fn diarization(labels: &[&str]) -> Diarization {
    let cluster = |label: &&str| Cluster {
        cluster_id: parsed(label),
        segments: vec![(0, 4180).into(), (9650, 12_730).into()],
        speech_ms: None,
        voice: None,
    };
    labels.iter().map(cluster).collect::<Vec<_>>().try_into().expect("a test's labels differ")
}

pub(crate) fn confidence(number: f64) -> Confidence {
    number.try_into().expect("a test's confidence is one")
}

pub(crate) fn evidence() -> Evidence {
    let candidates = vec![Candidate { profile_id: id(1), score: confidence(0.91) }];
    Evidence {
        model: parsed("resemblyzer-0.1.4"),
        policy_version: parsed("1"),
        margin: Some(0.2.try_into().expect("a test's margin is one")),
        candidates,
    }
}

pub(crate) fn speaker(attempt: u32, label: &str) -> SpeakerId {
    meeting_id().speaker(attempt, &parsed::<ClusterId>(label))
}

pub(crate) fn reassign(speaker_id: SpeakerId, to: Option<u128>) -> MeetingCommand {
    MeetingCommand::ReassignSpeaker {
        speaker_id,
        to: to.map(id),
        expected: None,
        reason: parsed("I was there"),
    }
}

pub(crate) fn undo(speaker_id: SpeakerId) -> MeetingCommand {
    MeetingCommand::UndoReassignment { speaker_id, expected: None, reason: parsed("I was wrong") }
}

pub(crate) fn dismiss(speaker_id: SpeakerId) -> MeetingCommand {
    MeetingCommand::DismissCorrection { speaker_id, reason: parsed("it was said of noise") }
}

pub(crate) fn forget(person: u128) -> MeetingCommand {
    MeetingCommand::ForgetPerson { profile_id: id(person) }
}

pub(crate) fn store(artifact_type: ArtifactType, s3_key: &str) -> MeetingCommand {
    MeetingCommand::StoreArtifact { artifact_type, s3_key: parsed(s3_key), meta: None }
}

fn artifact(attempt: u32, artifact_type: ArtifactType, s3_key: &str) -> Artifact {
    let id = meeting_id().artifact(attempt, artifact_type);
    Artifact { id, attempt, artifact_type, s3_key: parsed(s3_key), meta: None }
}

pub(crate) fn cache(
    stage: &str,
    value: impl Into<String>,
    now: Timestamp,
    expires_at: Option<Timestamp>,
) -> MeetingCommand {
    MeetingCommand::CacheStageResult { stage: parsed(stage), value: value.into(), expires_at, at: now }
}

pub(crate) fn complete() -> MeetingCommand {
    MeetingCommand::Complete { at: at(90) }
}

pub(crate) fn fail(reason: &str) -> MeetingCommand {
    MeetingCommand::Fail(FailMeeting { stage: parsed("asr"), reason: parsed(reason), at: at(80) })
}

pub(crate) fn erase() -> MeetingCommand {
    MeetingCommand::Erase { reason: parsed("by request"), at: at(99), lost: None }
}

/// Some speech of two people, of whom a machine knows the first, and all else that an attempt yields.
fn work() -> [MeetingCommand; 5] {
    [
        fingerprint("fp"),
        language("de"),
        speakers(&[("a", Some(1)), ("b", None)]),
        store(ArtifactType::TranscriptMd, "m/1.md"),
        cache("asr", "{}", at(40), None),
    ]
}

/// Returns the history of a meeting that was registered, taken on by Anna, worked on, and then `rest`.
fn worked_on(rest: impl IntoIterator<Item = MeetingCommand>) -> Vec<MeetingEvent> {
    story::<Meeting>([register(1), start("anna")].into_iter().chain(work()).chain(rest))
}

/// Returns the history with what follows from `commands`, none of which may be refused.
pub(crate) fn then(
    mut history: Vec<MeetingEvent>,
    commands: impl IntoIterator<Item = MeetingCommand>,
) -> Vec<MeetingEvent> {
    for command in commands {
        let events = Meeting::fold(&history).decide(&command).expect("a story's commands are accepted");
        history.extend(events);
    }
    history
}

/// One answer per status, in the order of `column`: events, `-` for none, or a refusal's code.
type Row = [&'static str; 8];

/// A new status stops the build here: give it a column, and `histories` a history.
fn column(meeting: &Meeting) -> usize {
    match meeting {
        Meeting::Unregistered => 0,
        Meeting::Active(record) => match &record.status {
            Status::Pending => 1,
            Status::Processing { from: Origin::Pending, .. } => 2,
            Status::Processing { from: Origin::Failed, .. } => 3,
            Status::Processing { from: Origin::Completed, .. } => 4,
            Status::Completed => 5,
            Status::Failed { .. } => 6,
        },
        Meeting::Erased { .. } => 7,
    }
}

fn histories() -> [Vec<MeetingEvent>; 8] {
    [
        vec![],
        story::<Meeting>([register(1)]),
        worked_on([]),
        worked_on([fail("no GPU"), retry("anna")]),
        worked_on([complete(), reprocess("anna")]),
        worked_on([complete()]),
        worked_on([fail("no GPU")]),
        worked_on([erase()]),
    ]
}

/// Every command twice: with news, and repeating what the histories tell.
fn commands() -> [(MeetingCommand, MeetingCommand); 16] {
    let [fp, lang, who, md, asr] = work();
    let md2 = store(ArtifactType::TranscriptMd, "m/2.md");
    [
        (register(2), register(1)),
        (start("bert"), start("anna")),
        (retry("bert"), retry("anna")),
        (reprocess("bert"), reprocess("anna")),
        (fingerprint("other"), fp),
        (language("fr"), lang),
        (speakers(&[("a", Some(1))]), who),
        (reassign(speaker(1, "a"), Some(2)), reassign(speaker(1, "a"), Some(1))),
        (undo(speaker(1, "a")), undo(speaker(1, "a"))),
        (dismiss(speaker(1, "a")), dismiss(speaker(1, "a"))),
        (forget(1), forget(9)),
        (md2, md),
        (cache("asr", "{\"n\":2}", at(41), None), asr),
        (complete(), complete()),
        (fail("no disk"), fail("no GPU")),
        (erase(), erase()),
    ]
}

/// Says what a command does with news and when repeated. A new command stops the build here: give it two
/// rows, and `commands` an entry.
#[rustfmt::skip]
fn expected(command: &MeetingCommand) -> (Row, Row) {
    const NONE: &str = "meeting_not_found";
    const GONE: &str = "meeting_erased";
    const BAD: &str = "illegal_transition";
    const TAKEN: &str = "taken_by_another_worker";
    const OTHER: &str = "another_file";
    const WHO: &str = "speaker_not_found";
    const UNDO: &str = "nothing_to_undo";
    const FREE: &str = "correction_not_found";
    const REG: &str = "MeetingRegistered";
    const START: &str = "ProcessingStarted";
    const FP: &str = "ContentFingerprinted";
    const LANG: &str = "LanguageDetected";
    const SPK: &str = "SpeakersDiarized SpeakerIdentified";
    const SPK2: &str = "SpeakersDiarized SpeakerIdentified SpeakerNotIdentified";
    const RE: &str = "SpeakerReassigned ArtifactsOutdated";
    const DROP: &str = "StageResultsDropped";
    const GO: &str = "SpeakerReassigned ArtifactsOutdated StageResultsDropped";
    const ART: &str = "ArtifactStored";
    const CACHE: &str = "StageResultCached";
    const DONE: &str = "MeetingCompleted";
    const FAIL: &str = "MeetingFailed";
    const ERASE: &str = "MeetingErased";
    match command {
        // unregistered, pending, processing: started, retried, reprocessed; completed, failed, erased
        MeetingCommand::Register(_) => (
            [REG, OTHER, OTHER, OTHER, OTHER, OTHER, OTHER, REG],
            [REG, "-", "-", "-", "-", "-", "-", REG],
        ),
        MeetingCommand::Start { .. } => (
            [NONE, START, TAKEN, BAD, BAD, BAD, BAD, GONE],
            [NONE, START, "-", BAD, BAD, BAD, BAD, GONE],
        ),
        MeetingCommand::Retry { .. } => (
            [NONE, BAD, BAD, TAKEN, BAD, BAD, START, GONE],
            [NONE, BAD, BAD, "-", BAD, BAD, START, GONE],
        ),
        MeetingCommand::Reprocess { .. } => (
            [NONE, BAD, BAD, BAD, TAKEN, START, BAD, GONE],
            [NONE, BAD, BAD, BAD, "-", START, BAD, GONE],
        ),
        MeetingCommand::RecordFingerprint { .. } => (
            [NONE, BAD, FP, FP, FP, BAD, BAD, GONE],
            [NONE, BAD, "-", "-", "-", "-", "-", GONE],
        ),
        MeetingCommand::RecordLanguage { .. } => (
            [NONE, BAD, LANG, LANG, LANG, BAD, BAD, GONE],
            [NONE, BAD, "-", "-", "-", "-", "-", GONE],
        ),
        MeetingCommand::RecordSpeakers { .. } => (
            [NONE, BAD, SPK, SPK, SPK, BAD, BAD, GONE],
            [NONE, BAD, "-", SPK2, SPK2, "-", "-", GONE],
        ),
        MeetingCommand::ReassignSpeaker { .. } => (
            [NONE, WHO, RE, RE, RE, RE, RE, GONE],
            [NONE, WHO, "-", "-", "-", "-", "-", GONE],
        ),
        MeetingCommand::UndoReassignment { .. } => (
            [NONE, WHO, UNDO, UNDO, UNDO, UNDO, UNDO, GONE],
            [NONE, WHO, UNDO, UNDO, UNDO, UNDO, UNDO, GONE],
        ),
        MeetingCommand::DismissCorrection { .. } => (
            [NONE, FREE, FREE, FREE, FREE, FREE, FREE, GONE],
            [NONE, FREE, FREE, FREE, FREE, FREE, FREE, GONE],
        ),
        MeetingCommand::ForgetPerson { .. } => (
            ["-", "-", GO, GO, GO, GO, GO, "-"],
            ["-", "-", DROP, DROP, DROP, DROP, DROP, "-"],
        ),
        MeetingCommand::StoreArtifact { .. } => (
            [NONE, BAD, ART, ART, ART, ART, BAD, GONE],
            [NONE, BAD, "-", ART, ART, "-", "-", GONE],
        ),
        MeetingCommand::CacheStageResult { .. } => (
            [NONE, BAD, CACHE, CACHE, CACHE, CACHE, BAD, GONE],
            [NONE, BAD, "-", "-", "-", "-", "-", GONE],
        ),
        MeetingCommand::Complete { .. } => (
            [NONE, BAD, DONE, DONE, DONE, "-", BAD, GONE],
            [NONE, BAD, DONE, DONE, DONE, "-", BAD, GONE],
        ),
        MeetingCommand::Fail(_) => (
            [NONE, BAD, FAIL, FAIL, FAIL, BAD, BAD, GONE],
            [NONE, BAD, FAIL, FAIL, FAIL, BAD, "-", GONE],
        ),
        MeetingCommand::Erase { .. } => (
            [NONE, ERASE, ERASE, ERASE, ERASE, ERASE, ERASE, "-"],
            [NONE, ERASE, ERASE, ERASE, ERASE, ERASE, ERASE, "-"],
        ),
    }
}

#[test]
fn the_histories_cover_every_status() {
    assert_eq!(histories().map(|events| column(&Meeting::fold(&events))), [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn every_command_is_answered_in_every_status_as_the_table_says() {
    for (news, repetition) in commands() {
        let answers = |command: &MeetingCommand| {
            histories().map(|events| given::<Meeting>(events).when(command.clone()).in_words())
        };
        let (row, repeated_row) = expected(&news);
        assert_eq!(answers(&news), row, "{} with news", news.name());
        assert_eq!(answers(&repetition), repeated_row, "{} repeated", repetition.name());
    }
}

#[test]
fn a_refusal_says_where_the_meeting_stands_and_what_was_asked() {
    let refused = |history, command, status, name| {
        let error = MeetingError::IllegalTransition { status, command: name };
        given::<Meeting>(history).when(command).then_refused(error);
    };
    refused(story::<Meeting>([register(1)]), complete(), "pending", "complete");
    refused(worked_on([]), retry("anna"), "processing", "retry");
    refused(worked_on([complete()]), fail("late"), "completed", "fail");
    refused(worked_on([fail("no GPU")]), start("anna"), "failed", "start");
}

#[test]
fn a_meeting_s_life_is_told_by_its_events() {
    let anna: ProfileId = id(1);
    let owner: OwnerId = id(0);
    let file_id: FileId = id(1);
    let [a, b] = ["a", "b"].map(|label| speaker(1, label));
    let md = artifact(1, ArtifactType::TranscriptMd, "m/1.md");
    let by_machine = Link { profile_id: anna, confidence: Some(confidence(0.91)), by: LinkedBy::Machine };
    let told = worked_on([complete(), reprocess("bert"), fail("no GPU"), erase()]);
    let expected = [
        MeetingEvent::MeetingRegistered(MeetingRegistered {
            meeting_id: meeting_id(),
            file: file(1),
            registered_at: at(0),
        }),
        MeetingEvent::ProcessingStarted { attempt: 1, worker: parsed("anna"), started_at: at(10) },
        MeetingEvent::ContentFingerprinted { attempt: 1, content_fp: parsed("fp") },
        MeetingEvent::LanguageDetected { attempt: 1, language: parsed("de") },
        MeetingEvent::SpeakersDiarized { attempt: 1, clusters: diarization(&["a", "b"]) },
        MeetingEvent::SpeakerIdentified {
            speaker_id: a,
            profile_id: anna,
            confidence: confidence(0.91),
            evidence: evidence(),
        },
        MeetingEvent::SpeakerNotIdentified { speaker_id: b, evidence: evidence() },
        MeetingEvent::ArtifactStored { artifact: md.clone() },
        MeetingEvent::StageResultCached {
            stage: parsed("asr"),
            content_fp: parsed("fp"),
            value: "{}".to_owned().into(),
            expires_at: None,
        },
        MeetingEvent::MeetingCompleted(MeetingCompleted {
            meeting_id: meeting_id(),
            file_id,
            owner: Some(owner),
            language: Some(parsed("de")),
            attempt: 1,
            started_at: at(10),
            finished_at: at(90),
            speakers: vec![
                Speaker { id: a, cluster_id: parsed("a"), link: Some(by_machine) },
                Speaker { id: b, cluster_id: parsed("b"), link: None },
            ],
            artifacts: vec![md],
        }),
        MeetingEvent::ProcessingStarted { attempt: 2, worker: parsed("bert"), started_at: at(30) },
        MeetingEvent::MeetingFailed {
            attempt: 2,
            stage: parsed("asr"),
            reason: parsed("no GPU"),
            failed_at: at(80),
        },
        MeetingEvent::MeetingErased {
            reason: parsed("by request"),
            erased_at: at(99),
            cached: [CacheKey { stage: parsed("asr"), content_fp: parsed("fp") }].into(),
        },
    ];
    assert_eq!(told, expected);
}

#[test]
fn attempts_count_on_over_an_erasure_and_a_new_registration() {
    let history = worked_on([fail("no GPU"), retry("anna"), erase(), erase(), register(2)]);
    let third = MeetingEvent::ProcessingStarted { attempt: 3, worker: parsed("bert"), started_at: at(10) };
    given::<Meeting>(history.clone()).when(start("bert")).then([third]);
    // Nothing else is left of what was erased.
    given::<Meeting>(history)
        .when(reassign(speaker(1, "a"), None))
        .then_refused(MeetingError::UnknownSpeaker);
}

#[test]
fn an_erasure_tells_every_key_under_which_results_are_cached() {
    let other = [fingerprint("fp2"), cache("asr", "{}", at(41), None), cache("align", "{}", at(41), None)];
    let told = worked_on(other.into_iter().chain([erase()]));
    let Some(MeetingEvent::MeetingErased { cached, .. }) = told.last() else { panic!("{:?}", told.last()) };
    let keys: Vec<String> = cached.iter().map(ToString::to_string).collect();
    assert_eq!(keys, ["align:fp2", "asr:fp", "asr:fp2"]);
    let again = worked_on([erase(), register(1), erase()]);
    let Some(MeetingEvent::MeetingErased { cached, .. }) = again.last() else { panic!("{:?}", again.last()) };
    assert!(cached.is_empty(), "those of an earlier life are gone already");
}

#[test]
fn whoever_is_forgotten_is_no_speaker_and_no_decision_brings_them_back() {
    let (a, b) = (speaker(1, "a"), speaker(1, "b"));
    let forgotten = |speaker_id, confidence, by| MeetingEvent::SpeakerReassigned {
        speaker_id,
        from: Some(id(1)),
        to: None,
        reason: parsed(FORGOTTEN),
        previous_confidence: confidence,
        previous_by: Some(by),
        carried_from: None,
        cause: Some(Cause::ProfileErased),
    };
    let both = worked_on([reassign(b, Some(1)), store(ArtifactType::TranscriptMd, "m/2.md"), complete()]);
    let outdated = MeetingEvent::ArtifactsOutdated {
        speaker_id: a.min(b),
        artifacts: vec![OutdatedArtifact {
            id: meeting_id().artifact(1, ArtifactType::TranscriptMd),
            artifact_type: ArtifactType::TranscriptMd,
        }],
    };
    let mut expected = [
        (a, forgotten(a, Some(confidence(0.91)), LinkedBy::Machine)),
        (b, forgotten(b, None, LinkedBy::Person)),
    ];
    expected.sort_by_key(|(speaker, _)| *speaker);
    // What a stage made of the recording may have the voice in it.
    let dropped = MeetingEvent::StageResultsDropped {
        cached: [CacheKey { stage: parsed("asr"), content_fp: parsed("fp") }].into(),
        cause: Cause::ProfileErased,
    };
    let expected = expected.map(|(_, event)| event).into_iter().chain([outdated, dropped]);
    given::<Meeting>(both.clone()).when(forget(1)).then(expected);

    // It is nobody's word: neither is it taken back, nor carried over.
    let gone = then(both.clone(), [forget(1)]);
    given::<Meeting>(gone.clone()).when(forget(1)).then_nothing();
    let again = given::<Meeting>(gone.clone()).when(cache("asr", "{}", at(40), None));
    assert_eq!(again.in_words(), "StageResultCached", "it is there no more");
    given::<Meeting>(gone.clone()).when(undo(b)).then_refused(MeetingError::NothingToUndo);
    let anew = then(gone, [reprocess("anna"), speakers(&[("a", None), ("b", None)])]);
    assert!(!anew[anew.len() - 3..].iter().any(|event| event.name() == "SpeakerReassigned"), "{anew:?}");

    // A speaker who is somebody else by now cannot be made the person again.
    let other = then(both, [reassign(b, Some(2)), forget(1)]);
    given::<Meeting>(other).when(undo(b)).then_refused(MeetingError::NothingToUndo);
}

fn completed(history: Vec<MeetingEvent>) -> MeetingCompleted {
    let events = Meeting::fold(&history).decide(&complete()).expect("the meeting is being processed");
    match events.as_slice() {
        [MeetingEvent::MeetingCompleted(completed)] => completed.clone(),
        other => panic!("expected a completion, got {other:?}"),
    }
}

#[test]
fn reprocessing_replaces_speakers_and_artifacts() {
    let vtt = store(ArtifactType::TranscriptVtt, "m/2.vtt");
    let history = worked_on([complete(), reprocess("bert"), speakers(&[("a", None)]), vtt]);
    let second = completed(history.clone());
    assert_eq!(second.speakers, [Speaker { id: speaker(2, "a"), cluster_id: parsed("a"), link: None }]);
    assert_eq!(second.artifacts, [artifact(2, ArtifactType::TranscriptVtt, "m/2.vtt")]);
    // The first attempt's speakers are gone as soon as the second one diarized.
    given::<Meeting>(history)
        .when(reassign(speaker(1, "b"), None))
        .then_refused(MeetingError::UnknownSpeaker);
}

#[test]
fn an_attempt_without_results_completes_without_those_of_an_earlier_one() {
    for history in [worked_on([complete(), reprocess("bert")]), worked_on([fail("no GPU"), retry("bert")])] {
        let second = completed(history);
        assert_eq!((second.attempt, second.speakers, second.artifacts), (2, vec![], vec![]));
    }
}

#[test]
fn speakers_are_listed_in_order_of_cluster() {
    let history = worked_on([speakers(&[("10", None), ("2", None), ("1", None)])]);
    let labels: Vec<String> = completed(history).speakers.iter().map(|s| s.cluster_id.to_string()).collect();
    assert_eq!(labels, ["1", "10", "2"]);
}

#[test]
fn a_cluster_takes_one_decision_with_few_candidates() {
    let decided = |evidences: Vec<Evidence>| MeetingCommand::RecordSpeakers {
        clusters: diarization(&["x"]),
        decisions: evidences
            .into_iter()
            .map(|evidence| (parsed("x"), Decision::NotIdentified { evidence }))
            .collect(),
    };
    let candidate = evidence().candidates.remove(0);
    let crowded = Evidence { candidates: vec![candidate; MAX_CANDIDATES + 1], ..evidence() };
    for command in [decided(vec![evidence(), evidence()]), decided(vec![crowded])] {
        given::<Meeting>(worked_on([])).when(command).then_refused(MeetingError::UnfitDecision);
    }
}

#[test]
fn a_meeting_caches_a_bounded_number_of_stages() {
    let cached = |n: usize| MeetingCommand::CacheStageResult {
        stage: parsed(&format!("stage-{n}")),
        value: "{}".to_owned(),
        expires_at: None,
        at: at(40),
    };
    // One more is cached by then.
    let full = worked_on((1..MAX_STAGES).map(cached));
    given::<Meeting>(full.clone()).when(cached(MAX_STAGES)).then_refused(MeetingError::TooManyStages);
    given::<Meeting>(full).when(cached(1)).then([]);
}

#[test]
fn decisions_name_clusters_that_were_diarized() {
    let decided = |label: &str| MeetingCommand::RecordSpeakers {
        clusters: diarization(&["x", "y"]),
        decisions: vec![(parsed(label), Decision::NotIdentified { evidence: evidence() })],
    };
    given::<Meeting>(worked_on([])).when(decided("z")).then_refused(MeetingError::UnknownCluster);
    given::<Meeting>(worked_on([])).when(decided("y")).then([
        MeetingEvent::SpeakersDiarized { attempt: 1, clusters: diarization(&["x", "y"]) },
        MeetingEvent::SpeakerNotIdentified { speaker_id: speaker(1, "y"), evidence: evidence() },
    ]);
}

#[test]
fn the_first_answer_stands_when_the_same_clusters_come_again() {
    let history = worked_on([speakers(&[("x", Some(1)), ("y", None)])]);
    let others = speakers(&[("x", Some(2)), ("y", Some(3))]);
    given::<Meeting>(history.clone()).when(others.clone()).then_nothing();
    let over = worked_on([speakers(&[("x", Some(1)), ("y", None)]), complete()]);
    given::<Meeting>(over).when(others).then_nothing();
}

#[test]
fn a_diarization_after_a_person_s_correction_is_refused_until_the_next_attempt() {
    let anew = speakers(&[("c", Some(1))]);
    // A person corrects a machine as well by saying that a speaker is nobody known.
    for to in [Some(2), None] {
        let corrected = [reassign(speaker(1, "a"), to)];
        given::<Meeting>(worked_on(corrected.clone()))
            .when(anew.clone())
            .then_refused(MeetingError::SpeakersCorrected);
        given::<Meeting>(worked_on(corrected.clone())).when(work()[2].clone()).then_nothing();
        // The next attempt may diarize, also twice, and is told what becomes of the decision.
        let next = corrected.into_iter().chain([complete(), reprocess("bert")]);
        for rest in [vec![], vec![work()[2].clone()]] {
            let history = worked_on(next.clone().chain(rest));
            let answer = given::<Meeting>(history).when(anew.clone()).in_words();
            assert_eq!(answer, "SpeakersDiarized SpeakerIdentified SpeakerReassigned");
        }
    }
}

#[test]
fn a_reassignment_tells_what_was_held_until_then() {
    let a = speaker(1, "a");
    let reassigned = |from: Option<u128>, to: Option<u128>, confidence, by| MeetingEvent::SpeakerReassigned {
        speaker_id: a,
        from: from.map(id),
        to: to.map(id),
        reason: parsed("I was there"),
        previous_confidence: confidence,
        previous_by: by,
        carried_from: None,
        cause: None,
    };
    let sure = Some(confidence(0.91));
    let steps = [
        reassigned(Some(1), Some(2), sure, Some(LinkedBy::Machine)),
        reassigned(Some(2), None, None, Some(LinkedBy::Person)),
        reassigned(None, Some(1), None, Some(LinkedBy::Person)),
    ];
    let commands = [Some(2), None, Some(1)].map(|to| reassign(a, to));
    for history in [vec![], vec![complete()], vec![fail("no GPU")]] {
        let told = worked_on(history.clone().into_iter().chain(commands.clone()));
        let told_of_names = told.iter().filter(|event| event.name() == "SpeakerReassigned");
        assert!(told_of_names.eq(&steps));
        given::<Meeting>(told).when(reassign(a, Some(1))).then_nothing();
    }
}

#[test]
fn undoing_restores_who_it_was_before_the_latest_reassignment_as_news() {
    let a = speaker(1, "a");
    let steps = [reassign(a, Some(2)), reassign(a, None), undo(a), undo(a), undo(a)];
    let told = worked_on([complete()].into_iter().chain(steps));
    let to = told.iter().filter_map(|event| match event {
        MeetingEvent::SpeakerReassigned { to, .. } => Some(*to),
        MeetingEvent::MeetingRegistered(_)
        | MeetingEvent::ProcessingStarted { .. }
        | MeetingEvent::ContentFingerprinted { .. }
        | MeetingEvent::LanguageDetected { .. }
        | MeetingEvent::SpeakersDiarized { .. }
        | MeetingEvent::SpeakerIdentified { .. }
        | MeetingEvent::SpeakerNotIdentified { .. }
        | MeetingEvent::CorrectionNotCarried { .. }
        | MeetingEvent::CorrectionDismissed { .. }
        | MeetingEvent::ArtifactStored { .. }
        | MeetingEvent::ArtifactsOutdated { .. }
        | MeetingEvent::StageResultCached { .. }
        | MeetingEvent::StageResultsDropped { .. }
        | MeetingEvent::MeetingCompleted(_)
        | MeetingEvent::MeetingFailed { .. }
        | MeetingEvent::MeetingErased { .. } => None,
    });
    assert_eq!(to.collect::<Vec<_>>(), [Some(2), None, Some(2), None, Some(2)].map(|to| to.map(id)));
}

#[test]
fn whoever_expects_another_than_it_is_by_now_came_second() {
    let a = speaker(1, "a");
    let expecting = |to: Option<u128>, expected: Option<u128>| MeetingCommand::ReassignSpeaker {
        speaker_id: a,
        to: to.map(id),
        expected: Some(expected.map(id)),
        reason: parsed("I was there"),
    };
    let told = worked_on([complete(), reassign(a, Some(2))]);
    let when = |command| given::<Meeting>(told.clone()).when(command);
    for expected in [None, Some(1)] {
        when(expecting(Some(3), expected)).then_refused(MeetingError::SpeakerChanged);
    }
    assert_eq!(when(expecting(Some(3), Some(2))).in_words(), "SpeakerReassigned");
    assert_eq!(when(expecting(None, Some(2))).in_words(), "SpeakerReassigned");
    // What is asked for is so already.
    when(expecting(Some(2), Some(1))).then_nothing();
    let stale = MeetingCommand::UndoReassignment {
        speaker_id: a,
        expected: Some(None),
        reason: parsed("I was wrong"),
    };
    when(stale).then_refused(MeetingError::SpeakerChanged);
}

#[test]
fn a_speaker_of_another_meeting_or_attempt_is_unknown() {
    for stranger in [speaker(2, "a"), speaker(1, "c"), id::<MeetingId>(9).speaker(1, &parsed("a"))] {
        given::<Meeting>(worked_on([]))
            .when(reassign(stranger, Some(2)))
            .then_refused(MeetingError::UnknownSpeaker);
        given::<Meeting>(worked_on([])).when(undo(stranger)).then_refused(MeetingError::UnknownSpeaker);
    }
}

#[test]
fn an_artifact_takes_the_place_of_an_older_one_of_its_type() {
    let newer = artifact(1, ArtifactType::TranscriptMd, "m/1b.md");
    let stored = MeetingEvent::ArtifactStored { artifact: newer.clone() };
    let store_newer = store(ArtifactType::TranscriptMd, "m/1b.md");
    for history in [worked_on([]), worked_on([complete()])] {
        given::<Meeting>(history).when(store_newer.clone()).then([stored.clone()]);
    }
    assert_eq!(completed(worked_on([store_newer])).artifacts, [newer]);
}

#[test]
fn a_cached_result_is_stored_again_only_once_it_expired_or_changed() {
    let until = Some(at(60));
    let history = worked_on([cache("align", "{}", at(50), until)]);
    let cached = |content_fp: &str, value: &str| MeetingEvent::StageResultCached {
        stage: parsed("align"),
        content_fp: parsed(content_fp),
        value: value.to_owned().into(),
        expires_at: until,
    };
    let when = |history: &[MeetingEvent], value: &str, now| {
        given::<Meeting>(history.to_vec()).when(cache("align", value, now, until))
    };
    when(&history, "{}", at(59)).then_nothing();
    when(&history, "{}", at(60)).then([cached("fp", "{}")]);
    when(&history, "[]", at(59)).then([cached("fp", "[]")]);
    // Here alone the clock makes a repetition of news: what had expired before it came is never there.
    let expired = worked_on([cache("align", "{}", at(60), until)]);
    when(&expired, "{}", at(60)).then([cached("fp", "{}")]);
    let other_audio =
        [history, vec![MeetingEvent::ContentFingerprinted { attempt: 1, content_fp: parsed("2") }]];
    when(&other_audio.concat(), "{}", at(59)).then([cached("2", "{}")]);
}

#[test]
fn a_result_is_cached_only_under_a_known_fingerprint_and_within_bounds() {
    let started = story::<Meeting>([register(1), start("anna")]);
    given::<Meeting>(started)
        .when(cache("asr", "{}", at(40), None))
        .then_refused(MeetingError::FingerprintMissing);
    let when = |value: String| given::<Meeting>(worked_on([])).when(cache("asr", value, at(41), None));
    assert_eq!(when("x".repeat(MAX_CACHED_BYTES)).in_words(), "StageResultCached");
    when("x".repeat(MAX_CACHED_BYTES + 1)).then_refused(MeetingError::UnfitValue);
    when("é".repeat(MAX_CACHED_BYTES / 2 + 1)).then_refused(MeetingError::UnfitValue);
    when("a\0".to_owned()).then_refused(MeetingError::UnfitValue);
}

#[test]
fn a_meeting_of_which_nothing_is_known_is_erased_if_it_has_a_history() {
    let cached = BTreeSet::from([CacheKey { stage: parsed("asr"), content_fp: parsed("fp") }]);
    let erase =
        MeetingCommand::Erase { reason: parsed("by request"), at: at(99), lost: Some(cached.clone()) };
    let erased = MeetingEvent::MeetingErased { reason: parsed("by request"), erased_at: at(99), cached };
    given::<Meeting>(vec![]).when(erase.clone()).then([erased.clone()]);
    given::<Meeting>(vec![erased]).when(erase).then_nothing();
}

#[test]
fn an_event_that_does_not_fit_the_state_changes_nothing() {
    let life = worked_on([complete(), erase()]);
    let (_, without_its_end) = life.split_last().expect("it has one");
    assert_eq!(Meeting::fold(&without_its_end[1..]), Meeting::Unregistered);
    assert_eq!(Meeting::fold(&life[1..]), Meeting::Erased { attempts: 0 }, "whatever was skipped of it");
    let erased = Meeting::fold(&life);
    assert_eq!(erased, Meeting::Erased { attempts: 1 });
    assert_eq!(Meeting::fold(life.iter().chain(&life[1..])), erased);
}
