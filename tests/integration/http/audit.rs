//! The audit over HTTP and on the command line: each filter narrows it, pages and CSV say the same, and what is
//! linked is there.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{MIN_POSITION, Scene, send};
use crate::cli::run_on;
use crate::read_models::caught_up_and_equal;
use crate::read_models::history::{
    append, created, diarized, erased, identified, profile_erased, reassigned, registered, speaker, started,
};

const PATH: &str = "/v1/audit/speaker-reassignments";
const M: Uuid = Uuid::from_u128(0xa0);
const N: Uuid = Uuid::from_u128(0xb0);
const ADA: Uuid = Uuid::from_u128(0xada);
const BO: Uuid = Uuid::from_u128(0xb0b);
const CY: Uuid = Uuid::from_u128(0xc1);

impl Scene {
    /// Says as somebody who a speaker is; returns the position.
    async fn say(&self, actor: &str, place: (Uuid, &str), to: Option<Uuid>, reason: &str) -> i64 {
        let (meeting, cluster) = place;
        let path = format!("/v1/meetings/{meeting}/speakers/{}/reassign", speaker(meeting, 1, cluster));
        let body = json!({"profile_id": to, "reason": reason});
        let said = send(self.post(&path, &body).header("authorization", tests::tokens::acting(actor)))
            .await
            .expect(200);
        assert_eq!(said["events"], json!(["SpeakerReassigned"]), "{said}");
        said["position"].as_i64().unwrap()
    }

    async fn undo(&self, actor: &str, (meeting, cluster): (Uuid, &str), reason: &str) -> i64 {
        let path = format!("/v1/meetings/{meeting}/speakers/{}/undo", speaker(meeting, 1, cluster));
        let undone = send(
            self.post(&path, &json!({"reason": reason}))
                .header("authorization", tests::tokens::acting(actor)),
        )
        .await;
        undone.expect(200)["position"].as_i64().unwrap()
    }

    /// Returns all rows, page by page.
    async fn audit(&self, query: &str, limit: usize) -> Vec<Value> {
        let mut rows = vec![];
        let mut cursor = String::new();
        loop {
            let page = self.get(&format!("{PATH}?{query}limit={limit}{cursor}")).await.expect(200);
            let items = page["items"].as_array().unwrap();
            assert!(items.len() <= limit, "{page}");
            rows.extend(items.iter().cloned());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return rows,
            }
        }
    }

    async fn csv(&self, query: &str) -> String {
        let answer =
            send(self.request(&Method::GET, &format!("{PATH}?{query}")).header("accept", "text/csv")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("text/csv; charset=utf-8; header=present"));
        assert_eq!(answer.header("vary"), Some("accept"));
        answer.body
    }
}

/// Two meetings whose speakers a machine has named in part, and people who set it right.
async fn scene() -> (Scene, i64) {
    let scene = Scene::start().await;
    let book = scene.database.open().await;
    for given in [created(ADA, "Ada"), created(BO, "Bo, \"the builder\""), created(CY, "Cy")] {
        append(&book, &given).await;
    }
    for meeting in [M, N] {
        for given in [
            registered(meeting),
            started(meeting, 1),
            diarized(meeting, 1, &["a", "b"]),
            identified(meeting, 1, "a", ADA, 0.875),
        ] {
            append(&book, &given).await;
        }
    }
    book.close().await;
    for (actor, place, to, reason) in [
        ("person:anna", (M, "a"), Some(BO), "I was there"),
        ("person:bert", (M, "b"), Some(CY), "=HYPERLINK(\"http://evil.example\", \"click\")"),
        ("person:anna", (N, "a"), None, "-1 for this, \"surely\" not Ada"),
        ("person:anna", (M, "b"), Some(ADA), "@SUM(A1:A9)\r\nand a second line"),
        ("person:anna.2", (N, "b"), Some(CY), "+49, she said"),
        ("person:bert", (N, "a"), Some(CY), "\tçà et là"),
    ] {
        scene.say(actor, place, to, reason).await;
    }
    let position = scene.undo("person:bert", (M, "a"), "it was Ada all along").await;
    send(scene.request(&Method::GET, PATH).header(MIN_POSITION, position)).await.expect(200);
    (scene, position)
}

#[tokio::test]
async fn the_newest_comes_first_with_who_said_it_why_and_whose_word_it_replaced() {
    let (scene, position) = scene().await;
    let page = scene.get(PATH).await.expect(200);
    assert_eq!(page.get("next_cursor"), None);
    let rows = page["items"].as_array().unwrap();
    let positions = rows.iter().map(|row| row["position"].as_i64().unwrap()).collect::<Vec<_>>();
    assert_eq!(positions, (0..7).map(|n| position - n).collect::<Vec<_>>());
    let said = |row: &Value, fields: &[(&str, Value)]| {
        for (field, expected) in fields {
            assert_eq!(row[field], *expected, "{field} of {row}");
        }
    };
    said(
        &rows[6],
        &[
            ("meeting_id", json!(M)),
            ("sequence", json!(5)),
            ("speaker_id", json!(speaker(M, 1, "a"))),
            ("cluster_id", json!("a")),
            ("from_profile_id", json!(ADA)),
            ("from_name", json!("Ada")),
            ("to_profile_id", json!(BO)),
            ("to_name", json!("Bo, \"the builder\"")),
            ("reason", json!("I was there")),
            ("actor", json!("anna")),
            ("actor_kind", json!("person")),
            ("previous_by", json!("machine")),
            ("previous_confidence", json!(0.875)),
        ],
    );
    said(
        &rows[0],
        &[
            ("from_profile_id", json!(BO)),
            ("to_profile_id", json!(ADA)),
            ("reason", json!("it was Ada all along")),
            ("actor", json!("bert")),
            ("previous_by", json!("person")),
            ("previous_confidence", json!(null)),
        ],
    );
    said(&rows[5], &[("from_profile_id", json!(null)), ("previous_by", json!(null))]);
    said(&rows[4], &[("to_profile_id", json!(null)), ("to_name", json!(null))]);

    // What each row links to is the event, and the meeting as it stood just before.
    for row in rows {
        let events = scene.get(row["event"].as_str().unwrap()).await.expect(200);
        let [event] = events["items"].as_array().unwrap().as_slice() else { panic!("{events}") };
        for field in ["position", "sequence", "recorded_at"] {
            assert_eq!(event[field], row[field], "{event}");
        }
        assert_eq!(event["type"], "SpeakerReassigned");
        assert_eq!(event["metadata"]["correlation_id"], row["correlation_id"]);
        let before = scene.get(row["meeting_before"].as_str().unwrap()).await.expect(200);
        let speakers = before["speakers"].as_array().unwrap();
        let speaker = speakers.iter().find(|speaker| speaker["id"] == row["speaker_id"]).unwrap();
        assert_eq!(speaker["user_profile_id"], row["from_profile_id"], "{before}");
    }
}

#[tokio::test]
async fn each_filter_narrows_it_and_pages_csv_and_command_line_say_the_same() {
    let (scene, _) = scene().await;
    let all = scene.audit("", 500).await;
    let times = all.iter().map(|row| row["recorded_at"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let is = |field: &'static str, value: Value| move |row: &Value| row[field] == value;
    let about = |id: Uuid| {
        move |row: &Value| row["from_profile_id"] == json!(id) || row["to_profile_id"] == json!(id)
    };
    let (second, last) = (times[1].clone(), times[5].clone());
    type Passes = Box<dyn Fn(&Value) -> bool>;
    let filters: Vec<(String, Passes)> = vec![
        (String::new(), Box::new(|_| true)),
        (format!("profile={ADA}"), Box::new(about(ADA))),
        (format!("profile={CY}"), Box::new(about(CY))),
        (format!("profile={}", Uuid::from_u128(1)), Box::new(|_| false)),
        ("actor=anna".to_owned(), Box::new(is("actor", json!("anna")))),
        ("actor=person:bert".to_owned(), Box::new(is("actor", json!("bert")))),
        ("actor=service:bert".to_owned(), Box::new(|_| false)),
        (format!("meeting={N}"), Box::new(is("meeting_id", json!(N)))),
        ("previous_by=machine".to_owned(), Box::new(is("previous_by", json!("machine")))),
        ("previous_by=person".to_owned(), Box::new(is("previous_by", json!("person")))),
        (
            format!("from={second}"),
            Box::new({
                let second = second.clone();
                move |row| row["recorded_at"].as_str().unwrap() >= second.as_str()
            }),
        ),
        (
            format!("to={second}"),
            Box::new({
                let second = second.clone();
                move |row| row["recorded_at"].as_str().unwrap() < second.as_str()
            }),
        ),
        (
            format!("from={last}&to={second}"),
            Box::new(move |row| {
                (last.as_str()..second.as_str()).contains(&row["recorded_at"].as_str().unwrap())
            }),
        ),
        (
            format!("profile={CY}&meeting={N}&actor=bert"),
            Box::new(move |row| about(CY)(row) && row["meeting_id"] == json!(N) && row["actor"] == "bert"),
        ),
        ("from=2000-01-01&to=2000-02-01".to_owned(), Box::new(|_| false)),
        ("from=2000-01-01&to=2999-01-01".to_owned(), Box::new(|_| true)),
    ];
    let mut counts = vec![];
    for (query, passes) in filters {
        let expected = all.iter().filter(|row| passes(row)).cloned().collect::<Vec<_>>();
        let prefix = if query.is_empty() { String::new() } else { format!("{query}&") };
        for limit in [1, 2, 500] {
            assert_eq!(scene.audit(&prefix, limit).await, expected, "{query} by {limit}");
        }
        let csv = scene.csv(&query).await;
        assert_csv_is(&csv, &expected);
        assert_eq!(scene.get(&format!("{PATH}?{prefix}format=csv")).await.body, csv, "{query}");

        let options = query.split('&').filter(|part| !part.is_empty()).flat_map(|part| {
            let (name, value) = part.split_once('=').unwrap();
            [format!("--{}", name.replace('_', "-")), value.to_owned()]
        });
        let options = options.collect::<Vec<_>>();
        let run = async |format: &str| {
            let mut arguments = vec!["audit", "--format", format];
            arguments.extend(options.iter().map(String::as_str));
            let ran = run_on(&scene.database, &arguments).await;
            assert_eq!(ran.code, Some(0), "{}", ran.stderr);
            ran.stdout
        };
        assert_eq!(run("csv").await, csv, "{query}");
        let lines = run("json").await;
        let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        assert_eq!(lines.collect::<Vec<_>>(), expected, "{query}");
        counts.push(expected.len());
    }
    assert_eq!(counts, [7, 4, 4, 0, 3, 3, 0, 3, 2, 3, 2, 5, 4, 1, 0, 7]);
}

/// Checks that a CSV has these rows, and nothing that a spreadsheet would carry out.
fn assert_csv_is(text: &str, rows: &[Value]) {
    assert!(text.starts_with("position,recorded_at,meeting_id,"), "{text}");
    assert!(text.ends_with("\r\n"), "{text}");
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().unwrap().clone();
    let records = reader.records().map(Result::unwrap).collect::<Vec<_>>();
    assert_eq!(records.len(), rows.len(), "{text}");
    for (record, row) in records.iter().zip(rows) {
        let cells = header.iter().zip(record.iter()).collect::<BTreeMap<_, _>>();
        for (name, cell) in &cells {
            assert!(!cell.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']), "{cell:?}");
            let expected = match row[name].as_str() {
                Some(text) => text.to_owned(),
                None if row[name].is_null() => String::new(),
                None => row[name].to_string(),
            };
            assert!(
                *cell == expected || *cell == format!("'{expected}"),
                "{name}: {cell:?}, not {expected:?}"
            );
        }
        // All but the names, which are not for a file that outlives them.
        let missing = row.as_object().unwrap().keys().filter(|name| !cells.contains_key(name.as_str()));
        assert_eq!(missing.collect::<Vec<_>>(), ["from_name", "to_name"]);
    }
}

#[tokio::test]
async fn csv_has_all_rows_however_many_and_an_erased_meeting_has_none() {
    let scene = Scene::start().await;
    let book = scene.database.open().await;
    for given in [created(ADA, "Ada"), registered(M), started(M, 1), diarized(M, 1, &["a"])] {
        append(&book, &given).await;
    }
    let mut position = 0;
    for n in 0..1234 {
        position = append(&book, &reassigned(M, 1, "a", (n % 2 == 0).then_some(ADA))).await;
    }
    let read =
        || scene.request(&Method::GET, PATH).header(MIN_POSITION, position).header("accept", "text/csv");
    let csv = send(read()).await.body;
    let rows = scene.audit("", 500).await;
    assert_eq!(rows.len(), 1234);
    assert_csv_is(&csv, &rows);
    let ran = run_on(&scene.database, &["audit", "--format", "csv"]).await;
    assert_eq!(ran.stdout, csv);
    let newest = run_on(&scene.database, &["audit", "--format", "json", "--limit", "502"]).await.stdout;
    assert_eq!(newest.lines().count(), 502);
    assert_eq!(serde_json::from_str::<Value>(newest.lines().next().unwrap()).unwrap(), rows[0]);

    // The name goes with the person, the trail with the meeting.
    append(&book, &profile_erased(ADA)).await;
    caught_up_and_equal(&scene.pool).await;
    let rows = scene.audit("", 500).await;
    assert!(rows.iter().all(|row| row["to_name"].is_null() && row["from_name"].is_null()));
    assert_eq!(rows[1]["to_profile_id"], json!(ADA));
    append(&book, &erased(M)).await;
    caught_up_and_equal(&scene.pool).await;
    assert_eq!(scene.csv("").await.lines().count(), 1);
    assert_eq!(scene.get(PATH).await.expect(200), json!({"items": []}));
    book.close().await;
}

#[tokio::test]
async fn csv_is_no_page_and_what_is_no_filter_is_refused() {
    let scene = Scene::start().await;
    let refused = async |query: &str| {
        let answer = scene.get(&format!("{PATH}?{query}")).await;
        answer.is_problem(422, "invalid_query");
    };
    for query in [
        "format=csv&limit=10",
        "format=csv&cursor=AQAAAAAAAAAq",
        "format=xml",
        "profile=Ada",
        "actor=ada@example.org",
        "actor=robot:1",
        "meeting=1",
        "from=yesterday",
        "from=2026-11-24T09:00:00",
        "to=2026-02-30",
        "previous_by=nobody",
        "cursor=42",
        "until=2026-11-24",
    ] {
        refused(query).await;
    }
    let answer =
        send(scene.request(&Method::GET, &format!("{PATH}?limit=1")).header("accept", "text/csv")).await;
    answer.is_problem(422, "invalid_query");
    for arguments in [
        &["--profile", "Ada"][..],
        &["--actor", "a@b.org"],
        &["--from", "now"],
        &["--previous-by", "x"],
        &["--limit", "0"],
        &["--format", "xml"],
    ] {
        let ran = run_on(&scene.database, &[&["audit"], arguments].concat()).await;
        assert_eq!(ran.code, Some(2), "{arguments:?}: {}", ran.stderr);
    }
}

#[tokio::test]
async fn the_command_line_brings_the_tables_up_to_date_and_shows_people_a_table() {
    let database = tests::TestDatabase::create().await;
    let book = database.open().await;
    for given in [
        created(ADA, "Ada"),
        registered(M),
        started(M, 1),
        diarized(M, 1, &["a"]),
        reassigned(M, 1, "a", Some(ADA)),
    ] {
        append(&book, &given).await;
    }
    book.close().await;
    // Nobody has projected yet.
    let ran = run_on(&database, &["audit"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let lines = ran.stdout.lines().collect::<Vec<_>>();
    let [header, row] = lines.as_slice() else { panic!("{}", ran.stdout) };
    assert!(header.trim_start().starts_with("position"), "{header}");
    for shown in ["5", "Ada", "nobody", "system:test", "heard it", &M.to_string()] {
        assert!(row.contains(shown), "{shown} is not in {row}");
    }
    assert_eq!(run_on(&database, &["audit", "--profile", &BO.to_string()]).await.stdout, "");
}
