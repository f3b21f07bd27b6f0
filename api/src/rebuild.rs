//! `rebuild` and `verify` on the command line: how they are asked for, and how they are told.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use chrono::SecondsFormat;
use clap::Args;
use comfy_table::Table;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use domain::ids::MeetingId;
use indicatif::ProgressBar;
use projections::heal::{Healed, heal_meeting};
use projections::rebuild::compare::Report;
use projections::rebuild::lay_down::{LayDown, SchemaName, Until};
use projections::rebuild::pace::Speed;
use projections::rebuild::run::{Ended, Findings, Job, LaidDown, Options, Rebuild, SwapReport};
use projections::rebuild::running::Asked;
use projections::rebuild::{Progress, RebuildError};
use projections::schema::quoted;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::book::Book;
use crate::cli::Done;
use crate::config::seconds;
use crate::parked::ACTOR;
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
    /// Give one meeting's rows in the live tables what history says, and no others
    #[arg(long, value_name = "ID",
          conflicts_with_all = ["dry_run", "accept_differences", "rollback", "until", "schema"])]
    meeting: Option<MeetingId>,
    /// Lay the tables down as they stood then, beside the live ones: a position, or a time (RFC 3339)
    #[arg(long, value_name = "WHEN", requires = "schema",
          conflicts_with_all = ["dry_run", "accept_differences", "rollback"])]
    until: Option<Until>,
    /// The new schema in which they are laid down
    #[arg(long, value_name = "NAME", requires = "until")]
    schema: Option<SchemaName>,
    /// Do not make way for those who append meanwhile: it takes less time, and their commands take longer
    #[arg(long, conflicts_with_all = ["rollback", "meeting"])]
    full_speed: bool,
    /// For how long the swap is tried while somebody holds the tables; 300 without it
    #[arg(long, value_name = "SECONDS", value_parser = seconds,
          conflicts_with_all = ["dry_run", "meeting", "until"])]
    swap_timeout: Option<Duration>,
    /// Report progress and outcome as JSON lines
    #[arg(long)]
    json: bool,
}

/// How `verify` is done.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Do not make way for those who append meanwhile: it takes less time, and their commands take longer
    #[arg(long)]
    pub full_speed: bool,
    /// Report progress and outcome as JSON lines
    #[arg(long)]
    pub json: bool,
}

impl RebuildArgs {
    fn options(&self) -> Options {
        let default = Options::default();
        Options {
            speed: Speed::full_if(self.full_speed),
            swap_timeout: self.swap_timeout.unwrap_or(default.swap_timeout),
        }
    }
}

/// Builds a generation from history, and does with it what is asked for.
pub async fn run(book: &Book, args: RebuildArgs, stop: &CancellationToken) -> anyhow::Result<Done> {
    let options = args.options();
    let job = match args {
        RebuildArgs { meeting: Some(meeting), json, .. } => return heal(book, meeting, json).await,
        RebuildArgs { until: Some(until), schema: Some(schema), .. } => {
            Job::LayDown(LayDown::plan(&book.store, until, schema).await?)
        }
        RebuildArgs { rollback: true, .. } => Job::Rollback,
        RebuildArgs { dry_run: true, .. } => Job::DryRun,
        RebuildArgs { accept_differences, .. } => Job::Rebuild { accept_differences },
    };
    let Ended { findings, result } = carry_out(book, job, options, args.json, stop).await?;
    if args.json {
        tell_as_json(&findings)?;
    } else {
        tell(&findings, result.is_ok())?;
    }
    done(result)
}

async fn heal(book: &Book, meeting: MeetingId, json: bool) -> anyhow::Result<Done> {
    let healed = heal_meeting(&book.store, meeting.as_uuid(), ACTOR).await?;
    let healed = healed.with_context(|| format!("the log has no meeting {meeting}"))?;
    if json {
        terminal::print(serde_json::to_string(&healed)?)?;
    } else {
        let Healed { events, position, missing, differing, surplus, parked } = healed;
        terminal::print(format_args!(
            "{events} events up to position {position}: {missing} rows were missing, {differing} differed, \
             {surplus} were too many"
        ))?;
        if parked > 0 {
            terminal::note(format_args!("{parked} events cannot be applied: `minutebook parked list`"));
        }
    }
    Ok(if healed.parked > 0 { Done::Partly } else { Done::Whole })
}

/// Compares the live tables with history, and looks at the log itself.
pub async fn verify(
    book: &Book,
    VerifyArgs { full_speed, json }: VerifyArgs,
    stop: &CancellationToken,
) -> anyhow::Result<Done> {
    let options = Options { speed: Speed::full_if(full_speed), ..Options::default() };
    let Ended { findings, result } = carry_out(book, Job::Verify, options, json, stop).await?;
    match findings {
        Findings { log, clean: Some(clean), .. } if json => {
            terminal::print(json!({"log": log, "clean": clean}))?;
        }
        Findings { .. } => {}
    }
    done(result)
}

/// Builds the live tables of a log that was restored.
pub async fn build_restored(book: &Book, json: bool, stop: &CancellationToken) -> anyhow::Result<Done> {
    done(carry_out(book, Job::Restore, Options::default(), json, stop).await?.result)
}

async fn carry_out(
    book: &Book,
    job: Job,
    options: Options,
    json: bool,
    stop: &CancellationToken,
) -> anyhow::Result<Ended> {
    let asked = Asked { who: process(), key: None };
    let rebuild = Rebuild::begin(&book.store, &asked, job, options).await?;
    let teller = Teller::new(json);
    let ended = rebuild.carry_out(Arc::clone(&teller), stop).await;
    teller.finish();
    Ok(ended)
}

fn done(result: Result<(), RebuildError>) -> anyhow::Result<Done> {
    match result {
        Ok(()) => Ok(Done::Whole),
        Err(RebuildError::Interrupted) => Ok(Done::Interrupted),
        Err(error) => Err(error.into()),
    }
}

/// Returns how others may know this process.
pub fn process() -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    format!("process {} on {}", std::process::id(), host.unwrap_or_else(|| "an unnamed host".to_owned()))
}

fn tell(findings: &Findings, done: bool) -> anyhow::Result<()> {
    let seconds = findings.seconds.unwrap_or_default();
    if let (Some(SwapReport { position, .. }), Some(per_second)) =
        (findings.swapped, findings.events_per_second)
    {
        let compared_in = findings.comparison_seconds.unwrap_or_default();
        terminal::print(format_args!(
            "{position} events in {seconds:.1} s ({per_second:.0} events/s), compared in {compared_in:.1} s"
        ))?;
    }
    if let Some(SwapReport { position, blocked_ms }) = findings.swapped {
        terminal::print(format_args!(
            "swapped at position {position}; readers waited {blocked_ms:.0} ms at most; `minutebook rebuild \
             --rollback` goes back"
        ))?;
    }
    if let Some(LaidDown { schema, position, moment }) = &findings.laid_down {
        let (schema, moment) =
            (quoted(schema), moment.map(|at| at.to_rfc3339_opts(SecondsFormat::AutoSi, true)));
        let moment = moment.map(|at| format!(", {at}")).unwrap_or_default();
        terminal::print(format_args!(
            "{position} events in {seconds:.1} s: the schema {schema} has the tables as they stood at position \
             {position}{moment}\nit stays until it is dropped: DROP SCHEMA {schema} CASCADE"
        ))?;
    }
    let parked = |report: &Report| report.tables.iter().find(|t| t.table == "parked_events").map(|t| t.rows);
    if let Some(rows @ 1..) = findings.comparison.as_ref().and_then(parked) {
        terminal::note(format_args!("{rows} events are parked in the live tables: `minutebook parked list`"));
    }
    let nothing_done = findings.swapped.is_none() && findings.laid_down.is_none();
    if done && nothing_done && findings.comparison.as_ref().is_some_and(|report| !report.is_clean()) {
        terminal::note("nothing was changed");
    }
    Ok(())
}

fn tell_as_json(findings: &Findings) -> anyhow::Result<()> {
    let Findings { swapped, laid_down, seconds, comparison_seconds, events_per_second, .. } = findings;
    if let Some(laid_down) = laid_down {
        terminal::print(json!({
            "laid_down": laid_down, "seconds": seconds, "events_per_second": events_per_second,
        }))?;
    }
    match (swapped, seconds) {
        (Some(swapped), Some(seconds)) => terminal::print(json!({
            "swapped": swapped, "seconds": seconds, "comparison_seconds": comparison_seconds,
            "events_per_second": events_per_second,
        }))?,
        (Some(swapped), None) => terminal::print(json!({"swapped": swapped}))?,
        (None, _) => {}
    }
    Ok(())
}

fn comparison_table(report: &Report) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY);
    table.set_header(["table", "rows", "only live", "only history", "differing", "columns"]);
    for compared in &report.tables {
        let columns = compared.columns.iter().map(|(column, count)| format!("{column} {count}"));
        let columns = columns.chain(compared.new_columns.iter().map(|column| format!("new: {column}")));
        let columns = columns.chain(compared.new_table.then(|| "new table".to_owned()));
        table.add_row([
            compared.table.clone(),
            compared.rows.to_string(),
            compared.only_live.to_string(),
            compared.only_history.to_string(),
            compared.differing.to_string(),
            columns.collect::<Vec<_>>().join(", "),
        ]);
    }
    table
}

fn tell_report(report: &Report) -> std::io::Result<()> {
    terminal::print(comparison_table(report))?;
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
    terminal::print(format_args!("{same} at position {}", report.position))
}

/// Tells whoever waits how it goes: on a terminal, or in JSON lines. That nobody listens any more does not stop
/// a rebuild.
pub(crate) struct Teller {
    json: bool,
    bar: ProgressBar,
    phase: Mutex<(&'static str, i64)>,
    told: AtomicI64,
}

impl Teller {
    pub(crate) fn new(json: bool) -> Arc<Self> {
        let bar = terminal::bar(0, "beginning");
        if json {
            bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        }
        Arc::new(Self { json, bar, phase: Mutex::new(("beginning", 0)), told: AtomicI64::new(0) })
    }

    fn tell(&self, done: i64) {
        if self.json {
            let (phase, total) = *self.phase.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = terminal::print(json!({"phase": phase, "done": done, "total": total}));
        }
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Teller {
    fn phase(&self, name: &'static str, total: i64) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = (name, total);
        self.told.store(0, Ordering::Relaxed);
        self.bar.set_message(name);
        self.bar.set_length(u64::try_from(total).unwrap_or(0));
        self.bar.set_position(0);
        // A phase without a measure shows its time only.
        self.bar.set_style(if total == 0 { terminal::timed_style() } else { terminal::measured_style() });
        self.bar.enable_steady_tick(Duration::from_millis(200));
        self.tell(0);
    }

    fn done(&self, events: i64) {
        self.bar.set_position(u64::try_from(events).unwrap_or(0));
        // A tenth of a second's work or so.
        let step = 20_000;
        if events - self.told.load(Ordering::Relaxed) >= step {
            self.told.store(events, Ordering::Relaxed);
            self.tell(events);
        }
    }

    fn damaged(&self, problem: &str) {
        // Told at once: an event that cannot be read ends what follows.
        self.bar.suspend(|| terminal::note(format_args!("the log is damaged: {problem}")));
    }

    fn compared(&self, report: &Report) {
        let _ = if self.json {
            terminal::print(json!({"comparison": report}))
        } else {
            self.bar.suspend(|| tell_report(report))
        };
    }
    fn waiting(&self, who: &str) {
        if self.json {
            let _ = terminal::print(json!({"waiting_for": who}));
        } else {
            self.bar.suspend(|| terminal::note(format_args!("the swap waits for {who}")));
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Asked {
        #[command(flatten)]
        args: RebuildArgs,
    }

    fn options(arguments: &[&str]) -> (Speed, Duration) {
        let asked = Asked::try_parse_from([&["rebuild"], arguments].concat()).unwrap();
        let Options { speed, swap_timeout } = asked.args.options();
        (speed, swap_timeout)
    }

    #[test]
    fn what_is_asked_for_is_done_and_else_what_is_usual() {
        let usual = Options::default();
        assert_eq!(options(&[]), (Speed::Throttled, usual.swap_timeout));
        assert_eq!(options(&["--full-speed"]), (Speed::Full, usual.swap_timeout));
        assert_eq!(options(&["--swap-timeout", "1.5"]), (Speed::Throttled, Duration::from_millis(1500)));
        assert!(Asked::try_parse_from(["rebuild", "--swap-timeout", "0"]).is_err());
    }
}
