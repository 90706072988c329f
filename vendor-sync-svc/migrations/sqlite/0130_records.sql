-- Canonical records: what stands of each field, what else was said, and the newest deletion, sealed with the
-- organization's data key for its own row.
CREATE TABLE records (
    organization_id TEXT NOT NULL,
    kind TEXT NOT NULL,                     -- client, wedding, booking
    id TEXT NOT NULL,                       -- WedSync's own
    version INTEGER NOT NULL,
    deleted_at INTEGER,
    updated_at INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (organization_id, kind, id)
) STRICT;

-- What a record can be found by, as keyed hashes: an address, a day with two names. Not unique: two couples may share one.
CREATE TABLE record_keys (
    organization_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    hash BLOB NOT NULL,
    record_id TEXT NOT NULL,
    PRIMARY KEY (organization_id, kind, hash, record_id)
) STRICT;
CREATE INDEX record_keys_record ON record_keys (organization_id, kind, record_id);

-- What records are called in linked systems. The external id is sealed, being an address for some, and found by its hash.
CREATE TABLE record_links (
    organization_id TEXT NOT NULL,
    integration_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    record_id TEXT NOT NULL,
    external_hash BLOB,                     -- none while it isn't known what it is called there
    body BLOB NOT NULL,
    PRIMARY KEY (integration_id, kind, record_id)
) STRICT;
CREATE UNIQUE INDEX record_links_external ON record_links (integration_id, kind, external_hash);
CREATE INDEX record_links_record ON record_links (organization_id, kind, record_id);

-- What lost, and deletions that somebody is asked about. One unresolved row per word; values are sealed.
CREATE TABLE record_conflicts (
    id TEXT NOT NULL PRIMARY KEY,
    organization_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    record_id TEXT NOT NULL,
    field TEXT NOT NULL,                    -- empty: the record as a whole
    source TEXT NOT NULL,                   -- whose word lost
    kept_source TEXT NOT NULL,              -- whose stands; empty: nobody's
    reason TEXT NOT NULL,                   -- older, tie, pinned, deleted_and_edited
    state TEXT NOT NULL,                    -- open, settled, resolved
    found_at INTEGER NOT NULL,
    body BLOB NOT NULL,
    resolution TEXT NOT NULL,               -- empty, keep, take, value
    resolved_by TEXT NOT NULL,
    resolved_at INTEGER
) STRICT;
CREATE UNIQUE INDEX record_conflicts_word ON record_conflicts (organization_id, kind, record_id, field, source)
    WHERE state <> 'resolved';
CREATE INDEX record_conflicts_listed ON record_conflicts (organization_id, state, id);
CREATE INDEX record_conflicts_record ON record_conflicts (organization_id, kind, record_id, id);
CREATE INDEX record_conflicts_age ON record_conflicts (organization_id, resolved_at) WHERE state = 'resolved';

-- Fields that one source alone decides.
CREATE TABLE record_pins (
    organization_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    field TEXT NOT NULL,
    record_id TEXT NOT NULL,                -- empty: of every record of the kind
    source TEXT NOT NULL,
    pinned_by TEXT NOT NULL,
    pinned_at INTEGER NOT NULL,
    PRIMARY KEY (organization_id, kind, record_id, field)
) STRICT;
