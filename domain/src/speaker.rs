//! Who spoke when: clusters as the diarization found them, and the decisions that name them.

use serde::{Deserialize, Serialize};

use crate::ValueError;
use crate::ids::{ProfileId, SpeakerId};
use crate::text::{check, text_type};
use crate::voice::{KeptVoice, ModelId};

/// The most clusters of one meeting.
pub const MAX_CLUSTERS: usize = 500;
/// The most segments of one meeting, over all clusters.
pub const MAX_SEGMENTS: usize = 50_000;

text_type!(
    /// A cluster's label in the diarization: 1 to 50 characters.
    ClusterId,
    |text| {
        check(&text, "cluster_id", 50, "must be 1 to 50 characters, not blank, without NUL")?;
        Ok(text)
    }
);

text_type!(
    /// The version of the policy (thresholds, margin) that a decision followed: 1 to 50 characters.
    PolicyVersion,
    |text| {
        check(&text, "policy_version", 50, "must be 1 to 50 characters, not blank, without NUL")?;
        Ok(text)
    }
);

/// One stretch of speech, in milliseconds from the start of the recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "(u32, u32)", into = "(u32, u32)")]
pub struct Segment {
    /// When it starts.
    pub start_ms: u32,
    /// How long it lasts.
    pub duration_ms: u32,
}

impl From<(u32, u32)> for Segment {
    fn from((start_ms, duration_ms): (u32, u32)) -> Self {
        Self { start_ms, duration_ms }
    }
}

impl From<Segment> for (u32, u32) {
    fn from(segment: Segment) -> Self {
        (segment.start_ms, segment.duration_ms)
    }
}

/// One voice that the diarization told apart, with all its speech.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// The label, unique within the diarization.
    pub cluster_id: ClusterId,
    /// Its speech, in order of start. Stored as one text, `0+4180 9650+12730`: start and duration of each. A
    /// meeting has hundreds, and as numbers they are most of what reading the log costs (jsonb keeps each
    /// as a decimal of its own).
    #[serde(with = "speech")]
    pub segments: Vec<Segment>,
    /// How long it speaks in all, in milliseconds, where the diarization gave no segments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speech_ms: Option<u32>,
    /// Its voice, where the pipeline computed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voice: Option<KeptVoice>,
}

impl Cluster {
    /// Returns how long it speaks in all, in milliseconds.
    pub fn total_speech_ms(&self) -> u64 {
        let segments = self.segments.iter().map(|segment| u64::from(segment.duration_ms)).sum::<u64>();
        self.speech_ms.map_or(segments, u64::from)
    }
}

mod speech {
    use std::borrow::Cow;
    use std::fmt::Write as _;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Segment;

    pub(super) fn serialize<S: Serializer>(segments: &[Segment], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&to_text(segments))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Segment>, D::Error> {
        // Borrowed where it can be: it is long, and needs no unescaping.
        #[derive(Deserialize)]
        struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
        let Text(text) = Text::deserialize(deserializer)?;
        from_text(&text).ok_or_else(|| D::Error::custom("segments must be written as start+duration"))
    }

    fn to_text(segments: &[Segment]) -> String {
        let mut text = String::with_capacity(segments.len() * 14);
        for (n, segment) in segments.iter().enumerate() {
            let blank = if n == 0 { "" } else { " " };
            write!(text, "{blank}{}+{}", segment.start_ms, segment.duration_ms).expect("a String takes all");
        }
        text
    }

    fn from_text(text: &str) -> Option<Vec<Segment>> {
        if text.is_empty() {
            return Some(vec![]);
        }
        // As bytes, which costs least: hundreds of them are read with every diarization.
        let segment = |part: &[u8]| {
            let plus = part.iter().position(|byte| *byte == b'+')?;
            let (start, duration) = (part.get(..plus)?, part.get(plus + 1..)?);
            Some(Segment { start_ms: number(start)?, duration_ms: number(duration)? })
        };
        text.as_bytes().split(|byte| *byte == b' ').map(segment).collect()
    }

    fn number(digits: &[u8]) -> Option<u32> {
        let with = |number: u32, digit: &u8| {
            let digit = digit.is_ascii_digit().then(|| u32::from(digit - b'0'))?;
            number.checked_mul(10)?.checked_add(digit)
        };
        if digits.is_empty() { None } else { digits.iter().try_fold(0, with) }
    }
}

/// The clusters of one diarization: bounded, in order of label, no label twice.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<Cluster>", into = "Vec<Cluster>")]
pub struct Diarization(Vec<Cluster>);

impl Diarization {
    /// Returns the clusters, in order of label.
    pub fn clusters(&self) -> &[Cluster] {
        &self.0
    }

    /// Returns the clusters. What orders and bounds them is to stay as it is.
    pub(crate) fn clusters_mut(&mut self) -> &mut [Cluster] {
        &mut self.0
    }
}

impl TryFrom<Vec<Cluster>> for Diarization {
    type Error = ValueError;
    fn try_from(mut clusters: Vec<Cluster>) -> Result<Self, ValueError> {
        if clusters.len() > MAX_CLUSTERS {
            return Err(ValueError::new("clusters", "must be at most 500"));
        }
        if clusters.iter().map(|cluster| cluster.segments.len()).sum::<usize>() > MAX_SEGMENTS {
            return Err(ValueError::new("segments", "must be at most 50,000 in a meeting"));
        }
        let runs_over = |s: &Segment| s.start_ms.checked_add(s.duration_ms).is_none();
        if clusters.iter().any(|cluster| cluster.segments.iter().any(runs_over)) {
            return Err(ValueError::new("segments", "must end before 2^32 milliseconds"));
        }
        if clusters.iter().any(|cluster| cluster.speech_ms.is_some() && !cluster.segments.is_empty()) {
            return Err(ValueError::new("speech_ms", "must be left out where there are segments"));
        }
        // The order of labels and of segments says nothing: the same diarization twice is the same value.
        clusters.sort_by(|a, b| a.cluster_id.cmp(&b.cluster_id));
        if clusters.windows(2).any(|pair| pair[0].cluster_id == pair[1].cluster_id) {
            return Err(ValueError::new("clusters", "must have different cluster_ids"));
        }
        for cluster in &mut clusters {
            cluster.segments.sort_unstable();
        }
        Ok(Self(clusters))
    }
}

impl From<Diarization> for Vec<Cluster> {
    fn from(diarization: Diarization) -> Self {
        diarization.0
    }
}

/// How sure a machine was: finite, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Confidence(f64);

impl Confidence {
    /// Returns the number.
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Confidence {
    type Error = ValueError;
    fn try_from(number: f64) -> Result<Self, ValueError> {
        // The comparison also turns NaN away; adding zero makes -0 a 0, the only one that jsonb knows.
        if (0.0..=1.0).contains(&number) {
            Ok(Self(number + 0.0))
        } else {
            Err(ValueError::new("confidence", "must be a number from 0 to 1"))
        }
    }
}

impl From<Confidence> for f64 {
    fn from(confidence: Confidence) -> Self {
        confidence.0
    }
}

/// How far the best candidate is ahead of the best other person: finite, -2 to 2 (a difference of cosines).
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Margin(f64);

impl Margin {
    /// Returns the number.
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Margin {
    type Error = ValueError;
    fn try_from(number: f64) -> Result<Self, ValueError> {
        if (-2.0..=2.0).contains(&number) {
            Ok(Self(number + 0.0))
        } else {
            Err(ValueError::new("margin", "must be a number from -2 to 2"))
        }
    }
}

impl From<Margin> for f64 {
    fn from(margin: Margin) -> Self {
        margin.0
    }
}

/// The most candidates that a decision keeps.
pub const MAX_CANDIDATES: usize = 3;

/// A profile that a cluster resembles.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Whose voice it resembles.
    pub profile_id: ProfileId,
    /// The cosine similarity, as a confidence.
    pub score: Confidence,
}

/// What a machine's decision rests on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// The model whose vectors were compared.
    pub model: ModelId,
    /// The policy that was followed.
    pub policy_version: PolicyVersion,
    /// How far the best other person is behind, where there was one: another profile for this cluster, or
    /// another cluster for this profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<Margin>,
    /// The best candidates, best first, at most [`MAX_CANDIDATES`].
    pub candidates: Vec<Candidate>,
}

/// What a machine made of a cluster.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// It is this person.
    Identified {
        /// Who it is.
        profile_id: ProfileId,
        /// How sure the machine is.
        confidence: Confidence,
        /// Why.
        evidence: Evidence,
    },
    /// It is nobody known, or not surely enough.
    NotIdentified {
        /// Why.
        evidence: Evidence,
    },
}

impl Decision {
    /// Returns what the decision rests on.
    pub const fn evidence(&self) -> &Evidence {
        match self {
            Self::Identified { evidence, .. } | Self::NotIdentified { evidence } => evidence,
        }
    }
}

/// Who linked a speaker to a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkedBy {
    /// The matching of voices.
    Machine,
    /// A person, whom the event's metadata names.
    Person,
}

impl LinkedBy {
    /// Returns the name under which it is stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Machine => "machine",
            Self::Person => "person",
        }
    }
}

/// A speaker's link to a profile.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Link {
    /// Who speaks.
    pub profile_id: ProfileId,
    /// How sure the machine was; absent when a person said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<Confidence>,
    /// Who said so.
    pub by: LinkedBy,
}

/// A speaker as a completed meeting shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Speaker {
    /// Derived from meeting, attempt and cluster.
    pub id: SpeakerId,
    /// The label in the diarization.
    pub cluster_id: ClusterId,
    /// Who it is, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<Link>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(label: &str, segments: &[(u32, u32)]) -> Cluster {
        Cluster {
            cluster_id: label.parse().unwrap(),
            segments: segments.iter().copied().map(Segment::from).collect(),
            speech_ms: None,
            voice: None,
        }
    }

    #[test]
    fn the_order_of_clusters_and_segments_says_nothing() {
        let one = Diarization::try_from(vec![cluster("a", &[(5, 1), (0, 2)]), cluster("b", &[])]);
        let two = Diarization::try_from(vec![cluster("b", &[]), cluster("a", &[(0, 2), (5, 1)])]);
        assert_eq!(one.unwrap(), two.unwrap());
    }

    #[test]
    fn a_diarization_is_bounded_and_has_no_label_twice() {
        assert!(Diarization::try_from(vec![cluster("a", &[]), cluster("a", &[])]).is_err());
        assert!(Diarization::try_from(vec![cluster("a", &[(u32::MAX, 1)])]).is_err());
        let said_twice = Cluster { speech_ms: Some(1), ..cluster("a", &[(0, 1)]) };
        assert!(Diarization::try_from(vec![said_twice]).is_err());
        assert!(Diarization::try_from(vec![cluster("a", &vec![(0, 1); MAX_SEGMENTS + 1])]).is_err());
        let many = (0..=MAX_CLUSTERS).map(|n| cluster(&n.to_string(), &[])).collect::<Vec<_>>();
        assert!(Diarization::try_from(many).is_err());
    }

    #[test]
    fn speech_is_read_as_it_was_written_and_nothing_else_is() {
        let read = |segments: &str| {
            let json = serde_json::json!({"cluster_id": "a", "segments": segments});
            serde_json::from_str::<Cluster>(&json.to_string()).ok()
        };
        let known = cluster("a", &[(0, 4180), (9650, u32::MAX)]);
        let written = serde_json::to_value(&known).unwrap();
        assert_eq!(written["segments"], "0+4180 9650+4294967295");
        assert_eq!(read("0+4180 9650+4294967295"), Some(known));
        assert_eq!(read(""), Some(cluster("a", &[])));
        for unfit in ["1", "1+", "+1", "1+2 ", " 1+2", "1+2  3+4", "1+2+3", "-1+2", "1+4294967296", "1+ 2"] {
            assert_eq!(read(unfit), None, "{unfit:?}");
        }
    }

    #[test]
    fn speech_is_said_by_segments_or_by_their_sum() {
        assert_eq!(cluster("a", &[(0, 2), (1, 5)]).total_speech_ms(), 7);
        assert_eq!(Cluster { speech_ms: Some(9), ..cluster("a", &[]) }.total_speech_ms(), 9);
    }

    #[test]
    fn a_confidence_is_finite_and_between_0_and_1() {
        assert!(Confidence::try_from(0.0).is_ok_and(|c| c.get().is_sign_positive()));
        assert!(Confidence::try_from(-0.0).is_ok_and(|c| c.get().is_sign_positive()));
        for number in [f64::NAN, f64::INFINITY, -0.1, 1.1] {
            assert!(Confidence::try_from(number).is_err());
        }
    }
}
