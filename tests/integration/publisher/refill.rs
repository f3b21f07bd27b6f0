//! A broker that has lost everything, and `minutebook publish`, which puts it there again.

use std::collections::BTreeMap;
use std::time::Duration;

use projections::feed::cloud_event::CloudEvent;
use projections::feed::public_event::EventType;
use projections::feed::stream::StreamConfig;
use projections::feed::subscriber::{
    HandlerError, IdempotentReceiver, NoMemory, Report, SubscriberConfig, run,
};
use serde_json::{Value, json};
use sqlx::{Executor, PgPool};
use tests::TestDatabase;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{ONLY_PUBLISHER, STREAM, Scene, append, becomes, complete_a_meeting, while_events_flow};
use crate::cli::{Ran, run_on};
use crate::read_models::eventually;

#[tokio::test]
async fn a_broker_that_lost_everything_is_filled_again_and_each_effect_is_there_once() {
    let mut scene = Scene::start().await;
    let server = scene.serve(&[]).await;
    let effects = Effects::create().await;
    let stopping = CancellationToken::new();
    let subscriber = effects.follow(scene.stream_config(), "effects", &stopping);
    let losing = async {
        for _ in 0..3 {
            complete_a_meeting(&server).await;
        }
        scene.all_is_published().await;
        effects.are_there(1).await;

        scene.nats.stop().await;
        complete_a_meeting(&server).await;
        scene.nats.wipe();
        complete_a_meeting(&server).await;
        let noted = scene.noted().await;
        scene.nats.restart().await;
        complete_a_meeting(&server).await;
        let head = scene.all_is_published().await;
        let after_the_wipe = scene.stream().await.iter().map(|kept| kept.event.position).collect::<Vec<_>>();
        assert_eq!(after_the_wipe, (noted + 1..=head).collect::<Vec<_>>());
        let said = scene.feed_status().await;
        assert!(said["detail"].as_str().unwrap().contains("minutebook publish --from 1"), "{said}");

        let filled = json_of(&scene.run(&["publish", "--from", "1", "--json"]).await);
        assert_eq!(filled, json!({"stream": STREAM, "from": 1, "to": head, "events": head}));
        let kept = scene.stream().await;
        scene.assert_sound(&kept).await;
        let mut times = BTreeMap::<i64, usize>::new();
        for kept in &kept {
            *times.entry(kept.event.position).or_default() += 1;
        }
        // None of the old messages is remembered; those published after the wipe are.
        assert_eq!(times, (1..=head).map(|position| (position, 1)).collect::<BTreeMap<_, _>>());
        assert_eq!(scene.feed_status().await["detail"], Value::Null);

        // The publisher goes on, although the stream's last message is not its newest event.
        complete_a_meeting(&server).await;
        let head = scene.all_is_published().await;
        assert_eq!(scene.stream().await.len() as i64, head);
        becomes(&server, "active").await;
        effects.are_complete(&scene).await;

        // Whoever hears it all once more changes nothing.
        let again = CancellationToken::new();
        let listening = effects.follow(scene.stream_config(), "once-more", &again);
        let heard = async {
            let completed = effects.expected(&scene).await.len() as i64;
            eventually("everything is heard again", async || {
                (effects.heard("once-more").await == completed).then_some(())
            })
            .await;
            again.cancel();
        };
        tokio::join!(listening, heard);
        effects.are_complete(&scene).await;
        stopping.cancel();
    };
    tokio::join!(subscriber, losing);
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn a_broker_wiped_while_nothing_happens_is_noticed_and_filled() {
    let mut scene = Scene::start().await;
    let server = scene.serve(&[]).await;
    complete_a_meeting(&server).await;
    let head = scene.all_is_published().await;
    scene.nats.kill_9().await;
    scene.nats.wipe();
    scene.nats.restart().await;
    eventually("the loss is told", async || {
        let detail = scene.feed_status().await["detail"].clone();
        detail.as_str().is_some_and(|detail| detail.contains("minutebook publish --from 1")).then_some(())
    })
    .await;
    let filled = scene.run(&["publish", "--from", "1"]).await;
    assert_eq!(filled.code, Some(0), "{}", filled.stderr);
    assert!(filled.stdout.contains(&format!("{head} events")), "{}", filled.stdout);
    scene.assert_each_position_once().await;
    assert_eq!(scene.feed_status().await["detail"], Value::Null);
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn a_loss_is_told_until_it_is_mended_whoever_publishes() {
    let mut scene = Scene::start().await;
    let server = scene.serve(&[]).await;
    complete_a_meeting(&server).await;
    scene.all_is_published().await;
    scene.nats.stop().await;
    scene.nats.wipe();
    scene.nats.restart().await;
    complete_a_meeting(&server).await;
    scene.all_is_published().await;
    assert!(server.stop().await.success());
    let server = scene.serve(&ONLY_PUBLISHER).await;
    becomes(&server, "active").await;
    let said = scene.feed_status().await;
    assert!(said["detail"].as_str().is_some_and(|detail| detail.contains("--from 1")), "{said}");
    let filled = scene.run(&["publish", "--from", "1", "--to", "2"]).await;
    assert_eq!(filled.code, Some(0), "{}", filled.stderr);
    let said = scene.feed_status().await;
    assert!(said["detail"].is_string(), "a part is not the whole: {said}");
    let filled = scene.run(&["publish", "--from", "1"]).await;
    assert_eq!(filled.code, Some(0), "{}", filled.stderr);
    assert_eq!(scene.feed_status().await["detail"], Value::Null);
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn filling_a_stream_that_lacks_nothing_doubles_nothing_while_events_flow() {
    let scene = Scene::start().await;
    let book = scene.open().await;
    let server = scene.serve(&ONLY_PUBLISHER).await;
    append(&book, 3000).await;
    scene.all_is_published().await;
    let filling = async {
        for from in ["1", "1500", "1"] {
            let filled = scene.run(&["publish", "--from", from, "--json"]).await;
            assert!(json_of(&filled)["events"].as_i64().unwrap() > 1000);
        }
    };
    while_events_flow(&book, filling).await;
    scene.all_is_published().await;
    scene.assert_each_position_once().await;
    assert!(server.stop().await.success());
    book.close().await;
}

#[tokio::test]
async fn a_stream_can_be_filled_without_a_publisher_which_then_goes_on_behind() {
    let scene = Scene::start().await;
    let book = scene.open().await;
    append(&book, 300).await;
    let head = scene.head().await;
    shown(&scene, head).await;
    let filled = json_of(&scene.run(&["publish", "--from", "1", "--to", "100", "--json"]).await);
    assert_eq!(filled["events"], 100);
    // What the stream never had comes without a hole: else the publisher would go on behind it.
    let filled = json_of(&scene.run(&["publish", "--from", "201", "--to", "250", "--json"]).await);
    assert_eq!(filled["events"], 150);
    let server = scene.serve(&ONLY_PUBLISHER).await;
    scene.all_is_published().await;
    scene.assert_each_position_once().await;
    assert!(server.stop().await.success());
    book.close().await;
}

#[tokio::test]
async fn publish_says_what_is_wrong_with_what_it_is_given() {
    let scene = Scene::start().await;
    let book = scene.open().await;
    append(&book, 20).await;
    let head = scene.head().await;
    shown(&scene, head).await;
    let beyond = (head + 1).to_string();
    for (arguments, code, says) in [
        (vec!["--from", "0"], 2, "--from"),
        (vec!["--from", "-3"], 2, "--from"),
        (vec!["--from", "one"], 2, "--from"),
        (vec!["--from", "9223372036854775808"], 2, "--from"),
        (vec!["--to", "5"], 2, "--from"),
        (vec!["--from", "1", "--to", "0"], 2, "--to"),
        (vec!["--from", "1", "--to", &beyond], 1, "--to must not be beyond it"),
        (vec!["--from", "1", "--to", "9223372036854775807"], 1, "--to must not be beyond it"),
        (vec!["--from", "5", "--to", "4"], 1, "--from must not be after --to"),
        (vec!["--from", "1", "--nats-stream", "a.b"], 2, "--nats-stream"),
    ] {
        let ran = scene.run(&[&["publish"], &arguments[..]].concat()).await;
        assert_refused(&ran, code, says, &arguments);
    }
    let ran = run_on(&scene.database, &["publish", "--from", "1"]).await;
    assert_refused(&ran, 1, "NATS_URL", &["without a broker"]);
    assert_eq!(scene.end_of_stream().await, 0, "nothing was published");
    book.close().await;
}

#[tokio::test]
async fn publish_gives_up_on_a_broker_that_is_away_or_hangs_in_bounded_time() {
    let mut scene = Scene::start().await;
    let book = scene.open().await;
    append(&book, 20).await;
    shown(&scene, scene.head().await).await;
    let bounded = async |scene: &Scene, url: &str| {
        let started = Instant::now();
        let ran = run_on(&scene.database, &["publish", "--from", "1", "--nats-url", url]).await;
        assert_refused(&ran, 1, "broker", &[url]);
        assert!(started.elapsed() < Duration::from_secs(30), "it took {:?}", started.elapsed());
    };
    let url = scene.nats.url();
    scene.nats.pause();
    bounded(&scene, &url).await;
    scene.nats.resume();
    scene.nats.stop().await;
    bounded(&scene, &url).await;
    // Something listens, and is no broker.
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    bounded(&scene, &format!("nats://{}", deaf.local_addr().unwrap())).await;
    bounded(&scene, "not a url").await;
    book.close().await;
}

fn assert_refused(ran: &Ran, code: i32, says: &str, arguments: &[&str]) {
    assert_eq!(ran.code, Some(code), "{arguments:?}: {}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains(says), "{arguments:?}: {}", ran.stderr);
    assert_eq!(ran.stdout, "", "{arguments:?}");
}

fn json_of(ran: &Ran) -> Value {
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    serde_json::from_str(&ran.stdout).unwrap()
}

async fn shown(scene: &Scene, position: i64) {
    eventually("the tables show it", async || {
        let shown = projections::tables::checkpoint::read(&scene.pool).await.unwrap().position;
        (shown >= position).then_some(())
    })
    .await;
}

/// What a subscriber of its own database writes there, for each meeting completed.
struct Effects {
    _database: TestDatabase,
    pool: PgPool,
}

impl Effects {
    async fn create() -> Self {
        let database = TestDatabase::create().await;
        let pool = PgPool::connect(&database.url).await.unwrap();
        // Without a key: what is doubled shows.
        let tables = "CREATE TABLE effects (position bigint NOT NULL);
                      CREATE TABLE heard (durable text NOT NULL, position bigint NOT NULL);";
        pool.execute(tables).await.unwrap();
        Self { _database: database, pool }
    }

    /// Follows completions until `stopping`. The receiver is always the same, the consumer is not.
    async fn follow(&self, stream: StreamConfig, durable: &str, stopping: &CancellationToken) {
        let config = SubscriberConfig {
            stream,
            event_type: EventType::named("meeting.completed").unwrap(),
            durable: Some(durable.to_owned()),
            only_new: false,
            tries: 5,
        };
        let receiver = IdempotentReceiver::open(&self.pool, "effects").await.unwrap();
        let receiver = &receiver;
        let handle = async |event: CloudEvent| -> Result<(), HandlerError> {
            let mut transaction = self.pool.begin().await?;
            sqlx::query("INSERT INTO heard (durable, position) VALUES ($1, $2)")
                .bind(durable)
                .bind(event.position)
                .execute(&mut *transaction)
                .await?;
            if receiver.first_time(&mut transaction, &event).await? {
                sqlx::query("INSERT INTO effects (position) VALUES ($1)")
                    .bind(event.position)
                    .execute(&mut *transaction)
                    .await?;
            }
            transaction.commit().await?;
            Ok(())
        };
        let report = |report: Report| {
            let failed =
                matches!(report, Report::Failed { .. } | Report::SetAside { .. } | Report::Foreign { .. });
            assert!(!failed, "{report:?}");
        };
        timeout(Duration::from_secs(300), run(&config, NoMemory, handle, report, stopping))
            .await
            .unwrap()
            .unwrap();
    }

    async fn are_there(&self, at_least: usize) {
        eventually("there are effects", async || (self.all().await.len() >= at_least).then_some(())).await;
    }

    async fn are_complete(&self, scene: &Scene) {
        let expected = self.expected(scene).await;
        eventually("every effect is there", async || {
            (self.all().await.len() >= expected.len()).then_some(())
        })
        .await;
        assert_eq!(self.all().await, expected);
    }

    async fn all(&self) -> Vec<i64> {
        let query = "SELECT position FROM effects ORDER BY position";
        sqlx::query_scalar(query).fetch_all(&self.pool).await.unwrap()
    }

    async fn expected(&self, scene: &Scene) -> Vec<i64> {
        let query = "SELECT position FROM log.events WHERE event_type = 'MeetingCompleted' ORDER BY position";
        sqlx::query_scalar(query).fetch_all(&scene.pool).await.unwrap()
    }

    async fn heard(&self, durable: &str) -> i64 {
        let query = "SELECT count(DISTINCT position) FROM heard WHERE durable = $1";
        sqlx::query_scalar(query).bind(durable).fetch_one(&self.pool).await.unwrap()
    }
}
