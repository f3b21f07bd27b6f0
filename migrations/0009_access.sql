-- Who looked at what few may see, who erased and who took something out, who was turned away.

-- Promise: a row for each read of a profile's vectors, each erasure, each export, and each request that was
-- refused for want of a right; written before what it is about is answered. Ids and names of routes only, nothing
-- personal. Never changed; removed after the retention, and never before 30 days are over.
CREATE TABLE ops.access_log (
    id      bigint      GENERATED ALWAYS AS IDENTITY CONSTRAINT access_log_pkey PRIMARY KEY,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    who     text,                 -- an opaque id; null for whoever had no valid token
    kind    text,                 -- person, service, system
    role    text,
    what    text        NOT NULL, -- an action, as read_voices; of a refusal the method and the route
    target  text,                 -- the id of what it is about
    outcome text        NOT NULL CONSTRAINT access_log_outcome CHECK (outcome IN ('allowed', 'refused', 'failed')),
    code    text,                 -- of a refusal: the problem's
    times   integer     NOT NULL DEFAULT 1 CONSTRAINT access_log_times CHECK (times > 0)
);
CREATE INDEX access_log_target ON ops.access_log (target, id) WHERE target IS NOT NULL;
CREATE INDEX access_log_who ON ops.access_log (who, id) WHERE who IS NOT NULL;

CREATE FUNCTION ops.keep_access() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    IF TG_OP = 'DELETE' AND OLD.at < now() - interval '30 days' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'ops.access_log is append-only: % is refused', TG_OP
        USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE TRIGGER access_log_is_append_only
    BEFORE UPDATE OR DELETE ON ops.access_log
    FOR EACH ROW EXECUTE FUNCTION ops.keep_access();
CREATE TRIGGER access_log_is_never_emptied
    BEFORE TRUNCATE ON ops.access_log
    FOR EACH STATEMENT EXECUTE FUNCTION ops.keep_access();

-- Who of the database's roles may see it: said in one place, where there are roles.
DO $$
BEGIN
    IF to_regprocedure('ops.grant_roles()') IS NOT NULL THEN
        CALL ops.grant_roles();
    END IF;
END $$;
