//! A member sees its own meetings, and of others' not even that they are there.

use std::collections::BTreeSet;

use api::auth::Role;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::changes::Feed;
use crate::http::{Answer, Scene, send};
use crate::read_models::eventually;

/// A server with a meeting of each of two owners, of the same file, and a person in both.
pub(super) struct World {
    pub(super) scene: Scene,
    pub(super) owner: Uuid,
    pub(super) own: Things,
    pub(super) others: Things,
    pub(super) profile: String,
    pub(super) sample: String,
    pub(super) position: i64,
}

/// What belongs to a meeting.
pub(super) struct Things {
    pub(super) meeting: String,
    pub(super) file: String,
    pub(super) speaker: String,
}

impl World {
    pub(super) async fn make() -> Self {
        let scene = Scene::start().await;
        let (owner, other) = (Uuid::from_u128(0xa), Uuid::from_u128(0xb));
        let profile = scene.command("/v1/profiles", json!({"display_name": "Ada"})).await;
        let voices = format!("/v1/profiles/{}/voice", profile.id);
        let mut vector = vec![0.0; 256];
        vector[0] = 1.0;
        let voice = json!({"model": "resemblyzer-0.1.4", "vector": vector});
        scene.command(&voices, voice.clone()).await;
        let mut position = 0;
        let mut things = vec![];
        for owner in [owner, other] {
            let file = json!({"sha256": "a".repeat(64), "owner": owner});
            let meeting = scene.command("/v1/meetings", file).await;
            let path = meeting.meeting();
            scene.command(&format!("{path}/start"), json!({"worker": "w"})).await;
            scene.command(&format!("{path}/fingerprint"), json!({"content_fp": "pcm16k:1"})).await;
            let cluster = json!({"cluster_id": "a", "speech_ms": 60_000, "voice": voice});
            scene.command(&format!("{path}/speakers"), json!({"clusters": [cluster]})).await;
            position = scene.command(&format!("{path}/complete"), json!({})).await.position;
            let read = scene.request(&Method::GET, &path).header("minutebook-min-position", position);
            let shown = send(read).await.expect(200);
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            things.push(Things {
                meeting: meeting.id,
                file: text(&shown["file"]["id"]),
                speaker: text(&shown["speakers"][0]["id"]),
            });
        }
        let sample =
            scene.get(&voices).await.expect(200)["samples"][0]["sample_id"].as_str().unwrap().to_owned();
        let (status, begun) = scene.server.post("/v1/operations/rebuilds", &json!({"kind": "verify"})).await;
        assert_eq!(status, 202, "{begun}");
        let row = format!("/v1/operations/rebuilds/{}", begun["id"]);
        eventually("it is verified", async || {
            (scene.server.get(&row).await.1["running"] == false).then_some(())
        })
        .await;
        let (others, own) = (things.pop().unwrap(), things.pop().unwrap());
        Self { scene, owner, own, others, profile: profile.id, sample, position }
    }

    /// Returns a client with this role; a member has the first owner's meetings.
    pub(super) fn client(&self, role: Role) -> Client {
        let subject = match role {
            Role::Member => self.owner.to_string(),
            Role::Pipeline | Role::Reviewer | Role::Auditor | Role::Admin => format!("{}-1", role.name()),
        };
        self.scene.server.as_(role, &subject)
    }

    /// Fills a route's parameters in.
    pub(super) fn path(&self, path: &str, own: bool) -> String {
        let things = if own { &self.own } else { &self.others };
        let id =
            match path.split('/').find(|part| ["meetings", "files", "profiles", "rebuilds"].contains(part)) {
                Some("meetings") => &things.meeting,
                Some("files") => &things.file,
                Some("rebuilds") => "1",
                _ => &self.profile,
            };
        let path = match path {
            "/v1/files" => "/v1/files?content_fp=pcm16k:1",
            path => path,
        };
        path.replace("{id}", id)
            .replace("{speaker}", &things.speaker)
            .replace("{sample}", &self.sample)
            .replace("{stage}", "asr")
            .replace("{key}", "asr:x")
            .replace("{*rest}", "index.css")
    }
}

async fn get(world: &World, client: &Client, path: &str) -> Answer {
    send(client.get(world.scene.server.at(path)).header("minutebook-min-position", world.position)).await
}

fn ids(list: &Value) -> BTreeSet<String> {
    list["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn lists_have_a_members_own_however_they_are_asked_for() {
    let world = World::make().await;
    let (member, admin) = (world.client(Role::Member), world.client(Role::Admin));
    let other = Uuid::from_u128(0xb);
    for (path, own) in [
        ("/v1/meetings".to_owned(), true),
        ("/v1/meetings?limit=1".to_owned(), true),
        ("/v1/meetings?status=completed".to_owned(), true),
        (format!("/v1/meetings?owner={}", world.owner), true),
        (format!("/v1/meetings?owner={other}"), false),
    ] {
        let list = get(&world, &member, &path).await.expect(200);
        let expected = if own { BTreeSet::from([world.own.meeting.clone()]) } else { BTreeSet::new() };
        assert_eq!(ids(&list), expected, "{path}");
        assert!(list.get("next_cursor").is_none(), "{path}: {list}");
    }
    assert_eq!(ids(&get(&world, &admin, "/v1/meetings").await.expect(200)).len(), 2);
    for query in [format!("sha256={}", "a".repeat(64)), "content_fp=pcm16k:1".to_owned()] {
        let path = format!("/v1/files?{query}");
        let list = get(&world, &member, &path).await.expect(200);
        assert_eq!(ids(&list), BTreeSet::from([world.own.file.clone()]), "{path}");
        assert_eq!(ids(&get(&world, &admin, &path).await.expect(200)).len(), 2);
    }
    let page = get(&world, &member, "/meetings").await;
    assert!(page.body.contains(&world.own.meeting) && !page.body.contains(&world.others.meeting));
}

#[tokio::test]
async fn anothers_meeting_is_answered_as_one_that_there_is_not() {
    let world = World::make().await;
    let member = world.client(Role::Member);
    let nowhere = Uuid::from_u128(0xdead).to_string();
    for template in [
        "/v1/meetings/{id}",
        "/v1/meetings/{id}?as_of=4",
        "/v1/meetings/{id}?as_of=2999-01-01T00:00:00Z",
        "/v1/meetings/{id}/events",
        "/v1/meetings/{id}/events?as_of=4",
        "/v1/meetings/{id}/events?cursor=5",
        "/v1/meetings/{id}/speakers",
        "/v1/meetings/{id}/speakers/{speaker}/history",
        "/v1/meetings/{id}/pending-corrections",
        "/v1/files/{id}",
        "/meetings/{id}",
        "/meetings/{id}?as_of=4",
        "/meetings/{id}/speakers/{speaker}",
    ] {
        let others = world.path(template, false);
        let none = template.replace("{id}", &nowhere).replace("{speaker}", &world.others.speaker);
        let [others, none] = [get(&world, &member, &others).await, get(&world, &member, &none).await];
        assert_eq!((others.status, none.status), (404, 404), "{template}: {others:?} {none:?}");
        assert_eq!(others.body, none.body, "{template}: nothing tells them apart");
        if !template.contains("2999") {
            let own = get(&world, &member, &world.path(template, true)).await;
            assert!(own.status == 200 || own.json()["code"] == "not_yet_recorded", "{template}: {own:?}");
        }
    }
}

#[tokio::test]
async fn what_belongs_to_nobody_is_no_members() {
    let world = World::make().await;
    let nobodys = world.scene.command("/v1/meetings", json!({"sha256": "c".repeat(64)})).await;
    let member = world.client(Role::Member);
    let read = member.get(world.scene.server.at(&nobodys.meeting()));
    send(read.header("minutebook-min-position", nobodys.position)).await.is_problem(404, "meeting_not_found");
    let list = send(member.get(world.scene.server.at("/v1/meetings"))).await.expect(200);
    assert_eq!(ids(&list), BTreeSet::from([world.own.meeting.clone()]));
}

#[tokio::test]
async fn a_member_follows_what_is_about_its_own_meetings() {
    let world = World::make().await;
    let mut feed = Feed::follow_as(&world.client(Role::Member), &world.scene.server, "").await;
    // The last event of all is one of its own: by then all that it gets has come.
    let path = format!("/v1/meetings/{}/reprocess", world.own.meeting);
    let last = world.scene.command(&path, json!({"worker": "w"})).await.position;
    let mut seen = 0;
    loop {
        let change = feed.next().await;
        let data = &change.data;
        assert!(data.to_string().contains(&world.own.meeting), "{data}");
        assert!(!data.to_string().contains(&world.others.meeting), "{data}");
        seen += 1;
        if change.position() == last {
            break;
        }
    }
    assert!(seen > 3, "{seen}");
}

#[tokio::test]
async fn a_member_is_told_nobody_whom_a_voice_merely_resembles() {
    let world = World::make().await;
    let scene = &world.scene;
    let voice = |parts: [f64; 3]| {
        let vector = parts.into_iter().chain([0.0; 253]).collect::<Vec<_>>();
        json!({"model": "resemblyzer-0.1.4", "vector": vector})
    };
    let grace = scene.command("/v1/profiles", json!({"display_name": "Grace Hopper"})).await;
    scene.command(&format!("/v1/profiles/{}/voice", grace.id), voice([0.75, 0.66, 0.0])).await;
    let file = json!({"sha256": "d".repeat(64), "owner": world.owner});
    let path = scene.command("/v1/meetings", file).await.meeting();
    scene.command(&format!("{path}/start"), json!({"worker": "w"})).await;
    // Ada, whom Grace resembles, and nobody known, whom both resemble.
    let clusters = [("a", [1.0, 0.0, 0.0]), ("b", [0.6, 0.5, 0.62])]
        .map(|(label, parts)| json!({"cluster_id": label, "speech_ms": 60_000, "voice": voice(parts)}));
    let position = scene.command(&format!("{path}/speakers"), json!({"clusters": clusters})).await.position;
    let asked = async |role: Role, path: &str| {
        let request = world.client(role).get(scene.server.at(path));
        let answer = send(request.header("minutebook-min-position", position)).await;
        assert_eq!(answer.status, 200, "{role:?} {path}: {answer:?}");
        answer.body
    };
    let speakers = serde_json::from_str::<Value>(&asked(Role::Admin, &format!("{path}/speakers")).await);
    let speakers = speakers.unwrap()["speakers"].as_array().unwrap().clone();
    assert_eq!(speakers.len(), 2);
    let mut paths = vec![
        format!("{path}/speakers?segments=true"),
        format!("{path}/events?limit=500"),
        path.replace("/v1", ""),
        format!("{}?as_of={position}", path.replace("/v1", "")),
    ];
    for speaker in &speakers {
        let id = speaker["id"].as_str().unwrap();
        assert!(speaker["evidence"]["candidates"].to_string().contains(&grace.id), "{speaker}");
        paths.extend(["", "/v1"].map(|api| {
            let end = if api.is_empty() { "" } else { "/history" };
            format!("{api}{}/speakers/{id}{end}", path.replace("/v1", ""))
        }));
    }
    for path in &paths {
        for role in [Role::Auditor, Role::Member] {
            let body = asked(role, path).await;
            let told = body.contains(&grace.id) || body.contains("Grace");
            assert_eq!(told, role == Role::Auditor, "{role:?} {path}: {body}");
        }
        let body = asked(Role::Member, path).await;
        assert!(!body.contains("\"score\"") && !body.contains("alike"), "{path}: {body}");
    }
    // Who is in the meeting is no secret to whom the meeting belongs.
    assert!(asked(Role::Member, &paths[0]).await.contains("Ada"));
}
