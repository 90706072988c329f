-- Accounts at vendors whose API a connector declares.
ALTER TABLE integrations ADD COLUMN connector TEXT NOT NULL DEFAULT '';
ALTER TABLE integrations ADD COLUMN parameters TEXT NOT NULL DEFAULT '{}';   -- JSON, what the connector asks for
ALTER TABLE integrations ADD COLUMN paused INTEGER NOT NULL DEFAULT 0;       -- 0 or 1
