//! What is withheld from a subscriber is a gap to it, which closes when the event comes, or when it is told
//! that the event was skipped.

use std::path::Path;

use async_nats::jetstream::stream::Stream;
use sqlx::{Executor, PgPool};
use tests::TestDatabase;
use tests::server::Server;
use uuid::Uuid;

use super::{Scene, Subscriber, lines_of};
use crate::cli::run_on;
use crate::log::json_of;
use crate::read_models::eventually;
use crate::read_models::history::{append, completed, registered, started};
use crate::read_models::parked::append_raw;

async fn live(book: &api::book::Book, n: u128) -> i64 {
    let meeting = Uuid::from_u128(n);
    append(book, &registered(meeting)).await;
    append(book, &started(meeting, 1)).await;
    append(book, &completed(meeting, 1, &["spk00"], &[])).await
}

/// Makes the tables refuse the completion of the second meeting.
async fn forbid(pool: &PgPool) {
    let refuse = format!(
        "ALTER TABLE meetings ADD CONSTRAINT refused CHECK (id <> '{}' OR status <> 'completed')",
        Uuid::from_u128(2)
    );
    pool.execute(refuse.as_str()).await.unwrap();
}

async fn allow(pool: &PgPool) {
    pool.execute("ALTER TABLE meetings DROP CONSTRAINT refused").await.unwrap();
}

async fn decide(database: &TestDatabase, arguments: &[&str]) {
    let ran = run_on(database, arguments).await;
    assert_eq!(ran.code, Some(0), "{arguments:?}: {}{}", ran.stdout, ran.stderr);
}

async fn has(stream: &Stream, messages: u64) {
    eventually("the stream has it", async || {
        (stream.get_info().await.unwrap().state.last_sequence >= messages).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_is_withheld_is_a_gap_that_closes_when_it_is_tried_again_with_success() {
    let scene = Scene::start().await;
    let pool = scene.database.pool().await;
    forbid(&pool).await;
    let ran = scene.path("ran");
    let command = format!(r#"echo "$MINUTEBOOK_POSITION $MINUTEBOOK_MEETING_ID" >> '{}'"#, ran.display());
    let subscribe = || scene.subscribe_to("meeting.completed", "mailer", &["--exec", &command]);
    let subscriber = subscribe();
    for n in 1..=3 {
        live(&scene.book, n).await;
    }
    let told = subscriber.says("events are missing").await;
    assert!(told.contains("after position 3, up to position 6"), "{told}");
    // A refill, as it says, does no harm.
    let nats = scene.nats.url();
    decide(&scene.database, &["publish", "--from", "4", "--to", "6", "--nats-url", &nats]).await;
    scene.settled("mailer").await;
    // Over a restart, too.
    subscriber.stop().await;
    let subscriber = subscribe();
    subscriber.says("after position 3, up to position 6").await;
    allow(&pool).await;
    decide(&scene.database, &["parked", "retry", "6"]).await;
    subscriber.says("the missing events after position 3, up to position 6, have come").await;
    live(&scene.book, 4).await;
    let expected = [(3, 1), (9, 3), (6, 2), (12, 4)].map(|(at, n)| format!("{at} {}", Uuid::from_u128(n)));
    assert_eq!(lines_of(&ran, 4).await, expected);
    scene.settled("mailer").await;
    let (_, said) = subscriber.stop().await;
    assert_eq!(said.matches("events are missing").count(), 1, "{said}");
    assert!(!said.contains("failed at try"), "{said}");
    assert_eq!(lines_of(&ran, 4).await, expected, "once for each meeting");
    scene.close().await;
}

#[tokio::test]
async fn what_is_skipped_closes_the_gap_and_no_handler_hears_of_it() {
    let scene = Scene::start().await;
    let pool = scene.database.pool().await;
    let ran = scene.path("ran");
    let command = format!(r#"echo "$MINUTEBOOK_POSITION" >> '{}'"#, ran.display());
    let subscriber = scene.subscribe_to("meeting.completed", "mailer", &["--exec", &command]);
    live(&scene.book, 1).await;
    let id = Uuid::from_u128(2).to_string();
    append_raw(&pool, ["meeting", &id, "MeetingCompleted", "1", "{}"], 0).await;
    live(&scene.book, 3).await;
    subscriber.says("events are missing after position 3, up to position 4").await;
    decide(&scene.database, &["parked", "skip", "4", "--reason", "by hand"]).await;
    subscriber.says("the event at position 4 was skipped by an operator").await;
    subscriber.says("the missing events after position 3, up to position 4, have come").await;
    has(&scene.stream().await, 7).await;
    scene.settled("mailer").await;
    let (_, said) = subscriber.stop().await;
    assert_eq!(said.matches("skipped").count(), 1, "{said}");
    assert_eq!(lines_of(&ran, 2).await, ["3", "7"]);

    // Who comes later is told as well.
    let late = scene.subscribe_to("meeting.completed", "late", &["--json"]);
    late.says("the event at position 4 was skipped by an operator").await;
    assert_eq!(late.positions(2).await, [3, 7]);
    scene.settled("late").await;
    assert_eq!(late.stop().await.0, [3, 7]);
    scene.close().await;
}

#[tokio::test]
async fn a_last_event_that_is_withheld_is_told_missing_whether_the_publisher_was_restarted_or_not() {
    let mut scene = Scene::start().await;
    let pool = scene.database.pool().await;
    forbid(&pool).await;
    let subscriber = scene.subscribe_to("meeting.completed", "mailer", &["--json"]);
    live(&scene.book, 1).await;
    live(&scene.book, 2).await;
    subscriber.says("events are missing after position 3, up to position 6").await;
    let url = scene.nats.url();
    let server = Server::start_with(&scene.database, &["--nats-url", &url]).await;
    std::mem::replace(&mut scene.server, server).kill_9().await;
    allow(&pool).await;
    decide(&scene.database, &["parked", "retry", "6"]).await;
    subscriber.says("the missing events after position 3, up to position 6, have come").await;
    assert_eq!(subscriber.positions(2).await, [3, 6]);
    scene.settled("mailer").await;
    subscriber.stop().await;
    scene.close().await;
}

#[tokio::test]
async fn a_subscriber_of_a_server_is_told_the_same_whether_it_listens_or_is_away() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    forbid(&pool).await;
    let book = database.open().await;
    let server = Server::start(&database).await;
    let directory = tempfile::tempdir().unwrap();
    let state = |who: &str| directory.path().join(who).display().to_string();
    let subscribe = |who: &str| {
        let state = state(who);
        let arguments = ["--json", "--server", &server.url, "--state-dir", &state];
        Subscriber::start(&[&["subscribe", "meeting.completed"], &arguments[..]].concat())
    };
    let (listening, away) = (subscribe("listening"), subscribe("away"));
    live(&book, 1).await;
    live(&book, 2).await;
    live(&book, 3).await;
    let undecodable = Uuid::from_u128(4).to_string();
    append_raw(&pool, ["meeting", &undecodable, "MeetingCompleted", "1", "{}"], 0).await;
    live(&book, 5).await;
    for subscriber in [&listening, &away] {
        assert_eq!(subscriber.positions(3).await, [3, 9, 13]);
        subscriber.says("events are missing after position 3, up to position 6").await;
        subscriber.says("events are missing after position 9, up to position 10").await;
    }
    // Killed before, it would get the last event again, and with what was decided meanwhile: without a gap.
    eventually("it has noted what it had", async || {
        let noted = std::fs::read_to_string(Path::new(&state("away")).join("ledger.json")).ok()?;
        (json_of(&noted)["ledger"]["position"] == 13).then_some(())
    })
    .await;
    away.kill_9().await;
    allow(&pool).await;
    decide(&database, &["parked", "retry", "6"]).await;
    decide(&database, &["parked", "skip", "10", "--reason", "by hand"]).await;
    let away = subscribe("away");
    for subscriber in [&listening, &away] {
        subscriber.says("the missing events after position 3, up to position 6, have come").await;
        subscriber.says("the event at position 10 was skipped by an operator").await;
        subscriber.says("the missing events after position 9, up to position 10, have come").await;
    }
    assert_eq!(listening.stop().await.0, [3, 9, 13, 6]);
    assert_eq!(away.stop().await.0, [6]);
    book.close().await;
    assert!(server.stop().await.success());
}
