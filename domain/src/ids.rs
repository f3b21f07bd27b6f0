//! Identifiers. Those of meetings, files, speakers and artifacts are derived, so that whoever computes
//! one twice gets the same one; those of profiles and voice samples come in with the command.

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256 as HashSha256;
use uuid::Uuid;

use crate::artifact::ArtifactType;
use crate::file::Sha256;
use crate::speaker::ClusterId;
use crate::voice::Voice;

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Returns the id as a UUID.
            pub const fn as_uuid(&self) -> Uuid {
                self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(&self.0, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

id_type!(
    /// A meeting: one per owner and file.
    MeetingId
);
id_type!(
    /// An uploaded file: one per owner and content.
    FileId
);
id_type!(
    /// Who may see a meeting. Opaque: Minutebook keeps no accounts.
    OwnerId
);
id_type!(
    /// A cluster of one attempt at a meeting: one voice that the diarization told apart.
    SpeakerId
);
id_type!(
    /// A person known by name.
    ProfileId
);
id_type!(
    /// One recording of a profile's voice.
    SampleId
);
id_type!(
    /// A transcript or summary of one attempt at a meeting.
    ArtifactId
);

/// The log's own secret, from which ids are derived that tell an outsider nothing about a file.
#[derive(Clone)]
pub struct LogSecret([u8; 32]);

impl LogSecret {
    /// Returns the secret made of `bytes`.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns HMAC-SHA-256 over `parts`, each preceded by its length, so that no two lists of parts
    /// give the same input.
    pub fn hmac(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = <Hmac<HashSha256>>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    /// Returns a UUIDv8 (RFC 9562) made of the HMAC of `parts`.
    pub fn uuid(&self, parts: &[&[u8]]) -> Uuid {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.hmac(parts)[..16]);
        Uuid::new_v8(bytes)
    }
}

impl std::fmt::Debug for LogSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogSecret(…)")
    }
}

impl MeetingId {
    /// Returns the id of the meeting that `owner` made of the file with this content. No owner is an
    /// owner of its own.
    pub fn derive(secret: &LogSecret, owner: Option<OwnerId>, sha256: &Sha256) -> Self {
        Self(secret.uuid(&[b"meeting", &owner_bytes(owner), sha256.as_str().as_bytes()]))
    }

    /// Returns the id of a cluster of this meeting's `attempt`: UUIDv5, with the meeting as name space.
    pub fn speaker(&self, attempt: u32, cluster: &ClusterId) -> SpeakerId {
        SpeakerId(Uuid::new_v5(&self.0, format!("speaker/{attempt}/{cluster}").as_bytes()))
    }

    /// Returns the id of an artifact of this meeting's `attempt`: UUIDv5, with the meeting as name space.
    pub fn artifact(&self, attempt: u32, artifact_type: ArtifactType) -> ArtifactId {
        let name = format!("artifact/{attempt}/{}", artifact_type.as_str());
        ArtifactId(Uuid::new_v5(&self.0, name.as_bytes()))
    }
}

impl SampleId {
    /// Derives a sample's id from whose voice it is and what it is like: enrolled again it is the same sample.
    pub fn derive(secret: &LogSecret, profile: ProfileId, voice: &Voice) -> Self {
        let numbers = voice.vector.as_slice().iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>();
        let parts = [b"sample", &profile.0.as_bytes()[..], voice.model.as_str().as_bytes(), &numbers];
        Self(secret.uuid(&parts))
    }
}

impl FileId {
    /// Returns the id of `owner`'s file with this content.
    pub fn derive(secret: &LogSecret, owner: Option<OwnerId>, sha256: &Sha256) -> Self {
        Self(secret.uuid(&[b"file", &owner_bytes(owner), sha256.as_str().as_bytes()]))
    }
}

fn owner_bytes(owner: Option<OwnerId>) -> Vec<u8> {
    owner.map(|owner| owner.as_uuid().as_bytes().to_vec()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(byte: u8) -> LogSecret {
        LogSecret::new([byte; 32])
    }

    #[test]
    fn the_same_upload_finds_the_same_meeting_and_no_other_one_does() {
        let sha: Sha256 = "a".repeat(64).parse().unwrap();
        let other_sha: Sha256 = "b".repeat(64).parse().unwrap();
        let owner = Some(OwnerId::from(Uuid::from_u128(7)));
        let nil_owner = Some(OwnerId::from(Uuid::nil()));
        let id = MeetingId::derive(&secret(1), owner, &sha);
        assert_eq!(id, MeetingId::derive(&secret(1), owner, &sha));
        for other in [
            MeetingId::derive(&secret(1), None, &sha),
            MeetingId::derive(&secret(1), nil_owner, &sha),
            MeetingId::derive(&secret(1), owner, &other_sha),
            MeetingId::derive(&secret(2), owner, &sha),
        ] {
            assert_ne!(id, other);
        }
        assert_ne!(id.as_uuid(), FileId::derive(&secret(1), owner, &sha).as_uuid());
        assert_eq!(id.as_uuid().get_version_num(), 8);
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        assert_eq!(format!("{:?}", secret(65)), "LogSecret(…)");
    }
}
