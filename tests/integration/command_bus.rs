//! The command bus against a real PostgreSQL: no command is lost, none has its effect twice, and no answer
//! rests on a state that another process overtook.

use std::collections::{BTreeSet, HashMap};

use api::book::Book;
use cqrs_es::persist::{PersistedEventRepository as _, PersistedEventStore};
use cqrs_es::{AggregateError, EventStore as _};
use domain::Event;
use domain::artifact::ArtifactType;
use domain::file::File;
use domain::ids::{FileId, MeetingId, ProfileId, SampleId};
use domain::meeting::{self, Meeting, MeetingCommand, MeetingError, MeetingEvent, RegisterMeeting};
use domain::profile::{ProfileCommand, ProfileError};
use domain::voice::Voice;
use event_store::EventStore;
use event_store::command_bus::{Accepted, CommandBus, CommandError, Context, IdempotencyKey};
use event_store::repository::LogRepository;
use event_store::sealing::Needs;
use futures::future::{join_all, try_join_all};
use serde_json::{Value, json};
use tests::TestDatabase;
use tests::clock::now;
use tests::server::{Server, answer};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::log::interrupted::{kill_appenders, open_through};
use crate::log::proxy::{Cut, Proxy};
use crate::log::{PATIENCE, json_of, whole_log};

#[tokio::test]
async fn two_commands_racing_on_one_aggregate_both_take_effect() {
    let database = TestDatabase::create().await;
    let (one, other) = (database.open().await, database.open().await);
    for rival in [&one, &other] {
        for _ in 0..25 {
            let id = create_profile(&one.bus, "Mira Sandoz").await;
            let context = context();
            let (a, b) = tokio::join!(
                one.bus.profile(id, rename("Mira Vetsch"), &context),
                rival.bus.profile(id, rename("Mira Keller"), &context),
            );
            let (a, b) = (a.unwrap(), b.unwrap());
            assert_eq!(BTreeSet::from([a.version, b.version]), BTreeSet::from([2, 3]));
            assert_eq!((a.events.len(), b.events.len()), (1, 1));
        }
    }
    assert_eq!(whole_log(one.pool()).await.len(), 2 * 25 * 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_fifty_rivals_takes_effect() {
    let database = TestDatabase::create().await;
    let (one, other) = (database.open().await, database.open().await);
    let id = create_profile(&one.bus, "Mira Sandoz").await;
    let rivals = (0..50).map(|n| {
        let bus = if n % 2 == 0 { &one } else { &other }.bus.clone();
        tokio::spawn(async move { bus.profile(id, rename(&format!("Mira {n}")), &context()).await.unwrap() })
    });
    let accepted = timeout(PATIENCE, try_join_all(rivals)).await.unwrap().unwrap();
    assert_eq!(accepted.iter().map(|a| a.version).collect::<BTreeSet<_>>(), (2..=51).collect());
    let mut names = names_of(&one, id).await.split_off(1);
    let mut expected = (0..50).map(|n| format!("Mira {n}")).collect::<Vec<_>>();
    names.sort();
    expected.sort();
    assert_eq!(names, expected);
}

#[tokio::test]
async fn a_key_sent_twenty_times_at_once_has_one_effect_and_one_answer() {
    let database = TestDatabase::create().await;
    let (one, other) = (database.open().await, database.open().await);
    for _ in 0..5 {
        let id = create_profile(&one.bus, "Mira Sandoz").await;
        send_at_once_and_later(&one, &other, id, rename("Mira Keller"), &context()).await;
        assert_eq!(names_of(&one, id).await, ["Mira Sandoz", "Mira Keller"]);
    }
}

/// Whoever loads the aggregate after the first of them has taken effect must not be refused for it.
#[tokio::test]
async fn a_key_sent_twenty_times_at_once_is_not_refused_because_of_its_own_effect() {
    let database = TestDatabase::create().await;
    let (one, other) = (database.open().await, database.open().await);
    for _ in 0..5 {
        let id = create_profile(&one.bus, "Mira Sandoz").await;
        let sample = SampleId::from(Uuid::now_v7());
        one.bus.profile(id, enrol(sample), &context()).await.unwrap();
        let remove = ProfileCommand::RemoveVoice { sample_id: sample };
        send_at_once_and_later(&one, &other, id, remove, &context()).await;
    }
}

/// Nor must the version that it made itself be held against it.
#[tokio::test]
async fn a_key_sent_twenty_times_at_once_with_if_match_does_not_meet_itself() {
    let database = TestDatabase::create().await;
    let (one, other) = (database.open().await, database.open().await);
    for _ in 0..5 {
        let id = create_profile(&one.bus, "Mira Sandoz").await;
        let context = Context { if_match: Some(1), ..context() };
        send_at_once_and_later(&one, &other, id, rename("Mira Keller"), &context).await;
    }
}

#[tokio::test]
async fn a_repeated_key_gets_its_first_answer_after_the_world_moved_on() {
    let database = TestDatabase::create().await;
    let (one, other) = (database.open().await, database.open().await);
    let id = register(&one.bus, 1).await;
    let context = Context { if_match: Some(1), ..keyed(&key()) };
    let first = one.bus.meeting(id, start("gpu-1"), &context).await.unwrap();
    one.bus.meeting(id, complete(), &self::context()).await.unwrap();

    // By now it would be refused, and If-Match would fail besides.
    for bus in [&one.bus, &other.bus] {
        assert_eq!(bus.meeting(id, start("gpu-1"), &context).await.unwrap(), first);
    }
    assert_eq!(
        (first.version, first.position, &first.events[..]),
        (2, 2, &["ProcessingStarted".to_owned()][..])
    );
    assert_eq!(whole_log(one.pool()).await.len(), 3);

    // What was asked of whoever is forgotten is forgotten, too: nobody can say any more that this is the same.
    one.bus.meeting(id, erase(), &self::context()).await.unwrap();
    for bus in [&one.bus, &other.bus] {
        let again = bus.meeting(id, start("gpu-1"), &context).await;
        assert!(matches!(again, Err(CommandError::KeyReused)), "{again:?}");
    }
}

#[tokio::test]
async fn a_key_used_for_another_request_is_refused() {
    let database = TestDatabase::create().await;
    let (one, other) = (database.open().await, database.open().await);
    let id = create_profile(&one.bus, "Mira Sandoz").await;
    let key = key();
    let another = IdempotencyKey { request_hmac: vec![8; 32], ..key.clone() };
    let (a, b) = (keyed(&key), keyed(&another));

    // At once, either may come first; the other is told.
    let (first, second) = tokio::join!(
        one.bus.profile(id, rename("Mira Keller"), &a),
        other.bus.profile(id, rename("Mira Vetsch"), &b),
    );
    let refused = match (&first, &second) {
        (Ok(_), Err(error)) | (Err(error), Ok(_)) => error,
        both => panic!("{both:?}"),
    };
    assert!(matches!(refused, CommandError::KeyReused), "{refused:?}");

    // Later too, also where the command would have no effect.
    let (another, name) = if first.is_ok() { (b, "Mira Keller") } else { (a, "Mira Vetsch") };
    for bus in [&one.bus, &other.bus] {
        let again = bus.profile(id, rename(name), &another).await;
        assert!(matches!(again, Err(CommandError::KeyReused)), "{again:?}");
    }
    assert_eq!(names_of(&one, id).await, ["Mira Sandoz", name]);
}

#[tokio::test]
async fn a_command_without_effect_is_remembered_by_its_key() {
    let database = TestDatabase::create().await;
    let (one, other) = (database.open().await, database.open().await);
    let id = register(&one.bus, 1).await;
    one.bus.meeting(id, start("gpu-1"), &context()).await.unwrap();
    register(&one.bus, 2).await;
    let keyed = keyed(&key());
    let first = one.bus.meeting(id, start("gpu-1"), &keyed).await.unwrap();
    assert_eq!(first, Accepted { aggregate_id: id.to_string(), version: 2, position: 3, events: vec![] });

    one.bus.meeting(id, complete(), &context()).await.unwrap();
    for bus in [&one.bus, &other.bus] {
        assert_eq!(bus.meeting(id, start("gpu-1"), &keyed).await.unwrap(), first);
    }
    let unkeyed = one.bus.meeting(id, start("gpu-1"), &context()).await;
    assert!(
        matches!(unkeyed, Err(CommandError::Refused(MeetingError::IllegalTransition { .. }))),
        "{unkeyed:?}"
    );
    assert_eq!(whole_log(one.pool()).await.len(), 4);
}

#[tokio::test]
async fn a_refusal_is_not_kept_by_its_key() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    let id = register(&book.bus, 1).await;
    let (early, stale) = (keyed(&key()), Context { if_match: Some(2), ..keyed(&key()) });
    let refused = book.bus.meeting(id, complete(), &early).await;
    assert!(
        matches!(refused, Err(CommandError::Refused(MeetingError::IllegalTransition { .. }))),
        "{refused:?}"
    );
    let refused = book.bus.meeting(id, complete(), &stale).await;
    assert!(matches!(refused, Err(CommandError::StaleVersion { expected: 2, actual: 1 })), "{refused:?}");

    book.bus.meeting(id, start("gpu-1"), &context()).await.unwrap();
    let accepted = book.bus.meeting(id, complete(), &stale).await.unwrap();
    assert_eq!((accepted.version, &accepted.events[..]), (3, &["MeetingCompleted".to_owned()][..]));
    assert!(book.bus.meeting(id, complete(), &early).await.unwrap().events.is_empty());
}

#[tokio::test]
async fn a_state_that_another_process_overtook_swallows_no_command() {
    let database = TestDatabase::create().await;
    let (stale, ahead) = (database.open().await, database.open().await);

    // What looks like a repetition: on the stale state it would have no effect.
    let profile = create_profile(&stale.bus, "Mira Sandoz").await;
    ahead.bus.profile(profile, rename("Mira Keller"), &context()).await.unwrap();
    let back = stale.bus.profile(profile, rename("Mira Sandoz"), &context()).await.unwrap();
    assert_eq!((back.version, back.events.len()), (3, 1));
    assert_eq!(names_of(&stale, profile).await, ["Mira Sandoz", "Mira Keller", "Mira Sandoz"]);

    // What looks illegal.
    let id = register(&stale.bus, 1).await;
    ahead.bus.meeting(id, start("gpu-1"), &context()).await.unwrap();
    let completed = stale.bus.meeting(id, complete(), &context()).await.unwrap();
    assert_eq!((completed.version, &completed.events[..]), (3, &["MeetingCompleted".to_owned()][..]));

    // What looks as if it had an effect, and has it behind the other's.
    let id = register(&stale.bus, 2).await;
    stale.bus.meeting(id, start("gpu-1"), &context()).await.unwrap();
    ahead.bus.meeting(id, language("de"), &context()).await.unwrap();
    assert_eq!(stale.bus.meeting(id, language("fr"), &context()).await.unwrap().version, 4);
}

#[tokio::test]
async fn a_state_that_another_process_overtook_lets_nothing_illegal_pass() {
    let database = TestDatabase::create().await;
    let (stale, ahead) = (database.open().await, database.open().await);
    let id = register(&stale.bus, 1).await;
    stale.bus.meeting(id, start("gpu-1"), &context()).await.unwrap();
    ahead.bus.meeting(id, complete(), &context()).await.unwrap();
    let refused = stale.bus.meeting(id, language("de"), &context()).await;
    let expected = MeetingError::IllegalTransition { status: "completed", command: "language" };
    assert!(matches!(&refused, Err(CommandError::Refused(error)) if *error == expected), "{refused:?}");

    // Both see the repetition for what it is, and tell the true version.
    for bus in [&stale.bus, &ahead.bus] {
        let repeated = bus.meeting(id, complete(), &context()).await.unwrap();
        assert_eq!(
            repeated,
            Accepted { aggregate_id: id.to_string(), version: 3, position: 3, events: vec![] }
        );
    }
    assert_eq!(whole_log(stale.pool()).await.len(), 3);
}

#[tokio::test]
async fn if_match_is_held_against_the_log_and_not_against_a_stale_state() {
    let database = TestDatabase::create().await;
    let (stale, ahead) = (database.open().await, database.open().await);
    let pinned = |version| Context { if_match: Some(version), ..context() };
    for (n, name) in ["Mira Sandoz", "Mira Keller", "Mira Vetsch"].into_iter().enumerate() {
        // Against the stale state, renaming has no effect, one that is taken already, and one of its own.
        let id = create_profile(&stale.bus, "Mira Sandoz").await;
        ahead.bus.profile(id, rename("Mira Keller"), &context()).await.unwrap();
        let refused = stale.bus.profile(id, rename(name), &pinned(1)).await;
        assert!(
            matches!(refused, Err(CommandError::StaleVersion { expected: 1, actual: 2 })),
            "{n}: {refused:?}"
        );

        ahead.bus.profile(id, rename("Mira Sandoz Keller"), &context()).await.unwrap();
        let accepted = stale.bus.profile(id, rename(name), &pinned(3)).await.unwrap();
        assert_eq!(accepted.version, 4);
        let early = stale.bus.profile(id, rename(name), &pinned(9)).await;
        assert!(matches!(early, Err(CommandError::StaleVersion { expected: 9, actual: 4 })), "{early:?}");
    }
}

#[tokio::test]
async fn what_was_taken_for_new_and_is_not_is_found() {
    let database = TestDatabase::create().await;
    let (one, other) = (database.open().await, database.open().await);
    let id = register(&one.bus, 1).await;
    one.bus.meeting(id, start("gpu-1"), &context()).await.unwrap();
    let (_, register) = registration(1);
    for context in [context(), keyed(&key())] {
        let context = Context { probably_new: true, ..context };
        let again = other.bus.meeting(id, register.clone(), &context).await.unwrap();
        assert_eq!(again, Accepted { aggregate_id: id.to_string(), version: 2, position: 2, events: vec![] });
    }
    assert_eq!(whole_log(one.pool()).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_has_its_effect_once_though_the_appenders_backend_is_killed_again_and_again() {
    let database = TestDatabase::create().await;
    let (one, other) = (database.open().await, database.open().await);
    let (answered, progress) = watch::channel(0_u64);
    let enough = CancellationToken::new();
    let killer = tokio::spawn(kill_appenders(database.pool().await, progress, enough.clone()));
    let renaming = (0..48).map(|n| {
        let (buses, answered, enough) =
            ([one.bus.clone(), other.bus.clone()], answered.clone(), enough.clone());
        tokio::spawn(async move {
            let id = create_profile(&buses[0], "Mira 1").await;
            let mut version = 1;
            while version < 25 || !enough.is_cancelled() {
                version += 1;
                let context = if version % 2 == 0 { context() } else { keyed(&key()) };
                let bus = &buses[(n + version / 5) % 2];
                let accepted = bus.profile(id, rename(&format!("Mira {version}")), &context).await.unwrap();
                assert_eq!(accepted.version, version as i64);
                assert_eq!(accepted.events, ["ProfileRenamed"]);
                answered.send_modify(|count| *count += 1);
            }
            (id, version)
        })
    });
    let renaming = renaming.collect::<Vec<_>>();
    drop(answered);
    let renamed = timeout(PATIENCE, try_join_all(renaming)).await.unwrap().unwrap();
    timeout(PATIENCE, killer).await.unwrap().unwrap();
    let mut names = names_by_profile(&one).await;
    for (id, version) in renamed {
        let expected = (1..=version).map(|n| format!("Mira {n}")).collect::<Vec<_>>();
        assert_eq!(names.remove(&id.to_string()), Some(expected));
    }
    assert!(names.is_empty());
}

#[tokio::test]
async fn a_command_whose_answer_was_lost_has_one_effect_and_its_true_answer() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let proxy = Proxy::start(&database, &pool).await;
    let book = open_through(&database, &proxy).await;
    let id = create_profile(&book.bus, "Mira Sandoz").await;
    for (version, context) in
        (2..).zip([context(), keyed(&key()), Context { if_match: Some(3), ..context() }])
    {
        proxy.plan([Some(Cut::Answer); 2]);
        let rename = rename(&format!("Mira {version}"));
        let accepted = book.bus.profile(id, rename, &context).await.unwrap();
        let events = vec!["ProfileRenamed".to_owned()];
        let expected = Accepted { aggregate_id: id.to_string(), version, position: version, events };
        assert_eq!((accepted, proxy.planned()), (expected, 0));
    }
    assert_eq!(names_of(&book, id).await, ["Mira Sandoz", "Mira 2", "Mira 3", "Mira 4"]);
}

#[tokio::test]
async fn a_commit_through_cqrs_es_whose_answer_was_lost_is_no_conflict() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let proxy = Proxy::start(&database, &pool).await;
    let book = open_through(&database, &proxy).await;
    let id = register(&book.bus, 1).await;
    let store = PersistedEventStore::<_, Meeting>::new_event_store(repository(&book.store));
    let loaded = store.load_aggregate(&id.to_string()).await.unwrap();
    proxy.plan([Some(Cut::Answer)]);
    let committed = store.commit(decide(&loaded.aggregate, start("gpu-1")), loaded, HashMap::new()).await;
    assert!(committed.is_ok(), "{:?}", committed.unwrap_err());
    assert_eq!(whole_log(&pool).await.len(), 2);
}

#[tokio::test]
async fn what_cqrs_es_loads_is_the_fold_of_what_the_bus_appended() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    let id = register(&book.bus, 1).await;
    let store_artifact = MeetingCommand::StoreArtifact {
        artifact_type: ArtifactType::TranscriptMd,
        s3_key: "meetings/1/transcript.md".parse().unwrap(),
        meta: None,
    };
    for command in [start("gpu-1"), language("de"), store_artifact, complete()] {
        book.bus.meeting(id, command, &context()).await.unwrap();
    }
    let mut folded = Meeting::default();
    for stored in whole_log(book.pool()).await {
        let Event::Meeting(_, event) = stored.decode().unwrap().event else { panic!("{stored:?}") };
        meeting::evolve(&mut folded, &event);
    }

    let store = PersistedEventStore::<_, Meeting>::new_event_store(repository(&book.store))
        .with_upcasters(domain::upcast::for_cqrs_es());
    let loaded = store.load_aggregate(&id.to_string()).await.unwrap();
    assert_eq!((loaded.aggregate, loaded.current_sequence), (folded.clone(), 5));
    assert_eq!(book.bus.load_meeting(id).await.unwrap(), (folded, 5));
}

#[tokio::test]
async fn a_commit_through_cqrs_es_goes_into_the_log_and_a_stale_one_is_a_conflict() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    let id = register(&book.bus, 1).await;
    let store = PersistedEventStore::<_, Meeting>::new_event_store(repository(&book.store));
    let load = async || store.load_aggregate(&id.to_string()).await.unwrap();
    let (current, stale) = (load().await, load().await);
    let started = decide(&current.aggregate, start("gpu-1"));
    let metadata = HashMap::from([("actor".to_owned(), "tester-1".to_owned())]);
    store.commit(started.clone(), current, metadata).await.unwrap();

    let conflict = store.commit(started, stale, HashMap::new()).await;
    assert!(matches!(conflict, Err(AggregateError::AggregateConflict)), "{conflict:?}");
    let events = whole_log(book.pool()).await;
    let metadata = json_of(&events[1].metadata);
    assert_eq!((events.len(), &metadata["actor"]), (2, &json!("tester-1")));
    assert!(metadata["command_id"].is_string(), "by which a retry would be known: {metadata}");
    let completed = book.bus.meeting(id, complete(), &context()).await.unwrap();
    assert_eq!(completed.version, 3, "the bus goes on from there");
}

#[tokio::test]
async fn snapshots_and_streams_are_refused() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    let id = register(&book.bus, 1).await.to_string();
    let refusal = |error: AggregateError<MeetingError>| {
        let AggregateError::UnexpectedError(error) = error else { panic!("{error:?}") };
        error.to_string()
    };
    let plain = PersistedEventStore::<_, Meeting>::new_event_store(repository(&book.store));
    let snapshots = PersistedEventStore::<_, Meeting>::new_snapshot_store(repository(&book.store), 1);
    assert!(
        refusal(snapshots.load_aggregate(&id).await.err().unwrap()).contains("snapshots are not used here")
    );
    let loaded = plain.load_aggregate(&id).await.unwrap();
    let started = decide(&loaded.aggregate, start("gpu-1"));
    let committed = snapshots.commit(started, loaded, HashMap::new()).await;
    assert!(refusal(committed.unwrap_err()).contains("snapshots are not used here"));
    assert_eq!(whole_log(book.pool()).await.len(), 1);

    let repository = repository(&book.store);
    assert!(repository.stream_events::<Meeting>(&id).await.is_err());
    assert!(repository.stream_all_events::<Meeting>().await.is_err());
}

#[tokio::test]
async fn each_events_metadata_says_who_did_it_and_why_in_flat_strings() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    let key = key();
    let caused = Context {
        correlation_id: Some("call-7".to_owned()),
        causation_id: Some("mail-3".to_owned()),
        ..keyed(&key)
    };
    let (id, register) = registration(1);
    book.bus.meeting(id, register, &caused).await.unwrap();
    book.bus.meeting(id, start("gpu-1"), &context()).await.unwrap();

    let metadata =
        whole_log(book.pool()).await.iter().map(|event| json_of(&event.metadata)).collect::<Vec<_>>();
    assert_eq!(
        metadata[0],
        json!({
            "command_id": key.command_id,
            "correlation_id": "call-7",
            "causation_id": "mail-3",
            "actor": "tester-1",
            "actor_kind": "service",
        })
    );
    let of_itself = metadata[1].as_object().unwrap();
    assert_eq!(
        of_itself.keys().collect::<Vec<_>>(),
        ["actor", "actor_kind", "causation_id", "command_id", "correlation_id"]
    );
    assert!(of_itself.values().all(Value::is_string), "{of_itself:?}");
    assert_eq!(of_itself["causation_id"], of_itself["command_id"]);
    assert_ne!(of_itself["correlation_id"], metadata[0]["correlation_id"]);
}

#[tokio::test]
async fn what_is_kept_of_a_request_is_an_hmac() {
    let database = TestDatabase::create().await;
    let server = Server::start(&database).await;
    let post = server.client.post(server.at("/v1/profiles")).header("Idempotency-Key", "a-key-of-its-own");
    let (status, profile) = answer(post.json(&json!({"display_name": "Mira Sandoz"}))).await;
    assert_eq!(status, 201, "{profile}");

    let kept: Vec<(Value, i32)> =
        sqlx::query_as("SELECT to_jsonb(c), length(request_hmac) FROM log.commands c")
            .fetch_all(&database.pool().await)
            .await
            .unwrap();
    let [(row, hmac_length)] = &kept[..] else { panic!("{kept:?}") };
    assert_eq!(*hmac_length, 32);
    let columns = row.as_object().unwrap().keys().map(String::as_str).collect::<BTreeSet<_>>();
    let expected = [
        "accepted_at",
        "aggregate_id",
        "command_id",
        "first_position",
        "last_position",
        "request_hmac",
        "version",
    ];
    assert_eq!(columns, BTreeSet::from(expected));
    for private in ["Sandoz", "a-key-of-its-own"] {
        assert!(!row.to_string().contains(private), "{row}");
    }
    // Nor can it be found out by trying names with what else is in the database.
    let pool = database.pool().await;
    let kept: Vec<u8> =
        sqlx::query_scalar("SELECT request_hmac FROM log.commands").fetch_one(&pool).await.unwrap();
    let secret = event_store::log::identity(&pool).await.unwrap().secret;
    assert_ne!(kept, secret.hmac(&[b"request", br#"{"display_name":"Mira Sandoz"}"#]));
    let sealed = tests::keyring(&pool).await;
    assert_eq!(kept, sealed.secret().hmac(&[b"request", br#"{"display_name":"Mira Sandoz"}"#]));
    assert!(server.stop().await.success());
}

/// Sends a command twenty times at once by way of two buses, of which `fresh` does not know the aggregate,
/// and then once more to each: one effect, one answer.
async fn send_at_once_and_later(
    known: &Book,
    fresh: &Book,
    id: ProfileId,
    command: ProfileCommand,
    context: &Context,
) {
    let before = whole_log(known.pool()).await.len();
    let context = &Context { key: Some(key()), ..context.clone() };
    let send = |n: usize| {
        let (bus, command) = (if n.is_multiple_of(2) { &known.bus } else { &fresh.bus }, command.clone());
        async move { bus.profile(id, command, context).await }
    };
    let mut answers = timeout(PATIENCE, join_all((0..20).map(send))).await.unwrap();
    for n in 0..2 {
        answers.push(send(n).await);
    }
    let answers = answers.into_iter().collect::<Result<Vec<_>, CommandError<ProfileError>>>().unwrap();
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(answers[0].events.len(), 1);
    assert_eq!(whole_log(known.pool()).await.len(), before + 1);
}

fn context() -> Context {
    Context { actor: "tester-1".to_owned(), actor_kind: "service".to_owned(), ..Context::default() }
}

fn key() -> IdempotencyKey {
    IdempotencyKey { command_id: Uuid::now_v7(), request_hmac: vec![7; 32] }
}

fn keyed(key: &IdempotencyKey) -> Context {
    Context { key: Some(key.clone()), ..context() }
}

fn repository(store: &EventStore) -> LogRepository {
    LogRepository::new(store.pool().clone(), store.keyring().clone(), store.appender().clone())
}

fn decide(meeting: &Meeting, command: MeetingCommand) -> Vec<MeetingEvent> {
    meeting::decide(meeting, &command).unwrap()
}

async fn register(bus: &CommandBus, n: u128) -> MeetingId {
    let (id, register) = registration(n);
    bus.meeting(id, register, &context()).await.unwrap();
    id
}

fn registration(n: u128) -> (MeetingId, MeetingCommand) {
    let meeting_id = MeetingId::from(Uuid::from_u128(n));
    let file = File {
        id: FileId::from(Uuid::from_u128(n)),
        sha256: format!("{n:064x}").parse().unwrap(),
        mime: None,
        size: None,
        duration: None,
        owner: None,
    };
    (meeting_id, MeetingCommand::Register(RegisterMeeting { meeting_id, file, at: now() }))
}

fn start(worker: &str) -> MeetingCommand {
    MeetingCommand::Start { worker: worker.parse().unwrap(), at: now() }
}

fn language(language: &str) -> MeetingCommand {
    MeetingCommand::RecordLanguage { language: language.parse().unwrap() }
}

fn complete() -> MeetingCommand {
    MeetingCommand::Complete { at: now() }
}

fn erase() -> MeetingCommand {
    MeetingCommand::Erase { reason: "asked for".parse().unwrap(), at: now(), lost: None }
}

async fn create_profile(bus: &CommandBus, name: &str) -> ProfileId {
    let profile_id = ProfileId::from(Uuid::now_v7());
    let create = ProfileCommand::Create { profile_id, display_name: name.parse().unwrap(), at: now() };
    bus.profile(profile_id, create, &context()).await.unwrap();
    profile_id
}

fn rename(name: &str) -> ProfileCommand {
    ProfileCommand::Rename { display_name: name.parse().unwrap() }
}

fn enrol(sample_id: SampleId) -> ProfileCommand {
    let voice =
        Voice { model: "resemblyzer-0.1.4".parse().unwrap(), vector: vec![0.5; 256].try_into().unwrap() };
    ProfileCommand::EnrolVoice { sample_id, voice, source: None, at: now() }
}

/// Returns the names that a profile had, oldest first.
async fn names_of(book: &Book, id: ProfileId) -> Vec<String> {
    names_by_profile(book).await.remove(&id.to_string()).unwrap()
}

async fn names_by_profile(book: &Book) -> HashMap<String, Vec<String>> {
    let mut names = HashMap::<_, Vec<_>>::new();
    let mut log = whole_log(book.pool()).await;
    book.store.keyring().open_stored(book.pool(), &mut log, Needs::Everything).await.unwrap();
    for stored in log {
        let event = json_of(&stored.payload);
        let name = event[&stored.event_type]["display_name"].as_str().unwrap().to_owned();
        names.entry(stored.aggregate_id).or_default().push(name);
    }
    names
}
