//! A way to PostgreSQL that breaks where a test wants it to.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use sqlx::PgPool;
use tests::TestDatabase;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::PATIENCE;

/// Where the connection of an append is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The request does not reach the server.
    Request,
    /// The server has the request, and nobody waits for what comes of it.
    Between,
    /// The append is committed; only its answer is lost.
    Answer,
}

/// Listens on TCP for a PostgreSQL that listens on a socket.
pub(crate) struct Proxy {
    /// The database's URL by way of the proxy.
    pub(crate) url: String,
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    socket: PathBuf,
    /// What becomes of the calls of `log.append` to come; they pass when it is used up.
    plan: Mutex<VecDeque<Option<Cut>>>,
    open: watch::Sender<bool>,
    turned_away: watch::Sender<usize>,
}

impl Proxy {
    pub(crate) async fn start(database: &TestDatabase, pool: &PgPool) -> Self {
        let options = pool.connect_options();
        let (directory, port) = (options.get_socket(), options.get_port());
        let socket =
            directory.expect("the tests' PostgreSQL listens on a socket").join(format!(".s.PGSQL.{port}"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (user, _) = database.url.rsplit_once('@').unwrap();
        let (_, name) = database.url.rsplit_once('/').unwrap();
        let url = format!("{user}@{}/{name}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            socket,
            plan: Mutex::default(),
            open: watch::Sender::new(true),
            turned_away: watch::Sender::new(0),
        });
        let task = tokio::spawn(accept(listener, shared.clone())).abort_handle();
        Self { url, shared, task }
    }

    /// Says what becomes of the next calls of `log.append`.
    pub(crate) fn plan(&self, cuts: impl IntoIterator<Item = Option<Cut>>) {
        self.shared.plan.lock().unwrap().extend(cuts);
    }

    /// Returns how many planned calls have not come yet.
    pub(crate) fn planned(&self) -> usize {
        self.shared.plan.lock().unwrap().len()
    }

    /// Cuts all connections and turns new ones away; returns when `times` were.
    pub(crate) async fn close_until_turned_away(&self, times: usize) {
        let mut turned_away = self.shared.turned_away.subscribe();
        self.shared.open.send_replace(false);
        timeout(PATIENCE, turned_away.wait_for(|count| *count >= times)).await.unwrap().unwrap();
    }

    /// Lets everybody through again.
    pub(crate) fn open(&self) {
        self.shared.open.send_replace(true);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(relay(client, shared.clone()));
    }
}

/// Ends, and with it both connections, when either side ends or it is time to cut.
async fn relay(mut client: TcpStream, shared: Arc<Shared>) {
    const READY_FOR_QUERY: &[u8] = &[b'Z', 0, 0, 0, 5, b'I'];
    let mut open = shared.open.subscribe();
    if !*open.borrow_and_update() {
        shared.turned_away.send_modify(|count| *count += 1);
        return;
    }
    let mut server = UnixStream::connect(&shared.socket).await.unwrap();
    let (mut sent, mut received) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut appender = false;
    let mut cut = None;
    loop {
        tokio::select! {
            _ = open.changed() => return,
            read = client.read(&mut sent) => {
                let Ok(length @ 1..) = read else { return };
                let sent = &sent[..length];
                // The statement's text comes once, when it is prepared; then each call begins with a Bind.
                appender |= sent.windows(10).any(|window| window == b"log.append");
                if appender && sent[0] == b'B' {
                    cut = shared.plan.lock().unwrap().pop_front().flatten();
                }
                if cut == Some(Cut::Request) || server.write_all(sent).await.is_err() || cut == Some(Cut::Between) {
                    return;
                }
            }
            read = server.read(&mut received) => {
                let Ok(length @ 1..) = read else { return };
                let received = &received[..length];
                if cut == Some(Cut::Answer) {
                    // The server is ready for more once it has committed.
                    if received.ends_with(READY_FOR_QUERY) {
                        return;
                    }
                } else if client.write_all(received).await.is_err() {
                    return;
                }
            }
        }
    }
}
