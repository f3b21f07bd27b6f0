//! Connections lost in the middle of an append: its outcome is settled, not guessed.

use api::config::DatabaseConfig;
use event_store::append::{Append, Appender, Place};
use futures::future::join_all;
use sqlx::PgPool;
use tests::TestDatabase;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::proxy::{Cut, Proxy};
use super::{PATIENCE, append_to, assert_in_the_log_once, join_all_from_now, place};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_accepted_append_is_in_the_log_once_though_its_backend_is_killed_again_and_again() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    let (answered, progress) = watch::channel(0_u64);
    let enough = CancellationToken::new();
    let killer = tokio::spawn(kill_appenders(database.pool().await, progress, enough.clone()));
    let accepted = append_from_many_tasks(book.store.appender(), answered, enough);
    let accepted = timeout(PATIENCE, accepted).await.unwrap();
    timeout(PATIENCE, killer).await.unwrap().unwrap();
    assert_in_the_log_once(book.pool(), &accepted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_accepted_append_is_in_the_log_once_wherever_its_connection_is_cut() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let proxy = Proxy::start(&database, &pool).await;
    let book = open_through(&database, &proxy).await;
    let cuts = [Some(Cut::Answer), None, Some(Cut::Between), None, Some(Cut::Request), None];
    proxy.plan(cuts.into_iter().cycle().take(60));
    let at_once = CancellationToken::new();
    at_once.cancel();
    let accepted = append_from_many_tasks(book.store.appender(), watch::Sender::new(0), at_once);
    let accepted = timeout(PATIENCE, accepted).await.unwrap();
    assert_eq!(proxy.planned(), 0, "each cut was made");
    assert_in_the_log_once(&pool, &accepted).await;
}

#[tokio::test]
async fn a_group_whose_answer_was_lost_three_times_is_found_where_it_is() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let proxy = Proxy::start(&database, &pool).await;
    let book = open_through(&database, &proxy).await;
    proxy.plan([Some(Cut::Answer); 3]);
    let appends = (0..10).map(|n| append_to(Uuid::now_v7(), 0, 1 + n % 3)).collect::<Vec<_>>();
    let handed_in = join_all_from_now(book.store.appender(), appends.clone()).await;
    let outcomes = timeout(PATIENCE, join_all(handed_in)).await.unwrap();
    let accepted =
        appends.into_iter().zip(outcomes).map(|(append, outcome)| (append, place(&outcome.unwrap())));
    let accepted = accepted.collect::<Vec<_>>();
    assert_eq!(proxy.planned(), 0);
    assert_in_the_log_once(&pool, &accepted).await;
}

#[tokio::test]
async fn a_settled_append_wakes_readers_as_any_other_does() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let proxy = Proxy::start(&database, &pool).await;
    let book = open_through(&database, &proxy).await;
    proxy.plan([Some(Cut::Answer)]);
    let outcome = book.store.appender().append(append_to(Uuid::now_v7(), 0, 3)).await.unwrap();
    assert_eq!(place(&outcome).last_position, 3);
    assert_eq!(book.store.head().position(), 3, "known before the answer, not at the next look");
}

#[tokio::test]
async fn appends_outlast_a_database_that_is_away_for_a_while() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let proxy = Proxy::start(&database, &pool).await;
    let book = open_through(&database, &proxy).await;
    let first = append_to(Uuid::now_v7(), 0, 1);
    let mut accepted = vec![(first.clone(), place(&book.store.appender().append(first).await.unwrap()))];

    proxy.close_until_turned_away(1).await;
    let appends = (0..20).map(|_| append_to(Uuid::now_v7(), 0, 2)).collect::<Vec<_>>();
    let mut answers = Box::pin(join_all(join_all_from_now(book.store.appender(), appends.clone()).await));
    tokio::select! {
        answers = &mut answers => panic!("answered without a database: {answers:?}"),
        () = proxy.close_until_turned_away(6) => {}
    }
    proxy.open();
    let outcomes = timeout(PATIENCE, answers).await.unwrap();
    accepted.extend(appends.into_iter().zip(outcomes.iter().map(|outcome| place(outcome.as_ref().unwrap()))));
    assert_in_the_log_once(&pool, &accepted).await;
}

/// Opens the database as a process would whose way to it is the proxy.
pub(crate) async fn open_through(database: &TestDatabase, proxy: &Proxy) -> api::book::Book {
    let config = DatabaseConfig { database_url: Some(proxy.url.clone()), ..database.config() };
    api::book::Book::open(&config).await.unwrap()
}

/// Makes 2,560 appends to 64 aggregates, each aggregate's one after the other, and goes on until it is
/// enough; counts the answers.
async fn append_from_many_tasks(
    appender: &Appender,
    answered: watch::Sender<u64>,
    enough: CancellationToken,
) -> Vec<(Append, Place)> {
    let task = || {
        let (appender, answered, enough) = (appender.clone(), answered.clone(), enough.clone());
        tokio::spawn(async move {
            let aggregate = Uuid::now_v7();
            let mut accepted = Vec::new();
            while accepted.len() < 40 || !enough.is_cancelled() {
                let append = append_to(aggregate, accepted.len() as i64, 1);
                let outcome = appender.append(append.clone()).await.unwrap();
                answered.send_modify(|count| *count += 1);
                accepted.push((append, place(&outcome)));
            }
            accepted
        })
    };
    let tasks = (0..64).map(|_| task()).collect::<Vec<_>>();
    drop(answered);
    join_all(tasks).await.into_iter().flat_map(Result::unwrap).collect()
}

/// Kills the backend of whoever is appending, 25 times; then it is enough.
pub(crate) async fn kill_appenders(
    pool: PgPool,
    mut progress: watch::Receiver<u64>,
    enough: CancellationToken,
) {
    let _enough_at_the_end = enough.drop_guard();
    let mut killed = 0;
    while killed < 25 {
        let hit: i64 = sqlx::query_scalar(
            "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
              WHERE datname = current_database() AND state = 'active' AND query LIKE '%log.append%'
                AND pid <> pg_backend_pid()",
        )
        .fetch_one(&pool)
        .await
        .unwrap();
        killed += hit;
        if hit > 0 {
            // Killed at each try, an append would never be settled.
            progress.mark_unchanged();
            progress.changed().await.expect("whoever appends goes on until it is enough");
        }
    }
}
