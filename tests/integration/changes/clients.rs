//! Many clients, silent ones, ones that are gone, and the end of the server.

use std::time::Duration;

use api::auth::Role;
use futures::{StreamExt, stream};
use nix::sys::signal::Signal;
use tests::TestDatabase;
use tests::server::Server;
use tests::workload::Workload;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

use super::{Feed, Frame, PATIENCE, next_frame, refusal, request};
use crate::http::Scene;
use crate::read_models::{caught_up_and_equal, eventually};

#[tokio::test]
async fn a_heartbeat_comes_where_nothing_happens() {
    let scene = Scene::start().await;
    let mut feed = Feed::follow(&scene.server, "", None).await;
    let heartbeat = timeout(Duration::from_secs(20), feed.frame()).await.expect("no heartbeat comes");
    assert_eq!(heartbeat, Some(Frame::Comment("heartbeat".to_owned())));
    scene.register(1).await;
    assert_eq!(feed.next().await.position(), 1);
}

#[tokio::test]
async fn a_follower_too_many_is_told_to_come_back_and_one_that_went_away_frees_its_place() {
    let scene = Scene::start_with(&["--max-followers", "2"]).await;
    let mut stays = Feed::follow(&scene.server, "", None).await;
    let goes = Feed::follow(&scene.server, "", None).await;
    refusal(&scene.server, "", None).await.is_problem(429, "too_many_requests");
    // Who is not let in holds nobody up.
    assert_eq!(scene.get("/v1/meetings").await.status, 200);
    drop(goes);
    let mut comes = eventually("a place is free", async || {
        let response = request(&scene.server, "", None).send().await.unwrap();
        (response.status() == 200).then_some(Feed { response, raw: vec![], read: 0 })
    })
    .await;
    scene.register(1).await;
    assert_eq!((stays.next().await.position(), comes.next().await.position()), (1, 1));
}

#[tokio::test]
async fn one_caller_does_not_take_all_places() {
    let scene = Scene::start_with(&["--max-followers-of-one", "2"]).await;
    let feeds = [Feed::follow(&scene.server, "", None).await, Feed::follow(&scene.server, "", None).await];
    refusal(&scene.server, "", None).await.is_problem(429, "too_many_requests");
    let other = scene.server.as_(Role::Pipeline, "pipeline-7");
    let mut other = Feed::follow_as(&other, &scene.server, "").await;
    scene.register(1).await;
    assert_eq!(other.next().await.position(), 1);
    drop(feeds);
}

#[tokio::test]
async fn followers_do_not_count_as_requests_under_way() {
    let scene = Scene::start_with(&["--max-requests", "1"]).await;
    let mut feeds = Vec::new();
    for _ in 0..5 {
        feeds.push(Feed::follow(&scene.server, "", None).await);
    }
    scene.register(1).await;
    for feed in &mut feeds {
        assert_eq!(feed.next().await.position(), 1);
    }
}

#[tokio::test]
async fn an_open_feed_is_not_cut_off_by_the_time_that_a_request_may_take() {
    let scene = Scene::start_with(&["--request-timeout", "1"]).await;
    let mut feed = Feed::follow(&scene.server, "", None).await;
    let opened = Instant::now();
    for n in 0.. {
        scene.register(n).await;
        assert_eq!(feed.next().await.position(), n as i64 + 1);
        if opened.elapsed() > Duration::from_secs(3) {
            break;
        }
    }
}

#[tokio::test]
async fn the_stop_of_the_server_ends_open_feeds_at_once_and_cleanly() {
    let scene = Scene::start().await;
    let mut feeds = Vec::new();
    for query in ["", "type=meeting.completed", "from=1000"] {
        feeds.push(Feed::follow(&scene.server, query, None).await);
    }
    scene.register(1).await;
    assert_eq!(feeds[0].next().await.position(), 1);
    scene.server.signal(Signal::SIGTERM);
    for feed in &mut feeds {
        // The end of the answer, and no broken connection.
        assert_eq!(timeout(Duration::from_secs(5), feed.frame()).await.expect("it goes on"), None);
    }
    let stopped = timeout(Duration::from_secs(5), scene.server.stop()).await;
    assert!(stopped.expect("the server does not stop").success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_read_nothing_cost_little_are_dropped_and_can_resume() {
    const EVENTS: usize = 20_000;
    const SILENT: usize = 30;
    /// Twice what the server may keep for that many, by half a MiB each; all events would be ten times that.
    const MAY_GROW: usize = 32 << 20;
    let database = TestDatabase::create().await;
    let most = (SILENT + 1).to_string();
    let limits = ["--max-followers", &most, "--max-followers-of-one", &most];
    let server = Server::start_with(&database, &limits).await;
    fill(&database, EVENTS).await;
    caught_up_and_equal(&database.pool().await).await;

    // Once around alone, for what the server needs anyway.
    let mut feed = Feed::follow(&server, "", None).await;
    feed.take(EVENTS).await;
    assert!(feed.raw.len() > EVENTS * 500, "{} bytes", feed.raw.len());
    drop(feed);
    let before = resident(&server);
    let mut silent = Vec::new();
    for _ in 0..SILENT {
        silent.push(ask_and_read_nothing(&server).await);
    }
    // What is read for one that reads takes as long for the others.
    let mut reads = eventually("there is a place", async || {
        let response = request(&server, "", None).send().await.unwrap();
        (response.status() == 200).then_some(Feed { response, raw: vec![], read: 0 })
    })
    .await;
    // All places are taken, until those who do not read are dropped.
    refusal(&server, "", None).await.is_problem(429, "too_many_requests");
    reads.take(EVENTS).await;
    let after = resident(&server);
    assert!(after < before + MAY_GROW, "from {before} to {after} bytes for {SILENT} silent clients");

    let mut others = Vec::new();
    eventually("the silent ones are dropped", async || {
        let response = request(&server, "from=1000000", None).send().await.unwrap();
        if response.status() == 200 {
            others.push(response);
        }
        (others.len() == SILENT).then_some(())
    })
    .await;
    drop(others);

    let mut raw = Vec::new();
    // A reset ends it as well.
    let _ = timeout(PATIENCE, silent.remove(0).read_to_end(&mut raw)).await.expect("it was not dropped");
    let body = unchunked(&raw);
    let (mut read, mut last) = (0, None);
    while let Some(frame) = next_frame(&body, &mut read) {
        if let Frame::Event(change) = frame {
            last = Some(change);
        }
    }
    let last = last.unwrap();
    assert!(last.position() < EVENTS as i64, "the kernel took all of it: there were too few events");
    let mut resumed = Feed::follow(&server, "", Some(&last.id)).await;
    let rest = resumed.take(EVENTS - usize::try_from(last.position()).unwrap()).await;
    assert!(rest.iter().map(super::Change::position).eq(last.position() + 1..=EVENTS as i64));
}

/// Appends so many events.
async fn fill(database: &TestDatabase, events: usize) {
    let book = database.open().await;
    let mut workload = Workload::new(1, 1);
    let appends = (0..events).map(|_| workload.next_registration()).collect::<Vec<_>>();
    let appends = appends.into_iter().map(|append| book.store.appender().append(append));
    let mut appending = stream::iter(appends).buffer_unordered(1000);
    while let Some(outcome) = appending.next().await {
        outcome.unwrap();
    }
    drop(appending);
    book.close().await;
}

/// Opens a feed over a connection that takes as little as the kernel lets it.
async fn ask_and_read_nothing(server: &Server) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(server.address().parse().unwrap()).await.unwrap();
    let authorization = tests::tokens::usual();
    let request =
        format!("GET /v1/changes HTTP/1.1\r\nHost: localhost\r\nAuthorization: {authorization}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    timeout(PATIENCE, stream.read_exact(&mut status)).await.unwrap().unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
    stream
}

/// Returns how much memory of the server is in use, in bytes.
fn resident(server: &Server) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// Returns the body, out of the chunks in which HTTP brings it; the last one may be cut off.
fn unchunked(answer: &[u8]) -> Vec<u8> {
    let mut rest = answer.split_at(answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4).1;
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        let Some(chunk) = rest.get(end + 2..end + 2 + size) else { break };
        body.extend_from_slice(chunk);
        rest = rest.get(end + 4 + size..).unwrap_or_default();
    }
    body
}
