-- What was forgotten: the destruction of keys with the event that says so, and its receipt.

-- Promise: one row per erasure of a person or a meeting, written with the event that says so. It outlives what it
-- is about, and a restore from before it: so it names nobody, and says only what was destroyed, when, by whom and
-- at which position. Without `completed_at` it is under way: whoever projects the log carries it on.
CREATE TABLE keys.erasures (
    number       bigint      GENERATED ALWAYS AS IDENTITY CONSTRAINT erasures_pkey PRIMARY KEY,
    kind         text        NOT NULL CONSTRAINT erasures_kind CHECK (kind IN ('profile', 'meeting')),
    subject      uuid        NOT NULL,
    position     bigint      NOT NULL,           -- of the event
    erased_at    timestamptz NOT NULL,           -- when it was recorded
    actor        text,                           -- an opaque id
    actor_kind   text,                           -- person, service or system
    reason       text,                           -- of a meeting: the words of whoever runs the book
    keys         bigint      NOT NULL DEFAULT 0, -- that were destroyed
    speakers     bigint      NOT NULL DEFAULT 0, -- who were ever said to be the person, or spoke in the meeting
    meetings     bigint      NOT NULL DEFAULT 0, -- in which they speak
    waits_for    text,                           -- what keeps it from its end, if something does
    completed_at timestamptz
);
CREATE INDEX erasures_subject ON keys.erasures (subject, number);
CREATE INDEX erasures_under_way ON keys.erasures (number) WHERE completed_at IS NULL;

-- What a command was about: looked up when that is erased.
CREATE INDEX commands_aggregate ON log.commands (aggregate_id);

-- An event that erases destroys the key of what it erases, in its own transaction and so under the append lock:
-- from the next append on, nothing is sealed for it and nobody is linked to it. (A meeting registered again is
-- sealed with the key of its next life.)
CREATE FUNCTION keys.note_erasure() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    subject_id uuid;
    destroyed bigint;
BEGIN
    -- What no id names has no key.
    IF NEW.aggregate_id !~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN
        RETURN NULL;
    END IF;
    subject_id := NEW.aggregate_id::uuid;
    -- A log that is restored: its keys and receipts came before it, and may be of a later life.
    IF EXISTS (SELECT FROM keys.erasures e
                WHERE e.kind = NEW.aggregate_type AND e.subject = subject_id
                  AND e.position = NEW.position AND e.erased_at = NEW.recorded_at) THEN
        RETURN NULL;
    END IF;
    SELECT count(*) INTO destroyed FROM keys.subjects s
     WHERE s.kind = NEW.aggregate_type AND s.id = subject_id AND s.wrapped IS NOT NULL;
    -- A tombstone stands for a key that was never made, too: none is made from now on. So does the next one of a
    -- meeting that was registered anew: it ends a life in which nothing was sealed, and a list of the erased must
    -- tell it from the one before. It is of the moment of its event: by that it is known whether the log has it.
    INSERT INTO keys.subjects (kind, id, wrapped, destroyed_at)
    VALUES (NEW.aggregate_type, subject_id, NULL, NEW.recorded_at)
    ON CONFLICT ON CONSTRAINT subjects_pkey DO UPDATE
       SET life = CASE WHEN subjects.wrapped IS NULL THEN subjects.life + 1 ELSE subjects.life END,
           wrapped = NULL, destroyed_at = excluded.destroyed_at;
    -- What was asked of it, a name perhaps, cannot be tried out any more, whoever has every secret: only the command
    -- that erases may still be repeated. (They are as long as before, and as random.)
    UPDATE log.commands c
       SET request_hmac = sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
                                                              || uuid_send(gen_random_uuid()))
     WHERE c.aggregate_id = NEW.aggregate_id
       AND c.command_id::text IS DISTINCT FROM NEW.metadata ->> 'command_id';
    -- Every process drops what it remembers.
    UPDATE keys.master SET destructions = destructions + 1;
    INSERT INTO keys.erasures (kind, subject, position, erased_at, actor, actor_kind, reason, keys)
    VALUES (NEW.aggregate_type, subject_id, NEW.position, NEW.recorded_at,
            NEW.metadata ->> 'actor', NEW.metadata ->> 'actor_kind',
            NEW.payload #>> '{MeetingErased,reason}', destroyed);
    RETURN NULL;
END $$;

CREATE TRIGGER events_destroy_keys
    AFTER INSERT ON log.events
    FOR EACH ROW WHEN (NEW.event_type IN ('ProfileErased', 'MeetingErased'))
    EXECUTE FUNCTION keys.note_erasure();

-- Where a person was ever said to speak: looked up when the person is forgotten.
CREATE INDEX events_identified ON log.events ((payload #>> '{SpeakerIdentified,profile_id}'))
    WHERE event_type = 'SpeakerIdentified';
CREATE INDEX events_reassigned ON log.events ((payload #>> '{SpeakerReassigned,to}'))
    WHERE event_type = 'SpeakerReassigned';

-- What there is now is granted as the roles have it.
CALL ops.grant_roles();
