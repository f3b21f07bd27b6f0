//! What a profile's events add up to. Vectors stay in the log; of each a digest is kept.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::DisplayName;
use super::event::ProfileEvent;
use crate::digest::Digest;
use crate::ids::SampleId;
use crate::personal_data::Personal;

/// A profile as it stands.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub enum Profile {
    /// No event yet.
    #[default]
    Unknown,
    /// A person known by name.
    Active {
        /// How the person is called.
        display_name: Personal<DisplayName>,
        /// The samples of the person's voice, each with its digest.
        samples: BTreeMap<SampleId, Digest>,
        /// The samples that were taken away.
        removed: BTreeSet<SampleId>,
    },
    /// Forgotten, for good.
    Erased,
}

/// Takes `event` into `profile`. Never fails, as a meeting's `evolve` never does.
pub fn evolve(profile: &mut Profile, event: &ProfileEvent) {
    match (event, &mut *profile) {
        (ProfileEvent::ProfileCreated { display_name, .. }, Profile::Unknown) => {
            *profile = Profile::Active {
                display_name: display_name.clone(),
                samples: BTreeMap::new(),
                removed: BTreeSet::new(),
            };
        }
        (ProfileEvent::ProfileRenamed { display_name: new }, Profile::Active { display_name, .. }) => {
            *display_name = new.clone();
        }
        (ProfileEvent::VoiceEnrolled { sample_id, voice, .. }, Profile::Active { samples, .. }) => {
            samples.insert(*sample_id, Digest::of(voice));
        }
        (ProfileEvent::VoiceRemoved { sample_id }, Profile::Active { samples, removed, .. }) => {
            samples.remove(sample_id);
            removed.insert(*sample_id);
        }
        (ProfileEvent::ProfileErased { .. }, _) => *profile = Profile::Erased,
        (
            ProfileEvent::ProfileCreated { .. }
            | ProfileEvent::ProfileRenamed { .. }
            | ProfileEvent::VoiceEnrolled { .. }
            | ProfileEvent::VoiceRemoved { .. },
            Profile::Unknown | Profile::Active { .. } | Profile::Erased,
        ) => {}
    }
}
