//! `backup`, `restore`, `epoch` and `erasures` on the command line.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use projections::access::{Access, What, Who, record};
use projections::backup::{self, Backup, Erasures};
use projections::erasure;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::book::Book;
use crate::cli::Done;
use crate::config::DatabaseConfig;
use crate::rebuild::{self, Teller, VerifyArgs};
use crate::terminal;

/// How long erasures may take to be carried out at the command line.
const FINISH: Duration = Duration::from_secs(600);

/// What is backed up.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The directory to write it to: a new one, or an empty one
    #[arg(required_unless_present = "erasures", value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Write the list of whose keys are destroyed, for a restore of an older backup
    #[arg(long, value_name = "FILE")]
    erasures: Option<PathBuf>,
    /// Report progress and outcome as JSON lines
    #[arg(long)]
    json: bool,
}

/// What is restored.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The backup's directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Lists of whose keys were destroyed after the backup: they stay destroyed
    #[arg(long, value_name = "FILE")]
    erasures: Option<PathBuf>,
    /// Report progress and outcome as JSON lines
    #[arg(long)]
    json: bool,
}

/// What is done about the epoch.
#[derive(Debug, Subcommand)]
pub enum Epoch {
    /// Begin a new one: after a standby was promoted, or a recovery to a point in time
    Renew {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// What is done with a list of the erased.
#[derive(Debug, Subcommand)]
pub enum ErasureList {
    /// Destroy the keys that a recovery to a point in time, or a promotion, has brought back, and carry the erasures out
    Apply(ApplyArgs),
}

/// Which list is applied.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// The list that `backup --erasures` wrote last
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// Writes a backup, or the list of the erased, or both.
pub async fn backup(book: &Book, args: &BackupArgs, stop: &CancellationToken) -> anyhow::Result<Done> {
    let working = async {
        if let Some(dir) = &args.dir {
            record(book.pool(), &Access::allowed(Who::operator(), What::Backup, None)).await?;
            let teller = Teller::new(args.json);
            let written = backup::write(book.pool(), dir, &*teller).await;
            teller.finish();
            let manifest = written?;
            if args.json {
                terminal::print(json!({"backup": manifest}))?;
            } else {
                let bytes = manifest.tables.iter().map(|table| table.bytes).sum::<u64>();
                terminal::print(format_args!(
                    "{} events and {} other rows in {:.1} MB: {}",
                    manifest.head,
                    manifest.tables.iter().map(|table| table.rows).sum::<u64>()
                        - u64::try_from(manifest.head).unwrap_or(0),
                    bytes as f64 / 1e6,
                    dir.display()
                ))?;
            }
        }
        // After the backup: it may only know more.
        if let Some(path) = &args.erasures {
            let erasures = Erasures::collect(book.pool()).await?;
            erasures.write(path)?;
            let keys = erasures.erased.len();
            if args.json {
                terminal::print(
                    json!({"erasures": {"keys_destroyed": keys, "taken_at": erasures.taken_at}}),
                )?;
            } else {
                terminal::print(format_args!("{keys} destroyed keys listed: {}", path.display()))?;
            }
        }
        Ok(Done::Whole)
    };
    stop.run_until_cancelled(working).await.unwrap_or(Ok(Done::Interrupted))
}

/// Opens the book on a database that was empty, with what is in the backup.
pub async fn restore(config: &DatabaseConfig, args: &RestoreArgs) -> anyhow::Result<Book> {
    let teller = Teller::new(args.json);
    // Before the database is touched at all.
    let found = Backup::open(&args.dir)?;
    found.check(&*teller).await?;
    let erasures = args.erasures.as_deref().map(Erasures::read).transpose()?;
    let book = Book::open_after(config, async |options| {
        let master = config.master()?;
        let restored = backup::restore(options, &found, erasures.as_ref(), master, &*teller).await?;
        teller.finish();
        if args.json {
            terminal::print(json!({"restored": restored}))?;
        } else {
            terminal::print(format_args!(
                "{} events restored; {} keys destroyed that were in the backup; the epoch is {}",
                restored.head, restored.keys_destroyed, restored.epoch
            ))?;
        }
        Ok(())
    })
    .await;
    teller.finish();
    book
}

/// Builds the tables of what was restored, and proves that they are right.
pub async fn build_and_verify(
    book: &Book,
    args: &RestoreArgs,
    stop: &CancellationToken,
) -> anyhow::Result<Done> {
    record(book.pool(), &Access::allowed(Who::operator(), What::Restore, None)).await?;
    // First, so that the tables are built without names and voices; the links go once there are tables. What fails is
    // tried again then.
    let begun = stop.run_until_cancelled(erasure::erase_again(&book.store, &book.bus)).await;
    begun.transpose()?;
    let built = rebuild::build_restored(book, args.json, stop).await;
    // The log is whole by now: whoever projects makes the tables as well.
    match built
        .context("the log is restored, but its tables could not be built; `serve` makes them, slowly")?
    {
        Done::Whole => {}
        Done::Partly | Done::Interrupted => return Ok(Done::Interrupted),
    }
    let finished = finish_erasures(book, stop).await?;
    if finished == Done::Interrupted {
        return Ok(Done::Interrupted);
    }
    let verified = rebuild::verify(book, VerifyArgs { full_speed: false, json: args.json }, stop).await?;
    Ok(if verified == Done::Whole { finished } else { verified })
}

/// Carries out what was erased after the moment to which the log was restored.
pub async fn finish_erasures(book: &Book, stop: &CancellationToken) -> anyhow::Result<Done> {
    book.start_projector();
    let finishing = erasure::finish(&book.store, &book.bus, Instant::now() + FINISH);
    let Some(finished) = stop.run_until_cancelled(finishing).await else { return Ok(Done::Interrupted) };
    if finished? {
        return Ok(Done::Whole);
    }
    terminal::note(
        "some erasures are not carried out everywhere yet: `status` tells how many, `serve` goes on with them",
    );
    Ok(Done::Partly)
}

/// Opens the book with a new epoch.
pub async fn renew_epoch(config: &DatabaseConfig) -> anyhow::Result<Book> {
    Book::open_after(config, async |options| {
        backup::renew_epoch(options).await?;
        Ok(())
    })
    .await
}

/// Opens the book once the keys of a list are destroyed, and tells how many still were there.
pub async fn apply_erasures(config: &DatabaseConfig, args: &ApplyArgs) -> anyhow::Result<Book> {
    // Before the database is touched at all.
    let erasures = Erasures::read(&args.file)?;
    Book::open_after(config, async |options| {
        let destroyed = backup::apply_erasures(options, &erasures, Who::operator()).await?;
        let listed = erasures.erased.len();
        if args.json {
            terminal::print(json!({"listed": listed, "keys_destroyed": destroyed}))?;
        } else {
            terminal::print(format_args!("{destroyed} keys destroyed of {listed} on the list"))?;
        }
        Ok(())
    })
    .await
}

/// Tells which epoch it is.
pub fn tell_epoch(book: &Book, json: bool) -> anyhow::Result<Done> {
    let identity = book.store.identity();
    if json {
        terminal::print(json!({"log_id": identity.log_id, "epoch": identity.epoch}))?;
    } else {
        terminal::print(format_args!(
            "the epoch is {}; what followed the old one has to begin anew: streams, and whoever follows /v1/changes",
            identity.epoch
        ))?;
    }
    Ok(Done::Whole)
}
