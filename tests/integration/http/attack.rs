//! What an attacker tries who may send anything: slowly, endlessly, in disguise. Each time the server answers as it
//! does to anybody, tells nothing that it should not, and lives on.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::contract::Document;
use super::{PATIENCE, Scene, connect, read_all, send};

/// What could mean something else to whoever pastes it into a statement, a header, a path, a template or a shell.
const INJECTIONS: [&str; 14] = [
    "' OR '1'='1",
    "'; DROP TABLE log.events; --",
    "1); DELETE FROM log.commands; --",
    "' UNION SELECT secret::text FROM log.identity --",
    "$1",
    "%' ESCAPE '!",
    "\\'; SELECT pg_sleep(30); --",
    "a\r\nSet-Cookie: stolen=1",
    "a\r\n\r\n<script>alert(1)</script>",
    "../../../../etc/passwd",
    "{{7*7}}${7*7}",
    "`id`$(id)|id",
    "<script>alert(1)</script>",
    "\u{202e}\u{200b}\u{feff}",
];

#[tokio::test]
async fn a_head_that_trickles_in_is_cut_off() {
    let scene = Scene::start_with(&["--head-timeout", "1"]).await;
    let started = Instant::now();
    let answer = trickle(&scene, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").await;
    assert_eq!(answer, "", "there was no request to answer");
    assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());
    scene.get("/healthz").await.expect(200);
}

#[tokio::test]
async fn a_connection_on_which_nothing_comes_is_closed_before_and_after_a_request() {
    let scene = Scene::start_with(&["--head-timeout", "1"]).await;
    let mut silent = connect(&scene.server).await;
    assert_eq!(read_all(&mut silent).await, "");
    let mut idle = connect(&scene.server).await;
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let answer = read_all(&mut idle).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_body_that_trickles_in_is_cut_off_and_has_no_effect() {
    let scene = Scene::start_with(&["--request-timeout", "1"]).await;
    let head = format!("{}Content-Length: 1000\r\n\r\n{{", registration(&scene));
    let answer = trickle(&scene, &head).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\"timeout\""), "{answer}");
    let head = format!("{}Transfer-Encoding: chunked\r\n\r\n1\r\n{{\r\n", registration(&scene));
    let answer = trickle_with(&scene, &head, "1\r\n \r\n").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\"timeout\""), "{answer}");
    assert_eq!(scene.log_mark().await, (0, 0));
}

#[tokio::test]
async fn a_body_that_says_itself_that_it_is_too_large_is_refused_before_it_is_sent() {
    let scene = Scene::start_with(&["--request-timeout", "60"]).await;
    let started = Instant::now();
    let answer =
        raw(&scene, format!("{}Content-Length: 4194305\r\n\r\n", registration(&scene)).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("body_too_large"), "{answer}");
    assert!(started.elapsed() < Duration::from_secs(30), "it was not waited for");
}

#[tokio::test]
async fn a_head_of_too_many_bytes_or_too_many_headers_is_not_read_to_its_end() {
    let scene = Scene::start().await;
    let get = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
    let large = |bytes: usize| format!("{get}X-Large: {}\r\n\r\n", "x".repeat(bytes));
    let many = |n: usize| format!("{get}{}\r\n", "x: y\r\n".repeat(n));
    let long = |bytes: usize| format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(bytes));
    for (request, statuses) in [
        (large(30_000), &["200"][..]),
        (large(40_000), &["431"]),
        (many(90), &["200"]),
        (many(110), &["431"]),
        (long(40_000), &["414", "431"]),
    ] {
        let answer = raw(&scene, request.as_bytes()).await;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(statuses.contains(&status), "{} bytes: {answer}", request.len());
    }
    // Without an end, and without a length.
    let mut stream = connect(&scene.server).await;
    stream.write_all(get.as_bytes()).await.unwrap();
    let endless = async {
        let mut sent = 0_usize;
        while stream.write_all(&[b'x'; 1024]).await.is_ok() {
            sent += 1024;
        }
        sent
    };
    let sent = timeout(PATIENCE, endless).await.unwrap();
    assert!(sent < 64 * 1024 * 1024, "it took {sent} bytes");
    scene.get("/healthz").await.expect(200);
}

#[tokio::test]
async fn of_more_clients_than_allowed_the_last_wait_and_are_served_when_others_are_gone() {
    // One is for the harness itself.
    let scene = Scene::start_with(&["--max-clients", "2", "--head-timeout", "60"]).await;
    let ask = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut held = vec![];
    for _ in 0..2 {
        let mut stream = connect(&scene.server).await;
        stream.write_all(ask).await.unwrap();
        let read = timeout(PATIENCE, stream.read(&mut [0; 1024])).await.unwrap().unwrap();
        assert!(read > 0);
        held.push(stream);
    }
    let mut third = connect(&scene.server).await;
    third.write_all(ask).await.unwrap();
    let early = timeout(Duration::from_millis(300), third.read(&mut [0; 1024])).await;
    assert!(early.is_err(), "a third client was served: {early:?}");
    held.pop();
    let read = timeout(PATIENCE, third.read(&mut [0; 1024])).await.unwrap().unwrap();
    assert!(read > 0);
}

#[tokio::test]
async fn lengths_that_contradict_each_other_are_refused_or_end_the_connection() {
    let scene = Scene::start_with(&["--head-timeout", "1"]).await;
    let post = registration(&scene);
    let inner = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for lengths in [
        "Content-Length: 2\r\nContent-Length: 3\r\n",
        "Content-Length: 2, 3\r\n",
        "Content-Length: +2\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 99999999999999999999999\r\n",
        "Transfer-Encoding: gzip, chunked, identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Content-Length : 2\r\n",
        " Content-Length: 2\r\n",
        "Content-Length: 2\nTransfer-Encoding\n: chunked\r\n",
    ] {
        let answer = raw(&scene, format!("{post}{lengths}\r\n{{}}{inner}").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") || answer.is_empty(), "{lengths:?}: {answer}");
        assert_eq!(
            answer.matches("HTTP/1.1 ").count(),
            usize::from(!answer.is_empty()),
            "{lengths:?}: {answer}"
        );
    }
    // With both, the encoding counts, as RFC 9112 says, and what follows is never taken for a request.
    let both = format!("{post}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}");
    let answer = raw(&scene, both.as_bytes()).await;
    assert!(!answer.contains("route_not_found"), "{answer}");
    assert_eq!(scene.log_mark().await, (0, 0));
}

#[tokio::test]
async fn what_could_be_a_statement_is_a_value_wherever_it_stands() {
    let scene = Scene::start_with(&["--position-timeout", "0.2"]).await;
    let registered = scene.register(1).await;
    let document = Document::of(&scene).await;
    let mark = scene.log_mark().await;
    let started = Instant::now();
    for operation in document.operations().iter().filter(|operation| operation.is_v1()) {
        let path = operation.path.replace("{id}", &registered.id);
        for injection in INJECTIONS {
            let encoded = encode(injection);
            let mut tried = vec![];
            for parameter in operation.parameters("path") {
                let place = format!("{{{}}}", parameter["name"].as_str().unwrap());
                tried.push(operation.path.replace(&place, &encoded));
            }
            for parameter in operation.parameters("query") {
                tried.push(format!("{path}?{}={encoded}", parameter["name"].as_str().unwrap()));
            }
            for path in tried {
                let path = path.replace(['{', '}'], "");
                let mut request = scene.request(&operation.method, &path);
                if operation.is_command() {
                    request = request.json(&document.sample_body(operation));
                }
                // An open feed has no end.
                if operation.path == "/v1/changes" {
                    request = request.timeout(Duration::from_secs(2));
                }
                let Ok(response) = request.send().await else { continue };
                let status = response.status();
                assert!(status.as_u16() < 500, "{} {path}: {status}", operation.method);
                for name in ["set-cookie", "stolen"] {
                    assert!(!response.headers().contains_key(name), "{path}: {:?}", response.headers());
                }
                // Where a filter takes any word, nothing is called like that.
                if status == 200 && operation.path != "/v1/changes" {
                    let answer = response.text().await.unwrap();
                    assert!(!answer.contains(&registered.id), "{path}: {answer}");
                }
            }
        }
    }
    assert_eq!(scene.log_mark().await, mark, "nothing of it was a command");
    assert!(started.elapsed() < Duration::from_secs(120), "somebody slept: {:?}", started.elapsed());
    let secrets = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM log.identity");
    assert_eq!(secrets.fetch_one(&scene.pool).await.unwrap(), 1);
}

#[tokio::test]
async fn what_is_stored_comes_back_as_it_was_sent() {
    let scene = Scene::start().await;
    for (n, injection) in INJECTIONS.iter().enumerate() {
        let answer = send(scene.post("/v1/profiles", &json!({"display_name": injection}))).await;
        if injection.chars().any(char::is_control) {
            answer.is_problem(422, "invalid_body");
            continue;
        }
        let created = answer.expect(201);
        let path = format!("/v1/profiles/{}", created["id"].as_str().unwrap());
        let shown = scene.read(&path, created["position"].as_i64().unwrap()).await;
        assert_eq!(shown["display_name"], *injection, "{n}");
    }
    let people = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM user_profiles");
    let whole = INJECTIONS.iter().filter(|text| !text.chars().any(char::is_control)).count();
    assert_eq!(people.fetch_one(&scene.pool).await.unwrap(), i64::try_from(whole).unwrap());
}

#[tokio::test]
async fn a_path_leads_out_of_nothing() {
    let scene = Scene::start().await;
    for path in [
        "/assets/../../../../etc/passwd",
        "/assets/..%2f..%2f..%2fetc%2fpasswd",
        "/assets/%2e%2e/%2e%2e/etc/passwd",
        "/docs/../../../../etc/passwd",
        "/docs/..%2f..%2f..%2fetc%2fpasswd",
        "/docs/%2e%2e/Cargo.toml",
        "/docs//etc/passwd",
        "/docs/\\..\\..\\etc\\passwd",
        "/v1/files/..%2f..%2fetc%2fpasswd",
        "/v1/cache/..%2f..%2fetc%2fpasswd",
        "//etc/passwd",
        "/v1/../metrics",
    ] {
        // By hand: a client would tidy the path up first.
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{}\r\n",
            authorization(&scene)
        );
        let answer = raw(&scene, request.as_bytes()).await;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(["400", "401", "404", "422"].contains(&status), "{path}: {answer}");
        assert!(!answer.contains("root:"), "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_cursor_that_was_tampered_with_is_refused_or_shows_what_its_query_shows() {
    let scene = Scene::start().await;
    for n in 0..6 {
        scene.register(n).await;
        scene.command("/v1/profiles", json!({"display_name": format!("Person {n}")})).await;
    }
    let last = scene.command("/v1/profiles", json!({"display_name": "Last"})).await;
    scene.read("/v1/profiles", last.position).await;
    for list in ["/v1/meetings", "/v1/profiles"] {
        let everything = scene.get(list).await.expect(200);
        let everything = everything["items"].as_array().unwrap();
        let page = scene.get(&format!("{list}?limit=2")).await.expect(200);
        let cursor = page["next_cursor"].as_str().unwrap().to_owned();
        let mut tampered = vec![
            cursor.to_uppercase(),
            cursor[1..].to_owned(),
            cursor[..cursor.len() - 1].to_owned(),
            format!("{cursor}A"),
            format!("{cursor}="),
            format!("{cursor}{cursor}"),
            cursor.chars().rev().collect(),
            "x".repeat(10_000),
        ];
        for at in 0..cursor.len() {
            let mut bytes = cursor.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            tampered.push(String::from_utf8(bytes).unwrap());
        }
        let mut taken = 0;
        for cursor in tampered {
            let answer = scene.get(&format!("{list}?cursor={cursor}")).await;
            if answer.status != 200 {
                answer.is_problem(422, "invalid_query");
                continue;
            }
            taken += 1;
            for item in answer.json()["items"].as_array().unwrap() {
                assert!(everything.contains(item), "{list}?cursor={cursor}: {item}");
            }
        }
        assert!(taken > 0, "another row's id is a cursor too");
    }
}

#[tokio::test]
async fn a_body_that_costs_much_to_read_is_answered_at_once() {
    let scene = Scene::start().await;
    let deep = |open: &str, n: usize| open.repeat(n);
    let keys = (0..60_000).map(|n| format!("\"k{n}\":0")).collect::<Vec<_>>().join(",");
    for (what, body) in [
        ("arrays in arrays", deep("[", 1_000_000)),
        ("objects in objects", deep("{\"a\":", 600_000)),
        ("a number without end", format!("{{\"size\": 1{}}}", "0".repeat(3_000_000))),
        ("a fraction without end", format!("{{\"size\": 0.{}}}", "1".repeat(3_000_000))),
        ("many keys", format!("{{{keys}}}")),
        ("a key many times", format!("{{{}\"sha256\":\"\"}}", "\"sha256\":\"\",".repeat(200_000))),
        ("a string without end", format!("{{\"sha256\": \"{}", "x".repeat(3_000_000))),
        ("escapes", format!("{{\"sha256\": \"{}\"}}", "\\u0041".repeat(600_000))),
    ] {
        let started = Instant::now();
        let request = scene.request(&Method::POST, "/v1/meetings").header("content-type", "application/json");
        let answer = send(request.body(body)).await;
        assert!([400, 422].contains(&answer.status), "{what}: {}", answer.status);
        assert!(answer.body.len() < 1000, "{what}: {} bytes come back", answer.body.len());
        assert!(started.elapsed() < Duration::from_secs(10), "{what}: {:?}", started.elapsed());
    }
    assert_eq!(scene.log_mark().await, (0, 0));
}

#[tokio::test]
async fn a_moment_in_the_past_is_one_that_there_was() {
    let scene = Scene::start().await;
    let meeting = scene.register(1).await;
    for as_of in [
        "0",
        "-1",
        "9223372036854775807",
        "9223372036854775808",
        "1e3",
        "0x10",
        "1 ",
        "1;2",
        "NaN",
        "infinity",
        "-infinity",
        "now()",
        "today",
        "+275760-09-13T00:00:00Z",
        "-262143-01-01T00:00:00Z",
        "9999-12-31T23:59:59.999999999Z",
        "0001-01-01T00:00:00Z",
        "2026-11-24T09:00:00+99:99",
        "2026-02-30",
        "1970-01-01T00:00:00Z",
    ] {
        let answer = scene.get(&format!("{}?as_of={}", meeting.meeting(), encode(as_of))).await;
        assert!([404, 422].contains(&answer.status), "{as_of}: {answer:?}");
    }
}

#[tokio::test]
async fn every_answer_tells_browsers_what_they_must_not_do() {
    let scene = Scene::start_with(&["--hsts", "31536000"]).await;
    let meeting = scene.register(1).await;
    scene.read("/v1/meetings", meeting.position).await;
    for (path, accept) in [
        ("/v1/meetings", "*/*"),
        ("/v1/audit/speaker-reassignments", "text/csv"),
        ("/v1/meetings/7", "*/*"),
        ("/v1/nowhere", "*/*"),
        ("/meetings", "text/html"),
        ("/nowhere", "text/html"),
        ("/healthz", "*/*"),
        ("/openapi.json", "*/*"),
        ("/docs/", "text/html"),
        (&meeting.meeting(), "*/*"),
    ] {
        let answer = send(scene.request(&Method::GET, path).header("accept", accept)).await;
        let header = |name: &str| answer.header(name).unwrap_or_else(|| panic!("{path} has no {name}"));
        assert_eq!(header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(header("x-frame-options"), "DENY", "{path}");
        assert_eq!(header("cross-origin-resource-policy"), "same-origin", "{path}");
        assert_eq!(header("cross-origin-opener-policy"), "same-origin", "{path}");
        assert!(["same-origin", "no-referrer"].contains(&header("referrer-policy")), "{path}");
        assert_eq!(header("strict-transport-security"), "max-age=31536000; includeSubDomains", "{path}");
        let policy = header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'"), "{path}: {policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{path}: {policy}");
        assert!(!policy.contains("unsafe-eval") && !policy.contains("*"), "{path}: {policy}");
        if !path.starts_with("/docs") {
            assert!(!policy.contains("unsafe"), "{path}: {policy}");
            assert_eq!(header("cache-control"), "no-store", "{path}");
        }
        assert_eq!(answer.header("server"), None, "{path}");
    }
    let plain = Scene::start().await;
    assert_eq!(plain.get("/v1/meetings").await.header("strict-transport-security"), None);
}

/// Returns the head of a registration, but for what says where its body ends.
fn registration(scene: &Scene) -> String {
    format!(
        "POST /v1/meetings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{}",
        authorization(scene)
    )
}

/// Returns the header that says who asks.
fn authorization(_scene: &Scene) -> String {
    format!("Authorization: {}\r\n", tests::tokens::usual())
}

/// Sends bytes, and then a byte now and then until the server has had enough; returns what it said.
async fn trickle(scene: &Scene, head: &str) -> String {
    trickle_with(scene, head, "x").await
}

async fn trickle_with(scene: &Scene, head: &str, drop: &str) -> String {
    let (mut read, mut write) = connect(&scene.server).await.into_split();
    write.write_all(head.as_bytes()).await.unwrap();
    let dropping = async {
        let mut ticks = interval(Duration::from_millis(50));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // Once the server has closed, it has said all that it will.
            if write.write_all(drop.as_bytes()).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let mut answer = vec![];
    tokio::select! {
        ended = timeout(PATIENCE, read.read_to_end(&mut answer)) => {
            // A reset is as good as an end.
            let _ = ended.expect("the server waits for ever");
        }
        () = dropping => {}
    }
    String::from_utf8(answer).unwrap()
}

/// Sends bytes; returns all that comes back until the server closes the connection.
async fn raw(scene: &Scene, bytes: &[u8]) -> String {
    let mut stream: TcpStream = connect(&scene.server).await;
    // It may have said no before the end.
    let _ = stream.write_all(bytes).await;
    read_all(&mut stream).await
}

/// Returns a text as it may stand in an address.
fn encode(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}
