//! `serve`: everything in one process, or a part of it.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use chrono::TimeDelta;
use projections::{erasure, sweeper};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::app::{AppState, app, operations_app};
use crate::auth::Auth;
use crate::book::Book;
use crate::cli::Done;
use crate::config::{DatabaseConfig, Part, ServeConfig};
use crate::connections::{self, Bounds};
use crate::file_rules::S3Prefix;
use crate::matching::Matching;
use crate::{retention, telemetry, terminal};

/// How long after the signal to stop a request may still be under way, beyond the time that any may take.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves until the signal to stop.
pub async fn run(database: &DatabaseConfig, config: ServeConfig) -> anyhow::Result<Done> {
    let stream = config.nats.stream();
    if config.only == Some(Part::Publisher) && stream.is_none() {
        bail!("a publisher needs a broker: --nats-url or NATS_URL names it");
    }
    let matching = Matching::new(&config, config.policies().context("the matching policies cannot be used")?);
    let mut stop = pin!(stop_signal()?);
    let metrics = telemetry::init_metrics().context("cannot start metrics")?;
    // Before the database: a port that is taken should be heard of at once.
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}; --listen names another address", config.listen))?;
    let address = listener.local_addr()?;
    if !config.listen.ip().is_loopback() && !config.auth.tls_in_front {
        warn!(
            %address,
            "others can reach this address, and what they send is not encrypted: put TLS in front, and say so with \
             --tls-in-front"
        );
    }
    if !config.listen.ip().is_loopback() && config.files.s3_prefix == S3Prefix::default() {
        warn!(
            %address,
            "others can reach this address, and an artifact may name any key of the object store: hold each meeting's \
             to its own, as with --s3-prefix 'meetings/{{meeting}}/'"
        );
    }
    let book = tokio::select! {
        book = Book::open(database) => Arc::new(book?),
        () = &mut stop => return Ok(Done::Whole),
    };
    let auth = match Auth::open(&config.auth, database.data_dir.as_deref()).await {
        Ok(auth) => auth,
        Err(error) => {
            book.close().await;
            return Err(error.context("cannot tell valid tokens"));
        }
    };

    match book.missing_roles().await {
        Ok(Some(notice)) => warn!("{notice}"),
        Ok(None) => {}
        Err(error) => warn!(%error, "cannot look for the database's roles"),
    }
    let (projects, publishes, answers) = match config.only {
        None => (true, true, true),
        Some(Part::Api) => (false, false, true),
        Some(Part::Projector) => (true, false, false),
        Some(Part::Publisher) => (false, true, false),
    };
    if answers {
        let erased = tokio::select! {
            erased = erasure::erase_again(&book.store, &book.bus) => erased.map_err(anyhow::Error::from),
            () = &mut stop => {
                book.close().await;
                return Ok(Done::Whole);
            }
        };
        // One that cannot be read keeps nobody from being served; whoever projects tries it again.
        if let Err(error) = erased {
            book.close().await;
            return Err(error.context("cannot erase again what a restore has brought back"));
        }
    }
    if projects {
        book.start_projector();
        book.start_erasures();
        let sweeping = sweeper::run(
            book.pool().clone(),
            config.sweep_interval,
            TimeDelta::days(config.access_kept_days.into()),
            book.shutdown.clone(),
        );
        book.tasks.spawn(sweeping);
        if let Some(days) = config.retention_days {
            let erasing = retention::run(book.store.clone(), book.bus.clone(), days, book.shutdown.clone());
            book.tasks.spawn(erasing);
        }
    }
    if publishes && let Some(stream) = stream {
        book.start_publisher(stream);
    }
    let longest = config.request_timeout;
    let bounds = Bounds { clients: config.max_clients, head: config.head_timeout };
    let stopping = CancellationToken::new();
    if answers {
        let following = matching.voices.clone().follow(book.store.clone(), book.shutdown.clone());
        book.tasks.spawn(following);
    }
    book.tasks.spawn(auth.clone().follow(book.shutdown.clone()));
    let voices = matching.voices.clone();
    let state = AppState::new(Arc::clone(&book), auth, config, matching, metrics, stopping.clone());
    let router = if answers { app(state) } else { operations_app(state) };
    let mut serving = tokio::spawn(connections::serve(listener, router, bounds, stopping.clone()));
    // Health is served from the start; whoever reads this finds everything ready.
    let welcoming = async {
        if answers {
            voices.caught_up().await;
        }
        welcome(&book, address, answers);
        std::future::pending::<()>().await;
    };
    let failed = tokio::select! {
        () = &mut stop => None,
        ended = &mut serving => Some(ended),
        () = welcoming => None,
    };
    let result = match failed {
        Some(ended) => ended.map_err(anyhow::Error::from).and_then(|served| served.context("cannot serve")),
        None => {
            info!("stopping: requests under way finish first");
            stopping.cancel();
            drain(serving, longest).await;
            Ok(())
        }
    };
    book.close().await;
    result.map(|()| Done::Whole)
}

/// Lets the requests under way finish. The appender and the projector run on until then: a command may be
/// waiting for the one, a read for the other.
async fn drain(mut serving: JoinHandle<std::io::Result<()>>, longest: Duration) {
    if timeout(longest + DRAIN, &mut serving).await.is_err() {
        warn!("requests under way did not finish in time");
        serving.abort();
    }
}

/// Returns what ends on Ctrl-C, and on the signal by which service managers stop a process. From this call
/// on, and not only when it is waited for, these signals no longer end the process by themselves.
pub fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
    })
}

fn welcome(book: &Book, address: SocketAddr, answers: bool) {
    info!(%address, database = book.shown_url(), log_id = %book.store.identity().log_id, "serving");
    if answers {
        terminal::note(format_args!("Minutebook is at http://{address}/ (Ctrl-C stops it)"));
        terminal::note(format_args!(
            "Its API can be tried at http://{address}/docs, with what `minutebook token` prints"
        ));
    } else {
        terminal::note(format_args!("Minutebook works; health is at http://{address}/readyz"));
    }
    if let Some(embedded) = book.embedded() {
        terminal::note(format_args!("The tables are at {}", embedded.psql_command()));
    }
}
