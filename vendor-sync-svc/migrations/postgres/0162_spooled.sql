-- How much an import has spooled, in bytes: what bounds a list, and what an organization's imports hold together.
ALTER TABLE imports ADD COLUMN spooled BIGINT NOT NULL DEFAULT 0;
CREATE INDEX imports_spooled ON imports (organization_id, spooled) WHERE spooled > 0;
