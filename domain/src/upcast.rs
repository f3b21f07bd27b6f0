//! Old versions of events, lifted to today's shape when they are read. The log is never rewritten.
//!
//! To change an event: give it the next version in its `version()`, add an `Upcaster` from the version
//! before to `UPCASTERS`, and a file of the new version to `fixtures/events` (the old one stays, and
//! must decode for ever).

use cqrs_es::persist::{EventUpcaster, SerializedEvent};
use serde_json::Value;

use crate::event::DecodeError;

/// One step from one version of an event's payload to the next.
struct Upcaster {
    event_type: &'static str,
    from_version: &'static str,
    to_version: &'static str,
    lift: fn(Value) -> Value,
}

/// Every step, older versions of an event first.
const UPCASTERS: &[Upcaster] = &[Upcaster {
    event_type: "SpeakersDiarized",
    from_version: "1",
    to_version: "2",
    lift: segments_into_text,
}];

/// `[[0, 4180], [9650, 12730]]` became `"0+4180 9650+12730"`.
fn segments_into_text(mut payload: Value) -> Value {
    let clusters = payload.pointer_mut("/SpeakersDiarized/clusters").and_then(Value::as_array_mut);
    for cluster in clusters.into_iter().flatten() {
        let Some(segments) = cluster.get_mut("segments") else { continue };
        let texts =
            segments.as_array().map(|segments| segments.iter().map(segment_text).collect::<Option<Vec<_>>>());
        // What is no segment stays as it is, and is refused where it is decoded.
        if let Some(Some(texts)) = texts {
            *segments = Value::String(texts.join(" "));
        }
    }
    payload
}

fn segment_text(segment: &Value) -> Option<String> {
    let [start, duration] = segment.as_array()?.as_slice() else { return None };
    Some(format!("{}+{}", start.as_u64()?, duration.as_u64()?))
}

/// Returns the version in which an event of this type is stored today.
pub fn newest_version(event_type: &str) -> &'static str {
    let mut steps = UPCASTERS.iter().filter(|step| step.event_type == event_type);
    steps.next_back().map_or("1", |step| step.to_version)
}

/// Says whether a payload of this version can be lifted to today's shape.
fn can_upcast(event_type: &str, event_version: &str) -> bool {
    UPCASTERS.iter().any(|step| step.event_type == event_type && step.from_version == event_version)
}

/// Checks that an event of this type and version can be read, as it is or lifted.
pub fn check_known(event_type: &str, event_version: &str) -> Result<(), DecodeError> {
    let newest = newest_version(event_type);
    if event_version == newest || can_upcast(event_type, event_version) {
        return Ok(());
    }
    Err(DecodeError::UnknownVersion {
        event_type: event_type.to_owned(),
        event_version: event_version.to_owned(),
        newest,
    })
}

/// Lifts `payload` step by step to today's shape.
pub fn upcast(event_type: &str, event_version: &str, payload: Value) -> Value {
    let start = (event_version, payload);
    let (_, payload) = UPCASTERS.iter().filter(|step| step.event_type == event_type).fold(
        start,
        |(version, payload), step| {
            if step.from_version == version {
                (step.to_version, (step.lift)(payload))
            } else {
                (version, payload)
            }
        },
    );
    payload
}

/// Returns the same steps in the shape that cqrs-es takes.
pub fn for_cqrs_es() -> Vec<Box<dyn EventUpcaster>> {
    UPCASTERS.iter().map(|step| Box::new(step) as Box<dyn EventUpcaster>).collect()
}

impl EventUpcaster for &'static Upcaster {
    fn can_upcast(&self, event_type: &str, event_version: &str) -> bool {
        self.event_type == event_type && self.from_version == event_version
    }

    fn upcast(&self, event: SerializedEvent) -> SerializedEvent {
        SerializedEvent {
            event_version: self.to_version.to_owned(),
            payload: (self.lift)(event.payload),
            ..event
        }
    }
}
