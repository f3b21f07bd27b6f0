//! The aggregate Meeting: one recording's way through the pipeline.
//!
//! `pending -> processing -> completed | failed`, `failed -> processing` (retry) and
//! `completed -> processing` (reprocess), each a new attempt. What an attempt yields takes the place of
//! what earlier ones yielded: speakers when they are diarized, an artifact when one of its type is stored,
//! and whatever is left of older attempts when the new one completes.
//!
//! Read on in `event` (what happened), `state` (what it adds up to), `command` (what may be asked) and
//! `decide` (what becomes of it).

pub mod carry_over;
mod command;
mod decide;
mod event;
mod state;

use cqrs_es::event_sink::EventSink;
use cqrs_es::{Aggregate, DomainEvent};

pub use command::{FailMeeting, MeetingCommand, RegisterMeeting};
pub use decide::{FORGOTTEN, MAX_CACHED_BYTES, MAX_STAGES, MeetingError, decide};
pub use event::{
    CacheKey, CarriedFrom, Cause, MeetingCompleted, MeetingEvent, MeetingRegistered, OutdatedArtifact,
};
pub use state::{Correction, Meeting, Origin, Record, Status, evolve};

impl DomainEvent for MeetingEvent {
    fn event_type(&self) -> String {
        self.name().to_owned()
    }

    fn event_version(&self) -> String {
        self.version().to_string()
    }
}

impl Aggregate for Meeting {
    const TYPE: &'static str = "meeting";
    type Command = MeetingCommand;
    type Event = MeetingEvent;
    type Error = MeetingError;
    type Services = ();

    async fn handle(
        &mut self,
        command: MeetingCommand,
        _services: &(),
        sink: &EventSink<Self>,
    ) -> Result<(), MeetingError> {
        for event in decide(self, &command)? {
            sink.write(event, self).await;
        }
        Ok(())
    }

    fn apply(&mut self, event: MeetingEvent) {
        evolve(self, &event);
    }
}
