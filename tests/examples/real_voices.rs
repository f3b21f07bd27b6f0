//! Plays real voices through the built program, and prints what it makes of them.
//!
//! `with_services target/debug/examples/real_voices`, with `MINUTEBOOK_REAL_DATA` set.

#![expect(clippy::print_stdout, reason = "what it prints is what it is for")]

use anyhow::{Context as _, ensure};
use tests::TestDatabase;
use tests::real_voices::{Cast, ENROLLED, Score, audit};
use tests::server::Server;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let data = std::env::var_os(tests::REAL_DATA).context("MINUTEBOOK_REAL_DATA names no directory")?;
    let database = TestDatabase::create().await;
    let server = Server::start(&database).await;
    let mut cast = Cast::read(data.as_ref());
    cast.enrol(&server).await;
    println!("{} people enrolled, each with {ENROLLED} utterances", cast.profiles.len());
    let mut said = vec![];
    for n in ENROLLED..ENROLLED + 3 {
        let heard = cast.hold_meetings(&server, n).await;
        println!("{} meetings with utterance {}: {}", cast.meetings(), n + 1, Score::of(&heard));
        said.extend(cast.correct_some(&server, &heard).await);
    }
    let exported = audit(&server).await;
    println!("{} corrections and undone ones said; {} in the audit's CSV", said.len(), exported.len());
    ensure!(exported == said, "the audit is not what was said");
    println!("the CSV equals what was said, row by row");
    ensure!(server.stop().await.success(), "the server did not stop well");
    Ok(())
}
