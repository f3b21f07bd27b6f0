-- The keys of personal data. The log has names, voices, reasons, cached results and facts about artifacts only
-- encrypted, each under the key of its subject; what destroys the key forgets the subject, and the log stays as
-- it is. A backup keeps this schema apart from the log.

CREATE SCHEMA keys;

-- Promise: which master key wraps the subjects' keys. Of the key itself there is only its id, and a value by which
-- another key is found out before anything is unwrapped with it. `destructions` counts up whenever a subject is
-- forgotten: a process that sees another number than before drops what it remembers. Only that, and a rotation,
-- write this row. `secret` is 32 random bytes, wrapped as the subjects' keys are: what is made with it, such as a
-- session, nobody makes who has the database alone.
CREATE TABLE keys.master (
    only_row     boolean     PRIMARY KEY DEFAULT true CONSTRAINT master_has_one_row CHECK (only_row),
    key_id       uuid        NOT NULL,
    check_value  bytea       NOT NULL,
    secret       bytea       NOT NULL,
    since        timestamptz NOT NULL DEFAULT now(),
    destructions bigint      NOT NULL DEFAULT 0
);

-- Promise: one row for each subject of whom the log has personal data, and for each who was forgotten. A row with
-- `destroyed_at` is a tombstone: it has no key, it stays for ever, and no key is made for the subject again. The
-- exception is a meeting, whose id stands for its file: registered anew it begins another `life`, with another
-- key, and what was sealed in an earlier life stays unreadable.
CREATE TABLE keys.subjects (
    kind         text COLLATE "C" NOT NULL CONSTRAINT subjects_kind CHECK (kind IN ('meeting', 'speaker', 'profile')),
    id           uuid        NOT NULL,
    life         integer     NOT NULL DEFAULT 1,
    wrapped      bytea,
    created_at   timestamptz NOT NULL DEFAULT now(),
    destroyed_at timestamptz,
    CONSTRAINT subjects_pkey PRIMARY KEY (kind, id),
    CONSTRAINT subjects_have_a_key_or_none CHECK ((wrapped IS NULL) = (destroyed_at IS NOT NULL))
);
-- Statistics hold values of a column, and keep them when the row is gone.
ALTER TABLE keys.subjects ALTER COLUMN wrapped SET STATISTICS 0;

-- Says how what an append brings for a subject stands to what is there: it `fits`, the subject was `forgotten`, or
-- the append needs another key (`rekey`). An append names a subject without a life if it only must not have been
-- forgotten; with a life if it sealed with the key of that life; and `brings` the key if it made it.
CREATE FUNCTION keys.standing(kind text, life int, brings boolean, known_life int, destroyed boolean)
RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN known_life IS NULL THEN CASE WHEN life IS NULL OR (brings AND life = 1) THEN 'fits' ELSE 'rekey' END
        WHEN destroyed THEN CASE WHEN kind <> 'meeting' OR life IS NULL THEN 'forgotten'
                                 WHEN brings AND life = known_life + 1 THEN 'fits' ELSE 'rekey' END
        WHEN life IS NULL OR (NOT brings AND life = known_life) THEN 'fits'
        ELSE 'rekey' END
$$;

DROP FUNCTION log.append(uuid[], bytea[], text[], text[], bigint[], int[], text[], int[], int[], text[], text[], text[],
                         int[], boolean);

-- Appends a group, as before (0001 has the comment), and with it, in the same statement, the keys that its events
-- were sealed with for the first time: neither is ever there without the other. `subject_append` counts appends
-- from 1; what the other arrays say is told at `keys.standing`. An append of a subject that was forgotten is not
-- appended and has the outcome `forgotten`; one that was sealed with a key that is not the subject's, or made a
-- key under another master key than today's, has the outcome `rekey` and is to be sealed again.
--
-- Keys of one aggregate's subjects come with that aggregate's appends alone, so that of two processes that make
-- one for the same subject the second meets a conflict. Whoever may append and no more is held to that, and
-- erases nobody: it would destroy keys, or plant some that nobody has.
CREATE FUNCTION log.append(
    command_ids uuid[], request_hmacs bytea[], aggregate_types text[], aggregate_ids text[],
    expected_versions bigint[], event_counts int[], metadata text[],
    event_append int[], event_offset int[], event_types text[], event_versions text[], payloads text[],
    chunk_ends int[], fresh boolean,
    subject_append int[], subject_kinds text[], subject_ids uuid[], subject_lives int[],
    subject_wrapped bytea[]
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
    troubles boolean := false;
    master_id bytea;
    caller text := CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role') END;
BEGIN
    -- The function has its owner's rights, and the owner's is the service.
    IF NOT pg_has_role(caller, current_user, 'MEMBER') THEN
        IF event_types && ARRAY['ProfileErased', 'MeetingErased'] THEN
            RAISE EXCEPTION '% may not erase anybody', caller USING ERRCODE = 'insufficient_privilege';
        END IF;
        IF EXISTS (
            SELECT FROM unnest(subject_append, subject_kinds, subject_ids, subject_wrapped) AS s (n, kind, id, wrapped)
             WHERE s.wrapped IS NOT NULL
               AND (aggregate_types[s.n] IS DISTINCT FROM CASE s.kind WHEN 'speaker' THEN 'meeting' ELSE s.kind END
                    OR s.kind <> 'speaker' AND aggregate_ids[s.n] IS DISTINCT FROM s.id::text)
        ) THEN
            RAISE EXCEPTION '% may not bring keys of what is not appended to', caller
                USING ERRCODE = 'insufficient_privilege';
        END IF;
    END IF;

    -- Held to the end of the transaction, which is this one statement: the next group sees this one whole.
    PERFORM pg_advisory_xact_lock(7165932018841088001);

    SELECT e.position, greatest(clock_timestamp(), e.recorded_at) INTO head, this_recorded_at
      FROM log.events e ORDER BY e.position DESC LIMIT 1;
    IF head IS NULL THEN
        head := 0;
        this_recorded_at := clock_timestamp();
    END IF;

    -- A new key that is wrapped by a master key which was given up would be lost with it.
    SELECT uuid_send(m.key_id) INTO master_id FROM keys.master m;
    IF master_id IS NULL THEN
        RAISE EXCEPTION 'the log has no master key' USING ERRCODE = 'object_not_in_prerequisite_state';
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
        IF NOT conflicts AND cardinality(subject_kinds) > 0 THEN
            SELECT EXISTS (
                SELECT FROM unnest(subject_kinds, subject_ids, subject_lives, subject_wrapped)
                            AS s (kind, id, life, wrapped)
                  LEFT JOIN LATERAL (
                           SELECT k.life, k.destroyed_at FROM keys.subjects k
                            WHERE k.kind = s.kind AND k.id = s.id LIMIT 1
                       ) k ON true
                 WHERE keys.standing(s.kind, s.life, s.wrapped IS NOT NULL, k.life, k.destroyed_at IS NOT NULL)
                       <> 'fits' OR substr(s.wrapped, 2, 16) <> master_id
            ) INTO troubles;
        END IF;
        IF NOT conflicts AND NOT troubles THEN
            INSERT INTO keys.subjects (kind, id, life, wrapped)
            SELECT s.kind, s.id, s.life, s.wrapped
              FROM unnest(subject_kinds, subject_ids, subject_lives, subject_wrapped) AS s (kind, id, life, wrapped)
             WHERE s.wrapped IS NOT NULL
                ON CONFLICT ON CONSTRAINT subjects_pkey DO UPDATE
               SET life = excluded.life, wrapped = excluded.wrapped, created_at = excluded.created_at,
                   destroyed_at = NULL;
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
        WITH standings AS MATERIALIZED (
            SELECT s.n, keys.standing(s.kind, s.life, s.wrapped IS NOT NULL, k.life, k.destroyed_at IS NOT NULL) AS standing,
                   substr(s.wrapped, 2, 16) <> master_id AS outdated
              FROM unnest(subject_append, subject_kinds, subject_ids, subject_lives, subject_wrapped)
                   AS s (n, kind, id, life, wrapped)
              LEFT JOIN LATERAL (
                       SELECT k.life, k.destroyed_at FROM keys.subjects k
                        WHERE k.kind = s.kind AND k.id = s.id LIMIT 1
                   ) k ON true
             WHERE s.n BETWEEN chunk_start AND chunk_end
        ), troubled AS MATERIALIZED (
            SELECT s.n, CASE WHEN bool_or(s.standing = 'forgotten') THEN 'forgotten' ELSE 'rekey' END AS trouble
              FROM standings s WHERE s.standing <> 'fits' OR s.outdated GROUP BY s.n
        ), resolved AS MATERIALIZED (
            SELECT a.n, a.command_id, a.request_hmac, a.aggregate_type, a.aggregate_id, a.expected,
                   a.event_count, a.metadata,
                   CASE WHEN c.command_id IS NOT NULL OR own.position IS NOT NULL THEN 'duplicate'
                        WHEN a.expected <> coalesce(s.sequence, 0) THEN 'conflict'
                        ELSE coalesce(t.trouble, 'appended') END AS outcome,
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
              LEFT JOIN troubled t ON t.n = a.n
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
        ), inserted_keys AS (
            INSERT INTO keys.subjects (kind, id, life, wrapped)
            SELECT s.kind, s.id, s.life, s.wrapped
              FROM numbered r
              JOIN unnest(subject_append, subject_kinds, subject_ids, subject_lives, subject_wrapped)
                   AS s (n, kind, id, life, wrapped) ON s.n = r.n
             WHERE r.outcome = 'appended' AND s.wrapped IS NOT NULL
                ON CONFLICT ON CONSTRAINT subjects_pkey DO UPDATE
               SET life = excluded.life, wrapped = excluded.wrapped, created_at = excluded.created_at,
                   destroyed_at = NULL
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
                              WHEN 'duplicate' THEN r.known_version ELSE r.actual END,
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
