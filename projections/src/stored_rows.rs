//! The rows that aggregates have in the tables.

use std::collections::HashMap;

use domain::Event;
use event_store::EventStore;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::changes::Key;
use crate::fold::{MeetingRows, ProfileRows, Rows};
use crate::schema;
use crate::tables::{artifacts, files, meetings, speakers, stale_artifacts, user_profiles};

/// Connects to the live tables, outside the pool.
pub(crate) async fn connect_to_live(store: &EventStore) -> Result<PgConnection, sqlx::Error> {
    PgConnection::connect_with(&schema::options(store.pool(), schema::LIVE)).await
}

/// Returns which aggregate an event is of.
pub(crate) const fn key(event: &Event) -> Key {
    (event.aggregate_type(), event.aggregate_id())
}

/// Returns the rows of aggregates. A profile that has none is left out.
pub(crate) async fn of(
    connection: &mut PgConnection,
    keys: &[Key],
) -> Result<HashMap<Key, Rows>, sqlx::Error> {
    let ids =
        |wanted: &str| keys.iter().filter(|(kind, _)| *kind == wanted).map(|(_, id)| *id).collect::<Vec<_>>();
    let mut rows = HashMap::new();
    load_meetings(connection, &ids("meeting"), &mut rows).await?;
    load_profiles(connection, &ids("profile"), &mut rows).await?;
    Ok(rows)
}

async fn load_profiles(
    connection: &mut PgConnection,
    ids: &[Uuid],
    rows: &mut HashMap<Key, Rows>,
) -> Result<(), sqlx::Error> {
    if ids.is_empty() {
        return Ok(());
    }
    for profile in user_profiles::load(connection, ids).await? {
        rows.insert(("profile", profile.id), Rows::Profile(ProfileRows { profile: Some(profile) }));
    }
    Ok(())
}

async fn load_meetings(
    connection: &mut PgConnection,
    ids: &[Uuid],
    rows: &mut HashMap<Key, Rows>,
) -> Result<(), sqlx::Error> {
    if ids.is_empty() {
        return Ok(());
    }
    let mut loaded: HashMap<Uuid, MeetingRows> = ids.iter().map(|id| (*id, MeetingRows::default())).collect();
    let mut files = files::of_meetings(connection, ids)
        .await?
        .into_iter()
        .map(|file| (file.id, file))
        .collect::<HashMap<_, _>>();
    for meeting in meetings::load(connection, ids).await? {
        if let Some(rows) = loaded.get_mut(&meeting.id) {
            rows.file = meeting.file_id.and_then(|id| files.remove(&id));
            rows.meeting = Some(meeting);
        }
    }
    for speaker in speakers::of_meetings(connection, ids).await? {
        if let Some(rows) = speaker.meeting_id.and_then(|id| loaded.get_mut(&id)) {
            rows.speakers.insert(speaker.id, speaker);
        }
    }
    for artifact in artifacts::of_meetings(connection, ids).await? {
        if let Some(rows) = artifact.meeting_id.and_then(|id| loaded.get_mut(&id)) {
            rows.artifacts.insert(artifact.id, artifact);
        }
    }
    for stale in stale_artifacts::of_meetings(connection, ids).await? {
        if let Some(rows) = loaded.get_mut(&stale.meeting_id) {
            rows.stale_artifacts.insert(stale.artifact_id, stale);
        }
    }
    rows.extend(loaded.into_iter().map(|(id, rows)| (("meeting", id), Rows::Meeting(Box::new(rows)))));
    Ok(())
}
