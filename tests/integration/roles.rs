//! The database's roles: each is tried at what it must not do, and shown to do what it is for. And the program
//! itself, under a login that owns the database and is no superuser.

use std::str::FromStr;

use api::book::Book;
use domain::meeting::MeetingCommand;
use event_store::EventStore;
use event_store::command_bus::{CommandBus, Context};
use projections::fold::fold;
use projections::projector::{self, Projection};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, Executor, PgConnection, PgPool};
use tests::TestDatabase;
use tests::server::Server;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::cli::run_on;
use crate::read_models::history::{
    append, artifact_id, cached, completed, created, diarized, enrolled, file_id, identified, reassigned,
    registered_for, speaker, started, stored,
};
use crate::read_models::{assert_tables_equal_the_fold, caught_up_and_equal, eventually};

const MINE: Uuid = Uuid::from_u128(0xa0);
const THEIRS: Uuid = Uuid::from_u128(0xb0);
const NOBODYS: Uuid = Uuid::from_u128(0xc0);
const ME: Uuid = Uuid::from_u128(7);
const THEM: Uuid = Uuid::from_u128(8);
const ADA: Uuid = Uuid::from_u128(0xada);
const BO: Uuid = Uuid::from_u128(0xb0b);
/// What PostgreSQL answers whoever may not.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// Three meetings of as many owners, one of them nobody; Ada speaks in mine, Bo in theirs.
async fn book() -> TestDatabase {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    let mut events = vec![created(ADA, "Ada"), enrolled(ADA, Uuid::from_u128(1)), created(BO, "Bo")];
    for (meeting, owner, who) in [(MINE, Some(ME), ADA), (THEIRS, Some(THEM), BO), (NOBODYS, None, BO)] {
        let key = format!("{meeting}.md");
        events.extend([
            registered_for(meeting, owner),
            started(meeting, 1),
            diarized(meeting, 1, &["a"]),
            identified(meeting, 1, "a", who, 0.9),
            cached(meeting, "asr", &format!("pcm:{meeting}"), "words", None),
            stored(meeting, 1, "transcript.md", &key),
            completed(meeting, 1, &["a"], &[("transcript.md", &key)]),
            reassigned(meeting, 1, "a", Some(who)),
        ]);
    }
    for event in &events {
        append(&book, event).await;
    }
    book.start_projector();
    caught_up_and_equal(book.pool()).await;
    book.close().await;
    database
}

fn options(database: &TestDatabase, role: &str) -> PgConnectOptions {
    PgConnectOptions::from_str(&database.url).unwrap().options([("search_path", "read"), ("role", role)])
}

async fn connect(database: &TestDatabase, role: &str) -> PgConnection {
    PgConnection::connect_with(&options(database, role)).await.unwrap()
}

async fn assert_refused(connection: &mut PgConnection, statements: &[&str]) {
    for statement in statements {
        let error = connection.execute(*statement).await.expect_err(statement);
        let code = error.as_database_error().unwrap().code().unwrap();
        assert_eq!(code, INSUFFICIENT_PRIVILEGE, "{statement}: {error}");
    }
}

async fn assert_allowed(connection: &mut PgConnection, statements: &[&str]) {
    for statement in statements {
        connection.execute(*statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}

async fn texts(connection: &mut PgConnection, query: &str) -> Vec<String> {
    sqlx::query_scalar(query).fetch_all(connection).await.unwrap_or_else(|error| panic!("{query}: {error}"))
}

/// What nobody may but the owner.
const OWNERS: [&str; 16] = [
    "UPDATE log.events SET payload = payload",
    "DELETE FROM log.events",
    "TRUNCATE log.events",
    "INSERT INTO log.events SELECT * FROM log.events LIMIT 0",
    "COPY log.events FROM STDIN",
    "ALTER TABLE log.events DISABLE TRIGGER ALL",
    "DROP TABLE log.events",
    "UPDATE log.identity SET epoch = gen_random_uuid()",
    "DELETE FROM log.commands",
    "INSERT INTO log.commands SELECT * FROM log.commands LIMIT 0",
    "CREATE TABLE log.mine ()",
    "CREATE OR REPLACE FUNCTION log.refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
    "SET session_replication_role = replica",
    "DELETE FROM ops.parked_decisions",
    "CALL ops.grant_roles()",
    "CREATE ROLE mine",
];

#[tokio::test]
async fn a_writer_reads_the_log_and_appends_to_it_and_changes_nothing() {
    let database = book().await;
    let mut writer = connect(&database, "minutebook_writer").await;
    assert_refused(&mut writer, &OWNERS).await;
    assert_refused(
        &mut writer,
        &[
            "SELECT count(*) FROM read.meetings",
            "SELECT display_name FROM read.user_profiles",
            "INSERT INTO read.cache VALUES ('k', 'v')",
            "SELECT count(*) FROM ops.parked_events",
            "UPDATE keys.subjects SET destroyed_at = NULL",
            "DELETE FROM keys.subjects",
            "UPDATE keys.master SET key_id = key_id",
        ],
    )
    .await;
    assert_allowed(
        &mut writer,
        &["SELECT position, payload FROM log.events", "SELECT log_id FROM log.identity"],
    )
    .await;

    let head = event_store::log::head(&database.pool().await).await.unwrap();
    let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
    let pool = PgPool::connect_with(options(&database, "minutebook_writer")).await.unwrap();
    let store = EventStore::open(pool, tests::master(), &shutdown, &tasks).await.unwrap();
    let start = MeetingCommand::Reprocess { worker: "w2".parse().unwrap(), at: api::clock::now() };
    let context = Context { actor: "t".to_owned(), actor_kind: "service".to_owned(), ..Context::default() };
    let accepted = CommandBus::new(&store).meeting(MINE.into(), start, &context).await.unwrap();
    assert_eq!(accepted.position, head + 1);
    shutdown.cancel();
    tasks.close();
    tasks.wait().await;
}

#[tokio::test]
async fn a_writer_destroys_no_key_and_plants_none() {
    let database = book().await;
    let (pool, name) = (database.pool().await, format!("writes_{}", Uuid::now_v7().simple()));
    let login = format!("CREATE ROLE {name} LOGIN PASSWORD 'sesame' IN ROLE minutebook_writer");
    pool.execute(login.as_str()).await.unwrap();
    let own = PgConnectOptions::from_str(&database.url).unwrap().username(&name).password("sesame");
    let mut writers =
        [PgConnection::connect_with(&own).await.unwrap(), connect(&database, "minutebook_writer").await];
    let erased = r#"{"ProfileErased":{"erased_at":"2026-11-24T09:00:00Z"}}"#;
    let erasure = append_call("profile", ADA, 2, "ProfileErased", erased, None);
    let renamed = r#"{"ProfileRenamed":{"display_name":null}}"#;
    let anybody = Uuid::from_u128(0xf0);
    let planted = |aggregate, kind| {
        append_call("profile", aggregate, 0, "ProfileRenamed", renamed, Some((kind, anybody)))
    };
    for writer in &mut writers {
        assert_refused(
            writer,
            &[
                &erasure,
                &planted(BO, "profile"),
                &planted(BO, "meeting"),
                &planted(anybody, "meeting"),
                &planted(anybody, "speaker"),
            ],
        )
        .await;
        assert_eq!(
            texts(writer, "SELECT id::text FROM keys.subjects WHERE destroyed_at IS NOT NULL").await,
            [""; 0]
        );
    }
    // Its own it brings; and the owner erases.
    assert_allowed(&mut writers[0], &[&planted(anybody, "profile")]).await;
    let brought = format!("SELECT kind FROM keys.subjects WHERE id = '{anybody}'");
    assert_eq!(texts(&mut writers[0], &brought).await, ["profile"]);
    pool.execute(erasure.as_str()).await.unwrap();
    assert_eq!(
        texts(&mut writers[0], "SELECT id::text FROM keys.subjects WHERE destroyed_at IS NOT NULL").await,
        [ADA.to_string()]
    );
    let [own, role] = writers;
    own.close().await.unwrap();
    role.close().await.unwrap();
    pool.execute(format!("DROP ROLE {name}").as_str()).await.unwrap();
}

/// Returns a call of `log.append` with one event, and the key of somebody.
fn append_call(
    aggregate: &str,
    id: Uuid,
    expected: i64,
    event: &str,
    payload: &str,
    key: Option<(&str, Uuid)>,
) -> String {
    let command = Uuid::now_v7();
    let subject = match key {
        // Wrapped by the master key of today, as far as can be told.
        Some((kind, id)) => format!(
            "ARRAY[1], ARRAY['{kind}'], ARRAY['{id}'::uuid], ARRAY[1],
             ARRAY[(SELECT '\\x01'::bytea || uuid_send(key_id) || '\\x00' FROM keys.master)]"
        ),
        None => "'{}', '{}', '{}', '{}', '{}'".to_owned(),
    };
    format!(
        "SELECT outcome FROM log.append(ARRAY['{command}'::uuid], ARRAY[NULL::bytea], ARRAY['{aggregate}'], ARRAY['{id}'],
             ARRAY[{expected}::bigint], ARRAY[1], ARRAY['{{\"command_id\": \"{command}\"}}'], ARRAY[1], ARRAY[1],
             ARRAY['{event}'], ARRAY['1'], ARRAY['{payload}'], ARRAY[1], true, {subject})"
    )
}

#[tokio::test]
async fn whoever_appends_does_not_choose_whose_functions_run() {
    let database = book().await;
    let evil = "CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC;
                CREATE FUNCTION evil.cardinality(anyarray) RETURNS int LANGUAGE plpgsql AS
                    'BEGIN RAISE EXCEPTION ''stolen by %'', current_user; END'";
    database.pool().await.execute(evil).await.unwrap();
    let mut writer = connect(&database, "minutebook_writer").await;
    // Were the path not fixed, this would find the one in `evil` first.
    writer.execute("SET search_path = evil, pg_catalog").await.unwrap();
    let stolen = writer.execute("SELECT cardinality(ARRAY[1])").await.unwrap_err().to_string();
    assert!(stolen.contains("stolen by minutebook_writer"), "{stolen}");
    let arguments: String = sqlx::query_scalar(
        "SELECT pg_catalog.string_agg(
                    CASE WHEN a = 'boolean' THEN 'true'
                         WHEN n = 13 THEN '''{0}''' ELSE '''{}''' END || '::' || a, ', ' ORDER BY n)
           FROM pg_proc p, pg_catalog.unnest(string_to_array(oidvectortypes(p.proargtypes), ', '))
                WITH ORDINALITY AS arguments (a, n)
          WHERE p.oid = 'log.append'::regproc",
    )
    .fetch_one(&mut writer)
    .await
    .unwrap();
    writer.execute(format!("SELECT log.append({arguments})").as_str()).await.unwrap();
}

#[tokio::test]
async fn nobody_in_particular_may_do_anything() {
    let database = book().await;
    let role = format!("nobody_{}", Uuid::now_v7().simple());
    database.pool().await.execute(format!("CREATE ROLE {role}").as_str()).await.unwrap();
    let mut nobody = connect(&database, &role).await;
    assert_refused(&mut nobody, &OWNERS).await;
    assert_refused(
        &mut nobody,
        &[
            "SELECT position FROM log.events",
            "SELECT 'log.append'::regproc",
            "SELECT count(*) FROM read.files",
            "SELECT count(*) FROM ops.rebuilds",
            "SELECT count(*) FROM keys.subjects",
        ],
    )
    .await;
    database.pool().await.execute(format!("DROP ROLE {role}").as_str()).await.unwrap();
}

#[tokio::test]
async fn a_reader_sees_one_owner_s_rows_and_no_voice_before_and_after_a_rebuild() {
    let database = book().await;
    let granted = "CREATE ROLE hand_granted; GRANT USAGE ON SCHEMA read TO hand_granted;
                   GRANT SELECT (id, size) ON read.files TO hand_granted;
                   GRANT SELECT ON read.meetings TO hand_granted";
    database.pool().await.execute(granted).await.unwrap();
    // What an earlier version gave one of the program's own roles, and this one does not, goes with its tables.
    database.pool().await.execute("GRANT SELECT ON read.cache_origin TO minutebook_reader").await.unwrap();
    assert_allowed(
        &mut connect(&database, "minutebook_reader").await,
        &["SELECT key FROM read.cache_origin"],
    )
    .await;
    let ran = run_on(&database, &["rebuild"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_reads_its_own(&database).await;
    for arguments in [&["rebuild"][..], &["rebuild", "--rollback"]] {
        let ran = run_on(&database, arguments).await;
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert_reads_its_own(&database).await;
        // What somebody has granted by hand goes along, and no policy keeps anything from it.
        let mut by_hand = connect(&database, "hand_granted").await;
        assert_eq!(texts(&mut by_hand, "SELECT id::text FROM read.files WHERE size > 0").await.len(), 3);
        assert_eq!(texts(&mut by_hand, "SELECT id::text FROM read.meetings").await.len(), 3);
        assert_refused(&mut by_hand, &["SELECT owner FROM read.files"]).await;
    }
    database.pool().await.execute("DROP OWNED BY hand_granted; DROP ROLE hand_granted").await.unwrap();
}

async fn assert_reads_its_own(database: &TestDatabase) {
    let mut reader = connect(database, "minutebook_reader").await;
    assert_refused(&mut reader, &OWNERS).await;
    assert_refused(
        &mut reader,
        &[
            "SELECT embeddings FROM read.user_profiles",
            "SELECT * FROM read.user_profiles",
            "SELECT id FROM read.user_profiles WHERE embeddings IS NOT NULL",
            "SELECT user_profiles FROM read.user_profiles",
            "SELECT key FROM read.cache_origin",
            "SELECT position FROM log.events",
            "SELECT secret FROM log.identity",
            "SELECT wrapped FROM keys.subjects",
            "SELECT key_id FROM keys.master",
            "UPDATE read.meetings SET status = 'failed'",
            "DELETE FROM read.files",
            "INSERT INTO read.files (id, sha256) VALUES (gen_random_uuid(), '')",
            "TRUNCATE read.speakers",
            "ALTER TABLE read.files DISABLE ROW LEVEL SECURITY",
            "DROP POLICY of_one_owner ON read.files",
        ],
    )
    .await;
    // Without a policy that applies, PostgreSQL would refuse here rather than leave rows out.
    reader.execute("SET row_security = off").await.unwrap();
    assert_refused(&mut reader, &["SELECT id FROM read.files"]).await;
    reader.execute("SET row_security = on").await.unwrap();

    let queries = [
        "SELECT id::text FROM files",
        "SELECT id::text FROM meetings",
        "SELECT id::text FROM speakers",
        "SELECT display_name FROM user_profiles",
        "SELECT id::text FROM artifacts",
        "SELECT artifact_id::text FROM stale_artifacts",
        "SELECT meeting_id::text FROM speaker_reassignments",
        "SELECT key FROM cache",
    ];
    // Nobody is named: nothing is shown, not even what belongs to nobody.
    for owner in ["", "''"] {
        if !owner.is_empty() {
            reader.execute(format!("SET minutebook.owner = {owner}").as_str()).await.unwrap();
        }
        for query in queries {
            assert!(texts(&mut reader, query).await.is_empty(), "{query}");
        }
    }
    for (owner, meeting, name) in [(ME, MINE, "Ada"), (THEM, THEIRS, "Bo")] {
        reader.execute(format!("SET minutebook.owner = '{owner}'").as_str()).await.unwrap();
        let artifact = artifact_id(meeting, 1, "transcript.md").to_string();
        let expected = [
            vec![file_id(meeting).to_string()],
            vec![meeting.to_string()],
            vec![speaker(meeting, 1, "a").to_string()],
            vec![name.to_owned()],
            vec![artifact],
            vec![],
            vec![meeting.to_string()],
            vec![format!("meeting:{meeting}")],
        ];
        for (query, expected) in queries.iter().zip(expected) {
            assert_eq!(texts(&mut reader, query).await, expected, "{query}");
        }
        // What leaks rows by their errors or counts sees no other row either.
        let probe =
            "SELECT count(*)::text FROM files WHERE 1 / (CASE WHEN owner = '{owner}' THEN 1 ELSE 0 END) = 1";
        let probe = probe.replace("{owner}", &owner.to_string());
        assert_eq!(texts(&mut reader, &probe).await, ["1"]);
    }
    // The service itself sees everything.
    let pool = database.pool().await;
    assert_tables_equal_the_fold(&pool).await;
}

#[tokio::test]
async fn an_auditor_reads_who_did_what_and_neither_what_it_held_nor_whose_voice() {
    let database = book().await;
    let mut auditor = connect(&database, "minutebook_auditor").await;
    assert_refused(&mut auditor, &OWNERS).await;
    assert_refused(
        &mut auditor,
        &[
            "SELECT payload FROM log.events",
            "SELECT * FROM log.events",
            "SELECT secret FROM log.identity",
            "SELECT request_hmac FROM log.commands",
            "SELECT display_name FROM read.user_profiles",
            "SELECT embeddings FROM read.user_profiles",
            "SELECT value FROM read.cache",
            "SELECT reason FROM ops.parked_decisions",
            "SELECT wrapped FROM keys.subjects",
            "DELETE FROM read.speaker_reassignments",
            "UPDATE ops.rebuilds SET who = 'me'",
        ],
    )
    .await;
    let heard = "SELECT meeting_id::text FROM read.speaker_reassignments ORDER BY position";
    assert_eq!(
        texts(&mut auditor, heard).await,
        [MINE, THEIRS, NOBODYS].map(|meeting| meeting.to_string()),
        "whoever it belongs to"
    );
    let who = "SELECT DISTINCT metadata ->> 'actor' FROM log.events WHERE event_type = 'SpeakerReassigned'";
    assert_eq!(texts(&mut auditor, who).await, ["test"]);
    assert_allowed(
        &mut auditor,
        &["SELECT outcome, actor FROM ops.parked_decisions", "SELECT who FROM ops.rebuilds"],
    )
    .await;
}

#[tokio::test]
async fn a_projector_writes_the_tables_and_nothing_of_the_log() {
    let database = TestDatabase::create().await;
    let mut connection = connect(&database, "minutebook_projector").await;
    assert_refused(&mut connection, &OWNERS).await;
    assert_refused(
        &mut connection,
        &[
            "UPDATE keys.subjects SET destroyed_at = now()",
            "DELETE FROM keys.subjects",
            "TRUNCATE read.files",
            "DROP TABLE read.files",
            "INSERT INTO ops.parked_decisions (position, outcome, actor) VALUES (1, 'skipped', 'me')",
            "DELETE FROM read.checkpoint",
        ],
    )
    .await;
    let book: Book = database.open().await;
    for event in [created(ADA, "Ada"), enrolled(ADA, Uuid::from_u128(1)), registered_for(MINE, Some(ME))] {
        append(&book, &event).await;
    }
    let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
    let pool = PgPool::connect_with(options(&database, "minutebook_projector")).await.unwrap();
    let store = EventStore::open(pool, tests::master(), &shutdown, &tasks).await.unwrap();
    let (sender, projection) = watch::channel(Projection::Standby);
    tasks.spawn(projector::run(store, fold, sender, shutdown.clone()));
    for event in [started(MINE, 1), diarized(MINE, 1, &["a"]), completed(MINE, 1, &["a"], &[])] {
        append(&book, &event).await;
    }
    caught_up_and_equal(book.pool()).await;
    let stopped = matches!(&*projection.borrow(), Projection::Stopped { .. });
    assert!(!stopped);
    shutdown.cancel();
    tasks.close();
    tasks.wait().await;
    book.close().await;
}

#[tokio::test]
async fn the_program_needs_no_superuser_only_a_database_of_its_own() {
    let name = format!("owned_{}", Uuid::now_v7().simple());
    let mut connection = PgConnection::connect(&tests::server_url()).await.unwrap();
    for statement in [
        format!("CREATE ROLE {name} LOGIN PASSWORD 'sesame' NOSUPERUSER NOCREATEDB NOCREATEROLE"),
        format!("CREATE DATABASE {name} OWNER {name}"),
    ] {
        connection.execute(statement.as_str()).await.unwrap();
    }
    let database = TestDatabase { url: tests::url_for(&name, &name, "sesame") };
    let projector = Server::start_with(&database, &["--only", "projector"]).await;
    let api = Server::start_with(&database, &["--only", "api"]).await;
    let body = serde_json::json!({"sha256": "ab".repeat(32), "owner": ME});
    let (status, registered) = api.post("/v1/meetings", &body).await;
    assert_eq!(status, 201, "{registered}");
    let shown = format!("/v1/meetings/{}", registered["id"].as_str().unwrap());
    let (status, meeting) = eventually("the meeting is shown", async || {
        let answer = api.get(&shown).await;
        (answer.0 != 404).then_some(answer)
    })
    .await;
    assert_eq!((status, &meeting["status"]), (200, &serde_json::json!("pending")));
    let pool = database.pool().await;
    // It does not have what a superuser's projector spares itself.
    let may_not = pool.execute("SET session_replication_role = replica").await.unwrap_err();
    assert_eq!(may_not.as_database_error().unwrap().code().unwrap(), INSUFFICIENT_PRIVILEGE);
    let ran = run_on(&database, &["rebuild"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let ran = run_on(&database, &["verify"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    pool.close().await;
    assert!(api.stop().await.success() && projector.stop().await.success());
}
