-- A refused row's key is sealed: it may be anybody's address. Those that were kept before are let go.
ALTER TABLE capture_refusals DROP COLUMN row_key;
ALTER TABLE capture_refusals ADD COLUMN row_key BYTEA NOT NULL DEFAULT '';
