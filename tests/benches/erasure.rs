//! How long it takes to forget somebody who speaks in many meetings: from the command to the receipt that says it
//! is complete everywhere. The meetings have been processed as a pipeline does it, and lie in the log and the
//! tables; other people's meetings lie beside them.
//!
//! `cargo bench --bench erasure`; MEETINGS changes in how many the person speaks, OTHERS how many others there are.

#![expect(clippy::print_stdout, reason = "a benchmark's result")]

use std::time::Instant;

use api::book::Book;
use api::clock::now;
use domain::artifact::ArtifactType;
use domain::ids::{MeetingId, ProfileId, SampleId};
use domain::meeting::MeetingCommand;
use domain::profile::ProfileCommand;
use domain::speaker::{Candidate, Cluster, Confidence, Decision, Evidence};
use domain::voice::{Vector, Voice};
use event_store::command_bus::Context;
use event_store::log;
use futures::{StreamExt, stream};
use projections::{erasure, freshness};
use tests::bench::{BenchCluster, register, setting};
use uuid::Uuid;

/// How many meetings are processed at once, to lay them down.
const AT_ONCE: usize = 64;
/// The dimension of the usual model.
const DIMENSION: usize = 256;

#[tokio::main]
async fn main() {
    let (meetings, others) = (setting("MEETINGS", 1000_u128), setting("OTHERS", 1000_u128));
    let cluster = BenchCluster::start(env!("CARGO_TARGET_TMPDIR")).await;
    let database = cluster.database("erasure").await;
    let book = database.open().await;
    book.start_projector();
    book.start_erasures();
    let people: Vec<Uuid> = (0..3).map(|_| Uuid::now_v7()).collect();
    for (n, person) in people.iter().enumerate() {
        enrol(&book, (*person).into(), n).await;
    }
    let started = Instant::now();
    let process = |n: u128| {
        let who = if n < meetings { [people[0], people[1]] } else { [people[1], people[2]] };
        process(&book, n, who)
    };
    stream::iter(0..meetings + others).map(process).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    shown(&book).await;
    let events = log::head(book.pool()).await.expect("the log answers");
    println!(
        "{meetings} meetings of one person and {others} others, {events} events, laid down in {:.1} s",
        started.elapsed().as_secs_f64()
    );
    book.close().await;

    // A process that knows none of them yet.
    let book = database.open().await;
    book.start_projector();
    book.start_erasures();
    shown(&book).await;
    let started = Instant::now();
    let context = Context::system("bench");
    let accepted = erasure::erase_profile(&book.store, &book.bus, people[0].into(), now(), &context);
    let accepted = accepted.await.expect("the person is known");
    let answered = started.elapsed();
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(300);
    let receipt = erasure::wait(book.pool(), people[0], deadline).await.expect("the database answers");
    let complete = started.elapsed();
    let receipt = receipt.expect("an erasure has a receipt");
    assert_eq!(receipt.state, "complete", "{receipt:?}");
    assert_eq!(u128::try_from(receipt.meetings), Ok(meetings), "{receipt:?}");
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM speakers WHERE user_profile_id = $1")
        .bind(people[0])
        .fetch_one(book.pool())
        .await
        .expect("the database answers");
    assert_eq!(left, 0, "the tables show the person still");
    println!(
        "erased: accepted after {answered:?}, complete everywhere after {complete:?} ({} keys destroyed, {} events); \
         a flush takes {:?}",
        receipt.keys,
        log::head(book.pool()).await.expect("the log answers") - accepted.position + 1,
        cluster.flush_time()
    );
    book.close().await;
    cluster.stop().await;
}

fn voice(n: usize) -> Voice {
    let numbers = (0..DIMENSION).map(|i| if i % 3 == n { 1.0 } else { 0.01 * i as f32 }).collect::<Vec<_>>();
    let vector = Vector::try_from(numbers).expect("finite numbers");
    Voice { model: "resemblyzer-0.1.4".parse().expect("a model's name"), vector }
}

async fn enrol(book: &Book, id: ProfileId, n: usize) {
    let display_name = format!("Person {n}").parse().expect("a name");
    let create = ProfileCommand::Create { profile_id: id, display_name, at: now() };
    let sample_id = SampleId::from(Uuid::now_v7());
    let enrol = ProfileCommand::EnrolVoice { sample_id, voice: voice(n), source: None, at: now() };
    for command in [create, enrol] {
        book.bus.profile(id, command, &Context::default()).await.expect("a new person");
    }
}

/// Processes the `n`th meeting: two people and a stranger speak in it.
async fn process(book: &Book, n: u128, who: [Uuid; 2]) {
    let id: MeetingId = register(book, n).await.aggregate_id.parse().expect("an id");
    let confidence = || Confidence::try_from(0.91).expect("a share");
    let evidence = |candidates: Vec<Candidate>| Evidence {
        model: "resemblyzer-0.1.4".parse().expect("a model's name"),
        policy_version: "1".parse().expect("a version"),
        margin: None,
        candidates,
    };
    let cluster = |label: &str, n: usize| Cluster {
        cluster_id: label.parse().expect("a label"),
        segments: (0..200).map(|i| (i * 3000 + n as u32 * 1000, 900).into()).collect(),
        speech_ms: None,
        voice: Some(voice(n).into()),
    };
    let identified = |label: &str, profile: Uuid| {
        let profile_id = ProfileId::from(profile);
        let evidence = evidence(vec![Candidate { profile_id, score: confidence() }]);
        let decision = Decision::Identified { profile_id, confidence: confidence(), evidence };
        (label.parse().expect("a label"), decision)
    };
    let stranger = Decision::NotIdentified { evidence: evidence(vec![]) };
    let clusters = vec![cluster("a", 0), cluster("b", 1), cluster("c", 2)];
    let stage = "asr".parse().expect("a stage");
    let commands = [
        MeetingCommand::Start { worker: "w".parse().expect("a worker"), at: now() },
        MeetingCommand::RecordFingerprint { content_fp: format!("fp{n}").parse().expect("a fingerprint") },
        MeetingCommand::RecordLanguage { language: "en".parse().expect("a language") },
        MeetingCommand::RecordSpeakers {
            clusters: clusters.try_into().expect("labels differ"),
            decisions: vec![
                identified("a", who[0]),
                identified("b", who[1]),
                ("c".parse().expect("a label"), stranger),
            ],
        },
        MeetingCommand::StoreArtifact {
            artifact_type: ArtifactType::TranscriptMd,
            s3_key: format!("m/{n}.md").parse().expect("a key"),
            meta: None,
        },
        MeetingCommand::CacheStageResult { stage, value: "x".repeat(2000), expires_at: None, at: now() },
        MeetingCommand::Complete { at: now() },
    ];
    for command in commands {
        book.bus.meeting(id, command, &Context::default()).await.expect("a pipeline's command");
    }
}

/// Waits until the tables show the whole log.
async fn shown(book: &Book) {
    let head = log::head(book.pool()).await.expect("the log answers");
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(300);
    let shown = freshness::wait_for(book.pool(), &book.projection, head, deadline).await;
    assert!(shown.expect("the database answers"), "the tables do not come so far");
}
