//! A restore from before an erasure: the list of the erased keeps whoever was forgotten from coming back, and the
//! next server finishes it; and who erased, backed up and restored is noted.

use projections::erasure;
use serde_json::{Value, json};
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
async fn who_was_forgotten_after_a_backup_is_forgotten_again_by_the_first_server_after_the_restore() {
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
    let server = Server::start_with(&restored, &PLANE).await;
    for subject in [ottilie, meeting] {
        let receipt = eventually("it is erased again", async || {
            let receipt = erasure::of_subject(&pool, subject).await.unwrap();
            receipt.filter(|receipt| receipt.completed_at.is_some())
        })
        .await;
        assert!(receipt.position < before["position"].as_i64().unwrap() + 3, "the log goes on densely");
    }
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
