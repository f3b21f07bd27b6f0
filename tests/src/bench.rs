//! What the benchmarks share: a durable PostgreSQL of their own, the one-row-per-transaction baseline, the
//! time of a flush to disk. Numbers are compared only within one run, interleaved: the speed of a disk's
//! flush swings tenfold from minute to minute.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;
use std::time::{Duration, Instant};

use api::book::Book;
use api::embedded::{self, Embedded, Programs, Settings};
use domain::file::{File, Sha256};
use domain::ids::{FileId, MeetingId};
use domain::meeting::{MeetingCommand, RegisterMeeting};
use event_store::EventStore;
use event_store::append::Append;
use event_store::command_bus::{Accepted, Context};
use projections::rebuild::Progress;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, Executor, PgConnection, PgPool};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::TestDatabase;
use crate::workload::{Workload, append_all};

/// Tells nobody how far something is.
pub struct Silent;

impl Progress for Silent {
    fn phase(&self, _: &'static str, _: i64) {}
    fn done(&self, _: i64) {}
}

/// A durable PostgreSQL for one benchmark, gone when it is closed.
pub struct BenchCluster {
    embedded: Embedded,
    directory: tempfile::TempDir,
}

impl BenchCluster {
    /// Starts one under `directory`, which should be on a disk, not in memory.
    pub async fn start(directory: &str) -> Self {
        let directory = tempfile::tempdir_in(directory).unwrap();
        let settings = Settings {
            data_dir: directory.path().join("data"),
            programs: Programs::Find,
            releases_url: None,
            reaper: None,
            durable: true,
        };
        let embedded = embedded::start(&settings, &|_| {}).await.unwrap();
        Self { embedded, directory }
    }

    /// Creates a migrated database.
    pub async fn database(&self, name: &str) -> TestDatabase {
        let server = self.embedded.url();
        let mut connection = PgConnection::connect(&server).await.unwrap();
        connection.execute(format!("CREATE DATABASE {name}").as_str()).await.unwrap();
        let url = server.replace("/minutebook?", &format!("/{name}?"));
        let pool = PgPool::connect(&url).await.unwrap();
        event_store::migrate::migrate(&pool).await.unwrap();
        projections::schema::migrate(&pool).await.unwrap();
        pool.close().await;
        TestDatabase { url }
    }

    /// Returns the program `name` that came with PostgreSQL, if it did.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        Some(self.embedded.describe().binaries.join(name)).filter(|path| path.exists())
    }

    /// Measures the median time that this disk needs to make 8 KiB durable.
    pub fn flush_time(&self) -> Duration {
        flush_time(self.directory.path())
    }

    /// Stops it.
    pub async fn stop(self) {
        self.embedded.leave().await.unwrap();
    }
}

fn flush_time(directory: &Path) -> Duration {
    let mut file = std::fs::File::create(directory.join("flush")).unwrap();
    let mut times = (0..200)
        .map(|_| {
            let started = Instant::now();
            file.write_all(&[7; 8192]).unwrap();
            file.sync_data().unwrap();
            started.elapsed()
        })
        .collect::<Vec<_>>();
    quantile(&mut times, 0.5)
}

/// Appends about `events` real-shaped events, 64 meetings under way at once.
pub async fn fill(database: &TestDatabase, events: usize) {
    let pool = database.pool().await;
    let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
    let store =
        EventStore::open(pool.clone(), crate::master(), &shutdown, &tasks).await.expect("the log opens");
    let mut workload = Workload::new(3, 64);
    let mut done = 0;
    while done < events {
        let appends = (0..1000.min(events - done)).map(|_| workload.next_append()).collect::<Vec<_>>();
        done += appends.iter().map(|append| append.events.len()).sum::<usize>();
        append_all(store.appender(), appends).await;
    }
    shutdown.cancel();
    tasks.close();
    tasks.wait().await;
    sqlx::query("VACUUM ANALYZE log.events").execute(&pool).await.expect("statistics");
    pool.close().await;
}

/// Runs this program again with `variable` set to the database's URL: what it does then has a memory of its own.
/// Returns the numbers that it prints.
pub async fn numbers_of_a_process(variable: &str, database: &TestDatabase) -> Vec<f64> {
    let output = Command::new(std::env::current_exe().unwrap())
        .env(variable, &database.url)
        .env(crate::MASTER_KEY_FILE, crate::master_key_file())
        .stderr(Stdio::inherit())
        .output()
        .await
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace()
        .map(|number| number.parse().unwrap_or_else(|_| panic!("no report in {text:?}")))
        .collect()
}

/// Returns the most memory that this process has had, in KiB.
pub fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    peak.and_then(|peak| peak.parse().ok()).unwrap_or(0)
}

/// Registers the meeting of the `n`th file.
pub async fn register(book: &Book, n: u128) -> Accepted {
    let secret = &book.store.identity().secret;
    let sha256: Sha256 = format!("{n:064x}").parse().unwrap();
    let meeting_id = MeetingId::derive(secret, None, &sha256);
    let id = FileId::derive(secret, None, &sha256);
    let file = File { id, sha256, mime: None, size: None, duration: None, owner: None };
    let register = RegisterMeeting { meeting_id, file, at: api::clock::now() };
    let context = Context { probably_new: true, ..Context::default() };
    book.bus.meeting(meeting_id, MeetingCommand::Register(register), &context).await.unwrap()
}

/// Returns a number from the environment, or `default`.
pub fn setting<T: FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Returns the value below which a share `q` of the values lies. Sorts the values.
pub fn quantile<T: Copy + PartialOrd>(values: &mut [T], q: f64) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).unwrap());
    values[((values.len() - 1) as f64 * q).round() as usize]
}

/// One INSERT per transaction into a table of the log's shape: what the log is measured against.
pub struct Baseline<'a> {
    cluster: &'a BenchCluster,
    database: &'a TestDatabase,
    appends: &'a [Append],
}

impl<'a> Baseline<'a> {
    /// Creates the table; `appends` are what the sqlx variant inserts, and the first is what pgbench does.
    pub async fn create(
        cluster: &'a BenchCluster,
        database: &'a TestDatabase,
        appends: &'a [Append],
    ) -> Self {
        let pool = database.pool().await;
        let statements = "CREATE SCHEMA bench; CREATE SEQUENCE bench.position;
                          CREATE TABLE bench.events (LIKE log.events INCLUDING ALL)";
        sqlx::raw_sql(statements).execute(&pool).await.unwrap();
        pool.close().await;
        Self { cluster, database, appends }
    }

    /// Returns inserts per second of `clients` clients: of pgbench or of sqlx, whichever is faster.
    pub async fn run(&self, clients: usize, duration: Duration) -> f64 {
        let sqlx = self.run_sqlx(clients, duration).await;
        let pgbench = self.run_pgbench(clients, duration).await;
        sqlx.max(pgbench.unwrap_or(0.0))
    }

    async fn run_pgbench(&self, clients: usize, duration: Duration) -> Option<f64> {
        let pgbench = self.cluster.program("pgbench")?;
        let append = &self.appends[0];
        let event = &append.events[0];
        let script = format!(
            "INSERT INTO bench.events (position, recorded_at, aggregate_type, aggregate_id, sequence, \
             event_type, event_version, payload, metadata) VALUES (nextval('bench.position'), \
             clock_timestamp(), 'meeting', gen_random_uuid()::text, 1, '{}', '{}', '{}', '{}');\n",
            event.event_type,
            event.event_version,
            event.payload.to_json(),
            append.metadata
        );
        let path = self.cluster.directory.path().join("insert.sql");
        std::fs::write(&path, script).unwrap();
        let options = PgConnectOptions::from_str(&self.database.url).unwrap();
        let clients = clients.to_string();
        let seconds = duration.as_secs().max(1).to_string();
        let output = Command::new(pgbench)
            .args([
                "--no-vacuum",
                "--protocol=prepared",
                "--jobs=2",
                "--client",
                &clients,
                "--time",
                &seconds,
            ])
            .arg("--file")
            .arg(&path)
            .env("PGPASSFILE", &self.cluster.embedded.describe().passfile)
            .env("PGHOST", &self.cluster.embedded.describe().socket_dir)
            .env("PGPORT", options.get_port().to_string())
            .env("PGUSER", options.get_username())
            .arg(options.get_database().unwrap())
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let tps = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
        Some(tps.unwrap_or_else(|| panic!("pgbench: {}", String::from_utf8_lossy(&output.stderr))))
    }

    async fn run_sqlx(&self, clients: usize, duration: Duration) -> f64 {
        let options = PgConnectOptions::from_str(&self.database.url).unwrap();
        let pool = PgPoolOptions::new()
            .min_connections(clients as u32)
            .max_connections(clients as u32)
            .connect_with(options)
            .await
            .unwrap();
        let deadline = Instant::now() + duration;
        let started = Instant::now();
        let tasks = (0..clients).map(|client| {
            let pool = pool.clone();
            let append = self.appends[client % self.appends.len()].clone();
            tokio::spawn(async move {
                let mut connection = pool.acquire().await.unwrap();
                let mut done = 0_u64;
                while Instant::now() < deadline {
                    insert(&mut connection, &append).await;
                    done += 1;
                }
                done
            })
        });
        let done: u64 = futures::future::join_all(tasks).await.into_iter().map(Result::unwrap).sum();
        let rate = done as f64 / started.elapsed().as_secs_f64();
        pool.close().await;
        rate
    }
}

async fn insert(connection: &mut PgConnection, append: &Append) {
    let event = &append.events[0];
    sqlx::query(
        "INSERT INTO bench.events (position, recorded_at, aggregate_type, aggregate_id, sequence,
                                   event_type, event_version, payload, metadata)
         VALUES (nextval('bench.position'), clock_timestamp(), $1, gen_random_uuid()::text, 1,
                 $2, $3, $4::text::jsonb, $5::text::jsonb)",
    )
    .bind(append.aggregate_type)
    .bind(&event.event_type)
    .bind(&event.event_version)
    .bind(event.payload.to_json())
    .bind(&append.metadata)
    .execute(connection)
    .await
    .unwrap();
}
