//! Heals one aggregate in place: its rows become what history says, whatever they are now. The live tables
//! are held still for that moment.

use std::collections::HashMap;

use event_store::EventStore;
use event_store::log;
use sqlx::Connection;
use uuid::Uuid;

use crate::changes::Changes;
use crate::fold::{Rows, fold};
use crate::parked::{self, Exceptions, ParkedError, Verdict, database, hold};
use crate::projector::BATCH;
use crate::schema::LIVE;
use crate::stored_rows;
use crate::tables::parked_events::{self, Parked};
use crate::tables::{cache, checkpoint};

/// What was found, and mended.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Healed {
    /// The aggregate's events that the tables show, parked ones apart.
    pub events: usize,
    /// The position up to which they show the history.
    pub position: i64,
    /// Rows that were missing.
    pub missing: usize,
    /// Rows that were not what they should be.
    pub differing: usize,
    /// Rows that should not have been there.
    pub surplus: usize,
    /// Events that still cannot be applied.
    pub parked: usize,
}

/// Gives a meeting the rows that history says; none if there is no such meeting.
pub async fn heal_meeting(store: &EventStore, id: Uuid, actor: &str) -> Result<Option<Healed>, ParkedError> {
    let failed = database("healing");
    let key = ("meeting", id);
    let mut connection = stored_rows::connect_to_live(store).await.map_err(&failed)?;
    let mut transaction = connection.begin().await.map_err(&failed)?;
    let held = hold(&mut transaction).await?;
    let mut exceptions = Exceptions::with_skipped(&mut transaction).await.map_err(&failed)?;
    let mut rows = Rows::Meeting(Box::default());
    let mut parked: Vec<Parked> = vec![];
    let mut events = 0;
    let mut after = (id.to_string(), 0);
    let to = format!("{id}\u{1}");
    loop {
        let entries =
            log::read_aggregates(&mut transaction, key.0, &after, &to, held.position, BATCH).await?;
        let Some(last) = entries.last() else { break };
        after.1 = last.sequence();
        for entry in &entries {
            match exceptions.judge(entry) {
                Verdict::Apply(recorded) => {
                    fold(&mut rows, recorded);
                    events += 1;
                }
                Verdict::Skip => {}
                Verdict::Park(event) => parked.push(event),
            }
        }
    }
    if after.1 == 0 {
        return Ok(None);
    }

    let found = stored_rows::of(&mut transaction, &[key]).await.map_err(&failed)?;
    let healed = HashMap::from([(key, rows)]);
    let (missing, differing, surplus) = Changes::between(&found, &healed).rows();
    // A row may be elsewhere than where it is looked for: whatever has one of the ids goes.
    let mut everything = found;
    if let (Some(Rows::Meeting(all)), Some(Rows::Meeting(right))) =
        (everything.get_mut(&key), healed.get(&key))
    {
        all.file = all.file.take().or_else(|| right.file.clone());
        all.meeting = all.meeting.take().or_else(|| right.meeting.clone());
        all.speakers.extend(right.speakers.clone());
        all.artifacts.extend(right.artifacts.clone());
    }
    let nothing = HashMap::from([(key, Rows::Meeting(Box::default()))]);
    let mut statements = Changes::between(&everything, &nothing).statements();
    if let Some(Rows::Meeting(right)) = healed.get(&key) {
        statements.extend(cache::forget(&right.cache.values().collect::<Vec<_>>()));
    }
    statements.extend(Changes::between(&nothing, &healed).statements());
    for statement in statements {
        statement.execute(&mut transaction).await.map_err(|error| {
            if parked::is_refusal(&error) {
                ParkedError::Refused { reason: parked::without_content(&error) }
            } else {
                failed(error)
            }
        })?;
    }

    let (kind, id) = (key.0, id.to_string());
    let waited =
        parked_events::of_aggregate(&mut *transaction, held.generation, kind, &id).await.map_err(&failed)?;
    let waited = waited.iter().map(|event| event.position).collect::<Vec<_>>();
    parked_events::delete(&mut transaction, held.generation, &waited).await.map_err(&failed)?;
    if let Some(statement) = parked_events::insert(held.generation, &parked) {
        statement.execute(&mut transaction).await.map_err(&failed)?;
    }
    let still = parked.iter().map(|event| event.position).collect::<Vec<_>>();
    let applied = waited.into_iter().filter(|position| !still.contains(position)).collect::<Vec<_>>();
    parked::decide(&mut transaction, held.position, &applied, "applied", None, actor)
        .await
        .map_err(&failed)?;
    checkpoint::renew(&mut transaction, LIVE).await.map_err(&failed)?;
    transaction.commit().await.map_err(&failed)?;
    Ok(Some(Healed { events, position: held.position, missing, differing, surplus, parked: parked.len() }))
}
