-- Records that were erased: by whom, and up to when nothing that is said of them is taken any more.
CREATE TABLE erasures (
    organization_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    record_id TEXT NOT NULL,
    erased_at INTEGER NOT NULL,
    erased_by TEXT NOT NULL,
    PRIMARY KEY (organization_id, kind, record_id)
) STRICT;
CREATE INDEX erasures_listed ON erasures (organization_id, erased_at);

-- What they were called in linked systems, by keyed hashes: a list that is read later doesn't bring them back.
CREATE TABLE erased_links (
    integration_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    external_hash BLOB NOT NULL,
    organization_id TEXT NOT NULL,
    erased_at INTEGER NOT NULL,
    PRIMARY KEY (integration_id, kind, external_hash)
) STRICT;
