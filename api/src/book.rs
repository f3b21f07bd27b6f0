//! The open book: a database that was found or started and is migrated, the log in it, and the command bus
//! over it. Every command that needs the database opens one, and closes it in the end.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use event_store::EventStore;
use event_store::command_bus::CommandBus;
use event_store::sealing::MasterSource;
use projections::erasure;
use projections::feed::publisher::{self, Publishing};
use projections::feed::stream::StreamConfig;
use projections::fold::fold;
use projections::projector::{self, Projection};
use projections::schema;
use sqlx::migrate::MigrateError;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool};
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::config::DatabaseConfig;
use crate::embedded::{self, Description, Embedded, Programs, Reaper, Settings};
use crate::terminal;

/// How long a connection is waited for.
const CONNECT: Duration = Duration::from_secs(10);
/// How long tasks may take to end.
const CLOSE: Duration = Duration::from_secs(30);

/// An open Minutebook.
pub struct Book {
    /// The log.
    pub store: EventStore,
    /// The way to change something.
    pub bus: CommandBus,
    /// What the projector of this process does; stands by for ever if none was started.
    pub projection: watch::Receiver<Projection>,
    /// Cancelled, it ends the tasks.
    pub shutdown: CancellationToken,
    /// The tasks that work for this book.
    pub tasks: TaskTracker,
    /// What the publisher of this process does.
    pub publishing: watch::Receiver<Publishing>,
    projection_sender: watch::Sender<Projection>,
    publishing_sender: watch::Sender<Publishing>,
    embedded: Option<Description>,
    database: Mutex<Option<Database>>,
}

enum Database {
    Embedded(Box<Embedded>),
    External(String),
}

impl Book {
    /// Opens the book: finds or starts the database, brings its schema up to date, opens the log.
    pub async fn open(config: &DatabaseConfig) -> anyhow::Result<Self> {
        Self::open_after(config, async |_| Ok(())).await
    }

    /// Opens it after `work` on the database, which is migrated, while nothing of this process uses the log: who
    /// the log is may change.
    pub async fn open_after(
        config: &DatabaseConfig,
        work: impl AsyncFnOnce(&PgConnectOptions) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let database = Database::open(config).await?;
        match Self::open_in(config, &database, work).await {
            Ok((store, shutdown, tasks)) => {
                let (projection_sender, projection) = watch::channel(Projection::Standby);
                let (publishing_sender, publishing) = watch::channel(Publishing::Off);
                let bus = CommandBus::new(&store);
                let embedded = match &database {
                    Database::Embedded(embedded) => Some(embedded.describe().clone()),
                    Database::External(_) => None,
                };
                Ok(Self {
                    store,
                    bus,
                    projection,
                    shutdown,
                    tasks,
                    publishing,
                    projection_sender,
                    publishing_sender,
                    embedded,
                    database: Mutex::new(Some(database)),
                })
            }
            Err(error) => {
                database.leave().await;
                Err(error)
            }
        }
    }

    async fn open_in(
        config: &DatabaseConfig,
        database: &Database,
        work: impl AsyncFnOnce(&PgConnectOptions) -> anyhow::Result<()>,
    ) -> anyhow::Result<(EventStore, CancellationToken, TaskTracker)> {
        let mut pool = database.connect(config.max_connections).await?;
        event_store::migrate::migrate(&pool).await.map_err(migration_error)?;
        schema::migrate(&pool).await.context("cannot create the tables")?;
        if let Database::Embedded(embedded) = database
            && embedded.describe().created
        {
            // For people at psql: `SELECT … FROM meetings` finds the table.
            let statement = "ALTER ROLE CURRENT_USER SET search_path = read, log, public";
            sqlx::query(statement).execute(&pool).await.context("cannot set the role's search_path")?;
        }
        let options = pool.connect_options();
        if pool.size() > 0 {
            // What works on the database apart looks whether it is alone.
            pool.close().await;
            pool = pool_of(config.max_connections, PgConnectOptions::clone(&options));
        }
        work(&options).await?;
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        let master = config.master()?;
        let missing = match &master {
            MasterSource::File(path) if !path.exists() => Some(path.clone()),
            MasterSource::File(_) | MasterSource::Text(_) => None,
        };
        let store = EventStore::open(pool, master, &shutdown, &tasks).await.context("cannot open the log")?;
        if let Some(path) = missing.filter(|path| path.exists()) {
            terminal::note(format_args!(
                "personal data is sealed under the master key in {}: back it up, apart from the database; nobody can \
                 read names or voices without it",
                path.display()
            ));
        }
        Ok((store, shutdown, tasks))
    }

    /// Starts a projector in this process.
    pub fn start_projector(&self) {
        let projector =
            projector::run(self.store.clone(), fold, self.projection_sender.clone(), self.shutdown.clone());
        self.tasks.spawn(projector);
    }

    /// Starts carrying out erasures in this process.
    pub fn start_erasures(&self) {
        let erasures = erasure::run(self.store.clone(), self.bus.clone(), self.shutdown.clone());
        self.tasks.spawn(erasures);
    }

    /// Starts a publisher in this process.
    pub fn start_publisher(&self, config: StreamConfig) {
        let publisher = publisher::run(
            self.store.clone(),
            config,
            self.projection.clone(),
            self.publishing_sender.clone(),
            self.shutdown.clone(),
        );
        self.tasks.spawn(publisher);
    }

    /// Fails if the tables do not show what is in the log, and says why where that is known.
    pub fn ensure_shown(&self, shown: bool) -> anyhow::Result<()> {
        match &*self.projection.borrow() {
            _ if shown => Ok(()),
            Projection::Stopped { position, reason } => anyhow::bail!(
                "everything is in the log, but the projector has stopped at position {position}: {reason}"
            ),
            Projection::Standby | Projection::Active { .. } => {
                anyhow::bail!("everything is in the log, but the tables do not show it yet; see `status`")
            }
        }
    }

    /// Returns the pool of connections.
    pub const fn pool(&self) -> &PgPool {
        self.store.pool()
    }

    /// Says which of the database's roles are not there, and what to do, where that is so.
    pub async fn missing_roles(&self) -> Result<Option<String>, sqlx::Error> {
        let missing = event_store::migrate::missing_roles(self.pool()).await?;
        let notice = "the database has no roles {}, and Minutebook's login may not make them: nobody but that login \
                      can use the database. Somebody who may creates them, then `CALL ops.grant_roles()` and \
                      `minutebook rebuild` give them their rights";
        Ok((!missing.is_empty()).then(|| notice.replace("{}", &missing.join(", "))))
    }

    /// Returns what is known of the embedded PostgreSQL, if that is what is used.
    pub const fn embedded(&self) -> Option<&Description> {
        self.embedded.as_ref()
    }

    /// Returns the database's URL without its password.
    pub fn shown_url(&self) -> String {
        let options = self.pool().connect_options();
        let host = match options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => options.get_host().to_owned(),
        };
        let database = options.get_database().unwrap_or_default();
        // A socket's directory is a parameter, which takes the place of the host: a host has no slashes.
        if host.starts_with('/') {
            let (user, port) = (options.get_username(), options.get_port());
            format!("postgres://{user}@localhost/{database}?host={host}&port={port}")
        } else {
            format!("postgres://{}@{host}:{}/{database}", options.get_username(), options.get_port())
        }
    }

    /// Ends the tasks, the appender after all that was handed to it, and leaves the database. Requests that
    /// still share the book find it closed.
    pub async fn close(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        if timeout(CLOSE, self.tasks.wait()).await.is_err() {
            warn!("some tasks did not end in time");
        }
        let pool = self.store.pool().clone();
        if timeout(CLOSE, pool.close()).await.is_err() {
            warn!("some connections did not close in time");
        }
        if let Some(database) = self.database.lock().await.take() {
            database.leave().await;
        }
    }
}

impl Database {
    async fn open(config: &DatabaseConfig) -> anyhow::Result<Self> {
        if let Some(url) = &config.database_url {
            return Ok(Self::External(url.clone()));
        }
        let data_dir = config.data_dir()?;
        let settings = Settings {
            reaper: std::env::current_exe().ok().map(|program| Reaper {
                program,
                args: vec!["embedded-reaper".into(), "--data-dir".into(), data_dir.clone().into()],
            }),
            data_dir,
            programs: config.postgres_bin.clone().map_or(Programs::Find, Programs::In),
            releases_url: config.postgres_releases_url.clone(),
            durable: true,
        };
        let (line, update) = terminal::starting();
        let embedded = embedded::start(&settings, &update).await;
        line.finish_and_clear();
        embedded
            .map(|embedded| Self::Embedded(Box::new(embedded)))
            .context("cannot use the embedded PostgreSQL")
    }

    async fn connect(&self, max_connections: u32) -> anyhow::Result<PgPool> {
        let url = match self {
            Self::Embedded(embedded) => embedded.url(),
            Self::External(url) => url.clone(),
        };
        let not_postgres = || anyhow::anyhow!("DATABASE_URL is not a PostgreSQL URL");
        anyhow::ensure!(url.starts_with("postgres://") || url.starts_with("postgresql://"), not_postgres());
        // sqlx's own error may show the URL, and with it the password.
        let options = PgConnectOptions::from_str(&url)
            .map_err(|_| not_postgres())?
            .application_name("minutebook")
            .options([
                ("search_path", schema::LIVE),
                ("timezone", "UTC"),
                ("default_transaction_isolation", r"read\ committed"),
                // Statements over many rows look dear to the planner, which then compiles them for longer than they take.
                ("jit", "off"),
                ("statement_timeout", "60s"),
                ("idle_in_transaction_session_timeout", "60s"),
            ]);
        // Once without the pool, which would hide what went wrong behind a time-out.
        let probe = timeout(CONNECT, PgConnection::connect_with(&options))
            .await
            .map_err(|_| anyhow::anyhow!("no answer within {} s", CONNECT.as_secs()))
            .and_then(|connected| connected.map_err(anyhow::Error::from))
            .context("cannot connect to the database")?;
        // The server notices by itself if this fails.
        let _ = probe.close().await;
        Ok(pool_of(max_connections, options))
    }

    async fn leave(self) {
        match self {
            Self::Embedded(embedded) => {
                if let Err(error) = embedded.leave().await {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "could not leave the embedded PostgreSQL"
                    );
                }
            }
            Self::External(_) => {}
        }
    }
}

fn pool_of(max_connections: u32, options: PgConnectOptions) -> PgPool {
    PgPoolOptions::new().max_connections(max_connections).acquire_timeout(CONNECT).connect_lazy_with(options)
}

fn migration_error(error: MigrateError) -> anyhow::Error {
    if let MigrateError::VersionMissing(version) = error {
        return anyhow::anyhow!(
            "the database was migrated by a newer Minutebook, to version {version}: run that one"
        );
    }
    anyhow::Error::from(error).context("cannot bring the log's schema up to date")
}

/// A book that several handlers share.
pub type SharedBook = Arc<Book>;
