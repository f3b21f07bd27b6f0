//! What is personal is in the log only sealed; it opens at its place, with its subject's key, and nowhere else; and
//! a key comes with the events that need it, or not at all.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;

use api::book::Book;
use api::config::DatabaseConfig;
use domain::artifact::ArtifactType;
use domain::file::File;
use domain::ids::{FileId, MeetingId, ProfileId, SampleId};
use domain::meeting::{FailMeeting, MeetingCommand, MeetingError, RegisterMeeting};
use domain::personal_data::Subject;
use domain::profile::{ProfileCommand, ProfileError};
use domain::speaker::{Cluster, Diarization, Segment};
use domain::voice::Voice;
use event_store::append::{Append, NewEvent, Outcome};
use event_store::command_bus::{CommandError, Context};
use event_store::locks;
use event_store::log::{self, BatchLimits, Entry};
use event_store::sealing::{KeyError, Needs, Rotated};
use futures::future::join_all;
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgPool};
use tests::TestDatabase;
use tests::clock::now;
use uuid::Uuid;

use crate::cli::{minutebook, run, run_on};
use crate::log::{json_of, whole_log};
use crate::read_models::{caught_up_and_equal, eventually};

const NAME: &str = "Ottilie Brandauer";
const LATER_NAME: &str = "Ottilie Zwimpfer";
const SOURCE: &str = "answering machine, March";
const RESULT: &str = "the words of the whole meeting";
const META: &str = "written by Ottilie herself";
const WHY: &str = "I know her cough";
const WHY_NOT: &str = "it was Ottilie's radio";
const WHY_FAILED: &str = "the model saw Ottilie and fell over";
const NUMBER: f32 = 0.123_456_78;

#[tokio::test]
async fn a_dump_of_the_log_holds_nothing_personal_and_every_reader_does() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    let Lived { profile, meeting, .. } = live(&book).await;
    let pool = book.pool();

    let personal = [NAME, LATER_NAME, "Ottilie", SOURCE, RESULT, META, WHY, WHY_NOT, WHY_FAILED]
        .map(str::to_owned)
        .into_iter()
        .chain(["0.12345678".to_owned(), "0.1234567".to_owned(), hex(&NUMBER.to_le_bytes())]);
    let dumped = dump(pool).await;
    assert!(dumped.contains("VoiceEnrolled") && dumped.contains("\"sealed\""), "the dump is of the log");
    for text in personal.clone() {
        assert!(!dumped.contains(&text), "{text:?} is in the dump");
    }

    // Nothing was lost by it.
    let opened = tests::opened_log(pool).await;
    let opened = opened.iter().map(|event| event.payload.as_str()).collect::<Vec<_>>().join("\n");
    for text in [NAME, LATER_NAME, SOURCE, RESULT, META, WHY, WHY_NOT, WHY_FAILED, "0.12345678"] {
        assert!(opened.contains(text), "{text:?} does not come back");
    }
    assert!(!opened.contains("\"sealed\""), "{opened}");
    book.start_projector();
    caught_up_and_equal(pool).await;
    let (name, embeddings): (String, Value) =
        sqlx::query_as("SELECT display_name, embeddings FROM read.user_profiles WHERE id = $1")
            .bind(profile.as_uuid())
            .fetch_one(pool)
            .await
            .unwrap();
    assert_eq!((name.as_str(), &embeddings[0]["source"]), (LATER_NAME, &json!(SOURCE)));
    assert_eq!(embeddings[0]["vector"][0].as_f64().unwrap() as f32, NUMBER);
    let cached: String = sqlx::query_scalar("SELECT value FROM read.cache WHERE key LIKE 'transcribe:%'")
        .fetch_one(pool)
        .await
        .unwrap();
    assert_eq!(cached, RESULT);
    let reason: String =
        sqlx::query_scalar("SELECT reason FROM read.speaker_reassignments ORDER BY position")
            .fetch_one(pool)
            .await
            .unwrap();
    assert_eq!(reason, WHY);
    // A state is made of opened events: a repeated command is known for one.
    let again = book.bus.profile(profile, enrol(SampleId::from(Uuid::from_u128(1))), &context()).await;
    assert_eq!(again.unwrap().events, Vec::<String>::new());
    let fresh = database.open().await;
    let again = fresh.bus.meeting(meeting, fail(), &context()).await;
    assert_eq!(again.unwrap().events, Vec::<String>::new());
}

#[tokio::test]
async fn a_value_sealed_twice_is_two_texts_and_each_subject_has_one_key() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    let one = create(&book, NAME).await;
    let other = create(&book, NAME).await;
    book.bus.profile(one, rename(LATER_NAME), &context()).await.unwrap();
    book.bus.profile(one, rename(NAME), &context()).await.unwrap();
    let sealed = whole_log(book.pool()).await.into_iter().map(|event| event.payload);
    let sealed = sealed.map(|payload| payload.split_once("\"sealed\": \"").unwrap().1.to_owned());
    let mut different = sealed.collect::<Vec<_>>();
    different.sort();
    different.dedup();
    assert_eq!(different.len(), 4);
    assert_eq!(
        keys(book.pool()).await,
        BTreeMap::from([
            (("profile".to_owned(), one.as_uuid()), true),
            (("profile".to_owned(), other.as_uuid()), true)
        ])
    );
}

#[tokio::test]
async fn a_sealed_value_in_another_place_is_damage_and_is_not_taken_for_forgotten() {
    /// Moves what is sealed in one event into another one.
    const MOVED: &str =
        "UPDATE log.events e SET payload = jsonb_set(e.payload, $2::text[], o.payload #> $4::text[])
                           FROM log.events o WHERE e.position = $1 AND o.position = $3";
    let database = TestDatabase::create().await;
    let book = database.open().await;
    let one = create(&book, NAME).await;
    book.bus.profile(one, rename(LATER_NAME), &context()).await.unwrap();
    book.bus.profile(one, enrol(SampleId::from(Uuid::from_u128(1))), &context()).await.unwrap();
    let other = create(&book, "Mira Sandoz").await;
    let pool = book.pool();
    let created = ["ProfileCreated", "display_name"];
    let renamed = ["ProfileRenamed", "display_name"];
    let source = ["VoiceEnrolled", "source"];
    for (into, field, from, taken, why) in [
        (2, &renamed[..], 1, &created[..], "of another event of its aggregate"),
        (4, &created[..], 1, &created[..], "of another aggregate"),
        (3, &source[..], 3, &["VoiceEnrolled", "voice", "vector"][..], "of another field"),
    ] {
        let mut transaction = pool.begin().await.unwrap();
        transaction.execute("ALTER TABLE log.events DISABLE TRIGGER events_are_append_only").await.unwrap();
        let moved = sqlx::query(MOVED).bind(into).bind(field).bind(from).bind(taken);
        assert_eq!(moved.execute(&mut *transaction).await.unwrap().rows_affected(), 1, "{why}");
        let limits = BatchLimits { events: 10, bytes: usize::MAX };
        let keyring = book.store.keyring();
        let start = (String::new(), 0);
        let read = log::read_aggregates(&mut transaction, keyring, "profile", &start, "~", 10, limits);
        for entry in read.await.unwrap() {
            let position = entry.position();
            match entry {
                Entry::Event(_) => assert_ne!(position, into, "{why}"),
                Entry::Unreadable(damaged) => {
                    assert_eq!(position, into, "{why}");
                    let told = damaged.source.to_string();
                    assert!(told.contains("does not open: it is damaged"), "{told}");
                    assert!(!told.contains("Ottilie"), "{told}");
                }
            }
        }
        transaction.rollback().await.unwrap();
    }

    // A text with a bit turned over, for good: whoever needs the event says so, and verify finds it.
    pool.execute("ALTER TABLE log.events DISABLE TRIGGER events_are_append_only").await.unwrap();
    let turned = "UPDATE log.events SET payload = jsonb_set(payload, '{ProfileRenamed,display_name,sealed}',
                         to_jsonb(translate(payload #>> '{ProfileRenamed,display_name,sealed}', 'Ag', 'gA')))
                   WHERE position = 2";
    pool.execute(turned).await.unwrap();
    let fresh = database.open().await;
    let refused = fresh.bus.profile(one, rename(NAME), &context()).await;
    assert!(matches!(refused, Err(CommandError::Unreadable { position: 2, .. })), "{refused:?}");
    fresh.bus.profile(other, rename(NAME), &context()).await.unwrap();
    let verified = run_on(&database, &["verify"]).await;
    let told = verified.stdout + &verified.stderr;
    assert!(verified.code == Some(1) && told.contains("position 2"), "{told}");
}

#[tokio::test]
async fn whoever_is_forgotten_is_null_for_every_reader_and_no_key_is_made_again() {
    let database = TestDatabase::create().await;
    let (book, other) = (database.open().await, database.open().await);
    let Lived { profile, meeting, speaker, .. } = live(&book).await;
    let pool = book.pool();
    // It has the profile's state and its key.
    other.bus.profile(profile, rename(NAME), &context()).await.unwrap();

    let destroyed =
        destroy(&book, &[Subject::Profile(profile), Subject::Profile(Uuid::from_u128(77).into())]).await;
    assert_eq!(destroyed, 1, "the other one had none, and never gets one");
    assert_eq!(destroy(&book, &[Subject::Profile(profile)]).await, 0, "once is enough");
    let opened = tests::opened_log(pool).await;
    for event in opened.iter().filter(|event| event.aggregate_type == "profile") {
        assert!(event.decode().is_ok(), "{}", event.event_type);
        assert!(
            !event.payload.contains("Ottilie") && !event.payload.contains("\"sealed\""),
            "{}",
            event.payload
        );
    }
    let enrolled = opened.iter().find(|event| event.event_type == "VoiceEnrolled").unwrap();
    let enrolled = &json_of(&enrolled.payload)["VoiceEnrolled"];
    assert_eq!((&enrolled["voice"]["vector"], &enrolled["source"]), (&Value::Null, &Value::Null));
    assert_eq!(enrolled["voice"]["model"], "resemblyzer-0.1.4");

    // Whether or not it has the key in its memory.
    for book in [&book, &other, &database.open().await] {
        let before = log::head(pool).await.unwrap();
        let refused = book.bus.profile(profile, rename("Somebody Else"), &context()).await;
        assert!(matches!(refused, Err(CommandError::Forgotten)), "{refused:?}");
        let refused = book.bus.meeting(meeting, reassign(speaker, Some(profile)), &context()).await;
        assert!(matches!(refused, Err(CommandError::Forgotten)), "{refused:?}");
        // Somebody who never was here, and must not come.
        let refused = book.bus.profile(Uuid::from_u128(77).into(), create_command(77), &context()).await;
        assert!(matches!(refused, Err(CommandError::Forgotten)), "{refused:?}");
        // A meeting that names the person still is told; nobody else's event is appended.
        let appended = "SELECT metadata ->> 'actor' FROM log.events WHERE position > $1";
        let actors: Vec<String> = sqlx::query_scalar(appended).bind(before).fetch_all(pool).await.unwrap();
        assert!(actors.iter().all(|actor| actor == "erasure"), "{actors:?}");
    }
    assert!(!keys(pool).await[&("profile".to_owned(), profile.as_uuid())]);
    let erase = ProfileCommand::Erase { at: now(), lost: false };
    other.bus.profile(profile, erase, &context()).await.unwrap();
    let refused = book.bus.profile(profile, rename("Somebody Else"), &context()).await;
    assert!(matches!(refused, Err(CommandError::Refused(ProfileError::Erased))), "{refused:?}");
}

#[tokio::test]
async fn a_speaker_who_was_forgotten_is_diarized_again_without_a_voice() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    let meeting = MeetingId::from(Uuid::from_u128(0x100));
    let diarize = |labels: &[&str]| {
        let cluster = |label: &&str| Cluster {
            cluster_id: label.parse().unwrap(),
            segments: vec![Segment { start_ms: 0, duration_ms: 4000 }],
            speech_ms: None,
            voice: Some(voice().into()),
        };
        let clusters = labels.iter().map(cluster).collect::<Vec<_>>();
        MeetingCommand::RecordSpeakers { clusters: clusters.try_into().unwrap(), decisions: vec![] }
    };
    for command in [register(meeting), start(), diarize(&["spk00", "spk01"])] {
        book.bus.meeting(meeting, command, &context()).await.unwrap();
    }
    destroy(&book, &[Subject::Speaker(meeting.speaker(1, &"spk00".parse().unwrap()))]).await;
    for book in [&book, &database.open().await] {
        let labels = ["spk00", "spk01", "spk02"];
        let done = book.bus.meeting(meeting, diarize(&labels), &context()).await.unwrap();
        let stored = tests::opened_log(book.pool()).await.pop().unwrap();
        assert_eq!((stored.position, &*stored.event_type), (done.position, "SpeakersDiarized"));
        let clusters = json_of(&stored.payload)["SpeakersDiarized"]["clusters"].clone();
        let voices = (0..3).map(|n| clusters[n]["voice"]["vector"].is_array()).collect::<Vec<_>>();
        assert_eq!(voices, [false, true, true]);
    }
}

#[tokio::test]
async fn a_process_learns_that_somebody_was_forgotten_elsewhere() {
    let database = TestDatabase::create().await;
    let (book, other) = (database.open().await, database.open().await);
    let profile = create(&book, NAME).await;
    let before = other.store.keyring().destructions();
    destroy(&book, &[Subject::Profile(profile)]).await;
    let noticed = async || (other.store.keyring().destructions() > before).then_some(());
    eventually("the other process learns that somebody was forgotten", noticed).await;
}

#[tokio::test]
async fn a_meeting_registered_anew_after_it_was_forgotten_has_another_key() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    let Lived { meeting, .. } = live(&book).await;
    let pool = book.pool();
    // The one reason that is not sealed: it outlives the key.
    let erase = MeetingCommand::Erase { reason: "on request".parse().unwrap(), at: now(), lost: None };
    book.bus.meeting(meeting, erase, &context()).await.unwrap();
    destroy(&book, &[Subject::Meeting(meeting)]).await;
    let until = log::head(pool).await.unwrap();

    for book in [&book, &database.open().await] {
        for command in [register(meeting), start()] {
            let _ = book.bus.meeting(meeting, command, &context()).await;
        }
    }
    let fail = MeetingCommand::Fail(FailMeeting {
        stage: "transcribe".parse().unwrap(),
        reason: "the second life".parse().unwrap(),
        at: now(),
    });
    book.bus.meeting(meeting, fail, &context()).await.unwrap();
    let opened = tests::opened_log(pool).await;
    for event in opened.iter().filter(|event| event.aggregate_id == meeting.to_string()) {
        assert!(event.decode().is_ok(), "{}", event.event_type);
        let later = event.payload.contains("the second life");
        assert_eq!(later, event.event_type == "MeetingFailed" && event.position > until);
        assert!(!event.payload.contains(WHY) && !event.payload.contains(RESULT));
    }
    let life: i32 = sqlx::query_scalar("SELECT life FROM keys.subjects WHERE kind = 'meeting'")
        .fetch_one(pool)
        .await
        .unwrap();
    assert_eq!(life, 2);
}

#[tokio::test]
async fn an_append_that_is_refused_leaves_no_key() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    let pool = book.pool();
    let created = |id: Uuid, expected_version: i64| Append {
        command_id: Uuid::now_v7(),
        request_hmac: vec![],
        aggregate_type: "profile",
        aggregate_id: id.to_string(),
        expected_version,
        metadata: json!({"actor": "test", "actor_kind": "system"}).to_string(),
        events: vec![
            domain::Event::Profile(
                id.into(),
                serde_json::from_value(json!({"ProfileCreated": {"profile_id": id, "display_name": NAME,
                                                                 "created_at": "2026-01-01T00:00:00Z"}}))
                .unwrap(),
            )
            .into(),
        ],
    };
    let [conflicting, flawed, sound] = [1, 2, 3].map(Uuid::from_u128);
    let appender = book.store.appender();
    let outcome = appender.append(created(conflicting, 7)).await.unwrap();
    assert_eq!(outcome, Outcome::Conflict { actual_version: 0 });
    // The database refuses it, and its neighbour of the same group stands.
    let broken = Append { metadata: "not JSON".to_owned(), ..created(flawed, 0) };
    let (refused, stands) = tokio::join!(appender.append(broken), appender.append(created(sound, 0)));
    assert!(refused.is_err(), "{refused:?}");
    assert!(matches!(stands, Ok(Outcome::Appended(_))), "{stands:?}");
    assert_eq!(keys(pool).await, BTreeMap::from([(("profile".to_owned(), sound), true)]));
    // What was refused is as if it had never been.
    assert!(matches!(appender.append(created(flawed, 0)).await, Ok(Outcome::Appended(_))));
    for event in tests::opened_log(pool).await {
        assert!(event.payload.contains(NAME), "{}", event.aggregate_id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_rivals_that_make_a_key_at_once_one_does_and_all_can_be_read() {
    let database = TestDatabase::create().await;
    let books = [database.open().await, database.open().await];
    for round in 0..20 {
        let id = ProfileId::from(Uuid::now_v7());
        let enrolments = (0..8).map(|n| {
            let bus = &books[n % 2].bus;
            async move {
                let create =
                    ProfileCommand::Create { profile_id: id, display_name: NAME.parse().unwrap(), at: now() };
                bus.profile(id, create, &context()).await.unwrap();
                let sample = SampleId::from(Uuid::from_u128(n as u128));
                bus.profile(id, enrol(sample), &context()).await.unwrap();
            }
        });
        join_all(enrolments).await;
        let life: i64 = sqlx::query_scalar("SELECT count(*) FROM keys.subjects WHERE wrapped IS NOT NULL")
            .fetch_one(books[0].pool())
            .await
            .unwrap();
        assert_eq!(life, round + 1);
    }
    for event in tests::opened_log(books[0].pool()).await {
        assert!(event.decode().is_ok() && !event.payload.contains("\"sealed\""), "{}", event.payload);
    }
}

#[tokio::test]
async fn another_master_key_is_refused_and_so_is_a_log_that_was_written_unsealed() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    create(&book, NAME).await;
    book.close().await;
    let key = |byte: u8| base64(&[byte; 32]);
    let another = DatabaseConfig { master_key: Some(key(1)), ..database.config() };
    let directory = tempfile::tempdir().unwrap();
    let missing =
        DatabaseConfig { master_key_file: Some(directory.path().join("none.key")), ..database.config() };
    for config in [&another, &missing] {
        let error = format!("{:#}", Book::open(config).await.err().unwrap());
        assert!(error.contains("sealed under another master key"), "{error}");
        assert!(!error.contains(&key(1)), "{error}");
    }
    assert!(!directory.path().join("none.key").exists(), "no key is made for a log that has one");
    let unfit = DatabaseConfig { master_key: Some("secret".to_owned()), ..database.config() };
    let error = format!("{:#}", Book::open(&unfit).await.err().unwrap());
    assert!(error.contains("does not hold master keys") && !error.contains("secret"), "{error}");

    database.pool().await.execute("DELETE FROM keys.master").await.unwrap();
    for arguments in [&["status"][..], &["verify"], &["events"], &["keys", "status"], &["migrate"]] {
        let refused = run_on(&database, arguments).await;
        assert_eq!(refused.code, Some(1), "{arguments:?}");
        assert!(refused.stderr.contains("before personal data was sealed"), "{}", refused.stderr);
    }
}

#[tokio::test]
async fn the_first_start_makes_a_master_key_that_its_owner_alone_can_read() {
    let database = TestDatabase::create().await;
    database.pool().await.execute("DELETE FROM keys.master").await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys/master.key");
    let config = DatabaseConfig { master_key_file: Some(file.clone()), ..database.config() };
    // Two at once: one makes it, both use it.
    let (one, other) = tokio::join!(Book::open(&config), Book::open(&config));
    let (one, other) = (one.unwrap(), other.unwrap());
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
    assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "nothing half made is left");
    let id = create(&one, NAME).await;
    other.bus.profile(id, rename(LATER_NAME), &context()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_master_key_changes_while_others_append_and_read_and_no_event_is_touched() {
    let database = TestDatabase::create().await;
    database.pool().await.execute("DELETE FROM keys.master").await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("master.key");
    let config = DatabaseConfig { master_key_file: Some(file.clone()), ..database.config() };
    let book = Book::open(&config).await.unwrap();
    for _ in 0..50 {
        create(&book, NAME).await;
    }
    let old = std::fs::read_to_string(&file).unwrap();
    let before = whole_log(book.pool()).await;
    let secret = book.store.keyring().secret().hmac(&[b"probe"]);
    let operator = Book::open(&config).await.unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let busy = {
        let (bus, stop) = (book.bus.clone(), stop.clone());
        let (pool, keyring) = (book.pool().clone(), book.store.keyring().clone());
        tokio::spawn(async move {
            let mut made = 0;
            while !stop.is_cancelled() {
                let id = ProfileId::from(Uuid::now_v7());
                let create =
                    ProfileCommand::Create { profile_id: id, display_name: NAME.parse().unwrap(), at: now() };
                bus.profile(id, create, &context()).await.unwrap();
                let limits = BatchLimits { events: 100, bytes: usize::MAX };
                let (read, error) = log::read_recorded(&pool, &keyring, made, limits).await;
                assert!(
                    error.is_none() && read.iter().all(|entry| matches!(entry, Entry::Event(_))),
                    "{error:?}"
                );
                made += 1;
            }
            made
        })
    };
    for _ in 0..3 {
        assert!(operator.store.keyring().rotate(|_| {}).await.unwrap().wrapped >= 50);
    }
    stop.cancel();
    assert!(busy.await.unwrap() > 0);
    let status = operator.store.keyring().status().await.unwrap();
    assert_eq!((status.under_another, status.destroyed), (0, 0));
    let now_in_file = std::fs::read_to_string(&file).unwrap();
    assert!(now_in_file.lines().count() == 1 && now_in_file != old);
    assert_eq!(
        whole_log(book.pool()).await[..before.len()].iter().map(|event| &event.payload).collect::<Vec<_>>(),
        before.iter().map(|event| &event.payload).collect::<Vec<_>>(),
    );
    let fresh = Book::open(&config).await.unwrap();
    let mut all = whole_log(fresh.pool()).await;
    fresh.store.keyring().open_stored(fresh.pool(), &mut all, Needs::Everything).await.unwrap();
    assert!(all.iter().all(|event| event.payload.contains(NAME)), "every key opens under the new one");
    assert_eq!(fresh.store.keyring().secret().hmac(&[b"probe"]), secret, "and so does the log's secret");

    let outdated = DatabaseConfig { master_key: Some(old.trim().to_owned()), ..config };
    let error = format!("{:#}", Book::open(&outdated).await.err().unwrap());
    assert!(error.contains("sealed under another master key"), "{error}");
}

#[tokio::test]
async fn a_master_key_from_the_environment_changes_to_the_one_put_before_it() {
    let database = TestDatabase::create().await;
    database.pool().await.execute("DELETE FROM keys.master").await.unwrap();
    let (old, new) = (base64(&[1; 32]), base64(&[2; 32]));
    let with = |key: &str| DatabaseConfig { master_key: Some(key.to_owned()), ..database.config() };
    let book = Book::open(&with(&old)).await.unwrap();
    create(&book, NAME).await;
    let error = book.store.keyring().rotate(|_| {}).await.unwrap_err().to_string();
    assert!(error.contains("names no other key"), "{error}");
    let both = Book::open(&with(&format!("{new},{old}"))).await.unwrap();
    assert_eq!(both.store.keyring().rotate(|_| {}).await.unwrap(), Rotated { wrapped: 1, damaged: 0 });
    let book = Book::open(&with(&new)).await.unwrap();
    create(&book, LATER_NAME).await;
    let mut all = whole_log(book.pool()).await;
    book.store.keyring().open_stored(book.pool(), &mut all, Needs::Everything).await.unwrap();
    assert!(all[0].payload.contains(NAME) && all[1].payload.contains(LATER_NAME));
}

/// Opens a book whose master key is in a file of its own; returns the file as well.
async fn book_with_a_key_of_its_own(
    database: &TestDatabase,
    directory: &std::path::Path,
) -> (Book, DatabaseConfig, std::path::PathBuf) {
    database.pool().await.execute("DELETE FROM keys.master").await.unwrap();
    let file = directory.join("master.key");
    let config = DatabaseConfig { master_key_file: Some(file.clone()), ..database.config() };
    (Book::open(&config).await.unwrap(), config, file)
}

#[tokio::test]
async fn of_two_rotations_at_once_the_second_is_refused_and_no_master_key_is_lost() {
    let database = TestDatabase::create().await;
    let directory = tempfile::tempdir().unwrap();
    let (book, config, file) = book_with_a_key_of_its_own(&database, directory.path()).await;
    let other = Book::open(&config).await.unwrap();
    for _ in 0..20 {
        create(&book, NAME).await;
    }
    let (first, second) =
        tokio::join!(book.store.keyring().rotate(|_| {}), other.store.keyring().rotate(|_| {}));
    // One may be done before the other begins.
    let refused =
        [&first, &second].into_iter().filter_map(|rotated| rotated.as_ref().err()).collect::<Vec<_>>();
    assert!(refused.len() < 2, "{refused:?}");
    assert!(refused.iter().all(|error| matches!(error, KeyError::Rotating)), "{refused:?}");

    // While one is under way for sure.
    let mut held = sqlx::PgConnection::connect(&database.url).await.unwrap();
    sqlx::query("SELECT pg_advisory_lock($1)").bind(locks::ROTATION).execute(&mut held).await.unwrap();
    let before = std::fs::read_to_string(&file).unwrap();
    let mut rotate = minutebook(&["keys", "rotate"]);
    rotate.env("DATABASE_URL", &database.url).env(tests::MASTER_KEY_FILE, &file);
    let ran = run(&mut rotate).await;
    assert_eq!(ran.code, Some(1), "{}", ran.stdout);
    assert!(ran.stderr.contains("another process puts another master key in place"), "{}", ran.stderr);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), before);
    held.close().await.unwrap();
    assert_eq!(run(&mut rotate).await.code, Some(0));

    let fresh = Book::open(&config).await.unwrap();
    let mut all = whole_log(fresh.pool()).await;
    fresh.store.keyring().open_stored(fresh.pool(), &mut all, Needs::Everything).await.unwrap();
    assert!(all.len() == 20 && all.iter().all(|event| event.payload.contains(NAME)));
}

#[tokio::test]
async fn a_damaged_key_is_passed_over_by_a_rotation_and_told() {
    let database = TestDatabase::create().await;
    let directory = tempfile::tempdir().unwrap();
    let (book, config, file) = book_with_a_key_of_its_own(&database, directory.path()).await;
    let (first, second) = (create(&book, NAME).await, create(&book, NAME).await);
    for _ in 0..3 {
        create(&book, LATER_NAME).await;
    }
    // In the key itself, and in what says which master key wraps it.
    for (profile, byte) in [(first, 40), (second, 5)] {
        sqlx::query("UPDATE keys.subjects SET wrapped = set_byte(wrapped, $2, get_byte(wrapped, $2) # 1) WHERE id = $1")
            .bind(profile.as_uuid())
            .bind(byte)
            .execute(book.pool())
            .await
            .unwrap();
    }
    let old = std::fs::read_to_string(&file).unwrap();
    let mut rotate = minutebook(&["keys", "rotate"]);
    rotate.env("DATABASE_URL", &database.url).env(tests::MASTER_KEY_FILE, &file);
    // And the next one is as good.
    for _ in 0..2 {
        let ran = run(&mut rotate).await;
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert!(ran.stdout.contains("3 keys are wrapped"), "{}", ran.stdout);
        assert!(ran.stderr.contains("warning: 2 keys open under no master key"), "{}", ran.stderr);
    }
    let left = std::fs::read_to_string(&file).unwrap();
    assert!(left.lines().count() == 1 && left != old, "the old one may go");
    let fresh = Book::open(&config).await.unwrap();
    let status = fresh.store.keyring().status().await.unwrap();
    assert_eq!((status.living, status.under_another, status.elsewhere), (5, 0, 2));
    let mut opened = 0;
    for mut event in whole_log(fresh.pool()).await {
        let events = std::slice::from_mut(&mut event);
        let opening = fresh.store.keyring().open_stored(fresh.pool(), events, Needs::Everything).await;
        opened += usize::from(opening.is_ok() && event.payload.contains(LATER_NAME));
    }
    assert_eq!(opened, 3);
}

#[tokio::test]
async fn a_secret_that_was_changed_is_damage_and_one_of_another_log_is_none() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    let secret = book.store.keyring().secret();
    assert_eq!(format!("{secret:?}"), "LogSecret(…)");
    assert_ne!(secret.hmac(&[b"probe"]), book.store.identity().secret.hmac(&[b"probe"]));
    let other = TestDatabase::create().await;
    other.pool().await.execute("DELETE FROM keys.master").await.unwrap();
    assert_ne!(secret.hmac(&[b"probe"]), other.open().await.store.keyring().secret().hmac(&[b"probe"]));
    let change = "UPDATE keys.master SET secret = set_byte(secret, 40, get_byte(secret, 40) # 1)";
    book.pool().execute(change).await.unwrap();
    let error = format!("{:#}", Book::open(&database.config()).await.err().unwrap());
    assert!(error.contains("the log's secret (keys.master) does not open"), "{error}");
}

#[tokio::test]
async fn what_is_sealed_already_is_not_sealed_again() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    create(&book, NAME).await;
    let stored = &whole_log(book.pool()).await[0];
    let mut append = crate::log::append_to(Uuid::from_u128(9), 0, 0);
    append.events = vec![NewEvent {
        event_type: stored.event_type.clone(),
        event_version: stored.event_version.clone(),
        payload: stored.payload.clone().into(),
    }];
    let refused = book.store.appender().append(append).await.unwrap_err().to_string();
    assert!(refused.contains("sealed already"), "{refused}");
    assert_eq!(whole_log(book.pool()).await.len(), 1);
}

/// What a person and a meeting went through.
struct Lived {
    profile: ProfileId,
    meeting: MeetingId,
    speaker: domain::ids::SpeakerId,
}

/// Takes a person and a meeting through everything that leaves something personal in the log.
async fn live(book: &Book) -> Lived {
    let profile = create(book, NAME).await;
    book.bus.profile(profile, rename(LATER_NAME), &context()).await.unwrap();
    book.bus.profile(profile, enrol(SampleId::from(Uuid::from_u128(1))), &context()).await.unwrap();

    let meeting = MeetingId::from(Uuid::from_u128(0x100));
    let cluster = Cluster {
        cluster_id: "spk00".parse().unwrap(),
        segments: vec![Segment { start_ms: 0, duration_ms: 4000 }],
        speech_ms: None,
        voice: Some(voice().into()),
    };
    let other = Cluster { cluster_id: "spk01".parse().unwrap(), voice: None, ..cluster.clone() };
    let speaker = meeting.speaker(1, &cluster.cluster_id);
    let artifact = |artifact_type| MeetingCommand::StoreArtifact {
        artifact_type,
        s3_key: "meetings/1/document".parse().unwrap(),
        meta: Some(json!({"note": META}).try_into().unwrap()),
    };
    let commands = [
        register(meeting),
        start(),
        MeetingCommand::RecordFingerprint { content_fp: "pcm16k:ab".parse().unwrap() },
        MeetingCommand::CacheStageResult {
            stage: "transcribe".parse().unwrap(),
            value: RESULT.to_owned(),
            expires_at: None,
            at: now(),
        },
        MeetingCommand::RecordSpeakers {
            clusters: Diarization::try_from(vec![cluster, other.clone()]).unwrap(),
            decisions: vec![],
        },
        artifact(ArtifactType::TranscriptMd),
        artifact(ArtifactType::SummaryJson),
        MeetingCommand::Complete { at: now() },
        reassign(speaker, Some(profile)),
        MeetingCommand::Reprocess { worker: "gpu-1".parse().unwrap(), at: now() },
        MeetingCommand::RecordSpeakers {
            clusters: Diarization::try_from(vec![Cluster {
                segments: vec![Segment { start_ms: 60_000, duration_ms: 1000 }],
                ..other
            }])
            .unwrap(),
            decisions: vec![],
        },
        MeetingCommand::DismissCorrection { speaker_id: speaker, reason: WHY_NOT.parse().unwrap() },
        fail(),
    ];
    for command in commands {
        let name = command.name();
        let done = book.bus.meeting(meeting, command, &context()).await;
        assert!(
            !done
                .unwrap_or_else(|error: CommandError<MeetingError>| panic!("{name}: {error}"))
                .events
                .is_empty()
        );
    }
    Lived { profile, meeting, speaker: meeting.speaker(2, &"spk01".parse().unwrap()) }
}

fn context() -> Context {
    Context::system("tester-1")
}

async fn create(book: &Book, name: &str) -> ProfileId {
    let id = ProfileId::from(Uuid::now_v7());
    let create = ProfileCommand::Create { profile_id: id, display_name: name.parse().unwrap(), at: now() };
    book.bus.profile(id, create, &context()).await.unwrap();
    id
}

fn create_command(id: u128) -> ProfileCommand {
    let profile_id = Uuid::from_u128(id).into();
    ProfileCommand::Create { profile_id, display_name: NAME.parse().unwrap(), at: now() }
}

fn rename(name: &str) -> ProfileCommand {
    ProfileCommand::Rename { display_name: name.parse().unwrap() }
}

fn voice() -> Voice {
    let mut numbers = vec![0.5; 256];
    numbers[0] = NUMBER;
    Voice { model: "resemblyzer-0.1.4".parse().unwrap(), vector: numbers.try_into().unwrap() }
}

fn enrol(sample_id: SampleId) -> ProfileCommand {
    ProfileCommand::EnrolVoice {
        sample_id,
        voice: voice(),
        source: Some(SOURCE.parse().unwrap()),
        at: "2026-01-01T00:00:00Z".parse().unwrap(),
    }
}

fn register(meeting_id: MeetingId) -> MeetingCommand {
    let file = File {
        id: FileId::from(Uuid::from_u128(0xf100)),
        sha256: "ab".repeat(32).parse().unwrap(),
        mime: None,
        size: None,
        duration: None,
        owner: None,
    };
    MeetingCommand::Register(RegisterMeeting { meeting_id, file, at: now() })
}

fn start() -> MeetingCommand {
    MeetingCommand::Start { worker: "gpu-1".parse().unwrap(), at: now() }
}

fn reassign(speaker_id: domain::ids::SpeakerId, to: Option<ProfileId>) -> MeetingCommand {
    MeetingCommand::ReassignSpeaker { speaker_id, to, expected: None, reason: WHY.parse().unwrap() }
}

fn fail() -> MeetingCommand {
    MeetingCommand::Fail(FailMeeting {
        stage: "summarize".parse().unwrap(),
        reason: WHY_FAILED.parse().unwrap(),
        at: now(),
    })
}

/// Forgets these subjects; returns how many had a key.
async fn destroy(book: &Book, subjects: &[Subject]) -> i64 {
    let mut connection = book.pool().acquire().await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    let destroyed = book.store.keyring().destroy(&mut transaction, subjects).await.unwrap();
    transaction.commit().await.unwrap();
    book.store.keyring().forgot().await.unwrap();
    destroyed
}

/// Returns who has a row, and whether they have a key.
async fn keys(pool: &PgPool) -> BTreeMap<(String, Uuid), bool> {
    let rows: Vec<(String, Uuid, bool)> =
        sqlx::query_as("SELECT kind, id, wrapped IS NOT NULL FROM keys.subjects")
            .fetch_all(pool)
            .await
            .unwrap();
    rows.into_iter().map(|(kind, id, has_key)| ((kind, id), has_key)).collect()
}

/// Returns all rows of the log and of the keys, as a dump has them.
async fn dump(pool: &PgPool) -> String {
    let mut dumped: Vec<String> = vec![];
    for table in ["log.events", "log.commands", "keys.master", "keys.subjects"] {
        let query = format!("SELECT t::text FROM {table} t");
        let rows: Vec<String> = sqlx::query_scalar(&query).fetch_all(pool).await.unwrap();
        dumped.extend(rows);
    }
    // A row as text has its quotation marks twice.
    dumped.join("\n").replace("\"\"", "\"")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
