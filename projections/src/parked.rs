//! Events that cannot be applied. Each parks its aggregate: it and that aggregate's later events wait, in
//! order, while all others flow; until somebody has it tried again, or skipped for a reason.
//!
//! A decision changes the tables behind the live projector's back: so it gives the generation a new number,
//! and the projector begins anew with what it finds.

use std::collections::HashSet;

use event_store::EventStore;
use event_store::log::{self, Entry, LogError, Recorded};
use serde::Serialize;
use sqlx::{Connection, Executor, FromRow, PgConnection, PgExecutor};

use crate::changes::Changes;
use crate::fold::{Rows, fold};
use crate::heal::heal_meeting;
use crate::projector::BATCH;
use crate::schema::LIVE;
use crate::stored_rows;
use crate::tables::checkpoint::{self, Checkpoint};
use crate::tables::parked_events::{self, Parked, ParkedRow};

/// How many aggregates may be parked: more than this is no fault of single events, and the projector stops.
pub const MOST_AGGREGATES: usize = 1000;
/// How long the longest reason for skipping is, in characters.
pub const LONGEST_REASON: usize = 1000;

/// What a fold asks about each event: is it to be applied?
#[derive(Debug, Clone, Default)]
pub(crate) struct Exceptions {
    /// Positions that have no effect, for an operator said so.
    skipped: HashSet<i64>,
    /// Aggregates of which an event is parked, by type and id.
    parked: HashSet<(String, String)>,
    /// An event that the tables have refused, and how.
    pub(crate) refused: Option<(i64, String)>,
}

/// What is to be done with an event.
pub(crate) enum Verdict<'a> {
    Apply(&'a Recorded),
    Skip,
    Park(Parked),
}

impl Exceptions {
    /// Returns those of a generation.
    pub(crate) async fn load(connection: &mut PgConnection, generation: i64) -> Result<Self, sqlx::Error> {
        let parked = parked_events::aggregates(&mut *connection, generation).await?;
        Ok(Self { parked: parked.into_iter().collect(), ..Self::with_skipped(connection).await? })
    }

    /// Returns those of a generation in which nothing is parked.
    pub(crate) async fn with_skipped(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let skipped = skipped_between(connection, 0, i64::MAX).await?;
        Ok(Self { skipped: skipped.into_iter().collect(), ..Self::default() })
    }

    /// Returns those of a fold that begins anew, and knows which event the tables have refused.
    pub(crate) fn for_another_try(&self, refused: Option<(i64, String)>) -> Self {
        Self { skipped: self.skipped.clone(), parked: HashSet::new(), refused }
    }

    /// Judges the next event. An aggregate of which it parks one stays parked.
    pub(crate) fn judge<'a>(&mut self, entry: &'a Entry) -> Verdict<'a> {
        let position = entry.position();
        if self.skipped.contains(&position) {
            return Verdict::Skip;
        }
        let refused = self.refused.as_ref().filter(|(at, _)| *at == position);
        let waits = !self.parked.is_empty() && self.parked.contains(&owned(entry.aggregate()));
        let reason = match (entry, refused) {
            _ if waits => None,
            (Entry::Unreadable(unreadable), _) => Some(unreadable.source.to_string()),
            (Entry::Event(_), Some((_, reason))) => Some(reason.clone()),
            (Entry::Event(recorded), None) => return Verdict::Apply(recorded),
        };
        let (aggregate_type, aggregate_id) = owned(entry.aggregate());
        self.parked.insert((aggregate_type.clone(), aggregate_id.clone()));
        let (sequence, event_type) = (entry.sequence(), entry.event_type().to_owned());
        Verdict::Park(Parked { position, aggregate_type, aggregate_id, sequence, event_type, reason })
    }

    /// Says whether an event has no effect, for an operator said so.
    pub(crate) fn is_skipped(&self, position: i64) -> bool {
        self.skipped.contains(&position)
    }

    /// Returns how many aggregates are parked.
    pub(crate) fn aggregates(&self) -> usize {
        self.parked.len()
    }
}

fn owned((aggregate_type, id): (std::borrow::Cow<'_, str>, std::borrow::Cow<'_, str>)) -> (String, String) {
    (aggregate_type.into_owned(), id.into_owned())
}

/// Says whether the database refuses values as such, whoever writes them and how often.
pub(crate) fn is_refusal(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| code.starts_with("22") || code.starts_with("23"))
}

/// The database's own words may quote the row: its code and the constraint's name do not.
pub(crate) fn without_content(error: &sqlx::Error) -> String {
    let database = error.as_database_error();
    let code = database.and_then(|e| e.code()).unwrap_or_default().into_owned();
    let constraint = database.and_then(|e| e.constraint()).unwrap_or_default();
    format!("writing rows: SQLSTATE {code} {constraint}").trim_end().to_owned()
}

/// Returns the positions after `after` and up to `until` that have no effect, in order.
pub(crate) async fn skipped_between(
    executor: impl PgExecutor<'_>,
    after: i64,
    until: i64,
) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT position FROM ops.parked_decisions
          WHERE outcome = 'skipped' AND position > $1 AND position <= $2 ORDER BY position",
    )
    .bind(after)
    .bind(until)
    .fetch_all(executor)
    .await
}

/// What became of a parked event.
#[derive(Debug, Clone, Serialize, FromRow)]
pub struct Decision {
    /// The event.
    pub position: i64,
    /// `applied` or `skipped`.
    pub outcome: String,
    /// Why it was skipped.
    pub reason: Option<String>,
    /// Who said so.
    pub actor: String,
    /// When.
    pub decided_at: chrono::DateTime<chrono::Utc>,
}

/// Returns the latest decisions, the newest first.
pub async fn decisions(executor: impl PgExecutor<'_>, limit: i64) -> Result<Vec<Decision>, sqlx::Error> {
    sqlx::query_as(
        "SELECT position, outcome, reason, actor, decided_at FROM ops.parked_decisions ORDER BY id DESC LIMIT $1",
    )
    .bind(limit)
    .fetch_all(executor)
    .await
}

/// Takes note of decisions, while the tables are held still at `shown`. None is dated before what they showed
/// then, whatever the clock does: by that a reader of the feed finds out what may have come too late for it. An
/// event is skipped once: another generation may have it parked still.
pub(crate) async fn decide(
    connection: &mut PgConnection,
    shown: i64,
    positions: &[i64],
    outcome: &str,
    reason: Option<&str>,
    actor: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO ops.parked_decisions (position, outcome, reason, actor, decided_at)
         SELECT position, $3, $4, $5,
                greatest(clock_timestamp(), (SELECT recorded_at FROM log.events WHERE position = $1))
           FROM UNNEST ($2::bigint[]) AS decided (position) ORDER BY position
         ON CONFLICT DO NOTHING",
    )
    .bind(shown)
    .bind(positions)
    .bind(outcome)
    .bind(reason)
    .bind(actor)
    .execute(connection)
    .await?;
    Ok(())
}

/// Takes note that what the generation `before` had parked, and the generation `after` has not, was applied.
pub(crate) async fn release(
    connection: &mut PgConnection,
    before: Checkpoint,
    after: i64,
) -> Result<(), sqlx::Error> {
    let freed: Vec<i64> = sqlx::query_scalar(
        "SELECT position FROM ops.parked_events b
          WHERE generation = $1 AND NOT EXISTS (
                SELECT FROM ops.parked_events a WHERE a.generation = $2 AND a.position = b.position)",
    )
    .bind(before.generation)
    .bind(after)
    .fetch_all(&mut *connection)
    .await?;
    // What both have parked has been parked since it was first.
    sqlx::query(
        "UPDATE ops.parked_events a SET parked_at = b.parked_at FROM ops.parked_events b
          WHERE a.generation = $2 AND b.generation = $1 AND a.position = b.position AND b.parked_at < a.parked_at",
    )
    .bind(before.generation)
    .bind(after)
    .execute(&mut *connection)
    .await?;
    decide(connection, before.position, &freed, "applied", None, "system:rebuild").await
}

/// Takes what was skipped out of the generation that has become live: while the decision was made, another one
/// was. It may have the event parked, or show its effect.
pub(crate) async fn pass_skipped(store: &EventStore) -> Result<(), ParkedError> {
    let failed = database("looking for what was skipped");
    let meetings: Vec<String> = sqlx::query_scalar(
        "SELECT DISTINCT e.aggregate_id FROM ops.parked_decisions d JOIN log.events e ON e.position = d.position
          WHERE d.outcome = 'skipped' AND e.aggregate_type = 'meeting'
            AND NOT EXISTS (SELECT FROM ops.parked_events p
                             WHERE p.generation = (SELECT generation FROM checkpoint) AND p.position = d.position)",
    )
    .fetch_all(store.pool())
    .await
    .map_err(&failed)?;
    for id in meetings.iter().filter_map(|id| id.parse().ok()) {
        heal_meeting(store, id, "system:rebuild").await?;
    }
    let skipped: Vec<i64> = sqlx::query_scalar(
        "SELECT position FROM ops.parked_events p
          WHERE generation = (SELECT generation FROM checkpoint) AND EXISTS (
                SELECT FROM ops.parked_decisions d WHERE d.position = p.position AND outcome = 'skipped')
          ORDER BY position",
    )
    .fetch_all(store.pool())
    .await
    .map_err(&failed)?;
    for position in skipped {
        match retry(store, position, "system:rebuild").await {
            // The one before may have taken it along.
            Ok(_) | Err(ParkedError::NotParked { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Why a decision on a parked event was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ParkedError {
    /// The database cannot be used.
    #[error("the database cannot be used: {phase}")]
    Database {
        /// What was tried.
        phase: &'static str,
        /// What came of it.
        #[source]
        source: sqlx::Error,
    },
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// It is not parked.
    #[error("no event is parked at position {position}; `minutebook parked list` shows those that are")]
    NotParked {
        /// Where.
        position: i64,
    },
    /// Another one has to be decided on first.
    #[error("the event at position {position} only waits for the one at {first}: decide on that one first")]
    Waits {
        /// Where.
        position: i64,
        /// The one that has to be decided on.
        first: i64,
    },
    /// The tables will not have what history says.
    #[error("the tables refuse what history says: {reason}")]
    Refused {
        /// Why, without any content.
        reason: String,
    },
}

pub(crate) fn database(phase: &'static str) -> impl Fn(sqlx::Error) -> ParkedError {
    move |source| ParkedError::Database { phase, source }
}

/// What came of trying again.
#[derive(Debug, Clone, Serialize)]
pub struct Retried {
    /// The aggregate's type.
    pub aggregate_type: String,
    /// The aggregate.
    pub aggregate_id: String,
    /// How many events took effect.
    pub applied: usize,
    /// The event that still cannot be applied.
    pub stuck_at: Option<i64>,
    /// Why it cannot.
    pub reason: Option<String>,
    /// How many events still wait.
    pub waiting: usize,
}

/// Applies the parked events of the aggregate that has the one at `position`, in order, as far as they can
/// be applied now.
pub async fn retry(store: &EventStore, position: i64, actor: &str) -> Result<Retried, ParkedError> {
    let failed = database("trying again");
    let mut connection = stored_rows::connect_to_live(store).await.map_err(&failed)?;
    let mut transaction = connection.begin().await.map_err(&failed)?;
    let held = hold(&mut transaction).await?;
    let head = head_of(&mut transaction, held, position).await?;
    let retried = retry_held(&mut transaction, store, held, &head, actor).await?;
    transaction.commit().await.map_err(&failed)?;
    Ok(retried)
}

/// Takes all effect from the parked event at `position`, and applies what waits behind it.
pub async fn skip(
    store: &EventStore,
    position: i64,
    reason: &str,
    actor: &str,
) -> Result<Retried, ParkedError> {
    let failed = database("skipping");
    let mut connection = stored_rows::connect_to_live(store).await.map_err(&failed)?;
    let mut transaction = connection.begin().await.map_err(&failed)?;
    let held = hold(&mut transaction).await?;
    let head = head_of(&mut transaction, held, position).await?;
    if head.position != position {
        return Err(ParkedError::Waits { position, first: head.position });
    }
    decide(&mut transaction, held.position, &[position], "skipped", Some(reason), actor)
        .await
        .map_err(&failed)?;
    let retried = retry_held(&mut transaction, store, held, &head, actor).await?;
    transaction.commit().await.map_err(&failed)?;
    Ok(retried)
}

/// Holds the live tables still.
pub(crate) async fn hold(transaction: &mut PgConnection) -> Result<Checkpoint, ParkedError> {
    transaction
        .execute("SET LOCAL lock_timeout = '30s'")
        .await
        .map_err(database("waiting for the tables"))?;
    checkpoint::lock(transaction).await.map_err(database("holding the tables"))
}

/// Returns the first parked event of the aggregate that has the one at `position`.
async fn head_of(
    transaction: &mut PgConnection,
    held: Checkpoint,
    position: i64,
) -> Result<ParkedRow, ParkedError> {
    let head = sqlx::query_as(
        "SELECT p.position, p.aggregate_type, p.aggregate_id, p.sequence, p.event_type, p.reason, p.parked_at
           FROM ops.parked_events p JOIN ops.parked_events asked USING (generation, aggregate_type, aggregate_id)
          WHERE asked.generation = $1 AND asked.position = $2 ORDER BY p.position LIMIT 1",
    )
    .bind(held.generation)
    .bind(position)
    .fetch_optional(transaction)
    .await
    .map_err(database("looking for the event"))?;
    head.ok_or(ParkedError::NotParked { position })
}

async fn retry_held(
    transaction: &mut PgConnection,
    store: &EventStore,
    held: Checkpoint,
    head: &ParkedRow,
    actor: &str,
) -> Result<Retried, ParkedError> {
    let failed = database("trying again");
    let ParkedRow { aggregate_type, aggregate_id, .. } = head;
    let waiting =
        parked_events::of_aggregate(&mut *transaction, held.generation, aggregate_type, aggregate_id)
            .await
            .map_err(&failed)?;
    let mut exceptions = Exceptions::with_skipped(transaction).await.map_err(&failed)?;
    let mut passed = vec![];
    let mut applied = vec![];
    let mut stuck = None;
    let mut after = head.sequence - 1;
    'reading: loop {
        let (from, to) = ((aggregate_id.clone(), after), format!("{aggregate_id}\u{1}"));
        let entries = log::read_aggregates(
            transaction,
            store.keyring(),
            aggregate_type,
            &from,
            &to,
            held.position,
            BATCH,
        )
        .await?;
        let Some(last) = entries.last() else { break };
        after = last.sequence();
        for entry in &entries {
            match exceptions.judge(entry) {
                Verdict::Skip => {}
                Verdict::Park(Parked { position, reason, .. }) => {
                    stuck = Some((position, reason.unwrap_or_default()));
                    break 'reading;
                }
                Verdict::Apply(recorded) => {
                    if let Err(error) = apply(transaction, recorded).await {
                        if !is_refusal(&error) {
                            return Err(failed(error));
                        }
                        stuck = Some((recorded.position, without_content(&error)));
                        break 'reading;
                    }
                    applied.push(recorded.position);
                }
            }
            passed.push(entry.position());
        }
    }
    parked_events::delete(transaction, held.generation, &passed).await.map_err(&failed)?;
    if let Some((position, reason)) = &stuck {
        parked_events::note_reason(transaction, held.generation, *position, reason).await.map_err(&failed)?;
    }
    decide(transaction, held.position, &applied, "applied", None, actor).await.map_err(&failed)?;
    checkpoint::renew(transaction, LIVE).await.map_err(&failed)?;
    let (stuck_at, reason) = stuck.unzip();
    Ok(Retried {
        aggregate_type: aggregate_type.clone(),
        aggregate_id: aggregate_id.clone(),
        applied: applied.len(),
        stuck_at,
        reason,
        waiting: waiting.len().saturating_sub(passed.len()),
    })
}

/// Applies one event to the tables, or nothing of it.
async fn apply(transaction: &mut PgConnection, recorded: &Recorded) -> Result<(), sqlx::Error> {
    let mut savepoint = transaction.begin().await?;
    let key = stored_rows::key(&recorded.event);
    let before = stored_rows::of(&mut savepoint, &[key]).await?;
    let mut after = before.clone();
    let rows = after.entry(key).or_insert_with(|| Rows::empty_for(&recorded.event));
    fold(rows, recorded);
    for statement in Changes::between(&before, &after).statements() {
        statement.execute(&mut savepoint).await?;
    }
    savepoint.commit().await
}
