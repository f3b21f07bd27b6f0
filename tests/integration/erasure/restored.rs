//! A restore from before an erasure: the list of the erased keeps whoever was forgotten from coming back, and the
//! restore carries the erasures out; and who erased, backed up and restored is noted.

use domain::personal_data::Subject;
use projections::erasure;
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection};
use tests::TestDatabase;
use tests::server::Server;
use uuid::Uuid;

use super::{NAME, PLANE, People, id_of, verified};
use crate::cli::run_on;
use crate::read_models::{caught_up_and_equal, eventually};

async fn ran(database: &TestDatabase, arguments: &[&str]) {
    let ran = run_on(database, arguments).await;
    assert_eq!(ran.code, Some(0), "{arguments:?}: {}{}", ran.stdout, ran.stderr);
}

/// Returns what the audit of access has of one kind: who did it, and to whom.
async fn noted(server: &Server, what: &str) -> Vec<(Value, Value)> {
    let (status, page) = server.get(&format!("/v1/audit/access?what={what}")).await;
    assert_eq!(status, 200, "{page}");
    let row = |row: &Value| (row["who"].clone(), row["target"].clone());
    page["items"].as_array().unwrap().iter().map(row).collect()
}

#[tokio::test]
async fn who_was_forgotten_after_a_backup_is_forgotten_again_by_the_restore() {
    let people = People::known().await;
    let done = people.completed(1).await;
    let erased_meeting = people.completed(2).await;
    caught_up_and_equal(&people.pool).await;
    let place = tempfile::tempdir().unwrap();
    let [dir, list] = ["backup", "erasures.json"].map(|name| place.path().join(name).display().to_string());
    ran(&people.database, &["backup", &dir]).await;
    let before = people.forget().await;
    let (status, told) = people.erase(&erased_meeting, json!({"reason": "uploaded by mistake"})).await;
    assert_eq!((status, &told["state"]), (200, &json!("complete")), "{told}");
    ran(&people.database, &["backup", "--erasures", &list]).await;
    let (ottilie, meeting): (Uuid, Uuid) = (people.ottilie, id_of(&erased_meeting).parse().unwrap());
    for (what, target) in [("erase_profile", json!(ottilie)), ("erase_meeting", json!(meeting))] {
        assert_eq!(noted(&people.server, what).await, [(json!("local"), target)], "{what}");
    }
    assert_eq!(noted(&people.server, "backup").await.len(), 1, "the list alone is no copy of anything");

    let restored = TestDatabase::blank().await;
    ran(&restored, &["restore", &dir, "--erasures", &list]).await;
    let pool = restored.pool().await;
    // Nobody has served it yet, and there is no name any more.
    let named: i64 = sqlx::query_scalar("SELECT count(*) FROM user_profiles WHERE display_name = $1")
        .bind(NAME)
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(named, 0);
    for subject in [ottilie, meeting] {
        let receipt = erasure::of_subject(&pool, subject).await.unwrap().unwrap();
        assert!(receipt.completed_at.is_some(), "it is carried out: {receipt:?}");
        assert!(receipt.position < before["position"].as_i64().unwrap() + 3, "the log goes on densely");
    }
    let server = Server::start_with(&restored, &PLANE).await;
    caught_up_and_equal(&pool).await;
    assert_eq!(server.get(&format!("/v1/profiles/{ottilie}")).await.0, 404);
    assert_eq!(server.get(&erased_meeting).await.0, 404);
    let (_, shown) = server.get(&done).await;
    let speakers = shown["speakers"].as_array().unwrap();
    let who = |label: &str| {
        let speaker = speakers.iter().find(|speaker| speaker["cluster_id"] == label).unwrap();
        speaker["user_profile_id"].clone()
    };
    assert_eq!((who("a"), who("b")), (Value::Null, json!(people.bo)), "{shown}");
    let (status, refused) = server.post("/v1/profiles", &json!({"id": ottilie, "display_name": NAME})).await;
    assert_eq!((status, &refused["code"]), (409, &json!("profile_erased")));
    assert_eq!(noted(&server, "restore").await.len(), 1);
    assert!(server.stop().await.success());
    verified(&restored).await;
}

/// A place for a backup and for a list of the erased.
struct Place {
    dir: String,
    list: String,
    _place: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let [dir, list] =
            ["backup", "erasures.json"].map(|name| place.path().join(name).display().to_string());
        Self { dir, list, _place: place }
    }
}

async fn erased(server: &Server, path: &str, body: Value) {
    let (status, receipt) = super::erase(server, path, body).await;
    assert_eq!((status, &receipt["state"]), (200, &json!("complete")), "{receipt}");
}

#[tokio::test]
async fn a_meeting_that_ended_a_life_without_a_key_is_erased_again_after_a_restore() {
    let people = People::known().await;
    let file = json!({"sha256": format!("{:064x}", 1)});
    for _ in 0..2 {
        let told = people.command("/v1/meetings", file.clone()).await;
        let meeting = format!("/v1/meetings/{}", told["id"].as_str().unwrap());
        erased(&people.server, &meeting, json!({"reason": "uploaded by mistake"})).await;
    }
    let meeting = people.completed(1).await;
    let Place { dir, list, _place } = Place::new();
    ran(&people.database, &["backup", &dir]).await;
    erased(&people.server, &meeting, json!({"reason": "on request"})).await;
    ran(&people.database, &["backup", "--erasures", &list]).await;

    let restored = TestDatabase::blank().await;
    ran(&restored, &["restore", &dir, "--erasures", &list]).await;
    let server = Server::start_with(&restored, &PLANE).await;
    eventually("it is erased again", async || (server.get(&meeting).await.0 == 404).then_some(())).await;

    // So it is where nothing was sealed in the life that the list ends.
    let told = people.command("/v1/meetings", file).await;
    let Place { dir, list, _place } = Place::new();
    ran(&people.database, &["backup", &dir]).await;
    assert_eq!(format!("/v1/meetings/{}", told["id"].as_str().unwrap()), meeting);
    erased(&people.server, &meeting, json!({"reason": "once more"})).await;
    ran(&people.database, &["backup", "--erasures", &list]).await;
    let restored = TestDatabase::blank().await;
    ran(&restored, &["restore", &dir, "--erasures", &list]).await;
    let server = Server::start_with(&restored, &PLANE).await;
    eventually("it is erased again", async || (server.get(&meeting).await.0 == 404).then_some(())).await;
}

#[tokio::test]
async fn what_was_erased_again_after_a_restore_may_be_registered_anew_and_stays() {
    let people = People::known().await;
    let meeting = people.completed(1).await;
    let Place { dir, list, _place } = Place::new();
    ran(&people.database, &["backup", &dir]).await;
    for _ in 0..2 {
        erased(&people.server, &meeting, json!({"reason": "on request"})).await;
        assert_eq!(people.completed(1).await, meeting);
    }
    erased(&people.server, &meeting, json!({"reason": "on request"})).await;
    ran(&people.database, &["backup", "--erasures", &list]).await;

    let restored = TestDatabase::blank().await;
    ran(&restored, &["restore", &dir, "--erasures", &list]).await;
    let server = Server::start_with(&restored, &PLANE).await;
    eventually("it is erased again", async || (server.get(&meeting).await.0 == 404).then_some(())).await;
    let file = json!({"sha256": format!("{:064x}", 1)});
    assert_eq!(server.post("/v1/meetings", &file).await.0, 201);
    assert!(server.stop().await.success());
    let server = Server::start_with(&restored, &PLANE).await;
    // Once this one is complete, it was looked whether anything is to be erased again.
    erased(&server, &format!("/v1/profiles/{}", people.ottilie), json!({})).await;
    assert_eq!(server.get(&meeting).await.0, 200, "it was registered anew");
    assert!(server.stop().await.success());
    verified(&restored).await;
}

#[tokio::test]
async fn what_lived_and_ended_once_more_after_a_backup_may_be_registered_after_the_restore_and_stays() {
    let people = People::known().await;
    let meeting = people.completed(1).await;
    erased(&people.server, &meeting, json!({"reason": "on request"})).await;
    let Place { dir, list, _place } = Place::new();
    ran(&people.database, &["backup", &dir]).await;
    assert_eq!(people.completed(1).await, meeting);
    erased(&people.server, &meeting, json!({"reason": "on request"})).await;
    ran(&people.database, &["backup", "--erasures", &list]).await;

    let restored = TestDatabase::blank().await;
    ran(&restored, &["restore", &dir, "--erasures", &list]).await;
    for _ in 0..2 {
        let server = Server::start_with(&restored, &PLANE).await;
        let (status, told) = server.post("/v1/meetings", &json!({"sha256": format!("{:064x}", 1)})).await;
        assert!(matches!(status, 200 | 201), "{told}");
        assert!(server.stop().await.success());
    }
    ran(&restored, &["erasures", "apply", &list]).await;
    let server = Server::start_with(&restored, &PLANE).await;
    let (status, events) = server.get(&format!("{meeting}/events")).await;
    let types = events["items"].as_array().unwrap().iter().map(|event| event["type"].clone());
    assert_eq!(
        (status, types.collect::<Vec<_>>()),
        (200, vec![json!("MeetingErased"), json!("MeetingRegistered")])
    );
    assert!(server.stop().await.success());
    verified(&restored).await;
}

#[tokio::test]
async fn after_a_recovery_to_before_an_erasure_the_list_is_applied_by_hand_while_nobody_serves() {
    let People { database, server, pool, ottilie, .. } = {
        let people = People::known().await;
        people.completed(1).await;
        caught_up_and_equal(&people.pool).await;
        people
    };
    assert!(server.stop().await.success());
    pool.close().await;
    let recovered = copy(&database).await;
    let profile = format!("/v1/profiles/{ottilie}");
    let server = Server::start_with(&database, &PLANE).await;
    erased(&server, &profile, json!({})).await;
    let Place { list, _place, .. } = Place::new();
    ran(&database, &["backup", "--erasures", &list]).await;

    let server = Server::start_with(&recovered, &PLANE).await;
    assert_eq!(server.get(&profile).await.0, 200, "it is of before");
    let apply = ["erasures", "apply", &list, "--json"];
    let refused = run_on(&recovered, &apply).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("must be stopped"), "{}", refused.stderr);
    assert!(server.stop().await.success());
    let mut of_another: Value = serde_json::from_slice(&std::fs::read(&list).unwrap()).unwrap();
    of_another["log_id"] = json!(Uuid::nil());
    let another = format!("{list}.another");
    std::fs::write(&another, of_another.to_string()).unwrap();
    let refused = run_on(&recovered, &["erasures", "apply", &another]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("is of the log"), "{}", refused.stderr);
    let destructions = async || -> i64 {
        let pool = recovered.pool().await;
        let count =
            sqlx::query_scalar("SELECT destructions FROM keys.master").fetch_one(&pool).await.unwrap();
        pool.close().await;
        count
    };
    let before = destructions().await;
    for destroyed in [2, 0] {
        let told = run_on(&recovered, &apply).await;
        assert_eq!(told.code, Some(0), "{}", told.stderr);
        let told: Value = serde_json::from_str(&told.stdout).unwrap();
        assert_eq!(told, json!({"listed": 2, "keys_destroyed": destroyed}), "the person's and the voice's");
    }
    // The list's, and those of the erasure, which is carried out at once.
    assert_eq!(destructions().await, before + 3, "whoever remembers a key drops it");

    let server = Server::start_with(&recovered, &PLANE).await;
    assert_eq!(server.get(&profile).await.0, 404);
    erased(&server, &profile, json!({})).await;
    assert_eq!(noted(&server, "apply_erasures").await, vec![(json!("local"), Value::Null); 2]);
    assert!(server.stop().await.success());
    verified(&recovered).await;
}

#[tokio::test]
async fn what_a_restore_has_brought_back_is_shown_to_nobody_although_nobody_projects() {
    let people = People::known().await;
    let meeting = people.completed(1).await;
    caught_up_and_equal(&people.pool).await;
    assert!(people.server.stop().await.success());
    // A tombstone without its event, as a restore leaves it that is killed just then.
    let book = people.database.open().await;
    let mut connection = people.pool.acquire().await.unwrap();
    let subject = Subject::Meeting(id_of(&meeting).parse::<Uuid>().unwrap().into());
    book.store.keyring().destroy(&mut connection, &[subject]).await.unwrap();
    book.close().await;

    let server = Server::start_with(&people.database, &["--only", "api"]).await;
    for path in [format!("{meeting}?as_of=12"), format!("{meeting}/speakers")] {
        let (status, refused) = server.get(&path).await;
        assert_eq!((status, &refused["code"]), (404, &json!("meeting_erased")), "{path}: {refused}");
    }
    let (_, events) = server.get(&format!("{meeting}/events")).await;
    assert_eq!(events["items"].as_array().unwrap().len(), 1, "the erasure: {events}");
}

/// Returns a copy of a database that nobody uses.
async fn copy(database: &TestDatabase) -> TestDatabase {
    let name = database.url.split('?').next().unwrap().rsplit_once('/').unwrap().1;
    let url = database.url.replacen(name, &format!("{name}_recovered"), 1);
    let copy = format!("CREATE DATABASE {name}_recovered TEMPLATE {name}");
    eventually("nobody is connected any more", async || {
        let mut connection = PgConnection::connect(&tests::server_url()).await.unwrap();
        connection.execute(copy.as_str()).await.ok()
    })
    .await;
    TestDatabase { url }
}
