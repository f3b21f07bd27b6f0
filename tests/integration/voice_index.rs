//! The voices in memory: whoever has followed the log from its beginning, and whoever comes late, knows the same.

use std::time::Duration;

use api::book::Book;
use domain::ids::ProfileId;
use domain::speaker_matching::VoiceIndex;
use domain::voice::VoiceModels;
use event_store::command_bus::Context;
use event_store::log;
use projections::voice_index::Voices;
use tests::TestDatabase;
use tokio::time::Instant;
use uuid::Uuid;

use crate::read_models::random::profile_command;

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn whoever_follows_any_history_and_whoever_reads_it_late_know_the_same_voices() {
    let database = TestDatabase::create().await;
    let (book, elsewhere) = (database.open().await, database.open().await);
    let follow = |book: &Book| {
        let voices = Voices::new(VoiceModels::default());
        book.tasks.spawn(voices.clone().follow(book.store.clone(), book.shutdown.clone()));
        voices
    };
    let (here, there) = (follow(&book), follow(&elsewhere));
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let context = Context::system("test");
    let mut known = 0;
    for n in 0..300 {
        let id = ProfileId::from(Uuid::from_u128(0xeeee + random.u128(..5)));
        let _ = book.bus.profile(id, profile_command(&mut random, id), &context).await;
        if n % 10 == 0 {
            let head = log::head(book.pool()).await.unwrap();
            let late = follow(&book);
            let [here, there, late] = [&here, &there, &late].map(|voices| at(voices, head));
            let (here, there, late) = (here.await, there.await, late.await);
            assert!(here == late && there == late, "seed {seed}: at position {head} they differ");
            known += usize::from(late != VoiceIndex::default());
        }
    }
    assert!(known > 0, "seed {seed}: nobody was ever known");
    // What is not in the log yet is not waited for longer than asked.
    let head = log::head(book.pool()).await.unwrap();
    assert!(here.at(head + 1, Instant::now()).await.is_none());
    book.close().await;
    elsewhere.close().await;
}

async fn at(voices: &Voices, position: i64) -> VoiceIndex {
    voices.at(position, Instant::now() + PATIENCE).await.expect("the voices follow").clone()
}
