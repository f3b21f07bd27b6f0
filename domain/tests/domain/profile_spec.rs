//! What each command does to a profile in each status, and why.

use domain::ids::{ProfileId, SampleId};
use domain::profile::{MAX_SAMPLES, Profile, ProfileCommand, ProfileError, ProfileEvent};
use domain::voice::{Vector, Voice};

use crate::given::{Decider, at, given, id, parsed, story};

pub(crate) fn create(name: &str) -> ProfileCommand {
    ProfileCommand::Create { profile_id: id(1), display_name: parsed(name), at: at(0) }
}

pub(crate) fn rename(name: &str) -> ProfileCommand {
    ProfileCommand::Rename { display_name: parsed(name) }
}

fn voice(number: f32) -> Voice {
    let vector = Vector::try_from(vec![0.5, number]).expect("a test's vector is one");
    Voice { model: parsed("resemblyzer-0.1.4"), vector }
}

pub(crate) fn enrol(sample: u128, number: f32) -> ProfileCommand {
    ProfileCommand::EnrolVoice {
        sample_id: id(sample),
        voice: voice(number),
        source: Some(parsed("a call in May")),
        at: at(5),
    }
}

pub(crate) fn remove(sample: u128) -> ProfileCommand {
    ProfileCommand::RemoveVoice { sample_id: id(sample) }
}

pub(crate) fn erase() -> ProfileCommand {
    ProfileCommand::Erase { at: at(9), lost: false }
}

/// One answer per status, in the order of `column`: events, `-` for none, or a refusal's code.
type Row = [&'static str; 3];

/// A new status stops the build here: give it a column, and `histories` a history.
fn column(profile: &Profile) -> usize {
    match profile {
        Profile::Unknown => 0,
        Profile::Active { .. } => 1,
        Profile::Erased => 2,
    }
}

fn known() -> Vec<ProfileEvent> {
    story::<Profile>([create("Mira Sandoz"), enrol(1, 0.1)])
}

fn histories() -> [Vec<ProfileEvent>; 3] {
    let erased = story::<Profile>([create("Mira Sandoz"), enrol(1, 0.1), erase()]);
    [vec![], known(), erased]
}

/// Every command twice: with news, and repeating what the histories tell.
fn commands() -> [(ProfileCommand, ProfileCommand); 5] {
    [
        (create("Jon Vetsch"), create("Mira Sandoz")),
        (rename("Mira Sandoz-Vetsch"), rename("Mira Sandoz")),
        (enrol(2, 0.1), enrol(1, 0.1)),
        (remove(1), remove(2)),
        (erase(), erase()),
    ]
}

/// Says what a command does with news and when repeated. A new command stops the build here: give it two
/// rows, and `commands` an entry.
fn expected(command: &ProfileCommand) -> (Row, Row) {
    const NONE: &str = "profile_not_found";
    const GONE: &str = "profile_erased";
    match command {
        ProfileCommand::Create { .. } => {
            (["ProfileCreated", "profile_exists", GONE], ["ProfileCreated", "-", GONE])
        }
        ProfileCommand::Rename { .. } => ([NONE, "ProfileRenamed", GONE], [NONE, "-", GONE]),
        ProfileCommand::EnrolVoice { .. } => ([NONE, "VoiceEnrolled", GONE], [NONE, "-", GONE]),
        ProfileCommand::RemoveVoice { .. } => {
            ([NONE, "VoiceRemoved", GONE], [NONE, "sample_not_found", GONE])
        }
        ProfileCommand::Erase { .. } => ([NONE, "ProfileErased", "-"], [NONE, "ProfileErased", "-"]),
    }
}

#[test]
fn the_histories_cover_every_status() {
    assert_eq!(histories().map(|events| column(&Profile::fold(&events))), [0, 1, 2]);
}

#[test]
fn every_command_is_answered_in_every_status_as_the_table_says() {
    for (news, repetition) in commands() {
        let answers = |command: &ProfileCommand| {
            histories().map(|events| given::<Profile>(events).when(command.clone()).in_words())
        };
        let (row, repeated_row) = expected(&news);
        assert_eq!(answers(&news), row, "{} with news", news.name());
        assert_eq!(answers(&repetition), repeated_row, "{} repeated", repetition.name());
    }
}

#[test]
fn a_profile_s_life_is_told_by_its_events() {
    let (profile_id, sample_id): (ProfileId, SampleId) = (id(1), id(1));
    let commands = [create("Mira Sandoz"), rename("Mira Vetsch"), enrol(1, 0.1), remove(1), erase()];
    let expected = [
        ProfileEvent::ProfileCreated { profile_id, display_name: parsed("Mira Sandoz"), created_at: at(0) },
        ProfileEvent::ProfileRenamed { display_name: parsed("Mira Vetsch") },
        ProfileEvent::VoiceEnrolled {
            sample_id,
            voice: voice(0.1).into(),
            source: Some(parsed("a call in May")),
            enrolled_at: at(5),
        },
        ProfileEvent::VoiceRemoved { sample_id },
        ProfileEvent::ProfileErased { erased_at: at(9) },
    ];
    assert_eq!(story::<Profile>(commands), expected);
}

#[test]
fn somebody_of_whom_nothing_is_known_is_forgotten_if_there_is_a_history() {
    let erase = ProfileCommand::Erase { at: at(9), lost: true };
    let erased = ProfileEvent::ProfileErased { erased_at: at(9) };
    given::<Profile>(vec![]).when(erase.clone()).then([erased.clone()]);
    given::<Profile>(vec![erased]).when(erase).then_nothing();
}

#[test]
fn a_sample_s_id_stands_for_one_voice() {
    given::<Profile>(known()).when(enrol(1, 0.2)).then_refused(ProfileError::SampleExists);
    let removed = story::<Profile>([create("Mira Sandoz"), enrol(1, 0.1), remove(1)]);
    given::<Profile>(removed.clone()).when(remove(1)).then_nothing();
    given::<Profile>(removed.clone()).when(remove(2)).then_refused(ProfileError::UnknownSample);
    assert_eq!(given::<Profile>(removed).when(enrol(1, 0.2)).in_words(), "VoiceEnrolled");
}

#[test]
fn a_profile_has_a_bounded_number_of_samples() {
    let samples = (0..MAX_SAMPLES as u128).map(|n| enrol(n, 0.1));
    let full = story::<Profile>([create("Mira Sandoz")].into_iter().chain(samples));
    assert_eq!(full.len(), 1 + MAX_SAMPLES);
    given::<Profile>(full.clone()).when(enrol(1000, 0.1)).then_refused(ProfileError::TooManySamples);
    given::<Profile>(full.clone()).when(enrol(0, 0.1)).then_nothing();
    let room = [full, vec![ProfileEvent::VoiceRemoved { sample_id: id(7) }]].concat();
    assert_eq!(given::<Profile>(room).when(enrol(1000, 0.1)).in_words(), "VoiceEnrolled");
}

#[test]
fn a_person_who_was_renamed_is_no_longer_known_by_the_old_name() {
    let renamed = story::<Profile>([create("Mira Sandoz"), rename("Mira Vetsch")]);
    given::<Profile>(renamed.clone()).when(create("Mira Vetsch")).then_nothing();
    given::<Profile>(renamed).when(create("Mira Sandoz")).then_refused(ProfileError::AlreadyExists);
}

#[test]
fn nothing_comes_back_from_an_erased_profile() {
    let erased = story::<Profile>([create("Mira Sandoz"), erase()]);
    let later = [erased, known()].concat();
    assert_eq!(Profile::fold(&later), Profile::Erased);
}
