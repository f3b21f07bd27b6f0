//! `publish`: puts events on the broker's stream again.

use clap::Args;
use projections::feed::{publication, refill};
use projections::tables::checkpoint;
use serde_json::json;

use crate::book::Book;
use crate::cli::Done;
use crate::config::NatsConfig;
use crate::terminal;

/// What to publish again.
#[derive(Debug, Args)]
pub struct PublishArgs {
    /// The first position
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    from: i64,
    /// The last position; without it all that the tables show
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(i64).range(1..))]
    to: Option<i64>,
    /// Report as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    nats: NatsConfig,
}

/// Publishes again.
pub async fn run(book: &Book, args: &PublishArgs) -> anyhow::Result<Done> {
    let Some(stream) = args.nats.stream() else {
        anyhow::bail!("no broker is named: --nats-url or NATS_URL does so")
    };
    // Subscribers act on what the tables show: nothing beyond is told.
    let shown = checkpoint::read(book.pool()).await?.position;
    let to = args.to.unwrap_or(shown);
    anyhow::ensure!(
        to <= shown,
        "the tables show the history up to position {shown}: --to must not be beyond it"
    );
    anyhow::ensure!(args.from <= to || args.to.is_none(), "--from must not be after --to");

    let first = args.from.min(to + 1);
    let bar = terminal::bar(u64::try_from(to + 1 - first).unwrap_or(0), "publishing");
    let progress = |position: i64| bar.set_position(u64::try_from(position + 1 - first).unwrap_or(0));
    let sent = refill::refill(&book.store, &stream, first, to, progress).await;
    bar.finish_and_clear();
    let sent = sent?;
    publication::mended(book.pool(), &stream.name, first, to).await?;
    if args.json {
        terminal::print(json!({"stream": stream.name, "from": args.from, "to": to, "events": sent}))?;
    } else {
        terminal::print(format_args!(
            "{sent} events sent to the stream {}; those that the broker still remembered are not doubled",
            stream.name
        ))?;
    }
    Ok(Done::Whole)
}
