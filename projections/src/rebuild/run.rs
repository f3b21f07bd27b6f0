//! A rebuild from its beginning to its outcome, whoever asked for it: the command line and HTTP differ in how
//! they tell it ([`Progress`]). However it ends, nothing half built is left, and its row says what became of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use event_store::EventStore;
use event_store::log::{self, BatchLimits, LogError};
use event_store::sealing::Needs;
use serde::Serialize;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::compare::{Report, compare};
use super::lay_down::LayDown;
use super::noting::Noted;
use super::pace::Speed;
use super::running::{Asked, Running};
use super::swap::{Swapped, replace_empty, swap};
use super::{Progress, RebuildError, build, connect, database, discard};
use crate::schema::{LAYING, NEXT, PREVIOUS, SCRATCH};
use crate::tables::checkpoint;
use crate::tables::parked_events::{self, ParkedRow};

/// For how long the swap is tried, unless somebody says otherwise: longer than most reports take (ADR 18).
const SWAP_TIMEOUT: Duration = Duration::from_secs(300);
/// How long clearing away may take: less than a process that is told to stop waits for its tasks.
const CLEAR: Duration = Duration::from_secs(20);
/// How many events that cannot be read are named.
const UNREADABLE: usize = 10;
/// How much of the log is read at once when they are looked for.
const BATCH: BatchLimits = BatchLimits { events: 2000, bytes: 4 * 1024 * 1024 };

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// Build, compare and swap; also if rows differ, if that is accepted.
    Rebuild {
        /// Whether it is.
        accept_differences: bool,
    },
    /// Build and compare.
    DryRun,
    /// Build the live tables of a log that was restored, which nobody uses yet.
    Restore,
    /// Swap the previous generation back.
    Rollback,
    /// Look at the log, build and compare.
    Verify,
    /// Build what was, for SQL.
    LayDown(LayDown),
}

/// How it is to be done.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// What it leaves to those who append meanwhile.
    pub speed: Speed,
    /// For how long the swap is tried while readers hold the tables.
    pub swap_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { speed: Speed::default(), swap_timeout: SWAP_TIMEOUT }
    }
}

/// What a rebuild found, and did.
#[derive(Debug, Clone, Default, Serialize, utoipa::ToSchema)]
pub struct Findings {
    /// What is wrong with the log itself, if it was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<Vec<String>>,
    /// How the live tables compare with history, if they were compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Report>,
    /// Whether a verification found nothing wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clean: Option<bool>,
    /// The swap, if it came to that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swapped: Option<SwapReport>,
    /// What was laid down as it stood.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub laid_down: Option<LaidDown>,
    /// How long it took, the comparison apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// How long the comparison took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison_seconds: Option<f64>,
    /// How fast history became tables, from start to swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events_per_second: Option<f64>,
    /// Why it failed; the log of the process has the cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A swap.
#[derive(Debug, Clone, Copy, Serialize, utoipa::ToSchema)]
pub struct SwapReport {
    /// The position of both generations.
    pub position: i64,
    /// How long readers had to wait at most, in milliseconds.
    pub blocked_ms: f64,
}

/// Tables as they stood.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct LaidDown {
    /// The schema in which they are.
    pub schema: String,
    /// The last position that counts.
    pub position: i64,
    /// When they stood like this.
    pub moment: Option<DateTime<Utc>>,
}

/// A rebuild that has begun: no other one runs.
pub struct Rebuild {
    store: EventStore,
    running: Running,
    job: Job,
    options: Options,
}

/// A rebuild that has ended.
pub struct Ended {
    /// What it found, also where it failed.
    pub findings: Findings,
    /// Whether it did what was asked for.
    pub result: Result<(), RebuildError>,
}

impl Job {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Rebuild { .. } => "rebuild",
            Self::DryRun => "dry-run",
            Self::Restore => "restore",
            Self::Rollback => "rollback",
            Self::Verify => "verify",
            Self::LayDown(_) => "until",
        }
    }

    /// Returns the schema in which it builds.
    const fn scratch(&self) -> Option<&'static str> {
        match self {
            Self::Rebuild { .. } | Self::DryRun | Self::Restore => Some(NEXT),
            Self::Rollback => None,
            Self::Verify => Some(SCRATCH),
            Self::LayDown(_) => Some(LAYING),
        }
    }
}

impl Rebuild {
    /// Begins, unless another one runs.
    pub async fn begin(
        store: &EventStore,
        asked: &Asked,
        job: Job,
        options: Options,
    ) -> Result<Self, RebuildError> {
        let running = Running::begin(store, asked, job.kind()).await?;
        Ok(Self { store: store.clone(), running, job, options })
    }

    /// Returns its number.
    pub const fn id(&self) -> i64 {
        self.running.id()
    }

    /// Does it, or breaks off when it is told to stop, and clears up after itself.
    pub async fn carry_out(
        mut self,
        progress: Arc<impl Progress + 'static>,
        stop: &CancellationToken,
    ) -> Ended {
        let (noted, id) = (Noted::new(progress), self.id());
        let (store, options, findings) = (&self.store, self.options, Findings::default());
        let mut work = Work { store, options, progress: &noted, stop, findings };
        let result = tokio::select! {
            result = work.carry_out(&self.job, &mut self.running) => result,
            never = noted.note_all(&self.store, id) => match never {},
        };
        let mut findings = work.findings;
        self.clear_up().await;
        let outcome = match &result {
            Ok(()) => "done",
            Err(RebuildError::Interrupted) => "interrupted",
            Err(_) => "failed",
        };
        findings.error = result.as_ref().err().map(ToString::to_string);
        let ended = self.running.end(outcome, noted.at(), &findings).await;
        Ended { findings, result: result.and(ended) }
    }

    /// What is left after all, the next one clears away.
    async fn clear_up(&mut self) {
        let Some(scratch) = self.job.scratch() else { return };
        let clearing = async {
            self.running.ensure_alone().await?;
            discard(&self.store, scratch).await
        };
        match timeout(CLEAR, clearing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!(error = &error as &dyn std::error::Error, schema = scratch, "could not clear up");
            }
            Err(_) => warn!(schema = scratch, "clearing up took too long"),
        }
    }
}

/// A rebuild at work.
struct Work<'a, P> {
    store: &'a EventStore,
    options: Options,
    progress: &'a Arc<Noted<P>>,
    stop: &'a CancellationToken,
    findings: Findings,
}

impl<P: Progress + 'static> Work<'_, P> {
    async fn carry_out(&mut self, job: &Job, running: &mut Running) -> Result<(), RebuildError> {
        let started = Instant::now();
        match job {
            Job::Rebuild { accept_differences } => {
                let report = self.build_and_compare(NEXT).await?;
                if !report.is_clean() && !accept_differences {
                    return Err(RebuildError::Differences);
                }
                let position = self.swap(running, NEXT).await?;
                self.measure(started, position);
                Ok(())
            }
            Job::DryRun => self.build_and_compare(NEXT).await.map(drop),
            Job::Restore => {
                let (store, speed, progress) = (self.store, self.options.speed, self.progress);
                let building = async {
                    let head = log::head(store.pool()).await.map_err(database("asking for the log's end"))?;
                    build(store, NEXT, head, None, speed, progress).await?;
                    replace_empty(store, NEXT).await?;
                    Ok(head)
                };
                let position = self.unless_stopped(building).await?;
                self.measure(started, position);
                Ok(())
            }
            Job::Rollback => self.swap(running, PREVIOUS).await.map(drop),
            Job::Verify => self.verify().await,
            Job::LayDown(plan) => {
                let parked = self
                    .unless_stopped(plan.carry_out(self.store, self.options.speed, self.progress))
                    .await?;
                if !parked.is_empty() {
                    self.report_damage(parked);
                }
                let schema = plan.schema().as_str().to_owned();
                let (position, moment) = (plan.position(), plan.moment());
                self.findings.laid_down = Some(LaidDown { schema, position, moment });
                self.measure(started, position);
                Ok(())
            }
        }
    }

    async fn build_and_compare(&mut self, schema: &str) -> Result<Report, RebuildError> {
        let (store, speed, progress) = (self.store, self.options.speed, self.progress);
        let building = async {
            let live =
                checkpoint::read(store.pool()).await.map_err(database("looking at the live tables"))?;
            build(store, schema, live.position, None, speed, progress).await
        };
        self.unless_stopped(building).await?;
        progress.phase("comparing", 0);
        let started = Instant::now();
        let report = self.unless_stopped(compare(store, schema, speed)).await?;
        self.findings.comparison_seconds = Some(started.elapsed().as_secs_f64());
        progress.compared(&report);
        self.findings.comparison = Some(report.clone());
        Ok(report)
    }

    async fn swap(&mut self, running: &mut Running, schema: &str) -> Result<i64, RebuildError> {
        self.progress.phase("swapping", 0);
        let Swapped { position, blocked } =
            swap(self.store, running, schema, self.options.swap_timeout, &**self.progress, self.stop).await?;
        let blocked_ms = blocked.as_secs_f64() * 1000.0;
        self.findings.swapped = Some(SwapReport { position, blocked_ms });
        Ok(position)
    }

    async fn verify(&mut self) -> Result<(), RebuildError> {
        let (store, progress) = (self.store, self.progress);
        progress.phase("reading the log", 0);
        let reading = async {
            let failed = database("reading the log");
            let shown = checkpoint::read(store.pool()).await.map_err(&failed)?.position;
            let mut problems = log::check(store.pool()).await.map_err(&failed)?;
            let head = log::head(store.pool()).await.map_err(&failed)?;
            if shown > head {
                problems.push(format!("the tables show position {shown}, the log ends at {head}"));
            }
            // What the tables show is looked at when it is folded.
            problems.extend(unreadable(store, shown).await?);
            Ok(problems)
        };
        let problems = self.unless_stopped(reading).await?;
        self.report_damage(problems);
        let report = self.build_and_compare(SCRATCH).await?;
        let parked = self.unless_stopped(parked_in(store, SCRATCH)).await?;
        self.report_damage(parked);
        let sound = self.findings.log.as_ref().is_none_or(Vec::is_empty);
        let same = report.is_clean();
        self.findings.clean = Some(sound && same);
        match (sound, same) {
            (true, true) => Ok(()),
            (true, false) => Err(RebuildError::Unproven),
            (false, _) => Err(RebuildError::Damaged),
        }
    }

    /// Tells what is wrong with the log, as soon as it is known, and once.
    fn report_damage(&mut self, problems: Vec<String>) {
        let known = self.findings.log.get_or_insert_default();
        for problem in problems {
            if !known.contains(&problem) {
                self.progress.damaged(&problem);
                known.push(problem);
            }
        }
    }

    fn measure(&mut self, started: Instant, position: i64) {
        let compared_in = self.findings.comparison_seconds.unwrap_or_default();
        let seconds = started.elapsed().as_secs_f64() - compared_in;
        self.findings.seconds = Some(seconds);
        self.findings.events_per_second = Some(position as f64 / seconds);
    }

    async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T, RebuildError>>,
    ) -> Result<T, RebuildError> {
        self.stop.run_until_cancelled(work).await.unwrap_or(Err(RebuildError::Interrupted))
    }
}

/// Returns which events a generation does not show, and why: what waits behind one of them apart.
pub(super) async fn parked_in(store: &EventStore, schema: &str) -> Result<Vec<String>, RebuildError> {
    let failed = database("reading what is parked");
    let mut connection = connect(store, schema).await?;
    let generation = checkpoint::read(&mut connection).await.map_err(&failed)?.generation;
    let parked =
        parked_events::heads(&mut connection, generation, 0, UNREADABLE as i64).await.map_err(&failed)?;
    let problem = |row: ParkedRow| {
        let reason = row.reason.unwrap_or_default();
        format!("the event at position {} cannot be applied: {reason}", row.position)
    };
    Ok(parked.into_iter().map(problem).collect())
}

/// Returns which events after position `after` cannot be decoded, and why, as far as the log has no hole.
async fn unreadable(store: &EventStore, mut after: i64) -> Result<Vec<String>, RebuildError> {
    let mut found = vec![];
    while found.len() < UNREADABLE {
        let mut batch = match log::read(store.pool(), after, BATCH).await {
            // Which is known by now.
            Err(LogError::Hole { .. }) => break,
            read => read?,
        };
        let Some(last) = batch.last() else { break };
        after = last.position;
        // All of it is looked at, also what is in no table.
        let opened = store.keyring().open_stored(store.pool(), &mut batch, Needs::Everything).await;
        opened.map_err(|error| database("reading the keys")(error.into()))?;
        for error in batch.iter().filter_map(|event| event.decode().err()) {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            found.push(format!("{error}{}", cause.unwrap_or_default()));
        }
    }
    found.truncate(UNREADABLE);
    Ok(found)
}
