-- Accounts at vendors whose API a connector declares.
ALTER TABLE integrations ADD COLUMN connector TEXT NOT NULL DEFAULT '';
ALTER TABLE integrations ADD COLUMN parameters TEXT NOT NULL DEFAULT '{}';   -- JSON, what the connector asks for
ALTER TABLE integrations ADD COLUMN paused BIGINT NOT NULL DEFAULT 0;       -- 0 or 1

-- Events of resolved changes, and what an integration must be told again, until they are where they belong. Sealed.
CREATE TABLE outbox (
    sequence BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organization_id TEXT NOT NULL,
    lane_id TEXT NOT NULL,                  -- the integration that is told; empty: an event for the router
    event_id TEXT NOT NULL,
    ordering_key TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    event BYTEA NOT NULL,
    refused TEXT NOT NULL                   -- empty: waiting; else why the router will never take it
);
CREATE INDEX outbox_waiting ON outbox (organization_id, sequence) WHERE refused = '';
CREATE INDEX outbox_refused ON outbox (created_at) WHERE refused <> '';

-- What we wrote to a vendor, field by field, until it came back: what is recognised as our own echo.
CREATE TABLE own_writes (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organization_id TEXT NOT NULL,
    integration_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    record_id TEXT NOT NULL,
    field TEXT NOT NULL,
    hash BYTEA NOT NULL,                     -- keyed, of the canonical value
    written_at BIGINT NOT NULL,
    echoed BIGINT NOT NULL,                -- 0 or 1
    word TEXT NOT NULL                      -- what it came back by
);
CREATE INDEX own_writes_record ON own_writes (integration_id, kind, record_id);
CREATE INDEX own_writes_age ON own_writes (written_at);

-- Whose a record is: an integration of a supplier sees the records of that supplier alone.
CREATE TABLE record_suppliers (
    organization_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    record_id TEXT NOT NULL,
    supplier_id TEXT NOT NULL,
    PRIMARY KEY (organization_id, kind, record_id, supplier_id)
);

-- How far an integration's vendor was asked for changes, per kind of record.
CREATE TABLE polls (
    integration_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    organization_id TEXT NOT NULL,
    since BIGINT,                          -- changes up to then are applied; none: never polled
    began BIGINT,                          -- of the walk that is under way, whose changes are wanted from `since` on
    position TEXT NOT NULL DEFAULT '',      -- where that walk goes on; empty: at its beginning
    next_at BIGINT NOT NULL,
    failure TEXT NOT NULL,                  -- of the last poll; empty: it went well
    PRIMARY KEY (integration_id, kind)
);
CREATE INDEX polls_due ON polls (next_at);

-- What was done at a vendor because of an event: never twice, should the attempt be made again.
CREATE TABLE event_operations (
    integration_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    operation TEXT NOT NULL,
    done_at BIGINT NOT NULL,
    PRIMARY KEY (integration_id, event_id, operation)
);
CREATE INDEX event_operations_age ON event_operations (done_at);

-- What vendors hinted at, until it is read. A thing that is hinted at again waits once.
CREATE TABLE rereads (
    integration_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    external_hash BYTEA NOT NULL,           -- keyed, as in record_links
    external_id BYTEA NOT NULL,             -- sealed; empty: what changed is to be found
    organization_id TEXT NOT NULL,
    asked_at BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    next_at BIGINT NOT NULL,
    PRIMARY KEY (integration_id, kind, external_hash)
);
CREATE INDEX rereads_due ON rereads (next_at);
