//! What an auditor waits for: pages of reassignments by person and month, by reviewer and month, and the newest,
//! among many.
//!
//! `cargo bench --bench audit`; REASSIGNMENTS changes among how many, QUERIES how often it is asked.

#![expect(clippy::print_stdout, reason = "a benchmark's result")]

use std::time::Instant;

use projections::audit::{self, ReassignmentFilter};
use sqlx::PgPool;
use tests::audit::{MONTHS, PROFILES, REVIEWERS, lay_down, month, profile, reviewer};
use tests::bench::{BenchCluster, quantile, setting};

/// A page of 50, and whether another one follows.
const LIMIT: i64 = 51;

#[tokio::main]
async fn main() {
    let rows = setting("REASSIGNMENTS", 1_000_000) as i64;
    let queries = setting("QUERIES", 1000);
    let cluster = BenchCluster::start(env!("CARGO_TARGET_TMPDIR")).await;
    let database = cluster.database("audit").await;
    let pool = database.pool().await;
    let started = Instant::now();
    lay_down(&pool, rows).await;
    println!("{rows} reassignments, laid down in {:.1} s", started.elapsed().as_secs_f64());

    let mut random = fastrand::Rng::with_seed(7);
    let in_a_month = |filter: ReassignmentFilter, random: &mut fastrand::Rng| {
        let n = random.u32(..MONTHS);
        ReassignmentFilter { from: Some(month(n)), to: Some(month(n + 1)), ..filter }
    };
    let of_profile = (0..queries).map(|_| {
        let profile = Some(profile(random.i64(0..PROFILES)));
        in_a_month(ReassignmentFilter { profile, ..ReassignmentFilter::default() }, &mut random)
    });
    let of_profile = of_profile.collect::<Vec<_>>();
    let of_actor = (0..queries).map(|_| {
        let actor = Some(reviewer(random.i64(0..REVIEWERS)));
        in_a_month(ReassignmentFilter { actor, ..ReassignmentFilter::default() }, &mut random)
    });
    let of_actor = of_actor.collect::<Vec<_>>();
    let newest = vec![ReassignmentFilter::default(); queries];
    for (name, filters) in
        [("profile and month", &of_profile), ("reviewer and month", &of_actor), ("the newest", &newest)]
    {
        let mut times = Vec::with_capacity(filters.len());
        let mut found = 0;
        for filter in filters {
            let asked = Instant::now();
            let page = audit::reassignments(&pool, filter, None, LIMIT).await.expect("the database answers");
            times.push(asked.elapsed());
            found += page.len();
        }
        let each = found as f64 / filters.len() as f64;
        let (p50, p99) = (quantile(&mut times, 0.5), quantile(&mut times, 0.99));
        println!("{name:>18}: p50 {p50:?}, p99 {p99:?}, {each:.1} rows");
    }
    println!("profile and month:\n{}", plan(&pool, &of_profile[0]).await);
    pool.close().await;
    cluster.stop().await;
}

/// Returns how PostgreSQL goes about it.
async fn plan(pool: &PgPool, filter: &ReassignmentFilter) -> String {
    let between = audit::positions(pool, filter).await.expect("the database answers").expect("it has come");
    let (sql, arguments) = audit::statement(filter, between, LIMIT).expect("values that can be sent");
    let explain = format!("EXPLAIN (ANALYZE, COSTS OFF) {sql}");
    let lines: Vec<String> = sqlx::query_scalar_with(&explain, arguments)
        .persistent(false)
        .fetch_all(pool)
        .await
        .expect("the database answers");
    lines.join("\n")
}
