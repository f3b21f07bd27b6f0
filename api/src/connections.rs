//! Connections of clients, bounded in what each may cost before there is a request: how many there are at a
//! time, how long a request's head may take and how large it may be, how long an answer may go unread.
//!
//! axum's own loop sets none of these: whoever sends a byte of a head now and then holds a connection for ever.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// How large the head of a request may be, its first line and all headers together; more is answered 431. So is
/// one of more than hyper's own 100 headers.
const HEAD: usize = 32 * 1024;

/// How much of what a client sends is kept before it is asked for.
const BUFFER: usize = 64 * 1024;

/// How long a client may leave an answer unread: it must not hold it, and with it memory, for ever.
const UNREAD: Duration = Duration::from_secs(10);

/// What connections may cost.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How many there are at a time; further clients wait until one ends.
    pub clients: usize,
    /// How long the head of a request may take, from the answer before on: it bounds idleness too.
    pub head: Duration,
}

/// Serves until it is told to stop, and the requests then under way to their end.
pub async fn serve(
    mut listener: TcpListener,
    router: Router,
    bounds: Bounds,
    stopping: CancellationToken,
) -> io::Result<()> {
    let permits = Arc::new(Semaphore::new(bounds.clients));
    let connections = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(bounds.head).max_header_size(HEAD).max_buf_size(BUFFER);
    let mut stopped = pin!(stopping.cancelled());
    loop {
        let accepted = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            // It waits a moment where there are no file descriptors left, and tries again.
            (permit, Listener::accept(&mut listener).await.0)
        };
        let (permit, stream) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut stopped => break,
        };
        let service = TowerToHyperService::new(router.clone());
        let connection = connections.watch(http.serve_connection(TokioIo::new(patient(stream)), service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                // What a client does with its connection is its own affair.
                debug!(error = &error as &dyn std::error::Error, "a connection broke");
            }
            drop(permit);
        });
    }
    drop(listener);
    connections.shutdown().await;
    Ok(())
}

fn patient(stream: TcpStream) -> Pin<Box<TimeoutStream<TcpStream>>> {
    // Answers are small: they should not wait for one another.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(UNREAD));
    Box::pin(stream)
}
