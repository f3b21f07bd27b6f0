//! Which speaker of a new diarization a person's decision about an earlier one holds for. Clusters have nothing
//! in common but time, so speech in common decides, and only where it leaves no doubt:
//!
//! 1. the new cluster has more than half of what the person heard, and more of it than any other has;
//! 2. more than half of the new cluster's speech is what people gave to that same person;
//! 3. it has no rival: no other new cluster has more than half as much, be it of what the first one leaves,
//!    or, where most of the other is that person's too, of all of it;
//! 4. nobody contradicts: no decision for another person had most of its own speech go into that cluster.
//!
//! Whatever else becomes of a decision is for a reviewer to say. The order of clusters, of segments and of
//! decisions does not matter.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{ProfileId, SpeakerId};
use crate::speaker::Segment;

/// The most speakers that are told of a decision that was not carried over: those with the most speech in
/// common.
pub const MAX_OVERLAPS: usize = 10;

/// When somebody speaks: stretches in order, that neither touch nor overlap. Cloning it copies none of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "Vec<Segment>", into = "Vec<Segment>")]
pub struct Speech(Arc<[Segment]>);

/// What a person said about a speaker of an earlier diarization.
#[derive(Debug, Clone, PartialEq)]
pub struct HumanWord {
    /// Who it is, or nobody known.
    pub to: Option<ProfileId>,
    /// What the person heard.
    pub speech: Speech,
}

/// A speaker of the new diarization, and the speech in common with one of an earlier diarization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlap {
    /// The new speaker.
    pub speaker_id: SpeakerId,
    /// The speech in common, in milliseconds.
    pub overlap_ms: u32,
}

/// What becomes of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CarryOver {
    /// It holds for this speaker.
    Carried(Overlap),
    /// It may be about any of these, those with the most speech in common first, or about none.
    Ambiguous(Vec<Overlap>),
}

impl Speech {
    /// Returns how long it lasts, in milliseconds.
    pub fn total_ms(&self) -> u32 {
        self.0.iter().map(|stretch| stretch.duration_ms).sum()
    }

    /// Returns how much room it takes, in bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.0)
    }

    /// Returns how long both last at once, in milliseconds. Takes as many steps as they have stretches.
    pub fn overlap_ms(&self, other: &Self) -> u32 {
        let (mut ours, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut overlap = 0;
        while let (Some(our), Some(their)) = (ours.peek(), theirs.peek()) {
            let until = end(our).min(end(their));
            overlap += until.saturating_sub(our.start_ms.max(their.start_ms));
            if end(our) == until {
                ours.next();
            } else {
                theirs.next();
            }
        }
        overlap
    }

    /// Returns what `other` leaves of it.
    fn without(&self, other: &Self) -> Self {
        let mut others = other.0.iter().peekable();
        let mut left = Vec::new();
        for stretch in self.0.iter() {
            let mut from = stretch.start_ms;
            while let Some(taken) = others.peek().filter(|taken| taken.start_ms < end(stretch)) {
                if taken.start_ms > from {
                    left.push(Segment { start_ms: from, duration_ms: taken.start_ms - from });
                }
                from = from.max(end(taken));
                if end(taken) > end(stretch) {
                    break;
                }
                others.next();
            }
            if from < end(stretch) {
                left.push(Segment { start_ms: from, duration_ms: end(stretch) - from });
            }
        }
        Self(left.into())
    }
}

impl From<Vec<Segment>> for Speech {
    fn from(mut segments: Vec<Segment>) -> Self {
        segments.retain(|segment| segment.duration_ms > 0);
        segments.sort_unstable();
        segments.dedup_by(|next, before| {
            let touches = next.start_ms <= end(before);
            if touches {
                before.duration_ms = end(before).max(end(next)) - before.start_ms;
            }
            touches
        });
        Self(segments.into())
    }
}

impl From<Speech> for Vec<Segment> {
    fn from(speech: Speech) -> Self {
        speech.0.to_vec()
    }
}

/// No diarization has a segment that ends later than its number can say.
const fn end(segment: &Segment) -> u32 {
    segment.start_ms.saturating_add(segment.duration_ms)
}

/// Returns what becomes of each of the decisions `decided` when the speakers are `speakers`, in the order of
/// `decided`.
pub fn carry_over(decided: &[HumanWord], speakers: &BTreeMap<SpeakerId, Speech>) -> Vec<CarryOver> {
    let given = given_to_each(decided);
    let overlaps: Vec<Vec<Overlap>> =
        decided.iter().map(|decision| overlaps(&decision.speech, speakers)).collect();
    // Who it is that most of a decision's speech says a new speaker is.
    let mut claims: BTreeMap<SpeakerId, Vec<Option<ProfileId>>> = BTreeMap::new();
    for (decision, overlaps) in decided.iter().zip(&overlaps) {
        for claimed in largest(&decision.speech, overlaps) {
            claims.entry(claimed.speaker_id).or_default().push(decision.to);
        }
    }
    let outcome = |(decision, mut overlaps): (&HumanWord, Vec<Overlap>)| {
        if let [best] = largest(&decision.speech, &overlaps)
            && is_mostly(&given[&decision.to], &speakers[&best.speaker_id])
            && claims[&best.speaker_id].iter().all(|to| *to == decision.to)
            && !has_rival(decision, *best, &overlaps, speakers, &given[&decision.to])
        {
            return CarryOver::Carried(*best);
        }
        overlaps.truncate(MAX_OVERLAPS);
        CarryOver::Ambiguous(overlaps)
    };
    decided.iter().zip(overlaps).map(outcome).collect()
}

fn given_to_each(decided: &[HumanWord]) -> BTreeMap<Option<ProfileId>, Speech> {
    let mut given: BTreeMap<Option<ProfileId>, Vec<Segment>> = BTreeMap::new();
    for decision in decided {
        given.entry(decision.to).or_default().extend_from_slice(&decision.speech.0);
    }
    given.into_iter().map(|(to, segments)| (to, segments.into())).collect()
}

/// Returns the speakers with speech in common, those with the most first.
fn overlaps(speech: &Speech, speakers: &BTreeMap<SpeakerId, Speech>) -> Vec<Overlap> {
    let overlap = |(id, other): (&SpeakerId, &Speech)| Overlap {
        speaker_id: *id,
        overlap_ms: speech.overlap_ms(other),
    };
    let mut overlaps: Vec<Overlap> =
        speakers.iter().map(overlap).filter(|overlap| overlap.overlap_ms > 0).collect();
    overlaps.sort_by_key(|overlap| (std::cmp::Reverse(overlap.overlap_ms), overlap.speaker_id));
    overlaps
}

/// Returns those of `overlaps` that have the most, if it is more than half of `speech`: one, unless two have
/// the same.
fn largest<'a>(speech: &Speech, overlaps: &'a [Overlap]) -> &'a [Overlap] {
    match overlaps.first() {
        Some(first) if is_more_than_half(first.overlap_ms, speech.total_ms()) => {
            let equal = overlaps.iter().take_while(|overlap| overlap.overlap_ms == first.overlap_ms).count();
            &overlaps[..equal]
        }
        Some(_) | None => &[],
    }
}

/// Says whether another speaker is nearly as good as the `best` one.
fn has_rival(
    decision: &HumanWord,
    best: Overlap,
    overlaps: &[Overlap],
    speakers: &BTreeMap<SpeakerId, Speech>,
    given: &Speech,
) -> bool {
    let left = decision.speech.without(&speakers[&best.speaker_id]);
    let is_rival = |other: &Overlap| {
        let speech = &speakers[&other.speaker_id];
        let overlap_ms = if is_mostly(given, speech) { other.overlap_ms } else { left.overlap_ms(speech) };
        is_more_than_half(overlap_ms, best.overlap_ms)
    };
    overlaps.iter().filter(|other| other.speaker_id != best.speaker_id).any(is_rival)
}

/// Says whether more than half of `speech` is `given`.
fn is_mostly(given: &Speech, speech: &Speech) -> bool {
    is_more_than_half(given.overlap_ms(speech), speech.total_ms())
}

fn is_more_than_half(part_ms: u32, whole_ms: u32) -> bool {
    u64::from(part_ms) * 2 > u64::from(whole_ms)
}
