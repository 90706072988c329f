-- How many processes died shortly before the last start: what they attempted last may be missing from the record.
ALTER TABLE lane_owner ADD COLUMN deaths INTEGER NOT NULL DEFAULT 0;
