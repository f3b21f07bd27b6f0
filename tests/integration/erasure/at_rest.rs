//! What lies on the disk: sealed as long as somebody is known, and neither a name nor a voice once they are forgotten.

use std::path::Path;
use std::time::Duration;

use api::book::Book;
use api::clock::now;
use domain::artifact::{ArtifactType, Meta};
use domain::ids::{MeetingId, ProfileId};
use domain::meeting::MeetingCommand;
use domain::profile::ProfileCommand;
use domain::speaker::{Cluster, Decision, Evidence};
use domain::voice::{Vector, Voice};
use event_store::command_bus::Context;
use projections::{erasure, freshness};
use serde_json::json;
use sqlx::Executor;
use tests::TestDatabase;
use tests::bench::register;
use tokio::process::Command;
use tokio::time::Instant;
use uuid::Uuid;

use super::NAME;

/// A number as text, and as `jsonb` has it: groups of four decimal digits.
const SAMPLE: (f32, &str, &[u8]) = (1.234_567_9e-4, "0.00012345679", &[0x01, 0x00, 0x29, 0x09, 0x86, 0x1a]);
const HEARD: (f32, &str, &[u8]) = (2.345_678e-4, "0.0002345678", &[0x02, 0x00, 0x80, 0x0d, 0x78, 0x1e]);

#[tokio::test]
async fn neither_a_dump_nor_the_data_directory_holds_whoever_was_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    // The user who runs PostgreSQL for root must be able to pass.
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let cluster = directory.path().join("embedded/cluster");
    let config = TestDatabase { url: String::new() }.config();
    let config = api::config::DatabaseConfig {
        database_url: None,
        data_dir: Some(directory.path().to_owned()),
        ..config
    };
    let book = Book::open(&config).await.unwrap();
    book.start_projector();
    book.start_erasures();
    let (profile, meeting) = told(&book).await;
    // Who has an old copy of the master key unwraps it.
    let wrapped = |kind: &'static str| {
        sqlx::query_scalar::<_, Vec<u8>>("SELECT wrapped FROM keys.subjects WHERE kind = $1")
            .bind(kind)
            .fetch_one(book.pool())
    };
    let (person, spoke, spoken) = (
        wrapped("profile").await.unwrap(),
        wrapped("speaker").await.unwrap(),
        wrapped("meeting").await.unwrap(),
    );
    let needles: [(&str, &[u8]); 8] = [
        ("the name", NAME.as_bytes()),
        ("the sample", SAMPLE.1.as_bytes()),
        ("the sample as a number", SAMPLE.2),
        ("the speaker's voice", HEARD.1.as_bytes()),
        ("the speaker's voice as a number", HEARD.2),
        ("the person's key", &person),
        ("the voice's key", &spoke),
        ("the meeting's key", &spoken),
    ];
    let found = |bytes: &[u8]| -> Vec<&str> {
        needles.iter().filter(|(_, needle)| contains(bytes, needle)).map(|(what, _)| *what).collect()
    };

    // As long as they are known: the tables have name and samples, and the log has nothing in clear.
    assert_eq!(found(&dump(&book, &["--schema", "read"]).await), ["the name", "the sample"]);
    assert_eq!(found(&dump(&book, &["--exclude-schema", "read"]).await), [""; 0]);
    book.pool().execute("CHECKPOINT").await.unwrap();
    let lies = files(&cluster, &needles);
    for what in ["the name", "the sample as a number", "the person's key"] {
        assert!(lies.contains(&what), "{what}: {lies:?}");
    }

    let context = Context::system("test");
    erasure::erase_profile(&book.store, &book.bus, profile, now(), &context).await.unwrap();
    let reason = "on request".parse().unwrap();
    erasure::erase_meeting(&book.store, &book.bus, meeting, reason, now(), &context).await.unwrap();
    for subject in [profile.as_uuid(), meeting.as_uuid()] {
        let deadline = Instant::now() + Duration::from_secs(30);
        let receipt = erasure::wait(book.pool(), subject, deadline).await.unwrap().unwrap();
        assert_eq!(receipt.state, "complete", "{receipt:?}");
    }
    assert_eq!(found(&dump(&book, &[]).await), [""; 0]);

    book.pool().execute("VACUUM FULL").await.unwrap();
    for _ in 0..2 {
        book.pool().execute("SELECT pg_switch_wal()").await.unwrap();
        book.pool().execute("CHECKPOINT").await.unwrap();
    }
    assert_eq!(files(&cluster, &needles), [""; 0]);
    book.close().await;
    assert_eq!(files(directory.path(), &needles), [""; 0]);
}

/// Somebody who speaks in a meeting, with the name in whatever may have it.
async fn told(book: &Book) -> (ProfileId, MeetingId) {
    let profile = ProfileId::from(Uuid::now_v7());
    let voice = |number: f32| Voice {
        model: "m".parse().unwrap(),
        vector: Vector::try_from(vec![0.5, number]).unwrap(),
    };
    for command in [
        ProfileCommand::Create { profile_id: profile, display_name: "Somebody".parse().unwrap(), at: now() },
        ProfileCommand::Rename { display_name: NAME.parse().unwrap() },
        ProfileCommand::EnrolVoice {
            sample_id: Uuid::now_v7().into(),
            voice: voice(SAMPLE.0),
            source: Some(NAME.parse().unwrap()),
            at: now(),
        },
    ] {
        book.bus.profile(profile, command, &Context::default()).await.unwrap();
    }
    let meeting: MeetingId = register(book, 1).await.aggregate_id.parse().unwrap();
    let evidence = Evidence {
        model: "m".parse().unwrap(),
        policy_version: "1".parse().unwrap(),
        margin: None,
        candidates: vec![],
    };
    let cluster = Cluster {
        cluster_id: "a".parse().unwrap(),
        segments: vec![],
        speech_ms: Some(1000),
        voice: Some(voice(HEARD.0).into()),
    };
    let meta: Meta = serde_json::from_value(json!({"who": NAME})).unwrap();
    let mut position = 0;
    for command in [
        MeetingCommand::Start { worker: "w".parse().unwrap(), at: now() },
        MeetingCommand::RecordFingerprint { content_fp: "fp".parse().unwrap() },
        MeetingCommand::RecordSpeakers {
            clusters: vec![cluster].try_into().unwrap(),
            decisions: vec![(
                "a".parse().unwrap(),
                Decision::Identified { profile_id: profile, confidence: 0.9.try_into().unwrap(), evidence },
            )],
        },
        MeetingCommand::StoreArtifact {
            artifact_type: ArtifactType::SummaryJson,
            s3_key: "m/1.json".parse().unwrap(),
            meta: Some(meta),
        },
        MeetingCommand::CacheStageResult {
            stage: "asr".parse().unwrap(),
            value: NAME.to_owned(),
            expires_at: None,
            at: now(),
        },
        MeetingCommand::ReassignSpeaker {
            speaker_id: meeting.speaker(1, &"a".parse().unwrap()),
            to: None,
            expected: None,
            reason: NAME.parse().unwrap(),
        },
        MeetingCommand::Complete { at: now() },
    ] {
        position = book.bus.meeting(meeting, command, &Context::default()).await.unwrap().position;
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    assert!(freshness::wait_for(book.pool(), &book.projection, position, deadline).await.unwrap());
    // Statistics hold values.
    book.pool().execute("ANALYZE").await.unwrap();
    (profile, meeting)
}

/// Returns what `pg_dump` writes.
async fn dump(book: &Book, arguments: &[&str]) -> Vec<u8> {
    let embedded = book.embedded().unwrap();
    let options = book.pool().connect_options();
    let output = Command::new(embedded.binaries.join("pg_dump"))
        .args(arguments)
        .env("PGPASSFILE", &embedded.passfile)
        .env("PGHOST", &embedded.socket_dir)
        .env("PGPORT", options.get_port().to_string())
        .env("PGUSER", options.get_username())
        .env("PGDATABASE", options.get_database().unwrap())
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(contains(&output.stdout, b"PostgreSQL database dump complete"));
    output.stdout
}

/// Returns which needles are in any file below a directory.
fn files<'a>(directory: &Path, needles: &[(&'a str, &[u8])]) -> Vec<&'a str> {
    let mut found = vec![];
    let mut directories = vec![directory.to_owned()];
    let mut read = 0;
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            // One that is gone meanwhile, or a socket.
            let Ok(bytes) = std::fs::read(&path) else { continue };
            read += bytes.len();
            for (what, needle) in needles {
                if contains(&bytes, needle) && !found.contains(what) {
                    found.push(*what);
                }
            }
        }
    }
    assert!(read > 1_000_000, "that is no cluster");
    found
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(bytes, needle).is_some()
}
