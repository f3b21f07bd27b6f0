//! Given these events, when this command comes, then that follows: for either aggregate.

use std::fmt::Debug;
use std::str::FromStr;

use chrono::DateTime;
use cqrs_es::test::TestFramework;
use cqrs_es::{Aggregate, DomainEvent};
use domain::meeting::{self, Meeting, MeetingCommand, MeetingError, MeetingEvent};
use domain::profile::{self, Profile, ProfileCommand, ProfileError, ProfileEvent};
use domain::{Event, Timestamp};
use serde::Serialize;
use uuid::Uuid;

/// What both aggregates have: their free functions, and their refusals' codes.
pub(crate) trait Decider: Aggregate<Services = ()> + Clone + Debug + PartialEq {
    fn decide(&self, command: &Self::Command) -> Result<Vec<Self::Event>, Self::Error>;
    fn evolve(&mut self, event: &Self::Event);
    fn code(error: &Self::Error) -> &'static str;
    fn unwrap_event(event: Event) -> Self::Event;

    /// Returns the state that `events` add up to.
    fn fold<'a>(events: impl IntoIterator<Item = &'a Self::Event>) -> Self
    where
        Self::Event: 'a,
    {
        let mut state = Self::default();
        events.into_iter().for_each(|event| state.evolve(event));
        state
    }

    /// Returns `event` as the log gives it back: through its JSON text and `Event::decode`.
    fn stored(event: &Self::Event) -> Self::Event {
        let id = Uuid::from_u128(1).to_string();
        let decoded =
            Event::decode(Self::TYPE, &id, &event.event_type(), &event.event_version(), &json(event));
        Self::unwrap_event(decoded.expect("what was stored decodes"))
    }
}

impl Decider for Meeting {
    fn decide(&self, command: &MeetingCommand) -> Result<Vec<MeetingEvent>, MeetingError> {
        meeting::decide(self, command)
    }
    fn evolve(&mut self, event: &MeetingEvent) {
        meeting::evolve(self, event);
    }
    fn code(error: &MeetingError) -> &'static str {
        error.code()
    }
    fn unwrap_event(event: Event) -> MeetingEvent {
        match event {
            Event::Meeting(_, event) => event,
            Event::Profile(..) => panic!("expected a meeting's event, got {event:?}"),
        }
    }
}

impl Decider for Profile {
    fn decide(&self, command: &ProfileCommand) -> Result<Vec<ProfileEvent>, ProfileError> {
        profile::decide(self, command)
    }
    fn evolve(&mut self, event: &ProfileEvent) {
        profile::evolve(self, event);
    }
    fn code(error: &ProfileError) -> &'static str {
        error.code()
    }
    fn unwrap_event(event: Event) -> ProfileEvent {
        match event {
            Event::Profile(_, event) => event,
            Event::Meeting(..) => panic!("expected a profile's event, got {event:?}"),
        }
    }
}

pub(crate) struct Given<A: Decider>(Vec<A::Event>);
pub(crate) struct When<A: Decider>(Result<Vec<A::Event>, A::Error>);

/// Begins a specification with the history so far.
pub(crate) fn given<A: Decider>(events: Vec<A::Event>) -> Given<A> {
    Given(events)
}

/// Returns the events that follow from `commands`, of which none may be refused.
pub(crate) fn story<A: Decider>(commands: impl IntoIterator<Item = A::Command>) -> Vec<A::Event> {
    let mut events = Vec::new();
    for command in commands {
        events.extend(A::fold(&events).decide(&command).expect("a story's commands are accepted"));
    }
    events
}

impl<A: Decider> Given<A>
where
    A::Command: Clone,
    A::Error: PartialEq,
{
    /// Asks the free functions and, through cqrs-es, the aggregate, who must say the same.
    pub(crate) fn when(self, command: A::Command) -> When<A> {
        let decided = A::fold(&self.0).decide(&command);
        let bridged = TestFramework::<A>::with(()).given(self.0).when(command).inspect_result();
        assert_eq!(decided, bridged, "the bridge to cqrs-es decides nothing itself");
        When(decided)
    }
}

impl<A: Decider> When<A>
where
    A::Error: PartialEq,
{
    #[track_caller]
    pub(crate) fn then(self, events: impl IntoIterator<Item = A::Event>) {
        assert_eq!(self.0, Ok(events.into_iter().collect()));
    }

    #[track_caller]
    pub(crate) fn then_nothing(self) {
        self.then([]);
    }

    #[track_caller]
    pub(crate) fn then_refused(self, error: A::Error) {
        assert_eq!(self.0, Err(error));
    }

    /// Returns the events' names, `-` for none, or the refusal's code.
    pub(crate) fn in_words(self) -> String {
        match self.0 {
            Ok(events) if events.is_empty() => "-".to_owned(),
            Ok(events) => events.iter().map(DomainEvent::event_type).collect::<Vec<_>>().join(" "),
            Err(error) => A::code(&error).to_owned(),
        }
    }
}

/// Returns the value that `text` stands for.
pub(crate) fn parsed<T: FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().expect("a test's own value is valid")
}

/// Returns an id that is `n`.
pub(crate) fn id<T: From<Uuid>>(n: u128) -> T {
    Uuid::from_u128(n).into()
}

/// Returns a moment on the day of the tests.
pub(crate) fn at(second: u32) -> Timestamp {
    let micros = 1_790_000_000_123_456 + i64::from(second) * 1_000_000;
    DateTime::from_timestamp_micros(micros).expect("a day in 2026 can be told")
}

pub(crate) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("domain values serialize")
}
