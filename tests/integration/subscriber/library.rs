//! The library in a service of its own: the effect is written once, whenever the service dies; and what an
//! event says is in the tables.

use std::collections::BTreeSet;
use std::process::{ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use projections::feed::public_event::{EventType, MeetingCompleted};
use projections::feed::stream::StreamConfig;
use projections::feed::subscriber::{HandlerError, IdempotentReceiver, NoMemory, SubscriberConfig, run};
use serde_json::json;
use sqlx::{Executor, PgPool};
use tests::server::answer;
use tokio::process::Command;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{PATIENCE, Scene};

const EVENTS: u128 = 10;
/// Where the service of its own finds its broker and its database.
const BROKER: &str = "MINUTEBOOK_TEST_SUBSCRIBER_BROKER";
const DATABASE: &str = "MINUTEBOOK_TEST_SUBSCRIBER_DATABASE";

fn config(url: String, event_type: &str, durable: &str) -> SubscriberConfig {
    let event_type = EventType::named(event_type).unwrap();
    SubscriberConfig {
        stream: StreamConfig::at(url),
        event_type,
        durable: Some(durable.to_owned()),
        only_new: false,
        tries: 100,
    }
}

#[tokio::test]
async fn an_effect_is_there_once_whenever_the_subscriber_is_killed_before_it_acknowledges() {
    let scene = Scene::start().await;
    let pool = scene.database.pool().await;
    let tables = "CREATE TABLE public.effects (position bigint NOT NULL);
                  CREATE TABLE public.deliveries (position bigint NOT NULL)";
    pool.execute(tables).await.unwrap();
    for n in 1..=EVENTS {
        scene.enter(n).await;
    }
    // The broker gives an event again after a second rather than half a minute.
    let sooner = pull::Config {
        durable_name: Some("minutes".to_owned()),
        filter_subject: "minutebook.profile.*.created".to_owned(),
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_secs(1),
        max_ack_pending: 1,
        ..pull::Config::default()
    };
    let stream = scene.published(10).await;
    stream.create_consumer(sooner).await.unwrap();

    let mut deaths = 0;
    while let Some(status) = service_dies(&scene).await {
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status}");
        deaths += 1;
        assert!(deaths <= 10, "it dies for ever");
    }
    assert!(deaths >= 3, "it died {deaths} times");
    let positions = async |table: &str| -> Vec<i64> {
        let query = format!("SELECT position FROM public.{table} ORDER BY position");
        sqlx::query_scalar(&query).fetch_all(&pool).await.unwrap()
    };
    assert_eq!(positions("effects").await, (1..=10).collect::<Vec<_>>());
    assert_eq!(positions("deliveries").await.len(), 10 + deaths, "each death brought its event again");
    scene.close().await;
}

/// Lets the service run until it dies, or until everything is acknowledged; then it is stopped.
async fn service_dies(scene: &Scene) -> Option<ExitStatus> {
    let (_, module) = module_path!().split_once("::").unwrap();
    let mut service = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", &format!("{module}::a_service_that_dies_between_effect_and_ack")])
        .env(BROKER, scene.nats.url())
        .env(DATABASE, &scene.database.url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let ended = tokio::select! {
        status = timeout(PATIENCE, service.wait()) => Some(status.expect("it does nothing").unwrap()),
        () = scene.settled("minutes") => None,
    };
    if ended.is_none() {
        service.kill().await.unwrap();
    }
    ended
}

/// The service: not a test of its own.
#[tokio::test]
async fn a_service_that_dies_between_effect_and_ack() {
    let (Ok(broker), Ok(database)) = (std::env::var(BROKER), std::env::var(DATABASE)) else { return };
    let pool = PgPool::connect(&database).await.unwrap();
    let receiver = IdempotentReceiver::open(&pool, "minutes").await.unwrap();
    let handler = async |event: projections::feed::cloud_event::CloudEvent| -> Result<(), HandlerError> {
        let note = |table| format!("INSERT INTO public.{table} (position) VALUES ($1)");
        sqlx::query(&note("deliveries")).bind(event.position).execute(&pool).await?;
        let mut transaction = pool.begin().await?;
        let first = receiver.first_time(&mut transaction, &event).await?;
        if first {
            sqlx::query(&note("effects")).bind(event.position).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        if first && event.position % 3 == 0 {
            kill(Pid::this(), Signal::SIGKILL)?;
        }
        Ok(())
    };
    let config = config(broker, "profile.created", "minutes");
    // It remembers nothing itself: the helper alone keeps the effect from being doubled.
    run(&config, NoMemory, handler, |_| {}, &CancellationToken::new()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_completed_meeting_received_is_in_the_tables_when_it_is_asked_for_at_once() {
    const MEETINGS: usize = 40;
    let scene = Scene::start().await;
    let seen = Mutex::new(Vec::new());
    let done = CancellationToken::new();
    let handler = async |event: projections::feed::cloud_event::CloudEvent| -> Result<(), HandlerError> {
        let completed: MeetingCompleted = event.data()?;
        let path = format!("/v1/meetings/{}", completed.meeting_id);
        let shown = scene.server.get(&path).await;
        let mut seen = seen.lock().unwrap();
        seen.push((completed, shown));
        if seen.len() == MEETINGS {
            done.cancel();
        }
        Ok(())
    };
    let config = config(scene.nats.url(), "meeting.completed", "minutes");
    let following = timeout(PATIENCE, run(&config, NoMemory, handler, |_| {}, &done));
    let lives = futures::future::join_all((0..MEETINGS).map(|n| complete_a_meeting(&scene, n)));
    let (followed, _) = tokio::join!(following, lives);
    followed.expect("not all of them come").unwrap();

    let ids = |rows: &serde_json::Value| {
        let rows = rows.as_array().unwrap().iter();
        rows.map(|row| row["id"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    for (completed, (status, shown)) in seen.lock().unwrap().iter() {
        assert_eq!((*status, &shown["status"]), (200, &json!("completed")), "{shown}");
        let speakers = completed.speakers.iter().map(|speaker| speaker.speaker_id.to_string());
        assert_eq!(ids(&shown["speakers"]), speakers.collect(), "{shown}");
        let artifacts = completed.artifacts.iter().map(|artifact| artifact.artifact_id.to_string());
        assert_eq!(ids(&shown["artifacts"]), artifacts.collect(), "{shown}");
        assert_eq!((completed.speakers.len(), completed.artifacts.len()), (2, 1));
    }
    scene.close().await;
}

/// Leads a meeting through its life by commands.
async fn complete_a_meeting(scene: &Scene, n: usize) {
    let command = async |path: &str, body: serde_json::Value| {
        let (status, answer) = answer(scene.server.client.post(scene.server.at(path)).json(&body)).await;
        assert!(matches!(status, 200 | 201), "{answer}");
        answer["id"].as_str().unwrap().to_owned()
    };
    let id = command("/v1/meetings", json!({"sha256": format!("{n:064x}")})).await;
    let clusters = json!({"clusters": [{"cluster_id": "spk00"}, {"cluster_id": "spk01"}]});
    let artifact = json!({"type": "summary.json", "s3_key": format!("m/{n}/summary.json")});
    for (step, body) in [
        ("start", json!({"worker": "gpu-7"})),
        ("speakers", clusters),
        ("artifacts", artifact),
        ("complete", json!({})),
    ] {
        command(&format!("/v1/meetings/{id}/{step}"), body).await;
    }
}

/// The helper, without a broker: two deliveries at once of one event have one effect.
#[tokio::test]
async fn of_two_deliveries_at_once_one_has_the_effect() {
    let scene = Scene::start().await;
    scene.enter(1).await;
    let event = scene.subscribe("anybody", &["--json"]).events(1).await.remove(0);
    let event = projections::feed::cloud_event::CloudEvent::from_json(&event.to_string()).unwrap();
    let pool = scene.database.pool().await;
    let (one, other) =
        tokio::join!(IdempotentReceiver::open(&pool, "minutes"), IdempotentReceiver::open(&pool, "minutes"));
    let (receiver, _) = (one.unwrap(), other.unwrap());
    let deliver = async || {
        let mut transaction = pool.begin().await.unwrap();
        let first = receiver.first_time(&mut transaction, &event).await.unwrap();
        transaction.commit().await.unwrap();
        first
    };
    let (one, other) = tokio::join!(deliver(), deliver());
    assert!(one ^ other, "{one} and {other}");
    assert!(!deliver().await);
    // What is rolled back was not had.
    let other = IdempotentReceiver::open(&pool, "summaries").await.unwrap();
    for _ in 0..2 {
        let mut transaction = pool.begin().await.unwrap();
        assert!(other.first_time(&mut transaction, &event).await.unwrap());
        transaction.rollback().await.unwrap();
    }
    scene.close().await;
}
