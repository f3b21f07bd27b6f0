//! What happened to a profile. Names of cases and fields are the storage format, as those of a meeting.

use serde::{Deserialize, Serialize};

use super::DisplayName;
use crate::Timestamp;
use crate::ids::{ProfileId, SampleId};
use crate::personal_data::{self, Personal};
use crate::voice::{KeptVoice, SampleSource};

/// An event of a profile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ProfileEvent {
    /// A person was entered in the book.
    ProfileCreated {
        /// The profile.
        profile_id: ProfileId,
        /// How the person is called.
        display_name: Personal<DisplayName>,
        /// When.
        created_at: Timestamp,
    },
    /// The person is called otherwise.
    ProfileRenamed {
        /// How the person is called from now on.
        display_name: Personal<DisplayName>,
    },
    /// A sample of the person's voice was added.
    VoiceEnrolled {
        /// The sample.
        sample_id: SampleId,
        /// What the voice is like.
        voice: KeptVoice,
        /// Where the sample came from.
        #[serde(
            default,
            skip_serializing_if = "Option::is_none",
            deserialize_with = "personal_data::present"
        )]
        source: Option<Personal<SampleSource>>,
        /// When.
        enrolled_at: Timestamp,
    },
    /// A sample of the person's voice was taken away.
    VoiceRemoved {
        /// The sample.
        sample_id: SampleId,
    },
    /// The person was forgotten.
    ProfileErased {
        /// When.
        erased_at: Timestamp,
    },
}

impl ProfileEvent {
    /// The names of all events of a profile, as they are stored.
    pub const NAMES: [&'static str; 5] =
        ["ProfileCreated", "ProfileRenamed", "VoiceEnrolled", "VoiceRemoved", "ProfileErased"];

    /// Returns the name under which the event is stored.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::ProfileCreated { .. } => "ProfileCreated",
            Self::ProfileRenamed { .. } => "ProfileRenamed",
            Self::VoiceEnrolled { .. } => "VoiceEnrolled",
            Self::VoiceRemoved { .. } => "VoiceRemoved",
            Self::ProfileErased { .. } => "ProfileErased",
        }
    }

    /// Returns the version of the shape in which the event is stored today.
    pub const fn version(&self) -> u32 {
        1
    }
}
