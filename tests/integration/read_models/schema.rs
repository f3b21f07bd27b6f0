//! The tables are exactly those that were asked for.

use sqlx::PgPool;
use tests::TestDatabase;

/// What was asked for, the audit trail, what is stale, and the two that keep the projector's place.
const COLUMNS: &str = "
artifacts 1 id uuid not null
artifacts 2 meeting_id uuid
artifacts 3 type character varying(50) not null
artifacts 4 s3_key character varying(500)
artifacts 5 meta jsonb
cache 1 key character varying(255) not null
cache 2 value text not null
cache 3 ttl timestamp with time zone
cache_origin 1 key character varying(255) not null
cache_origin 2 position bigint not null
checkpoint 1 generation bigint not null
checkpoint 2 position bigint not null
files 1 id uuid not null
files 2 sha256 character varying(64) not null
files 3 content_fp character varying(128)
files 4 mime character varying(100)
files 5 duration integer
files 6 size bigint
files 7 owner uuid
files 8 created_at timestamp with time zone default now()
meetings 1 id uuid not null
meetings 2 file_id uuid
meetings 3 status character varying(50) not null
meetings 4 language character varying(10)
meetings 5 started_at timestamp with time zone default now()
meetings 6 finished_at timestamp with time zone
speaker_reassignments 1 position bigint not null
speaker_reassignments 2 recorded_at timestamp with time zone not null
speaker_reassignments 3 meeting_id uuid not null
speaker_reassignments 4 sequence bigint not null
speaker_reassignments 5 speaker_id uuid not null
speaker_reassignments 6 cluster_id character varying(50)
speaker_reassignments 7 from_profile_id uuid
speaker_reassignments 8 to_profile_id uuid
speaker_reassignments 9 reason text
speaker_reassignments 10 actor text
speaker_reassignments 11 actor_kind text
speaker_reassignments 12 previous_by character varying(50)
speaker_reassignments 13 previous_confidence double precision
speaker_reassignments 14 correlation_id text
speaker_reassignments 15 carried_from uuid
speakers 1 id uuid not null
speakers 2 meeting_id uuid
speakers 3 cluster_id character varying(50)
speakers 4 user_profile_id uuid
speakers 5 confidence double precision
stale_artifacts 1 artifact_id uuid not null
stale_artifacts 2 meeting_id uuid not null
stale_artifacts 3 position bigint not null
user_profiles 1 id uuid not null
user_profiles 2 display_name character varying(255) not null
user_profiles 3 embeddings jsonb
user_profiles 4 created_at timestamp with time zone default now()";

const CONSTRAINTS: &str = "
artifacts FOREIGN KEY (meeting_id) REFERENCES meetings(id)
artifacts PRIMARY KEY (id)
cache PRIMARY KEY (key)
cache_origin PRIMARY KEY (key)
checkpoint PRIMARY KEY (generation)
files PRIMARY KEY (id)
meetings FOREIGN KEY (file_id) REFERENCES files(id)
meetings PRIMARY KEY (id)
speaker_reassignments FOREIGN KEY (meeting_id) REFERENCES meetings(id)
speaker_reassignments PRIMARY KEY (\"position\")
speakers FOREIGN KEY (meeting_id) REFERENCES meetings(id)
speakers PRIMARY KEY (id)
stale_artifacts FOREIGN KEY (meeting_id) REFERENCES meetings(id)
stale_artifacts PRIMARY KEY (artifact_id)
user_profiles PRIMARY KEY (id)";

/// Those of the primary keys among them.
const INDEXES: &str = "
artifacts INDEX btree (meeting_id)
artifacts UNIQUE INDEX btree (id)
cache UNIQUE INDEX btree (key)
cache_origin UNIQUE INDEX btree (key)
checkpoint UNIQUE INDEX btree (generation)
files INDEX btree (content_fp)
files INDEX btree (sha256)
files UNIQUE INDEX btree (id)
meetings INDEX btree (file_id)
meetings INDEX btree (status)
meetings UNIQUE INDEX btree (id)
speaker_reassignments INDEX btree (actor, \"position\")
speaker_reassignments INDEX btree (from_profile_id, \"position\")
speaker_reassignments INDEX btree (meeting_id, \"position\")
speaker_reassignments INDEX btree (to_profile_id, \"position\")
speaker_reassignments UNIQUE INDEX btree (\"position\")
speakers INDEX btree (meeting_id)
speakers INDEX btree (user_profile_id)
speakers UNIQUE INDEX btree (id)
stale_artifacts INDEX btree (meeting_id)
stale_artifacts UNIQUE INDEX btree (artifact_id)
user_profiles UNIQUE INDEX btree (id)";

#[tokio::test]
async fn the_tables_have_exactly_the_columns_keys_and_indexes_that_were_asked_for() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;

    let columns = "
        SELECT concat_ws(' ', table_name, ordinal_position, column_name,
                   data_type || coalesce('(' || character_maximum_length || ')', ''),
                   CASE is_nullable WHEN 'NO' THEN 'not null' END, 'default ' || column_default)
          FROM information_schema.columns WHERE table_schema = 'read' ORDER BY table_name, ordinal_position";
    assert_eq!(lines(&pool, columns).await, COLUMNS);
    // From PostgreSQL 18 on, not null is a constraint of its own; the columns have shown it.
    let constraints = "
        SELECT conrelid::regclass || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
         WHERE connamespace = 'read'::regnamespace AND contype <> 'n' ORDER BY 1";
    assert_eq!(lines(&pool, constraints).await, CONSTRAINTS);
    let indexes = r"
        SELECT tablename || regexp_replace(indexdef, '^CREATE( UNIQUE)? INDEX \S+ ON \S+ USING', '\1 INDEX')
          FROM pg_indexes WHERE schemaname = 'read' ORDER BY 1";
    assert_eq!(lines(&pool, indexes).await, INDEXES);
    let others = "
        SELECT relkind::text || ' ' || relname FROM pg_class
         WHERE relnamespace = 'read'::regnamespace AND relkind NOT IN ('r', 'i')
        UNION ALL
        SELECT 'trigger ' || tgname FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
         WHERE relnamespace = 'read'::regnamespace AND NOT tgisinternal";
    assert_eq!(lines(&pool, others).await, "", "no view, sequence or trigger besides");
}

/// Each row on a line of its own.
async fn lines(pool: &PgPool, query: &str) -> String {
    let lines: Vec<String> = sqlx::query_scalar(query).fetch_all(pool).await.unwrap();
    lines.iter().map(|line| format!("\n{line}")).collect()
}
