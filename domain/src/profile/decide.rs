//! What becomes of a command to a profile.

use super::command::ProfileCommand;
use super::event::ProfileEvent;
use super::state::Profile;
use crate::digest::Digest;
use crate::personal_data::Personal;

/// The most voice samples of one profile.
pub const MAX_SAMPLES: usize = 100;

/// Why a command to a profile was refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// No profile has this id.
    #[error("there is no such profile")]
    NotFound,
    /// The person was forgotten.
    #[error("the profile was erased")]
    Erased,
    /// The id stands for a person of another name.
    #[error("a profile with this id and another name exists already")]
    AlreadyExists,
    /// The sample's id stands for another sample.
    #[error("a voice sample with this id exists already and differs")]
    SampleExists,
    /// No sample of the profile has this id.
    #[error("the profile has no such voice sample")]
    UnknownSample,
    /// The profile has as many samples as it may.
    #[error("a profile has at most 100 voice samples")]
    TooManySamples,
}

impl ProfileError {
    /// Returns the refusal's stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotFound => "profile_not_found",
            Self::Erased => "profile_erased",
            Self::AlreadyExists => "profile_exists",
            Self::SampleExists => "sample_exists",
            Self::UnknownSample => "sample_not_found",
            Self::TooManySamples => "too_many_samples",
        }
    }
}

/// Decides what becomes of `command`: the events that follow from it, none if it has already had its
/// effect, or a refusal.
pub fn decide(profile: &Profile, command: &ProfileCommand) -> Result<Vec<ProfileEvent>, ProfileError> {
    match (profile, command.clone()) {
        (Profile::Unknown, ProfileCommand::Create { profile_id, display_name, at }) => {
            let display_name = display_name.into();
            Ok(vec![ProfileEvent::ProfileCreated { profile_id, display_name, created_at: at }])
        }
        (Profile::Active { display_name: known, .. }, ProfileCommand::Create { display_name, .. }) => {
            if known.is(&display_name) { Ok(vec![]) } else { Err(ProfileError::AlreadyExists) }
        }
        (Profile::Active { display_name: known, .. }, ProfileCommand::Rename { display_name }) => {
            if known.is(&display_name) {
                return Ok(vec![]);
            }
            Ok(vec![ProfileEvent::ProfileRenamed { display_name: display_name.into() }])
        }
        (Profile::Active { samples, .. }, ProfileCommand::EnrolVoice { sample_id, voice, source, at }) => {
            match samples.get(&sample_id) {
                Some(known) if *known == Digest::of(&voice) => Ok(vec![]),
                Some(_) => Err(ProfileError::SampleExists),
                None if samples.len() >= MAX_SAMPLES => Err(ProfileError::TooManySamples),
                None => Ok(vec![ProfileEvent::VoiceEnrolled {
                    sample_id,
                    voice: voice.into(),
                    source: source.map(Personal::Known),
                    enrolled_at: at,
                }]),
            }
        }
        (Profile::Active { samples, removed, .. }, ProfileCommand::RemoveVoice { sample_id }) => {
            if samples.contains_key(&sample_id) {
                Ok(vec![ProfileEvent::VoiceRemoved { sample_id }])
            } else if removed.contains(&sample_id) {
                Ok(vec![])
            } else {
                Err(ProfileError::UnknownSample)
            }
        }
        (Profile::Active { .. }, ProfileCommand::Erase { at, .. })
        | (Profile::Unknown, ProfileCommand::Erase { at, lost: true }) => {
            Ok(vec![ProfileEvent::ProfileErased { erased_at: at }])
        }
        (Profile::Erased, ProfileCommand::Erase { .. }) => Ok(vec![]),
        (Profile::Erased, _) => Err(ProfileError::Erased),
        (Profile::Unknown, _) => Err(ProfileError::NotFound),
    }
}
