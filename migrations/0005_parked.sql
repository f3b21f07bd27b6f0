-- Events that cannot be applied: they wait, all others flow, and somebody decides.

-- Generations have numbers that are never given out twice.
CREATE SEQUENCE ops.generations;
DO $$
BEGIN
    IF to_regclass('read.checkpoint') IS NOT NULL THEN
        PERFORM setval('ops.generations', (SELECT generation FROM read.checkpoint));
    END IF;
END $$;

-- Promise: the events that a generation does not show although its checkpoint has passed them. Written and
-- deleted in the transaction that moves the generation's tables. The first of an aggregate has the reason;
-- those behind it only wait for it.
CREATE TABLE ops.parked_events (
    generation     bigint      NOT NULL,
    position       bigint      NOT NULL,
    aggregate_type text        NOT NULL,
    aggregate_id   text        NOT NULL,
    sequence       bigint      NOT NULL,
    event_type     text        NOT NULL,
    reason         text,                  -- without any of the event's content
    parked_at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT parked_events_pkey PRIMARY KEY (generation, position)
);
CREATE INDEX parked_events_aggregate ON ops.parked_events (generation, aggregate_type, aggregate_id, position);

-- Promise: what became of parked events, and who said so; never changed. A skipped event has no effect from
-- then on, in no generation; its row is what every fold asks.
CREATE TABLE ops.parked_decisions (
    id         bigint      GENERATED ALWAYS AS IDENTITY CONSTRAINT parked_decisions_pkey PRIMARY KEY,
    position   bigint      NOT NULL,
    outcome    text        NOT NULL CONSTRAINT parked_decisions_outcome CHECK (outcome IN ('applied', 'skipped')),
    reason     text,                  -- the operator's; kept here, told to nobody else
    actor      text        NOT NULL,
    decided_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX parked_decisions_skipped ON ops.parked_decisions (position) WHERE outcome = 'skipped';

-- Promise: the events over which a stream has passed because they were parked; each goes out once it is parked
-- no longer.
CREATE TABLE ops.withheld_events (
    stream   text   NOT NULL,
    position bigint NOT NULL,
    CONSTRAINT withheld_events_pkey PRIMARY KEY (stream, position)
);
