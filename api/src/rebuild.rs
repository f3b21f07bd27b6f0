//! `rebuild` and `verify`: the tables from history, compared with the live ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use comfy_table::Table;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use event_store::{EventStore, log};
use indicatif::{ProgressBar, ProgressStyle};
use projections::rebuild::compare::{Report, compare};
use projections::rebuild::running::{self, Running};
use projections::rebuild::swap::{Swapped, swap};
use projections::rebuild::{self, Progress};
use projections::schema::{NEXT, PREVIOUS, SCRATCH};
use projections::tables::checkpoint;
use serde_json::json;

use crate::book::Book;
use crate::cli::Done;
use crate::terminal;

/// How `rebuild` is done.
#[derive(Debug, Args)]
pub struct RebuildArgs {
    /// Stop after the comparison: what would the code at hand change?
    #[arg(long, conflicts_with_all = ["rollback", "accept_differences"])]
    dry_run: bool,
    /// Swap although rows differ
    #[arg(long, conflicts_with = "rollback")]
    accept_differences: bool,
    /// Go back to the generation that was live before
    #[arg(long)]
    rollback: bool,
    /// Report progress and outcome as JSON lines
    #[arg(long)]
    json: bool,
}

/// How `verify` is done.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Report progress and outcome as JSON lines
    #[arg(long)]
    json: bool,
}

/// Builds the next generation, compares it with the live one, and swaps.
pub async fn run(book: &Book, args: &RebuildArgs) -> anyhow::Result<Done> {
    let kind = match args {
        RebuildArgs { rollback: true, .. } => "rollback",
        RebuildArgs { dry_run: true, .. } => "dry-run",
        RebuildArgs { .. } => "rebuild",
    };
    let running = Running::begin(&book.store, &who(), kind).await?;
    let teller = Teller::new(book.store.clone(), running.id(), args.json);
    let result = if args.rollback {
        teller.phase("swapping", 0);
        swap(&book.store, PREVIOUS)
            .await
            .map_err(anyhow::Error::from)
            .and_then(|swapped| tell_swap(swapped, args.json))
    } else {
        build_and_swap(book, args, &teller).await
    };
    teller.finish();
    running.end(outcome(&result)).await?;
    result
}

/// Compares the live tables with history, and looks at the log itself.
pub async fn verify(book: &Book, args: &VerifyArgs) -> anyhow::Result<Done> {
    let running = Running::begin(&book.store, &who(), "verify").await?;
    let teller = Teller::new(book.store.clone(), running.id(), args.json);
    let verified = async {
        teller.phase("reading the log", 0);
        let shown = checkpoint::read(book.pool()).await?.position;
        let mut problems = log::check(book.pool()).await?;
        let head = log::head(book.pool()).await?;
        if shown > head {
            problems.push(format!("the tables show position {shown}, the log ends at {head}"));
        }
        // Told at once: an event that cannot be read ends what follows.
        for problem in &problems {
            terminal::note(format_args!("the log is damaged: {problem}"));
        }
        let report = build_and_compare(book, SCRATCH, &teller).await?;
        tell_report(&report, args.json)?;
        if args.json {
            terminal::print(json!({"log": problems, "clean": problems.is_empty() && report.is_clean()}))?;
        }
        if problems.is_empty() && report.is_clean() {
            return Ok(Done::Whole);
        }
        bail!(
            "the live tables are not what the log says; `minutebook rebuild --accept-differences` mends them"
        )
    }
    .await;
    teller.finish();
    let dropped = rebuild::discard(&book.store, SCRATCH).await;
    running.end(outcome(&verified)).await?;
    dropped?;
    verified
}

async fn build_and_swap(book: &Book, args: &RebuildArgs, teller: &Arc<Teller>) -> anyhow::Result<Done> {
    let started = Instant::now();
    let compared = build_and_compare(book, NEXT, teller).await;
    let report = compared?;
    let compared_in = teller.phase_seconds();
    tell_report(&report, args.json)?;
    if args.dry_run {
        rebuild::discard(&book.store, NEXT).await?;
        if !report.is_clean() {
            terminal::note("nothing was changed");
        }
        return Ok(Done::Whole);
    }
    if !report.is_clean() && !args.accept_differences {
        rebuild::discard(&book.store, NEXT).await?;
        bail!(
            "rows differ, so the live tables were left as they are; --accept-differences swaps all the same"
        );
    }
    teller.phase("swapping", 0);
    let swapped = swap(&book.store, NEXT).await?;
    let seconds = started.elapsed().as_secs_f64() - compared_in;
    let per_second = swapped.position as f64 / seconds;
    if args.json {
        terminal::print(json!({
            "swapped": {"position": swapped.position, "blocked_ms": swapped.blocked.as_secs_f64() * 1000.0},
            "seconds": seconds, "comparison_seconds": compared_in, "events_per_second": per_second,
        }))?;
    } else {
        terminal::print(format_args!(
            "{} events in {seconds:.1} s ({per_second:.0} events/s), compared in {compared_in:.1} s",
            swapped.position
        ))?;
        tell_swap(swapped, false)?;
    }
    Ok(Done::Whole)
}

async fn build_and_compare(book: &Book, schema: &str, teller: &Arc<Teller>) -> anyhow::Result<Report> {
    let live = checkpoint::read(book.pool()).await?;
    rebuild::build(&book.store, schema, live.position, teller).await?;
    teller.phase("comparing", 0);
    Ok(compare(&book.store, schema).await?)
}

fn tell_swap(swapped: Swapped, json: bool) -> anyhow::Result<Done> {
    let Swapped { position, blocked } = swapped;
    let milliseconds = blocked.as_secs_f64() * 1000.0;
    if json {
        terminal::print(json!({"swapped": {"position": position, "blocked_ms": milliseconds}}))?;
    } else {
        terminal::print(format_args!(
            "swapped at position {position}; readers waited {milliseconds:.0} ms at most; `minutebook rebuild \
             --rollback` goes back"
        ))?;
    }
    Ok(Done::Whole)
}

fn tell_report(report: &Report, json: bool) -> anyhow::Result<()> {
    if json {
        terminal::print(serde_json::to_string(&json!({"comparison": report}))?)?;
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY);
    table.set_header(["table", "rows", "only live", "only history", "differing", "columns"]);
    for compared in &report.tables {
        let columns = compared.columns.iter().map(|(column, count)| format!("{column} {count}"));
        let columns = columns.chain(compared.new_columns.iter().map(|column| format!("new: {column}")));
        table.add_row([
            compared.table.clone(),
            compared.rows.to_string(),
            compared.only_live.to_string(),
            compared.only_history.to_string(),
            compared.differing.to_string(),
            columns.collect::<Vec<_>>().join(", "),
        ]);
    }
    terminal::print(table)?;
    for compared in &report.tables {
        for example in &compared.examples {
            let what = example.what.replace('_', " ");
            let columns = if example.columns.is_empty() {
                String::new()
            } else {
                format!(": {}", example.columns.join(", "))
            };
            terminal::print(format_args!("{} {} {what}{columns}", compared.table, example.key))?;
        }
    }
    let same = if report.is_clean() {
        "live tables and history are the same"
    } else {
        "live tables and history differ"
    };
    terminal::print(format_args!("{same} at position {}", report.position))?;
    Ok(())
}

fn outcome(result: &anyhow::Result<Done>) -> &'static str {
    match result {
        Ok(_) => "done",
        Err(_) => "failed",
    }
}

fn who() -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    format!("process {} on {}", std::process::id(), host.unwrap_or_else(|| "an unnamed host".to_owned()))
}

/// Tells whoever waits how it goes: on a terminal, in JSON lines, and in `ops.rebuilds`.
struct Teller {
    store: EventStore,
    id: i64,
    json: bool,
    bar: ProgressBar,
    phase: std::sync::Mutex<(&'static str, i64, Instant)>,
    noted: AtomicI64,
}

impl Teller {
    fn new(store: EventStore, id: i64, json: bool) -> Arc<Self> {
        let bar = terminal::bar(0, "beginning");
        if json {
            bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        }
        let phase = std::sync::Mutex::new(("beginning", 0, Instant::now()));
        Arc::new(Self { store, id, json, bar, phase, noted: AtomicI64::new(0) })
    }

    fn phase_now(&self) -> (&'static str, i64, Instant) {
        *self.phase.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Returns how long the phase has taken so far.
    fn phase_seconds(&self) -> f64 {
        self.phase_now().2.elapsed().as_secs_f64()
    }

    fn note(&self, done: i64) {
        let (phase, total, _) = self.phase_now();
        if self.json {
            // Nobody need listen.
            let _ = terminal::print(json!({"phase": phase, "done": done, "total": total}));
        }
        let (store, id) = (self.store.clone(), self.id);
        // Best effort: it is for `status`.
        tokio::spawn(async move {
            let noting = running::note_progress(&store, id, phase, done, total);
            let _ = tokio::time::timeout(Duration::from_secs(5), noting).await;
        });
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Teller {
    fn phase(&self, name: &'static str, total: i64) {
        *self.phase.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = (name, total, Instant::now());
        self.noted.store(0, Ordering::Relaxed);
        self.bar.set_message(name);
        self.bar.set_length(u64::try_from(total).unwrap_or(0));
        self.bar.set_position(0);
        if total == 0
            && let Ok(style) = ProgressStyle::with_template("{msg} {elapsed}")
        {
            self.bar.set_style(style);
            self.bar.enable_steady_tick(Duration::from_millis(200));
        }
        self.note(0);
    }

    fn done(&self, events: i64) {
        self.bar.set_position(u64::try_from(events).unwrap_or(0));
        // A tenth of a second's work or so.
        let step = 20_000;
        if events - self.noted.load(Ordering::Relaxed) >= step {
            self.noted.store(events, Ordering::Relaxed);
            self.note(events);
        }
    }
}
