//! SIGTERM: requests under way finish, and what was answered is in the log.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};
use tests::server::Server;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{HeldRequest, MIN_POSITION, PATIENCE, Scene, connect, log_mark, send, sha256};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_registration_that_was_answered_before_or_during_the_stop_is_in_the_log() {
    let scene = Scene::start().await;
    let accepted = AtomicUsize::new(0);
    // Each client goes on until the server is gone; what it was answered is an id or nothing.
    let client = async |n: usize| {
        let mut ids = Vec::new();
        for m in 0.. {
            let register = scene.post("/v1/meetings", &json!({"sha256": sha256(n * 1_000_000 + m)}));
            let Ok(response) = register.send().await else { break };
            let status = response.status();
            // An answer whose head came must come whole.
            let body = response.json::<Value>().await.unwrap();
            assert_eq!(status, 201, "{body}");
            ids.push(body["id"].as_str().unwrap().to_owned());
            accepted.fetch_add(1, Ordering::Relaxed);
        }
        ids
    };
    let stop = async {
        while accepted.load(Ordering::Relaxed) < 300 {
            tokio::task::yield_now().await;
        }
        scene.server.signal(Signal::SIGTERM);
    };
    let (answered, ()) = tokio::join!(futures::future::join_all((0..32).map(client)), stop);
    assert!(scene.server.stop().await.success());

    let answered = answered.concat();
    let logged: i64 = sqlx::query_scalar("SELECT count(*) FROM log.events WHERE aggregate_id = ANY ($1)")
        .bind(&answered)
        .fetch_one(&scene.pool)
        .await
        .unwrap();
    assert_eq!(logged, i64::try_from(answered.len()).unwrap());
}

#[tokio::test]
async fn a_request_under_way_at_the_signal_finishes_and_new_ones_find_nobody() {
    let scene = Scene::start().await;
    let held = HeldRequest::registration(&scene.server, 1).await;
    // An idle connection is no reason to stay.
    scene.get("/healthz").await;
    scene.server.signal(Signal::SIGTERM);
    until_nobody_listens(&scene.server).await;
    let answer = held.finish().await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    assert!(scene.server.stop().await.success());
    assert_eq!(log_mark(&scene.pool).await.0, 1);
}

#[tokio::test]
async fn a_read_that_waits_at_the_signal_sees_what_is_still_to_be_projected() {
    let limits = ["--max-requests", "1", "--position-timeout", "30"];
    let scene = Scene::start_with(&limits).await;
    // The projector waits for its checkpoint.
    let mut holding = scene.pool.begin().await.unwrap();
    let checkpoint = "SELECT FROM read.checkpoint FOR UPDATE";
    sqlx::query(checkpoint).execute(&mut *holding).await.unwrap();
    scene.register(1).await;
    let read = async {
        loop {
            let read = scene.request(&Method::GET, "/v1/meetings").header(MIN_POSITION, 1);
            let answer = send(read).await;
            // A probe below was there first.
            if answer.status != 429 {
                break answer;
            }
        }
    };
    let stop = async {
        // Once nothing more is taken, the read is under way.
        while scene.get("/v1/meetings").await.status != 429 {}
        scene.server.signal(Signal::SIGTERM);
        until_nobody_listens(&scene.server).await;
        holding.rollback().await.unwrap();
    };
    let (read, ()) = tokio::join!(read, stop);
    assert_eq!(read.expect(200)["items"].as_array().unwrap().len(), 1);
    assert!(scene.server.stop().await.success());
}

#[tokio::test]
async fn a_client_that_says_nothing_does_not_hold_up_the_stop() {
    let scene = Scene::start().await;
    let _silent = connect(&scene.server).await;
    let mut kept = connect(&scene.server).await;
    kept.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    // Both connections are accepted by now, in order.
    assert_ne!(kept.read_u8().await.unwrap(), 0);
    let stopped = timeout(Duration::from_secs(10), scene.server.stop()).await;
    assert!(stopped.is_ok_and(|status| status.success()));
}

#[tokio::test]
async fn a_client_that_never_finishes_its_request_is_not_waited_for_for_ever() {
    let scene = Scene::start().await;
    let mut endless = connect(&scene.server).await;
    endless.write_all(b"GET /v1/meetings HTTP/1.1\r\nHost: local").await.unwrap();
    let _held = HeldRequest::registration(&scene.server, 1).await;
    assert!(scene.server.stop().await.success());
    assert_eq!(log_mark(&scene.pool).await, (0, 0));
}

/// Waits until the server no longer takes connections.
async fn until_nobody_listens(server: &Server) {
    let address = server.url.strip_prefix("http://").unwrap();
    let refused = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, refused).await.unwrap();
}
