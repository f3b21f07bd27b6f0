//! The voices of all profiles in memory, and how much each resembles the clusters of a meeting.
//!
//! Profiles with as many samples each stand on one shelf, one after the other without a gap, so that a
//! comparison reads memory from front to back. The profile that comes last on its shelf fills a gap, and one
//! that gains or loses a sample changes shelves. No vector is stored twice: the similarity to a centroid is
//! the sum of the similarities to its samples, divided by the length of their sum.
//!
//! **Invariant: the index says what the samples in it say.** Those that were added and removed again leave no
//! trace, not even in the last digit of a sum: a profile's samples lie in order of their ids.

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
        let empty = || ModelVoices::empty(numbers.len());
        let voices = self.models.entry(voice.model.clone()).or_insert_with(empty);
        let mut profile = voices.take(profile_id).unwrap_or_default();
        profile.insert(sample_id, &normalised(numbers));
        voices.put(profile_id, profile);
        Ok(())
    }

    /// Removes a sample of a profile's voice, if it is there.
    pub fn remove_sample(&mut self, profile_id: ProfileId, sample_id: SampleId) {
        self.models.retain(|_, voices| {
            if let Some(mut profile) = voices.take(profile_id) {
                profile.remove(sample_id, voices.dimension);
                voices.put(profile_id, profile);
            }
            !voices.places.is_empty()
        });
    }

    /// Removes all samples of a profile's voice, of every model.
    pub fn remove_profile(&mut self, profile_id: ProfileId) {
        self.models.retain(|_, voices| {
            voices.take(profile_id);
            !voices.places.is_empty()
        });
    }

    /// Returns an index of this profile's voices alone.
    pub fn of_profile(&self, profile_id: ProfileId) -> Self {
        let only =
            |(model, voices): (&ModelId, &ModelVoices)| Some((model.clone(), voices.only(profile_id)?));
        Self { models: self.models.iter().filter_map(only).collect() }
    }

    /// Returns the voices of `model`, if there are any.
    pub(super) fn voices(&self, model: &ModelId) -> Option<&ModelVoices> {
        self.models.get(model)
    }
}

// Voices are biometric data: they do not show themselves in a log by way of `{:?}`.
impl std::fmt::Debug for VoiceIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let profiles = self.models.iter().map(|(model, voices)| (model.as_str(), voices.places.len()));
        f.write_str("VoiceIndex ")?;
        f.debug_map().entries(profiles).finish()
    }
}

/// The voices of one model, at least one.
#[derive(Clone)]
pub(super) struct ModelVoices {
    dimension: usize,
    /// By how many samples each of their profiles has.
    shelves: BTreeMap<usize, Shelf>,
    /// Where each profile is: on which shelf, and which it is there.
    places: BTreeMap<ProfileId, (usize, usize)>,
}

/// Profiles that have the same number of samples, at least one, in no order.
#[derive(Clone, Default)]
struct Shelf {
    profiles: Vec<ShelvedProfile>,
    /// Of each profile in turn.
    samples: Vec<SampleId>,
    /// Of each sample in turn.
    vectors: Vec<f32>,
}

#[derive(Clone, Copy)]
struct ShelvedProfile {
    id: ProfileId,
    length_of_sum: Option<f32>,
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
    const fn empty(dimension: usize) -> Self {
        Self { dimension, shelves: BTreeMap::new(), places: BTreeMap::new() }
    }

    fn only(&self, profile_id: ProfileId) -> Option<Self> {
        let (count, place) = *self.places.get(&profile_id)?;
        let shelf = self.shelves.get(&count)?;
        let of_each = |width: usize| place * width..(place + 1) * width;
        let shelf = Shelf {
            profiles: vec![*shelf.profiles.get(place)?],
            samples: shelf.samples.get(of_each(count))?.to_vec(),
            vectors: shelf.vectors.get(of_each(count * self.dimension))?.to_vec(),
        };
        let (shelves, places) =
            (BTreeMap::from([(count, shelf)]), BTreeMap::from([(profile_id, (count, 0))]));
        Some(Self { dimension: self.dimension, shelves, places })
    }

    /// Returns how many numbers each vector has.
    pub(super) const fn dimension(&self) -> usize {
        self.dimension
    }

    /// Tells `each` of every profile, in no order, how much the `clusters` resemble it. Those are normalised
    /// vectors, one after the other.
    pub(super) fn compare(&self, clusters: &[f32], mut each: impl FnMut(ProfileId, &[Similarity])) {
        let unknown = Similarity { best: f32::NEG_INFINITY, centroid: 0.0 };
        let mut similarities = vec![unknown; clusters.len() / self.dimension];
        for (count, shelf) in &self.shelves {
            let blocks = shelf.vectors.chunks_exact(count * self.dimension);
            for (profile, block) in shelf.profiles.iter().zip(blocks) {
                similarities.fill(unknown);
                for sample in block.chunks_exact(self.dimension) {
                    let clusters = clusters.chunks_exact(self.dimension);
                    for (similarity, cluster) in similarities.iter_mut().zip(clusters) {
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
                each(profile.id, &similarities);
            }
        }
    }

    /// Takes a profile off its shelf.
    fn take(&mut self, profile_id: ProfileId) -> Option<ProfileVoice> {
        let (count, place) = self.places.remove(&profile_id)?;
        let shelf = self.shelves.get_mut(&count)?;
        let profile = ProfileVoice {
            samples: swap_remove(&mut shelf.samples, place, count),
            vectors: swap_remove(&mut shelf.vectors, place, count * self.dimension),
        };
        shelf.profiles.swap_remove(place);
        if let Some(moved) = shelf.profiles.get(place) {
            self.places.insert(moved.id, (count, place));
        } else if shelf.profiles.is_empty() {
            self.shelves.remove(&count);
        }
        Some(profile)
    }

    /// Puts a profile on the shelf where it belongs now, unless nothing is left of it.
    fn put(&mut self, profile_id: ProfileId, profile: ProfileVoice) {
        let count = profile.samples.len();
        if count == 0 {
            return;
        }
        let shelf = self.shelves.entry(count).or_default();
        self.places.insert(profile_id, (count, shelf.profiles.len()));
        let length_of_sum = profile.length_of_sum(self.dimension);
        extend(&mut shelf.profiles, &[ShelvedProfile { id: profile_id, length_of_sum }]);
        extend(&mut shelf.samples, &profile.samples);
        extend(&mut shelf.vectors, &profile.vectors);
    }

    /// Returns the samples of a profile and their vectors.
    fn samples(&self, profile_id: ProfileId) -> Option<(&[SampleId], &[f32])> {
        let (count, place) = *self.places.get(&profile_id)?;
        let shelf = self.shelves.get(&count)?;
        let size = count * self.dimension;
        Some((&shelf.samples[place * count..][..count], &shelf.vectors[place * size..][..size]))
    }
}

// Where on its shelf a profile stands tells of those that were there before, and makes no difference.
impl PartialEq for ModelVoices {
    fn eq(&self, other: &Self) -> bool {
        self.dimension == other.dimension
            && self.places.len() == other.places.len()
            && self.places.keys().all(|id| self.samples(*id) == other.samples(*id))
    }
}

/// Removes the block at `place`, and fills its place with the last one. Gives memory back that is no longer
/// needed: the rest would be up to an eighth.
fn swap_remove<T: Copy>(blocks: &mut Vec<T>, place: usize, size: usize) -> Vec<T> {
    let removed = blocks[place * size..][..size].to_vec();
    let last = blocks.len() - size;
    blocks.copy_within(last.., place * size);
    blocks.truncate(last);
    if blocks.capacity() - last > last / 8 + size {
        blocks.shrink_to(last + last / 16);
    }
    removed
}

/// Adds a block. A vector that doubled when it is full would keep half of it empty.
fn extend<T: Copy>(blocks: &mut Vec<T>, block: &[T]) {
    if blocks.capacity() - blocks.len() < block.len() {
        blocks.reserve_exact(block.len() + blocks.len() / 16);
    }
    blocks.extend_from_slice(block);
}

/// The samples of one profile, off the shelf.
#[derive(Default)]
struct ProfileVoice {
    /// In order.
    samples: Vec<SampleId>,
    /// Of each sample in turn, normalised.
    vectors: Vec<f32>,
}

impl ProfileVoice {
    fn insert(&mut self, sample_id: SampleId, vector: &[f32]) {
        let place = self.samples.partition_point(|known| *known < sample_id);
        self.samples.insert(place, sample_id);
        let start = place * vector.len();
        self.vectors.splice(start..start, vector.iter().copied());
    }

    fn remove(&mut self, sample_id: SampleId, dimension: usize) {
        let Ok(place) = self.samples.binary_search(&sample_id) else { return };
        self.samples.remove(place);
        self.vectors.drain(place * dimension..(place + 1) * dimension);
    }

    /// Returns the length of the vectors added up, unless they cancel out: such a profile has no centroid,
    /// and the best sample stands in for it.
    fn length_of_sum(&self, dimension: usize) -> Option<f32> {
        let mut sum = vec![0.0; dimension];
        for sample in self.vectors.chunks_exact(dimension) {
            sum.iter_mut().zip(sample).for_each(|(sum, number)| *sum += f64::from(*number));
        }
        let length = sum.iter().map(|number| number * number).sum::<f64>().sqrt();
        // The direction of less than a thousandth of what was added up would be that of rounding errors.
        let cancelled = length < 1e-3 * self.samples.len() as f64;
        (!cancelled).then_some(length as f32)
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
    // Adding in pairs takes four steps that wait for each other, adding in turn takes sixteen.
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
    }
    sums[0] + rest
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
