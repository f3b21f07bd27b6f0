-- Who may do what, besides the owner, which migrates and serves. Roles that nobody logs in as: a login is made
-- a member of the one that it needs. They belong to the whole cluster, so their names say whose they are.
--
--   minutebook_writer     reads the log, and appends through log.append; changes and removes nothing
--   minutebook_projector  reads the log, and writes the tables
--   minutebook_reader     reads the tables of one owner, named by the setting minutebook.owner; no voice
--   minutebook_auditor    reads who did what when: the log without its payloads, and the audit trail
--
-- Grants on the tables of a generation are in read_model.sql.

-- Appending is the one way in, so it has the owner's rights, for whoever may call it. A fixed search_path, for
-- otherwise the caller would choose whose functions run with these rights.
ALTER FUNCTION log.append SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
REVOKE ALL ON FUNCTION log.append FROM PUBLIC;

-- Makes the roles, where the owner may, and gives them their rights to what is in the database and not in a
-- generation. Where the owner may not, somebody who may makes them, and calls this once more. A migration that
-- adds a table for one of them does so too.
CREATE PROCEDURE ops.grant_roles() LANGUAGE plpgsql AS $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['minutebook_writer', 'minutebook_projector', 'minutebook_reader', 'minutebook_auditor']
    LOOP
        CONTINUE WHEN to_regrole(role) IS NOT NULL;
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role);
        EXCEPTION
            -- Another database of the cluster was faster.
            WHEN duplicate_object OR unique_violation THEN NULL;
            WHEN insufficient_privilege THEN
                RAISE WARNING 'the role % is not there, and % may not make it', role, current_user;
        END;
    END LOOP;

    IF to_regrole('minutebook_writer') IS NOT NULL THEN
        GRANT USAGE ON SCHEMA log, ops TO minutebook_writer;
        GRANT SELECT ON log.identity, log.events, log.commands TO minutebook_writer;
        -- What operators skip is passed over by whoever loads a history.
        GRANT SELECT ON ops.parked_decisions TO minutebook_writer;
        GRANT EXECUTE ON FUNCTION log.append TO minutebook_writer;
    END IF;

    IF to_regrole('minutebook_projector') IS NOT NULL THEN
        GRANT USAGE ON SCHEMA log, ops TO minutebook_projector;
        GRANT SELECT ON log.identity, log.events TO minutebook_projector;
        GRANT SELECT ON ops.parked_decisions TO minutebook_projector;
        GRANT SELECT, INSERT, DELETE ON ops.parked_events TO minutebook_projector;
    END IF;

    IF to_regrole('minutebook_auditor') IS NOT NULL THEN
        GRANT USAGE ON SCHEMA log, ops TO minutebook_auditor;
        GRANT SELECT (position, recorded_at, aggregate_type, aggregate_id, sequence, event_type, event_version, metadata)
            ON log.events TO minutebook_auditor;
        -- An operator's reason is told to nobody.
        GRANT SELECT (id, position, outcome, actor, decided_at) ON ops.parked_decisions TO minutebook_auditor;
        GRANT SELECT (id, started_at, finished_at, who, kind, phase, done, total, outcome)
            ON ops.rebuilds TO minutebook_auditor;
        IF to_regclass('ops.access_log') IS NOT NULL THEN
            GRANT SELECT ON ops.access_log TO minutebook_auditor;
        END IF;
    END IF;

    -- Wrapped keys: what decodes events has to read them, and can do nothing with them without the master key.
    IF to_regnamespace('keys') IS NOT NULL THEN
        IF to_regrole('minutebook_writer') IS NOT NULL THEN
            GRANT USAGE ON SCHEMA keys TO minutebook_writer;
            GRANT SELECT ON keys.master, keys.subjects TO minutebook_writer;
        END IF;
        IF to_regrole('minutebook_projector') IS NOT NULL THEN
            GRANT USAGE ON SCHEMA keys TO minutebook_projector;
            GRANT SELECT ON keys.master, keys.subjects TO minutebook_projector;
        END IF;
    END IF;
END $$;
REVOKE ALL ON PROCEDURE ops.grant_roles FROM PUBLIC;
CALL ops.grant_roles();
