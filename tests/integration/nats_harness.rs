//! The harness's NATS server fails and comes back in the ways that the tests of the publisher rely on.

use std::time::Duration;

use tests::nats::NatsServer;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

#[tokio::test]
async fn a_nats_server_keeps_its_port_and_its_streams_until_it_is_wiped() {
    let mut server = NatsServer::start().await;
    let url = server.url();
    ask(&server, "$JS.API.STREAM.CREATE.kept", r#"{"name":"kept","storage":"file"}"#).await;
    assert_eq!(streams(&server).await, 1);
    server.stop().await;
    assert!(connect(&server).await.is_err(), "it is stopped");
    server.restart().await;
    assert_eq!(streams(&server).await, 1);
    server.kill_9().await;
    server.restart().await;
    assert_eq!(streams(&server).await, 1);
    server.stop().await;
    server.wipe();
    server.restart().await;
    assert_eq!(streams(&server).await, 0);
    assert_eq!(server.url(), url);
}

#[tokio::test]
async fn a_paused_nats_server_answers_when_it_is_resumed() {
    let mut server = NatsServer::start().await;
    let mut lines = connect(&server).await.unwrap().lines();
    lines.next_line().await.unwrap(); // The greeting.
    server.pause();
    lines.get_mut().write_all(b"PING\r\n").await.unwrap();
    assert!(timeout(Duration::from_millis(200), lines.next_line()).await.is_err(), "it is paused");
    server.resume();
    let answer = timeout(Duration::from_secs(30), lines.next_line()).await.unwrap().unwrap();
    assert_eq!(answer.as_deref(), Some("PONG"));
}

async fn streams(server: &NatsServer) -> serde_json::Value {
    ask(server, "$JS.API.INFO", "").await["streams"].clone()
}

/// Returns the answer to one request, in NATS's own protocol.
async fn ask(server: &NatsServer, subject: &str, body: &str) -> serde_json::Value {
    let mut lines = connect(server).await.unwrap().lines();
    let request = format!("CONNECT {{}}\r\nSUB here 1\r\nPUB {subject} here {}\r\n{body}\r\n", body.len());
    lines.get_mut().write_all(request.as_bytes()).await.unwrap();
    let answer = async { while !lines.next_line().await.unwrap().unwrap().starts_with("MSG ") {} };
    timeout(Duration::from_secs(30), answer).await.unwrap();
    serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap()
}

async fn connect(server: &NatsServer) -> std::io::Result<BufReader<TcpStream>> {
    TcpStream::connect(server.url().trim_start_matches("nats://")).await.map(BufReader::new)
}
