//! The comparison of the live generation with history, row by row, at one position.

use std::collections::BTreeMap;

use event_store::EventStore;
use futures::TryStreamExt;
use serde::Serialize;
use sqlx::{Connection, Executor, PgConnection, Row};

use super::pace::{Pace, Speed};
use super::{RebuildError, catch_up_to, connect, database};
use crate::schema::{LIVE, quoted};
use crate::tables::checkpoint;

/// How many keys of differing rows a report names, table by table.
const EXAMPLES: usize = 5;
/// How far the new generation may be behind when the live one is held still for it.
const NEAR: i64 = 2000;

/// The one table that generations share.
const PARKED: &str = "parked_events";

struct Compared {
    table: &'static str,
    key: &'static str,
    columns: &'static [&'static str],
    /// Which rows count, in the generation `{schema}`.
    counts: &'static str,
}

const TABLES: [Compared; 10] = [
    Compared {
        table: "files",
        key: "id",
        columns: &["sha256", "content_fp", "mime", "duration", "size", "owner", "created_at"],
        counts: "true",
    },
    Compared {
        table: "meetings",
        key: "id",
        columns: &["file_id", "status", "language", "started_at", "finished_at"],
        counts: "true",
    },
    Compared {
        table: "speakers",
        key: "id",
        columns: &["meeting_id", "cluster_id", "user_profile_id", "confidence"],
        counts: "true",
    },
    Compared {
        table: "user_profiles",
        key: "id",
        columns: &["display_name", "embeddings", "created_at"],
        counts: "true",
    },
    Compared {
        table: "artifacts",
        key: "id",
        columns: &["meeting_id", "type", "s3_key", "meta"],
        counts: "true",
    },
    Compared {
        table: "stale_artifacts",
        key: "artifact_id",
        columns: &["meeting_id", "position"],
        counts: "true",
    },
    Compared {
        table: "speaker_reassignments",
        key: "position",
        columns: &[
            "recorded_at",
            "meeting_id",
            "sequence",
            "speaker_id",
            "cluster_id",
            "from_profile_id",
            "to_profile_id",
            "reason",
            "actor",
            "actor_kind",
            "previous_by",
            "previous_confidence",
            "correlation_id",
            "carried_from",
        ],
        counts: "true",
    },
    // An expired row is as good as none.
    Compared { table: "cache", key: "key", columns: &["value", "ttl"], counts: "ttl IS NULL OR ttl > now()" },
    Compared { table: "cache_origin", key: "key", columns: &["position"], counts: "true" },
    // Both have parked the same events.
    Compared {
        table: PARKED,
        key: "position",
        columns: &["event_type"],
        counts: "generation = (SELECT generation FROM {schema}.checkpoint)",
    },
];

/// What a comparison found.
#[derive(Debug, Clone, Default, Serialize, utoipa::ToSchema)]
pub struct Report {
    /// The position at which both were compared.
    pub position: i64,
    /// Table by table.
    pub tables: Vec<TableReport>,
}

/// What a comparison found in one table.
#[derive(Debug, Clone, Default, Serialize, utoipa::ToSchema)]
pub struct TableReport {
    /// The table.
    pub table: String,
    /// How many rows the live one has.
    pub rows: i64,
    /// Rows that only the live one has.
    pub only_live: u64,
    /// Rows that only history gives.
    pub only_history: u64,
    /// Rows that differ.
    pub differing: u64,
    /// In which columns they differ, and in how many rows each.
    pub columns: BTreeMap<String, u64>,
    /// Whether the live generation does not have the table.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub new_table: bool,
    /// Columns that the live one does not have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub new_columns: Vec<String>,
    /// The first keys.
    pub examples: Vec<Example>,
}

/// A row that is not the same in both.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Example {
    /// Its key.
    pub key: String,
    /// `only_live`, `only_history` or `differing`.
    pub what: &'static str,
    /// The columns that differ.
    pub columns: Vec<String>,
}

impl Report {
    /// Says whether both are the same.
    pub fn is_clean(&self) -> bool {
        self.tables.iter().all(TableReport::is_clean)
    }
}

impl TableReport {
    /// Says whether the table is the same in both.
    pub const fn is_clean(&self) -> bool {
        self.only_live == 0 && self.only_history == 0 && self.differing == 0
    }
}

/// Brings the generation in `schema` to where the live one is, holding the live one still for that moment,
/// and compares both as one snapshot sees them.
pub async fn compare(store: &EventStore, schema: &str, speed: Speed) -> Result<Report, RebuildError> {
    let mut pace = Pace::new(store.head().subscribe(), speed);
    let (mut snapshot, position) = aligned_snapshot(store, schema).await?;
    let mut report = Report { position, tables: vec![] };
    let failed = database("comparing");
    for table in &TABLES {
        // No rest: as long as there is a snapshot, no dead row of the live tables goes.
        pace.statement(&mut snapshot).await.map_err(&failed)?;
        report.tables.push(compare_table(&mut snapshot, schema, table).await.map_err(&failed)?);
    }
    let _ = snapshot.close().await;
    Ok(report)
}

async fn aligned_snapshot(store: &EventStore, schema: &str) -> Result<(PgConnection, i64), RebuildError> {
    let failed = database("looking at both generations");
    loop {
        let shown = checkpoint::read(store.pool()).await.map_err(&failed)?.position;
        catch_up_to(store, schema, shown).await?;
        let mut live = connect(store, LIVE).await?;
        let mut holding = live.begin().await.map_err(&failed)?;
        holding.execute("SET LOCAL lock_timeout = '30s'").await.map_err(&failed)?;
        let held = checkpoint::lock(&mut holding).await.map_err(&failed)?;
        // Further behind than a moment's work: the projector is not kept waiting for it.
        if held.position - shown > NEAR {
            continue;
        }
        catch_up_to(store, schema, held.position).await?;
        let mut snapshot = connect(store, LIVE).await?;
        snapshot.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map_err(&failed)?;
        // The first statement takes the snapshot.
        checkpoint::read(&mut snapshot).await.map_err(&failed)?;
        holding.rollback().await.map_err(&failed)?;
        return Ok((snapshot, held.position));
    }
}

/// Returns which of `columns` a table has.
async fn columns_of(
    connection: &mut PgConnection,
    schema: &str,
    table: &str,
    columns: &[&str],
) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT attname::text FROM pg_attribute
          WHERE attrelid = to_regclass($1) AND attname = ANY ($2) AND attnum > 0 AND NOT attisdropped
          ORDER BY array_position($2, attname::text)",
    )
    .bind(format!("{}.{}", quoted(schema), quoted(table)))
    .bind(columns)
    .fetch_all(connection)
    .await
}

async fn compare_table(
    snapshot: &mut PgConnection,
    schema: &str,
    Compared { table, key, columns, counts }: &Compared,
) -> Result<TableReport, sqlx::Error> {
    let place = if *table == PARKED { "ops" } else { LIVE };
    // A column that history gives and the live tables do not have yet is new, and no difference.
    let live = columns_of(snapshot, place, table, columns).await?;
    let (columns, new): (Vec<&str>, Vec<&str>) =
        columns.iter().copied().partition(|column| live.iter().any(|name| name == column));
    if columns.is_empty() {
        // So is a whole table.
        let table = (*table).to_owned();
        return Ok(TableReport { table, new_table: true, ..TableReport::default() });
    }
    let rows_that_count = |schema: &str| {
        let place = quoted(if *table == PARKED { "ops" } else { schema });
        format!("{place}.{} WHERE {}", quoted(table), counts.replace("{schema}", &quoted(schema)))
    };
    let quoted_columns = columns.iter().map(|column| quoted(column)).collect::<Vec<_>>();
    let side = |schema: &str| {
        let columns = quoted_columns.join(", ");
        format!("(SELECT {key}, {columns}, true AS there FROM {})", rows_that_count(schema))
    };
    let differs = |column: &String| format!("a.{column} IS DISTINCT FROM b.{column}");
    let any = quoted_columns.iter().map(differs).collect::<Vec<_>>().join(" OR ");
    let flags = quoted_columns.iter().map(differs).collect::<Vec<_>>().join(", ");
    let statement = format!(
        "SELECT coalesce(a.{key}, b.{key})::text AS key, a.there AS in_live, b.there AS in_history,
                ARRAY[{flags}] AS differs
           FROM {} a FULL JOIN {} b ON a.{key} = b.{key}
          WHERE a.there IS NULL OR b.there IS NULL OR {any} ORDER BY 1",
        side(LIVE),
        side(schema),
    );
    let count = format!("SELECT count(*) FROM {}", rows_that_count(LIVE));
    let rows = sqlx::query_scalar(&count).fetch_one(&mut *snapshot).await?;
    let mut report = TableReport {
        table: (*table).to_owned(),
        rows,
        new_columns: new.into_iter().map(str::to_owned).collect(),
        ..TableReport::default()
    };
    let mut found = sqlx::query(&statement).fetch(snapshot);
    while let Some(row) = found.try_next().await? {
        let in_live: Option<bool> = row.try_get("in_live")?;
        let in_history: Option<bool> = row.try_get("in_history")?;
        let (what, differing) = match (in_live, in_history) {
            (Some(_), None) => {
                report.only_live += 1;
                ("only_live", vec![])
            }
            (None, _) => {
                report.only_history += 1;
                ("only_history", vec![])
            }
            (Some(_), Some(_)) => {
                report.differing += 1;
                let flags: Vec<bool> = row.try_get("differs")?;
                let differing = columns.iter().zip(flags).filter(|(_, differs)| *differs);
                ("differing", differing.map(|(column, _)| (*column).to_owned()).collect::<Vec<_>>())
            }
        };
        for column in &differing {
            *report.columns.entry(column.clone()).or_default() += 1;
        }
        if report.examples.len() < EXAMPLES {
            report.examples.push(Example { key: row.try_get("key")?, what, columns: differing });
        }
    }
    Ok(report)
}
