//! Sealing, on the way into the log: with a key that is remembered, or with one that is made and comes with the append.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use domain::Event;
use domain::personal_data::{self, FieldVisitor, Personal, Plain, Subject};
use ring::aead::NONCE_LEN;
use uuid::Uuid;

use super::cipher::{FORMAT, HEADER, KEY, Place, key, random_bytes, seal_in_place, wrapping_place};
use super::{KeyError, Keyring, Remembered};
use crate::append::{NewEvent, Payload};

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
    /// None if the subject is only named.
    pub(crate) sealed_with: Option<SubjectKey>,
}

/// The key that a subject has in one of its lives.
pub(crate) struct SubjectKey {
    pub(crate) life: i32,
    key: [u8; KEY],
    /// The key once more, wrapped, if it was made for this append.
    pub(crate) wrapped: Option<Vec<u8>>,
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

impl Keyring {
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
                    uses.push(Use { subject, sealed_with: None });
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
        for Use { subject, sealed_with } in uses {
            if let Some(SubjectKey { life, key, wrapped: Some(_) }) = sealed_with {
                remembered.put(*subject, Remembered::Key { life: *life, key: *key });
            }
        }
    }
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
        if let Some(SubjectKey { life, key, .. }) = used.and_then(|used| used.sealed_with.as_ref()) {
            return Ok(Some((*life, *key)));
        }
        let remembered = self.keyring.lock_remembered().get(&subject).copied();
        let sealed_with = match remembered {
            Some(Remembered::Key { life, key }) => SubjectKey { life, key, wrapped: None },
            // A meeting is registered anew after it was forgotten. Nobody else comes back.
            Some(Remembered::Gone { life }) if matches!(subject, Subject::Meeting(_)) => {
                self.make(subject, life + 1)?
            }
            Some(Remembered::Gone { .. }) if matches!(subject, Subject::Speaker(_)) => return Ok(None),
            Some(Remembered::Gone { .. }) => return Err(SealError::Forgotten),
            None => self.make(subject, 1)?,
        };
        let found = (sealed_with.life, sealed_with.key);
        self.uses.push(Use { subject, sealed_with: Some(sealed_with) });
        Ok(Some(found))
    }

    /// Makes a key.
    fn make(&self, subject: Subject, life: i32) -> Result<SubjectKey, SealError> {
        let master = self.keyring.0.masters.require(self.master).map_err(SealError::Keys)?;
        let key = random_bytes();
        Ok(SubjectKey { life, key, wrapped: Some(master.wrap(&wrapping_place(subject, life), &key)) })
    }
}

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
