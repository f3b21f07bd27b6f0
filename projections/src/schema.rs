//! The schema of the live generation, and its creation.

use sqlx::{Connection, PgPool};

/// The schema of the generation that readers see.
pub const LIVE: &str = "read";

/// Creates the live generation if there is none. Several processes may do so at once.
pub async fn migrate(pool: &PgPool) -> Result<(), sqlx::Error> {
    let mut connection = pool.acquire().await?;
    let mut transaction = connection.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock(7165932018841088002)").execute(&mut *transaction).await?;
    let there: bool = sqlx::query_scalar("SELECT to_regclass('read.checkpoint') IS NOT NULL")
        .fetch_one(&mut *transaction)
        .await?;
    if !there {
        sqlx::raw_sql("CREATE SCHEMA read; SET LOCAL search_path = read").execute(&mut *transaction).await?;
        sqlx::raw_sql(include_str!("../../migrations/read_model.sql")).execute(&mut *transaction).await?;
        sqlx::raw_sql("INSERT INTO checkpoint (generation, position) VALUES (1, 0)")
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await
}
