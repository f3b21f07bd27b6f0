//! Who was away goes on exactly after the last event had, and is told where that cannot be.

use tests::server::Server;
use uuid::Uuid;

use super::{Change, Feed, log_of, positions, previous_in, refusal};
use crate::http::Scene;
use crate::read_models::history::{append, created, renamed};

/// Two kinds of event by turns, so that none is the one before its neighbour.
async fn tell(scene: &Scene, people: u128) {
    let book = scene.database.open().await;
    for n in 1..=people {
        append(&book, &created(Uuid::from_u128(n), "Ada")).await;
        append(&book, &renamed(Uuid::from_u128(n), "Ada King")).await;
    }
    book.close().await;
}

#[tokio::test]
async fn whoever_names_the_last_event_had_gets_all_after_it() {
    let scene = Scene::start().await;
    tell(&scene, 10).await;
    let all = Feed::follow(&scene.server, "", None).await.take(20).await;
    for at in [0, 1, 7, 18] {
        let mut feed = Feed::follow(&scene.server, "", Some(&all[at].id)).await;
        assert_eq!(feed.take(19 - at).await, all[at + 1..], "after {}", all[at].id);
    }
    // Position 0 is before the first; the last one has nothing after it until something comes.
    let (epoch, _) = all[0].id.split_once(':').unwrap();
    assert_eq!(Feed::follow(&scene.server, "", Some(&format!("{epoch}:0"))).await.take(20).await, all);
    let mut at_the_end = Feed::follow(&scene.server, "", Some(&all[19].id)).await;
    let mut filtered = Feed::follow(&scene.server, "type=profile.renamed", Some(&all[8].id)).await;
    let renamed = all.iter().skip(9).step_by(2).cloned().collect::<Vec<_>>();
    assert_eq!(filtered.take(renamed.len()).await, renamed);
    // The header wins.
    let mut both = Feed::follow(&scene.server, "from=2", Some(&all[9].id)).await;
    assert_eq!(both.next().await, all[10]);
    scene.register(1).await;
    assert_eq!(at_the_end.next().await.position(), 21);
}

#[tokio::test]
async fn from_names_the_first_position() {
    let scene = Scene::start().await;
    tell(&scene, 5).await;
    let all = Feed::follow(&scene.server, "", None).await.take(10).await;
    for from in [1, 4, 10] {
        let mut feed = Feed::follow(&scene.server, &format!("from={from}"), None).await;
        assert_eq!(feed.take(11 - from).await, all[from - 1..], "from {from}");
    }
}

#[tokio::test]
async fn a_first_position_that_is_not_there_yet_is_waited_for_and_previous_stays_true() {
    let scene = Scene::start().await;
    tell(&scene, 2).await;
    let mut feeds = Vec::new();
    for query in ["from=7", "from=7&type=profile.created,profile.renamed"] {
        feeds.push(Feed::follow(&scene.server, query, None).await);
    }
    let book = scene.database.open().await;
    for n in 3..=5 {
        append(&book, &created(Uuid::from_u128(n), "Ada")).await;
        append(&book, &renamed(Uuid::from_u128(n), "Ada King")).await;
    }
    book.close().await;
    let previous = previous_in(&log_of(&scene.pool).await);
    for feed in &mut feeds {
        let changes = feed.take(4).await;
        assert_eq!(positions(&changes), [7, 8, 9, 10]);
        for change in &changes {
            assert_eq!(change.previous(), previous[&change.position()], "{change:?}");
        }
    }
}

#[tokio::test]
async fn a_follower_goes_on_after_the_server_was_killed_and_another_one_came() {
    let scene = Scene::start().await;
    tell(&scene, 5).await;
    let mut feed = Feed::follow(&scene.server, "", None).await;
    let mut had = feed.take(4).await;
    let Scene { database, server, .. } = scene;
    server.kill_9().await;
    let server = Server::start(&database).await;
    let last = had.last().unwrap().id.clone();
    had.extend(Feed::follow(&server, "", Some(&last)).await.take(6).await);
    assert_eq!(positions(&had), (1..=10).collect::<Vec<_>>());
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn a_last_event_that_is_not_of_this_log_is_told_so() {
    let scene = Scene::start().await;
    tell(&scene, 2).await;
    let Change { id, .. } = Feed::follow(&scene.server, "", None).await.next().await;
    let (epoch, _) = id.split_once(':').unwrap();
    let other = format!("{}:1", Uuid::now_v7());
    refusal(&scene.server, "", Some(&other)).await.is_problem(409, "epoch_changed");
    for beyond in ["5".to_owned(), i64::MAX.to_string()] {
        let id = format!("{epoch}:{beyond}");
        refusal(&scene.server, "", Some(&id)).await.is_problem(409, "position_unknown");
    }
    for garbage in
        ["1", "", ":", "here:1", &format!("{epoch}:"), &format!("{epoch}:-1"), &format!("{epoch}:x"), epoch]
    {
        refusal(&scene.server, "", Some(garbage)).await.is_problem(422, "invalid_header");
    }
}
