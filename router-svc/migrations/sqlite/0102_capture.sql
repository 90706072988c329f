-- How far a source of changes is. `system` and `generation` stand in its events' ids; `acknowledged` is the last place that
-- its server was told, stored before it is told: a slot that is further was moved by somebody else.
CREATE TABLE capture_sources (
    name TEXT NOT NULL PRIMARY KEY,
    system TEXT NOT NULL,
    generation INTEGER NOT NULL,
    phase TEXT NOT NULL,                -- preparing: its slot or snapshot isn't whole; streaming
    lost TEXT NOT NULL,                 -- why changes before this generation may be missing; empty: none are
    acknowledged INTEGER NOT NULL
) STRICT;

-- Changes that the log doesn't take, the newest of each source: for a person to look at.
CREATE TABLE capture_refusals (
    number INTEGER PRIMARY KEY,
    source TEXT NOT NULL,
    event_id TEXT NOT NULL,
    table_name TEXT NOT NULL,
    operation TEXT NOT NULL,
    row_key TEXT NOT NULL,
    reason TEXT NOT NULL,
    refused_at INTEGER NOT NULL,
    UNIQUE (source, event_id)
) STRICT;
CREATE INDEX capture_refusals_source ON capture_refusals (source, number);
