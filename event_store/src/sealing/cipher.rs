//! AES-256-GCM as it is used here: what seals, and the places to which what is sealed is bound.

use domain::Event;
use domain::personal_data::Subject;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use uuid::Uuid;

/// The bytes of a key.
pub(super) const KEY: usize = 32;
/// The first byte of a sealed value: how the rest is to be read.
pub(super) const FORMAT: u8 = 1;
/// Format and life, before nonce, ciphertext and tag.
pub(super) const HEADER: usize = 5;

/// What binds a wrapped key to its subject.
pub(super) fn wrapping_place(subject: Subject, life: i32) -> Vec<u8> {
    let mut place = b"minutebook key\0".to_vec();
    place.extend(subject.kind().as_bytes());
    place.push(0);
    place.extend(subject.id().as_bytes());
    place.extend(life.to_be_bytes());
    place
}

/// What binds the wrapped secret to its log.
pub(super) fn secret_place(log_id: Uuid) -> Vec<u8> {
    [b"minutebook secret\0".as_slice(), log_id.as_bytes()].concat()
}

/// Where in the log a sealed value belongs. A text ends with a zero, which none has in it; the rest is of one
/// length, so that no two places read alike.
pub(super) struct Place(Vec<u8>);

impl Place {
    pub(super) fn of(event: &Event, sequence: i64, event_version: &str) -> Self {
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

    pub(super) fn field(&self, subject: Subject, life: i32, name: &str) -> Vec<u8> {
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
pub(super) fn seal_in_place(key: &LessSafeKey, place: &[u8], plain: &[u8], sealed: &mut Vec<u8>) {
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

/// Returns what seals and opens with these bytes.
pub(super) fn key(bytes: &[u8; KEY]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).expect("32 bytes are a key"))
}

/// Returns bytes that nobody can guess.
pub(super) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // The operating system gives them from its start on, or nothing works at all.
    SystemRandom::new().fill(&mut bytes).expect("the operating system has random numbers");
    bytes
}
