//! A fingerprint of a value, by which a repeated command is known for one without keeping the value.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The first 128 bits of the SHA-256 of a value's JSON, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest(String);

impl Digest {
    /// Returns the digest of `value`'s JSON.
    pub fn of<T: Serialize>(value: &T) -> Self {
        let json = serde_json::to_vec(value).expect("domain values have string keys and serialize");
        Self::of_bytes(&json)
    }

    /// Returns the digest of `bytes`.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        let hash = Sha256::digest(bytes);
        Self(hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect())
    }
}
