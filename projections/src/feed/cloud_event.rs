//! The envelope: CloudEvents 1.0, with three attributes of our own. In binary mode its attributes are
//! headers; in structured mode the event is one JSON object.

use std::borrow::Cow;

use async_nats::HeaderMap;
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use event_store::Identity;
use event_store::log::{Entry, LogError, Recorded};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::public_event::{EventSkipped, EventType, PublicEvent, schema_uri};

/// What the source of every event begins with; the log's id follows.
const SOURCE: &str = "urn:minutebook:log:";

/// An event on its way to subscribers.
#[derive(Debug, Clone)]
pub struct CloudEvent {
    /// The log's epoch.
    pub epoch: Uuid,
    /// Which log.
    pub log_id: Uuid,
    /// The place in the log.
    pub position: i64,
    /// The position before it of the same type; 0 for the first.
    pub previous: i64,
    /// What kind.
    pub event_type: &'static EventType,
    /// Whether it was skipped: it says that this position has no effect.
    pub skipped: bool,
    /// The meeting or the profile.
    pub aggregate_id: Uuid,
    /// When it was recorded.
    pub time: DateTime<Utc>,
    /// What it belongs to.
    pub correlation_id: Option<String>,
    /// The public event as JSON.
    pub data: Bytes,
}

/// An event ready to be published.
#[derive(Debug, Clone)]
pub struct Message {
    /// The place in the log.
    pub position: i64,
    /// Where it goes.
    pub subject: String,
    /// The attributes.
    pub headers: HeaderMap,
    /// The public event as JSON.
    pub data: Bytes,
}

impl CloudEvent {
    /// Wraps what was recorded.
    pub fn new(
        identity: &Identity,
        recorded: &Recorded,
        previous: i64,
        correlation_id: Option<String>,
    ) -> Self {
        let public = PublicEvent::from(&recorded.event);
        let data = serde_json::to_vec(&public).expect("public events have string keys and serialize");
        Self {
            epoch: identity.epoch,
            log_id: identity.log_id,
            position: recorded.position,
            previous,
            event_type: EventType::of(&recorded.event),
            skipped: false,
            aggregate_id: recorded.event.aggregate_id(),
            time: recorded.recorded_at,
            correlation_id,
            data: data.into(),
        }
    }

    /// Wraps an event of the log; one that was skipped may be beyond reading.
    pub fn of_entry(
        identity: &Identity,
        entry: Entry,
        event_type: &'static EventType,
        skipped: bool,
        previous: i64,
        correlation_id: Option<String>,
    ) -> Result<Self, LogError> {
        if !skipped {
            return match entry {
                Entry::Event(recorded) => Ok(Self::new(identity, &recorded, previous, correlation_id)),
                Entry::Unreadable(unreadable) => Err(unreadable.into()),
            };
        }
        let position = entry.position();
        // A row whose id is none has no better one.
        let id = entry.aggregate().1.parse().unwrap_or_default();
        let public = EventSkipped { id, event_type: event_type.full.to_owned() };
        let data = serde_json::to_vec(&public).expect("public events have string keys and serialize");
        Ok(Self {
            epoch: identity.epoch,
            log_id: identity.log_id,
            position,
            previous,
            event_type,
            skipped,
            aggregate_id: id,
            time: entry.recorded_at(),
            correlation_id,
            data: data.into(),
        })
    }

    /// Returns the CloudEvents type.
    pub fn full_type(&self) -> Cow<'static, str> {
        if self.skipped { self.event_type.skipped().into() } else { self.event_type.full.into() }
    }

    fn schema_uri(&self) -> String {
        schema_uri(&self.full_type())
    }

    /// Returns its id, which is also the message's: epoch and position. A position alone is given out again
    /// after a restore.
    pub fn id(&self) -> String {
        event_id(self.epoch, self.position)
    }

    /// Returns the subject on which it is published: `minutebook.meeting.<id>.completed`.
    pub fn nats_subject(&self) -> String {
        let EventType { aggregate, name, .. } = self.event_type;
        format!("minutebook.{aggregate}.{}.{name}", self.aggregate_id.as_hyphenated())
    }

    /// Returns the message that carries it.
    pub fn into_message(self) -> Message {
        Message {
            position: self.position,
            subject: self.nats_subject(),
            headers: self.headers(),
            data: self.data,
        }
    }

    /// Returns the attributes as headers: CloudEvents' binary mode in NATS.
    pub fn headers(&self) -> HeaderMap {
        let id = self.id();
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", id.as_str());
        headers.insert("ce-specversion", "1.0");
        headers.insert("ce-id", id);
        headers.insert("ce-source", self.source());
        headers.insert("ce-type", self.full_type().as_ref());
        headers.insert("ce-subject", self.aggregate_id.as_hyphenated().to_string());
        headers.insert("ce-time", self.rfc3339());
        headers.insert("ce-dataschema", self.schema_uri());
        headers.insert("ce-position", self.position.to_string());
        headers.insert("ce-previous", self.previous.to_string());
        if self.skipped {
            headers.insert("ce-skippedtype", self.event_type.full);
        }
        if let Some(correlation) = &self.correlation_id {
            headers.insert("ce-correlationid", correlation.as_str());
        }
        headers.insert("content-type", "application/json");
        headers
    }

    /// Reads a message of the stream; none if it is no event of this feed.
    pub fn from_message(headers: &HeaderMap, data: Bytes) -> Option<Self> {
        let text = |name| headers.get(name).map(async_nats::HeaderValue::as_str);
        let (epoch, position) = parse_event_id(text("ce-id")?)?;
        let skipped_type = text("ce-skippedtype");
        Some(Self {
            epoch,
            log_id: text("ce-source")?.strip_prefix(SOURCE)?.parse().ok()?,
            position,
            previous: text("ce-previous")?.parse().ok()?,
            event_type: EventType::named(skipped_type.or(text("ce-type"))?)?,
            skipped: skipped_type.is_some(),
            aggregate_id: text("ce-subject")?.parse().ok()?,
            time: text("ce-time")?.parse().ok()?,
            correlation_id: text("ce-correlationid").map(str::to_owned),
            data,
        })
    }

    /// Reads an event in structured mode; none if it is no event of this feed.
    pub fn from_json(text: &str) -> Option<Self> {
        let read = serde_json::from_str::<Received>(text).ok()?;
        let (epoch, position) = parse_event_id(&read.id)?;
        Some(Self {
            epoch,
            log_id: read.source.strip_prefix(SOURCE)?.parse().ok()?,
            position,
            previous: read.previous,
            event_type: EventType::named(read.skippedtype.as_ref().unwrap_or(&read.event_type))?,
            skipped: read.skippedtype.is_some(),
            aggregate_id: read.subject,
            time: read.time,
            correlation_id: read.correlationid,
            data: read.data.get().as_bytes().to_vec().into(),
        })
    }

    /// Reads the data as one of the types of [`public_event`](super::public_event).
    pub fn data<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_slice(&self.data)
    }

    /// Returns the event as one JSON object: CloudEvents' structured mode.
    pub fn to_json(&self) -> String {
        let data = RawValue::from_string(String::from_utf8_lossy(&self.data).into_owned());
        serde_json::to_string(&Structured {
            specversion: "1.0",
            id: self.id(),
            source: self.source(),
            event_type: &self.full_type(),
            skippedtype: self.skipped.then_some(self.event_type.full),
            subject: self.aggregate_id,
            time: self.rfc3339(),
            dataschema: self.schema_uri(),
            datacontenttype: "application/json",
            position: self.position,
            previous: self.previous,
            correlationid: self.correlation_id.as_deref(),
            data: data.expect("the data is JSON"),
        })
        .expect("an envelope has string keys and serializes")
    }

    fn source(&self) -> String {
        format!("{SOURCE}{}", self.log_id.as_hyphenated())
    }

    fn rfc3339(&self) -> String {
        self.time.to_rfc3339_opts(SecondsFormat::Micros, true)
    }
}

/// What a message's id ends with that was published again although the broker remembered it.
pub const AGAIN_SUFFIX: &str = ":again";

/// Returns the id of the event at `position` of an epoch.
pub fn event_id(epoch: Uuid, position: i64) -> String {
    format!("{}:{position}", epoch.as_hyphenated())
}

/// Takes an event's id apart.
pub fn parse_event_id(id: &str) -> Option<(Uuid, i64)> {
    let (epoch, position) = id.split_once(':')?;
    Some((epoch.parse().ok()?, position.parse().ok().filter(|position| *position >= 0)?))
}

#[derive(Serialize)]
struct Structured<'a> {
    specversion: &'static str,
    id: String,
    source: String,
    #[serde(rename = "type")]
    event_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    skippedtype: Option<&'static str>,
    subject: Uuid,
    time: String,
    dataschema: String,
    datacontenttype: &'static str,
    position: i64,
    previous: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlationid: Option<&'a str>,
    data: Box<RawValue>,
}

#[derive(Deserialize)]
struct Received {
    id: String,
    source: String,
    #[serde(rename = "type")]
    event_type: String,
    skippedtype: Option<String>,
    subject: Uuid,
    time: DateTime<Utc>,
    previous: i64,
    correlationid: Option<String>,
    data: Box<RawValue>,
}
