//! Who speaks, by voice: which profiles the clusters of a meeting are, as far as a policy calls it sure.
//!
//! - The **score** of a cluster and a profile is the cosine similarity to the closest of the profile's
//!   samples and their centroid.
//! - The clusters are **assigned together**, so that the sum of what scores are above `suggest` is greatest and
//!   no profile is used twice. A score below it is worth less than rejection. The assignment knows neither
//!   `auto` nor the margin, so a stricter policy never identifies anybody whom a laxer one does not.
//! - The **margin** is taken on centroids, where one odd sample counts little, and on both sides: this profile
//!   must be ahead of every other profile for this cluster, and this cluster ahead of every other cluster of the
//!   meeting for this profile. For the diarization says that two clusters are two people: where both sound like
//!   one person, which of them it is takes a human, as it does where one cluster sounds like two people.
//! - A cluster with too little speech says nothing of the others: it is not assigned, and no cluster must be
//!   ahead of it. It has candidates like the others.
//!
//! **Invariant: what is decided depends on what was said, not on in which order.** Scores are compared as whole
//! millionths, which is coarser than their rounding errors, and what is equal stands in order of id.

mod assignment;
mod index;
mod policy;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

pub use index::VoiceIndex;
pub use policy::{Policy, Thresholds};

use self::assignment::assign;
use self::index::{Similarity, normalised};
use crate::ids::ProfileId;
use crate::speaker::{Candidate, ClusterId, Confidence, Decision, Evidence, MAX_CANDIDATES, Margin};
use crate::voice::Voice;

/// A cluster of a meeting, as its voice is matched.
#[derive(Debug, Clone, Copy)]
pub struct ClusterVoice<'a> {
    /// The label, unique within the meeting.
    pub cluster_id: &'a ClusterId,
    /// Its voice.
    pub voice: &'a Voice,
    /// How long it speaks in all, in milliseconds.
    pub speech_ms: u64,
}

/// Decides which profiles the `clusters` of one meeting are, in order of label. A cluster whose vector is of
/// another model than the policy's, or of another dimension than the index's, was not compared: there is no
/// decision on it.
pub fn match_clusters(
    index: &VoiceIndex,
    policy: &Policy,
    clusters: &[ClusterVoice<'_>],
) -> Vec<(ClusterId, Decision)> {
    let thresholds = MillionthThresholds::of(policy.thresholds());
    let voices = index.voices(policy.model());
    let is_comparable = |voice: &Voice| {
        let dimension = voice.vector.as_slice().len();
        voice.model == *policy.model() && voices.is_none_or(|voices| voices.dimension() == dimension)
    };
    let mut clusters: Vec<_> =
        clusters.iter().filter(|cluster| is_comparable(cluster.voice)).copied().collect();
    clusters.sort_by_key(|cluster| cluster.cluster_id);

    let enough: Vec<bool> =
        clusters.iter().map(|cluster| cluster.speech_ms >= policy.thresholds().minimum_speech_ms).collect();
    let mut findings = vec![Finding::default(); clusters.len()];
    if let Some(voices) = voices {
        let vectors: Vec<f32> =
            clusters.iter().flat_map(|cluster| normalised(cluster.voice.vector.as_slice())).collect();
        voices.compare(&vectors, |profile_id, similarities| {
            note(&mut findings, profile_id, similarities, &enough, thresholds.suggest);
        });
    }
    let assigned = assign_profiles(&findings, &enough, thresholds.suggest);
    let decide = |((cluster, finding), assigned): ((&ClusterVoice<'_>, &Finding), Option<ProfileId>)| {
        (cluster.cluster_id.clone(), decision(finding, assigned, policy, thresholds))
    };
    clusters.iter().zip(&findings).zip(assigned).map(decide).collect()
}

/// Decides which profiles the `clusters` of one meeting are, each by the policy for its voice's model. A cluster
/// of a model without a policy was not compared. Where clusters of different models are one profile, which of
/// them it is takes a human: none is identified.
pub fn match_meeting(
    index: &VoiceIndex,
    policies: &[Policy],
    clusters: &[ClusterVoice<'_>],
) -> Vec<(ClusterId, Decision)> {
    let by_policy = policies.iter().flat_map(|policy| match_clusters(index, policy, clusters));
    let mut decisions: Vec<_> = by_policy.collect();
    let mut uses = BTreeMap::<ProfileId, usize>::new();
    for (_, decision) in &decisions {
        if let Decision::Identified { profile_id, .. } = decision {
            *uses.entry(*profile_id).or_default() += 1;
        }
    }
    for (_, decision) in &mut decisions {
        if let Decision::Identified { profile_id, evidence, .. } = decision
            && uses[profile_id] > 1
        {
            *decision = Decision::NotIdentified { evidence: evidence.clone() };
        }
    }
    decisions.sort_by(|(a, _), (b, _)| a.cmp(b));
    decisions
}

/// A cosine similarity, or the difference of two, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Millionths(i32);

impl Millionths {
    fn of(number: f64) -> Self {
        Self((number * 1e6).round() as i32)
    }

    /// Rounding errors can take a cosine past 1.
    fn of_cosine(cosine: f32) -> Self {
        Self::of(f64::from(cosine).clamp(-1.0, 1.0))
    }

    fn get(self) -> f64 {
        f64::from(self.0) / 1e6
    }
}

/// A policy's thresholds, as they are compared.
#[derive(Clone, Copy)]
struct MillionthThresholds {
    auto: Millionths,
    suggest: Millionths,
    margin: Millionths,
}

impl MillionthThresholds {
    fn of(thresholds: &Thresholds) -> Self {
        let Thresholds { auto, suggest, margin, minimum_speech_ms: _ } = *thresholds;
        Self { auto: Millionths::of(auto), suggest: Millionths::of(suggest), margin: Millionths::of(margin) }
    }
}

/// What the comparison with all profiles found for one cluster.
#[derive(Clone, Default)]
struct Finding {
    /// The profiles that score `suggest` or more, best first, as many as can matter.
    shortlist: Vec<Resemblance>,
    /// The two best centroids of all profiles, best first.
    centroids: [Option<(f32, ProfileId)>; 2],
}

/// A profile on a cluster's shortlist.
#[derive(Clone, Copy)]
struct Resemblance {
    profile_id: ProfileId,
    score: Millionths,
    centroid: Millionths,
    /// The similarity of the profile's centroid to the best other cluster of the meeting.
    rival_cluster: Option<Millionths>,
}

/// Notes how much one profile resembles each cluster.
fn note(
    findings: &mut [Finding],
    profile_id: ProfileId,
    similarities: &[Similarity],
    enough: &[bool],
    suggest: Millionths,
) {
    // Each cluster takes a profile that no other one has taken: of as many as there are clusters, one is left.
    let can_matter = findings.len().max(MAX_CANDIDATES);
    // Most profiles are turned away by this, which costs less than rounding.
    let floor = suggest.get() as f32 - 1e-6;
    for (n, (finding, similarity)) in findings.iter_mut().zip(similarities).enumerate() {
        finding.note_centroid(similarity.centroid, profile_id);
        if similarity.best < floor {
            continue;
        }
        let score = Millionths::of_cosine(similarity.best);
        if score < suggest {
            continue;
        }
        let place = finding.shortlist.partition_point(|listed| {
            (Reverse(listed.score), listed.profile_id) < (Reverse(score), profile_id)
        });
        if place == can_matter {
            continue;
        }
        let rivals = similarities
            .iter()
            .zip(enough)
            .enumerate()
            .filter(|(other, (_, enough))| *other != n && **enough);
        let rival_cluster = rivals.map(|(_, (other, _))| Millionths::of_cosine(other.centroid)).max();
        let centroid = Millionths::of_cosine(similarity.centroid);
        finding.shortlist.truncate(can_matter - 1);
        finding.shortlist.insert(place, Resemblance { profile_id, score, centroid, rival_cluster });
    }
}

impl Finding {
    fn note_centroid(&mut self, centroid: f32, profile_id: ProfileId) {
        let [best, second] = &mut self.centroids;
        if second.is_some_and(|(known, _)| known >= centroid) {
            return;
        }
        *second = Some((centroid, profile_id));
        if best.is_none_or(|(known, _)| known < centroid) {
            std::mem::swap(best, second);
        }
    }

    /// Returns how far a profile on the shortlist is ahead of the best other person, on the side where it is
    /// less.
    fn margin(&self, resemblance: &Resemblance) -> Option<Millionths> {
        let other = self.centroids.iter().flatten().find(|(_, id)| *id != resemblance.profile_id);
        let rival_profile = other.map(|(centroid, _)| Millionths::of_cosine(*centroid));
        let rival = rival_profile.max(resemblance.rival_cluster)?;
        Some(Millionths(resemblance.centroid.0 - rival.0))
    }
}

/// Returns the profile that each cluster gets when all are assigned together.
fn assign_profiles(findings: &[Finding], enough: &[bool], suggest: Millionths) -> Vec<Option<ProfileId>> {
    let shortlist = |(finding, enough): (&Finding, &bool)| {
        if *enough { finding.shortlist.clone() } else { vec![] }
    };
    let shortlists: Vec<Vec<Resemblance>> = findings.iter().zip(enough).map(shortlist).collect();
    let profiles: BTreeSet<ProfileId> = shortlists.iter().flatten().map(|listed| listed.profile_id).collect();
    let profiles: Vec<ProfileId> = profiles.into_iter().collect();
    let gain = |listed: &Resemblance| {
        let column = profiles.binary_search(&listed.profile_id).expect("it is one of the profiles");
        (column, i64::from(listed.score.0 - suggest.0))
    };
    let rows: Vec<Vec<_>> = shortlists.iter().map(|row| row.iter().map(gain).collect()).collect();
    let assigned = assign(&rows, profiles.len());
    assigned.into_iter().map(|column| column.map(|column| profiles[column])).collect()
}

fn decision(
    finding: &Finding,
    assigned: Option<ProfileId>,
    policy: &Policy,
    thresholds: MillionthThresholds,
) -> Decision {
    let evidence = |margin: Option<Millionths>| Evidence {
        model: policy.model().clone(),
        policy_version: policy.version().clone(),
        margin: margin.map(|margin| Margin::try_from(margin.get()).expect("cosines differ by 2 at most")),
        candidates: finding.shortlist.iter().take(MAX_CANDIDATES).map(candidate).collect(),
    };
    let assigned = finding.shortlist.iter().find(|listed| Some(listed.profile_id) == assigned);
    if let Some(listed) = assigned.filter(|listed| listed.score >= thresholds.auto) {
        let margin = finding.margin(listed);
        if margin.is_none_or(|margin| margin >= thresholds.margin) {
            let Candidate { profile_id, score } = candidate(listed);
            return Decision::Identified { profile_id, confidence: score, evidence: evidence(margin) };
        }
    }
    let best = finding.shortlist.first();
    Decision::NotIdentified { evidence: evidence(best.and_then(|best| finding.margin(best))) }
}

fn candidate(listed: &Resemblance) -> Candidate {
    let score = Confidence::try_from(listed.score.get()).expect("it is at least `suggest`, at most 1");
    Candidate { profile_id: listed.profile_id, score }
}
