//! `as_of`: how it stood then is what a read answered then.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use domain::ids::{MeetingId, ProfileId};
use event_store::command_bus::Context;
use event_store::log;
use reqwest::Method;
use serde_json::{Value, json};
use tests::server::Server;
use uuid::Uuid;

use super::{Answer, MIN_POSITION, Scene, send, sha256};
use crate::read_models::erasures_are_complete;
use crate::read_models::history::{self, append, file_id};
use crate::read_models::random::{meeting_command, profile_command};

/// What the paths answered while it happened, by position.
#[derive(Default, Clone)]
struct Diary(BTreeMap<i64, BTreeMap<String, Answer>>);

impl Diary {
    /// Writes down what each path answers at the log's head. An erasure moves it by itself for a moment.
    async fn note(&mut self, scene: &Scene, paths: &[String]) -> i64 {
        loop {
            let head = scene.log_mark().await.0;
            let mut answers = BTreeMap::new();
            for path in paths {
                let read = scene.request(&Method::GET, path).header(MIN_POSITION, head);
                answers.insert(path.clone(), send(read).await);
            }
            // What an erasure has to tell is appended by itself.
            if scene.log_mark().await.0 == head {
                self.0.insert(head, answers);
                return head;
            }
        }
    }

    /// Checks that `as_of` is answered as each path was at `position`.
    async fn check(&self, scene: &Scene, as_of: &str, position: i64) {
        for (path, then) in &self.0[&position] {
            let now = scene.get(&format!("{path}?as_of={as_of}")).await;
            if then.status == 200 {
                assert_eq!(now.expect(200), then.json(), "{path} as of {as_of}");
                assert_eq!(now.header("minutebook-position"), Some(position.to_string().as_str()), "{now:?}");
                assert_eq!(now.header("etag"), None, "{now:?}");
            } else {
                assert_eq!(now.status, then.status, "{path} as of {as_of}: {now:?}");
                now.problem();
            }
        }
    }
}

#[tokio::test]
async fn a_whole_life_is_shown_at_every_position_and_every_time_as_it_was_shown_then() {
    let scene = Scene::start().await;
    let owner = "018f0000-0000-7000-8000-000000000001";
    let file =
        json!({"sha256": sha256(1), "mime": "audio/flac", "size": 22, "duration": 1800, "owner": owner});
    let meta = json!({"a": 1e16, "b": 1e300, "c": -0.0, "text": "ü"});
    let diarized = |clusters: &[&str]| {
        let clusters = clusters.iter().map(|label| json!({"cluster_id": label})).collect::<Vec<_>>();
        json!({"clusters": clusters})
    };
    let artifact = |s3_key: &str| json!({"type": "summary.json", "s3_key": s3_key, "meta": meta.clone()});
    let mut diary = Diary::default();
    let other = scene.register(2).await;
    let meeting = scene.command("/v1/meetings", file).await;
    let person = scene.command("/v1/profiles", json!({"display_name": "Ada Lovelace"})).await;
    let file = scene.read(&meeting.meeting(), person.position).await["file"]["id"].clone();
    let paths = [
        meeting.meeting(),
        format!("{}/events", meeting.meeting()),
        format!("{}/speakers", meeting.meeting()),
        format!("/v1/files/{}", file.as_str().unwrap()),
        other.meeting(),
        person.profile(),
    ];
    diary.note(&scene, &paths).await;
    let worker = json!({"worker": "gpu-7"});
    let life = [
        ("start", worker.clone()),
        ("fingerprint", json!({"content_fp": "pcm16k:1"})),
        ("language", json!({"language": "en-GB"})),
        ("speakers", diarized(&["b", "a"])),
        ("artifacts", artifact("m/1/summary.json")),
        ("complete", json!({})),
        ("reprocess", worker.clone()),
        ("speakers", diarized(&["c"])),
        ("fail", json!({"stage": "summarize", "reason": "out of memory"})),
        ("retry", worker),
        ("speakers", diarized(&["a", "d"])),
        ("artifacts", artifact("m/3/summary.json")),
        ("complete", json!({})),
    ];
    for (n, (route, body)) in life.into_iter().enumerate() {
        scene.command(&format!("{}/{route}", meeting.meeting()), body).await;
        diary.note(&scene, &paths).await;
        if n % 3 == 0 {
            scene
                .command(&format!("{}/rename", person.profile()), json!({"display_name": format!("Ada {n}")}))
                .await;
            diary.note(&scene, &paths).await;
        }
    }
    let head = diary.note(&scene, &paths).await;
    let speakers = |position: i64| diary.0[&position][&paths[0]].json()["speakers"].as_array().unwrap().len();
    assert_eq!((speakers(head - 8), speakers(head - 6), speakers(head)), (2, 1, 2), "the attempts differ");

    for position in 3..=head {
        diary.check(&scene, &position.to_string(), position).await;
    }
    let recorded = recorded(&scene).await;
    for (position, at) in &recorded {
        if *position > 3 {
            let until =
                |time: DateTime<Utc>| recorded.iter().filter(|(_, at)| *at <= time).map(|(n, _)| *n).max();
            diary.check(&scene, &rfc_3339(*at), until(*at).unwrap()).await;
            let before = *at - TimeDelta::microseconds(1);
            diary.check(&scene, &rfc_3339(before), until(before).unwrap()).await;
            let offset = at.with_timezone(&chrono::FixedOffset::east_opt(5400).unwrap());
            let offset = (offset + TimeDelta::nanoseconds(1)).to_rfc3339().replace('+', "%2B");
            diary.check(&scene, &offset, until(*at).unwrap()).await;
        }
    }
    diary.check(&scene, &rfc_3339(recorded.last().unwrap().1 + TimeDelta::microseconds(1)), head).await;
}

/// Returns each position and when it was recorded.
async fn recorded(scene: &Scene) -> Vec<(i64, DateTime<Utc>)> {
    sqlx::query_as("SELECT position, recorded_at FROM log.events ORDER BY position")
        .fetch_all(&scene.pool)
        .await
        .unwrap()
}

fn rfc_3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

#[tokio::test]
async fn before_it_was_recorded_the_answer_says_where_it_begins() {
    let scene = Scene::start().await;
    let other = scene.register(1).await;
    let registered = scene.register(2).await;
    let person = scene.command("/v1/profiles", json!({"display_name": "Ada"})).await;
    let shown = scene.read(&registered.meeting(), person.position).await;
    let file = format!("/v1/files/{}", shown["file"]["id"].as_str().unwrap());
    let recorded = recorded(&scene).await;
    let long_ago = ["0000-01-01T00:00:00Z", "1883-05-01T00:00:00Z", "2000-01-01T00:00:00-23:59"];
    for (path, begins) in [
        (registered.meeting(), registered.position),
        (format!("{}/events", registered.meeting()), registered.position),
        (file, registered.position),
        (person.profile(), person.position),
    ] {
        let begun = rfc_3339(recorded[usize::try_from(begins - 1).unwrap()].1);
        let just_before = rfc_3339(recorded[usize::try_from(begins - 2).unwrap()].1);
        for as_of in [long_ago[0], long_ago[1], long_ago[2], "0", "1", &just_before] {
            let answer = scene.get(&format!("{path}?as_of={as_of}")).await;
            answer.is_problem(404, "not_yet_recorded");
            let detail = answer.json()["detail"].as_str().unwrap().to_owned();
            assert!(detail.contains(&format!("position {begins}, recorded {begun}")), "{detail}");
        }
        scene.get(&format!("{path}?as_of={begun}")).await.expect(200);
    }
    let answer = scene.get(&format!("{}?as_of=0", other.meeting())).await;
    answer.is_problem(404, "not_yet_recorded");
}

#[tokio::test]
async fn what_is_still_to_come_is_refused_and_the_end_of_the_log_is_named() {
    let scene = Scene::start().await;
    for as_of in ["0", "2020-01-01T00:00:00Z"] {
        let answer = scene.get(&format!("/v1/meetings/{}?as_of={as_of}", Uuid::nil())).await;
        answer.is_problem(404, "meeting_not_found");
    }
    let path = scene.register(1).await.meeting();
    let head = scene.register(2).await.position;
    scene.read(&path, head).await;
    let soon = rfc_3339(Utc::now() + TimeDelta::minutes(1));
    for as_of in [&(head + 1).to_string(), &i64::MAX.to_string(), &soon, "9999-12-31T23:59:59Z"] {
        for path in [path.clone(), format!("{path}/events"), format!("/v1/meetings/{}", Uuid::nil())] {
            let answer = scene.get(&format!("{path}?as_of={as_of}")).await;
            answer.is_problem(422, "as_of_in_the_future");
            let detail = answer.json()["detail"].as_str().unwrap().to_owned();
            assert!(detail.contains(&format!("ends at position {head}")), "{detail}");
        }
    }
    let now = rfc_3339(Utc::now() - TimeDelta::microseconds(1));
    scene.get(&format!("{path}?as_of={now}")).await.expect(200);
}

#[tokio::test]
async fn what_is_neither_a_position_nor_a_time_is_refused() {
    let scene = Scene::start().await;
    let meeting = scene.register(1).await;
    let person = scene.command("/v1/profiles", json!({"display_name": "Ada"})).await;
    let shown = scene.read(&meeting.meeting(), person.position).await;
    let file = format!("/v1/files/{}", shown["file"]["id"].as_str().unwrap());
    let long = "9".repeat(10_000);
    for path in [meeting.meeting(), format!("{}/events", meeting.meeting()), file, person.profile()] {
        for as_of in [
            "",
            "-1",
            "%2B1",
            "1.5",
            "1e3",
            "0x1",
            "NaN",
            "now",
            "9223372036854775808",
            &long,
            "%D9%A1",
            "2026-11-24",
            "2026-11-24T09:00:00",
            "2026-11-24T09:00:00+01:00",
            "2026-13-01T00:00:00Z",
            "300000-01-01T00:00:00Z",
            "%2B300000-01-01T00:00:00Z",
            "-2026-01-01T00:00:00Z",
            "1&as_of=1",
            "1&surprise=1",
        ] {
            let answer = scene.get(&format!("{path}?as_of={as_of}")).await;
            answer.is_problem(422, "invalid_query");
        }
        let answer = scene.get(&format!("{path}?as_of=yesterday")).await;
        assert!(answer.body.contains("2026-11-24T09:00:00Z"), "it says how to write it: {answer:?}");
    }
    for (collection, code) in
        [("meetings", "meeting_not_found"), ("files", "file_not_found"), ("profiles", "profile_not_found")]
    {
        let unknown = format!("/v1/{collection}/{}?as_of=1", Uuid::from_u128(7));
        scene.get(&unknown).await.is_problem(404, code);
    }
    let unknown = format!("/v1/meetings/{}/events?as_of=1", Uuid::from_u128(7));
    scene.get(&unknown).await.is_problem(404, "meeting_not_found");
}

#[tokio::test]
async fn the_least_position_is_waited_for_before_as_of_is_looked_at() {
    let scene = Scene::start_with(&["--only", "api", "--position-timeout", "30"]).await;
    let registered = scene.register(1).await;
    let next = registered.position + 1;
    let path = format!("{}?as_of={next}", registered.meeting());
    scene.get(&path).await.is_problem(422, "as_of_in_the_future");
    let started = scene.command(&format!("{}/start", registered.meeting()), json!({"worker": "w"})).await;
    assert_eq!(started.position, next);
    let read = send(scene.request(&Method::GET, &path).header(MIN_POSITION, next));
    let project = Server::start_with(&scene.database, &["--only", "projector"]);
    let (read, _projector) = tokio::join!(read, project);
    assert_eq!(read.expect(200)["status"], "processing");
    let before = scene.request(&Method::GET, &format!("{}?as_of=1", registered.meeting()));
    let before = send(before.header(MIN_POSITION, next)).await;
    assert_eq!(
        (before.expect(200)["status"].clone(), before.json()["version"].clone()),
        (json!("pending"), json!(1))
    );
}

#[tokio::test]
async fn a_history_turns_its_pages_up_to_then_and_no_further() {
    let scene = Scene::start().await;
    let registered = scene.register(1).await;
    let path = format!("{}/events", registered.meeting());
    for command in ["start", "complete", "reprocess", "complete", "reprocess"] {
        let body = if command == "complete" { json!({}) } else { json!({"worker": "w"}) };
        scene.command(&format!("{}/{command}", registered.meeting()), body).await;
    }
    for (until, pages) in [(1, vec![1]), (2, vec![2]), (3, vec![2, 1]), (4, vec![2, 2]), (6, vec![2, 2, 2])] {
        let mut page = scene.get(&format!("{path}?as_of={until}&limit=2")).await.expect(200);
        let mut turned = vec![page["items"].as_array().unwrap().len()];
        while let Some(cursor) = page["next_cursor"].as_str() {
            page = scene.get(&format!("{path}?as_of={until}&limit=2&cursor={cursor}")).await.expect(200);
            turned.push(page["items"].as_array().unwrap().len());
        }
        assert_eq!(turned, pages, "as of {until}");
    }
}

#[tokio::test]
async fn an_erased_meeting_its_file_and_a_forgotten_person_are_shown_at_no_moment() {
    let scene = Scene::start().await;
    let book = scene.database.open().await;
    let (meeting, person) = (Uuid::from_u128(0xa0), Uuid::from_u128(0xb0));
    let paths =
        [meeting_path(meeting), format!("/v1/files/{}", file_id(meeting)), format!("/v1/profiles/{person}")];
    append(&book, &history::registered(meeting)).await;
    append(&book, &history::created(person, "Ada Lovelace")).await;
    let mut diary = Diary::default();
    diary.note(&scene, &paths).await;
    diary.check(&scene, "2", 2).await;
    append(&book, &history::erased(meeting)).await;
    let erased = append(&book, &history::profile_erased(person)).await;
    diary.note(&scene, &paths).await;
    diary.check(&scene, "4", 4).await;

    let events = format!("{}/events", paths[0]);
    for path in [&paths[0], &events] {
        scene.get(&format!("{path}?as_of=2")).await.is_problem(404, "meeting_erased");
    }
    for as_of in 0..=erased {
        scene.get(&format!("{}?as_of={as_of}", paths[1])).await.is_problem(404, "file_not_found");
        scene.get(&format!("{}?as_of={as_of}", paths[2])).await.is_problem(404, "profile_not_found");
    }
    scene.get(&format!("{}?as_of=3", paths[0])).await.is_problem(404, "meeting_not_found");

    let told = async || {
        let page = scene.get(&format!("{events}?limit=1")).await.expect(200);
        let next = page["next_cursor"].as_str().map(|cursor| format!("{events}?cursor={cursor}"));
        let page_after = match next {
            Some(next) => scene.get(&next).await.expect(200)["items"].clone(),
            None => json!([]),
        };
        let types = [&page["items"], &page_after].map(|items| items.as_array().unwrap().clone()).concat();
        types.iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(told().await, ["MeetingErased"]);

    // Registered again it goes on in the same stream; what was before stays untold.
    append(&book, &history::registered(meeting)).await;
    diary.note(&scene, &paths).await;
    diary.check(&scene, "5", 5).await;
    assert_eq!(told().await, ["MeetingErased", "MeetingRegistered"]);
    scene.get(&format!("{}?as_of=2", paths[0])).await.is_problem(404, "meeting_erased");
    scene.get(&format!("{}?as_of=2", paths[1])).await.is_problem(404, "file_not_found");
    scene.get(&format!("{}?as_of=3", paths[1])).await.is_problem(404, "file_not_found");
    book.close().await;
}

fn meeting_path(meeting: Uuid) -> String {
    format!("/v1/meetings/{meeting}")
}

#[tokio::test]
async fn a_history_is_shown_up_to_an_event_that_cannot_be_read() {
    let scene = Scene::start().await;
    let book = scene.database.open().await;
    let meeting = Uuid::from_u128(0xa0);
    append(&book, &history::registered(meeting)).await;
    append(&book, &history::started(meeting, 1)).await;
    let mut broken = history::language(meeting, 1, "en");
    broken.spoil(json!({"LanguageDetected": {"attempt": "one", "language": "en"}}));
    append(&book, &broken).await;
    append(&book, &history::completed(meeting, 1, &["a"], &[])).await;
    let shown = scene.get(&format!("{}?as_of=4", meeting_path(meeting))).await.expect(200);
    let told = ["status", "language", "version", "position"].map(|field| shown[field].clone());
    assert_eq!(told, [json!("processing"), Value::Null, json!(4), json!(4)]);
    book.close().await;
}

/// Shows each speaker who was linked to somebody forgotten as nobody.
fn unlink(answer: &mut Answer, forgotten: impl Fn(&str) -> bool) {
    let mut shown = answer.json();
    for speaker in shown.get_mut("speakers").and_then(Value::as_array_mut).into_iter().flatten() {
        if speaker["user_profile_id"].as_str().is_some_and(&forgotten) {
            (speaker["user_profile_id"], speaker["confidence"]) = (Value::Null, Value::Null);
        }
    }
    answer.body = shown.to_string();
}

/// Few of each, so that they meet.
const MEETINGS: u128 = 6;
const PROFILES: u128 = 3;

#[tokio::test]
async fn any_history_is_shown_as_of_each_position_as_it_was_shown_then() {
    let scene = Scene::start().await;
    let book = scene.database.open().await;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let meetings = (0..MEETINGS).map(|n| Uuid::from_u128(0xaaaa + n));
    let profiles = (0..PROFILES).map(|n| Uuid::from_u128(0xeeee + n));
    let paths = meetings
        .flat_map(|id| [meeting_path(id), format!("/v1/files/{}", file_id(id))])
        .chain(profiles.map(|id| format!("/v1/profiles/{id}")))
        .collect::<Vec<_>>();
    let mut diary = Diary::default();
    for n in 0..400 {
        let context = Context::system("test");
        // What is refused is as good: nothing happens.
        if random.u8(..5) == 0 {
            let id = ProfileId::from(Uuid::from_u128(0xeeee + random.u128(..PROFILES)));
            let _ = book.bus.profile(id, profile_command(&mut random, id), &context).await;
        } else {
            let id = MeetingId::from(Uuid::from_u128(0xaaaa + random.u128(..MEETINGS)));
            let _ = book.bus.meeting(id, meeting_command(&mut random, id), &context).await;
        }
        if n % 16 == 0 && log::head(book.pool()).await.unwrap() > 0 {
            diary.note(&scene, &paths).await;
        }
    }
    erasures_are_complete(book.pool()).await;
    let head = diary.note(&scene, &paths).await;
    diary.check(&scene, &head.to_string(), head).await;
    diary.check(&scene, &rfc_3339(Utc::now() - TimeDelta::microseconds(1)), head).await;

    // Whoever was forgotten since, and whatever was erased since with its file, are no longer shown.
    let erasures: Vec<(Uuid, i64)> =
        sqlx::query_as("SELECT subject, max(position) FROM keys.erasures GROUP BY subject")
            .fetch_all(book.pool())
            .await
            .unwrap();
    let erased = |path: &str| {
        let about = |id: Uuid| path.ends_with(&id.to_string()) || path.ends_with(&file_id(id).to_string());
        erasures.iter().find(|(id, _)| about(*id)).map(|(_, position)| *position)
    };
    let is_file = |path: &String| path.starts_with("/v1/files") && diary.0[&head][path].status == 404;
    let mut checked = 0;
    let mut remaining = diary.clone();
    for (position, answers) in &mut remaining.0 {
        let gone = |path: &&String| is_file(path) || erased(path).is_some_and(|erased| *position < erased);
        for path in paths.iter().filter(gone) {
            answers.remove(path);
            if path.starts_with("/v1/meetings/") {
                let speakers = scene.get(&format!("{path}/speakers?as_of={position}")).await;
                assert_eq!(speakers.status, 404, "seed {seed}: {path}: {speakers:?}");
            }
            assert_eq!(
                scene.get(&format!("{path}?as_of={position}")).await.status,
                404,
                "seed {seed}: {path}"
            );
        }
        // Links to them end in what is shown of then, too.
        for answer in answers.values_mut().filter(|answer| answer.status == 200) {
            unlink(answer, |profile| erased(profile).is_some());
            checked += 1;
        }
    }
    for position in remaining.0.keys() {
        remaining.check(&scene, &position.to_string(), *position).await;
    }
    assert!(checked > 20, "seed {seed}: hardly anything happened");
    book.close().await;
}
