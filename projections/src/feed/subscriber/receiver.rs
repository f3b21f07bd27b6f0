//! The idempotent receiver: what was had is kept in the subscriber's own PostgreSQL, in the transaction that
//! writes the effect. So the effect is there once, whatever is delivered how often.

use event_store::locks;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};

use crate::feed::cloud_event::CloudEvent;
use crate::feed::ledger::Ledger;

/// Remembers in a table `minutebook_received` of the subscriber's database what a subscriber has had.
#[derive(Debug, Clone)]
pub struct IdempotentReceiver {
    subscriber: String,
}

impl IdempotentReceiver {
    /// Returns the receiver of a subscriber; makes the table where it is not there.
    pub async fn open(pool: &PgPool, subscriber: &str) -> Result<Self, sqlx::Error> {
        // Two that create it at once: the second waits for the first.
        let mut transaction = pool.begin().await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(locks::RECEIVER)
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "CREATE TABLE IF NOT EXISTS minutebook_received (
                 subscriber text  NOT NULL,
                 event_type text  NOT NULL,
                 ledger     jsonb NOT NULL,
                 CONSTRAINT minutebook_received_pkey PRIMARY KEY (subscriber, event_type))",
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(Self { subscriber: subscriber.to_owned() })
    }

    /// Takes note of an event; says whether it is the first time. Call it in the transaction that writes the
    /// effect, before it, and write the effect only if it is.
    pub async fn first_time(
        &self,
        transaction: &mut PgConnection,
        event: &CloudEvent,
    ) -> Result<bool, sqlx::Error> {
        let new = Json(Ledger::from_the_beginning());
        sqlx::query(
            "INSERT INTO minutebook_received (subscriber, event_type, ledger) VALUES ($1, $2, $3)
             ON CONFLICT (subscriber, event_type) DO NOTHING",
        )
        .bind(&self.subscriber)
        .bind(event.event_type.full)
        .bind(new)
        .execute(&mut *transaction)
        .await?;
        let Json(mut ledger): Json<Ledger> = sqlx::query_scalar(
            "SELECT ledger FROM minutebook_received WHERE subscriber = $1 AND event_type = $2 FOR UPDATE",
        )
        .bind(&self.subscriber)
        .bind(event.event_type.full)
        .fetch_one(&mut *transaction)
        .await?;
        if ledger.enter(event.epoch, event.position, event.previous).repeated {
            return Ok(false);
        }
        sqlx::query("UPDATE minutebook_received SET ledger = $3 WHERE subscriber = $1 AND event_type = $2")
            .bind(&self.subscriber)
            .bind(event.event_type.full)
            .bind(Json(ledger))
            .execute(transaction)
            .await?;
        Ok(true)
    }
}
