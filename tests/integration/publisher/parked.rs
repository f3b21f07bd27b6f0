//! What is parked is withheld, everything else flows; it goes out once it is free, whatever happened between.

use std::time::Duration;

use api::book::Book;
use serde_json::{Value, json};
use sqlx::Executor;
use tokio::time::sleep;
use uuid::Uuid;

use super::{Kept, ONLY_PUBLISHER, STREAM, Scene};
use crate::cli::run_on;
use crate::kill::rounds;
use crate::read_models::history::{append, completed, language, registered, started};
use crate::read_models::parked::append_raw;
use crate::read_models::{caught_up_and_equal, eventually};

/// Leads the `n`th meeting through its life, in three events; returns the position of its completion.
async fn live(book: &Book, n: u128) -> i64 {
    let meeting = Uuid::from_u128(n);
    append(book, &registered(meeting)).await;
    append(book, &started(meeting, 1)).await;
    append(book, &completed(meeting, 1, &["spk00"], &[])).await
}

impl Scene {
    /// Makes the tables refuse the completion of the `n`th meeting.
    async fn forbid(&self, n: u128) {
        let constraint = format!(
            "ALTER TABLE meetings ADD CONSTRAINT refused CHECK (id <> '{}' OR status <> 'completed')",
            Uuid::from_u128(n)
        );
        self.pool.execute(constraint.as_str()).await.unwrap();
    }

    async fn allow(&self) {
        self.pool.execute("ALTER TABLE meetings DROP CONSTRAINT refused").await.unwrap();
    }

    async fn decide(&self, arguments: &[&str]) {
        let ran = run_on(&self.database, arguments).await;
        assert_eq!(ran.code, Some(0), "{arguments:?}: {}{}", ran.stdout, ran.stderr);
    }

    async fn positions(&self) -> Vec<i64> {
        self.stream().await.iter().map(|kept| kept.event.position).collect()
    }

    /// Waits until the stream has so many messages; returns them.
    async fn has(&self, messages: u64) -> Vec<Kept> {
        eventually("the stream has it", async || (self.end_of_stream().await >= messages).then_some(()))
            .await;
        self.stream().await
    }

    async fn withheld(&self) -> Vec<i64> {
        let query = "SELECT position FROM ops.withheld_events WHERE stream = $1 ORDER BY position";
        sqlx::query_scalar(query).bind(STREAM).fetch_all(&self.pool).await.unwrap()
    }
}

fn positions(kept: &[Kept]) -> Vec<i64> {
    kept.iter().map(|kept| kept.event.position).collect()
}

#[tokio::test]
async fn a_parked_event_is_withheld_and_goes_out_once_when_it_is_tried_again_with_success() {
    let scene = Scene::start().await;
    scene.forbid(2).await;
    let book = scene.open().await;
    let publisher = scene.serve(&ONLY_PUBLISHER).await;
    live(&book, 1).await;
    assert_eq!(live(&book, 2).await, 6);
    // The last event of the log is the one that is withheld: the publisher is up to date all the same.
    assert_eq!(scene.all_is_published().await, 6);
    let status = scene.feed_status().await;
    assert_eq!((&status["position"], &status["state"]), (&json!(6), &json!("active")), "{status}");
    assert_eq!(scene.positions().await, [1, 2, 3, 4, 5]);
    live(&book, 3).await;
    assert_eq!(scene.all_is_published().await, 9);
    assert_eq!(scene.positions().await, [1, 2, 3, 4, 5, 7, 8, 9]);

    // A try without success lets nothing out.
    assert_eq!(run_on(&scene.database, &["parked", "retry", "6"]).await.code, Some(3));
    scene.allow().await;
    scene.decide(&["parked", "retry", "6"]).await;
    let kept = scene.has(9).await;
    assert_eq!(positions(&kept), [1, 2, 3, 4, 5, 7, 8, 9, 6]);
    live(&book, 4).await;
    scene.all_is_published().await;
    let kept = scene.stream().await;
    assert_eq!(positions(&kept), [1, 2, 3, 4, 5, 7, 8, 9, 6, 10, 11, 12]);
    scene.assert_sound(&kept).await;
    assert_eq!(kept.last().unwrap().event.previous, 9);
    assert_eq!(scene.withheld().await, [0; 0]);
    assert_eq!(caught_up_and_equal(&scene.pool).await, 12);
    assert!(publisher.stop().await.success());
    book.close().await;
}

#[tokio::test]
async fn a_skipped_event_goes_out_as_such_on_its_own_subject_late_or_in_its_place() {
    let scene = Scene::start().await;
    let book = scene.open().await;
    let publisher = scene.serve(&ONLY_PUBLISHER).await;
    live(&book, 1).await;
    let (id, other) = (Uuid::from_u128(2), Uuid::from_u128(9));
    append(&book, &registered(id)).await;
    let secret = json!({"MeetingCompleted": {"owner": "Ada's secret"}}).to_string();
    append_raw(&scene.pool, ["meeting", &id.to_string(), "MeetingCompleted", "1", &secret], 1).await;
    // Nobody can subscribe to what has no name: it goes nowhere, also when it is skipped.
    append_raw(&scene.pool, ["meeting", &other.to_string(), "MeetingTeleported", "1", "{}"], 0).await;
    append_raw(&scene.pool, ["picnic", "no id", "MeetingFailed", "1", "{}"], 0).await;
    assert_eq!(live(&book, 3).await, 10);
    scene.all_is_published().await;
    assert_eq!(scene.positions().await, [1, 2, 3, 4, 8, 9, 10]);

    for position in ["5", "6", "7"] {
        scene.decide(&["parked", "skip", position, "--reason", "Ada's secret reason"]).await;
    }
    let kept = scene.has(9).await;
    assert_eq!(positions(&kept), [1, 2, 3, 4, 8, 9, 10, 5, 7]);
    assert_is_skipped(&kept[7], "completed", &id.to_string(), 3);
    assert_is_skipped(&kept[8], "failed", &Uuid::nil().to_string(), 0);

    // Whoever fills a stream anew finds them in their places.
    assert!(publisher.stop().await.success());
    scene.jetstream().await.delete_stream(STREAM).await.unwrap();
    scene.pool.execute("DELETE FROM ops.publications").await.unwrap();
    let publisher = scene.serve(&ONLY_PUBLISHER).await;
    scene.all_is_published().await;
    let kept = scene.stream().await;
    assert_eq!(positions(&kept), [1, 2, 3, 4, 5, 7, 8, 9, 10]);
    assert_is_skipped(&kept[4], "completed", &id.to_string(), 3);
    assert!(publisher.stop().await.success());
    book.close().await;
}

/// Checks that a message says that a position has no effect, and nothing else of the event.
fn assert_is_skipped(kept: &Kept, name: &str, id: &str, previous: i64) {
    let header = |name: &str| kept.headers.get(name).map_or("", |value| value.as_str());
    assert_eq!(kept.subject, format!("minutebook.meeting.{id}.{name}"));
    assert_eq!(header("ce-type"), "minutebook.meeting.skipped.v1");
    assert_eq!(header("ce-skippedtype"), format!("minutebook.meeting.{name}.v1"));
    assert_eq!(header("ce-subject"), id);
    assert_eq!(header("ce-previous"), previous.to_string());
    assert!(kept.event.skipped);
    let data = serde_json::from_slice::<Value>(&kept.event.data).unwrap();
    assert_eq!(data, json!({"id": id, "event_type": format!("minutebook.meeting.{name}.v1")}));
    assert!(!format!("{kept:?}").contains("secret"), "{kept:?}");
}

#[tokio::test]
async fn a_publisher_killed_between_parking_and_releasing_leaves_the_next_one_to_send_it() {
    let scene = Scene::start().await;
    scene.forbid(2).await;
    let book = scene.open().await;
    let publisher = scene.serve(&ONLY_PUBLISHER).await;
    live(&book, 1).await;
    live(&book, 2).await;
    live(&book, 3).await;
    scene.all_is_published().await;
    publisher.kill_9().await;
    // Without a publisher it is freed, and more happens.
    scene.allow().await;
    scene.decide(&["parked", "retry", "6"]).await;
    live(&book, 4).await;
    let publisher = scene.serve(&ONLY_PUBLISHER).await;
    scene.all_is_published().await;
    let kept = scene.has(12).await;
    let (released, in_order): (Vec<_>, Vec<_>) = positions(&kept).into_iter().partition(|at| *at == 6);
    assert_eq!((released, in_order), (vec![6], vec![1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]));
    scene.assert_sound(&kept).await;
    // One that is parked and freed before anybody publishes it is nothing special.
    publisher.kill_9().await;
    scene.forbid(5).await;
    assert_eq!(live(&book, 5).await, 15);
    assert_eq!(caught_up_and_equal(&scene.pool).await, 15);
    scene.allow().await;
    scene.decide(&["parked", "retry", "15"]).await;
    let publisher = scene.serve(&ONLY_PUBLISHER).await;
    scene.all_is_published().await;
    assert_eq!(scene.positions().await[12..], [13, 14, 15]);
    assert!(publisher.stop().await.success());
    book.close().await;
}

#[tokio::test]
async fn a_publisher_killed_at_random_moments_around_releases_leaves_no_position_out() {
    const MEETINGS: u128 = 40;
    let scene = Scene::start().await;
    let book = scene.open().await;
    let mut released = vec![];
    for round in 0..rounds(5) {
        let first = round as u128 * MEETINGS + 1;
        let refuse =
            "ALTER TABLE meetings ADD CONSTRAINT refused CHECK (coalesce(language, '') <> 'xx') NOT VALID";
        scene.pool.execute(refuse).await.unwrap();
        let publisher = scene.serve(&ONLY_PUBLISHER).await;
        for n in first..first + MEETINGS {
            let id = Uuid::from_u128(n);
            append(&book, &registered(id)).await;
            append(&book, &started(id, 1)).await;
            if n % 2 == 0 {
                released.push(append(&book, &language(id, 1, "xx")).await);
                released.push(append(&book, &language(id, 1, "de")).await);
            }
        }
        caught_up_and_equal(&scene.pool).await;
        sleep(Duration::from_millis(fastrand::u64(..100))).await;
        publisher.kill_9().await;
        scene.allow().await;
        let publisher = scene.serve(&ONLY_PUBLISHER).await;
        let deciding = scene.decide(&["parked", "retry", "--all"]);
        let killing = async {
            sleep(Duration::from_millis(fastrand::u64(..2500))).await;
            publisher.kill_9().await;
        };
        tokio::join!(deciding, killing);
        // Whoever starts releases at once.
        let publisher = scene.serve(&ONLY_PUBLISHER).await;
        sleep(Duration::from_millis(fastrand::u64(..60))).await;
        publisher.kill_9().await;
    }
    let publisher = scene.serve(&ONLY_PUBLISHER).await;
    let head = scene.all_is_published().await;
    eventually("nothing is withheld", async || scene.withheld().await.is_empty().then_some(())).await;
    let kept = scene.stream().await;
    scene.assert_sound(&kept).await;
    let at = positions(&kept);
    let mut all = at.clone();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all, (1..=head).collect::<Vec<_>>(), "every position is there");
    let in_order = at.iter().copied().filter(|at| !released.contains(at)).collect::<Vec<_>>();
    assert!(in_order.is_sorted_by(|a, b| a < b), "in order and without doubles: {in_order:?}");
    assert!(publisher.stop().await.success());
    book.close().await;
}

#[tokio::test]
async fn a_rebuild_that_frees_an_event_while_the_publisher_runs_lets_it_out() {
    let scene = Scene::start().await;
    scene.forbid(2).await;
    let server = scene.serve(&[]).await;
    let book = scene.database.open().await;
    for n in 1..=3 {
        live(&book, n).await;
    }
    scene.all_is_published().await;
    assert_eq!(scene.positions().await, [1, 2, 3, 4, 5, 7, 8, 9]);
    // The next generation has no such constraint.
    scene.decide(&["rebuild", "--accept-differences"]).await;
    let kept = scene.has(9).await;
    assert_eq!(positions(&kept), [1, 2, 3, 4, 5, 7, 8, 9, 6]);
    scene.assert_sound(&kept).await;
    // What went out is not sent again, although the way back parks it again.
    scene.decide(&["rebuild", "--rollback"]).await;
    scene.decide(&["rebuild", "--accept-differences"]).await;
    live(&book, 4).await;
    scene.all_is_published().await;
    assert_eq!(scene.positions().await, [1, 2, 3, 4, 5, 7, 8, 9, 6, 10, 11, 12]);
    assert_eq!(scene.withheld().await, [0; 0]);
    assert!(server.stop().await.success());
    book.close().await;
}

#[tokio::test]
async fn a_refill_leaves_out_what_is_parked_and_the_publisher_sends_it_whoever_passed_over_it() {
    let mut scene = Scene::start().await;
    scene.forbid(2).await;
    let book = scene.open().await;
    for n in 1..=3 {
        live(&book, n).await;
    }
    caught_up_and_equal(&scene.pool).await;
    // Nobody has published yet: the refill passes over it.
    scene.decide_with_broker(&["publish", "--from", "1"]).await;
    assert_eq!(scene.positions().await, [1, 2, 3, 4, 5, 7, 8, 9]);
    let publisher = scene.serve(&ONLY_PUBLISHER).await;
    scene.all_is_published().await;
    // Everything is lost, and filled again without it.
    scene.nats.kill_9().await;
    scene.nats.wipe();
    scene.nats.restart().await;
    eventually("the loss is told", async || scene.feed_status().await["detail"].is_string().then_some(()))
        .await;
    scene.decide_with_broker(&["publish", "--from", "1"]).await;
    assert_eq!(scene.positions().await, [1, 2, 3, 4, 5, 7, 8, 9]);
    scene.allow().await;
    scene.decide(&["parked", "retry", "6"]).await;
    assert_eq!(positions(&scene.has(9).await), [1, 2, 3, 4, 5, 7, 8, 9, 6]);

    let id = Uuid::from_u128(4).to_string();
    append_raw(&scene.pool, ["meeting", &id, "MeetingCompleted", "1", "{}"], 0).await;
    scene.all_is_published().await;
    scene.decide(&["parked", "skip", "10", "--reason", "by hand"]).await;
    scene.has(10).await;
    scene.nats.kill_9().await;
    scene.nats.wipe();
    scene.nats.restart().await;
    eventually("the loss is told", async || scene.feed_status().await["detail"].is_string().then_some(()))
        .await;
    scene.decide_with_broker(&["publish", "--from", "1"]).await;
    let kept = scene.stream().await;
    assert_eq!(positions(&kept), (1..=10).collect::<Vec<_>>());
    assert_is_skipped(&kept[9], "completed", &id, 9);
    assert!(publisher.stop().await.success());
    book.close().await;
}

impl Scene {
    async fn decide_with_broker(&self, arguments: &[&str]) {
        let ran = self.run(arguments).await;
        assert_eq!(ran.code, Some(0), "{arguments:?}: {}{}", ran.stdout, ran.stderr);
    }
}
