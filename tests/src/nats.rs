//! A NATS server of its own for each test, with JetStream on disk, that can be made to fail in the ways a
//! broker fails: stopped, killed, hung, come back, and come back empty.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// How long a NATS server may take to start, and to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// A `nats-server`, killed when it is dropped.
pub struct NatsServer {
    /// The process; none while the server is stopped.
    child: Option<Child>,
    /// None until the server has found one. It is kept from then on, because clients reconnect to the address
    /// that they know.
    port: Option<u16>,
    config: &'static str,
    /// The configuration, the log and JetStream's storage.
    directory: TempDir,
}

impl NatsServer {
    /// Starts a server on a free port, with empty storage.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// Starts one with further lines in its configuration.
    pub async fn start_with(config: &'static str) -> Self {
        let directory = tempfile::Builder::new().prefix("minutebook-nats-").tempdir().unwrap();
        let mut server = Self { child: None, port: None, config, directory };
        server.restart().await;
        server
    }

    /// Returns `nats://127.0.0.1:<port>`, the same after each restart.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port.unwrap())
    }

    /// Asks the server to stop, and waits until it has; a paused one would not hear it.
    pub async fn stop(&mut self) {
        self.end_by(Signal::SIGTERM).await;
    }

    /// Kills the server as `kill -9` does.
    pub async fn kill_9(&mut self) {
        self.end_by(Signal::SIGKILL).await;
    }

    /// Starts the stopped or killed server again, on the same port and the same storage.
    pub async fn restart(&mut self) {
        assert!(self.child.is_none(), "it is running: stop or kill it first");
        let mut child = spawn(self.directory.path(), self.port, self.config);
        let pid = child.id().unwrap();
        let ready = async {
            while !self.is_ready(pid).await {
                sleep(Duration::from_millis(2)).await;
            }
        };
        // Another program that has taken the port may accept our connection and never greet.
        tokio::select! {
            ready = timeout(PATIENCE, ready) => assert!(ready.is_ok(), "nats-server is not ready: {}", self.log()),
            status = child.wait() => panic!("nats-server ended, {status:?}: {}", self.log()),
        }
        self.child = Some(child);
    }

    /// Removes the storage of the stopped or killed server, as when its volume is lost.
    pub fn wipe(&mut self) {
        assert!(self.child.is_none(), "it is running: stop or kill it first");
        std::fs::remove_dir_all(storage(self.directory.path())).unwrap();
    }

    /// Makes the server hang: its connections stay open, and nothing is answered.
    pub fn pause(&mut self) {
        kill(self.pid(), Signal::SIGSTOP).unwrap();
        // The signal takes effect a moment after it is sent, and until then the server could still answer. It
        // cannot be ignored, so the wait needs no bound.
        let status = waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert!(matches!(status, WaitStatus::Stopped(..)), "{status:?}: {}", self.log());
    }

    /// Lets the paused server go on; it answers what it was sent meanwhile.
    pub fn resume(&mut self) {
        kill(self.pid(), Signal::SIGCONT).unwrap();
    }

    async fn end_by(&mut self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
        let ended = timeout(PATIENCE, self.child.as_mut().unwrap().wait()).await;
        // How it exits says nothing: after SIGTERM, nats-server exits with 1.
        ended.unwrap_or_else(|_| panic!("nats-server has not ended: {}", self.log())).unwrap();
        self.child = None;
    }

    /// A server that greets is ready: it recovers JetStream before it listens.
    async fn is_ready(&mut self, pid: u32) -> bool {
        self.port = self.port.or_else(|| self.found_port(pid));
        let Some(port) = self.port else { return false };
        let Ok(connection) = TcpStream::connect(("127.0.0.1", port)).await else { return false };
        let mut greeting = String::new();
        let _ = BufReader::new(connection).read_line(&mut greeting).await;
        greeting.starts_with("INFO ") && greeting.contains(r#""jetstream":true"#)
    }

    /// Returns the port that the server found, once it has written it down.
    fn found_port(&self, pid: u32) -> Option<u16> {
        let file = self.directory.path().join(format!("nats-server_{pid}.ports"));
        // No file, or half of one: it is still at it.
        let ports: serde_json::Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
        let (_, port) = ports["nats"][0].as_str().unwrap().rsplit_once(':').unwrap();
        Some(port.parse().unwrap())
    }

    fn pid(&self) -> Pid {
        let id = self.child.as_ref().and_then(Child::id).expect("the NATS server is stopped");
        Pid::from_raw(id.try_into().unwrap())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(log(self.directory.path())).unwrap()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let _ = child.start_kill();
        // The directory goes next, and a server that still writes would leave some of it behind.
        let deadline = Instant::now() + PATIENCE;
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Starts a server on `port`, or on a port that it finds itself: one that we found for it could be taken before
/// it listens.
fn spawn(directory: &Path, port: Option<u16>, more: &str) -> Child {
    let config = directory.join("nats-server.conf");
    let text = format!(
        "host: '127.0.0.1'\nport: {}\nports_file_dir: '{}'\njetstream {{ store_dir: '{}' }}\n{more}\n",
        port.map_or(-1, i32::from),
        directory.display(),
        storage(directory).display(),
    );
    std::fs::write(&config, text).unwrap();
    // A file, since a pipe that nobody empties would stop the server when it is full.
    let log = File::options().create(true).append(true).open(log(directory)).unwrap();
    Command::new(program())
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Debian puts the program where only root's `PATH` leads.
fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let elsewhere = ["/usr/sbin", "/usr/local/sbin", "/usr/local/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(elsewhere)
        .map(|directory| directory.join("nats-server"))
        .find(|program| program.is_file())
        .expect("nats-server is not installed: run ./test, which installs it or says how")
}

fn storage(directory: &Path) -> PathBuf {
    directory.join("storage")
}

fn log(directory: &Path) -> PathBuf {
    directory.join("log")
}
