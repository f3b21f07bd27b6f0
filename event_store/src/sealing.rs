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

mod cipher;
mod master;
mod open;
mod rotate;
mod seal;
mod stored;

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use domain::ids::LogSecret;
use domain::personal_data::Subject;
use lru::LruCache;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use self::cipher::{KEY, wrapping_place};
pub use self::master::{MasterError, MasterSource};
use self::master::{Masters, wrapped_by};
pub use self::open::Needs;
pub use self::rotate::{KeyStatus, Rotated};
pub(crate) use self::seal::{SealError, Sealed, Use};
use self::stored::{Chosen, choose, chosen, rows_of};
pub use self::stored::{check_master, forgotten};
use crate::locks;

/// How many keys are remembered to seal with.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(20_000).expect("not zero");

/// The keys of subjects. Cloning it is cheap.
#[derive(Clone)]
pub struct Keyring(Arc<Inner>);

struct Inner {
    pool: PgPool,
    log_id: Uuid,
    secret: LogSecret,
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
    /// Another process rotates.
    #[error(
        "another process puts another master key in place at this moment: let it end, and look at `keys status`"
    )]
    Rotating,
    /// The log's secret is damaged.
    #[error("the log's secret (keys.master) does not open under its master key: it is damaged")]
    DamagedSecret,
    /// A subject's key is damaged.
    #[error("the key of a {kind} ({id}) does not open under its master key: it is damaged")]
    Damaged {
        /// Which kind of subject.
        kind: &'static str,
        /// Which one.
        id: Uuid,
    },
    /// There is a key of something that this version does not know.
    #[error("there is a key of a {kind} ({id}), which this version does not know")]
    UnknownKind {
        /// Which kind of subject.
        kind: String,
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
            | KeyError::Rotating
            | KeyError::DamagedSecret
            | KeyError::Damaged { .. }
            | KeyError::UnknownKind { .. }) => Self::Decode(Box::new(other)),
        }
    }
}

impl Keyring {
    /// Opens the keys of the log behind `pool`. A log without events gets its master key here; of any other the
    /// key must be the one that it was written under.
    pub async fn open(pool: PgPool, log_id: Uuid, source: MasterSource) -> Result<Self, KeyError> {
        let masters = Masters::read(source)?;
        if chosen(&pool).await?.is_none() {
            choose(&pool, &masters, log_id).await?;
        }
        let chosen = chosen(&pool).await?.ok_or(KeyError::WrittenUnsealed)?;
        let secret = LogSecret::new(masters.check(&chosen, log_id)?);
        let Chosen { id, destructions, .. } = chosen;
        Ok(Self(Arc::new(Inner {
            pool,
            log_id,
            secret,
            masters,
            current: Mutex::new(id),
            remembered: Mutex::new(LruCache::new(REMEMBERED)),
            destructions: AtomicI64::new(destructions),
        })))
    }

    /// Returns the secret of the log that lies wrapped by its master key: for what whoever has the database alone
    /// must neither make nor find out. (That of [`crate::Identity`] is in clear there.)
    pub fn secret(&self) -> &LogSecret {
        &self.0.secret
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

    /// Looks up how the subjects of an append stand, after the log refused what was remembered. Who was forgotten is
    /// remembered as such, and the next sealing heeds it.
    pub(crate) async fn look_up(&self, uses: &[Use]) -> Result<(), KeyError> {
        if let Some(Chosen { id, .. }) = chosen(&self.0.pool).await? {
            self.0.masters.require(id)?;
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
        let master = self.0.masters.require(id)?;
        master.unwrap(&wrapping_place(subject, life), wrapped).ok_or_else(damaged)
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
        sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(locks::APPEND).execute(&mut *connection).await?;
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
}
