-- The timeline that a source was read on last: a standby that was promoted goes on as another. 0: not kept yet.
ALTER TABLE capture_sources ADD COLUMN timeline INTEGER NOT NULL DEFAULT 0;
