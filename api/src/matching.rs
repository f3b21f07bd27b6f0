//! Naming speakers by voice: the voices of everybody known, and the policies by which they are matched. What
//! comes of it is decided in `domain::speaker_matching`; here it gets its voices, its time and its bounds.

use std::num::NonZero;
use std::sync::Arc;
use std::thread::available_parallelism;

use domain::speaker::{Cluster, ClusterId, Decision, Diarization};
use domain::speaker_matching::{ClusterVoice, Policy, VoiceIndex, match_meeting};
use domain::voice::Voice;
use event_store::log;
use projections::voice_index::Voices;
use sqlx::PgPool;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

use crate::config::ServeConfig;
use crate::error::Problem;

/// What names speakers by voice.
#[derive(Clone)]
pub struct Matching {
    /// The voices of everybody known.
    pub voices: Voices,
    policies: Arc<[Policy]>,
    /// One permit per comparison: each takes a processor.
    at_once: Arc<Semaphore>,
}

impl Matching {
    /// Returns what matches by these policies, once its voices follow the log.
    pub fn new(config: &ServeConfig, policies: Vec<Policy>) -> Self {
        let processors = available_parallelism().map_or(1, NonZero::get);
        Self {
            voices: Voices::new(config.voice_models()),
            policies: policies.into(),
            at_once: Arc::new(Semaphore::new(processors)),
        }
    }

    /// Decides who speaks in a meeting, as far as its clusters have a voice.
    pub async fn name(
        &self,
        pool: &PgPool,
        deadline: Instant,
        clusters: Diarization,
    ) -> Result<(Diarization, Vec<(ClusterId, Decision)>), Problem> {
        if clusters.clusters().iter().all(|cluster| cluster.voice.is_none()) {
            return Ok((clusters, vec![]));
        }
        let name = |index: &VoiceIndex, policies: &[Policy]| {
            let voices = clusters.clusters().iter().filter_map(spoken).collect::<Vec<_>>();
            let clusters_voices = voices.iter().map(|(cluster, voice)| ClusterVoice {
                cluster_id: &cluster.cluster_id,
                voice,
                speech_ms: cluster.total_speech_ms(),
            });
            let matched = match_meeting(index, policies, &clusters_voices.collect::<Vec<_>>());
            (clusters, matched)
        };
        self.compare(pool, deadline, name).await
    }

    /// Compares voices with those that the log had when this was called, apart from the threads that answer
    /// requests. Whoever has enrolled somebody before, here or elsewhere, is not overlooked.
    pub async fn compare<T: Send + 'static>(
        &self,
        pool: &PgPool,
        deadline: Instant,
        work: impl FnOnce(&VoiceIndex, &[Policy]) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let head = log::head(pool).await?;
        // The permit first: whoever waits for it does not hold the voices still.
        let waiting = Arc::clone(&self.at_once).acquire_owned();
        let Ok(Ok(permit)) = timeout_at(deadline, waiting).await else { return Err(Problem::too_many()) };
        let Some(voices) = self.voices.at(head, deadline).await else {
            let detail = format!("the voices of position {head} are not known here yet; try again");
            return Err(Problem::unavailable("position_not_reached", detail));
        };
        let policies = Arc::clone(&self.policies);
        let comparing = spawn_blocking(move || {
            let _permit = permit;
            work(&voices, &policies)
        });
        comparing.await.map_err(|error| Problem::internal(&error))
    }
}

fn spoken(cluster: &Cluster) -> Option<(&Cluster, Voice)> {
    Some((cluster, cluster.voice.as_ref()?.known()?))
}
