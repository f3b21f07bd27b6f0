//! The built program as a server.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use api::auth::Role;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::{TestDatabase, logs, tokens};

/// How long a server may take to start, and to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running `minutebook serve`, killed when it is dropped.
pub struct Server {
    child: Child,
    /// `http://127.0.0.1:<port>`.
    pub url: String,
    /// A client for it, who may do everything: `system:local`.
    pub client: reqwest::Client,
}

impl Server {
    /// Starts a server on a free port.
    pub async fn start(database: &TestDatabase) -> Self {
        Self::start_with(database, &[]).await
    }

    /// Starts a server with further arguments.
    pub async fn start_with(database: &TestDatabase, arguments: &[&str]) -> Self {
        Self::start_at("127.0.0.1:0", database, arguments).await
    }

    /// Starts a server at an address: where another one was, clients look for it.
    pub async fn start_at(address: &str, database: &TestDatabase, arguments: &[&str]) -> Self {
        let mut child = Command::new(crate::minutebook())
            .args(["serve", "--listen", address])
            .args(arguments)
            .env("DATABASE_URL", &database.url)
            .env(tokens::SIGNING_KEY_FILE, tokens::signing_key_file())
            .env("MINUTEBOOK_LOG", logs::FILTER)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let find_url = async {
            let mut seen = Vec::new();
            while let Some(line) = lines.next_line().await.unwrap() {
                logs::keep(&line);
                if let Some((_, rest)) =
                    line.split_once("is at http://").or(line.split_once("health is at http://"))
                {
                    let address = rest.split('/').next().unwrap();
                    return format!("http://{address}");
                }
                seen.push(line);
            }
            panic!("the server ended before it was ready: {}", seen.join("\n"));
        };
        let url = timeout(PATIENCE, find_url).await.unwrap();
        // A pipe that nobody empties would stop the server when it is full.
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                logs::keep(&line);
            }
        });
        Self { child, url, client: client(&tokens::usual()) }
    }

    /// Returns a client who has this role. A member's meetings are those of `subject`, a UUID.
    pub fn as_(&self, role: Role, subject: &str) -> reqwest::Client {
        client(&format!("Bearer {}", tokens::token(role, subject)))
    }

    /// Returns the server's process id.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Kills the server as `kill -9` does.
    pub async fn kill_9(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Asks the server to stop, and waits until it has.
    pub async fn stop(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().try_into().unwrap()), signal).unwrap();
    }

    /// Returns the address at which it listens.
    pub fn address(&self) -> String {
        self.url.trim_start_matches("http://").to_owned()
    }

    /// Returns the URL of `path`.
    pub fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// Posts JSON; returns the status and the answer.
    pub async fn post(&self, path: &str, body: &serde_json::Value) -> (u16, serde_json::Value) {
        answer(self.client.post(self.at(path)).json(body)).await
    }

    /// Posts JSON as somebody who may do everything, `person:reviewer-7`; returns the status and the answer.
    pub async fn post_as(&self, who: &str, path: &str, body: &serde_json::Value) -> (u16, serde_json::Value) {
        let request = self.client.post(self.at(path)).header(AUTHORIZATION, tokens::acting(who));
        answer(request.json(body)).await
    }

    /// Gets JSON; returns the status and the answer.
    pub async fn get(&self, path: &str) -> (u16, serde_json::Value) {
        answer(self.client.get(self.at(path))).await
    }
}

/// Returns a client that sends this `Authorization` if it is not empty.
pub fn client(authorization: &str) -> reqwest::Client {
    // Built without a default, reqwest takes the process's; another test may have set it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut headers = HeaderMap::new();
    if !authorization.is_empty() {
        headers.insert(AUTHORIZATION, authorization.parse().unwrap());
    }
    reqwest::Client::builder().default_headers(headers).build().unwrap()
}

/// Sends a request; returns the status and the JSON that it answers.
pub async fn answer(request: reqwest::RequestBuilder) -> (u16, serde_json::Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    let json = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text:?}"));
    (status, json)
}
