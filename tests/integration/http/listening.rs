//! Where `serve` listens.

use std::net::TcpListener;
use std::process::{Output, Stdio};

use tests::TestDatabase;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use super::PATIENCE;

#[tokio::test]
async fn serve_warns_where_others_can_reach_it_without_tls_and_where_files_have_no_rule() {
    for (arguments, warned, any_key) in [
        (&["--listen", "0.0.0.0:0"][..], true, true),
        (&["--listen", "0.0.0.0:0", "--tls-in-front", "--s3-prefix", "meetings/{meeting}/"], false, false),
        (&["--listen", "127.0.0.1:0"], false, false),
    ] {
        let database = TestDatabase::create().await;
        let mut serving = Command::new(tests::minutebook());
        serving
            .arg("serve")
            .args(arguments)
            .env("DATABASE_URL", &database.url)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut serving = serving.spawn().unwrap();
        let mut lines = BufReader::new(serving.stderr.take().unwrap()).lines();
        let mut said = String::new();
        let ready = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                said.push_str(&line);
                if line.contains("is at http://") {
                    return;
                }
            }
            panic!("it ended: {said}");
        };
        timeout(PATIENCE, ready).await.unwrap();
        assert_eq!(said.contains("not encrypted"), warned, "{arguments:?}: {said}");
        assert_eq!(said.contains("--s3-prefix 'meetings/{meeting}/'"), any_key, "{arguments:?}: {said}");
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
