//! A rebuild that is held in the middle of its folding: one worker waits for a lock before it writes a certain
//! row, the other one goes on with all the rest.

use api::book::Book;
use serde_json::Value;
use sqlx::{Connection, Executor, PgConnection, PgPool};
use tests::TestDatabase;
use uuid::Uuid;

use crate::read_models::caught_up_and_equal;
use crate::read_models::history::{append, completed, diarized, registered, started};

/// The meeting that has the row. Others come after it: the last one of a worker's part is written when all of the
/// part counts as done.
const HELD: Uuid = Uuid::from_u128(0x0e);

/// Whoever holds the lock.
pub(super) struct Hold(PgConnection);

impl Hold {
    /// Appends the meeting, and lets every rebuild wait before it writes its speaker.
    pub(super) async fn prepare(database: &TestDatabase) -> Self {
        let book = database.open().await;
        book.start_projector();
        append_held(&book).await;
        caught_up_and_equal(book.pool()).await;
        book.close().await;
        let mut connection = PgConnection::connect(&database.url).await.unwrap();
        connection
            .execute(
                "CREATE FUNCTION public.hold_back() RETURNS trigger LANGUAGE plpgsql AS $$
                 BEGIN PERFORM pg_advisory_xact_lock_shared(4242); RETURN NEW; END $$;
                 CREATE FUNCTION public.prepare_to_hold() RETURNS event_trigger LANGUAGE plpgsql AS $$
                 BEGIN
                     IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands()
                                 WHERE object_identity LIKE '%.cache_staged') THEN
                         CREATE TRIGGER held BEFORE INSERT ON speakers FOR EACH ROW
                             WHEN (NEW.cluster_id = 'held') EXECUTE FUNCTION public.hold_back();
                     END IF;
                 END $$;
                 CREATE EVENT TRIGGER preparing ON ddl_command_end WHEN TAG IN ('CREATE TABLE')
                     EXECUTE FUNCTION public.prepare_to_hold();
                 SELECT pg_advisory_lock(4242)",
            )
            .await
            .unwrap();
        Self(connection)
    }

    /// Lets the rebuild go on.
    pub(super) async fn release(mut self) {
        self.0.execute("SELECT pg_advisory_unlock(4242)").await.unwrap();
        self.0.close().await.unwrap();
    }
}

async fn append_held(book: &Book) {
    for event in
        [registered(HELD), started(HELD, 1), diarized(HELD, 1, &["held"]), completed(HELD, 1, &["held"], &[])]
    {
        append(book, &event).await;
    }
}

/// Says whether a row of `ops.rebuilds`, as HTTP and `status` show it, is as far as a held rebuild comes.
pub(super) fn is_held(row: &Value) -> bool {
    let (done, total) = (row["done"].as_i64().unwrap(), row["total"].as_i64().unwrap());
    row["phase"] == "folding" && done > 0 && done < total
}

/// Waits until a rebuild is held; returns how many events it has done.
pub(super) async fn until_held(pool: &PgPool) -> i64 {
    crate::read_models::eventually("the rebuild is held", async || {
        let done = "SELECT done FROM ops.rebuilds
                     WHERE finished_at IS NULL AND phase = 'folding' AND done > 0 ORDER BY id DESC LIMIT 1";
        sqlx::query_scalar::<_, i64>(done).fetch_optional(pool).await.unwrap()
    })
    .await
}
