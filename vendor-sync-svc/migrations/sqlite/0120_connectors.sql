-- Connectors of organizations. Those that are built in are in the program.
CREATE TABLE connectors (
    organization_id TEXT NOT NULL,
    name TEXT NOT NULL,
    source TEXT NOT NULL,                   -- TOML, holds no secret
    version INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (organization_id, name)
) STRICT;

-- What accounts used of daily quotas, so that a restart doesn't begin the day anew.
CREATE TABLE connector_days (
    pool TEXT NOT NULL,                     -- of whom, and which quota
    day TEXT NOT NULL,                      -- YYYY-MM-DD in the quota's zone
    account TEXT NOT NULL,
    used INTEGER NOT NULL,
    PRIMARY KEY (pool, day, account)
) STRICT;
