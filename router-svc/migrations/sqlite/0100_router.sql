CREATE TABLE organizations (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    time_zone TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE api_keys (
    id TEXT NOT NULL PRIMARY KEY,
    organization_id TEXT NOT NULL,      -- empty: the operator's
    hash BLOB NOT NULL UNIQUE,          -- SHA-256 of the secret
    description TEXT NOT NULL,
    scopes TEXT NOT NULL,               -- names, separated by spaces
    created_at INTEGER NOT NULL,
    expires_at INTEGER                  -- null: never
) STRICT;
CREATE INDEX api_keys_organization ON api_keys (organization_id);

-- One row. The head is locked by every append; `epoch` is raised by every router that starts.
CREATE TABLE log (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    log_id TEXT NOT NULL,
    head INTEGER NOT NULL,
    oldest INTEGER NOT NULL,            -- the first sequence that is still kept
    epoch INTEGER NOT NULL
) STRICT;

-- `body` is a wedsync.router.v1.LoggedEvent without its position, sealed.
CREATE TABLE events (
    sequence INTEGER PRIMARY KEY,
    organization_id TEXT NOT NULL,
    id TEXT NOT NULL,
    uid BLOB NOT NULL,                  -- 16 bytes
    type TEXT NOT NULL,
    ordering_key TEXT NOT NULL,
    priority INTEGER NOT NULL,          -- 1 CRITICAL to 4 LOW
    content_hash BLOB NOT NULL,
    recorded_at INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX events_id ON events (organization_id, id);
CREATE UNIQUE INDEX events_uid ON events (uid);
CREATE INDEX events_priority ON events (priority, sequence);
CREATE INDEX events_key ON events (organization_id, ordering_key, sequence);
CREATE INDEX events_organization ON events (organization_id, sequence);

CREATE TABLE consumer_groups (
    number INTEGER PRIMARY KEY,
    organization_id TEXT NOT NULL,      -- empty: a built-in group, over all organizations
    name TEXT NOT NULL,
    types TEXT NOT NULL,                -- patterns, separated by spaces
    created_at INTEGER NOT NULL,
    UNIQUE (organization_id, name)
) STRICT;

-- Everything of this priority up to and with `sequence` is acknowledged.
CREATE TABLE cursors (
    group_number INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    PRIMARY KEY (group_number, priority)
) STRICT, WITHOUT ROWID;

-- Ranges that a group is offered again; removed when the last of a range is acknowledged.
CREATE TABLE replays (
    number INTEGER PRIMARY KEY,
    group_number INTEGER NOT NULL,
    organization_id TEXT NOT NULL,
    since INTEGER NOT NULL,
    until INTEGER NOT NULL
) STRICT;

-- `definition` is a wedsync.router.v1.Route. A row with a built-in route's id disables that one.
CREATE TABLE routes (
    organization_id TEXT NOT NULL,
    id TEXT NOT NULL,
    definition BLOB NOT NULL,
    version INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (organization_id, id)
) STRICT;

-- `definition` is a wedsync.router.v1.ChannelConfiguration.
CREATE TABLE channel_configurations (
    organization_id TEXT NOT NULL,
    pattern TEXT NOT NULL,
    definition BLOB NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (organization_id, pattern)
) STRICT;

-- `definition` is JSON: what `wedding.rs` knows of it. It holds ids, times and the columns that priority looks at.
CREATE TABLE weddings (
    organization_id TEXT NOT NULL,
    id TEXT NOT NULL,
    couple_id TEXT NOT NULL,
    definition TEXT NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (organization_id, id)
) STRICT;
CREATE INDEX weddings_couple ON weddings (organization_id, couple_id);
