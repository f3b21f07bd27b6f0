//! The harness: a database of its own for each test, the built program as a server, the real data.
//!
//! `./test` starts PostgreSQL and says where it is; see `examples/with_services.rs`.

#![expect(clippy::unwrap_used, reason = "a harness that cannot work should say so at once")]

pub mod audit;
pub mod bench;
pub mod clock;
pub mod logs;
pub mod nats;
pub mod real_voices;
pub mod server;
pub mod tokens;
pub mod workload;

use std::io::Write as _;
use std::path::PathBuf;
use std::str::FromStr;

use api::book::Book;
use api::config::DatabaseConfig;
use event_store::log::{BatchLimits, StoredEvent};
use event_store::sealing::{Keyring, MasterSource, Needs};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, Executor, PgConnection, PgPool};
use tokio::sync::OnceCell;
use uuid::Uuid;

/// Where the tests' PostgreSQL is; set by `with_services`.
pub const DATABASE_URL: &str = "MINUTEBOOK_TEST_DATABASE_URL";
/// Where the real data is.
pub const REAL_DATA: &str = "MINUTEBOOK_REAL_DATA";
/// A file that lists the tests that were left out; read by `./test`.
pub const LEFT_OUT: &str = "MINUTEBOOK_TESTS_LEFT_OUT";

/// Returns the built program.
pub fn minutebook() -> PathBuf {
    let test_binary = std::env::current_exe().unwrap();
    let profile = test_binary.ancestors().nth(2).unwrap();
    let program = profile.join("minutebook");
    assert!(program.exists(), "{} is not built: run ./test, or `cargo build` first", program.display());
    program
}

/// Returns the directory of the real data, or says loudly that `test` was left out.
pub fn real_data(test: &str) -> Option<PathBuf> {
    let dir = std::env::var_os(REAL_DATA).map(PathBuf::from).filter(|dir| dir.is_dir());
    if dir.is_none() {
        left_out(&format!("{test} needs the real data, and {REAL_DATA} names no directory"));
    }
    dir
}

/// Says loudly that a test was left out, and why.
pub fn left_out(why: &str) {
    let line = format!("LEFT OUT: {why}\n");
    // Not by way of `eprintln!`: the test runner would swallow it.
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    if let Some(path) = std::env::var_os(LEFT_OUT) {
        let mut list = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        list.write_all(line.as_bytes()).unwrap();
    }
}

/// Returns the URL of the tests' PostgreSQL.
pub fn server_url() -> String {
    std::env::var(DATABASE_URL).unwrap_or_else(|_| {
        panic!("{DATABASE_URL} is not set: run ./test, which starts a PostgreSQL for the tests")
    })
}

/// Where the tests' master key is; set by `with_services`, also for the programs that tests start.
pub const MASTER_KEY_FILE: &str = "MINUTEBOOK_MASTER_KEY_FILE";

/// Returns the file of the tests' master key.
pub fn master_key_file() -> PathBuf {
    let path = std::env::var_os(MASTER_KEY_FILE).map(PathBuf::from);
    // Benchmarks run by themselves.
    path.unwrap_or_else(|| std::env::temp_dir().join(format!("minutebook-{}/master.key", std::process::id())))
}

/// Returns where the tests' master key is.
pub fn master() -> MasterSource {
    MasterSource::File(master_key_file())
}

/// Returns the keys of the log behind `pool`.
pub async fn keyring(pool: &PgPool) -> Keyring {
    let identity = event_store::log::identity(pool).await.unwrap();
    Keyring::open(pool.clone(), identity.log_id, master()).await.unwrap()
}

/// Returns the whole log, unsealed.
pub async fn opened_log(pool: &PgPool) -> Vec<StoredEvent> {
    let limits = BatchLimits { events: usize::MAX, bytes: usize::MAX };
    let mut log = event_store::log::read(pool, 0, limits).await.unwrap();
    keyring(pool).await.open_stored(pool, &mut log, Needs::Everything).await.unwrap();
    log
}

/// A database of its own, migrated.
pub struct TestDatabase {
    /// Its URL.
    pub url: String,
}

static TEMPLATE: OnceCell<String> = OnceCell::const_new();

impl TestDatabase {
    /// Creates a database.
    pub async fn create() -> Self {
        let template = TEMPLATE.get_or_init(create_template).await;
        let name = format!("t_{}", Uuid::now_v7().simple());
        let statement = format!("CREATE DATABASE {name} TEMPLATE {template}");
        let mut connection = PgConnection::connect(&server_url()).await.unwrap();
        // Two copies of the template cannot be made at once.
        connection.execute("SELECT pg_advisory_lock(1)").await.unwrap();
        connection.execute(statement.as_str()).await.unwrap();
        connection.close().await.unwrap();
        Self { url: url_of(&name) }
    }

    /// Creates a database that Minutebook has never seen.
    pub async fn blank() -> Self {
        let name = format!("t_{}", Uuid::now_v7().simple());
        let mut connection = PgConnection::connect(&server_url()).await.unwrap();
        connection.execute(format!("CREATE DATABASE {name}").as_str()).await.unwrap();
        connection.close().await.unwrap();
        Self { url: url_of(&name) }
    }

    /// Returns the configuration that names it.
    pub fn config(&self) -> DatabaseConfig {
        DatabaseConfig {
            database_url: Some(self.url.clone()),
            data_dir: None,
            postgres_bin: None,
            postgres_releases_url: None,
            master_key_file: Some(master_key_file()),
            master_key: None,
            max_connections: 8,
        }
    }

    /// Opens it as a process of its own would.
    pub async fn open(&self) -> Book {
        Book::open(&self.config()).await.unwrap()
    }

    /// Connects to it, with the live tables in reach.
    pub async fn pool(&self) -> PgPool {
        let options = PgConnectOptions::from_str(&self.url).unwrap().options([("search_path", "read")]);
        PgPool::connect_with(options).await.unwrap()
    }
}

async fn create_template() -> String {
    let name = format!("template_{}", Uuid::now_v7().simple());
    let mut connection = PgConnection::connect(&server_url()).await.unwrap();
    connection.execute(format!("CREATE DATABASE {name}").as_str()).await.unwrap();
    connection.close().await.unwrap();
    let pool = PgPool::connect(&url_of(&name)).await.unwrap();
    event_store::migrate::migrate(&pool).await.unwrap();
    projections::schema::migrate(&pool).await.unwrap();
    // Tests may write into the log by hand before anybody opens it.
    keyring(&pool).await;
    pool.close().await;
    name
}

/// Returns the URL of a database of the tests' PostgreSQL, for another login than its own.
pub fn url_for(database: &str, login: &str, password: &str) -> String {
    let url = url_of(database);
    let (scheme, rest) = url.split_once("://").unwrap();
    let (_, rest) = rest.split_once('@').unwrap();
    format!("{scheme}://{login}:{password}@{rest}")
}

/// Each database made of the template has the same log id and secret; only the name of the database is
/// another.
fn url_of(database: &str) -> String {
    let server = server_url();
    let (before, parameters) = server.split_once('?').unwrap_or((&server, ""));
    let (base, _) = before.rsplit_once('/').unwrap();
    format!("{base}/{database}?{parameters}")
}
