//! `parked`: the events that cannot be applied, and what is to become of them.

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use comfy_table::Table;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use event_store::log::{self, BatchLimits};
use event_store::sealing::Needs;
use projections::parked::{self, LONGEST_REASON, ParkedError, Retried};
use projections::tables::checkpoint;
use projections::tables::parked_events::{self, ParkedRow};
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::book::Book;
use crate::cli::Done;
use crate::extract::is_actor;
use crate::terminal;

/// How many are read at once.
const PAGE: i64 = 500;
/// How many of the latest decisions are shown.
const DECISIONS: i64 = 20;

/// What to do with parked events.
#[derive(Debug, Subcommand)]
pub enum Parked {
    /// Show the events that cannot be applied, and how many wait behind each
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show one of them with all that the log has of it, and what waits behind it
    Show {
        /// Its position
        position: i64,
    },
    /// Try again, in order, as far as the events can be applied now
    Retry(RetryArgs),
    /// Take all effect from an event for ever, and apply what waits behind it
    Skip {
        /// Its position
        position: i64,
        /// Why; kept with the decision, told to no subscriber
        #[arg(long, value_parser = reason)]
        reason: String,
        /// Who decides
        #[arg(long, default_value = ACTOR, value_name = "KIND:ID", value_parser = actor)]
        actor: String,
        /// Report as one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// What to try again.
#[derive(Debug, Args)]
pub struct RetryArgs {
    /// The position of a parked event
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    position: Option<i64>,
    /// All of them
    #[arg(long)]
    all: bool,
    /// Who decides
    #[arg(long, default_value = ACTOR, value_name = "KIND:ID", value_parser = actor)]
    actor: String,
    /// Report as JSON, one object a line
    #[arg(long)]
    json: bool,
}

/// Who decides where nobody is named.
pub const ACTOR: &str = "system:command-line";

fn reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() || text.chars().count() > LONGEST_REASON || text.contains('\0') {
        return Err(format!("a reason has 1 to {LONGEST_REASON} characters"));
    }
    Ok(text.to_owned())
}

/// Takes the name of somebody who acts.
pub fn actor(text: &str) -> Result<String, String> {
    let problem = "an actor is person, service or system, a colon, and an opaque id such as reviewer-7";
    is_actor(text).then(|| text.to_owned()).ok_or_else(|| problem.to_owned())
}

/// Carries it out.
pub async fn run(book: &Book, what: &Parked) -> anyhow::Result<Done> {
    match what {
        Parked::List { json } => list(book, *json).await,
        Parked::Show { position } => show(book, *position).await,
        Parked::Retry(args) => retry(book, args).await,
        Parked::Skip { position, reason, actor, json } => {
            let retried = parked::skip(&book.store, *position, reason, actor).await?;
            if !json {
                terminal::print(format_args!("the event at position {position} has no effect from now on"))?;
            }
            tell(&retried, *json)
        }
    }
}

async fn list(book: &Book, json: bool) -> anyhow::Result<Done> {
    let mut table = Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY);
    table.set_header(["position", "event", "aggregate", "waiting behind it", "since", "reason"]);
    let heads = heads(book).await?;
    let generation = checkpoint::read(book.pool()).await?.generation;
    for head in &heads {
        let ParkedRow { position, aggregate_type, aggregate_id, event_type, reason, parked_at, .. } = head;
        let all =
            parked_events::of_aggregate(book.pool(), generation, aggregate_type, aggregate_id).await?.len();
        let behind = all.saturating_sub(1);
        if json {
            terminal::print(serde_json::to_string(&Listed { row: head, waiting_behind: behind })?)?;
        }
        table.add_row([
            position.to_string(),
            event_type.clone(),
            format!("{aggregate_type} {aggregate_id}"),
            behind.to_string(),
            parked_at.format("%Y-%m-%d %H:%M:%S UTC").to_string(),
            reason.clone().unwrap_or_default(),
        ]);
    }
    if !json {
        if heads.is_empty() {
            terminal::print("nothing is parked")?;
        } else {
            terminal::print(table)?;
        }
        tell_decisions(book).await?;
    }
    Ok(Done::Whole)
}

#[derive(Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    row: &'a ParkedRow,
    waiting_behind: usize,
}

async fn tell_decisions(book: &Book) -> anyhow::Result<()> {
    for decision in parked::decisions(book.pool(), DECISIONS).await? {
        let reason = decision.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        terminal::print(format_args!(
            "{} position {} {} by {}{reason}",
            decision.decided_at.format("%Y-%m-%d %H:%M:%S UTC"),
            decision.position,
            decision.outcome,
            decision.actor
        ))?;
    }
    Ok(())
}

async fn heads(book: &Book) -> anyhow::Result<Vec<ParkedRow>> {
    let generation = checkpoint::read(book.pool()).await?.generation;
    let mut heads: Vec<ParkedRow> = vec![];
    loop {
        let after = heads.last().map_or(0, |head| head.position);
        let mut page = parked_events::heads(book.pool(), generation, after, PAGE).await?;
        if page.is_empty() {
            return Ok(heads);
        }
        heads.append(&mut page);
    }
}

async fn show(book: &Book, position: i64) -> anyhow::Result<Done> {
    let generation = checkpoint::read(book.pool()).await?.generation;
    let row = parked_events::at(book.pool(), generation, position).await?;
    let row = row.with_context(|| {
        format!("no event is parked at position {position}; `minutebook parked list` shows those that are")
    })?;
    let mut stored = log::read(book.pool(), position - 1, BatchLimits { events: 1, bytes: 1 }).await?;
    book.store.keyring().open_stored(book.pool(), &mut stored, Needs::NoClusters).await?;
    let stored = stored.first().context("the log has no such position")?;
    let waiting =
        parked_events::of_aggregate(book.pool(), generation, &row.aggregate_type, &row.aggregate_id).await?;
    let text = json!({
        "parked": row,
        "event": {
            "recorded_at": stored.recorded_at,
            "version": stored.event_version,
            "payload": RawValue::from_string(stored.payload.clone())?,
            "metadata": RawValue::from_string(stored.metadata.clone())?,
        },
        "positions_of_the_aggregate": waiting.iter().map(|event| event.position).collect::<Vec<_>>(),
    });
    terminal::print(serde_json::to_string_pretty(&text)?)?;
    Ok(Done::Whole)
}

async fn retry(book: &Book, args: &RetryArgs) -> anyhow::Result<Done> {
    let positions = match args.position {
        Some(position) => vec![position],
        None => heads(book).await?.iter().map(|head| head.position).collect(),
    };
    if positions.is_empty() && !args.json {
        terminal::print("nothing is parked")?;
    }
    let mut done = Done::Whole;
    for position in positions {
        let retried = match parked::retry(&book.store, position, &args.actor).await {
            // Somebody else was quicker.
            Err(ParkedError::NotParked { .. }) if args.all => continue,
            retried => retried?,
        };
        if tell(&retried, args.json)? != Done::Whole {
            done = Done::Partly;
        }
    }
    Ok(done)
}

fn tell(retried: &Retried, json: bool) -> anyhow::Result<Done> {
    let Retried { aggregate_type, aggregate_id, applied, stuck_at, reason, waiting } = retried;
    if json {
        terminal::print(serde_json::to_string(retried)?)?;
    } else {
        terminal::print(format_args!("{aggregate_type} {aggregate_id}: {applied} events applied"))?;
    }
    let Some(position) = stuck_at else {
        ensure!(*waiting == 0, "{waiting} events still wait");
        return Ok(Done::Whole);
    };
    if !json {
        let reason = reason.as_deref().unwrap_or_default();
        terminal::note(format_args!(
            "the event at position {position} still cannot be applied: {reason}; {waiting} events wait"
        ));
    }
    Ok(Done::Partly)
}
