//! What the log holds: events as they are stored, as they are decoded, and why one cannot be.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use domain::event::{DecodeError, Event};
use domain::meeting::MeetingEvent;
use domain::profile::ProfileEvent;
use serde::Deserialize;

use crate::sealing::KeyError;

/// An event and its place in the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    /// The place: 1, 2, 3 … over the whole log.
    pub position: i64,
    /// When it was appended; never earlier than the position before.
    pub recorded_at: DateTime<Utc>,
    /// The place among the events of its aggregate, from 1.
    pub sequence: i64,
    /// The version of the shape in which it is stored.
    pub event_version: u32,
    /// What happened.
    pub event: Event,
    /// Who made it happen; read only of a reassignment and of a voice's sample, for only there it is shown.
    pub provenance: Option<Provenance>,
}

/// Who made an event happen, and on behalf of what; from the event's metadata.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Provenance {
    /// An opaque id.
    pub actor: Option<String>,
    /// `person`, `service` or `system`.
    pub actor_kind: Option<String>,
    /// What the command belonged to.
    pub correlation_id: Option<String>,
}

impl Provenance {
    /// Reads it from the metadata of a stored event; what is not as it should be is unknown.
    pub fn of(metadata: &str) -> Self {
        serde_json::from_str(metadata).unwrap_or_default()
    }
}

/// An event as whoever folds meets it: one that cannot be decoded does not end the reading.
#[derive(Debug)]
pub enum Entry {
    /// It was decoded.
    Event(Recorded),
    /// It cannot be decoded.
    Unreadable(Unreadable),
}

/// An event that cannot be decoded, and where it belongs.
#[derive(Debug)]
pub struct Unreadable {
    /// The place: 1, 2, 3 … over the whole log.
    pub position: i64,
    /// When it was appended.
    pub recorded_at: DateTime<Utc>,
    /// The place among the events of its aggregate, from 1.
    pub sequence: i64,
    /// `meeting` or `profile`, if it is as it should be.
    pub aggregate_type: String,
    /// Which one.
    pub aggregate_id: String,
    /// The event's name.
    pub event_type: String,
    /// Why it cannot.
    pub source: DecodeError,
}

impl Entry {
    /// Returns the place in the log.
    pub const fn position(&self) -> i64 {
        match self {
            Self::Event(recorded) => recorded.position,
            Self::Unreadable(unreadable) => unreadable.position,
        }
    }

    /// Returns when it was appended.
    pub const fn recorded_at(&self) -> DateTime<Utc> {
        match self {
            Self::Event(recorded) => recorded.recorded_at,
            Self::Unreadable(unreadable) => unreadable.recorded_at,
        }
    }

    /// Returns the place among the events of the aggregate.
    pub const fn sequence(&self) -> i64 {
        match self {
            Self::Event(recorded) => recorded.sequence,
            Self::Unreadable(unreadable) => unreadable.sequence,
        }
    }

    /// Returns the type and the id of the aggregate, as the log has them.
    pub fn aggregate(&self) -> (Cow<'_, str>, Cow<'_, str>) {
        match self {
            Self::Event(Recorded { event, .. }) => {
                (event.aggregate_type().into(), event.aggregate_id().to_string().into())
            }
            Self::Unreadable(unreadable) => {
                (unreadable.aggregate_type.as_str().into(), unreadable.aggregate_id.as_str().into())
            }
        }
    }

    /// Returns the event's name.
    pub fn event_type(&self) -> &str {
        match self {
            Self::Event(recorded) => recorded.event.name(),
            Self::Unreadable(unreadable) => &unreadable.event_type,
        }
    }
}

/// An event as its row has it, not decoded.
#[derive(Debug, Clone)]
pub struct StoredEvent {
    /// The place: 1, 2, 3 … over the whole log.
    pub position: i64,
    /// When it was appended.
    pub recorded_at: DateTime<Utc>,
    /// `meeting` or `profile`.
    pub aggregate_type: String,
    /// Which one.
    pub aggregate_id: String,
    /// The place among the events of its aggregate, from 1.
    pub sequence: i64,
    /// The event's name.
    pub event_type: String,
    /// The version of its shape.
    pub event_version: String,
    /// What happened, as JSON.
    pub payload: String,
    /// Who did it and on behalf of what, as a flat JSON object.
    pub metadata: String,
    /// What of the payload does not open, if it was looked for.
    pub damage: Option<DecodeError>,
}

impl StoredEvent {
    /// Decodes the event. What is personal in it is sealed, unless [`crate::sealing::Keyring`] has opened it.
    pub fn decode(&self) -> Result<Recorded, LogError> {
        let decoded = self.damage.clone().map_or_else(|| self.decode_sealed(), Err);
        let event = decoded.map_err(|source| LogError::Decode { position: self.position, source })?;
        let somebodys_word = matches!(
            event,
            Event::Meeting(_, MeetingEvent::SpeakerReassigned { .. })
                | Event::Profile(_, ProfileEvent::VoiceEnrolled { .. })
        );
        Ok(Recorded {
            position: self.position,
            recorded_at: self.recorded_at,
            sequence: self.sequence,
            event_version: version_number(&self.event_version),
            event,
            provenance: somebodys_word.then(|| Provenance::of(&self.metadata)),
        })
    }

    pub(crate) fn decode_sealed(&self) -> Result<Event, DecodeError> {
        Event::decode(
            &self.aggregate_type,
            &self.aggregate_id,
            &self.event_type,
            &self.event_version,
            &self.payload,
        )
    }
}

/// Returns the number that a known version has.
pub(super) fn version_number(event_version: &str) -> u32 {
    event_version.parse().unwrap_or_default()
}

/// Why the log cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The database did not answer as it should.
    #[error("cannot read the log after position {after}")]
    Database {
        /// The last position that was read.
        after: i64,
        /// What the database said.
        #[source]
        source: sqlx::Error,
    },
    /// A position is missing. Positions have no holes by construction, so the log is damaged.
    #[error("the log is damaged: position {missing} is missing, position {found} follows")]
    Hole {
        /// The first position that is missing.
        missing: i64,
        /// The position found in its place.
        found: i64,
    },
    /// An event cannot be decoded.
    #[error("the event at position {position} cannot be read")]
    Decode {
        /// Where it is.
        position: i64,
        /// Why.
        #[source]
        source: DecodeError,
    },
}

impl LogError {
    pub(crate) fn of_keys(after: i64, error: KeyError) -> Self {
        Self::Database { after, source: error.into() }
    }
}

impl From<Unreadable> for LogError {
    fn from(Unreadable { position, source, .. }: Unreadable) -> Self {
        Self::Decode { position, source }
    }
}
