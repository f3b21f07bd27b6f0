//! What holds whatever is asked in whatever order.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use cqrs_es::DomainEvent;
use domain::artifact::{ArtifactType, Meta};
use domain::file::{DurationSeconds, File, SizeBytes};
use domain::ids::{MeetingId, ProfileId, SpeakerId};
use domain::meeting::{FailMeeting, Meeting, MeetingCommand, MeetingEvent, RegisterMeeting};
use domain::profile::{Profile, ProfileCommand, ProfileEvent};
use domain::speaker::{Candidate, Cluster, ClusterId, Confidence, Decision, Diarization, Evidence, Margin};
use domain::text::{Reason, Stage};
use domain::voice::{Vector, Voice};
use domain::{Timestamp, ValueError};
use proptest::collection::{btree_map, vec};
use proptest::num::f32 as f32s;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::Value;
use uuid::Uuid;

use crate::given::{Decider, at, id, json, story};
use crate::{carry_over as c, meeting_spec as m, profile_spec as p};

/// Commands to one meeting from pools so small that they interact: that they repeat, contradict and
/// outlive each other.
fn meeting_command() -> impl Strategy<Value = MeetingCommand> {
    let worker = || select(vec!["anna", "bert"]);
    let labels = || select(vec!["a", "b", "c/1"]);
    let person = || option::of(1..4_u128);
    let attempt = 1..4_u32;
    let moment = || (0..100_u32).prop_map(at);
    let result = (select(vec!["asr", "align"]), select(vec!["{}", "[]"]), moment(), option::of(moment()));
    let key = select(vec!["m/1", "m/2"]);
    prop_oneof![
        4 => (1..3_u128).prop_map(m::register),
        4 => worker().prop_map(m::start),
        4 => worker().prop_map(m::retry),
        4 => worker().prop_map(m::reprocess),
        3 => select(vec!["fp", "fp2"]).prop_map(m::fingerprint),
        2 => select(vec!["de", "fr"]).prop_map(m::language),
        6 => btree_map(labels(), person(), 0..3)
            .prop_map(|clusters| m::speakers(&clusters.into_iter().collect::<Vec<_>>())),
        4 => vec((labels(), 0..60_u32, 1..60_u32), 0..6).prop_map(|spoken| c::spoken(&spoken)),
        6 => (attempt.clone(), labels(), person())
            .prop_map(|(n, label, to)| m::reassign(m::speaker(n, label), to)),
        3 => (attempt.clone(), labels()).prop_map(|(n, label)| m::undo(m::speaker(n, label))),
        3 => (attempt, labels()).prop_map(|(n, label)| m::dismiss(m::speaker(n, label))),
        1 => (1..4_u128).prop_map(m::forget),
        4 => (select(ArtifactType::ALL.to_vec()), key).prop_map(|(kind, key)| m::store(kind, key)),
        4 => result.prop_map(|(stage, value, now, until)| m::cache(stage, value, now, until)),
        3 => Just(m::complete()),
        3 => select(vec!["no GPU", "no disk"]).prop_map(m::fail),
        1 => Just(m::erase()),
    ]
}

fn profile_command() -> impl Strategy<Value = ProfileCommand> {
    let name = || select(vec!["Mira Sandoz", "Jon Vetsch"]);
    prop_oneof![
        2 => name().prop_map(p::create),
        4 => name().prop_map(p::rename),
        8 => (1..4_u128, select(vec![0.1, 0.2])).prop_map(|(sample, number)| p::enrol(sample, number)),
        4 => (1..4_u128).prop_map(p::remove),
        1 => Just(p::erase()),
    ]
}

/// Carries out `commands`, each of which may be refused, and returns the events.
///
/// Beside the state stands one that knows the events from the log alone; both must be the same throughout
/// and give the same answers, which shows as well that an answer depends on nothing but state and command.
fn carry_out<A: Decider>(commands: &[A::Command]) -> Vec<A::Event>
where
    A::Error: PartialEq,
{
    let (mut live, mut reloaded, mut history) = (A::default(), A::default(), Vec::new());
    for command in commands {
        let answer = live.decide(command);
        assert_eq!(answer, reloaded.decide(command));
        for event in answer.into_iter().flatten() {
            live.evolve(&event);
            reloaded.evolve(&A::stored(&event));
            history.push(event);
        }
        assert_eq!(live, reloaded);
    }
    assert_eq!(serde_json::from_str::<A>(&json(&live)).expect("a state has a JSON form"), live);
    history
}

/// Says whether carrying out `commands`, each twice in a row, yields an event the second time.
fn repeated<A: Decider>(commands: &[A::Command]) -> Option<(&A::Command, Vec<A::Event>)> {
    let mut state = A::default();
    for command in commands {
        state.decide(command).into_iter().flatten().for_each(|event| state.evolve(&event));
        match state.decide(command) {
            Ok(events) if !events.is_empty() => return Some((command, events)),
            Ok(_) | Err(_) => {}
        }
    }
    None
}

/// Undoing twice is undoing what was undone.
const fn undoes(command: &MeetingCommand) -> bool {
    matches!(command, MeetingCommand::UndoReassignment { .. })
}

/// The one command in which the clock matters: a result that has expired already is stored each time.
fn caches_what_expired(command: &MeetingCommand) -> bool {
    matches!(command, MeetingCommand::CacheStageResult { expires_at: Some(until), at, .. } if until <= at)
}

/// Any text of at most `max` characters, emoji and unprintable ones too, but for those that `refused`
/// tells: a value is seldom refused, or the search would give up.
fn text_but<T: TryFrom<String, Error = ValueError> + Debug>(
    refused: fn(char) -> bool,
    max: usize,
) -> impl Strategy<Value = T> {
    let allowed = any::<char>().prop_map(move |c| if refused(c) { 'ü' } else { c });
    vec(allowed, 1..=max)
        .prop_filter_map("blank", |chars| T::try_from(chars.into_iter().collect::<String>()).ok())
}

fn text<T: TryFrom<String, Error = ValueError> + Debug>(max: usize) -> impl Strategy<Value = T> {
    text_but(|c| c == '\0', max)
}

/// Text of a form that few types take.
fn formed<T: TryFrom<String, Error = ValueError> + Debug>(form: &'static str) -> impl Strategy<Value = T> {
    form.prop_filter_map("text that the type refuses", |text| T::try_from(text).ok())
}

fn uuid<T: From<Uuid> + Debug>() -> impl Strategy<Value = T> {
    any::<u128>().prop_map(id)
}

/// Any moment of the years 1 to 9999, in microseconds.
fn moment() -> impl Strategy<Value = Timestamp> {
    (-62_135_596_800_000_000..253_402_300_800_000_000_i64)
        .prop_map(|micros| Timestamp::from_timestamp_micros(micros).expect("chrono knows these years"))
}

fn confidence() -> impl Strategy<Value = Confidence> {
    prop_oneof![0.0..=1.0, Just(f64::MIN_POSITIVE), Just(5e-324), Just(0.1 + 0.2), Just(1.0)]
        .prop_map(|number| Confidence::try_from(number).expect("it is between 0 and 1"))
}

fn voice() -> impl Strategy<Value = Voice> {
    let number = f32s::POSITIVE | f32s::NEGATIVE | f32s::NORMAL | f32s::SUBNORMAL | f32s::ZERO;
    let vector = vec(number, 1..20).prop_filter_map("not zero", |numbers| Vector::try_from(numbers).ok());
    (text(100), vector).prop_map(|(model, vector)| Voice { model, vector })
}

fn evidence() -> impl Strategy<Value = Evidence> {
    let candidate = (uuid(), confidence()).prop_map(|(profile_id, score)| Candidate { profile_id, score });
    let margin = option::of((-2.0..=2.0).prop_map(|number| Margin::try_from(number).expect("in range")));
    (text(100), text(50), margin, vec(candidate, 0..4)).prop_map(
        |(model, policy_version, margin, candidates)| Evidence { model, policy_version, margin, candidates },
    )
}

fn meta() -> impl Strategy<Value = Meta> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        vec(any::<bool>(), 0..3).prop_map(Value::from),
    ];
    btree_map(any::<String>(), leaf, 0..5).prop_filter_map("within its bounds", |fields| {
        Meta::try_from(Value::Object(fields.into_iter().collect())).ok()
    })
}

fn file() -> impl Strategy<Value = File> {
    let size = (0..=i64::MAX).prop_map(|bytes| SizeBytes::try_from(bytes).expect("it is not negative"));
    let duration =
        (0..=i32::MAX).prop_map(|s| DurationSeconds::try_from(i64::from(s)).expect("it is not negative"));
    let mime = formed("[a-zA-Z]{1,9}/[a-zA-Z.+-]{1,9}(; ?[a-z]{1,5}=[a-zA-Z0-9]{1,9})?");
    let known = (option::of(mime), option::of(size), option::of(duration), option::of(uuid()));
    (uuid(), formed("[0-9a-fA-F]{64}"), known).prop_map(|(id, sha256, (mime, size, duration, owner))| File {
        id,
        sha256,
        mime,
        size,
        duration,
        owner,
    })
}

/// Two clusters of any content, the first identified, the second not; and the first one's label.
fn speakers() -> impl Strategy<Value = (ClusterId, MeetingCommand)> {
    let cluster = || {
        let segment = (0..=u32::MAX / 2, 0..=u32::MAX / 2).prop_map(Into::into);
        let sum = option::of(any::<u32>());
        (text(50), vec(segment, 0..4), sum, option::of(voice())).prop_map(
            |(cluster_id, segments, sum, voice)| {
                let speech_ms = sum.filter(|_| segments.is_empty());
                Cluster { cluster_id, segments, speech_ms, voice: voice.map(Into::into) }
            },
        )
    };
    let decision = (uuid(), confidence(), evidence(), evidence());
    ([cluster(), cluster()], decision).prop_filter_map(
        "labels that differ",
        |(clusters, (profile_id, confidence, why, why_not))| {
            let [first, second] = clusters.each_ref().map(|cluster| cluster.cluster_id.clone());
            let identified = Decision::Identified { profile_id, confidence, evidence: why };
            let unidentified = Decision::NotIdentified { evidence: why_not };
            let decisions = vec![(first.clone(), identified), (second, unidentified)];
            let clusters = Diarization::try_from(Vec::from(clusters)).ok()?;
            Some((first, MeetingCommand::RecordSpeakers { clusters, decisions }))
        },
    )
}

/// A life in which each event happens, with any values at all.
fn meeting_s_life() -> impl Strategy<Value = Vec<MeetingCommand>> {
    let times = (moment(), moment(), moment(), option::of(moment()));
    let texts = (text(100), text::<Reason>(1000), formed::<Stage>("[a-z0-9._-]{1,100}"));
    let tag = formed("[a-zA-Z]{2,3}(-[a-zA-Z]{4})?(-[a-zA-Z]{2})?");
    let stored = (
        select(ArtifactType::ALL.to_vec()),
        text_but(|c| c.is_control() || r"\/".contains(c), 500),
        option::of(meta()),
    );
    let value = any::<String>().prop_map(|value| value.replace('\0', ""));
    let results = (formed("[!-~]{1,128}"), tag, speakers(), stored, value);
    (uuid::<MeetingId>(), file(), uuid(), times, texts, results).prop_map(
        |(meeting_id, file, profile_id, (at, then, later, expires_at), (worker, reason, stage), results)| {
            let (content_fp, language, (label, speakers), (artifact_type, s3_key, meta), value) = results;
            vec![
                MeetingCommand::Register(RegisterMeeting { meeting_id, file, at }),
                MeetingCommand::Start { worker, at },
                speakers,
                MeetingCommand::RecordFingerprint { content_fp },
                MeetingCommand::RecordLanguage { language },
                MeetingCommand::StoreArtifact { artifact_type, s3_key, meta },
                MeetingCommand::CacheStageResult { stage: stage.clone(), value, expires_at, at },
                MeetingCommand::ReassignSpeaker {
                    speaker_id: meeting_id.speaker(1, &label),
                    to: Some(profile_id),
                    expected: None,
                    reason: reason.clone(),
                },
                MeetingCommand::Complete { at: then },
                m::reprocess("anna"),
                m::speakers(&[]),
                MeetingCommand::DismissCorrection {
                    speaker_id: meeting_id.speaker(1, &label),
                    reason: reason.clone(),
                },
                MeetingCommand::Fail(FailMeeting { stage, reason: reason.clone(), at: then }),
                MeetingCommand::ForgetPerson { profile_id },
                MeetingCommand::Erase { reason, at: later, lost: None },
            ]
        },
    )
}

fn profile_s_life() -> impl Strategy<Value = Vec<ProfileCommand>> {
    let name = || text_but(char::is_control, 255);
    (uuid(), [name(), name()], uuid(), voice(), option::of(text(200)), moment()).prop_map(
        |(profile_id, [display_name, other], sample_id, voice, source, at)| {
            vec![
                ProfileCommand::Create { profile_id, display_name, at },
                ProfileCommand::Rename { display_name: other },
                ProfileCommand::EnrolVoice { sample_id, voice, source, at },
                ProfileCommand::RemoveVoice { sample_id },
                ProfileCommand::Erase { at, lost: false },
            ]
        },
    )
}

/// Checks that each event comes back from its JSON as it was, by way of the log and of cqrs-es, and that
/// `history` holds an event of each of the `names`.
fn round_trips<A: Decider>(history: &[A::Event], names: &[&str]) {
    for event in history {
        let read = A::stored(event);
        assert_eq!(&read, event);
        assert_eq!(json(&read), json(event), "to the last digit");
        // cqrs-es keeps a payload as a value, and the log that value's text.
        let value: Value = serde_json::to_value(event).expect("an event has a JSON form");
        let value: Value = serde_json::from_str(&value.to_string()).expect("a value's text is JSON");
        assert_eq!(&serde_json::from_value::<A::Event>(value).expect("it is an event"), event);
    }
    for name in names {
        assert!(history.iter().any(|event| event.event_type() == *name), "no {name} was tried");
    }
}

/// A failure is worth a test of its own: no file of seeds is kept.
fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_meeting_read_from_the_log_is_the_one_that_was_written(commands in vec(meeting_command(), 0..80)) {
        carry_out::<Meeting>(&commands);
    }

    #[test]
    fn a_profile_read_from_the_log_is_the_one_that_was_written(commands in vec(profile_command(), 0..40)) {
        carry_out::<Profile>(&commands);
    }

    #[test]
    fn a_command_to_a_meeting_takes_effect_once(commands in vec(meeting_command(), 0..80)) {
        let lasting = |command: &&MeetingCommand| !caches_what_expired(command) && !undoes(command);
        let commands: Vec<MeetingCommand> = commands.iter().filter(lasting).cloned().collect();
        prop_assert_eq!(repeated::<Meeting>(&commands), None);
    }

    #[test]
    fn a_command_to_a_profile_takes_effect_once(commands in vec(profile_command(), 0..40)) {
        prop_assert_eq!(repeated::<Profile>(&commands), None);
    }

    #[test]
    fn attempts_rise_by_one_and_no_speaker_s_id_is_given_in_two(commands in vec(meeting_command(), 0..80)) {
        let (mut attempts, mut given_in) = (0, BTreeMap::<SpeakerId, u32>::new());
        let mut state = Meeting::default();
        for event in carry_out::<Meeting>(&commands) {
            state.evolve(&event);
            if let MeetingEvent::ProcessingStarted { attempt, .. } = event {
                attempts += 1;
                prop_assert_eq!(attempt, attempts);
            }
            if let (MeetingEvent::SpeakersDiarized { attempt, .. }, Meeting::Active(record)) = (event, &state) {
                prop_assert_eq!(attempt, attempts);
                for speaker in record.speakers.keys() {
                    prop_assert_eq!(*given_in.entry(*speaker).or_insert(attempt), attempt);
                }
            }
        }
    }

    /// Whatever was decided about the person, and whatever comes next without naming the person.
    #[test]
    fn whoever_was_forgotten_is_nowhere_in_a_meeting_and_comes_back_by_no_decision_of_before(
        before in vec(meeting_command(), 0..60),
        after in vec(meeting_command(), 0..30),
    ) {
        let person = id(1);
        let is = |to: &Option<ProfileId>| *to == Some(person);
        let mut state = Meeting::fold(&carry_out::<Meeting>(&before));
        let whose_undoing: BTreeSet<SpeakerId> = match &state {
            Meeting::Active(record) => {
                record.reassigned_from.iter().filter(|(_, to)| is(to)).map(|(speaker, _)| *speaker).collect()
            }
            Meeting::Unregistered | Meeting::Erased { .. } => BTreeSet::new(),
        };
        let forget = MeetingCommand::ForgetPerson { profile_id: person };
        for event in state.decide(&forget).expect("it is never refused") {
            state.evolve(&event);
        }
        for command in after {
            if let Meeting::Active(record) = &state {
                let linked = record.speakers.values().filter_map(|speaker| speaker.link);
                prop_assert!(linked.clone().all(|link| link.profile_id != person));
                prop_assert!(record.result.values().all(|profile| *profile != person));
                prop_assert!(record.corrections.values().all(|correction| !is(&correction.to)));
                prop_assert!(record.settled.values().all(|(_, correction)| !is(&correction.to)));
            }
            // A new link is refused where it would be appended, and so is the undoing of a word about another.
            let links = |(_, decision): &(ClusterId, Decision)| {
                matches!(decision, Decision::Identified { profile_id, .. } if *profile_id == person)
            };
            let refused = matches!(&command, MeetingCommand::ReassignSpeaker { to, .. } if is(to))
                || matches!(&command, MeetingCommand::UndoReassignment { speaker_id, .. }
                    if whose_undoing.contains(speaker_id))
                || matches!(&command, MeetingCommand::RecordSpeakers { decisions, .. }
                    if decisions.iter().any(links));
            if !refused {
                state.decide(&command).into_iter().flatten().for_each(|event| state.evolve(&event));
            }
        }
    }

    #[test]
    fn every_event_of_a_meeting_comes_back_exactly(life in meeting_s_life()) {
        round_trips::<Meeting>(&story::<Meeting>(life), &MeetingEvent::NAMES);
    }

    #[test]
    fn every_event_of_a_profile_comes_back_exactly(life in profile_s_life()) {
        round_trips::<Profile>(&story::<Profile>(life), &ProfileEvent::NAMES);
    }
}
