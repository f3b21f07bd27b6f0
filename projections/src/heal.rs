//! Heals one aggregate in place: its rows become what history says, whatever they are now. The live tables
//! are held still for that moment.

use std::collections::HashMap;

use event_store::EventStore;
use event_store::log;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::changes::Changes;
use crate::fold::{MeetingRows, Rows, fold};
use crate::parked::{self, Exceptions, ParkedError, Verdict, database, hold};
use crate::projector::BATCH;
use crate::schema::LIVE;
use crate::stored_rows;
use crate::tables::parked_events::{self, Parked};
use crate::tables::{
    Statement, artifacts, cache, checkpoint, files, meetings, speaker_reassignments, speakers,
    stale_artifacts,
};

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
    let mut healed = Rows::Meeting(Box::default());
    let mut file = None;
    let mut parked: Vec<Parked> = vec![];
    let mut events = 0;
    let mut after = (id.to_string(), 0);
    let to = format!("{id}\u{1}");
    loop {
        let entries =
            log::read_aggregates(&mut transaction, store.keyring(), key.0, &after, &to, held.position, BATCH)
                .await?;
        let Some(last) = entries.last() else { break };
        after.1 = last.sequence();
        for entry in &entries {
            match exceptions.judge(entry) {
                Verdict::Apply(recorded) => {
                    fold(&mut healed, recorded);
                    events += 1;
                    if let Rows::Meeting(rows) = &healed {
                        // Also of a meeting that is erased by now.
                        file = rows.file.as_ref().map(|row| row.id).or(file);
                    }
                }
                Verdict::Skip => {}
                Verdict::Park(event) => parked.push(event),
            }
        }
    }
    let Rows::Meeting(rows) = healed else { return Ok(None) };
    if after.1 == 0 {
        return Ok(None);
    }

    let found = found(&mut transaction, id, file).await.map_err(&failed)?;
    let before = HashMap::from([(key, Rows::Meeting(Box::new(found.clone())))]);
    let after = HashMap::from([(key, Rows::Meeting(rows.clone()))]);
    let (missing, differing, surplus) = Changes::between(&before, &after).rows();
    // What is cached is not loaded by aggregate: keys are shared.
    let cached = rows.cache.values().collect::<Vec<_>>();
    let (cached_missing, cached_differing, cached_surplus) =
        cache::damage(&mut transaction, &cached).await.map_err(&failed)?;
    let statements = replace(&found, &rows);
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
    let has_effect = |position: &i64| !still.contains(position) && !exceptions.is_skipped(*position);
    let applied = waited.into_iter().filter(has_effect).collect::<Vec<_>>();
    parked::decide(&mut transaction, held.position, &applied, "applied", None, actor)
        .await
        .map_err(&failed)?;
    checkpoint::renew(&mut transaction, LIVE).await.map_err(&failed)?;
    transaction.commit().await.map_err(&failed)?;
    Ok(Some(Healed {
        events,
        position: held.position,
        missing: missing + cached_missing,
        differing: differing + cached_differing,
        surplus: surplus + cached_surplus,
        parked: parked.len(),
    }))
}

/// Returns the rows that a meeting has. Its own file, whichever one its row may name.
async fn found(
    connection: &mut PgConnection,
    id: Uuid,
    file: Option<Uuid>,
) -> Result<MeetingRows, sqlx::Error> {
    let key = ("meeting", id);
    let mut found = match stored_rows::of(connection, &[key]).await?.remove(&key) {
        Some(Rows::Meeting(found)) => *found,
        Some(Rows::Profile(_)) | None => MeetingRows::default(),
    };
    found.file = match file {
        Some(file) => files::load(connection, file).await?,
        None => None,
    };
    let reassignments = speaker_reassignments::of_meeting(connection, id).await?;
    found.reassignments = reassignments.into_iter().map(|row| (row.position, row)).collect();
    Ok(found)
}

/// Returns the statements that delete what is surplus, and put each row that is right in the place of whatever
/// has its id: a row may be elsewhere than where it is looked for, and others may refer to it.
fn replace(found: &MeetingRows, right: &MeetingRows) -> Vec<Statement> {
    let MeetingRows {
        file,
        meeting,
        speakers,
        artifacts,
        stale_artifacts,
        cache,
        reassignments,
        forgets_reassignments: _,
    } = right;
    let writes = cache.values().collect::<Vec<_>>();
    let [cache_removed, cache_kept] = cache::write(&writes);
    let surplus = |found: Option<Uuid>, right: bool| found.filter(|_| !right).into_iter().collect::<Vec<_>>();
    let surplus_speakers = found.speakers.keys().filter(|id| !speakers.contains_key(*id)).copied();
    let surplus_artifacts = found.artifacts.keys().filter(|id| !artifacts.contains_key(*id)).copied();
    let surplus_stale = found.stale_artifacts.keys().filter(|id| !stale_artifacts.contains_key(*id)).copied();
    let surplus_reassignments =
        found.reassignments.keys().filter(|at| !reassignments.contains_key(*at)).copied();
    [
        speaker_reassignments::delete(&surplus_reassignments.collect::<Vec<_>>()),
        speakers::delete(&surplus_speakers.collect::<Vec<_>>()),
        artifacts::delete(&surplus_artifacts.collect::<Vec<_>>()),
        stale_artifacts::delete(&surplus_stale.collect::<Vec<_>>()),
        meetings::delete(&surplus(found.meeting.as_ref().map(|row| row.id), meeting.is_some())),
        files::delete(&surplus(found.file.as_ref().map(|row| row.id), file.is_some())),
        files::update(&file.iter().collect::<Vec<_>>()),
        meetings::update(&meeting.iter().collect::<Vec<_>>()),
        speakers::update(&speakers.values().collect::<Vec<_>>()),
        artifacts::update(&artifacts.values().collect::<Vec<_>>()),
        stale_artifacts::update(&stale_artifacts.values().collect::<Vec<_>>()),
        speaker_reassignments::update(&reassignments.values().collect::<Vec<_>>()),
        cache::forget(&writes),
        cache_removed,
        cache_kept,
    ]
    .into_iter()
    .flatten()
    .collect()
}
