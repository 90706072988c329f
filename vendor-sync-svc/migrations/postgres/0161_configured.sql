-- What became of each row of WedSync's own configuration tables.
CREATE TABLE configured (
    organization_id TEXT NOT NULL,
    table_name TEXT NOT NULL,
    row_id TEXT NOT NULL,
    became TEXT NOT NULL,                   -- endpoint, integration; empty: nothing yet
    target_id TEXT NOT NULL,
    hash BYTEA NOT NULL,                 -- keyed, of the row as it was last met
    refused TEXT NOT NULL,                  -- empty: it is followed; else why not
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (organization_id, table_name, row_id)
);
