//! An event of either aggregate, as the log gives it back.

use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::ids::{MeetingId, ProfileId};
use crate::meeting::MeetingEvent;
use crate::profile::ProfileEvent;
use crate::upcast;

/// An event and the aggregate that it happened to.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Of a meeting.
    Meeting(MeetingId, MeetingEvent),
    /// Of a profile.
    Profile(ProfileId, ProfileEvent),
}

/// Why a stored event cannot be read. It names the place, never the content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// There is no such aggregate.
    #[error("unknown aggregate type {0:?}")]
    UnknownAggregate(String),
    /// The aggregate's id is none.
    #[error("aggregate id is not a UUID")]
    BadAggregateId,
    /// The payload is not what its type and version say.
    #[error("{event_type} version {event_version} does not decode, at line {line} column {column}")]
    BadPayload {
        /// The stored type.
        event_type: String,
        /// The stored version.
        event_version: String,
        /// Where decoding stopped.
        line: usize,
        /// Where decoding stopped.
        column: usize,
    },
    /// The payload was written by a newer Minutebook.
    #[error("{event_type} version {event_version} is not known; the newest known is {newest}")]
    UnknownVersion {
        /// The stored type.
        event_type: String,
        /// The stored version.
        event_version: String,
        /// The newest version that is known.
        newest: &'static str,
    },
    /// What is sealed in it does not open: it was damaged, or belongs elsewhere.
    #[error("the sealed {field} of a {event_type} does not open: it is damaged, or belongs elsewhere")]
    DoesNotOpen {
        /// The stored type.
        event_type: String,
        /// The stored version.
        event_version: String,
        /// Which value.
        field: &'static str,
    },
    /// The payload is of another type than its row says.
    #[error("payload is a {found}, its row says {expected}")]
    AnotherType {
        /// What the row says.
        expected: String,
        /// What the payload is.
        found: &'static str,
    },
}

impl Event {
    /// Decodes a stored event, lifting an old version to today's shape first.
    pub fn decode(
        aggregate_type: &str,
        aggregate_id: &str,
        event_type: &str,
        event_version: &str,
        payload: &str,
    ) -> Result<Self, DecodeError> {
        let id = aggregate_id.parse::<Uuid>().map_err(|_| DecodeError::BadAggregateId)?;
        let event = match aggregate_type {
            "meeting" => Self::Meeting(id.into(), decode_payload(event_type, event_version, payload)?),
            "profile" => Self::Profile(id.into(), decode_payload(event_type, event_version, payload)?),
            other => return Err(DecodeError::UnknownAggregate(other.to_owned())),
        };
        if event.name() != event_type {
            return Err(DecodeError::AnotherType { expected: event_type.to_owned(), found: event.name() });
        }
        Ok(event)
    }

    /// Returns the type of the aggregate, as the log has it.
    pub const fn aggregate_type(&self) -> &'static str {
        match self {
            Self::Meeting(..) => "meeting",
            Self::Profile(..) => "profile",
        }
    }

    /// Returns the id of the aggregate.
    pub const fn aggregate_id(&self) -> Uuid {
        match self {
            Self::Meeting(id, _) => id.as_uuid(),
            Self::Profile(id, _) => id.as_uuid(),
        }
    }

    /// Returns the event as JSON, as it is stored.
    pub fn to_json(&self) -> String {
        let json = match self {
            Self::Meeting(_, event) => serde_json::to_string(event),
            Self::Profile(_, event) => serde_json::to_string(event),
        };
        json.expect("events have string keys and finite numbers")
    }

    /// Returns the name under which the event is stored.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Meeting(_, event) => event.name(),
            Self::Profile(_, event) => event.name(),
        }
    }

    /// Returns the version of the shape in which the event is stored today.
    pub const fn version(&self) -> u32 {
        match self {
            Self::Meeting(_, event) => event.version(),
            Self::Profile(_, event) => event.version(),
        }
    }
}

/// An event that knows no aggregate yet.
pub trait AggregateEvent: serde::Serialize {
    /// Returns it as an event of the aggregate with this id.
    fn of(self, id: Uuid) -> Event;
}

impl AggregateEvent for MeetingEvent {
    fn of(self, id: Uuid) -> Event {
        Event::Meeting(id.into(), self)
    }
}

impl AggregateEvent for ProfileEvent {
    fn of(self, id: Uuid) -> Event {
        Event::Profile(id.into(), self)
    }
}

fn decode_payload<E: DeserializeOwned>(
    event_type: &str,
    event_version: &str,
    payload: &str,
) -> Result<E, DecodeError> {
    upcast::check_known(event_type, event_version)?;
    let decoded = if event_version == upcast::newest_version(event_type) {
        serde_json::from_str(payload)
    } else {
        serde_json::from_str(payload)
            .map(|value| upcast::upcast(event_type, event_version, value))
            .and_then(serde_json::from_value)
    };
    // serde's own message may quote the value.
    decoded.map_err(|error: serde_json::Error| DecodeError::BadPayload {
        event_type: event_type.to_owned(),
        event_version: event_version.to_owned(),
        line: error.line(),
        column: error.column(),
    })
}
