//! Backup and restore: everything that is true and not derived, in files that COPY reads, and back.
//!
//! A backup is one moment. What changes (commands, keys, decisions) is copied in one short snapshot; events are
//! copied after it, in chunks, up to the head that the snapshot saw: they never change, so the moment is the
//! same, and no snapshot is held for as long as a large log takes. Nobody waits for a backup.
//!
//! A restore is one transaction: a backup that proves damaged on the way leaves the database as empty as it was.

mod erasures;
mod files;
mod restore;
mod write;

use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use event_store::sealing::KeyError;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection, Row};
use uuid::Uuid;

pub use self::erasures::{Erased, Erasures};
pub use self::restore::{Restored, apply_erasures, renew_epoch, restore};
pub use self::write::write;
use crate::schema::quoted;

/// The tables that hold what is true and not derived, in the order in which they are copied back. This is the
/// one list of them; `backup.rs` of the tests fails for a table that is neither here nor among [`DERIVED`].
///
/// Keys before events: a trigger of the log destroys the keys of whom an event erases, and must find them.
pub const TABLES: [&str; 9] = [
    "log.identity",
    "keys.master",
    "keys.subjects",
    "keys.erasures",
    EVENTS,
    "log.commands",
    "ops.parked_decisions",
    "ops.rebuilds",
    "ops.access_log",
];

/// The tables beside the generations that are made anew: what a generation has parked, what a broker has had of
/// an epoch that is over, and who runs.
pub const DERIVED: [&str; 4] =
    ["ops.parked_events", "ops.publications", "ops.withheld_events", "ops.voice_followers"];

const EVENTS: &str = "log.events";
/// Those that have a row from the start.
const NEVER_EMPTY: [&str; 2] = ["log.identity", "keys.master"];
/// The shape of a backup that this program writes and reads.
const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest.json";

/// Why there is no backup, or no restored database.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum BackupError {
    #[error("{phase} failed")]
    Database {
        phase: String,
        #[source]
        source: sqlx::Error,
    },
    #[error("{phase} {path} failed", path = path.display())]
    File {
        phase: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is not empty: a backup goes into a directory of its own", path = .0.display())]
    DirectoryInUse(PathBuf),
    #[error(
        "the log is damaged: it ends at position {head}, but has {rows} events; `minutebook verify` tells more"
    )]
    Holes { head: i64, rows: u64 },
    #[error("{path} is no backup, or one that was never finished: it has no {MANIFEST}", path = .0.display())]
    NoManifest(PathBuf),
    #[error("{path} cannot be read: it is damaged, or not a backup's", path = path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error(
        "the backup is of format {found}, and this program reads format {FORMAT}: restore it with the version that wrote it"
    )]
    Format { found: u64 },
    #[error("the backup is of a newer Minutebook: {what} is not known here")]
    Newer { what: String },
    #[error("{path} is damaged: {problem}", path = path.display())]
    Damaged { path: PathBuf, problem: String },
    #[error("the database is not empty: {table} has rows. A restore goes into a new database")]
    DatabaseInUse { table: String },
    #[error("other processes of Minutebook use this database: they must be stopped first")]
    Serving,
    #[error("the list of the erased is of the log {found}, and not of {expected}")]
    AnotherLog { found: Uuid, expected: Uuid },
    #[error("the keys of the backup cannot be used; nothing was restored")]
    Master(#[from] KeyError),
    #[error("a task that reads or writes a file broke off")]
    TaskGone,
}

/// What is in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The shape of the backup.
    pub format: u32,
    /// The program that wrote it.
    pub program: String,
    /// The database's newest migration.
    pub migration: i64,
    /// The log.
    pub log_id: Uuid,
    /// Its epoch then.
    pub epoch: Uuid,
    /// Its last position then.
    pub head: i64,
    /// When it was taken.
    pub taken_at: DateTime<Utc>,
    /// The files.
    pub tables: Vec<TableFile>,
}

/// One table's rows, as COPY writes them in its text format, compressed by gzip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableFile {
    /// The table.
    pub table: String,
    /// The file's name.
    pub file: String,
    /// The columns, in order.
    pub columns: Vec<String>,
    /// How many rows.
    pub rows: u64,
    /// The file's size.
    pub bytes: u64,
    /// The file's hash.
    pub sha256: String,
}

/// A backup that lies in a directory.
#[derive(Debug)]
pub struct Backup {
    dir: PathBuf,
    manifest: Manifest,
}

impl Backup {
    /// Reads what is said to be in it; [`Backup::check`] looks whether it is.
    pub fn open(dir: &Path) -> Result<Self, BackupError> {
        let path = dir.join(MANIFEST);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(BackupError::NoManifest(dir.to_owned()));
            }
            Err(source) => return Err(BackupError::File { phase: "reading", path, source }),
        };
        let unreadable = |source| BackupError::Unreadable { path: path.clone(), source };
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(unreadable)?;
        // Before the rest, which may have another shape.
        if let Some(found) = value.get("format").and_then(serde_json::Value::as_u64)
            && found != u64::from(FORMAT)
        {
            return Err(BackupError::Format { found });
        }
        let manifest: Manifest = serde_json::from_value(value).map_err(unreadable)?;
        for TableFile { table, file, .. } in &manifest.tables {
            if !TABLES.contains(&table.as_str()) {
                return Err(BackupError::Newer { what: format!("the table {table}") });
            }
            if *file != file_name(table) {
                let problem = format!("the file of {table} cannot be called {file:?}");
                return Err(BackupError::Damaged { path, problem });
            }
        }
        for wanted in ["log.identity", EVENTS] {
            if manifest.tables.iter().filter(|file| file.table == wanted).count() != 1 {
                return Err(BackupError::Damaged {
                    path,
                    problem: format!("it does not say where {wanted} is"),
                });
            }
        }
        Ok(Self { dir: dir.to_owned(), manifest })
    }

    /// Returns what is said to be in it.
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn path(&self, file: &TableFile) -> PathBuf {
        self.dir.join(&file.file)
    }
}

fn file_name(table: &str) -> String {
    format!("{table}.copy.gz")
}

fn database(phase: impl Into<String>) -> impl FnOnce(sqlx::Error) -> BackupError {
    move |source| BackupError::Database { phase: phase.into(), source }
}

/// Connects for copying: no bound on statements, for a large log takes its time, and texts as every version of
/// PostgreSQL reads them.
async fn connect(options: &PgConnectOptions, name: &str) -> Result<PgConnection, BackupError> {
    let options = options.clone().application_name(name).options([
        ("search_path", "pg_catalog"),
        ("statement_timeout", "0"),
        ("idle_in_transaction_session_timeout", "0"),
        ("timezone", "UTC"),
        ("datestyle", "ISO"),
        ("bytea_output", "hex"),
    ]);
    PgConnection::connect_with(&options).await.map_err(database("connecting"))
}

/// Returns a table's name for a statement.
fn quoted_table(table: &str) -> String {
    table.split('.').map(quoted).collect::<Vec<_>>().join(".")
}

/// Returns the columns of a table that hold something of their own.
async fn columns(connection: &mut PgConnection, table: &str) -> Result<Vec<String>, BackupError> {
    let rows = sqlx::query(
        "SELECT attname::text AS name FROM pg_attribute
          WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
          ORDER BY attnum",
    )
    .bind(table)
    .fetch_all(connection)
    .await
    .map_err(database(format!("looking at {table}")))?;
    rows.iter()
        .map(|row| row.try_get("name"))
        .collect::<Result<_, _>>()
        .map_err(database(format!("looking at {table}")))
}

fn quoted_columns(columns: &[String]) -> String {
    columns.iter().map(|column| quoted(column)).collect::<Vec<_>>().join(", ")
}
