//! Seals personal data on its way into the log, and opens it on its way out. What is personal, and about whom, is
//! said by `domain::personal_data`; here is how it is encrypted.
//!
//! Each subject has a random key of its own (AES-256-GCM), kept in `keys.subjects`, wrapped by the master key. A
//! sealed value is bound to its place: aggregate, sequence, event, version, subject and field. Moved elsewhere it
//! does not open, which is told as damage; what has no key any more is told as destroyed, which is no damage.
//!
//! **Invariant**: a key is in the table if and only if an event that was sealed with it is in the log, or its
//! subject was forgotten: both come with one statement (`log.append`). **Invariant**: nothing is read with a key
//! that was destroyed before: reading looks every key up, each time; only sealing remembers keys, and there
//! `log.append` has the last word.

mod master;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use domain::Event;
use domain::event::DecodeError;
use domain::personal_data::{self, FieldVisitor, Personal, Plain, Subject};
use lru::LruCache;
use ring::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use sqlx::{PgConnection, PgExecutor, PgPool, Row};
use uuid::Uuid;

use self::master::{Master, Masters, key, random_bytes, wrapped_by};
pub use self::master::{MasterError, MasterSource};
use crate::append::{NewEvent, Payload};
use crate::log::{Entry, StoredEvent, Unreadable};

/// The bytes of a key.
const KEY: usize = 32;
/// How many keys are remembered to seal with.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(20_000).expect("not zero");
/// The first byte of a sealed value: how the rest is to be read.
const FORMAT: u8 = 1;
/// Format and life, before nonce, ciphertext and tag.
const HEADER: usize = 5;

/// The keys of subjects. Cloning it is cheap.
#[derive(Clone)]
pub struct Keyring(Arc<Inner>);

struct Inner {
    pool: PgPool,
    log_id: Uuid,
    masters: Masters,
    /// Which master key wraps new keys, as the log said last.
    current: Mutex<Uuid>,
    /// Keys to seal with.
    remembered: Mutex<LruCache<Subject, Remembered>>,
    /// How many destructions the log had when it was asked last.
    destructions: AtomicI64,
}

#[derive(Clone, Copy)]
enum Remembered {
    /// It has this key in this life.
    Key { life: i32, key: [u8; KEY] },
    /// It was forgotten in this life.
    Gone { life: i32 },
}

/// Why a log cannot be read or written with this master key, or keys cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is no master key, or it cannot be read.
    #[error(transparent)]
    Master(#[from] MasterError),
    /// The log has events, and no master key was ever chosen for it.
    #[error(
        "this log was written before personal data was sealed, and cannot be used any more: begin a new one, and \
         import its meetings again"
    )]
    WrittenUnsealed,
    /// The log needs another master key.
    #[error(
        "the log's personal data is sealed under another master key ({needed}) than those in {source_name}: give the \
         one that was backed up (MINUTEBOOK_MASTER_KEY_FILE or MINUTEBOOK_MASTER_KEY)"
    )]
    AnotherMaster {
        /// The id of the key that is needed.
        needed: Uuid,
        /// Where it was looked for.
        source_name: String,
    },
    /// A rotation needs a key to rotate to.
    #[error(
        "MINUTEBOOK_MASTER_KEY names no other key to rotate to: put the new one before the present one, with a comma"
    )]
    NothingToRotateTo,
    /// A subject's key is damaged.
    #[error("the key of a {kind} ({id}) does not open under its master key: it is damaged")]
    Damaged {
        /// Which kind of subject.
        kind: &'static str,
        /// Which one.
        id: Uuid,
    },
    /// The database did not answer as it should.
    #[error("cannot read the keys")]
    Database(#[from] sqlx::Error),
}

impl From<KeyError> for sqlx::Error {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Database(error) => error,
            other @ (KeyError::Master(_)
            | KeyError::WrittenUnsealed
            | KeyError::AnotherMaster { .. }
            | KeyError::NothingToRotateTo
            | KeyError::Damaged { .. }) => Self::Decode(Box::new(other)),
        }
    }
}

/// How much of what is personal a reader needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// All of it.
    Everything,
    /// All but the voices of clusters, which are large and in no table.
    NoClusters,
}

/// Events that were sealed, and what the append must bring and check with them.
pub(crate) struct Sealed {
    /// The events' payloads, in order.
    pub(crate) payloads: Vec<String>,
    /// Whom they are about, and whom they name.
    pub(crate) subjects: Vec<Use>,
}

/// What an append has to do with a subject. See `keys.standing`.
pub(crate) struct Use {
    pub(crate) subject: Subject,
    /// In which life it was sealed for; none if it is only named.
    pub(crate) life: Option<i32>,
    /// The key that was made for it, wrapped.
    pub(crate) wrapped: Option<Vec<u8>>,
    key: [u8; KEY],
}

/// Why events cannot be sealed.
pub(crate) enum SealError {
    /// One of their subjects was forgotten.
    Forgotten,
    /// They are sealed already, and nobody could open what was sealed twice.
    Twice,
    /// The log's master key is not known here.
    Keys(KeyError),
}

/// What the table has of a subject.
struct Standing {
    life: i32,
    /// None when it was forgotten.
    wrapped: Option<Vec<u8>>,
}

impl Keyring {
    /// Opens the keys of the log behind `pool`. A log without events gets its master key here; of any other the
    /// key must be the one that it was written under.
    pub async fn open(pool: PgPool, log_id: Uuid, source: MasterSource) -> Result<Self, KeyError> {
        let masters = Masters::read(source)?;
        if chosen(&pool).await?.is_none() {
            choose(&pool, &masters, log_id).await?;
        }
        let Some(Chosen { id, check_value, destructions }) = chosen(&pool).await? else {
            return Err(KeyError::WrittenUnsealed);
        };
        let known = masters.get(id).filter(|master| master.check_value(log_id) == check_value);
        if known.is_none() {
            let source_name = masters.source().to_string();
            return Err(KeyError::AnotherMaster { needed: id, source_name });
        }
        Ok(Self(Arc::new(Inner {
            pool,
            log_id,
            masters,
            current: Mutex::new(id),
            remembered: Mutex::new(LruCache::new(REMEMBERED)),
            destructions: AtomicI64::new(destructions),
        })))
    }

    /// Returns how many destructions the log had when it was asked last: another number than before means that
    /// nothing unsealed which is remembered may be used any more.
    pub fn destructions(&self) -> i64 {
        self.0.destructions.load(Ordering::Acquire)
    }

    /// Takes note of how many destructions the log has, and forgets what is remembered if it is news.
    pub(crate) fn note_destructions(&self, known: i64) {
        if self.0.destructions.fetch_max(known, Ordering::AcqRel) < known {
            self.lock_remembered().clear();
        }
    }

    fn lock_remembered(&self) -> std::sync::MutexGuard<'_, LruCache<Subject, Remembered>> {
        self.0.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Uuid {
        *self.0.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seals what is personal in events that are to follow version `expected_version` of their aggregate. Of a
    /// subject of which no key is remembered a new one is made: if it has one after all, the append answers so.
    pub(crate) fn seal(&self, events: &[NewEvent], expected_version: i64) -> Result<Sealed, SealError> {
        let master = self.current();
        let mut uses: Vec<Use> = vec![];
        let mut payloads = Vec::with_capacity(events.len());
        for (sequence, new) in (expected_version + 1..).zip(events) {
            let Payload::Event(event) = &new.payload else {
                payloads.push(new.payload.to_json());
                continue;
            };
            let mut event = Event::clone(event);
            for profile in personal_data::linked(&event) {
                let subject = Subject::Profile(profile);
                if let Some(Remembered::Gone { .. }) = self.lock_remembered().get(&subject) {
                    return Err(SealError::Forgotten);
                }
                if !uses.iter().any(|known| known.subject == subject) {
                    uses.push(Use { subject, life: None, wrapped: None, key: [0; KEY] });
                }
            }
            let place = Place::of(&event, sequence, &new.event_version);
            let mut sealing = Sealing { keyring: self, master, place, uses: &mut uses };
            personal_data::visit(&mut event, &mut sealing)?;
            payloads.push(event.to_json());
        }
        Ok(Sealed { payloads, subjects: uses })
    }

    /// Remembers the keys that came with an append that is in the log.
    pub(crate) fn remember(&self, uses: &[Use]) {
        let mut remembered = self.lock_remembered();
        for made in uses.iter().filter(|made| made.wrapped.is_some()) {
            if let Some(life) = made.life {
                remembered.put(made.subject, Remembered::Key { life, key: made.key });
            }
        }
    }

    /// Looks up how the subjects of an append stand, after the log refused what was remembered. Who was forgotten is
    /// remembered as such, and the next sealing heeds it.
    pub(crate) async fn look_up(&self, uses: &[Use]) -> Result<(), KeyError> {
        if let Some(Chosen { id, .. }) = chosen(&self.0.pool).await? {
            if self.0.masters.get(id).is_none() {
                let source_name = self.0.masters.source().to_string();
                return Err(KeyError::AnotherMaster { needed: id, source_name });
            }
            *self.0.current.lock().unwrap_or_else(PoisonError::into_inner) = id;
        }
        let subjects = uses.iter().map(|used| used.subject).collect::<Vec<_>>();
        let rows = rows_of(&self.0.pool, &subjects).await?;
        let mut found = HashMap::new();
        for subject in subjects {
            let Some(row) = rows.get(&subject) else { continue };
            let state = match &row.wrapped {
                Some(wrapped) => {
                    Remembered::Key { life: row.life, key: self.unwrap(subject, row.life, wrapped)? }
                }
                None => Remembered::Gone { life: row.life },
            };
            found.insert(subject, state);
        }
        let mut remembered = self.lock_remembered();
        for used in uses {
            remembered.pop(&used.subject);
        }
        for (subject, state) in found {
            remembered.put(subject, state);
        }
        Ok(())
    }

    fn unwrap(&self, subject: Subject, life: i32, wrapped: &[u8]) -> Result<[u8; KEY], KeyError> {
        let damaged = || KeyError::Damaged { kind: subject.kind(), id: subject.id() };
        let id = wrapped_by(wrapped).ok_or_else(damaged)?;
        let Some(master) = self.0.masters.get(id) else {
            let source_name = self.0.masters.source().to_string();
            return Err(KeyError::AnotherMaster { needed: id, source_name });
        };
        master.unwrap(&wrapping_place(subject, life), wrapped).ok_or_else(damaged)
    }

    /// Opens what is sealed in events that were read. One that does not open is damaged, and unreadable.
    pub(crate) async fn open_entries(
        &self,
        executor: impl PgExecutor<'_>,
        entries: &mut [Entry],
        needs: Needs,
    ) -> Result<(), KeyError> {
        let mut wanted = Wanted::new(needs);
        for entry in entries.iter_mut() {
            if let Entry::Event(recorded) = entry {
                wanted.of(&mut recorded.event);
            }
        }
        let Some(keys) = self.keys_of(executor, wanted).await? else { return Ok(()) };
        for entry in entries {
            let Entry::Event(recorded) = entry else { continue };
            let version = recorded.event_version.to_string();
            if let Err(source) = keys.open(&mut recorded.event, recorded.sequence, &version, needs) {
                let damaged = Unreadable {
                    position: recorded.position,
                    recorded_at: recorded.recorded_at,
                    sequence: recorded.sequence,
                    aggregate_type: recorded.event.aggregate_type().to_owned(),
                    aggregate_id: recorded.event.aggregate_id().to_string(),
                    event_type: recorded.event.name().to_owned(),
                    source,
                };
                *entry = Entry::Unreadable(damaged);
            }
        }
        Ok(())
    }

    /// Opens what is sealed in the payloads of stored events. One that does not open is damaged, and says so when
    /// it is decoded.
    pub async fn open_stored(
        &self,
        executor: impl PgExecutor<'_>,
        stored: &mut [StoredEvent],
        needs: Needs,
    ) -> Result<(), KeyError> {
        let mut wanted = Wanted::new(needs);
        let mut decoded = vec![];
        for (n, stored) in stored.iter().enumerate() {
            // What does not decode tells so when it is decoded.
            if may_be_sealed(&stored.payload)
                && let Ok(mut event) = stored.decode_sealed()
                && wanted.of(&mut event)
            {
                decoded.push((n, event));
            }
        }
        let Some(keys) = self.keys_of(executor, wanted).await? else { return Ok(()) };
        for (n, mut event) in decoded {
            let stored = &mut stored[n];
            match keys.open(&mut event, stored.sequence, &stored.event_version, needs) {
                Ok(()) => {
                    stored.payload = event.to_json();
                    stored.event_version = event.version().to_string();
                }
                Err(damage) => stored.damage = Some(damage),
            }
        }
        Ok(())
    }

    async fn keys_of(&self, executor: impl PgExecutor<'_>, wanted: Wanted) -> Result<Option<Keys>, KeyError> {
        if wanted.subjects.is_empty() {
            return Ok(None);
        }
        let subjects = wanted.subjects.into_iter().collect::<Vec<_>>();
        let mut keys = HashMap::with_capacity(subjects.len());
        let rows = rows_of(executor, &subjects).await?;
        if let Err(error) = self.unwrap_all(rows, &mut keys) {
            let KeyError::AnotherMaster { .. } = error else { return Err(error) };
            // Its master key was given up while we read: by now another one wraps it.
            self.unwrap_all(rows_of(&self.0.pool, &subjects).await?, &mut keys)?;
        }
        Ok(Some(Keys(keys)))
    }

    fn unwrap_all(
        &self,
        rows: HashMap<Subject, Standing>,
        keys: &mut HashMap<Subject, Known>,
    ) -> Result<(), KeyError> {
        for (subject, row) in rows {
            let unwrapped = row.wrapped.map(|wrapped| self.unwrap(subject, row.life, &wrapped)).transpose();
            match unwrapped {
                Ok(unwrapped) => {
                    let key = unwrapped.map(|bytes| key(&bytes));
                    keys.insert(subject, Known { life: row.life, key });
                }
                // What was sealed with it is damaged with it, and nothing else is.
                Err(KeyError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Destroys the keys of these subjects, and leaves tombstones also of those who had none, so that none is made
    /// again. It takes the append lock to the end of the transaction that `connection` is in: whoever seals for one
    /// of them has done so, or learns that it is too late. Returns how many had a key; once the transaction is
    /// committed, [`Keyring::forgot`] is to be called.
    pub async fn destroy(
        &self,
        connection: &mut PgConnection,
        subjects: &[Subject],
    ) -> Result<i64, sqlx::Error> {
        sqlx::query("SELECT pg_advisory_xact_lock(7165932018841088001)").execute(&mut *connection).await?;
        let subjects = subjects.iter().collect::<BTreeSet<_>>();
        let keys = sqlx::query_scalar(
            "WITH named AS (SELECT s.kind, s.id FROM unnest($1::text[], $2::uuid[]) AS s (kind, id)),
             destroyed AS (
                 INSERT INTO keys.subjects (kind, id, wrapped, destroyed_at)
                 SELECT n.kind, n.id, NULL, clock_timestamp() FROM named n
                     ON CONFLICT ON CONSTRAINT subjects_pkey DO UPDATE
                    SET wrapped = NULL, destroyed_at = excluded.destroyed_at
                  WHERE keys.subjects.destroyed_at IS NULL)
             -- As they were before.
             SELECT count(*) FROM keys.subjects k JOIN named n ON n.kind = k.kind AND n.id = k.id
              WHERE k.wrapped IS NOT NULL",
        )
        .bind(subjects.iter().map(|subject| subject.kind()).collect::<Vec<_>>())
        .bind(subjects.iter().map(|subject| subject.id()).collect::<Vec<_>>())
        .fetch_one(&mut *connection)
        .await?;
        sqlx::query("UPDATE keys.master SET destructions = destructions + 1").execute(connection).await?;
        Ok(keys)
    }

    /// Forgets what is remembered, after a destruction was committed. Other processes find out by themselves.
    pub async fn forgot(&self) -> Result<(), sqlx::Error> {
        if let Some(Chosen { destructions, .. }) = chosen(&self.0.pool).await? {
            self.note_destructions(destructions);
        }
        self.lock_remembered().clear();
        Ok(())
    }

    /// Says how the keys stand.
    pub async fn status(&self) -> Result<KeyStatus, KeyError> {
        let row = sqlx::query(
            "SELECT m.key_id, m.since,
                    (SELECT count(*) FROM keys.subjects WHERE wrapped IS NOT NULL) AS living,
                    (SELECT count(*) FROM keys.subjects WHERE destroyed_at IS NOT NULL) AS destroyed,
                    (SELECT count(*) FROM keys.subjects
                      WHERE substr(wrapped, 2, 16) <> uuid_send(m.key_id)) AS under_another
               FROM keys.master m",
        )
        .fetch_one(&self.0.pool)
        .await?;
        Ok(KeyStatus {
            master_key: row.try_get("key_id")?,
            since: row.try_get("since")?,
            source: self.0.masters.source().to_string(),
            known_here: self.0.masters.known().keys().copied().collect(),
            living: row.try_get("living")?,
            destroyed: row.try_get("destroyed")?,
            under_another: row.try_get("under_another")?,
        })
    }

    /// Puts another master key in the place of the present one: wraps every subject's key anew, batch by batch,
    /// while others read and append. No event is touched. Interrupted, it is to be called again, and goes on.
    /// Returns how many keys were wrapped.
    pub async fn rotate(&self, progress: impl Fn(u64)) -> Result<u64, KeyError> {
        let masters = &self.0.masters;
        let Some(Chosen { id: current, .. }) = chosen(&self.0.pool).await? else {
            return Err(KeyError::WrittenUnsealed);
        };
        // What another master key still wraps is left from a rotation that was interrupted.
        let new = if self.status().await?.under_another > 0 {
            masters.get(current)
        } else {
            // A key that is there and not in use was made by a rotation that went no further.
            match masters.other_than(current)? {
                Some(other) => Some(other),
                None => masters.add()?,
            }
        };
        let Some(new) = new else { return Err(KeyError::NothingToRotateTo) };
        // From here on every process wraps with the new one: its appends with the old one are refused, and made
        // again. Under the append lock, so that none is under way.
        let mut transaction = self.0.pool.begin().await?;
        sqlx::query("SELECT pg_advisory_xact_lock(7165932018841088001)").execute(&mut *transaction).await?;
        sqlx::query("UPDATE keys.master SET key_id = $1, check_value = $2, since = now() WHERE key_id <> $1")
            .bind(new.id)
            .bind(new.check_value(self.0.log_id))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        *self.0.current.lock().unwrap_or_else(PoisonError::into_inner) = new.id;
        let mut wrapped = 0;
        loop {
            let count = self.wrap_some(&new).await?;
            if count == 0 {
                break;
            }
            wrapped += count;
            progress(wrapped);
        }
        masters.leave_only(&new)?;
        Ok(wrapped)
    }

    /// Wraps some of the keys anew that another master key wraps; returns how many.
    async fn wrap_some(&self, new: &Master) -> Result<u64, KeyError> {
        let mut transaction = self.0.pool.begin().await?;
        // Against a destruction at the same moment: what is locked here is destroyed afterwards.
        let rows = sqlx::query(
            "SELECT kind, id, life, wrapped FROM keys.subjects
              WHERE wrapped IS NOT NULL AND substr(wrapped, 2, 16) <> uuid_send($1) LIMIT 5000 FOR UPDATE",
        )
        .bind(new.id)
        .fetch_all(&mut *transaction)
        .await?;
        let (mut kinds, mut ids, mut again) = (vec![], vec![], vec![]);
        for row in &rows {
            let (kind, id): (String, Uuid) = (row.try_get(0)?, row.try_get(1)?);
            let Some(subject) = subject(&kind, id) else { continue };
            let (life, wrapped): (i32, Vec<u8>) = (row.try_get(2)?, row.try_get(3)?);
            again.push(new.wrap(&wrapping_place(subject, life), &self.unwrap(subject, life, &wrapped)?));
            kinds.push(kind);
            ids.push(id);
        }
        let updated = sqlx::query(
            "UPDATE keys.subjects s SET wrapped = n.wrapped
               FROM unnest($1::text[], $2::uuid[], $3::bytea[]) AS n (kind, id, wrapped)
              WHERE s.kind = n.kind AND s.id = n.id",
        )
        .bind(kinds)
        .bind(ids)
        .bind(again)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(updated.rows_affected())
    }
}

/// How the keys stand.
#[derive(Debug, Clone, serde::Serialize)]
pub struct KeyStatus {
    /// The id of the master key in use.
    pub master_key: Uuid,
    /// Since when.
    pub since: chrono::DateTime<chrono::Utc>,
    /// Where this process has its master keys from.
    pub source: String,
    /// The ids of those it has.
    pub known_here: Vec<Uuid>,
    /// Subjects with a key.
    pub living: i64,
    /// Subjects who were forgotten.
    pub destroyed: i64,
    /// Keys that another master key still wraps: a rotation was interrupted.
    pub under_another: i64,
}

/// Fails if the keys of the log that `executor` leads to are wrapped by none of the master keys of `source`. For
/// whoever has not committed yet what is to be opened.
pub async fn check_master(
    executor: impl PgExecutor<'_>,
    log_id: Uuid,
    source: MasterSource,
) -> Result<(), KeyError> {
    let masters = Masters::read(source)?;
    let Some(Chosen { id, check_value, .. }) = chosen(executor).await? else {
        return Err(KeyError::WrittenUnsealed);
    };
    let known = masters.get(id).filter(|master| master.check_value(log_id) == check_value);
    let another = || KeyError::AnotherMaster { needed: id, source_name: masters.source().to_string() };
    known.map(|_| ()).ok_or_else(another)
}

struct Chosen {
    id: Uuid,
    check_value: Vec<u8>,
    destructions: i64,
}

async fn chosen(executor: impl PgExecutor<'_>) -> Result<Option<Chosen>, sqlx::Error> {
    let row = sqlx::query("SELECT key_id, check_value, destructions FROM keys.master");
    let chosen = |row: sqlx::postgres::PgRow| {
        Ok(Chosen { id: row.try_get(0)?, check_value: row.try_get(1)?, destructions: row.try_get(2)? })
    };
    row.fetch_optional(executor).await?.map(chosen).transpose()
}

/// Chooses the master key of a log without events. Of several processes one is the first, and the others take
/// what it chose.
async fn choose(pool: &PgPool, masters: &Masters, log_id: Uuid) -> Result<(), KeyError> {
    if crate::log::head(pool).await? > 0 {
        return Err(KeyError::WrittenUnsealed);
    }
    let Some(first) = masters.first()? else { return Ok(()) };
    sqlx::query(
        "INSERT INTO keys.master (key_id, check_value) VALUES ($1, $2) ON CONFLICT (only_row) DO NOTHING",
    )
    .bind(first.id)
    .bind(first.check_value(log_id))
    .execute(pool)
    .await?;
    Ok(())
}

async fn rows_of(
    executor: impl PgExecutor<'_>,
    subjects: &[Subject],
) -> Result<HashMap<Subject, Standing>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT s.n, k.life, k.wrapped
           FROM unnest($1::text[], $2::uuid[]) WITH ORDINALITY AS s (kind, id, n)
          CROSS JOIN LATERAL (
                SELECT l.life, l.wrapped FROM keys.subjects l WHERE l.kind = s.kind AND l.id = s.id LIMIT 1) k",
    )
    .bind(subjects.iter().map(Subject::kind).collect::<Vec<_>>())
    .bind(subjects.iter().map(Subject::id).collect::<Vec<_>>())
    .fetch_all(executor)
    .await?;
    let row = |row: sqlx::postgres::PgRow| {
        let n = usize::try_from(row.try_get::<i64, _>(0)?).unwrap_or_default();
        let subject = subjects.get(n.wrapping_sub(1)).copied();
        let subject = subject.ok_or_else(|| sqlx::Error::Protocol("a key of nobody asked for".to_owned()))?;
        Ok((subject, Standing { life: row.try_get(1)?, wrapped: row.try_get(2)? }))
    };
    rows.into_iter().map(row).collect()
}

fn subject(kind: &str, id: Uuid) -> Option<Subject> {
    match kind {
        "meeting" => Some(Subject::Meeting(id.into())),
        "speaker" => Some(Subject::Speaker(id.into())),
        "profile" => Some(Subject::Profile(id.into())),
        _ => None,
    }
}

/// Says whether a payload may have something sealed in it: looking costs less than decoding.
pub(crate) fn may_be_sealed(payload: &str) -> bool {
    payload.contains("\"sealed\"")
}

/// What binds a wrapped key to its subject.
fn wrapping_place(subject: Subject, life: i32) -> Vec<u8> {
    let mut place = b"minutebook key\0".to_vec();
    place.extend(subject.kind().as_bytes());
    place.push(0);
    place.extend(subject.id().as_bytes());
    place.extend(life.to_be_bytes());
    place
}

/// Where in the log a sealed value belongs. A text ends with a zero, which none has in it; the rest is of one
/// length, so that no two places read alike.
struct Place(Vec<u8>);

impl Place {
    fn of(event: &Event, sequence: i64, event_version: &str) -> Self {
        let mut place = Vec::with_capacity(160);
        place.push(FORMAT);
        place.extend(event.aggregate_type().as_bytes());
        place.push(0);
        place.extend(event.aggregate_id().as_bytes());
        place.extend(sequence.to_be_bytes());
        for text in [event.name(), event_version] {
            place.extend(text.as_bytes());
            place.push(0);
        }
        Self(place)
    }

    fn field(&self, subject: Subject, life: i32, name: &str) -> Vec<u8> {
        let mut place = self.0.clone();
        place.extend(subject.kind().as_bytes());
        place.push(0);
        place.extend(subject.id().as_bytes());
        place.extend(life.to_be_bytes());
        place.extend(name.as_bytes());
        place
    }
}

/// Appends nonce, ciphertext and tag to `sealed`.
fn seal_in_place(key: &LessSafeKey, place: &[u8], plain: &[u8], sealed: &mut Vec<u8>) {
    // 2^32 values under one key would be too many for random nonces; a subject has some hundreds.
    let nonce = random_bytes::<NONCE_LEN>();
    sealed.extend(nonce);
    let start = sealed.len();
    sealed.extend(plain);
    let nonce = Nonce::assume_unique_for_key(nonce);
    let tag = key
        .seal_in_place_separate_tag(nonce, Aad::from(place), &mut sealed[start..])
        .expect("what is sealed is far below 64 GiB");
    sealed.extend(tag.as_ref());
}

/// Seals each field that it comes by.
struct Sealing<'a> {
    keyring: &'a Keyring,
    master: Uuid,
    place: Place,
    uses: &'a mut Vec<Use>,
}

impl Sealing<'_> {
    /// Returns the life and the key to seal with: one that this append has used already, one that is remembered,
    /// or a new one. None for a speaker who was forgotten: who diarizes again cannot know that somebody was.
    fn key(&mut self, subject: Subject) -> Result<Option<(i32, [u8; KEY])>, SealError> {
        let used = self.uses.iter().find(|used| used.subject == subject);
        if let Some(Use { life: Some(life), key, .. }) = used {
            return Ok(Some((*life, *key)));
        }
        let remembered = self.keyring.lock_remembered().get(&subject).copied();
        let (life, key, wrapped) = match remembered {
            Some(Remembered::Key { life, key }) => (life, key, None),
            // A meeting is registered anew after it was forgotten. Nobody else comes back.
            Some(Remembered::Gone { life }) if matches!(subject, Subject::Meeting(_)) => {
                self.make(subject, life + 1)?
            }
            Some(Remembered::Gone { .. }) if matches!(subject, Subject::Speaker(_)) => return Ok(None),
            Some(Remembered::Gone { .. }) => return Err(SealError::Forgotten),
            None => self.make(subject, 1)?,
        };
        self.uses.push(Use { subject, life: Some(life), wrapped, key });
        Ok(Some((life, key)))
    }

    /// Makes a key; returns it beside its life and itself, wrapped.
    fn make(&self, subject: Subject, life: i32) -> Result<Made, SealError> {
        let masters = &self.keyring.0.masters;
        let Some(master) = masters.get(self.master) else {
            let source_name = masters.source().to_string();
            return Err(SealError::Keys(KeyError::AnotherMaster { needed: self.master, source_name }));
        };
        let key = random_bytes();
        Ok((life, key, Some(master.wrap(&wrapping_place(subject, life), &key))))
    }
}

/// A life, its key, and the key wrapped, where it is new.
type Made = (i32, [u8; KEY], Option<Vec<u8>>);

impl FieldVisitor for Sealing<'_> {
    type Error = SealError;

    fn field<T: Plain>(
        &mut self,
        subject: Subject,
        name: &'static str,
        value: &mut Personal<T>,
    ) -> Result<(), SealError> {
        let plain = match value {
            Personal::Known(plain) => plain,
            Personal::Destroyed => return Ok(()),
            Personal::Sealed(_) => return Err(SealError::Twice),
        };
        let Some((life, bytes)) = self.key(subject)? else {
            *value = Personal::Destroyed;
            return Ok(());
        };
        let plain = plain.to_bytes();
        let mut sealed = Vec::with_capacity(HEADER + NONCE_LEN + plain.len() + 16);
        sealed.push(FORMAT);
        sealed.extend(life.to_be_bytes());
        seal_in_place(&key(&bytes), &self.place.field(subject, life, name), &plain, &mut sealed);
        *value = Personal::Sealed(URL_SAFE_NO_PAD.encode(sealed).into());
        Ok(())
    }
}

/// Gathers whose keys are wanted.
struct Wanted {
    subjects: HashSet<Subject>,
    needs: Needs,
    found: bool,
}

impl Wanted {
    fn new(needs: Needs) -> Self {
        Self { subjects: HashSet::new(), needs, found: false }
    }

    /// Says whether this event wants any.
    fn of(&mut self, event: &mut Event) -> bool {
        self.found = false;
        let Ok(()) = personal_data::visit(event, self);
        self.found
    }
}

impl FieldVisitor for Wanted {
    type Error = std::convert::Infallible;

    fn field<T: Plain>(
        &mut self,
        subject: Subject,
        _: &'static str,
        value: &mut Personal<T>,
    ) -> Result<(), Self::Error> {
        if let Personal::Sealed(_) = value {
            self.subjects.insert(subject);
            self.found = true;
        }
        Ok(())
    }

    fn passes_over_clusters(&self) -> bool {
        self.needs == Needs::NoClusters
    }
}

/// The keys of the subjects of a batch, for as long as the batch is opened.
struct Keys(HashMap<Subject, Known>);

struct Known {
    life: i32,
    /// None when it was destroyed.
    key: Option<LessSafeKey>,
}

impl Keys {
    fn open(
        &self,
        event: &mut Event,
        sequence: i64,
        event_version: &str,
        needs: Needs,
    ) -> Result<(), DecodeError> {
        let place = Place::of(event, sequence, event_version);
        let opened = personal_data::visit(event, &mut Opening { keys: self, place, needs });
        opened.map_err(|field| DecodeError::DoesNotOpen {
            event_type: event.name().to_owned(),
            event_version: event_version.to_owned(),
            field,
        })
    }
}

/// Opens each field that it comes by; fails with the name of the one that is damaged.
struct Opening<'a> {
    keys: &'a Keys,
    place: Place,
    needs: Needs,
}

impl FieldVisitor for Opening<'_> {
    type Error = &'static str;

    fn field<T: Plain>(
        &mut self,
        subject: Subject,
        name: &'static str,
        value: &mut Personal<T>,
    ) -> Result<(), &'static str> {
        let Personal::Sealed(text) = value else { return Ok(()) };
        let mut bytes = URL_SAFE_NO_PAD.decode(text.as_str()).map_err(|_| name)?;
        let (header, sealed) = bytes.split_at_mut_checked(HEADER).ok_or(name)?;
        let (nonce, sealed) = sealed.split_at_mut_checked(NONCE_LEN).ok_or(name)?;
        let [FORMAT, life @ ..] = &*header else { return Err(name) };
        let life = i32::from_be_bytes(life.try_into().map_err(|_| name)?);
        // Tombstones stay for ever: whoever has no row at all never had a key.
        let known = self.keys.0.get(&subject).ok_or(name)?;
        *value = match &known.key {
            _ if life < known.life => Personal::Destroyed,
            None if life == known.life => Personal::Destroyed,
            Some(key) if life == known.life => {
                let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| name)?;
                let place = self.place.field(subject, life, name);
                let plain = key.open_in_place(nonce, Aad::from(place), sealed).map_err(|_| name)?;
                Personal::Known(T::from_bytes(plain).ok_or(name)?)
            }
            Some(_) | None => return Err(name),
        };
        Ok(())
    }

    fn passes_over_clusters(&self) -> bool {
        self.needs == Needs::NoClusters
    }
}
