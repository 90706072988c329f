-- A refused configuration row, sealed: it is tried again now and then. Null while it is followed.
ALTER TABLE configured ADD COLUMN kept BLOB;
CREATE INDEX configured_refused ON configured (organization_id, table_name, row_id) WHERE refused <> '';

-- 0: it was looked at, and is nothing that people are told of.
ALTER TABLE integration_behind ADD COLUMN told INTEGER NOT NULL DEFAULT 1;
