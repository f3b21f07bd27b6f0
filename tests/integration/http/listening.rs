//! Where `serve` listens.

use std::net::TcpListener;
use std::process::{Output, Stdio};

use tests::TestDatabase;
use tokio::process::Command;
use tokio::time::timeout;

use super::PATIENCE;

#[tokio::test]
async fn serve_refuses_an_address_that_others_can_reach() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:8642", "[::ffff:127.0.0.1]:0"] {
        let output = serve(address).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.contains("error: ") && message.contains("is not a loopback address"), "{message}");
    }
}

#[tokio::test]
async fn serve_says_that_a_port_is_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = serve(&address).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.contains(&format!("cannot listen on {address}; --listen names another address")),
        "{message}"
    );
    assert!(message.to_lowercase().contains("in use"), "{message}");
}

#[tokio::test]
async fn serve_refuses_what_is_no_address() {
    assert_eq!(serve("nowhere").await.status.code(), Some(2));
}

/// Runs `serve` until it ends by itself.
async fn serve(address: &str) -> Output {
    let database = TestDatabase::create().await;
    let serve = Command::new(tests::minutebook())
        .args(["serve", "--listen", address])
        .env("DATABASE_URL", &database.url)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    timeout(PATIENCE, serve).await.unwrap().unwrap()
}
