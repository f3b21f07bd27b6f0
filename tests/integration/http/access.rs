//! The audit of access: what is noted, that it stays, that nobody fills the disk by being refused; and how much one
//! caller may ask.

use api::auth::Role;
use api::auth::access::{TABLE, Who};
use reqwest::Method;
use serde_json::{Value, json};
use tests::tokens;

use super::{Scene, form, send};
use crate::cli::run_on;
use crate::read_models::eventually;

const PATH: &str = "/v1/audit/access";

impl Scene {
    /// Sends a request as somebody.
    async fn ask(&self, role: Role, subject: &str, path: &str) -> super::Answer {
        let client = self.server.as_(role, subject);
        send(client.get(self.server.at(path))).await
    }

    async fn noted(&self, query: &str) -> Vec<Value> {
        let page = self.ask(Role::Auditor, "auditor-1", &format!("{PATH}?{query}")).await.expect(200);
        page["items"].as_array().unwrap().clone()
    }
}

#[tokio::test]
async fn an_export_is_noted_before_it_is_given_and_a_refusal_with_who_was_refused_what() {
    let scene = Scene::start().await;
    let csv = "/v1/audit/speaker-reassignments?format=csv&actor=Lovelace";
    assert_eq!(scene.ask(Role::Auditor, "auditor-1", csv).await.status, 200);
    let exports = scene.noted("what=export_audit").await;
    assert_eq!(exports.len(), 1, "{exports:?}");
    let export = &exports[0];
    for (field, value) in [
        ("who", json!("auditor-1")),
        ("kind", json!("person")),
        ("role", json!("auditor")),
        ("outcome", json!("allowed")),
        ("target", Value::Null),
        ("code", Value::Null),
        ("times", json!(1)),
    ] {
        assert_eq!(export[field], value, "{field}");
    }

    scene.ask(Role::Reviewer, "reviewer-7", csv).await.is_problem(403, "forbidden");
    let plain = reqwest::Client::new();
    send(plain.get(scene.server.at("/v1/profiles/018f0000-0000-7000-8000-000000000001")))
        .await
        .is_problem(401, "token_required");
    let refused = eventually("both are noted", async || {
        Some(scene.noted("outcome=refused").await).filter(|rows| rows.len() == 2)
    })
    .await;
    let (nobody, reviewer) = (&refused[0], &refused[1]);
    assert_eq!((&nobody["who"], &nobody["code"]), (&Value::Null, &json!("token_required")));
    // The route and not the path: that may hold anything.
    assert_eq!(nobody["what"], "GET /v1/profiles/{id}");
    assert_eq!((&reviewer["who"], &reviewer["role"]), (&json!("reviewer-7"), &json!("reviewer")));
    assert_eq!(reviewer["what"], "GET /v1/audit/speaker-reassignments");
    for row in refused.iter().chain(&exports) {
        assert!(!row.to_string().contains("Lovelace"), "{row}");
    }

    for role in [Role::Pipeline, Role::Reviewer] {
        scene.ask(role, "x", PATH).await.is_problem(403, "forbidden");
    }
    let page = scene.ask(Role::Admin, "admin-1", &format!("{PATH}?limit=1")).await.expect(200);
    assert!(page["next_cursor"].is_string(), "{page}");
    let ran =
        run_on(&scene.database, &["audit", "access", "--format", "json", "--who", "person:reviewer-7"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("reviewer-7") && !ran.stdout.contains("auditor-1"), "{}", ran.stdout);
}

#[tokio::test]
async fn each_reading_of_a_voice_is_noted_with_whose_it_is() {
    let scene = Scene::start().await;
    let person = scene.command("/v1/profiles", json!({"display_name": "Ada"})).await;
    let sample = json!({"model": "resemblyzer-0.1.4", "vector": vec![0.25; 256]});
    let path = format!("/v1/profiles/{}/voice", person.id);
    let enrolled = send(scene.post(&path, &sample)).await;
    let position = enrolled.expect(201)["position"].as_i64().unwrap();
    let voice = enrolled.header("location").unwrap().to_owned();
    scene.read(&voice, position).await;
    scene.ask(Role::Pipeline, "matcher", &voice).await.expect(200);
    scene.ask(Role::Reviewer, "reviewer-7", &voice).await.is_problem(403, "forbidden");
    let read = scene.noted(&format!("what=read_voices&target={}", person.id)).await;
    let who = read.iter().map(|row| row["who"].as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(who, ["matcher", "local"]);
}

#[tokio::test]
async fn whoever_is_refused_without_end_is_counted_and_fills_nothing() {
    let scene = Scene::start().await;
    let client = reqwest::Client::new();
    for n in 0..300 {
        let path = scene.server.at(&format!("/v1/meetings/{}", uuid::Uuid::from_u128(n)));
        send(client.get(path).header("authorization", "Bearer nonsense"))
            .await
            .is_problem(401, "invalid_token");
    }
    let rows = eventually("one is noted", async || {
        Some(scene.noted("outcome=refused&limit=500").await).filter(|rows| !rows.is_empty())
    })
    .await;
    assert!(rows.len() <= 4, "{} rows", rows.len());
}

#[tokio::test]
async fn strangers_who_are_refused_in_a_hundred_ways_hide_no_refusal_of_somebody_known() {
    let scene = Scene::start().await;
    let client = reqwest::Client::new();
    for n in 0..30 {
        let method = Method::from_bytes(format!("BREW{n}").as_bytes()).unwrap();
        send(client.request(method, scene.server.at("/v1/meetings"))).await.is_problem(401, "token_required");
    }
    // More kinds of them than are told apart.
    let routes = TABLE.iter().filter(|access| !matches!(access.who, Who::Anybody)).collect::<Vec<_>>();
    for (client, code) in [(client, "token_required"), (tests::server::client("Bearer x"), "invalid_token")] {
        for access in &routes {
            let path = access.path.replace("{id}", "018f0000-0000-7000-8000-000000000001");
            let path = path.replace(['{', '}', '*'], "x");
            let request = client.request(access.method.parse().unwrap(), scene.server.at(&path));
            send(request).await.is_problem(401, code);
        }
    }
    assert!(routes.len() > 50);
    scene.ask(Role::Reviewer, "reviewer-7", PATH).await.is_problem(403, "forbidden");
    let refused = eventually("the reviewer is noted", async || {
        Some(scene.noted("who=reviewer-7").await).filter(|rows| !rows.is_empty())
    })
    .await;
    assert_eq!(refused[0]["what"], format!("GET {PATH}"));
    let all = scene.noted("outcome=refused&limit=500").await;
    let brewed = all.iter().filter(|row| row["what"].as_str().unwrap().ends_with(" /v1/meetings"));
    let brewed = brewed.map(|row| row["what"].as_str().unwrap()).collect::<Vec<_>>();
    assert!(brewed.contains(&"any /v1/meetings"), "{brewed:?}");
    assert!(!brewed.iter().any(|what| what.starts_with("BREW")), "{brewed:?}");
    let metrics = scene.get("/metrics").await;
    assert!(!metrics.body.contains("BREW"), "{}", metrics.body);
}

#[tokio::test]
async fn who_logs_in_with_a_token_that_is_none_is_noted() {
    let scene = Scene::start().await;
    let login = reqwest::Client::new().post(scene.server.at("/login"));
    let answer = send(form(login, "token=forged&back=/meetings")).await;
    assert_eq!(answer.status, 401, "{answer:?}");
    let refused = eventually("it is noted", async || {
        Some(scene.noted("outcome=refused").await).filter(|rows| !rows.is_empty())
    })
    .await;
    assert_eq!(refused.len(), 1, "{refused:?}");
    let told = ["who", "what", "code"].map(|field| refused[0][field].clone());
    assert_eq!(told, [Value::Null, json!("POST /login"), json!("invalid_token")]);
}

#[tokio::test]
async fn events_with_what_is_personal_in_them_are_noted_before_they_are_printed() {
    let scene = Scene::start().await;
    scene.command("/v1/profiles", json!({"display_name": "Ada"})).await;
    let plain = run_on(&scene.database, &["events"]).await;
    assert!(plain.code == Some(0) && !plain.stdout.contains("Ada"), "{}", plain.stdout);
    assert_eq!(scene.noted("what=export_events").await, Vec::<Value>::new());
    let ran = run_on(&scene.database, &["events", "--json"]).await;
    assert!(ran.code == Some(0) && ran.stdout.contains("Ada"), "{}", ran.stderr);
    let rows = scene.noted("what=export_events").await;
    assert_eq!((rows.len(), &rows[0]["role"]), (1, &json!("operator")), "{rows:?}");
}

#[tokio::test]
async fn what_was_noted_is_neither_changed_nor_removed_before_its_time() {
    let scene = Scene::start_with(&["--sweep-interval", "0.2", "--access-kept-days", "30"]).await;
    let insert = "INSERT INTO ops.access_log (at, what, outcome) VALUES (now() - $1 * interval '1 day', $2, 'allowed')";
    for (days, what) in [(29.0, "young"), (31.0, "old")] {
        sqlx::query(insert).bind(days).bind(what).execute(&scene.pool).await.unwrap();
    }
    for statement in [
        "UPDATE ops.access_log SET who = 'somebody else'",
        "DELETE FROM ops.access_log WHERE what = 'young'",
        "TRUNCATE ops.access_log",
    ] {
        let error = sqlx::query(statement).execute(&scene.pool).await.unwrap_err();
        assert!(error.to_string().contains("append-only"), "{statement}: {error}");
    }
    let left = eventually("the old one goes", async || {
        let left = sqlx::query_scalar::<_, String>("SELECT what FROM ops.access_log ORDER BY id");
        Some(left.fetch_all(&scene.pool).await.unwrap()).filter(|left| !left.contains(&"old".to_owned()))
    })
    .await;
    assert_eq!(left, ["young"]);
}

#[tokio::test]
async fn one_caller_too_fast_is_told_when_to_come_back_and_keeps_nobody_else_waiting() {
    let scene = Scene::start_with(&["--rate-limit", "5"]).await;
    let hasty = scene.server.as_(Role::Pipeline, "hasty");
    let mut refused = None;
    for _ in 0..200 {
        let answer = send(hasty.get(scene.server.at("/v1/meetings"))).await;
        if answer.status != 200 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("200 requests in a row are more than 5 a second");
    refused.is_problem(429, "rate_limited");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(scene.ask(Role::Pipeline, "patient", "/v1/meetings").await.status, 200);
    // How much one asks comes before what one may: the latter asks the database.
    let mut answers = vec![];
    for _ in 0..20 {
        answers.push(scene.ask(Role::Pipeline, "hasty", PATH).await.status);
    }
    assert!(answers.contains(&429), "{answers:?}");
    scene.get("/healthz").await.expect(200);
    let metrics =
        send(scene.request(&Method::GET, "/metrics").header("authorization", tokens::usual())).await;
    assert!(metrics.body.contains("minutebook_rate_limited_total"), "{}", metrics.body);
}
