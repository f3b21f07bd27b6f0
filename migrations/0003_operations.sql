-- What operators do with the tables, and how far they are.

-- Up to which position the broker has lost events that it had; 0 once they were published again.
ALTER TABLE ops.publications ADD COLUMN lost_up_to bigint NOT NULL DEFAULT 0;

-- Promise: a row per rebuild that began. One that has no `finished_at` runs, or was killed: whether it runs
-- is known from the advisory lock that a rebuild holds.
CREATE TABLE ops.rebuilds (
    id          bigint      GENERATED ALWAYS AS IDENTITY CONSTRAINT rebuilds_pkey PRIMARY KEY,
    started_at  timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    who         text        NOT NULL,           -- process and host
    kind        text        NOT NULL,           -- rebuild, dry-run, rollback, verify
    phase       text        NOT NULL,
    done        bigint      NOT NULL DEFAULT 0, -- events
    total       bigint      NOT NULL DEFAULT 0, -- events
    outcome     text
);
