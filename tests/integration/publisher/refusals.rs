//! Streams that are not of this log's history: the publisher refuses, says what to do, and goes on by itself
//! once it is done.

use async_nats::HeaderMap;
use projections::feed::cloud_event::event_id;
use serde_json::Value;
use sqlx::Executor;
use tests::server::Server;

use super::{ONLY_PUBLISHER, STREAM, Scene, append, becomes, metric};
use crate::read_models::eventually;

#[tokio::test]
async fn a_stream_of_another_epoch_is_refused_until_it_is_removed() {
    let scene = Scene::start().await;
    let book = scene.open().await;
    let publisher = scene.serve(&ONLY_PUBLISHER).await;
    append(&book, 100).await;
    scene.all_is_published().await;
    let old = scene.epoch().await;
    assert!(publisher.stop().await.success());

    scene.pool.execute("UPDATE log.identity SET epoch = gen_random_uuid()").await.unwrap();
    let publisher = scene.serve(&ONLY_PUBLISHER).await;
    let reason = refuses(&scene, &publisher).await;
    assert!(reason.contains(&old.to_string()) && reason.contains("restored"), "{reason}");
    publishes_nothing_more(&scene, &publisher, &book).await;

    scene.jetstream().await.delete_stream(STREAM).await.unwrap();
    scene.all_is_published().await;
    scene.assert_each_position_once().await;
    is_well(&scene, &publisher).await;
    book.close().await;
}

#[tokio::test]
async fn a_stream_ahead_of_the_log_is_refused_until_it_is_removed() {
    let scene = Scene::start().await;
    let book = scene.open().await;
    let publisher = scene.serve(&ONLY_PUBLISHER).await;
    append(&book, 100).await;
    scene.all_is_published().await;
    add_an_event_from_the_future(&scene).await;
    // It learns of it with its next event at the latest.
    append(&book, 1).await;
    let reason = refuses(&scene, &publisher).await;
    assert!(reason.contains("999999") && reason.contains("the log ends at"), "{reason}");
    publishes_nothing_more(&scene, &publisher, &book).await;

    scene.jetstream().await.delete_stream(STREAM).await.unwrap();
    scene.all_is_published().await;
    // As it says: filled anew from the first position.
    scene.assert_each_position_once().await;
    is_well(&scene, &publisher).await;
    book.close().await;
}

#[tokio::test]
async fn one_message_from_the_future_can_be_removed_alone() {
    let scene = Scene::start().await;
    let book = scene.open().await;
    let publisher = scene.serve(&ONLY_PUBLISHER).await;
    append(&book, 100).await;
    scene.all_is_published().await;
    let sequence = add_an_event_from_the_future(&scene).await;
    append(&book, 1).await;
    refuses(&scene, &publisher).await;
    let stream = scene.jetstream().await.get_stream(STREAM).await.unwrap();
    stream.delete_message(sequence).await.unwrap();
    scene.all_is_published().await;
    scene.assert_each_position_once().await;
    is_well(&scene, &publisher).await;
    book.close().await;
}

#[tokio::test]
async fn a_refill_refuses_what_the_publisher_refuses() {
    let scene = Scene::start().await;
    let book = scene.open().await;
    let publisher = scene.serve(&ONLY_PUBLISHER).await;
    append(&book, 100).await;
    scene.all_is_published().await;
    assert!(publisher.stop().await.success());
    let end = add_an_event_from_the_future(&scene).await;
    let ran = scene.run(&["publish", "--from", "1"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{}", ran.stderr);
    assert!(ran.stderr.contains("nats stream rm MINUTEBOOK"), "{}", ran.stderr);
    assert_eq!(scene.end_of_stream().await, end);
    book.close().await;
}

#[tokio::test]
async fn a_stream_made_by_somebody_else_for_other_subjects_is_refused() {
    let scene = Scene::start().await;
    let config = async_nats::jetstream::stream::Config {
        name: STREAM.to_owned(),
        subjects: vec!["elsewhere.>".to_owned()],
        ..Default::default()
    };
    scene.jetstream().await.create_stream(config).await.unwrap();
    let book = scene.open().await;
    let publisher = scene.serve(&ONLY_PUBLISHER).await;
    append(&book, 10).await;
    let (status, ready) = becomes(&publisher, "refused").await;
    assert_eq!((status, ready["status"].as_str()), (503, Some("publisher_refused")), "{ready}");
    let reason = ready["publisher_reason"].as_str().unwrap();
    assert!(reason.contains("does not take the subjects"), "{reason}");
    scene.jetstream().await.delete_stream(STREAM).await.unwrap();
    scene.all_is_published().await;
    scene.assert_each_position_once().await;
    is_well(&scene, &publisher).await;
    book.close().await;
}

/// Publishes what looks like an event of this log at a position that it has not reached.
async fn add_an_event_from_the_future(scene: &Scene) -> u64 {
    let id = event_id(scene.epoch().await, 999_999);
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", id.as_str());
    headers.insert("ce-id", id);
    let subject = format!("minutebook.meeting.{}.registered", uuid::Uuid::from_u128(9));
    let context = scene.jetstream().await;
    let published = context.publish_with_headers(subject, headers, "{}".into()).await.unwrap();
    published.await.unwrap().sequence
}

/// Waits until the publisher refuses; returns why.
async fn refuses(scene: &Scene, publisher: &Server) -> String {
    let (status, ready) = becomes(publisher, "refused").await;
    assert_eq!((status, ready["status"].as_str()), (503, Some("publisher_refused")), "{ready}");
    let reason = ready["publisher_reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("nats stream rm MINUTEBOOK"), "it says what to do: {reason}");
    let said = eventually("status says so", async || {
        let said = scene.feed_status().await;
        (said["state"] == "refused").then_some(said)
    })
    .await;
    assert_eq!(said["detail"], reason.as_str());
    assert_eq!(metric(publisher, "minutebook_publish_healthy").await, Some(0.0));
    reason
}

/// Waits until it has looked again, with more to publish, and has not.
async fn publishes_nothing_more(scene: &Scene, publisher: &Server, book: &api::book::Book) {
    let end = scene.end_of_stream().await;
    let failures = metric(publisher, "minutebook_publish_failures_total").await.unwrap();
    append(book, 20).await;
    eventually("it looks again", async || {
        (metric(publisher, "minutebook_publish_failures_total").await.unwrap() > failures).then_some(())
    })
    .await;
    assert_eq!(scene.end_of_stream().await, end);
    assert_eq!(publisher.get("/readyz").await.1["publisher"], "refused");
}

async fn is_well(scene: &Scene, publisher: &Server) {
    let (status, ready) = becomes(publisher, "active").await;
    assert_eq!((status, ready["status"].as_str()), (200, Some("ready")), "{ready}");
    let said = scene.feed_status().await;
    assert_eq!((said["state"].as_str(), &said["detail"]), (Some("active"), &Value::Null), "{said}");
}
