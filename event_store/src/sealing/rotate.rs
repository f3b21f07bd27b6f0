//! How the keys stand, and the rotation of the master key.

use std::sync::PoisonError;

use domain::personal_data::Subject;
use sqlx::{Connection as _, Row};
use uuid::Uuid;

use super::cipher::{secret_place, wrapping_place};
use super::master::Master;
use super::stored::{Chosen, chosen};
use super::{KeyError, Keyring};
use crate::locks;

/// How the keys stand.
#[derive(Debug, Clone, serde::Serialize)]
pub struct KeyStatus {
    /// The id of the master key in use.
    pub master_key: Uuid,
    /// Since when.
    pub since: chrono::DateTime<chrono::Utc>,
    /// Where this process has its master keys from.
    pub source: String,
    /// The ids of those it has.
    pub known_here: Vec<Uuid>,
    /// Subjects with a key.
    pub living: i64,
    /// Subjects who were forgotten.
    pub destroyed: i64,
    /// Keys that another master key still wraps which is here: a rotation was interrupted.
    pub under_another: i64,
    /// Keys that a master key wraps which is not here, or nobody's: they are damaged, or it is missing.
    pub elsewhere: i64,
}

/// What a rotation did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rotated {
    /// Keys that the new master key wraps.
    pub wrapped: u64,
    /// Keys that open under none of the master keys that are here. They stay as they are.
    pub damaged: u64,
}

impl Keyring {
    /// Says how the keys stand.
    pub async fn status(&self) -> Result<KeyStatus, KeyError> {
        let row = sqlx::query(
            "SELECT m.key_id, m.since,
                    (SELECT count(*) FROM keys.subjects WHERE wrapped IS NOT NULL) AS living,
                    (SELECT count(*) FROM keys.subjects WHERE destroyed_at IS NOT NULL) AS destroyed,
                    w.under_another, w.elsewhere
               FROM keys.master m
              CROSS JOIN LATERAL (
                    SELECT count(*) FILTER (WHERE known) AS under_another,
                           count(*) FILTER (WHERE NOT known) AS elsewhere
                      FROM (SELECT substr(s.wrapped, 2, 16) IN (SELECT uuid_send(id) FROM unnest($1::uuid[]) AS k (id)) AS known
                              FROM keys.subjects s
                             WHERE substr(s.wrapped, 2, 16) <> uuid_send(m.key_id)) others) w",
        )
        .bind(self.0.masters.known().keys().copied().collect::<Vec<_>>())
        .fetch_one(&self.0.pool)
        .await?;
        Ok(KeyStatus {
            master_key: row.try_get("key_id")?,
            since: row.try_get("since")?,
            source: self.0.masters.source().to_string(),
            known_here: self.0.masters.known().keys().copied().collect(),
            living: row.try_get("living")?,
            destroyed: row.try_get("destroyed")?,
            under_another: row.try_get("under_another")?,
            elsewhere: row.try_get("elsewhere")?,
        })
    }

    /// Puts another master key in the place of the present one: wraps every subject's key anew, batch by batch,
    /// while others read and append. No event is touched. Interrupted, it is to be called again, and goes on. A key
    /// that does not open is passed over, and counted.
    pub async fn rotate(&self, progress: impl Fn(u64)) -> Result<Rotated, KeyError> {
        // Of two at once the second would take the first one's new key out of the file.
        let mut turn = self.0.pool.acquire().await?.detach();
        let alone = sqlx::query_scalar::<_, bool>("SELECT pg_try_advisory_lock($1)").bind(locks::ROTATION);
        if !alone.fetch_one(&mut turn).await? {
            return Err(KeyError::Rotating);
        }
        let rotated = self.rotate_alone(progress).await;
        // Where that fails the lock goes with its connection, a moment later.
        let _ = sqlx::query("SELECT pg_advisory_unlock($1)").bind(locks::ROTATION).execute(&mut turn).await;
        let _ = turn.close().await;
        rotated
    }

    async fn rotate_alone(&self, progress: impl Fn(u64)) -> Result<Rotated, KeyError> {
        let masters = &self.0.masters;
        let Chosen { id: current, .. } = chosen(&self.0.pool).await?.ok_or(KeyError::WrittenUnsealed)?;
        // What another master key still wraps is left from a rotation that was interrupted.
        let new = if self.status().await?.under_another > 0 {
            masters.get(current)
        } else {
            // A key that is there and not in use was made by a rotation that went no further.
            match masters.other_than(current)? {
                Some(other) => Some(other),
                None => masters.add()?,
            }
        };
        let Some(new) = new else { return Err(KeyError::NothingToRotateTo) };
        // From here on every process wraps with the new one: its appends with the old one are refused, and made
        // again. Under the append lock, so that none is under way.
        let mut transaction = self.0.pool.begin().await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(locks::APPEND)
            .execute(&mut *transaction)
            .await?;
        let old = chosen(&mut *transaction).await?.ok_or(KeyError::WrittenUnsealed)?;
        if old.id != new.id {
            let (log_id, secret) = (self.0.log_id, masters.check(&old, self.0.log_id)?);
            sqlx::query("UPDATE keys.master SET key_id = $1, check_value = $2, secret = $3, since = now()")
                .bind(new.id)
                .bind(new.check_value(log_id))
                .bind(new.wrap(&secret_place(log_id), &secret))
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        *self.0.current.lock().unwrap_or_else(PoisonError::into_inner) = new.id;
        let mut rotated = Rotated::default();
        let mut after = (String::new(), Uuid::nil());
        while let Some(last) = self.wrap_some(&new, &after, &mut rotated).await? {
            after = last;
            progress(rotated.wrapped);
        }
        // Whoever lost its lock with its connection must not take out what another has put in since.
        if chosen(&self.0.pool).await?.is_none_or(|chosen| chosen.id != new.id) {
            return Err(KeyError::Rotating);
        }
        masters.leave_only(&new)?;
        Ok(rotated)
    }

    /// Wraps some of the keys anew that another master key wraps, in order, after one; returns the last.
    async fn wrap_some(
        &self,
        new: &Master,
        (kind, id): &(String, Uuid),
        rotated: &mut Rotated,
    ) -> Result<Option<(String, Uuid)>, KeyError> {
        let mut transaction = self.0.pool.begin().await?;
        // Against a destruction at the same moment: what is locked here is destroyed afterwards.
        let rows = sqlx::query(
            "SELECT kind, id, life, wrapped FROM keys.subjects
              WHERE wrapped IS NOT NULL AND substr(wrapped, 2, 16) <> uuid_send($1) AND (kind, id) > ($2, $3)
              ORDER BY kind, id LIMIT 5000 FOR UPDATE",
        )
        .bind(new.id)
        .bind(kind)
        .bind(id)
        .fetch_all(&mut *transaction)
        .await?;
        let (mut kinds, mut ids, mut again, mut last) = (vec![], vec![], vec![], None);
        for row in &rows {
            let (kind, id): (String, Uuid) = (row.try_get(0)?, row.try_get(1)?);
            let Some(subject) = Subject::from_kind(&kind, id) else {
                return Err(KeyError::UnknownKind { kind, id });
            };
            let (life, wrapped): (i32, Vec<u8>) = (row.try_get(2)?, row.try_get(3)?);
            last = Some((kind.clone(), id));
            match self.unwrap(subject, life, &wrapped) {
                Ok(key) => again.push(new.wrap(&wrapping_place(subject, life), &key)),
                Err(KeyError::Damaged { .. } | KeyError::AnotherMaster { .. }) => {
                    rotated.damaged += 1;
                    continue;
                }
                Err(error) => return Err(error),
            }
            kinds.push(kind);
            ids.push(id);
        }
        let updated = sqlx::query(
            "UPDATE keys.subjects s SET wrapped = n.wrapped
               FROM unnest($1::text[], $2::uuid[], $3::bytea[]) AS n (kind, id, wrapped)
              WHERE s.kind = n.kind AND s.id = n.id",
        )
        .bind(kinds)
        .bind(ids)
        .bind(again)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        rotated.wrapped += updated.rows_affected();
        Ok(last)
    }
}
