//! The aggregate Profile: a person known by name, and perhaps by voice.
//!
//! `created -> erased`, and nothing comes back: an erased profile's id is never used again.

mod command;
mod decide;
mod event;
mod state;

use cqrs_es::event_sink::EventSink;
use cqrs_es::{Aggregate, DomainEvent};

pub use command::ProfileCommand;
pub use decide::{MAX_SAMPLES, ProfileError, decide};
pub use event::ProfileEvent;
pub use state::{Profile, evolve};

use crate::ValueError;
use crate::text::{check, text_type};

text_type!(
    /// How a person is called: 1 to 255 characters.
    DisplayName,
    |text| {
        check(&text, "display_name", 255, "must be 1 to 255 characters, not blank, without NUL")?;
        if text.chars().any(char::is_control) {
            return Err(ValueError::new("display_name", "must not hold control characters"));
        }
        Ok(text)
    }
);

impl DomainEvent for ProfileEvent {
    fn event_type(&self) -> String {
        self.name().to_owned()
    }

    fn event_version(&self) -> String {
        self.version().to_string()
    }
}

impl Aggregate for Profile {
    const TYPE: &'static str = "profile";
    type Command = ProfileCommand;
    type Event = ProfileEvent;
    type Error = ProfileError;
    type Services = ();

    async fn handle(
        &mut self,
        command: ProfileCommand,
        _services: &(),
        sink: &EventSink<Self>,
    ) -> Result<(), ProfileError> {
        for event in decide(self, &command)? {
            sink.write(event, self).await;
        }
        Ok(())
    }

    fn apply(&mut self, event: ProfileEvent) {
        evolve(self, &event);
    }
}
