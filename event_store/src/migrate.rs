//! Brings the log's schema up to date.

use std::borrow::Cow;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{Connection, PgConnection, PgPool};

/// Applies the migrations that the database lacks. Several processes may do so at once: sqlx holds a lock.
///
/// Fails when a migration fails, and when the database was migrated by a newer Minutebook.
pub async fn migrate(pool: &PgPool) -> Result<(), sqlx::migrate::MigrateError> {
    let migration = |version, description: &'static str, sql: &'static str| {
        Migration::new(version, description.into(), MigrationType::Simple, sql.into(), false)
    };
    let migrations = vec![
        migration(1, "log", include_str!("../../migrations/0001_log.sql")),
        migration(2, "feed", include_str!("../../migrations/0002_feed.sql")),
        migration(3, "operations", include_str!("../../migrations/0003_operations.sql")),
        migration(4, "rebuild reports", include_str!("../../migrations/0004_rebuild_reports.sql")),
        migration(5, "parked", include_str!("../../migrations/0005_parked.sql")),
        migration(6, "voice followers", include_str!("../../migrations/0006_voice_followers.sql")),
        migration(7, "keys", include_str!("../../migrations/0007_keys.sql")),
        migration(8, "roles", include_str!("../../migrations/0008_roles.sql")),
        migration(9, "access", include_str!("../../migrations/0009_access.sql")),
        migration(10, "erasures", include_str!("../../migrations/0010_erasures.sql")),
    ];
    // sqlx keeps its list of what was applied in the first schema of the search_path: always the same one.
    let options = pool.connect_options().as_ref().clone().options([("search_path", "public")]);
    let mut connection = PgConnection::connect_with(&options).await?;
    let migrator = Migrator { migrations: Cow::Owned(migrations), ..Migrator::DEFAULT };
    migrator.run(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

/// Returns the database roles that are not there, although Minutebook has rights for them: its login was not
/// allowed to make them.
pub async fn missing_roles(pool: &PgPool) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT role FROM unnest($1::text[]) AS roles (role) WHERE to_regrole(role) IS NULL ORDER BY role",
    )
    .bind(["minutebook_auditor", "minutebook_projector", "minutebook_reader", "minutebook_writer"].as_slice())
    .fetch_all(pool)
    .await
}
