//! A meeting that is erased, on request or by age, leaves its events and nothing that refers to people; the same
//! file registered again begins anew.

use api::retention::{Swept, sweep};
use chrono::TimeDelta;
use serde_json::{Value, json};
use tests::clock::now;
use tests::server::Server;
use uuid::Uuid;

use super::{People, id_of, verified};
use crate::cli::run_on;
use crate::read_models::{caught_up_and_equal, eventually};

#[tokio::test]
async fn an_erased_meeting_is_gone_and_registered_again_it_begins_anew() {
    let people = People::known().await;
    let meeting = people.completed(1).await;
    let other = people.completed(2).await;
    let speaker = people.speaker(&meeting, "a").await;
    let word = json!({"profile_id": people.bo, "reason": "Ottilie was on holiday"});
    people.command(&format!("{meeting}/speakers/{speaker}/reassign"), word).await;
    caught_up_and_equal(&people.pool).await;
    let ran = run_on(&people.database, &["rebuild"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);

    let (status, refused) = people.erase(&meeting, json!({})).await;
    assert_eq!((status, &refused["code"]), (422, &json!("invalid_body")), "a reason is asked for: {refused}");
    let (status, receipt) = people.erase(&meeting, json!({"reason": "uploaded by mistake"})).await;
    assert_eq!((status, &receipt["state"]), (200, &json!("complete")), "{receipt}");
    assert_eq!((&receipt["kind"], &receipt["reason"]), (&json!("meeting"), &json!("uploaded by mistake")));
    assert_eq!((&receipt["speakers"], &receipt["meetings"]), (&json!(2), &json!(1)), "{receipt}");
    assert_eq!(people.erase(&meeting, json!({"reason": "again"})).await, (200, receipt.clone()));

    let (status, refused) = people.server.get(&meeting).await;
    assert_eq!((status, &refused["code"]), (404, &json!("meeting_not_found")));
    assert_eq!(
        (people.cached("asr:fp1").await, people.cached("asr:fp2").await),
        (None, Some("{}".to_owned()))
    );
    assert_eq!(people.cached(&format!("meeting:{}", id_of(&meeting))).await, None);
    for generation in ["read", "read_previous"] {
        let rows = format!(
            "SELECT (SELECT count(*) FROM {generation}.meetings) + (SELECT count(*) FROM {generation}.files)
                  + (SELECT count(*) FROM {generation}.artifacts)
                  + (SELECT count(*) FROM {generation}.speaker_reassignments)"
        );
        let rows: i64 = sqlx::query_scalar(&rows).fetch_one(&people.pool).await.unwrap();
        assert_eq!(rows, 3, "the other meeting's, in {generation}");
    }
    // The past is told without it, to whoever asks and in whatever is laid down from now on.
    let before = receipt["position"].as_i64().unwrap() - 1;
    for path in [format!("{meeting}?as_of={before}"), format!("{meeting}/events?as_of={before}")] {
        let (status, refused) = people.server.get(&path).await;
        assert_eq!((status, &refused["code"]), (404, &json!("meeting_erased")), "{path}: {refused}");
    }
    let (_, told) = people.server.get(&format!("{meeting}/events")).await;
    let told: Vec<_> = told["items"].as_array().unwrap().iter().map(|event| event["type"].clone()).collect();
    assert_eq!(told, [json!("MeetingErased")]);
    let lay_down = ["rebuild", "--until", &before.to_string(), "--schema", "as_it_stood"];
    let ran = run_on(&people.database, &lay_down).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let left: [i64; 4] = sqlx::query_as::<_, (i64, i64, i64, i64)>(
        "SELECT (SELECT count(*) FROM as_it_stood.meetings), (SELECT count(*) FROM as_it_stood.files),
                (SELECT count(*) FROM as_it_stood.speakers), (SELECT count(*) FROM as_it_stood.cache)",
    )
    .fetch_one(&people.pool)
    .await
    .unwrap()
    .into();
    assert_eq!(left, [1, 1, 2, 2], "the other meeting's");
    let elsewhere = format!("/v1/erasures/{}/kept-elsewhere", id_of(&meeting));
    let (_, first) = people.server.get(&format!("{elsewhere}?limit=2")).await;
    let (_, rest) =
        people.server.get(&format!("{elsewhere}?cursor={}", first["next_cursor"].as_str().unwrap())).await;
    let told = [&first, &rest].map(|page| page["items"].as_array().unwrap().clone()).concat();
    let told: Vec<_> = told.iter().map(|kept| (kept["kind"].clone(), kept["key"].clone())).collect();
    let sha256 = format!("{:064x}", 1);
    assert_eq!(
        told,
        [("recording", &*sha256), ("artifact", "m/1.md"), ("cache", "asr:fp1")]
            .map(|(kind, key)| (json!(kind), json!(key)))
    );
    caught_up_and_equal(&people.pool).await;
    verified(&people.database).await;

    // Its second life, in the same stream; and the end of that one.
    let anew = people.completed(1).await;
    assert_eq!(anew, meeting);
    assert_eq!(people.names(&anew).await["a"], json!(people.ottilie));
    assert_ne!(people.speaker(&anew, "a").await, speaker);
    let (_, second) = people.erase(&meeting, json!({"reason": "once more"})).await;
    assert_eq!((&second["speakers"], &second["reason"]), (&json!(4), &json!("once more")), "{second}");
    let (_, all) = people.server.get("/v1/erasures").await;
    assert_eq!(all["items"], json!([second, receipt]));
    let ran = run_on(&people.database, &["rebuild", "--rollback"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    caught_up_and_equal(&people.pool).await;
    assert_eq!(people.server.get(&other).await.0, 200);
}

#[tokio::test]
async fn the_command_line_erases_a_meeting() {
    let people = People::known().await;
    let meeting = people.completed(1).await;
    let id = id_of(&meeting);
    let without = run_on(&people.database, &["meeting", "erase", id]).await;
    assert_eq!(without.code, Some(2), "{}", without.stderr);
    let ran = run_on(&people.database, &["meeting", "erase", id, "--reason", "on request", "--json"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let receipt: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&receipt["state"], &receipt["actor"]), (&json!("complete"), &json!("cli")), "{receipt}");
    assert_eq!(people.server.get(&meeting).await.0, 404);
    caught_up_and_equal(&people.pool).await;
}

#[tokio::test]
async fn meetings_are_erased_by_age_once_nothing_was_heard_of_them_for_so_long() {
    let people = People::known().await;
    people.completed(1).await;
    let under_way = people.meeting(2).await;
    people.command("/v1/meetings", json!({"sha256": "ab".repeat(32)})).await;
    caught_up_and_equal(&people.pool).await;
    let People { database, server, pool, .. } = people;
    assert!(server.stop().await.success());
    let book = database.open().await;
    let at = |days| now() + TimeDelta::days(days);
    let swept = async |days, after| sweep(&book.store, &book.bus, 30, at(days), after).await.unwrap();
    let none = Swept { found: 0, erased: 0, last: None };
    assert_eq!(swept(29, None).await, none);
    // It was taken on long ago, as far as the tables know, and is heard of still.
    let age = "UPDATE meetings SET started_at = started_at - interval '40 days' WHERE id = $1";
    sqlx::query(age).bind(id_of(&under_way).parse::<Uuid>().unwrap()).execute(&pool).await.unwrap();
    assert_eq!(swept(29, None).await, none);

    let all = swept(31, None).await;
    assert_eq!((all.found, all.erased), (3, 3), "whatever its state");
    // The tables do not show it yet: nothing is erased twice, and whoever comes next is not kept waiting.
    let again = swept(31, None).await;
    assert_eq!(again, Swept { found: 3, erased: 0, last: all.last });
    assert_eq!(swept(31, all.last).await, none);
    book.start_projector();
    eventually("the tables show it", async || {
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM meetings").fetch_one(&pool).await.unwrap();
        (left == 0).then_some(())
    })
    .await;
    let reasons: Vec<String> =
        sqlx::query_scalar("SELECT DISTINCT reason FROM keys.erasures").fetch_all(&pool).await.unwrap();
    assert_eq!(reasons, ["older than 30 days"]);
    book.close().await;
}

#[tokio::test]
async fn a_server_that_is_told_so_erases_by_age() {
    let people = People::known().await;
    let done = people.completed(1).await;
    caught_up_and_equal(&people.pool).await;
    // It ended two days ago, as far as the tables know.
    let age = "UPDATE meetings SET finished_at = finished_at - interval '2 days'";
    sqlx::query(age).execute(&people.pool).await.unwrap();
    let server = Server::start_with(&people.database, &["--retention-days", "1"]).await;
    eventually("it is erased", async || (server.get(&done).await.0 == 404).then_some(())).await;
    assert!(server.stop().await.success());
}
