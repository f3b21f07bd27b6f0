//! What the database has of keys: `keys.master` and `keys.subjects`.

use std::collections::{BTreeSet, HashMap};

use domain::personal_data::Subject;
use sqlx::{PgExecutor, PgPool, Row};
use uuid::Uuid;

use super::KeyError;
use super::cipher::{random_bytes, secret_place};
use super::master::{MasterSource, Masters};

/// Fails if the keys of the log that `executor` leads to are wrapped by none of the master keys of `source`. For
/// whoever has not committed yet what is to be opened.
pub async fn check_master(
    executor: impl PgExecutor<'_>,
    log_id: Uuid,
    source: MasterSource,
) -> Result<(), KeyError> {
    let masters = Masters::read(source)?;
    let chosen = chosen(executor).await?.ok_or(KeyError::WrittenUnsealed)?;
    masters.check(&chosen, log_id).map(drop)
}

/// Returns who of these people was forgotten.
pub async fn forgotten(pool: &PgPool, people: &[Uuid]) -> Result<BTreeSet<Uuid>, sqlx::Error> {
    if people.is_empty() {
        return Ok(BTreeSet::new());
    }
    let forgotten: Vec<Uuid> = sqlx::query_scalar(
        "SELECT id FROM keys.subjects
          WHERE kind = 'profile' AND id = ANY ($1) AND destroyed_at IS NOT NULL",
    )
    .bind(people)
    .fetch_all(pool)
    .await?;
    Ok(forgotten.into_iter().collect())
}

/// What the log says of its master key.
pub(super) struct Chosen {
    pub(super) id: Uuid,
    /// What only this key gives for this log.
    pub(super) check_value: Vec<u8>,
    /// The log's secret, wrapped by it.
    pub(super) secret: Vec<u8>,
    /// How many destructions there were.
    pub(super) destructions: i64,
}

/// Returns which master key was chosen for the log; none for one that is new, or was written unsealed.
pub(super) async fn chosen(executor: impl PgExecutor<'_>) -> Result<Option<Chosen>, sqlx::Error> {
    let row = sqlx::query("SELECT key_id, check_value, secret, destructions FROM keys.master");
    let chosen = |row: sqlx::postgres::PgRow| {
        Ok(Chosen {
            id: row.try_get(0)?,
            check_value: row.try_get(1)?,
            secret: row.try_get(2)?,
            destructions: row.try_get(3)?,
        })
    };
    row.fetch_optional(executor).await?.map(chosen).transpose()
}

/// Chooses the master key of a log without events. Of several processes one is the first, and the others take
/// what it chose.
pub(super) async fn choose(pool: &PgPool, masters: &Masters, log_id: Uuid) -> Result<(), KeyError> {
    if crate::log::head(pool).await? > 0 {
        return Err(KeyError::WrittenUnsealed);
    }
    let Some(first) = masters.first()? else { return Ok(()) };
    sqlx::query(
        "INSERT INTO keys.master (key_id, check_value, secret) VALUES ($1, $2, $3)
             ON CONFLICT (only_row) DO NOTHING",
    )
    .bind(first.id)
    .bind(first.check_value(log_id))
    .bind(first.wrap(&secret_place(log_id), &random_bytes()))
    .execute(pool)
    .await?;
    Ok(())
}

/// What the table has of a subject.
pub(super) struct Standing {
    pub(super) life: i32,
    /// None when it was forgotten.
    pub(super) wrapped: Option<Vec<u8>>,
}

/// Returns what the table has of these subjects.
pub(super) async fn rows_of(
    executor: impl PgExecutor<'_>,
    subjects: &[Subject],
) -> Result<HashMap<Subject, Standing>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT s.n, k.life, k.wrapped
           FROM unnest($1::text[], $2::uuid[]) WITH ORDINALITY AS s (kind, id, n)
          CROSS JOIN LATERAL (
                SELECT l.life, l.wrapped FROM keys.subjects l WHERE l.kind = s.kind AND l.id = s.id LIMIT 1) k",
    )
    .bind(subjects.iter().map(Subject::kind).collect::<Vec<_>>())
    .bind(subjects.iter().map(Subject::id).collect::<Vec<_>>())
    .fetch_all(executor)
    .await?;
    let row = |row: sqlx::postgres::PgRow| {
        let n = usize::try_from(row.try_get::<i64, _>(0)?).unwrap_or_default();
        let subject = subjects.get(n.wrapping_sub(1)).copied();
        let subject = subject.ok_or_else(|| sqlx::Error::Protocol("a key of nobody asked for".to_owned()))?;
        Ok((subject, Standing { life: row.try_get(1)?, wrapped: row.try_get(2)? }))
    };
    rows.into_iter().map(row).collect()
}
