-- One row per destination. What the dispatcher must remember of it across restarts.
CREATE TABLE lanes (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    organization_id TEXT NOT NULL,
    breaker_opened_at INTEGER,          -- null: closed
    breaker_openings INTEGER NOT NULL,  -- in a row, without a success between
    failing_since INTEGER               -- null: the last attempt that counts succeeded
) STRICT;

-- One row per (event, lane). `content` is the rendered message, sealed; only rows that may still be sent hold one.
-- state: 0 waiting, 1 sending, 2 blocked, 3 delivered, 4 dead, 5 cancelled, 6 unknown
CREATE TABLE deliveries (
    id INTEGER PRIMARY KEY,
    lane INTEGER NOT NULL,
    organization_id TEXT NOT NULL,
    event BLOB NOT NULL,                -- uid, 16 bytes
    event_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    ordering_key TEXT NOT NULL,
    priority INTEGER NOT NULL,          -- 1 CRITICAL to 4 LOW
    state INTEGER NOT NULL,
    origin TEXT NOT NULL,               -- realtime, replay, test, import
    attempts INTEGER NOT NULL,
    reopened_after INTEGER NOT NULL,    -- attempts when it was last reopened: its schedule begins there
    next_at INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    finished_at INTEGER,
    status_code INTEGER,                -- of the last attempt
    reason TEXT NOT NULL,
    content BLOB
) STRICT;
CREATE UNIQUE INDEX deliveries_event ON deliveries (event, lane);
CREATE INDEX deliveries_organization ON deliveries (organization_id, id);
CREATE INDEX deliveries_due ON deliveries (lane, priority, next_at) WHERE state = 0;
CREATE INDEX deliveries_key ON deliveries (lane, ordering_key, id) WHERE state IN (0, 1, 2);
CREATE INDEX deliveries_dead ON deliveries (lane, id) WHERE state IN (4, 6);

CREATE TABLE attempts (
    delivery INTEGER NOT NULL,
    number INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    duration INTEGER NOT NULL,          -- microseconds
    status_code INTEGER,                -- null: no answer
    outcome TEXT NOT NULL,
    error TEXT NOT NULL,
    response BLOB,                      -- sealed
    PRIMARY KEY (delivery, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX attempts_lane ON attempts (lane, started_at);

-- Whether the last process that owned the lanes stopped in order. One row.
CREATE TABLE lane_owner (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    stopped_cleanly INTEGER NOT NULL,
    started_at INTEGER NOT NULL
) STRICT;
