//! Matching the 10 clusters of a meeting against everybody known, three samples of 256 numbers each, beside
//! the bare dot products over the same vectors; whether it is linear in profiles; and the index's memory.
//!
//! `cargo bench --bench matching`; ROUNDS changes how long it takes. It lives here, not beside the others,
//! because it needs nothing but this crate: it is built in seconds.

#![expect(clippy::print_stdout, reason = "a benchmark's result")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on should fail at once")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use domain::ids::{ProfileId, SampleId};
use domain::speaker::{ClusterId, Decision};
use domain::speaker_matching::{ClusterVoice, Policy, VoiceIndex, match_clusters};
use domain::voice::{Vector, Voice};
use uuid::Uuid;

const DIMENSION: usize = 256;
const SAMPLES: usize = 3;
const CLUSTERS: usize = 10;

fn main() {
    let rounds = std::env::var("ROUNDS").map_or(31, |rounds| rounds.parse().unwrap());
    let model = Policy::default().model().clone();
    let mut generator = Generator::new();
    // Each enrolled with one sample after the other, as a log may have it: the heap is not in order of ids.
    let people: Vec<Vec<f32>> = (0..10_000).map(|_| generator.voice()).collect();
    let mut vectors: Vec<Vector> = Vec::with_capacity(people.len() * SAMPLES);
    let before = resident_bytes();
    let mut index = VoiceIndex::default();
    for round in 0..SAMPLES {
        for (n, person) in people.iter().enumerate() {
            let voice = Voice { model: model.clone(), vector: generator.utterance(person) };
            index.add(profile(n), sample(n, round), &voice).unwrap();
        }
    }
    let held = resident_bytes().saturating_sub(before);
    let raw = people.len() * SAMPLES * DIMENSION * size_of::<f32>();
    let mut tenth = VoiceIndex::default();
    for (n, person) in people.iter().enumerate() {
        for round in 0..SAMPLES {
            let vector = generator.utterance(person);
            let voice = Voice { model: model.clone(), vector: vector.clone() };
            if n % 10 == 0 {
                tenth.add(profile(n), sample(n, round), &voice).unwrap();
            }
            vectors.push(vector);
        }
    }
    let flat: Vec<f32> = vectors.iter().flat_map(|vector| vector.as_slice().iter().copied()).collect();

    // Half of those who speak are known.
    let spoken: Vec<(ClusterId, Voice)> = (0..CLUSTERS)
        .map(|n| {
            let person = if n % 2 == 0 { people[n * 700].clone() } else { generator.voice() };
            let voice = Voice { model: model.clone(), vector: generator.utterance(&person) };
            (format!("c{n}").parse().unwrap(), voice)
        })
        .collect();
    let clusters: Vec<ClusterVoice<'_>> = spoken
        .iter()
        .map(|(cluster_id, voice)| ClusterVoice { cluster_id, voice, speech_ms: 60_000 })
        .collect();
    let flat_clusters: Vec<f32> =
        spoken.iter().flat_map(|(_, voice)| voice.vector.as_slice().iter().copied()).collect();
    let policy = Policy::default();
    let (mut bare, mut full, mut small, mut ratios, mut growth) = (vec![], vec![], vec![], vec![], vec![]);
    for _ in 0..rounds {
        let bare_time = timed(|| bare_dots(black_box(&flat), black_box(&flat_clusters)));
        let full_time = timed(|| match_clusters(black_box(&index), &policy, black_box(&clusters)));
        let small_time = timed(|| match_clusters(black_box(&tenth), &policy, black_box(&clusters)));
        ratios.push(full_time.as_secs_f64() / bare_time.as_secs_f64());
        growth.push(full_time.as_secs_f64() / small_time.as_secs_f64());
        bare.push(bare_time);
        full.push(full_time);
        small.push(small_time);
    }

    let decisions = match_clusters(&index, &policy, &clusters);
    let named =
        decisions.iter().filter(|(_, decision)| matches!(decision, Decision::Identified { .. })).count();
    let candidates: usize = decisions.iter().map(|(_, decision)| decision.evidence().candidates.len()).sum();
    let operations = (2 * flat.len() * CLUSTERS) as f64;
    let bare = median(&mut bare);
    println!(
        "{CLUSTERS} clusters x {} profiles x {SAMPLES} samples x {DIMENSION}, medians of {rounds}",
        people.len()
    );
    println!("bare dots   {bare:?}  {:.1} GFLOP/s", operations / bare.as_secs_f64() / 1e9);
    println!("matching    {:?}  ({named} named, {candidates} candidates)", median(&mut full));
    println!("ratio       {:.2}x", median(&mut ratios));
    println!("1,000       {:?}; 10,000 take {:.1} times as long", median(&mut small), median(&mut growth));
    println!("memory      {held} bytes for {raw} of vectors: {:.2}x", held as f64 / raw as f64);
}

/// The plain loop over vectors that lie side by side.
fn bare_dots(vectors: &[f32], clusters: &[f32]) -> f32 {
    let mut total = 0.0;
    for vector in vectors.chunks_exact(DIMENSION) {
        for cluster in clusters.chunks_exact(DIMENSION) {
            let mut sums = [0.0; 16];
            for (a, b) in vector.as_chunks::<16>().0.iter().zip(cluster.as_chunks::<16>().0) {
                for lane in 0..16 {
                    sums[lane] += a[lane] * b[lane];
                }
            }
            for half in [8, 4, 2, 1] {
                for lane in 0..half {
                    sums[lane] += sums[lane + half];
                }
            }
            total += sums[0];
        }
    }
    total
}

/// Makes voices as alike as real ones: of two people, the cosine is about 0.5, and one in fifty is above 0.7.
struct Generator {
    random: fastrand::Rng,
    common: Vec<f32>,
    /// What people differ in has far fewer dimensions than the vectors.
    traits: Vec<Vec<f32>>,
}

impl Generator {
    fn new() -> Self {
        let mut random = fastrand::Rng::with_seed(5);
        let common = direction(&mut random);
        let traits = (0..24).map(|_| direction(&mut random)).collect();
        Self { random, common, traits }
    }

    fn voice(&mut self) -> Vec<f32> {
        let mut own = vec![0.0; DIMENSION];
        for direction in &self.traits {
            let much = normal(&mut self.random) / (self.traits.len() as f32).sqrt();
            own.iter_mut().zip(direction).for_each(|(own, number)| *own += much * number);
        }
        own.iter().zip(&self.common).map(|(own, common)| own + common).collect()
    }

    fn utterance(&mut self, person: &[f32]) -> Vector {
        let noise = direction(&mut self.random);
        let numbers: Vec<f32> =
            person.iter().zip(noise).map(|(number, noise)| number + 0.6 * noise).collect();
        let length = numbers.iter().map(|number| number * number).sum::<f32>().sqrt();
        Vector::try_from(numbers.iter().map(|number| number / length).collect::<Vec<_>>()).unwrap()
    }
}

fn direction(random: &mut fastrand::Rng) -> Vec<f32> {
    let numbers: Vec<f32> = (0..DIMENSION).map(|_| normal(random)).collect();
    let length = numbers.iter().map(|number| number * number).sum::<f32>().sqrt();
    numbers.iter().map(|number| number / length).collect()
}

/// About a normal distribution, by the sum of twelve even ones.
fn normal(random: &mut fastrand::Rng) -> f32 {
    (0..12).map(|_| random.f32()).sum::<f32>() - 6.0
}

/// In no order, as ids made at random are.
fn profile(n: usize) -> ProfileId {
    Uuid::new_v5(&Uuid::nil(), &n.to_be_bytes()).into()
}

fn sample(n: usize, round: usize) -> SampleId {
    Uuid::new_v5(&Uuid::max(), &(n * SAMPLES + round).to_be_bytes()).into()
}

fn timed<T>(work: impl FnOnce() -> T) -> Duration {
    let started = Instant::now();
    black_box(work());
    started.elapsed()
}

fn median<T: PartialOrd + Copy>(values: &mut [T]) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).unwrap());
    values[values.len() / 2]
}

/// Returns the process's memory: what the index holds, with what the allocator adds and cannot use again.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes =
        line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|kb| kb.parse::<usize>().ok());
    kilobytes.unwrap_or_default() * 1024
}
