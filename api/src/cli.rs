//! The command line: one variant per command, and the exit codes.
//!
//! 0: done. 1: it failed. 2: the command line cannot be understood. 3: done in part, the rest was
//! reported (`import`, `profile import`, `profile erase`, `meeting erase`, `parked retry`). 130: interrupted by Ctrl-C.

use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use tokio_util::sync::CancellationToken;

use crate::book::Book;
use crate::config::{DatabaseConfig, ServeConfig, TelemetryConfig};
use crate::{
    audit, backup, demo, embedded, erase, events, import, keys, parked, profile, publish, rebuild, serve,
    status, subscribe, telemetry, terminal, token,
};

/// The system of record of a meeting-processing pipeline
#[derive(Debug, Parser)]
#[command(
    name = "minutebook",
    version,
    propagate_version = true,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done in part, 130 interrupted"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    database: DatabaseConfig,
    #[command(flatten)]
    telemetry: TelemetryConfig,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer HTTP and keep the tables up to date
    Serve(Box<ServeConfig>),
    /// Play a few small meetings through their whole life, and show the tables
    Demo,
    /// Bring recordings in from files
    #[command(subcommand)]
    Import(Import),
    /// Show how the log and the tables stand
    Status {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print the log, one line an event
    Events(events::EventsArgs),
    /// Print who said who a speaker is, when and why, the newest first
    Audit(audit::AuditArgs),
    /// Build the tables from history beside the live ones, compare, and swap
    Rebuild(rebuild::RebuildArgs),
    /// Prove that the live tables are what the log says
    Verify(rebuild::VerifyArgs),
    /// Copy everything that is not derived into a directory, while others serve
    Backup(backup::BackupArgs),
    /// Copy a backup into an empty database, build the tables, and verify them
    Restore(backup::RestoreArgs),
    /// Tell the positions of one run of the log from those of another
    #[command(subcommand)]
    Epoch(backup::Epoch),
    /// Keep whoever was forgotten forgotten, after a recovery to before
    #[command(subcommand)]
    Erasures(backup::ErasureList),
    /// Look at events that cannot be applied, and decide what becomes of them
    #[command(subcommand)]
    Parked(parked::Parked),
    /// Enter people and their voices, or forget a person
    #[command(subcommand)]
    Profile(profile::Profile),
    /// Forget a meeting
    #[command(subcommand)]
    Meeting(erase::Meeting),
    /// Look at the keys that personal data is sealed with, or change the master key
    #[command(subcommand)]
    Keys(keys::Keys),
    /// Put events on the broker's stream again, where it lost them or never had them
    Publish(publish::PublishArgs),
    /// Follow the change feed, and hand each event to a program
    Subscribe(subscribe::SubscribeArgs),
    /// Make a token, by which the server knows who asks and what that one may do
    Token(token::TokenArgs),
    /// Bring the database's schema up to date, and do nothing else
    Migrate,
    /// Print the OpenAPI document
    #[command(hide = true)]
    Openapi,
    /// Print the change feed as an AsyncAPI document
    #[command(hide = true)]
    Asyncapi,
    /// Watch over an embedded PostgreSQL and stop it when nobody uses it any more
    #[command(hide = true)]
    EmbeddedReaper,
}

#[derive(Debug, Subcommand)]
enum Import {
    /// NIST RTTM diarizations: each recording becomes a completed meeting
    Rttm {
        /// Files, or directories in which files ending in .rttm are looked for
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// Report as one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// What became of a command that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// All of it.
    Whole,
    /// A part of it; the rest was reported.
    Partly,
    /// It was interrupted.
    Interrupted,
}

/// Runs a command to its end.
pub fn run(cli: Cli) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(execute(cli)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(Done::Whole) => ExitCode::SUCCESS,
        Ok(Done::Partly) => ExitCode::from(3),
        Ok(Done::Interrupted) => ExitCode::from(130),
        Err(error) if terminal::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::note(format_args!("error: {}", terminal::causes(&error)));
            ExitCode::FAILURE
        }
    }
}

async fn execute(cli: Cli) -> anyhow::Result<Done> {
    let Cli { command, database, telemetry } = cli;
    let default_filter = match command {
        Command::Serve(_) => "info,sqlx=warn,async_nats=warn",
        Command::Demo
        | Command::Import(_)
        | Command::Status { .. }
        | Command::Events(_)
        | Command::Audit(_)
        | Command::Rebuild(_)
        | Command::Verify(_)
        | Command::Backup(_)
        | Command::Restore(_)
        | Command::Epoch(_)
        | Command::Erasures(_)
        | Command::Parked(_)
        | Command::Profile(_)
        | Command::Meeting(_)
        | Command::Keys(_)
        | Command::Publish(_)
        | Command::Subscribe(_)
        | Command::Token(_)
        | Command::Migrate
        | Command::Openapi
        | Command::Asyncapi
        | Command::EmbeddedReaper => "warn,sqlx=error,async_nats=error",
    };
    telemetry::init_logging(&telemetry, default_filter).context("cannot start logging")?;
    match command {
        Command::Serve(config) => serve::run(&database, *config).await,
        Command::Demo => with_book(&database, demo::run).await,
        Command::Import(Import::Rttm { paths, json }) => {
            with_book(&database, async |book| import::run(book, &paths, json).await).await
        }
        Command::Status { json } => with_book(&database, async |book| status::run(book, json).await).await,
        Command::Events(args) => with_book(&database, async |book| events::run(book, &args).await).await,
        Command::Audit(args) => with_book(&database, async |book| audit::run(book, args).await).await,
        Command::Publish(args) => with_book(&database, async |book| publish::run(book, &args).await).await,
        Command::Parked(what) => with_book(&database, async |book| parked::run(book, &what).await).await,
        Command::Rebuild(args) => {
            with_book_until_stopped(Book::open(&database), async |book, stop| {
                rebuild::run(book, args, &stop).await
            })
            .await
        }
        Command::Verify(args) => {
            with_book_until_stopped(Book::open(&database), async |book, stop| {
                rebuild::verify(book, args, &stop).await
            })
            .await
        }
        Command::Backup(args) => {
            with_book_until_stopped(Book::open(&database), async |book, stop| {
                backup::backup(book, &args, &stop).await
            })
            .await
        }
        Command::Restore(args) => {
            with_book_until_stopped(backup::restore(&database, &args), async |book, stop| {
                backup::build_and_verify(book, &args, &stop).await
            })
            .await
        }
        Command::Epoch(backup::Epoch::Renew { json }) => {
            with_book_until_stopped(backup::renew_epoch(&database), async |book, _| {
                backup::tell_epoch(book, json)
            })
            .await
        }
        Command::Erasures(backup::ErasureList::Apply(args)) => {
            with_book_until_stopped(backup::apply_erasures(&database, &args), async |book, stop| {
                backup::finish_erasures(book, &stop).await
            })
            .await
        }
        Command::Profile(what) => with_book(&database, async |book| profile::run(book, &what).await).await,
        Command::Meeting(what) => with_book(&database, async |book| erase::meeting(book, &what).await).await,
        Command::Keys(what) => with_book(&database, async |book| keys::run(book, &what).await).await,
        Command::Subscribe(args) => subscribe::run(&database, args).await,
        Command::Token(args) => token::run(&database, args),
        Command::Migrate => {
            with_book(&database, async |book| {
                if let Some(notice) = book.missing_roles().await? {
                    terminal::note(notice);
                }
                Ok(Done::Whole)
            })
            .await
        }
        Command::Openapi => {
            terminal::print(crate::app::openapi().to_pretty_json()?)?;
            Ok(Done::Whole)
        }
        Command::Asyncapi => {
            terminal::print(serde_json::to_string_pretty(&projections::feed::schemas::asyncapi())?)?;
            Ok(Done::Whole)
        }
        Command::EmbeddedReaper => {
            let dir = database.data_dir.context("the reaper needs --data-dir")?;
            embedded::reap(&dir).await?;
            Ok(Done::Whole)
        }
    }
}

/// Opens the book, does the work, and closes the book, also after Ctrl-C.
async fn with_book(
    config: &DatabaseConfig,
    work: impl AsyncFnOnce(&Book) -> anyhow::Result<Done>,
) -> anyhow::Result<Done> {
    with_book_until_stopped(Book::open(config), async |book, stop| {
        stop.run_until_cancelled(work(book)).await.unwrap_or(Ok(Done::Interrupted))
    })
    .await
}

/// The same for work that clears up after itself: Ctrl-C tells it to stop and waits for it, a second one does
/// not wait.
async fn with_book_until_stopped(
    opening: impl Future<Output = anyhow::Result<Book>>,
    work: impl AsyncFnOnce(&Book, CancellationToken) -> anyhow::Result<Done>,
) -> anyhow::Result<Done> {
    let mut stop = pin!(serve::stop_signal()?);
    let book = tokio::select! {
        book = opening => book?,
        () = &mut stop => return Ok(Done::Interrupted),
    };
    let stopping = CancellationToken::new();
    let stopped = async {
        stop.await;
        // Listening before it is told: the next signal is not the first one seen twice.
        let again = serve::stop_signal()?;
        stopping.cancel();
        again.await;
        Ok(Done::Interrupted)
    };
    let result = tokio::select! {
        result = work(&book, stopping.clone()) => result,
        stopped = stopped => stopped,
    };
    book.close().await;
    result
}
