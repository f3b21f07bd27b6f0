//! Restoring: one transaction, from an empty database to a whole log of a new epoch, or to nothing.

use std::time::Duration;

use event_store::locks;
use event_store::sealing::{MasterSource, check_master};
use serde::Serialize;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, Executor, PgConnection};
use tokio::time::sleep;
use uuid::Uuid;

use super::{
    Backup, BackupError, EVENTS, Erasures, NEVER_EMPTY, TABLES, TableFile, columns, connect, database,
    quoted_columns, quoted_table,
};
use crate::access::{Access, What, Who, record};
use crate::rebuild::Progress;
use crate::schema::{Bare, quoted};

/// How this process is known while it restores: other than those that serve.
const NAME: &str = "minutebook restore";
/// How often others are looked for: a connection that was closed is seen a moment longer.
const LOOKS: u32 = 20;
/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// The log.
    pub log_id: Uuid,
    /// Its new epoch.
    pub epoch: Uuid,
    /// Its last position.
    pub head: i64,
    /// How many keys were in the backup that are destroyed since.
    pub keys_destroyed: u64,
}

/// Copies a backup into the empty database, destroys the keys of whoever was erased after it, and begins a new
/// epoch: what was appended after the backup is lost, and its positions are given out again. The backup has been
/// [checked](Backup::check), and `master` must have the key that its keys are wrapped by. The tables of the
/// generations show nothing yet.
pub async fn restore(
    options: &PgConnectOptions,
    backup: &Backup,
    erasures: Option<&Erasures>,
    master: MasterSource,
    progress: &impl Progress,
) -> Result<Restored, BackupError> {
    let manifest = &backup.manifest;
    if let Some(erasures) = erasures
        && erasures.log_id != manifest.log_id
    {
        return Err(BackupError::AnotherLog { found: erasures.log_id, expected: manifest.log_id });
    }
    let mut connection = connect(options, NAME).await?;
    let mut restoring = connection.begin().await.map_err(database("beginning"))?;
    ensure_alone(&mut restoring).await?;
    ensure_empty(&mut restoring).await?;

    let failed = || database("preparing the log");
    restoring.execute("SET LOCAL maintenance_work_mem = '256MB'").await.map_err(failed())?;
    let bare = Bare::make(&mut restoring, "log").await.map_err(failed())?;
    progress.phase("copying", manifest.head);
    let in_order =
        TABLES.iter().flat_map(|table| manifest.tables.iter().filter(move |file| file.table == *table));
    for file in in_order {
        if NEVER_EMPTY.contains(&file.table.as_str()) {
            let delete = format!("DELETE FROM {}", quoted_table(&file.table));
            restoring.execute(delete.as_str()).await.map_err(failed())?;
        }
        copy_in(&mut restoring, backup, file, progress).await?;
    }
    progress.phase("indexing", 0);
    bare.restore(&mut restoring).await.map_err(database("adding constraints and indexes to the log"))?;
    restoring.execute("ANALYZE log.events").await.map_err(database("collecting statistics"))?;

    let looking = || database("looking at what was restored");
    let (rows, first, last): (i64, Option<i64>, Option<i64>) =
        sqlx::query_as("SELECT count(*), min(position), max(position) FROM log.events")
            .fetch_one(&mut *restoring)
            .await
            .map_err(looking())?;
    if (rows, first.unwrap_or(1), last.unwrap_or(0)) != (manifest.head, 1, manifest.head) {
        let head = manifest.head;
        return Err(BackupError::Damaged {
            path: backup.dir.clone(),
            problem: format!(
                "it should have the positions 1 to {head}, and has {rows} of {first:?} to {last:?}"
            ),
        });
    }
    let identities: Vec<(Uuid, Uuid)> =
        sqlx::query_as("UPDATE log.identity SET epoch = gen_random_uuid() RETURNING log_id, epoch")
            .fetch_all(&mut *restoring)
            .await
            .map_err(looking())?;
    let [(log_id, epoch)] = identities[..] else {
        return Err(BackupError::Damaged {
            path: backup.dir.clone(),
            problem: "it does not say which log it is of".to_owned(),
        });
    };
    if log_id != manifest.log_id {
        let problem = format!("it is said to be of the log {}, and is of {log_id}", manifest.log_id);
        return Err(BackupError::Damaged { path: backup.dir.clone(), problem });
    }
    if manifest.head > 0 {
        check_master(&mut *restoring, log_id, master).await?;
    }
    let keys_destroyed = match erasures {
        Some(erasures) => erasures.apply(&mut restoring).await?,
        None => 0,
    };
    restoring.commit().await.map_err(database("committing"))?;
    let _ = connection.close().await;
    Ok(Restored { log_id, epoch, head: manifest.head, keys_destroyed })
}

/// Gives the log a new epoch: positions may have been lost at its end, and are given out again. Returns it.
pub async fn renew_epoch(options: &PgConnectOptions) -> Result<Uuid, BackupError> {
    let mut connection = connect(options, NAME).await?;
    let failed = || database("renewing the epoch");
    let mut renewing = connection.begin().await.map_err(failed())?;
    ensure_alone(&mut renewing).await?;
    let epoch = sqlx::query_scalar("UPDATE log.identity SET epoch = gen_random_uuid() RETURNING epoch")
        .fetch_one(&mut *renewing)
        .await
        .map_err(failed())?;
    renewing.commit().await.map_err(failed())?;
    let _ = connection.close().await;
    Ok(epoch)
}

/// Destroys the keys of whoever was erased after the moment to which the log was recovered. What else an erasure
/// does is done by the first process that projects. Returns how many keys were still there.
pub async fn apply_erasures(
    options: &PgConnectOptions,
    erasures: &Erasures,
    who: Who,
) -> Result<u64, BackupError> {
    let mut connection = connect(options, NAME).await?;
    let failed = || database("applying the list of the erased");
    let mut applying = connection.begin().await.map_err(failed())?;
    ensure_alone(&mut applying).await?;
    let log_id: Uuid = sqlx::query_scalar("SELECT log_id FROM log.identity")
        .fetch_one(&mut *applying)
        .await
        .map_err(failed())?;
    if erasures.log_id != log_id {
        return Err(BackupError::AnotherLog { found: erasures.log_id, expected: log_id });
    }
    let keys_destroyed = erasures.apply(&mut applying).await?;
    let access = Access::allowed(who, What::ApplyErasures, None);
    record(&mut *applying, &access).await.map_err(failed())?;
    applying.commit().await.map_err(failed())?;
    let _ = connection.close().await;
    Ok(keys_destroyed)
}

/// Fails while other processes use the database: each knows identity and epoch from its start. Holds the locks of
/// appender, projector and publisher to the end of the transaction, so that one which starts meanwhile does
/// nothing before.
async fn ensure_alone(connection: &mut PgConnection) -> Result<(), BackupError> {
    for _ in 0..LOOKS {
        let alone: bool = sqlx::query_scalar(
            "SELECT NOT EXISTS (SELECT FROM pg_stat_activity
                                 WHERE datname = current_database() AND application_name = 'minutebook')
                    AND pg_try_advisory_xact_lock($1)
                    AND pg_try_advisory_xact_lock($2)
                    AND pg_try_advisory_xact_lock($3)",
        )
        .bind(locks::APPEND)
        .bind(locks::PROJECTOR)
        .bind(locks::PUBLISHER)
        .fetch_one(&mut *connection)
        .await
        .map_err(database("looking for other processes"))?;
        if alone {
            return Ok(());
        }
        // Within a transaction the statistics of sessions are those of the first look.
        let forget = "SELECT pg_stat_clear_snapshot()";
        connection.execute(forget).await.map_err(database("looking for other processes"))?;
        sleep(PAUSE).await;
    }
    Err(BackupError::Serving)
}

async fn ensure_empty(connection: &mut PgConnection) -> Result<(), BackupError> {
    let shown = "read.checkpoint";
    for table in TABLES.into_iter().filter(|table| !NEVER_EMPTY.contains(table)).chain([shown]) {
        let rows = if table == shown { " WHERE position > 0" } else { "" };
        let look = format!("SELECT EXISTS (SELECT FROM {}{rows})", quoted_table(table));
        let there: bool = sqlx::query_scalar(&look)
            .fetch_one(&mut *connection)
            .await
            .map_err(database("looking whether the database is empty"))?;
        if there {
            return Err(BackupError::DatabaseInUse { table: table.to_owned() });
        }
    }
    Ok(())
}

async fn copy_in(
    connection: &mut PgConnection,
    backup: &Backup,
    file: &TableFile,
    progress: &impl Progress,
) -> Result<(), BackupError> {
    let TableFile { table, columns: names, rows: expected, .. } = file;
    let failed = || database(format!("copying {table}"));
    let known = columns(connection, table).await?;
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        return Err(BackupError::Newer { what: format!("the column {unknown} of {table}") });
    }
    let copy = format!("COPY {} ({}) FROM STDIN", quoted_table(table), quoted_columns(names));
    let mut copying = connection.copy_in_raw(&copy).await.map_err(failed())?;
    let mut pieces = backup.read(file);
    let mut lines = 0;
    while let Some(piece) = pieces.recv().await {
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => {
                let _ = copying.abort("the file cannot be read").await;
                return Err(BackupError::Damaged { path: backup.path(file), problem: error.to_string() });
            }
        };
        if table == EVENTS {
            lines += piece.iter().filter(|byte| **byte == b'\n').count();
            progress.done(i64::try_from(lines).unwrap_or(i64::MAX));
        }
        copying.send(piece).await.map_err(failed())?;
    }
    let rows = copying.finish().await.map_err(failed())?;
    if rows != *expected {
        let problem = format!("it has {rows} rows, and had {expected}");
        return Err(BackupError::Damaged { path: backup.path(file), problem });
    }
    renumber(connection, table).await
}

/// Lets a column that numbers its rows go on after the last one.
async fn renumber(connection: &mut PgConnection, table: &str) -> Result<(), BackupError> {
    let failed = || database(format!("numbering {table} on"));
    let numbered: Vec<String> = sqlx::query_scalar(
        "SELECT attname::text FROM pg_attribute
          WHERE attrelid = to_regclass($1) AND attidentity <> '' AND NOT attisdropped",
    )
    .bind(table)
    .fetch_all(&mut *connection)
    .await
    .map_err(failed())?;
    for column in numbered {
        let renumber = format!(
            "SELECT setval(pg_get_serial_sequence($1, $2), coalesce(max({}), 0) + 1, false) FROM {}",
            quoted(&column),
            quoted_table(table)
        );
        sqlx::query(&renumber).bind(table).bind(&column).execute(&mut *connection).await.map_err(failed())?;
    }
    Ok(())
}
