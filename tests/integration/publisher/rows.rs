//! The event never arrives before its row.

use std::cell::Cell;
use std::time::Duration;

use projections::feed::cloud_event::CloudEvent;
use projections::feed::public_event::{EventType, MeetingCompleted};
use projections::feed::subscriber::{HandlerError, NoMemory, Report, SubscriberConfig, run};
use serde_json::{Value, json};
use tests::server::Server;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{ONLY_PUBLISHER, Scene, append};

#[tokio::test]
async fn whoever_hears_of_a_completion_finds_it_in_the_tables_at_once() {
    let scene = Scene::start().await;
    let server = scene.serve(&[]).await;
    every_completion_is_shown(&scene, &server).await;
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn whoever_hears_of_a_completion_finds_it_also_where_each_part_is_a_process_of_its_own() {
    let scene = Scene::start().await;
    let (server, projector, publisher) = tokio::join!(
        scene.serve(&["--only", "api"]),
        scene.serve(&["--only", "projector"]),
        scene.serve(&ONLY_PUBLISHER)
    );
    every_completion_is_shown(&scene, &server).await;
    for server in [server, projector, publisher] {
        assert!(server.stop().await.success());
    }
}

async fn every_completion_is_shown(scene: &Scene, server: &Server) {
    let book = scene.database.open().await;
    let config = SubscriberConfig {
        stream: scene.stream_config(),
        event_type: EventType::named("meeting.completed").unwrap(),
        durable: None,
        only_new: false,
        tries: 1,
    };
    let (heard, stopping) = (Cell::new(0_i64), CancellationToken::new());
    let asking = async |event: CloudEvent| -> Result<(), HandlerError> {
        let told = event.data::<MeetingCompleted>()?;
        let (status, shown) = server.get(&format!("/v1/meetings/{}", told.meeting_id)).await;
        assert_eq!(status, 200, "{shown}");
        let position = shown["position"].as_i64().unwrap();
        assert!(position >= event.position, "{position} is before {}", event.position);
        assert_eq!(shown["status"], "completed", "{shown}");
        assert_eq!(shown["language"], json!(told.language), "{shown}");
        let speakers = told.speakers.iter().map(|speaker| {
            json!({"id": speaker.speaker_id, "cluster_id": speaker.cluster_id,
                   "user_profile_id": speaker.profile_id, "confidence": speaker.confidence})
        });
        let speakers = speakers.collect::<Vec<_>>();
        assert!(!speakers.is_empty(), "{told:?}");
        assert_eq!(shown["speakers"], Value::from(speakers));
        let artifacts = |shown: &Value| (shown["id"].clone(), shown["type"].clone(), shown["s3_key"].clone());
        let mut shown = shown["artifacts"].as_array().unwrap().iter().map(artifacts).collect::<Vec<_>>();
        let told = told.artifacts.iter().map(|artifact| {
            (json!(artifact.artifact_id), json!(artifact.artifact_type), json!(artifact.s3_key))
        });
        let mut told = told.collect::<Vec<_>>();
        told.sort_by_key(|(id, ..)| id.to_string());
        shown.sort_by_key(|(id, ..)| id.to_string());
        assert_eq!(told.len(), 3);
        assert_eq!(shown, told);
        heard.set(heard.get() + 1);
        Ok(())
    };
    let report = |report: Report| assert!(!matches!(report, Report::Gap(_)), "{report:?}");
    let flowing = async {
        append(&book, 1500).await;
        scene.all_is_published().await;
        let query = "SELECT count(*) FROM log.events WHERE event_type = 'MeetingCompleted'";
        let completed: i64 = sqlx::query_scalar(query).fetch_one(&scene.pool).await.unwrap();
        assert!(completed > 20);
        crate::read_models::eventually("all are heard", async || (heard.get() >= completed).then_some(()))
            .await;
        stopping.cancel();
        completed
    };
    let subscribing = timeout(Duration::from_secs(300), run(&config, NoMemory, asking, report, &stopping));
    let (subscribed, completed) = tokio::join!(subscribing, flowing);
    subscribed.unwrap().unwrap();
    assert_eq!(heard.get(), completed);
    book.close().await;
}
