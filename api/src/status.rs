//! `status`: how the log and the tables stand.

use chrono::{DateTime, Utc};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use projections::erasure::{self, Unfinished};
use projections::feed::publication::{self, Publication, Said};
use projections::freshness;
use projections::queries::{self, MeetingCounts};
use projections::rebuild::running::{self, RebuildRow};
use projections::tables::parked_events::{self, Waiting};
use projections::voice_index::{self, Followers};
use serde::Serialize;
use uuid::Uuid;

use crate::book::Book;
use crate::cli::Done;
use crate::terminal;

#[derive(Serialize)]
pub(crate) struct Status {
    pub(crate) database: Database,
    pub(crate) log: Log,
    pub(crate) read_models: ReadModels,
    /// The voices by which speakers are named, if a process names any.
    pub(crate) voices: Option<Voices>,
    pub(crate) parked: Waiting,
    /// What is to be forgotten and is not yet gone everywhere.
    pub(crate) unfinished_erasures: Unfinished,
    /// The streams to which the change feed goes.
    pub(crate) feed: Vec<Feed>,
    /// The rebuild that runs, if one does.
    pub(crate) rebuild: Option<RebuildRow>,
    pub(crate) meetings: MeetingCounts,
}

#[derive(Serialize)]
pub(crate) struct Feed {
    pub(crate) stream: String,
    pub(crate) epoch: Uuid,
    pub(crate) position: i64,
    pub(crate) lag_events: i64,
    /// `active`, `waiting`, `refused`, `standby` or `stopped`.
    pub(crate) state: String,
    pub(crate) detail: Option<String>,
    pub(crate) since: DateTime<Utc>,
}

#[derive(Serialize)]
pub(crate) struct Database {
    pub(crate) url: String,
    pub(crate) version: String,
    pub(crate) embedded: Option<Embedded>,
}

#[derive(Serialize)]
pub(crate) struct Embedded {
    pub(crate) data_dir: String,
    pub(crate) binaries: String,
    pub(crate) psql: String,
}

#[derive(Serialize)]
pub(crate) struct Log {
    pub(crate) id: Uuid,
    pub(crate) epoch: Uuid,
    pub(crate) head: i64,
}

#[derive(Serialize)]
pub(crate) struct ReadModels {
    pub(crate) position: i64,
    pub(crate) lag_events: i64,
    pub(crate) lag_seconds: f64,
}

#[derive(Serialize)]
pub(crate) struct Voices {
    pub(crate) processes: i64,
    pub(crate) position: i64,
    pub(crate) lag_events: i64,
    /// How long ago that was, where the log has gone on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) noted_seconds: Option<f64>,
}

/// Prints the status.
pub async fn run(book: &Book, json: bool) -> anyhow::Result<Done> {
    let status = status(book).await?;
    if json {
        terminal::print(serde_json::to_string_pretty(&status)?)?;
    } else {
        terminal::print(table(&status).trim_fmt())?;
    }
    Ok(Done::Whole)
}

/// Returns how the log and the tables stand.
pub(crate) async fn status(book: &Book) -> Result<Status, sqlx::Error> {
    let pool = book.pool();
    let lag = freshness::lag(pool, Utc::now()).await?;
    let version = sqlx::query_scalar("SHOW server_version").fetch_one(pool).await?;
    let embedded = book.embedded().map(|embedded| Embedded {
        data_dir: embedded.data_dir.display().to_string(),
        binaries: embedded.binaries.display().to_string(),
        psql: embedded.psql_command(),
    });
    let identity = book.store.identity();
    Ok(Status {
        database: Database { url: book.shown_url(), version, embedded },
        log: Log { id: identity.log_id, epoch: identity.epoch, head: lag.head },
        read_models: ReadModels { position: lag.position, lag_events: lag.events, lag_seconds: lag.seconds },
        voices: voice_index::followers(pool).await?.map(|followers| voices(followers, lag.head)),
        parked: parked_events::waiting(pool).await?,
        unfinished_erasures: erasure::unfinished(pool).await?,
        feed: publication::all(pool).await?.into_iter().map(|said| feed(said, lag.head)).collect(),
        rebuild: running::current(&book.store).await?,
        meetings: queries::meeting_counts(pool).await?,
    })
}

/// Each process notes now and then how far it is, so it is that far at least.
const fn voices(followers: Followers, head: i64) -> Voices {
    let Followers { processes, position, noted_seconds } = followers;
    let lag_events = if head > position { head - position } else { 0 };
    let noted_seconds = if lag_events > 0 { Some(noted_seconds) } else { None };
    Voices { processes, position, lag_events, noted_seconds }
}

fn feed(said: Said, head: i64) -> Feed {
    let Said { stream, publication: Publication { epoch, position, .. }, state, detail, since, lost_up_to } =
        said;
    let lost = (lost_up_to > 0).then(|| {
        format!("the broker has lost events up to position {lost_up_to}: `minutebook publish --from 1` puts them back")
    });
    let detail = detail.or(lost);
    Feed { stream, epoch, position, lag_events: (head - position).max(0), state, detail, since }
}

fn table(status: &Status) -> Table {
    let Status { database, log, read_models, voices, parked, unfinished_erasures, feed, rebuild, meetings } =
        status;
    let mut table = Table::new();
    table.load_preset(NOTHING);
    let mut row = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    row("database", format!("{} (PostgreSQL {})", database.url, database.version));
    if let Some(embedded) = &database.embedded {
        row("", format!("embedded, data in {}, programs in {}", embedded.data_dir, embedded.binaries));
        row("psql", embedded.psql.clone());
    }
    row("log", format!("head {}, epoch {}", log.head, log.epoch));
    let lag = match read_models.lag_events {
        0 => "up to date".to_owned(),
        events => format!("{events} events behind, the oldest for {:.1} s", read_models.lag_seconds),
    };
    row("tables", format!("position {}, {lag}", read_models.position));
    if let Some(Voices { processes, position, lag_events, noted_seconds }) = voices {
        // The log may have gone on since.
        let lag = noted_seconds.map_or_else(
            || "up to date".to_owned(),
            |seconds| format!("noted {seconds:.1} s ago, {lag_events} events before the log's end"),
        );
        let processes =
            if *processes == 1 { "1 process".to_owned() } else { format!("{processes} processes") };
        row("voices", format!("position {position}, {lag}, in {processes}"));
    }
    if parked.events > 0 {
        let Waiting { events, aggregates, seconds } = parked;
        let text = format!(
            "{events} events of {aggregates} meetings or profiles, the oldest for {seconds:.0} s: `minutebook parked list`"
        );
        row("parked", text);
    }
    if unfinished_erasures.erasures > 0 {
        let Unfinished { erasures, seconds } = unfinished_erasures;
        row("erasures", format!("{erasures} under way, the oldest for {seconds:.0} s: GET /v1/erasures"));
    }
    for Feed { stream, position, lag_events, state, detail, since, .. } in feed {
        let lag =
            if *lag_events == 0 { "up to date".to_owned() } else { format!("{lag_events} events behind") };
        row("feed", format!("stream {stream}: position {position}, {lag}"));
        let detail = detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default();
        row("", format!("{state} since {}{detail}", since.format("%Y-%m-%d %H:%M:%S UTC")));
    }
    if let Some(RebuildRow { kind, who, started_at, phase, done, total, percentage, .. }) = rebuild {
        row(kind, format!("by {who}, since {}", started_at.format("%Y-%m-%d %H:%M:%S UTC")));
        let events = percentage.map(|percentage| format!(": {done} of {total} events, {percentage:.1} %"));
        row("", format!("{phase}{}", events.unwrap_or_default()));
    }
    row(
        "meetings",
        format!(
            "{} pending, {} processing, {} completed, {} failed",
            meetings.pending, meetings.processing, meetings.completed, meetings.failed
        ),
    );
    table
}
