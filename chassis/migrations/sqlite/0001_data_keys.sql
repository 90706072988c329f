-- One data key per organization, wrapped by a master key that the store never holds.
CREATE TABLE data_keys (
    organization_id TEXT NOT NULL PRIMARY KEY,
    wrapped BLOB NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
