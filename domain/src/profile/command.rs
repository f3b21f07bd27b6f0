//! What may be asked of a profile.

use super::DisplayName;
use crate::Timestamp;
use crate::ids::{ProfileId, SampleId};
use crate::voice::{SampleSource, Voice};

/// A command to a profile.
#[derive(Debug, Clone, PartialEq)]
pub enum ProfileCommand {
    /// Enter a person in the book.
    Create {
        /// The profile.
        profile_id: ProfileId,
        /// How the person is called.
        display_name: DisplayName,
        /// Now.
        at: Timestamp,
    },
    /// Call the person otherwise.
    Rename {
        /// How the person is called from now on.
        display_name: DisplayName,
    },
    /// Add a sample of the person's voice.
    EnrolVoice {
        /// The sample.
        sample_id: SampleId,
        /// What the voice is like.
        voice: Voice,
        /// Where the sample came from.
        source: Option<SampleSource>,
        /// Now.
        at: Timestamp,
    },
    /// Take a sample of the person's voice away.
    RemoveVoice {
        /// The sample.
        sample_id: SampleId,
    },
    /// Forget the person.
    Erase {
        /// Now.
        at: Timestamp,
        /// Whether there is a history, though nothing is known from it: what it began with was skipped.
        lost: bool,
    },
}

impl ProfileCommand {
    /// Returns the command's name, as metrics give it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Rename { .. } => "rename",
            Self::EnrolVoice { .. } => "enrol_voice",
            Self::RemoveVoice { .. } => "remove_voice",
            Self::Erase { .. } => "erase",
        }
    }
}
