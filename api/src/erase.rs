//! `profile erase` and `meeting erase`: forget a person or a meeting, wait until that is carried out everywhere,
//! and print the receipt.

use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use domain::ids::{MeetingId, ProfileId};
use domain::text::Reason;
use event_store::command_bus::Context;
use projections::access::{Access, What, Who, record};
use projections::erasure::{self, Erasure};
use tokio::time::Instant;
use uuid::Uuid;

use crate::book::Book;
use crate::cli::Done;
use crate::clock::now;
use crate::terminal;

/// How long the erasure is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// What to do with meetings.
#[derive(Debug, Subcommand)]
pub enum Meeting {
    /// Forget a meeting: its rows, and the keys of all that refers to people in it
    Erase(EraseMeeting),
}

/// Which meeting to forget.
#[derive(Debug, Args)]
pub struct EraseMeeting {
    /// The meeting's id
    #[arg(value_name = "ID")]
    id: Uuid,
    /// Why; it is kept for good, so it names nobody
    #[arg(long)]
    reason: Reason,
    #[command(flatten)]
    how: How,
}

/// Which person to forget.
#[derive(Debug, Args)]
pub struct EraseProfile {
    /// The profile's id
    #[arg(value_name = "ID")]
    id: Uuid,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
struct How {
    /// Print the receipt as one JSON object
    #[arg(long)]
    json: bool,
}

/// Forgets a person.
pub async fn profile(book: &Book, args: &EraseProfile) -> anyhow::Result<Done> {
    let (id, context) = (ProfileId::from(args.id), context());
    let asked = Access::allowed(Who::operator(), What::EraseProfile, Some(args.id.to_string()));
    record(book.pool(), &asked).await?;
    let erased = erasure::erase_profile(&book.store, &book.bus, id, now(), &context);
    erased.await.context("the person cannot be erased")?;
    carry_out(book, args.id, &args.how).await
}

/// Forgets a meeting.
pub async fn meeting(book: &Book, what: &Meeting) -> anyhow::Result<Done> {
    let Meeting::Erase(args) = what;
    let (id, reason, context) = (MeetingId::from(args.id), args.reason.clone(), context());
    let asked = Access::allowed(Who::operator(), What::EraseMeeting, Some(args.id.to_string()));
    record(book.pool(), &asked).await?;
    let erased = erasure::erase_meeting(&book.store, &book.bus, id, reason, now(), &context);
    erased.await.context("the meeting cannot be erased")?;
    carry_out(book, args.id, &args.how).await
}

fn context() -> Context {
    Context::system("cli")
}

/// Carries it out here, where no server does.
async fn carry_out(book: &Book, subject: Uuid, how: &How) -> anyhow::Result<Done> {
    book.start_projector();
    book.start_erasures();
    let erasure = erasure::wait(book.pool(), subject, Instant::now() + PATIENCE).await?;
    let erasure = erasure.context("the erasure has no receipt")?;
    if how.json {
        terminal::print(serde_json::to_string_pretty(&erasure)?)?;
    } else {
        terminal::print(shown(&erasure))?;
    }
    Ok(if erasure.completed_at.is_some() { Done::Whole } else { Done::Partly })
}

fn shown(erasure: &Erasure) -> String {
    let Erasure { subject, position, erased_at, keys, speakers, meetings, .. } = erasure;
    let what = format!(
        "{} {subject} was erased at position {position}, {erased_at}: {keys} keys destroyed, of {speakers} \
         speakers in {meetings} meetings",
        erasure.kind.name()
    );
    match (&erasure.completed_at, &erasure.waits_for) {
        (Some(completed_at), _) => format!("{what}\ncomplete since {completed_at}"),
        (None, Some(waits_for)) => format!("{what}\nunder way: it waits for {waits_for}"),
        (None, None) => format!("{what}\nunder way: a server carries it on"),
    }
}
