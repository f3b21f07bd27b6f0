//! What a batch of events changes, table by table: found by comparing the rows before and after, written
//! set by set.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use crate::fold::{MeetingRows, Rows};
use crate::tables::{
    Statement, artifacts, cache, files, meetings, speaker_reassignments, speakers, user_profiles,
};

/// Which aggregate: its type and id.
pub(crate) type Key = (&'static str, Uuid);

/// What is to be written.
#[derive(Default)]
pub(crate) struct Changes<'a> {
    files: Set<'a, files::FileRow>,
    meetings: Set<'a, meetings::MeetingRow>,
    speakers: Set<'a, speakers::SpeakerRow>,
    artifacts: Set<'a, artifacts::ArtifactRow>,
    reassignments: Set<'a, speaker_reassignments::ReassignmentRow, i64>,
    /// Meetings of which all reassignments go that are in the table.
    erased: Vec<Uuid>,
    profiles: Set<'a, user_profiles::UserProfileRow>,
    /// By key, the latest write only.
    cache: BTreeMap<&'a str, &'a cache::CacheWrite>,
}

/// The changes of one table.
struct Set<'a, Row, Id = Uuid> {
    /// Rows that are not in the table.
    inserts: Vec<&'a Row>,
    /// Rows that are in the table and have changed.
    updates: Vec<&'a Row>,
    deletes: Vec<Id>,
}

impl<Row, Id> Default for Set<'_, Row, Id> {
    fn default() -> Self {
        Self { inserts: vec![], updates: vec![], deletes: vec![] }
    }
}

impl<'a, Row: PartialEq, Id: Copy + Ord> Set<'a, Row, Id> {
    fn compare(&mut self, id: impl Fn(&Row) -> Id, before: Option<&Row>, after: Option<&'a Row>) {
        match (before, after) {
            (None, Some(after)) => self.inserts.push(after),
            (Some(before), Some(after)) if before != after => self.updates.push(after),
            (Some(before), None) => self.deletes.push(id(before)),
            (Some(_), Some(_)) | (None, None) => {}
        }
    }

    fn compare_all(&mut self, before: &BTreeMap<Id, Row>, after: &'a BTreeMap<Id, Row>) {
        for (id, after) in after {
            self.compare(|_| *id, before.get(id), Some(after));
        }
        self.deletes.extend(before.keys().filter(|id| !after.contains_key(*id)));
    }

    /// In the order of their keys rows go into neighbouring places of the indexes.
    fn sort(&mut self, id: impl Fn(&Row) -> Id) {
        self.inserts.sort_unstable_by_key(|row| id(row));
        self.updates.sort_unstable_by_key(|row| id(row));
    }
}

impl<'a> Changes<'a> {
    /// Returns what turns the rows `before` into those `after`. The tables must show `before` exactly.
    pub(crate) fn between(before: &HashMap<Key, Rows>, after: &'a HashMap<Key, Rows>) -> Self {
        let mut changes = Self::default();
        let no_rows = MeetingRows::default();
        for (key, after) in after {
            match after {
                Rows::Meeting(after) => {
                    let before = match before.get(key) {
                        Some(Rows::Meeting(before)) => before,
                        Some(Rows::Profile(_)) | None => &no_rows,
                    };
                    changes.add_meeting(key.1, before, after);
                }
                Rows::Profile(after) => {
                    let before = match before.get(key) {
                        Some(Rows::Profile(before)) => before.profile.as_ref(),
                        Some(Rows::Meeting(_)) | None => None,
                    };
                    changes.profiles.compare(|row| row.id, before, after.profile.as_ref());
                }
            }
        }
        changes.files.sort(|row| row.id);
        changes.meetings.sort(|row| row.id);
        changes.speakers.sort(|row| row.id);
        changes.artifacts.sort(|row| row.id);
        changes.reassignments.sort(|row| row.position);
        changes.profiles.sort(|row| row.id);
        changes
    }

    fn add_meeting(&mut self, id: Uuid, before: &MeetingRows, after: &'a MeetingRows) {
        self.files.compare(|row| row.id, before.file.as_ref(), after.file.as_ref());
        self.meetings.compare(|row| row.id, before.meeting.as_ref(), after.meeting.as_ref());
        self.speakers.compare_all(&before.speakers, &after.speakers);
        self.artifacts.compare_all(&before.artifacts, &after.artifacts);
        self.reassignments.compare_all(&before.reassignments, &after.reassignments);
        if after.forgets_reassignments {
            self.erased.push(id);
        }
        for write in after.cache.values() {
            let latest = self.cache.entry(&write.key).or_insert(write);
            if latest.position < write.position {
                *latest = write;
            }
        }
    }

    /// Returns how many rows are inserted, updated and deleted; the cache apart, and what was not loaded.
    pub(crate) const fn rows(&self) -> (usize, usize, usize) {
        let Self { files, meetings, speakers, artifacts, reassignments, erased: _, profiles, cache: _ } =
            self;
        let inserts = files.inserts.len()
            + meetings.inserts.len()
            + speakers.inserts.len()
            + artifacts.inserts.len()
            + reassignments.inserts.len()
            + profiles.inserts.len();
        let updates = files.updates.len()
            + meetings.updates.len()
            + speakers.updates.len()
            + artifacts.updates.len()
            + reassignments.updates.len()
            + profiles.updates.len();
        let deletes = files.deletes.len()
            + meetings.deletes.len()
            + speakers.deletes.len()
            + artifacts.deletes.len()
            + reassignments.deletes.len()
            + profiles.deletes.len();
        (inserts, updates, deletes)
    }

    /// Returns the statements that write it. They delete from the leaves and insert from the root: foreign
    /// keys hold after each.
    pub(crate) fn statements(&self) -> Vec<Statement> {
        let [cache_removed, cache_kept] = cache::write(&self.cache.values().copied().collect::<Vec<_>>());
        [
            speakers::delete(&self.speakers.deletes),
            artifacts::delete(&self.artifacts.deletes),
            speaker_reassignments::delete_of(&self.erased),
            speaker_reassignments::delete(&self.reassignments.deletes),
            meetings::delete(&self.meetings.deletes),
            files::delete(&self.files.deletes),
            user_profiles::delete(&self.profiles.deletes),
            files::insert(&self.files.inserts),
            files::update(&self.files.updates),
            meetings::insert(&self.meetings.inserts),
            meetings::update(&self.meetings.updates),
            speakers::insert(&self.speakers.inserts),
            speakers::update(&self.speakers.updates),
            artifacts::insert(&self.artifacts.inserts),
            artifacts::update(&self.artifacts.updates),
            speaker_reassignments::insert(&self.reassignments.inserts),
            speaker_reassignments::update(&self.reassignments.updates),
            user_profiles::insert(&self.profiles.inserts),
            user_profiles::update(&self.profiles.updates),
            cache_removed,
            cache_kept,
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}
