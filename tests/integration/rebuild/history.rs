//! Any history: of commands that meet in few meetings, and of many real-shaped ones.

use domain::ids::{MeetingId, ProfileId};
use event_store::command_bus::Context;
use tests::TestDatabase;
use tests::workload::{Workload, append_all};
use uuid::Uuid;

use crate::read_models::caught_up_and_equal;
use crate::read_models::random::{meeting_command, profile_command};

/// Commands of all kinds, of which some are accepted.
const COMMANDS: usize = 1500;
/// Appends of meetings on their straight road.
const STRAIGHT: usize = 1500;

/// Makes a history, all of it shown by the live tables.
pub(super) async fn make(database: &TestDatabase, seed: u64) {
    let book = database.open().await;
    book.start_projector();
    let mut random = fastrand::Rng::with_seed(seed);
    let meetings = (0..20).map(|_| Uuid::from_u128(random.u128(..))).collect::<Vec<_>>();
    // The profiles that the meetings' commands name.
    let profiles = (0..3).map(|n| Uuid::from_u128(0xeeee + n)).collect::<Vec<_>>();
    let context = Context::system("test");
    for _ in 0..COMMANDS {
        // Many are refused, as they do not fit the meeting's state; that is as it should be.
        if random.u8(..8) == 0 {
            let id = ProfileId::from(profiles[random.usize(..profiles.len())]);
            let _ = book.bus.profile(id, profile_command(&mut random, id), &context).await;
        } else {
            let id = MeetingId::from(meetings[random.usize(..meetings.len())]);
            let _ = book.bus.meeting(id, meeting_command(&mut random, id), &context).await;
        }
    }
    append_straight(&book, seed, STRAIGHT).await;
    caught_up_and_equal(book.pool()).await;
    let query = "SELECT count(DISTINCT event_type) FROM log.events";
    let types: i64 = sqlx::query_scalar(query).fetch_one(book.pool()).await.unwrap();
    assert!(types > 12, "seed {seed}: only {types} types of events");
    book.close().await;
}

/// Appends so many of the outcomes of commands of meetings that go their straight road.
pub(super) async fn append_straight(book: &api::book::Book, seed: u64, appends: usize) {
    let mut workload = Workload::new(seed, 50);
    let appends = (0..appends).map(|_| workload.next_append()).collect::<Vec<_>>();
    append_all(book.store.appender(), appends).await;
}
