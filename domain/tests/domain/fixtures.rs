//! What was ever stored decodes for ever, and what does not decode says so without telling what it holds.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::path::Path;

use cqrs_es::Aggregate;
use domain::Event;
use domain::event::DecodeError;
use domain::meeting::{Meeting, MeetingEvent};
use domain::personal_data::{self, FieldVisitor, Personal, Plain, Subject};
use domain::profile::{Profile, ProfileEvent};
use serde::Deserialize;
use serde_json::Value;

use crate::given::json;

/// A file of `fixtures/events`: the columns of the log's row.
#[derive(Deserialize)]
struct Fixture {
    aggregate_type: String,
    aggregate_id: String,
    event_type: String,
    event_version: String,
    payload: Value,
}

impl Fixture {
    fn decode(&self) -> Result<Event, DecodeError> {
        Event::decode(
            &self.aggregate_type,
            &self.aggregate_id,
            &self.event_type,
            &self.event_version,
            &self.payload.to_string(),
        )
    }
}

fn fixtures() -> BTreeMap<String, Fixture> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/events");
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.expect("the directory can be read").path();
        let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let fixture = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, fixture)
    };
    fs::read_dir(directory).expect("the fixtures are there").map(read).collect()
}

/// Says where `NAMES` lists the event. A new event stops the build here, and again if it is not listed.
const fn listed(event: &Event) -> &'static str {
    const M: [&str; MeetingEvent::NAMES.len()] = MeetingEvent::NAMES;
    const P: [&str; ProfileEvent::NAMES.len()] = ProfileEvent::NAMES;
    match event {
        Event::Meeting(_, event) => match event {
            MeetingEvent::MeetingRegistered(_) => M[0],
            MeetingEvent::ProcessingStarted { .. } => M[1],
            MeetingEvent::ContentFingerprinted { .. } => M[2],
            MeetingEvent::LanguageDetected { .. } => M[3],
            MeetingEvent::SpeakersDiarized { .. } => M[4],
            MeetingEvent::SpeakerIdentified { .. } => M[5],
            MeetingEvent::SpeakerNotIdentified { .. } => M[6],
            MeetingEvent::SpeakerReassigned { .. } => M[7],
            MeetingEvent::CorrectionNotCarried { .. } => M[8],
            MeetingEvent::CorrectionDismissed { .. } => M[9],
            MeetingEvent::ArtifactStored { .. } => M[10],
            MeetingEvent::ArtifactsOutdated { .. } => M[11],
            MeetingEvent::StageResultCached { .. } => M[12],
            MeetingEvent::StageResultsDropped { .. } => M[13],
            MeetingEvent::MeetingCompleted(_) => M[14],
            MeetingEvent::MeetingFailed { .. } => M[15],
            MeetingEvent::MeetingErased { .. } => M[16],
        },
        Event::Profile(_, event) => match event {
            ProfileEvent::ProfileCreated { .. } => P[0],
            ProfileEvent::ProfileRenamed { .. } => P[1],
            ProfileEvent::VoiceEnrolled { .. } => P[2],
            ProfileEvent::VoiceRemoved { .. } => P[3],
            ProfileEvent::ProfileErased { .. } => P[4],
        },
    }
}

#[test]
fn every_event_ever_stored_decodes() {
    for (file, fixture) in fixtures() {
        let name = format!("{}.v{}", fixture.event_type, fixture.event_version);
        // Clear, as nothing is stored any more; as it is stored; and as it was stored already destroyed.
        let names = ["", ".sealed", ".destroyed"].map(|what| format!("{name}{what}.json"));
        assert!(names.contains(&file), "{file}");
        let event = fixture.decode().unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!(event.aggregate_id().to_string(), fixture.aggregate_id, "{file}");
        assert_eq!((event.name(), listed(&event)), (&*fixture.event_type, &*fixture.event_type), "{file}");
        if fixture.event_version == event.version().to_string() {
            // By way of text: a number written as f32 has its own shortest digits.
            let again = match &event {
                Event::Meeting(_, event) => json(event),
                Event::Profile(_, event) => json(event),
            };
            assert_eq!(serde_json::from_str::<Value>(&again).unwrap(), fixture.payload, "{file}");
        }
    }
}

/// Seals by writing down whose value it is and what it is called, instead of the value.
struct Label;

impl FieldVisitor for Label {
    type Error = Infallible;
    fn field<T: Plain>(
        &mut self,
        subject: Subject,
        name: &'static str,
        value: &mut Personal<T>,
    ) -> Result<(), Infallible> {
        let again = value.known().and_then(|known| T::from_bytes(&known.to_bytes()));
        // A value that does not come back from its bytes would be lost.
        *value = match (again, &*value) {
            (Some(again), Personal::Known(known)) if again.to_bytes() == known.to_bytes() => {
                Personal::Sealed(format!("{name} of a {}", subject.kind()).into())
            }
            _ => panic!("{name} does not come back from its bytes"),
        };
        Ok(())
    }
}

#[test]
fn what_is_personal_is_visited_and_nothing_else_changes() {
    let fixtures = fixtures();
    let mut personal = vec![];
    for (file, fixture) in &fixtures {
        if file.ends_with(".sealed.json") || file.ends_with(".destroyed.json") {
            continue;
        }
        let clear = fixture.decode().unwrap();
        let (mut sealed, mut destroyed) = (clear.clone(), clear.clone());
        let Ok(()) = personal_data::visit(&mut sealed, &mut Label);
        personal_data::destroy(&mut destroyed);
        if sealed == clear {
            assert!(!fixtures.contains_key(&file.replace(".json", ".sealed.json")), "{file}");
            continue;
        }
        if fixture.event_version == clear.version().to_string() {
            let stored = |what: &str| fixtures[&file.replace(".json", what)].decode().unwrap();
            assert_eq!(destroyed, stored(".destroyed.json"), "{file}");
            let mut again = stored(".sealed.json");
            personal_data::destroy(&mut again);
            assert_eq!(again, destroyed, "{file}: what is sealed is just what is destroyed");
        }
        let json = match &sealed {
            Event::Meeting(_, event) => json(event),
            Event::Profile(_, event) => json(event),
        };
        let labels = json.split(r#"{"sealed":""#).skip(1).map(|rest| rest.split_once('"').unwrap().0);
        personal.push(format!("{}: {}", clear.name(), labels.collect::<Vec<_>>().join(", ")));
    }
    personal.dedup();
    // Sealed values are bound to these names: none of them ever changes.
    let expected = [
        "ArtifactStored: meta of transcript.vtt of a meeting",
        "CorrectionDismissed: reason of a meeting",
        "MeetingCompleted: meta of transcript.vtt of a meeting",
        "MeetingFailed: reason of a meeting",
        "ProfileCreated: display_name of a profile",
        "ProfileRenamed: display_name of a profile",
        "SpeakerReassigned: reason of a meeting",
        "SpeakersDiarized: vector of a speaker",
        "StageResultCached: value of a meeting",
        "VoiceEnrolled: vector of a profile, source of a profile",
    ];
    assert_eq!(personal, expected);
}

#[test]
fn a_version_before_is_lifted_to_what_is_stored_today() {
    let fixtures = fixtures();
    let decode = |file: &str| fixtures[file].decode().expect("every fixture decodes");
    assert_eq!(decode("SpeakersDiarized.v1.json"), decode("SpeakersDiarized.v2.json"));
}

#[test]
fn every_event_has_a_fixture_of_its_current_version() {
    let current: Vec<(String, &str)> = fixtures()
        .into_values()
        .map(|fixture| (fixture.decode().expect("every fixture decodes"), fixture))
        .filter(|(event, fixture)| fixture.event_version == event.version().to_string())
        .map(|(event, fixture)| (fixture.aggregate_type, event.name()))
        .collect();
    let of_meetings = MeetingEvent::NAMES.map(|name| (Meeting::TYPE, name));
    let of_profiles = ProfileEvent::NAMES.map(|name| (Profile::TYPE, name));
    for (aggregate, name) in of_meetings.into_iter().chain(of_profiles) {
        assert!(current.contains(&(aggregate.to_owned(), name)), "{name} of a {aggregate} has no fixture");
    }
}

const ID: &str = "0b8e9d64-3a57-4f0e-8c1d-6f2a94c7e5b1";
const RENAMED: &str = r#"{"ProfileRenamed":{"display_name":"Ottilie Brandauer"}}"#;

fn refused(aggregate: &str, id: &str, event_type: &str, version: &str, payload: &str) -> DecodeError {
    let error = Event::decode(aggregate, id, event_type, version, payload).expect_err(payload);
    for text in [error.to_string(), format!("{error:?}")] {
        assert!(!text.contains("Ottilie"), "an error must not tell what the payload holds: {text}");
    }
    error
}

#[test]
fn a_row_that_names_the_wrong_thing_is_refused() {
    assert_eq!(
        refused("invoice", ID, "ProfileRenamed", "1", RENAMED),
        DecodeError::UnknownAggregate("invoice".to_owned())
    );
    assert_eq!(refused("profile", "Ottilie", "ProfileRenamed", "1", RENAMED), DecodeError::BadAggregateId);
    assert_eq!(
        refused("profile", ID, "ProfileErased", "1", RENAMED),
        DecodeError::AnotherType { expected: "ProfileErased".to_owned(), found: "ProfileRenamed" }
    );
}

#[test]
fn an_event_of_a_newer_version_is_refused_whatever_its_shape() {
    assert_eq!(
        refused("profile", ID, "ProfileRenamed", "2", RENAMED),
        DecodeError::UnknownVersion {
            event_type: "ProfileRenamed".to_owned(),
            event_version: "2".to_owned(),
            newest: "1"
        }
    );
    let reshaped = r#"{"ProfileRenamed":{"name":{"given":"Ottilie"}}}"#;
    for version in ["2", "0", "01", "+1", ""] {
        let error = refused("profile", ID, "ProfileRenamed", version, reshaped);
        assert!(matches!(error, DecodeError::UnknownVersion { newest: "1", .. }), "{version}: {error}");
    }
}

#[test]
fn a_broken_payload_is_refused_without_being_quoted() {
    let broken = [
        r#"{"ProfileRenamed":{"display_name":"Ottilie Brand"#,
        r#"{"ProfileRenamed":{"display_name":["Ottilie Brandauer"]}}"#,
        r#"{"ProfileRenamed":{"display_name":"Ottilie\u0000Brandauer"}}"#,
        r#"{"ProfileRenamed":{}, "Ottilie Brandauer":1}"#,
        r#"{"Ottilie Brandauer":{}}"#,
        r#""Ottilie Brandauer""#,
        r#"{"ProfileCreated":{"profile_id":"Ottilie Brandauer"}}"#,
        r#"{"VoiceEnrolled":{"sample_id":"Ottilie Brandauer","voice":{"model":"m","vector":[0]}}}"#,
        r#"{"MeetingErased":{"reason":"Ottilie Brandauer","erased_at":"2026-06-30T22:15:00Z"}}"#,
        "",
    ];
    for payload in broken {
        let error = refused("profile", ID, "ProfileRenamed", "1", payload);
        assert!(matches!(error, DecodeError::BadPayload { line: 0 | 1, .. }), "{payload}: {error:?}");
        assert!(error.to_string().starts_with("ProfileRenamed version 1 does not decode"), "{error}");
    }
}
