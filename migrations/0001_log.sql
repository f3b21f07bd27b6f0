-- The log: what happened, in the order in which it was committed. Everything else is derived from it.

CREATE SCHEMA log;

-- Who this log is. Made once; `epoch` is new after a restore or a promotion, where the newest positions
-- may have been lost and are given out again. `secret` keys the ids derived from uploads.
CREATE TABLE log.identity (
    only_row boolean PRIMARY KEY DEFAULT true CONSTRAINT identity_has_one_row CHECK (only_row),
    log_id   uuid  NOT NULL DEFAULT gen_random_uuid(),
    epoch    uuid  NOT NULL DEFAULT gen_random_uuid(),
    secret   bytea NOT NULL CONSTRAINT identity_secret_has_256_bits CHECK (length(secret) = 32)
);
-- Three random UUIDs hold 366 random bits; their hash holds 256.
INSERT INTO log.identity (secret)
VALUES (sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())));

-- Promise: positions are 1, 2, 3 … in commit order, without a hole. Whoever has seen position n has seen
-- all before it. Rows are never changed and never removed.
-- The seven columns from aggregate_type on are the ones that postgres-es reads, in the types it reads.
CREATE TABLE log.events (
    position       bigint      CONSTRAINT events_pkey PRIMARY KEY,
    recorded_at    timestamptz NOT NULL,
    aggregate_type text COLLATE "C" NOT NULL,
    aggregate_id   text COLLATE "C" NOT NULL,
    sequence       bigint      NOT NULL,
    event_type     text COLLATE "C" NOT NULL,
    event_version  text COLLATE "C" NOT NULL,
    payload        jsonb       NOT NULL,
    metadata       jsonb       NOT NULL,
    CONSTRAINT events_one_per_sequence UNIQUE (aggregate_type, aggregate_id, sequence),
    CONSTRAINT events_count_from_one CHECK (position > 0 AND sequence > 0)
);

CREATE FUNCTION log.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'log.events is append-only: % is refused', TG_OP
        USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE TRIGGER events_are_append_only
    BEFORE UPDATE OR DELETE OR TRUNCATE ON log.events
    FOR EACH STATEMENT EXECUTE FUNCTION log.refuse_change();

-- Promise: an accepted command that its client marked with an Idempotency-Key has a row here for 30 days,
-- also when it had no effect, so that repeating it gives its first answer. Of the request only an HMAC is
-- kept. `first_position` is null for a command without effect; `last_position` is then the log's head at
-- that moment. A command without a key has no row: nobody can repeat what has no name, but for our own
-- retry after a lost connection, which is known by the command_id in its first event's metadata.
CREATE TABLE log.commands (
    command_id     uuid        CONSTRAINT commands_pkey PRIMARY KEY,
    request_hmac   bytea       NOT NULL,
    aggregate_id   text COLLATE "C" NOT NULL,
    version        bigint      NOT NULL,
    first_position bigint,
    last_position  bigint      NOT NULL,
    accepted_at    timestamptz NOT NULL
);
-- Rows come in order of time, so a range index finds the old ones and costs an append nothing.
CREATE INDEX commands_accepted_at ON log.commands USING brin (accepted_at);

-- Appends a group, each append as if it came alone and in order: first it may be a duplicate (its command
-- is known), then a conflict (the aggregate is not where the append expects it), else it is numbered and
-- inserted. One row comes back per append, in order.
--
-- Appends are given as parallel arrays, their events as another set of parallel arrays in which
-- `event_append` counts appends from 1 and `event_offset` counts the events of one append from 1. A null
-- `request_hmac` is a command without a key.
--
-- No aggregate and no command may come twice between two `chunk_ends`: the caller cuts the group where
-- one would, and each chunk is resolved as a set. (A caller that cuts wrongly runs into a unique
-- constraint, and nothing is appended.) `fresh` says that no command of the group can be known: none has
-- a key, and none was sent before. Then only conflicts are looked for; and where there is none, a single
-- row `all appended` gives the first and the last position, from which the caller can tell each append's.
CREATE FUNCTION log.append(
    command_ids uuid[], request_hmacs bytea[], aggregate_types text[], aggregate_ids text[],
    expected_versions bigint[], event_counts int[], metadata text[],
    event_append int[], event_offset int[], event_types text[], event_versions text[], payloads text[],
    chunk_ends int[], fresh boolean
) RETURNS TABLE (
    outcome text, version bigint, first_position bigint, last_position bigint, request_hmac bytea
) LANGUAGE plpgsql
-- A plan made while the log was empty must not scan it when it is long.
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    head bigint;
    this_recorded_at timestamptz;
    chunk_start int := 1;
    chunk_end int;
    conflicts boolean;
BEGIN
    -- Held to the end of the transaction, which is this one statement: the next group sees this one whole.
    PERFORM pg_advisory_xact_lock(7165932018841088001);

    SELECT e.position, greatest(clock_timestamp(), e.recorded_at) INTO head, this_recorded_at
      FROM log.events e ORDER BY e.position DESC LIMIT 1;
    IF head IS NULL THEN
        head := 0;
        this_recorded_at := clock_timestamp();
    END IF;

    -- Most groups are like this: every append will be appended, in one set.
    IF fresh AND cardinality(chunk_ends) = 1 THEN
        SELECT EXISTS (
            SELECT FROM unnest(aggregate_types, aggregate_ids, expected_versions) AS a (type, id, expected)
             WHERE a.expected <> coalesce((
                       SELECT e.sequence FROM log.events e
                        WHERE e.aggregate_type = a.type AND e.aggregate_id = a.id
                        ORDER BY e.sequence DESC LIMIT 1), 0)
        ) INTO conflicts;
        IF NOT conflicts THEN
            INSERT INTO log.events
                   (position, recorded_at, aggregate_type, aggregate_id, sequence,
                    event_type, event_version, payload, metadata)
            SELECT head + e.n, this_recorded_at, a.type, a.id, a.expected + e.event_offset,
                   e.event_type, e.event_version, e.payload::jsonb, a.metadata::jsonb
              FROM unnest(event_append, event_offset, event_types, event_versions, payloads)
                   WITH ORDINALITY AS e (event_append, event_offset, event_type, event_version, payload, n)
              JOIN unnest(aggregate_types, aggregate_ids, expected_versions, metadata)
                   WITH ORDINALITY AS a (type, id, expected, metadata, n) ON a.n = e.event_append;
            RETURN QUERY SELECT 'all appended', NULL::bigint, head + 1, head + cardinality(event_types), NULL::bytea;
            RETURN;
        END IF;
    END IF;

    FOREACH chunk_end IN ARRAY chunk_ends LOOP
        RETURN QUERY
        WITH resolved AS MATERIALIZED (
            SELECT a.n, a.command_id, a.request_hmac, a.aggregate_type, a.aggregate_id, a.expected,
                   a.event_count, a.metadata,
                   CASE WHEN c.command_id IS NOT NULL OR own.position IS NOT NULL THEN 'duplicate'
                        WHEN a.expected <> coalesce(s.sequence, 0) THEN 'conflict'
                        ELSE 'appended' END AS outcome,
                   coalesce(s.sequence, 0) AS actual,
                   coalesce(c.version, a.expected + a.event_count) AS known_version,
                   CASE WHEN c.command_id IS NOT NULL THEN c.first_position ELSE own.position END AS known_first,
                   coalesce(c.last_position, own.position + a.event_count - 1) AS known_last,
                   c.request_hmac AS known_hmac
              FROM ROWS FROM (
                       generate_series(chunk_start, chunk_end),
                       unnest(command_ids[chunk_start:chunk_end]), unnest(request_hmacs[chunk_start:chunk_end]),
                       unnest(aggregate_types[chunk_start:chunk_end]), unnest(aggregate_ids[chunk_start:chunk_end]),
                       unnest(expected_versions[chunk_start:chunk_end]), unnest(event_counts[chunk_start:chunk_end]),
                       unnest(metadata[chunk_start:chunk_end])
                   ) AS a (n, command_id, request_hmac, aggregate_type, aggregate_id, expected, event_count, metadata)
              LEFT JOIN LATERAL (
                       SELECT k.command_id, k.version, k.first_position, k.last_position, k.request_hmac
                         FROM log.commands k WHERE k.command_id = a.command_id LIMIT 1
                   ) c ON true
              LEFT JOIN LATERAL (
                       SELECT e.sequence FROM log.events e
                        WHERE e.aggregate_type = a.aggregate_type AND e.aggregate_id = a.aggregate_id
                        ORDER BY e.sequence DESC LIMIT 1
                   ) s ON true
              -- Our own append, sent again: its first event lies where it was to go.
              LEFT JOIN LATERAL (
                       SELECT e.position FROM log.events e
                        WHERE a.request_hmac IS NULL AND s.sequence > a.expected
                          AND e.aggregate_type = a.aggregate_type AND e.aggregate_id = a.aggregate_id
                          AND e.sequence = a.expected + 1
                          AND e.metadata ->> 'command_id' = a.command_id::text LIMIT 1
                   ) own ON true
        ), numbered AS MATERIALIZED (
            SELECT r.n, r.command_id, r.request_hmac, r.aggregate_type, r.aggregate_id, r.expected,
                   r.event_count, r.metadata, r.outcome, r.actual,
                   r.known_version, r.known_first, r.known_last, r.known_hmac,
                   head + sum(CASE r.outcome WHEN 'appended' THEN r.event_count ELSE 0 END)
                              OVER (ORDER BY r.n ROWS UNBOUNDED PRECEDING) AS last_position
              FROM resolved r
        ), inserted_commands AS (
            INSERT INTO log.commands
                   (command_id, request_hmac, aggregate_id, version, first_position, last_position, accepted_at)
            SELECT r.command_id, r.request_hmac, r.aggregate_id, r.expected + r.event_count,
                   CASE WHEN r.event_count > 0 THEN r.last_position - r.event_count + 1 END,
                   r.last_position, this_recorded_at
              FROM numbered r WHERE r.outcome = 'appended' AND r.request_hmac IS NOT NULL
        ), inserted_events AS (
            INSERT INTO log.events
                   (position, recorded_at, aggregate_type, aggregate_id, sequence,
                    event_type, event_version, payload, metadata)
            SELECT r.last_position - r.event_count + e.event_offset, this_recorded_at,
                   r.aggregate_type, r.aggregate_id, r.expected + e.event_offset,
                   e.event_type, e.event_version, e.payload::jsonb, r.metadata::jsonb
              FROM numbered r
              JOIN unnest(event_append, event_offset, event_types, event_versions, payloads)
                   AS e (event_append, event_offset, event_type, event_version, payload)
                ON e.event_append = r.n
             WHERE r.outcome = 'appended'
        )
        SELECT r.outcome,
               CASE r.outcome WHEN 'appended' THEN r.expected + r.event_count
                              WHEN 'conflict' THEN r.actual ELSE r.known_version END,
               CASE r.outcome WHEN 'appended' THEN CASE WHEN r.event_count > 0
                                                        THEN (r.last_position - r.event_count + 1)::bigint END
                              WHEN 'duplicate' THEN r.known_first END,
               CASE r.outcome WHEN 'appended' THEN r.last_position::bigint
                              WHEN 'duplicate' THEN r.known_last END,
               r.known_hmac
          FROM numbered r ORDER BY r.n;

        chunk_start := chunk_end + 1;
        -- The next chunk numbers on from where this one ended.
        SELECT e.position INTO head FROM log.events e ORDER BY e.position DESC LIMIT 1;
        head := coalesce(head, 0);
    END LOOP;
END $$;
