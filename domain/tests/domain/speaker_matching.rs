//! What voices are matched to, by hand and whatever the voices; beside it, the same computed naively.

use std::collections::BTreeMap;

use domain::ids::{ProfileId, SampleId};
use domain::speaker::{Candidate, Confidence, Decision, Evidence};
use domain::speaker_matching::{ClusterVoice, Policy, Thresholds, VoiceIndex, match_clusters, match_meeting};
use domain::voice::{Vector, Voice};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;

use crate::given::{id, parsed};

const MODEL: &str = "resemblyzer-0.1.4";
const LONG: u64 = 60_000;

/// A label, a vector, how long it speaks.
type Cluster<'a> = (&'a str, &'a [f32], u64);
/// The numbers of profiles, samples and vectors.
type Samples = BTreeMap<(u128, u128), Vec<f32>>;

fn voice(model: &str, numbers: &[f32]) -> Voice {
    let vector = Vector::try_from(numbers.to_vec()).expect("a test's own vector is valid");
    Voice { model: parsed(model), vector }
}

/// Returns a voice in this direction, in degrees: two are as similar as the cosine of the angle between them.
fn towards(degrees: f32) -> [f32; 2] {
    [degrees.to_radians().cos(), degrees.to_radians().sin()]
}

fn index<'a>(samples: impl IntoIterator<Item = (u128, u128, &'a [f32])>) -> VoiceIndex {
    let mut index = VoiceIndex::default();
    for (profile, sample, numbers) in samples {
        index.add(id(profile), id(sample), &voice(MODEL, numbers)).expect("all have one dimension");
    }
    index
}

fn index_of(samples: &Samples) -> VoiceIndex {
    index(samples.iter().map(|((profile, sample), numbers)| (*profile, *sample, numbers.as_slice())))
}

fn policy(auto: f64, suggest: f64, margin: f64) -> Policy {
    let thresholds = Thresholds { auto, suggest, margin, minimum_speech_ms: 5000 };
    Policy::new(parsed(MODEL), parsed("1"), thresholds).expect("a test's own policy is valid")
}

fn matched(index: &VoiceIndex, policy: &Policy, clusters: &[Cluster<'_>]) -> Vec<(String, Decision)> {
    let owned: Vec<_> = clusters
        .iter()
        .map(|(label, numbers, speech_ms)| (parsed(label), voice(MODEL, numbers), *speech_ms))
        .collect();
    let clusters: Vec<_> = owned
        .iter()
        .map(|(cluster_id, voice, speech_ms)| ClusterVoice { cluster_id, voice, speech_ms: *speech_ms })
        .collect();
    let decisions = match_clusters(index, policy, &clusters);
    decisions.into_iter().map(|(label, decision)| (label.to_string(), decision)).collect()
}

/// Returns who each cluster is, in order of label.
fn names(decisions: &[(String, Decision)]) -> Vec<Option<u128>> {
    decisions.iter().map(|(_, decision)| name(decision).map(|id| id.as_uuid().as_u128())).collect()
}

fn name(decision: &Decision) -> Option<ProfileId> {
    match decision {
        Decision::Identified { profile_id, .. } => Some(*profile_id),
        Decision::NotIdentified { .. } => None,
    }
}

fn margin(decision: &Decision) -> Option<f64> {
    decision.evidence().margin.map(domain::speaker::Margin::get)
}

fn candidates(decision: &Decision) -> Vec<(u128, f64)> {
    let number = |candidate: &Candidate| (candidate.profile_id.as_uuid().as_u128(), candidate.score.get());
    decision.evidence().candidates.iter().map(number).collect()
}

#[test]
fn a_clear_voice_is_identified_with_its_evidence() {
    let known = index([(1, 1, &towards(0.0)[..]), (2, 2, &towards(60.0))]);
    let decisions = matched(&known, &policy(0.82, 0.7, 0.05), &[("a", &towards(0.0), LONG)]);
    let evidence = Evidence {
        model: parsed(MODEL),
        policy_version: parsed("1"),
        margin: Some(0.5.try_into().unwrap()),
        candidates: vec![Candidate { profile_id: id(1), score: 1.0.try_into().unwrap() }],
    };
    let confidence = Confidence::try_from(1.0).unwrap();
    assert_eq!(
        decisions,
        [("a".to_owned(), Decision::Identified { profile_id: id(1), confidence, evidence })]
    );
}

#[test]
fn the_score_is_the_best_of_centroid_and_samples() {
    // The centroid of these lies at 0 degrees.
    let known = index([(1, 1, &towards(40.0)[..]), (1, 2, &towards(-40.0))]);
    let score = |degrees| {
        let decisions = matched(&known, &policy(0.7, 0.0, 0.0), &[("a", &towards(degrees), LONG)]);
        candidates(&decisions[0].1)[0].1
    };
    assert_eq!(score(0.0), 1.0);
    assert_eq!(score(40.0), 1.0);
    assert!((score(50.0) - 10_f64.to_radians().cos()).abs() < 2e-6, "the sample is closer");
    assert!((score(5.0) - 5_f64.to_radians().cos()).abs() < 2e-6, "the centroid is closer");
}

#[test]
fn samples_that_cancel_out_have_no_centroid() {
    let known = index([(1, 1, &[1.0, 0.0][..]), (1, 2, &[-1.0, 0.0])]);
    let decisions = matched(&known, &Policy::default(), &[("a", &[1.0, 0.0], LONG)]);
    assert_eq!(names(&decisions), [Some(1)]);
}

#[test]
fn a_voice_between_two_people_is_neither() {
    let known = index([(1, 1, &towards(0.0)[..]), (2, 2, &towards(20.0))]);
    let policy = policy(0.82, 0.7, 0.05);
    let decisions = matched(&known, &policy, &[("a", &towards(9.0), LONG)]);
    assert_eq!(names(&decisions), [None]);
    assert_eq!(candidates(&decisions[0].1).iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2]);
    assert!(margin(&decisions[0].1).is_some_and(|margin| (0.0..0.05).contains(&margin)));
    assert_eq!(names(&matched(&known, &policy, &[("a", &towards(-5.0), LONG)])), [Some(1)]);
}

#[test]
fn the_margin_is_taken_on_centroids() {
    // Of person 2, one odd sample is as close as person 1.
    let known = index([(1, 1, &towards(0.0)[..]), (2, 2, &towards(0.0)), (2, 3, &towards(90.0))]);
    let decisions = matched(&known, &policy(0.82, 0.7, 0.05), &[("a", &towards(0.0), LONG)]);
    assert_eq!(names(&decisions), [Some(1)]);
    assert!((margin(&decisions[0].1).unwrap() - (1.0 - 0.5_f64.sqrt())).abs() < 2e-6);
}

#[test]
fn of_two_clusters_that_sound_like_one_person_neither_is_identified() {
    let known = index([(1, 1, &towards(0.0)[..])]);
    let clusters: [Cluster<'_>; 2] = [("a", &towards(10.0), LONG), ("b", &towards(-8.0), LONG)];
    let decisions = matched(&known, &policy(0.82, 0.7, 0.05), &clusters);
    assert_eq!(names(&decisions), [None, None]);
    for (_, decision) in &decisions {
        assert_eq!(candidates(decision)[0].0, 1, "a person may link both");
    }
    assert!(margin(&decisions[0].1).unwrap() < 0.0, "b is closer");

    let apart: [Cluster<'_>; 2] = [("a", &towards(40.0), LONG), ("b", &towards(-8.0), LONG)];
    assert_eq!(names(&matched(&known, &policy(0.82, 0.7, 0.05), &apart)), [None, Some(1)]);
}

#[test]
fn a_tie_without_a_margin_goes_to_the_first_label_and_the_lowest_id() {
    let known = index([(2, 1, &towards(0.0)[..]), (1, 1, &towards(0.0))]);
    let clusters: [Cluster<'_>; 3] =
        [("c", &towards(0.0), LONG), ("b", &towards(0.0), LONG), ("a", &towards(0.0), LONG)];
    assert_eq!(names(&matched(&known, &policy(0.82, 0.7, 0.0), &clusters)), [Some(1), Some(2), None]);
}

#[test]
fn a_cluster_gives_way_where_the_assignment_gains_by_it() {
    // One odd sample of person 1 is closest to cluster a; but b is person 1 or nobody.
    let known = index([(1, 1, &towards(60.0)[..]), (1, 2, &towards(-60.0)), (2, 3, &towards(54.0))]);
    let clusters: [Cluster<'_>; 2] = [("a", &towards(59.0), LONG), ("b", &towards(0.0), LONG)];
    let policy = policy(0.82, 0.7, 0.05);
    assert_eq!(names(&matched(&known, &policy, &clusters[..1])), [None]);
    assert_eq!(names(&matched(&known, &policy, &clusters)), [Some(2), Some(1)]);
}

#[test]
fn whoever_is_alone_in_the_book_needs_no_margin() {
    let known = index([(1, 1, &towards(0.0)[..])]);
    let decisions = matched(&known, &policy(0.82, 0.7, 1.0), &[("a", &towards(30.0), LONG)]);
    assert_eq!(names(&decisions), [Some(1)]);
    assert_eq!(margin(&decisions[0].1), None);
}

#[test]
fn without_a_known_voice_nobody_is_identified() {
    let decisions = matched(&VoiceIndex::default(), &Policy::default(), &[("a", &[1.0, 0.0], LONG)]);
    assert_eq!(names(&decisions), [None]);
    assert_eq!((candidates(&decisions[0].1), margin(&decisions[0].1)), (vec![], None));
    assert_eq!(matched(&index([(1, 1, &[1.0, 0.0][..])]), &Policy::default(), &[]), []);
}

#[test]
fn a_sample_of_another_dimension_is_refused() {
    let mut known = index([(1, 1, &[1.0, 0.0][..])]);
    let before = known.clone();
    assert!(known.add(id(2), id(2), &voice(MODEL, &[1.0, 0.0, 0.0])).is_err());
    assert_eq!(known, before);
    assert!(known.add(id(2), id(2), &voice("another", &[1.0, 0.0, 0.0])).is_ok());
}

#[test]
fn a_sample_added_again_takes_the_place_of_the_first() {
    let mut known = index([(1, 1, &[1.0, 0.0][..])]);
    known.add(id(1), id(1), &voice(MODEL, &[0.0, 1.0])).unwrap();
    assert_eq!(known, index([(1, 1, &[0.0, 1.0][..])]));
    known.add(id(1), id(1), &voice("another", &[1.0])).unwrap();
    known.add(id(1), id(1), &voice(MODEL, &[1.0, 0.0])).unwrap();
    assert_eq!(known, index([(1, 1, &[1.0, 0.0][..])]), "of the other model nothing is left");
}

#[test]
fn erasing_a_person_takes_the_voices_of_every_model_away() {
    let mut known = index([(1, 1, &[1.0, 0.0][..]), (2, 2, &[0.0, 1.0])]);
    known.add(id(1), id(3), &voice("another", &[1.0])).unwrap();
    known.remove_profile(id(1));
    assert_eq!(known, index([(2, 2, &[0.0, 1.0][..])]));
    known.remove_profile(id(2));
    known.remove_profile(id(3));
    assert_eq!(known, VoiceIndex::default());
}

/// Small whole numbers in four dimensions: angles repeat, so that there are ties.
fn numbers() -> impl Strategy<Value = Vec<f32>> {
    vec((-1..4_i8).prop_map(f32::from), 4).prop_filter("not zero", |n| n.iter().any(|n| *n != 0.0))
}

fn samples() -> impl Strategy<Value = Samples> {
    btree_map((1..7_u128, 1..4_u128), numbers(), 0..12)
}

/// Clusters in order of label, some of which say too little.
fn clusters() -> impl Strategy<Value = Vec<(&'static str, Vec<f32>, u64)>> {
    let speech = || prop_oneof![1 => 0..5000_u64, 4 => 5000..50_000_u64];
    let labels = select(vec!["a", "b", "c", "d", "e", "f"]);
    btree_map(labels, (numbers(), speech()), 0..6)
        .prop_map(|clusters| clusters.into_iter().map(|(label, (n, speech))| (label, n, speech)).collect())
}

fn borrowed<'a>(clusters: &'a [(&'static str, Vec<f32>, u64)]) -> Vec<Cluster<'a>> {
    clusters.iter().map(|(label, numbers, speech)| (*label, numbers.as_slice(), *speech)).collect()
}

fn threshold() -> impl Strategy<Value = f64> {
    (0..=20_u8).prop_map(|twentieth| f64::from(twentieth) / 20.0)
}

/// Lax ones too: most find more than one person behind a voice.
fn policies() -> impl Strategy<Value = Policy> {
    let margin = prop_oneof![Just(0.0), Just(0.02), threshold()];
    (threshold(), threshold(), margin).prop_map(|(a, b, margin)| policy(a.max(b), a.min(b), margin))
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn wide(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().copied().map(f64::from).collect()
}

/// Returns score and centroid's similarity of each profile for a vector, from the definition.
fn naive(samples: &Samples, numbers: &[f32]) -> BTreeMap<u128, (f64, f64)> {
    let mut vectors = BTreeMap::<u128, Vec<Vec<f64>>>::new();
    for ((profile, _), sample) in samples {
        let sample = wide(sample);
        let length = dot(&sample, &sample).sqrt();
        vectors.entry(*profile).or_default().push(sample.iter().map(|number| number / length).collect());
    }
    let numbers = wide(numbers);
    let similarity = |(profile, vectors): (&u128, &Vec<Vec<f64>>)| {
        let sum: Vec<f64> = (0..numbers.len()).map(|n| vectors.iter().map(|v| v[n]).sum()).collect();
        let best = vectors.iter().map(|vector| cosine(vector, &numbers)).fold(-1.0, f64::max);
        let cancelled = dot(&sum, &sum).sqrt() < 1e-3 * vectors.len() as f64;
        let centroid = if cancelled { best } else { cosine(&sum, &numbers) };
        (*profile, (best.max(centroid), centroid))
    };
    vectors.iter().map(similarity).collect()
}

fn is_about(a: f64, b: f64) -> bool {
    (a - b).abs() < 3e-6
}

/// A failure is worth a test of its own: no file of seeds is kept.
fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, cases: 1000, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_evidence_is_what_the_definition_says(samples in samples(), clusters in clusters(), policy in policies()) {
        let decisions = matched(&index_of(&samples), &policy, &borrowed(&clusters));
        prop_assert_eq!(decisions.len(), clusters.len());
        let thresholds = policy.thresholds();
        for ((label, decision), (_, numbers, speech)) in decisions.iter().zip(&clusters) {
            let scores = naive(&samples, numbers);
            let mut best: Vec<f64> = scores.values().map(|(score, _)| *score).collect();
            best.sort_by(|a, b| b.total_cmp(a));
            let candidates = candidates(decision);
            for (n, (profile, score)) in candidates.iter().enumerate() {
                prop_assert!(is_about(*score, best[n]) && is_about(*score, scores[profile].0));
                prop_assert!(*score >= thresholds.suggest);
            }
            let above = best.iter().filter(|score| **score > thresholds.suggest + 3e-6).count();
            prop_assert!(candidates.len() >= above.min(3), "no better one is left out");
            let Decision::Identified { profile_id, confidence, .. } = decision else { continue };
            let profile = profile_id.as_uuid().as_u128();
            prop_assert!(is_about(confidence.get(), scores[&profile].0));
            prop_assert!(confidence.get() >= thresholds.auto && *speech >= thresholds.minimum_speech_ms);
            let others = scores.iter().filter(|(other, _)| **other != profile).map(|(_, (_, c))| *c);
            let rivals = clusters.iter().filter(|(other, _, speech)| other != label && *speech >= 5000);
            let rival = others.chain(rivals.map(|(_, n, _)| naive(&samples, n)[&profile].1)).reduce(f64::max);
            let ahead = rival.map(|rival| scores[&profile].1 - rival);
            prop_assert_eq!(ahead.is_some(), margin(decision).is_some());
            if let (Some(ahead), Some(margin)) = (ahead, margin(decision)) {
                prop_assert!(is_about(ahead, margin), "{ahead} {margin}");
                prop_assert!(margin >= thresholds.margin);
            }
        }
    }

    #[test]
    fn how_long_a_vector_is_does_not_matter(
        samples in samples(), clusters in clusters(), policy in policies(), factors in vec(1..1000_u16, 20)
    ) {
        let mut factors = factors.into_iter().map(f32::from).cycle();
        let mut scaled = |numbers: &Vec<f32>| {
            let factor = factors.next().expect("it goes round");
            numbers.iter().map(|number| number * factor).collect::<Vec<_>>()
        };
        let longer: Samples = samples.iter().map(|(key, numbers)| (*key, scaled(numbers))).collect();
        let louder: Vec<_> = clusters.iter().map(|(label, n, speech)| (*label, scaled(n), *speech)).collect();
        prop_assert_eq!(
            matched(&index_of(&longer), &policy, &borrowed(&louder)),
            matched(&index_of(&samples), &policy, &borrowed(&clusters))
        );
    }

    #[test]
    fn the_order_of_clusters_and_of_enrolments_does_not_matter(
        (samples, shuffled) in samples().prop_flat_map(|samples| {
            let list = samples.clone().into_iter().collect::<Vec<_>>();
            (Just(samples), Just(list).prop_shuffle())
        }),
        (clusters, reordered) in clusters().prop_flat_map(|list| (Just(list.clone()), Just(list).prop_shuffle())),
        policy in policies(),
    ) {
        let known = index_of(&samples);
        let other = index(shuffled.iter().map(|((profile, sample), n)| (*profile, *sample, n.as_slice())));
        prop_assert_eq!(&other, &known);
        prop_assert_eq!(
            matched(&other, &policy, &borrowed(&reordered)),
            matched(&known, &policy, &borrowed(&clusters))
        );
    }

    #[test]
    fn no_profile_is_used_twice(samples in samples(), clusters in clusters(), policy in policies()) {
        let decisions = matched(&index_of(&samples), &policy, &borrowed(&clusters));
        let mut named: Vec<_> = names(&decisions).into_iter().flatten().collect();
        named.sort_unstable();
        prop_assert!(named.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn a_stricter_policy_identifies_nobody_whom_a_laxer_one_does_not(
        samples in samples(), clusters in clusters(), lax in policies(), auto in threshold(), more in threshold()
    ) {
        let Thresholds { auto: lax_auto, suggest, margin, .. } = *lax.thresholds();
        let strict = policy(auto.max(lax_auto), suggest, (margin + more).min(1.0));
        let known = index_of(&samples);
        let lax = matched(&known, &lax, &borrowed(&clusters));
        let strict = matched(&known, &strict, &borrowed(&clusters));
        for ((_, lax), (_, strict)) in lax.iter().zip(&strict) {
            prop_assert_eq!(&lax.evidence().candidates, &strict.evidence().candidates);
            prop_assert!(name(strict).is_none() || name(strict) == name(lax));
        }
    }

    #[test]
    fn one_profile_alone_is_as_if_nobody_else_were_known(kept in samples()) {
        let known = index_of(&kept);
        for profile in 0..9 {
            let alone = kept.iter().filter(|((other, _), _)| *other == profile);
            let alone = alone.map(|(key, numbers)| (*key, numbers.clone())).collect();
            prop_assert_eq!(known.of_profile(id(profile)), index_of(&alone));
        }
    }

    #[test]
    fn what_was_removed_was_never_there(
        kept in samples(),
        steps in vec((1..9_u128, 1..6_u128, numbers(), any::<bool>()), 0..20),
        clusters in clusters(),
        policy in policies(),
    ) {
        // Samples come and go between those that stay, and whole people whom nothing is to be left of.
        let (mut known, mut kept_ones) = (VoiceIndex::default(), kept.iter());
        let mut gone: Vec<(ProfileId, SampleId)> = vec![];
        for (profile, sample, numbers, erase) in &steps {
            if !kept.contains_key(&(*profile, *sample)) {
                known.add(id(*profile), id(*sample), &voice(MODEL, numbers)).unwrap();
                gone.push((id(*profile), id(*sample)));
            }
            if *erase {
                known.remove_profile(id(100 + profile));
                known.add(id(100 + profile), id(*sample), &voice(MODEL, numbers)).unwrap();
            }
            if let Some(((profile, sample), numbers)) = kept_ones.next() {
                known.add(id(*profile), id(*sample), &voice(MODEL, numbers)).unwrap();
            }
        }
        for ((profile, sample), numbers) in kept_ones {
            known.add(id(*profile), id(*sample), &voice(MODEL, numbers)).unwrap();
        }
        gone.into_iter().for_each(|(profile, sample)| known.remove_sample(profile, sample));
        (1..9).for_each(|profile| known.remove_profile(id(100 + profile)));
        let never = index_of(&kept);
        prop_assert_eq!(&known, &never);
        let clusters = borrowed(&clusters);
        prop_assert_eq!(matched(&known, &policy, &clusters), matched(&never, &policy, &clusters));
    }

    #[test]
    fn a_cluster_that_says_too_little_is_not_identified_and_says_nothing_of_the_others(
        samples in samples(), clusters in clusters(), policy in policies()
    ) {
        let known = index_of(&samples);
        let decisions = matched(&known, &policy, &borrowed(&clusters));
        let (long, short): (Vec<_>, Vec<_>) = clusters.into_iter().partition(|(_, _, speech)| *speech >= 5000);
        let of = |label: &str| &decisions.iter().find(|(other, _)| other == label).unwrap().1;
        for (label, ..) in short {
            prop_assert_eq!(name(of(label)), None);
        }
        for (label, decision) in matched(&known, &policy, &borrowed(&long)) {
            prop_assert_eq!(of(&label), &decision);
        }
    }

    #[test]
    fn a_cluster_of_another_model_or_dimension_is_not_compared(
        samples in samples().prop_filter("somebody", |samples| !samples.is_empty()),
        clusters in clusters(),
        policy in policies(),
        numbers in numbers(),
    ) {
        let known = index_of(&samples);
        let voices: Vec<_> = clusters.iter().map(|(label, n, _)| (parsed(label), voice(MODEL, n))).collect();
        let strangers = [
            (parsed("another model"), voice("another", &numbers)),
            (parsed("another dimension"), voice(MODEL, &numbers[..3].iter().map(|n| n + 9.0).collect::<Vec<_>>())),
        ];
        let cluster = |(cluster_id, voice)| ClusterVoice { cluster_id, voice, speech_ms: LONG };
        let comparable: Vec<_> = voices.iter().map(|(label, voice)| cluster((label, voice))).collect();
        let all: Vec<_> =
            strangers.iter().chain(&voices).map(|(label, voice)| cluster((label, voice))).collect();
        prop_assert_eq!(match_clusters(&known, &policy, &all), match_clusters(&known, &policy, &comparable));
    }
}

#[test]
fn clusters_of_two_models_that_are_one_person_are_left_to_a_human() {
    let other = "another-model";
    let mut index = VoiceIndex::default();
    for (profile, sample, model, degrees) in
        [(1, 1, MODEL, 0.0), (1, 2, other, 0.0), (2, 3, MODEL, 90.0), (2, 4, other, 90.0)]
    {
        index.add(id(profile), id(sample), &voice(model, &towards(degrees))).expect("all have one dimension");
    }
    let thresholds = Thresholds { auto: 0.82, suggest: 0.7, margin: 0.05, minimum_speech_ms: 5000 };
    let policies =
        [MODEL, other].map(|model| Policy::new(parsed(model), parsed("1"), thresholds).expect("it is valid"));
    let named = |clusters: &[(&str, &str, f32)]| {
        let owned =
            clusters.iter().map(|(label, model, degrees)| (parsed(label), voice(model, &towards(*degrees))));
        let owned: Vec<_> = owned.collect();
        let voices =
            owned.iter().map(|(cluster_id, voice)| ClusterVoice { cluster_id, voice, speech_ms: LONG });
        let decisions = match_meeting(&index, &policies, &voices.collect::<Vec<_>>());
        let named = decisions.into_iter().map(|(label, decision)| match decision {
            Decision::Identified { profile_id, .. } => (label.to_string(), Some(profile_id)),
            Decision::NotIdentified { evidence } => {
                assert!(!evidence.candidates.is_empty());
                (label.to_string(), None)
            }
        });
        named.collect::<Vec<_>>()
    };
    let pair = |label: &str, who: Option<u128>| (label.to_owned(), who.map(id));
    assert_eq!(named(&[("b", MODEL, 0.0), ("a", other, 90.0)]), [pair("a", Some(2)), pair("b", Some(1))]);
    assert_eq!(
        named(&[("b", MODEL, 0.0), ("a", other, 0.0), ("c", MODEL, 90.0)]),
        [pair("a", None), pair("b", None), pair("c", Some(2))]
    );
    assert_eq!(named(&[("a", "unheard-of", 0.0)]), []);
}
