//! Writing a backup, under a name that is nobody's until it is whole.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use chrono::Utc;
use event_store::log;
use futures::TryStreamExt;
use sqlx::{Executor, PgConnection, PgPool};
use uuid::Uuid;

use super::files::Writing;
use super::{
    BackupError, EVENTS, FORMAT, MANIFEST, Manifest, TABLES, TableFile, columns, connect, database,
    file_name, quoted_columns, quoted_table,
};
use crate::rebuild::Progress;

/// How many events are copied under one snapshot.
const CHUNK: i64 = 50_000;

/// Writes a backup into `dir`, which is not there yet, or empty. Only its owner may read it.
pub async fn write(pool: &PgPool, dir: &Path, progress: &impl Progress) -> Result<Manifest, BackupError> {
    let partial = Partial::make(dir)?;
    let mut connection = connect(&pool.connect_options(), "minutebook").await?;
    progress.phase("copying", 0);
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY";
    connection.execute(begin).await.map_err(database("taking a snapshot"))?;
    let failed = || database("looking at the log");
    let identity = log::identity(&mut connection).await.map_err(failed())?;
    let head = log::head(&mut connection).await.map_err(failed())?;
    let migration = sqlx::query_scalar("SELECT max(version) FROM public._sqlx_migrations")
        .fetch_one(&mut connection)
        .await
        .map_err(failed())?;
    let taken_at = Utc::now();
    let mut tables = vec![];
    for table in TABLES.into_iter().filter(|table| *table != EVENTS) {
        let columns = columns(&mut connection, table).await?;
        let writing = Writing::begin(partial.path.join(file_name(table)));
        let copy =
            format!("COPY (SELECT {} FROM {}) TO STDOUT", quoted_columns(&columns), quoted_table(table));
        copy_out(&mut connection, &copy, table, &writing).await?;
        tables.push(finish(writing, table, columns).await?);
    }
    connection.execute("COMMIT").await.map_err(database("ending the snapshot"))?;

    progress.phase("copying", head);
    let columns = columns(&mut connection, EVENTS).await?;
    let writing = Writing::begin(partial.path.join(file_name(EVENTS)));
    let copy = format!(
        "COPY (SELECT {} FROM {}
                WHERE position > current_setting('minutebook.after')::bigint
                  AND position <= current_setting('minutebook.until')::bigint
                ORDER BY position) TO STDOUT",
        quoted_columns(&columns),
        quoted_table(EVENTS)
    );
    let mut after = 0;
    while after < head && !writing.is_gone() {
        let until = (after + CHUNK).min(head);
        // COPY takes no parameters; settings it can read.
        sqlx::query(
            "SELECT set_config('minutebook.after', $1, false), set_config('minutebook.until', $2, false)",
        )
        .bind(after.to_string())
        .bind(until.to_string())
        .execute(&mut connection)
        .await
        .map_err(database("copying the events"))?;
        copy_out(&mut connection, &copy, EVENTS, &writing).await?;
        after = until;
        progress.done(after);
    }
    let events = finish(writing, EVENTS, columns).await?;
    if u64::try_from(head).unwrap_or(0) != events.rows {
        return Err(BackupError::Holes { head, rows: events.rows });
    }
    tables.push(events);
    let manifest = Manifest {
        format: FORMAT,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        migration,
        log_id: identity.log_id,
        epoch: identity.epoch,
        head,
        taken_at,
        tables,
    };
    partial.finish(&manifest, dir)?;
    Ok(manifest)
}

async fn copy_out(
    connection: &mut PgConnection,
    copy: &str,
    table: &str,
    writing: &Writing,
) -> Result<(), BackupError> {
    let failed = || database(format!("copying {table}"));
    let mut rows = connection.copy_out_raw(copy).await.map_err(failed())?;
    while let Some(piece) = rows.try_next().await.map_err(failed())? {
        // The rest would be read for nothing; `finish` says what happened to the file.
        if writing.is_gone() {
            break;
        }
        writing.add(piece).await;
    }
    Ok(())
}

async fn finish(writing: Writing, table: &str, columns: Vec<String>) -> Result<TableFile, BackupError> {
    let (rows, bytes, sha256) = writing.finish().await?;
    Ok(TableFile { table: table.to_owned(), file: file_name(table), columns, rows, bytes, sha256 })
}

/// Makes a file that its owner alone may read.
pub(super) fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// A backup that is not whole yet; gone when it is dropped.
struct Partial {
    path: PathBuf,
    done: bool,
}

impl Partial {
    fn make(dir: &Path) -> Result<Self, BackupError> {
        let failed = |phase| {
            let path = dir.to_owned();
            move |source| BackupError::File { phase, path, source }
        };
        match fs::read_dir(dir) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Err(BackupError::DirectoryInUse(dir.to_owned()));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("looking at")(error)),
        }
        // Beside it, so that it can be renamed. `a/.` and `a/` are `a`.
        let whole = std::path::absolute(dir).map_err(failed("finding"))?;
        let name = whole.file_name().ok_or_else(|| BackupError::DirectoryInUse(dir.to_owned()))?;
        let mut partial = name.to_owned();
        partial.push(format!(".partial-{}", Uuid::new_v4().simple()));
        let path = whole.with_file_name(partial);
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed("making a directory beside"))?;
        Ok(Self { path, done: false })
    }

    /// The manifest last: without one it is no backup. Then the name.
    fn finish(mut self, manifest: &Manifest, dir: &Path) -> Result<(), BackupError> {
        let write = || -> io::Result<()> {
            let mut file = private(&self.path.join(MANIFEST))?;
            serde_json::to_writer_pretty(&mut file, manifest)?;
            file.sync_all()?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|source| BackupError::File { phase: "writing", path: self.path.clone(), source })?;
        let rename = || -> io::Result<()> {
            let whole = std::path::absolute(dir)?;
            // An empty directory gives way; one that has got something in it meanwhile does not.
            fs::rename(&self.path, &whole)?;
            match whole.parent() {
                Some(parent) => File::open(parent)?.sync_all(),
                None => Ok(()),
            }
        };
        rename().map_err(|source| BackupError::File {
            phase: "giving its name to",
            path: dir.to_owned(),
            source,
        })?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
