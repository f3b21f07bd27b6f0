//! Any history of commands, projected while it grows by projectors that come and go.

use chrono::TimeDelta;
use domain::ids::{FileId, MeetingId, ProfileId, SampleId};
use domain::meeting::{FailMeeting, MeetingCommand, RegisterMeeting};
use domain::profile::ProfileCommand;
use domain::speaker::{Cluster, Confidence, Decision, Evidence};
use domain::voice::Voice;
use event_store::command_bus::Context;
use sqlx::Executor;
use tests::TestDatabase;
use tests::clock::now;
use uuid::Uuid;

use super::history::{
    append, cached, completed, created, diarized, outdated, reassigned, registered, started,
};
use super::{assert_tables_equal_the_fold, caught_up_and_equal};

/// Few of each, so that they meet.
const MEETINGS: u128 = 6;
const PROFILES: u128 = 3;
const COMMANDS: usize = 600;

#[tokio::test]
async fn the_tables_show_any_history_however_projectors_come_and_go() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut projector = database.open().await;
    projector.start_projector();

    let (mut accepted, mut refused) = (0, 0);
    for n in 0..COMMANDS {
        let context = Context::system("test");
        let done = if random.u8(..5) == 0 {
            let id = ProfileId::from(Uuid::from_u128(0xeeee + random.u128(..PROFILES)));
            book.bus.profile(id, profile_command(&mut random, id), &context).await.is_ok()
        } else {
            let id = MeetingId::from(Uuid::from_u128(0xaaaa + random.u128(..MEETINGS)));
            book.bus.meeting(id, meeting_command(&mut random, id), &context).await.is_ok()
        };
        if done {
            accepted += 1;
        } else {
            refused += 1;
        }
        if random.u8(..40) == 0 {
            println!("seed {seed}: a new projector after command {n}");
            projector.close().await;
            assert_tables_equal_the_fold(book.pool()).await;
            projector = database.open().await;
            projector.start_projector();
        }
    }

    println!("seed {seed}: {accepted} accepted, {refused} refused");
    let position = caught_up_and_equal(book.pool()).await;
    assert!(position > 50, "seed {seed}: hardly anything happened");
    projector.close().await;
    book.close().await;
}

#[tokio::test]
async fn the_comparison_sees_a_row_that_is_wrong_missing_or_one_too_many() {
    for wrong in [
        "UPDATE files SET size = size + 1",
        "UPDATE meetings SET finished_at = finished_at + interval '1 microsecond'",
        "UPDATE speakers SET confidence = 0",
        "INSERT INTO speakers (id) VALUES (gen_random_uuid())",
        "UPDATE user_profiles SET display_name = 'Bo'",
        "DELETE FROM user_profiles",
        "DELETE FROM artifacts",
        "UPDATE stale_artifacts SET position = position - 1",
        "DELETE FROM stale_artifacts",
        "UPDATE speaker_reassignments SET actor = 'nobody'",
        "UPDATE speaker_reassignments SET recorded_at = recorded_at - interval '1 microsecond'",
        "DELETE FROM speaker_reassignments",
        "UPDATE cache SET value = value || ' ' WHERE key LIKE 'asr%'",
        "DELETE FROM cache WHERE key LIKE 'meeting:%'",
        "UPDATE cache_origin SET position = position - 1",
        "UPDATE checkpoint SET position = position - 1",
    ] {
        let database = TestDatabase::create().await;
        let book = database.open().await;
        let meeting = Uuid::from_u128(0xa0);
        for event in [
            created(Uuid::from_u128(1), "Ada"),
            registered(meeting),
            started(meeting, 1),
            diarized(meeting, 1, &["a"]),
            reassigned(meeting, 1, "a", Some(Uuid::from_u128(1))),
            cached(meeting, "asr", "pcm:1", "words", None),
            completed(meeting, 1, &["a"], &[("transcript.md", "1.md")]),
            outdated(meeting, 1, "a", &["transcript.md"]),
        ] {
            append(&book, &event).await;
        }
        book.start_projector();
        caught_up_and_equal(book.pool()).await;
        let pool = database.pool().await;
        pool.execute(wrong).await.unwrap();
        let compared = tokio::spawn(async move { assert_tables_equal_the_fold(&pool).await });
        assert!(compared.await.is_err(), "not seen: {wrong}");
        book.close().await;
    }
}

/// Any command of a meeting; most are refused.
pub(crate) fn meeting_command(random: &mut fastrand::Rng, id: MeetingId) -> MeetingCommand {
    let at = now();
    let worker = "w".parse().unwrap();
    let artifact_types = ["transcript.md", "transcript.vtt", "summary.json"];
    match random.u8(..27) {
        0..=4 => {
            let file = domain::file::File {
                id: FileId::from(Uuid::from_u128(id.as_uuid().as_u128() + 0xf000)),
                sha256: "cd".repeat(32).parse().unwrap(),
                mime: None,
                size: None,
                duration: None,
                owner: None,
            };
            MeetingCommand::Register(RegisterMeeting { meeting_id: id, file, at })
        }
        5..=7 => MeetingCommand::Start { worker, at },
        8 => MeetingCommand::Retry { worker, at },
        9 => MeetingCommand::Reprocess { worker, at },
        10..=11 => {
            let content_fp = format!("pcm:{}", random.u8(..2)).parse().unwrap();
            MeetingCommand::RecordFingerprint { content_fp }
        }
        12 => MeetingCommand::RecordLanguage { language: ["en", "de"][random.usize(..2)].parse().unwrap() },
        13..=14 => speakers(random),
        15..=16 => MeetingCommand::ReassignSpeaker {
            speaker_id: id.speaker(random.u32(1..4), &random_cluster(random).parse().unwrap()),
            to: random.bool().then(|| random_profile(random)),
            expected: None,
            reason: "heard it".parse().unwrap(),
        },
        17..=18 => {
            let artifact_type = artifact_types[random.usize(..3)];
            MeetingCommand::StoreArtifact {
                artifact_type: serde_json::from_value(artifact_type.into()).unwrap(),
                s3_key: format!("{}/{artifact_type}", random.u8(..3)).parse().unwrap(),
                meta: None,
            }
        }
        19..=20 => MeetingCommand::CacheStageResult {
            stage: "asr".parse().unwrap(),
            value: random.u8(..3).to_string(),
            // Some expire while the test runs.
            expires_at: random.bool().then(|| at + TimeDelta::milliseconds(random.i64(1..500))),
            at,
        },
        21 => MeetingCommand::Complete { at },
        22 if random.u8(..4) == 0 => {
            MeetingCommand::Erase { reason: "on request".parse().unwrap(), at, lost: None }
        }
        22 if random.u8(..4) == 0 => MeetingCommand::ForgetPerson { profile_id: random_profile(random) },
        22 => MeetingCommand::Complete { at },
        23 => MeetingCommand::DismissCorrection {
            speaker_id: id.speaker(random.u32(1..4), &random_cluster(random).parse().unwrap()),
            reason: "noise".parse().unwrap(),
        },
        24..=25 => MeetingCommand::UndoReassignment {
            speaker_id: id.speaker(random.u32(1..4), &random_cluster(random).parse().unwrap()),
            expected: None,
            reason: "misheard".parse().unwrap(),
        },
        _ => MeetingCommand::Fail(FailMeeting {
            stage: "asr".parse().unwrap(),
            reason: "noise".parse().unwrap(),
            at,
        }),
    }
}

fn random_cluster(random: &mut fastrand::Rng) -> &'static str {
    ["a", "b", "c"][random.usize(..3)]
}

fn random_profile(random: &mut fastrand::Rng) -> ProfileId {
    Uuid::from_u128(0xeeee + random.u128(..PROFILES)).into()
}

fn speakers(random: &mut fastrand::Rng) -> MeetingCommand {
    let labels = ["a", "b", "c"].into_iter().filter(|_| random.bool()).collect::<Vec<_>>();
    let cluster = |label: &&str| {
        let segments = (0..random.usize(..3)).map(|_| (random.u32(..50), random.u32(..50)).into()).collect();
        Cluster { cluster_id: label.parse().unwrap(), segments, speech_ms: None, voice: None }
    };
    let clusters = labels.iter().map(cluster).collect::<Vec<_>>();
    let evidence = Evidence {
        model: "resemblyzer-0.1.4".parse().unwrap(),
        policy_version: "1".parse().unwrap(),
        margin: None,
        candidates: vec![],
    };
    let decision = |label: &&str| {
        let evidence = evidence.clone();
        let decision = if random.bool() {
            let confidence = Confidence::try_from(random.f64()).unwrap();
            Decision::Identified { profile_id: random_profile(random), confidence, evidence }
        } else {
            Decision::NotIdentified { evidence }
        };
        (label.parse().unwrap(), decision)
    };
    let decisions = labels.iter().map(decision).collect();
    MeetingCommand::RecordSpeakers { clusters: clusters.try_into().unwrap(), decisions }
}

/// Any command of a profile; some are refused.
pub(crate) fn profile_command(random: &mut fastrand::Rng, id: ProfileId) -> ProfileCommand {
    let sample_id = SampleId::from(Uuid::from_u128(random.u128(..4)));
    match random.u8(..10) {
        0..=2 => ProfileCommand::Create { profile_id: id, display_name: "Ada".parse().unwrap(), at: now() },
        3..=4 => {
            ProfileCommand::Rename { display_name: ["Ada", "Ada King"][random.usize(..2)].parse().unwrap() }
        }
        5..=7 => {
            let vector = (0..256).map(|_| random.f32() - 0.5).collect::<Vec<_>>();
            let voice =
                Voice { model: "resemblyzer-0.1.4".parse().unwrap(), vector: vector.try_into().unwrap() };
            ProfileCommand::EnrolVoice { sample_id, voice, source: None, at: now() }
        }
        8 => ProfileCommand::RemoveVoice { sample_id },
        _ if random.u8(..4) == 0 => ProfileCommand::Erase { at: now(), lost: false },
        _ => ProfileCommand::RemoveVoice { sample_id },
    }
}
