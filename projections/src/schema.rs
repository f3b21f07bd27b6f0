//! The schemas of generations: the live one, its creation, and those beside it.

use event_store::locks;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, Executor, PgConnection, PgExecutor, PgPool, Row};

/// The tables as this version of the program makes them.
const DDL: &str = include_str!("../../migrations/read_model.sql");

/// What the mark of a generation's shape begins with.
const MARK: &str = "minutebook shape ";

/// The schema of the generation that readers see.
pub const LIVE: &str = "read";
/// The schema of the generation that a rebuild makes.
pub const NEXT: &str = "read_next";
/// The schema of the generation that was live before.
pub const PREVIOUS: &str = "read_previous";
/// The schema in which the live tables are compared with history.
pub const SCRATCH: &str = "read_verify";
/// The schema in which tables are laid down as they stood, until they are whole and get their own name.
pub const LAYING: &str = "read_until";

/// Creates the live generation if there is none. Several processes may do so at once.
pub async fn migrate(pool: &PgPool) -> Result<(), sqlx::Error> {
    let mut connection = pool.acquire().await?;
    let mut transaction = connection.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(locks::CREATION).execute(&mut *transaction).await?;
    let there: bool = sqlx::query_scalar("SELECT to_regclass('read.checkpoint') IS NOT NULL")
        .fetch_one(&mut *transaction)
        .await?;
    if !there {
        create(&mut transaction, LIVE).await?;
    }
    transaction.commit().await
}

/// Creates an empty generation in `schema`. The connection's `search_path` names it from then on, to the end
/// of the transaction.
pub async fn create(transaction: &mut PgConnection, schema: &str) -> Result<(), sqlx::Error> {
    let schema = quoted(schema);
    let create = format!("CREATE SCHEMA {schema}; SET LOCAL search_path = {schema}");
    transaction.execute(create.as_str()).await?;
    transaction.execute(DDL).await?;
    let comment = format!("COMMENT ON SCHEMA {schema} IS '{}'", shape(&mut *transaction).await?);
    transaction.execute(comment.as_str()).await?;
    transaction
        .execute("INSERT INTO checkpoint (generation, position) VALUES (nextval('ops.generations'), 0)")
        .await?;
    Ok(())
}

/// Returns the mark of the shape that this version of the program gives the tables.
pub async fn shape(executor: impl PgExecutor<'_>) -> Result<String, sqlx::Error> {
    let code = DDL.lines().map(|line| line.split_once("--").map_or(line, |(code, _)| code));
    let code = code.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ");
    sqlx::query_scalar("SELECT $1 || md5($2)").bind(MARK).bind(code).fetch_one(executor).await
}

/// Returns the schemas of all generations, known by their marks.
pub async fn generations(executor: impl PgExecutor<'_>) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT nspname::text FROM pg_namespace
          WHERE starts_with(obj_description(oid, 'pg_namespace'), $1) ORDER BY nspname",
    )
    .bind(MARK)
    .fetch_all(executor)
    .await
}

/// Says whether the tables of a generation have the shape that this version of the program knows.
pub async fn fits(connection: &mut PgConnection, schema: &str) -> Result<bool, sqlx::Error> {
    let ours = shape(&mut *connection).await?;
    let found: Option<String> =
        sqlx::query_scalar("SELECT obj_description(to_regnamespace($1), 'pg_namespace')")
            .bind(quoted(schema))
            .fetch_one(connection)
            .await?;
    Ok(found.is_none_or(|found| found == ours))
}

/// Drops a generation and all that is in it.
pub async fn drop(executor: &mut PgConnection, schema: &str) -> Result<(), sqlx::Error> {
    if exists(executor, schema).await? {
        let parked = "DELETE FROM ops.parked_events WHERE generation IN";
        let checkpoint = format!("{}.checkpoint", quoted(schema));
        executor.execute(format!("{parked} (SELECT generation FROM {checkpoint})").as_str()).await?;
    }
    executor.execute(format!("DROP SCHEMA IF EXISTS {} CASCADE", quoted(schema)).as_str()).await?;
    Ok(())
}

/// Says whether there is such a generation.
pub async fn exists(connection: &mut PgConnection, schema: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(format!("{}.checkpoint", quoted(schema)))
        .fetch_one(connection)
        .await
}

/// Returns a connection's options with `schema` as its `search_path`.
pub fn options(pool: &PgPool, schema: &str) -> PgConnectOptions {
    pool.connect_options().as_ref().clone().options([("search_path", quoted(schema))])
}

/// The one place where a name goes into a statement.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// What makes COPY slow, taken away for its time: the statements that put it back, in order.
pub struct Bare {
    restore: Vec<String>,
}

impl Bare {
    /// Takes constraints and indexes off the tables of a generation.
    pub async fn make(connection: &mut PgConnection, schema: &str) -> Result<Self, sqlx::Error> {
        // Keys that point to others go first and come last.
        let constraints = sqlx::query(
            "SELECT format('ALTER TABLE %I.%I ', n.nspname, t.relname) AS alter, quote_ident(c.conname) AS name,
                    pg_get_constraintdef(c.oid) AS definition
               FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid
               JOIN pg_namespace n ON n.oid = t.relnamespace
              WHERE n.nspname = $1 AND c.contype IN ('p', 'u', 'f')
              ORDER BY c.contype = 'f' DESC, t.relname, c.conname",
        )
        .bind(schema)
        .fetch_all(&mut *connection)
        .await?;
        let indexes = sqlx::query(
            "SELECT pg_get_indexdef(i.indexrelid) AS definition,
                    format('DROP INDEX %I.%I', n.nspname, t.relname) AS drop
               FROM pg_index i JOIN pg_class t ON t.oid = i.indexrelid
               JOIN pg_namespace n ON n.oid = t.relnamespace
              WHERE n.nspname = $1 AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid)
              ORDER BY t.relname",
        )
        .bind(schema)
        .fetch_all(&mut *connection)
        .await?;
        let mut restore = vec![];
        for constraint in &constraints {
            let (alter, name): (String, String) = (constraint.try_get("alter")?, constraint.try_get("name")?);
            let definition: String = constraint.try_get("definition")?;
            connection.execute(format!("{alter} DROP CONSTRAINT {name}").as_str()).await?;
            restore.push(format!("{alter} ADD CONSTRAINT {name} {definition}"));
        }
        restore.reverse();
        for index in &indexes {
            connection.execute(index.try_get::<&str, _>("drop")?).await?;
            restore.insert(0, index.try_get("definition")?);
        }
        Ok(Self { restore })
    }

    /// Returns the statements that put constraints and indexes back, in order.
    pub fn statements(self) -> Vec<String> {
        self.restore
    }

    /// Puts them back.
    pub async fn restore(self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        for statement in self.statements() {
            connection.execute(statement.as_str()).await?;
        }
        Ok(())
    }
}
