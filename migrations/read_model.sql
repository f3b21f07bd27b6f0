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

-- Promise: the artifacts that are older than a speaker's name, until one of their type is stored again.
CREATE TABLE stale_artifacts (
    artifact_id uuid PRIMARY KEY,
    meeting_id  uuid NOT NULL REFERENCES meetings (id),
    position    bigint NOT NULL         -- of the event that says so
);
CREATE INDEX stale_artifacts_meeting_id ON stale_artifacts (meeting_id);

-- Promise: one row per time that somebody said who a speaker is, in the order of the log; what another
-- diarization replaces stays. The history of an erased meeting is gone: the reasons in it are about people.
-- Profiles by id only, for a name may have to be forgotten.
CREATE TABLE speaker_reassignments (
    position            bigint PRIMARY KEY,     -- the event's
    recorded_at         timestamptz NOT NULL,   -- never earlier than the position before
    meeting_id          uuid NOT NULL REFERENCES meetings (id),
    sequence            bigint NOT NULL,        -- the event's place in the meeting
    speaker_id          uuid NOT NULL,
    cluster_id          varchar(50),
    from_profile_id     uuid,                   -- null for nobody known, as below
    to_profile_id       uuid,
    reason              text,                   -- null for one that was destroyed
    actor               text,                   -- an opaque id
    actor_kind          text,                   -- person, service or system
    previous_by         varchar(50),            -- whose word it replaced: machine or person; null for nobody's
    previous_confidence float,                  -- how sure the machine had been
    correlation_id      text,                   -- what the command belonged to
    carried_from        uuid                    -- the earlier speaker, where a person's decision was carried over
);
-- Times never run backwards along positions, so a time is looked up as a position, and needs no index.
CREATE INDEX speaker_reassignments_meeting ON speaker_reassignments (meeting_id, position);
CREATE INDEX speaker_reassignments_from ON speaker_reassignments (from_profile_id, position);
CREATE INDEX speaker_reassignments_to ON speaker_reassignments (to_profile_id, position);
CREATE INDEX speaker_reassignments_actor ON speaker_reassignments (actor, position);

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

-- Who may do what with them, besides the owner: see 0008_roles.sql. A role that the cluster lacks gets nothing.
DO $$
BEGIN
    IF to_regrole('minutebook_projector') IS NOT NULL THEN
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO minutebook_projector', current_schema());
        GRANT SELECT, INSERT, UPDATE, DELETE ON files, meetings, speakers, user_profiles, artifacts, stale_artifacts,
            speaker_reassignments, cache, cache_origin TO minutebook_projector;
        GRANT SELECT, UPDATE ON checkpoint TO minutebook_projector;
    END IF;

    IF to_regrole('minutebook_auditor') IS NOT NULL THEN
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO minutebook_auditor', current_schema());
        GRANT SELECT ON speaker_reassignments, checkpoint TO minutebook_auditor;
    END IF;

    IF to_regrole('minutebook_reader') IS NOT NULL THEN
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO minutebook_reader', current_schema());
        GRANT SELECT ON files, meetings, speakers, artifacts, stale_artifacts, speaker_reassignments, cache, checkpoint
            TO minutebook_reader;
        GRANT SELECT (id, display_name, created_at) ON user_profiles TO minutebook_reader;

        -- Rows are kept from the reader alone: whom the owner grants a table besides sees all of it, the owner
        -- itself is not asked at all. Restrictive, so that another membership does not open what this one shuts.
        -- A policy asks the table before it, which has its own: what belongs to a file is its owner's.
        ALTER TABLE files ENABLE ROW LEVEL SECURITY;
        CREATE POLICY granted ON files USING (true);
        CREATE POLICY of_one_owner ON files AS RESTRICTIVE TO minutebook_reader
            USING (owner = nullif(current_setting('minutebook.owner', true), '')::uuid);

        ALTER TABLE meetings ENABLE ROW LEVEL SECURITY;
        CREATE POLICY granted ON meetings USING (true);
        CREATE POLICY of_one_owner ON meetings AS RESTRICTIVE TO minutebook_reader
            USING (EXISTS (SELECT FROM files f WHERE f.id = file_id));

        ALTER TABLE speakers ENABLE ROW LEVEL SECURITY;
        CREATE POLICY granted ON speakers USING (true);
        CREATE POLICY of_one_owner ON speakers AS RESTRICTIVE TO minutebook_reader
            USING (EXISTS (SELECT FROM meetings m WHERE m.id = meeting_id));

        ALTER TABLE artifacts ENABLE ROW LEVEL SECURITY;
        CREATE POLICY granted ON artifacts USING (true);
        CREATE POLICY of_one_owner ON artifacts AS RESTRICTIVE TO minutebook_reader
            USING (EXISTS (SELECT FROM meetings m WHERE m.id = meeting_id));

        ALTER TABLE stale_artifacts ENABLE ROW LEVEL SECURITY;
        CREATE POLICY granted ON stale_artifacts USING (true);
        CREATE POLICY of_one_owner ON stale_artifacts AS RESTRICTIVE TO minutebook_reader
            USING (EXISTS (SELECT FROM meetings m WHERE m.id = meeting_id));

        ALTER TABLE speaker_reassignments ENABLE ROW LEVEL SECURITY;
        CREATE POLICY granted ON speaker_reassignments USING (true);
        CREATE POLICY of_one_owner ON speaker_reassignments AS RESTRICTIVE TO minutebook_reader
            USING (EXISTS (SELECT FROM meetings m WHERE m.id = meeting_id));

        -- Whoever speaks in one of the owner's meetings.
        ALTER TABLE user_profiles ENABLE ROW LEVEL SECURITY;
        CREATE POLICY granted ON user_profiles USING (true);
        CREATE POLICY of_one_owner ON user_profiles AS RESTRICTIVE TO minutebook_reader
            USING (EXISTS (SELECT FROM speakers s WHERE s.user_profile_id = user_profiles.id));

        -- The stages' results are shared between owners, and for pipelines alone.
        ALTER TABLE cache ENABLE ROW LEVEL SECURITY;
        CREATE POLICY granted ON cache USING (true);
        CREATE POLICY of_one_owner ON cache AS RESTRICTIVE TO minutebook_reader
            USING (EXISTS (SELECT FROM meetings m WHERE key = 'meeting:' || m.id));
    END IF;
END $$;

-- Statistics keep values of their own, which nobody would delete with the rows: none of what is about people.
ALTER TABLE user_profiles
    ALTER COLUMN display_name SET STATISTICS 0,
    ALTER COLUMN embeddings SET STATISTICS 0;
ALTER TABLE artifacts ALTER COLUMN meta SET STATISTICS 0;
ALTER TABLE speaker_reassignments ALTER COLUMN reason SET STATISTICS 0;
ALTER TABLE cache ALTER COLUMN value SET STATISTICS 0;
