-- How far the processes are that name speakers by voice.

-- Promise: one row for each process that knows the voices of everybody, with the position up to which it knows
-- them, noted when it changes, and every few seconds. A row that is older is of a process that has ended without
-- saying so, and is cleared away by the others. Nothing depends on it but what `status` shows.
CREATE TABLE ops.voice_followers (
    id       uuid        CONSTRAINT voice_followers_pkey PRIMARY KEY,
    position bigint      NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT now()
);
