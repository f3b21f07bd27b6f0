//! `backup` and `restore`: what was true at one moment is true again, whoever wrote meanwhile; what is damaged,
//! or not for this database, leaves it empty; what was numbered goes on.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use api::book::Book;
use domain::personal_data::Subject;
use event_store::append::Outcome;
use event_store::log;
use projections::backup::{DERIVED, Manifest, TABLES};
use serde_json::{Value, json};
use sqlx::{Executor, PgPool};
use tests::TestDatabase;
use tests::server::Server;
use tests::workload::Workload;
use uuid::Uuid;

use crate::cli::{Ran, minutebook, run_on};
use crate::read_models::history::{append, completed, created, enrolled, registered, started};
use crate::read_models::{assert_tables_equal_the_fold, eventually};

const MEETING: Uuid = Uuid::from_u128(0xa0);
const ADA: Uuid = Uuid::from_u128(0xada);

/// A directory for backups, gone when it is dropped.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>();
        names.sort();
        names
    }
}

async fn run(database: &TestDatabase, arguments: &[&str], path: &Path) -> Ran {
    run_on(database, &[arguments, &[path.to_str().unwrap()]].concat()).await
}

fn done(ran: &Ran) {
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
}

fn manifest(dir: &Path) -> Manifest {
    serde_json::from_slice(&fs::read(dir.join("manifest.json")).unwrap()).unwrap()
}

/// A few meetings and people, and something of everything that is decided and not derived.
async fn small_book() -> TestDatabase {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    for event in [
        created(ADA, "Ada"),
        enrolled(ADA, Uuid::from_u128(1)),
        registered(MEETING),
        started(MEETING, 1),
        completed(MEETING, 1, &[], &[]),
    ] {
        append(&book, &event).await;
    }
    book.close().await;
    database
}

#[tokio::test]
async fn every_table_is_in_a_backup_or_known_to_be_derived() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let there: Vec<String> = sqlx::query_scalar(
        "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname IN ('log', 'ops', 'keys') ORDER BY 1",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    for table in &there {
        let (kept, derived) = (TABLES.contains(&table.as_str()), DERIVED.contains(&table.as_str()));
        assert!(kept != derived, "{table} belongs to one of the lists in projections/src/backup.rs");
    }
}

#[tokio::test]
async fn a_backup_taken_while_others_write_is_one_moment_and_all_of_it_comes_back() {
    let database = small_book().await;
    let server = Server::start(&database).await;
    let key = ("idempotency-key", "k-1");
    let register = json!({"sha256": "cd".repeat(32), "size": 5});
    let send = async |server: &Server| {
        let request = server.client.post(server.at("/v1/meetings")).header(key.0, key.1).json(&register);
        tests::server::answer(request).await
    };
    let (status, first) = send(&server).await;
    assert_eq!(status, 201, "{first}");
    let pool = database.pool().await;
    // An event that an operator has skipped has no effect from then on, in no generation.
    let skipped =
        "INSERT INTO ops.parked_decisions (position, outcome, reason, actor) VALUES (2, 'skipped', 'r', 'a')";
    pool.execute(skipped).await.unwrap();

    let place = Place::new();
    let dir = place.at("backup");
    let book = database.open().await;
    let before = log::head(&pool).await.unwrap();
    let grown = async |from: i64| {
        eventually("the log grows", async || (log::head(&pool).await.unwrap() > from).then_some(())).await;
    };
    let ran = while_events_flow(&book, async {
        grown(before).await;
        let ran = run(&database, &["backup", "--json"], &dir).await;
        grown(manifest(&dir).head).await;
        ran
    });
    done(&ran.await);
    assert_eq!(place.names(), ["backup"], "nothing is left beside it");
    let taken = manifest(&dir);
    let after = log::head(&pool).await.unwrap();
    assert!(before < taken.head && taken.head < after, "{before} {} {after}", taken.head);
    for file in fs::read_dir(&dir).unwrap() {
        let mode = file.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "nobody else reads it");
    }
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    book.close().await;
    assert!(server.stop().await.success());

    let restored = TestDatabase::blank().await;
    let ran = run(&restored, &["restore", "--json"], &dir).await;
    done(&ran);
    let last: Value = serde_json::from_str(ran.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(last, json!({"log": [], "clean": true}), "verify has the last word");
    let again = restored.pool().await;
    assert_eq!(contents(&again, taken.head).await, contents(&pool, taken.head).await);
    assert_eq!(log::head(&again).await.unwrap(), taken.head);
    let (was, is) = (log::identity(&pool).await.unwrap(), log::identity(&again).await.unwrap());
    assert_eq!(is.log_id, was.log_id);
    let secret = "SELECT encode(secret, 'hex') FROM log.identity";
    let secret = async |pool| sqlx::query_scalar::<_, String>(secret).fetch_one(pool).await.unwrap();
    assert_eq!(secret(&again).await, secret(&pool).await, "ids are derived with it");
    assert!(is.epoch != was.epoch && taken.epoch == was.epoch, "positions are told apart");
    assert_eq!(assert_tables_equal_the_fold(&again).await, taken.head);
    assert_eq!(shape_of_log(&again).await, shape_of_log(&pool).await, "keys, indexes and triggers are back");

    // It goes on where it was: the next position, what a client repeats, what is numbered.
    let server = Server::start(&restored).await;
    assert_eq!(send(&server).await.1, first, "the first answer, once more");
    let (status, registered) = server.post("/v1/meetings", &json!({"sha256": "ef".repeat(32)})).await;
    assert_eq!((status, &registered["position"]), (201, &json!(taken.head + 1)));
    let next: i64 = sqlx::query_scalar(
        "INSERT INTO ops.parked_decisions (position, outcome, actor) VALUES (3, 'applied', 'a') RETURNING id",
    )
    .fetch_one(&again)
    .await
    .unwrap();
    assert_eq!(next, 2);
    // Whoever followed the old epoch is told.
    let id = format!("{}:{}", was.epoch, taken.head);
    let request = server.client.get(server.at("/v1/changes")).header("last-event-id", id);
    let (status, problem) = tests::server::answer(request).await;
    assert_eq!((status, &problem["code"]), (409, &json!("epoch_changed")), "{problem}");
    assert!(server.stop().await.success());
    done(&run_on(&restored, &["verify"]).await);
}

#[tokio::test]
async fn a_damaged_backup_is_named_and_leaves_the_database_empty() {
    let database = small_book().await;
    let place = Place::new();
    let good = place.at("good");
    done(&run(&database, &["backup"], &good).await);
    let files = manifest(&good).tables.into_iter().map(|table| table.file).collect::<Vec<_>>();
    assert!(files.len() >= 5, "{files:?}");
    let mut damages: Vec<Damage> = vec![];
    let edit = |change: fn(&mut Value)| {
        Box::new(move |dir: &Path| {
            let path = dir.join("manifest.json");
            let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            change(&mut manifest);
            fs::write(&path, manifest.to_string()).unwrap();
        }) as Box<dyn Fn(&Path)>
    };
    for file in &files {
        let path = file.clone();
        let flip = move |dir: &Path| {
            let mut bytes = fs::read(dir.join(&path)).unwrap();
            let at = bytes.len() / 2;
            bytes[at] ^= 1;
            fs::write(dir.join(&path), bytes).unwrap();
        };
        let path = file.clone();
        let cut = move |dir: &Path| {
            let bytes = fs::read(dir.join(&path)).unwrap();
            fs::write(dir.join(&path), &bytes[..bytes.len() - 1]).unwrap();
        };
        let path = file.clone();
        let remove = move |dir: &Path| fs::remove_file(dir.join(&path)).unwrap();
        damages.push((format!("a bit of {file}"), "its checksum is another", Box::new(flip)));
        damages.push((format!("the end of {file}"), "bytes, and had", Box::new(cut)));
        damages.push((format!("no {file}"), "it is missing", Box::new(remove)));
    }
    damages.extend([
        (
            "never finished".to_owned(),
            "never finished",
            Box::new(|dir: &Path| fs::remove_file(dir.join("manifest.json")).unwrap()) as Box<dyn Fn(&Path)>,
        ),
        (
            "half a manifest".to_owned(),
            "manifest.json cannot be read",
            Box::new(|dir: &Path| {
                let text = fs::read(dir.join("manifest.json")).unwrap();
                fs::write(dir.join("manifest.json"), &text[..text.len() / 2]).unwrap();
            }),
        ),
        ("a newer format".to_owned(), "format 2", edit(|manifest| manifest["format"] = json!(2))),
        (
            "another head".to_owned(),
            "should have the positions",
            edit(|manifest| manifest["head"] = json!(4)),
        ),
        (
            "another log".to_owned(),
            "said to be of the log",
            edit(|manifest| manifest["log_id"] = json!(MEETING)),
        ),
        ("other rows".to_owned(), "rows, and had", edit(|manifest| manifest["tables"][0]["rows"] = json!(4))),
        (
            "another table".to_owned(),
            "is not known here",
            edit(|manifest| manifest["tables"][0]["table"] = json!("read.files")),
        ),
        (
            "another column".to_owned(),
            "is not known here",
            edit(|manifest| manifest["tables"][0]["columns"][0] = json!("position) FROM PROGRAM 'true' --")),
        ),
        (
            "a file elsewhere".to_owned(),
            "cannot be called",
            edit(|manifest| manifest["tables"][0]["file"] = json!("../../etc/passwd")),
        ),
    ]);

    let target = TestDatabase::blank().await;
    done(&run_on(&target, &["migrate"]).await);
    let pool = target.pool().await;
    let identity = log::identity(&pool).await.unwrap();
    for (n, (what, expected, damage)) in damages.iter().enumerate() {
        let dir = place.at(&format!("damaged{n}"));
        fs::create_dir(&dir).unwrap();
        for file in fs::read_dir(&good).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), dir.join(file.file_name())).unwrap();
        }
        damage(&dir);
        let ran = run(&target, &["restore"], &dir).await;
        assert_eq!(ran.code, Some(1), "{what}: {}", ran.stdout);
        assert!(ran.stderr.contains(expected), "{what}: {}", ran.stderr);
        assert_eq!(log::head(&pool).await.unwrap(), 0, "{what}");
        let is = log::identity(&pool).await.unwrap();
        assert_eq!((is.log_id, is.epoch), (identity.log_id, identity.epoch), "{what}");
    }
    assert_eq!(shape_of_log(&pool).await, shape_of_log(&database.pool().await).await);
    done(&run(&target, &["restore"], &good).await);
}

#[tokio::test]
async fn neither_a_directory_nor_a_database_in_use_is_written_to() {
    let database = small_book().await;
    let place = Place::new();
    let (dir, empty) = (place.at("backup"), place.at("empty"));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("mine"), "mine").unwrap();
    let ran = run(&database, &["backup"], &dir).await;
    assert!(ran.code == Some(1) && ran.stderr.contains("is not empty"), "{}", ran.stderr);
    assert_eq!(fs::read(dir.join("mine")).unwrap(), b"mine");
    let ran = run(&database, &["backup"], &place.at("no/such")).await;
    assert!(ran.code == Some(1) && ran.stderr.contains("no/such"), "{}", ran.stderr);
    fs::create_dir(&empty).unwrap();
    done(&run(&database, &["backup"], &empty).await);
    assert_eq!(place.names(), ["backup", "empty"]);

    let ran = run(&database, &["restore"], &empty).await;
    assert!(ran.code == Some(1) && ran.stderr.contains("the database is not empty"), "{}", ran.stderr);
    assert_eq!(log::head(&database.pool().await).await.unwrap(), 5);
    // One that serves knows its log from its start.
    let served = TestDatabase::blank().await;
    let server = Server::start(&served).await;
    let ran = run(&served, &["restore"], &empty).await;
    assert!(ran.code == Some(1) && ran.stderr.contains("must be stopped"), "{}", ran.stderr);
    assert!(server.stop().await.success());
    done(&run(&served, &["restore"], &empty).await);
    let ran = run(&served, &["restore"], &dir).await;
    assert!(ran.code == Some(1) && ran.stderr.contains("is no backup"), "{}", ran.stderr);
}

#[tokio::test]
async fn without_its_master_key_nothing_is_restored() {
    let database = small_book().await;
    let place = Place::new();
    let dir = place.at("backup");
    done(&run(&database, &["backup"], &dir).await);
    let target = TestDatabase::blank().await;
    let mut restore = minutebook(&["restore", dir.to_str().unwrap()]);
    let another = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    restore.env("DATABASE_URL", &target.url).env("MINUTEBOOK_MASTER_KEY", another);
    let ran = crate::cli::run(&mut restore).await;
    assert!(ran.code == Some(1) && ran.stderr.contains("under another master key"), "{}", ran.stderr);
    let missing = place.at("no-such.key");
    let mut restore = minutebook(&["restore", dir.to_str().unwrap()]);
    restore.env("DATABASE_URL", &target.url).env("MINUTEBOOK_MASTER_KEY_FILE", &missing);
    let ran = crate::cli::run(&mut restore).await;
    assert!(ran.code == Some(1) && ran.stderr.contains("under another master key"), "{}", ran.stderr);
    assert!(!missing.exists(), "no new key takes the place of the one that is needed");
    assert_eq!(log::head(&target.pool().await).await.unwrap(), 0);
    done(&run(&target, &["restore"], &dir).await);
}

#[tokio::test]
async fn a_log_with_a_hole_is_not_called_a_backup() {
    let database = small_book().await;
    let pool = database.pool().await;
    let damage = "ALTER TABLE log.events DISABLE TRIGGER ALL; DELETE FROM log.events WHERE position = 2";
    pool.execute(damage).await.unwrap();
    let place = Place::new();
    let ran = run(&database, &["backup"], &place.at("backup")).await;
    assert!(ran.code == Some(1) && ran.stderr.contains("the log is damaged"), "{}", ran.stderr);
    assert!(place.names().is_empty(), "{:?}", place.names());
}

#[tokio::test]
async fn whoever_was_forgotten_after_the_backup_stays_forgotten() {
    let database = small_book().await;
    let place = Place::new();
    let (dir, list) = (place.at("backup"), place.at("erasures.json"));
    done(&run(&database, &["backup"], &dir).await);
    let pool = database.pool().await;
    let book = database.open().await;
    let mut connection = pool.acquire().await.unwrap();
    let forgotten = Uuid::from_u128(0xf0);
    let subjects = [Subject::Profile(ADA.into()), Subject::Profile(forgotten.into())];
    assert_eq!(book.store.keyring().destroy(&mut connection, &subjects).await.unwrap(), 1);
    // A meeting that was erased and registered anew: its earlier life stays destroyed.
    let anew = "UPDATE keys.subjects SET life = 2, created_at = now() WHERE kind = 'meeting' RETURNING id";
    let anew: Option<Uuid> = sqlx::query_scalar(anew).fetch_optional(&pool).await.unwrap();
    drop(connection);
    book.close().await;
    done(&run(&database, &["backup", "--erasures"], &list).await);
    assert_eq!(fs::metadata(&list).unwrap().permissions().mode() & 0o777, 0o600);
    let told: Value = serde_json::from_slice(&fs::read(&list).unwrap()).unwrap();
    assert_eq!(told["erased"].as_array().unwrap().len(), 2 + usize::from(anew.is_some()), "{told}");
    assert!(!told.to_string().contains("Ada"));
    // Again, in its own place.
    done(&run(&database, &["backup", "--erasures"], &list).await);

    // Without the list the key is back, which nobody can know but whoever restores.
    let forgetful = TestDatabase::blank().await;
    done(&run(&forgetful, &["restore"], &dir).await);
    assert_eq!(names(&forgetful).await, ["Ada"]);

    let restored = TestDatabase::blank().await;
    let (dir, list) = (dir.to_str().unwrap(), list.to_str().unwrap());
    let ran = run_on(&restored, &["restore", dir, "--erasures", list, "--json"]).await;
    done(&ran);
    let destroyed = json!(1 + i32::from(anew.is_some()));
    let says =
        |line: &str| serde_json::from_str::<Value>(line).unwrap()["restored"]["keys_destroyed"] == destroyed;
    assert!(ran.stdout.lines().any(says), "{}", ran.stdout);
    let again = restored.pool().await;
    let keys: Vec<(Uuid, bool)> =
        sqlx::query_as("SELECT id, wrapped IS NULL FROM keys.subjects WHERE kind = 'profile' ORDER BY id")
            .fetch_all(&again)
            .await
            .unwrap();
    assert_eq!(keys, [(forgotten, true), (ADA, true)]);
    if let Some(anew) = anew {
        let living = "SELECT count(*) FROM keys.subjects WHERE id = $1 AND wrapped IS NOT NULL";
        assert_eq!(sqlx::query_scalar::<_, i64>(living).bind(anew).fetch_one(&again).await.unwrap(), 0);
    }
    assert!(!names(&restored).await.contains(&"Ada".to_owned()));

    let other = TestDatabase::blank().await;
    let text =
        fs::read_to_string(list).unwrap().replace(told["log_id"].as_str().unwrap(), &MEETING.to_string());
    let of_another = place.at("of-another.json");
    fs::write(&of_another, text).unwrap();
    let ran = run_on(&other, &["restore", dir, "--erasures", of_another.to_str().unwrap()]).await;
    assert!(ran.code == Some(1) && ran.stderr.contains("list of the erased is of the log"), "{}", ran.stderr);
    fs::write(&of_another, "{}").unwrap();
    let ran = run_on(&other, &["restore", dir, "--erasures", of_another.to_str().unwrap()]).await;
    assert!(ran.code == Some(1) && ran.stderr.contains("of-another.json cannot be read"), "{}", ran.stderr);
    done(&run_on(&other, &["restore", dir, "--erasures", list]).await);
}

async fn names(database: &TestDatabase) -> Vec<String> {
    let names = "SELECT display_name FROM user_profiles ORDER BY 1";
    sqlx::query_scalar(names).fetch_all(&database.pool().await).await.unwrap()
}

#[tokio::test]
async fn an_epoch_is_renewed_by_hand_while_nobody_serves() {
    let database = small_book().await;
    let pool = database.pool().await;
    let before = log::identity(&pool).await.unwrap();
    let server = Server::start(&database).await;
    let ran = run_on(&database, &["epoch", "renew"]).await;
    assert!(ran.code == Some(1) && ran.stderr.contains("must be stopped"), "{}", ran.stderr);
    assert!(server.stop().await.success());
    assert_eq!(log::identity(&pool).await.unwrap().epoch, before.epoch);
    let ran = run_on(&database, &["epoch", "renew", "--json"]).await;
    done(&ran);
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    let after = log::identity(&pool).await.unwrap();
    assert_ne!(after.epoch, before.epoch);
    assert_eq!(told, json!({"log_id": before.log_id, "epoch": after.epoch}));
}

/// What is done to a backup, and what is then said of it.
type Damage = (String, &'static str, Box<dyn Fn(&Path)>);

/// Appends without a pause until `during` is done.
async fn while_events_flow<T>(book: &Book, during: impl Future<Output = T>) -> T {
    let flowing = async {
        let mut workload = Workload::new(fastrand::u64(..), 8);
        loop {
            let outcome = book.store.appender().append(workload.next_append()).await.unwrap();
            assert!(matches!(outcome, Outcome::Appended(_)), "{outcome:?}");
        }
    };
    tokio::select! {
        never = flowing => never,
        outcome = during => outcome,
    }
}

/// Returns what a backup keeps, as text, of the events up to a position.
async fn contents(pool: &PgPool, head: i64) -> Vec<String> {
    let mut contents = vec![];
    for table in TABLES {
        if table == "log.identity" {
            continue;
        }
        let there: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
            .bind(table)
            .fetch_one(pool)
            .await
            .unwrap();
        if !there {
            continue;
        }
        // A restore has its own rebuilds besides.
        let which = match table {
            "log.events" => format!("WHERE position <= {head}"),
            "ops.rebuilds" => "WHERE kind NOT IN ('restore', 'verify')".to_owned(),
            // It notes that it was restored.
            "ops.access_log" => "WHERE what <> 'restore'".to_owned(),
            // Keys come with events.
            "keys.subjects" => format!(
                "WHERE destroyed_at IS NOT NULL OR created_at <= (SELECT recorded_at FROM log.events WHERE position = {head})"
            ),
            _ => String::new(),
        };
        let query = format!(
            "SELECT count(*) || ' rows of {table}, ' || coalesce(md5(string_agg(t::text, ',' ORDER BY t::text)), '')
               FROM {table} t {which}"
        );
        contents.push(sqlx::query_scalar(&query).fetch_one(pool).await.unwrap());
    }
    contents
}

/// Returns constraints, indexes, triggers and grants of the log.
async fn shape_of_log(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid), convalidated)
           FROM pg_constraint WHERE connamespace = 'log'::regnamespace
         UNION ALL SELECT pg_get_indexdef(indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
          WHERE c.relnamespace = 'log'::regnamespace
         UNION ALL SELECT concat_ws(' ', tgname, tgenabled) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
          WHERE c.relnamespace = 'log'::regnamespace AND NOT tgisinternal
         UNION ALL SELECT concat_ws(' ', relname, relacl) FROM pg_class WHERE relnamespace = 'log'::regnamespace
          ORDER BY 1",
    )
    .fetch_all(pool)
    .await
    .unwrap()
}
