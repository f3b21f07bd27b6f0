-- One generation of the read models. It is run with the generation's schema as search_path, at the first
-- start and by every rebuild alike; so nothing here names a schema.

-- Promise: one row per uploaded file and owner.
CREATE TABLE files (
    id         uuid PRIMARY KEY,
    sha256     varchar(64) NOT NULL,
    content_fp varchar(128),
    mime       varchar(100),
    duration   integer,               -- seconds
    size       bigint,                -- bytes
    owner      uuid,
    created_at timestamptz DEFAULT now()
);
CREATE INDEX files_sha256 ON files (sha256);
CREATE INDEX files_content_fp ON files (content_fp);

-- Promise: one row per meeting; status is pending, processing, completed or failed. started_at is the
-- registration until processing starts, then the start of the latest attempt.
CREATE TABLE meetings (
    id          uuid PRIMARY KEY,
    file_id     uuid REFERENCES files (id),
    status      varchar(50) NOT NULL,
    language    varchar(10),
    started_at  timestamptz DEFAULT now(),
    finished_at timestamptz
);
CREATE INDEX meetings_file_id ON meetings (file_id);
CREATE INDEX meetings_status ON meetings (status);

-- Promise: the speakers of a meeting's latest diarization, one per cluster.
CREATE TABLE speakers (
    id              uuid PRIMARY KEY,
    meeting_id      uuid REFERENCES meetings (id),
    cluster_id      varchar(50),
    user_profile_id uuid NULL,
    confidence      float
);
CREATE INDEX speakers_meeting_id ON speakers (meeting_id);
CREATE INDEX speakers_user_profile_id ON speakers (user_profile_id);

-- Promise: one row per person known by name. embeddings holds the samples of the voice, null without any.
CREATE TABLE user_profiles (
    id           uuid PRIMARY KEY,
    display_name varchar(255) NOT NULL,
    embeddings   jsonb,
    created_at   timestamptz DEFAULT now()
);

-- Promise: at most one row per meeting and type, the latest one stored.
CREATE TABLE artifacts (
    id         uuid PRIMARY KEY,
    meeting_id uuid REFERENCES meetings (id),
    type       varchar(50) NOT NULL,
    s3_key     varchar(500),
    meta       jsonb
);
CREATE INDEX artifacts_meeting_id ON artifacts (meeting_id);

-- Promise: `<stage>:<content_fp>` holds a stage's result, `meeting:<id>` a completed meeting's; the one
-- recorded last. ttl is the moment of expiry. An expired row counts as absent, swept or not.
CREATE TABLE cache (
    key   varchar(255) PRIMARY KEY,
    value text NOT NULL,
    ttl   timestamptz
);

-- Which position a cache row comes from; kept past its expiry, so that an older result never returns.
CREATE TABLE cache_origin (
    key      varchar(255) PRIMARY KEY,
    position bigint NOT NULL
);

-- Promise: the tables above show exactly the history up to this position. One row.
CREATE TABLE checkpoint (
    generation bigint PRIMARY KEY,
    position   bigint NOT NULL
);
