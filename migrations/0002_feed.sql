-- What the change feed needs: the event of the same type before a position, and how far each stream is.

CREATE INDEX events_by_type ON log.events (event_type, position);

CREATE SCHEMA ops;

-- Promise: the stream has had every event up to `position` of this epoch, acknowledged; `sequence` was its
-- newest message then. Whoever publishes holds the row, so that refills and the publisher take turns.
-- `state` is what the active publisher last said of itself, with the reason where something is the matter.
CREATE TABLE ops.publications (
    stream   text        CONSTRAINT publications_pkey PRIMARY KEY,
    epoch    uuid        NOT NULL,
    position bigint      NOT NULL,
    sequence bigint      NOT NULL,
    state    text        NOT NULL DEFAULT 'standby',
    detail   text,
    since    timestamptz NOT NULL DEFAULT now()
);
