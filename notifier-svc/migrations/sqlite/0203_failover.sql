-- When an urgent message was refused for good; null once the next channel has it, or there is none.
ALTER TABLE messages ADD COLUMN failed_at INTEGER;
CREATE INDEX messages_failed ON messages (failed_at) WHERE failed_at IS NOT NULL;
