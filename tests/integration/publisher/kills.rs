//! Publishers that are killed, put to sleep and cut off while events flow.

use std::time::Duration;

use event_store::locks;
use nix::sys::signal::Signal;
use tests::server::Server;
use tokio::time::sleep;

use super::{ONLY_PUBLISHER, Scene, append, becomes, while_events_flow};
use crate::kill::rounds;
use crate::read_models::eventually;

#[tokio::test]
async fn a_publisher_killed_at_random_moments_publishes_every_position_once_and_in_order() {
    const EVENTS: usize = 5000;
    for _ in 0..rounds(2) {
        let scene = Scene::start().await;
        let book = scene.open().await;
        let flowing = append(&book, EVENTS);
        let killing = async {
            let mut kills = 0;
            let mut reached = 0;
            loop {
                let publisher = scene.serve(&ONLY_PUBLISHER).await;
                let before = reached;
                reached = eventually("the stream grows", async || {
                    let end = scene.end_of_stream().await;
                    (end > before || end >= EVENTS as u64).then_some(end)
                })
                .await;
                if reached >= EVENTS as u64 {
                    return (publisher, kills);
                }
                // At any moment of the next batch.
                sleep(Duration::from_millis(fastrand::u64(..30))).await;
                publisher.kill_9().await;
                kills += 1;
            }
        };
        let ((), (publisher, kills)) = tokio::join!(flowing, killing);
        scene.all_is_published().await;
        scene.assert_each_position_once().await;
        assert!(kills >= 3, "it was killed {kills} times only, while events flowed");
        assert!(publisher.stop().await.success());
        book.close().await;
    }
}

#[tokio::test]
async fn a_publisher_killed_while_it_catches_up_goes_on_where_the_stream_ends() {
    let scene = Scene::start().await;
    let book = scene.open().await;
    append(&book, 6000).await;
    let head = scene.head().await;
    let mut kills_in_a_batch = 0;
    for _ in 0..rounds(6) {
        let end = scene.end_of_stream().await;
        if end >= head as u64 {
            break;
        }
        let publisher = scene.serve(&ONLY_PUBLISHER).await;
        eventually("the stream grows", async || (scene.end_of_stream().await > end).then_some(())).await;
        publisher.kill_9().await;
        // The stream has more than was noted: that is what the next one has to find out.
        kills_in_a_batch += usize::from(scene.end_of_stream().await > scene.noted().await as u64);
    }
    assert!(kills_in_a_batch > 0, "no kill came between publishing and the note of it");
    let publisher = scene.serve(&ONLY_PUBLISHER).await;
    scene.all_is_published().await;
    scene.assert_each_position_once().await;
    assert!(publisher.stop().await.success());
    book.close().await;
}

#[tokio::test]
async fn of_two_publishers_one_is_active_and_the_other_takes_over_when_it_is_killed() {
    let scene = Scene::start().await;
    let book = scene.open().await;
    let mut publishers = vec![scene.serve(&ONLY_PUBLISHER).await, scene.serve(&ONLY_PUBLISHER).await];
    append(&book, 200).await;
    scene.all_is_published().await;
    let active = active(&publishers).await;
    let (status, standing_by) = becomes(&publishers[1 - active], "standby").await;
    assert_eq!((status, standing_by["status"].as_str()), (200, Some("ready")));

    let killed = publishers.remove(active);
    let survivor = publishers.remove(0);
    let killing = async {
        scene.stream_grows().await;
        killed.kill_9().await;
        becomes(&survivor, "active").await;
        scene.stream_grows().await;
    };
    while_events_flow(&book, killing).await;
    scene.all_is_published().await;
    scene.assert_each_position_once().await;
    assert!(survivor.stop().await.success());
    book.close().await;
}

#[tokio::test]
async fn a_publisher_that_sleeps_while_another_takes_over_is_fenced_when_it_wakes() {
    let scene = Scene::start().await;
    let book = scene.open().await;
    let publishers = vec![scene.serve(&ONLY_PUBLISHER).await, scene.serve(&ONLY_PUBLISHER).await];
    let active = active(&publishers).await;
    let (slept, other) = (&publishers[active], &publishers[1 - active]);
    for _ in 0..rounds(3) {
        let sleeping = async {
            scene.stream_grows().await;
            // Somewhere in a batch. A database that takes its connections for dead lets the other one in.
            slept.signal(Signal::SIGSTOP);
            cut_the_publishers_lock(&scene).await;
            becomes(other, "active").await;
            scene.stream_grows().await;
            slept.signal(Signal::SIGCONT);
            becomes(slept, "standby").await;
        };
        while_events_flow(&book, sleeping).await;
        scene.all_is_published().await;
        scene.assert_each_position_once().await;
        // Back to where it was.
        eventually("the one that slept is active again", async || {
            if self::active(&publishers).await == active {
                return Some(());
            }
            cut_the_publishers_lock(&scene).await;
            append(&book, 10).await;
            None
        })
        .await;
    }
    scene.all_is_published().await;
    scene.assert_each_position_once().await;
    for publisher in publishers {
        assert!(publisher.stop().await.success());
    }
    book.close().await;
}

#[tokio::test]
async fn a_publisher_whose_database_connections_are_cut_recovers_by_itself() {
    let scene = Scene::start().await;
    let book = scene.open().await;
    let publisher = scene.serve(&ONLY_PUBLISHER).await;
    for _ in 0..rounds(4) {
        let cutting = async {
            scene.stream_grows().await;
            cut_the_publishers_lock(&scene).await;
            scene.stream_grows().await;
        };
        while_events_flow(&book, cutting).await;
    }
    scene.all_is_published().await;
    scene.assert_each_position_once().await;
    assert!(publisher.stop().await.success());
    book.close().await;
}

async fn active(publishers: &[Server]) -> usize {
    eventually("one is active", async || {
        for (n, server) in publishers.iter().enumerate() {
            if server.get("/readyz").await.1["publisher"] == "active" {
                return Some(n);
            }
        }
        None
    })
    .await
}

async fn cut_the_publishers_lock(scene: &Scene) {
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_database d ON d.oid = database
                WHERE locktype = 'advisory' AND granted AND datname = current_database()
                  AND (classid::bigint << 32) + objid::bigint = $1";
    sqlx::query(cut).bind(locks::PUBLISHER).execute(&scene.pool).await.unwrap();
}
