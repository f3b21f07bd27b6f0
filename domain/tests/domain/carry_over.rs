//! What people decided outlives the diarization: it is carried over where that leaves no doubt, and waits for
//! a person where it does not.

use std::collections::{BTreeMap, BTreeSet};

use domain::artifact::ArtifactType;
use domain::ids::{ProfileId, SpeakerId};
use domain::meeting::carry_over::{CarryOver, HumanWord, Overlap, Speech, carry_over};
use domain::meeting::{
    CarriedFrom, Cause, FORGOTTEN, Meeting, MeetingCommand, MeetingError, MeetingEvent, OutdatedArtifact,
    Record,
};
use domain::speaker::{Cluster, Decision, LinkedBy, Segment};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::given::{Decider, given, id, parsed, story};
use crate::meeting_spec::{
    complete, confidence, dismiss, erase, evidence, forget, meeting_id, reassign, register, reprocess,
    speaker, start, store, then, undo,
};

/// Diarizes into clusters that speak at these seconds, each from and for how long.
pub(crate) fn spoken(stretches: &[(&str, u32, u32)]) -> MeetingCommand {
    diarized(stretches, &[])
}

/// The same, and a machine knows some of them.
fn diarized(stretches: &[(&str, u32, u32)], known: &[(&str, u128)]) -> MeetingCommand {
    let mut clusters: BTreeMap<&str, Vec<Segment>> = BTreeMap::new();
    for (label, from, length) in stretches {
        clusters.entry(label).or_default().push((from * 1000, length * 1000).into());
    }
    let cluster =
        |(label, segments)| Cluster { cluster_id: parsed(label), segments, speech_ms: None, voice: None };
    let clusters = clusters.into_iter().map(cluster).collect::<Vec<_>>().try_into().expect("labels differ");
    let identified = |(label, person): &(&str, u128)| {
        let (confidence, evidence) = (confidence(0.91), evidence());
        (parsed(label), Decision::Identified { profile_id: id(*person), confidence, evidence })
    };
    MeetingCommand::RecordSpeakers { clusters, decisions: known.iter().map(identified).collect() }
}

/// Two people speak: A for a minute, B for half of one.
const FIRST: [(&str, u32, u32); 3] = [("a", 0, 40), ("b", 40, 30), ("a", 70, 20)];

/// Returns the history of a meeting of A and B that was completed and corrected, and is reprocessed.
fn corrected(corrections: &[(&str, Option<u128>)]) -> Vec<MeetingEvent> {
    let corrections = corrections.iter().map(|(label, to)| reassign(speaker(1, label), *to));
    let first = [register(1), start("anna"), diarized(&FIRST, &[("a", 7), ("b", 8)]), complete()];
    story::<Meeting>(first.into_iter().chain(corrections).chain([reprocess("anna")]))
}

fn record(history: &[MeetingEvent]) -> Record {
    match Meeting::fold(history) {
        Meeting::Active(record) => *record,
        other @ (Meeting::Unregistered | Meeting::Erased { .. }) => panic!("not active: {other:?}"),
    }
}

/// Who a speaker is and whose word that is.
fn name_of(history: &[MeetingEvent], speaker: SpeakerId) -> Option<(ProfileId, LinkedBy)> {
    record(history).speakers[&speaker].link.map(|link| (link.profile_id, link.by))
}

fn overlap(speaker_id: SpeakerId, seconds: u32) -> Overlap {
    Overlap { speaker_id, overlap_ms: seconds * 1000 }
}

fn carried(to: SpeakerId, from: (u32, &str), seconds: u32, whom: Option<u128>) -> MeetingEvent {
    MeetingEvent::SpeakerReassigned {
        speaker_id: to,
        from: None,
        to: whom.map(id),
        reason: parsed("I was there"),
        previous_confidence: None,
        previous_by: None,
        carried_from: Some(CarriedFrom {
            speaker_id: speaker(from.0, from.1),
            attempt: from.0,
            overlap_ms: seconds * 1000,
        }),
        cause: None,
    }
}

fn not_carried(about: (u32, &str), to: Option<u128>, candidates: &[Overlap]) -> MeetingEvent {
    let speaker_id = speaker(about.0, about.1);
    MeetingEvent::CorrectionNotCarried { speaker_id, to: to.map(id), candidates: candidates.to_vec() }
}

/// About whom a decision was of which an event tells what became of it.
fn told_of(event: &MeetingEvent) -> Option<SpeakerId> {
    if let MeetingEvent::SpeakerReassigned { carried_from: Some(from), .. } = event {
        Some(from.speaker_id)
    } else if let MeetingEvent::CorrectionNotCarried { speaker_id, .. } = event {
        Some(*speaker_id)
    } else {
        None
    }
}

/// What follows from a new diarization, but for the diarization itself.
fn follows(history: &[MeetingEvent], diarization: &MeetingCommand) -> Vec<MeetingEvent> {
    let events = Meeting::fold(history).decide(diarization).expect("it may be diarized");
    events.into_iter().filter(|event| event.name() != "SpeakersDiarized").collect()
}

/// A and B with other labels, shifted a little, and noise between.
const SHIFTED: [(&str, u32, u32); 4] = [("x", 42, 28), ("y", 1, 41), ("y", 70, 19), ("z", 89, 3)];

#[test]
fn a_decision_is_carried_to_the_cluster_that_speaks_when_the_old_one_spoke() {
    let history = corrected(&[("a", Some(1)), ("b", None)]);
    let mut expected =
        vec![carried(speaker(2, "y"), (1, "a"), 58, Some(1)), carried(speaker(2, "x"), (1, "b"), 28, None)];
    expected.sort_by_key(told_of);
    assert_eq!(follows(&history, &spoken(&SHIFTED)), expected);
    let history = then(history, [spoken(&SHIFTED)]);
    assert_eq!(name_of(&history, speaker(2, "y")), Some((id(1), LinkedBy::Person)));
    assert_eq!(record(&history).pending_corrections().count(), 0);
    // The next time it is held against what the person heard, not against what it was carried to.
    let history = then(history, [complete(), reprocess("bert")]);
    let third = follows(&history, &spoken(&FIRST));
    assert!(third.contains(&carried(speaker(3, "a"), (1, "a"), 60, Some(1))), "{third:?}");
}

#[test]
fn a_carried_decision_beats_the_machine_and_undoing_it_gives_the_machine_its_word_back() {
    let history = then(corrected(&[("a", Some(1))]), [diarized(&SHIFTED, &[("y", 7)])]);
    let y = speaker(2, "y");
    let Some(MeetingEvent::SpeakerReassigned { from, to, previous_confidence, previous_by, .. }) =
        history.last()
    else {
        panic!("{:?}", history.last());
    };
    assert_eq!((*from, *to), (Some(id(7)), Some(id(1))));
    assert_eq!((*previous_confidence, *previous_by), (Some(confidence(0.91)), Some(LinkedBy::Machine)));
    let history = then(history, [undo(y)]);
    assert_eq!(name_of(&history, y), Some((id(7), LinkedBy::Person)));
    // Whoever undoes it has decided anew: that is what is carried over from here on.
    let history = then(history, [complete(), reprocess("anna"), spoken(&FIRST)]);
    assert_eq!(name_of(&history, speaker(3, "a")), Some((id(7), LinkedBy::Person)));
    assert_eq!(record(&history).corrections.keys().copied().collect::<Vec<_>>(), [y]);
}

#[test]
fn a_person_s_word_stays_a_person_s_where_the_machine_says_the_same() {
    let history = then(corrected(&[("a", Some(1))]), [diarized(&SHIFTED, &[("y", 1)])]);
    assert_eq!(name_of(&history, speaker(2, "y")), Some((id(1), LinkedBy::Person)));
    given::<Meeting>(history).when(undo(speaker(2, "y"))).then_nothing();
}

#[test]
fn where_there_is_doubt_a_decision_waits_for_a_person() {
    let (x, y, both) = (speaker(2, "x"), speaker(2, "y"), speaker(2, "both"));
    // Split nearly evenly, between others for the greater part, not there any more, and without speech.
    let even = [("x", 0, 32), ("y", 32, 8), ("y", 70, 20)];
    let history = corrected(&[("a", Some(1))]);
    let waits = |candidates: &[Overlap]| vec![not_carried((1, "a"), Some(1), candidates)];
    assert_eq!(follows(&history, &spoken(&even)), waits(&[overlap(x, 32), overlap(y, 28)]));
    let lost = [("x", 0, 29)];
    assert_eq!(follows(&history, &spoken(&lost)), waits(&[overlap(x, 29)]));
    assert_eq!(follows(&history, &spoken(&[("x", 500, 60)])), waits(&[]));
    assert_eq!(follows(&history, &spoken(&[])), waits(&[]));
    // All of A, but most of it is somebody else.
    assert_eq!(follows(&history, &spoken(&[("both", 0, 130)])), waits(&[overlap(both, 60)]));
    // Twice the same.
    let twice = [("x", 0, 90), ("y", 0, 90)];
    assert_eq!(follows(&history, &spoken(&twice)), waits(&[overlap(x, 60), overlap(y, 60)]));

    // Two people in one cluster.
    let history = corrected(&[("a", Some(1)), ("b", Some(2))]);
    let mut expected = [
        (speaker(1, "a"), not_carried((1, "a"), Some(1), &[overlap(both, 60)])),
        (speaker(1, "b"), not_carried((1, "b"), Some(2), &[overlap(both, 30)])),
    ];
    expected.sort_by_key(|(id, _)| *id);
    assert_eq!(follows(&history, &spoken(&[("both", 0, 90)])), expected.map(|(_, event)| event));
    // The same person twice is no contradiction.
    let history = corrected(&[("a", Some(1)), ("b", Some(1))]);
    let history = then(history, [spoken(&[("both", 0, 90)])]);
    assert_eq!(name_of(&history, both), Some((id(1), LinkedBy::Person)));
    assert_eq!(record(&history).pending_corrections().count(), 0);
    assert_eq!(name_of(&then(history, [undo(both)]), both), None);

    let silent = story::<Meeting>([
        register(1),
        start("anna"),
        MeetingCommand::RecordSpeakers {
            clusters: vec![Cluster {
                cluster_id: parsed("a"),
                segments: vec![],
                speech_ms: None,
                voice: None,
            }]
            .try_into()
            .unwrap(),
            decisions: vec![],
        },
        reassign(speaker(1, "a"), Some(1)),
        complete(),
        reprocess("anna"),
    ]);
    assert_eq!(follows(&silent, &spoken(&FIRST)), waits(&[]));
}

#[test]
fn what_waits_is_settled_by_the_very_word_or_dismissed_and_outlives_further_attempts() {
    let even = spoken(&[("x", 0, 32), ("y", 32, 8), ("y", 70, 20)]);
    let waiting = then(corrected(&[("a", Some(1))]), [even]);
    let (x, y, a) = (speaker(2, "x"), speaker(2, "y"), speaker(1, "a"));
    let pending = |history: &[MeetingEvent]| record(history).pending_corrections().count();
    assert_eq!(pending(&waiting), 1);

    // Another word about a candidate does not settle it, and neither does anything about anybody else.
    assert_eq!(pending(&then(waiting.clone(), [reassign(x, Some(2)), undo(x)])), 1);
    assert_eq!(pending(&then(waiting.clone(), [reassign(x, Some(1))])), 0);
    // A word taken back settles nothing, and said once more it does.
    assert_eq!(pending(&then(waiting.clone(), [reassign(x, Some(1)), undo(x)])), 1);
    assert_eq!(pending(&then(waiting.clone(), [reassign(x, Some(1)), undo(x), undo(x)])), 0);
    assert_eq!(pending(&then(waiting.clone(), [reassign(y, Some(2)), reassign(y, Some(1))])), 0);
    let reason = parsed("it was said of noise");
    let dismissed = MeetingEvent::CorrectionDismissed { speaker_id: a, reason, cause: None };
    given::<Meeting>(waiting.clone()).when(dismiss(a)).then([dismissed]);
    let dismissed = then(waiting.clone(), [dismiss(a)]);
    assert_eq!(pending(&dismissed), 0);
    given::<Meeting>(dismissed.clone()).when(dismiss(a)).then_refused(MeetingError::NothingPending);
    given::<Meeting>(waiting.clone()).when(dismiss(x)).then_refused(MeetingError::NothingPending);
    let next = |history| then(history, [complete(), reprocess("anna"), spoken(&SHIFTED)]);
    assert_eq!(name_of(&next(dismissed), speaker(3, "y")), None);

    // Left alone it waits for the next diarization, and for the one after an attempt that had none.
    assert_eq!(name_of(&next(waiting.clone()), speaker(3, "y")), Some((id(1), LinkedBy::Person)));
    let none = then(waiting, [complete(), reprocess("anna"), complete()]);
    assert_eq!(pending(&none), 1);
    let anew = then(none, [reprocess("anna"), spoken(&SHIFTED)]);
    assert_eq!(name_of(&anew, speaker(4, "y")), Some((id(1), LinkedBy::Person)));
    assert_eq!(pending(&then(anew, [erase(), register(1)])), 0);
}

#[test]
fn a_decision_about_somebody_who_was_forgotten_waits_no_longer_and_holds_for_nobody() {
    let even = spoken(&[("x", 0, 32), ("y", 32, 8), ("y", 70, 20)]);
    let waiting = then(corrected(&[("a", Some(1)), ("b", Some(2))]), [even]);
    let about = |history: &[MeetingEvent]| -> Vec<_> {
        record(history).corrections.values().map(|correction| correction.to).collect()
    };
    let dismissed = |label| MeetingEvent::CorrectionDismissed {
        speaker_id: speaker(1, label),
        reason: parsed(FORGOTTEN),
        cause: Some(Cause::ProfileErased),
    };
    // In the result of before, which is in the cache still, a is the person.
    let unlinked = MeetingEvent::SpeakerReassigned {
        speaker_id: speaker(1, "a"),
        from: Some(id(1)),
        to: None,
        reason: parsed(FORGOTTEN),
        previous_confidence: None,
        previous_by: None,
        carried_from: None,
        cause: Some(Cause::ProfileErased),
    };
    given::<Meeting>(waiting.clone()).when(forget(1)).then([unlinked, dismissed("a")]);
    assert_eq!(about(&then(waiting.clone(), [forget(1)])), [Some(id(2))], "the other decision stays");
    // Settled by a word about the same person, it does not come back with the word's end.
    let settled = then(waiting, [reassign(speaker(2, "x"), Some(1)), forget(1)]);
    assert_eq!(about(&settled), [Some(id(2))]);
    assert_eq!(about(&then(settled, [reassign(speaker(2, "x"), Some(3))])).len(), 2);
    // Carried over, it is gone with the speaker that it holds for.
    let carried = then(corrected(&[("a", Some(1)), ("b", None)]), [spoken(&SHIFTED), forget(1)]);
    assert_eq!(name_of(&carried, speaker(2, "y")), None);
    assert_eq!(about(&carried), [None], "that b is nobody known is still somebody's word");
    let next = then(carried, [complete(), reprocess("anna"), spoken(&FIRST)]);
    assert_eq!(name_of(&next, speaker(3, "a")), None);
}

#[test]
fn a_candidate_who_is_the_person_already_can_still_be_said_to_be() {
    let even = [("x", 0, 32), ("y", 32, 8), ("y", 70, 20)];
    let waiting = then(corrected(&[("a", Some(1))]), [diarized(&even, &[("x", 1)])]);
    let x = speaker(2, "x");
    let said = then(waiting, [reassign(x, Some(1))]);
    assert_eq!(said.last().unwrap().name(), "SpeakerReassigned");
    assert_eq!(name_of(&said, x), Some((id(1), LinkedBy::Person)));
    assert_eq!(record(&said).pending_corrections().count(), 0);
    given::<Meeting>(said).when(reassign(x, Some(1))).then_nothing();
}

#[test]
fn an_attempt_may_diarize_again_what_was_carried_into_it() {
    let history = then(corrected(&[("a", Some(1))]), [spoken(&SHIFTED), spoken(&FIRST)]);
    assert_eq!(name_of(&history, speaker(2, "a")), Some((id(1), LinkedBy::Person)));
}

#[test]
fn another_name_outdates_the_artifacts_until_they_are_stored_again() {
    let (md, summary) = (ArtifactType::TranscriptMd, ArtifactType::SummaryJson);
    let outdated = |attempt, whom: SpeakerId, types: &[ArtifactType]| MeetingEvent::ArtifactsOutdated {
        speaker_id: whom,
        artifacts: types
            .iter()
            .map(|kind| OutdatedArtifact { id: meeting_id().artifact(attempt, *kind), artifact_type: *kind })
            .collect(),
    };
    let (a, b) = (speaker(1, "a"), speaker(1, "b"));
    let stored = [store(md, "m/1.md"), store(summary, "m/1.json")];
    let history = story::<Meeting>(
        [register(1), start("anna"), spoken(&FIRST)].into_iter().chain(stored).chain([complete()]),
    );
    given::<Meeting>(history.clone()).when(store(md, "m/1.md")).then_nothing();
    let history = then(history, [reassign(a, Some(1))]);
    assert_eq!(history.last(), Some(&outdated(1, a, &[md, summary])));
    // Once is enough.
    assert_eq!(then(history.clone(), [undo(a)]).last().unwrap().name(), "SpeakerReassigned");
    // The very same artifact clears it, once; the next correction is news for it alone.
    let history = then(history, [store(md, "m/1.md")]);
    assert_eq!(history.last().unwrap().name(), "ArtifactStored");
    given::<Meeting>(history.clone()).when(store(md, "m/1.md")).then_nothing();
    let history = then(history, [reassign(b, Some(2))]);
    assert_eq!(history.last(), Some(&outdated(1, b, &[md])));

    // What is carried over outdates too, but not what has the same names, and the attempt's own are new.
    let history = then(history, [store(md, "m/1.md"), store(summary, "m/1.json"), reprocess("anna")]);
    let again = then(history.clone(), [diarized(&SHIFTED, &[("y", 1), ("x", 2)])]);
    assert_eq!(again.last().unwrap().name(), "SpeakerReassigned");
    let again = then(history, [diarized(&SHIFTED, &[("y", 1), ("x", 9)])]);
    assert_eq!(again.last(), Some(&outdated(1, speaker(2, "x"), &[md, summary])));
    let done = then(again, [store(md, "m/2.md"), complete()]);
    assert_eq!(record(&done).outdated, BTreeSet::new());
}

/// The milliseconds of a cluster, one by one.
fn heard(speech: &Speech) -> BTreeSet<u32> {
    let segments = Vec::<Segment>::from(speech.clone());
    segments.iter().flat_map(|segment| segment.start_ms..segment.start_ms + segment.duration_ms).collect()
}

/// The rule once more, as it is written, over milliseconds instead of stretches.
fn by_the_rule(decided: &[HumanWord], speakers: &BTreeMap<SpeakerId, Speech>) -> Vec<Option<Overlap>> {
    let speakers: BTreeMap<SpeakerId, BTreeSet<u32>> =
        speakers.iter().map(|(id, speech)| (*id, heard(speech))).collect();
    let words: Vec<(Option<ProfileId>, BTreeSet<u32>)> =
        decided.iter().map(|word| (word.to, heard(&word.speech))).collect();
    let common = |one: &BTreeSet<u32>, other: &BTreeSet<u32>| one.intersection(other).count();
    let most_go_into = |speech: &BTreeSet<u32>, id: &SpeakerId| {
        let into = common(speech, &speakers[id]);
        into * 2 > speech.len() && speakers.values().all(|other| common(speech, other) <= into)
    };
    let given = |to: &Option<ProfileId>| -> BTreeSet<u32> {
        words.iter().filter(|(other, _)| other == to).flat_map(|(_, speech)| speech.clone()).collect()
    };
    let is_theirs =
        |to: &Option<ProfileId>, id: &SpeakerId| common(&given(to), &speakers[id]) * 2 > speakers[id].len();
    let outcome = |(to, speech): &(Option<ProfileId>, BTreeSet<u32>)| {
        let fits = |id: &SpeakerId| {
            let into = common(speech, &speakers[id]);
            let left: BTreeSet<u32> = speech.difference(&speakers[id]).copied().collect();
            most_go_into(speech, id)
                && speakers.iter().all(|(other, theirs)| other == id || common(speech, theirs) < into)
                && is_theirs(to, id)
                && speakers.keys().filter(|other| *other != id).all(|other| {
                    common(&left, &speakers[other]) * 2 <= into
                        && !(is_theirs(to, other) && common(speech, &speakers[other]) * 2 > into)
                })
                && words.iter().all(|(other, speech)| other == to || !most_go_into(speech, id))
        };
        let id = speakers.keys().find(|id| fits(id))?;
        let overlap_ms = u32::try_from(common(speech, &speakers[id])).expect("a minute at most");
        Some(Overlap { speaker_id: *id, overlap_ms })
    };
    words.iter().map(outcome).collect()
}

fn speech() -> impl Strategy<Value = Vec<Segment>> {
    vec((0..60_u32, 0..20_u32).prop_map(Segment::from), 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_carried_is_carried_by_the_rule_and_the_rest_is_told_of(
        words in vec((prop::option::of(1..4_u128), speech()), 0..5),
        speakers in vec(speech(), 0..5),
        swap in any::<prop::sample::Index>(),
    ) {
        let decided: Vec<HumanWord> = words
            .iter()
            .map(|(to, segments)| HumanWord { to: to.map(id), speech: segments.clone().into() })
            .collect();
        let speakers: BTreeMap<SpeakerId, Speech> =
            speakers.into_iter().zip(1_u128..).map(|(segments, n)| (id(n), segments.into())).collect();
        let outcomes = carry_over(&decided, &speakers);
        for ((outcome, word), expected) in outcomes.iter().zip(&decided).zip(by_the_rule(&decided, &speakers)) {
            match outcome {
                CarryOver::Carried(overlap) => prop_assert_eq!(Some(*overlap), expected),
                CarryOver::Ambiguous(candidates) => {
                    prop_assert_eq!(None, expected);
                    let heard = heard(&word.speech);
                    let common = |speech: &Speech| heard.intersection(&self::heard(speech)).count();
                    let told: Vec<_> = candidates.iter().map(|c| (c.speaker_id, c.overlap_ms as usize)).collect();
                    let mut all: Vec<_> = speakers.iter().map(|(id, speech)| (*id, common(speech))).collect();
                    all.retain(|(_, overlap)| *overlap > 0);
                    all.sort_by_key(|(id, overlap)| (std::cmp::Reverse(*overlap), *id));
                    prop_assert_eq!(told, all);
                }
            }
        }
        // In another order, with its segments in another order, each comes to the same.
        if !decided.is_empty() {
            let turn = swap.index(decided.len());
            let mut turned: Vec<HumanWord> = words
                .iter()
                .map(|(to, segments)| {
                    let segments: Vec<Segment> = segments.iter().rev().copied().collect();
                    HumanWord { to: to.map(id), speech: segments.into() }
                })
                .collect();
            turned.rotate_left(turn);
            let mut again = carry_over(&turned, &speakers);
            again.rotate_right(turn);
            prop_assert_eq!(again, outcomes);
        }
    }

    /// However often a meeting is diarized anew, each decision of a person holds for a speaker or waits.
    #[test]
    fn no_decision_is_lost(
        corrections in vec((select(vec!["a", "b"]), prop::option::of(1..4_u128)), 1..4),
        attempts in vec(vec((select(vec!["a", "b", "c"]), 0..90_u32, 1..60_u32), 0..6), 1..4),
    ) {
        let mut history = corrected(&corrections);
        let people: BTreeMap<SpeakerId, Option<ProfileId>> =
            corrections.iter().map(|(label, to)| (speaker(1, label), to.map(id))).collect();
        for attempt in attempts {
            let before = history.len();
            history = then(history, [spoken(&attempt)]);
            let told: BTreeSet<SpeakerId> = history[before..].iter().filter_map(told_of).collect();
            let known = record(&history);
            let kept: BTreeMap<_, _> = known.corrections.iter().map(|(id, word)| (*id, word.to)).collect();
            prop_assert_eq!(&kept, &people);
            prop_assert_eq!(&told, &kept.keys().copied().collect());
            for correction in known.corrections.values() {
                if let Some(speaker) = correction.holds_for {
                    let link = known.speakers[&speaker].link;
                    prop_assert_eq!(link.map(|link| link.profile_id), correction.to);
                }
            }
            history = then(history, [complete(), reprocess("anna")]);
        }
    }
}
