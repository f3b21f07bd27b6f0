//! What people decided about speakers outlives a new diarization, or waits for a person; and artifacts that are
//! older than a name say so until they are stored again.

use std::collections::BTreeMap;
use std::path::Path;

use async_nats::jetstream::{self, consumer::pull};
use futures::StreamExt;
use serde_json::{Value, json};
use tests::TestDatabase;
use tests::nats::NatsServer;
use tests::server::{Server, answer};
use uuid::Uuid;

use crate::changes::Feed;
use crate::cli::run_on;
use crate::read_models::caught_up_and_equal;

const REVIEWER: &str = "person:reviewer-7";
const PIPELINE: &str = "service:pipeline-1";

/// A meeting that a server leads through its life.
struct Told<'a> {
    server: &'a Server,
    /// `/v1/meetings/{id}`.
    path: String,
}

impl Told<'_> {
    /// Sends a command that must be accepted; returns the names of the events.
    async fn command(&self, actor: &str, command: &str, body: Value) -> Vec<String> {
        let (status, told) = self.ask(actor, command, &body).await;
        assert_eq!(status, 200, "{command}: {told}");
        serde_json::from_value(told["events"].clone()).unwrap()
    }

    async fn ask(&self, actor: &str, command: &str, body: &Value) -> (u16, Value) {
        self.server.post_as(actor, &format!("{}/{command}", self.path), body).await
    }

    /// Reads below the meeting what the newest event shows.
    async fn read(&self, below: &str) -> Value {
        let (_, events) = self.server.get(&format!("{}/events?limit=500", self.path)).await;
        let position = events["items"].as_array().unwrap().last().unwrap()["position"].as_i64().unwrap();
        let request = self.server.client.get(self.server.at(&format!("{}{below}", self.path)));
        let (status, shown) = answer(request.header("minutebook-min-position", position)).await;
        assert_eq!(status, 200, "{shown}");
        shown
    }

    /// Returns the speakers' ids by label.
    async fn speakers(&self) -> BTreeMap<String, String> {
        let shown = self.read("").await;
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let speakers = shown["speakers"].as_array().unwrap().iter();
        speakers.map(|speaker| (text(&speaker["cluster_id"]), text(&speaker["id"]))).collect()
    }

    /// Returns who each label is.
    async fn names(&self) -> BTreeMap<String, Value> {
        let shown = self.read("").await;
        let speakers = shown["speakers"].as_array().unwrap().iter();
        let name = |speaker: &Value| {
            (speaker["cluster_id"].as_str().unwrap().to_owned(), speaker["user_profile_id"].clone())
        };
        speakers.map(name).collect()
    }

    /// Returns which types of artifact are stale.
    async fn stale(&self, below: &str) -> BTreeMap<String, bool> {
        let shown = self.read(below).await;
        let artifacts = shown["artifacts"].as_array().unwrap().iter();
        let stale = |artifact: &Value| {
            (artifact["type"].as_str().unwrap().to_owned(), artifact["stale"].as_bool().unwrap())
        };
        artifacts.map(stale).collect()
    }

    async fn reassign(&self, speaker: &str, to: Option<Uuid>) -> Vec<String> {
        let body = json!({"profile_id": to, "reason": "I was there"});
        self.command(REVIEWER, &format!("speakers/{speaker}/reassign"), body).await
    }

    async fn pending(&self) -> Vec<Value> {
        self.read("/pending-corrections").await["items"].as_array().unwrap().clone()
    }
}

/// Clusters that speak at these seconds, each from and for how long.
fn spoken(stretches: &[(&str, u32, u32)]) -> Value {
    let mut clusters = BTreeMap::<&str, Vec<Value>>::new();
    for (label, from, length) in stretches {
        let segment = json!({"start_ms": from * 1000, "duration_ms": length * 1000});
        clusters.entry(label).or_default().push(segment);
    }
    let cluster = |(label, segments)| json!({"cluster_id": label, "segments": segments});
    json!({"clusters": clusters.into_iter().map(cluster).collect::<Vec<_>>()})
}

async fn create(server: &Server, name: &str) -> Uuid {
    let (status, created) = server.post("/v1/profiles", &json!({"display_name": name})).await;
    assert_eq!(status, 201, "{created}");
    created["id"].as_str().unwrap().parse().unwrap()
}

fn artifact(artifact_type: &str, attempt: u32) -> Value {
    json!({"type": artifact_type, "s3_key": format!("m/{attempt}/{artifact_type}")})
}

/// Three people speak, and two transcripts are written.
async fn completed(server: &Server) -> Told<'_> {
    let (_, registered) = server.post("/v1/meetings", &json!({"sha256": "ab".repeat(32)})).await;
    let told = Told { server, path: format!("/v1/meetings/{}", registered["id"].as_str().unwrap()) };
    told.command(PIPELINE, "start", json!({"worker": "w"})).await;
    let clusters = spoken(&[("a", 0, 40), ("b", 40, 30), ("a", 70, 20), ("c", 90, 20)]);
    told.command(PIPELINE, "speakers", clusters).await;
    told.command(PIPELINE, "artifacts", artifact("transcript.md", 1)).await;
    told.command(PIPELINE, "artifacts", artifact("transcript.vtt", 1)).await;
    told.command(PIPELINE, "complete", json!({})).await;
    told
}

async fn verified(database: &TestDatabase) {
    let verified = run_on(database, &["verify"]).await;
    assert_eq!(verified.code, Some(0), "{}{}", verified.stdout, verified.stderr);
    let rebuilt = run_on(database, &["rebuild"]).await;
    assert_eq!(rebuilt.code, Some(0), "{}{}", rebuilt.stdout, rebuilt.stderr);
}

#[tokio::test]
async fn decisions_are_carried_over_and_what_is_in_doubt_waits_for_a_person() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let server = Server::start(&database).await;
    let (ada, bo, cy) =
        (create(&server, "Ada").await, create(&server, "Bo").await, create(&server, "Cy").await);
    let told = completed(&server).await;
    let first = told.speakers().await;
    told.reassign(&first["a"], Some(ada)).await;
    told.reassign(&first["b"], Some(bo)).await;
    told.reassign(&first["c"], Some(cy)).await;
    assert_eq!(told.pending().await, Vec::<Value>::new());

    // A is shifted, B split in halves, and of C nothing is left.
    told.command(PIPELINE, "reprocess", json!({"worker": "w"})).await;
    let again = spoken(&[("s0", 1, 39), ("s0", 70, 19), ("s1", 41, 14), ("s2", 55, 15)]);
    let events = told.command(PIPELINE, "speakers", again.clone()).await;
    assert_eq!(events[0], "SpeakersDiarized");
    let mut outcome = events[1..].to_vec();
    outcome.sort();
    assert_eq!(
        outcome,
        ["CorrectionNotCarried", "CorrectionNotCarried", "SpeakerReassigned"],
        "the artifacts were outdated before"
    );
    assert_eq!(told.command(PIPELINE, "speakers", again).await, Vec::<String>::new());
    told.command(PIPELINE, "artifacts", artifact("transcript.md", 2)).await;
    told.command(PIPELINE, "complete", json!({})).await;
    let second = told.speakers().await;
    let names = told.names().await;
    assert_eq!((&names["s0"], &names["s1"], &names["s2"]), (&json!(ada), &Value::Null, &Value::Null));

    // Where it comes from: the event is the pipeline's, the decision the reviewer's.
    let history = told.read(&format!("/speakers/{}/history", second["s0"])).await;
    let [carried] = history["decisions"].as_array().unwrap().as_slice() else { panic!("{history}") };
    assert_eq!(
        carried["carried_from"],
        json!({"speaker_id": first["a"], "attempt": 1, "overlap_ms": 58_000})
    );
    assert_eq!((&carried["actor_kind"], &carried["to"]), (&json!("service"), &json!(ada)));
    assert_eq!(carried["reason"], "I was there");
    let origin = told.read(&format!("/speakers/{}/history", first["a"])).await;
    assert_eq!(origin["decisions"][0]["actor"], "reviewer-7", "{origin}");

    let pending = told.pending().await;
    let of = |label: &str| pending.iter().find(|waiting| waiting["speaker_id"] == first[label]).unwrap();
    assert_eq!(pending.len(), 2);
    let (b, c) = (of("b"), of("c"));
    assert_eq!(
        b["candidates"],
        json!([
            {"speaker_id": second["s2"], "cluster_id": "s2", "profile_id": null, "overlap_ms": 15_000},
            {"speaker_id": second["s1"], "cluster_id": "s1", "profile_id": null, "overlap_ms": 14_000},
        ])
    );
    assert_eq!((&b["profile_id"], &b["attempt"], &b["actor"]), (&json!(bo), &json!(1), &json!("reviewer-7")));
    let position = told.read(&format!("/speakers/{}/history", first["b"])).await;
    assert_eq!(b["position"], position["decisions"][0]["position"]);
    assert_eq!(position["decisions"][1]["decision"], "not_carried");
    assert_eq!((&c["profile_id"], &c["candidates"]), (&json!(cy), &json!([])));
    let page = told.read("/pending-corrections?limit=1").await;
    let cursor = page["next_cursor"].as_str().unwrap();
    let rest = told.read(&format!("/pending-corrections?limit=1&cursor={cursor}")).await;
    assert_eq!((&page["items"][0], &rest["items"][0]), (&pending[0], &pending[1]));
    assert_eq!(rest.get("next_cursor"), None);

    // A further attempt leaves no doubt about B; C waits on.
    told.command(PIPELINE, "reprocess", json!({"worker": "w"})).await;
    let third = spoken(&[("x", 0, 40), ("y", 41, 29), ("x", 70, 20)]);
    told.command(PIPELINE, "speakers", third).await;
    assert_eq!(
        told.names().await,
        BTreeMap::from([("x".to_owned(), json!(ada)), ("y".to_owned(), json!(bo))])
    );
    let waiting = told.pending().await;
    assert_eq!(waiting.len(), 1);
    let dismiss = format!("pending-corrections/{}/dismiss", first["c"]);
    let noise = json!({"reason": "that was noise"});
    let (status, refused) = told.ask(PIPELINE, &dismiss, &noise).await;
    assert_eq!((status, &refused["code"]), (403, &json!("person_required")));
    assert_eq!(told.command(REVIEWER, &dismiss, noise.clone()).await, ["CorrectionDismissed"]);
    let (status, refused) = told.ask(REVIEWER, &dismiss, &noise).await;
    assert_eq!((status, &refused["code"]), (404, &json!("correction_not_found")));
    assert_eq!(told.pending().await, Vec::<Value>::new());
    let nobody = format!("/v1/meetings/{}/pending-corrections", Uuid::from_u128(1));
    assert_eq!(server.get(&nobody).await.1["code"], "meeting_not_found");

    caught_up_and_equal(&pool).await;
    assert!(server.stop().await.success());
    verified(&database).await;
}

#[tokio::test]
async fn what_waits_is_settled_by_saying_it_of_a_candidate_and_can_be_undone_to_the_machine_s_word() {
    let database = TestDatabase::create().await;
    let server = Server::start(&database).await;
    let ada = create(&server, "Ada").await;
    let told = completed(&server).await;
    let first = told.speakers().await;
    told.reassign(&first["b"], Some(ada)).await;
    told.command(PIPELINE, "reprocess", json!({"worker": "w"})).await;
    told.command(PIPELINE, "speakers", spoken(&[("s1", 40, 15), ("s2", 55, 15)])).await;
    assert_eq!(told.pending().await.len(), 1);
    let second = told.speakers().await;
    told.reassign(&second["s1"], Some(ada)).await;
    assert_eq!(told.pending().await, Vec::<Value>::new());
    let undo = format!("speakers/{}/undo", second["s1"]);
    told.command(REVIEWER, &undo, json!({"reason": "that was the other one"})).await;
    assert_eq!(told.names().await["s1"], Value::Null);
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn an_artifact_is_stale_from_another_name_until_it_is_stored_again_and_subscribers_are_told() {
    let (database, nats) = tokio::join!(TestDatabase::create(), NatsServer::start());
    let pool = database.pool().await;
    let server = Server::start_with(&database, &["--nats-url", &nats.url()]).await;
    let ada = create(&server, "Ada").await;
    let mut feed = Feed::follow(&server, "type=meeting.artifacts_outdated", None).await;
    let told = completed(&server).await;
    let both = |md: bool, vtt: bool| {
        BTreeMap::from([("transcript.md".to_owned(), md), ("transcript.vtt".to_owned(), vtt)])
    };
    assert_eq!(told.stale("").await, both(false, false));
    let speakers = told.speakers().await;
    assert_eq!(told.reassign(&speakers["a"], Some(ada)).await, ["SpeakerReassigned", "ArtifactsOutdated"]);
    assert_eq!(told.stale("").await, both(true, true));
    let outdated = told.read("").await["position"].as_i64().unwrap();
    assert_eq!(
        told.reassign(&speakers["b"], Some(ada)).await,
        ["SpeakerReassigned"],
        "they are stale already"
    );

    let md = artifact("transcript.md", 1);
    assert_eq!(told.command(PIPELINE, "artifacts", md.clone()).await, ["ArtifactStored"], "the very same");
    assert_eq!(told.command(PIPELINE, "artifacts", md).await, Vec::<String>::new());
    assert_eq!(told.stale("").await, both(false, true));
    assert_eq!(told.stale(&format!("?as_of={outdated}")).await, both(true, true));
    assert_eq!(told.stale(&format!("?as_of={}", outdated - 1)).await, both(false, false));
    let undo = format!("speakers/{}/undo", speakers["a"]);
    let events = told.command(REVIEWER, &undo, json!({"reason": "it was not"})).await;
    assert_eq!(events, ["SpeakerReassigned", "ArtifactsOutdated"]);
    assert_eq!(told.stale("").await, both(true, true));

    // What is carried over outdates as well; the attempt's own artifacts are new.
    told.command(PIPELINE, "artifacts", artifact("transcript.md", 1)).await;
    told.command(PIPELINE, "artifacts", artifact("transcript.vtt", 1)).await;
    told.command(PIPELINE, "reprocess", json!({"worker": "w"})).await;
    let events = told.command(PIPELINE, "speakers", spoken(&[("x", 0, 40), ("y", 40, 30)])).await;
    assert_eq!(events.last().unwrap(), "ArtifactsOutdated", "{events:?}");
    assert_eq!(told.stale("").await, both(true, true));
    told.command(PIPELINE, "artifacts", artifact("transcript.md", 2)).await;
    told.command(PIPELINE, "complete", json!({})).await;
    assert_eq!(told.stale("").await, BTreeMap::from([("transcript.md".to_owned(), false)]));

    // Three times, on the stream as at /v1/changes.
    let first = feed.next().await;
    let (md, vtt) = ("transcript.md", "transcript.vtt");
    let artifacts = first.data["data"]["artifacts"].as_array().unwrap().clone();
    let types = artifacts.iter().map(|artifact| artifact["type"].clone()).collect::<Vec<_>>();
    assert_eq!(types, [md, vtt]);
    assert_eq!(first.data["data"]["speaker_id"], speakers["a"].as_str());
    let second = feed.next().await;
    assert_eq!(second.data["data"]["artifacts"].as_array().unwrap().len(), 1);
    let third = feed.next().await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    let stream = jetstream::new(client).get_stream("MINUTEBOOK").await.unwrap();
    let config = pull::Config {
        filter_subject: "minutebook.meeting.*.artifacts_outdated".to_owned(),
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await.unwrap();
    let published = consumer.stream().messages().await.unwrap().take(3).collect::<Vec<_>>().await;
    for (message, heard) in published.into_iter().zip([first, second, third]) {
        let message = message.unwrap();
        let data = serde_json::from_slice::<Value>(&message.payload).unwrap();
        assert_eq!(data, heard.data["data"]);
    }
    caught_up_and_equal(&pool).await;
    drop(feed);
    assert!(server.stop().await.success());
    verified(&database).await;
}

#[tokio::test]
async fn corrections_of_a_real_meeting_outlive_that_it_is_diarized_once_more() {
    let Some(data) = tests::real_data("corrections_of_a_real_meeting_outlive_that_it_is_diarized_once_more")
    else {
        return;
    };
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let rttm = data.join("ami/rttm/ES2004a.rttm");
    let imported = run_on(&database, &["import", "rttm", rttm.to_str().unwrap()]).await;
    assert_eq!(imported.code, Some(0), "{}", imported.stderr);
    let server = Server::start(&database).await;
    let (ada, bo) = (create(&server, "Ada").await, create(&server, "Bo").await);
    let (_, meetings) = server.get("/v1/meetings").await;
    let path = format!("/v1/meetings/{}", meetings["items"][0]["id"].as_str().unwrap());
    let told = Told { server: &server, path };
    let first = told.speakers().await;
    assert_eq!(first.len(), 4, "{first:?}");
    let labels = first.keys().cloned().collect::<Vec<_>>();
    told.reassign(&first[&labels[0]], Some(ada)).await;
    told.reassign(&first[&labels[2]], Some(bo)).await;
    told.command(PIPELINE, "reprocess", json!({"worker": "w"})).await;
    told.command(PIPELINE, "speakers", diarized_otherwise(&rttm)).await;
    assert_eq!(told.pending().await, Vec::<Value>::new());
    let names = told.names().await;
    let expected = labels.iter().enumerate().map(|(n, label)| {
        let name = [json!(ada), Value::Null, json!(bo), Value::Null][n].clone();
        (otherwise(label), name)
    });
    assert_eq!(names, expected.collect());
    caught_up_and_equal(&pool).await;
    assert!(server.stop().await.success());
}

/// Another name for a label, in another order than the labels have.
fn otherwise(label: &str) -> String {
    label.chars().rev().collect()
}

/// The diarization of an RTTM file as another program would see it: other labels, every boundary up to 300 ms
/// elsewhere, and every fortieth stretch overheard.
fn diarized_otherwise(rttm: &Path) -> Value {
    let mut random = fastrand::Rng::with_seed(2004);
    let mut clusters = BTreeMap::<String, Vec<Value>>::new();
    for (n, line) in std::fs::read_to_string(rttm).unwrap().lines().enumerate() {
        let field = |n: usize| line.split(' ').nth(n).unwrap();
        let ms = |n: usize| (field(n).parse::<f64>().unwrap() * 1000.0).round() as i64;
        let start = (ms(3) + random.i64(-300..300)).max(0);
        let end = (ms(3) + ms(4) + random.i64(-300..300)).max(start + 10);
        if n % 40 != 39 {
            let segment = json!({"start_ms": start, "duration_ms": end - start});
            clusters.entry(otherwise(field(7))).or_default().push(segment);
        }
    }
    let cluster = |(label, segments)| json!({"cluster_id": label, "segments": segments});
    json!({"clusters": clusters.into_iter().map(cluster).collect::<Vec<_>>()})
}
