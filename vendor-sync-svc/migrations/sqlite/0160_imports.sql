-- Imports and reconciliations. Refusals and examples are sealed: they quote what people wrote.
CREATE TABLE imports (
    id TEXT NOT NULL PRIMARY KEY,
    organization_id TEXT NOT NULL,
    integration_id TEXT NOT NULL,
    work TEXT NOT NULL,                     -- import, reconcile
    source TEXT NOT NULL,                   -- vendor, csv, ics
    record_kind TEXT NOT NULL,              -- of a file's rows
    options TEXT NOT NULL,                  -- JSON: what somebody says about a table
    dry_run INTEGER NOT NULL,               -- 0 or 1
    state TEXT NOT NULL,                    -- receiving, running, asked, done, failed, cancelled
    phase TEXT NOT NULL,                    -- receiving, listing, counting, applying
    reason TEXT NOT NULL,
    agreed INTEGER,                         -- to how many changes a person has said yes
    encoding TEXT NOT NULL,                 -- of a file
    total INTEGER NOT NULL,                 -- bytes of a file, records of a list
    next TEXT NOT NULL,                     -- JSON: where the phase goes on
    counts TEXT NOT NULL,                   -- JSON
    refusals BLOB NOT NULL,
    examples BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    finished_at INTEGER
) STRICT;
CREATE INDEX imports_organization ON imports (organization_id, id);
-- One at a time of an integration.
CREATE UNIQUE INDEX imports_open ON imports (integration_id) WHERE state IN ('receiving', 'running', 'asked');
CREATE INDEX imports_running ON imports (id) WHERE state IN ('receiving', 'running');
CREATE INDEX imports_integration ON imports (integration_id, work, created_at);
CREATE INDEX imports_age ON imports (finished_at) WHERE finished_at IS NOT NULL;

-- A file until its import has ended, in pieces of 256 KiB but the last, sealed.
CREATE TABLE import_chunks (
    import_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (import_id, number)
) STRICT;

-- A vendor's list until its import has ended. Bodies are sealed.
CREATE TABLE import_items (
    import_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    record_kind TEXT NOT NULL,
    external_hash BLOB NOT NULL,           -- keyed, as in record_links
    body BLOB NOT NULL,
    PRIMARY KEY (import_id, number)
) STRICT;
CREATE INDEX import_items_external ON import_items (import_id, record_kind, external_hash);
