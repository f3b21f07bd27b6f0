//! A log that was restored: its stream has what is lost now, so the publisher stops and says so, and begins anew
//! once the stream is gone.

use projections::feed::cloud_event::event_id;
use tests::TestDatabase;

use super::{ONLY_PUBLISHER, STREAM, Scene, append, becomes};

#[tokio::test]
async fn a_restored_log_is_published_anew_and_never_into_the_old_stream() {
    let scene = Scene::start().await;
    let book = scene.open().await;
    let publisher = scene.serve(&ONLY_PUBLISHER).await;
    append(&book, 100).await;
    let files = tempfile::tempdir().unwrap();
    let dir = files.path().join("backup");
    let ran = scene.run_alone(&["backup", dir.to_str().unwrap()]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let kept = scene.head().await;
    append(&book, 50).await;
    scene.all_is_published().await;
    let (epoch, lost) = (scene.epoch().await, scene.head().await);
    assert!(publisher.stop().await.success());
    book.close().await;

    let restored =
        Scene { database: TestDatabase::blank().await, pool: scene.pool.clone(), nats: scene.nats };
    let ran = restored.run_alone(&["restore", dir.to_str().unwrap()]).await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    let restored = Scene { pool: restored.database.pool().await, ..restored };
    assert_eq!(restored.head().await, kept);
    assert!(kept < lost);
    let book = restored.open().await;
    let publisher = restored.serve(&ONLY_PUBLISHER).await;
    let (status, ready) = becomes(&publisher, "refused").await;
    let reason = ready["publisher_reason"].as_str().unwrap();
    assert!(status == 503 && reason.contains(&epoch.to_string()) && reason.contains("restored"), "{reason}");
    // What was lost has its positions given out again, under another id.
    append(&book, 100).await;
    let stale = restored.stream().await;
    assert_eq!(stale.last().unwrap().event.position, lost, "nothing was added");

    restored.jetstream().await.delete_stream(STREAM).await.unwrap();
    restored.all_is_published().await;
    restored.assert_each_position_once().await;
    assert_ne!(restored.epoch().await, epoch);
    let ids = stale.iter().map(|kept| kept.headers.get("ce-id").unwrap().as_str().to_owned());
    let now = restored.stream().await;
    let again = now.iter().map(|kept| kept.headers.get("ce-id").unwrap().as_str()).collect::<Vec<_>>();
    assert!(ids.into_iter().all(|id| !again.contains(&id.as_str())), "no id means two events");
    let last = event_id(restored.epoch().await, restored.head().await);
    assert_eq!(again.last(), Some(&last.as_str()));
    let ran = restored.run(&["publish", "--from", "1"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(publisher.stop().await.success());
    book.close().await;
}

impl Scene {
    /// Runs a command that needs no broker.
    async fn run_alone(&self, arguments: &[&str]) -> crate::cli::Ran {
        crate::cli::run_on(&self.database, arguments).await
    }
}
