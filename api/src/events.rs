//! `events`: prints the log, one line an event.

use std::time::Duration;

use clap::Args;
use domain::ids::MeetingId;
use domain::meeting::MeetingEvent;
use domain::profile::ProfileEvent;
use event_store::log::{self, BatchLimits, LogError, StoredEvent};
use event_store::retry::{backoff, is_transient};
use event_store::sealing::Needs;
use projections::access::{self, Access, What, Who};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::sleep;

use crate::book::Book;
use crate::cli::Done;
use crate::terminal;

const BATCH: BatchLimits = BatchLimits { events: 1000, bytes: 4 * 1024 * 1024 };

/// What to print, and for how long.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Go on as events are appended, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    /// The first position
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    from: i64,
    /// Only events of this type, such as MeetingCompleted
    #[arg(long = "type", value_name = "T", value_parser = known_type)]
    event_type: Option<String>,
    /// Only events of this meeting
    #[arg(long, value_name = "ID")]
    meeting: Option<MeetingId>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// A mistyped name would wait for ever for an event that never comes.
fn known_type(name: &str) -> Result<String, String> {
    let mut names = MeetingEvent::NAMES.iter().chain(&ProfileEvent::NAMES);
    if names.any(|known| *known == name) {
        return Ok(name.to_owned());
    }
    let names = [MeetingEvent::NAMES.as_slice(), &ProfileEvent::NAMES].concat();
    Err(format!("no event has this name; there are {}", names.join(", ")))
}

/// Prints the events asked for.
pub async fn run(book: &Book, args: &EventsArgs) -> anyhow::Result<Done> {
    if args.json {
        // Before it is given, as names and voices are in it: what cannot be noted is not taken out.
        let target = args.meeting.map(|id| id.to_string());
        access::record(book.pool(), &Access::allowed(Who::operator(), What::ExportEvents, target)).await?;
    }
    let mut head = book.store.head().subscribe();
    let mut position = args.from - 1;
    let meeting = args.meeting.map(|id| id.to_string());
    let mut failures = 0;
    loop {
        // Marked as seen before reading: an append that comes while we read wakes us again.
        head.mark_unchanged();
        let mut batch = match log::read(book.pool(), position, BATCH).await {
            // Whoever follows stays for as long as it takes, and misses nothing.
            Err(LogError::Database { source, .. }) if args.follow && is_transient(&source) => {
                failures += 1;
                sleep(backoff(failures, Duration::from_millis(50), Duration::from_secs(5))).await;
                continue;
            }
            read => read?,
        };
        failures = 0;
        book.store.keyring().open_stored(book.pool(), &mut batch, Needs::NoClusters).await?;
        let Some(last) = batch.last() else {
            if !args.follow {
                return Ok(Done::Whole);
            }
            let _ = tokio::time::timeout(Duration::from_secs(1), head.changed()).await;
            continue;
        };
        position = last.position;
        let wanted = |event: &&StoredEvent| {
            args.event_type.as_ref().is_none_or(|wanted| *wanted == event.event_type)
                && meeting.as_ref().is_none_or(|id| *id == event.aggregate_id)
        };
        for event in batch.iter().filter(wanted) {
            terminal::print(if args.json { json_line(event)? } else { text_line(event)? })?;
        }
    }
}

/// An event as one JSON line.
#[derive(Serialize)]
struct EventLine<'a> {
    position: i64,
    recorded_at: chrono::DateTime<chrono::Utc>,
    aggregate_type: &'a str,
    aggregate_id: &'a str,
    sequence: i64,
    #[serde(rename = "type")]
    event_type: &'a str,
    version: &'a str,
    payload: &'a RawValue,
    metadata: &'a RawValue,
}

fn json_line(event: &StoredEvent) -> serde_json::Result<String> {
    serde_json::to_string(&EventLine {
        position: event.position,
        recorded_at: event.recorded_at,
        aggregate_type: &event.aggregate_type,
        aggregate_id: &event.aggregate_id,
        sequence: event.sequence,
        event_type: &event.event_type,
        version: &event.event_version,
        payload: serde_json::from_str(&event.payload)?,
        metadata: serde_json::from_str(&event.metadata)?,
    })
}

#[derive(serde::Deserialize)]
struct Actor {
    actor: String,
    actor_kind: String,
}

fn text_line(event: &StoredEvent) -> serde_json::Result<String> {
    let Actor { actor, actor_kind } = serde_json::from_str(&event.metadata)?;
    let at = event.recorded_at.format("%Y-%m-%dT%H:%M:%S%.3fZ");
    Ok(format!(
        "{:>8}  {at}  {:<22}  {} {} #{}  {actor_kind}:{actor}",
        event.position, event.event_type, event.aggregate_type, event.aggregate_id, event.sequence
    ))
}
