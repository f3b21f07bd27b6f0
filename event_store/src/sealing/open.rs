//! Opening, on the way out of the log: every batch looks up the keys of its subjects, each time.

use std::collections::{HashMap, HashSet};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use domain::Event;
use domain::event::DecodeError;
use domain::personal_data::{self, FieldVisitor, Personal, Plain, Subject};
use ring::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use sqlx::PgExecutor;

use super::cipher::{FORMAT, HEADER, Place, key};
use super::stored::{Standing, rows_of};
use super::{KeyError, Keyring};
use crate::log::{Entry, StoredEvent, Unreadable};

/// How much of what is personal a reader needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// All of it.
    Everything,
    /// All but the voices of clusters, which are large and in no table.
    NoClusters,
}

impl Keyring {
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
}

/// Says whether a payload may have something sealed in it: looking costs less than decoding.
fn may_be_sealed(payload: &str) -> bool {
    payload.contains("\"sealed\"")
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
