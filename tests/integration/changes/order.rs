//! Each event once, in order, with what it says and what it must not say; and only those that were asked for.

use std::collections::BTreeSet;

use futures::future::join_all;
use projections::feed::public_event::EventType;
use serde_json::{Value, json};
use tests::server::Server;
use uuid::Uuid;

use super::{Change, Feed, log_of, positions, previous_in, refusal};
use crate::http::Scene;
use crate::read_models::erasures_are_complete;
use crate::read_models::history::{self, append};

/// Two meetings and two people, interleaved, with everything in it that must not leave.
async fn tell_all(scene: &Scene) {
    let book = scene.database.open().await;
    let (one, other) = (Uuid::from_u128(0xa0), Uuid::from_u128(0xb0));
    let (ada, grace) = (Uuid::from_u128(0xc0), Uuid::from_u128(0xd0));
    let key = "m/1/transcript.md";
    for given in [
        history::created(ada, "Ada Lovelace"),
        history::enrolled(ada, Uuid::from_u128(0xc1)),
        history::registered(one),
        history::registered(other),
        history::started(one, 1),
        history::started(other, 1),
        history::fingerprinted(one, 1, "pcm16k:ab"),
        history::language(one, 1, "de-CH"),
        history::diarized(one, 1, &["spk00", "spk01"]),
        history::diarized_with_voice(other, 1, "spk00", &[0.123_456, -0.654_321]),
        history::identified(one, 1, "spk00", ada, 0.75),
        history::not_identified(one, 1, "spk01"),
        history::created(grace, "Grace Hopper"),
        history::reassigned(one, 1, "spk01", Some(grace)),
        history::cached(one, "transcribe", "pcm16k:ab", "{\"secret words\": 1}", None),
        history::stored(one, 1, "transcript.md", key),
        history::completed(one, 1, &["spk00", "spk01"], &[("transcript.md", key)]),
        history::failed(other, 1),
        history::renamed(ada, "Ada King"),
        history::voice_removed(ada, Uuid::from_u128(0xc1)),
        history::erased(other),
        history::profile_erased(ada),
        history::started(one, 2),
        history::completed(one, 2, &[], &[]),
    ] {
        append(&book, &given).await;
    }
    book.close().await;
}

#[tokio::test]
async fn each_event_comes_once_in_order_as_a_cloud_event_that_names_the_one_before_it_of_its_type() {
    let scene = Scene::start().await;
    // It follows from the start on, live.
    let mut live = Feed::follow(&scene.server, "", None).await;
    tell_all(&scene).await;
    let log = log_of(&scene.pool).await;
    let previous = previous_in(&log);
    let (log_id, epoch) = identity(&scene).await;
    let changes = live.take(log.len()).await;
    for (change, (position, stored, aggregate_id)) in changes.iter().zip(&log) {
        let known = EventType::named(stored).unwrap();
        let Change { id, name, data } = change;
        assert_eq!((id.as_str(), name.as_str()), (format!("{epoch}:{position}").as_str(), known.full));
        for (attribute, value) in [
            ("specversion", json!("1.0")),
            ("id", json!(id)),
            ("source", json!(format!("urn:minutebook:log:{log_id}"))),
            ("type", json!(known.full)),
            ("subject", json!(aggregate_id)),
            ("datacontenttype", json!("application/json")),
            ("dataschema", json!(format!("urn:minutebook:schema:{}", known.full))),
            ("position", json!(position)),
            ("previous", json!(previous[position])),
        ] {
            assert_eq!(data[attribute], value, "{attribute} of {data}");
        }
        assert!(data["time"].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().is_ok(), "{data}");
        let of = format!("{}_id", known.aggregate);
        assert_eq!(data["data"][&of], json!(aggregate_id), "{data}");
    }
    let types = log.iter().map(|(_, stored, _)| stored).collect::<BTreeSet<_>>();
    assert_eq!(types.len(), 18, "there is one of each kind: {types:?}");

    // Afterwards it is the same, byte for byte.
    let mut again = Feed::follow(&scene.server, "", None).await;
    assert_eq!(again.take(log.len()).await, changes);
    // Nothing else came, and nothing comes but what is new.
    scene.register(1).await;
    for feed in [&mut live, &mut again] {
        assert_eq!(feed.next().await.position(), log.len() as i64 + 1);
    }
}

#[tokio::test]
async fn a_completed_meeting_carries_what_a_subscriber_needs_to_act() {
    let scene = Scene::start().await;
    tell_all(&scene).await;
    let completed = Feed::follow(&scene.server, "type=meeting.completed", None).await.next().await;
    let meeting = Uuid::from_u128(0xa0);
    let data = &completed.data["data"];
    for (field, value) in [
        ("meeting_id", json!(meeting)),
        ("file_id", json!(history::file_id(meeting))),
        ("language", json!("de-CH")),
        ("attempt", json!(1)),
        ("finished_at", json!("2026-01-01T11:30:00Z")),
    ] {
        assert_eq!(data[field], value, "{field} of {data}");
    }
    let speaker = |cluster| {
        json!({"speaker_id": history::speaker(meeting, 1, cluster), "cluster_id": cluster,
               "profile_id": null, "confidence": null})
    };
    assert_eq!(data["speakers"], json!([speaker("spk00"), speaker("spk01")]));
    let artifact = history::artifact_id(meeting, 1, "transcript.md");
    let artifact = json!({"artifact_id": artifact, "type": "transcript.md", "s3_key": "m/1/transcript.md"});
    assert_eq!(data["artifacts"], json!([artifact]));
}

#[tokio::test]
async fn no_name_no_vector_and_no_free_text_is_among_the_bytes() {
    let scene = Scene::start().await;
    tell_all(&scene).await;
    let last = log_of(&scene.pool).await.len();
    let mut feed = Feed::follow(&scene.server, "", None).await;
    feed.take(last).await;
    let raw = std::str::from_utf8(&feed.raw).unwrap();
    assert!(raw.contains("m/1/transcript.md") && raw.contains("0.75"), "this may leave: {raw}");
    let secrets = ["Ada", "Lovelace", "King", "Grace", "Hopper", "display_name", "name\""];
    let vectors = ["vector", "embedding", "-0.25", "0.123", "-0.654", "[0."];
    let free_text = ["heard it", "noise", "on request", "secret words", "\"words\"", "worker"];
    for secret in secrets.iter().chain(&vectors).chain(&free_text) {
        assert!(!raw.contains(secret), "{secret} has left: {raw}");
    }
}

#[tokio::test]
async fn filters_by_type_and_meeting_let_through_what_was_asked_for_and_previous_stays_true() {
    let scene = Scene::start().await;
    tell_all(&scene).await;
    erasures_are_complete(&scene.pool).await;
    let log = log_of(&scene.pool).await;
    let previous = previous_in(&log);
    let (one, other) = (Uuid::from_u128(0xa0).to_string(), Uuid::from_u128(0xb0).to_string());
    let started = "ProcessingStarted";
    let of_meetings = |query: &str, types: &[&str], meeting: Option<&str>| {
        let wanted = |(_, stored, id): &&(i64, String, String)| {
            (types.is_empty() || types.contains(&stored.as_str())) && meeting.is_none_or(|m| m == id)
        };
        (query.to_owned(), log.iter().filter(wanted).map(|(at, ..)| *at).collect::<Vec<_>>())
    };
    let full = "minutebook.meeting.completed.v1";
    let expected = [
        of_meetings("type=meeting.completed", &["MeetingCompleted"], None),
        of_meetings(&format!("type={full}"), &["MeetingCompleted"], None),
        of_meetings("type=MeetingCompleted", &["MeetingCompleted"], None),
        of_meetings(
            "type=meeting.completed,meeting.processing_started,profile.renamed",
            &["MeetingCompleted", started, "ProfileRenamed"],
            None,
        ),
        of_meetings(&format!("meeting={one}"), &[], Some(&one)),
        of_meetings(&format!("meeting={other}"), &[], Some(&other)),
        of_meetings(&format!("type=meeting.processing_started&meeting={one}"), &[started], Some(&one)),
        of_meetings(
            &format!("type=meeting.processing_started,meeting.registered&meeting={other}"),
            &[started, "MeetingRegistered"],
            Some(&other),
        ),
    ];
    // The last one of each is new: it ends the wait for whatever might come besides.
    let book = scene.database.open().await;
    let mut feeds = Vec::new();
    for (query, at) in &expected {
        let mut feed = Feed::follow(&scene.server, query, None).await;
        let changes = feed.take(at.len()).await;
        assert_eq!(positions(&changes), *at, "{query}");
        for change in &changes {
            assert_eq!(change.previous(), previous[&change.position()], "{query}: {change:?}");
        }
        feeds.push(feed);
    }
    for meeting in [&one, &other] {
        let meeting = meeting.parse().unwrap();
        append(&book, &history::started(meeting, 3)).await;
        append(&book, &history::completed(meeting, 3, &[], &[])).await;
    }
    let (log, head) = (log_of(&scene.pool).await, log.len());
    let previous = previous_in(&log);
    for ((query, at), feed) in expected.iter().zip(&mut feeds) {
        let change = feed.next().await;
        assert!(change.position() > head as i64, "{query}: after {at:?} came {change:?}");
        assert_eq!(change.previous(), previous[&change.position()], "{query}: {change:?}");
    }
    book.close().await;
}

#[tokio::test]
async fn what_cannot_be_asked_for_is_said() {
    let scene = Scene::start().await;
    for query in [
        "type=meeting.exploded",
        "type=meeting.completed,",
        "type=",
        "type=meeting",
        "meeting=here",
        "from=0",
        "from=-1",
        "from=x",
        "from=9223372036854775808",
        "since=1",
        "type=meeting.completed&limit=3",
    ] {
        refusal(&scene.server, query, None).await.is_problem(422, "invalid_query");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_never_arrives_before_its_row() {
    const MEETINGS: usize = 40;
    let scene = Scene::start().await;
    let mut feed = Feed::follow(&scene.server, "type=meeting.completed", None).await;
    let lives = (0..MEETINGS).map(|n| complete_a_meeting(&scene, n));
    let looking = async {
        for _ in 0..MEETINGS {
            let completed = feed.next().await;
            is_shown(&scene.server, &completed.data["data"]).await;
        }
    };
    tokio::join!(join_all(lives), looking);
}

/// Leads a meeting through its life by commands.
async fn complete_a_meeting(scene: &Scene, n: usize) {
    let meeting = scene.register(n).await.meeting();
    let artifact = json!({"type": "summary.json", "s3_key": format!("m/{n}/summary.json")});
    let clusters = json!({"clusters": [{"cluster_id": "spk00"}, {"cluster_id": "spk01"}]});
    for (command, body) in [
        ("start", json!({"worker": "gpu-7"})),
        ("speakers", clusters),
        ("artifacts", artifact),
        ("complete", json!({})),
    ] {
        scene.command(&format!("{meeting}/{command}"), body).await;
    }
}

/// Checks that the API shows at once what a completed meeting's event says.
async fn is_shown(server: &Server, data: &Value) {
    let path = format!("/v1/meetings/{}", data["meeting_id"].as_str().unwrap());
    let (status, shown) = server.get(&path).await;
    assert_eq!((status, &shown["status"]), (200, &json!("completed")), "{shown}");
    for (list, id) in [("speakers", "speaker_id"), ("artifacts", "artifact_id")] {
        let ids = |rows: &Value, id: &str| {
            let rows = rows.as_array().unwrap();
            rows.iter().map(|row| row[id].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
        };
        let told = ids(&data[list], id);
        assert_eq!(told.len(), if list == "speakers" { 2 } else { 1 }, "{data}");
        assert_eq!(ids(&shown[list], "id"), told, "{list}");
    }
}

async fn identity(scene: &Scene) -> (Uuid, Uuid) {
    let book = scene.database.open().await;
    let identity = book.store.identity();
    let ids = (identity.log_id, identity.epoch);
    book.close().await;
    ids
}
