//! Rebuilds begun over HTTP: what is seen of them while they run, and what they leave to be read.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{Executor, PgPool};
use tests::TestDatabase;
use tests::server::Server;

use super::held::{Hold, is_held};
use super::{OTHER, assert_clean, generation, lines, oid, schemas, small_book};
use crate::cli::run_on;
use crate::read_models::{assert_tables_equal_the_fold, eventually};

pub(super) const REBUILDS: &str = "/v1/operations/rebuilds";

#[tokio::test]
async fn a_rebuild_is_seen_everywhere_while_it_runs_and_a_second_one_is_told_who_runs() {
    let (database, pool) = small_book().await;
    let hold = Hold::prepare(&database).await;
    let server = Server::start(&database).await;
    let (location, begun) = begin(&server, &json!({"kind": "rebuild"})).await;
    assert_eq!((&begun["kind"], &begun["running"]), (&json!("rebuild"), &json!(true)), "{begun}");
    assert_eq!((&begun["outcome"], begun.get("report")), (&Value::Null, None), "{begun}");
    let who = begun["who"].as_str().unwrap().to_owned();
    assert!(who.starts_with(&format!("process {} on ", server.pid())), "{who}");
    assert!(who.ends_with(" for system:local"), "{who}");

    let row = eventually("it is held", async || {
        let (_, row) = server.get(&location).await;
        is_held(&row).then_some(row)
    })
    .await;
    let (done, total) = (row["done"].as_i64().unwrap(), row["total"].as_i64().unwrap());
    assert_eq!(total, event_store::log::head(&pool).await.unwrap());
    let percentage = (1000.0 * done as f64 / total as f64).round() / 10.0;
    assert_eq!((&row["running"], row["percentage"].as_f64()), (&json!(true), Some(percentage)), "{row}");
    assert_eq!(server.get(REBUILDS).await.1["items"], json!([row]));
    let status = run_on(&database, &["status", "--json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&status.stdout).unwrap()["rebuild"], row);
    let status = run_on(&database, &["status"]).await.stdout;
    let progress = format!("folding: {done} of {total} events, {percentage:.1} %");
    assert!(status.contains(&who) && status.contains(&progress), "{status}");
    assert_measured(&server, &[("running", 1), ("events_done", done), ("events_total", total)]).await;

    let (code, problem) = server.post(REBUILDS, &json!({"kind": "verify"})).await;
    assert_eq!((code, &problem["code"]), (409, &json!("rebuild_running")));
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(&who) && detail.contains(&format!("folding {done}/{total}")), "{detail}");
    let refused = run_on(&database, &["verify"]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains(&who), "{}", refused.stderr);

    hold.release().await;
    let ended = ended(&server, &location).await;
    assert_eq!((&ended["outcome"], &ended["phase"]), (&json!("done"), &json!("swapping")), "{ended}");
    let report = &ended["report"];
    assert_eq!(
        (&report["swapped"]["position"], &report["comparison"]["position"]),
        (&json!(total), &json!(total))
    );
    assert!(report["seconds"].as_f64().unwrap() > 0.0, "{report}");
    assert!(generation(&pool).await > 1);
    assert_tables_equal_the_fold(&pool).await;
    let items = server.get(REBUILDS).await.1["items"].clone();
    assert_eq!((items.as_array().unwrap().len(), items[0].get("report")), (1, None), "{items}");
    let status = run_on(&database, &["status", "--json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&status.stdout).unwrap()["rebuild"], Value::Null);
    assert_measured(&server, &[("running", 0), ("events_done", 0), ("events_total", 0)]).await;
    let metrics = metrics(&server).await;
    assert!(metrics.contains("minutebook_rebuild_age_seconds "), "{metrics}");
    assert!(!metrics.contains("minutebook_verification_age_seconds "), "nothing was verified: {metrics}");
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn each_kind_leaves_its_outcome_and_the_report_that_the_command_line_prints() {
    let (database, pool) = small_book().await;
    let server = Server::start(&database).await;
    let verified = carried_out(&server, &json!({"kind": "verify"})).await;
    assert_eq!((&verified["outcome"], &verified["report"]["clean"]), (&json!("done"), &json!(true)));
    assert_eq!(verified["report"]["log"], json!([]));
    let none = carried_out(&server, &json!({"kind": "rollback"})).await;
    assert_eq!(none["outcome"], "failed");
    assert!(none["report"]["error"].as_str().unwrap().contains("no previous generation"), "{none}");

    let damage = format!("UPDATE meetings SET status = 'failed' WHERE id = '{OTHER}'");
    pool.execute(damage.as_str()).await.unwrap();
    let live = oid(&pool, "read.files").await;
    let verified = carried_out(&server, &json!({"kind": "verify"})).await;
    assert_eq!((&verified["outcome"], &verified["report"]["clean"]), (&json!("failed"), &json!(false)));
    let dry = carried_out(&server, &json!({"kind": "dry-run", "full_speed": true})).await;
    assert_eq!(dry["outcome"], "done");
    let refused = carried_out(&server, &json!({"kind": "rebuild"})).await;
    assert_eq!(refused["outcome"], "failed");
    assert!(refused["report"]["error"].as_str().unwrap().contains("rows differ"), "{refused}");
    assert_eq!((oid(&pool, "read.files").await, schemas(&pool).await), (live, vec!["read".to_owned()]));

    let printed = run_on(&database, &["rebuild", "--dry-run", "--json"]).await;
    let printed =
        lines(&printed).into_iter().find_map(|mut line| line.get_mut("comparison").map(Value::take));
    let printed = printed.unwrap();
    assert_eq!(printed["tables"][1]["examples"][0]["key"], OTHER.to_string());
    for ended in [&verified, &dry, &refused] {
        assert_eq!(ended["report"]["comparison"], printed, "{ended}");
    }
    let (_, list) = server.get(&format!("{REBUILDS}?limit=1")).await;
    let (_, of_command_line) = server.get(&format!("{REBUILDS}/{}", list["items"][0]["id"])).await;
    assert_eq!(of_command_line["report"]["comparison"], printed, "the command line leaves it too");

    let accepted =
        carried_out(&server, &json!({"kind": "rebuild", "accept_differences": true, "full_speed": true}))
            .await;
    assert_eq!(accepted["outcome"], "done");
    assert_tables_equal_the_fold(&pool).await;
    let back = carried_out(&server, &json!({"kind": "rollback"})).await;
    assert_eq!((&back["outcome"], oid(&pool, "read.files").await), (&json!("done"), live), "{back}");
    assert!(metrics(&server).await.contains("minutebook_verification_age_seconds "));

    // Page by page: all of them, the newest first.
    let (mut seen, mut path) = (vec![], format!("{REBUILDS}?limit=3"));
    loop {
        let (_, page) = server.get(&path).await;
        seen.extend(page["items"].as_array().unwrap().iter().map(|row| row["id"].as_i64().unwrap()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("{REBUILDS}?limit=3&cursor={cursor}");
    }
    assert_eq!(seen, (1..=8).rev().collect::<Vec<_>>());
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn a_request_with_a_key_begins_one_rebuild_however_often_it_is_sent() {
    let (database, pool) = small_book().await;
    let hold = Hold::prepare(&database).await;
    let server = Server::start(&database).await;
    let send = async |key: &str, body: Value| {
        let request = server.client.request(Method::POST, server.at(REBUILDS)).json(&body);
        let request = request
            .header("idempotency-key", key)
            .header("authorization", tests::tokens::acting("service:ops-1"));
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap())
    };
    let (code, first) = send("a", json!({"kind": "verify"})).await;
    assert_eq!(code, 202, "{first}");
    assert!(first["who"].as_str().unwrap().ends_with(" for service:ops-1"), "{first}");
    let (code, again) = send("a", json!({"kind": "verify"})).await;
    assert_eq!((code, &again["id"]), (202, &first["id"]));
    assert_eq!(send("b", json!({"kind": "verify"})).await.1["code"], "rebuild_running");
    let reused = send("a", json!({"kind": "dry-run"})).await;
    assert_eq!((reused.0, &reused.1["code"]), (422, &json!("idempotency_key_reused")));
    hold.release().await;
    ended(&server, &format!("{REBUILDS}/{}", first["id"])).await;
    let (code, after) = send("a", json!({"kind": "verify"})).await;
    assert_eq!((code, &after["id"], &after["outcome"]), (202, &first["id"], &json!("done")));
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM ops.rebuilds").fetch_one(&pool).await.unwrap();
    assert_eq!(rows, 1);
    assert!(server.stop().await.success());
    assert_clean(&database).await;
}

#[tokio::test]
async fn of_many_at_once_one_runs() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let hold = Hold::prepare(&database).await;
    let (server, other) = (Server::start(&database).await, Server::start(&database).await);
    let body = json!({"kind": "dry-run"});
    let posts = (0..10).map(|n| if n % 2 == 0 { &server } else { &other }.post(REBUILDS, &body));
    let answers = futures::future::join_all(posts).await;
    let accepted = answers.iter().filter(|(code, _)| *code == 202).count();
    let refused =
        answers.iter().filter(|(code, problem)| *code == 409 && problem["code"] == "rebuild_running");
    assert_eq!((accepted, refused.count()), (1, 9), "{answers:?}");
    hold.release().await;
    let ran = ended(&server, &format!("{REBUILDS}/1")).await;
    assert_eq!(ran["outcome"], "done");
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM ops.rebuilds").fetch_one(&pool).await.unwrap();
    assert_eq!(rows, 1);
    for server in [server, other] {
        assert!(server.stop().await.success());
    }
}

/// Begins a rebuild; returns where it is to be seen, and how it was then.
pub(super) async fn begin(server: &Server, body: &Value) -> (String, Value) {
    let response = server.client.post(server.at(REBUILDS)).json(body).send().await.unwrap();
    let location = response.headers().get("location").map(|at| at.to_str().unwrap().to_owned());
    let (status, text) = (response.status(), response.text().await.unwrap());
    assert_eq!(status, StatusCode::ACCEPTED, "{text}");
    let row = serde_json::from_str::<Value>(&text).unwrap();
    assert_eq!(location, Some(format!("{REBUILDS}/{}", row["id"])));
    (location.unwrap(), row)
}

/// Waits until a rebuild has ended.
pub(super) async fn ended(server: &Server, location: &str) -> Value {
    eventually("the rebuild ends", async || {
        let (_, row) = server.get(location).await;
        (row["running"] == false).then_some(row)
    })
    .await
}

/// Begins a rebuild, and waits for its end.
pub(super) async fn carried_out(server: &Server, body: &Value) -> Value {
    let (location, _) = begin(server, body).await;
    ended(server, &location).await
}

async fn metrics(server: &Server) -> String {
    server.client.get(server.at("/metrics")).send().await.unwrap().text().await.unwrap()
}

async fn assert_measured(server: &Server, gauges: &[(&str, i64)]) {
    let metrics = metrics(server).await;
    for (name, value) in gauges {
        let line = format!("minutebook_rebuild_{name} {value}");
        assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
    }
}

/// Returns the outcomes of all rebuilds, as their rows have them.
pub(super) async fn outcomes(pool: &PgPool) -> Vec<Option<String>> {
    sqlx::query_scalar("SELECT outcome FROM ops.rebuilds ORDER BY id").fetch_all(pool).await.unwrap()
}
