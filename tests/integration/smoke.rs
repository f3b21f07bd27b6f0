//! The main road, once from end to end.

use serde_json::json;
use tests::TestDatabase;
use tests::server::{Server, answer};

#[tokio::test]
async fn a_registered_meeting_shows_in_the_table_at_its_position() {
    let database = TestDatabase::create().await;
    let server = Server::start(&database).await;
    let (status, accepted) = server.post("/v1/meetings", &json!({"sha256": "ab".repeat(32)})).await;
    assert_eq!(status, 201);
    let path = format!("/v1/meetings/{}", accepted["id"].as_str().unwrap());
    let read = server
        .client
        .get(server.at(&path))
        .header("minutebook-min-position", accepted["position"].to_string());
    let (status, meeting) = answer(read).await;
    assert_eq!((status, &meeting["status"]), (200, &json!("pending")));
    assert!(server.stop().await.success());
}
