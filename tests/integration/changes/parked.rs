//! What is parked is withheld, and comes when it is free, without an id; also to one who was away meanwhile.

use sqlx::Executor;
use uuid::Uuid;

use super::{Change, Feed, positions};
use crate::cli::run_on;
use crate::http::Scene;
use crate::read_models::caught_up_and_equal;
use crate::read_models::history::{append, completed, registered, started};
use crate::read_models::parked::append_raw;

impl Scene {
    /// Leads the `n`th meeting through its life, in three events; the second one's completion is refused.
    async fn live(&self, n: u128) {
        let book = self.database.open().await;
        let meeting = Uuid::from_u128(n);
        append(&book, &registered(meeting)).await;
        append(&book, &started(meeting, 1)).await;
        append(&book, &completed(meeting, 1, &["spk00"], &[])).await;
        book.close().await;
    }

    async fn forbid(&self) {
        let refuse = format!(
            "ALTER TABLE meetings ADD CONSTRAINT refused CHECK (id <> '{}' OR status <> 'completed')",
            Uuid::from_u128(2)
        );
        self.pool.execute(refuse.as_str()).await.unwrap();
    }

    async fn retry(&self, position: &str) {
        caught_up_and_equal(&self.pool).await;
        self.pool.execute("ALTER TABLE meetings DROP CONSTRAINT refused").await.unwrap();
        self.decide(&["parked", "retry", position]).await;
    }

    async fn decide(&self, arguments: &[&str]) {
        let ran = run_on(&self.database, arguments).await;
        assert_eq!(ran.code, Some(0), "{arguments:?}: {}{}", ran.stdout, ran.stderr);
    }

    async fn follow(&self, query: &str, after: Option<&Change>) -> Feed {
        Feed::follow(&self.server, query, after.map(|change| change.id.as_str())).await
    }
}

fn assert_is_late(change: &Change, position: i64, previous: i64) {
    assert_eq!(
        (change.position(), change.previous(), change.id.as_str()),
        (position, previous, ""),
        "{change:?}"
    );
    assert_eq!(change.name, "minutebook.meeting.completed.v1");
    assert!(change.data["id"].as_str().unwrap().ends_with(&format!(":{position}")), "{change:?}");
}

#[tokio::test]
async fn a_client_that_listens_gets_it_late_as_far_as_its_filter_lets_it_through() {
    let scene = Scene::start().await;
    scene.forbid().await;
    let (second, third) = (Uuid::from_u128(2), Uuid::from_u128(3));
    let mut all = scene.follow("", None).await;
    let mut completions = scene.follow("type=meeting.completed", None).await;
    let mut failures = scene.follow("type=meeting.failed,meeting.registered", None).await;
    let mut of_it = scene.follow(&format!("meeting={second}"), None).await;
    let mut of_another = scene.follow(&format!("meeting={third}"), None).await;
    let mut new = scene.follow("from=7", None).await;
    for n in 1..=3 {
        scene.live(n).await;
    }
    assert_eq!(positions(&all.take(8).await), [1, 2, 3, 4, 5, 7, 8, 9]);
    let came = completions.take(2).await;
    assert_eq!((positions(&came), came[1].previous()), (vec![3, 9], 6));
    assert_eq!(positions(&failures.take(3).await), [1, 4, 7]);
    assert_eq!(positions(&of_it.take(2).await), [4, 5]);
    assert_eq!(positions(&of_another.take(3).await), [7, 8, 9]);
    assert_eq!(positions(&new.take(3).await), [7, 8, 9]);
    scene.retry("6").await;
    for feed in [&mut all, &mut completions, &mut of_it] {
        assert_is_late(&feed.next().await, 6, 3);
    }
    // The others do not hear of it, and it comes once.
    scene.live(4).await;
    assert_eq!(positions(&all.take(3).await), [10, 11, 12]);
    assert_eq!(completions.next().await.position(), 12);
    assert_eq!(failures.next().await.position(), 10);
    assert_eq!(positions(&new.take(3).await), [10, 11, 12]);
    // Whoever comes later finds it in its place.
    let mut late = scene.follow("", None).await;
    assert_eq!(positions(&late.take(12).await), (1..=12).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_client_that_was_away_gets_it_too_wherever_it_was_and_with_any_filter() {
    let scene = Scene::start().await;
    scene.forbid().await;
    for n in 1..=3 {
        scene.live(n).await;
    }
    let second = Uuid::from_u128(2);
    let before = scene.follow("", None).await.take(8).await;
    assert_eq!(positions(&before), [1, 2, 3, 4, 5, 7, 8, 9]);
    let queries = ["", "type=meeting.completed", &format!("meeting={second}")];
    // Still parked when they come back.
    let mut back = vec![];
    for query in queries {
        back.push(scene.follow(query, before.last()).await);
    }
    scene.retry("6").await;
    for feed in &mut back {
        assert_is_late(&feed.next().await, 6, 3);
    }
    scene.live(4).await;
    assert_eq!(positions(&back[0].take(3).await), [10, 11, 12]);
    // Free when they come back: those who were before its place get it there, those behind it late.
    for query in queries {
        for last in &before[..5] {
            let mut feed = scene.follow(query, Some(last)).await;
            while feed.next().await.position() < 6 {}
            let mut again = scene.follow(query, Some(last)).await;
            let came = loop {
                let came = again.next().await;
                if came.position() >= 6 {
                    break came;
                }
            };
            assert_eq!(came.position(), 6, "{query} after {}", last.id);
            assert!(!came.id.is_empty(), "{query} after {}: {came:?}", last.id);
        }
        for last in &before[5..] {
            let mut feed = scene.follow(query, Some(last)).await;
            assert_is_late(&feed.next().await, 6, 3);
        }
    }
    // Whoever had something that came to be shown after it was free has had it.
    let had = scene.follow("from=10", None).await.next().await;
    let mut feed = scene.follow("", Some(&had)).await;
    assert_eq!(positions(&feed.take(2).await), [11, 12]);
}

#[tokio::test]
async fn what_is_free_comes_before_whatever_the_tables_show_after_that() {
    let scene = Scene::start().await;
    scene.forbid().await;
    scene.live(1).await;
    scene.live(2).await;
    let mut feed = scene.follow("", None).await;
    assert_eq!(positions(&feed.take(5).await), [1, 2, 3, 4, 5]);
    scene.retry("6").await;
    scene.live(3).await;
    // Else a client that is cut off after position 7 would never hear of it.
    assert_eq!(positions(&feed.take(4).await), [6, 7, 8, 9]);
}

#[tokio::test]
async fn a_client_is_told_what_was_skipped_late_or_in_its_place() {
    let scene = Scene::start().await;
    scene.live(1).await;
    let id = Uuid::from_u128(2).to_string();
    append_raw(&scene.pool, ["meeting", &id, "MeetingCompleted", "1", "{\"secret\": 1}"], 0).await;
    append_raw(&scene.pool, ["meeting", &id, "MeetingTeleported", "1", "{}"], 1).await;
    scene.live(3).await;
    let queries = ["", "type=meeting.completed", &format!("meeting={id}")];
    let mut listening = vec![];
    for query in queries {
        listening.push(scene.follow(query, None).await);
    }
    let came = listening[0].take(6).await;
    assert_eq!(positions(&came), [1, 2, 3, 6, 7, 8]);
    assert_eq!(positions(&listening[1].take(2).await), [3, 8]);
    let ran = run_on(&scene.database, &["parked", "skip", "4", "--reason", "secret"]).await;
    assert_eq!(ran.code, Some(3), "the next one cannot be applied either: {}", ran.stderr);
    scene.decide(&["parked", "skip", "5", "--reason", "secret"]).await;
    for feed in &mut listening {
        assert_says_skipped(&feed.next().await, &id, "");
    }
    let mut back = scene.follow("", came.last()).await;
    assert_says_skipped(&back.next().await, &id, "");
    let mut late = scene.follow("", None).await;
    let came = late.take(7).await;
    assert_eq!(positions(&came), [1, 2, 3, 4, 6, 7, 8]);
    let its_own = came[0].id.replace(":1", ":4");
    assert_says_skipped(&came[3], &id, &its_own);
    scene.live(5).await;
    for feed in [&mut listening[0], &mut back, &mut late] {
        assert_eq!(positions(&feed.take(3).await), [9, 10, 11]);
        assert!(!std::str::from_utf8(&feed.raw).unwrap().contains("secret"));
    }
}

fn assert_says_skipped(change: &Change, aggregate: &str, id: &str) {
    assert_eq!(
        (change.name.as_str(), change.id.as_str()),
        ("minutebook.meeting.skipped.v1", id),
        "{change:?}"
    );
    assert_eq!((change.position(), change.previous()), (4, 3), "{change:?}");
    let skipped = "minutebook.meeting.completed.v1";
    assert_eq!((&change.data["skippedtype"], &change.data["subject"]), (&skipped.into(), &aggregate.into()));
    assert_eq!(change.data["data"], serde_json::json!({"id": aggregate, "event_type": skipped}));
}
