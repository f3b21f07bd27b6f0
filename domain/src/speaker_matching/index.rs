//! The voices of all profiles in memory, and how much each resembles the clusters of a meeting.
//!
//! A profile's samples of one model lie in one block of exactly their size, in order of their ids. So the
//! index is a function of the samples in it: whatever was added and removed again, in whatever order, leaves
//! no trace, neither in memory nor in the last digit of a sum. No vector is stored twice: the similarity to
//! a centroid is the sum of the similarities to its samples, divided by the length of their sum.

use std::collections::BTreeMap;

use crate::ValueError;
use crate::ids::{ProfileId, SampleId};
use crate::voice::{ModelId, Voice};

/// The voices of profiles, by model.
#[derive(Clone, PartialEq, Default)]
pub struct VoiceIndex {
    models: BTreeMap<ModelId, ModelVoices>,
}

impl VoiceIndex {
    /// Adds a sample of a profile's voice, in place of one with the same id. Refused if the model's other
    /// samples have another dimension.
    pub fn add(
        &mut self,
        profile_id: ProfileId,
        sample_id: SampleId,
        voice: &Voice,
    ) -> Result<(), ValueError> {
        let numbers = voice.vector.as_slice();
        if self.voices(&voice.model).is_some_and(|voices| voices.dimension != numbers.len()) {
            return Err(ValueError::new("vector", "does not have its model's dimension"));
        }
        // The id may have stood for a voice of another model.
        self.remove_sample(profile_id, sample_id);
        let empty = || ModelVoices { dimension: numbers.len(), profiles: BTreeMap::new() };
        let voices = self.models.entry(voice.model.clone()).or_insert_with(empty);
        voices.profiles.entry(profile_id).or_default().insert(sample_id, &normalised(numbers));
        Ok(())
    }

    /// Removes a sample of a profile's voice, if it is there.
    pub fn remove_sample(&mut self, profile_id: ProfileId, sample_id: SampleId) {
        self.models.retain(|_, voices| {
            if let Some(profile) = voices.profiles.get_mut(&profile_id) {
                profile.remove(sample_id, voices.dimension);
                if profile.samples.is_empty() {
                    voices.profiles.remove(&profile_id);
                }
            }
            !voices.profiles.is_empty()
        });
    }

    /// Removes all samples of a profile's voice, of every model.
    pub fn remove_profile(&mut self, profile_id: ProfileId) {
        self.models.retain(|_, voices| {
            voices.profiles.remove(&profile_id);
            !voices.profiles.is_empty()
        });
    }

    /// Returns the voices of `model`, if there are any.
    pub(super) fn voices(&self, model: &ModelId) -> Option<&ModelVoices> {
        self.models.get(model)
    }
}

// Voices are biometric data: they do not show themselves in a log by way of `{:?}`.
impl std::fmt::Debug for VoiceIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let profiles = self.models.iter().map(|(model, voices)| (model.as_str(), voices.profiles.len()));
        f.write_str("VoiceIndex ")?;
        f.debug_map().entries(profiles).finish()
    }
}

/// The voices of one model, at least one.
#[derive(Clone, PartialEq)]
pub(super) struct ModelVoices {
    dimension: usize,
    profiles: BTreeMap<ProfileId, ProfileVoice>,
}

/// How much a cluster resembles a profile: cosine similarities.
#[derive(Clone, Copy)]
pub(super) struct Similarity {
    /// To the sample or centroid that is closest.
    pub(super) best: f32,
    /// To the centroid.
    pub(super) centroid: f32,
}

impl ModelVoices {
    /// Returns how many numbers each vector has.
    pub(super) const fn dimension(&self) -> usize {
        self.dimension
    }

    /// Tells `each` of every profile, in order of id, how much the `clusters` resemble it. Those are
    /// normalised vectors, one after the other.
    pub(super) fn compare(&self, clusters: &[f32], mut each: impl FnMut(ProfileId, &[Similarity])) {
        let unknown = Similarity { best: f32::NEG_INFINITY, centroid: 0.0 };
        let mut similarities = vec![unknown; clusters.len() / self.dimension];
        for (profile_id, profile) in &self.profiles {
            similarities.fill(unknown);
            for sample in profile.vectors.chunks_exact(self.dimension) {
                for (similarity, cluster) in
                    similarities.iter_mut().zip(clusters.chunks_exact(self.dimension))
                {
                    let cosine = dot(sample, cluster);
                    similarity.best = similarity.best.max(cosine);
                    similarity.centroid += cosine;
                }
            }
            for similarity in &mut similarities {
                similarity.centroid = match profile.length_of_sum {
                    Some(length) => similarity.centroid / length,
                    None => similarity.best,
                };
                similarity.best = similarity.best.max(similarity.centroid);
            }
            each(*profile_id, &similarities);
        }
    }
}

/// The samples of one profile.
#[derive(Clone, PartialEq, Default)]
struct ProfileVoice {
    /// In order.
    samples: Vec<SampleId>,
    /// Of each sample in turn, normalised.
    vectors: Vec<f32>,
    /// Of the vectors added up. Absent where they cancel out: such a profile has no centroid, and the best
    /// sample stands in for it.
    length_of_sum: Option<f32>,
}

impl ProfileVoice {
    fn insert(&mut self, sample_id: SampleId, vector: &[f32]) {
        let place = self.samples.partition_point(|known| *known < sample_id);
        self.samples.reserve_exact(1);
        self.samples.insert(place, sample_id);
        let start = place * vector.len();
        self.vectors.reserve_exact(vector.len());
        self.vectors.splice(start..start, vector.iter().copied());
        self.measure(vector.len());
    }

    fn remove(&mut self, sample_id: SampleId, dimension: usize) {
        let Ok(place) = self.samples.binary_search(&sample_id) else { return };
        self.samples.remove(place);
        self.samples.shrink_to_fit();
        self.vectors.drain(place * dimension..(place + 1) * dimension);
        self.vectors.shrink_to_fit();
        self.measure(dimension);
    }

    fn measure(&mut self, dimension: usize) {
        let mut sum = vec![0.0; dimension];
        for sample in self.vectors.chunks_exact(dimension) {
            sum.iter_mut().zip(sample).for_each(|(sum, number)| *sum += f64::from(*number));
        }
        let length = sum.iter().map(|number| number * number).sum::<f64>().sqrt();
        // The direction of less than a thousandth of what was added up would be that of rounding errors.
        let cancelled = length < 1e-3 * self.samples.len() as f64;
        self.length_of_sum = (!cancelled).then_some(length as f32);
    }
}

/// Returns `numbers` at length 1. In `f64`, where no square of an `f32` is too large or too small.
pub(super) fn normalised(numbers: &[f32]) -> Vec<f32> {
    let square = |number: &f32| f64::from(*number) * f64::from(*number);
    let length = numbers.iter().map(square).sum::<f64>().sqrt();
    numbers.iter().map(|number| (f64::from(*number) / length) as f32).collect()
}

/// Returns the dot product. Independent sums let the compiler use vector instructions, and fix the order of
/// addition: every machine computes the same last digit.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_does_not_show_voices() {
        let mut index = VoiceIndex::default();
        let vector = vec![0.123, 0.456].try_into().unwrap();
        let voice = Voice { model: "m".parse().unwrap(), vector };
        index.add(uuid::Uuid::nil().into(), uuid::Uuid::nil().into(), &voice).unwrap();
        assert_eq!(format!("{index:?}"), r#"VoiceIndex {"m": 1}"#);
    }

    #[test]
    fn a_dot_product_counts_every_number() {
        let numbers = (1..=37_u8).map(f32::from).collect::<Vec<_>>();
        assert_eq!(dot(&numbers, &numbers), 17_575.0);
        assert_eq!(dot(&numbers[..3], &numbers[..3]), 14.0);
    }

    #[test]
    fn a_vector_of_any_size_is_normalised() {
        for size in [1e-45, 1e-30, 1.0, f32::MAX] {
            let vector = normalised(&[size, size]);
            assert!((vector[0] - 0.5_f32.sqrt()).abs() < 1e-6, "{size}: {vector:?}");
        }
    }
}
