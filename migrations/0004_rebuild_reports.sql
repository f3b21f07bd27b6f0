-- What a rebuild found, and who asked for it.
ALTER TABLE ops.rebuilds
    -- What the command line says as JSON: keys and columns of rows that differ, never a value.
    ADD COLUMN report       jsonb,
    -- The process of PostgreSQL that holds the advisory lock: the rebuild runs while it does.
    ADD COLUMN backend      integer,
    -- From the Idempotency-Key of the request, if it had one.
    ADD COLUMN command_id   uuid CONSTRAINT rebuilds_command_key UNIQUE,
    ADD COLUMN request_hmac bytea;
