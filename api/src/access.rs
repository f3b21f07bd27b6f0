//! The audit of access: how it is written without costing more than what it is about, and how the command line
//! shows it. See [`projections::access`] for what it holds.

use std::collections::HashMap;
use std::time::Duration;

use clap::Args;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use projections::access::{self, Access, AccessFilter, Noted, Outcome, What, Who};
use serde::Deserialize;
use sqlx::PgPool;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::audit::{ActorFilter, Format, Moment};
use crate::book::Book;
use crate::cli::Done;
use crate::terminal;

/// How many refusals may wait to be noted; of further ones only their number is kept.
const WAITING: usize = 1024;
/// For how long refusals that are alike are noted together.
const WINDOW: Duration = Duration::from_secs(60);
/// How many kinds of refusals a window tells apart: nobody can fill the disk by being refused.
const KINDS: usize = 100;
/// What stands for the kinds beyond, of strangers.
const OTHERS: &str = "others";
/// And of those who had a valid token.
const OTHERS_KNOWN: &str = "others_known";
/// How many rows are read, and kept, at once.
const PAGE: i64 = 500;

/// A request that was refused for want of a right.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Refusal {
    /// Who asked; `None` for whoever had no valid token.
    pub who: Option<Who>,
    /// The method and the route, without what stood in the path; `any` for a method that the route does not have.
    pub route: String,
    /// The problem's code.
    pub code: &'static str,
}

/// Takes refusals; never waits, and never fails a request. Those of whoever is known are apart from those of
/// strangers: however often these are turned away, they hide nobody.
#[derive(Debug, Clone)]
pub struct Refusals {
    known: mpsc::Sender<Refusal>,
    strangers: mpsc::Sender<Refusal>,
}

impl Refusals {
    /// Returns where refusals are put, and what notes them until the end.
    pub fn new(pool: PgPool, shutdown: CancellationToken) -> (Self, impl Future<Output = ()>) {
        let (known, of_known) = mpsc::channel(WAITING);
        let (strangers, of_strangers) = mpsc::channel(WAITING);
        let noting = async move {
            tokio::join!(note(&pool, of_known, &shutdown), note(&pool, of_strangers, &shutdown));
        };
        (Self { known, strangers }, noting)
    }

    /// Takes a refusal to be noted.
    pub fn put(&self, refusal: Refusal) {
        let waiting = if refusal.who.is_some() { &self.known } else { &self.strangers };
        if waiting.try_send(refusal).is_err() {
            metrics::counter!("minutebook_refusals_not_noted_total").increment(1);
        }
    }
}

/// Notes the first of each kind in a window at once, and the number of the others when the window is over.
async fn note(pool: &PgPool, mut refusals: mpsc::Receiver<Refusal>, shutdown: &CancellationToken) {
    let mut windows = interval(WINDOW);
    windows.set_missed_tick_behavior(MissedTickBehavior::Delay);
    windows.tick().await;
    let mut seen = HashMap::<Refusal, i32>::new();
    loop {
        tokio::select! {
            refusal = refusals.recv() => {
                let Some(refusal) = refusal else { break };
                if let Some(first) = count(&mut seen, refusal) {
                    write(pool, first, 1).await;
                }
            }
            _ = windows.tick() => flush(pool, &mut seen).await,
            () = shutdown.cancelled() => break,
        }
    }
    flush(pool, &mut seen).await;
}

/// Counts a refusal; returns it if it is the first of its kind.
fn count(seen: &mut HashMap<Refusal, i32>, refusal: Refusal) -> Option<Refusal> {
    if let Some(times) = seen.get_mut(&refusal) {
        *times = times.saturating_add(1);
        return None;
    }
    if seen.len() < KINDS {
        seen.insert(refusal.clone(), 0);
        return Some(refusal);
    }
    let others = if refusal.who.is_some() { OTHERS_KNOWN } else { OTHERS };
    let others = Refusal { who: None, route: others.to_owned(), code: others };
    let times = seen.entry(others).or_insert(0);
    *times = times.saturating_add(1);
    None
}

async fn flush(pool: &PgPool, seen: &mut HashMap<Refusal, i32>) {
    for (refusal, times) in seen.drain() {
        if times > 0 {
            write(pool, refusal, times).await;
        }
    }
}

async fn write(pool: &PgPool, Refusal { who, route, code }: Refusal, times: i32) {
    let (what, outcome) = (What::Request(route), Outcome::Refused);
    let access = Access { who, what, target: None, outcome, code: Some(code), times };
    if let Err(error) = access::record(pool, &access).await {
        error!(error = &error as &dyn std::error::Error, "a refusal could not be noted");
    }
}

/// A word of a filter: a role, a route.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Word(pub String);

impl TryFrom<String> for Word {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, &'static str> {
        let plain = (1..=200).contains(&text.len()) && text.bytes().all(|b| (b' '..=b'~').contains(&b));
        if plain { Ok(Self(text)) } else { Err("must be 1 to 200 printable ASCII characters") }
    }
}

impl std::str::FromStr for Word {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, &'static str> {
        text.to_owned().try_into()
    }
}

/// Returns the filter for what is asked for, on the command line or over HTTP.
pub fn filter(
    who: Option<ActorFilter>,
    role: Option<Word>,
    what: Option<Word>,
    target: Option<Word>,
    outcome: Option<Outcome>,
    from: Option<Moment>,
    to: Option<Moment>,
) -> AccessFilter {
    let (kind, who) = who.map_or((None, None), |who| (who.kind, Some(who.id)));
    let word = |word: Option<Word>| word.map(|word| word.0);
    AccessFilter {
        who,
        kind,
        role: word(role),
        what: word(what),
        target: word(target),
        outcome,
        from: from.map(|moment| moment.0),
        to: to.map(|moment| moment.0),
    }
}

/// Which accesses to print, and how.
#[derive(Debug, Args)]
pub struct AccessArgs {
    /// Only those by this one: `person:reviewer-7`, or the id alone
    #[arg(long, value_name = "ACTOR")]
    who: Option<ActorFilter>,
    /// Only those in this role
    #[arg(long, value_name = "ROLE")]
    role: Option<Word>,
    /// Only these: `read_voices`, `export_events`, `backup`, or a method and a route
    #[arg(long, value_name = "WHAT")]
    what: Option<Word>,
    /// Only those about what has this id
    #[arg(long, value_name = "ID")]
    target: Option<Word>,
    /// Only those that ended so: `allowed` or `refused`
    #[arg(long, value_name = "OUTCOME")]
    outcome: Option<Outcome>,
    /// Only those at this time or later: `2026-11-01`, or `2026-11-01T09:00:00Z`
    #[arg(long, value_name = "TIME")]
    from: Option<Moment>,
    /// Only those before this time
    #[arg(long, value_name = "TIME")]
    to: Option<Moment>,
    /// At most so many, the newest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    limit: Option<i64>,
    /// As a table for people, or as one JSON object a line
    #[arg(long, default_value = "table")]
    format: Format,
}

/// Prints what was asked for.
pub async fn run(book: &Book, args: AccessArgs) -> anyhow::Result<Done> {
    let AccessArgs { who, role, what, target, outcome, from, to, limit, format } = args;
    let filter = filter(who, role, what, target, outcome, from, to);
    anyhow::ensure!(format != Format::Csv, "accesses are shown as a table or as JSON");
    let (mut before, mut left) = (None, limit.unwrap_or(i64::MAX));
    loop {
        let rows = access::noted(book.pool(), &filter, before, left.min(PAGE)).await?;
        let Some(last) = rows.last() else { return Ok(Done::Whole) };
        before = Some(last.id);
        left = left.saturating_sub(i64::try_from(rows.len())?);
        match format {
            Format::Table | Format::Csv => terminal::print(table(&rows).trim_fmt())?,
            Format::Json => {
                for row in &rows {
                    terminal::print(serde_json::to_string(row)?)?;
                }
            }
        }
        if left == 0 {
            return Ok(Done::Whole);
        }
    }
}

fn table(rows: &[Noted]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    table.set_header(["id", "at", "who", "role", "what", "target", "outcome", "times"]);
    for row in rows {
        let who = row.who.as_ref().map(|who| format!("{}:{who}", row.kind.as_deref().unwrap_or("?")));
        let code = row.code.as_ref().map(|code| format!(" ({code})")).unwrap_or_default();
        table.add_row([
            row.id.to_string(),
            row.at.format("%Y-%m-%d %H:%M:%S UTC").to_string(),
            who.unwrap_or_else(|| "nobody known".to_owned()),
            row.role.clone().unwrap_or_default(),
            row.what.clone(),
            row.target.clone().unwrap_or_default(),
            format!("{}{code}", row.outcome),
            row.times.to_string(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_refusals_without_end_a_bounded_number_is_told_apart() {
        let mut seen = HashMap::new();
        let refusal = |n: usize| Refusal { who: None, route: format!("GET /{n}"), code: "token_required" };
        let noted = (0..100_000).filter_map(|n| count(&mut seen, refusal(n % 1000))).count();
        assert_eq!(noted, KINDS);
        assert_eq!(seen.len(), KINDS + 1);
        let counted = seen.values().map(|times| i64::from(*times)).sum::<i64>();
        assert_eq!(noted as i64 + counted, 100_000, "none is lost");
    }
}
